# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands as this operator types them: from a checkout, from elsewhere, or from an installed collection.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

PLAYBOOK = re.compile(
    r"(?<![\w./-])playbooks/(setup|pre_deploy|deploy|rollback|resume|status|history|due|remove|maintenance|reload)\.yml\b"
)
# `namespace.collection.playbook`, as ansible-playbook takes the playbooks of installed collections.
INSTALLED = re.compile(r"^([A-Za-z_]\w*\.[A-Za-z_]\w*)\.[\w.]+$")
COLLECTION = "runbook.deploy"


def with_playbooks(text: str, playbooks: Sequence[str]) -> str:
    """Return *text* with ``playbooks/<name>.yml`` written as the *playbooks* of this run were on its command line.

    A playbook beside the one that runs is named by its path; where none lies there, as that of the collection.
    """

    def typed(found: re.Match[str]) -> str:
        first = playbooks[0]
        installed = INSTALLED.match(first)
        if installed and not first.endswith((".yml", ".yaml")):
            return f"{installed.group(1)}.{found.group(1)}"
        for path in (os.path.join(os.path.dirname(first), f"{found.group(1)}.yml"), found.group(0)):
            if os.path.isfile(path):
                return path
        return f"{COLLECTION}.{found.group(1)}"

    return PLAYBOOK.sub(typed, text) if playbooks else text


def with_inventory(command: str, sources: Sequence[str]) -> str:
    """Return *command* with the inventories of this run in the place of ``<inventory>``, so that it can be run as it stands."""
    here = os.getcwd()
    words = [
        os.path.relpath(source, here) if source.startswith(here + os.sep) else source for source in sources
    ]
    return (
        command.replace("-i <inventory>", " ".join(f"-i {shlex.quote(word)}" for word in words))
        if words
        else command
    )
