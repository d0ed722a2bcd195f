# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytecode in the archives of modules: used where it fits, ignored where it does not, never in the way."""

from __future__ import annotations

import base64
import io
import pickle
import subprocess
import sys
import zipfile

from ansible.executor.module_common import _CachedModule
from ansible_collections.runbook.deploy.plugins.plugin_utils import _bytecode

SOURCE = b'"""A module."""\nfrom __future__ import annotations\n\ndef where():\n    """Only words."""\n    raise ValueError("line 6")\n'


def archive(**files: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__dot__", "."), content)
    return result.getvalue()


def rewritten(content: bytes, name: str, change) -> bytes:
    """The archive with another content of one of its files."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, change(old.read(entry)) if entry == name else old.read(entry))
    return result.getvalue()


def imported(content: bytes, tmp_path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "payload.zip"
    path.write_bytes(content)
    code = f"import sys; sys.path.insert(0, {str(path)!r}); import one; print(one.__cached__, one.where.__doc__); one.where()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_python_takes_the_bytecode_and_says_the_right_lines(tmp_path):
    content = _bytecode.with_bytecode(archive(one__dot__py=SOURCE))
    # Only the bytecode can have been used when the source is nonsense.
    done = imported(rewritten(content, "one.py", lambda _text: b"this is no python"), tmp_path)
    assert "ValueError: line 6" in done.stderr
    assert 'one.py", line 6, in where' in done.stderr
    assert "None" in done.stdout


def test_another_pythons_bytecode_is_ignored(tmp_path):
    content = _bytecode.with_bytecode(archive(one__dot__py=SOURCE))
    done = imported(rewritten(content, "one.pyc", lambda code: b"\0\0\r\n" + code[4:]), tmp_path)
    assert "ValueError: line 6" in done.stderr
    assert "Only words." in done.stdout


def test_everything_else_of_the_archive_stays_as_it_is():
    before = archive(one__dot__py=SOURCE, data=b"\0\1", two__dot__py=b"")
    with (
        zipfile.ZipFile(io.BytesIO(before)) as old,
        zipfile.ZipFile(io.BytesIO(_bytecode.with_bytecode(before))) as new,
    ):
        assert {name: new.read(name) for name in old.namelist()} == {
            name: old.read(name) for name in old.namelist()
        }
        assert set(new.namelist()) - set(old.namelist()) == {"one.pyc", "two.pyc"}


def test_what_ansible_core_keeps_stays_readable_for_it(tmp_path):
    path = tmp_path / "kept"
    module = _CachedModule(
        zip_data=base64.b64encode(archive(one__dot__py=SOURCE)), metadata=None, source_mapping={"a": "b"}
    )
    module.dump(str(path))
    (tmp_path / "rich").write_bytes(_bytecode.enrich(path))
    found = _CachedModule.load(str(tmp_path / "rich"))
    assert found.source_mapping == {"a": "b"}
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(found.zip_data))) as opened:
        assert sorted(opened.namelist()) == ["one.py", "one.pyc"]


def test_whatever_else_is_kept_stays_as_it_is(tmp_path):
    path = tmp_path / "kept"
    broken = _CachedModule(
        zip_data=base64.b64encode(archive(one__dot__py=b"def")), metadata=None, source_mapping={}
    )
    for content in (b"no pickle", pickle.dumps({"zip_data": b"x"}), pickle.dumps(broken), b""):
        path.write_bytes(content)
        assert _bytecode.enrich(path) == content
