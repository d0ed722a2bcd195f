# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates of a healthy host pass; then one thing after the other is broken, and exactly the right check says so."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator

import pytest

SIGNALS = "owner_agreements_agreementrisksignal"
GATES = [
    {"name": "space", "disk": "/mnt/gate", "free": "> 1MB"},
    {"name": "inodes", "disk": "/mnt/gate", "inodes_percent": "> 10%"},
    {"name": "clock", "clock": "< 60s"},
    {"name": "interpreter", "python": "python3", "version": ">= 3.9"},
    {"name": "settings", "variables": ["GOEXPLORER_SECRET_KEY"]},
    {"name": "names", "dns": "gate.example", "addresses": ["127.0.0.1"]},
    {"name": "web server", "port": "127.0.0.1:80"},
    {"name": "certificate", "tls": "gate.example:8443", "days": 14},
    {
        "name": "schema",
        "kind": "sql",
        "table": SIGNALS,
        "indexes": "== {indexes}",
        "moments": ["preflight"],
    },
    {"name": "status page", "kind": "http", "url": "http://{address}/healthz/", "moments": ["preflight"]},
]
TLS = (
    "import ssl, socketserver; context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); "
    "context.load_cert_chain('/root/gate.crt', '/root/gate.key'); "
    "socketserver.ThreadingTCPServer.allow_reuse_address = True; "
    "server = socketserver.ThreadingTCPServer(('127.0.0.1', 8443), socketserver.BaseRequestHandler); "
    "server.socket = context.wrap_socket(server.socket, server_side=True); server.serve_forever()"
)
INDEX = (
    f"SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = '{SIGNALS}' AND sql IS NOT NULL"
)


class Host:
    """The host, its gates, and what the tests do to it."""

    def __init__(self, site) -> None:
        self.site = site
        self.indexes = self.sqlite(f"SELECT count(*) FROM pragma_index_list('{SIGNALS}')")

    def sqlite(self, statement: str) -> str:
        """What the database answers to its own program."""
        return self.site.run("sqlite3", self.site.database_path, statement, user=self.site.user).strip()

    def serve(self, days: int) -> None:
        """Serve TLS with a certificate that this host trusts and that is valid for so many days."""
        self.site.run(
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", str(days), "-subj", "/CN=gate", "-addext", "subjectAltName=DNS:gate.example"),
            *("-keyout", "/root/gate.key", "-out", "/root/gate.crt"),
        )
        self.site.run("cp", "/root/gate.crt", "/usr/local/share/ca-certificates/gate.crt")
        self.site.run("update-ca-certificates", "--fresh")
        self.site.attempt("systemctl", "stop", "gate-tls.service")
        self.site.run("systemd-run", "--collect", "--unit=gate-tls", "python3", "-c", TLS)

    def ask(self, *more: dict) -> tuple[int, set[str]]:
        """Run the gates of a deployment's beginning; return the exit code and the checks that did not pass."""
        gates = json.dumps([*GATES, *more])
        gates = gates.replace("{indexes}", self.indexes).replace("{address}", self.site.address)
        done = self.site.playbook("pre_deploy", "-e", "version=v2.6", "-e", f'{{"app_gates": {gates}}}')
        said = re.findall(r"Check '([^']+)' (?:failed|could not|cannot)", done.output)
        others = re.findall(r"Others that did not pass: ([^.]+)\.", done.output)
        return done.code, {*said, *(name.strip("' ") for each in others for name in each.split(","))}


@pytest.fixture(scope="module")
def host(site):
    found = Host(site)
    site.run("mkdir", "-p", "/mnt/gate")
    site.run("mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=100", "tmpfs", "/mnt/gate")
    site.run("sh", "-c", "echo '127.0.0.1 gate.example' >>/etc/hosts")
    found.serve(90)
    yield found
    site.run("umount", "/mnt/gate")
    site.attempt("systemctl", "stop", "gate-tls.service")


@contextlib.contextmanager
def broken(do: Callable[[], object], undo: Callable[[], object]) -> Iterator[None]:
    """Something that is broken as long as the context lasts, whatever the test comes to."""
    try:
        do()
        yield
    finally:
        undo()


def test_a_healthy_host_passes(host):
    assert host.ask() == (0, set())


def test_a_full_disk(host, site):
    fill = ("dd", "if=/dev/zero", "of=/mnt/gate/much", "bs=1k", "count=3500")
    with broken(lambda: site.run(*fill), lambda: site.run("rm", "/mnt/gate/much")):
        assert host.ask() == (2, {"space"})


def test_no_inodes(host, site):
    fill = ("sh", "-c", "cd /mnt/gate && for i in $(seq 95); do : >$i; done")
    with broken(lambda: site.run(*fill), lambda: site.run("sh", "-c", "rm -f /mnt/gate/*")):
        assert host.ask() == (2, {"inodes"})


def test_a_stopped_web_server(host, site):
    stop, start = (("systemctl", word, "nginx.service") for word in ("stop", "start"))
    with broken(lambda: site.run(*stop), lambda: site.run(*start)):
        assert host.ask() == (2, {"web server", "status page"})


def test_a_name_that_leads_elsewhere(host, site):
    hosts = site.run("cat", "/etc/hosts")
    others = hosts.replace("127.0.0.1 gate.example", "127.0.0.2 gate.example")
    with broken(
        lambda: site.run("tee", "/etc/hosts", text=others), lambda: site.run("tee", "/etc/hosts", text=hosts)
    ):
        # The certificate is asked for where the name leads: nobody is there, and that is no pass either.
        assert host.ask() == (2, {"names", "certificate"})


def test_a_certificate_that_ends_soon(host):
    with broken(lambda: host.serve(10), lambda: host.serve(90)):
        assert host.ask() == (2, {"certificate"})


def test_a_dropped_index(host):
    name, text = host.sqlite(INDEX).splitlines()[0].split("|")
    with broken(lambda: host.sqlite(f'DROP INDEX "{name}"'), lambda: host.sqlite(text)):
        assert host.ask() == (2, {"schema"})


def test_a_variable_that_is_missing(host):
    assert host.ask({"name": "mail", "variables": ["EMAIL_HOST"]}) == (2, {"mail"})


def test_clocks_that_differ(host):
    """No clock can be set in a container: the check is asked for a difference that is not there."""
    assert host.ask({"name": "yesterday", "clock": "> 86400s"}) == (2, {"yesterday"})


def test_everything_is_well_again(host, site):
    assert host.ask() == (0, set())
    assert site.wrong("v2.6") == []
