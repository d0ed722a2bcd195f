# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_store, and a bucket whose lifecycle rules delete or archive copies, on a real server that speaks S3."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.modules import backup_store
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.object_store import Fault, s3_server
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.store_host import (
    BASE,
    BUCKET,
    LARGE,
    in_store,
    keys,
    store_host,
)

pytest.importorskip("boto3", reason="boto3 is not installed here: make venv")
pytest.importorskip("moto.server", reason="moto[server] is not installed here: make venv")

NONE = {"rules": [], "unseen": ""}


@pytest.fixture(scope="module")
def moto():
    with s3_server() as port:
        yield port


@pytest.fixture
def host(tmp_path, moto, capsys, monkeypatch):
    with store_host(tmp_path / "app", moto, capsys, monkeypatch) as found:
        yield found
        found.client.delete_bucket_lifecycle(Bucket=BUCKET)


@pytest.fixture
def warned(monkeypatch):
    """What the module warns of; where that goes depends on whether the controller's side was imported."""
    found = []
    monkeypatch.setattr(backup_store.AnsibleModule, "warn", lambda module, text: found.append(text))
    return found


def give(host, *rules):
    """Give the bucket these enabled rules."""
    host.client.put_bucket_lifecycle_configuration(
        Bucket=BUCKET,
        LifecycleConfiguration={"Rules": [{"Status": "Enabled", **rule} for rule in rules]},
    )


def asked(host):
    return [entry for entry in host.proxy.asked if "lifecycle" in entry.query]


def test_a_rule_that_ends_copies_is_warned_of_wherever_they_are_looked_at(host, warned):
    host.backup("one")
    give(
        host,
        {"ID": "everything", "Filter": {"Prefix": "sites/"}, "Expiration": {"Days": 30}},
        {"ID": "logs", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}},
        {"ID": "neighbour", "Filter": {"Prefix": "sites/shop/production-eu/"}, "Expiration": {"Days": 1}},
        {
            "ID": "marked",
            "Filter": {"And": {"Prefix": "sites/", "Tags": [{"Key": "temporary", "Value": "yes"}]}},
            "Expiration": {"Days": 1},
        },
    )
    expected = {"id": "everything", "prefix": "sites/", "storage_class": "", "days": 30, "date": ""}
    for state, check in (
        ("ready", False),
        ("present", True),
        ("present", False),
        ("verified", False),
        ("verified", True),
    ):
        host.proxy.asked.clear()
        answer = host.run(state, "one" if state == "present" else None, check=check)
        assert not answer.get("failed"), answer
        assert answer["lifecycle"] == {"rules": [expected], "unseen": ""}
        (text,) = warned
        assert text.startswith(
            f"The lifecycle rule 'everything' of the bucket {BUCKET!r} at {host.store['endpoint']}"
        )
        assert "(prefix 'sites/') deletes objects 30 days after" in text
        assert BASE in text
        assert len(asked(host)) == 1
        warned.clear()
    for state in ("listed", "absent"):
        host.proxy.asked.clear()
        assert "lifecycle" not in host.run(state)
        assert asked(host) == []
    assert warned == []


def test_rules_for_versions_and_unfinished_uploads_are_welcome(host, warned):
    host.backup("one", LARGE)
    give(
        host,
        {
            "ID": "parts",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        },
        {
            "ID": "versions",
            "Filter": {"Prefix": ""},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        },
    )
    assert host.run("present", "one")["lifecycle"] == NONE
    assert warned == []
    # Such uploads are what a large backup is made of.
    assert [entry for entry in host.proxy.asked if entry.is_part]


def test_an_archive_and_a_date_are_named(host, warned):
    host.backup("one")
    give(
        host,
        {
            "ID": "cold",
            "Filter": {"Prefix": BASE},
            "Transitions": [{"Days": 3, "StorageClass": "DEEP_ARCHIVE"}],
        },
    )
    host.run("present", "one")
    assert "moves objects into DEEP_ARCHIVE, where they must be restored" in warned.pop()
    give(host, {"ID": "end", "Filter": {"Prefix": ""}, "Expiration": {"Date": "2099-01-01T00:00:00Z"}})
    answer = host.run("ready")
    assert "from 2099-01-01 on" in warned.pop()
    assert answer["lifecycle"]["rules"][0]["date"] == "2099-01-01"


