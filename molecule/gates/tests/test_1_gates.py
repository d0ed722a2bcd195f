# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything healthy passes; then one thing after the other is broken, and exactly the right checks say so, each with its verdict.

All checks are asked each time, so that each step shows as well that what the step before has broken is healed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import disclosure
import pytest
from gated import Found, Host

FAIL, UNKNOWN = "fail", "inconclusive"


@contextlib.contextmanager
def redis_stopped(host: Host) -> Iterator[dict]:
    host.site.run("systemctl", "stop", "redis-server.service")
    try:
        yield {}
    finally:
        host.site.run("systemctl", "start", "redis-server.service")
        host.settle(host.working)


@contextlib.contextmanager
def worker_killed(host: Host) -> Iterator[dict]:
    """Its unit is told not to start it again, as a host does that has given it up."""
    unit = host.unit("worker")
    place = f"/run/systemd/system/{unit}.d"
    host.site.run("mkdir", "-p", place)
    host.site.run("tee", f"{place}/once.conf", text="[Service]\nRestart=no\n")
    host.site.run("systemctl", "daemon-reload")
    host.site.run("systemctl", "kill", "--signal=KILL", unit)
    host.settle(lambda: [] if host.main("worker") == "0" else ["the worker runs"])
    # The beat goes on: what nobody fetches waits in the queue.
    host.settle(host.waiting)
    try:
        yield {}
    finally:
        host.site.run("rm", "-r", place)
        host.site.run("systemctl", "daemon-reload")
        host.site.run("systemctl", "restart", unit)
        host.settle(host.working)


@contextlib.contextmanager
def second_beat(host: Host) -> Iterator[dict]:
    """Somebody has started another one by hand."""
    host.site.run(
        *("systemd-run", "--collect", "--unit=second-beat", f"--uid={host.site.user}"),
        *("sh", "-c", host.celery_command("beat", "--schedule", "/tmp/second-beat")),
    )
    host.settle(lambda: [] if len(host.beats()) == 2 else [f"beats: {host.beats()}"])
    try:
        yield {}
    finally:
        host.site.run("systemctl", "stop", "second-beat.service")
        host.settle(lambda: [] if len(host.beats()) == 1 else [f"beats: {host.beats()}"])


@contextlib.contextmanager
def live_stopped(host: Host) -> Iterator[dict]:
    unit = host.unit("live")
    host.site.run("systemctl", "stop", unit)
    try:
        yield {}
    finally:
        host.site.run("systemctl", "start", unit)
        host.settle(lambda: host.listening(8765))


@contextlib.contextmanager
def workers_respawning(host: Host) -> Iterator[dict]:
    """The master lives and makes new ones; each is asked to end, so that no request is cut off."""
    master = host.main("web")
    ended = threading.Event()

    def end_workers() -> None:
        while not ended.wait(0.7):
            host.site.attempt("pkill", "--signal", "TERM", "--oldest", "--parent", master)

    thread = threading.Thread(target=end_workers, daemon=True)
    thread.start()
    try:
        yield {}
    finally:
        ended.set()
        thread.join()
    assert host.main("web") == master


@contextlib.contextmanager
def certificate_expiring(host: Host) -> Iterator[dict]:
    host.site.run("certify", "5")
    try:
        yield {}
    finally:
        host.site.run("certify", "90")


@contextlib.contextmanager
def disk_filled(host: Host) -> Iterator[dict]:
    host.site.run("dd", "if=/dev/zero", "of=/mnt/parcels/much", "bs=1k", "count=3500")
    try:
        yield {}
    finally:
        host.site.run("rm", "/mnt/parcels/much")


@contextlib.contextmanager
def index_dropped(host: Host) -> Iterator[dict]:
    made = host.sql("SELECT indexdef FROM pg_indexes WHERE indexname = 'parcels_code'")
    host.sql("DROP INDEX parcels_code")
    try:
        yield {}
    finally:
        host.sql(made)


