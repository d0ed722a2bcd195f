# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that runs the application the old way: taken over, and given back when that is asked for.

A git checkout with its own environment and unit, behind a web server as a person configured it; the database stays
where it is. Once the old service is on a port, which the new one has to take; once on a socket, and nobody notices.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from site_tools import ROOT, Site, host

OLD = "/opt/goexplorer"
DATABASE = f"{OLD}-data/goexplorer.sqlite3"
UNIT = "goexplorer-old.service"
PUBLIC = 8080
COUNT = "select count(*) from owner_agreements_agreementrisksignal where details = 'kept'"
SECRET = "the-old-secret-of-the-installation-by-hand"


class Way(NamedTuple):
    """How the old service is reached, and how the new one will be."""

    bind: str
    upstream: str
    changes: dict[str, Any]


SERVICE = {"name": "web", "stop_timeout": 5}
WAYS = {
    # The new service takes the old one's port, so that the web server needs no change.
    "port": Way(
        "127.0.0.1:8000",
        "127.0.0.1:8000",
        {
            "app_services": [
                {
                    **SERVICE,
                    "bind": "port",
                    "port": 8000,
                    "command": "gunicorn goexplorer.wsgi --workers 1 --bind 127.0.0.1:{port} --no-control-socket",
                }
            ],
            "app_web_server": {},
            "app_adopt": {"service": UNIT, "path": OLD},
        },
    ),
    # The web server is pointed to the link that deployments switch; setup leads it to the old socket.
    "socket": Way(
        f"unix:{OLD}/web.sock",
        f"unix:{ROOT}/run/web.sock",
        {"app_web_server": {}, "app_adopt": {"service": UNIT, "path": OLD, "socket": f"{OLD}/web.sock"}},
    ),
}


def install_by_hand(way: Way) -> None:
    """What a person did years ago."""
    member = host("guard1")
    member.sh(
        f"set -e; install -d -o goexplorer -g goexplorer {OLD} {OLD}-data; cd {OLD}; [ -d code ] || git clone -q -b v2.6 "
        "/repositories/goexplorer.git code; [ -d venv ] || { python3 -m venv venv; venv/bin/pip install -q --no-index "
        "--find-links /wheels --disable-pip-version-check -r code/requirements.txt; }; "
        f"printf 'GOEXPLORER_SECRET_KEY={SECRET}\\nGOEXPLORER_DATABASE={DATABASE}\\nGOEXPLORER_ALLOWED_HOSTS=*\\n"
        "DJANGO_SETTINGS_MODULE=goexplorer.settings\\n' > settings.env; "
        "set -a; . ./settings.env; set +a; cd code; ../venv/bin/python manage.py migrate -v 0; "
        f"../venv/bin/python manage.py collectstatic --noinput -v 0; chown -R goexplorer: {OLD} {OLD}-data"
    )
    unit = (
        f"[Service]\\nUser=goexplorer\\nWorkingDirectory={OLD}/code\\nEnvironmentFile={OLD}/settings.env\\n"
        f"ExecStart={OLD}/venv/bin/gunicorn goexplorer.wsgi --workers 1 --bind {way.bind} --no-control-socket\\n"
        "Restart=always\\n[Install]\\nWantedBy=multi-user.target\\n"
    )
    web = f"server {{ listen {PUBLIC}; location / {{ proxy_pass http://{way.upstream}; proxy_set_header Host $host; }} }}\\n"
    member.sh(
        f"printf '{unit}' > /etc/systemd/system/{UNIT}; systemctl daemon-reload; systemctl enable -q --now {UNIT}; "
        f"printf '{web}' > /etc/nginx/conf.d/by-hand.conf; nginx -q -t && systemctl reload nginx"
    )


def remove_by_hand() -> None:
    host("guard1").sh(
        f"systemctl disable -q --now {UNIT} 2>/dev/null; rm -rf {OLD}-data /etc/systemd/system/{UNIT} "
        f"/etc/nginx/conf.d/by-hand.conf {OLD}/web.sock; systemctl daemon-reload; systemctl reload nginx"
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(way, marks=[pytest.mark.short] if way == "socket" else []) for way in sorted(WAYS)],
)
def adopted(empty, tmp_path_factory, request) -> Iterator[Site]:
    """An installation by hand that serves, and an inventory that describes it."""
    empty.forget()
    way = WAYS[request.param]
    site = Site(
        tmp_path_factory.mktemp("adopted"),
        ("guard1",),
        app_url=f"http://{host('guard1').address}:{PUBLIC}",
        app_database={"engine": "sqlite", "path": DATABASE},
        **way.changes,
    )
    install_by_hand(way)
    try:
        yield site
    finally:
        site.forget()
        remove_by_hand()
        empty.good("setup")


