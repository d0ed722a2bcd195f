# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of logs against real files and journals: rotation of every kind, what is lost, and logs that are no text."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _log_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils._log_entries import (
    OVERLAP,
    Assembler,
    Entry,
    Splitter,
    level_of,
    masked,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules import log_gate
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import REMOTE, Journals

SECRET = "word-that-nobody-may-see"
OLD = "2026-11-21 10:00:00 ERROR from before\n" * 40
GOOD = "2026-11-21 10:00:01 INFO all is well\n"
BAD = "2026-11-21 10:00:02 ERROR it is broken\n"
TRACEBACK = """2026-11-21 10:00:03 ERROR Internal Server Error: /pay/
Traceback (most recent call last):
  File "a.py", line 1, in a
    b()
  File "b.py", line 2, in b
    raise ValueError(1)
ValueError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "c.py", line 3, in c
    d()
PaymentError: no money
"""


def options(**given: Any) -> dict[str, Any]:
    return {**{name: spec.get("default") for name, spec in gate.OPTIONS.items()}, **given}


def ask(check: dict[str, Any], seconds: float = 10.0, **given: Any) -> dict[str, Any]:
    (found,) = gate.prober(options(checks=[check], **given), False)(seconds)
    return found


def mark(check: dict[str, Any], **given: Any) -> dict[str, Any]:
    found = ask(check, state="mark", **given)
    assert found["verdict"] == "pass", found
    # As it comes back from a variable of Ansible.
    return json.loads(json.dumps({found["name"]: found["cursor"]}))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "web.log"
    path.write_text(OLD)
    return path


def check_of(log: Path, **given: Any) -> dict[str, Any]:
    return {"name": "web", "path": str(log), **({} if given else {"errors": "< 1"}), **given}


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as stream:
        stream.write(text if isinstance(text, bytes) else text.encode())


