# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo application in containers: deployed, deployed again, refused, taken back. The tests go on from each other.

What is said of it is looked at from outside: over HTTP, by ``docker inspect``, in the database.
"""

from __future__ import annotations

import pytest
from compose_site import SECRET, Answer, Run, Site, docker

NEW_MIGRATION = "0004_adminnote"


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    """The digest of each version's image, as the tests found it."""
    return {}


def require_success(run: Run) -> None:
    assert run.code == 0, run.output[-6000:]


def require_serving(site: Site, version: str, seen: dict[str, str]) -> None:
    """One container runs, of the image that the current release names, and answers as *version*."""
    answer = site.get()
    assert (answer.status, answer.version) == (200, version), answer
    assert answer.body["release"] == site.current()
    assert answer.body["commit"] == site.commits[version]
    container = site.container()
    assert container["Image"] == site.kept_image(site.current())
    assert seen.setdefault(version, container["Image"]) == container["Image"]
    assert container["Config"]["Image"] == container["Image"], "run by a name, not by its digest"
    assert container["RestartCount"] == 0


def test_the_first_release_is_built_and_serves(site: Site, seen: dict[str, str]) -> None:
    require_success(site.deploy("v2.6"))
    require_serving(site, "v2.6", seen)
    assert site.get("/").status == 200, "a page with static files, which only the image has"
    variables = dict(entry.split("=", 1) for entry in site.container()["Config"]["Env"])
    assert variables["GOEXPLORER_SECRET_KEY"] == SECRET
    assert str(site.root) not in variables["PATH"]
    (image,) = (entry for entry in site.records()[-1]["phases"] if entry["phase"] == "image")
    assert image["result"]["images"]["web"]["id"] == seen["v2.6"]


def test_secrets_are_in_no_file_that_others_read_nor_in_the_record(site: Site) -> None:
    overlays = sorted((site.root / "shared" / "env").glob("*.compose.yaml"))
    assert overlays
    for path in overlays:
        assert path.stat().st_mode & 0o777 == 0o600
    for record in (site.root / "deployments").glob("*.json"):
        assert SECRET[:30] not in record.read_text(encoding="utf-8")


def test_an_upgrade_replaces_the_container(site: Site, seen: dict[str, str]) -> None:
    before = site.container()["Id"]
    require_success(site.deploy("v2.7"))
    require_serving(site, "v2.7", seen)
    assert site.container()["Id"] != before
    assert seen["v2.6"] != seen["v2.7"]
    assert NEW_MIGRATION in site.applied()


def test_the_same_version_again_changes_nothing(site: Site, seen: dict[str, str]) -> None:
    before = site.container()
    run = site.deploy("v2.7")
    require_success(run)
    assert "changed=0" in run.output
    assert (site.container()["Id"], site.container()["State"]["StartedAt"]) == (
        before["Id"],
        before["State"]["StartedAt"],
    )


def test_status_shows_what_runs(site: Site, seen: dict[str, str]) -> None:
    run = site.play("status")
    require_success(run)
    assert "drift" not in run.output.lower() or "no drift" in run.output.lower(), run.output
    assert site.current() in run.output


@pytest.mark.parametrize("version", ["broken-boot", "unhealthy", "crash-later", "not-built"])
def test_a_broken_release_never_takes_the_port(site: Site, seen: dict[str, str], version: str) -> None:
    before = site.container()
    run = site.deploy(version)
    assert run.code != 0, run.output[-4000:]
    after = site.container()
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    require_serving(site, "v2.7", seen)
    assert site.records()[-1]["verdict"] in ("rolled_back", "abandoned")
    # Of what ends after a while, a busy machine may see the wrong answers first.
    reasons = {
        "broken-boot": ["No module named"],
        "unhealthy": ["unhealthy"],
        "crash-later": ["does not stay up", "is not healthy"],
        "not-built": ["could not build the image"],
    }[version]
    assert any(reason in run.output for reason in reasons), run.output[-4000:]
    assert SECRET[:30] not in run.output


def test_a_rollback_runs_the_former_image_by_its_digest(site: Site, seen: dict[str, str]) -> None:
    # Tags move: what served as v2.6 is called otherwise now, and its tag means the image of v2.7.
    former = next(entry for entry in site.records() if entry["version"] == "v2.6")["release"]
    kept = f"runbook/{site.name}-test/web:{former}"
    docker("tag", seen["v2.6"], f"runbook/{site.name}-test/other:{former}")
    docker("tag", seen["v2.7"], kept)
    require_success(site.play("rollback"))
    docker("tag", seen["v2.6"], kept)
    require_serving(site, "v2.6", seen)


def test_a_container_of_another_image_is_drift(site: Site, seen: dict[str, str]) -> None:
    """Somebody runs another image with the labels, variables and port of what was deployed: only its digest tells."""
    container = site.container()
    labels = [
        word
        for name, value in container["Config"]["Labels"].items()
        for word in ("--label", f"{name}={value}")
        if name.startswith(("runbook.deploy.", "com.docker.compose."))
    ]
    variables = [word for entry in container["Config"]["Env"] for word in ("--env", entry)]
    shared = f"{site.root}/shared"
    docker("rm", "--force", container["Id"])
    docker(
        *("run", "--detach", "--name", container["Name"].lstrip("/"), *labels, *variables),
        *("--publish", f"127.0.0.1:{site.port}:8000", "--volume", f"{shared}:{shared}", seen["v2.7"]),
    )
    site.wait(lambda: site.get().status == 200, "the stranger to answer")
    # It says that it is the release, and answers well.
    assert site.get().body["release"] == site.current()
    run = site.play("status")
    digest = seen["v2.7"].replace("sha256:", "")[:12]
    assert f"runs the image {digest}" in run.output, run.output[-4000:]
    # The same version again finds that it is not live, and makes it so.
    require_success(site.deploy("v2.6"))
    require_serving(site, "v2.6", seen)


def test_nothing_is_left_of_what_was_refused(site: Site) -> None:
    assert len(site.containers()) == 1
    names = [path.name for path in (site.root / "shared" / "env").glob("*.trial*")]
    assert names == []


def test_removing_stops_the_container(site: Site) -> None:
    require_success(site.play("remove", "-e", f"remove_confirm={site.name}"))
    assert site.containers() == []
    assert site.get() == Answer(0, "", site.get().body)
