# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong around a backup or a restore ends with a sentence that names it, and with every write where it can be found."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

CONSENT = ("-e", "rollback_consent=true")
# Each ends with 0 as soon as what it waits for is there.
WAITING = "SELECT 1 FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for table metadata lock' AND INFO LIKE '%notes%'"
DUMPING = (
    f'for i in $(seq 1200); do test -n "$(mariadb -BNe "{WAITING}")" && exit 0; sleep 0.05; done; exit 1'
)
SWAPPING = (
    "for i in $(seq 12000); do ls -d /var/lib/mysql/leadbook_broken_* | sort | tail -n 1 | grep -qvxF {} && exit 0; "
    "sleep 0.005; done; exit 1"
)
AWAKE = "for i in $(seq 300); do mariadb -e 'SELECT 1' >/dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1"


@contextlib.contextmanager
def when(site, moment: str, action: str, holding: contextlib.AbstractContextManager) -> Iterator[None]:
    """Do `action` on the host when the command `moment` has ended, inside of `holding`; the server runs again in the end."""
    failed: list[BaseException] = []

    def act() -> None:
        try:
            with holding:
                ready.set()
                site.run("sh", "-c", moment)
                site.run("sh", "-c", action)
        except BaseException as error:
            failed.append(error)
            ready.set()
        finally:
            site.run("systemctl", "start", "mariadb.service")
            site.run("sh", "-c", AWAKE)

    ready = threading.Event()
    acting = threading.Thread(target=act)
    acting.start()
    ready.wait()
    try:
        yield
    finally:
        acting.join()
        assert failed == []


def when_dumping(site, server, action: str) -> contextlib.AbstractContextManager[None]:
    """`action` while a dump waits for a table that somebody holds."""
    return when(site, DUMPING, action, server.locked("notes"))


@pytest.fixture(scope="class")
def killed(site, server, step):
    assert site.wrong("v9") == []
    return step(
        "deploy", "-e", "version=slow", meanwhile=when_dumping(site, server, "pkill -KILL -x mariadb-dump")
    )


@pytest.fixture(scope="class")
def stopped(site, server, step):
    return step(
        "deploy",
        "-e",
        "version=slow",
        meanwhile=when_dumping(site, server, "systemctl kill --signal=KILL mariadb.service"),
    )


@pytest.mark.long
class TestBackupCutShort:
    @pytest.mark.parametrize("fault", ["killed", "stopped"])
    def test_it_is_named_and_nothing_live_is_changed(self, request, fault, server, after):
        done = request.getfixturevalue(fault)
        assert done.run.code == 2, str(done.run)
        assert "FAILED, NOTHING LIVE WAS CHANGED" in done.run.report.splitlines()[0], str(done.run)
        said = done.run.line(
            "backup on mariadb1: The backup of leadbook at 127.0.0.1:3306 failed in mysqldump: "
        )
        assert {"killed": "ended by signal 9", "stopped": "Lost connection to server during query (2013)"}[
            fault
        ] in said
        assert "nothing of it was kept and nothing live was changed" in said
        assert server.objects() == done.before.objects
        after(done, "v9")

    @pytest.mark.parametrize("fault", ["killed", "stopped"])
    def test_nothing_of_the_backup_is_left(self, request, fault, site):
        done = request.getfixturevalue(fault)
        # Beside them only the lock, and what restores have noted.
        there = site.run("ls", "-A", f"{site.root}/backups").split()
        assert [name for name in there if name not in (".lock", ".former.json")] == done.before.backups


@pytest.fixture(scope="class")
def powerless(step):
    return step("deploy", "-e", "version=slow", "-e", '{"app_database_admin": {}}', quiet=True)


@pytest.mark.long
class TestWithoutTheAdministrator:
    """The account can neither make a database nor see the function that somebody else has defined."""

    def test_preflight_names_what_is_missing_and_the_cures(self, powerless):
        assert "The user leadbook may not create databases at 127.0.0.1:3306" in powerless.run.output
        for cure in (r"GRANT ALL ON `runbook\_%`.* TO 'leadbook'@'", "app_database_admin"):
            assert cure in powerless.run.output

    def test_a_deployment_ends_before_anything_is_changed(self, powerless, server, after):
        assert powerless.run.code == 2, str(powerless.run)
        assert "FAILED, NOTHING LIVE WAS CHANGED" in powerless.run.report.splitlines()[0]
        said = powerless.run.line("insufficient privileges to SHOW CREATE FUNCTION `doubled`")
        assert "name a user that has it in app_database_admin" in said
        assert server.objects() == powerless.before.objects
        after(powerless, "v9")


@pytest.fixture(scope="class")
def cut(site, server, step):
    upgrade = step("deploy", "-e", "version=destructive")
    assert upgrade.run.code == 0, str(upgrade.run)
    last = f"/var/lib/mysql/{max(server.kept(), default='none')}"
    kill = "systemctl kill --signal=KILL mariadb.service"
    meanwhile = when(site, SWAPPING.format(last), kill, contextlib.nullcontext())
    done = step("rollback", *CONSENT, meanwhile=meanwhile)
    done.wanted = upgrade.before.objects
    return done


@pytest.fixture(scope="class")
def again(cut, step):
    return step("rollback", *CONSENT)


@pytest.mark.long
class TestServerKilledWhileARestoreExchangesTheTables:
    def test_it_does_not_pass_for_a_success_and_no_write_is_lost(self, cut, steps):
        assert cut.run.code != 0, str(cut.run)
        found = steps.everything(settled=False)
        assert found.lost == []
        assert found.wrong == []

    def test_the_same_restore_heals_it(self, cut, again, server, after):
        assert again.run.code == 0, str(again.run)
        assert server.objects() == cut.wanted
        after(again, "v9")


class TestInTheEnd:
    def test_nothing_needs_attention(self, site):
        status = site.playbook("status")
        assert status.code == 0, str(status)
        assert "nothing needs attention." in status.output

    def test_every_write_is_found_and_most_of_them_are_live(self, book, steps, everything):
        print(steps.told())
        found = everything()
        assert found.lost == []
        assert len(book.acknowledged) > 300
        assert found.live.marks & set(book.acknowledged) < set(book.acknowledged)
