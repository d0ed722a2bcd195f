# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the maintenance page on and take it off: options, order of the steps, whose page it is, how long it was there.

``state.json`` in the directory says who put it on, since when and until when. It is written before the flag goes up and removed after
it came down, so that whatever is shown is known, also when the run that showed it was killed.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets as random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed, installed
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    current_release,
    fsync_directory,
    held,
    read_json,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._lock import timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_expiry import (
    Commands,
    FileFlag,
    Watchman,
    flag_text,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_nginx import NginxPage
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_options import (
    check_options,
    complete,
    lasts,
    still_expected,
    wait,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_probe import (
    Seen,
    ask,
    is_document,
    is_gone,
    is_page,
    sources,
    until,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import networks
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal

STATE = "state.json"
# Seconds that another run may hold the directory; the check of a page that does not come is the longest.
LOCK_TIMEOUT = 60.0


class Means(Protocol):
    """How the maintenance is shown; every method raises Problem with one sentence."""

    def prepare(self, check_mode: bool) -> tuple[bool, bool]:
        """Make ready what the flag needs; return whether files changed, and whether a server was told."""

    def up(self, moment: float) -> bool:
        """Say whether it is shown at *moment*."""

    def left(self) -> bool:
        """Say whether anything of it is there, shown or not."""

    def on(self, identifier: str, begin: float, end: float) -> None:
        """Show it until *end*, or give it another end."""

    def off(self) -> None:
        """Take it away."""


def place_of(options: Mapping[str, Any]) -> Installed:
    """Return the release that is current, for commands.

    :raises Problem: when there is none.
    """
    release = current_release(Layout(options["root"]))
    if not release:
        raise Problem(
            f"No release is current in {options['root']!r} on this host, so the commands of app_maintenance cannot run: deploy first."
        )
    return installed(
        {
            **options,
            "release": release,
            "commit": "",
            "version": "",
            "deployment": "",
            "environment_path": "",
            "directory": "",
            "record": None,
        }
    )


def read_state(directory: Path) -> tuple[dict[str, Any], str]:
    """Return who put the maintenance on, with ``id``, ``by``, ``since`` and ``expires`` (seconds since 1970); empty where nobody did.

    The second is a sentence where the note cannot be read: what it was about is then taken for unknown.
    """
    path = directory / STATE
    try:
        found = read_json(path)
    except (ValueError, OSError) as error:
        return {}, f"{path} cannot be read ({error}), so who put the maintenance on, and when, is unknown."
    if found is None:
        return {}, ""
    numbers = isinstance(found, dict) and all(
        isinstance(found.get(key, 0 if key == "expected" else None), (int, float))
        for key in ("since", "expires", "expected")
    )
    if not numbers or not isinstance(found.get("id"), str):
        return {}, f"{path} is no note of ours, so who put the maintenance on, and when, is unknown."
    return found, ""


class Maintenance:
    """The maintenance of one application on this host."""

    def __init__(self, options: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self.options = options
        self.directory = Path(options["directory"] or Layout(options["root"]).maintenance)
        self.warn = warn
        self.identifier = random.token_hex(4)
        self.nginx = options["kind"] == "nginx"
        self.mark = f"{options['name']}-{options['stage']}" if self.nginx else ""
        self.state: dict[str, Any] = {}
        self.reload_state()
        self.expected = still_expected(options, self.state, time.time())
        self.means = self._means()

    def _means(self) -> Means:
        options = self.options
        if self.nginx:
            shown = {**options, "retry_after": wait(options["retry_after"], self.expected)}
            return NginxPage(shown, self.directory)
        watchman = Watchman(options["name"], options["stage"], self.directory)
        if options["kind"] == "file":
            return FileFlag(options["path"], watchman, flag_text(options["reason"]))
        commands = Commands(
            options["command_on"], options["command_off"], lambda: place_of(options), watchman
        )
        commands.state = self.state
        return commands

    def reload_state(self) -> None:
        """Read the note again."""
        found, message = read_state(self.directory)
        if message:
            self.warn(message)
        self.state.clear()
        self.state.update(found)

    # What visitors get

    def look(self) -> dict[str, Seen]:
        """Ask the host's own web server as a visitor, as a program, and as somebody who is let through."""
        address, host = self.options["probe"], self.options["probe_host"]
        if not address:
            return {}
        allowed = networks(self.options["allow"], "allow")[0] if self.nginx else []
        visitor, through = sources(address, allowed, networks(self.options["trusted_proxies"], "proxies")[0])
        seen = {"visitor": ask(address, host, source=visitor)}
        if self.nginx:
            seen["program"] = ask(address, host, "application/json", visitor)
        if through:
            seen["allowed"] = ask(address, host, source=through)
        return seen

    def _wrong(self, seen: Mapping[str, Seen], on: bool) -> str:
        """Return in what *seen* is not what visitors have to get, "" where it is."""
        if not seen:
            return ""
        if not on:
            return is_gone(seen["visitor"], self.mark)
        wrong = is_page(seen["visitor"], self.mark, self.nginx)
        if wrong:
            return f"a visitor gets {wrong}"
        if "program" in seen:
            wrong = is_document(seen["program"], self.mark)
            if wrong:
                return f"a program gets {wrong}"
        if "allowed" in seen and seen["allowed"].mark == self.mark:
            return "who is on the allow-list gets the page, expected the application"
        return ""

    def _until(self, on: bool) -> tuple[dict[str, Seen], str]:
        """Look until visitors get what they have to; return what was seen last and what is wrong with it."""
        last: dict[str, Seen] = {}

        def look() -> str:
            last.clear()
            last.update(self.look())
            return self._wrong(last, on)

        wrong = until(look, self.options["verify_timeout"])
        return last, wrong

    # The states

    def answer(self, **more: Any) -> dict[str, Any]:
        """Return what the module answers."""
        now = time.time()
        up = self.means.up(now)
        expires = self.state.get("expires")
        return {
            "changed": False,
            "maintenance": {
                "on": up,
                "by": self.state.get("by", ""),
                "reason": self.state.get("reason", ""),
                "operator": self.state.get("operator", ""),
                "since": timestamp(self.state["since"]) if self.state else None,
                "expires": timestamp(expires) if expires else None,
                "expected": self.state.get("expected") or 0,
                "seconds_left": max(0, int(expires - now)) if expires and up else 0,
                "over": bool(self.state) and not up and now > self.state["expires"],
                # The page without our note: somebody made the flag by hand, or the note was lost.
                "unknown": up and not self.state,
            },
            "by_hand": False,
            "downtime": None,
            "reloaded": False,
            "seen": {},
            **more,
        }

    def _theirs(self) -> bool:
        """Say whether a person put on what is there; a deployment takes it neither over nor away."""
        if not self.options["deployment"]:
            return False
        if not self.state:
            return self.means.up(time.time())
        return not self.state.get("by") and self.means.up(time.time())

    def there(self) -> bool:
        """Say whether anything of a maintenance is left here, shown or not."""
        return bool(self.state) or self.means.left()

    def same_kind(self) -> None:
        """Refuse to work on what was put on by other means, and would stay.

        :raises Problem: when the note says another kind than the options.
        """
        kind = self.state.get("kind", self.options["kind"])
        if kind != self.options["kind"]:
            raise Problem(
                f"The maintenance in {self.directory} was put on by kind {kind}, but app_maintenance.kind is {self.options['kind']}: take it off with "
                f"-e maintenance=off while the inventory says {kind}, then change it."
            )

    def on(self, check_mode: bool) -> dict[str, Any]:
        """Put it on, or give it a later end; what was before is put back where visitors do not get it."""
        options = self.options
        was = self.means.up(time.time())
        before = dict(self.state)
        theirs = self._theirs()
        changed, reloaded = self.means.prepare(check_mode)
        if check_mode:
            return self.answer(changed=changed or not was, by_hand=theirs)
        now = time.time()
        known = was and bool(before)
        # A new one each time: whoever waits for the end of the one before sees that it is not its own any more.
        state = {
            "id": self.identifier,
            "kind": options["kind"],
            "since": before["since"] if known else now,
            # The end that a person gave is not made earlier by a deployment.
            "expires": max(
                now + lasts(options["expires"], options["expected"], options["afterwards"]),
                before.get("expires", 0) if theirs else 0,
            ),
            "expected": self.expected,
            "by": "" if theirs else options["deployment"],
            "reason": before.get("reason", "") if theirs else options["reason"],
            "operator": before.get("operator", "") if theirs else options["operator"],
        }
        try:
            self._note(state)
            self.means.on(self.identifier, now, state["expires"])
            seen, wrong = self._until(True)
            if wrong:
                raise Problem(self._unseen(wrong, was))
        except BaseException:
            if not was:
                with contextlib.suppress(Problem, OSError):
                    self.means.off()
                    self._forget()
            raise
        return self.answer(
            changed=changed or not was,
            by_hand=theirs,
            reloaded=reloaded,
            seen={name: one.told() for name, one in seen.items()},
        )

    def _unseen(self, wrong: str, was: bool) -> str:
        after = "it was on before and is left on" if was else "the maintenance is off again"
        how = (
            f"include {self.options['server_file']} in each server block of the application, and {self.options['http_file']} in nginx's http "
            "block, or correct app_maintenance.probe"
            if self.nginx
            else "see that the application or its web server answers 503, or correct app_maintenance.probe"
        )
        return (
            f"The maintenance was put on, but at {self.options['probe']} (Host: {self.options['probe_host'] or 'as in the address'}) {wrong}, after "
            f"{self.options['verify_timeout']:g} s; {after}: {how}."
        )

    def off(self, check_mode: bool) -> dict[str, Any]:
        """Take it off, and say how long it was on; what a person put on stays where a deployment ends."""
        now = time.time()
        was, before = self.means.up(now), dict(self.state)
        if self._theirs():
            return self.answer(by_hand=True)
        there = self.there()
        if check_mode:
            return self.answer(changed=there)
        if there:
            self.means.off()
        seen, wrong = self._until(False) if was else ({}, "")
        ended = time.time() if was else min(now, before.get("expires", now))
        downtime = self._downtime(before, ended, was)
        self._forget()
        if wrong and seen["visitor"].status:
            raise Problem(
                f"The maintenance was taken off, but at {self.options['probe']} a visitor gets {wrong}, after {self.options['verify_timeout']:g} s: "
                "see what answers there."
            )
        if wrong:
            self.warn(
                f"The maintenance is off, but {self.options['probe']} gives {wrong}: see that the web server runs."
            )
        return self.answer(
            changed=there, downtime=downtime, seen={name: one.told() for name, one in seen.items()}
        )

    def _downtime(self, before: Mapping[str, Any], ended: float, was: bool) -> dict[str, Any] | None:
        """Return from when to when visitors got the page; None where there was none, or nobody knows since when."""
        if not before:
            return None
        return {
            "since": timestamp(before["since"]),
            "until": timestamp(ended),
            "seconds": round(max(0.0, ended - before["since"]), 1),
            "expected": before.get("expected") or None,
            "by": before.get("by", ""),
            "expired": not was,
        }

    def _note(self, state: Mapping[str, Any]) -> None:
        write_json(self.directory / STATE, dict(state), 0o644)
        self.state.clear()
        self.state.update(state)

    def _forget(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.directory / STATE).unlink()
            fsync_directory(self.directory)
        self.state.clear()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    try:
        with held(directory, LOCK_TIMEOUT):
            yield
    except TimeoutError as error:
        raise Problem(
            f"Another run has held {directory} for {LOCK_TIMEOUT:g} s: see which with 'fuser -v {directory}', then run again."
        ) from error


def note(options: Mapping[str, Any], check_mode: bool, answer: dict[str, Any]) -> dict[str, Any]:
    """Write into the record what web servers on other hosts showed, which have none; return *answer*.

    :raises Problem: when the record cannot be written.
    """
    downtime = options["downtime"] or None
    try:
        with open_journal(options["root"], options["record"], check_mode) as journal:
            with journal.phase("maintenance off" if downtime else "maintenance") as entry:
                entry["maintenance"] = {"on": not downtime, "by_hand": False}
                if options["expected"] and not downtime:
                    entry["maintenance"]["expected"] = math.ceil(options["expected"])
            if downtime:
                journal.update(downtime=dict(downtime))
    except OSError as error:
        raise of_system(error, options["root"]) from error
    return {**answer, "downtime": downtime}


def perform(given: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Do what ``state`` says; return the module's answer.

    :raises Problem: with one sentence.
    """
    check_options(given)
    options = complete(given)
    state = options["state"]
    directory = Path(options["directory"] or Layout(options["root"]).maintenance)
    if state == "noted":
        return note(options, check_mode, Maintenance(options, warn).answer())
    if state == "facts":
        found = Maintenance(options, warn)
        return found.answer(seen={name: one.told() for name, one in found.look().items()})
    if check_mode and not directory.is_dir():
        changed = state in ("on", "prepared")
        return {**Maintenance(options, warn).answer(changed=changed), "diff": _diff(False, state == "on")}
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o755)
            os.chmod(directory, 0o755)
        with _alone(directory):
            maintenance = Maintenance(options, warn)
            was = maintenance.means.up(time.time())
            if state == "prepared":
                changed, reloaded = maintenance.means.prepare(check_mode)
                return {**maintenance.answer(changed=changed, reloaded=reloaded), "diff": _diff(was, was)}
            maintenance.same_kind()
            # An end of nothing is no step of a deployment.
            record = options["record"] if state == "on" or maintenance.there() else None
            with open_journal(options["root"], record, check_mode) as journal:
                with journal.phase("maintenance" if state == "on" else "maintenance off") as entry:
                    answer = maintenance.on(check_mode) if state == "on" else maintenance.off(check_mode)
                    about = answer["maintenance"]
                    entry["maintenance"] = {"on": about["on"], "by_hand": answer["by_hand"]}
                    if about["expected"]:
                        entry["maintenance"]["expected"] = about["expected"]
                if answer["downtime"]:
                    journal.update(downtime=answer["downtime"])
    except FileNotFoundError as error:
        raise Problem(
            f"{error.filename} does not exist on this host: run playbooks/setup.yml first."
        ) from error
    except OSError as error:
        raise of_system(error, options["root"]) from error
    after = answer["maintenance"]["on"]
    if check_mode and not answer["by_hand"]:
        after = state == "on"
    return {**answer, "diff": _diff(was, after)}


def _diff(before: bool, after: bool) -> dict[str, str]:
    return {
        "before": f"maintenance {'on' if before else 'off'}\n",
        "after": f"maintenance {'on' if after else 'off'}\n",
    }
