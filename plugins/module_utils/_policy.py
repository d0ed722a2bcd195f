# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table that says which rollback is the least that helps, and what no table may ask for. Pure.

A row is ``{name, when, level, because}``; the first whose conditions all hold decides. The facts that conditions are about
are those of ``FACTS``. What would do harm is refused by :func:`refusal`, whatever a table says.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import nearest

JUDGED = ("yes", "no", "unknown")
EITHER = (True, False)
# Every fact with the values that it can have; docs/operations.md says what they mean.
FACTS: dict[str, tuple[Any, ...]] = {
    "answering": ("all", "some", "none"),
    "migrations": ("none", "applied", "partial", "unknown"),
    "serving": EITHER,
    "target": EITHER,
    "traffic": EITHER,
    "compatible": JUDGED,
    "reversible": JUDGED,
    "destructive": JUDGED,
    "backup": EITHER,
    "consent": EITHER,
    "hidden": EITHER,
    "flags": EITHER,
}
# From the least to the most.
LEVELS = ("abandon", "flags", "code", "migrations", "restore", "stop")
ROW_KEYS = ("name", "when", "level", "because")
# What `because` may name in braces; _decision.py says it in words.
WORDS = (
    "names",
    "part",
    "place",
    "first",
    "doubt",
    "unknown",
    "backup",
    "untouched",
    "compatible",
    "reversible",
    "destructive",
)
_CANNOT = (
    "{names} cannot be left (compatible: {compatible}) and cannot be reversed without loss (reversible: {reversible}, "
    "destructive: {destructive})"
)

# The same stands in roles/rollback/defaults/main.yml, where operators read it.
DEFAULT: tuple[dict[str, Any], ...] = (
    {
        "name": "no host answers",
        "when": {"answering": "none"},
        "level": "stop",
        "because": "No host answers ({unknown}): nobody knows what is live, and a person has to look.",
    },
    {
        "name": "the database does not say what is applied",
        "when": {"migrations": "unknown"},
        "level": "stop",
        "because": "{doubt}: a person has to look.",
    },
    {
        "name": "part of a migration, and nothing served before",
        "when": {"migrations": "partial", "target": False},
        "level": "abandon",
        "because": "Nothing served before; {part}: complete or undo it before the next attempt.",
    },
    {
        "name": "part of a migration that the old code runs with",
        "when": {"migrations": "partial", "compatible": "yes"},
        "level": "stop",
        "because": "{part}; the old code runs with that: a person has to complete or undo it before the next deployment.",
    },
    {
        "name": "part of a migration, and nothing written since",
        "when": {"migrations": "partial", "backup": True, "traffic": False, "hidden": False},
        "level": "restore",
        "because": "{part}, with which the old code is not proved to run: backup {backup} is restored, if that loses no writes.",
    },
    {
        "name": "part of a migration",
        "when": {"migrations": "partial"},
        "level": "stop",
        "because": "{part}, with which the old code is not proved to run: a person has to decide.",
    },
    {
        "name": "nothing live was changed",
        "when": {"serving": False, "migrations": "none"},
        "level": "abandon",
        "because": "{untouched}",
    },
    {
        "name": "features that can be switched off",
        "when": {"flags": True},
        "level": "flags",
        "because": "What failed is cured by switching the features off, as app_flags says: the release stays, if it then passes.",
    },
    {"name": "nothing served before", "when": {"target": False}, "level": "abandon", "because": "{first}"},
    {
        "name": "no migration",
        "when": {"migrations": "none"},
        "level": "code",
        "because": "No migration was applied: {place} the release before.",
    },
    {
        "name": "a silent host may serve the new release",
        "when": {"hidden": True, "compatible": ["no", "unknown"]},
        "level": "stop",
        "because": "{unknown} may serve the new release, which needs {names}, and the release before is not "
        "proved to run with that: a person has to look at that host first.",
    },
    {
        "name": "never live, and reversible without loss",
        "when": {"serving": False, "traffic": False, "reversible": "yes", "destructive": "no"},
        "level": "migrations",
        "because": "The new release never took traffic, and {names} can be reversed without loss: the database goes back to where it was.",
    },
    {
        "name": "the old code runs with it",
        "when": {"compatible": "yes"},
        "level": "code",
        "because": "The old code runs with what was applied ({names}): {place} the release before, the schema stays.",
    },
    {
        "name": "reversible without loss",
        "when": {"reversible": "yes", "destructive": "no"},
        "level": "migrations",
        "because": "The old code is not proved to run with {names} (compatible: {compatible}), and each can be reversed: they are undone, "
        "then the code.",
    },
    {
        "name": "no backup",
        "when": {"backup": False},
        "level": "stop",
        "because": _CANNOT + ", and there is no backup to restore: a person has to decide.",
    },
    {
        # Until the new release took traffic the old one served: what it wrote is counted again by the restore itself.
        "name": "no write of the new release",
        "when": {"traffic": False},
        "level": "restore",
        "because": _CANNOT
        + ": backup {backup} is restored, if that loses no writes or their loss was accepted.",
    },
    {
        "name": "the loss of writes was accepted",
        "when": {"consent": True},
        "level": "restore",
        "because": _CANNOT
        + ": backup {backup} is restored, if that loses no writes or their loss was accepted.",
    },
    {
        "name": "writes would be lost",
        "when": {},
        "level": "stop",
        "because": _CANNOT
        + ", and a restore of backup {backup} would lose what was written since: accept that with -e rollback_consent=true, "
        "or repair by hand.",
    },
)


