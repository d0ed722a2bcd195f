# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a deployment may begin, through midnights and changes of the clock, and whose approval is missing."""

from __future__ import annotations

import datetime
import json
import zoneinfo

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._deploy_window import (
    is_open,
    missing,
    next_opening,
    outside,
    parse_approvals,
    parse_roles,
    parse_windows,
    signatures,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from hypothesis import given, settings
from hypothesis import strategies as st

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NIGHT = {"days": ["mon", "tue", "wed", "thu"], "from": "22:00", "to": "05:00", "zone": "Europe/Berlin"}


def at(text, zone=BERLIN, fold=0):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def utc(text):
    return at(text, datetime.timezone.utc)


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-11-19 21:59", False),  # Thursday
        ("2026-11-19 22:00", True),
        ("2026-11-19 23:59", True),
        ("2026-11-20 00:00", True),  # Friday, of Thursday's window
        ("2026-11-20 04:59", True),
        ("2026-11-20 05:00", False),
        ("2026-11-20 22:30", False),  # no window begins on a Friday
        ("2026-11-21 03:00", False),
        ("2026-11-23 03:00", False),  # Monday morning belongs to Sunday
        ("2026-11-23 22:00", True),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins(moment, inside):
    assert is_open(parse_windows([NIGHT]), at(moment)) is inside


def test_none_is_always_and_of_several_one_is_enough():
    assert is_open([], at("2026-11-20 12:00"))
    windows = parse_windows(
        [NIGHT, {"days": ["fri"], "from": "12:00", "to": "13:00", "zone": "Europe/Berlin"}]
    )
    assert is_open(windows, at("2026-11-20 12:00"))
    assert not is_open(windows, at("2026-11-20 13:00"))


@pytest.mark.parametrize("day", ["2026-01-15", "2026-07-15", "2026-03-29", "2026-10-25"])
def test_the_hour_is_the_same_in_summer_and_in_winter(day):
    windows = parse_windows([{**NIGHT, "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}])
    assert not is_open(windows, at(f"{day} 21:59"))
    assert is_open(windows, at(f"{day} 22:00"))
    # The same moments by a clock that never changes: an hour apart in July and in January.
    assert is_open(windows, at(f"{day} 22:00").astimezone(datetime.timezone.utc))


class TestChangeOfTheClock:
    """In Berlin, 2026-03-29 has no 02:00 to 03:00, and 2026-10-25 has it twice."""

    SUNDAY = parse_windows([{"days": ["sun"], "from": "02:30", "to": "04:00", "zone": "Europe/Berlin"}])
    GAP = parse_windows([{"days": ["sun"], "from": "02:15", "to": "02:45", "zone": "Europe/Berlin"}])

    def test_a_window_that_begins_in_the_missing_hour_opens_when_it_is_over(self):
        assert not is_open(self.SUNDAY, utc("2026-03-29 00:59"))
        assert is_open(self.SUNDAY, utc("2026-03-29 01:00"))  # 03:00 in Berlin
        opening, _window = next_opening(self.SUNDAY, utc("2026-03-28 12:00"))
        assert opening == utc("2026-03-29 01:00")

    def test_a_window_inside_the_missing_hour_waits_for_the_next_week(self):
        opening, _window = next_opening(self.GAP, utc("2026-03-28 12:00"))
        assert opening == utc("2026-04-05 00:15")

    def test_an_hour_that_is_there_twice_is_inside_twice(self):
        assert is_open(self.GAP, at("2026-10-25 02:20"))
        assert is_open(self.GAP, at("2026-10-25 02:20", fold=1))
        opening, _window = next_opening(self.GAP, at("2026-10-25 02:50"))
        assert opening == utc("2026-10-25 01:15")

    def test_a_night_through_the_change_is_an_hour_shorter_or_longer(self):
        windows = parse_windows([{"days": ["sat"], "from": "22:00", "to": "05:00", "zone": "Europe/Berlin"}])

        def minutes(begin):
            return sum(is_open(windows, begin + datetime.timedelta(minutes=n)) for n in range(24 * 60))

        assert minutes(utc("2026-03-28 12:00")) == 6 * 60
        assert minutes(utc("2026-10-24 12:00")) == 8 * 60
        assert minutes(utc("2026-11-21 12:00")) == 7 * 60


def test_the_sentence_names_now_the_next_opening_and_the_option():
    text = outside(parse_windows([NIGHT]), utc("2026-11-20 12:00"), "")
    assert text == (
        "It is Friday 2026-11-20 13:00 (Europe/Berlin), and app_window opens next on Monday 2026-11-23 22:00 (Europe/Berlin): "
        "deploy then, or let it pass with -e deployment_outside_window=<reason>; nothing was changed."
    )
    assert outside(parse_windows([NIGHT]), utc("2026-11-20 12:00"), "the shop is down") == ""
    assert outside(parse_windows([NIGHT]), utc("2026-11-19 22:00"), "") == ""
    assert outside(parse_windows([NIGHT]), utc("2026-11-20 12:00"), "  ") != ""


def test_times_as_yaml_reads_them_and_whole_days():
    # An unquoted 22:00 is a number of minutes to YAML 1.1.
    windows = parse_windows([{"from": 1320, "to": "24:00"}])
    assert is_open(windows, utc("2026-11-20 22:00"))
    assert not is_open(windows, utc("2026-11-20 21:59"))
    assert not is_open(windows, utc("2026-11-21 00:00"))
    whole = parse_windows([{"days": ["Saturday"], "from": "00:00", "to": "00:00"}])
    assert is_open(whole, utc("2026-11-21 00:00"))
    assert is_open(whole, utc("2026-11-21 23:59"))


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("always", "must be a mapping"),
        ({"from": "22:00", "to": "05:00", "tz": "UTC"}, "unknown key 'tz'"),
        ({"from": "22:00"}, ".to must be a time"),
        ({"from": "25:00", "to": "05:00"}, ".from must be a time"),
        ({"from": "22:60", "to": "05:00"}, ".from must be a time"),
        ({"from": "24:00", "to": "05:00"}, "00:00 of the next day"),
        ({"from": True, "to": "05:00"}, ".from must be a time"),
        ({**NIGHT, "days": []}, ".days must be a list"),
        ({**NIGHT, "days": "mon"}, ".days must be a list"),
        ({**NIGHT, "days": ["moon", "xyz"]}, ".days must be a list"),
        ({**NIGHT, "zone": "Europe/Berlni"}, "zone 'Europe/Berlni' is not known"),
        ({**NIGHT, "zone": "../../etc/passwd"}, "is not known"),
        ({**NIGHT, "zone": 1}, "is not known"),
        ({**NIGHT, "zone": ""}, "is not known"),
    ],
)
def test_what_is_refused(item, says):
    with pytest.raises(Problem) as caught:
        parse_windows([item])
    assert says in caught.value.message


@settings(max_examples=60, deadline=None)
@given(
    days=st.sets(st.integers(0, 6), min_size=1),
    begin=st.integers(0, 1439),
    end=st.integers(0, 1439),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"]
    ),
    minute=st.integers(0, 366 * 24 * 60),
)
def test_the_next_opening_is_inside_and_the_minute_before_it_is_not(days, begin, end, zone, minute):
    names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    windows = parse_windows([{"days": [names[day] for day in days], "from": begin, "to": end, "zone": zone}])
    moment = utc("2026-01-01 00:00") + datetime.timedelta(minutes=minute)
    found = next_opening(windows, moment)
    if is_open(windows, moment) or found is None:
        return
    opening, _window = found
    assert moment < opening
    assert is_open(windows, opening)
    assert not is_open(windows, opening - datetime.timedelta(minutes=1))


class TestApprovals:
    def test_a_missing_role_is_named_with_the_option_that_gives_it(self):
        text = missing(["tech_lead", "dba"], {"tech_lead": "ann"})
        assert "the approval of dba, which is missing: have it" in text
        option = text.partition("-e '")[2].partition("'")[0]
        assert json.loads(option) == {"deployment_approvals": {"tech_lead": "ann", "dba": "<name>"}}
        assert missing(["dba"], {"dba": "bob"}) == ""
        assert missing([], {}) == ""

    def test_a_slip_is_pointed_at(self):
        assert "is tech_led for tech_lead a slip?" in missing(["tech_lead"], {"tech_led": "ann"})

    def test_who_approved_and_blanks(self):
        found = signatures(["tech_lead", "dba"], {"dba": "bob", "qa": "cem"}, utc("2026-11-21 01:36:58"))
        assert found == [
            {"role": "tech_lead", "name": None, "at": None},
            {"role": "dba", "name": "bob", "at": "2026-11-21T01:36:58Z"},
            {"role": "qa", "name": "cem", "at": "2026-11-21T01:36:58Z"},
        ]

    @pytest.mark.parametrize("value", ["", None, {}, "{}", "  "])
    def test_nothing_given(self, value):
        assert parse_approvals(value) == {}

    @pytest.mark.parametrize("value", [{"dba": " bob  b "}, '{"dba": "bob b"}'])
    def test_a_mapping_or_its_text(self, value):
        assert parse_approvals(value) == {"dba": "bob b"}

    @pytest.mark.parametrize(
        "value", ["dba", ["dba"], True, {"dba": ""}, {"dba": None}, {"dba": True}, "[1]", 7]
    )
    def test_what_is_no_approval(self, value):
        with pytest.raises(Problem, match="deployment_approvals"):
            parse_approvals(value)

    @pytest.mark.parametrize("items", [[""], ["a b"], [1], ["dba", "dba"], [None]])
    def test_what_is_no_role(self, items):
        with pytest.raises(Problem, match="app_approvals"):
            parse_roles(items)
