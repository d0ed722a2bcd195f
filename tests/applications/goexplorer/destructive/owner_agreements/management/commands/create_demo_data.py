# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the users, agreements and signals that a demonstration needs."""

from __future__ import annotations

import os

from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from owner_agreements.models import AgreementRiskSignal, OwnerAgreement

PROPERTIES = ["Lighthouse", "Old Mill", "Harbour Loft"]


class Command(BaseCommand):
    """``manage.py create_demo_data``; a second run changes nothing but the passwords that differ."""

    help = "Make the users admin and owner, three agreements with documents, and risk signals."

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the options."""
        for user in ("admin", "owner"):
            parser.add_argument(
                f"--{user}-password",
                default=os.environ.get(f"GOEXPLORER_{user.upper()}_PASSWORD", ""),
                help=f"default: the variable GOEXPLORER_{user.upper()}_PASSWORD, which no process list shows",
            )
        parser.add_argument(
            "--signals", type=int, default=6, help="how many risk signals there are in the end"
        )

    def handle(self, *args, **options) -> None:
        """Make what is missing."""
        for user in ("admin", "owner"):
            if not options[f"{user}_password"]:
                raise CommandError(
                    f"there is no password for {user}: set GOEXPLORER_{user.upper()}_PASSWORD or give --{user}-password"
                )
        with transaction.atomic():
            self.make_user("admin", options["admin_password"], staff=True)
            owner = self.make_user("owner", options["owner_password"], staff=False)
            agreements = [self.make_agreement(owner, number) for number in range(len(PROPERTIES))]
            self.make_signals(agreements, options["signals"])
        self.stdout.write(
            f"{OwnerAgreement.objects.count()} agreements, {AgreementRiskSignal.objects.count()} risk signals"
        )

    def make_user(self, name: str, password: str, staff: bool):
        """Return the user called *name*, who signs in with *password*."""
        user, made = get_user_model().objects.get_or_create(
            username=name, defaults={"is_staff": staff, "is_superuser": staff}
        )
        if made or not user.check_password(password):
            user.set_password(password)
            user.save()
        return user

    def make_agreement(self, owner, number: int) -> OwnerAgreement:
        """Return the agreement for the property *number*, with a document in MEDIA_ROOT."""
        agreement, made = OwnerAgreement.objects.get_or_create(
            owner=owner,
            property_name=PROPERTIES[number],
            defaults={"status": OwnerAgreement.Status.SIGNED},
        )
        if made:
            text = f"Agreement for {agreement.property_name}\n"
            agreement.document.save(f"GX-{number + 1:04d}.txt", ContentFile(text.encode()))
        return agreement

    def make_signals(self, agreements: list, wanted: int) -> None:
        """Add signals until there are *wanted*."""
        kinds = AgreementRiskSignal.RiskType.values
        severities = AgreementRiskSignal.Severity.values
        for number in range(AgreementRiskSignal.objects.count(), wanted):
            AgreementRiskSignal.objects.create(
                agreement=agreements[number % len(agreements)],
                risk_type=kinds[number % len(kinds)],
                severity=severities[number % len(severities)],
                details=f"Demonstration signal {number + 1}",
            )
