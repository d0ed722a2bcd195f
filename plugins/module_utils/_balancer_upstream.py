# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file with one upstream of nginx that this tool may write: what its lines mean, and how one server is marked as down.

The free nginx has no interface to take a server out; what it reads is this file. Only a file whose first line carries the
mark is ever written, and in it only the parameter ``down`` and the words behind the server's name::

    # Managed by runbook.deploy
    upstream shop {
        server 10.0.0.1:80 max_fails=0; # web1
        server 10.0.0.2:80 max_fails=0 down; # web2 (taken out by runbook.deploy)
    }

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._balancer import Server, host_of
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

MARK = "# Managed by runbook.deploy"
OURS = "(taken out by runbook.deploy)"
SERVER = re.compile(r"^(?P<indent>\s*)server\s+(?P<rest>[^;#{}]+);\s*(?:#(?P<comment>.*))?$")
OPENING = re.compile(r"^\s*upstream\s+(?P<name>\S+)\s*\{\s*(?:#.*)?$")
CLOSING = re.compile(r"^\s*\}\s*(?:#.*)?$")
OTHER = re.compile(r"^\s*(?!server\b)[a-z_]+(?:\s+[^;{}#]+)?;\s*(?:#.*)?$")
NOTHING = re.compile(r"^\s*(?:#.*)?$")


class Line(NamedTuple):
    """One server line: its ``number`` in the file, from 0, and its words."""

    number: int
    indent: str
    address: str
    parameters: list[str]
    name: str
    comment: str

    @property
    def server(self) -> Server:
        """Return it as a server."""
        down = "down" in self.parameters
        weight = next((p[7:] for p in self.parameters if p.startswith("weight=")), "1")
        return Server(
            name=self.name,
            address=self.address,
            admin="maint" if down else "ready",
            ours=down and OURS in self.comment,
            weight=int(weight) if weight.isdigit() else None,
            backup="backup" in self.parameters,
        )

    def text(self, down: bool) -> str:
        """Return the line with the server down, by us, or not."""
        parameters = [word for word in self.parameters if word != "down"] + (["down"] if down else [])
        comment = " ".join(self.comment.replace(OURS, "").split()) or self.name
        words = " ".join(["server", self.address, *parameters])
        return f"{self.indent}{words}; # {comment}{f' {OURS}' if down else ''}"


def parse(text: str, path: str, upstream: str) -> list[Line]:
    """Return the server lines of *text*.

    :raises Problem: for a file without the mark, another upstream, or a line that is not understood: it is never half written.
    """
    lines = text.splitlines()
    if not lines or not lines[0].startswith(MARK):
        raise Problem(
            f"{path} is not ours to write: its first line is {(lines or [''])[0][:80]!r}, expected {MARK!r}; give the file that holds only the "
            "upstream, and add that line."
        )
    found: list[Line] = []
    inside = closed = False
    for number, line in enumerate(lines):
        opening, server = OPENING.match(line), SERVER.match(line)
        if NOTHING.match(line):
            continue
        if opening and not inside and not closed:
            if opening["name"] != upstream:
                raise Problem(
                    f"{path} has the upstream {opening['name']!r}, expected {upstream!r}: correct backend, or the file."
                )
            inside = True
        elif CLOSING.match(line) and inside:
            inside, closed = False, True
        elif server and inside:
            words = server["rest"].split()
            comment = (server["comment"] or "").strip()
            name = comment.replace(OURS, "").split()[:1] or [host_of(words[0]) or words[0]]
            found.append(Line(number, server["indent"], words[0], words[1:], name[0], comment))
        elif not (inside and OTHER.match(line)):
            raise Problem(
                f"Line {number + 1} of {path} is not understood: {line.strip()[:80]!r}; expected one upstream with each directive, and each "
                "server, on a line of its own."
            )
    if not closed:
        raise Problem(
            f"{path} has no whole upstream {upstream!r}: expected 'upstream {upstream} {{' to a line with '}}'; complete it."
        )
    names = [line.name for line in found]
    for name in names:
        if names.count(name) > 1:
            raise Problem(
                f"{path} has {names.count(name)} servers called {name!r}: write a name of its own behind each, as in 'server 10.0.0.1:80; # web1'."
            )
    return found


def render(text: str, line: Line, down: bool) -> str:
    """Return *text* with the server of *line* down, or not; every other byte stays."""
    lines = text.splitlines(keepends=True)
    ending = lines[line.number][len(lines[line.number].rstrip("\r\n")) :]
    lines[line.number] = line.text(down) + ending
    return "".join(lines)
