# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The administrators' pages."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client, TestCase
from owner_agreements.models import AdminNote, AgreementRiskSignal, OwnerAgreement

ROOT = "/admin/owner-agreements/intelligence/"


class IntelligenceTest(TestCase):
    """Dashboard, list, signal and notes."""

    def setUp(self) -> None:
        """Make the people and one critical signal."""
        users = get_user_model().objects
        self.admin = users.create_user("admin", is_staff=True)
        self.owner = users.create_user("owner")
        agreement = OwnerAgreement.objects.create(owner=self.owner, property_name="Lighthouse")
        self.signal = AgreementRiskSignal.objects.create(
            agreement=agreement, risk_type="LATE_PAYMENT", severity="CRITICAL", details="two months"
        )
        self.page = f"{ROOT}signals/{self.signal.pk}/"

    def test_visitors_and_owners_see_nothing(self) -> None:
        """Visitors are sent to the login page, owners are refused, and neither can write."""
        for address in (ROOT, f"{ROOT}signals/", self.page):
            with self.subTest(address=address):
                self.client.logout()
                self.assertRedirects(self.client.get(address), f"/admin/login/?next={address}")
                self.client.force_login(self.owner)
                self.assertEqual(self.client.get(address).status_code, 403)
        self.assertEqual(self.client.post(f"{self.page}notes/", {"note_text": "mine"}).status_code, 403)
        self.assertEqual(AdminNote.objects.count(), 0)

    def test_administrator_sees_the_pages(self) -> None:
        """What the deployment's checklist looks for is there."""
        self.client.force_login(self.admin)
        response = self.client.get(ROOT)
        self.assertContains(response, "Top Recommended Actions")
        self.assertContains(response, "HIGH")
        self.assertContains(self.client.get(f"{ROOT}signals/"), "Confidence")
        response = self.client.get(self.page)
        for title in (
            "Why Is This Happening?",
            "What Should You Do?",
            "Potential Consequences If Ignored",
            "Analysis Confidence",
            "Internal Admin Notes",
        ):
            self.assertContains(response, title)

    def test_note_is_stored_and_logged(self) -> None:
        """The form's way: token, redirect, message, row, log."""
        client = Client(enforce_csrf_checks=True)
        client.force_login(self.admin)
        self.assertEqual(client.post(f"{self.page}notes/", {"note_text": "no token"}).status_code, 403)
        token = client.get(self.page).context["csrf_token"]
        form = {"note_text": "Called the owner", "csrfmiddlewaretoken": str(token)}
        with self.assertLogs("owner_agreements.intelligence_views", "INFO") as log:
            response = client.post(f"{self.page}notes/", form, follow=True)
        self.assertContains(response, "Internal note added successfully")
        self.assertContains(response, "Called the owner")
        note = AdminNote.objects.get()
        self.assertEqual(
            (note.note_text, note.admin_user, note.signal), ("Called the owner", self.admin, self.signal)
        )
        expected = f"[ADMIN_NOTE] Created by admin on RISK_SIGNAL (signal={self.signal.pk}, owner=owner)"
        self.assertIn(expected, log.output[0])

    def test_empty_note_is_refused(self) -> None:
        """The page comes back, saying so."""
        self.client.force_login(self.admin)
        self.assertContains(
            self.client.post(f"{self.page}notes/", {"note_text": " "}),
            "This field is required",
            status_code=400,
        )
        self.assertEqual(AdminNote.objects.count(), 0)

    def test_table_of_notes_has_five_indexes(self) -> None:
        """As the database itself counts them."""
        count = {
            "sqlite": "SELECT COUNT(*) FROM sqlite_master WHERE type = 'index' AND tbl_name = %s",
            "postgresql": "SELECT COUNT(*) FROM pg_indexes WHERE tablename = %s",
        }[connection.vendor]
        with connection.cursor() as cursor:
            cursor.execute(count, ["owner_agreements_admin_notes"])
            self.assertEqual(cursor.fetchone(), (5,))
