# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agreements have no reference any more."""

from django.db import migrations


class Migration(migrations.Migration):
    """Remove the column; Django would make it again, but not what was in it."""

    dependencies = [("owner_agreements", "0004_adminnote")]

    operations = [migrations.RemoveField(model_name="owneragreement", name="reference")]
