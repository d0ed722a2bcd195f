# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Feature flags as the contract describes them: where they are kept, their stages, and what a switch means. Pure.

A value is a text; YAML's true and false are the texts ``true`` and ``false``. A stage says what every flag is: one that
it does not name is off.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import nearest
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Of a store, by its kind: its keys with their types, and those that it needs.
KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "environment_file": {"path": str, "reload": str},
    "command": {"show": list, "set": list, "values": Mapping},
    "sql": {"table": str, "name_column": str, "value_column": str, "values": Mapping},
    "http": {
        "url": str,
        "method": str,
        "body": (str, Mapping, list),
        "headers": Mapping,
        "show": str,
        "read": str,
        "ca_path": str,
        "values": Mapping,
    },
}
NEEDED = {
    "environment_file": ("path",),
    "command": ("show", "set"),
    "sql": ("table", "name_column", "value_column"),
    "http": ("url", "show"),
}
FLAGS_KEYS = ("store", "flags", "stages", "all_off", "cures")
OFF = "false"
# A flag's name becomes a word of a command and a part of an address: no dash in front, nothing that needs quoting.
NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}$")
# Of an environment file it is the name of a variable (environ(7), systemd.exec(5)).
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
IDENTIFIER = re.compile(r"^[^\W\d][\w$ -]*(\.[^\W\d][\w$ -]*)?$")
METHODS = ("PUT", "POST", "PATCH")
LONGEST = 1000


class Flags(NamedTuple):
    """``app_flags``, read: ``store`` with its ``kind``, the names, each stage with the value of every flag, the value of off."""

    store: dict[str, Any]
    names: tuple[str, ...]
    stages: dict[str, dict[str, str]]
    off: str


