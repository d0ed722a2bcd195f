# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the tasks that a record lists as due, run the command of one, and mark it: the module ``due_task``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed, installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import redact, run
from ansible_collections.runbook.deploy.plugins.module_utils._due import (
    DONE,
    FAILED,
    OPEN,
    entries_of,
    is_overdue,
    marked,
    words,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, current_release
from ansible_collections.runbook.deploy.plugins.module_utils._lock import (
    describe,
    read_lock,
    serialised,
    timestamp,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import (
    public,
    read_records,
    undone,
    write_record,
)

OPTIONS: dict[str, Any] = {
    "root": {"type": "path", "required": True},
    "deployment": {"type": "str", "default": ""},
    "task": {"type": "str", "default": ""},
    "state": {"type": "str", "choices": ["shown", "done", "open", "run"], "default": "shown"},
    "remark": {"type": "str", "default": ""},
    "operator": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 3600},
    "user": {"type": "str"},
    "environment": {"type": "str", "no_log": True},
    "settings_module": {"type": "str", "default": ""},
    "name": {"type": "str", "default": ""},
    "stage": {"type": "str", "default": ""},
}


def meant(records: Sequence[Mapping[str, Any]], deployment: str) -> Mapping[str, Any]:
    """Return the record whose tasks are meant: that of *deployment*, else of the newest that succeeded and was not undone.

    :param records: newest first.
    :raises Problem: when there is none.
    """
    gone = undone(records)
    for record in records:
        if record["id"] == deployment:
            return record
        good = record.get("kind") == "deployment" and record.get("verdict") == "success"
        if not deployment and good and record["id"] not in gone:
            return record
    raise Problem(
        f"There is no record of the deployment {deployment!r} on this host: playbooks/history.yml lists those there are."
        if deployment
        else "There is no deployment on this host that succeeded and was not taken back, so that no task is due."
    )


def perform(params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return the module's answer.

    :raises Problem: when the deployment or the task is unknown, a run holds the lock, or the task's command failed.
    """
    layout = Layout(params["root"])
    record = meant(read_records(layout), params["deployment"])
    answer: dict[str, Any] = {"changed": False, "deployment": record["id"], "output": ""}
    tasks = [dict(entry) for entry in entries_of(record)]
    failure = None
    if params["state"] != "shown":
        state, remark = {"done": DONE, "open": OPEN}.get(params["state"], DONE), params["remark"]
        before = next((entry for entry in tasks if entry.get("name") == params["task"]), None)
        marked(tasks, params["task"], state=state, by="", remark="", at="")
        if params["state"] == "run" and not check_mode:
            _free(layout)
            failure, remark, answer["output"] = _execute(layout, params, before or {}, remark)
            state = FAILED if failure else DONE
        mark = {
            "state": state,
            "by": params["operator"] or "somebody",
            "remark": remark,
            "at": timestamp(),
        }
        answer["changed"] = params["state"] == "run" or (before or {}).get("state") != state
        if answer["changed"]:
            tasks = marked(tasks, params["task"], **mark)
            record = {**record, "due": tasks}
            if not check_mode:
                record, tasks = _write(layout, record["id"], params["task"], mark)
    answer["record"] = public(record)
    answer["tasks"] = [
        {**entry, "overdue": is_overdue(entry), "words": words(entry)}
        for entry in tasks
        if isinstance(entry, Mapping)
    ]
    if failure:
        raise Problem(failure, answer.pop("output"), **answer)
    return answer


def _free(layout: Layout) -> None:
    """Refuse while a run holds the lock: it may rewrite the record.

    :raises Problem: saying who it is.
    """
    lock = read_lock(layout)
    if lock is not None and (lock["alive"] or not lock["expired"]):
        raise Problem(
            f"The deployment lock is held by {describe(lock)}: mark the task when that run has ended."
        )


def _write(
    layout: Layout, deployment: str, task: str, mark: Mapping[str, str]
) -> tuple[dict[str, Any], list]:
    """Mark the task in the record as it is now on the disk; no run can begin meanwhile."""
    with serialised(layout):
        _free(layout)
        record = dict(meant(read_records(layout), deployment))
        record["due"] = marked(entries_of(record), task, **mark)
        write_record(layout, record)
    return record, record["due"]


def _execute(
    layout: Layout, params: Mapping[str, Any], entry: Mapping[str, Any], remark: str
) -> tuple[str | None, str, str]:
    """Run the command of *entry* in the release that is live; return (why it failed or None, the remark, its output)."""
    if not entry.get("command"):
        raise Problem(
            f"The task {params['task']!r} has no command: do what it says, then mark it with -e due_done={params['task']!r}."
        )
    place = _live(layout, params)
    done = run(
        place.argv(entry["command"]),
        cwd=place.cwd,
        environment=place.variables,
        user=place.user,
        timeout=params["timeout"],
        secrets=place.secrets,
    )
    how = f"did not end within {params['timeout']} s" if done.timed_out else f"ended with exit code {done.rc}"
    said = f"its command {how} after {done.seconds:.1f} s"
    output = redact(done.tail(), place.secrets)
    if done.rc == 0 and not done.timed_out:
        return None, "; ".join(filter(None, [said, remark])), output
    return (
        f"The command of the task {params['task']!r} {how} in {str(place.cwd)!r}: it is marked as failed, and stays due; look at its "
        "output, and run it again.",
        "; ".join(filter(None, [said, remark])),
        output,
    )


def _live(layout: Layout, params: Mapping[str, Any]) -> Installed:
    """Return the release that is live on this host.

    :raises Problem: when there is none.
    """
    release = current_release(layout)
    if release is None:
        raise Problem("This host serves no release, in which the command could run: deploy one first.")
    nothing = dict.fromkeys(("commit", "version", "deployment", "environment_path", "directory"), "")
    return installed({**params, **nothing, "release": release, "record": None})
