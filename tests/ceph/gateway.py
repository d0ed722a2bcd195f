# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ceph's server for S3, the RADOS gateway, with all that it keeps in files of SQLite instead of a cluster.

`fetch.sh DIRECTORY` brings the programs; `RADOSGW_BIN` names `DIRECTORY/bin`. The gateway is that of real clusters. What
it cannot do with this backend is encrypt without TLS, and keep the parts of a multipart upload apart: in 18.2 and 20.2 all
but the last come back as other bytes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# The directory with radosgw and radosgw-admin; none: these tests use another server.
VARIABLE = "RADOSGW_BIN"
DEADLINE = 60.0
CONFIGURATION = """[global]
log_file = {place}/radosgw.log
plugin_dir = {plugins}
run_dir = {place}
admin_socket =
[client]
rgw_data = {place}
rgw_backend_store = dbstore
rgw_config_store = dbstore
rgw_run_sync_thread = false
dbstore_db_dir = {place}
dbstore_config_uri = file:{place}/config.db
rgw_frontends = beast endpoint={address}:{port}
"""


class Gateway:
    """A gateway that listens on *address* while it is started; it keeps in *place* what was stored.

    :param programs: the directory with radosgw and radosgw-admin.
    """

    def __init__(self, programs: Path, place: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.programs = programs
        self.place = place
        self.address = address
        self.port = port or free_port(address)
        self.process: subprocess.Popen[bytes] | None = None
        plugins = next(programs.parent.glob("root/usr/lib/*/ceph"))
        self.configuration = place / "ceph.conf"
        self.configuration.write_text(
            CONFIGURATION.format(place=place, plugins=plugins, address=address, port=self.port)
        )

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    def command(self, program: str, *words: str) -> list[str]:
        """Return the command line of one of Ceph's programs, which asks no monitor for its settings."""
        options = [
            "--no-mon-config",
            "--keyring=/dev/null",
            "-c",
            str(self.configuration),
            "-n",
            "client.rgw",
        ]
        return [str(self.programs / program), *words, *options]

    def start(self) -> None:
        """Start it, and return when it answers."""
        with (self.place / "output").open("ab") as output:
            self.process = subprocess.Popen(
                self.command("radosgw", "-f"), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        until = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, self.port), 1).close()
                return
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"radosgw does not answer:\n{(self.place / 'output').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it; what was stored stays."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def admit(self, access_key: str, secret_key: str) -> None:
        """Make the user `tests` with these keys; he may make buckets."""
        made = ("user", "create", "--uid=tests", "--display-name=tests")
        words = self.command("radosgw-admin", *made, f"--access-key={access_key}", f"--secret={secret_key}")
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        if done.returncode:
            raise RuntimeError(f"radosgw-admin failed:\n{done.stdout[-500:]}{done.stderr[-1500:]}")


def free_port(address: str) -> int:
    """Return a port of *address* that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def programs() -> Path | None:
    """Return the directory that the environment names; None where it names none."""
    named = os.environ.get(VARIABLE, "")
    return Path(named) if named else None


@contextlib.contextmanager
def running(found: Path, keys: dict[str, str], address: str = "127.0.0.1") -> Iterator[Gateway]:
    """Run an empty gateway of the programs in *found* that knows *keys*, ``{access_key, secret_key}``."""
    with tempfile.TemporaryDirectory(prefix="radosgw-") as place:
        gateway = Gateway(found.resolve(), Path(place), address)
        gateway.admit(**keys)
        gateway.start()
        try:
            yield gateway
        finally:
            gateway.stop()
