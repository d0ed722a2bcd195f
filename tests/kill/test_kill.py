# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An upgrade with a migration is killed at every task and inside the long ones; each time one release answers, and it is made good.

KILL_EVERY=5 takes every fifth point, with KILL_FROM=2 from the third on, with KILL_FROM=commit from one that the commit's hash says.
KILL_AT=37,37+1 takes these (``+1``: inside the task, the controller alone dies; ``+2``: later in it, all that it started on the host
dies too). KILL_SITES=2 tries two points at a time; KILL_REPORT names a file for the results (JUnit XML).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from kill_site import NEW_MIGRATION, PROJECT, SWITCH, TAKE_OVER, Run, Site, Task, Visitors

EVERY = int(os.environ.get("KILL_EVERY") or "1")
FROM = os.environ.get("KILL_FROM") or "0"
SITES = int(os.environ.get("KILL_SITES") or "1")
REPORT = os.environ.get("KILL_REPORT") or ""
AT = [word for word in os.environ.get("KILL_AT", "").split(",") if word]
# Where the work is done: killed inside, too.
LONG = (
    "report | Take the lock and begin the record",
    "release | Build the release and its environment",
    "backup | Back up the database and prove the backup",
    "migrate | Run the new code against the scratch database",
    "collectstatic | Collect and publish the static files",
    "migrate | Apply exactly the verified migrations",
    SWITCH,
    "smoke_test | Ask the application what a user would ask",
    "rollback | Measure, and write the verdict only when it is true",
    "report | End the run with its verdict",
)
# What takes its time is tried at some of the points: the refusal of the next deployment with the deployment after it; and at others
# rollback.yml in place of resume.yml.
REFUSED_EVERY = 6
ROLLED_BACK_EVERY = 3


class Point(NamedTuple):
    """Where to kill: at the start of a task, or *after* so many seconds inside it."""

    task: int
    after: float
    whom: str
    title: str

    @property
    def name(self) -> str:
        """How KILL_AT calls it."""
        inside = {"controller": "+1", "all": "+2"}[self.whom] if self.after else ""
        return f"{self.task}{inside}"


class Wrong(Exception):
    """What must not be was seen."""


