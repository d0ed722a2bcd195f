# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a step observed, what is running, and how a run ends, in words."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.plugin_utils._observed import Run, observed, reason, seconds

CHECKS = [
    {"name": "home", "verdict": "pass", "observed": "200"},
    {"name": "login", "verdict": "fail", "observed": "500"},
]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, ""),
        ({"changed": False}, ""),
        ({"msg": "  It\n is  so. "}, "It is so."),
        ({"message": "first", "msg": "second"}, "first"),
        ({"msg": ["a", "list"]}, ""),
        ({"checks": CHECKS}, "1 of 2 checks passed, not login"),
        ({"checks": CHECKS[:1]}, "home: 200"),
        ({"checks": []}, ""),
        ({"backup": {"id": "20261121T013700-ab12"}}, "backup 20261121T013700-ab12"),
        ({"wanted": {"release": "ba98-00"}, "state": {"current": None}}, "release ba98-00"),
        ({"state": {"current": {"release": "ba98-00"}}}, "serves ba98-00"),
        ({"plan": {"level": "code"}, "undone": {}}, "decision: code"),
        ({"sent": ["ops"], "unsent": []}, "told: ops"),
        ({"sent": ["ops"], "unsent": [{"name": "oncall", "message": "…"}]}, "not told: oncall"),
        # Modules of others have members of these names, too.
        ({"state": "present"}, ""),
        ({"state": "file", "release": "stable", "plan": [], "backup": "/etc/x~", "checks": [1]}, ""),
        ({"msg": "x" * 500}, "x" * 157 + "..."),
        ({"censored": "the output has been hidden", "msg": "SECRET"}, "(hidden by no_log)"),
    ],
)
def test_observed(answer, words) -> None:
    assert observed(answer) == words


def test_reasons() -> None:
    assert reason({"msg": "a\nb", "evidence": "c\nd"}) == ["a", "b", "c", "d"]
    assert reason({}) == ["it failed without a message"]
    assert len(reason({"msg": "a", "module_stderr": "x\n" * 99})) == 21
    (line,) = reason({"censored": "…", "msg": "SECRET", "evidence": "SECRET"})
    assert "SECRET" not in line


@pytest.mark.parametrize(
    ("took", "words"), [(None, ""), (0.04, "0.0 s"), (59.94, "59.9 s"), (125, "2 min 05 s")]
)
def test_seconds(took, words) -> None:
    assert seconds(took) == words


class TestRun:
    def test_what_runs_the_longest_is_named_with_its_hosts(self) -> None:
        run = Run()
        assert run.running() == ""
        for number in range(5):
            run.begin(f"web{number}", "a", "runbook.deploy.release : Build")
        run.begin("web9", "b", "Later")
        assert run.running() == "0 s  Build on web0, web1, web2 and 2 more"
        run.phase = "release"
        run.attempt("web0", "a", 2)
        assert run.running() == "0 s  release: Build on web0, web1, web2 and 2 more, attempt 3"
        for number in range(5):
            assert run.end(f"web{number}", "a") >= 0
        assert run.running() == "0 s  release: Later on web9"
        assert run.end("web0", "a") is None
        assert run.lap("web0", "a") is None

    def test_what_has_no_name_is_not_shown(self) -> None:
        run = Run()
        run.begin("web1", "a", "")
        assert run.running() == ""
        assert run.end("web1", "a") >= 0

    def test_the_ending_says_reason_decision_and_next(self) -> None:
        run = Run()
        assert run.ending("look") == [
            ("reason", "a host did not answer"),
            ("decision", "none: the run ended before one was made"),
            ("next", "look"),
        ]
        run.fail("Try", "web1", "It was rescued.")
        run.fail("Build", "web1", "No space.")
        assert run.ending("look")[0] == ("reason", "Build on web1: No space.")
        failures = [{"host": "web2", "phase": "restart", "reason": "It answers 500."}]
        run.note(
            {"ansible_facts": {"rollback_outcome": {"verdict": "refused", "failures": failures, "plan": {}}}}
        )
        assert run.ending("look")[:2] == [
            ("reason", "restart on web2: It answers 500."),
            ("decision", "refused: nothing was changed"),
        ]
        plan = {"level": "stop", "reason": "Nothing is safe.", "commands": ["one", "two"]}
        run.note(
            {
                "ansible_facts": {
                    "rollback_outcome": {"verdict": "stopped", "failures": failures, "plan": plan}
                }
            }
        )
        assert run.ending("look")[1:] == [
            ("decision", "stop: Nothing is safe."),
            ("next", "one"),
            ("next", "two"),
        ]

    @pytest.mark.parametrize(
        "answer", [{}, {"ansible_facts": "x"}, {"ansible_facts": {"rollback_outcome": "x"}}]
    )
    def test_facts_of_another_form_are_left_alone(self, answer) -> None:
        run = Run()
        run.note(answer)
        assert run.ending("look")[1][1].startswith("none")
