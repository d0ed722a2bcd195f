# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of an SQL gate as people write them, and judge what a database answered.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._conditions import (
    holds,
    number,
    parse_condition,
    shown,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    COMMON,
    Common,
    common,
    condition,
    flag,
    keys,
    nearest,
    seconds,
    strings,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._sql_session import (
    ROWS,
    Answer,
    require_one_reading,
)

# What a check is about, and what can be expected of it.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "query": ("value", "column", "rows", "contains", "absent"),
    "table": ("rows", "columns", "indexes", "index"),
    "index": (),
    "connections": (),
    "pool": (),
    "slow_queries": ("longer_than",),
    "reachable": (),
}
# What only a server has.
SERVERS_ONLY = ("connections", "pool", "slow_queries")
EXAMPLE = "{query: SELECT count(*) FROM orders, value: '> 0'}"
SLOW = 5.0
# Rows of an answer, in messages.
SHOWN_ROWS = 5
_CODE = re.compile(r"^\s*-?0\d")
ORDERS = ("<", "<=", ">", ">=")


class Check(NamedTuple):
    """One question: its subject, the subject's value, what is expected of it, and the seconds that it may take."""

    common: Common
    subject: str
    value: Any
    expects: dict[str, Any]
    max_seconds: float | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.common.name


class Judgement(NamedTuple):
    """What was ``observed``, what of it is ``wrong``, and what is ``unknown`` because there is no data; in words."""

    observed: str
    wrong: list[str]
    unknown: list[str]


def parse_check(item: Any, where: str, engine: str | None = None) -> Check:
    """Return one check.

    :param engine: the database's; None where it is not known yet, so that what only one engine takes is not judged.
    :raises Problem: when it is not well written.
    """
    every = (*COMMON, "max_seconds")
    if not isinstance(item, Mapping):
        keys(item, (), where, EXAMPLE)
    # "index" beside a table is what is expected of the table.
    named = [key for key in item if key in SUBJECTS and not (key == "index" and "table" in item)]
    if len(named) != 1:
        unknown = next((str(key) for key in item if key not in (*SUBJECTS, *every)), "")
        hint = (
            nearest(unknown, list(SUBJECTS))
            if unknown and not named
            else f": expected one of {', '.join(SUBJECTS)}."
        )
        raise Problem(f"{where} has {len(named)} subjects{hint}")
    subject = named[0]
    keys(item, (*every, subject, *SUBJECTS[subject]), where, EXAMPLE)
    if engine == "sqlite" and subject in SERVERS_ONLY:
        raise Problem(f"{where}.{subject}: SQLite is a file and has no server with connections.")
    value = _subject(subject, item[subject], f"{where}.{subject}", engine)
    expects = {
        key: _expectation(subject, key, item[key], f"{where}.{key}")
        for key in SUBJECTS[subject]
        if key in item and (item[key] is not None or key == "value")
    }
    if subject == "query" and not set(expects) - {"column"}:
        raise Problem(f"{where} expects nothing: add value, rows, contains or absent.")
    if "column" in expects and "value" not in expects:
        raise Problem(f"{where} names a column, but no value: add value.")
    text = " ".join(str(item[subject]).split())
    name = f"{subject} {text[:57] + '…' if len(text) > 58 else text}"
    return Check(
        common(item, where, "reachable" if subject == "reachable" else name),
        subject,
        value,
        expects,
        seconds(item.get("max_seconds"), f"{where}.max_seconds"),
    )


def _subject(subject: str, value: Any, where: str, engine: str | None) -> Any:
    if subject == "reachable":
        if not flag(value, where):
            raise Problem(f"{where} must be true: a gate does not prove that a database is away.")
        return True
    if subject in SERVERS_ONLY:
        return ordered(value, where)
    if not isinstance(value, str) or not value.strip():
        raise Problem(f"{where} must be a text, found {value!r}.")
    if subject == "query":
        return require_one_reading(value, engine, where)
    return value.strip()


def _expectation(subject: str, key: str, value: Any, where: str) -> Any:
    if key in ("rows", "indexes"):
        return ordered(value, where)
    if key in ("contains", "absent", "columns", "index"):
        found = strings(value, where)
        if not found:
            raise Problem(f"{where} is an empty list: nothing would be expected.")
        return found
    if key == "longer_than":
        return seconds(value, where)
    if key == "column":
        if not isinstance(value, str) or not value:
            raise Problem(f"{where} must be the name of a column, found {value!r}.")
        return value
    # YAML's null is what SQL calls so.
    return "absent" if value is None else condition(value, where)


