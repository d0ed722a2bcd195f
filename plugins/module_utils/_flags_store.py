# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where feature flags are kept: what every such place can do, and commands of the application as one of them.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import redact, run
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import stored_values, text_of
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Commands that only show are run so many at a time; each may be a whole Django.
PARALLEL = 4


class Store:
    """A place that keeps the values of flags.

    :ivar shared: whether all hosts see the same; else each host has its own.
    :ivar removable: whether a flag can be taken away again, for one that was not there before.
    :ivar atomic: whether a write that failed has changed nothing for certain.
    :ivar settle: seconds in which what was written may become visible.
    """

    shared = True
    removable = False
    atomic = False
    settle = 0.0

    def place(self) -> str:
        """Return where the flags are, for messages; without secrets."""
        raise NotImplementedError

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the value of each of *names*, None for one that is not there.

        :raises Problem: when they cannot be read.
        """
        raise NotImplementedError

    def write(self, changes: Mapping[str, str | None], go_on: bool = False) -> list[str]:
        """Set the flags in *changes*; a value is None only where ``removable``.

        :param go_on: try each flag although one before could not be set.
        :return: why some could not be set, a sentence each: those are as they were, or unknown.
        :raises Problem: when none of them was set.
        """
        raise NotImplementedError

    def apply(self) -> str:
        """Make the application see what was written; return what was done, "" for nothing.

        :raises Problem: when it could not be told.
        """
        return ""


class Values:
    """What a place keeps for each value, and back."""

    def __init__(self, store: Mapping[str, Any]) -> None:
        self.kept = stored_values(store)
        self._back = {text_of(thing, "values"): value for value, thing in self.kept.items()}

    def out(self, value: str | None) -> Any:
        """Return what is kept for *value*."""
        return self.kept.get(value or "", value)

    def back(self, thing: Any) -> str | None:
        """Return the value that *thing* is kept for."""
        if thing is None:
            return None
        text = (
            text_of(thing, "what was read")
            if isinstance(thing, (bool, int, float, str))
            else json.dumps(thing)
        )
        return self._back.get(text, text)


def one_by_one(
    changes: Mapping[str, str | None], write: Callable[[str, str | None], None], go_on: bool
) -> list[str]:
    """Call *write* for each of *changes*; return the sentences of those that failed, ended by the first unless *go_on*."""
    errors = []
    for name, value in changes.items():
        try:
            write(name, value)
        except Problem as problem:
            errors.append(problem.message)
            if not go_on:
                break
    return errors


class CommandStore(Store):
    """Commands of the application, in the release that is current, with its environment and as its user."""

    def __init__(self, store: Mapping[str, Any], place: Installed, timeout: float) -> None:
        self.show = list(store["show"])
        self.set = list(store["set"])
        self.values = Values(store)
        self.installed = place
        self.timeout = timeout

    def place(self) -> str:
        """See :meth:`Store.place`."""
        return f"command {' '.join(self.show)}"

    def _run(self, words: Sequence[str]) -> str:
        done = run(
            self.installed.argv(words),
            cwd=self.installed.cwd,
            environment=self.installed.variables,
            user=self.installed.user,
            timeout=self.timeout,
            secrets=self.installed.secrets,
        )
        if done.timed_out or done.rc != 0:
            how = (
                f"did not end within {self.timeout:g} s"
                if done.timed_out
                else f"ended with exit code {done.rc}"
            )
            raise Problem(
                f"The command {' '.join(words)!r} of the flags {how} in {str(self.installed.cwd)!r}: run it by hand as "
                f"{self.installed.user or 'this user'} and correct it.",
                done.tail(),
            )
        return done.stdout

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """See :meth:`Store.read`; a command without ``{name}`` shows all of them at once."""
        if not any("{name}" in word for word in self.show):
            return {
                name: self.values.back(value) for name, value in read_all(self._run(self.show), names).items()
            }
        from concurrent.futures import ThreadPoolExecutor  # not needed by the other places

        with ThreadPoolExecutor(PARALLEL) as pool:
            texts = list(
                pool.map(lambda name: self._run([w.replace("{name}", name) for w in self.show]), names)
            )
        found: dict[str, str | None] = {}
        for name, text in zip(names, texts):
            value = text.strip()
            if "\n" in value:
                raise Problem(
                    f"The command {' '.join(self.show)!r} of the flags printed {len(value.splitlines())} lines for {name}, expected "
                    "its value alone: print everything else on standard error.",
                    redact(value, self.installed.secrets),
                )
            found[name] = self.values.back(value) if value else None
        return found

    def write(self, changes: Mapping[str, str | None], go_on: bool = False) -> list[str]:
        """See :meth:`Store.write`."""
        texts = {name: text_of(self.values.out(value), name) for name, value in changes.items()}
        for name, text in texts.items():
            if text.startswith("-") and "{value}" in self.set:
                raise Problem(
                    f"The value {text!r} of {name} would be an option of the command: choose another value."
                )
        if "{pairs}" in self.set:
            pairs = [f"{name}={text}" for name, text in texts.items()]
            words = [part for word in self.set for part in (pairs if word == "{pairs}" else [word])]
            self._run(words)
            return []

        def one(name: str, value: str | None) -> None:
            del value
            # In one go, so that a value that holds {name} stays what it is.
            given = {"{name}": name, "{value}": texts[name]}
            self._run([filled(word, given) for word in self.set])

        return one_by_one(changes, one, go_on)


def filled(text: str, given: Mapping[str, str]) -> str:
    """Return *text* with each placeholder of *given* replaced, none inside what was put in.

    >>> filled("{name}={value}", {"{name}": "a", "{value}": "{name}"})
    'a={name}'
    """
    import re

    pattern = "|".join(re.escape(key) for key in given)
    return re.sub(pattern, lambda found: given[found.group(0)], text)


def read_all(text: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what a command that shows all flags printed: a JSON object, or lines ``name=value``; pure.

    :raises Problem: when it is neither.
    """
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            document = json.loads(stripped)
        except ValueError as error:
            raise Problem(
                f"The command that shows the flags printed what is no JSON ({error}): print an object of names to values.",
                "\n".join(stripped.splitlines()[:20]),
            ) from error
        return {name: document.get(name) for name in names}
    pairs = [line.partition("=") for line in stripped.splitlines() if line.strip()]
    if any(not equals for _name, equals, _value in pairs):
        raise Problem(
            "The command that shows the flags printed lines that are not name=value: print these, or a JSON object.",
            "\n".join(stripped.splitlines()[:20]),
        )
    found = {name.strip(): value.strip() for name, _equals, value in pairs}
    return {name: found.get(name) for name in names}
