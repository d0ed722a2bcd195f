# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agreements with the owners of properties."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class OwnerAgreement(models.Model):
    """What one owner and GoExplorer agreed on for one property."""

    class Status(models.TextChoices):
        """Where the agreement is in its life."""

        DRAFT = "DRAFT", "Draft"
        SIGNED = "SIGNED", "Signed"
        ENDED = "ENDED", "Ended"

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="agreements")
    property_name = models.CharField(max_length=200)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.DRAFT)
    document = models.FileField(upload_to="agreements/", blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.property_name} ({self.get_status_display()})"
