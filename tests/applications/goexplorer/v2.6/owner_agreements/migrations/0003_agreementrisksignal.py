# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Risks seen in agreements."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """Create the table of risk signals."""

    dependencies = [("owner_agreements", "0002_owneragreement_reference")]

    operations = [
        migrations.CreateModel(
            name="AgreementRiskSignal",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "risk_type",
                    models.CharField(
                        choices=[
                            ("LATE_PAYMENT", "Late payment"),
                            ("EXPIRING", "Agreement expires"),
                            ("COMPLAINTS", "Complaints of guests"),
                            ("DOCUMENT_MISSING", "Document missing"),
                        ],
                        max_length=20,
                    ),
                ),
                (
                    "severity",
                    models.CharField(
                        choices=[
                            ("CRITICAL", "Critical"),
                            ("WARNING", "Warning"),
                            ("INFO", "For information"),
                        ],
                        default="INFO",
                        max_length=10,
                    ),
                ),
                ("details", models.TextField(blank=True, default="")),
                ("is_resolved", models.BooleanField(default=False)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "agreement",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="signals",
                        to="owner_agreements.owneragreement",
                    ),
                ),
            ],
            options={"ordering": ["id"]},
        ),
    ]
