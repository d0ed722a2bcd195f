# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The administration site."""

from __future__ import annotations

from django.contrib.admin import AdminSite


class GoexplorerAdminSite(AdminSite):
    """Administration below ``/admin/``."""

    site_header = "GoExplorer administration"
    # A page below /admin/ that does not exist answers 404 to everybody: Django's own catch-all would
    # redirect visitors to the login page, and nobody could tell a missing page from a protected one.
    final_catch_all_view = False
