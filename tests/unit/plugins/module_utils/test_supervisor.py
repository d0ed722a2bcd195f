# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What supervisorctl prints, and what supervisord reads."""

from __future__ import annotations

import configparser
import os
import shlex

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._contract import check_service, complete_service
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._supervisor import (
    Word,
    judge,
    parse_programs,
    parse_status,
    section_text,
)

ID = "20261121T010000-aaaa"
# What supervisorctl 4.3 prints.
STATUS = f"""\
shop-test                          EXITED    Nov 21 05:45 PM
shop-test-web-{ID}   RUNNING   pid 4711, uptime 0:00:05
shop-test-beat-{ID}  BACKOFF   Exited too quickly (process log may have details)
group:one                          STARTING
fresh                              STOPPED   Not started
nobody: ERROR (no such process)
"""


def test_status_is_read():
    found = parse_status(STATUS)
    assert set(found) == {"shop-test", f"shop-test-web-{ID}", f"shop-test-beat-{ID}", "group:one", "fresh"}
    assert found[f"shop-test-web-{ID}"].pid == 4711
    assert found["group:one"] == Word("STARTING", "")
    assert parse_programs(list(found), "shop", "test") == {("web", ID), ("beat", ID)}
    assert parse_programs([f"shop-test-web-{ID}.trial", f"shop-testing-web-{ID}"], "shop", "test") == {
        ("web", f"{ID}.trial")
    }


@pytest.mark.parametrize(
    ("state", "running", "failed"),
    [
        ("RUNNING", True, False),
        ("STARTING", False, False),
        ("STOPPING", False, False),
        ("STOPPED", False, False),
        ("BACKOFF", False, True),
        ("FATAL", False, True),
        ("EXITED", False, True),
        ("UNKNOWN", False, True),
    ],
)
def test_only_running_is_running(state, running, failed):
    found = judge(Word(state, f"pid {os.getpid()}, uptime 0:00:05"))
    assert (found.running, found.failed) == (running, failed)
    assert found.started == (_processes.start_time(os.getpid()) if running else None)
    assert not judge(None).running and not judge(None).failed


def test_a_process_that_is_gone_does_not_run():
    """supervisord has not seen its end yet."""
    assert not judge(Word("RUNNING", "pid 4194304, uptime 0:00:05")).running


@pytest.mark.parametrize(
    "word", ["50%", "a ;b", "a #b", "q\"u'o\\te", "$HOME `x`", "; first", "%(here)s", "ä b"]
)
def test_words_survive_the_file(word):
    """As supervisord reads it: comments after a blank, then expansions, then words (its options.py)."""
    text = section_text(
        "shop-test-web", ["/bin/echo", word, "end"], "/srv/a b/log%", "shop", ["autostart=false"]
    )
    reader = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";", "#"))
    reader.read_string(text)
    section = reader["program:shop-test-web"]
    assert shlex.split(section["command"] % {"here": "/"}) == ["/bin/echo", word, "end"]
    assert section["stdout_logfile"] % {} % {} == "/srv/a b/log%"
    assert section["user"] == "shop"


@pytest.mark.parametrize(
    ("program", "word", "log"),
    [("a:b", "x", "/l"), ("a b", "x", "/l"), ("a", "x\ny", "/l"), ("a", "x", "/l ;x"), ("a", "x", "/l\n")],
)
def test_what_no_file_can_say(program, word, log):
    with pytest.raises(Problem):
        section_text(program, [word], log, None, [])


def test_contract():
    service = {"name": "web", "manager": "supervisor", "command": "x {socket}"}
    assert check_service(0, service, "/srv/shop") == []
    full = complete_service(service)
    assert full["supervisor_config"] == "/etc/supervisor/supervisord.conf"
    assert full["supervisor_include"] == "/etc/supervisor/conf.d"
    (error,) = check_service(0, {**service, "supervisor_include": "conf.d"}, "/srv/shop")
    assert "app_services[0].supervisor_include must be an absolute path" in error
    assert "supervisor_config" not in complete_service({**service, "manager": "systemd"})
