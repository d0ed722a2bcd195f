#!/usr/bin/env python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Phase 2.6: eight checks that an installation works. Nothing is written.

``--temporary`` runs them in a checkout: with a database made for the purpose and removed afterwards.
Exit code: 0 when all checks pass, else 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "goexplorer.settings")

import django  # noqa: E402

TABLES = {
    "owner_agreements_owneragreement",
    "owner_agreements_agreementrisksignal",
    "auth_user",
    "django_session",
}
MIGRATIONS = {"0001_initial", "0002_owneragreement_reference", "0003_agreementrisksignal"}


def expect(found: object, expected: object, what: str) -> None:
    """Raise AssertionError, in words, when *found* is not *expected*."""
    if found != expected:
        raise AssertionError(f"{what}: found {found!r}, expected {expected!r}")


def checks() -> list[tuple[str, Callable[[], None]]]:
    """Return the checks: a name, and what raises when it fails."""
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.recorder import MigrationRecorder
    from django.test import Client

    host = next((name.lstrip(".") for name in settings.ALLOWED_HOSTS if name != "*"), "localhost")
    client = Client(HTTP_HOST=host, HTTP_X_FORWARDED_PROTO="https", raise_request_exception=False)

    def tables() -> None:
        expect(TABLES - set(connection.introspection.table_names()), set(), "missing tables")

    def migrations() -> None:
        applied = {
            name
            for app, name in MigrationRecorder(connection).applied_migrations()
            if app == "owner_agreements"
        }
        expect(MIGRATIONS - applied, set(), "migrations that are not applied")

    def home() -> None:
        response = client.get("/")
        expect(response.status_code, 200, "status of /")
        expect(settings.VERSION in response.content.decode(), True, f"version {settings.VERSION} on /")

    def owners() -> None:
        response = client.get("/owners/")
        expect(
            (response.status_code, response.get("Location")),
            (302, "/login/?next=/owners/"),
            "answer of /owners/",
        )

    def report() -> None:
        response = client.post("/signals/report/", data="not JSON", content_type="application/json")
        expect(response.status_code, 400, "status of a report that is not JSON")

    def administration() -> None:
        expect(client.get("/admin/login/").status_code, 200, "status of /admin/login/")

    return [
        ("system check", lambda: call_command("check", verbosity=0)),
        ("tables", tables),
        ("migrations", migrations),
        ("home page", home),
        ("health page", lambda: expect(client.get("/healthz/").status_code, 200, "status of /healthz/")),
        ("owner page needs a login", owners),
        ("reports are judged", report),
        ("administration", administration),
    ]


def verify() -> int:
    """Run the checks and print each result; return how many failed."""
    failed = 0
    found = checks()
    for number, (name, check) in enumerate(found, 1):
        try:
            check()
            print(f"[{number}/{len(found)}] {name}: ok")
        except Exception as error:  # whatever a check meets is its result
            failed += 1
            print(f"[{number}/{len(found)}] {name}: FAILED: {type(error).__name__}: {error}")
    print(
        f"Phase 2.6: {failed} of {len(found)} checks failing"
        if failed
        else f"Phase 2.6: All {len(found)} checks passing"
    )
    return failed


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--temporary", action="store_true", help="use a database of its own, removed afterwards"
    )
    arguments = parser.parse_args()
    django.setup()
    if not arguments.temporary:
        return 1 if verify() else 0
    from goexplorer.testing import Runner

    runner = Runner(verbosity=0, interactive=False)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    try:
        return 1 if verify() else 0
    finally:
        runner.teardown_databases(databases)
        runner.teardown_test_environment()


if __name__ == "__main__":
    sys.exit(main())
