# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application's host whose backups go to a real server that speaks S3, past a proxy with faults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _store_session, _store_spec
from ansible_collections.runbook.deploy.plugins.module_utils._environment import ask_interpreter
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.modules import backup_store
from ansible_collections.runbook.deploy.tests.ceph import gateway
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.object_store import KEYS, Proxy

BUCKET = "backups"
BASE = "sites/shop/production/"
MIB = 1024 * 1024
# The least that S3 takes as a part; a large file has three.
PART = 5 * MIB
LARGE = 12 * MIB


def keys(client):
    """The names of all that is in the bucket."""
    return sorted(entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents") or [])


def in_store(client, name):
    """The dump in the store, past the proxy."""
    return client.get_object(Bucket=BUCKET, Key=f"{BASE}{name}/shop.dump")["Body"].read()


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
        if size > PART and gateway.programs():
            pytest.skip(
                "without a cluster Ceph's server mixes up the parts of an upload (tests/ceph/gateway.py)"
            )
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


def lose(host, name):
    """Remove a backup from the host."""
    place = host.root / "backups" / name
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


@contextlib.contextmanager
def store_host(root: Path, port: int, capsys, monkeypatch) -> Iterator[Host]:
    """Give a host of its own, and an empty bucket on the server at *port*; ``client`` asks it past the ``proxy``."""
    import boto3

    monkeypatch.setattr(_store_spec, "PART_SIZE", PART)
    proxy = Proxy(port)
    host = Host(root, proxy.port, capsys)
    host.proxy = proxy
    host.client = client = boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=KEYS["access_key"],
        aws_secret_access_key=KEYS["secret_key"],
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield host
    finally:
        proxy.close()
        for entry in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads") or []:
            client.abort_multipart_upload(Bucket=BUCKET, Key=entry["Key"], UploadId=entry["UploadId"])
        for key in keys(client):
            client.delete_object(Bucket=BUCKET, Key=key)