def expect(fact: bool, words: str) -> None:
    """Refuse what is not *fact*."""
    if not fact:
        raise Wrong(words)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Hosts that serve v2.6 and know nothing of each other; more than one save time where there are processors for them."""
    made = [Site(tmp_path_factory.mktemp(f"kill{number}")) for number in range(SITES)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Site.prepare, made))
        yield made
    finally:
        for site in made:
            site.stop()


def points_of(tasks: list[Task], end: float) -> list[Point]:
    """Return every point: the start of each task, and two inside each long one."""
    found = []
    # A task that includes others may have their name: the last is the one that works.
    long = {task.name: task.number for task in tasks if task.name in LONG}
    assert len(long) == len(LONG), f"no task is called {', '.join(set(LONG) - set(long))}"
    for task, after in zip(tasks, [*(task.at for task in tasks[1:]), end]):
        found.append(Point(task.number, 0, "controller", task.name))
        seconds = after - task.at
        if long.get(task.name) == task.number:
            found.append(Point(task.number, round(seconds / 3, 2), "controller", task.name))
            found.append(Point(task.number, round(seconds * 2 / 3, 2), "all", task.name))
    return found


def begin_at(text: str, every: int) -> int:
    """Return which of the first *every* points is tried: of ``commit`` another one for each commit, so that in time all are."""
    if text == "commit":
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        # An archive of the sources has no commit.
        text = str(int(asked.stdout.strip()[:8] or "0", 16))
    return int(text) % every


def chosen(points: list[Point]) -> list[Point]:
    """Return those that the environment asks for, of each kind every fifth or so."""
    if AT:
        return [point for point in points if point.name in AT]
    first = begin_at(FROM, EVERY)
    kept = []
    for inside in (False, True):
        of_kind = [point for point in points if bool(point.after) == inside]
        # Of few points there is one at least.
        kept += of_kind[first % len(of_kind) :: EVERY]
    return sorted(kept)


def answered(site: Site, allowed: set[str]) -> str:
    """Return the one release that answers all of some requests, which has to be an allowed one."""
    answers = [site.get() for _number in range(6)]
    seen = sorted({(answer.status, answer.version, answer.commit) for answer in answers})
    expect(len(seen) == 1 and seen[0][0] == 200, f"not one release answers: {seen}, {answers[-1].body[:200]}")
    _status, version, commit = seen[0]
    expect(version in allowed, f"{version} answers, allowed is {' or '.join(sorted(allowed))}")
    expect(commit == site.commits[version], f"{version} answers with the commit {commit}")
    return version


def check_data(site: Site, acknowledged: list[str], version: str) -> None:
    """The database is whole, has every acknowledged row, and the schema that the code which answers can work with."""
    expect(site.rows("PRAGMA integrity_check") == ["ok"], "the database is damaged")
    stored = set(site.rows("SELECT details FROM owner_agreements_agreementrisksignal"))
    lost = [details for details in acknowledged if details not in stored]
    expect(
        not lost, f"{len(lost)} of {len(acknowledged)} acknowledged rows are lost, the first is {lost[:1]}"
    )
    expected = {"0001_initial", "0002_owneragreement_reference", "0003_agreementrisksignal"}
    applied = site.applied()
    # The new migration adds a table, which the old code does not see.
    expect(expected <= applied <= expected | {NEW_MIGRATION}, f"applied are {sorted(applied)}")
    expect(version != "v2.7" or NEW_MIGRATION in applied, f"v2.7 answers without {NEW_MIGRATION}")
    table = site.rows("SELECT name FROM sqlite_master WHERE name = 'owner_agreements_admin_notes'")
    expect(
        bool(table) == (NEW_MIGRATION in applied), f"applied are {sorted(applied)}, but the table: {table}"
    )


def check_order(site: Site, version: str) -> None:
    """Nothing of the dead run is left, and what answers is what would be started again."""
    expect(len(site.instances()) == 1, f"services of {sorted(site.instances())} run")
    expect(not site.tools(), f"still runs: {site.tools()}")
    expect(not (site.root / "deployment.lock").exists(), "the lock is left")
    scratch = sorted(path.name for path in (site.root / "scratch").iterdir())
    expect(not scratch, f"left in scratch: {scratch}")
    work = sorted(path.name for path in (site.root / "deployments").glob("*.work"))
    expect(not work, f"left of detached work: {work}")
    parts = [
        str(path) for top in ("releases", "backups", "run") for path in (site.root / top).glob("*.part*")
    ]
    expect(not parts, f"left half made: {parts}")
    open_records = [record["id"] for record in site.records() if record["verdict"] is None]
    expect(not open_records, f"without a verdict: {open_records}")
    live = (site.root / "current").resolve()
    expect((live / "VERSION").read_text(encoding="utf-8").strip() == version, f"current is {live}")


def check_refusal(site: Site, run: str) -> None:
    """The next deployment names the dead run and what to do, and changes nothing of what answers."""
    refused = site.play("deploy", "-e", "version=v2.8")
    expect(refused.code != 0, "the next deployment did not refuse")
    said = " ".join(refused.output.split())
    expect(run in said, f"the refusal does not name {run}: {said[-1500:]}")
    expect("deployment_take_over=true" in said, f"the refusal names no command: {said[-1500:]}")


def good(run: Run, what: str) -> None:
    """The playbook succeeded."""
    expect(run.code == 0, f"{what} ended with {run.code}: {' '.join(run.output[-1800:].split())}")


class Watch:
    """Where the seconds of a point go."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.parts: list[str] = []

    def part(self, name: str) -> None:
        """Say that *name* has just ended."""
        now = time.monotonic()
        self.parts.append(f"{name} {now - self.last:.1f}")
        self.last = now

    def __str__(self) -> str:
        return " + ".join(self.parts)


def try_point(site: Site, point: Point, position: int, watch: Watch) -> str:
    """Kill there, look, make it good, look again; return what was seen in words.

    :raises Wrong: when something is not as it must be.
    """
    site.reset()
    watch.part("reset")
    with Visitors(site) as visitors:
        run, tasks = site.killed(point.task, point.after, point.whom)
        watch.part("killed")
        # Behind a dead controller the module that runs goes on to its end.
        site.wait(lambda: not site.tools(), "the modules of the dead run to end")
        watch.part("ended")
        begun = tasks if point.after else tasks[:-1]
        switched = any(task.name == SWITCH for task in begun)
        allowed = {"v2.6", "v2.7"} if switched else {"v2.6"}
        if run.code >= 0:
            # A task that was quicker than before: the deployment ended before its killer came.
            good(run, "a deployment that nobody killed")
        may_be_down = switched and point.whom == "all" and point.after > 0
        up = site.get().status == 200
        if up or not may_be_down:
            at_kill = answered(site, allowed)
            check_data(site, visitors.acknowledged.copy(), at_kill)
        else:
            at_kill = "nothing"
        wrong = sorted({answer.version for answer in visitors.reads.copy() if answer.status == 200} - allowed)
        expect(not wrong, f"a visitor was answered by {wrong} before the switch")
        dead = [record["id"] for record in site.records() if record["verdict"] is None]
        watch.part("looked")
        if dead and position % REFUSED_EVERY == 0:
            check_refusal(site, dead[-1])
            watch.part("refused")
            expect(
                not up or answered(site, allowed) == at_kill, "the refused deployment changed what answers"
            )
        playbook = "rollback" if dead and position % ROLLED_BACK_EVERY == 2 else "resume"
        good(site.play(playbook, *TAKE_OVER), f"{playbook}.yml")
        watch.part(playbook)
        after = answered(site, {"v2.6", "v2.7"})
        # Finished under its own id, or undone.
        proved = [record["id"] for record in site.records() if record["verdict"] == "success"]
        expect(
            not dead or after == "v2.6" or dead[-1] in proved,
            f"{after} answers after {playbook}.yml, and was never proved",
        )
    check_data(site, visitors.acknowledged, after)
    check_order(site, after)
    expect(len(visitors.acknowledged) > 0, "no visitor could write")
    expect(site.report("after all"), "nothing can be written any more")
    again = ""
    if position % REFUSED_EVERY == 0:
        good(site.play("deploy", "-e", "version=v2.7"), "the next deployment")
        answered(site, {"v2.7"})
        check_data(site, [*visitors.acknowledged, "after all"], "v2.7")
        watch.part("deployed")
        again = ", then v2.7 deployed"
    late = ", not killed" if run.code >= 0 else ""
    record = f", record {dead[-1]}" if dead else ", no open record"
    return (
        f"died in {tasks[-1].number}{late}{record}, {at_kill} answered, {playbook}: {after}, "
        f"{len(visitors.acknowledged)} rows{again}"
    )


