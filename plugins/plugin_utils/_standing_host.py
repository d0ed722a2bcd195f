# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand on a host for the time of a run, and become each module that is sent: a fork, with what all modules import there already.

This source is sent through ssh and run by the host's Python (3.9 or newer, standard library only); see ``_standing.py``. It reads a
script, as ansible-core sends it to a Python of its own, runs it in a child, and writes its exit code and its output. It listens to
nothing but its standard input, writes no file that stays, and ends when the connection does; a module that works then goes on,
and finds nobody who reads its output, as it would without this.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import base64
import gc
import importlib
import os
import re
import select
import shutil
import struct
import sys
import tempfile
import types
import zipimport

# What is written first; a privilege escalation may have said something before.
READY = b"\0runbook.deploy stands\n"
SIZE = struct.Struct(">Q")
# Exit code, and how many bytes of standard output and of error output follow.
ANSWER = struct.Struct(">iQQ")
# As the archive stands in a script of ansible-core 2.19 and later.
ARCHIVE = re.compile(rb"^zip_data='([A-Za-z0-9+/=]+)',$", re.MULTILINE)
# Imported by each module; all else is the module's own and imported by it.
SHARED = (
    "ansible.module_utils.basic",
    "ansible.module_utils._internal._ansiballz._loader",
    "ansible.module_utils._internal._json._profiles._module_legacy_m2c",
    "ansible.module_utils._internal._json._profiles._module_legacy_c2m",
)
# Those of the standard library need no archive, so that they are imported while nothing is asked.
STANDARD = (
    *(
        "argparse",
        "ast",
        "collections",
        "concurrent.futures",
        "contextlib",
        "dataclasses",
        "datetime",
        "fcntl",
        "functools",
    ),
    *(
        "grp",
        "hashlib",
        "hmac",
        "http.client",
        "inspect",
        "io",
        "ipaddress",
        "itertools",
        "json",
        "locale",
        "logging",
    ),
    *(
        "pathlib",
        "pickle",
        "platform",
        "pwd",
        "random",
        "resource",
        "runpy",
        "secrets",
        "selectors",
        "shlex",
        "signal",
    ),
    *(
        "socket",
        "sqlite3",
        "ssl",
        "stat",
        "string",
        "subprocess",
        "syslog",
        "textwrap",
        "threading",
        "time",
        "traceback",
    ),
    *("typing", "unicodedata", "urllib.parse", "urllib.request", "uuid", "warnings", "zipfile"),
)


def exactly(handle, size):
    """Return *size* bytes of the file *handle*, None where it ends before."""
    parts = []
    while size:
        part = os.read(handle, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_all(handle, content):
    """Write *content* to the file *handle*."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


class Archives:
    """Find what a module has in its archive of a package that was imported from another archive, which is gone."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        """Return where the module *fullname* is; None where no archive has it."""
        if not fullname.startswith("ansible."):
            return None
        parent = "/".join(fullname.split(".")[:-1])
        for entry in sys.path:
            if entry.endswith("_payload.zip"):
                try:
                    found = zipimport.zipimporter(f"{entry}/{parent}").find_spec(fullname)
                except zipimport.ZipImportError:
                    continue
                if found is not None:
                    return found
        return None


def import_all(names):
    """Import what there is of the modules *names*."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            # It saves time alone: who needs it imports it, and says what is wrong with it.
            continue


def warm_up(script):
    """Import from the archive in *script* what every module imports."""
    found = ARCHIVE.search(script)
    if not found:
        return
    directory = tempfile.mkdtemp(prefix="ansible_runbook_deploy_")
    archive = os.path.join(directory, "shared_payload.zip")
    try:
        with open(archive, "wb") as file:
            file.write(base64.b64decode(found.group(1)))
        sys.path.insert(0, archive)
        import_all(SHARED)
    finally:
        if archive in sys.path:
            sys.path.remove(archive)
        # Nothing may be looked for in what is removed now.
        for entry in [entry for entry in sys.path_importer_cache if entry.startswith(archive)]:
            del sys.path_importer_cache[entry]
        zipimport._zip_directory_cache.pop(archive, None)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "ansible" and hasattr(module, "__path__"):
                module.__path__ = []
        shutil.rmtree(directory, ignore_errors=True)


def become(script):
    """Run *script* as Python runs what it reads from its standard input; return when it has come to its end."""
    sys.argv = [""]
    sys.meta_path.append(Archives)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(script, "<stdin>", "exec"), main.__dict__)


def attend(child, requests, pipes):
    """Return exit code, output and error output of *child*, whose output *pipes* are; end where nobody is left who asked."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    taken = {pipe: [] for pipe in pipes}
    listening, code = set(pipes), None
    while True:
        # What a module has started may keep its output open: then its own end is what counts.
        quiet = True
        for handle, _events in poll.poll(100 if listening and code is None else 2):
            part = os.read(handle, 1 << 16)
            if handle == requests:
                # Nothing is sent before the answer, so that this is the end of the connection.
                os._exit(0)
            quiet = False
            if part:
                taken[handle].append(part)
            else:
                poll.unregister(handle)
                listening.discard(handle)
        if code is None:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        if code is not None and (quiet or not listening):
            return (code, *(b"".join(taken[pipe]) for pipe in pipes))


def answer(script, requests, answers):
    """Run *script* in a child, and return what is to be written of it; None in the child, where it has run."""
    pipes = (os.pipe(), os.pipe())
    child = os.fork()
    if child == 0:
        for handle in (requests, answers, *(ours for ours, _theirs in pipes)):
            os.close(handle)
        for number, (_ours, theirs) in enumerate(pipes, 1):
            os.dup2(theirs, number)
            os.close(theirs)
        become(script)
        return None
    for _ours, theirs in pipes:
        os.close(theirs)
    code, output, errors = attend(child, requests, [ours for ours, _theirs in pipes])
    for ours, _theirs in pipes:
        os.close(ours)
    return ANSWER.pack(code, len(output), len(errors)) + output + errors


def serve():
    """Answer what is asked until the connection ends; in a child return when its module has run."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)
    write_all(answers, READY)
    import_all(STANDARD)
    warm = False
    while True:
        size = exactly(requests, SIZE.size)
        script = size and exactly(requests, SIZE.unpack(size)[0])
        if not script:
            return
        if not warm:
            warm_up(script)
            warm = True
            # What is there now is never looked through again, and stays shared with the children.
            gc.collect()
            gc.freeze()
        told = answer(script, requests, answers)
        if told is None:
            return
        try:
            write_all(answers, told)
        except OSError:
            return


if __name__ == "__main__":
    serve()