def text_of(value: Any, where: str) -> str:
    """Return the value of a flag as a text.

    :raises Problem: for what is none, or holds what no line of a file can.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise Problem(f"{where} must be a text, a number, true or false, found {value!r}.")
    text = str(value)
    if len(text) > LONGEST or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise Problem(
            f"{where} must be one line of at most {LONGEST} characters without control characters, found {text[:60]!r}."
        )
    return text


def parse_flags(given: Mapping[str, Any], where: str = "app_flags") -> Flags | None:
    """Return ``app_flags`` read; None where it is empty.

    :raises Problem: for the first thing that cannot work, in one sentence.
    """
    if not given:
        return None
    for key in given:
        if key not in FLAGS_KEYS:
            raise Problem(f"{where} has the unknown key {key!r}{nearest(str(key), FLAGS_KEYS)}")
    store = parse_store(given.get("store"), f"{where}.store")
    names = given.get("flags")
    if not isinstance(names, (list, tuple)) or not names:
        raise Problem(f"{where}.flags must be a list of at least one name, found {names!r}.")
    pattern = VARIABLE if store["kind"] == "environment_file" else NAME
    for name in names:
        if not isinstance(name, str) or not pattern.match(name):
            kind = "name of a variable" if pattern is VARIABLE else "name"
            raise Problem(
                f"{where}.flags holds {name!r}, expected a {kind} of letters, digits and underscores."
            )
        if list(names).count(name) > 1:
            raise Problem(f"{where}.flags names {name!r} twice.")
    off = text_of(given.get("all_off", OFF), f"{where}.all_off")
    cures = given.get("cures", [])
    if not isinstance(cures, (list, tuple)) or any(not isinstance(one, str) or not one for one in cures):
        raise Problem(
            f"{where}.cures must be a list of phases (smoke_test, watch) and of names of checks, found {cures!r}."
        )
    stages = parse_stages(given.get("stages") or {}, names, off, f"{where}.stages")
    return Flags(store, tuple(names), stages, off)


def check_flags(given: Mapping[str, Any], services: Sequence[str]) -> list[str]:
    """Return what is wrong with ``app_flags``, a sentence each.

    :param services: the names of ``app_services``, one of which may be told to read its flags again.
    """
    try:
        flags = parse_flags(given)
        if flags is None:
            return []
        stored_values(flags.store)
    except Problem as problem:
        return [problem.message]
    told = flags.store.get("reload", "none")
    if told != "none" and told not in services:
        return [
            f"app_flags.store.reload is {told!r}, which is no service of app_services{nearest(told, list(services))}"
        ]
    return []


def parse_stages(
    given: Any, names: Sequence[str], off: str, where: str = "stages"
) -> dict[str, dict[str, str]]:
    """Return each stage with the value of every flag of *names*; what it leaves out is *off*.

    :raises Problem: for a flag that there is not, or two stages that no host could be told apart by.
    """
    if not isinstance(given, Mapping):
        raise Problem(f"{where} must be a mapping of stages to mappings of flags to values, found {given!r}.")
    stages: dict[str, dict[str, str]] = {}
    for stage, values in given.items():
        if not isinstance(values, Mapping):
            raise Problem(f"{where}.{stage} must be a mapping of flags to values, found {values!r}.")
        known(values, names, f"{where}.{stage}")
        whole = {
            name: text_of(values[name], f"{where}.{stage}.{name}") if name in values else off
            for name in names
        }
        for other, found in stages.items():
            if found == whole:
                raise Problem(
                    f"{where}.{stage} and {where}.{other} set the same values, so that they are one stage: remove one of them."
                )
        stages[str(stage)] = whole
    return stages


def known(values: Iterable[str], names: Sequence[str], where: str) -> None:
    """Raise a Problem for the first of *values* that is not one of *names*."""
    for name in values:
        if name not in names:
            raise Problem(f"{where} has the unknown flag {name!r}{nearest(str(name), list(names))}")


def parse_store(given: Any, where: str) -> dict[str, Any]:
    """Return where the flags are kept.

    :raises Problem: for an unknown kind or key, one that is missing, or has another type.
    """
    if not isinstance(given, Mapping) or "kind" not in given:
        raise Problem(
            f"{where} must be a mapping with kind, one of {', '.join(KEYS)}, and where that is, found {given!r}."
        )
    kind = str(given["kind"])
    if kind not in KEYS:
        raise Problem(f"{where}.kind is {kind!r}{nearest(kind, list(KEYS))}")
    for key, value in given.items():
        if key == "kind":
            continue
        if key == "token":
            raise Problem(f"{where}.token would be shown with the rest: set app_flags_token instead.")
        if key not in KEYS[kind]:
            raise Problem(f"{where} has the unknown key {key!r}{nearest(str(key), list(KEYS[kind]))}")
        if not isinstance(value, KEYS[kind][key]):
            raise Problem(f"{where}.{key} is of a type that it cannot have: found {value!r}.")
    for key in NEEDED[kind]:
        if not given.get(key):
            raise Problem(f"{where}.{key} is missing, and flags of the kind {kind} need it.")
    store = {key: value for key, value in given.items() if value not in ("", None)}
    CHECKS[kind](store, where)
    return store


def _check_file(store: Mapping[str, Any], where: str) -> None:
    if not store["path"].startswith("/") or store["path"].endswith("/"):
        raise Problem(f"{where}.path must be the absolute path of a file, found {store['path']!r}.")


def _check_command(store: Mapping[str, Any], where: str) -> None:
    for key in ("show", "set"):
        if not all(isinstance(word, str) and word for word in store[key]):
            raise Problem(f"{where}.{key} must be a list of words that are texts, found {store[key]!r}.")
    words = " ".join(store["set"])
    if "{pairs}" not in store["set"] and not ("{name}" in words and "{value}" in words):
        raise Problem(
            f"{where}.set must hold {{name}} and {{value}}, or {{pairs}} as a word of its own for all flags as name=value, "
            f"found {store['set']!r}."
        )


def _check_sql(store: Mapping[str, Any], where: str) -> None:
    for key in ("table", "name_column", "value_column"):
        if not IDENTIFIER.match(store[key]) or (key != "table" and "." in store[key]):
            raise Problem(f"{where}.{key} must be a name as the database has it, found {store[key]!r}.")


def _check_http(store: Mapping[str, Any], where: str) -> None:
    for key in ("url", "show"):
        if not re.match(r"^https?://[^/\s]+", store[key]):
            raise Problem(f"{where}.{key} must be an address with http:// or https://, found {store[key]!r}.")
    method = store.get("method", METHODS[0])
    if method not in METHODS:
        raise Problem(f"{where}.method must be one of {', '.join(METHODS)}, found {method!r}.")
    whole = f"{store['url']} {store.get('body', '')}"
    if "{name}" not in whole or "{value}" not in whole:
        raise Problem(
            f"{where} says neither in url nor in body what is switched: put {{name}} and {{value}} there."
        )
    if "{name}" not in store["show"] and "{name}" not in store.get("read", ""):
        raise Problem(
            f"{where} does not say which flag is read: put {{name}} into show, or into read, a path in the answer's JSON."
        )


CHECKS = {"environment_file": _check_file, "command": _check_command, "sql": _check_sql, "http": _check_http}


def wanted_values(
    flags: Flags, *, stage: str | None = None, values: Mapping[str, Any] | None = None, off: bool = False
) -> dict[str, str]:
    """Return what the flags are to be: all of a stage, all off, or those of *values* alone.

    :raises Problem: for a stage or a flag that there is not, or not exactly one of the three.
    """
    if sum((bool(stage), bool(values), off)) != 1:
        raise Problem(
            "A switch needs exactly one of a stage (-e flags_stage=), flags with values (-e '{\"flags_set\": {}}') and all off "
            "(--tags off)."
        )
    if off:
        return dict.fromkeys(flags.names, flags.off)
    if stage:
        if stage not in flags.stages:
            if not flags.stages:
                raise Problem(f"There is no stage {stage!r}: app_flags.stages is empty.")
            raise Problem(f"There is no stage {stage!r}{nearest(stage, list(flags.stages))}")
        return dict(flags.stages[stage])
    known(values or {}, flags.names, "flags_set")
    return {name: text_of(value, f"flags_set.{name}") for name, value in (values or {}).items()}


def stage_of(flags: Flags, found: Mapping[str, str | None]) -> str | None:
    """Return the stage that the values *found* are, None where they are none."""
    return next((stage for stage, values in flags.stages.items() if values == dict(found)), None)


def all_off(flags: Flags, found: Mapping[str, str | None]) -> bool:
    """Return whether every flag is off."""
    return all(found.get(name) == flags.off for name in flags.names)


def shown(value: str | None) -> str:
    """Return *value* for a message or a table; a flag that is nowhere is a dash."""
    return "-" if value is None else value or '""'


def as_lines(values: Mapping[str, str | None]) -> str:
    """Return *values* as the lines of a difference."""
    return "".join(f"{name}={shown(value)}\n" for name, value in values.items())


def stored_values(store: Mapping[str, Any], where: str = "app_flags.store") -> dict[str, Any]:
    """Return what a store keeps for a value, where that is something else; JSON's own true and false with http.

    :raises Problem: when two values are kept as the same thing.
    """
    given = {text_of(key, f"{where}.values"): value for key, value in (store.get("values") or {}).items()}
    kept = {**({"true": True, "false": False} if store["kind"] == "http" else {}), **given}
    seen: dict[str, str] = {}
    for value, thing in kept.items():
        text = text_of(thing, f"{where}.values.{value}")
        if seen.setdefault(text, value) != value:
            raise Problem(
                f"{where}.values keeps {value!r} and {seen[text]!r} as the same {text!r}: they could not be told apart."
            )
    return kept
