# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiled expressions that outlive a run: those of the collection alone, whole ones alone, and evaluated as ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COLLECTION = Path(__file__).resolve().parents[4]
# A process of its own each time, as each run is: what is installed stays installed.
BEGIN = """
import json, os, sys
from pathlib import Path
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader([])
from ansible import constants
constants.ANSIBLE_HOME = sys.argv[1]
from ansible._internal._datatag._tags import Origin
from ansible._internal._templating import _jinja_bits
from ansible.template import Templar, trust_as_template
from ansible_collections.runbook.deploy.plugins.plugin_utils import _templates

made = []
compile_any = _jinja_bits.AnsibleEnvironment.compile
_jinja_bits.AnsibleEnvironment.compile = lambda self, *args, **options: made.append(1) or compile_any(self, *args, **options)
kept = []
install = _templates.install
_templates.install = lambda known: kept.append(known) or install(known)
_templates.prepare()
HERE = str(_templates.COLLECTION / "roles" / "report" / "tasks" / "main.yml")

def said(text, path=HERE):
    return trust_as_template(Origin(path=path).tag(text))

def value(text, variables=None, path=HERE, **options):
    return Templar(loader=None, variables=variables or {}).template(said(text, path), **options)

def holds(text, variables=None, path=HERE):
    return Templar(loader=None, variables=variables or {}).evaluate_conditional(said(text, path))
"""


@pytest.fixture
def run(tmp_path):
    """``run(script)``: what *script* prints in a run of its own."""
    (tmp_path / "home").mkdir(mode=0o755)

    def begin(script, **environment):
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + script, str(tmp_path / "home")],
            cwd=COLLECTION,
            env={**os.environ, "PYTHONPATH": str(COLLECTION / ".ansible_dev"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return begin


def stored(tmp_path):
    return next((tmp_path / "home" / "runbook.deploy" / "templates").glob("*/compiled"))


EVALUATED = r"""
variables = {"a": 1, "b": [1, 2], "c": {"d": "x"}, "nested": said("{{ a + 1 }}")}
print(json.dumps([
    value("{{ a }} and {{ b }}", variables), value("{{ b | map('string') | list }}", variables), value("{{ nested }}", variables),
    value("{{ c.missing | default('none') }}", variables), value("{{ b | length if b is defined else [] }}", variables),
    value("{{ 'a\\tb' }}"), value("{{ 'a\\tb' }}", escape_backslashes=False), value("{{ [] | runbook.deploy.must_be_gone }}"),
    value("{%- set found = b | sum -%}{{ found }}", variables), value("no expression"),
    holds("a == 1", variables), holds("b | length > 5", variables), holds("not (e | default(false))", variables), holds("c.d == 'x'", variables),
]))
print(len(made))
"""


def test_a_later_run_compiles_nothing_and_finds_the_same(run):
    first, compiled = run(EVALUATED).splitlines()
    assert int(compiled) >= 12
    second, compiled = run(EVALUATED).splitlines()
    assert (second, compiled) == (first, "0")


def test_an_error_is_said_as_ever(run):
    script = r"""
from ansible.errors import AnsibleError
for text, variables in (("{{ nowhere.at_all }}", {}), ("{{ 1 / a }}", {"a": 0}), ("{{ ", {}), ("{{ 1 | nonsense }}", {})):
    try:
        print(repr(value(text, variables)))
    except AnsibleError as error:
        print(type(error).__name__, str(error).splitlines()[0])
try:
    print(holds("nowhere"))
except AnsibleError as error:
    print(type(error).__name__, str(error).splitlines()[0])
"""
    first = run(script)
    assert first.count("Error") == 5 or first.count("Undefined") > 0
    assert run(script) == first


def test_texts_that_are_not_the_collections_own_are_never_kept(run, tmp_path):
    """They may be secrets: an inventory's, and one that lies below the collection in a checkout."""
    run(
        """
value("{{ 'hidden-1' }}", path="/etc/ansible/group_vars/all.yml")
value("{{ 'hidden-2' }}", path=str(_templates.COLLECTION / "inventories" / "staging" / "group_vars" / "app.yml"))
Templar(loader=None, variables={}).template(trust_as_template("{{ 'hidden-3' }}"))
value("{{ secret }}", {"secret": trust_as_template("{{ 'hidden-4' }}")})
value("{{ 'shown' }}")
"""
    )
    content = stored(tmp_path).read_bytes()
    assert b"shown" in content
    assert b"hidden" not in content
    assert stored(tmp_path).stat().st_mode & 0o077 == 0


def test_code_that_was_made_for_another_plugin_is_made_anew(run):
    """What a filter is given besides its arguments stands in the code."""
    script = """
import jinja2
loaded = _jinja_bits.JinjaPluginIntercept.get
def plain(value):
    return f"plain {value}"
@jinja2.pass_environment
def with_environment(environment, value):
    return f"{type(environment).__name__} {value}"
own = plain if os.environ["OWN"] == "plain" else with_environment
item = _jinja_bits.JinjaPluginIntercept.__getitem__
_jinja_bits.JinjaPluginIntercept.__getitem__ = lambda self, name: own if name == "own" else item(self, name)
print(value("{{ 'x' | own }}"))
"""
    assert run(script, OWN="plain") == "plain x"
    assert run(script, OWN="environment") == "AnsibleEnvironment x"
    assert run(script, OWN="plain") == "plain x"


def test_what_was_written_half_is_not_used_and_what_stands_before_it_is(run, tmp_path):
    run("value(\"{{ 'first' }}\")")
    whole = stored(tmp_path).read_bytes()
    run("value(\"{{ 'second' }}\")")
    both = stored(tmp_path).read_bytes()
    assert both.startswith(whole)
    script = "print(len(kept[0].codes), value(\"{{ 'second' }}\"))"
    for damaged, left in ((both[:-3] + b"abc", 1), (both[: len(whole) + 2], 1), (b"\0" * 100, 0)):
        stored(tmp_path).write_bytes(damaged)
        assert run(script) == f"{left} second"
        # What is added then can be read again.
        assert stored(tmp_path).read_bytes() == (both if left else both[len(whole) :])


def test_nothing_is_read_where_others_may_write(run, tmp_path):
    run("value(\"{{ 'first' }}\")")
    stored(tmp_path).parent.chmod(0o777)
    assert run("print(len(kept), value(\"{{ 'first' }}\"))") == "0 first"


def test_what_is_kept_does_not_grow_for_ever(run, tmp_path):
    run("_templates.LIMIT = 3000\nfor number in range(20): value('{{ %d }}' % number)")
    assert 3000 <= stored(tmp_path).stat().st_size < 6000
