# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_store, run whole against a real server that speaks S3."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
from ansible_collections.runbook.deploy.plugins.modules import backup_store
from ansible_collections.runbook.deploy.tests.ceph import gateway
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.release_tools import make_wheel
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.object_store import Fault, s3_server
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.store_host import (
    BASE,
    BUCKET,
    KEYS,
    LARGE,
    MIB,
    in_store,
    keys,
    lose,
    store_host,
)

pytest.importorskip("boto3", reason="boto3 is not installed here: make venv")
pytest.importorskip("moto.server", reason="moto[server] is not installed here: make venv")

# Quicker than pip; pip where there is none.
UV = shutil.which("uv", path=os.path.dirname(sys.executable))
DEPLOYMENT = "20261121T013700-ab12"


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


@pytest.mark.parametrize("size", [0, 1000, LARGE])
def test_a_copy_is_in_the_store_byte_by_byte_and_the_manifest_says_where(host, client, size):
    data = host.backup("one", size)
    before = host.manifest("one")
    answer = host.run("present", "one")
    assert answer["changed"] is True
    assert in_store(client, "one") == data
    assert keys(client) == [f"{BASE}one/manifest.json", f"{BASE}one/shop.dump"]
    store = answer["store"]
    assert store["location"] == f"s3://{BUCKET}/{BASE}one/shop.dump"
    assert (store["sha256"], store["size"]) == (before["sha256"], size)
    assert host.manifest("one") == {**before, "store": store}
    stored = json.loads(client.get_object(Bucket=BUCKET, Key=f"{BASE}one/manifest.json")["Body"].read())
    assert stored == before
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
    head = client.head_object(Bucket=BUCKET, Key=f"{BASE}one/shop.dump")
    assert head["Metadata"] == {"runbook-backup": "one", "runbook-sha256": before["sha256"]}


def test_a_copy_that_is_there_is_compared_and_not_uploaded_again(host, proxy):
    host.backup("one")
    host.run("present", "one")
    proxy.asked.clear()
    answer = host.run("present", "one")
    assert answer["changed"] is False
    assert answer["store"]["sha256"] == host.manifest("one")["sha256"]
    assert not [asked for asked in proxy.asked if asked.method not in ("GET", "HEAD")]
    assert [asked for asked in proxy.asked if asked.path.endswith("/shop.dump")]


@pytest.mark.skipif(bool(gateway.programs()), reason="Ceph's server encrypts only what came through TLS")
def test_the_server_is_asked_to_encrypt(host, client):
    host.backup("one")
    host.run("present", "one", store={"server_side_encryption": "AES256"})
    for file in ("shop.dump", "manifest.json"):
        assert client.head_object(Bucket=BUCKET, Key=f"{BASE}one/{file}")["ServerSideEncryption"] == "AES256"


def test_without_being_required_it_is_degraded_and_the_run_goes_on(host, proxy, monkeypatch):
    # Where they go depends on whether the tests of this process have imported the controller's side.
    warnings = []
    monkeypatch.setattr(backup_store.AnsibleModule, "warn", lambda module, text: warnings.append(text))
    host.backup("one")
    proxy.fault = lambda asked: Fault("answer", status=403, code="AccessDenied")
    for state in ("ready", "present"):
        answer = host.run(state, "one", store={"required": False})
        assert "may not do this" in answer["degraded"]
        assert warnings.pop() == f"DEGRADED: {answer['degraded']}"
    assert answer["store"] is None


def test_retention_removes_old_copies_of_ours_alone(host, client):
    for number in range(1, 6):
        host.backup(f"b{number}", 100, f"2026-11-0{number}T00:00:00Z")
    foreign = [
        "other/shop/production/b1/shop.dump",
        "sites/shop/staging/b1/manifest.json",
        "sites/shop/production-eu/b1/manifest.json",
        "sites/shop/production/readme.txt",
        "sites/shop/production/b0/notes/deep.txt",
    ]
    for key in foreign:
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    for number in range(1, 6):
        answer = host.run("present", f"b{number}", store={"keep": 0})
        assert answer["removed"] == []
    pin(host, "b2")
    preview = host.run("absent", store={"keep": 2}, check=True)
    assert sorted(preview["removed"]) == ["b1", "b3"]
    assert len(keys(client)) == 10 + len(foreign)
    assert sorted(host.run("absent", store={"keep": 2})["removed"]) == ["b1", "b3"]
    kept = [f"{BASE}{name}/{file}" for name in ("b2", "b4", "b5") for file in ("manifest.json", "shop.dump")]
    assert keys(client) == sorted([*kept, *foreign])
    assert "store" not in host.manifest("b1")
    assert "store" in host.manifest("b2")
    # A day counts, too, but for the newest three.
    assert host.run("absent", store={"keep": 5, "keep_days": 1})["removed"] == []
    # What a record that cannot be read needs is not known.
    (host.root / "deployments" / f"{DEPLOYMENT}.json").write_text("{")
    assert "no copy was removed" in host.fails("absent", store={"keep": 1})
    assert keys(client) == sorted([*kept, *foreign])


