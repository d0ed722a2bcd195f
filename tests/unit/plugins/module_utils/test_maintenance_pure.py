# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maintenance page's judgements: when it is up, when a deployment needs it, what a description may say, who is asked from where."""

from __future__ import annotations

import ipaddress
import random

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_options import (
    lasts,
    still_expected,
    wait,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_probe import (
    Seen,
    is_document,
    is_gone,
    is_page,
    sources,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import (
    KINDS,
    check,
    expected,
    lasted,
    page_words,
    wanted,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_told import (
    filled,
    host_words,
    parse_monitoring,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_window import covers, names
from ansible_collections.runbook.deploy.plugins.module_utils._notify import fields_of
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._report import visitors

NGINX = {"kind": "nginx", "allow": ["10.0.0.0/8"]}


def test_the_flag_is_up_from_its_begin_to_its_end_and_at_most_ten_seconds_longer():
    luck = random.Random(5)
    for _number in range(200):
        begin = luck.uniform(1.7e9, 1.8e9)
        end = begin + luck.uniform(0, 90000)
        files = set(names(begin, end))
        moments = [begin, end - 0.01, end + 10, end + 1000, begin - 10.01, begin - 2000]
        moments += [luck.uniform(begin, end) for _other in range(20)]
        for moment in moments:
            inside = begin <= moment <= end - 0.001
            if inside:
                assert covers(files, moment), (begin, end, moment)
            elif moment >= end + 10 or moment < begin - 10:
                assert not covers(files, moment), (begin, end, moment)


def test_a_day_needs_few_files():
    assert len(names(1_763_700_003, 1_763_786_403)) < 300


def test_one_end_is_one_set_of_names():
    assert names(2000, 3010) == ["k2", "t300"]
    assert names(995, 2005) == ["t99", "k1", "t200"]
    assert names(100.9, 100.95) == ["t10"]


def migration(compatible: str = "yes", seconds: float = 0.0, **lock: str) -> dict:
    return {
        "app": "shop",
        "name": "0002_x",
        "compatible": compatible,
        "locks": [{"table": "t", "reason": "", **lock}] if lock else [],
        "rehearsed": {"forward_seconds": seconds},
    }


@pytest.mark.parametrize(
    ("when", "migrations", "said"),
    [
        ("never", [migration("no")], ""),
        ("always", [], "app_maintenance_when is always"),
        ("migrations", [], ""),
        ("migrations", [migration()], ""),
        ("migrations", [migration(), migration("unknown")], "not proved to run after shop.0002_x"),
        ("migrations", [migration("no")], "not proved to run"),
        ("migrations", [migration(lock="write")], "copies the table t"),
        ("migrations", [migration(lock="ACCESS EXCLUSIVE", seconds=4.9)], ""),
        ("migrations", [migration(lock="ACCESS EXCLUSIVE", seconds=5.0)], "holds ACCESS EXCLUSIVE on t"),
        ("migrations", [migration(lock="SHARE UPDATE EXCLUSIVE", seconds=50)], ""),
        ("migrations", [{**migration("no"), "rehearsed": None}], "not proved"),
        ("sometimes", [migration("no")], ""),
    ],
)
def test_a_deployment_needs_the_page_where_visitors_would_notice(when, migrations, said):
    found = wanted(when, {"migrations": migrations})
    assert (said in found) if said else not found
    # Where nothing served nobody has to be told.
    assert wanted(when, {"migrations": migrations}, first=True) == ""


@pytest.mark.parametrize(
    ("expires", "seconds", "afterwards", "found"),
    [
        # Nothing is known: what the description says.
        (3600, 0, 475, 3600),
        # What is described is the least.
        (3600, 12.3, 475, 3600),
        (3600, 1562, 475, 3600),
        (3600, 1562.5, 475, 3601),
        (60, 0.2, 0, 60),
        (1, 0.2, 0, 2),
        (60, 3000, 475, 6475),
        # Longer than a day may be described; the end of what is expected comes first.
        (86400, 86400, 475, 173275),
    ],
)
def test_the_page_outlasts_twice_what_is_expected_and_what_comes_after_it(
    expires, seconds, afterwards, found
):
    assert lasts(expires, seconds, afterwards) == found


@pytest.mark.parametrize(
    ("seconds", "found"), [(0, 120), (0.1, 120), (120, 120), (120.01, 121), (600, 600), (600.5, 601)]
)
def test_nobody_is_told_to_come_back_before_the_end_is_expected(seconds, found):
    assert wait(120, seconds) == found


BY_HAND = {"by": "", "expires": 1000.0, "expected": 600}


@pytest.mark.parametrize(
    ("state", "deployment", "given", "note", "found"),
    [
        ("on", "", 10.2, {}, 11),
        ("on", "id1", 10.2, BY_HAND, 600),
        ("on", "id1", 700, BY_HAND, 700),
        # A person says anew what counts; a deployment does, too, of what another one left.
        ("on", "", 10, BY_HAND, 10),
        ("on", "id2", 10, {**BY_HAND, "by": "id1"}, 10),
        ("prepared", "", 0, {**BY_HAND, "by": "id1"}, 600),
        # Over.
        ("prepared", "", 0, {**BY_HAND, "expires": 899.0}, 0),
        ("on", "id1", 0, {"by": "", "expires": 1000.0}, 0),
    ],
)
def test_what_was_said_of_a_page_counts_while_it_is_on(state, deployment, given, note, found):
    options = {"state": state, "deployment": deployment, "expected": given}
    assert still_expected(options, note, 900.0) == found


@pytest.mark.parametrize(
    ("plan", "seconds", "said"),
    [
        (None, 0, ""),
        ({"migrations": []}, 0, "while it restarts"),
        ({"migrations": [{**migration("no"), "rehearsed": None}]}, 0, "how long is not known"),
        (
            {"migrations": [migration("no", 754.2)], "rehearsal": {"forward_seconds": 754.2}},
            754.2,
            "expected to take 755 s",
        ),
        # What was measured before the rehearsal ended says nothing of the rest.
        (
            {
                "migrations": [migration("no", 9), {**migration("no"), "rehearsed": None}],
                "rehearsal": {"forward_seconds": 9.0},
            },
            0,
            "how long is not known",
        ),
    ],
)
def test_the_rehearsal_says_how_long_the_page_is_expected_to_be_on(plan, seconds, said):
    assert expected(plan) == seconds
    assert said in page_words("app_maintenance_when is always", plan or {})
    assert page_words("", plan or {}) == ""


def test_how_long_it_was_stands_beside_how_long_was_expected():
    assert lasted({"seconds": 61.5, "expected": 40}) == "61.5 s (expected 40 s)"
    assert lasted({"seconds": 61.5, "expected": None}) == "61.5 s"


def test_without_a_plan_nothing_needs_it():
    assert wanted("migrations", None) == wanted("migrations", {}) == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, ""),
        (NGINX, ""),
        ({"kind": "file", "path": "/run/shop/maintenance"}, ""),
        ({"kind": "command", "command_on": ["manage.py", "on"], "command_off": ["manage.py", "off"]}, ""),
        ({"kind": "apache"}, "expected one of nginx, file, command"),
        ({**NGINX, "alow": []}, "did you mean allow?"),
        ({"kind": "file"}, "has no path"),
        ({"kind": "command", "command_on": ["x"]}, "has no command_off"),
        ({**NGINX, "allow": ["10.0.0.1/8"]}, "no address or network"),
        ({**NGINX, "allow": "10.0.0.1"}, "must be a list of addresses"),
        ({**NGINX, "json": ["api"]}, "must be a list of paths"),
        ({**NGINX, "open": ['/"; }']}, "must be a list of paths"),
        ({**NGINX, "expires": 0}, "must be a whole number"),
        ({**NGINX, "expires": True}, "must be a whole number"),
        ({**NGINX, "expires": 86401}, "at most 86400"),
        ({**NGINX, "server_file": "/etc/x; y"}, "expected an absolute path"),
        ({**NGINX, "probe": "127.0.0.1"}, "expected an address"),
        ({"kind": "nginx"}, "allow is empty"),
    ],
)
def test_a_description_is_refused_with_one_sentence(value, said):
    found = check(value, url="https://shop.example.org")
    assert len(found) == (1 if said else 0), found
    if said:
        assert said in found[0]


def test_an_empty_allow_list_will_do_where_no_smoke_test_needs_it():
    assert check({"kind": "nginx"}, when="never", url="https://shop.example.org") == []
    assert check({"kind": "nginx"}, url="") == []


def test_a_listen_that_is_no_port_needs_a_probe():
    assert "no probe" in check(NGINX, listen="443 ssl")[0]
    assert check({**NGINX, "probe": "https://127.0.0.1/"}, listen="443 ssl") == []
    assert check(NGINX, listen="8080") == []


def test_every_key_of_every_kind_has_a_rule():
    for kind, keys in KINDS.items():
        assert {"expires", "retry_after", "probe"} <= set(keys), kind


def networks(*texts: str) -> list:
    return [ipaddress.ip_network(text) for text in texts]


@pytest.mark.parametrize(
    ("address", "allowed", "proxies", "found"),
    [
        ("http://127.0.0.1/", [], [], ("127.0.0.1", "")),
        ("http://localhost/", networks("127.0.0.1"), [], ("127.1.0.1", "127.0.0.1")),
        ("http://127.0.0.1/", networks("127.0.0.0/8"), [], ("", "127.0.0.1")),
        ("http://127.0.0.1/", networks("10.0.0.0/8", "127.5.0.0/16"), [], ("127.0.0.1", "127.5.0.1")),
        ("http://127.0.0.1/", [], networks("127.0.0.1"), ("127.1.0.1", "")),
        ("http://127.0.0.1/", networks("0.0.0.0/0"), [], ("", "127.0.0.1")),
        ("http://127.0.0.1/", networks("::1"), [], ("127.0.0.1", "")),
        ("http://10.0.0.5/", networks("127.0.0.1"), [], ("", "")),
        ("http://[::1]/", networks("127.0.0.1"), [], ("", "")),
        ("http://shop.example.org/", [], [], ("", "")),
    ],
)
def test_a_visitor_is_asked_for_from_an_address_that_is_not_let_through(address, allowed, proxies, found):
    assert sources(address, allowed, proxies) == found


PAGE = Seen(503, "120", "text/html", "shop-prod", b"<h1>")


def test_only_our_page_is_the_page():
    assert is_page(PAGE, "shop-prod", True) == ""
    assert "expected 503" in is_page(PAGE._replace(status=200), "shop-prod", True)
    assert "without Retry-After" in is_page(PAGE._replace(retry_after=""), "shop-prod", True)
    assert "something else" in is_page(PAGE._replace(mark="other-prod"), "shop-prod", True)
    assert is_page(Seen(503), "", False) == ""
    assert "no answer (refused)" in is_page(Seen(0, error="refused"), "", False)


def test_a_program_gets_a_document():
    good = PAGE._replace(kind="application/json", body=b'{"error": "maintenance"}')
    assert is_document(good, "shop-prod") == ""
    for bad in (
        good._replace(kind="text/html"),
        good._replace(body=b"{"),
        good._replace(body=b"[]"),
        good._replace(body=b'{"error": "x"}'),
        good._replace(status=200),
    ):
        assert is_document(bad, "shop-prod")


def test_it_is_gone_when_something_else_answers():
    assert is_gone(PAGE, "shop-prod")
    assert is_gone(PAGE._replace(mark=""), "shop-prod") == ""
    assert is_gone(PAGE, "") == "still 503"
    assert is_gone(Seen(200), "") == ""


MONITOR = {"name": "alerts", "begin": {"url": "https://a.example.org/x"}}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("alerts", "must be a mapping"),
        ({**MONITOR, "start": {}}, "start is not known"),
        ({**MONITOR, "name": ""}, "has no name"),
        ({"name": "alerts"}, "neither begin nor end"),
        ({**MONITOR, "end": {"url": "ftp://secret.example.org/x"}}, "end.url must be"),
        ({**MONITOR, "begin": {**MONITOR["begin"], "method": "FETCH"}}, "method must be one of"),
        ({**MONITOR, "begin": {**MONITOR["begin"], "body": {"a": ["{secs}"]}}}, "names {secs}"),
        ({**MONITOR, "headers": {"a": 1}}, "headers must be"),
        ({**MONITOR, "timeout": 0}, "timeout must be"),
    ],
)
def test_a_monitor_is_refused_without_its_secrets(item, said):
    with pytest.raises(Problem) as found:
        parse_monitoring([item])
    assert said in found.value.message
    assert "secret.example" not in found.value.message


