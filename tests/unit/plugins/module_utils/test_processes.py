# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes as processes
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    R1,
    deployed_host,
    wait_for,
)


@pytest.fixture
def host():
    with deployed_host() as made:
        yield made


@pytest.mark.parametrize("name", ["sh", "a b", ") S 1 1", "((", "x) R 7 (y"])
def test_stat_is_counted_from_the_last_parenthesis(name: str) -> None:
    fields = ["S", "42", *("0" for _i in range(17)), "987654", "0"]
    assert processes.parse_stat(f"7 ({name}) {' '.join(fields)}") == ("S", 42, 987654)


def test_a_cut_stat_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="incomplete"):
        processes.parse_stat("7 (sh) S 42 0")


def test_a_process_with_parentheses_in_its_name_is_itself(host) -> None:
    strange = host.root / "x) S 1 (y z"
    shutil.copy("/bin/sleep", strange)
    child = subprocess.Popen([strange, "30"])
    try:
        started = processes.start_time(child.pid)
        assert started is not None
        assert processes.is_same(child.pid, started)
        assert not processes.is_same(child.pid, started + 1)
    finally:
        child.kill()
        child.wait()
    assert not processes.is_same(child.pid, started)


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    wait_for(lambda: processes.start_time(child.pid) is None)
    assert not processes.readable(10**9)
    child.wait()


def test_the_first_of_two_variables_counts_and_odd_bytes_survive() -> None:
    found = processes.parse_variables(b"A=1\0A=2\0noequals\0B=x=y\0C=\xff\0")
    assert found == {"A": "1", "B": "x=y", "C": os.fsdecode(b"\xff")}


def test_only_the_processes_of_this_root_are_found(host) -> None:
    ours = host.start("web", D1, R1, address="-")
    link = f"{host.root}-link"
    os.symlink(host.root, link)
    try:
        through_link = host.start("worker", D1, R1, address="-", root=link)
        host.start("web", D1, R1, address="-", root="/srv/another")
        host.start("web", D1, R1, address="-", root=f"{host.root}2")
        found = processes.application_processes(f"{host.root}/")
    finally:
        os.unlink(link)
    assert [entry.pid for entry in found] == sorted([ours.pid, through_link.pid])
    first = found[0]
    assert (first.service, first.deployment, first.release) == ("web", D1, R1)
    assert first.start_time == processes.start_time(ours.pid)
    assert sys.executable in first.command


def test_children_belong_to_their_main_process() -> None:
    def entry(pid: int, ppid: int) -> processes.Process:
        return processes.Process(pid, ppid, 1, "web", D1, R1, "")

    listed = [entry(10, 1), entry(11, 10), entry(12, 11), entry(20, 1)]
    assert [found.pid for found in processes.tree_roots(listed)] == [10, 20]


def test_who_listens_on_a_unix_socket(host) -> None:
    path = host.layout.socket("web", D1)
    assert processes.peer_pid(path) is None
    child = host.start("web", D1, R1)
    assert processes.peer_pid(path) == child.pid
    assert processes.peer_pid(host.layout.socket("web")) == child.pid
    host.kill(child)
    assert path.exists(), "the socket's file outlives its process"
    assert processes.peer_pid(path) is None


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_listens_on_a_port(family: int, address: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError as error:
            pytest.skip(f"this machine has no address {address}: {error}")
        port = listener.getsockname()[1]
        assert processes.listener_pids(port) == []
        listener.listen()
        assert processes.listener_pids(port) == [os.getpid()]
        assert len(processes.listener_inodes(port)) == 1
    assert processes.listener_pids(port) == []


def test_a_connection_from_a_port_is_no_listener() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        assert processes.listener_pids(connection.getsockname()[1]) == []