def compress(path: Path) -> Path:
    """As gzip(1) does: the new file has the time of the old one."""
    found = path.stat()
    target = path.with_name(f"{path.name}.gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    path.unlink()
    return target


def renamed(log: Path, between: str, after: str) -> None:
    append(log, between)
    log.rename(f"{log}.1")
    log.write_text(after)


def renamed_and_compressed(log: Path, between: str, after: str) -> None:
    renamed(log, between, after)
    compress(Path(f"{log}.1"))


def dated(log: Path, between: str, after: str) -> None:
    append(log, between)
    log.rename(log.with_name("web-20261121.log"))
    log.write_text(after)


def copied(log: Path, between: str, after: str) -> None:
    append(log, between)
    shutil.copyfile(log, f"{log}.1")
    os.truncate(log, 0)
    append(log, after)


def copied_and_compressed(log: Path, between: str, after: str) -> None:
    copied(log, between, after)
    compress(Path(f"{log}.1"))


def copied_and_grown(log: Path, between: str, after: str) -> None:
    # Longer than it was when it was marked: its size says nothing.
    copied(log, between, after + GOOD * 200)


def twice(log: Path, between: str, after: str) -> None:
    append(log, GOOD)
    log.rename(f"{log}.1")
    log.write_text(between)
    compress(Path(f"{log}.1")).rename(f"{log}.2.gz")
    log.rename(f"{log}.1")
    log.write_text(after)


def untouched(log: Path, between: str, after: str) -> None:
    append(log, between)
    append(log, after)


ROTATIONS = [
    untouched,
    renamed,
    renamed_and_compressed,
    dated,
    copied,
    copied_and_compressed,
    copied_and_grown,
    twice,
]


@pytest.mark.parametrize("rotate", ROTATIONS)
@pytest.mark.parametrize(
    ("between", "after", "verdict", "errors"),
    [(GOOD, GOOD, "pass", 0), (BAD, GOOD, "fail", 1), (GOOD, BAD, "fail", 1), (BAD, BAD + BAD, "fail", 3)],
)
def test_what_was_written_since_is_read_whatever_was_done_to_the_file(
    log, rotate, between, after, verdict, errors
):
    cursors = mark(check_of(log))
    rotate(log, between, after)
    found = ask(check_of(log), cursors=cursors)
    assert (found["verdict"], found["counts"]) == (verdict, {"errors": errors}), found
    assert bool(found["message"]) == (verdict != "pass")
    assert "from before" not in json.dumps(found)


def gone(log: Path) -> None:
    log.unlink()


def truncated(log: Path) -> None:
    os.truncate(log, 0)
    append(log, GOOD)


def replaced(log: Path) -> None:
    log.unlink()
    log.write_text("another\n" * 400 + GOOD)


def written_anew(log: Path) -> None:
    log.write_text(GOOD * 400)


def directory(log: Path) -> None:
    log.unlink()
    log.mkdir()


def pipe(log: Path) -> None:
    log.unlink()
    os.mkfifo(log)


def damaged(log: Path) -> None:
    append(log, GOOD * 3000)
    log.rename(f"{log}.1")
    packed = compress(Path(f"{log}.1"))
    data = packed.read_bytes()
    packed.write_bytes(data[: len(data) - 40])
    log.write_text(GOOD)


def dangling(log: Path) -> None:
    log.unlink()
    log.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (gone, "there is no file"),
        (truncated, "was truncated or written anew since it was marked"),
        (replaced, "since it was marked"),
        (written_anew, "was truncated or written anew"),
        (directory, "is no regular file"),
        (pipe, "is no regular file"),
        (damaged, "cannot be read to its end"),
        (dangling, "there is no file"),
    ],
)
def test_what_is_lost_is_no_pass(log, harm, said):
    cursors = mark(check_of(log))
    harm(log)
    begun = time.monotonic()
    found = ask(check_of(log), cursors=cursors)
    assert (found["verdict"], said in found["message"]) == ("inconclusive", True), found
    assert found["repeat"] in found["message"] and time.monotonic() - begun < 1
    # And no silence about what is seen all the same.
    if log.is_file():
        append(log, BAD)
        assert ask(check_of(log), cursors=cursors)["verdict"] == "fail"


@pytest.mark.parametrize(
    ("cursors", "said"),
    [
        ({}, "there is no cursor of it"),
        ({"other": {}}, "there is no cursor of it"),
        ({"web": {"kind": "journal", "cursor": "x"}}, "no cursor of a file"),
        ({"web": {"kind": "file", "path": "/x"}}, "no cursor of a file"),
        ({"web": "x"}, "no cursor of a file"),
        ({"web": {"kind": "file", "path": "/x", "at": 1.0, "absent": True}}, "is that of /x"),
    ],
)
def test_a_cursor_that_is_none_is_no_pass(log, cursors, said):
    found = ask(check_of(log), cursors=cursors)
    assert (found["verdict"], said in found["message"]) == ("inconclusive", True), found


def test_a_log_that_may_not_be_read(log):
    cursors = mark(check_of(log))
    log.chmod(0)
    if os.geteuid():
        assert "cannot be read by uid" in ask(check_of(log), cursors=cursors)["message"]
        return
    # Root reads everything; another user, who has only what is loaded already, does not.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            found = [ask(check_of(log), cursors=cursors), ask(check_of(log), state="mark")]
            text = json.dumps(
                [[one["verdict"], "cannot be read by uid 65534" in one["message"]] for one in found]
            )
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(reading, 4096)) == [["inconclusive", True]] * 2


def test_a_log_that_is_not_there_yet(log):
    log.unlink()
    found = ask(check_of(log), state="mark")
    assert (found["verdict"], "absent: true takes one" in found["message"]) == ("inconclusive", True)
    cursors = mark(check_of(log, absent=True, errors="< 1"))
    assert ask(check_of(log), cursors=cursors)["verdict"] == "inconclusive"
    log.write_text(GOOD)
    assert ask(check_of(log), cursors=cursors)["verdict"] == "pass"
    renamed(log, BAD, GOOD)
    assert ask(check_of(log), cursors=cursors)["counts"] == {"errors": 1}


