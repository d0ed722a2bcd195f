# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a log names the reason; what is shown of it has no secrets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _systemd as systemd
from ansible_collections.runbook.deploy.plugins.module_utils._command import last_words, redact


def traceback(error: str, frames: int) -> list[str]:
    """Return a traceback as Python writes it."""
    lines = ["Traceback (most recent call last):"]
    for number in range(frames):
        lines += [f'  File "/srv/module{number}.py", line 1, in call', "    call()", "    ^^^^^^"]
    return [*lines, error]


def test_the_application_s_exception_stays_when_the_server_s_own_traceback_follows() -> None:
    """What gunicorn writes when a worker does not boot: the reason first, much of its own after it."""
    log = ["Booting worker", *traceback("ModuleNotFoundError: No module named 'telemetry'", 20)]
    log += ["Worker exiting", *traceback("HaltServer: Worker failed to boot.", 12), "Main process exited"]
    found = last_words("\n".join(log)).splitlines()
    assert len(found) <= 20
    assert "ModuleNotFoundError: No module named 'telemetry'" in found
    assert '  File "/srv/module19.py", line 1, in call' in found
    assert found[-1] == "Main process exited"
    assert '  File "/srv/module0.py", line 1, in call' not in found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        ("a\n  b\n\nc", "a\n  b\n\nc"),
        (
            "Traceback (most recent call last):\n  odd\nE: x",
            "Traceback (most recent call last):\n  odd\nE: x",
        ),
        (
            "\n".join(traceback("unfinished", 2)[:-1]),
            'Traceback (most recent call last):\n  File "/srv/module1.py", line 1, in call\n    call()\n    ^^^^^^',
        ),
        ("\n".join(str(number) for number in range(30)), "\n".join(str(number) for number in range(10, 30))),
    ],
)
def test_other_logs_end_as_they_are(text: str, found: str) -> None:
    """Indented lines outside of tracebacks stay; a traceback that is cut off is shortened too."""
    assert last_words(text) == found


def test_the_journal_is_read_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --since, journalctl counts -n from the beginning, except in reverse."""
    journal = [f"line {number}" for number in range(50)]

    def journalctl(command: list[str], timeout: float) -> SimpleNamespace:
        lines = int(command[command.index("-n") + 1])
        if "--reverse" in command:
            shown = journal[::-1][:lines]
        elif any(word.startswith("--since") for word in command):
            shown = journal[:lines]
        else:
            shown = journal[-lines:]
        return SimpleNamespace(rc=0, stdout="\n".join(shown) + "\n")

    monkeypatch.setattr(systemd, "run", journalctl)
    unit = systemd.SystemdUnit("shop-prod-web@20261121T013700-ab12.service", "web")
    unit._since = 1.0
    assert unit.tail(3) == "line 47\nline 48\nline 49"


@pytest.mark.parametrize(
    ("text", "secrets", "keep", "shown"),
    [
        ("a hunter22 b", ["hunter22"], [], "a ******** b"),
        # Shorter ones are no secrets.
        ("a prod b", ["prod"], [], "a prod b"),
        ("hunter22hunter22", ["hunter22"], [], "****************"),
        # Of two that overlap nothing is left over.
        ("xabcdefghiy", ["abcdef", "defghi"], [], "x********y"),
        ("Check 'critical' is critical", ["critical"], ["'critical'"], "Check 'critical' is ********"),
        # What reaches beyond a kept part is hidden whole.
        ("Check 'web' 'web'-5521", ["'web'-5521"], ["'web'"], "Check 'web' ********"),
        ("did not pass (degraded).", ["degraded"], ["did not pass (degraded)"], "did not pass (degraded)."),
    ],
)
def test_what_is_hidden_and_what_is_not(text: str, secrets: list[str], keep: list[str], shown: str) -> None:
    assert redact(text, secrets, keep) == shown
