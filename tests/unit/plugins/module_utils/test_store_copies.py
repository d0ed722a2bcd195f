# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is a copy in an object store, what is removed there, and what a fault is called: judged without a store."""

from __future__ import annotations

import json

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._store_copies import (
    DEAD_AFTER,
    by_backup,
    dead_uploads,
    keys_of,
    portable,
    read_stored,
    rows,
    split_key,
    surplus_copies,
    table,
)
from ansible_collections.runbook.deploy.plugins.module_utils._store_faults import CODES, TYPES, reason
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import (
    MIB,
    MOST_PARTS,
    PART_SIZE,
    base_of,
    check,
    parse,
    part_size,
)

BASE = "sites/shop/production/"
MANIFEST = {
    "schema": 1,
    "engine": "sqlite",
    "file": "shop.dump",
    "size": 3,
    "sha256": "00",
    "counts": {},
    "heads": {},
    "created": "2026-11-21T01:37:00Z",
}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("sites/shop/production/b1/shop.dump", ("b1", "shop.dump")),
        ("sites/shop/production/b1/notes/shop.dump", None),
        ("sites/shop/production/b1/", None),
        ("sites/shop/production/readme", None),
        ("sites/shop/production-eu/b1/shop.dump", None),
        ("shop/production/b1/shop.dump", None),
        ("x/sites/shop/production/b1/shop.dump", None),
        ("sites/shop/production/../b1", None),
        ("sites/shop/production/.partial/shop.dump", None),
    ],
)
def test_only_what_lies_where_copies_lie_is_ours(key, expected) -> None:
    assert split_key(key, BASE) == expected
    assert list(by_backup([{"key": key}], BASE)) == ([expected[0]] if expected else [])


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/b", "", ".hidden", "manifest.json", "..", "a\n"])
def test_a_manifest_whose_file_leads_elsewhere_is_none(file) -> None:
    assert read_stored(json.dumps({**MANIFEST, "file": file}), "b1") is None


@pytest.mark.parametrize("changes", [{"schema": 2}, {"size": "3"}, {"size": -1}, {"size": None}, {"file": 3}])
def test_a_manifest_of_another_form_is_none(changes) -> None:
    assert read_stored(json.dumps({**MANIFEST, **changes}), "b1") is None


@pytest.mark.parametrize("missing", list(MANIFEST))
def test_an_incomplete_manifest_is_none(missing) -> None:
    part = {key: value for key, value in MANIFEST.items() if key != missing}
    assert read_stored(json.dumps(part), "b1") is None


def test_the_name_in_the_store_counts_and_where_this_host_has_its_copy_does_not_go_there() -> None:
    text = portable({**MANIFEST, "id": "b1", "store": {"location": "x"}})
    assert read_stored(text, "b2") == {**MANIFEST, "id": "b2"}


def upload(name: str, begun: float, base: str = BASE) -> dict:
    return {"key": f"{base}{name}/shop.dump", "id": f"upload-{name}", "begun": begun}


def test_an_upload_is_dead_when_it_was_ours_or_is_old_and_others_are_never_touched() -> None:
    now = 1e9
    seen = [
        upload("mine", now),
        upload("young", now - DEAD_AFTER + 60),
        upload("old", now - DEAD_AFTER - 60),
        upload("old", 0, "sites/other/production/"),
    ]
    assert [entry["id"] for entry in dead_uploads(seen, BASE, {"mine"}, now)] == ["upload-mine", "upload-old"]
    # Without the store's own time nothing of others is old.
    assert [entry["id"] for entry in dead_uploads(seen, BASE, {"mine"}, None)] == ["upload-mine"]


def dated(*days: int) -> dict:
    return {f"b{day}": {**MANIFEST, "created": f"2026-11-{day:02}T00:00:00Z"} for day in days}


@pytest.mark.parametrize(
    ("keep", "days", "pinned", "expected"),
    [
        (0, 0, (), []),
        (0, 1, (), []),
        (-1, 0, (), []),
        (2, 0, (), ["b1", "b2", "b3"]),
        (1, 0, ("b1", "b2"), ["b3", "b4"]),
        (9, 1, (), ["b1", "b2"]),
        (9, 1, ("b1",), ["b2"]),
        (9, 400, (), []),
    ],
)
def test_retention_keeps_the_newest_and_what_is_needed(keep, days, pinned, expected) -> None:
    found = surplus_copies(dated(1, 2, 3, 4, 5), pinned, keep, days, "2026-12-01T00:00:00Z")
    assert sorted(found) == expected


