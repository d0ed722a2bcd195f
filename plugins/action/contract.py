# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the application's variables on the controller, fill in defaults, and build the run's groups."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail, AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.plugins.action import ActionBase
from ansible.plugins.action.add_host import ActionModule as AddHost
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._contract import (
    check,
    defaults,
    health_host,
    inputs_digest,
    services_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._contract_variables import VARIABLES
from ansible_collections.runbook.deploy.plugins.module_utils._deploy_window import (
    missing,
    outside,
    parse_approvals,
    parse_windows,
    signatures,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import check_hosts
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._rolling import check_balancer_hosts
from ansible_collections.runbook.deploy.plugins.module_utils._schedulers import beats_apart, check_beats

# Molecule skips these in every run; no task of the collection has them.
FOREIGN_TAGS = ("molecule-notest", "notest")
# Seconds that a person has for an answer.
PATIENCE = 300


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.contract``."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("purpose",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        result = super().run(tmp, variables)
        purpose = self._task.args.get("purpose", "deployment")
        host = variables["inventory_hostname"]
        if not variables.get("groups", {}).get("app"):
            # Without a host there are no group_vars either, which is not what is wrong.
            msg = (
                "The inventory has no host in group app, so there is nothing to work on: add one below app in its hosts.yml, or name "
                "the inventory that is meant with -i."
            )
            result.update(failed=True, msg=msg, errors=[msg], changed=False)
            return result
        values = self._values(variables)
        errors = self._aliases(values, variables) + check(values, purpose)
        if not errors and purpose == "deployment" and values.get("app_archive"):
            errors = self._archive(values["app_archive"])
        errors += self._partial(purpose, variables)
        if not errors and values.get("app_load_balancer"):
            errors = self._load_balancer(values["app_load_balancer"], variables)
        if not errors and (values.get("app_maintenance") or {}).get("hosts"):
            errors = check_hosts(
                values["app_maintenance"], variables["groups"].get("all", []), variables["groups"]
            )
        if not errors and purpose == "deployment":
            errors = self._one_file_each(values, variables) or self._unknown_name(values)
        hosts, groups = variables.get("groups", {}).get("app", []), variables.get("groups", {})
        if not errors:
            errors = check_beats(values["app_services"], hosts, groups)
        if not errors:
            primary, errors = self._primary(values, variables, purpose)
        if not errors:
            permission, errors = self._permission(
                {**values, **defaults(values)}, variables, purpose, host == primary
            )
        if errors:
            result.update(failed=True, msg="\n".join(errors), errors=errors, changed=False)
            return result
        filled = defaults(values)
        full = {**values, **filled}
        description = {
            "deploy_inputs": inputs_digest(full),
            "deploy_services": services_of(full, variables.get("group_names", [])),
            "deploy_primary_host": primary,
            "deploy_health_host": health_host(full),
            "deploy_version": full["app_version"],
            "deploy_beats_apart": beats_apart(full["app_services"], hosts),
            **permission,
            "deploy_operator": variables.get("deploy_operator") or self._operator(),
        }
        groups = ["deploy_hosts", "deploy_primary" if host == primary else "deploy_others"]
        # By add_host, so that the variables and groups outlast this play.
        result.update(self._add_host(variables, {"name": host, "groups": groups, **filled, **description}))
        result["changed"] = False
        return result

    def _add_host(self, variables: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of ansible's own ``add_host``: how it reaches the inventory differs between its versions."""
        task = self._task.copy()
        task.args = arguments
        parts = (self._connection, self._play_context, self._loader, self._templar, self._shared_loader_obj)
        return AddHost(task, *parts).run(task_vars=variables)

    def _values(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the host's ``app_`` variables, templated."""
        values = {}
        for name in variables:
            if not name.startswith("app_"):
                continue
            try:
                values[name] = self._templar.template(variables[name])
            except Exception as error:
                raise AnsibleActionFail(f"{name} cannot be read: {error}") from error
            if (
                name in VARIABLES
                and VARIABLES[name].kind in ("str", "path")
                and isinstance(values[name], (int, float))
                and not isinstance(values[name], bool)
            ):
                # A version such as 2.7 is a number to YAML.
                values[name] = str(values[name])
        return values

    @staticmethod
    def _partial(purpose: str, variables: dict[str, Any]) -> list[str]:
        """Refuse a part of a deployment: what it leaves out is what makes the rest safe."""
        skipped = [tag for tag in variables.get("ansible_skip_tags", []) if str(tag) not in FOREIGN_TAGS]
        asked = [*variables.get("ansible_run_tags", ["all"]), *skipped]
        if purpose != "deployment" or [str(tag) for tag in asked] == ["all"]:
            return []
        return [
            "A deployment runs whole: leave out --tags and --skip-tags. Parts of a rollback are chosen with the tags of "
            "playbooks/rollback.yml, a measurement alone is playbooks/status.yml."
        ]

    def _aliases(self, values: dict[str, Any], variables: dict[str, Any]) -> list[str]:
        """Apply ``-e version=`` and hold ``-e env=`` against app_stage."""
        if variables.get("version") not in (None, ""):
            values["app_version"] = str(self._templar.template(variables["version"]))
        stage = variables.get("env")
        if isinstance(stage, str) and stage and stage != values.get("app_stage"):
            return [
                f"env is {stage!r}, but this inventory describes app_stage {values.get('app_stage')!r}: "
                "give the inventory of the stage you mean."
            ]
        return []

    def _archive(self, archive: Mapping[str, str]) -> list[str]:
        """Return what is wrong with ``app_archive``, a file on this controller, before it is sent anywhere."""
        path = self._loader.path_dwim(archive["path"])
        try:
            with open(path, "rb") as stream:
                digest = hashlib.sha256()
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
        except OSError as error:
            return [
                f"app_archive.path {archive['path']!r} cannot be read on the controller ({error.strerror}): give the path of the tar file."
            ]
        if digest.hexdigest() != archive["sha256"].lower():
            return [
                f"app_archive.sha256 is {archive['sha256']}, but {archive['path']} has {digest.hexdigest()}: it is not the file that was "
                "meant, or its sha256 is that of another one."
            ]
        return []

    @staticmethod
    def _unknown_name(values: dict[str, Any]) -> list[str]:
        """Refuse an ``app_url`` whose name this controller cannot resolve: the smoke tests, after the switch, could ask nobody."""
        name = urlsplit(values.get("app_url") or "").hostname
        try:
            if name:
                socket.getaddrinfo(name, None)
        except (OSError, UnicodeError) as error:
            return [
                f"app_url is {values['app_url']!r}, and this controller does not know the name {name!r} ({getattr(error, 'strerror', None) or error}), so "
                "the smoke tests could ask nobody after the switch: correct app_url, or make the name known here, by DNS or in /etc/hosts."
            ]
        return []

    def _load_balancer(self, balancer: Mapping[str, Any], variables: dict[str, Any]) -> list[str]:
        """Return what is wrong with the hosts and the task files that ``app_load_balancer`` names."""
        groups = variables.get("groups", {})
        errors = check_balancer_hosts(balancer, groups.get("all", []), groups)
        if balancer["kind"] != "tasks":
            return errors
        for key in ("drain", "ready"):
            path = os.path.join(variables.get("inventory_dir") or "", balancer[key])
            if not os.path.isfile(path):
                errors.append(
                    f"app_load_balancer.{key} is {balancer[key]!r}, but there is no file {path}: give the path of a file of tasks, absolute or "
                    "beside the inventory."
                )
        return errors

    @staticmethod
    def _one_file_each(values: dict[str, Any], variables: dict[str, Any]) -> list[str]:
        """Refuse SQLite on several hosts, where each would read and write a file of its own, unless they share one."""
        database, hosts = values.get("app_database") or {}, variables.get("groups", {}).get("app", [])
        if database.get("engine") != "sqlite" or database.get("shared") or len(hosts) < 2:
            return []
        return [
            f"app_database is the SQLite file {database.get('path')!r}, but group app has {len(hosts)} hosts ({', '.join(hosts[:5])}"
            f"{', …' if len(hosts) > 5 else ''}), each of which would have a file of its own: leave one host, or use a database "
            "server; where the path is one file system that all of them share, say so with app_database.shared: true."
        ]

    def _primary(
        self, values: dict[str, Any], variables: dict[str, Any], purpose: str
    ) -> tuple[str, list[str]]:
        """Return the primary host, and what is wrong with it."""
        hosts = variables.get("groups", {}).get("app", [])
        primary = values.get("app_primary") or (hosts[0] if hosts else "")
        if primary not in hosts:
            return primary, [
                f"app_primary is {primary!r}, which is not a host of group app: {', '.join(hosts) or 'it is empty'}."
            ]
        taking_part = variables.get("ansible_play_hosts_all", [])
        # setup does the same on each host, so that one that is new can be prepared alone.
        if primary not in taking_part and purpose != "setup":
            return primary, [
                f"The primary host {primary} is left out by --limit: it backs up, migrates and keeps the record; "
                "leave it in, or name another in app_primary."
            ]
        return primary, []

    def _permission(
        self, full: dict[str, Any], variables: dict[str, Any], purpose: str, main: bool
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the facts that say who approved and what stands against a deployment now, and what cannot be read of them.

        A refusal is made by preflight, where something is to be done. Gates alone and check mode are warned of it.

        :param main: whether this is the primary.
        """

        def given(name: str) -> Any:
            return self._templar.template(variables[name]) if name in variables else ""

        now = datetime.datetime.now(datetime.timezone.utc)
        try:
            approvals = parse_approvals(given("deployment_approvals"))
        except Problem as problem:
            return {}, [problem.message]
        goes_on = bool(given("deploy_goes_on")) and not self._task.check_mode
        # Of the primary's answers alone something follows, and people are asked once.
        if (
            purpose == "deployment"
            and goes_on
            and main
            and str(given("deployment_ask_approvals")).lower() == "true"
        ):
            approvals = self._ask(full, approvals)
        reason = " ".join(str(given("deployment_outside_window") or "").split())
        windows = parse_windows(full["app_window"])
        shut = outside(windows, now, "")
        refusals = [
            text
            for text in (outside(windows, now, reason), missing(full["app_approvals"], approvals))
            if text
        ]
        if purpose == "deployment" and refusals and not goes_on and main:
            for refusal in refusals:
                Display().warning(f"A deployment would be refused now. {refusal}")
        return {
            "deploy_approvals": signatures(full["app_approvals"], approvals, now),
            "deploy_outside_window": reason if shut and purpose == "deployment" else "",
            "deploy_refusals": refusals if purpose == "deployment" and goes_on else [],
        }, []

    @staticmethod
    def _ask(full: dict[str, Any], approvals: dict[str, str]) -> dict[str, str]:
        """Return *approvals* with those that a person gives at the terminal; where there is none, nobody is asked.

        An empty name, and Ctrl+C, leave out what has not been given.
        """
        answers = dict(approvals)
        for role in full["app_approvals"]:
            if role in answers:
                continue
            what = f"{full['app_version'] or 'the archive'} of {full['app_name']} to {full['app_stage']}"
            try:
                name = Display().prompt_until(f"Who approves {what} as {role}? Name:", seconds=PATIENCE)
            except (AnsiblePromptNoninteractive, AnsiblePromptInterrupt):
                break
            name = " ".join(name.decode(errors="replace").split())
            if name.isprintable() and name:
                answers[role] = name
        return answers

    @staticmethod
    def _operator() -> str:
        """Return the name of the person at the controller, through sudo too."""
        import getpass

        return os.environ.get("SUDO_USER") or getpass.getuser()
