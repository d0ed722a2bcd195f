# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of owner agreements."""

from __future__ import annotations

from django.urls import path

from owner_agreements import health, views

urlpatterns = [
    path("", views.home, name="home"),
    path("healthz/", health.healthz, name="healthz"),
    path("owners/", views.owners, name="owners"),
    path("owners/documents/<int:agreement_id>/", views.document, name="document"),
    path("signals/report/", views.report_signal, name="report_signal"),
]
