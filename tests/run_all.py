# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run every check of the project and add up what was tested.

    run_all.py [STEP …]

Each step is a target of the Makefile. Counts come from the reports that the tools write (JUnit XML below
build/reports); a step that writes none is one test. Every step runs, whatever became of the earlier ones. A step
that is `beside` begins at once and computes beside those before it; its output comes in one piece, at its place. The
last line is `N passed, N failed`; the exit code is 0 only when nothing failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parents[1]
REPORTS = PROJECT / "build" / "reports"


class Step(NamedTuple):
    """A target; `reports` is the pattern of its JUnit files below build/reports, "" for a step that is one test.

    `itself`: the step's own success counts as a test beside those of its reports (a molecule run converges too).
    `beside`: it only computes, mostly on one core, so that it may run beside the steps before it; never one that
    measures time or waits for something.
    """

    target: str
    reports: str = ""
    itself: bool = False
    beside: bool = False


class Begun(NamedTuple):
    """A step that runs; `log` takes what it prints where that is not on the terminal, `at` is of the monotonic clock."""

    step: Step
    child: subprocess.Popen[bytes]
    log: Path | None
    at: float


STEPS = (
    Step("lint-yaml"),
    Step("lint-ansible"),
    Step("lint-python"),
    Step("lint-format"),
    Step("lint-specs"),
    # Beside the linters, and not beside tests, which run on a machine that they have for themselves.
    Step("sanity", "sanity/*.xml", beside=True),
    Step("unit", "unit.xml"),
    Step("build"),
    Step("kill", "kill.xml"),
    Step("molecule", "molecule-*.xml", itself=True),
    Step("gates", "molecule-gates.xml", itself=True),
    Step("guards", "molecule-guards.xml", itself=True),
    Step("postgresql", "molecule-postgresql.xml", itself=True),
    Step("mariadb", "molecule-mariadb.xml", itself=True),
)


class Count(NamedTuple):
    passed: int
    failed: int
    skipped: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()

    def __add__(self, other: Count) -> Count:  # type: ignore[override]
        return Count(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.repeated + other.repeated,
        )


def count_report(text: str) -> Count:
    """Count the test cases of a JUnit file: a failure or an error is a failure, a skipped one is neither.

    A test with a second attempt is there twice, the first time without its failure (pytest-rerunfailures): it counts
    once, and is named as repeated if no attempt is left as a failure.
    """
    cases: dict[str, list[ElementTree.Element]] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        cases.setdefault(f"{case.get('classname', '')}.{case.get('name', '')}", []).append(case)
    passed = failed = 0
    skipped = []
    repeated = []
    for name, attempts in cases.items():
        reason = attempts[-1].find("skipped")
        if any(case.find(fault) is not None for case in attempts for fault in ("failure", "error")):
            failed += 1
        elif reason is not None:
            skipped.append(f"{name}: {reason.get('message') or 'no reason given'}")
        else:
            passed += 1
            if len(attempts) > 1:
                repeated.append(name)
    return Count(passed, failed, tuple(skipped), tuple(repeated))


def judge(step: Step, code: int, reports: list[str]) -> Count:
    """What a step contributes: its exit code `code` and the texts of its reports.

    A step that failed counts at least one failure, and so does one that should have reported and did not.
    """
    total = Count(0, 0)
    for text in reports:
        total += count_report(text)
    if not step.reports or step.itself:
        total += Count(1, 0) if code == 0 else Count(0, 1)
    if total.failed == 0 and (code != 0 or (step.reports and total.passed == 0)):
        total += Count(0, 1)
    return total


def begin(step: Step, quietly: bool = False) -> Begun:
    """Start one step, with its output on the terminal, or with `quietly` in a file beside the reports."""
    for old in REPORTS.glob(step.reports) if step.reports else ():
        old.unlink()
    command = [os.environ.get("MAKE", "make"), "--no-print-directory", step.target]
    if quietly:
        log = REPORTS / f"{step.target}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
    else:
        log = None
        print(f"\n=== {step.target}", flush=True)
        child = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL)
    return Begun(step, child, log, time.monotonic())


def finish(begun: Begun) -> tuple[Count, float]:
    """Wait for a step; returns its count and the seconds since it began."""
    step = begun.step
    code = begun.child.wait()
    seconds = time.monotonic() - begun.at
    if begun.log is not None:
        print(f"\n=== {step.target}\n{begun.log.read_text(errors='replace')}", end="", flush=True)
    texts = [path.read_text() for path in sorted(REPORTS.glob(step.reports))] if step.reports else []
    return judge(step, code, texts), seconds


def run(steps: list[Step]) -> Iterator[tuple[Step, Count, float]]:
    """Run the steps one after the other, beside those that need not wait; yields what became of each, in their order."""
    running: dict[str, Begun] = {}
    try:
        # A step that nothing is before has nothing to run beside, and shows its output as it comes.
        for step in steps[1:]:
            if step.beside:
                running[step.target] = begin(step, quietly=True)
        for step in steps:
            if step.target not in running:
                running[step.target] = begin(step)
            count, seconds = finish(running[step.target])
            yield step, count, seconds
    finally:
        # Told to stop: the steps stop what they started (a container engine) and are waited for.
        left = [begun.child for begun in running.values() if begun.child.poll() is None]
        for child in left:
            child.terminate()
        for child in left:
            child.wait()


def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, interrupted)
    wanted = [step for step in STEPS if len(sys.argv) < 2 or step.target in sys.argv[1:]]
    REPORTS.mkdir(parents=True, exist_ok=True)
    total = Count(0, 0)
    lines = []
    for step, count, seconds in run(wanted):
        total += count
        state = "failed" if count.failed else "ok"
        lines.append(
            f"{step.target:14} {state:7} {count.passed:5} passed {count.failed:4} failed {seconds:8.1f} s"
        )
    print("\n=== summary")
    print("\n".join(lines))
    for name in total.skipped:
        print(f"skipped: {name}")
    for name in total.repeated:
        print(f"passed at the second attempt only: {name}")
    print(f"{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