def test_an_empty_log_that_is_rotated(log):
    log.write_text("")
    cursors = mark(check_of(log))
    renamed(log, BAD, BAD)
    assert ask(check_of(log), cursors=cursors)["counts"] == {"errors": 2}


def test_a_line_that_was_half_written_when_it_was_marked_is_new(log):
    append(log, "2026-11-21 10:00:02 ERR")
    cursors = mark(check_of(log))
    append(log, "OR half\n")
    assert ask(check_of(log), cursors=cursors)["counts"] == {"errors": 1}


EXPECTATIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"errors": "< 1"}, "fail", "errors 2"),
    ({"errors": "< 3"}, "pass", ""),
    ({"errors": 2}, "pass", ""),
    ({"critical": 0, "warnings": "< 1"}, "fail", "warnings 1"),
    ({"forbidden": "PaymentError"}, "fail", "'PaymentError' 1"),
    ({"forbidden": {"PaymentError": "< 2", "(?i)warn": "<= 1"}}, "pass", ""),
    ({"forbidden": ["nothing of it"]}, "pass", ""),
    ({"forbidden": "^PaymentError: no"}, "fail", "'^PaymentError: no' 1"),
    ({"required": "all is well"}, "pass", ""),
    ({"required": {"all is well": ">= 2"}}, "fail", "'all is well' 1"),
    ({"required": ["worker ready"]}, "fail", "'worker ready' 0"),
    ({"errors": "< 1", "allow": ["PaymentError", "broken"]}, "pass", ""),
    ({"errors": "< 1", "allow": "PaymentError"}, "fail", "errors 1"),
    ({"forbidden": "well", "allow": "all is"}, "pass", ""),
    # What is allowed is there all the same.
    ({"required": "broken", "allow": "broken"}, "pass", ""),
    ({"entries": "> 3"}, "pass", ""),
    ({"entries": "> 4"}, "fail", "entries 4"),
    # Everything after the first line belongs to it then.
    ({"entries": 1, "begins": r"INFO"}, "pass", ""),
]


@pytest.mark.parametrize(("expected", "verdict", "said"), EXPECTATIONS)
def test_what_is_expected(log, expected, verdict, said):
    check = check_of(log, **expected)
    cursors = mark(check)
    append(log, GOOD + BAD + TRACEBACK + "2026-11-21 10:00:04 WARNING slow\n")
    found = ask(check, cursors=cursors)
    assert found["verdict"] == verdict, found
    assert said in found["message"]


