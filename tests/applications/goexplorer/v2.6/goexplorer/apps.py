# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The administration site's configuration."""

from __future__ import annotations

from django.contrib.admin.apps import AdminConfig


class GoexplorerAdminConfig(AdminConfig):
    """Django's administration with GoExplorer's site."""

    default_site = "goexplorer.admin.GoexplorerAdminSite"
