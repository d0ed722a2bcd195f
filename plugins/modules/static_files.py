#!/usr/bin/python

# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: static_files
short_description: Collect and publish the static files of a release
version_added: 0.1.0
description:
  - Runs the project's own C(collectstatic) into the release's own C(STATIC_ROOT), never with C(--clear), so that each
    release has its own manifest.
  - Publishes the files into C(shared/static) below O(root), which the web server serves, by hard links, or by copies
    between file systems. Nothing is removed there, and a name with a hash is never given another content, so that pages
    of other releases keep working.
  - A C(STATIC_ROOT) outside the release is allowed where it is in no other release. The manifest found there is saved in
    the release first, so that a rollback can put it back.
  - The release belongs to the one who deploys. What the commands write in is lent to the application's user meanwhile.
  - At last writes C(.complete) into the release. Only then can it be switched to.
author:
  - The runbook.deploy authors (@runbook-deploy)
attributes:
  check_mode:
    support: full
    description: Says whether static files would be collected.
  diff_mode:
    support: none
    description: Only counts are returned.
  idempotent:
    support: full
    description: A release that is complete is not collected again; what is missing in C(shared/static) is published.
extends_documentation_fragment:
  - runbook.deploy.release_code
options:
  commands_before:
    description:
      - Commands to run before C(collectstatic), each a list of words; no shell is involved.
      - A first word that ends in C(.py) is run by the Python of the environment.
    type: list
    elements: list
    default: []
  commands_after:
    description: Commands to run after C(collectstatic), as O(commands_before).
    type: list
    elements: list
    default: []
  timeout:
    description: Seconds for C(collectstatic), and for each of the commands.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Collect and publish the static files
  runbook.deploy.static_files:
    root: /srv/shop
    user: shop
    release: 0f3c5a7d9e21-4b1d2c3e
    settings_module: shop.settings
    environment: "{{ app_environment | to_json }}"
    commands_before:
      - [manage.py, compilemessages]
"""

RETURN = r"""
copied:
  description: Files that C(collectstatic) copied.
  type: int
  returned: success
unmodified:
  description: Files that were there already.
  type: int
  returned: success
post_processed:
  description: Files that the storage processed, such as those that got a hash into their name.
  type: int
  returned: success
published:
  description: Names that are new or newer in C(shared/static).
  type: int
  returned: success
kept:
  description: Published names with a hash that have another content in this release. They were left as they are.
  type: list
  elements: str
  returned: success
static_root:
  description: The directory that was collected into. Empty for an application without static files, and for a storage
    that is no directory.
  type: str
  returned: success