def test_a_traceback_is_one_entry_and_its_ends_are_shown(log):
    cursors = mark(check_of(log))
    append(log, GOOD + TRACEBACK + GOOD)
    found = ask(check_of(log), cursors=cursors)
    assert found["counts"] == {"errors": 1}
    assert (
        "PaymentError: no money" in found["observed"] and "Internal Server Error: /pay/" in found["observed"]
    )
    assert f"{log}, byte {len(OLD) + len(GOOD)}: " in found["observed"]
    assert "tail -c +" in found["repeat"] and found["final"]


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        # Without a level, and behind an access log whose lines are allowed: a fault of its own.
        (GOOD + "Traceback (most recent call last):\n  File x\nKeyError: 1\n" + GOOD, ["info", "error", "info"]),
        # Cut off by a killed process.
        ("Traceback (most recent call last):\n  File x\n" + GOOD, ["error", "info"]),
        # The exception's own text has a word that is a level.
        (BAD + "Traceback (most recent call last):\n  File x\ndb.OperationalError: FATAL: no\n" + GOOD, ["error", "info"]),
        (BAD + "  + Exception Group Traceback (most recent call last):\n  |   File x\n  | ExceptionGroup: two\n  +---\n" + BAD, ["error", "error"]),
        (GOOD + "  + Exception Group Traceback (most recent call last):\n  |   File x\n  | ExceptionGroup: two\n  +---\n" + GOOD, ["info", "error", "info"]),
        ("one\n  two\n\tthree\nfour\n", [None, None]),
        (TRACEBACK + TRACEBACK, ["error", "error"]),
    ],
)  # fmt: skip
def test_entries(text, levels):
    assembler = Assembler()
    found: list[Entry | None] = [assembler.add(line, "x")[1] for line in Splitter().feed(text.encode())]
    assert [entry.level for entry in [*found, assembler.end()] if entry] == levels


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("2026-11-21 10:00:00,123 ERROR [django.request] x", "error"),
        ("[2026-11-21 10:00:00 +0000] [77] [CRITICAL] WORKER TIMEOUT", "critical"),
        ("2026/11/21 10:00:00 [error] 31#31: *1 connect() failed", "error"),
        ("[Sat Nov 21 10:00:00 2026] [core:warn] [pid 1] x", "warning"),
        ('{"time": "x", "level": "warning", "msg": "ERROR in text"}', "warning"),
        ("ts=1 level=fatal msg=x", "critical"),
        ("[2026-11-21 10:00:00,000: WARNING/MainProcess] slow", "warning"),
        ("2026-11-21 LOG:  duration", None),
        ("2026-11-21 10:00 [77] FATAL:  role does not exist", "critical"),
        ("INFO there was no ERROR", "info"),
        ("GET /errors/ERROR_LOG 200", None),
        ("an Error that is a word", None),
        ("", None),
        ("x" * 300 + " ERROR", None),
    ],
)
def test_levels(text, level):
    assert level_of(text) == level


@settings(deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=10), st.integers(4, 60))
def test_lines_are_the_same_however_they_come(data, cuts, piece):
    def split(parts):
        splitter = Splitter(piece=piece)
        found = [line for part in parts for line in splitter.feed(part)]
        rest = splitter.rest()
        return [*found, *([rest] if rest else [])]

    parts, begin = [], 0
    for cut in cuts:
        parts.append(data[begin : begin + cut])
        begin += cut
    lines = split([*parts, data[begin:]])
    assert lines == split([data])
    whole = [line for line in lines if not line.continued]
    ends = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    assert len(whole) == ends
    # Nothing of a long line is left out: its parts overlap.
    for line, following in zip(lines, lines[1:]):
        if following.continued:
            assert following.offset <= line.offset + piece


def test_a_word_across_two_pieces_is_found(log):
    check = check_of(log, forbidden="needle")
    for place in (65536 - 3, 65536 - OVERLAP, 200_000, 999_990):
        log.write_text(OLD)
        cursors = mark(check)
        append(log, b"x" * place + b"needle" + b"y" * 1000 + b"\n" + GOOD.encode())
        found = ask(check, cursors=cursors)
        assert found["counts"] == {"'needle'": 1}, place
        assert len(found["observed"]) < 1000


def test_what_is_no_text_survives(log):
    check = check_of(log, forbidden="needle", errors="< 9")
    cursors = mark(check)
    append(log, os.urandom(300_000) + b"\0" * 100_000 + b"\n\xff\xfe ERROR needle \x1b[31mred\x07\n")
    found = ask(check, cursors=cursors)
    assert (found["verdict"], found["counts"]["'needle'"]) == ("fail", 1)
    assert "\x1b" not in json.dumps(found, ensure_ascii=False) and "\0" not in found["observed"]


def test_a_hole_is_not_read(log):
    cursors = mark(check_of(log))
    shutil.copyfile(log, f"{log}.1")
    os.truncate(log, 0)
    # Whoever does not write at the end leaves terabytes of nothing.
    os.truncate(log, 1 << 40)
    append(log, BAD)
    begun = time.monotonic()
    found = ask(check_of(log), cursors=cursors)
    assert found["counts"] == {"errors": 1} and time.monotonic() - begun < 2, found


