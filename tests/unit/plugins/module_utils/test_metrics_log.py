# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values from logs: real files that a process writes and rotates, real journals, against a plain count."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _gates, _log_spec, _metrics_log
from ansible_collections.runbook.deploy.plugins.module_utils import _metrics_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils._log_entries import Entry
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_log import Growth, LogSource, figures
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_source import Unsampled
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import Reading
from journals import REMOTE, Journals

OLD = "2026-11-21 10:00:00 ERROR from before\n" * 40
GOOD = "2026-11-21 10:00:01 INFO all is well\n"
BAD = "2026-11-21 10:00:02 ERROR it is broken\n"
FRAMES = 'Traceback (most recent call last):\n  File "a.py", line 1, in a\nPaymentError: no money\n'
SECRET = "word-that-nobody-may-see"
PATTERNS = {"errors": "^.* ERROR "}
# Each line of its input is a step: so many good and bad entries, half an entry, or a rotation; it says when it is done.
STEPS = """
import os, shutil, sys
path, count = sys.argv[1], 0
stream = open(path, "a", buffering=1)
def write(text):
    stream.write(text)
    stream.flush()
for line in sys.stdin:
    word, *numbers = line.split()
    if word == "write":
        good, bad = map(int, numbers)
        for index in range(good):
            write("2026-11-21 10:00:01 INFO all is well\\n")
        for index in range(bad):
            write("2026-11-21 10:00:02 ERROR it is broken\\n  with more\\n")
    elif word == "half":
        write("2026-11-21 10:00:02 ERR")
    elif word == "end":
        write("OR it is broken\\n")
    elif word == "rename":
        count += 1
        os.rename(path, f"{path}.{count}")
    elif word == "reopen":
        stream = open(path, "a", buffering=1)
    elif word == "copytruncate":
        count += 1
        shutil.copyfile(path, f"{path}.{count}")
        os.truncate(path, 0)
    print("done", flush=True)
"""
# Writes as fast as it can, every seventh entry with a traceback, every line in two halves, until it has written all.
STREAM = """
import sys
with open(sys.argv[1], "a") as stream:
    for number in range(int(sys.argv[2])):
        lines = [f"2026-11-21 10:00:01 INFO number {number}"]
        if number % 7 == 0:
            lines = [f"2026-11-21 10:00:02 ERROR number {number}", "Traceback (most recent call last):", '  File "a.py"', "KeyError: 1"]
        for line in lines:
            stream.write(line[:9])
            stream.flush()
            stream.write(line[9:] + "\\n")
            stream.flush()
"""


