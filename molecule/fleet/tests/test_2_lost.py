# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that reboot, hosts that vanish, sshd that is stopped: the fleet ends with one release, by the command that the run names."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager

import pytest
from fleet import TAKE_OVER, Fleet
from fleet_tools import HOSTS, Host, Run, Running, phase_runs, until

HELD = "BEGIN; LOCK TABLE auth_user IN SHARE ROW EXCLUSIVE MODE;\n"
UNAPPLIED = (
    "DROP TABLE owner_agreements_admin_notes; DELETE FROM django_migrations WHERE name = '0004_adminnote'"
)
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'goexplorer'"
# What the server itself wrote down of changes to the live database; copies for trials have other names.
CREATED = (
    "grep -c '@goexplorer LOG: *statement: CREATE TABLE \"owner_agreements_admin_notes\"' "
    "/var/log/postgresql/postgresql-15-main.log; true"
)
# Seconds for which the migration goes on after sshd was stopped.
LONG = 25
# Phases in which a host is cut off, and the host. What has no phase of its own in a host's record is seen in the run's output.
SHOWN = ("preflight", "begin", "smoke_test", "settle")
LOST = [
    pytest.param("preflight", "web2", marks=pytest.mark.long),
    pytest.param("begin", "web1", marks=pytest.mark.long),
    pytest.param("release", "web2", marks=pytest.mark.long),
    pytest.param("backup", "web1", marks=pytest.mark.long),
    pytest.param("verify", "web1", marks=pytest.mark.long),
    ("collectstatic", "web3"),
    pytest.param("migrate", "web1", marks=pytest.mark.long),
    ("restart", "web1"),
    ("restart", "web2"),
    pytest.param("restart", "worker1", marks=pytest.mark.long),
    pytest.param("smoke_test", "web1", marks=pytest.mark.long),
    pytest.param("settle", "web2", marks=pytest.mark.long),
    pytest.param("settle", "web1", marks=pytest.mark.long),
]


@pytest.fixture
def serving(fleet: Fleet) -> str:
    """The one version that the fleet serves before a test, and another one to deploy."""
    found = set(fleet.answer().values())
    assert len(found) == 1 and found <= {"v2.6", "v2.7", "v2.8"}, found
    return found.pop()


def other(version: str) -> str:
    """A version that needs no migration after *version* but for the first upgrade."""
    return {"v2.6": "v2.7", "v2.7": "v2.8", "v2.8": "v2.7"}[version]


def repaired(fleet: Fleet, run: Run) -> None:
    """Run the command that a failed run names; it has to succeed."""
    if "STOPPED: A PERSON IS NEEDED" in run.block:
        fleet.good(*fleet.next(run))


def test_reboot_before_and_after_a_switch(fleet, serving):
    fleet.reboot("web2")
    fleet.whole(serving)
    wanted = other(serving)
    fleet.good("deploy", "-e", f"version={wanted}")
    fleet.reboot("web3")
    fleet.reboot("worker1")
    fleet.whole(wanted)


def test_a_deployment_with_nothing_to_do_puts_back_what_stayed_out_of_the_balancer(fleet, serving):
    fleet.leave_out("web2")
    assert fleet.balanced()["web2"] == "MAINT"
    run = fleet.good("deploy", "-e", f"version={serving}")
    assert "NOTHING TO DO" in run.block, run.block
    fleet.whole(serving)


@pytest.mark.parametrize("name", ["web2", pytest.param("web1", marks=pytest.mark.long)])
def test_reboot_during_the_switch(fleet, serving, name):
    host = fleet.all[name]
    deployment = fleet.start("deploy", "-e", f"version={other(serving)}")
    with host.when(phase_runs("restart"), "true") as watcher:
        assert watcher.wait(1800) == 0
        fleet.reboot(name)
        run = deployment.wait()
    # Seen after the reboot, before anybody did anything: every host serves exactly one release, the old or the new one.
    found = until(
        lambda: [v for v in [fleet.answer()] if set(v.values()) <= {serving, other(serving)}], "answers"
    )[0]
    print(f"after the reboot: {found}")
    if run.code:
        assert f"{name}" in run.block
        repaired(fleet, run)
        fleet.whole(serving)
    else:
        fleet.whole(other(serving))


@contextmanager
def cut_off(running: Running, phase: str, host: Host):
    """Cut *host* off as soon as *phase* of *running* has begun; give its network back at the end."""
    if phase not in SHOWN:
        with host.when(phase_runs(phase), "ip link set eth0 down"):
            yield
        return
    try:
        running.begins(phase)
        host.cut()
        yield
    finally:
        host.heal()