def fits(row: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Say whether all conditions of *row* hold; a list of values is one of them."""
    for fact, wanted in (row.get("when") or {}).items():
        values = wanted if isinstance(wanted, (list, tuple)) else (wanted,)
        if facts[fact] not in values:
            return False
    return True


def choose(policy: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the first row of *policy* that fits *facts*, and why it is refused, "" where it is not.

    A refused row, and a table of which none fits, become `stop`.
    """
    row = next((one for one in policy if fits(one, facts)), None)
    if row is None:
        why = "no row of app_rollback_policy fits: a person has to decide"
        return {"name": "", "level": "stop", "because": ""}, why
    why = refusal(row["level"], facts)
    if why:
        return {
            **row,
            "level": "stop",
        }, f"app_rollback_policy asks for {row['level']} ({row['name']}), but {why}"
    return dict(row), ""


def refusal(level: str, facts: Mapping[str, Any]) -> str:
    """Return why *level* would do harm where *facts* are so, in half a sentence; "" where it is safe.

    These hold for every table: never the old code with what it is not proved to run with, no loss of writes without
    consent, nothing on a guess, and no restore where less helps.
    """
    if level == "stop":
        return ""
    if facts["answering"] == "none":
        return "no host answers"
    if facts["migrations"] == "unknown":
        return "nobody knows which migrations are applied"
    changed = facts["serving"] or facts["migrations"] != "none"
    if level == "abandon":
        return (
            "what is live was changed, and there is a release to go back to"
            if changed and facts["target"]
            else ""
        )
    if level == "flags":
        if facts["migrations"] == "partial":
            return "part of a failed migration remains"
        return "" if facts["flags"] else "app_flags does not say that it cures what failed"
    if not facts["target"]:
        return "there is no release to go back to"
    hidden = facts["hidden"] and facts["compatible"] != "yes"
    if hidden and level != "code":
        return "a host that does not answer may serve the new release"
    lossless = facts["reversible"] == "yes" and facts["destructive"] == "no"
    if level == "code":
        if facts["migrations"] == "partial":
            return "part of a failed migration remains"
        if facts["compatible"] != "yes":
            return (
                f"the old code is not proved to run with what was applied (compatible: {facts['compatible']})"
            )
        return ""
    if level == "migrations":
        if facts["migrations"] != "applied":
            return "there is no whole migration to reverse"
        if facts["reversible"] != "yes":
            return f"what was applied cannot be reversed (reversible: {facts['reversible']})"
        return (
            ""
            if lossless or facts["consent"]
            else "reversing what was applied loses data, and nobody accepted that"
        )
    if not facts["backup"]:
        return "there is no backup to restore"
    if facts["traffic"] and not facts["consent"]:
        return "a restore would lose what was written since the backup, and nobody accepted that"
    if facts["migrations"] == "none" or (
        facts["migrations"] == "applied" and (facts["compatible"] == "yes" or lossless)
    ):
        return "less helps"
    return ""


def every_input() -> Iterator[dict[str, Any]]:
    """Yield all facts that can be together, each once."""
    judged = list(itertools.product(JUDGED, repeat=3))
    ours = [(name, marks) for name in ("applied", "partial") for marks in judged]
    ours += [(name, ("yes", "yes", "no")) for name in ("none", "unknown")]
    for (migrations, marks), answering, *rest in itertools.product(ours, FACTS["answering"], *[EITHER] * 7):
        serving, target, traffic, backup, consent, hidden, flags = rest
        facts = {
            "answering": answering,
            "migrations": migrations,
            "serving": serving,
            "target": target,
            "traffic": traffic,
            **dict(zip(("compatible", "reversible", "destructive"), marks)),
            "backup": backup,
            "consent": consent,
            "hidden": hidden,
            "flags": flags,
        }
        if possible(facts):
            yield facts


def possible(facts: Mapping[str, Any]) -> bool:
    """Say whether *facts* can be together: of nothing nothing is judged, and a host that answers is not hidden."""
    judged = (facts["compatible"], facts["reversible"], facts["destructive"])
    if facts["migrations"] in ("none", "unknown") and judged != ("yes", "yes", "no"):
        return False
    if facts["answering"] == "all" and facts["hidden"]:
        return False
    if facts["answering"] == "none" and facts["serving"]:
        return False
    # A feature is only to blame where every host serves the new release, with migrations that are whole.
    return not facts["flags"] or (
        facts["answering"] == "all" and facts["serving"] and facts["migrations"] in ("none", "applied")
    )


def check_policy(given: Any, where: str = "app_rollback_policy") -> list[str]:
    """Return what is wrong with a table, a sentence each: rows that cannot be read, that would do harm, that no input reaches.

    :param given: the rows; an empty list stands for the collection's own table.
    """
    if not isinstance(given, (list, tuple)):
        return [f"{where} must be a list of rows with name, when and level, found {given!r}."]
    if not given or list(given) == list(DEFAULT):
        # A test looks at that one.
        return []
    errors = [error for index, row in enumerate(given) for error in _check_row(row, f"{where}[{index}]")]
    return errors or judge_policy(given, where)


def judge_policy(given: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Return what readable rows would do that must not be, over every input, a sentence each."""
    unsafe: dict[int, str] = {}
    reached, lost = set(), None
    for facts in every_input():
        index = next((i for i, row in enumerate(given) if fits(row, facts)), None)
        if index is None:
            lost = lost or facts
            continue
        reached.add(index)
        if index not in unsafe and refusal(given[index]["level"], facts):
            unsafe[index] = f"{refusal(given[index]['level'], facts)}, where {_said(facts, given[index])}"
    errors = [
        f"{where}[{index}] ({given[index]['name']}) asks for {given[index]['level']} where it would do harm: {why}. Add conditions, or "
        "rows before it that decide this."
        for index, why in sorted(unsafe.items())
    ]
    errors += [
        f"{where}[{index}] ({row['name']}) is never reached: the rows before it decide all that it could; remove it, or move it up."
        for index, row in enumerate(given)
        if index not in reached
    ]
    if lost:
        errors.append(
            f"{where} has no row for {_said(lost, {})}: end it with {{name: anything else, when: {{}}, level: stop}}."
        )
    return errors


def _said(facts: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return *facts* in words, without those that the row names itself."""
    known = row.get("when") or {}
    return ", ".join(f"{fact} is {str(value).lower()}" for fact, value in facts.items() if fact not in known)


def _check_row(row: Any, where: str) -> list[str]:
    """Return what cannot be read of one row."""
    if not isinstance(row, Mapping):
        return [f"{where} must be a mapping with name, when and level, found {row!r}."]
    errors = [
        f"{where} has the unknown key {key!r}{nearest(str(key), ROW_KEYS)}"
        for key in row
        if key not in ROW_KEYS
    ]
    if not isinstance(row.get("name"), str) or not row["name"].strip():
        errors.append(f"{where} has no name: it is what the decision is known by.")
    if row.get("level") not in LEVELS:
        errors.append(f"{where}.level is {row.get('level')!r}, expected one of {', '.join(LEVELS)}.")
    because = row.get("because", "")
    if not isinstance(because, str):
        errors.append(f"{where}.because must be a text, found {because!r}.")
    else:
        errors += _check_because(because, where)
    when = row.get("when", {})
    if not isinstance(when, Mapping):
        return [*errors, f"{where}.when must be a mapping of facts to values, found {when!r}."]
    for fact, wanted in when.items():
        if fact not in FACTS:
            errors.append(f"{where}.when has the unknown fact {fact!r}{nearest(str(fact), FACTS)}")
            continue
        values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        # In YAML 1.1 yes and no without quotes are true and false; 1 is none of them.
        if not values or any(not any(type(v) is type(f) and v == f for f in FACTS[fact]) for v in values):
            quoted = " Write 'yes' and 'no' in quotes." if FACTS[fact] == JUDGED else ""
            said = ", ".join(str(value).lower() for value in FACTS[fact])
            errors.append(f"{where}.when.{fact} is {wanted!r}, expected one of {said}.{quoted}")
    return errors


def _check_because(text: str, where: str) -> list[str]:
    """Return what is wrong with the words in braces of *text*."""
    try:
        fields = [
            field for _text, field, _spec, _conversion in string.Formatter().parse(text) if field is not None
        ]
    except ValueError as error:
        return [f"{where}.because cannot be read ({error}): write a brace that is meant as one twice."]
    return [
        f"{where}.because names {{{field}}}, expected one of {', '.join(WORDS)}."
        for field in fields
        if field not in WORDS
    ]


def check_absent(given: Sequence[Any], url: str) -> list[str]:
    """Return what is wrong with ``app_rollback_absent``, a sentence each; paths are those of *url*."""
    errors = []
    for index, address in enumerate(given):
        where = f"app_rollback_absent[{index}]"
        if not isinstance(address, str) or not address.startswith(("/", "http://", "https://")):
            errors.append(f"{where} must be a path such as /new/ or an address, found {address!r}.")
        elif not url:
            errors.append(f"{where} is {address!r}, but without app_url nobody can be asked: give app_url.")
    return errors
