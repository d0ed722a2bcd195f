# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the administration shows."""

from __future__ import annotations

from django.contrib import admin
from owner_agreements.models import AdminNote, AgreementRiskSignal, OwnerAgreement


@admin.register(OwnerAgreement)
class OwnerAgreementAdmin(admin.ModelAdmin):
    """Agreements."""

    list_display = ["property_name", "owner", "status"]


@admin.register(AgreementRiskSignal)
class AgreementRiskSignalAdmin(admin.ModelAdmin):
    """Risk signals."""

    list_display = ["id", "risk_type", "severity", "is_resolved", "created_at"]


@admin.register(AdminNote)
class AdminNoteAdmin(admin.ModelAdmin):
    """Internal notes."""

    list_display = ["signal", "admin_user", "created_at"]
