# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring one instance live: prove it beside what serves, switch, drain and stop the rest; or take all of it back.

The order makes a kill at any moment harmless. Until ``current`` is switched, a reboot starts the old instance;
after it, the new one, which is proven by then. Whatever a killed run left is stopped by the next one.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._fleet import (
    AdoptedMember,
    Undo,
    adopted_member,
    discover,
    forget_ended,
    live_deployment,
    stop_all,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate import gate_result
from ansible_collections.runbook.deploy.plugins.module_utils._instance import Instance, linked_deployment
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    ADOPTED,
    Layout,
    current_release,
    replace_link,
)
from ansible_collections.runbook.deploy.plugins.module_utils._lock import timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal
from ansible_collections.runbook.deploy.plugins.module_utils._replace import (
    end_workers,
    prove_workers,
    require_beats,
)
from ansible_collections.runbook.deploy.plugins.module_utils._service import (
    Member,
    Settings,
    free_port,
    stay_up,
)
from ansible_collections.runbook.deploy.plugins.module_utils._systemd import SystemdUnit


def link_target(link: Path) -> str | None:
    """Return where the symbolic link *link* leads, None where there is none."""
    try:
        return os.readlink(link)
    except OSError:
        return None


def put_link(link: Path, target: str | None) -> None:
    """Point *link* to *target*, or remove it for None."""
    if target is not None:
        replace_link(link, target)
    elif link.is_symlink():
        link.unlink()


def require_links(layout: Layout, members: Sequence[Member]) -> None:
    """Make sure before anything starts that what will be switched can be switched.

    :raises Problem: when ``current`` or a public socket is something else than a link.
    """
    links = [layout.current, *(layout.socket(member.service) for member in members if member.socket)]
    for link in links:
        if link.exists() and not link.is_symlink():
            raise Problem(
                f"{link} is no symbolic link, so it cannot be switched: move it away (nothing here removes data), "
                "then run again."
            )


def holds_address(other: Member, member: Member) -> bool:
    """Return whether *other*, which runs, has or may have the address that *member* wants."""
    if other.kind != "web":
        return False
    # The address of an adopted unit is not known; a service may have got another name.
    same_port = member.spec["bind"] == "port" and other.spec.get("port") == member.spec["port"]
    return same_port or other.service in (member.service, ADOPTED)


