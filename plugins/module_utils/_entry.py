# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module does around its work: take the options, and answer, or fail in one sentence.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

Perform = Callable[[Mapping[str, Any], bool, Callable[[str], None]], Mapping[str, Any]]


def run_module(options: Mapping[str, Any], rules: Mapping[str, Any], perform: Perform) -> None:
    """Run a module.

    :param options: its ``argument_spec``.
    :param rules: what else ``AnsibleModule`` is to hold the options against, as ``mutually_exclusive``.
    :param perform: the work: takes the options, whether only to say what would be done, and where warnings go; returns what the module
        returns, ``changed`` only where something can be, and raises :class:`Problem`.
    """
    module = AnsibleModule(argument_spec=options, supports_check_mode=True, **rules)
    try:
        answer = perform(module.params, module.check_mode, module.warn)
    except Problem as problem:
        module.fail_json(**problem.answer())
    module.exit_json(**{"changed": False, **answer})
