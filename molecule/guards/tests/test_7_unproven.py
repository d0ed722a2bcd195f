# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was never proved is nothing to go back to, and can be ended: runs that were killed while they proved it."""

from __future__ import annotations

import pytest
from site_tools import DATABASE, ROOT, Site, host, kill_tree

TAKE_OVER = ("-e", "deployment_take_over=true")
# The smoke test that fails, and is tried again for long enough to be killed.
NEVER = {
    "app_smoke_tests": [{"name": "never", "url": "/", "contains": "a text that is nowhere"}],
    "app_gate_timeout": 60,
    "app_smoke_timeout": 60,
}


def restarted(version: str) -> str:
    """A shell condition: the newest record is that of *version*, its restart is done, and no module works."""
    done = f'"phases":.*"phase":"restart",.*"state":"done".*"version":"{version}"'
    newest = f"$(ls {ROOT}/deployments/*.json | tail -1)"
    return f"tr -d ' \\n' < {newest} | grep -q '{done}' && ! pgrep -f '[B]ECOME-SUCCESS' > /dev/null"


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory) -> Site:
    """One host as setup leaves it; nothing was ever deployed."""
    site = Site(
        tmp_path_factory.mktemp("alone"),
        ("guard1",),
        app_report_store=str(tmp_path_factory.mktemp("reports")),
    )
    Site(tmp_path_factory.mktemp("both")).forget()
    return site


def killed_at_its_smoke_test(site: Site, version: str, *words: str) -> None:
    """Deploy *version* with a smoke test that never passes, and kill the controller while it is tried."""
    slow = Site(site.directory.with_name(f"slow-{version}"), ("guard1",), **NEVER)
    running = slow.start(slow.command("deploy", *words, version=version))
    try:
        host("guard1").sh(
            f"for i in $(seq 3000); do if {restarted(version)}; then exit 0; fi; sleep 0.03; done; exit 1"
        )
    finally:
        kill_tree(running)
        running.wait()
    assert host("guard1").version() == version


def assert_nothing(site: Site) -> None:
    """Nothing listens, now or after a reboot, and the database is there."""
    member = host("guard1")
    assert member.instances() == set()
    assert member.units() == set()
    assert member.version().startswith(("0 ", "502 "))
    assert not member.sh(f"readlink {ROOT}/current", check=False)
    assert member.rows("select count(*) from django_migrations") != ["0"]
    assert not member.sh(f"ls -d {ROOT}/deployment.lock", check=False)


def undone() -> list[dict]:
    """The records of deployments that were taken back."""
    return [record for record in host("guard1").records() if record["undone_by"] is not None]


@pytest.mark.short
def test_a_first_deployment_that_was_killed_is_ended(alone):
    killed_at_its_smoke_test(alone, "v2.7")
    run = alone.play("rollback")
    assert run.rc != 0
    assert "REFUSED, NOTHING WAS CHANGED" in run.end or "deployment_take_over=true" in run.output
    assert host("guard1").version() == "v2.7"
    run = alone.good("rollback", *TAKE_OVER)
    assert "abandon" in run.end
    assert "the database keeps" in run.end
    assert_nothing(alone)


def test_an_older_version_does_not_run_on_what_it_left(alone):
    """v2.6 has no file of v2.7's migration, and no rollback left it to v2.6."""
    before = host("guard1").rows("select app, name from django_migrations")
    assert "owner_agreements|0004_adminnote" in before
    run = alone.deploy("v2.6")
    assert run.rc != 0
    assert "owner_agreements.0004_adminnote" in run.end
    assert "older than the database" in run.end
    assert host("guard1").rows("select app, name from django_migrations") == before
    assert_nothing(alone)


def test_a_first_deployment_that_fails_its_smoke_test_leaves_nothing_listening(alone):
    failing = Site(
        alone.directory.with_name("failing"),
        ("guard1",),
        app_report_store=alone.variables["app_report_store"],
        app_smoke_tests=NEVER["app_smoke_tests"],
    )
    run = failing.deploy("v2.7")
    assert run.rc != 0
    assert "FAILED, AND TAKEN BACK" in run.end
    assert_nothing(alone)


