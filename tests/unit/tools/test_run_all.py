# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The summary adds up what really ran: a broken step can never look like a good one."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "run_all.py"
_spec = importlib.util.spec_from_file_location("run_all", SCRIPT)
run_all = importlib.util.module_from_spec(_spec)
sys.modules["run_all"] = run_all
_spec.loader.exec_module(run_all)

MIXED = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="no"/></testcase>
<testcase classname="a" name="broken"><error message="no"/></testcase>
<testcase classname="a" name="left"><skipped message="no engine"/></testcase>
</testsuite></testsuites>"""
GOOD = '<testsuites><testsuite><testcase classname="a" name="good"/></testsuite></testsuites>'
EMPTY = "<testsuites><testsuite/></testsuites>"


def test_each_outcome_is_counted():
    assert run_all.count_report(MIXED) == (1, 2, ("a.left: no engine",), ())


def test_a_second_attempt_counts_once_and_is_named():
    again = GOOD.replace("<testcase", '<testcase classname="a" name="good"/><testcase')
    assert run_all.count_report(again) == (1, 0, (), ("a.good",))
    both = again.replace('name="good"/></testsuite>', 'name="good"><failure/></testcase></testsuite>')
    assert run_all.count_report(both) == (0, 1, (), ())


@pytest.mark.parametrize(
    ("step", "code", "reports", "passed", "failed"),
    [
        (run_all.Step("lint"), 0, [], 1, 0),
        (run_all.Step("lint"), 1, [], 0, 1),
        (run_all.Step("unit", "u.xml"), 0, [GOOD], 1, 0),
        (run_all.Step("unit", "u.xml"), 1, [MIXED], 1, 2),
        (run_all.Step("unit", "u.xml"), 1, [GOOD], 1, 1),  # failed outside of its tests
        (run_all.Step("unit", "u.xml"), 0, [], 0, 1),  # nothing ran
        (run_all.Step("unit", "u.xml"), 0, [EMPTY], 0, 1),
        (run_all.Step("molecule", "m.xml", itself=True), 0, [GOOD, GOOD], 3, 0),
        (run_all.Step("molecule", "m.xml", itself=True), 2, [], 0, 1),
        (run_all.Step("molecule", "m.xml", itself=True), 0, [], 1, 0),  # scenarios verified by playbooks
    ],
)
def test_a_step_is_judged_by_exit_code_and_reports(step, code, reports, passed, failed):
    assert run_all.judge(step, code, reports)[:2] == (passed, failed)


@pytest.fixture(name="project")
def _project(tmp_path):
    """A project whose targets do what the test wants."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "run_all.py").write_text(SCRIPT.read_text())
    return tmp_path


def run(project: Path, *steps: str, **targets: str) -> tuple[int, list[str]]:
    rules = "".join(
        f".PHONY: {name.replace('_', '-')}\n{name.replace('_', '-')}:\n\t@{recipe}\n"
        for name, recipe in targets.items()
    )
    (project / "Makefile").write_text(rules)
    done = subprocess.run(
        [sys.executable, str(project / "tests" / "run_all.py"), *steps],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_all_good(project):
    code, lines = run(project, "lint-yaml", "build", lint_yaml="true", build="true")
    assert (code, lines[-1]) == (0, "2 passed, 0 failed")


def test_a_failing_step_fails_the_run_and_later_steps_run_all_the_same(project):
    report = project / "build" / "reports" / "unit.xml"
    steps = {"lint_yaml": "false", "unit": f"echo '{GOOD}' > {report}"}
    code, lines = run(project, "lint-yaml", "unit", **steps)
    assert (code, lines[-1]) == (1, "1 passed, 1 failed")


def test_a_report_of_an_earlier_run_is_not_counted(project):
    report = project / "build" / "reports" / "unit.xml"
    report.parent.mkdir(parents=True)
    report.write_text(GOOD)
    code, lines = run(project, "unit", unit="true")
    assert (code, lines[-1]) == (1, "0 passed, 1 failed")


def test_an_unknown_step_is_no_success(project):
    code, lines = run(project, "nothing")
    assert code == 1
    assert re.fullmatch(r"0 passed, 0 failed", lines[-1])


def test_what_only_computes_runs_beside_the_linters_and_its_output_is_in_one_piece(project):
    """Each waits for the other: one after the other, the first would wait in vain."""
    wait = "for n in $$(seq 600); do test -e {} && exit 0; sleep 0.05; done; exit 1"
    report = f"mkdir -p build/reports/sanity; echo '{GOOD}' > build/reports/sanity/a.xml"
    steps = {
        "lint_yaml": f"echo linted; touch linting; {wait.format('checking')}",
        "sanity": f"echo checked; touch checking; {report}; {wait.format('linting')}",
        "unit": f"test ! -e over; touch over; echo '{GOOD}' > build/reports/unit.xml",
    }
    code, lines = run(project, *(name.replace("_", "-") for name in steps), **steps)
    assert (code, lines[-1]) == (0, "3 passed, 0 failed")
    told = [line for line in lines[: lines.index("=== summary")] if line]
    assert told == ["=== lint-yaml", "linted", "=== sanity", "checked", "=== unit"]


def test_what_fails_beside_the_linters_fails_the_run(project):
    code, lines = run(project, "lint-yaml", "sanity", lint_yaml="true", sanity="echo it broke; false")
    assert (code, lines[-1]) == (1, "1 passed, 1 failed")
    assert "it broke" in lines


def test_told_to_stop_it_stops_its_step_and_waits_for_it(project):
    mark = project / "stopped"
    child = f"import pathlib, signal, sys, time; signal.signal(15, lambda *_: (pathlib.Path('{mark}').touch(), sys.exit()))"
    (project / "child.py").write_text(f"{child}\nprint('ready', flush=True)\ntime.sleep(60)\n")
    rules = f".PHONY: lint-yaml sanity\nlint-yaml:\n\t@exec {sys.executable} child.py\n"
    rules += f"sanity:\n\t@exec {sys.executable} beside.py\n"
    (project / "beside.py").write_text(
        f"{child.replace('stopped', 'beside')}\npathlib.Path('{project}/begun').touch()\ntime.sleep(60)\n"
    )
    (project / "Makefile").write_text(rules)
    command = [sys.executable, str(project / "tests" / "run_all.py"), "lint-yaml", "sanity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if line == "ready\n":
                break
        deadline = time.monotonic() + 30
        while not (project / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begun = time.monotonic()
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(30) == 128 + signal.SIGTERM
    assert mark.exists()
    assert (project / "beside").exists()
    assert time.monotonic() - begun < 30
