# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run every check of the project and add up what was tested.

    run_all.py [STEP …]

Each step is a target of the Makefile. Counts come from the reports that the tools write (JUnit XML below
build/reports); a step that writes none is one test. Every step runs, whatever became of the earlier ones. The last
line is `N passed, N failed`; the exit code is 0 only when nothing failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parents[1]
REPORTS = PROJECT / "build" / "reports"


class Step(NamedTuple):
    """A target; `reports` is the pattern of its JUnit files below build/reports, "" for a step that is one test.

    `itself`: the step's own success counts as a test beside those of its reports (a molecule run converges too).
    """

    target: str
    reports: str = ""
    itself: bool = False


STEPS = (
    Step("lint-yaml"),
    Step("lint-ansible"),
    Step("lint-python"),
    Step("lint-format"),
    Step("lint-specs"),
    Step("unit", "unit.xml"),
    Step("sanity", "sanity/*.xml"),
    Step("build"),
    Step("molecule", "molecule-*.xml", itself=True),
    Step("gates", "molecule-gates.xml", itself=True),
    Step("guards", "molecule-guards.xml", itself=True),
    Step("test-postgresql", "molecule-postgresql.xml", itself=True),
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


def run(step: Step) -> tuple[Count, float]:
    """Run one step with its output on the terminal; returns its count and its seconds."""
    for old in REPORTS.glob(step.reports) if step.reports else ():
        old.unlink()
    print(f"\n=== {step.target}", flush=True)
    begun = time.monotonic()
    command = [os.environ.get("MAKE", "make"), "--no-print-directory", step.target]
    child = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL)
    try:
        code = child.wait()
    finally:
        # Told to stop: the step stops what it started (a container engine) and is waited for.
        if child.poll() is None:
            child.terminate()
            child.wait()
    seconds = time.monotonic() - begun
    texts = [path.read_text() for path in sorted(REPORTS.glob(step.reports))] if step.reports else []
    return judge(step, code, texts), seconds


def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, interrupted)
    wanted = [step for step in STEPS if len(sys.argv) < 2 or step.target in sys.argv[1:]]
    REPORTS.mkdir(parents=True, exist_ok=True)
    total = Count(0, 0)
    lines = []
    for step in wanted:
        count, seconds = run(step)
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
