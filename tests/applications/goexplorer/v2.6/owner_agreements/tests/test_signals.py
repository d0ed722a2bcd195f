# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports of risks, and the demonstration's data."""

from __future__ import annotations

import json

from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import Client, TestCase

from owner_agreements.models import AgreementRiskSignal, OwnerAgreement


class ReportTest(TestCase):
    """``POST /signals/report/``."""

    def report(self, body: object) -> object:
        """Send *body* as another system would: no cookie, no token."""
        return Client(enforce_csrf_checks=True).post(
            "/signals/report/", data=json.dumps(body), content_type="application/json"
        )

    def test_report_is_stored(self) -> None:
        """201, and the row is there."""
        response = self.report({"risk_type": "EXPIRING", "severity": "CRITICAL", "details": "soon"})
        self.assertEqual(response.status_code, 201)
        signal = AgreementRiskSignal.objects.get(pk=response.json()["id"])
        self.assertEqual(
            (signal.risk_type, signal.severity, signal.details), ("EXPIRING", "CRITICAL", "soon")
        )

    def test_bad_reports_are_refused(self) -> None:
        """400, and nothing is stored."""
        for body in (
            {},
            [],
            {"risk_type": "NONE"},
            {"risk_type": "EXPIRING", "id": 5},
            {"risk_type": "EXPIRING", "agreement": 99},
        ):
            with self.subTest(body=body):
                self.assertEqual(self.report(body).status_code, 400)
        self.assertEqual(AgreementRiskSignal.objects.count(), 0)
        self.assertEqual(self.client.get("/signals/report/").status_code, 405)


class DemoDataTest(TestCase):
    """``manage.py create_demo_data``."""

    def test_twice_is_the_same_as_once(self) -> None:
        """The second run adds nothing."""
        for _run in range(2):
            call_command(
                "create_demo_data", "--admin-password=a-secret", "--owner-password=b-secret", verbosity=0
            )
            self.assertEqual(OwnerAgreement.objects.count(), 3)
            self.assertEqual(AgreementRiskSignal.objects.count(), 6)
        self.assertTrue(get_user_model().objects.get(username="admin").is_staff)
        self.assertTrue(self.client.login(username="owner", password="b-secret"))

    def test_password_is_asked_for(self) -> None:
        """No user is made with a password that nobody chose."""
        with self.assertRaisesMessage(CommandError, "GOEXPLORER_ADMIN_PASSWORD"):
            call_command("create_demo_data", "--admin-password=", "--owner-password=b-secret")
        self.assertEqual(get_user_model().objects.count(), 0)
