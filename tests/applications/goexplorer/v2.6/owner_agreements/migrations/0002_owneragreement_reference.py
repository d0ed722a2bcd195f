# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference that is printed on an agreement."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Add the column."""

    dependencies = [("owner_agreements", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="owneragreement",
            name="reference",
            field=models.CharField(blank=True, default="", max_length=40),
        ),
    ]
