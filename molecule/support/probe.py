# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions that are asked inside a host, as a user of choice; nothing of the collection is used. Answers are JSON.

This file's text is given to the host's own ``python3 -c``: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import sys
import time


def tree(*roots: str) -> dict:
    """Every path below `roots` with mode, owner, group, size, time and what it holds."""
    found = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            for name in [".", *names, *files]:
                path = os.path.normpath(os.path.join(directory, name))
                about = os.lstat(path)
                holds = ""
                if stat.S_ISLNK(about.st_mode):
                    holds = os.readlink(path)
                elif stat.S_ISREG(about.st_mode):
                    with open(path, "rb") as stream:
                        holds = hashlib.sha256(stream.read()).hexdigest()
                size = 0 if stat.S_ISDIR(about.st_mode) else about.st_size
                found[path] = [
                    stat.filemode(about.st_mode),
                    about.st_uid,
                    about.st_gid,
                    size,
                    about.st_mtime_ns,
                    holds,
                ]
    return found


def processes(user: str) -> list:
    """Every process of `user`: number, parent, command, and which deployment and release it was started for."""
    import pwd

    owner = pwd.getpwnam(user).pw_uid
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(name) == os.getpid() or os.stat(f"/proc/{name}").st_uid != owner:
                continue
            with open(f"/proc/{name}/stat") as stream:
                state, parent = stream.read().rpartition(")")[2].split()[:2]
            with open(f"/proc/{name}/cmdline", "rb") as stream:
                command = stream.read().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
            with open(f"/proc/{name}/environ", "rb") as stream:
                words = dict(item.partition(b"=")[::2] for item in stream.read().split(b"\0") if b"=" in item)
            directory = os.readlink(f"/proc/{name}/cwd")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == "Z":
            continue
        found.append(
            {
                "pid": int(name),
                "parent": int(parent),
                "command": command,
                "deployment": words.get(b"RUNBOOK_DEPLOYMENT", b"").decode(),
                "release": words.get(b"RUNBOOK_RELEASE", b"").decode(),
                "directory": directory,
            }
        )
    return found


def database(path: str) -> dict:
    """Rows and migrations, read only, and whether the file is sound."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)
    connection.execute("BEGIN")
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    tables = [row[0] for row in connection.execute(names)]
    signals = "owner_agreements_agreementrisksignal"
    return {
        "check": [row[0] for row in connection.execute("PRAGMA integrity_check")],
        "foreign_keys": connection.execute("PRAGMA foreign_key_check").fetchall(),
        "migrations": [
            f"{app}.{name}"
            for app, name in connection.execute("SELECT app, name FROM django_migrations ORDER BY id")
        ],
        "signals": dict(connection.execute(f"SELECT id, details FROM {signals}").fetchall()),
        "columns": [row[1] for row in connection.execute(f"PRAGMA table_info({signals})")],
        "counts": {
            table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] for table in tables
        },
    }


def writable(*roots: str) -> list:
    """Paths below `roots` that the present user could change: written, removed, or given something new."""
    found = []
    for root in roots:
        for directory, names, files in os.walk(root):
            for name in [".", *names, *files]:
                path = os.path.normpath(os.path.join(directory, name))
                # What a link leads to outside of the tree (shared paths) is not the tree's.
                if not os.path.islink(path) and os.access(path, os.W_OK):
                    found.append(path)
    return found


def leaks(*roots: str) -> dict:
    """Files below `roots` that the present user can read and that hold one of the secrets from standard input."""
    secrets = [line.encode() for line in json.load(sys.stdin)]
    found, read = [], 0
    for root in roots:
        for directory, names, files in os.walk(root):
            names[:] = [name for name in names if os.path.join(directory, name) not in ("/proc", "/sys")]
            for name in files:
                path = os.path.join(directory, name)
                try:
                    if not stat.S_ISREG(os.lstat(path).st_mode):
                        continue
                    with open(path, "rb") as stream:
                        text = stream.read()
                except OSError:
                    continue
                read += 1
                found += [path for secret in secrets if secret in text or secret in path.encode()]
    return {"read": read, "found": sorted(set(found))}


def commands(seconds: str) -> list:
    """Every command line seen in `seconds`, or until standard input ends."""
    import select

    seen, born = set(), {}
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        now = time.monotonic()
        for name in filter(str.isdigit, os.listdir("/proc")):
            # A process gets its command line when it is young; to read all of them always costs half a processor.
            if now - born.setdefault(name, now) > 0.5:
                continue
            try:
                with open(f"/proc/{name}/cmdline", "rb") as stream:
                    seen.add(stream.read())
            except OSError:
                continue
        if select.select([sys.stdin], [], [], 0.05)[0]:
            break
    return sorted(line.replace(b"\0", b" ").decode(errors="replace") for line in seen)


if __name__ == "__main__":
    asked = {one.__name__: one for one in (tree, processes, database, writable, leaks, commands)}
    json.dump(asked[sys.argv[1]](*sys.argv[2:]), sys.stdout)
