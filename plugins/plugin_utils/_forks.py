# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load once what each task would load anew.

ansible-core forks a process for each task and host, also for one that is skipped, and what a task loads ends with its process. Measured,
loading Jinja's filters and tests was half of what a condition costs there (0.04 s of the processor); what is loaded before the first
fork, all of them have.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import gc
import importlib

from ansible.template import Templar, trust_as_template

# With the first filter and the first test ansible-core loads all of its own, with the first of ours all of ours.
EXPRESSION = (
    "{{ [] | runbook.deploy.must_be_gone | default([], true) | map('extract', {}) | selectattr('x', 'defined') | list | length == 0"
    " and [] is not defined }}"
)
# What is imported when a module is sent to a host.
SENDING = (
    "ansible.module_utils._internal._json._profiles._module_legacy_c2m",
    "ansible.module_utils._internal._json._profiles._module_legacy_m2c",
    "ansible_collections.runbook.deploy.plugins.action.on_host",
)


def prepare() -> None:
    """Load it in this process.

    Nothing depends on it: with an ansible-core that has its parts elsewhere the tasks load them as ever.
    """
    try:
        Templar(loader=None, variables={}).template(trust_as_template(EXPRESSION))
        for name in SENDING:
            importlib.import_module(name)
    except Exception:
        return
    finally:
        # What is there now stays: the collector would look through it again in each process, and have its pages copied.
        gc.freeze()
