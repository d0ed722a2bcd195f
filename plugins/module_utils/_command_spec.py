# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of a command gate as people write them, and judge what a command answered.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._bounded import Ended, plain
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import (
    compile_pattern,
    holds,
    lookup,
    number,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    COMMON,
    Common,
    choice,
    common,
    condition,
    flag,
    json_conditions,
    keys,
    mapping,
    seconds,
    strings,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

STREAMS = ("both", "stdout", "stderr")
KEYS = (
    *COMMON,
    *("command", "chdir", "exit_code", "stream", "contains", "absent", "matches", "json", "number"),
    *("max_seconds", "harmless", "retry"),
)
EXAMPLE = "{command: [python, manage.py, check]}"
# What a shell answers for a program that it may not execute, or does not find (POSIX.1-2017, XCU 2.8.2).
NOT_STARTED = (126, 127)
# What a shell would act on; without one it would be a word like any other, and the command not the one that was meant.
_EXPANSION = re.compile(r"`|\$[({A-Za-z_]")
_SHELL = re.compile(r"&&|\|\||>>|[();<>|&\n]|`|\$[({A-Za-z_]")


class Check(NamedTuple):
    """One command and what is expected of it.

    ``number`` are pairs of a pattern (None: the whole output) and a condition; ``harmless``: it changes nothing and runs in
    check mode, too; ``retry``: it runs again until it passes.
    """

    common: Common
    argv: list[str]
    chdir: str | None
    exit_code: list[int]
    stream: str
    contains: list[str]
    absent: list[str]
    matches: str | None
    json: dict[str, Any]
    number: list[tuple[str | None, Any]]
    max_seconds: float | None
    harmless: bool
    retry: bool

    @property
    def name(self) -> str:
        """Its name."""
        return self.common.name


class Judgement(NamedTuple):
    """What is ``expected``, in words; ``wrong`` and ``unknown``: what is otherwise, and what the output does not tell."""

    expected: str
    wrong: list[str]
    unknown: list[str]


def parse_check(item: Any, where: str) -> Check:
    """Return one check.

    :raises Problem: when it is not well written.
    """
    keys(item, KEYS, where, EXAMPLE)
    argv = argv_of(item.get("command"), f"{where}.command")
    if item.get("matches") is not None:
        compile_pattern(str(item["matches"]), f"{where}.matches")
    chdir = item.get("chdir")
    if chdir is not None and (not isinstance(chdir, str) or not os.path.isabs(chdir)):
        raise Problem(f"{where}.chdir must be an absolute path, found {chdir!r}.")
    return Check(
        common(item, where, shlex.join(argv)),
        argv,
        chdir,
        _codes(item.get("exit_code", 0), f"{where}.exit_code"),
        choice(item.get("stream", "both"), STREAMS, f"{where}.stream"),
        strings(item.get("contains"), f"{where}.contains"),
        strings(item.get("absent"), f"{where}.absent"),
        None if item.get("matches") is None else str(item["matches"]),
        json_conditions(item.get("json"), f"{where}.json"),
        _numbers(item.get("number"), f"{where}.number"),
        seconds(item.get("max_seconds"), f"{where}.max_seconds"),
        flag(item.get("harmless", False), f"{where}.harmless"),
        flag(item.get("retry", False), f"{where}.retry"),
    )


def argv_of(value: Any, where: str) -> list[str]:
    """Return the words of a command; a text is divided as a shell does it, but there is none."""
    if isinstance(value, str):
        try:
            found = shlex.split(value)
        except ValueError as error:
            raise Problem(f"{where} cannot be divided into words: {error}; write it as a list.") from error
        operator = shell_operator(value.strip())
        if operator:
            raise Problem(
                f"{where} has {operator!r}, but no shell runs it: put it in single quotes if it is meant literally, "
                "or write the command as a list, [sh, -c, '…'], if it needs a shell."
            )
        value = found
    if not isinstance(value, list) or not value:
        raise Problem(f"{where} must be a command, as a list of words or a text, found {value!r}.")
    words = []
    for word in value:
        if isinstance(word, (dict, list, bool)) or word is None:
            raise Problem(f"{where} must be a list of words, found {word!r} among them: put it in quotes.")
        words.append(str(word))
    if not words[0] or any("\0" in word for word in words):
        raise Problem(f"{where} must begin with a program, found {words[0]!r}.")
    return words


def shell_operator(text: str) -> str:
    """Return the first thing in *text* that a shell would act on and ``shlex.split`` would not, or ""."""
    quote = ""
    position = 0
    while position < len(text):
        letter = text[position]
        if letter == "\\" and quote != "'":
            position += 2
            continue
        found = None if quote == "'" else (_EXPANSION if quote else _SHELL).match(text, position)
        if found:
            return found.group(0)
        if letter == quote:
            quote = ""
        elif not quote and letter in "'\"":
            quote = letter
        position += 1
    return ""


def _codes(value: Any, where: str) -> list[int]:
    found = value if isinstance(value, list) else [value]
    for code in found:
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= 255:
            raise Problem(f"{where} must be exit codes from 0 to 255 such as [0, 3], found {value!r}.")
    if not found:
        raise Problem(f"{where} is an empty list: no command could pass.")
    return list(found)


def _numbers(value: Any, where: str) -> list[tuple[str | None, Any]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        return [(None, condition(value, where))]
    found: list[tuple[str | None, Any]] = []
    for pattern, expected in mapping(value, where).items():
        compile_pattern(pattern, f"{where}[{pattern!r}]")
        found.append((pattern, condition(expected, f"{where}[{pattern!r}]")))
    return found


def expected_of(check: Check) -> str:
    """Return in words what *check* expects."""
    codes = " or ".join(map(str, check.exit_code))
    found = [f"exit code {codes}"]
    found += [f"{text!r} in it" for text in check.contains]
    found += [f"no {text!r} in it" for text in check.absent]
    found += [f"a match of {check.matches!r}"] if check.matches else []
    found += [f"{path} {_wish(expected)} in its JSON" for path, expected in check.json.items()]
    for pattern, expected in check.number:
        found.append(f"a number {_wish(expected)}" + (f" after {pattern!r}" if pattern else ""))
    found += [f"at most {check.max_seconds:g} s"] if check.max_seconds else []
    return "; ".join(found)


def _wish(expected: Any) -> str:
    return expected if isinstance(expected, str) else json.dumps(expected, default=str)


def judge(check: Check, ended: Ended) -> Judgement:
    """Judge a command that has ended by itself; pure.

    Of an output that was too long to be kept nobody knows what the middle says: what is not found in the rest is unknown.
    """
    wrong: list[str] = []
    unknown: list[str] = []
    if ended.rc not in check.exit_code:
        if ended.rc in NOT_STARTED:
            unknown.append(f"exit code {ended.rc}, by which a shell says that it could not start a program")
        elif ended.rc < 0:
            wrong.append(f"it was killed by signal {-ended.rc}")
        else:
            wrong.append(f"exit code {ended.rc}")
    if check.max_seconds is not None and ended.seconds > check.max_seconds:
        wrong.append(f"it took {ended.seconds:.2f} s, more than {check.max_seconds:g} s")
    chosen = {"stdout": [ended.stdout], "stderr": [ended.stderr]}.get(
        check.stream, [ended.stdout, ended.stderr]
    )
    cut = any(output.cut for output in chosen)
    missing = unknown if cut else wrong
    lost = " in what was kept of its long output" if cut else ""
    texts = [plain(part) for output in chosen for part in output.parts()]
    missing += [f"no {part!r}{lost}" for part in check.contains if not any(part in text for text in texts)]
    present = [part for part in check.absent if any(part in text for text in texts)]
    wrong += [f"{part!r} is in it" for part in present]
    if cut and check.absent and not present:
        unknown.append("its output is too long to say that something is not in it")
    if check.matches and not any(re.search(check.matches, text, re.MULTILINE) for text in texts):
        missing.append(f"no match of {check.matches!r}{lost}")
    if check.json:
        _judge_json(check, ended, wrong, unknown)
    for pattern, expected in check.number:
        _judge_number(pattern, expected, texts, wrong, unknown)
    return Judgement(expected_of(check), wrong, unknown)


def _judge_json(check: Check, ended: Ended, wrong: list[str], unknown: list[str]) -> None:
    if ended.stdout.cut:
        unknown.append(f"its JSON is too long to be read ({ended.stdout.size} bytes)")
        return
    try:
        document = json.loads(ended.stdout.text())
    except (ValueError, RecursionError) as error:
        wrong.append(f"its standard output is no JSON ({str(error) or type(error).__name__})")
        return
    for path, expected in check.json.items():
        right, found = holds(document, path, expected)
        present, value = lookup(document, path)
        if not right and present and value is None:
            unknown.append(f"{path} is null")
        elif not right:
            wrong.append(f"{path} {found}")


def _judge_number(
    pattern: str | None, expected: Any, texts: list[str], wrong: list[str], unknown: list[str]
) -> None:
    """Judge the last number that *pattern* finds, because a summary comes last; none is no data, and never 0."""
    if pattern is None:
        found = "\n".join(texts).strip()
    else:
        matches = [match for text in texts for match in re.finditer(pattern, text, re.MULTILINE)]
        if not matches:
            unknown.append(f"no number, because nothing matches {pattern!r}")
            return
        last = matches[-1]
        found = (last.group(1) if last.re.groups else last.group(0)) or ""
    value = number(found.strip().rstrip("%").strip())
    if value is None:
        unknown.append(f"no number, but {found[:60]!r}")
    elif not holds(value, ".", expected)[0]:
        wrong.append(f"the number {value:g} is not {_wish(expected)}")
