# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tag the commit that was deployed, in the repository it came from: ``app_release_tag``.

It is done on the controller, with its git and the operator's credentials, from nothing but the commit itself. Nothing is
ever forced, and whatever goes wrong is a sentence: a deployment is what it is, tagged or not.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import string
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._git import (
    FULL_COMMIT,
    Access,
    git,
    has_commit,
    redact_url,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

KEYS = ("name", "message", "repository", "timeout")
FIELDS = ("application", "environment", "version", "commit", "short", "date", "time", "id", "operator")
MESSAGE = "{version} of {application} deployed to {environment} by {operator} ({id})"
# git-check-ref-format(1), of a name that is not to surprise anybody either.
NAME = re.compile(r"^(?!.*(\.\.|//|@\{|\.lock(/|$)|/\.|\.$|/$))[A-Za-z0-9][A-Za-z0-9._/@+-]{0,199}$")
# The operator's own way to the server and to the key that signs.
OWN = ("PATH", "SSH_AUTH_SOCK", "GNUPGHOME", "GPG_TTY", "XDG_RUNTIME_DIR")
TIMEOUT = 60
PUSHED, THERE, FAILED = "pushed", "there", "failed"


def parse_tag(value: Mapping[str, Any], where: str = "app_release_tag") -> dict[str, Any] | None:
    """Return *value* with every key, None where nothing is to be tagged.

    :raises Problem: with one sentence for the first thing that is wrong.
    """
    if not value:
        return None
    for key in value:
        if key not in KEYS:
            raise Problem(f"{where} has the unknown key {key!r}: known are {', '.join(KEYS)}.")
    spec = {"message": MESSAGE, "repository": "", "timeout": TIMEOUT, **value}
    for key in ("name", "message", "repository"):
        if not isinstance(spec.get(key), str) or (key != "repository" and not spec[key].strip()):
            raise Problem(f"{where}.{key} must be a text, found {spec.get(key)!r}.")
    if (
        isinstance(spec["timeout"], bool)
        or not isinstance(spec["timeout"], (int, float))
        or spec["timeout"] <= 0
    ):
        raise Problem(f"{where}.timeout must be a number of seconds, found {spec['timeout']!r}.")
    for key in ("name", "message"):
        try:
            names = [
                name
                for _text, name, _form, _conversion in string.Formatter().parse(spec[key])
                if name is not None
            ]
        except ValueError as error:
            raise Problem(f"{where}.{key} is {spec[key]!r}, which is no template ({error}).") from None
        unknown = [name for name in names if name not in FIELDS]
        if unknown:
            raise Problem(
                f"{where}.{key} names {{{unknown[0]}}}, which is unknown: known are {', '.join(FIELDS)}."
            )
    example = spec["name"].format(**dict.fromkeys(FIELDS, "x"))
    if not NAME.match(example):
        raise Problem(
            f"{where}.name is {spec['name']!r}, of which git can make no tag: see git-check-ref-format(1)."
        )
    return spec


def fields_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a text for each placeholder, from the record of the deployment."""
    at = str(record.get("finished") or record.get("begun") or "")
    commit = str(record.get("commit") or "")
    found = {
        "application": record.get("application"),
        "environment": record.get("stage"),
        "version": record.get("version") or commit[:12],
        "commit": commit,
        "short": commit[:12],
        "date": at[:10],
        "time": re.sub(r"\D", "", at[10:]),
        "id": record.get("id"),
        "operator": record.get("operator"),
    }
    return {name: " ".join(str(found[name] or "").split()) for name in FIELDS}


def tag(value: Mapping[str, Any], repository: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Tag the commit of *record* and push the tag; nothing is raised.

    :param value: ``app_release_tag``; :param repository: ``app_repository``, where that names no other.
    :return: ``{name, state, message}``; ``state`` is ``pushed``, ``there`` (it names this commit already) or ``failed``.
    """
    name = str(value.get("name") or "")
    try:
        spec = parse_tag(value)
        if spec is None:
            return {"name": "", "state": FAILED, "message": "app_release_tag is empty."}
        fields = fields_of(record)
        name = spec["name"].format(**fields)
        return _Push(
            spec, spec["repository"] or repository, name, spec["message"].format(**fields), fields["commit"]
        ).run(fields["operator"])
    except Problem as problem:
        return _failed(name, problem.message)
    except (OSError, ValueError) as error:
        return _failed(name, f"{error}")


def _failed(name: str, why: str) -> dict[str, str]:
    return {"name": name, "state": FAILED, "message": f"The tag {name!r} was not pushed: {redact_url(why)}"}


class _Push:
    """One tag, within one time limit."""

    def __init__(
        self, spec: Mapping[str, Any], repository: str, name: str, message: str, commit: str
    ) -> None:
        self.repository, self.name, self.message, self.commit = repository, name, message, commit
        self.timeout = spec["timeout"]
        self.deadline = time.monotonic() + spec["timeout"]

    def run(self, operator: str) -> dict[str, str]:
        """Look, make the tag, push it."""
        if not NAME.match(self.name):
            raise Problem("git can make no tag of that name; change app_release_tag.name, or the version.")
        if not FULL_COMMIT.match(self.commit):
            raise Problem(f"{self.commit or 'nothing'!r} is no commit that a repository could have.")
        if not self.repository:
            raise Problem("there is no app_repository; give app_release_tag.repository.")
        with (
            tempfile.TemporaryDirectory(prefix="runbook-tag-") as directory,
            Access.open({"repository": self.repository}) as access,
        ):
            own = {key: os.environ[key] for key in OWN if key in os.environ}
            access = access._replace(environment={**access.environment, **own})
            place = Path(directory)
            self._git(place, access, "init", "--quiet", "--bare", str(place))
            present = self._present(place, access)
            if present is None:
                self._fetch(place, access)
                who = self._identity(place, access, operator)
                self._git(place, access, *who, "tag", "-a", "-m", self.message, "--", self.name, self.commit)
                reference = f"refs/tags/{self.name}"
                done = self._run(
                    place,
                    access,
                    "push",
                    "--quiet",
                    "--no-verify",
                    access.address,
                    f"{reference}:{reference}",
                )
                if done.rc == 0 and not done.timed_out:
                    return {"name": self.name, "state": PUSHED, "message": ""}
                # Somebody may have been quicker.
                present = self._present(place, access)
                if present is None:
                    raise self._problem("push", done)
        if present == self.commit:
            return {"name": self.name, "state": THERE, "message": ""}
        raise Problem(
            f"it is there already and names the commit {present[:12]} instead of {self.commit[:12]}; it is left as it is: look who made it, or "
            "let app_release_tag.name tell them apart, with {time} or {id}."
        )

    def _run(self, place: Path, access: Access, *arguments: str) -> Any:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Problem(f"git took longer than {self.timeout:g} s (app_release_tag.timeout).")
        return git(place, *arguments, access=access, timeout=left)

    def _git(self, place: Path, access: Access, *arguments: str) -> str:
        done = self._run(place, access, *arguments)
        if done.rc != 0 or done.timed_out:
            raise self._problem(
                next((word for word in arguments if not word.startswith("-") and "=" not in word), "git"),
                done,
            )
        return done.stdout

    def _problem(self, what: str, done: Any) -> Problem:
        """Return why git's command *what* did not end well."""
        if done.timed_out:
            return Problem(f"git {what} took longer than {self.timeout:g} s (app_release_tag.timeout).")
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("fatal:", "remote:", "error:", "! ["))] or lines
        said = " ".join(" ".join(told).split())[:500]
        return Problem(
            f"git {what} at {redact_url(self.repository)} ended with exit code {done.rc}: {said or 'no reason given'}"
        )

    def _present(self, place: Path, access: Access) -> str | None:
        """Return the commit that the tag names in the repository, None where there is no such tag."""
        reference = f"refs/tags/{self.name}"
        found = {}
        for line in self._git(
            place, access, "ls-remote", access.address, reference, f"{reference}^{{}}"
        ).splitlines():
            value, _tab, name = line.partition("\t")
            found[name] = value
        return found.get(f"{reference}^{{}}") or found.get(reference)

    def _fetch(self, place: Path, access: Access) -> None:
        """Bring the commit here: alone, or, from a server that gives none by its name, with all branches and tags."""
        done = self._run(
            place, access, "fetch", "--quiet", "--no-tags", "--depth=1", access.address, self.commit
        )
        if done.rc == 0 and not done.timed_out and has_commit(place, self.commit):
            return
        all_of_it = ("+refs/heads/*:refs/remotes/from/*", "+refs/tags/*:refs/from/*")
        self._git(place, access, "fetch", "--quiet", "--no-tags", access.address, *all_of_it)
        if not has_commit(place, self.commit):
            raise Problem(
                f"{redact_url(self.repository)} has no commit {self.commit[:12]}: is it the repository of app_repository?"
            )

    def _identity(self, place: Path, access: Access, operator: str) -> list[str]:
        """Return options that say who tags, where the operator's own settings do not."""
        if self._run(place, access, "config", "user.email").stdout.strip():
            return []
        name = re.sub(r"[^\w.-]", "", operator) or "deploy"
        return ["-c", f"user.name={operator or 'deploy'}", "-c", f"user.email={name}@{os.uname().nodename}"]
