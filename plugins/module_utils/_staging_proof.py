# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Was this commit proved on staging? ``app_staging_proof``, judged from the copies of staging's records on the controller.

Who may write to that directory is trusted: a record is held against itself, not against a signature.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    PASS,
    check_result,
    gate_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import DEPLOYMENT_ID, read_json
from ansible_collections.runbook.deploy.plugins.module_utils._lock import parse_timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import KINDS, VERDICTS
from ansible_collections.runbook.deploy.plugins.module_utils._waivers import parse_waivers, today, waive

CHECK = "staging_proof"
KEYS = ("store", "environment", "application", "require", "max_age_days")
SUCCESS, ROLLBACK = "success", "success_and_rollback"
DAY = 86400.0
# Clocks of two machines differ by less; a record from later than that is none.
SKEW = 3600.0
NEWEST = 1000


class Wanted(NamedTuple):
    """``store``: directory of the controller; ``environment``: app_stage of staging; ``max_age``: seconds, 0 for any."""

    store: str
    environment: str
    application: str
    rollback: bool
    max_age: float


def parse_proof(value: Mapping[str, Any], where: str = "app_staging_proof") -> Wanted | None:
    """Return *value* read, None where no proof is asked for.

    :raises Problem: with one sentence for the first thing that is wrong.
    """
    if not value:
        return None
    for key in value:
        if key not in KEYS:
            raise Problem(f"{where} has the unknown key {key!r}: known are {', '.join(KEYS)}.")
    texts = {"environment": "staging", "application": "", "require": SUCCESS, **value}
    for key in ("store", "environment", "application", "require"):
        if not isinstance(texts.get(key), str) or (
            key in ("store", "environment") and not texts[key].strip()
        ):
            raise Problem(f"{where}.{key} must be a text, found {texts.get(key)!r}.")
    if texts["require"] not in (SUCCESS, ROLLBACK):
        raise Problem(f"{where}.require is {texts['require']!r}, expected {SUCCESS} or {ROLLBACK}.")
    days = value.get("max_age_days", 0)
    if isinstance(days, bool) or not isinstance(days, (int, float)) or days < 0:
        raise Problem(f"{where}.max_age_days must be a number of days, or 0 for any age, found {days!r}.")
    for key in ("environment", "application"):
        if "/" in texts[key] or texts[key] in (".", ".."):
            raise Problem(
                f"{where}.{key} is {texts[key]!r}, which is no name: it is a directory below the store."
            )
    return Wanted(
        texts["store"], texts["environment"], texts["application"], texts["require"] == ROLLBACK, days * DAY
    )


def fault(document: Any, name: str, application: str, environment: str, now: float) -> str:
    """Return why *document* cannot be the record *name* of staging, a clause; "" when it can."""
    if not isinstance(document, Mapping):
        return "it is no record"
    for key, expected in (("id", name), ("application", application), ("stage", environment)):
        if document.get(key) != expected:
            return f"its {key} is {document.get(key)!r} instead of {expected!r}"
    if document.get("kind") not in KINDS:
        return f"its kind is {document.get('kind')!r}"
    if "verdict" not in document:
        return "it has no verdict"
    verdict = document["verdict"]
    if verdict is None:
        return ""
    begun, finished = parse_timestamp(document.get("begun")), parse_timestamp(document.get("finished"))
    if verdict not in VERDICTS:
        return f"its verdict is {verdict!r}"
    if begun is None or finished is None or finished < begun:
        return f"it says that it began at {document.get('begun')!r} and ended at {document.get('finished')!r}"
    if finished > now + SKEW:
        return f"it ended at {document['finished']}, which is not yet"
    if verdict == "success" and document["kind"] == "deployment":
        measured = document.get("measured")
        current = measured.get("current") if isinstance(measured, Mapping) else None
        if not isinstance(current, Mapping) or current.get("commit") != document.get("commit"):
            return "it says success, but not that its commit was measured"
    return ""


