# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forward to v2.7, once more to v2.7, and back with the migration reversed, while visitors read and write."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from disclosure import in_files_of_everybody, in_journal, in_records, in_reports, in_text
from seen import backups, stored

NOTES = "owner_agreements_admin_notes"
ADMIN_NOTE = "owner_agreements.0004_adminnote"


@pytest.fixture(scope="class")
def upgrade(site, step):
    page = site.ask("/").body.decode()
    static = {path: site.ask(path).body for path in re.findall(r'"(/static/[^"]+)"', page)}
    with site.commands() as seen:
        done = step("deploy", "-e", "version=v2.7", verbosity=3)
    done.seen, done.static = seen, static
    return done


class TestUpgrade:
    def test_it_succeeds(self, upgrade):
        assert upgrade.run.code == 0, str(upgrade.run)
        assert "SUCCESS" in upgrade.run.report.splitlines()[0]

    def test_exactly_one_instance_of_v2_7_serves(self, upgrade, site):
        assert site.wrong("v2.7") == []
        assert site.ask("/admin/owner-agreements/intelligence/").status == 302

    def test_the_migration_is_applied(self, upgrade, site):
        assert upgrade.before.database["migrations"][-1] != ADMIN_NOTE
        found = site.database()
        assert found["migrations"][-1] == ADMIN_NOTE
        assert NOTES in found["counts"]
        assert (found["check"], found["foreign_keys"]) == (["ok"], [])

    def test_no_request_is_lost(self, upgrade):
        assert upgrade.traffic.failed == []
        assert min(upgrade.traffic.count("read"), upgrade.traffic.count("write")) > 20
        assert upgrade.traffic.versions == ["v2.6", "v2.7"]

    def test_every_acknowledged_report_is_stored(self, upgrade, site, ledger):
        assert len(ledger.acknowledged) > 20
        assert stored(site, ledger) == []

    def test_one_backup_is_taken(self, upgrade, site):
        assert len(set(backups(site)) - set(upgrade.before.backups)) == 1

    def test_it_costs_at_most_ten_module_executions(self, upgrade):
        assert 5 < upgrade.run.count("web1") <= 10, upgrade.run.executions

    def test_static_files_of_the_release_before_are_still_served(self, upgrade, site):
        assert upgrade.static
        now = set(re.findall(r'"(/static/[^"]+)"', site.ask("/").body.decode()))
        for path, content in upgrade.static.items():
            answer = site.ask(path)
            assert (answer.status, answer.body) == (200, content), path
            assert answer.headers["server"].startswith("nginx")
            assert answer.version == ""
        assert now

    def test_no_secret_is_in_the_output(self, upgrade, secrets):
        assert "Using module file" in upgrade.run.output  # it is the output of -vvv
        assert in_text(secrets, upgrade.run.output) == []

    def test_no_secret_is_in_a_process_list(self, upgrade, secrets):
        assert any("gunicorn goexplorer.wsgi" in line for line in upgrade.seen)
        assert any("ansible-playbook" in line for line in upgrade.seen)
        assert in_text(secrets, "\n".join(upgrade.seen)) == []

    def test_no_secret_is_in_records_reports_or_the_journal(self, upgrade, site, secrets, reports):
        assert in_records(site, secrets) == []
        assert in_reports(reports, secrets) == []
        assert in_journal(site, secrets) == []

    def test_no_stranger_on_the_host_can_read_a_secret(self, upgrade, site, secrets):
        assert in_files_of_everybody(site, secrets)["found"] == []

    def test_status_says_the_same(self, upgrade, site):
        status = site.playbook("status")
        assert status.code == 0, str(status)
        assert re.search(r"^web1 +v2\.7 \([0-9a-f]{12}\) +web +yes ", status.output, re.MULTILINE), str(
            status
        )
        assert re.search(r"^rollback would go to: v2\.6 ", status.output, re.MULTILINE), str(status)
        assert "nothing needs attention." in status.output

    def test_a_reboot_brings_it_back(self, upgrade, reboot):
        assert reboot("v2.7") == []


@pytest.fixture(scope="class")
def again(site, timed):
    assert site.wrong("v2.7") == []
    mirror = f"{site.root}/repository.git"
    before = SimpleNamespace(
        backups=backups(site),
        tree=site.tree(without=(mirror,)),
        processes=site.probe("processes", site.user, user=site.user),
    )
    with timed("deploy -e version=v2.7, again"):
        done = site.playbook("deploy", "-e", "version=v2.7")
    return SimpleNamespace(run=done, before=before, tree=site.tree(without=(mirror,)))


class TestTheSameAgain:
    def test_no_task_changes_anything(self, again):
        assert again.run.code == 0, str(again.run)
        assert again.run.changed == []
        assert again.run.hosts["web1"]["changed"] == 0
        assert again.run.hosts["web1"]["ok"] > 0

    def test_no_backup_is_taken(self, again, site):
        assert again.before.backups
        assert backups(site) == again.before.backups

    def test_nothing_on_the_host_is_different(self, again):
        assert len(again.tree) > 1000
        assert again.tree == again.before.tree

    def test_the_same_processes_serve(self, again, site):
        assert site.probe("processes", site.user, user=site.user) == again.before.processes
        assert site.wrong("v2.7") == []

    def test_it_costs_at_most_four_module_executions(self, again):
        assert 0 < again.run.count("web1") <= 4, again.run.executions


@pytest.fixture(scope="class")
def back(step):
    return step("rollback", "-e", "rollback_level=migrations")


class TestRollbackOfTheMigrations:
    def test_it_succeeds(self, back):
        assert back.run.code == 0, str(back.run)
        assert "SUCCESS" in back.run.report.splitlines()[0]

    def test_exactly_one_instance_of_v2_6_serves(self, back, site):
        assert site.wrong("v2.6") == []

    def test_the_migration_is_reversed(self, back, site):
        found = site.database()
        assert back.before.database["migrations"] == [*found["migrations"], ADMIN_NOTE]
        assert NOTES in back.before.database["counts"]
        assert NOTES not in found["counts"]
        assert (found["check"], found["foreign_keys"]) == (["ok"], [])

    def test_every_acknowledged_report_is_stored(self, back, site, ledger):
        assert stored(site, ledger) == []

    def test_no_request_is_lost(self, back):
        assert back.traffic.failed == []
        assert back.traffic.versions == ["v2.7", "v2.6"]

    def test_a_reboot_keeps_it(self, back, reboot):
        assert reboot("v2.6") == []
