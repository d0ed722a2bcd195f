# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that speaks S3, on the controller, that the hosts of a scenario reach: Ceph's, or moto's where Ceph's is not named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from runs import PROJECT

sys.path.insert(0, str(PROJECT / "tests" / "ceph"))

import gateway

BUCKET = "backups"
DEADLINE = 60.0


class Moto:
    """moto's server on *address*; what was stored is gone when it is stopped."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.port = gateway.free_port(address)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers."""
        code = f"from moto.server import main; main(['-H', '{self.address}', '-p', '{self.port}'])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, self.port), 1).close()
                return
            assert self.process.poll() is None and time.monotonic() < until, "moto's server does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self.process:
            self.process.kill()
            self.process.wait()


class Store:
    """The bucket, asked past the collection; `base` is what the keys of the application and stage begin with."""

    def __init__(self, endpoint: str, base: str, access_key: str, secret_key: str) -> None:
        import boto3
        from botocore.config import Config

        self.endpoint = endpoint
        self.base = base
        self.client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        self.client.create_bucket(Bucket=BUCKET)

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def write(self, key: str, data: bytes) -> None:
        """Make an object, or put another in its place."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def copy(self, name: str) -> dict[str, Any]:
        """What the bucket has of the backup `name`: `{dump, manifest, whole}`, the key of the dump, the manifest, and whether they agree."""
        manifest = json.loads(self.read(f"{self.base}{name}/manifest.json"))
        dump = f"{self.base}{name}/{manifest['file']}"
        data = self.read(dump)
        whole = (len(data), hashlib.sha256(data).hexdigest()) == (manifest["size"], manifest["sha256"])
        return {"dump": dump, "manifest": manifest, "whole": whole}

    @contextlib.contextmanager
    def flipped(self, key: str) -> Iterator[None]:
        """Have one byte of an object be another, the size as before."""
        data = self.read(key)
        middle = len(data) // 2
        self.write(key, data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
        try:
            yield
        finally:
            self.write(key, data)


@contextlib.contextmanager
def serving(address: str, keys: dict[str, str]) -> Iterator[Moto | gateway.Gateway]:
    """Run an empty server on *address* of this machine that knows *keys*, ``{access_key, secret_key}``."""
    found = gateway.programs()
    if found:
        with gateway.running(found, keys, address) as running:
            yield running
        return
    moto = Moto(address)
    moto.start()
    try:
        yield moto
    finally:
        moto.stop()
