# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a deployment: written phase by phase by the phases' own modules, read by whoever goes on.

``deployments/<id>.json``, one on each host, described in docs/internals.md. Every write replaces the whole file
by rename, so that a kill leaves the story up to the last step. What is decided from records is decided here, by
pure functions over the list that :func:`read_records` returns, newest first.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import secrets as random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    ADOPTED,
    DEPLOYMENT_ID,
    Layout,
    read_json,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._lock import kept_renewed, renew, timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._previous import live_before
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

SCHEMA = 1
MODE = 0o640
VERDICTS = ("success", "rolled_back", "abandoned", "stopped", "failed")
KINDS = ("deployment", "rollback")
# Members of `about`: the header that a host without the record starts it with.
ABOUT = (
    "kind",
    "application",
    "stage",
    "version",
    "commit",
    "release",
    "operator",
    "controller",
    "undoes",
    "instance",
    "approvals",
    "outside_window",
)
ID_TIME = "%Y%m%dT%H%M%S"
# A record is a few kilobytes. Nothing older than the last so many deployments is ever a target or pinned.
NEWEST = 200


def make_id(newest: str | None = None, now: float | None = None) -> str:
    """Return a new deployment id, later than *newest* even where the clock went back: order is by id alone."""
    moment = datetime.fromtimestamp(time.time() if now is None else now, timezone.utc)
    if newest and DEPLOYMENT_ID.match(newest):
        last = datetime.strptime(newest[:15], ID_TIME).replace(tzinfo=timezone.utc)
        moment = max(moment, last + timedelta(seconds=1))
    return f"{moment.strftime(ID_TIME)}-{random.token_hex(2)}"


def new_record(
    *,
    deployment: str,
    token: str,
    host: str,
    primary: bool,
    about: Mapping[str, Any],
    previous: Mapping[str, Any] | None = None,
    begun: str | None = None,
) -> dict[str, Any]:
    """Return a record in which nothing has happened yet, with every top-level field of the format.

    :param about: the members named in ``ABOUT``; others are left out.
    :param previous: ``{release, deployment, commit, version}`` of what is live now, None on a first deployment.
    """
    header = {key: about.get(key) for key in ABOUT}
    header["kind"] = header["kind"] or "deployment"
    # The instance that serves after success: the deployment's own, or the earlier one a rollback starts again.
    header["instance"] = header["instance"] or (deployment if header["kind"] == "deployment" else None)
    return {
        **header,
        "schema": SCHEMA,
        "id": deployment,
        "token": token,
        "host": host,
        "primary": primary,
        "begun": begun or timestamp(),
        "finished": None,
        "previous": dict(previous) if previous else None,
        "applied_before": None,
        "heads_before": {},
        "heads_after": {},
        "plan": {},
        "backup": {},
        "forecast": [],
        "traffic_taken": None,
        "phases": [],
        "failures": [],
        "decision": {},
        "verdict": None,
        "measured": {},
        "undone_by": None,
    }


