# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The health page."""

from __future__ import annotations

import os
from unittest import mock

from django.db import OperationalError
from django.test import TestCase


class HealthTest(TestCase):
    """``/healthz/``."""

    def test_says_which_release_answers(self) -> None:
        """The deployment's names come back, and nothing may keep the answer."""
        names = {
            "RUNBOOK_RELEASE": "r1",
            "RUNBOOK_COMMIT": "c1",
            "RUNBOOK_VERSION": "v1",
            "RUNBOOK_DEPLOYMENT": "d1",
        }
        with mock.patch.dict(os.environ, names):
            response = self.client.get("/healthz/")
        self.assertEqual(response.status_code, 200)
        self.assertIn("no-store", response["Cache-Control"])
        answer = response.json()
        self.assertGreater(answer.pop("migrations"), 0)
        self.assertEqual(
            answer,
            {
                "status": "ok",
                "database": "ok",
                "release": "r1",
                "commit": "c1",
                "version": "v1",
                "deployment": "d1",
            },
        )

    def test_database_that_does_not_answer(self) -> None:
        """503, without the database's own words."""
        broken = mock.patch(
            "owner_agreements.health.MigrationRecorder.applied_migrations",
            side_effect=OperationalError("no route"),
        )
        with broken, self.assertLogs("owner_agreements.health", "ERROR"):
            response = self.client.get("/healthz/")
        self.assertEqual(response.status_code, 503)
        self.assertEqual(response.json()["status"], "error")
        self.assertNotIn("no route", response.content.decode())