class Writer:
    """A process that writes a log, step by step."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STEPS, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, *steps: str) -> None:
        for step in steps:
            self.process.stdin.write(f"{step}\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "done\n", step

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "web.log"
    path.write_text(OLD)
    return path


@pytest.fixture
def writer(log: Path) -> Iterator[Writer]:
    found = Writer(log)
    yield found
    found.close()


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def source_of(log: Path, **given: Any) -> LogSource:
    return LogSource({"kind": "log", "path": str(log), "patterns": PATTERNS, **given}, "source")


class Meter:
    """A source that was begun, and the plain numbers of its samples instead of those per minute."""

    def __init__(self, source: LogSource) -> None:
        self.source = source
        first = source.sample(10.0)
        assert all(found.pending and found.value is None for found in first.values()), first

    def numbers(self) -> dict[str, float]:
        """Return how many entries the next sample has of each kind."""
        begun = self.source._since
        found = self.source.sample(10.0)
        minutes = (self.source._since - begun) / 60
        rates = {name: one.value for name, one in found.items() if not name.endswith("_share")}
        return {name: round(value * minutes, 6) for name, value in rates.items()}


def test_a_growing_log_against_a_plain_count(log):
    meter = Meter(source_of(log, levels=["critical"]))
    total = {"entries": 0.0, "errors": 0.0, "critical": 0.0}
    running = subprocess.Popen([sys.executable, "-c", STREAM, str(log), "3000"])
    samples = 0
    try:
        while True:
            ended = running.poll() is not None
            for name, number in meter.numbers().items():
                total[name] += number
            samples += 1
            if ended:
                break
    finally:
        running.kill()
        running.wait()
    lines = log.read_text()[len(OLD) :].splitlines()
    counted = {
        "entries": sum(line.startswith("2026") for line in lines),
        "errors": sum(" ERROR " in line for line in lines),
        "critical": 0,
    }
    assert counted == {"entries": 3000, "errors": 429, "critical": 0}
    assert {name: round(number, 3) for name, number in total.items()} == counted, samples


def test_rates_and_shares_of_one_sample(log):
    begun = time.monotonic()
    meter = Meter(source_of(log, levels=["errors", "warnings"], patterns={"broken": "broken"}))
    early = time.monotonic()
    append(log, GOOD * 6 + BAD * 2)
    least = time.monotonic() - early
    found = {name: one.value for name, one in meter.source.sample(10.0).items()}
    # It cannot have been less time than between the two calls, nor more than from before the first one to after the second.
    assert 2 * 60 / (time.monotonic() - begun) <= found["errors"] <= 2 * 60 / least
    assert found["entries"] == pytest.approx(4 * found["errors"]) and found["broken"] == found["errors"]
    assert (found["errors_share"], found["broken_share"], found["warnings_share"]) == (0.25, 0.25, 0.0)
    assert found["warnings"] == 0 and "entries_share" not in found


def test_what_follows_from_what_was_counted():
    counted = _metrics_log.Counted(40, 40, [10])
    assert figures(["errors"], counted, 30.0) == {
        "entries": Reading(80.0),
        "errors": Reading(20.0),
        "errors_share": Reading(0.25),
    }
    # The same for each interval.
    assert figures(["errors"], _metrics_log.Counted(4, 4, [1]), 3.0)["errors"] == Reading(20.0)
    none = figures(["errors"], _metrics_log.Counted(0, 0, [0]), 30.0)
    assert (none["entries"].value, none["errors"].value, none["errors_share"].value) == (0.0, 0.0, None)
    assert none["errors_share"].why == "no entry was written since the sample before"
    assert figures(["errors"], counted, 0.0)["errors"].pending


def test_nothing_written_is_no_entry_and_no_share(log):
    source = source_of(log)
    Meter(source)
    found = source.sample(10.0)
    assert (found["errors"].value, found["entries"].value) == (0.0, 0.0)
    assert found["errors_share"].value is None and not found["errors_share"].pending


@pytest.mark.parametrize(
    "steps",
    [
        ("rename", "write 3 1", "reopen", "write 5 2"),
        ("write 3 1", "rename", "reopen", "write 5 2"),
        ("write 3 1", "copytruncate", "write 5 2"),
        ("rename", "write 1 1", "reopen", "write 2 0", "rename", "reopen", "write 5 2"),
        ("write 3 1", "copytruncate", "copytruncate", "write 5 2"),
    ],
)
def test_rotations_lose_nothing_and_count_nothing_twice(log, writer, steps):
    meter = Meter(source_of(log))
    writer.do("write 7 1")
    assert meter.numbers() == {"entries": 8, "errors": 1}
    writer.do(*steps)
    assert meter.numbers() == {"entries": 11, "errors": 3}
    writer.do("write 1 1")
    assert meter.numbers() == {"entries": 2, "errors": 1}
    assert meter.numbers() == {"entries": 0, "errors": 0}


def test_between_two_files_there_is_none_and_then_all_of_it(log, writer):
    meter = Meter(source_of(log))
    writer.do("rename", "write 1 1")
    with pytest.raises(Unsampled, match="there is no file"):
        meter.source.sample(10.0)
    writer.do("reopen", "write 0 1")
    assert meter.numbers() == {"entries": 3, "errors": 2}


def test_half_lines_are_counted_once(log, writer):
    meter = Meter(source_of(log, patterns={"errors": "ERR"}))
    writer.do("write 1 0", "half")
    assert meter.numbers() == {"entries": 1, "errors": 0}
    assert meter.numbers() == {"entries": 0, "errors": 0}
    writer.do("end")
    assert meter.numbers() == {"entries": 1, "errors": 1}
    assert meter.numbers() == {"entries": 0, "errors": 0}


def test_an_entry_that_comes_in_parts_is_one(log):
    meter = Meter(source_of(log, patterns={"money": "no money"}, levels=["errors"]))
    append(log, GOOD + BAD)
    assert meter.numbers() == {"entries": 2, "errors": 1, "money": 0}
    # The rest of the entry: of another kind now, and no entry more; its share is not above all.
    append(log, FRAMES)
    found = meter.source.sample(10.0)
    assert found["entries"].value == 0 and found["errors"].value == 0 and found["money"].value > 0
    assert (found["money_share"].value, found["errors_share"].value) == (1.0, 0.0)
    append(log, GOOD)
    assert meter.numbers() == {"entries": 1, "errors": 0, "money": 0}
    # All at once it is the same.
    append(log, BAD + FRAMES)
    assert meter.numbers() == {"entries": 1, "errors": 1, "money": 1}
    # The last entry of a log that then says no more.
    append(log, BAD)
    assert meter.numbers() == {"entries": 1, "errors": 1, "money": 0}
    assert meter.numbers() == {"entries": 0, "errors": 0, "money": 0}


def test_what_is_allowed_is_an_entry_and_nothing_else(log):
    meter = Meter(source_of(log, levels=["errors"], patterns={}, allow="Invalid HTTP_HOST"))
    append(log, GOOD + "2026-11-21 10:00:02 ERROR Invalid HTTP_HOST header\n" + BAD)
    assert meter.numbers() == {"entries": 3, "errors": 1}


def test_first_lines_as_they_are_told(log):
    meter = Meter(source_of(log, begins="^> "))
    append(log, "> a ERROR b\nc ERROR d\n> e\n")
    assert meter.numbers() == {"entries": 2, "errors": 1}


def test_a_file_that_is_not_there_yet_is_counted_from_its_beginning(tmp_path):
    log = tmp_path / "later.log"
    source = source_of(log)
    for _again in range(2):
        with pytest.raises(Unsampled, match=f"^there is no file {log}$"):
            source.sample(10.0)
    log.write_text(BAD * 2)
    found = source.sample(10.0)
    assert found["errors"].value > 0 and found["errors_share"].value == 1.0


def test_what_cannot_be_read_is_told_in_the_words_of_the_log_gate(tmp_path):
    with pytest.raises(Unsampled, match="is no regular file"):
        source_of(tmp_path).sample(10.0)
    if not os.geteuid():
        return
    log = tmp_path / "web.log"
    log.write_text(OLD)
    log.chmod(0)
    with pytest.raises(Unsampled, match="cannot be read by uid"):
        source_of(log).sample(10.0)


@pytest.mark.parametrize("replace", ["another", "truncated"])
def test_lines_that_were_lost_are_no_measurement(log, replace):
    meter = Meter(source_of(log))
    append(log, BAD)
    if replace == "another":
        other = log.with_name("fresh")
        other.write_text(GOOD)
        os.replace(other, log)
    else:
        log.write_text(GOOD)
    with pytest.raises(Unsampled, match="what was written between is not known"):
        meter.source.sample(10.0)
    # From then on it is known again.
    append(log, BAD + GOOD)
    assert meter.numbers() == {"entries": 2, "errors": 1}


def test_an_entry_counts_once_for_each_kind():
    check = source_of(Path("/x")).check
    growth, entry = Growth(check), Entry("here")
    entry.add("x")
    assert growth.since([entry]) == (1, 1, [0])
    entry.matched.add(0)
    assert growth.since([entry]) == (0, 1, [1])
    assert growth.since([entry]) == (0, 0, [0])
    growth.take(entry)
    assert growth.since([]) == (0, 0, [0])
    assert not growth._known and isinstance(growth, _log_spec.Tally)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": None}, "must have either path or unit"),
        ({"unit": "x.service"}, "must have either path or unit"),
        ({"path": "x.log"}, "must be an absolute path"),
        ({"path": None, "unit": "-x"}, "unit must name units of systemd"),
        ({"directory": "/x"}, "belongs to a journal"),
        ({"levels": "entries"}, "must be one of critical, errors, warnings"),
        ({"levels": ["errors"]}, "two values with the name 'errors'"),
        ({"patterns": {"entries": "x"}}, "two values with the name 'entries'"),
        ({"patterns": {"a": "x", "a_share": "x"}}, "two values with the name 'a_share'"),
        ({"patterns": {"a b": "x"}}, "no condition can begin with"),
        ({"patterns": {"a": "("}}, "is no regular expression"),
        ({"patterns": {"a": ""}}, "must be a regular expression"),
        ({"patterns": ["x"]}, "must be a mapping"),
        ({"pattern": {}}, "did you mean 'patterns'"),
    ],
)
def test_sources_that_are_not_well_written(log, given, message):
    with pytest.raises(Problem, match=message):
        source_of(log, **given)


def options(**given: Any) -> dict[str, Any]:
    return {**{name: spec.get("default") for name, spec in gate.OPTIONS.items()}, **given}


def check_of(log: Path, **given: Any) -> dict[str, Any]:
    source = {"kind": "log", "path": str(log), "patterns": PATTERNS, **given.pop("source", {})}
    return {"name": "web", "source": source, "interval": 0.05, **given}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"require": "errors_share < 5"}, "errors_share"),
        ({"require": "errors < 5%"}, "errors"),
        ({"require": "faults < 5"}, "the values are entries, errors, errors_share"),
        ({"require": "errors < 5", "units": {"errors_share": "%"}}, "whose unit is known: it is share"),
    ],
)
def test_conditions_that_do_not_fit(log, given, message):
    with pytest.raises(Problem, match=message):
        gate.prober(options(checks=[check_of(log, **given)]), False)


def writing(monkeypatch: pytest.MonkeyPatch, log: Path, *texts: str) -> None:
    """Let each of *texts* be written between two samples; the last one again and again."""
    left = list(texts)

    def sleep(seconds: float) -> None:
        append(log, left.pop(0) if len(left) > 1 else left[0])
        time.sleep(seconds)

    monkeypatch.setattr(gate, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=sleep))


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_gate_takes_two_samples_and_shows_nothing_of_the_log(log, monkeypatch, check_mode):
    writing(monkeypatch, log, GOOD * 3 + f"2026-11-21 10:00:02 ERROR connect with {SECRET}\n")
    wanted = check_of(log, require=["errors_share < 5%", "entries > 0"], severity="degraded")
    probe = gate.prober(options(checks=[wanted]), check_mode)
    (found,) = probe(20.0)
    assert (found["verdict"], found["severity"], probe.not_asked) == ("fail", "degraded", [])
    assert "errors_share is 25 %" in found["message"] and str(log) in found["message"]
    assert SECRET not in json.dumps(found)
    begin = f"tail -c +{len(OLD) + 1} {log}"
    assert found["repeat"] == begin and found["message"].endswith(f"Repeat: {begin}")
    # What it says to do shows just what was counted.
    shown = subprocess.run(begin.split(), capture_output=True, text=True, check=True).stdout
    assert shown.count("\n") == 4 and SECRET in shown


def test_a_log_that_is_not_there_is_no_pass(tmp_path):
    log = tmp_path / "none.log"
    (found,) = gate.prober(options(checks=[check_of(log, require="errors < 1")]), False)(20.0)
    assert (found["verdict"], f"there is no file {log}" in found["message"]) == ("inconclusive", True)


def test_a_share_that_has_been_too_high_for_a_second_ends_a_watch(log, monkeypatch):
    writing(monkeypatch, log, GOOD)
    wanted = check_of(log, trigger="errors_share > 5% for 1s")
    probe = gate.prober(options(checks=[wanted], accumulate=True), False)
    verdicts: list[str] = []
    begun = time.monotonic()
    bad = 0.0
    while time.monotonic() < begun + 30 and "fail" not in verdicts:
        # At first one in fifty, then one in two.
        append(log, GOOD * 49 + BAD if len(verdicts) < 3 else GOOD + BAD)
        if len(verdicts) == 3:
            bad = time.monotonic()
        (found,) = probe(20.0)
        verdicts.append(found["verdict"])
        time.sleep(0.02)
    assert set(verdicts[:-1]) == {"pass"} and verdicts[-1] == "fail", verdicts
    assert time.monotonic() - bad >= 1.0 and "errors_share" in found["message"]


def test_a_deployment_compares_with_what_was_before(log, monkeypatch):
    gates = [{"kind": "metrics", **check_of(log, require="errors_share not above baseline by 50%")}]

    def ask(moment: str, **given: Any) -> dict[str, Any]:
        found = {name: spec.get("default") for name, spec in _gates.OPTIONS.items()}
        found.update({"gates": gates, "moment": moment, "deadline": 20.0, "patience": 0.0, **given})
        return json.loads(json.dumps(_gates.perform(found, False, lambda text: None)))

    writing(monkeypatch, log, GOOD * 9 + BAD)
    before = ask("preflight")["before"]
    assert before["measured"] == {"web.errors_share": 0.1}
    writing(monkeypatch, log, GOOD * 8 + BAD)
    assert ask("smoke_test", before=before)["passed"]
    writing(monkeypatch, log, GOOD + BAD)
    with pytest.raises(Problem, match=r"errors_share is 50 %.*baseline 10 %"):
        ask("smoke_test", before=before)


@pytest.fixture
def journals(tmp_path: Path) -> Journals:
    if not os.path.exists(REMOTE) or not shutil.which("journalctl"):
        pytest.skip("systemd-journal-remote is not installed")
    found = Journals(tmp_path / "journal")
    found.write(("web.service", b"ERROR from before", 3), ("other.service", b"x", 6))
    return found


def test_a_journal(journals):
    source = {"path": None, "unit": "web.service", "directory": str(journals.directory)}
    meter = Meter(source_of(Path("/x"), **source, levels=["errors"], patterns={"broken": "broken"}))
    journals.write(
        ("web.service", b"all is well", 6),
        ("other.service", b"ERROR it is broken", 3),
        ("web.service", b"it is broken", 3),
    )
    assert meter.numbers() == {"entries": 2, "errors": 1, "broken": 1}
    assert meter.numbers() == {"entries": 0, "errors": 0, "broken": 0}
    # Two processes whose tracebacks alternate, over two samples.
    lines = ["Traceback (most recent call last):", '  File "x"', "KeyError: broken"]
    for line in lines:
        journals.write(*(("web.service", line.encode(), 6, pid) for pid in (11, 12)))
        if line == lines[1]:
            assert meter.numbers() == {"entries": 2, "errors": 2, "broken": 0}
    assert meter.numbers() == {"entries": 0, "errors": 0, "broken": 2}
    assert "journalctl" in meter.source.repeat() and "--unit=web.service" in meter.source.repeat()
    assert meter.source.place() == "the journal of web.service"


def test_a_journal_that_lost_the_mark_is_no_measurement(journals):
    source = {"path": None, "unit": ["web.service"], "directory": str(journals.directory)}
    newest = journals.write(("web.service", b"INFO marked", 6))
    meter = Meter(source_of(Path("/x"), **source))
    newest.unlink()
    journals.write(("web.service", b"an ERROR later", 6))
    with pytest.raises(Unsampled, match="no longer in the journal"):
        meter.source.sample(10.0)
    journals.write(("web.service", b"an ERROR again", 6))
    assert meter.numbers() == {"entries": 1, "errors": 1}


def test_a_unit_that_nobody_knows_is_no_measurement(journals):
    source = {"path": None, "unit": "wbe.service", "directory": str(journals.directory)}
    meter = Meter(source_of(Path("/x"), **source))
    with pytest.raises(Unsampled, match="there is no unit wbe.service"):
        meter.source.sample(10.0)