def old_pid() -> int:
    """The main process of the old service; 0 when it does not run."""
    return int(host("guard1").sh(f"systemctl show --value -p MainPID {UNIT}"))


def post() -> None:
    """Write a row as a user does."""
    member = host("guard1")
    body = json.dumps({"risk_type": "EXPIRING", "severity": "INFO", "details": "kept"})
    member.sh(
        f"curl -sf -X POST -H 'Content-Type: application/json' -d '{body}' http://127.0.0.1:{PUBLIC}/signals/report/"
    )


@contextmanager
def visitor() -> Iterator[list[str]]:
    """Somebody who asks for a page all the time; what went wrong for them is in the list."""
    lost: list[str] = []
    asked = 0
    ended = threading.Event()

    def ask() -> None:
        nonlocal asked
        while not ended.wait(0.05):
            status, _headers, text = host("guard1").get("/", PUBLIC, 10)
            asked += 1
            if status != 200:
                lost.append(f"{status} {text[:100]}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()
        print(f"{asked} requests, {len(lost)} lost")
        assert asked > 20


def public() -> str:
    return host("guard1").version(PUBLIC)


def assert_old_serves(pid: int = 0) -> None:
    member = host("guard1")
    assert public() == "v2.6"
    assert old_pid() > 0
    if pid:
        assert old_pid() == pid
    assert member.sh(f"systemctl is-enabled {UNIT}", check=False) == "enabled"
    assert member.units() == set()
    assert member.instances() == set()
    assert not member.sh(f"readlink {ROOT}/current", check=False)


def assert_new_serves(version: str) -> None:
    member = host("guard1")
    assert public() == version
    assert len(member.instances()) == 1
    assert old_pid() == 0
    assert member.sh(f"systemctl is-enabled {UNIT}", check=False) == "disabled"


def test_taken_over_and_given_back(adopted):
    """One story, because each step starts from what the one before left."""
    member = host("guard1")
    # With a socket of its own, the web server gets there only after setup made the link.
    adopted.good("setup")
    pid = old_pid()
    assert_old_serves(pid)
    post()

    before = member.tree()
    adopted.good("deploy", "--check", "--diff", version="v2.7")
    assert member.tree() == before

    # A release that is broken is found out before the old one is touched.
    run = adopted.deploy("broken-health")
    assert run.rc != 0
    assert "500" in run.end
    assert_old_serves(pid)
    post()

    # One that fails after it took the traffic is taken back.
    picky = Site(
        adopted.directory.with_name(f"{adopted.directory.name}-picky"),
        ("guard1",),
        **{
            **{name: value for name, value in adopted.variables.items() if name.startswith("app_")},
            "app_smoke_tests": [{"name": "wrong", "url": "/", "contains": "a text that is nowhere"}],
        },
    )
    run = picky.deploy("v2.7")
    assert run.rc != 0
    assert "a text that is nowhere" in run.end
    assert "FAILED, AND TAKEN BACK" in run.end
    assert_old_serves()
    post()

    with visitor() as lost:
        adopted.good("deploy", version="v2.7")
    if "socket" in adopted.variables["app_adopt"]:
        assert lost == []
    assert_new_serves("v2.7")
    post()
    status = adopted.good("status")
    assert "rollback would go to: the adopted installation" in status.end
    assert "nothing needs attention." in status.end

    # After a reboot of either, exactly one of them would be started.
    assert member.sh("systemctl is-enabled goexplorer-guards.service") == "enabled"

    with visitor() as lost:
        adopted.good("rollback")
    if "socket" in adopted.variables["app_adopt"]:
        assert lost == []
    assert_old_serves()
    status = adopted.good("status")
    assert "the adopted installation" in status.end
    assert "nothing needs attention." in status.end
    post()

    adopted.good("deploy", version="v2.7")
    assert_new_serves("v2.7")
    post()
    assert member.rows(COUNT, DATABASE) == ["6"]
