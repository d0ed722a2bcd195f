# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo application under a real supervisord, by the playbooks: forward, back, a release that does not boot, supervisord's own death."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from kill_site import NEW_MIGRATION, Run, Site, Visitors
from test_app_service_supervisor import SUPERVISORD, Supervisord

pytestmark = pytest.mark.skipif(SUPERVISORD is None, reason="supervisor is not installed")
BOOT = "goexplorer-demo"


class SupervisedSite(Site):
    """The demo's host, with a supervisord that runs what is its operator's, too."""

    def __init__(self, directory: Path, supervisord: Supervisord) -> None:
        super().__init__(directory)
        self.supervisord = supervisord
        (web,) = self.variables["app_services"]
        place = {
            "manager": "supervisor",
            "supervisor_config": str(supervisord.config),
            "supervisor_include": str(supervisord.include),
        }
        self.variables["app_services"] = [{**web, **place}]
        self.write()
        self.stranger = supervisord.ask("pid", "stranger")

    def good(self, name: str, *words: str) -> Run:
        """Run a playbook that has to succeed."""
        run = self.play(name, *words)
        assert run.code == 0, run.output[-6000:]
        return run

    def serves(self, version: str) -> None:
        """See that one release answers, and that it is supervisord's own child, and its only one."""
        self.wait(lambda: self.get().version == version, f"{version} to answer")
        answers = {(one.status, one.version, one.commit) for one in (self.get() for _number in range(6))}
        assert answers == {(200, version, self.commits[version])}
        (main,) = _processes.tree_roots([entry for entry in self.processes() if entry.service])
        stat = Path(f"/proc/{main.pid}/stat").read_text(encoding="utf-8", errors="replace")
        assert _processes.parse_stat(stat)[1] == self.supervisord.process.pid
        running = {name for name, state in self.supervisord.programs().items() if state == "RUNNING"}
        assert running == {f"{BOOT}-web-{main.deployment}"}
        assert self.supervisord.sections() == {BOOT, f"{BOOT}-web-{main.deployment}"}
        assert self.supervisord.ask("pid", "stranger") == self.stranger
        assert (self.root / "current" / "VERSION").read_text(encoding="utf-8").strip() == version

    def kept(self, visitors: Visitors) -> None:
        """See that every row is there that was acknowledged."""
        stored = set(self.rows("SELECT details FROM owner_agreements_agreementrisksignal"))
        assert visitors.acknowledged and set(visitors.acknowledged) <= stored


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[SupervisedSite]:
    supervisord = Supervisord()
    supervisord.start()
    made = SupervisedSite(tmp_path_factory.mktemp("supervised"), supervisord)
    try:
        yield made
    finally:
        supervisord.close()
        made.stop()


def test_forward_back_and_what_does_not_boot(site):
    site.good("setup")
    site.good("deploy", "-e", "version=v2.6")
    site.serves("v2.6")
    with Visitors(site) as visitors:
        site.good("deploy", "-e", "version=v2.7")
        site.serves("v2.7")
        assert NEW_MIGRATION in site.applied()
        # The same again is no deployment.
        site.good("deploy", "-e", "version=v2.7")
        assert len(site.records()) == 2
        site.good("rollback", "-e", "rollback_reason=practice")
        site.serves("v2.6")
        refused = site.play("deploy", "-e", "version=broken-boot")
        assert refused.code != 0, refused.output[-6000:]
        site.serves("v2.6")
    # Nobody but v2.6 and v2.7 ever answered.
    assert {answer.version for answer in visitors.reads if answer.status == 200} == {"v2.6", "v2.7"}
    site.kept(visitors)
    # supervisord dies, and starts again as at boot: what is current is started, and nothing else.
    site.supervisord.kill()
    site.stop()
    site.supervisord.start()
    site.stranger = site.supervisord.ask("pid", "stranger")
    site.serves("v2.6")
    ended = [(record["kind"], record["verdict"]) for record in site.records()]
    assert ended[:3] == [("deployment", "success"), ("deployment", "success"), ("rollback", "success")]
    # What never answered was not live; what its migrations did was taken back with it.
    assert ended[3:] in ([("deployment", "abandoned")], [("deployment", "rolled_back")])