def test_a_huge_log_costs_neither_memory_nor_more_than_its_time(tmp_path):
    path = tmp_path / "huge.log"
    line = b"2026-11-21 10:00:00 INFO " + b"x" * 100 + b"\n"
    path.write_bytes(line * 800_000)
    begun = time.monotonic()
    cursors = mark(check_of(path, errors="< 1"), timeout=2.0)
    cursors_before = {"web": {**cursors["web"], "offset": 0}}
    # What was there before is not read.
    assert ask(check_of(path), cursors=cursors)["verdict"] == "pass" and time.monotonic() - begun < 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_bytes(b"")
    cursors = mark(check_of(path))
    path.write_bytes(line * 800_000)
    begun = time.monotonic()
    found = ask(check_of(path), 1.5, cursors=cursors)
    assert time.monotonic() - begun < 2.5
    assert (found["verdict"], "no time to read" in found["message"]) == ("inconclusive", True), found
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
    # One that is proved wrong is wrong, however much was left.
    path.write_bytes(BAD.encode() + line * 800_000)
    assert ask(check_of(path), 1.5, cursors=cursors)["verdict"] == "fail"
    assert cursors_before["web"]["offset"] == 0


def test_secrets_are_not_repeated(log, capsys):
    check = check_of(log)
    cursors = mark(check)
    append(
        log,
        f"10:00 ERROR login {SECRET} password=hunter22 token: 'abcdef123' Authorization: Bearer eyJhbGciOi.x.y "
        "postgres://app:s3cr3tpw@db/shop Cookie: sessionid=123abc\n",
    )
    found = run(capsys, checks=[check], cursors=cursors, secrets=json.dumps({"a": SECRET}))
    text = json.dumps({**found, "invocation": None})
    for hidden in (SECRET, "hunter22", "abcdef123", "eyJhbGciOi", "s3cr3tpw", "123abc"):
        assert hidden not in text, hidden
    assert "10:00 ERROR login ********" in found["msg"] and found["failed"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"api_key": "k", "user": "ada"}', '{"api_key": "********", "user": "ada"}'),
        ("DB_PASSWORD=a&next=1", "DB_PASSWORD=********&next=1"),
        ("the token of the parser", "the token of the parser"),
        ("redis://:pw@cache:6379/0", "redis://:********@cache:6379/0"),
        ("http://example.org/a:b@c", "http://example.org/a:b@c"),
    ],
)
def test_what_looks_like_a_secret(text, shown):
    assert masked(text) == shown


def run(capsys: pytest.CaptureFixture[str], **given: Any) -> dict[str, Any]:
    with patch_module_args(given), pytest.raises(SystemExit):
        log_gate.main()
    return json.loads(capsys.readouterr().out)


def test_the_module_marks_and_judges(log, capsys):
    check = check_of(log)
    marked = run(capsys, checks=[check], state="mark")
    assert marked["passed"] and not marked["changed"] and set(marked["cursors"]) == {"web"}
    append(log, GOOD)
    assert run(capsys, checks=[check], cursors=marked["cursors"])["passed"]
    append(log, BAD)
    begun = time.monotonic()
    failed = run(capsys, checks=[check], cursors=marked["cursors"])
    # What was written stays written: it is not asked again and again.
    assert failed["failed"] and failed["attempts"] == 1 and time.monotonic() - begun < 2
    assert failed["failing"] == ["web"] and "ERROR it is broken" in failed["msg"]