@pytest.mark.parametrize(("phase", "name"), LOST)
def test_host_cut_off(fleet, serving, phase, name):
    host = fleet.all[name]
    running = fleet.start("deploy", "-e", f"version={other(serving)}")
    with cut_off(running, phase, host):
        run = running.wait()
        # Seen while it is away: the others are one release again, or were never anything else.
        others = {member: version for member, version in fleet.answer().items() if member != name}
    assert run.code != 0 and f"{name} does not answer" in run.block, run.block
    assert set(others.values()) == {serving}, others
    refused = (
        "REFUSED, NOTHING WAS CHANGED" if phase in ("preflight", "begin") else "STOPPED: A PERSON IS NEEDED"
    )
    assert refused in run.block or "STOPPED: A PERSON IS NEEDED" in run.block, run.block
    repaired(fleet, run)
    if phase == "begin":
        # Whether the lock was taken before the host was gone, nobody can know; where it was not, nothing is done.
        fleet.good("resume", *TAKE_OVER)
    fleet.whole(serving)


@pytest.mark.parametrize("way", ["finish", pytest.param("named", marks=pytest.mark.long)])
def test_sshd_stopped_in_a_migration(fleet, serving, way):
    # As if nobody had ever migrated: the migration is pending again.
    if serving != "v2.6":
        fleet.good("rollback", "-e", "rollback_to=v2.6")
    if "0004_adminnote" in fleet.migrations():
        fleet.sql(UNAPPLIED)
    created = int(fleet.data.sh(CREATED))
    primary = fleet.all["web1"]
    words = ["docker", "exec", "--interactive", "--user=postgres", fleet.data.container, "psql", "-X", "-q"]
    with subprocess.Popen([*words, "-d", "goexplorer"], stdin=subprocess.PIPE, text=True) as holder:
        # The migration waits for somebody who uses a table that it refers to, as long as the test needs.
        holder.stdin.write(HELD)
        holder.stdin.flush()
        try:
            until(
                lambda: "ShareRowExclusiveLock" in fleet.sql("SELECT mode FROM pg_locks WHERE granted"),
                "the lock",
            )
            running = fleet.start("deploy", "-e", "version=v2.7", "-e", '{"app_migrate_lock_timeout": 250}')
            until(
                lambda: fleet.sql(WAITS) != "0" or running.process.poll() is not None,
                "the migration waits",
                600,
            )
            assert running.process.poll() is None, running.wait()
            begun = time.monotonic()
            # The server and every connection of it.
            primary.sh("systemctl stop ssh ssh.socket 2>/dev/null; pkill -KILL -x sshd; true")
            run = running.wait()
            assert run.code != 0 and "web1 does not answer" in run.block, run.block
            assert "STOPPED: A PERSON IS NEEDED" in run.block
            assert fleet.answer() == dict.fromkeys(HOSTS, "v2.6")
            primary.heal()
            assert fleet.sql(WAITS) != "0", "the migration did not outlive its connection"
            # Nobody else may begin meanwhile, whoever says that the run is dead.
            second = fleet.play("deploy", "-e", "version=v2.7", *TAKE_OVER)
            assert second.code != 0 and "still runs" in " ".join(second.block.split()), second.block
            if way == "finish":
                next_one = fleet.start("resume", "-e", "resume=finish")
            else:
                book, *rest = fleet.next(run)
                next_one = fleet.start(book, *rest)
            time.sleep(max(0.0, LONG - (time.monotonic() - begun)))
            lasted = time.monotonic() - begun
            assert next_one.process.poll() is None, next_one.wait()
            assert fleet.sql(WAITS) != "0"
        finally:
            holder.communicate("ROLLBACK;\n")
            primary.heal()
        after = next_one.wait()
    print(f"the migration went on for {lasted:.0f} s after its connection was gone")
    assert after.code == 0, after.output[-3000:]
    # The server itself counts how often the table was made: by the run that was cut off, and by nobody else.
    assert int(fleet.data.sh(CREATED)) == created + 1
    if way == "finish":
        fleet.whole("v2.7")
        assert fleet.migrations().count("0004_adminnote") == 1
    else:
        fleet.whole("v2.6")
        assert "0004_adminnote" not in fleet.migrations()
    fleet.good("deploy", "-e", "version=v2.7")
    fleet.whole("v2.7")
    assert fleet.migrations().count("0004_adminnote") == 1
