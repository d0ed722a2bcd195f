# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The region that a risk signal is about, filled in once."""

from django.db import migrations, models


def fill(apps, schema_editor):
    """Give each signal that belongs to an agreement a region."""
    signals = apps.get_model("owner_agreements", "AgreementRiskSignal").objects.using(
        schema_editor.connection.alias
    )
    signals.filter(agreement__isnull=False).update(region="north")


class Migration(migrations.Migration):
    """Add the column, empty, then fill it; nobody wrote the way back."""

    dependencies = [("owner_agreements", "0004_adminnote")]

    operations = [
        migrations.AddField(
            model_name="agreementrisksignal",
            name="region",
            field=models.CharField(blank=True, max_length=40, null=True),
        ),
        migrations.RunPython(fill),
    ]
