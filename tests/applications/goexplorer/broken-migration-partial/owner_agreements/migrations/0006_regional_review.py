# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One risk signal for each region, of which the last cannot be made: broken on purpose."""

from django.db import migrations

REGIONS = {"north": "WARNING", "south": "WARNING", "east": None}


def fill(apps, schema_editor):
    """Insert rows until one raises."""
    signals = apps.get_model("owner_agreements", "AgreementRiskSignal").objects.using(
        schema_editor.connection.alias
    )
    for region, severity in REGIONS.items():
        if severity is None:
            raise RuntimeError(f"region {region} has no severity: two signals were inserted before this one")
        signals.create(risk_type="EXPIRING", severity=severity, details="Regional review", region=region)


class Migration(migrations.Migration):
    """In no transaction: the rows inserted before the error stay."""

    atomic = False

    dependencies = [("owner_agreements", "0005_agreementrisksignal_region")]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