def report(results: list[tuple[Point, float, str]]) -> None:
    """Write each point as a test of its own, where KILL_REPORT names a file (JUnit XML)."""
    if not REPORT:
        return
    suite = ElementTree.Element("testsuite", name="kill", tests=str(len(results)))
    for point, seconds, failure in results:
        about = {"classname": "kill", "name": f"{point.name} {point.title}", "time": f"{seconds:.1f}"}
        case = ElementTree.SubElement(suite, "testcase", about)
        if failure:
            ElementTree.SubElement(case, "failure", message=failure)
    path = PROJECT / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="unicode")


def test_killed_at_every_point(sites):
    """The number of kill points and of survivors is printed."""
    sites[0].reset()
    run, tasks = sites[0].killed()
    assert run.code == 0, run.output[-6000:]
    points = points_of(tasks, time.monotonic())
    wanted = chosen(points)
    assert wanted, f"KILL_AT={','.join(AT)} names none of {', '.join(point.name for point in points)}"
    print(f"\n{len(tasks)} tasks, {len(points)} kill points, of which {len(wanted)} are tried")
    free: SimpleQueue[Site] = SimpleQueue()
    for site in sites:
        free.put(site)

    def attempt(position: int, point: Point) -> tuple[Point, float, str]:
        site, begun, watch, failure = free.get(), time.monotonic(), Watch(), ""
        try:
            seen = f"ok: {try_point(site, point, position, watch)} ({watch} s)"
        except (Wrong, AssertionError) as error:
            failure = seen = f"FAILED: {' '.join(str(error).split())[:3000]}"
        finally:
            free.put(site)
        seconds = time.monotonic() - begun
        print(f"{point.name:>6} {seconds:5.1f} s  {point.title:75} {seen}", flush=True)
        return point, seconds, failure

    with ThreadPoolExecutor(len(sites)) as pool:
        results = list(pool.map(attempt, range(len(wanted)), wanted))
    failures = [f"{point.name} {point.title}: {failure}" for point, _seconds, failure in results if failure]
    print(f"{len(wanted)} kill points, {len(wanted) - len(failures)} survivors")
    report(results)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("whom", ["controller", "all"])
def test_killed_while_packages_are_installed(sites, whom):
    """An upgrade with other packages builds an environment; what is half built is never used, and built anew."""
    site = sites[0]
    site.reset()
    site.write(app_packages=[{"controller": "sqlparse==0.5.3", "all": "sqlparse==0.5.2"}[whom]])
    try:
        with Visitors(site) as visitors, site.killed_while(whom, "pip", "install", str(site.root)):
            run, tasks = site.killed()
        assert run.code == -signal.SIGKILL, run.output[-6000:]
        assert tasks[-1].name == "release | Build the release and its environment"
        site.wait(lambda: not site.tools(), "the modules of the dead run to end")
        half = [path.parent for path in (site.root / "environments").glob("*/.building")]
        assert len(half) == (whom == "all")
        assert answered(site, {"v2.6"}) == "v2.6"
        assert {answer.version for answer in visitors.reads if answer.status == 200} == {"v2.6"}
        good(site.play("resume", *TAKE_OVER), "resume.yml")
        assert answered(site, {"v2.6"}) == "v2.6"
        check_data(site, visitors.acknowledged, "v2.6")
        check_order(site, "v2.6")
        good(site.play("deploy", "-e", "version=v2.7"), "the next deployment")
        assert answered(site, {"v2.7"}) == "v2.7"
        assert not list((site.root / "environments").glob("*/.building"))
    finally:
        site.write()
