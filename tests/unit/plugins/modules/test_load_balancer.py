# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server is taken out of a real HAProxy and a real nginx and put back: under load no request fails, and what was before is kept."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules import load_balancer
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.balanced_site import (
    HaproxySite,
    Load,
    NginxSite,
    Site,
    ask,
    program,
    wait_until,
)

KINDS = {"haproxy": HaproxySite, "nginx": NginxSite}
BOTH = [
    pytest.param(name, marks=pytest.mark.skipif(not program(name), reason=f"{name} is not installed"))
    for name in KINDS
]
haproxy_only = pytest.mark.skipif(not program("haproxy"), reason="haproxy is not installed")
nginx_only = pytest.mark.skipif(not program("nginx"), reason="nginx is not installed")


@pytest.fixture(params=BOTH)
def site(request, tmp_path: Path) -> Iterator[Site]:
    with KINDS[request.param](tmp_path) as running:
        yield running


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[HaproxySite]:
    with HaproxySite(tmp_path) as running:
        yield running


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[NginxSite]:
    with NginxSite(tmp_path) as running:
        yield running


def run(site: Site, capsys, state: str, check_mode: bool = False, **changes) -> dict:
    capsys.readouterr()
    options = site.options(state=state, **changes)
    options = {name: value for name, value in options.items() if value is not None}
    with patch_module_args({**options, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit):
        load_balancer.main()
    return json.loads(capsys.readouterr().out)


def drained(site: Site, capsys, **changes) -> dict:
    answer = run(site, capsys, "drained", **changes)
    assert not answer.get("failed"), answer
    return answer


def ready(site: Site, capsys, **changes) -> dict:
    answer = run(site, capsys, "ready", **changes)
    assert not answer.get("failed"), answer
    return answer


class Slow(threading.Thread):
    """Requests that take their time, until one is at work at the server wanted."""

    def __init__(self, site: Site, number: int = 4) -> None:
        super().__init__(daemon=True)
        self.site, self.answers, self.failures = site, [], []
        self.threads = [threading.Thread(target=self._one, daemon=True) for _number in range(number)]
        for thread in self.threads:
            thread.start()

    def _one(self) -> None:
        try:
            self.answers.append(ask(self.site.port, "/slow"))
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(str(error))

    def end(self) -> None:
        for thread in self.threads:
            thread.join(40)


def at_work(port: int) -> bool:
    """Whether somebody has a connection with a backend, from outside: the kernel's table."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[2] == f"0100007F:{port:04X}" and row[3] == "01" for row in rows)


def test_no_request_fails_while_a_server_is_taken_out_killed_started_and_put_back(site, capsys):
    with Load(site.port) as load:
        answer = drained(site, capsys)
        assert answer["changed"] is True
        assert answer["before"]["admin"] == "ready"
        assert answer["after"]["admin"] == "maint"
        site.one.kill()
        load.more()
        assert site.seen() == {"two"}
        site.one.start()
        answer = ready(site, capsys)
        assert answer["changed"] is True
        load.more()
        assert site.seen() == {"one", "two"}
    assert load.failures == []
    # What a slow machine does not send cannot fail; that there was a load is part of the proof.
    assert len(load.answers) > 120


def test_a_request_that_takes_its_time_is_waited_for(site, capsys):
    slow = Slow(site)
    wait_until(lambda: at_work(site.one.port), "a slow request is at work")
    drained(site, capsys)
    site.one.kill()
    slow.end()
    assert slow.failures == []
    assert {"one", "two"} == set(slow.answers)


@pytest.mark.parametrize("kind", BOTH)
def test_after_the_deadline_the_sessions_are_named_and_the_server_gets_requests_again(kind, tmp_path, capsys):
    with KINDS[kind](tmp_path, slow=40.0) as site:
        slow = Slow(site)
        wait_until(lambda: at_work(site.one.port), "a slow request is at work")
        answer = run(site, capsys, "drained", drain_timeout=1)
        assert answer["failed"] is True
        assert "session" in answer["msg"]
        assert "after 1 s" in answer["msg"]
        assert "requests again" in answer["msg"]
        assert len(answer["left"]) >= 1
        assert site.seen() == {"one", "two"}
        # A person who accepts that they are cut is told which.
        answer = drained(site, capsys, drain_timeout=1, on_deadline="go_on")
        assert len(answer["left"]) >= 1
        assert answer["after"]["admin"] == "maint"
        assert site.seen() == {"two"}
        # None was cut by this: they end with the site.
        assert slow.failures == []


def test_twice_is_no_change(site, capsys):
    assert drained(site, capsys)["changed"] is True
    assert drained(site, capsys)["changed"] is False
    assert ready(site, capsys)["changed"] is True
    assert ready(site, capsys)["changed"] is False


def test_check_mode_only_reads(site, capsys):
    assert drained(site, capsys, check_mode=True)["changed"] is True
    assert site.seen() == {"one", "two"}
    assert ready(site, capsys, check_mode=True)["changed"] is False
    drained(site, capsys)
    answer = ready(site, capsys, check_mode=True)
    assert answer["changed"] is True
    assert answer["diff"] == {"before": "one maint\n", "after": "one ready\n"}
    assert site.seen() == {"two"}


def test_the_last_one_stays(site, capsys):
    drained(site, capsys)
    answer = run(site, capsys, "drained", server="two")
    assert answer["failed"] is True
    assert answer["msg"].startswith("two is the last server of ")
    assert "one (maint, by this tool)" in answer["msg"]
    assert "allow_last: true" in answer["msg"]
    assert site.seen() == {"two"}
    assert run(site, capsys, "drained", check_mode=True, server="two")["failed"] is True
    assert drained(site, capsys, server="two", allow_last=True)["changed"] is True


def test_two_at_the_same_moment_do_not_leave_nobody(site):
    """Each would see the other as ready: one of them has to lose, whoever that is."""
    start = threading.Barrier(2)
    results = {}

    def work(name: str) -> None:
        options = {name: value.get("default") for name, value in load_balancer.OPTIONS.items()}
        options.update(site.options(state="drained", server=name))
        driver = load_balancer.DRIVERS[options["kind"]](options)
        start.wait()
        try:
            results[name] = load_balancer.perform(options, False, driver)["changed"]
        except load_balancer.Problem as problem:
            results[name] = problem.message

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(str(value)[:4] for value in results.values()) in (["True", "one "], ["True", "two "]), (
        results
    )
    assert len(site.seen()) == 1


def test_a_server_that_does_not_answer_is_not_put_back(site, capsys):
    drained(site, capsys)
    site.one.kill()
    with Load(site.port) as load:
        answer = run(site, capsys, "ready", ready_timeout=1.5)
        assert answer["failed"] is True
        assert "one of " in answer["msg"]
        assert "is not ready after 1.5 s" in answer["msg"]
        load.more()
    assert load.failures == []
    assert set(load.answers) == {"two"}
    # It is still known who took it out, so that it comes back when it answers again.
    site.one.start()
    assert ready(site, capsys)["changed"] is True
    assert site.seen() == {"one", "two"}


def test_a_server_without_a_healthy_page_is_not_put_back(site, capsys):
    drained(site, capsys)
    site.one.kill()
    with Broken(site.one.port):
        answer = run(site, capsys, "ready", ready_timeout=1.5, health_path="/healthz/")
    assert answer["failed"] is True
    assert "500" in answer["msg"]
    assert site.seen() == {"two"}


class Broken:
    """A server on a port that answers everything with 500."""

    def __init__(self, port: int) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_error(500)

            def log_message(self, *_arguments):
                """Quietly."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)

    def __enter__(self) -> None:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __exit__(self, *_exception) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"server": "three"}, "no server 'three', only one, two"),
        ({"backend": "shoop"}, "'shoop'"),
        ({"drain_timeout": -1}, "The option drain_timeout is -1"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(site, capsys, changes, says):
    answer = run(site, capsys, "drained", **changes)
    assert answer["failed"] is True
    assert says in answer["msg"]
    assert site.seen() == {"one", "two"}


def test_facts(site, capsys):
    answer = run(site, capsys, "facts", server=None)
    assert answer["changed"] is False
    assert [(row["name"], row["admin"], row["usable"]) for row in answer["servers"]] == [
        ("one", "ready", True),
        ("two", "ready", True),
    ]


# HAProxy


@haproxy_only
def test_a_server_that_somebody_took_out_stays_out(haproxy, capsys):
    haproxy.command("set server shop/one state maint")
    answer = drained(haproxy, capsys)
    assert (answer["changed"], answer["by_hand"]) == (False, True)
    answer = ready(haproxy, capsys)
    assert (answer["changed"], answer["by_hand"]) == (False, True)
    assert haproxy.status("one") == "MAINT"
    # Unless a person says so.
    assert ready(haproxy, capsys, force=True)["changed"] is True
    assert haproxy.status("one").startswith("UP")


@haproxy_only
def test_the_weight_is_as_before(haproxy, capsys):
    haproxy.command("set server shop/one weight 40")
    drained(haproxy, capsys)
    haproxy.command("set server shop/one weight 7")
    answer = ready(haproxy, capsys)
    assert answer["after"]["weight"] == 40
    assert haproxy.command("get weight shop/one").startswith("40 ")


@haproxy_only
def test_it_gets_nothing_before_a_check_was_good(haproxy, capsys, tmp_path):
    """Out of maintenance HAProxy takes a server for up before it has asked it; the load would run into nothing."""
    drained(haproxy, capsys)
    haproxy.one.kill()
    with Load(haproxy.port) as load:
        starter = threading.Timer(1.5, haproxy.one.start)
        starter.start()
        ready(haproxy, capsys)
        load.more()
        starter.join()
    assert load.failures == []
    assert "one" in load.answers


@haproxy_only
def test_without_checks_it_has_to_accept_a_connection(tmp_path, capsys):
    with HaproxySite(tmp_path, check="") as site:
        drained(site, capsys)
        site.one.kill()
        answer = run(site, capsys, "ready", ready_timeout=1)
        assert answer["failed"] is True
        assert "does not answer" in answer["msg"]
        assert site.seen() == {"two"}
        site.one.start()
        ready(site, capsys)
        assert site.seen() == {"one", "two"}


@haproxy_only
def test_a_down_neighbour_is_no_other_server(haproxy, capsys):
    haproxy.two.kill()
    wait_until(lambda: haproxy.status("two") == "DOWN", "the check sees it")
    answer = run(haproxy, capsys, "drained")
    assert answer["failed"] is True
    assert "two (down, L4CON" in answer["msg"]
    assert haproxy.status("one").startswith("UP")


@haproxy_only
def test_sockets_that_cannot_be_used(haproxy, capsys, tmp_path):
    answer = run(haproxy, capsys, "facts", socket=str(tmp_path / "other.sock"))
    assert "does not exist" in answer["msg"]
    assert "stats socket" in answer["msg"]
    answer = run(haproxy, capsys, "facts", socket="admin.sock")
    assert "expected the absolute path" in answer["msg"]
    answer = run(haproxy, capsys, "facts", socket=f"127.0.0.1:{haproxy.one.port}")
    assert answer["failed"] is True
    haproxy.process.terminate()
    haproxy.process.wait()
    answer = run(haproxy, capsys, "facts")
    assert "HAProxy does not run" in answer["msg"] or "does not exist" in answer["msg"]


@haproxy_only
def test_a_socket_without_the_level_says_what_is_missing(tmp_path, capsys):
    with HaproxySite(tmp_path, level="user") as site:
        answer = run(site, capsys, "drained")
        assert answer["failed"] is True
        assert "level admin" in answer["msg"]
        assert site.seen() == {"one", "two"}
        assert list((tmp_path / "notes").iterdir()) == []


# nginx


@nginx_only
def test_only_the_line_of_the_server_is_written(nginx, capsys):
    nginx.upstream.chmod(0o640)
    before = nginx.upstream.read_text()
    drained(nginx, capsys)
    port = nginx.one.port
    assert nginx.upstream.read_text() == before.replace(
        f"server 127.0.0.1:{port} max_fails=0; # one in the first rack",
        f"server 127.0.0.1:{port} max_fails=0 down; # one in the first rack (taken out by runbook.deploy)",
    )
    assert nginx.upstream.stat().st_mode & 0o777 == 0o640
    ready(nginx, capsys)
    assert nginx.upstream.read_text() == before


@nginx_only
def test_a_line_that_somebody_marked_stays(nginx, capsys):
    text = nginx.upstream.read_text().replace("max_fails=0; # one", "max_fails=0 down; # one")
    nginx.upstream.write_text(text)
    answer = drained(nginx, capsys)
    assert answer["by_hand"] is True
    answer = ready(nginx, capsys)
    assert (answer["changed"], answer["by_hand"]) == (False, True)
    assert nginx.upstream.read_text() == text


@nginx_only
def test_a_configuration_that_nginx_refuses_leaves_everything(nginx, capsys):
    before = nginx.upstream.read_text()
    nginx.config.write_text(nginx.config.read_text().replace("access_log off;", "acces_log off;"))
    answer = run(nginx, capsys, "drained")
    assert answer["failed"] is True
    assert "even without any change" in answer["msg"]
    assert "acces_log" in answer["evidence"]
    assert nginx.upstream.read_text() == before
    assert nginx.seen() == {"one", "two"}


@nginx_only
def test_a_file_that_was_written_and_not_read_is_read(nginx, capsys):
    """Killed between writing and reloading: the file says down, and nginx goes on sending."""
    nginx.upstream.write_text(
        nginx.upstream.read_text().replace(
            "max_fails=0; # one in the first rack",
            "max_fails=0 down; # one in the first rack (taken out by runbook.deploy)",
        )
    )
    assert nginx.seen() == {"one", "two"}
    assert drained(nginx, capsys)["changed"] is True
    assert nginx.seen() == {"two"}
    ready(nginx, capsys)
    assert nginx.seen() == {"one", "two"}


@nginx_only
def test_a_file_without_the_mark_is_not_written(nginx, capsys):
    text = nginx.upstream.read_text().replace("# Managed by runbook.deploy\n", "")
    nginx.upstream.write_text(text)
    answer = run(nginx, capsys, "drained")
    assert "is not ours to write" in answer["msg"]
    assert nginx.upstream.read_text() == text


@nginx_only
def test_without_nginx_it_says_so(nginx, capsys):
    answer = run(nginx, capsys, "drained", pid_file=str(nginx.directory / "no.pid"))
    assert "nginx does not run" in answer["msg"]
    answer = run(nginx, capsys, "facts", upstream_file=str(nginx.directory / "no.conf"))
    assert "does not exist" in answer["msg"]
    os.mkfifo(nginx.directory / "fifo")
    answer = run(nginx, capsys, "facts", upstream_file=str(nginx.directory / "fifo"))
    assert "cannot be read" in answer["msg"]
