# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of a release's services under ``compose``: built, pulled or found, and from then on known by digest alone.

``.images.json`` in the release says which; a tag of our own keeps each from ``docker image prune``, as a rollback needs it.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import last_words
from ansible_collections.runbook.deploy.plugins.module_utils._compose import (
    images_file,
    own_variables,
    place_of,
    read_images,
    yaml_text,
)
from ansible_collections.runbook.deploy.plugins.module_utils._compose_engine import (
    Place,
    compose,
    docker,
    read_service,
    require_engine,
    short,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, opened, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

KEEP = "runbook"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def tag_of(name: str, stage: str, service: str, release: str) -> str:
    """Return the tag that keeps the image of *service* in *release*."""
    return f"{KEEP}/{name}-{stage}/{service}:{release}"


def fill(reference: str, facts: Mapping[str, str]) -> str:
    """Return the image *reference* with ``{version}``, ``{commit}`` and ``{release}`` replaced.

    :raises Problem: when it is no name of an image then.
    """
    found = reference
    for name, value in facts.items():
        found = found.replace("{" + name + "}", value)
    if not re.match(r"^[a-z0-9][A-Za-z0-9._:/@-]*$", found):
        raise Problem(
            f"The image {reference!r} in app_services becomes {found!r}, which is no name of an image: use {{commit}} or {{release}} "
            "where a version has other characters than letters, digits, dots and dashes."
        )
    return found


def has_registry(reference: str) -> bool:
    """Return whether *reference* names the registry that it comes from; other names could be anybody's there.

    docs.docker.com, "docker image tag": the first part is a host name when it has a dot or a colon, or is localhost.
    """
    first, slash, _rest = reference.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def inspect(reference: str) -> dict[str, Any] | None:
    """Return ``{id, digests}`` of the image *reference* on this host; None where it is not there.

    :raises Problem: when the engine does not answer.
    """
    answer = docker("image", "inspect", reference)
    if answer.rc != 0:
        return None
    try:
        found = json.loads(answer.stdout)[0]
        return {"id": str(found["Id"]), "digests": sorted(found.get("RepoDigests") or [])}
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def obtain(reference: str, timeout: float) -> tuple[dict[str, Any], str, str]:
    """Return (the image *reference*, "pulled" or "local", a note for the operator or "").

    :raises Problem: when it is neither here nor to be had.
    """
    present = inspect(reference)
    if present and (DIGEST.search(reference) or not has_registry(reference)):
        return present, "local", ""
    answer = docker("pull", "--quiet", reference, timeout=timeout)
    found = inspect(reference)
    if answer.rc == 0 and found:
        return found, "pulled", ""
    reason = last_words(answer.stderr, 1) or ("its time was up" if answer.timed_out else "no reason given")
    if found:
        note = f"The image {reference} could not be pulled ({reason}), so that {short(found['id'])} is taken, which this host has of it."
        return found, "local", note
    raise Problem(
        f"The image {reference} is not on this host and cannot be pulled: push it, correct image in app_services, or log the user of this "
        "task in to its registry (docker login).",
        answer.tail(10),
    )


def build(
    place: Place,
    file: Path,
    overlay: Path,
    tag: str,
    environment: Mapping[str, str],
    secrets: Sequence[str],
    timeout: float,
) -> None:
    """Build the image of the service from the release, as *tag*.

    :raises Problem: when that fails.
    """
    overlay.write_text(yaml_text({"services": {place.service: {"image": tag}}}), encoding="utf-8")
    answer = compose(
        place,
        [file, overlay],
        "build",
        place.service,
        environment=environment,
        secrets=secrets,
        timeout=timeout,
    )
    if answer.rc != 0:
        why = f"within {timeout:g} s" if answer.timed_out else f"(exit code {answer.rc})"
        raise Problem(
            f"docker compose could not build the image of the service {place.service!r} of {place.file} {why}; nothing live was touched: "
            "correct what the evidence names.",
            answer.tail(20),
        )


def missing(layout: Layout, release: str, services: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of *services* whose image the release does not name, or this host does not have."""
    known = read_images(layout, release)
    return [spec for spec in services if spec["name"] not in known or not inspect(known[spec["name"]]["id"])]


def ensure(
    target: Installed,
    name: str,
    stage: str,
    services: Sequence[Mapping[str, Any]],
    timeout: float,
    scratch: Path,
) -> tuple[dict[str, Any], bool, list[str]]:
    """Have the image of each of *services* on this host, and write down in the release which it is.

    :param scratch: a directory for a file of the build.
    :return: the content of ``.images.json``, whether anything was done, notes for the operator.
    :raises Problem: when an image is not to be had; what runs is not touched.
    """
    require_engine()
    release = target.path.name
    images = read_images(target.layout, release)
    notes = []
    todo = missing(target.layout, release, services)
    for spec in todo:
        service = str(spec["name"])
        place = place_of(spec, name, stage)
        tag = tag_of(name, stage, service, release)
        known = images.get(service)
        if known and known.get("digests"):
            # Removed from the host since: it must be the very same again.
            found, origin, note = obtain(known["digests"][0], timeout)
            if found["id"] != known["id"]:
                raise Problem(
                    f"The image {known['digests'][0]} has the id {short(found['id'])} on this host, where the release {release} was "
                    f"deployed with {short(known['id'])}: remove {images_file(target.layout, release)} to deploy it as it is now."
                )
            images[service] = {**known, "tag": tag}
        else:
            environment = own_variables(target.variables, spec, target.user)
            reference, builds = str(spec.get("image") or ""), False
            if reference:
                facts = {
                    "version": target.variables["RUNBOOK_VERSION"],
                    "commit": target.variables["RUNBOOK_COMMIT"],
                }
                reference = fill(reference, {**facts, "release": release})
            else:
                described = read_service(place, [target.cwd / place.file], environment, target.secrets)
                builds, reference = bool(described.get("build")), str(described.get("image") or "")
            if builds:
                build(
                    place,
                    target.cwd / place.file,
                    scratch / f"{service}.json",
                    tag,
                    environment,
                    target.secrets,
                    timeout,
                )
                reference, origin, note = tag, "built", ""
                made = inspect(tag)
                if made is None:
                    raise Problem(
                        f"docker compose build ended without an image {tag}: see what its output says."
                    )
                found = made
            elif reference:
                found, origin, note = obtain(reference, timeout)
            else:
                raise Problem(
                    f"The service {place.service!r} of {place.file} has neither image nor build: add one, or image to app_services."
                )
            images[service] = {"reference": reference, "origin": origin, "tag": tag, **found}
        notes += [note] if note else []
        docker("tag", images[service]["id"], tag)
    if todo:
        with opened(target.path):
            write_json(images_file(target.layout, release), images, 0o644)
        prune(target.layout, name, stage)
    return images, bool(todo), notes


def prune(layout: Layout, name: str, stage: str) -> None:
    """Remove our tags of releases that are not on this host any more; an image with another tag, or in use, stays."""
    listed = docker(
        "image",
        "ls",
        "--format",
        "{{.Repository}}:{{.Tag}}",
        "--filter",
        f"reference={KEEP}/{name}-{stage}/*",
    )
    for tag in listed.stdout.split():
        if not layout.release(tag.rpartition(":")[2]).is_dir():
            docker("image", "rm", tag)
