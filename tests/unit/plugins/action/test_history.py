# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Past deployments, from real files of records on several hosts: some broken, some another application's."""

from __future__ import annotations

import json

import pytest
from action_tools import act
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.action import deployment_history, due_report
from ansible_collections.runbook.deploy.plugins.action.feature_flags_report import keep
from ansible_collections.runbook.deploy.plugins.module_utils._due import due_of
from ansible_collections.runbook.deploy.plugins.module_utils._history import merged, note_of, one, row
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._record import (
    load_records,
    new_record,
    public,
    write_record,
)

IDS = [f"2026112{day}T020000-000{day}" for day in range(5)]


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    lines = []
    monkeypatch.setattr(Display, "display", lambda self, text, **options: lines.append(text))
    monkeypatch.setattr(Display, "warning", lambda self, text, **options: lines.append(f"warning: {text}"))
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(args=()))
    return lines


@pytest.fixture
def hosts(tmp_path):
    """Three deployments on two hosts."""
    layouts = {}
    for name in ("web1", "web2"):
        (tmp_path / name).mkdir()
        layouts[name] = Layout(tmp_path / name)
        for number, version in enumerate(("v1", "v2", "v3")):
            write(layouts[name], IDS[number], name, version)
    return layouts


def write(layout, identifier, host, version="v1", **changes):
    about = {
        "kind": "deployment",
        "application": "shop",
        "stage": "production",
        "version": version,
        "commit": version[-1] * 40,
        "operator": "ann",
    }
    made = new_record(
        deployment=identifier,
        token="secret-token",
        host=host,
        primary=host == "web1",
        about=about,
        begun="2026-11-21T02:00:00Z",
    )
    write_record(layout, {**made, "verdict": "success", "finished": "2026-11-21T02:01:30Z", **changes})


def answers(hosts, limit=20):
    """What the module answers on each host, without the module."""
    found = {}
    for host, layout in hosts.items():
        records, damaged = load_records(layout, limit)
        found[host] = {"records": [public(record) for record in records], "damaged": damaged}
    return found


def show(hosts, **changes):
    facts = {"application": "shop", "stage": "production", "primary": "web1", "answers": answers(hosts)}
    return act(deployment_history.ActionModule, {**facts, **changes})


def test_one_line_for_each_deployment_newest_first(hosts):
    answer = show(hosts)
    lines = answer["text"].splitlines()
    assert lines[0] == "shop (production)"
    assert [line.split()[1] for line in lines[2:]] == [IDS[2], IDS[1], IDS[0]]
    assert lines[2].split() == [
        "2026-11-21T02:00:00Z",
        IDS[2],
        "deployment",
        "v3",
        "3" * 12,
        "ann",
        "success",
        "90",
    ]
    assert "attention" not in answer["text"]
    assert "secret-token" not in json.dumps(answer)


def test_so_many_as_asked(hosts):
    assert [entry["id"] for entry in show(hosts, limit=2)["history"]["deployments"]] == [IDS[2], IDS[1]]
    assert "at least 1" in show(hosts, limit=0)["msg"]


def test_hosts_that_disagree_are_named(hosts):
    write(hosts["web2"], IDS[2], "web2", "v3", verdict="stopped")
    write(hosts["web1"], IDS[3], "web1", "v4")
    text = show(hosts)["text"]
    assert f"{IDS[2]}: the hosts disagree: web2 says verdict stopped instead of success." in text
    assert f"{IDS[3]}: the hosts disagree: web2 has no record of it." in text


def test_a_host_that_came_later_knows_nothing_of_what_was_before(hosts):
    for identifier in IDS[:2]:
        hosts["web2"].record(identifier).unlink()
    assert "disagree" not in show(hosts)["text"]


def test_without_the_primary_another_host_tells(hosts):
    found = {**answers(hosts), "web1": {"failed": True, "msg": "web1 does not answer: no route."}}
    text = show(hosts, answers=found)["text"]
    assert "web1 does not answer: no route. What web1 knows is missing here." in text
    assert IDS[2] in text
    assert "web1 did not answer." in show(hosts, answers={**found, "web1": None})["text"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '{"id": "other"}',
        json.dumps({"id": IDS[4]}),
        json.dumps({"id": IDS[4], "phases": 3, "verdict": 1}),
    ],
)
def test_a_broken_record_is_named_and_the_others_are_shown(hosts, content):
    hosts["web1"].record(IDS[4]).write_text(content)
    answer = show(hosts)
    assert not answer.get("failed")
    assert (
        content == "null"
        or f"web1: The record {str(hosts['web1'].record(IDS[4]))!r} cannot be read" in answer["text"]
    )
    assert [entry["id"] for entry in answer["history"]["deployments"]] == [IDS[2], IDS[1], IDS[0]]


@pytest.mark.parametrize("junk", [None, 3, "text", [], {}, [1, "x", None], {"a": 1}, [{"a": [1]}]])
def test_nothing_in_a_record_ends_the_history(hosts, junk):
    """Whatever a field holds, the others are shown."""
    record = json.loads(hosts["web1"].record(IDS[2]).read_text())
    for field in set(record) - {"id", "phases", "verdict"}:
        changed = {**record, field: junk}
        found = {"web1": {"records": [changed], "damaged": []}}
        whole = merged(found, "web1", "shop", "production")
        for entry in whole["deployments"]:
            assert row(entry["record"])
            assert one("shop", entry, [])
    entry = {
        "id": IDS[2],
        "record": {**record, "phases": [{"phase": junk}], "verdict": "success"},
        "hosts": {},
        "differs": [],
    }
    assert one("shop", entry, [])