def ordered(value: Any, where: str) -> Any:
    """Return a condition on a number: a number, or a text such as ``< 5``.

    :raises Problem: for any other.
    """
    found = condition(value, where)
    read = parse_condition(found, where)
    if read.length or read.operator not in (*ORDERS, "==", "!=", "is") or number(read.operand) is None:
        raise Problem(f"{where} must be a number or a condition such as '< 5', found {value!r}.")
    return found


def wish(expected: Any) -> str:
    """Return *expected* in words."""
    return expected if isinstance(expected, str) else shown(expected)


def expected_of(check: Check) -> str:
    """Return in words what *check* expects."""
    found: list[str] = []
    if check.subject == "table":
        found.append("it is there")
    elif check.subject == "index":
        found.append("it is there and valid")
    elif check.subject == "reachable":
        found.append("an answer")
    elif check.subject in SERVERS_ONLY:
        found.append(f"{wish(check.value)}{' %' if check.subject == 'pool' else ''}")
    words = {"contains": "containing", "absent": "without", "columns": "the columns", "index": "the index"}
    for key, value in check.expects.items():
        if key == "column":
            continue
        if key == "longer_than":
            found.append(f"longer than {value:g} s")
        elif key == "value":
            found.append(f"{check.expects.get('column', 'value')} {wish(value)}")
        elif isinstance(value, list):
            found.append(f"{words[key]} {', '.join(map(repr, value))}")
        else:
            found.append(f"{key} {wish(value)}")
    found += [f"at most {check.max_seconds:g} s"] if check.max_seconds else []
    return "; ".join(found)


def described(answer: Answer) -> str:
    """Return *answer* in words, with its first rows."""
    many = f"more than {ROWS}" if answer.more else str(len(answer.rows))
    lines = [f"{many} row{'' if many == '1' else 's'} in {answer.seconds:.2f} s"]
    for row in answer.rows[:SHOWN_ROWS]:
        lines.append(", ".join(f"{name}={shown(value)}" for name, value in zip(answer.columns, row)))
    if len(answer.rows) > SHOWN_ROWS:
        lines.append("…")
    return "\n".join(lines)


def judge_query(check: Check, answer: Answer, engine: str) -> Judgement:
    """Judge the answer to a query of the operator's; pure.

    ``value`` must be true of every row. No row, and NULL, are no data, unless just that is expected.
    """
    wrong: list[str] = []
    unknown: list[str] = []
    expects = check.expects
    if "rows" in expects:
        _judge_rows(expects["rows"], answer, wrong, unknown)
    elif not answer.rows and expects.get("value") != "absent":
        unknown.append("there is no row")
    if "value" in expects and answer.rows:
        _judge_value(expects, answer, engine, wrong, unknown)
    texts = [str(value) for row in answer.rows for value in row if value is not None]
    for text in expects.get("contains", []):
        if answer.rows and not any(text in found for found in texts):
            (unknown if answer.more else wrong).append(f"{text!r} is not in it")
        elif not answer.rows and "rows" in expects:
            wrong.append(f"{text!r} is not in it")
    for text in expects.get("absent", []):
        if any(text in found for found in texts):
            wrong.append(f"{text!r} is in it")
        elif answer.more:
            unknown.append(f"there are more rows than the {ROWS} that were read")
    return Judgement(described(answer), wrong, unknown)


def _judge_rows(expected: Any, answer: Answer, wrong: list[str], unknown: list[str]) -> None:
    """Judge the number of rows; of more than were read only the least is known."""
    count = len(answer.rows)
    if not answer.more:
        if not holds(count, ".", expected)[0]:
            wrong.append(f"there are {count} rows")
        return
    # More than were read: whatever is true of the next two numbers, and not of a far one, depends on how many.
    tries = {holds(found, ".", expected)[0] for found in (ROWS + 1, ROWS + 2, 10**15)}
    read = parse_condition(expected, "rows")
    operand = number(read.operand) or 0.0
    if len(tries) > 1 or (read.operator in ("==", "is", "!=") and operand > ROWS):
        unknown.append(f"there are more than the {ROWS} rows that were read: let the query count them")
    elif tries == {False}:
        wrong.append(f"there are more than {ROWS} rows")