seconds:
  description:
    - How long the parts took, with C(commands), C(collect) and C(publish).
    - C(collect) includes what was collected while the release was verified, see O(runbook.deploy.migration#module:collect).
  type: dict
  returned: success
evidence:
  description: The last lines of output that prove a failure.
  type: str
  returned: on failure
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._application import (
    RELEASE_OPTIONS,
    Installed,
    installed,
)
from ansible_collections.runbook.deploy.plugins.module_utils._collect import Collection, collected
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._handover import Borrower, lent_release
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal
from ansible_collections.runbook.deploy.plugins.module_utils._static import (
    complete,
    hashed_names,
    keep_manifest,
    publish,
    put_manifest,
)


def empty_answer() -> dict[str, Any]:
    """Return the module's answer for nothing done."""
    return {
        "changed": False,
        "copied": 0,
        "unmodified": 0,
        "post_processed": 0,
        "published": 0,
        "kept": [],
        "static_root": "",
        "seconds": {"commands": 0.0, "collect": 0.0, "publish": 0.0},
    }


class Work:
    """One run for the release *target*; ``answer`` becomes the module's."""

    def __init__(self, params: dict[str, Any], target: Installed) -> None:
        self.params = params
        self.target = target
        self.answer = empty_answer()
        # What .complete says, for later runs: where the files are, and whether they are the release's own.
        self.facts: dict[str, Any] = {"static_root": "", "manifest": "", "own": False}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``seconds[name]``."""
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = self.answer["seconds"]
            seconds[name] = round(seconds[name] + time.monotonic() - begun, 3)

    def anew(self) -> None:
        """Run the commands, collect, publish, and complete the release."""
        before, after = self.params["commands_before"], self.params["commands_after"]
        target = self.target
        with contextlib.ExitStack() as stack:
            if before or after:
                stack.enter_context(lent_release(target.path, target.user))
            self.commands("app_collectstatic_commands_before", before)
            if self.params["framework"] == "django":
                self.collect(lent_already=bool(before or after))
            self.commands("app_collectstatic_commands_after", after)
        self.publish()
        read_only = Borrower(target.user).same
        if self.facts["static_root"] and not self.facts["own"]:
            keep_manifest(target.path, Path(self.facts["static_root"]), self.facts["manifest"])
        complete(target.path, self.facts, read_only=read_only)
        self.answer["changed"] = True

    def collect(self, lent_already: bool) -> None:
        """Run collectstatic, or take what was collected while the release was verified."""
        # The commands of the application may make what is collected.
        done = None if lent_already else collected(self.target, self.params["deployment"])
        if done is None:
            done = Collection(self.target, float(self.params["timeout"]))
            done.run(lent_already=lent_already)
        self.facts.update(done.facts)
        self.answer.update(done.counts, static_root=done.facts["static_root"])
        self.answer["seconds"]["collect"] = done.seconds

    def commands(self, option: str, commands: Sequence[Sequence[Any]]) -> None:
        """Run *commands* in their order.

        :raises Problem: for the first that fails, naming *option*.
        """
        target = self.target
        for command in commands:
            with self.timed("commands"):
                done = run(
                    target.argv(command),
                    cwd=target.cwd,
                    environment=target.variables,
                    user=target.user,
                    timeout=float(self.params["timeout"]),
                    secrets=target.secrets,
                )
            if done.rc != 0:
                reason = (
                    f"did not end within {self.params['timeout']} s"
                    if done.timed_out
                    else f"ended with exit code {done.rc}"
                )
                raise Problem(
                    f"The command {' '.join(str(word) for word in command)!r} of {option} {reason}, expected 0; nothing "
                    "live was touched: see the evidence, and correct the command or the application.",
                    done.tail(),
                )

    def publish(self) -> None:
        """Bring the collected files to shared/static."""
        if not self.facts["static_root"]:
            return
        place, manifest = self.facts["static_root"], self.facts["manifest"]
        layout = self.target.layout
        source = Path(place)
        if source.resolve() == layout.static.resolve():
            # The settings name the published directory itself.
            return
        with self.timed("publish"):
            found = publish(
                source, layout.static, hashed=hashed_names(source, manifest), link=bool(self.facts["own"])
            )
        self.answer.update(published=found.published, kept=found.kept, static_root=str(place))

    def again(self, facts: dict[str, Any]) -> None:
        """Publish what is missing of a complete release whose ``.complete`` says *facts*."""
        self.facts.update(facts)
        if self.facts["own"]:
            self.publish()
        else:
            # Another release may have collected there since.
            self.answer["changed"] = put_manifest(self.target.path, self.target.user)
        self.answer["static_root"] = self.facts["static_root"]
        self.answer["changed"] = self.answer["changed"] or self.answer["published"] > 0


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **RELEASE_OPTIONS,
            "commands_before": {"type": "list", "elements": "list", "default": []},
            "commands_after": {"type": "list", "elements": "list", "default": []},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    answer = empty_answer()
    try:
        if params["timeout"] <= 0:
            raise Problem(f"The option timeout is {params['timeout']}, expected a number of seconds above 0.")
        if module.check_mode:
            # The release itself may not be built in check mode.
            marker = Layout(params["root"]).release(params["release"]) / ".complete"
            module.exit_json(**{**answer, "changed": not marker.is_file()})
        target = installed(params)
        work = Work(params, target)
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(
                open_journal(params["root"], params["record"] or None, module.check_mode, target.secrets)
            )
            entry = stack.enter_context(journal.phase("collectstatic"))
            marker = target.path / ".complete"
            if marker.is_file():
                work.again(read_json(marker) or {})
            else:
                work.anew()
            answer = work.answer
            entry.update(
                {key: answer[key] for key in ("copied", "unmodified", "published", "kept", "seconds")}
            )
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
