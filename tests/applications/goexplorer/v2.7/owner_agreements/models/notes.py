# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Internal notes of the administrators."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from owner_agreements.models.signals import AgreementRiskSignal


class AdminNote(models.Model):
    """What an administrator noted about a risk signal; owners never see it.

    The table has five indexes, on PostgreSQL and on SQLite alike: the primary key's, one for each foreign key, and the two
    below. (An integer key would have none of its own on SQLite, where it is the row's number.)
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    note_text = models.TextField(max_length=2000)
    signal = models.ForeignKey(AgreementRiskSignal, on_delete=models.CASCADE, related_name="admin_notes")
    admin_user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="admin_notes"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "owner_agreements_admin_notes"
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["-created_at"], name="admin_notes_created"),
            models.Index(fields=["signal", "-created_at"], name="admin_notes_signal_created"),
        ]

    def __str__(self) -> str:
        return f"Note of {self.admin_user} on signal #{self.signal_id}"