def test_a_killed_deployment_is_no_release_to_go_back_to(alone):
    host("guard1").sh(f"rm -f {DATABASE}*")
    already = len(undone())
    alone.good("deploy", version="v2.6")
    killed_at_its_smoke_test(alone, "v2.7")

    # Over it, one that fails before it switches: what serves is left as it is.
    run = alone.deploy("broken-boot", *TAKE_OVER)
    assert run.rc != 0
    assert "FAILED, NOTHING LIVE WAS CHANGED" in run.end
    assert "never proved" in run.end
    assert host("guard1").version() == "v2.7"

    # One that fails after it switched: both are taken back.
    failing = Site(
        alone.directory.with_name("failing-after"),
        ("guard1",),
        app_report_store=alone.variables["app_report_store"],
        app_smoke_tests=NEVER["app_smoke_tests"],
    )
    run = failing.deploy("v2.8")
    assert run.rc != 0
    assert "FAILED, AND TAKEN BACK" in run.end, run.end
    assert host("guard1").version() == "v2.6"
    assert len(host("guard1").instances()) == 1
    # The schema stayed, which older code runs with.
    assert "owner_agreements|0004_adminnote" in host("guard1").rows("select app, name from django_migrations")
    assert len(undone()) == already + 1
    alone.good("deploy", version="v2.8")
    assert "rollback would go to: v2.6" in alone.good("status").end


def test_static_files_that_all_releases_share_go_back_with_the_code(alone):
    """A STATIC_ROOT fixed outside the releases: the manifest there is the one of the release that serves."""
    manifest = "cat /data/static/staticfiles.json"
    fixed = "open('goexplorer/settings.py', 'a').write('\\nSTATIC_ROOT = \"/data/static\"\\n')"
    shared = {
        "app_collectstatic_commands_before": [["python", "-c", fixed]],
        "app_report_store": alone.variables["app_report_store"],
    }
    member = host("guard1")
    before = Site(alone.directory.with_name("shared-static"), ("guard1",), **shared)
    before.good("deploy", version="v2.6", rollback_consent="true")
    first = member.sh(manifest)
    failing = Site(
        alone.directory.with_name("shared-static-failing"),
        ("guard1",),
        **shared,
        app_smoke_tests=NEVER["app_smoke_tests"],
    )
    assert failing.deploy("v2.7").rc != 0
    assert member.version() == "v2.6"
    assert member.sh(manifest) == first
    before.good("deploy", version="v2.7")
    second = member.sh(manifest)
    assert second != first
    before.good("rollback")
    assert (member.version(), member.sh(manifest)) == ("v2.6", first)
    # That release is complete, so that nothing is collected again.
    before.good("deploy", version="v2.7")
    assert (member.version(), member.sh(manifest)) == ("v2.7", second)


def test_what_users_wrote_is_not_lost_by_taking_a_migration_back(alone):
    """A note in the table that v2.7 brought: going back to the schema of v2.6 needs consent, and the copy has it."""
    member = host("guard1")
    # The schema of v2.7 would be there already from the runs before, so that nothing would have to be taken back.
    alone.forget()
    alone.good("deploy", version="v2.6")
    alone.good("deploy", version="v2.7")
    member.sh(
        "curl -sf -X POST -H 'Content-Type: application/json' "
        """-d '{"risk_type": "EXPIRING", "severity": "INFO", "details": "kept"}' """
        f"-H 'Host: {member.address}' http://127.0.0.1/signals/report/"
    )
    member.rows(
        "insert into auth_user (password, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined) "
        "values ('!', 0, 'writer', '', '', '', 0, 1, '2026-01-01 00:00:00'); "
        "insert into owner_agreements_admin_notes (id, note_text, created_at, admin_user_id, signal_id) "
        "select lower(hex(randomblob(16))), 'kept', '2026-01-01 00:00:00', "
        "(select max(id) from auth_user), (select max(id) from owner_agreements_agreementrisksignal)"
    )
    before = member.tree("/data", "/srv/goexplorer/deployments", "/srv/goexplorer/backups")
    # On the command line a no is a text.
    run = alone.play("rollback", rollback_level="migrations", rollback_consent="false")
    assert run.rc != 0
    assert "REFUSED, NOTHING WAS CHANGED" in run.end
    assert "1 rows of owner_agreements_admin_notes" in run.end
    assert "rollback_consent=true" in run.end
    assert member.tree("/data", "/srv/goexplorer/deployments", "/srv/goexplorer/backups") == before
    assert member.version() == "v2.7"

    alone.good("rollback", rollback_level="migrations", rollback_consent="true")
    assert member.version() == "v2.6"
    assert not member.rows("select 1 from sqlite_master where name = 'owner_agreements_admin_notes'")
    copies = member.sh("ls -d /srv/goexplorer/backups/*-before-reversal").splitlines()
    dump = member.sh(f"ls {copies[-1]}/*.sqlite3")
    assert member.rows("select note_text from owner_agreements_admin_notes", dump) == ["kept"]
