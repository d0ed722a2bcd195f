# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_store, with a server, a network and runs that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.object_store import (
    Fault,
    eventually,
    free_port,
    s3_server,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.store_host import (
    BASE,
    BUCKET,
    KEYS,
    LARGE,
    in_store,
    keys,
    store_host,
)

pytest.importorskip("boto3", reason="boto3 is not installed here: make venv")
pytest.importorskip("moto.server", reason="moto[server] is not installed here: make venv")

# Runs the module in a process of its own, so that it can be killed.
ALONE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _store_spec
from ansible_collections.runbook.deploy.plugins.modules import backup_store
_store_spec.PART_SIZE = 5 * 1024 * 1024
with patch_module_args(json.loads(sys.stdin.read())):
    backup_store.main()
"""


@pytest.fixture(scope="module")
def moto():
    with s3_server() as port:
        yield port


@pytest.fixture
def host(tmp_path, moto, capsys, monkeypatch):
    with store_host(tmp_path / "app", moto, capsys, monkeypatch) as found:
        yield found


@pytest.fixture
def proxy(host):
    return host.proxy


@pytest.fixture
def client(host):
    """The store, asked past the proxy."""
    return host.client


def answering(status, code="", **about):
    def fault(asked):
        return Fault("answer", status=status, code=code, **about)

    return fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (answering(403, "SignatureDoesNotMatch"), ("secret key is not that", "app_backup_store.secret_key")),
        (answering(507), ("the bucket is full", "make room")),
        (answering(503, "SlowDown"), ("cannot answer now (503 SlowDown)", "try again later")),
        (answering(403, "RequestTimeTooSkewed", date=time.time() - 7200), ("s ahead of the store's", "NTP")),
        (answering(301, "PermanentRedirect"), ("another region", "app_backup_store.region")),
    ],
)
def test_what_the_store_refuses_is_one_sentence_and_the_backup_untouched(host, proxy, client, fault, words):
    data = host.backup("one")
    before = host.manifest("one")
    proxy.fault = fault
    message = host.fails("present", "one")
    assert all(word in message for word in words), message
    assert f"the bucket {BUCKET!r} at {host.store['endpoint']}" in message
    assert "the backup on this host is whole" in message
    assert host.manifest("one") == before
    assert (host.root / "backups" / "one" / "shop.dump").read_bytes() == data
    proxy.clear()
    assert keys(client) == []
    # Nothing is left behind that keeps the next run from it.
    assert host.run("present", "one")["changed"] is True


def test_a_bucket_that_is_missing_is_named(host):
    host.backup("one")
    assert "there is no such bucket" in host.fails("present", "one", store={"bucket": "another"})
    assert "there is no such bucket" in host.fails("ready", store={"bucket": "another"})
    assert host.run("ready")["changed"] is False


def test_nobody_at_the_address(host):
    host.backup("one")
    message = host.fails("present", "one", store={"endpoint": f"http://127.0.0.1:{free_port()}"})
    assert "it cannot be reached" in message
    assert "app_backup_store.endpoint" in message


def test_who_accepts_and_never_answers_is_given_up_in_time(host, proxy):
    host.backup("one")
    proxy.fault = lambda asked: Fault("hold")
    begun = time.monotonic()
    message = host.fails("present", "one", store={"timeout": 10})
    assert "it stopped answering" in message or "not done within 10 s" in message
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("way", ["up", "down"])
def test_bytes_that_change_on_the_way_are_found_and_no_copy_is_claimed(host, proxy, client, way):
    host.backup("one", 100_000)
    before = host.manifest("one")
    method = {"up": "PUT", "down": "GET"}[way]
    proxy.fault = lambda asked: (
        Fault("flip", way) if asked.method == method and asked.path.endswith("shop.dump") else None
    )
    message = host.fails("present", "one")
    assert "not what was backed up: the sha256" in message or "what arrived was not what was sent" in message
    assert host.manifest("one") == before
    assert keys(client) == []


def test_a_large_file_whose_part_changes_on_the_way_is_found(host, proxy, client):
    host.backup("one", LARGE)
    proxy.fault = lambda asked: Fault("flip") if asked.query.get("partNumber") == ["2"] else None
    host.fails("present", "one")
    assert keys(client) == []
    assert "store" not in host.manifest("one")
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def once(wanted, fault):
    """Return a fault for the first request that *wanted* says yes to."""
    left = [fault]
    return lambda asked: left.pop() if left and wanted(asked) else None


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        (lambda asked: asked.is_part, Fault("cut", "up")),
        (lambda asked: asked.method == "GET" and asked.path.endswith("shop.dump"), Fault("cut", "down")),
        (lambda asked: asked.is_part, Fault("answer", status=503, code="SlowDown")),
    ],
)
def test_a_connection_that_breaks_off_once_is_gone_over(host, proxy, client, wanted, fault):
    data = host.backup("one", LARGE)
    proxy.fault = once(wanted, fault)
    assert host.run("present", "one")["changed"] is True
    assert in_store(client, "one") == data


def test_a_connection_that_always_breaks_off_leaves_nothing(host, proxy, client):
    host.backup("one", LARGE)
    proxy.fault = lambda asked: Fault("cut", "up") if asked.is_part else None
    message = host.fails("present", "one")
    assert "the connection broke off" in message or "the connection failed" in message, message
    assert keys(client) == []
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


@pytest.mark.parametrize("moment", ["part", "compare", "manifest"])
def test_a_run_that_is_killed_leaves_nothing_that_looks_whole_and_the_next_one_clears_up(
    host, proxy, client, moment
):
    data = host.backup("one", LARGE)
    wanted = {
        "part": lambda asked: asked.query.get("partNumber") == ["3"],
        "compare": lambda asked: asked.method == "GET" and asked.path.endswith("shop.dump"),
        "manifest": lambda asked: asked.method == "PUT" and asked.path.endswith("manifest.json"),
    }[moment]
    held = []

    def fault(asked):
        if wanted(asked):
            held.append(asked)
            return Fault("hold")
        return None

    proxy.fault = fault
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", ALONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        process.stdin.write(json.dumps(host.arguments("present", "one")).encode())
        process.stdin.close()
        eventually(lambda: held or process.poll() is not None, "the request to be held did not come")
        assert process.poll() is None
        # Its keys are in nobody's command line.
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert KEYS["secret_key"].encode() not in place.read_bytes()
            except OSError:
                continue
        process.send_signal(signal.SIGKILL)
    proxy.clear()
    assert f"{BASE}one/manifest.json" not in keys(client)
    assert (f"{BASE}one/shop.dump" in keys(client)) == (moment != "part")
    assert "store" not in host.manifest("one")
    listed = host.run("listed")["backups"]
    assert [(row["id"], row["store"]) for row in listed] == [
        ("one", "no" if moment == "part" else "unfinished")
    ]
    if moment == "part":
        assert client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert host.run("present", "one")["changed"] is True
    assert in_store(client, "one") == data
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_a_damaged_backup_is_not_copied_and_that_is_never_excused(host, client):
    data = host.backup("one", LARGE)
    (host.root / "backups" / "one" / "shop.dump").write_bytes(data[:-1] + b"x")
    message = host.fails("present", "one", store={"required": False})
    assert "is damaged" in message
    assert keys(client) == []
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_another_dump_of_the_same_name_is_not_overwritten(host, client):
    data = host.backup("one")
    host.run("present", "one")
    place = host.root / "backups" / "one"
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    host.backup("one", 999)
    message = host.fails("present", "one", store={"required": False})
    assert "is not overwritten" in message
    assert in_store(client, "one") == data
    assert host.run("listed")["backups"][0]["store"] == "different"
