# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The region that a risk signal is about."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Add the column, empty: code that does not know it can still write."""

    dependencies = [("owner_agreements", "0004_adminnote")]

    operations = [
        migrations.AddField(
            model_name="agreementrisksignal",
            name="region",
            field=models.CharField(blank=True, max_length=40, null=True),
        ),
    ]
