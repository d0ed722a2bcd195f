# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maintenance page before a real nginx: who gets what, on and off, refused, killed, forgotten. All seen from outside."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import (
    _maintenance,
    _maintenance_options,
    _maintenance_window,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules import maintenance
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.balanced_site import program
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.maintained_site import MaintainedSite

pytestmark = pytest.mark.skipif(not program("nginx"), reason="nginx is not installed")


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[MaintainedSite]:
    directory = tmp_path_factory.mktemp("site")
    with MaintainedSite(directory) as site:
        yield site


@pytest.fixture
def site(running: MaintainedSite, capsys) -> Iterator[MaintainedSite]:
    yield running
    running.write()
    if running.test():
        run(running, capsys, "off", verify_timeout=0)


def run(site: MaintainedSite, capsys, state: str, check_mode: bool = False, **changes) -> dict:
    capsys.readouterr()
    options = {k: v for k, v in site.options(state=state, **changes).items() if v is not None}
    with patch_module_args({**options, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit):
        maintenance.main()
    return json.loads(capsys.readouterr().out)


def well(site: MaintainedSite, capsys, state: str, **changes) -> dict:
    answer = run(site, capsys, state, **changes)
    assert not answer.get("failed"), answer
    return answer


def serves(site: MaintainedSite) -> bool:
    return site.get().body == "application"


def page(site: MaintainedSite) -> bool:
    answer = site.get()
    return answer.status == 503 and "We will be back soon" in answer.body


def test_a_visitor_gets_the_page_a_program_json_and_who_is_let_through_the_application(site, capsys):
    assert serves(site)
    answer = well(site, capsys, "on", reason="upgrade", operator="ann")
    assert answer["changed"] is True
    assert {name: one["status"] for name, one in answer["seen"].items()} == {
        "visitor": 503,
        "program": 503,
        "allowed": 200,
    }
    got = site.get("/a/page?with=query")
    assert (got.status, got.headers["retry-after"], got.headers["cache-control"]) == (503, "120", "no-store")
    assert got.headers["content-type"] == "text/html; charset=utf-8"
    assert "in 2 minutes" in got.body
    assert site.get(method="HEAD").status == 503
    for asked in (
        site.get(accept="application/json"),
        site.get(accept="application/problem+json"),
        site.get("/api/things"),
        site.get("/api/things", method="POST", body=b"x" * 5000),
        site.get("/hooks/payment", method="POST", body=b"{}"),
        site.get("/hooks/payment", source="127.9.0.3"),
    ):
        assert (asked.status, asked.headers["retry-after"]) == (503, "120")
        assert asked.headers["content-type"] == "application/json"
        assert json.loads(asked.body)["retry_after"] == 120
    # Neither a password, a size, a pattern of the site, nor its own page for 503 stands before ours.
    for asked in (
        site.get("/locked/"),
        site.get("/form", method="POST", body=b"x" * 5000),
        site.get("/index.php"),
        site.get("/own/"),
    ):
        assert (asked.status, asked.headers.get("retry-after")) == (503, "120")
        assert "We will be back soon" in asked.body
    assert site.get("/any", source="127.9.0.3").body == "application"
    assert site.get("/api/things", source="127.9.0.3", accept="application/json").body == "application"
    assert site.get("/.well-known/acme").body == "application"
    # Our own places are nobody's from outside.
    for name in ("page", "page.html", "json"):
        assert site.get(f"/.runbook-maintenance/my-shop-prod/{name}").status == 404

    found = well(site, capsys, "facts")
    assert found["changed"] is False
    assert found["maintenance"]["on"] is True
    assert (found["maintenance"]["reason"], found["maintenance"]["operator"]) == ("upgrade", "ann")
    assert 3500 < found["maintenance"]["seconds_left"] <= 3600

    ended = well(site, capsys, "off")
    assert ended["changed"] is True
    assert ended["downtime"]["seconds"] >= 0
    assert ended["maintenance"]["on"] is False
    assert serves(site)
    assert site.get("/hooks/payment").body == "application"
    assert site.get("/own/").body == "the site's own"
    assert sorted(path.name for path in (site.root / "maintenance").iterdir()) == ["page.html"]


def test_a_second_time_changes_nothing_and_gives_it_a_later_end(site, capsys):
    well(site, capsys, "on", expires=60)
    first = json.loads((site.root / "maintenance/state.json").read_text())
    again = well(site, capsys, "on", expires=3600)
    second = json.loads((site.root / "maintenance/state.json").read_text())
    assert (again["changed"], again["reloaded"]) == (False, False)
    assert second["since"] == first["since"]
    assert second["expires"] > first["expires"] + 3000
    assert len([path for path in (site.root / "maintenance").iterdir() if path.name.startswith(".on.")]) == 1
    assert page(site)
    assert well(site, capsys, "off")["changed"] is True
    off = well(site, capsys, "off")
    assert (off["changed"], off["downtime"]) == (False, None)


def test_after_it_is_prepared_the_flag_alone_puts_it_on(site, capsys):
    well(site, capsys, "prepared")
    assert well(site, capsys, "prepared")["changed"] is False
    assert serves(site)
    assert well(site, capsys, "on")["reloaded"] is False
    assert page(site)


def test_changed_settings_are_read_by_nginx_before_the_flag_counts_on_them(site, capsys):
    well(site, capsys, "on")
    assert site.get(source="127.9.0.3").body == "application"
    answer = well(site, capsys, "on", allow=["127.8.0.0/16"], retry_after=7, page="<h1>ours</h1>")
    assert (answer["changed"], answer["reloaded"]) == (True, True)
    assert site.get(source="127.9.0.3").status == 503
    assert site.get(source="127.8.0.3").body == "application"
    assert (site.get().body, site.get().headers["retry-after"]) == ("<h1>ours</h1>", "7")


def test_behind_a_proxy_the_address_of_the_visitor_counts(site, capsys):
    well(site, capsys, "on", allow=["198.51.100.7"], trusted_proxies=["127.7.0.1"])

    def through(source: str, address: str) -> int:
        return site.get(source=source, **{"X-Forwarded-For": address}).status

    assert through("127.7.0.1", "198.51.100.7") == 200
    assert through("127.7.0.1", "198.51.100.8") == 503
    # Nobody but the proxy is believed.
    assert through("127.0.0.1", "198.51.100.7") == 503


def test_in_check_mode_nothing_is_written(site, capsys):
    before = sorted(site.root.rglob("*"))
    answer = run(site, capsys, "on", check_mode=True)
    assert answer["changed"] is True
    assert answer["diff"] == {"before": "maintenance off\n", "after": "maintenance on\n"}
    assert sorted(site.root.rglob("*")) == before
    assert serves(site)
    well(site, capsys, "on")
    answer = run(site, capsys, "off", check_mode=True)
    assert answer["changed"] is True
    assert answer["diff"] == {"before": "maintenance on\n", "after": "maintenance off\n"}
    assert page(site)
    assert run(site, capsys, "on", check_mode=True)["changed"] is False


def test_a_page_that_no_server_includes_is_taken_off_again(site, capsys):
    site.write(included=False)
    # The allow-list is new, so nginx reads its configuration, in which the page is not included any more.
    answer = run(site, capsys, "on", allow=["127.6.0.0/16"], verify_timeout=0.3)
    assert answer["failed"] is True
    assert "200, expected 503" in answer["msg"]
    assert f"include {site.server_file} in each server block" in answer["msg"]
    assert serves(site)
    assert not (site.root / "maintenance/on").exists()
    assert not (site.root / "maintenance/state.json").exists()


def test_what_nginx_refuses_is_put_back_and_said_whose_fault_it_is(site, capsys):
    well(site, capsys, "prepared")
    before = {path: path.read_bytes() for path in (site.http_file, site.server_file)}
    site.write(broken="nonsense here;")
    answer = run(site, capsys, "on", retry_after=55)
    assert answer["failed"] is True
    assert "even without the maintenance page" in answer["msg"]
    assert "nonsense" in answer["evidence"]
    assert {path: path.read_bytes() for path in before} == before
    assert serves(site)
    # Included where a server's directives do not belong.
    site.write(broken=f"include {site.server_file}*;")
    for path in before:
        path.unlink()
    answer = run(site, capsys, "on", retry_after=56)
    assert answer["failed"] is True
    assert "refuses the configuration with the maintenance page" in answer["msg"]
    assert not site.http_file.exists()
    assert not site.server_file.exists()
    assert site.test()
    assert serves(site)


def test_files_that_nginx_was_not_made_to_read_are_put_back(site, capsys):
    well(site, capsys, "prepared")
    before = {path: path.read_bytes() for path in (site.http_file, site.server_file)}
    script = 'case "$*" in *reload*) echo no signal >&2; exit 9;; esac; exec "$@"'
    answer = run(site, capsys, "on", retry_after=57, nginx=["sh", "-c", script, "sh", *site.argv])
    assert answer["failed"] is True
    assert "nginx could not be reloaded (exit code 9, expected 0)" in answer["msg"]
    assert "no signal" in answer["evidence"]
    assert {path: path.read_bytes() for path in before} == before
    assert serves(site)


def test_a_file_of_somebody_else_is_not_written(site, capsys):
    well(site, capsys, "prepared")
    text = site.server_file.read_text()
    site.server_file.write_text("# mine\n")
    answer = run(site, capsys, "on")
    assert answer["failed"] is True
    assert "is not ours to write: its first line is '# mine'" in answer["msg"]
    assert site.server_file.read_text() == "# mine\n"
    site.server_file.write_text(text)


def test_nginx_that_does_not_run_is_told_and_off_works_all_the_same(site, capsys):
    well(site, capsys, "on")
    gone = str(site.directory / "no.pid")
    answer = run(site, capsys, "on", pid_file=gone, retry_after=9)
    assert answer["failed"] is True
    assert "nginx does not run" in answer["msg"]
    assert page(site)
    answer = well(site, capsys, "off", pid_file=gone)
    assert answer["downtime"]["seconds"] >= 0
    assert serves(site)


def test_it_ends_by_itself_without_anybody(site, capsys):
    # Nothing of ours runs meanwhile, and nothing is touched.
    well(site, capsys, "on", expires=1)
    deadline = time.monotonic() + 40
    while not serves(site):
        assert time.monotonic() < deadline, "the page did not go away"
        time.sleep(0.2)
    found = well(site, capsys, "facts")["maintenance"]
    assert (found["on"], found["over"]) == (False, True)
    answer = well(site, capsys, "off")
    assert answer["changed"] is True
    assert answer["downtime"]["expired"] is True
    assert answer["downtime"]["seconds"] == 1.0


def test_a_deployment_leaves_a_persons_maintenance_and_takes_over_a_dead_ones(site, capsys):
    well(site, capsys, "on", reason="disk")
    taken = well(site, capsys, "on", deployment="20261121T013700-ab12")
    assert (taken["by_hand"], taken["changed"], taken["maintenance"]["by"]) == (True, False, "")
    left = well(site, capsys, "off", deployment="20261121T013700-ab12")
    assert (left["by_hand"], left["changed"]) == (True, False)
    assert page(site)
    assert well(site, capsys, "off")["changed"] is True

    well(site, capsys, "on", deployment="20261121T013700-ab12")
    other = well(site, capsys, "on", deployment="20261121T023700-cd34")
    assert (other["by_hand"], other["maintenance"]["by"]) == (False, "20261121T023700-cd34")
    assert well(site, capsys, "off", deployment="20261121T033700-ef56")["downtime"]["seconds"] >= 0
    assert serves(site)


def test_what_is_expected_gives_it_time_and_tells_clients_when_to_come_back(site, capsys):
    flag = site.root / "maintenance" / "on"
    begun = time.time()
    answer = well(site, capsys, "on", expires=60, expected=1500.2, afterwards=475)
    assert answer["maintenance"]["expected"] == 1501
    # 2 x 1501 + 475 seconds: nginx's own flag covers them, and 10 s more at most.
    files = os.listdir(flag)
    assert _maintenance_window.covers(files, begun + 3476)
    assert not _maintenance_window.covers(files, time.time() + 3488)
    assert site.get().headers["retry-after"] == "1501"
    assert "in 26 minutes" in site.get().body
    assert json.loads(site.get("/api/things").body)["retry_after"] == 1501
    # Setup meanwhile leaves it so.
    assert well(site, capsys, "prepared")["changed"] is False
    assert site.get().headers["retry-after"] == "1501"
    # So does a deployment under a person's page, which it neither takes over nor shortens.
    well(site, capsys, "on", expires=60, expected=5, deployment="20261121T013700-ab12")
    assert site.get().headers["retry-after"] == "1501"
    assert _maintenance_window.covers(os.listdir(flag), begun + 3476)
    ended = well(site, capsys, "off")
    assert ended["downtime"]["expected"] == 1501
    # The next one is not expected to last.
    assert well(site, capsys, "on")["maintenance"]["expected"] == 0
    assert site.get().headers["retry-after"] == "120"
    assert well(site, capsys, "off")["downtime"]["expected"] is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 3}'])