def public(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return *record* without its token: for answers, which are printed and stored."""
    return None if record is None else {key: value for key, value in record.items() if key != "token"}


def plain(value: Any) -> Any:
    """Return *value* as JSON can hold it: paths, tuples and sets become texts and lists."""

    def convert(item: Any) -> Any:
        return sorted(item) if isinstance(item, (set, frozenset)) else str(item)

    return json.loads(json.dumps(value, default=convert))


def load_records(layout: Layout, limit: int = NEWEST) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return (the newest *limit* records, newest first; those that cannot be read as ``{id, message}``)."""
    good: list[dict[str, Any]] = []
    damaged: list[dict[str, str]] = []
    try:
        names = [path.stem for path in layout.deployments.iterdir() if path.suffix == ".json"]
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    for name in sorted((name for name in names if DEPLOYMENT_ID.match(name)), reverse=True)[:limit]:
        path = layout.record(name)
        reason = ""
        try:
            found = read_json(path)
            if found is None:
                continue
            if not isinstance(found, dict) or found.get("id") != name:
                reason = "it is not the record of this deployment"
            elif not isinstance(found.get("phases"), list) or "verdict" not in found:
                reason = "it has no phases or no verdict"
        except (ValueError, OSError) as error:
            reason = f"{error}"
        if reason:
            damaged.append(
                {
                    "id": name,
                    "message": f"The record {str(path)!r} cannot be read ({reason}): its deployment is no rollback "
                    "target; repair the file or move it away.",
                }
            )
        else:
            good.append(found)
    return good, damaged


def read_records(layout: Layout, limit: int = NEWEST) -> list[dict[str, Any]]:
    """Return the newest *limit* records that can be read, newest first."""
    return load_records(layout, limit)[0]


def newest_id(layout: Layout) -> str | None:
    """Return the newest deployment id that a file is named after, readable or not."""
    try:
        names = [path.stem for path in layout.deployments.iterdir() if path.suffix == ".json"]
    except OSError:
        return None
    return max((name for name in names if DEPLOYMENT_ID.match(name)), default=None)


def must_be_newest(layout: Layout, deployment: str) -> None:
    """Fence off a run that was taken over: hosts without the lock know it by a later record.

    :raises Problem: when a later deployment than *deployment* began on this host.
    """
    newest = newest_id(layout)
    if newest and newest > deployment:
        raise Problem(
            f"The deployment {newest} began on this host after {deployment}, so {deployment} was taken over and "
            "stops here: see playbooks/status.yml before anything else."
        )


def undone(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the deployments that were taken back, and are therefore never gone back to."""
    result = set()
    for record in records:
        if record.get("undone_by"):
            result.add(record["id"])
        if record.get("kind") == "rollback" and record.get("verdict") == "success":
            result.add(record.get("undoes"))
            left = (record.get("previous") or {}).get("deployment")
            # One that found the earlier instance live, because the failed one never was, left nothing behind.
            if left != record.get("instance"):
                result.add(left)
    return result - {None, "", ADOPTED}


def left_behind(records: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Return the migrations ``(app, name)`` that rollbacks left applied on purpose, because older code was proved to
    run with them: those of the level ``code``. What another end left applied was left to the next version."""
    listed = list(records)
    left = {r["id"] for r in listed if (r.get("decision") or {}).get("level") == "code"}
    undone_so = {record.get("undoes") for record in listed if record["id"] in left} - {None}
    return {
        (migration["app"], migration["name"])
        for record in listed
        if record["id"] in undone_so
        or record.get("undone_by") in left
        or (record["id"] in left and record.get("verdict") in ("rolled_back", "stopped"))
        for migration in (record.get("plan") or {}).get("migrations", [])
        if migration.get("compatible") == "yes"
    }


def instance_of(record: Mapping[str, Any], older: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the deployment whose instance served after *record*.

    :param older: the records before it, newest first: a rollback that does not name its instance started the
        newest one of its release.
    """
    if record.get("instance"):
        return record["instance"]
    if record.get("kind") != "rollback":
        return record["id"]
    for earlier in older:
        same = earlier.get("release") == record.get("release")
        if same and earlier.get("kind") != "rollback" and earlier.get("verdict") == "success":
            return earlier["id"]
    return None


def summary(record: Mapping[str, Any], deployment: str | None) -> dict[str, Any]:
    """Return ``{release, deployment, commit, version}`` of *record*, served by the instance *deployment*."""
    return {
        "release": record.get("release"),
        "deployment": deployment,
        "commit": record.get("commit"),
        "version": record.get("version"),
    }


def rollback_target(
    records: Sequence[Mapping[str, Any]],
    live_release: str | None,
    complete: Iterable[str],
    adopted: bool = False,
) -> dict[str, Any] | None:
    """Return what a rollback would go back to, ``{release, deployment, commit, version}``, or None.

    :param records: newest first.
    :param live_release: what ``current`` names; None where there is none.
    :param complete: the releases that are complete on the host.
    :param adopted: an installation was adopted; it is the target when no release is, and is named ``adopted``.
    """
    gone = undone(records)
    usable = set(complete)
    for position, record in enumerate(records):
        if record.get("verdict") != "success" or record["id"] in gone or record.get("detached"):
            continue
        if record.get("release") == live_release or record.get("release") not in usable:
            continue
        instance = instance_of(record, records[position + 1 :])
        if instance is None or instance in gone:
            continue
        return summary(record, instance)
    if adopted and live_release is not None:
        return {"release": None, "deployment": ADOPTED, "commit": None, "version": None}
    return None


def last_phase(record: Mapping[str, Any]) -> str:
    """Return the phase that *record* began last, ``begin`` before the first."""
    phases = record.get("phases") or []
    return phases[-1].get("phase") or "begin" if phases else "begin"


def interrupted(
    records: Iterable[Mapping[str, Any]],
    lock: Mapping[str, Any] | None,
    own: str | None = None,
) -> dict[str, Any] | None:
    """Return the newest deployment that began, has no verdict and is held by no living lock, or None.

    :param lock: as ``_lock.read_lock`` returns it.
    :param own: the deployment of the caller, which is not interrupted: hosts other than the primary have no lock.
    :return: ``{id, phase, begun, host, kind, release}``.
    """
    running = {own}
    if lock and (lock.get("alive") or not lock.get("expired")):
        running.add(lock.get("deployment"))
    for record in records:
        if record.get("verdict") is None and record["id"] not in running:
            return {
                "id": record["id"],
                "phase": last_phase(record),
                "begun": record.get("begun"),
                "host": record.get("host"),
                "kind": record.get("kind"),
                "release": record.get("release"),
            }
    return None


def write_record(layout: Layout, record: Mapping[str, Any]) -> None:
    """Write *record* to its file, 0640, making the directory on the first deployment."""
    layout.deployments.mkdir(mode=0o750, exist_ok=True)
    write_json(layout.record(record["id"]), plain(record), MODE)


def close_unfinished(layout: Layout, superseded_by: str) -> list[str]:
    """Give every unfinished record but *superseded_by* the verdict ``stopped``; return their ids.

    Their runs are dead: nobody else would ever finish them, and what was live then is measured anew now.
    """
    closed = []
    for record in read_records(layout):
        if record["verdict"] is None and record["id"] != superseded_by:
            reason = (
                f"It ended in phase {last_phase(record)} without a verdict, and {superseded_by} took over."
            )
            record.update(
                verdict="stopped", finished=timestamp(), decision={"level": "stop", "reason": reason}
            )
            write_record(layout, record)
            closed.append(record["id"])
    return closed


class Journal:
    """The record of one deployment on this host, open for writing; see :func:`open_journal`."""

    def __init__(self, layout: Layout | None, record: Mapping[str, Any] | None, secrets: Iterable[str]):
        self.layout = layout
        self.record = record
        self.secrets = list(secrets)

    def __enter__(self) -> Journal:
        if self.record is not None:
            self._load()
        return self

    def __exit__(self, *details: object) -> None:
        return None

    @property
    def deployment(self) -> str | None:
        """The id of the deployment, None where no journal is kept."""
        return None if self.record is None else self.record["id"]

    def _load(self) -> dict[str, Any]:
        """Return the record, made on the first phase of a host.

        :raises Problem: when it is damaged, belongs to another run, is finished on the primary, or a later
            deployment began here.
        """
        path = self.layout.record(self.record["id"])
        must_be_newest(self.layout, self.record["id"])
        try:
            found = read_json(path)
        except (ValueError, OSError) as error:
            raise Problem(
                f"The record {str(path)!r} of this deployment cannot be read ({error}): move it away and run "
                "the deployment again."
            ) from error
        if found is None:
            self.layout.require_root()
            found = new_record(
                deployment=self.record["id"],
                token=self.record["token"],
                host=self.record["host"],
                primary=bool(self.record["primary"]),
                about=self.record.get("about") or {},
                previous=live_before(self.layout, read_records(self.layout)),
            )
            write_record(self.layout, found)
            if not self.record["primary"]:
                close_unfinished(self.layout, found["id"])
        if found.get("token") != self.record["token"]:
            raise Problem(
                f"The record {str(path)!r} belongs to another run of {found.get('operator') or 'somebody'}: this run "
                "stops here; see playbooks/status.yml."
            )
        if found.get("verdict") is not None and self.record["primary"]:
            raise Problem(
                f"The deployment {self.record['id']} is finished on this host (verdict {found['verdict']!r}), so no "
                "phase can begin: start a new deployment."
            )
        if found.get("verdict") is not None:
            # The primary, which finishes last, goes on: the fleet is taken back, this host with it.
            found.update(verdict=None, finished=None)
        # Made on the controller; it comes with the next phase, so that a run that dies has told what others go on from.
        found.update(
            {name: plain(self.record[name]) for name in ("forecast", "before") if self.record.get(name)}
        )
        return found

    def update(self, **fields: Any) -> None:
        """Set top-level fields of the record, at once on the disk."""
        if self.record is None:
            return
        found = self._load()
        found.update(plain(fields))
        write_record(self.layout, found)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """Write the begin and the end of the phase *name*; what is put into the yielded dict is its result.

        On the primary the lock's lease is renewed first, and from a thread as long as the phase works. An exception
        marks the phase as failed, with its message, and goes on; so does an exit with an error code. No secret may be put
        into the result.

        :raises Problem: when the lock is no more ours, or the record is another run's.
        """
        result: dict[str, Any] = {}
        if self.record is None:
            yield result
            return
        if self.record["primary"]:
            renew(self.layout, self.record["token"], name)
        found = self._load()
        number = len(found["phases"])
        found["phases"].append(
            {
                "phase": name,
                "state": "running",
                "begun": timestamp(),
                "finished": None,
                "seconds": None,
                "result": {},
                "message": "",
            }
        )
        write_record(self.layout, found)
        begun = time.monotonic()
        try:
            with kept_renewed(self.layout, self.record["token"] if self.record["primary"] else None, name):
                yield result
        except BaseException as error:
            done = isinstance(error, SystemExit) and not error.code
            # A record that cannot be written now must not hide why the phase failed.
            with contextlib.suppress(Problem, OSError):
                self._end(
                    number, "done" if done else "failed", begun, result, "" if done else self._reason(error)
                )
            raise
        self._end(number, "done", begun, result, "")

    def _end(self, number: int, state: str, begun: float, result: Mapping[str, Any], message: str) -> None:
        found = self._load()
        found["phases"][number].update(
            state=state,
            finished=timestamp(),
            seconds=round(time.monotonic() - begun, 3),
            result=plain(result),
            message=message,
        )
        write_record(self.layout, found)

    def _reason(self, error: BaseException) -> str:
        """Return the message of *error* without the secrets, but with the names and verdicts of checks."""
        kept: list[str] = []
        if isinstance(error, Problem):
            text, kept = error.message, error.kept
        elif isinstance(error, SystemExit):
            text = "The module ended with an error."
        else:
            text = f"{type(error).__name__}: {error}"
        return redact(text, self.secrets, kept)


def open_journal(
    root: str | Path | None,
    record: Mapping[str, Any] | None,
    check_mode: bool,
    secrets: Iterable[str] = (),
) -> Journal:
    """Return the journal of the deployment that *record* names, to be used in a ``with`` statement.

    :param record: the option of that name, ``{id, token, host, primary, about}``; None, as in check mode and
        without *root*, makes a journal that writes nothing.
    :param secrets: texts to hide in the messages of failed phases.
    :raises Problem: when *record* lacks a member; on entering, as :meth:`Journal.phase`.
    """
    if record is None or root is None or check_mode:
        return Journal(None, None, ())
    missing = [key for key in ("id", "token", "host", "primary") if record.get(key) in (None, "")]
    if missing or not DEPLOYMENT_ID.match(str(record.get("id"))):
        raise Problem(
            f"The option record lacks {', '.join(missing)}: pass on what deployment_record returned as record."
            if missing
            else f"The option record has the id {record['id']!r}, expected one like 20261121T013700-ab12."
        )
    return Journal(Layout(root), record, secrets)
