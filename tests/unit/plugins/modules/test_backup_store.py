# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_store, run whole against a real server that speaks S3, with faults between the two."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _store_session, _store_spec
from ansible_collections.runbook.deploy.plugins.module_utils._environment import ask_interpreter
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.modules import backup_store
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.release_tools import make_wheel
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.object_store import (
    Fault,
    Proxy,
    eventually,
    free_port,
    s3_server,
)

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed here: make venv")
pytest.importorskip("moto.server", reason="moto[server] is not installed here: make venv")

BUCKET = "backups"
BASE = "sites/shop/production/"
KEYS = {"access_key": "AKIDEXAMPLE", "secret_key": "thesecretofthekey"}
# Quicker than pip; pip where there is none.
UV = shutil.which("uv", path=os.path.dirname(sys.executable))
DEPLOYMENT = "20261121T013700-ab12"
MIB = 1024 * 1024
# The least that S3 takes as a part; a large file has three.
PART = 5 * MIB
LARGE = 12 * MIB
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
def proxy(moto):
    server = Proxy(moto)
    yield server
    server.close()


@pytest.fixture
def client(moto):
    """The store, asked past the proxy; the bucket is empty."""
    found = boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{moto}",
        region_name="us-east-1",
        aws_access_key_id="looker",
        aws_secret_access_key="looker",
    )
    found.create_bucket(Bucket=BUCKET)
    yield found
    for entry in found.list_multipart_uploads(Bucket=BUCKET).get("Uploads") or []:
        found.abort_multipart_upload(Bucket=BUCKET, Key=entry["Key"], UploadId=entry["UploadId"])
    for key in keys(found):
        found.delete_object(Bucket=BUCKET, Key=key)


def keys(client):
    return sorted(entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents") or [])


class Host:
    """An application's directory whose environment of boto3 is this test's own."""

    def __init__(self, root: Path, port: int, capsys) -> None:
        self.root, self.capsys = root, capsys
        for name in ("backups", "environments", "deployments"):
            (root / name).mkdir(parents=True)
        self.store = {
            "endpoint": f"http://127.0.0.1:{port}",
            "bucket": BUCKET,
            "prefix": "sites",
            "timeout": 120,
            **KEYS,
        }
        self.environment = _store_session.environment_of(Layout(root), ask_interpreter(sys.executable))
        (self.environment / "bin").mkdir(parents=True)
        python = self.environment / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (self.environment / ".built").touch()

    def backup(
        self, name: str, size: int = 1000, created: str = "2026-11-21T01:37:00Z", kind: str = "manual"
    ) -> bytes:
        """Make a backup as the engines leave it."""
        data = random.Random(f"{name}{size}").randbytes(size)
        place = self.root / "backups" / name
        place.mkdir(parents=True)
        (place / "shop.dump").write_bytes(data)
        manifest = {
            "schema": 1,
            "id": name,
            "engine": "sqlite",
            "file": "shop.dump",
            "size": size,
            "sha256": hashlib.sha256(data).hexdigest(),
            "counts": {"note": 3},
            "heads": {},
            "created": created,
            "kind": kind,
        }
        (place / "manifest.json").write_text(json.dumps(manifest))
        return data

    def manifest(self, name: str) -> dict:
        return json.loads((self.root / "backups" / name / "manifest.json").read_text())

    def arguments(self, state: str, name: str | None = None, **options) -> dict:
        store = {**self.store, **options.pop("store", {})}
        options = {name: value for name, value in options.items() if value is not None}
        return {
            "root": str(self.root),
            "state": state,
            "application": "shop",
            "stage": "production",
            "store": store,
            "python": sys.executable,
            **({"id": name} if name else {}),
            **options,
        }

    def run(self, state: str, name: str | None = None, check: bool = False, **options) -> dict:
        arguments = {**self.arguments(state, name, **options), "_ansible_check_mode": check}
        with patch_module_args(arguments), pytest.raises(SystemExit) as caught:
            backup_store.main()
        said = self.capsys.readouterr()
        answer = json.loads(said.out)
        assert bool(caught.value.code) == bool(answer.get("failed"))
        assert KEYS["secret_key"] not in said.out.replace(json.dumps(answer.get("invocation") or {}), "")
        return answer

    def fails(self, state: str, name: str | None = None, **options) -> str:
        """Return the sentence of a failure."""
        answer = self.run(state, name, **options)
        assert answer.get("failed"), answer
        assert answer["msg"].endswith(".")
        assert "\n" not in answer["msg"]
        return answer["msg"]


@pytest.fixture
def host(tmp_path, proxy, client, capsys, monkeypatch):
    monkeypatch.setattr(_store_spec, "PART_SIZE", PART)
    return Host(tmp_path / "app", proxy.port, capsys)


def in_store(client, name):
    key = f"{BASE}{name}/shop.dump"
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


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


def test_the_server_is_asked_to_encrypt(host, client):
    host.backup("one")
    host.run("present", "one", store={"server_side_encryption": "AES256"})
    for file in ("shop.dump", "manifest.json"):
        assert client.head_object(Bucket=BUCKET, Key=f"{BASE}one/{file}")["ServerSideEncryption"] == "AES256"


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


def test_without_being_required_it_is_degraded_and_the_run_goes_on(host, proxy, monkeypatch):
    # Where they go depends on whether the tests of this process have imported the controller's side.
    warnings = []
    monkeypatch.setattr(backup_store.AnsibleModule, "warn", lambda module, text: warnings.append(text))
    host.backup("one")
    proxy.fault = answering(403, "AccessDenied")
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
    assert "not what was backed up" in host.fails("present", "one")


def lose(host, name):
    place = host.root / "backups" / name
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


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
