# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which lifecycle rules of a bucket reach copies, and what is said of them: judged without a store."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._store_lifecycle import (
    MOST_WARNINGS,
    harmful,
    promise,
    sentence,
    touches,
    warnings_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import parse

BASE = "sites/shop/production/"
STORE = {"bucket": "backups", "endpoint": "https://s3.example.org", "prefix": "sites"}


def rule(**changes):
    """An enabled rule that deletes everything after 30 days."""
    return {
        "ID": "tidy",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "Expiration": {"Days": 30},
        **changes,
    }


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", True),
        ("s", True),
        ("sites", True),
        ("sites/", True),
        ("sites/shop/prod", True),
        ("sites/shop/production", True),
        (BASE, True),
        (f"{BASE}2026", True),
        (f"{BASE}b1/", True),
        (f"{BASE}b1/shop.dump", True),
        (f"{BASE}b1/notes/", False),
        (f"{BASE}.partial", False),
        (f"{BASE}/b1", False),
        ("/sites/", False),
        ("Sites/", False),
        ("shop/", False),
        ("sites/shop/staging/", False),
        ("sites/shop/production-eu/", False),
        ("sites/shop2/", False),
        ("logs/", False),
    ],
)
def test_a_rule_reaches_copies_by_its_prefix(prefix, expected) -> None:
    assert touches(prefix, BASE) is expected
    for changes in (
        {"Filter": {"Prefix": prefix}},
        {"Filter": {"And": {"Prefix": prefix, "ObjectSizeGreaterThan": 1}}},
        {"Filter": None, "Prefix": prefix},
    ):
        assert [entry["prefix"] for entry in harmful([rule(**changes)], BASE)] == [prefix] * expected


@pytest.mark.parametrize(
    "changes",
    [
        {"Status": "Disabled"},
        {"Status": None},
        {"Filter": {"Tag": {"Key": "temporary", "Value": "yes"}}},
        {"Filter": {"And": {"Prefix": "sites/", "Tags": [{"Key": "temporary", "Value": "yes"}]}}},
        {"Filter": {"ObjectSizeLessThan": 0}},
        {"Filter": {"And": {"ObjectSizeGreaterThan": 9, "ObjectSizeLessThan": 10}}},
        {"Expiration": None},
        {"Expiration": {"ExpiredObjectDeleteMarker": True}},
        {
            "Expiration": None,
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
            "NoncurrentVersionTransitions": [{"NoncurrentDays": 1, "StorageClass": "GLACIER"}],
        },
        {"Expiration": None, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
        {
            "Expiration": None,
            "Transitions": [
                {"Days": 1, "StorageClass": name}
                for name in ("STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR")
            ],
        },
    ],
)
def test_what_touches_no_copy_is_not_named(changes) -> None:
    assert harmful([rule(**changes)], BASE) == []


@pytest.mark.parametrize(
    "chosen",
    [
        None,
        {},
        {"ObjectSizeGreaterThan": 0},
        {"ObjectSizeLessThan": 1},
        {"And": {"ObjectSizeGreaterThan": 8, "ObjectSizeLessThan": 10}},
    ],
)
def test_a_rule_without_a_prefix_reaches_the_whole_bucket(chosen) -> None:
    assert [entry["prefix"] for entry in harmful([rule(Filter=chosen)], BASE)] == [""]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("", 30, "")]),
        ({"Expiration": {"Date": "2027-01-01 00:00:00+00:00"}}, [("", None, "2027-01-01")]),
        (
            {"Transitions": [{"Days": 7, "StorageClass": "GLACIER"}, {"StorageClass": "DEEP_ARCHIVE"}]},
            [("", 30, ""), ("GLACIER", 7, ""), ("DEEP_ARCHIVE", 0, "")],
        ),
        (
            {
                "Expiration": {},
                "Transitions": [{"Date": "2020-02-01T00:00:00Z", "StorageClass": "DEEP_ARCHIVE"}],
            },
            [("DEEP_ARCHIVE", None, "2020-02-01")],
        ),
    ],
)
def test_each_action_counts_with_its_days_or_date(changes, expected) -> None:
    found = harmful([rule(**changes)], BASE)
    assert [(entry["storage_class"], entry["days"], entry["date"]) for entry in found] == expected


@pytest.mark.parametrize(
    ("keep", "keep_days", "days", "words"),
    [
        (0, 0, 3650, "all copies stay"),
        (0, 5, 3650, "all copies stay"),
        (10, 0, 3650, "keep 10: so many of the newest stay, however old"),
        (10, 90, 89, "keep_days 90: so many of the newest stay, for so many days"),
        (10, 90, None, "keep_days 90: so many of the newest stay, for so many days"),
        (10, 90, 90, "the newest 3 stay, however old they are"),
        (2, 90, 3650, "the newest 2 stay, however old they are"),
    ],
)
def test_it_is_said_what_retention_holds_against_it(keep, keep_days, days, words) -> None:
    assert words in promise(parse({**STORE, "keep": keep, "keep_days": keep_days}), days)


def test_the_sentence_names_bucket_rule_prefix_and_days() -> None:
    (found,) = harmful([rule(Filter={"Prefix": "sites/"})], BASE)
    assert sentence(found, parse(STORE), BASE) == (
        "The lifecycle rule 'tidy' of the bucket 'backups' at https://s3.example.org (prefix 'sites/') deletes objects 30 days after they were "
        "written, copies of backups below sites/shop/production/ among them, whatever app_backup_store says (keep 10: so many of the newest "
        "stay, however old they are): limit the rule to other prefixes or to noncurrent versions, or choose another app_backup_store.prefix."
    )
    (found,) = harmful(
        [
            {
                "Status": "Enabled",
                "Transitions": [{"Date": "2027-01-01 00:00:00+00:00", "StorageClass": "GLACIER"}],
            }
        ],
        BASE,
    )
    said = sentence(found, parse(STORE), BASE)
    assert said.startswith("A lifecycle rule without an id of the bucket 'backups'")
    assert "(no prefix) moves objects into GLACIER, where they must be restored" in said
    assert "from 2027-01-01 on" in said
    assert "1 day after" in sentence(harmful([rule(Expiration={"Days": 1})], BASE)[0], parse(STORE), BASE)


def test_of_many_rules_the_first_are_told_and_the_number_of_the_others() -> None:
    found = harmful([rule(ID=f"r{number}") for number in range(MOST_WARNINGS + 3)], BASE)
    told = warnings_of(found, parse(STORE), BASE)
    assert len(told) == MOST_WARNINGS + 1
    assert told[-1].startswith("3 more lifecycle rules")
    assert warnings_of(found[:MOST_WARNINGS], parse(STORE), BASE) == told[:-1]
    assert warnings_of([], parse(STORE), BASE) == []
