# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What HAProxy's tables, nginx's upstream files and the kernel's tables are taken for; when a server may go."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _balancer as balancer
from ansible_collections.runbook.deploy.plugins.module_utils import _balancer_haproxy as haproxy
from ansible_collections.runbook.deploy.plugins.module_utils import _balancer_nginx as nginx
from ansible_collections.runbook.deploy.plugins.module_utils import _balancer_upstream as upstream
from ansible_collections.runbook.deploy.plugins.module_utils._balancer import Server
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

STAT = """# pxname,svname,qcur,scur,status,weight,act,bck,check_status,check_rise,check_fall,check_health,last_chk,addr,
public,FRONTEND,,1,OPEN,,,,,,,,,,
shop,one,0,2,UP,100,1,0,L7OK,2,3,4,HTTP status check returned code 200,10.0.0.1:80,
shop,two,1,0,UP 1/3,50,1,0,* L7OK,2,3,2,,10.0.0.2:80,
shop,three,0,0,DOWN,0,0,1,L4CON,2,3,0,"Connection refused, at step 1",10.0.0.3:80,
shop,four,0,1,no check,100,1,0,,,,,,10.0.0.4:80,
shop,BACKEND,0,3,UP,250,3,1,,,,,,,
other,one,0,0,UP,1,1,0,L4OK,2,3,4,,10.0.1.1:80,
"""
STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight
3 shop 1 one 10.0.0.1 2 0 100 100
3 shop 2 two 10.0.0.2 2 8 100 100
3 shop 3 three 10.0.0.3 0 0 100 100
3 shop 4 four 10.0.0.4 0 5 100 100
"""
FILE = """# Managed by runbook.deploy; the servers of the shop
upstream shop {
    # how they are chosen
    least_conn;
    keepalive 16;

    server 10.0.0.1:80 weight=5 max_fails=0; # web1 in the first rack
    server 10.0.0.2:80 down; # web2 (taken out by runbook.deploy)
    server 10.0.0.3:80 down; # web3 broken since Monday
    server [2001:db8::4]:80 backup;
}
"""


def found(noted=()):
    return {server.name: server for server in haproxy.combine(STAT, STATE, "shop", dict.fromkeys(noted, {}))}


def test_the_tables_of_haproxy():
    servers = found(noted=["two"])
    assert list(servers) == ["one", "two", "three", "four"]
    one = servers["one"]
    assert (one.admin, one.up, one.weight, one.effective, one.sessions, one.queue) == (
        "ready",
        True,
        100,
        100,
        2,
        0,
    )
    assert one.usable is True
    two = servers["two"]
    assert (two.admin, two.ours, two.effective, two.queue, two.usable) == ("drain", True, 50, 1, False)
    three = servers["three"]
    assert (three.up, three.backup, three.check, three.usable) == (
        False,
        True,
        "L4CON Connection refused, at step 1",
        False,
    )
    four = servers["four"]
    assert (four.admin, four.ours, four.up) == ("maint", False, None)


@pytest.mark.parametrize(
    ("bits", "admin"),
    [
        (0, "ready"),
        (1, "maint"),
        (2, "maint"),
        (4, "maint"),
        (8, "drain"),
        (16, "drain"),
        (9, "maint"),
        (32, "maint"),
        (64, "maint"),
    ],
)
def test_bits_of_the_administrative_state(bits, admin):
    assert haproxy.admin_of(bits) == admin


@pytest.mark.parametrize("parse", [haproxy.parse_stat, haproxy.parse_state])
@pytest.mark.parametrize("text", ["", "HTTP/1.1 400 Bad Request\r\n\r\n", "2\n# a b\n", "No such command"])
def test_other_texts_are_no_tables(parse, text):
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"check_status": "* L7OK"}, True),
        ({"check_status": "L4CON"}, False),
        # It left maintenance with `rise` points, and nobody has asked it yet.
        ({"check_health": "2"}, False),
        ({"check_status": ""}, None),
    ],
)
def test_a_server_is_checked_when_it_has_all_points(changes, good):
    row = {"check_status": "L7OK", "check_health": "4", "check_rise": "2", "check_fall": "3", **changes}
    assert haproxy.fully_checked(row, {"srv_op_state": "2"}) is good


def test_a_server_that_does_not_run_is_not_checked():
    row = {"check_status": "L7OK", "check_health": "4", "check_rise": "2", "check_fall": "3"}
    assert haproxy.fully_checked(row, {"srv_op_state": "0"}) is False


def test_sessions():
    text = (
        "0x55: proto=tcpv4 src=10.9.9.9:5555 fe=public be=shop srv=one ts=00 age=3s calls=2\n"
        "0x56: proto=tcpv4 src=10.9.9.8:5555 fe=public be=shop srv=two ts=00 age=1s\n"
        "0x57: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> ts=00 age=0s\n"
    )
    assert haproxy.parse_sessions(text, "shop", "one") == ["from 10.9.9.9:5555 through public, 3s old"]


@pytest.mark.parametrize("name", ["one; shutdown sessions", "one\nset", "", "a b"])
def test_a_name_is_no_command(name):
    options = {"socket": "/x", "backend": name, "server": "one", "notes": "/x"}
    if name:
        with pytest.raises(Problem, match="option backend"):
            haproxy.Haproxy(options)


def test_the_lines_of_an_upstream():
    lines = upstream.parse(FILE, "/etc/x", "shop")
    assert [line.name for line in lines] == ["web1", "web2", "web3", "2001:db8::4"]
    servers = [line.server for line in lines]
    assert [(server.admin, server.ours, server.weight, server.backup) for server in servers] == [
        ("ready", False, 5, False),
        ("maint", True, 1, False),
        ("maint", False, 1, False),
        ("ready", False, 1, True),
    ]


@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_there_and_back_is_the_same_file(index, ending):
    text = FILE.replace("\n", ending)
    line = upstream.parse(text, "/etc/x", "shop")[index]
    out = upstream.render(text, line, line.server.admin == "ready")
    again = upstream.parse(out, "/etc/x", "shop")[index]
    assert again.server.admin != line.server.admin
    back = upstream.render(out, again, line.server.admin != "ready")
    # A name that only the address gave is written down.
    assert back == text.replace("backup;", "backup; # 2001:db8::4" if index == 3 else "backup;")
    assert len([1 for a, b in zip(text.splitlines(), out.splitlines()) if a != b]) == 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("# Managed by runbook.deploy; the servers of the shop\n", "", "not ours"),
        ("upstream shop {", "upstream shop2 {", "'shop2'"),
        ("}\n", "", "no whole upstream"),
        ("    least_conn;", "    least_conn; server 10.0.0.9:80;", "Line 4"),
        ("    least_conn;", "    include servers.conf\n", "Line 4"),
        ("}\n", "}\nserver { listen 80; }\n", "Line 12"),
        ("}\n", "}\nupstream other {\n}\n", "Line 12"),
        ("# web1 in", "# web2 in", "called 'web2'"),
        (FILE, "", "not ours"),
    ],
)
def test_files_that_are_not_written(old, new, says):
    with pytest.raises(Problem, match=says):
        upstream.parse(FILE.replace(old, new), "/etc/x", "shop")


def test_connections_of_the_kernels_tables():
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:9C40 0200000A:0050 01 00000000:00000000 00:00000000 00000000  33 0 111 1\n"
        "   1: 0100007F:9C41 0200000A:0050 06 00000000:00000000 00:00000000 00000000  33 0 112 1\n"
        "   2: 0100007F:9C42 0200000A:0051 01 00000000:00000000 00:00000000 00000000  33 0 113 1\n"
        "   3: 0100007F:9C43 0200000A:0050 02 00000000:00000000 00:00000000 00000000  33 0 114 1\n"
        "   4: 0100007F:9C44 0200000A:0050 01 00000000:00000000 00:00000000 00000000  33 0 999 1\n"
    )
    targets = {("10.0.0.2", 80)}
    assert nginx.parse_talking(text, targets, {"111", "112", "113", "114"}) == ["40000", "40003"]


@pytest.mark.parametrize(
    ("field", "address"),
    [
        ("0200000A:0050", ("10.0.0.2", 80)),
        ("0000000000000000FFFF00000200000A:0050", ("10.0.0.2", 80)),
        ("00000000000000000000000001000000:1F90", ("::1", 8080)),
    ],
)
def test_addresses_of_the_kernels_tables(field, address):
    assert nginx.remote(field) == address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("10.0.0.1:8000", "10.0.0.1", 8000),
        ("web1.example.org", "web1.example.org", 80),
        ("[2001:db8::1]:81", "2001:db8::1", 81),
        ("[2001:db8::1]", "2001:db8::1", 80),
        ("2001:db8::1", "2001:db8::1", 80),
        ("unix:/run/x.sock", "", 80),
    ],
)
def test_hosts_and_ports(address, host, port):
    assert balancer.host_of(address) == host
    assert balancer.port_of(address) == port


def test_a_server_is_chosen_by_name_then_address_then_host():
    servers = [Server("web1", "10.0.0.1:80"), Server("web2", "10.0.0.2:80"), Server("web3", "10.0.0.2:81")]
    assert balancer.chosen(servers, "web2", "x").name == "web2"
    assert balancer.chosen(servers, "10.0.0.2:81", "x").name == "web3"
    assert balancer.chosen(servers, "10.0.0.1", "x").name == "web1"
    with pytest.raises(Problem, match="2 servers '10.0.0.2'"):
        balancer.chosen(servers, "10.0.0.2", "x")
    with pytest.raises(Problem, match="no server 'web9', only web1, web2, web3"):
        balancer.chosen(servers, "web9", "x")


@pytest.mark.parametrize(
    "other",
    [
        Server("b", "", admin="drain"),
        Server("b", "", admin="maint"),
        Server("b", "", up=False),
        Server("b", "", weight=0),
        Server("b", "", backup=True),
        None,
    ],
)
def test_the_last_server_that_gets_requests_stays(other):
    target = Server("a", "")
    servers = [target, *([other] if other else [])]
    with pytest.raises(Problem, match="a is the last server of x that gets requests"):
        balancer.require_another(servers, target, False, "x")
    balancer.require_another(servers, target, True, "x")


def test_a_server_that_gets_nothing_may_always_go():
    for target in (Server("a", "", admin="drain"), Server("a", "", up=False)):
        balancer.require_another([target], target, False, "x")
    balancer.require_another([Server("a", ""), Server("b", "")], Server("a", ""), False, "x")
