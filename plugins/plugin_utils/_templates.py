# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep what Jinja makes of the collection's own expressions from one run to the next.

ansible-core compiles an expression wherever it is evaluated, anew in the process of each task: measured, two fifths of the processor's time of
those processes. Here the compiled form is kept in ``~/.ansible``, as that of Python's sources is kept in ``__pycache__``, and is
loaded once, before the first of them is forked. What it is made of is its key, so that nothing can be stale: the text itself, how it is
read, and the versions of all that compiles it. Only texts that stand in the collection's roles and playbooks are kept; those of an
inventory may be secrets. What is evaluated, and whether it may be, ansible-core decides as ever.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import struct
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from ansible import constants
from ansible._internal._datatag._tags import Origin
from ansible._internal._templating import _jinja_bits
from ansible.release import __version__ as core_version
from ansible_collections.runbook.deploy.plugins.plugin_utils._archives import COLLECTION, forget, private
from jinja2 import nodes
from jinja2.compiler import _PassArg

# Of a file: those of an inventory below the collection, as in a checkout, are none of ours.
OURS = ("roles", "playbooks")
# Bytes of all that is kept; the collection's expressions are a tenth of it.
LIMIT = 8 << 20
# Checksum and length of an entry, which stand before it.
HEAD = struct.Struct(">II")
FILE = "compiled"

# Kind, text, how it is read.
Key = tuple[str, str, tuple[Any, ...]]
# [(is it a filter, name, what it is given besides its arguments)]: the code is made for them.
Plugins = tuple[tuple[bool, str, str], ...]


def directory() -> Path:
    """Return where the compiled forms are kept, for what compiles them now."""
    config = _jinja_bits._TemplateConfig
    parts = [
        "1",
        core_version,
        jinja2.__version__,
        sys.version,
        repr(config.allow_embedded_templates),
        repr(config.jinja_extensions),
    ]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return Path(constants.ANSIBLE_HOME) / "runbook.deploy" / "templates" / name


def ours(text: Any, known: dict[str, bool]) -> bool:
    """Return whether *text* stands in a file of the collection's roles or playbooks; *known* is what was found of paths before."""
    origin = Origin.get_tag(text)
    path = origin.path if origin else None
    if not path:
        return False
    if path not in known:
        with contextlib.suppress(ValueError):
            known[path] = Path(os.path.realpath(path)).relative_to(COLLECTION).parts[0] in OURS
        known.setdefault(path, False)
    return known[path]


def passed(environment: Any, is_filter: bool, name: str) -> str:
    """Return what the plugin *name* is given besides its arguments, on which the code depends."""
    found = (environment.filters if is_filter else environment.tests).get(name)
    return f"{'none' if found is None else _PassArg.from_obj(found)}"


class Kept:
    """The compiled forms, of this run and of earlier ones."""

    def __init__(self, path: Path) -> None:
        self.path = path / FILE
        self.codes: dict[Key, tuple[types.CodeType, Plugins]] = {}
        self.paths: dict[str, bool] = {}
        # The code that was made last, whatever of.
        self.made: types.CodeType | None = None

    def read(self) -> None:
        """Read what earlier runs have kept, and cut off what a killed one has written half."""
        with contextlib.suppress(FileNotFoundError):
            content = memoryview(self.path.read_bytes())
            begin = 0
            while begin < len(content):
                try:
                    checksum, length = HEAD.unpack(content[begin : begin + HEAD.size])
                    entry = content[begin + HEAD.size : begin + HEAD.size + length]
                    if len(entry) < length or zlib.crc32(entry) != checksum:
                        raise ValueError("half an entry")
                    key, code, plugins = marshal.loads(entry)
                except (EOFError, ValueError, TypeError, struct.error):
                    os.truncate(self.path, begin)
                    return
                self.codes[key] = (code, plugins)
                begin += HEAD.size + length

    def find(self, environment: Any, key: Key) -> types.CodeType | None:
        """Return the compiled form of *key*; None where there is none that fits the plugins of now."""
        found = self.codes.get(key)
        if found is None or any(passed(environment, *plugin[:2]) != plugin[2] for plugin in found[1]):
            return None
        return found[0]

    def add(self, environment: Any, key: Key, tree: nodes.Template) -> None:
        """Keep the code that was made last as that of *key*, which *tree* was made of."""
        used = {(True, node.name) for node in tree.find_all(nodes.Filter)}
        used |= {(False, node.name) for node in tree.find_all(nodes.Test)}
        plugins = tuple((*one, passed(environment, *one)) for one in sorted(used))
        self.codes[key] = (self.made, plugins)
        entry = marshal.dumps((key, self.made, plugins))
        # In one write, so that those of other processes stand before it or behind it.
        with contextlib.suppress(OSError), open(self.path, "ab", buffering=0, opener=opener) as file:
            if file.tell() < LIMIT:
                file.write(HEAD.pack(zlib.crc32(entry), len(entry)) + entry)


def opener(path: str, flags: int) -> int:
    """Open a file that nobody else may read."""
    return os.open(path, flags, 0o600)


def install(kept: Kept) -> None:
    """Have ansible-core's environment of templates look into *kept* before it compiles anything."""
    environment = _jinja_bits.AnsibleEnvironment
    fields = _jinja_bits._TEMPLATE_OVERRIDE_FIELD_NAMES
    compile_any, from_string, compile_expression = (
        environment.compile,
        environment.from_string,
        environment.compile_expression,
    )

    def key_of(self: Any, kind: str, text: Any) -> Key | None:
        if not isinstance(text, str) or self._debuggable_template_source or not ours(text, kept.paths):
            return None
        context = _jinja_bits._TemplateCompileContext.current(optional=True)
        settings = tuple(getattr(self, name) for name in fields)
        return kind, str.__str__(text), (*settings, context is not None and context.escape_backslashes)

    def remembering(self: Any, *args: Any, **options: Any) -> Any:
        kept.made = compile_any(self, *args, **options)
        return kept.made

    def looking(
        kind: str, make: Callable[..., Any], expected: tuple[Any, ...], of: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        def wrapper(self: Any, source: Any, *args: Any, **options: Any) -> Any:
            key = None
            with contextlib.suppress(Exception):
                key = key_of(self, kind, source) if args == expected and not options else None
                code = kept.find(self, key) if key else None
                if code is not None:
                    return of(self.template_class.from_code(self, code, self.make_globals(None), None))
            result = make(self, source, *args, **options)
            if key:
                # It saves time alone.
                with contextlib.suppress(Exception):
                    text = key[1] if kind == "template" else f"{{{{ {key[1]} }}}}"
                    kept.add(self, key, self._parse(text, None, None))
            return result

        return wrapper

    environment.compile = remembering
    environment.from_string = looking("template", from_string, (), lambda template: template)
    environment.compile_expression = looking(
        # An expression that is undefined stays it, as ansible-core asks for.
        "expression",
        compile_expression,
        (False,),
        lambda template: jinja2.environment.TemplateExpression(template, False),
    )


def prepare() -> None:
    """Read what is kept, and have it used, in this process and in those that it forks.

    :raises OSError: when the place cannot be used.
    """
    where = directory()
    if not private(where):
        return
    kept = Kept(where)
    kept.read()
    os.utime(where)
    forget(where.parent, where)
    install(kept)