def later(seconds: float, call: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


def test_a_log_is_followed_for_a_time(log):
    check = check_of(log)
    begun = time.monotonic()
    assert ask(check, duration=0.6)["verdict"] == "pass"
    assert 0.6 <= time.monotonic() - begun < 1.2
    timer = later(0.3, lambda: append(log, BAD))
    begun = time.monotonic()
    found = ask(check, duration=5.0)
    timer.join()
    # What is proved wrong does not wait for the end.
    assert found["verdict"] == "fail" and time.monotonic() - begun < 2
    timer = later(0.3, lambda: renamed(log, BAD[:10], BAD[10:]))
    found = ask(check_of(log, required="it is broken"), duration=0.9)
    timer.join()
    # Halves of a line that rotation divided are two lines; nothing of it is lost.
    assert found["verdict"] == "pass", found
    begun = time.monotonic()
    found = ask(check, 0.8, duration=5.0)
    assert time.monotonic() - begun < 1.8


def test_a_watch_reads_on_and_remembers(log):
    probe = gate.prober(options(checks=[check_of(log)], accumulate=True), False)
    verdicts = []
    for text in ("", GOOD, "10:00 ERROR hal", "f\n", GOOD, BAD):
        append(log, text)
        verdicts.append((probe(2)[0]["verdict"], probe(2)[0]["counts"]["errors"]))
    assert verdicts == [("pass", 0), ("pass", 0), ("pass", 0), ("fail", 1), ("fail", 1), ("fail", 2)]
    with pytest.raises(Problem, match="cannot be watched"):
        gate.prober(options(checks=[check_of(log, required="x")], accumulate=True), False)


def test_a_watch_through_a_rotation_and_an_absence(log):
    probe = gate.prober(options(checks=[check_of(log)], accumulate=True), False)
    assert probe(2)[0]["verdict"] == "pass"
    append(log, GOOD)
    log.rename(f"{log}.1")
    assert probe(2)[0]["verdict"] == "inconclusive"
    log.write_text(GOOD)
    assert probe(2)[0]["verdict"] == "pass"
    copied(log, GOOD, BAD)
    assert probe(2)[0]["counts"] == {"errors": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"errors": None}, "expects nothing"),
        ({"path": None}, "either path or journal"),
        ({"journal": "x.service"}, "either path or journal"),
        ({"path": "web.log"}, "absolute path"),
        ({"error": "< 1"}, "did you mean 'errors'"),
        ({"errors": "few"}, "a condition on a number of entries"),
        ({"errors": "contains 1"}, "a condition on a number of entries"),
        ({"errors": True}, "a condition on a number of entries"),
        ({"forbidden": "("}, "no regular expression"),
        ({"forbidden": {"x": "often"}}, "a condition on a number of entries"),
        ({"forbidden": [""]}, "not empty"),
        ({"allow": ["("]}, "no regular expression"),
        ({"begins": "("}, "no regular expression"),
        ({"directory": "/x"}, "belongs to a journal"),
        ({"path": None, "journal": "-x"}, "must name units"),
        ({"absent": "yes"}, "true or false"),
    ],
)
def test_what_is_not_well_written_is_refused(log, change, said):
    with pytest.raises(Problem) as raised:
        gate.prober(options(checks=[{**check_of(log), **change}]), False)
    assert said in raised.value.message, raised.value.message


@pytest.fixture
def journals(tmp_path: Path) -> Journals:
    if not os.path.exists(REMOTE) or not shutil.which("journalctl"):
        pytest.skip("systemd-journal-remote is not installed")
    found = Journals(tmp_path / "journal")
    found.write(("web.service", b"ERROR from before", 3), ("other.service", b"x", 6))
    return found


def journal_check(journals: Journals, **given: Any) -> dict[str, Any]:
    given = given or {"errors": "< 1"}
    return {"name": "web", "journal": "web.service", "directory": str(journals.directory), **given}