def test_a_copy_loses_its_manifest_first() -> None:
    assert keys_of(BASE, "b1", MANIFEST) == [f"{BASE}b1/manifest.json", f"{BASE}b1/shop.dump"]


def test_the_list_says_of_each_backup_where_it_is() -> None:
    here = {"both": MANIFEST, "here": MANIFEST, "other": {**MANIFEST, "sha256": "11"}}
    stored = {"both": MANIFEST, "there": MANIFEST, "other": MANIFEST, "half": None}
    found = {row["id"]: (row["here"], row["store"]) for row in rows(here, stored, BASE, "backups")}
    assert found == {
        "both": (True, "yes"),
        "here": (True, "no"),
        "there": (False, "yes"),
        "other": (True, "different"),
        "half": (False, "unfinished"),
    }
    lines = table(rows(here, stored, BASE, "backups"))
    assert len(lines) == 6
    assert f"s3://backups/{BASE}there/shop.dump" in "\n".join(lines)
    assert table([]) == ["There is no backup yet, neither on this host nor in the store."]


def fault(**facts) -> dict:
    return {
        "type": "ClientError",
        "code": "",
        "status": None,
        "operation": "PutObject",
        "message": "no",
        "skew": 0,
        **facts,
    }


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"code": "InvalidAccessKeyId", "status": 403}, "does not know the access key"),
        ({"code": "AccessDenied", "status": 403}, "may not do this"),
        ({"status": 403}, "may not do this"),
        ({"code": "NoSuchBucket", "status": 404}, "no such bucket"),
        ({"code": "QuotaExceeded", "status": 403}, "the bucket is full"),
        ({"code": "XMinioStorageFull", "status": 507}, "the bucket is full"),
        ({"status": 507}, "the bucket is full"),
        ({"code": "SlowDown", "status": 503}, "cannot answer now (503 SlowDown)"),
        ({"status": 502}, "cannot answer now (502)"),
        ({"code": "AccessDenied", "status": 403, "skew": 3600}, "clock is 3600 s ahead of"),
        ({"code": "RequestTimeTooSkewed", "status": 403, "skew": -3600}, "clock is 3600 s behind"),
        ({"code": "RequestTimeTooSkewed", "status": 403, "skew": None}, "clocks of host and store differ"),
        ({"type": "SSLError"}, "certificate"),
        ({"type": "NoCredentialsError"}, "no credentials"),
        ({"type": "Strange", "message": "one\ntwo."}, "Strange: one two"),
    ],
)
def test_a_fault_has_one_name_and_an_advice(facts, what) -> None:
    said, advice = reason(fault(**facts))
    assert what in said
    assert advice


def test_every_advice_is_a_part_of_a_sentence() -> None:
    for what, advice in [*CODES.values(), *TYPES.values()]:
        assert not what.endswith(".")
        assert not advice.format(variable="app_backup_store").endswith(".")


@pytest.mark.parametrize("size", [0, 1, PART_SIZE * MOST_PARTS, PART_SIZE * MOST_PARTS + 1, 5 * 1024**4])
def test_no_file_has_more_parts_than_a_store_takes(size) -> None:
    part = part_size(size)
    assert part >= PART_SIZE
    assert part % MIB == 0
    assert -(-size // part) <= MOST_PARTS


@pytest.mark.parametrize(
    ("prefix", "expected"), [("", "shop/test/"), ("a/b/", "a/b/shop/test/"), ("/a", "a/shop/test/")]
)
def test_what_keys_begin_with_ends_with_a_slash(prefix, expected) -> None:
    assert base_of(parse({"bucket": "backups", "prefix": prefix}), "shop", "test") == expected


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "a\n"])
def test_a_name_that_leads_elsewhere_makes_no_key(name) -> None:
    with pytest.raises(Problem):
        base_of(parse({"bucket": "backups"}), name, "test")


def test_no_value_that_may_be_secret_is_shown() -> None:
    secret = "hunter2-hunter2"
    stores = [
        {"bucket": "bbb", "endpoint": f"https://a:{secret}@x"},
        {"bucket": "bbb", "proxy": f"ftp://a:{secret}@x"},
        {"bucket": "bbb", "secret_key": secret},
        {"bucket": "bbb", "secret_key": [secret]},
    ]
    for store in stores:
        errors = check(store)
        assert errors
        assert secret not in "".join(errors)