class Switch:
    """One change of what is live.

    :param target: the instance to bring live; None for the adopted installation.
    :param checks: the health checks of its web services.
    :param fresh: the instance's files are new: they are written first, and removed when it fails.
    :param beats_apart: its beats are started by somebody else, when the workers of all hosts are up.
    :param stop_wait: False leaves it to whoever settles to wait for the end of web services that nobody needs any more.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        target: Instance | None,
        checks: Sequence[Mapping[str, Any]],
        fresh: bool,
        beats_apart: bool = False,
        stop_wait: bool = True,
    ) -> None:
        self.settings = settings
        self.layout = settings.layout
        self.journal = journal
        self.target = target
        self.checks = list(checks)
        self.fresh = fresh
        self.stop_wait = stop_wait
        self.undo = Undo()
        self.gates: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.proof_seconds = 0.0
        self.traffic_taken: str | None = None
        self.connections_cut = 0
        self.drained: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.adopted = adopted_member(settings)
        self.live = live_deployment(self.layout) or (ADOPTED if self.adopted else None)
        self.live_release = current_release(self.layout)
        found = discover(settings, target)
        wanted = target.deployment if target else ADOPTED
        self.members: list[Member] = []
        if target:
            self.members = [Member(settings, wanted, spec, target) for spec in target.services]
        names = {member.service for member in self.members}
        # Of the members, who is started here.
        self.mine = [member for member in self.members if not (beats_apart and member.kind == "beat")]
        # A service that the target's definition does not name any more is a leftover, whatever its deployment.
        self.others = [
            member for member in found if member.deployment != wanted or member.service not in names
        ]
        if self.adopted and target:
            self.others.append(self.adopted)
        # What has to run again when this change is taken back.
        self.before = [
            member
            for member in (self.members if self.live == wanted else self.others)
            if member.deployment == self.live and member.status().running
        ]

    # What is

    def is_live(self) -> bool:
        """Return whether the target is live already, every service up, and nothing else runs."""
        if self.others:
            return False
        if self.target is None:
            return self.adopted is not None and not self.layout.current.is_symlink()
        return self.live == self.target.deployment and all(self._reached(member) for member in self.mine)

    def _reached(self, member: Member) -> bool:
        """Return whether *member* serves and the public link, if it has one, leads to it."""
        if not member.serves():
            return False
        if member.socket is None:
            return True
        pid = _processes.peer_pid(self.layout.socket(member.service))
        return pid is not None and member.unit.owns(pid)

    # The way forward

    def run(self) -> None:
        """Bring the target live.

        :raises Problem: with ``live_changed``: False when what served before serves again, or still.
        """
        try:
            if self.target is None:
                self._adopt()
            else:
                self._deploy(self.target)
        except BaseException as error:
            answer = self._taken_back(error)
            if answer is error:
                raise
            raise answer from error
        try:
            self._retire()
        except (Problem, OSError) as error:
            problem = error if isinstance(error, Problem) else Problem(f"{error}.")
            raise Problem(
                f"The release {self._name()} serves, but what served before could not be stopped: {problem.message}",
                problem.evidence,
                live_changed=True,
                traffic_taken=self.traffic_taken,
            ) from error

    def _name(self) -> str:
        return self.target.release if self.target else "that was adopted"

    def _deploy(self, target: Instance) -> None:
        require_links(self.layout, self.members)
        if self.fresh:
            target.write(self.settings.user)
        webs = [member for member in self.members if member.kind == "web"]
        in_place = [member for member in webs if self._shares_address(member)]
        beside = [member for member in webs if member not in in_place]
        self._prove(target, beside, in_place)
        self._take_traffic()
        self._replace_workers([member for member in self.mine if member.kind != "web"])
        self._stop_for_address(in_place)
        self._switch_current(target)
        for member in in_place:
            self._start(member)
            self._gate(member)
            member.mark_ready()
        for member in webs:
            self._publish(member)

    def _shares_address(self, member: Member) -> bool:
        """Return whether *member* can only be started when what serves now is stopped."""
        beside = member.spec["strategy"] == "blue_green" or (
            member.spec["strategy"] == "reload" and member.socket is not None
        )
        if beside or member.serves():
            return False
        return any(holds_address(other, member) for other in self.others)

    def _start(self, member: Member) -> None:
        """Start *member* unless it serves already; one that only half runs is started anew."""
        if member.serves():
            return
        if member.unit.exists():
            member.stop()
        self.undo.add(f"stop {member}", lambda: self._withdraw(member))
        member.start()

    def _withdraw(self, member: Member) -> None:
        """Stop a new member; a request that reached it meanwhile is answered first."""
        member.drain(min(2.0, self.settings.drain_timeout))
        member.stop()

    def _gate(self, member: Member, successes: int | None = None) -> None:
        self.gates.append(member.gate(self.checks, successes or self.settings.successes))

    def _prove(self, target: Instance, beside: Sequence[Member], in_place: Sequence[Member]) -> None:
        """Start the new web services where nobody is sent yet, and prove them: healthy, staying up, healthy."""
        proven = list(beside)
        trials = []
        for member in in_place:
            if member.spec.get("trial", True):
                trial = target.trial(member.spec, free_port())
                trial.write(self.settings.user)
                step = self.undo.add("remove the files of the trial", trial.remove)
                shown = Member(self.settings, trial.deployment, trial.services[0], trial)
                trials.append((shown, trial, step))
                proven.append(shown)
        for member in proven:
            self._start(member)
        for member in proven:
            self._gate(member)
            member.mark_ready()
        self._watch(proven)
        for shown, trial, step in trials:
            shown.stop()
            trial.remove()
            self.undo.drop(step)

    def _watch(self, members: Sequence[Member]) -> None:
        """Have *members* stay up for the configured time and pass their checks again."""
        if not members:
            return
        begun = time.monotonic()
        checks = stay_up(members, self.settings.stay_up)
        for member in members:
            self._gate(member, 1)
        self.gates.append(gate_result(checks))
        self.proof_seconds += time.monotonic() - begun

    def _take_traffic(self) -> None:
        """Record that from here on the new release may have served: before it can, so that a kill tells no lie."""
        self.traffic_taken = timestamp()
        self.journal.update(traffic_taken=self.traffic_taken)

    def _halt(self, member: Member) -> bool:
        """Stop *member*, and have it started again if the change is taken back and it was live; return whether it was killed."""
        self._keep(member)
        killed = member.stop()
        self.stopped.append(str(member))
        return killed

    def _keep(self, member: Member) -> None:
        """Have *member* started again if the change is taken back, where it was live."""
        if member.deployment == self.live:
            self.undo.add(f"start {member} again", lambda: self._revive(member))

    def _revive(self, member: Member) -> None:
        if member.status().running and not member.works():
            # It lives, but was told to take no more tasks.
            member.stop()
        if not member.status().running:
            member.start()
        member.gate(member.instance.document.get("health_checks") or [] if member.instance else [], 1)

    def _replace_workers(self, members: Sequence[Member]) -> None:
        """Stop the old beats, then the old workers when they have no task; start the new workers, then the new beats."""
        for other in [other for other in self.others if other.kind == "beat"]:
            self._halt(other)
            self.others.remove(other)
        olds = [other for other in self.others if other.kind == "worker"]
        for other in olds:
            self._keep(other)
        self.drained += end_workers(self.settings, olds, self._halt)
        self.others = [other for other in self.others if other not in olds]
        beats = [member for member in members if member.kind == "beat"]
        for member in [member for member in members if member not in beats]:
            self._start(member)
            self._gate(member)
            member.mark_ready()
        gates, warnings = prove_workers(self.settings, members, not self.fresh)
        self.gates += gates
        self.warnings += warnings
        require_beats(self.settings, beats)
        for member in beats:
            self._start(member)
            self._gate(member)
            member.mark_ready()
        self._watch(members)

    def _stop_for_address(self, members: Sequence[Member]) -> None:
        """Stop what has the addresses of *members*."""
        for other in list(self.others):
            if any(holds_address(other, member) for member in members):
                self._halt(other)
                # An adopted unit stays listed: in the end it is also disabled.
                if not isinstance(other, AdoptedMember):
                    self.others.remove(other)

    def _switch_current(self, target: Instance) -> None:
        before = linked_deployment(self.layout, target.release)
        if before != target.deployment:
            link = self.layout.release_instance(target.release)
            self.undo.add(f"switch {link} back", lambda: put_link(link, before))
            target.serve_at_boot()
        self._set_current(f"releases/{target.release}")

    def _set_current(self, wanted: str | None) -> None:
        present = link_target(self.layout.current)
        if present is not None and wanted is not None and Path(present).name == Path(wanted).name:
            return
        if present != wanted:
            self.undo.add("switch current back", lambda: put_link(self.layout.current, present))
            put_link(self.layout.current, wanted)

    def _publish(self, member: Member) -> None:
        """Lead the public socket of a web service to *member*.

        :raises Problem: when what answers there is not *member*.
        """
        if member.socket is None:
            return
        public = self.layout.socket(member.service)
        self._lead(public, member.socket.name)
        if not self._reached(member):
            raise member.problem(f"does not answer at its public socket {public} after the switch.")

    def _lead(self, public: Path, wanted: str | None) -> None:
        present = link_target(public)
        if present != wanted:
            self.undo.add(f"switch {public} back", lambda: put_link(public, present))
            put_link(public, wanted)

    def _adopt(self) -> None:
        """Start the adopted installation again; beside ours where its socket is known, else in our place."""
        member = AdoptedMember(self.settings)
        require_links(self.layout, [])
        webs = [other for other in self.others if other.kind == "web"]
        self._take_traffic()
        gone = [other for other in reversed(self.others) if other.kind != "web" or not member.address]
        olds = [other for other in gone if other.kind == "worker"]
        for other in [other for other in gone if other.kind == "beat"]:
            self._halt(other)
        for other in olds:
            self._keep(other)
        self.drained += end_workers(self.settings, olds, self._halt)
        for other in [other for other in gone if other.kind == "web"]:
            self._halt(other)
        self.others = [other for other in self.others if other not in gone]
        if not member.status().running:
            self.undo.add("stop the adopted service", member.stop)
            member.start()
        self._gate(member)
        member.mark_ready()
        self._watch([member])
        self.undo.add("keep the adopted service from the next boot", lambda: member.unit.enable(False))
        member.unit.enable(True)
        self._set_current(None)
        for other in webs:
            if other.socket is not None:
                self._lead(self.layout.socket(other.service), member.address)
        self.members = [member]

    # The end, and the way back

    def _retire(self) -> None:
        """Drain and stop everything that is not the target; within ``drain_timeout`` for all together."""
        deadline = time.monotonic() + self.settings.drain_timeout
        for other in self.others:
            cut = other.drain(max(0.0, deadline - time.monotonic())) if other.kind == "web" else 0
            self.connections_cut += cut
            # The socket of one that only ends is left to it: gunicorn removes its own, and where that is gone already it dies of it
            # before it has ended its workers.
            if cut or not self._ends_alone(other) or not other.unit.end():
                other.stop()
            if str(other) not in self.stopped:
                self.stopped.append(str(other))
            if isinstance(other, AdoptedMember):
                other.unit.enable(False)
        forget_ended(self.settings)

    def _ends_alone(self, other: Member) -> bool:
        """Return whether the end of *other*, which is drained, is not waited for here: whoever settles does, and finds it by its files."""
        return (
            not self.stop_wait
            and self.target is not None
            and other.deployment != self.target.deployment
            and isinstance(other.unit, SystemdUnit)
            # Without files nobody would find it: an adopted unit, a trial. Without a socket it is no web service, or not known to be drained.
            and other.instance is not None
            and other.socket is not None
        )

    def _taken_back(self, error: BaseException) -> BaseException:
        """Undo everything, and return *error* with what that led to."""
        failures = self.undo.run()
        # Measured, not believed.
        failures += [f"{member} does not run any more" for member in self.before if not member.works()]
        if self.fresh and self.target and not failures and self.live != self.target.deployment:
            with contextlib.suppress(OSError):
                self.target.remove()
        if not isinstance(error, Problem):
            if failures and isinstance(error, Exception):
                return Problem(
                    f"{error}; and taking it back failed: {'; '.join(failures)}.", live_changed=True
                )
            return error
        if failures:
            state = f"Taking it back failed, a person is needed: {'; '.join(failures)}."
        elif not self.before:
            state = "Nothing serves, as before."
        elif self.live == ADOPTED:
            state = "The adopted installation serves as before."
        else:
            state = f"The release {self.live_release} serves as before."
        return Problem(
            f"{error.message} {state}",
            error.evidence,
            **{**error.results, "live_changed": bool(failures), "traffic_taken": self.traffic_taken},
        )

    def answer(self) -> dict[str, Any]:
        """Return the module's answer after :meth:`run`."""
        checks = [check for gate in self.gates for check in gate["checks"]]
        live = {"deployment": ADOPTED, "release": None}
        if self.target:
            live = {"deployment": self.target.deployment, "release": self.target.release}
        return {
            "live": live,
            "previous": {"deployment": self.live, "release": self.live_release},
            "services": [member.report() for member in self.members],
            "gate": gate_result(checks) if checks else {},
            "proof_seconds": round(self.proof_seconds, 3),
            "traffic_taken": self.traffic_taken,
            "connections_cut": self.connections_cut,
            "stopped": self.stopped,
            "drained": self.drained,
        }


def stop_everything(settings: Settings, boot: bool = True) -> tuple[list[str], list[dict[str, Any]]]:
    """Stop all instances of all deployments and the adopted installation; return (what was stopped, what became of workers).

    :param boot: False takes back first what would be started at the next boot, and count as the release before.
    """
    if not boot:
        put_link(settings.layout.current, None)
    members = discover(settings, None)
    adopted = adopted_member(settings)
    every = [*members, adopted] if adopted else members
    stopped = stop_all(member for member in every if member.kind == "beat")
    workers = [member for member in every if member.kind == "worker"]
    drained = end_workers(settings, workers, Member.stop)
    stopped += [str(member) for member in workers]
    return stopped + stop_all(member for member in every if member.kind == "web"), drained