def test_a_damaged_note_does_not_keep_the_page_on(site, capsys, text):
    well(site, capsys, "on")
    (site.root / "maintenance/state.json").write_text(text)
    found = well(site, capsys, "facts")
    assert found["maintenance"]["unknown"] is True
    answer = well(site, capsys, "off")
    assert answer["changed"] is True
    assert answer["downtime"] is None
    assert serves(site)


STEPS = ("rename", "unlink", "mkdir", "symlink", "rmdir")


def killed_at(site: MaintainedSite, number: int, state: str, changes: dict) -> bool:
    """Run the module's work in a child that is killed before its step *number*; say whether it came that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real):
            def step(*args, **kwargs):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return step

        for name in STEPS:
            setattr(os, name, counting(getattr(os, name)))
        code = 0
        try:
            options = {
                **{k: v.get("default") for k, v in _maintenance_options.OPTIONS.items()},
                **site.options(state=state),
            }
            _maintenance.perform({**options, **changes}, False, lambda text: None)
        except BaseException:
            code = 1
        os._exit(code)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("state", ["on", "off"])
def test_killed_between_any_two_steps_it_is_the_page_or_the_application_and_one_run_ends_it(
    site, capsys, state, monkeypatch
):
    # A flag of few files: each of them is a step.
    monkeypatch.setattr(_maintenance_window, "BACK", 20)
    for number in range(1, 60):
        well(site, capsys, "off", verify_timeout=0)
        if state == "off":
            well(site, capsys, "on", expires=20)
        elif number < 6:
            # From nothing: each of the three files is a step.
            for path in (site.http_file, site.server_file, site.root / "maintenance" / "page.html"):
                path.unlink(missing_ok=True)
        killed = killed_at(site, number, state, {"expires": 20})
        assert page(site) or serves(site), f"step {number}"
        assert site.test(), f"step {number}"
        answer = well(site, capsys, "off")
        assert answer["maintenance"]["on"] is False
        assert serves(site), f"step {number}"
        left = {path.name for path in (site.root / "maintenance").iterdir()}
        assert not [name for name in left if name.startswith(".on")], f"step {number}: {left}"
        assert "state.json" not in left
        if not killed:
            break
    else:
        raise AssertionError("there are more steps than were tried")
    assert number > 3


def test_the_flag_has_no_gap_while_it_gets_another_end(site, capsys):
    well(site, capsys, "on", expires=3000)
    directory = site.root / "maintenance"
    real = os.rename
    seen = []

    def rename(*args, **kwargs):
        seen.append(page(site))
        real(*args, **kwargs)
        seen.append(page(site))

    now = time.time()
    try:
        os.rename = rename
        _maintenance_window.raise_flag(directory, "other", now, now + 3000)
    finally:
        os.rename = real
    assert seen == [True, True]


def test_two_runs_at_once_wait_for_each_other(site, capsys, monkeypatch):
    well(site, capsys, "prepared")
    monkeypatch.setattr(_maintenance, "LOCK_TIMEOUT", 0.2)
    with _maintenance.held(site.root / "maintenance", 5):
        answer = run(site, capsys, "on")
    assert answer["failed"] is True
    assert "Another run has held" in answer["msg"]
    assert serves(site)


def test_a_host_without_the_application_is_told_so(site, capsys, tmp_path: Path):
    answer = run(site, capsys, "on", root=str(tmp_path / "none"))
    assert answer["failed"] is True
    assert "run playbooks/setup.yml first" in answer["msg"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("allow", ["10.0.0.1/8"], "has host bits set"),
        ("allow", ["everybody"], "no address or network"),
        ("webhooks", ['/x"; return 200'], "expected a path"),
        ("expires", 0, "from 1 to 86400"),
        ("expires", 86401, "from 1 to 86400"),
        ("retry_after", 0, "from 1 to 86400"),
        ("expected", -1.0, "from 0"),
        ("expected", 86401.0, "from 0"),
        ("expected", float("nan"), "from 0"),
        ("afterwards", -1, "at least 0"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(site, option, value, said):
    options = {
        **{k: v.get("default") for k, v in _maintenance_options.OPTIONS.items()},
        **site.options(state="on"),
    }
    with pytest.raises(Problem, match=said):
        _maintenance.perform({**options, option: value}, False, print)
    assert serves(site)