def _judge_value(
    expects: Mapping[str, Any], answer: Answer, engine: str, wrong: list[str], unknown: list[str]
) -> None:
    column = expects.get("column")
    if column is not None and column not in answer.columns:
        wrong.append(f"there is no column {column!r}, only {', '.join(answer.columns)}")
        return
    place = answer.columns.index(column) if column is not None else 0
    expected = spelled(expects["value"], engine)
    called = repr(column) if column is not None else "the value"
    for line, row in enumerate(answer.rows, 1):
        value = row[place] if place < len(row) else None
        of_row = f" in row {line}" if len(answer.rows) > 1 else ""
        if value is None:
            if expected != "absent":
                unknown.append(f"{called}{of_row} is NULL")
                return
        elif expected == "absent":
            wrong.append(f"{called}{of_row} is {shown(value)}")
            return
        elif not_finite(value) and parse_condition(expected, "value").operator in ORDERS:
            unknown.append(f"{called}{of_row} is {value}, which is no number")
            return
        elif not holds(numeric(value, expected), ".", expected)[0]:
            wrong.append(f"{called}{of_row} is {shown(value)}")
            return
    if answer.more:
        unknown.append(f"there are more rows than the {ROWS} that were read")


def spelled(expected: Any, engine: str) -> Any:
    """Return true and false as *engine* spells them in an answer: ``t`` and ``f``, or 1 and 0."""
    if not isinstance(expected, bool):
        return expected
    return ("t" if expected else "f") if engine == "postgresql" else int(expected)


def numeric(value: Any, expected: Any) -> Any:
    """Return *value* as a number where *expected* compares it with one; clients answer all in texts, such as ``4.00``.

    A text such as ``007`` is no number but a code.
    """
    if not isinstance(value, str) or _CODE.match(value) or number(value) is None:
        return value
    read = parse_condition(expected, "value")
    return number(value) if number(read.operand) is not None and not read.length else value


def not_finite(value: Any) -> bool:
    """Return whether *value* is a number that compares with nothing: NaN or an infinity."""
    try:
        return not isinstance(value, bool) and not math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def judge_table(check: Check, facts: Answer, count: int | None) -> Judgement:
    """Judge a table by what the catalogue says of it, rows of ``kind, name, detail``; *count* is the number of its rows."""
    found: dict[str, dict[str, str]] = {"table": {}, "column": {}, "index": {}}
    for kind, name, detail in facts.rows:
        found[kind][str(name)] = str(detail)
    if not found["table"]:
        return Judgement("there is no such table", ["there is none that this user may see"], [])
    valid = [name for name, detail in found["index"].items() if detail != "invalid"]
    observed = [f"{len(found['column'])} columns", f"{len(valid)} indexes"]
    observed += [f"{count} rows"] if count is not None else []
    wrong: list[str] = []
    names = list(found["column"])
    missing = [name for name in check.expects.get("columns", []) if name not in names]
    if missing:
        wrong.append(f"it has no column {', '.join(missing)}, only {', '.join(names[:30])}")
    for name in check.expects.get("index", []):
        if name not in valid:
            wrong.append(f"its index {name} is {'invalid' if name in found['index'] else 'not there'}")
    if "indexes" in check.expects and not holds(len(valid), ".", check.expects["indexes"])[0]:
        broken = sorted(set(found["index"]) - set(valid))
        invalid = f", and {', '.join(broken)} invalid" if broken else ""
        wrong.append(f"it has {len(valid)} indexes ({', '.join(sorted(valid)[:20]) or 'none'}{invalid})")
    if count is not None and not holds(count, ".", check.expects["rows"])[0]:
        wrong.append(f"it has {count} rows")
    return Judgement(", ".join(observed), wrong, [])


def judge_index(answer: Answer) -> Judgement:
    """Judge an index by what the catalogue says of it, rows of ``table, detail``."""
    if not answer.rows:
        return Judgement("there is no such index", ["there is none"], [])
    on = ", ".join(str(row[0]) for row in answer.rows)
    if any(row[1] == "invalid" for row in answer.rows):
        return Judgement(f"invalid, on {on}", ["it is invalid: REINDEX it, or drop and make it again"], [])
    return Judgement(f"on {on}", [], [])


def judge_measure(check: Check, value: float | None, told: str, hidden: int = 0) -> Judgement:
    """Judge a number that the server told of itself.

    :param told: it in words; :param hidden: sessions of which this user may not see what they do.
    """
    if value is None:
        return Judgement(told, [], ["the server does not tell it"])
    wrong = [] if holds(value, ".", check.value)[0] else [told]
    unknown = []
    if hidden > 0:
        unknown.append(
            f"this user may not see what {hidden} other sessions do: grant it pg_read_all_stats (MySQL: PROCESS)"
        )
    return Judgement(told, wrong, unknown)
