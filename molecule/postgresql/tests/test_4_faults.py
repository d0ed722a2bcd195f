# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong around a backup ends with a sentence that names it, and with the live database untouched."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

DUMPING = "for i in $(seq 3000); do pgrep -x pg_dump >/dev/null && exit 0; sleep 0.02; done; exit 1"


@contextlib.contextmanager
def when_dumping(site, server, action: str) -> Iterator[None]:
    """Do `action` on the host when a dump waits for a table that somebody holds; the server runs again in the end."""
    failed: list[BaseException] = []

    def act() -> None:
        try:
            with server.locked("auth_group"):
                ready.set()
                site.run("sh", "-c", DUMPING)
                # It has its snapshot, and waits.
                time.sleep(0.3)
                site.run("sh", "-c", action)
        except BaseException as error:
            failed.append(error)
            ready.set()
        finally:
            site.run("systemctl", "start", "postgresql@15-main.service")

    ready = threading.Event()
    acting = threading.Thread(target=act)
    acting.start()
    ready.wait()
    try:
        yield
    finally:
        acting.join()
        assert failed == []


@pytest.fixture(scope="class")
def killed(site, server, step):
    words = ("deploy", "-e", "version=v2.8")
    return step(*words, meanwhile=when_dumping(site, server, "pkill -KILL -x pg_dump"))


@pytest.fixture(scope="class")
def stopped(site, server, step):
    words = ("deploy", "-e", "version=v2.8")
    return step(
        *words,
        meanwhile=when_dumping(site, server, "systemctl stop postgresql@15-main.service"),
    )


class TestBackupCutShort:
    @pytest.mark.parametrize("fault", ["killed", "stopped"])
    def test_it_is_named_and_nothing_live_is_changed(self, request, fault, server, after):
        done = request.getfixturevalue(fault)
        assert done.run.code == 2, str(done.run)
        assert "FAILED, NOTHING LIVE WAS CHANGED" in done.run.report.splitlines()[0], str(done.run)
        said = done.run.line(
            "backup on postgresql1: The backup of goexplorer at 127.0.0.1:5432 failed: pg_dump ended with"
        )
        assert {"killed": "signal 9", "stopped": "administrator command"}[fault] in said
        assert "nothing of it was kept and nothing live was changed" in said
        assert server.objects() == done.before.objects
        after(done, "v2.7")

    @pytest.mark.parametrize("fault", ["killed", "stopped"])
    def test_nothing_of_the_backup_is_left(self, request, fault, site):
        done = request.getfixturevalue(fault)
        assert site.run("ls", f"{site.root}/backups").split() == done.before.backups
        # Beside them only the lock, and what restores have noted.
        there = site.run("ls", "-A", f"{site.root}/backups").split()
        assert [name for name in there if name not in (".lock", ".former.json")] == done.before.backups


@pytest.fixture(scope="class")
def powerless(site, server, step):
    server.sql("ALTER ROLE goexplorer NOCREATEDB")
    try:
        checked = site.playbook("pre_deploy", "-e", "version=v2.8")
        return SimpleNamespace(checked=checked, deployed=step("deploy", "-e", "version=v2.8", quiet=True))
    finally:
        server.sql("ALTER ROLE goexplorer CREATEDB")


class TestNoRightToCreateDatabases:
    def test_preflight_names_it_and_the_cure(self, powerless):
        for cure in ('ALTER ROLE "goexplorer" CREATEDB', "app_database_admin"):
            assert cure in powerless.checked.output

    def test_a_deployment_ends_before_anything_is_changed(self, powerless, server, after):
        done = powerless.deployed
        assert done.run.code == 2, str(done.run)
        done.run.line("The role goexplorer may not create databases at 127.0.0.1:5432")
        assert server.objects() == done.before.objects
        after(done, "v2.7")


class TestInTheEnd:
    def test_nothing_needs_attention(self, site):
        status = site.playbook("status")
        assert status.code == 0, str(status)
        assert "nothing needs attention." in status.output

    def test_every_write_is_found_and_most_of_them_are_live(self, book, everything):
        found = everything()
        assert found.lost == []
        live = found.live.marks & set(book.acknowledged)
        print(
            f"{len(book.acknowledged)} writes acknowledged ({dict(book.kinds())}), {len(live)} of them live"
        )
        for copy in found.copies[1:]:
            print(f"{len(copy.marks & set(book.acknowledged))} in {copy.name}")
        assert len(book.acknowledged) > 1000
        assert live < set(book.acknowledged)
