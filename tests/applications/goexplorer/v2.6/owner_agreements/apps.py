# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application's configuration."""

from __future__ import annotations

from django.apps import AppConfig


class OwnerAgreementsConfig(AppConfig):
    """Agreements with owners."""

    name = "owner_agreements"
    verbose_name = "Owner agreements"