def test_a_copy_that_a_rule_has_deleted_is_a_failure_that_comes_with_the_warning(host, warned):
    host.backup("one")
    host.run("present", "one")
    give(host, {"ID": "everything", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}})
    host.client.delete_object(Bucket=BUCKET, Key=f"{BASE}one/shop.dump")
    answer = host.run("verified", ids=["one"])
    assert answer["failed"]
    assert answer["states"] == {"one": "FAILED"}
    assert "'everything'" in warned.pop()
    # The next run that copies it brings it back.
    assert host.run("present", "one")["changed"] is True
    assert len(in_store(host.client, "one")) == 1000


@pytest.mark.long
def test_proved_copies_that_somebody_else_removed_are_named(host, warned):
    for number in range(1, 6):
        host.backup(f"b{number}", 100, f"2026-11-0{number}T00:00:00Z")
        host.run("present", f"b{number}", store={"keep": 4} if number < 5 else {"keep": 0})
    host.backup("never", 100, "2026-11-07T00:00:00Z")
    assert host.run("verified", ids=["all"])["gone"] == []
    # Retention of this host has no part in it.
    assert host.run("absent", store={"keep": 4})["removed"] == ["b1"]
    assert host.run("verified", ids=["all"])["gone"] == []
    assert warned == []
    # A whole copy, its dump, or what makes it a copy.
    for key in ("b2/shop.dump", "b2/manifest.json", "b3/shop.dump", "b4/manifest.json"):
        host.client.delete_object(Bucket=BUCKET, Key=f"{BASE}{key}")
    answer = host.run("verified", ids=["all"])
    assert answer["states"] == {"b5": "intact"}
    assert answer["gone"] == ["b4", "b3", "b2"]
    text = warned.pop()
    assert "(3: b4, b3, b2)" in text
    assert "this host has not removed them" in text
    # One that was asked for is a failure, and not told twice.
    answer = host.run("verified", ids=["b3"])
    assert answer["states"] == {"b3": "FAILED"}
    assert answer["gone"] == ["b4", "b2"]
    warned.clear()
    # Another place never had them.
    other = {"prefix": "elsewhere"}
    host.run("present", "b5", store=other)
    assert host.run("verified", store=other)["gone"] == []
    assert warned == []


@pytest.mark.parametrize(
    ("fault", "unseen"),
    [
        (Fault("answer", status=404, code="NoSuchLifecycleConfiguration"), ""),
        (Fault("answer", status=403, code="AccessDenied"), "AccessDenied"),
        (Fault("answer", status=501, code="NotImplemented"), "NotImplemented"),
        (Fault("answer", status=405, code="MethodNotAllowed"), "MethodNotAllowed"),
        (Fault("answer", status=400, code="MalformedXML"), "MalformedXML"),
    ],
)
def test_a_store_that_does_not_say_is_no_failure_and_no_warning(host, warned, fault, unseen):
    data = host.backup("one")
    give(host, {"ID": "everything", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}})
    host.proxy.fault = lambda entry: fault if "lifecycle" in entry.query else None
    answer = host.run("present", "one")
    assert answer["changed"] is True
    assert answer["lifecycle"] == {"rules": [], "unseen": unseen}
    assert len(asked(host)) == 1
    assert warned == []
    assert in_store(host.client, "one") == data


def test_a_connection_that_breaks_off_takes_nothing_of_the_copy_away(host, warned):
    data = host.backup("one")
    host.proxy.fault = lambda entry: Fault("cut", "down") if "lifecycle" in entry.query else None
    answer = host.run("present", "one")
    assert answer["changed"] is True
    assert answer["lifecycle"]["rules"] == []
    assert warned == []
    assert in_store(host.client, "one") == data
    assert host.manifest("one")["store"] == answer["store"]


def test_nobody_is_asked_where_the_environment_is_not_built_or_the_store_is_away(host, warned):
    host.backup("one")
    host.proxy.fault = lambda entry: Fault("answer", status=403, code="AccessDenied")
    answer = host.run("present", "one", store={"required": False})
    assert answer["lifecycle"] is None
    assert warned == [f"DEGRADED: {answer['degraded']}"]
    host.proxy.clear()
    (host.environment / ".built").unlink()
    for state in ("ready", "present", "verified"):
        assert host.run(state, "one" if state == "present" else None, check=True)["lifecycle"] is None
    assert host.proxy.asked == []
    assert keys(host.client) == []
