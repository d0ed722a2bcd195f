# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups that are copied to an object store: a host that lost its own goes back by the copy, and by no damaged one."""

from __future__ import annotations

import json

import pytest
import yaml
from store import BUCKET, Store, serving

KEY = "AKIDEXAMPLE"
CONSENT = ("-e", "rollback_consent=true")
DESTRUCTIVE = "owner_agreements.0005_remove_owneragreement_reference"
REFERENCES = "SELECT count(*) FROM owner_agreements_owneragreement WHERE reference <> ''"
COLUMN = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'owner_agreements_owneragreement' AND column_name = 'reference'"


@pytest.fixture(scope="module")
def s3(site, secrets):
    """The server, on this side of the hosts' network."""
    address = site.address.rpartition(".")[0] + ".1"
    with serving(address, {"access_key": KEY, "secret_key": secrets["store"]}) as server:
        yield server


@pytest.fixture(scope="module")
def store(s3, secrets):
    """The bucket."""
    return Store(s3.endpoint, "sites/goexplorer/test/", KEY, secrets["store"])


@pytest.fixture(scope="module")
def words(store, by_administrator, tmp_path_factory):
    """The words of a command line with which backups are copied to the store."""

    def described(required: bool = True) -> tuple[str, ...]:
        variable = {
            "endpoint": store.endpoint,
            "bucket": BUCKET,
            "prefix": "sites",
            "access_key": KEY,
            "secret_key": "{{ test_secrets.store }}",
            "required": required,
        }
        path = tmp_path_factory.mktemp("store") / "store.yml"
        path.write_text(yaml.safe_dump({"app_backup_store": variable}), encoding="utf-8")
        return *by_administrator, "-e", f"@{path}"

    return described


@pytest.fixture(scope="module")
def with_store(words):
    return words()


@pytest.fixture(scope="module")
def served(site, step, with_store):
    """A version whose migration destroys, deployed with a copy of the backup; v2.7 served before."""
    if site.wrong("v2.7"):
        first = step("deploy", "-e", "version=v2.7", *with_store)
        assert first.run.code == 0, str(first.run)
    done = step("deploy", "-e", "version=destructive", *with_store)
    done.added = sorted(set(site.run("ls", f"{site.root}/backups").split()) - set(done.before.backups))
    return done


@pytest.fixture(scope="module")
def name(served):
    """The backup of that deployment."""
    (found,) = served.added
    return found


class TestCopiedDuringADeployment:
    def test_it_succeeds_and_says_where_the_copy_is(self, served, name, site, after):
        assert served.run.code == 0, str(served.run)
        after(served, "destructive")
        record = json.loads(site.run("cat", f"{site.root}/deployments/{name}.json"))
        (phase,) = [phase for phase in record["phases"] if phase["phase"] == "backup_store"]
        assert f"s3://{BUCKET}/sites/goexplorer/test/{name}/" in json.dumps(phase)

    def test_the_store_has_what_the_host_has(self, served, name, site, store):
        copy = store.copy(name)
        assert copy["whole"]
        there = site.run("sha256sum", f"{site.root}/backups/{name}/{copy['manifest']['file']}").split()[0]
        assert there == copy["manifest"]["sha256"]


@pytest.fixture
def lost(name, site):
    """The host without its backup."""
    site.run("rm", "-rf", f"{site.root}/backups/{name}")
    return name


def untouched(done, server) -> None:
    """Nothing live was changed, and nobody noticed anything."""
    assert done.run.code != 0, str(done.run)
    assert done.traffic.failed == []
    assert done.traffic.versions == ["destructive"]
    assert server.kept() == done.before.kept
    assert server.objects() == done.before.objects
    assert server.migrations()[-1] == DESTRUCTIVE


def absent(site, name) -> None:
    """Nothing that looks like the backup has come to the host."""
    assert site.attempt("ls", f"{site.root}/backups/{name}").returncode != 0
    assert site.run("sh", "-c", f"ls -A {site.root}/backups | grep fetching || true") == ""


class TestLostOnTheHost:
    def test_a_store_that_does_not_answer_is_named_and_nothing_happens(
        self, lost, s3, step, site, server, after, with_store
    ):
        if not hasattr(s3, "place"):
            pytest.skip("moto's server forgets what was stored when it is stopped: make test-store")
        s3.stop()
        try:
            done = step("rollback", *with_store, *CONSENT)
        finally:
            s3.start()
        done.run.line(f"The copies cannot be listed in the bucket '{BUCKET}' at {s3.endpoint}")
        untouched(done, server)
        absent(site, lost)
        after(done, "destructive")

    def test_a_copy_with_one_other_byte_is_refused_and_nothing_happens(
        self, lost, store, step, site, server, after, with_store
    ):
        with store.flipped(store.copy(lost)["dump"]):
            assert not store.copy(lost)["whole"]
            done = step("rollback", *with_store, *CONSENT)
        done.run.line(f"The copy of the backup {lost} in the bucket .* is damaged: the sha256")
        untouched(done, server)
        absent(site, lost)
        after(done, "destructive")

    def test_without_consent_it_is_fetched_to_count_what_would_be_lost(
        self, lost, store, step, site, server, after, with_store
    ):
        done = step("rollback", *with_store)
        untouched(done, server)
        done.run.line("would lose writes made since it was taken: .*writer_deletions: [0-9]+ inserts")
        done.run.line("rollback_consent=true")
        copy = store.copy(lost)
        there = site.run("sha256sum", f"{site.root}/backups/{lost}/{copy['manifest']['file']}").split()[0]
        assert there == copy["manifest"]["sha256"]
        after(done, "destructive")

    def test_it_comes_back_from_the_store_and_is_restored(
        self, lost, store, step, site, served, server, after, with_store
    ):
        assert store.copy(lost)["whole"]
        assert server.sql(COLUMN) == "0"
        done = step("rollback", *with_store, *CONSENT)
        assert done.run.code == 0, str(done.run)
        assert server.objects() == served.before.objects
        assert server.migrations()[-1] == "owner_agreements.0004_adminnote"
        assert server.sql(REFERENCES) == "3"
        assert len(server.kept()) == len(done.before.kept) + 1
        after(done, "v2.7")
        manifest = store.copy(lost)["manifest"]
        there = site.run("sha256sum", f"{site.root}/backups/{lost}/{manifest['file']}").split()[0]
        assert there == manifest["sha256"]


class TestStoreThatIsAway:
    """Last, because moto's server forgets all when it is stopped."""

    def test_where_the_copy_is_required_a_deployment_ends_before_it_changes_anything(
        self, s3, step, server, after, with_store
    ):
        s3.stop()
        done = step("deploy", "-e", "version=v2.8", *with_store)
        assert done.run.code != 0, str(done.run)
        done.run.line(f"preflight .*{s3.endpoint}")
        assert server.objects() == done.before.objects
        after(done, "v2.7")

    def test_where_it_is_not_a_deployment_goes_on_and_says_what_it_lacks(self, s3, step, site, words, after):
        s3.stop()
        done = step("deploy", "-e", "version=v2.8", *words(required=False))
        assert done.run.code == 0, str(done.run)
        done.run.line(f"DEGRADED.*{s3.endpoint}")
        after(done, "v2.8")