def read_copies(
    directory: Path, application: str, environment: str, now: float
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return (the records in *directory*, newest first; those that are none as (id, why)).

    :raises Problem: when the directory cannot be read.
    """
    try:
        names = [path.stem for path in directory.iterdir() if path.suffix == ".json"]
    except OSError as error:
        raise Problem(
            f"The directory {str(directory)!r} of staging's records cannot be read ({error.strerror})"
        ) from error
    good, bad = [], []
    for name in sorted((name for name in names if DEPLOYMENT_ID.match(name)), reverse=True)[:NEWEST]:
        try:
            document = read_json(directory / f"{name}.json")
            reason = fault(document, name, application, environment, now)
        except (ValueError, OSError) as error:
            document, reason = None, f"it cannot be read: {error}"
        if reason:
            bad.append((name, reason))
        else:
            good.append(document)
    return good, bad


def judge(
    records: Sequence[Mapping[str, Any]],
    bad: Sequence[tuple[str, str]],
    commit: str,
    wanted: Wanted,
    now: float,
) -> tuple[bool, str]:
    """Return (whether *commit* is proved, what was found, a clause).

    :param records: staging's, newest first; *bad*: those that are none, newest first.
    """
    tries = [
        record for record in records if record["kind"] == "deployment" and record.get("commit") == commit
    ]
    hidden = f"; the record {bad[0][0]} is none: {bad[0][1]}" if bad else ""
    if not tries:
        newest = next((one for one in records if one["kind"] == "deployment"), None)
        other = (
            f", the newest of {len(records)} records is of {str(newest.get('commit'))[:12]}" if newest else ""
        )
        return False, f"no deployment of it{other}{hidden}"
    last = tries[0]
    if last["verdict"] != SUCCESS:
        how = "has not ended" if last["verdict"] is None else f"ended with {last['verdict']}"
        return False, f"its last deployment {last['id']} {how}{hidden}"
    if bad and bad[0][0] > last["id"]:
        return False, f"a success, {last['id']}, but what came after it is not known{hidden}"
    found = f"a success, {last['id']}"
    if _old(last, wanted, now):
        return False, f"{found}, which is {_age(last, now)} old"
    if not wanted.rollback:
        return True, found
    proved = {record["id"] for record in tries if record["verdict"] == SUCCESS}
    backs = [
        record
        for record in records
        if record["kind"] == "rollback" and {str(record.get("undoes")), _left(record)} & proved
    ]
    good = [record for record in backs if record["verdict"] == SUCCESS]
    if not good:
        failed = (
            f"; the rollback {backs[0]['id']} ended with {backs[0]['verdict'] or 'nothing'}" if backs else ""
        )
        return False, f"{found}, but no rollback of it that succeeded{failed}{hidden}"
    if _old(good[0], wanted, now):
        return False, f"{found}, but its rollback {good[0]['id']} is {_age(good[0], now)} old"
    return True, f"{found}, and the rollback {good[0]['id']}"


def _left(record: Mapping[str, Any]) -> str:
    """Return the deployment that served when the rollback *record* began."""
    previous = record.get("previous")
    return str(previous.get("deployment")) if isinstance(previous, Mapping) else ""


def _old(record: Mapping[str, Any], wanted: Wanted, now: float) -> bool:
    return bool(wanted.max_age) and now - (parse_timestamp(record["finished"]) or 0.0) > wanted.max_age


def _age(record: Mapping[str, Any], now: float) -> str:
    return f"{(now - (parse_timestamp(record['finished']) or 0.0)) / DAY:.1f} days"


def perform(params: Mapping[str, Any], now: float | None = None) -> dict[str, Any]:
    """Return the gate: one check, critical unless it is waived.

    :param params: ``proof`` (app_staging_proof), ``application``, ``commit``, ``version``, ``waivers``.
    :raises Problem: when the options cannot be read.
    """
    wanted = parse_proof(params["proof"], "proof")
    if wanted is None:
        raise Problem("The option proof is empty: nothing is asked of staging; leave the task out.")
    moment = time.time() if now is None else now
    application = wanted.application or params["application"]
    directory = Path(wanted.store).expanduser() / application / wanted.environment
    begun = time.monotonic()
    try:
        good, bad = read_copies(directory, application, wanted.environment, moment)
        passed, observed = judge(good, bad, params["commit"], wanted, moment)
    except Problem as problem:
        passed, observed = False, problem.message
    age = f", at most {wanted.max_age / DAY:g} days old" if wanted.max_age else ""
    expected = f"a success{' and a rollback' if wanted.rollback else ''} on {wanted.environment}{age}"
    what = f"Commit {params['commit'][:12]} ({params['version'] or 'no version'})"
    message = (
        ""
        if passed
        else f"{what} is not proved on {wanted.environment}: expected {expected}, found {observed}, in {directory}: deploy it there"
        f"{', roll it back there, deploy it there again' if wanted.rollback else ''}, then here; or waive the check {CHECK} in app_gate_waivers."
    )
    check = check_result(
        CHECK, PASS if passed else FAIL, "critical", observed, expected, message, time.monotonic() - begun
    )
    return gate_result(waive([check], parse_waivers(params["waivers"]), today()))