def test_a_record_of_another_application_is_left_out_and_named(hosts):
    write(hosts["web1"], IDS[4], "web1", stage="staging")
    text = show(hosts)["text"]
    assert f"web1: the record {IDS[4]} is one of shop (staging), not of shop (production)" in text
    assert len(show(hosts)["history"]["deployments"]) == 3


def test_one_deployment_with_all_that_is_known(hosts):
    check = {"verdict": "fail", "severity": "critical", "observed": "97", "expected": "90", "seconds": 0.1}
    write(
        hosts["web1"],
        IDS[3],
        "web1",
        "v4",
        verdict="rolled_back",
        failures=[{"host": "web1", "phase": "watch", "reason": "It is slow."}],
        decision={"level": "code", "reason": "It helps."},
        phases=[{"phase": "backup", "state": "done", "begun": "t", "seconds": 2.0, "message": ""}],
        gates={"watch": [{"name": "disk", "message": "It is full.", **check}]},
        due=due_of([{"name": "look", "after": 60}], 0.0),
    )
    text = show(hosts, deployment=IDS[3])["text"]
    for part in (
        "rolled_back",
        "t  backup: done, 2.0 s",
        "gate watch: disk: fail: It is full.",
        "watch on web1: It is slow.",
    ):
        assert part in text
    assert "code: It helps." in text
    assert "look: OVERDUE since 1970-01-01T00:01:00Z" in text
    assert IDS[2] not in text
    assert show(hosts, deployment=IDS[3][:12])["text"] == text
    assert f"the newest are: {IDS[3]}" in show(hosts, deployment="2025")["msg"]
    assert show(hosts, deployment="2026")["failed"]


def test_json_is_the_same_for_programs_and_goes_into_a_file(hosts, tmp_path, shown):
    path = tmp_path / "history.json"
    show(hosts, format="json", path=str(path))
    assert json.loads(path.read_text()) == json.loads(shown[0])
    assert json.loads(shown[0])["deployments"][0]["hosts"] == {"web1": "success", "web2": "success"}
    path.unlink()
    act(
        deployment_history.ActionModule,
        {"application": "a", "stage": "b", "primary": "w", "answers": {}, "path": str(path)},
        check=True,
    )
    assert not path.exists()
    assert "cannot be written" in show(hosts, path=str(tmp_path / "no" / "such"))["msg"]


def test_notes_say_what_is_worth_knowing():
    assert note_of({"undoes": "x", "decision": {"level": "code"}}) == "takes back x; level code"
    waived = {"gates": {"preflight": [{"waived": {"approver": "ann"}}, {"verdict": "pass"}]}}
    assert note_of(waived) == "1 waived"
    assert note_of({"due": due_of([{"name": "x", "after": 1}], 0.0)}) == "1 of 1 tasks due"
    assert len(note_of({"failures": [{"phase": "p", "reason": "long " * 99}]})) == 100


def test_a_marked_task_is_marked_in_the_copy_too(tmp_path, shown):
    copy = tmp_path / "shop" / "production" / f"{IDS[0]}.json"
    copy.parent.mkdir(parents=True)
    copy.write_text(json.dumps({"id": IDS[0], "release_tag": {"name": "v1"}, "due": []}))
    answer = {
        "deployment": IDS[0],
        "changed": True,
        "record": {"id": IDS[0], "due": [1]},
        "tasks": [{"words": "look: done"}],
    }
    facts = {"application": "shop", "stage": "production", "store": str(tmp_path), "answer": answer}
    assert act(due_report.ActionModule, facts)["changed"]
    assert json.loads(copy.read_text()) == {"id": IDS[0], "release_tag": {"name": "v1"}, "due": [1]}
    assert "  look: done" in shown[0]
    failed = act(
        due_report.ActionModule, {**facts, "answer": {**answer, "msg": "exit code 3", "evidence": "boom"}}
    )
    assert (failed["failed"], failed["msg"]) == (True, "exit code 3")
    assert "    boom" in shown[1]
    assert act(due_report.ActionModule, {**facts, "answer": {"msg": "no such task"}})["msg"] == "no such task"
    copy.write_text("{")
    assert not act(due_report.ActionModule, facts).get("failed")
    assert copy.read_text() == "{"


def test_the_switches_of_flags_are_kept_host_by_host_and_damage_is_left(tmp_path, shown):
    path = tmp_path / "shop" / "production" / "flags.json"
    first, second = {"id": IDS[0], "verdict": "interrupted"}, {"id": IDS[1], "verdict": "switched"}
    keep(path, {"web1": {"switches": [first]}, "web2": {}})
    keep(path, {"web1": {"recorded": [{**first, "verdict": "switched"}, second]}})
    keep(path, {"web1": {"recorded": [second]}, "web2": {"recorded": [second]}})
    kept = json.loads(path.read_text())
    assert kept == {"web1": [{**first, "verdict": "switched"}, second], "web2": [second]}
    for damage in ("{", "[]", '{"web1": 5}', '{"web1": [{"no": "id"}]}'):
        path.write_text(damage)
        keep(path, {"web1": {"recorded": [second]}})
        assert path.read_text() == damage
        assert "could not be kept" in shown.pop()