@contextlib.contextmanager
def index_invalid(host: Host) -> Iterator[dict]:
    """As a CREATE INDEX CONCURRENTLY leaves it that was cut short: it is there, and no query uses it."""
    change = "UPDATE pg_index SET indisvalid = {} WHERE indexrelid = 'parcels_code'::regclass"
    host.sql(change.format("false"))
    try:
        yield {}
    finally:
        host.sql(change.format("true"))


@contextlib.contextmanager
def depots_lost(host: Host) -> Iterator[dict]:
    host.sql("DELETE FROM depots WHERE name = 'south'")
    try:
        yield {}
    finally:
        host.sql("INSERT INTO depots VALUES ('south')")


@contextlib.contextmanager
def errors_raised(host: Host) -> Iterator[dict]:
    host.visitors.lost = True
    try:
        yield {}
    finally:
        host.visitors.lost = False


@contextlib.contextmanager
def variable_removed(_host: Host) -> Iterator[dict]:
    yield {"test_without": ["PARCELS_TOKEN"]}


@contextlib.contextmanager
def clock_shifted(_host: Host) -> Iterator[dict]:
    """Modules on the host see a clock that is two minutes ahead; see files/ahead.sh."""
    yield {"ansible_python_interpreter": "/usr/local/sbin/ahead"}


FAULTS = {
    redis_stopped: {
        "broker": FAIL,
        **dict.fromkeys(
            ("memory of the broker", "celery workers", "celery tasks", "celery queue", "celery release"),
            UNKNOWN,
        ),
    },
    worker_killed: {
        **dict.fromkeys(("worker", "celery workers", "celery tasks"), FAIL),
        "celery release": UNKNOWN,
    },
    second_beat: {"celery beats": FAIL},
    live_stopped: {"live": FAIL, "talk": FAIL},
    workers_respawning: {"web": FAIL},
    certificate_expiring: {"certificate": FAIL},
    disk_filled: {"space": FAIL},
    index_dropped: {"index": FAIL},
    index_invalid: {"index": FAIL},
    depots_lost: {"depots": FAIL},
    errors_raised: {"traffic": FAIL},
    variable_removed: {"settings": FAIL},
    clock_shifted: {"clock": FAIL},
}
# The short form of the scenario breaks these by themselves, and all but two others together.
ALONE = (redis_stopped,)
# What another fault hides: without a broker no worker is known to be gone, and without an index none is invalid.
APART = (redis_stopped, index_invalid)


def words(text: str) -> str:
    """A text without the shape of its lines."""
    return " ".join(text.split())


def test_everything_healthy_passes(host):
    found = host.ask()
    assert (found.code, found.verdicts) == (0, {}), str(found.run)


def require(found: Found, verdicts: dict[str, str]) -> None:
    """Exactly these checks did not pass, and each says what an operator needs."""
    assert (found.code, found.verdicts) == (2, verdicts), str(found.run)
    shown = words(found.run.output)
    for check in found.run.checks:
        if check["name"] in found.verdicts:
            # What an operator reads, and the command that he repeats; of many checks the last ones are only named.
            assert check["message"], check
            assert words(check["message"]) in shown or repr(check["name"]) in shown, check
            assert check["observed"] and check["expected"] and check["repeat"], check


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=() if fault in ALONE else pytest.mark.long) for fault in FAULTS],
    ids=lambda fault: fault.__name__,
)
def test_exactly_the_right_checks_fail(host, fault):
    with fault(host) as variables:
        found = host.ask(**variables)
    require(found, FAULTS[fault])


def test_many_faults_at_once(host):
    """No fault hides another one, and no check fails with the others."""
    wanted: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        variables: dict[str, object] = {}
        for fault, verdicts in FAULTS.items():
            if fault not in APART:
                variables.update(stack.enter_context(fault(host)))
                wanted.update(verdicts)
        found = host.ask(**variables)
    require(found, wanted)


def test_everything_is_well_again(host):
    found = host.ask()
    assert (found.code, found.verdicts) == (0, {}), str(found.run)


def test_no_secret_is_told(host, site, secrets, reports):
    assert disclosure.in_records(site, secrets) == []
    assert disclosure.in_journal(site, secrets) == []
    assert disclosure.in_reports(reports, secrets) == []