def test_placeholders_are_replaced_once_and_everywhere():
    fields = {"reason": "{id}", "id": "7"}
    assert filled({"a": ["{reason}", 3], "b": "{id}{x}"}, fields) == {"a": ["{id}", 3], "b": "7{x}"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "unknown"),
        ({"maintenance": {"on": False}}, "off"),
        (
            {"maintenance": {"on": True, "since": "A", "expires": "B", "by": "id1"}},
            "on, since A, ends by itself at B, by deployment id1",
        ),
        ({"maintenance": {"on": True, "operator": "ann", "reason": "disk"}}, "on, by ann, disk"),
        ({"maintenance": {"on": True, "expected": 600}}, "on, was expected to last 600 s"),
        ({"maintenance": {"on": True, "unknown": True}}, "on, not put on by this tool"),
        ({"maintenance": {"over": True, "expires": "B"}}, "off: it ended by itself at B"),
        (
            {"maintenance": {}, "downtime": {"seconds": 4.2}, "seen": {"visitor": {"status": 200}}},
            "off, visitors had the page for 4.2 s, a visitor gets 200",
        ),
    ],
)
def test_a_host_is_told_in_words(answer, said):
    assert host_words(answer) == said


def test_report_and_notifications_say_what_was_expected_and_what_it_was():
    record = {"downtime": {"seconds": 61.5, "expected": 40, "since": "A", "until": "B"}}
    said = "had the maintenance page for 61.5 s (expected 40 s), A to B"
    assert visitors(record) == said
    assert fields_of({"record": record}, "success")["maintenance"] == f"visitors {said}"
    assert fields_of({"record": {}}, "start")["maintenance"] == ""
