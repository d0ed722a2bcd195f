# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Risks seen in agreements."""

from __future__ import annotations

from django.db import models
from owner_agreements.models.agreements import OwnerAgreement


class AgreementRiskSignal(models.Model):
    """One risk that somebody, or something, reported."""

    class RiskType(models.TextChoices):
        """What kind of risk it is."""

        LATE_PAYMENT = "LATE_PAYMENT", "Late payment"
        EXPIRING = "EXPIRING", "Agreement expires"
        COMPLAINTS = "COMPLAINTS", "Complaints of guests"
        DOCUMENT_MISSING = "DOCUMENT_MISSING", "Document missing"

    class Severity(models.TextChoices):
        """How bad it is."""

        CRITICAL = "CRITICAL", "Critical"
        WARNING = "WARNING", "Warning"
        INFO = "INFO", "For information"

    agreement = models.ForeignKey(
        OwnerAgreement, on_delete=models.CASCADE, related_name="signals", null=True, blank=True
    )
    risk_type = models.CharField(max_length=20, choices=RiskType.choices)
    severity = models.CharField(max_length=10, choices=Severity.choices, default=Severity.INFO)
    details = models.TextField(blank=True, default="")
    is_resolved = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    region = models.CharField(max_length=40, null=True, blank=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"#{self.pk} {self.get_risk_type_display()}"