def test_a_journal(journals):
    cursors = mark(journal_check(journals))
    assert ask(journal_check(journals), cursors=cursors)["verdict"] == "pass"
    journals.write(("web.service", b"INFO fine", 6), ("other.service", b"ERROR of another", 3))
    assert ask(journal_check(journals), cursors=cursors)["verdict"] == "pass"
    # By its priority, by its text, and as a traceback of which every line is an entry, in two processes at once.
    lines = ["Traceback (most recent call last):", '  File "x"', "KeyError: 1"]
    alternating = [("web.service", line.encode(), 6, pid) for line in lines for pid in (11, 12)]
    journals.write(("web.service", b"it is broken", 3), ("web.service", b"CRITICAL too", 6), *alternating)
    found = ask(journal_check(journals), cursors=cursors)
    assert (found["verdict"], found["counts"]) == ("fail", {"errors": 4}), found
    assert "it is broken" in found["observed"] and "from before" not in found["observed"]
    assert "journalctl --no-pager" in found["repeat"] and "--cursor=" in found["repeat"]
    assert (
        ask(journal_check(journals, errors="< 9", required="^INFO fine$"), cursors=cursors)["verdict"]
        == "pass"
    )
    check = journal_check(journals)
    assert ask({**check, "journal": ["w*.service"]}, cursors=cursors)["counts"] == {"errors": 4}


def test_a_journal_with_what_is_no_text(journals):
    cursors = mark(journal_check(journals))
    journals.write(
        ("web.service", b"\xff\xfe\x00 ERROR needle", 6),
        ("web.service", b"ERROR " + b"x" * 200_000 + b"needle", 6),
        ("web.service", b"one\ntwo\n  three", 6),
    )
    found = ask(journal_check(journals, forbidden="needle", errors="< 9"), cursors=cursors)
    assert found["counts"] == {"errors": 2, "'needle'": 2}, found


def test_a_journal_that_lost_the_mark_is_no_pass(journals):
    newest = journals.write(("web.service", b"INFO marked", 6))
    cursors = mark(journal_check(journals))
    newest.unlink()
    journals.write(("web.service", b"INFO later", 6))
    found = ask(journal_check(journals), cursors=cursors)
    assert (found["verdict"], "no longer in the journal" in found["message"]) == ("inconclusive", True), found


@pytest.mark.parametrize("unit", ["wbe.service", "wbe*.service"])
def test_a_unit_that_nobody_knows_is_no_pass(journals, unit):
    check = {**journal_check(journals), "journal": unit}
    found = ask(check, cursors=mark(check))
    assert (found["verdict"], "there is no unit" in found["message"]) == ("inconclusive", True), found


def test_no_journal_is_no_pass(journals, monkeypatch):
    cursors = mark(journal_check(journals))
    check = {**journal_check(journals), "directory": "/no/such/place"}
    assert "No such file" in ask(check, state="mark")["message"]
    assert ask(check, cursors=cursors)["verdict"] == "inconclusive"
    empty = journals.directory.parent / "empty"
    empty.mkdir()
    assert "has no entry" in ask({**check, "directory": str(empty)}, state="mark")["message"]
    assert ask({**check, "directory": str(empty)}, cursors=cursors)["verdict"] == "inconclusive"
    # A program of that name that hangs, that says nothing, that says nonsense, and that sees only its own.
    programs = journals.directory.parent / "bin"
    programs.mkdir()
    real = gate._log_journal.base_environment
    for module in (gate._log_journal, sys.modules[gate._log_journal.run_bounded.__module__]):
        monkeypatch.setattr(
            module, "base_environment", lambda user: {**real(user), "PATH": f"{programs}:/usr/bin:/bin"}
        )
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for script, said in (
        ("exec sleep 30", "no answer in time"),
        ("echo nonsense", "no JSON"),
        (
            "echo 'Hint: You are currently not seeing messages from other users and the system.' >&2",
            "may not see",
        ),
        ("exit 1", "no longer in the journal"),
    ):
        (programs / "journalctl").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "journalctl").chmod(0o755)
        begun = time.monotonic()
        found = ask(journal_check(journals), 1.5, cursors=cursors)
        assert (found["verdict"], said in found["message"]) == ("inconclusive", True), found
        assert time.monotonic() - begun < 2.5
