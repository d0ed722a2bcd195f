# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/reload.yml on the demo's host: a changed shared file is served by the same main process; what HUP cannot bring is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._service import workers
from kill_site import Run, Site

# Outside of releases: gunicorn reads it anew on HUP, and gives its new workers these variables.
CONFIG = """raw_env = ["GOEXPLORER_ALLOWED_HOSTS=127.0.0.1,localhost{more}"]\n"""
NAME = "shop.example.org"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("reloaded"))
    (web,) = made.variables["app_services"]
    config = made.root / "shared" / "gunicorn.conf.py"
    command = f"{web['command']} --config {config}"
    made.variables["app_services"] = [{**web, "command": command, "strategy": "reload"}]
    made.write()
    try:
        done = made.play("setup")
        assert done.code == 0, done.output[-6000:]
        config.write_text(CONFIG.format(more=""), encoding="utf-8")
        done = made.play("deploy", "-e", "version=v2.6")
        assert done.code == 0, done.output[-6000:]
        yield made
    finally:
        made.stop()


def main_of(site: Site) -> tuple[int, set[int]]:
    """The main process, and its workers."""
    (main,) = _processes.tree_roots([entry for entry in site.processes() if entry.service])
    return main.pid, set(workers(main.pid))


def said(run: Run) -> str:
    return " ".join(run.output.split())


def test_a_changed_setting_is_served_and_what_hup_cannot_bring_is_refused(site):
    assert site.get().version == "v2.6" and site.get(NAME).status == 400
    main, old = main_of(site)
    (site.root / "shared" / "gunicorn.conf.py").write_text(CONFIG.format(more=f",{NAME}"), encoding="utf-8")

    # Nothing of it is done in check mode.
    preview = site.play("reload", "--check")
    assert preview.code == 0, said(preview)[-3000:]
    assert main_of(site) == (main, old) and site.get(NAME).status == 400

    done = site.play("reload")
    assert done.code == 0, said(done)[-3000:]
    new_main, new = main_of(site)
    assert new_main == main and new and not new & old
    assert site.get(NAME).status == 200 and site.get(NAME).version == "v2.6"

    # Another version would not be served by HUP; the one that serves is none.
    refused = site.play("reload", "-e", "version=v2.7")
    assert refused.code != 0 and "The version v2.7 is wanted, but v2.6 serves" in said(refused), said(
        refused
    )[-3000:]
    assert main_of(site) == (main, new)
    assert site.play("reload", "-e", "version=v2.6").code == 0
    main, new = main_of(site)

    # Nor would a variable of the main process.
    changed = {**site.variables["app_environment"], "GOEXPLORER_ALLOWED_HOSTS": "127.0.0.1"}
    site.write(app_environment=changed)
    refused = site.play("reload")
    assert refused.code != 0 and "The settings of the inventory are not those" in said(refused), said(
        refused
    )[-3000:]
    assert main_of(site) == (main, new) and site.get(NAME).version == "v2.6"
    # The way that the refusal names.
    changed["GOEXPLORER_ALLOWED_HOSTS"] += ",other.example.org"
    site.write(app_environment=changed)
    (site.root / "shared" / "gunicorn.conf.py").write_text("", encoding="utf-8")
    done = site.play("deploy", "-e", "version=v2.6")
    assert done.code == 0, said(done)[-3000:]
    assert (
        main_of(site)[0] != main
        and site.get("other.example.org").status == 200
        and site.get(NAME).status == 400
    )