def pin(host, name):
    """Let a deployment that is not finished need the backup *name*."""
    record = {
        "schema": 1,
        "id": DEPLOYMENT,
        "kind": "deployment",
        "verdict": None,
        "begun": "2026-11-21T01:37:00Z",
        "finished": None,
        "phases": [],
        "backup": {"id": name},
    }
    (host.root / "deployments" / f"{DEPLOYMENT}.json").write_text(json.dumps(record))


def test_what_was_asked_for_stays_however_old_it_is(host, client):
    host.backup("new", created="2026-11-20T00:00:00Z")
    host.backup("old", created="2026-01-20T00:00:00Z")
    host.run("present", "new", store={"keep": 1})
    assert host.run("present", "old", store={"keep": 1})["removed"] == []
    assert in_store(client, "old")


def test_a_copy_that_rots_in_the_store_is_found(host, client):
    data = host.backup("one")
    host.backup("two", created="2026-11-22T00:00:00Z")
    host.run("present", "one")
    host.run("present", "two")
    proved = host.run("verified", ids=["all"])
    assert proved["states"] == {"two": "intact", "one": "intact"}
    client.put_object(Bucket=BUCKET, Key=f"{BASE}one/shop.dump", Body=data[:-1] + b"!")
    # The newest alone, when none is named.
    assert host.run("verified")["states"] == {"two": "intact"}
    answer = host.run("verified", ids=["all"])
    assert answer["failed"] is True
    assert answer["states"] == {"two": "intact", "one": "FAILED"}
    assert "The copy of the backup one" in answer["msg"]
    assert "nothing was changed" in answer["msg"]


@pytest.mark.parametrize("loss", ["rotten", "gone"])
def test_a_copy_that_is_damaged_in_the_store_is_written_again(host, client, loss):
    data = host.backup("one")
    host.run("present", "one")
    key = f"{BASE}one/shop.dump"
    if loss == "rotten":
        client.put_object(Bucket=BUCKET, Key=key, Body=data[:-1] + b"!")
    else:
        client.delete_object(Bucket=BUCKET, Key=key)
    assert host.run("present", "one")["changed"] is True
    assert in_store(client, "one") == data
    # Not by one that is damaged itself.
    client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * len(data))
    (host.root / "backups" / "one" / "shop.dump").write_bytes(data[:-1] + b"?")
    assert "is damaged" in host.fails("present", "one")
    assert in_store(client, "one") == b"x" * len(data)


@pytest.mark.parametrize("loss", ["all", "dump", "damaged"])
def test_a_backup_that_a_host_lost_comes_back(host, client, loss):
    data = host.backup("one", 3 * MIB)
    host.run("present", "one")
    dump = host.root / "backups" / "one" / "shop.dump"
    if loss == "all":
        lose(host, "one")
    elif loss == "dump":
        dump.unlink()
    else:
        dump.write_bytes(data[:-1] + b"!")
    assert host.run("fetched", "one", check=True)["changed"] is True
    answer = host.run("fetched", "one")
    assert answer["changed"] is True
    assert dump.read_bytes() == data
    assert dump.stat().st_mode & 0o777 == 0o600
    assert dump.parent.stat().st_mode & 0o777 == 0o700
    assert host.manifest("one")["store"] == answer["store"]
    assert host.run("fetched", "one")["changed"] is False
    assert sorted(
        path.name for path in (host.root / "backups").iterdir() if not path.name.startswith(".lock")
    ) == ["one"]


def test_a_copy_that_is_damaged_does_not_come_back(host, client):
    data = host.backup("one")
    host.run("present", "one")
    lose(host, "one")
    client.put_object(Bucket=BUCKET, Key=f"{BASE}one/shop.dump", Body=data[:-1] + b"!")
    message = host.fails("fetched", "one")
    assert "is damaged: the sha256" in message
    assert not [path for path in (host.root / "backups").iterdir() if not path.name.startswith(".lock")]
    assert "There is no copy of the backup 'two'" in host.fails("fetched", "two")


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        json.dumps({"schema": 1}),
        json.dumps(
            {
                "schema": 1,
                "engine": "sqlite",
                "file": "../../current/x",
                "size": 1,
                "sha256": "0",
                "counts": {},
                "heads": {},
                "created": "",
            }
        ),
    ],
)
def test_a_manifest_in_the_store_that_is_none_of_ours_makes_no_copy(host, client, text):
    client.put_object(Bucket=BUCKET, Key=f"{BASE}one/manifest.json", Body=text.encode())
    client.put_object(Bucket=BUCKET, Key=f"{BASE}one/shop.dump", Body=b"x")
    assert "There is no copy" in host.fails("fetched", "one")
    assert [row["store"] for row in host.run("listed")["backups"]] == ["unfinished"]
    assert host.run("absent", store={"keep": 1})["removed"] == []


def test_check_mode_writes_nowhere(host, proxy, client):
    host.backup("one")
    answer = host.run("present", "one", check=True)
    assert answer["changed"] is True
    assert keys(client) == []
    assert "store" not in host.manifest("one")
    assert {asked.method for asked in proxy.asked} <= {"GET", "HEAD"}
    (host.environment / ".built").unlink()
    proxy.asked.clear()
    answer = host.run("present", "one", check=True)
    assert "would be built" in answer["msg"]
    assert proxy.asked == []


def test_an_environment_that_cannot_be_built_is_one_sentence(host, tmp_path):
    host.backup("one")
    (host.environment / ".built").unlink()
    (tmp_path / "empty").mkdir()
    build = json.dumps({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "empty")})
    message = host.fails("present", "one", build_environment=build, uv=UV)
    assert "cannot be built for app_backup_store (boto3)" in message
    assert "app_requirements" not in message
    answer = host.run("ready", build_environment=build, uv=UV, store={"required": False})
    assert "cannot be built" in answer["degraded"]


def test_the_environment_is_built_from_the_index_that_is_named(host, tmp_path):
    (host.environment / ".built").unlink()
    make_wheel(tmp_path / "wheels", "boto3", "1.99.0")
    build = json.dumps({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")})
    # It is no boto3, so that the client cannot be made; but it is installed.
    message = host.fails("ready", build_environment=build, uv=UV)
    assert (host.environment / ".built").is_file()
    assert "the process of boto3 failed" in message
    assert host.environment.name.startswith("store-")


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ({"bucket": "x"}, "app_backup_store.bucket"),
        ({"endpoint": "s3.example.org"}, "scheme and host"),
        ({"endpoint": "https://key:secret@s3.example.org"}, "scheme, host and port alone"),
        ({"secret_key": ""}, "belong together"),
        ({"prefix": "a//b"}, "app_backup_store.prefix"),
        ({"prefix": "a/../b"}, "app_backup_store.prefix"),
        ({"timeout": 1}, "at least 10"),
        ({"keep": -1}, "at least 0"),
        ({"server_side_encryption": "rot13"}, "AES256"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(host, proxy, store, words):
    host.backup("one")
    assert words in host.fails("present", "one", store=store)
    assert proxy.asked == []


def test_names_that_lead_elsewhere_are_refused(host, proxy):
    assert "id" in host.fails("fetched", "../x")
    assert "There is no backup 'none'" in host.fails("present", "none", store={"required": False})
    assert proxy.asked == []


@pytest.mark.made_up_records
def test_the_record_says_where_the_copy_is_or_why_there_is_none(host, proxy):
    host.backup(DEPLOYMENT, kind="deployment")
    about = {"kind": "deployment"}
    record = {"id": DEPLOYMENT, "token": "t", "host": "web1", "primary": False, "about": about}
    path = host.root / "deployments" / f"{DEPLOYMENT}.json"
    pin(host, DEPLOYMENT)
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "token": "t", "host": "web1", "primary": False}))
    proxy.fault = lambda asked: Fault("answer", status=507)
    answer = host.run("present", DEPLOYMENT, record=record, store={"required": False})
    found = json.loads(path.read_text())
    assert found["backup"] == {"id": DEPLOYMENT, "store": None, "degraded": answer["degraded"]}
    assert found["phases"][-1]["state"] == "done"
    assert "the bucket is full" in found["phases"][-1]["result"]["degraded"]
    assert host.fails("present", DEPLOYMENT, record=record)
    assert json.loads(path.read_text())["phases"][-1]["state"] == "failed"
    proxy.clear()
    answer = host.run("present", DEPLOYMENT, record=record)
    found = json.loads(path.read_text())
    assert found["backup"] == {"id": DEPLOYMENT, "store": answer["store"]}
    assert KEYS["secret_key"] not in path.read_text()
