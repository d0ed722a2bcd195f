# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import http.server
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _environment, _release
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._layout import replace_link
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.release_tools import (
    APPLICATION,
    PYTHON,
    World,
    make_wheel,
    open_world,
    snapshot,
)


@pytest.fixture(name="world")
def fixture_world(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with open_world(capsys, tmp_path_factory) as world:
        yield world


def test_a_release_is_built_and_then_left_alone(world: World) -> None:
    commit = world.commit({**APPLICATION, ".complete": "not ours", ".built": "", "REVISION": "lie"}, tag="v1")
    answer = world.built(commit, version="v1", shared=["media"], packages=["beta"])
    path = Path(answer["release"]["path"])
    assert answer["changed"] and answer["environment_built"] and answer["dependencies_changed"]
    assert answer["release"]["built"] and answer["release"]["commit"] == commit
    assert set(answer["seconds"]) == {"fetch", "export", "environment"}
    assert (path / "REVISION").read_text() == commit + "\n"
    assert not (path / ".complete").exists()
    assert json.loads((path / ".release.json").read_text()) == {
        "name": path.name,
        "commit": commit,
        "version": "v1",
        "environment": answer["release"]["environment"],
        "directory": "",
    }
    python = Path(answer["release"]["environment_path"]) / "bin/python"
    assert subprocess.check_output([python, "-c", "import beta; print(beta.VERSION)"], text=True) == "1.0\n"
    assert subprocess.check_output([python, path / "manage.py"], text=True) == "1.0\n"
    manifest = json.loads((python.parents[1] / ".built").read_text())
    assert (manifest["packages"], manifest["installer"]) == (["alpha==1.0", "beta==1.0"], "uv")
    assert not (python.parents[1] / ".building").exists()

    replace_link(world.layout.current, f"releases/{path.name}")
    before = snapshot(world.base)
    began = time.monotonic()
    again = world.built(commit, version="v1", shared=["media"], packages=["beta"])
    assert time.monotonic() - began < 0.5
    assert (again["changed"], again["environment_built"], again["dependencies_changed"]) == (
        False,
        False,
        False,
    )
    assert again["release"] == {**answer["release"], "built": False}
    assert snapshot(world.base) == before


def test_code_is_compiled_for_those_who_cannot_write(world: World) -> None:
    answer = world.built(world.commit({**APPLICATION, "app/views.py": "x = 1\n", "bad.py": "print 1\n"}))
    assert list(Path(answer["release"]["path"]).glob("app/__pycache__/views.*.pyc"))
    assert list(
        Path(answer["release"]["environment_path"]).glob("lib/python*/site-packages/__pycache__/alpha.*.pyc")
    )


def test_the_environment_is_shared_while_the_dependencies_are_the_same(world: World) -> None:
    first = world.built(world.commit(APPLICATION))
    replace_link(world.layout.current, f"releases/{first['release']['name']}")
    second = world.built(world.commit({"manage.py": "print(2)\n"}))
    assert second["release"]["environment"] == first["release"]["environment"]
    assert (second["environment_built"], second["dependencies_changed"]) == (False, False)
    third = world.built(world.commit({"requirements.txt": "-r base.txt\n", "base.txt": "alpha==1.0\nbeta\n"}))
    assert third["release"]["environment"] != first["release"]["environment"]
    assert (third["environment_built"], third["dependencies_changed"]) == (True, True)
    assert len(list(world.layout.environments.iterdir())) == 2


def test_check_mode_says_what_would_be_built_and_changes_nothing(world: World) -> None:
    commit = world.commit(APPLICATION)
    before = snapshot(world.base)
    foreseen = world.built(commit, _ansible_check_mode=True, _ansible_diff=True)
    assert foreseen["changed"] and foreseen["environment_built"]
    assert f"commit: {commit}" in foreseen["diff"]["after"]
    assert snapshot(world.base) == before
    assert world.built(commit)["release"] == foreseen["release"]
    assert world.built(commit, _ansible_check_mode=True)["changed"] is False
    other = world.commit({"manage.py": "print(3)\n"})
    before = snapshot(world.base)
    foreseen = world.built(other, _ansible_check_mode=True)
    assert (foreseen["changed"], foreseen["environment_built"]) == (True, False)
    assert snapshot(world.base) == before


def test_an_application_in_a_directory(world: World) -> None:
    files = {f"src/{name}": text for name, text in APPLICATION.items()}
    answer = world.built(world.commit({**files, "README": "x"}), directory="src/", shared=["media"])
    assert answer["release"]["directory"] == "src"
    assert (Path(answer["release"]["path"]) / "src/media").is_symlink()
    failed = world.run(world.commit({"b": "1"}), directory="source")
    assert "app_directory 'source' is not in app_version" in failed["msg"] and "src" in failed["msg"]
    assert len(list(world.layout.releases.iterdir())) == 1


@pytest.mark.parametrize(
    ("requirements", "options", "message"),
    [
        ("gamma==1.0\n", {}, "a requirement does not exist, or contradicts another one"),
        ("alpha==1.0\nalpha==2.0\n", {}, "a requirement does not exist, or contradicts another one"),
        ("alpha==1.0 --hash=sha256:" + "0" * 64 + "\n", {}, "has not the hash"),
        (
            "alpha\n",
            {"python": "python9"},
            r"The interpreter 'python9' \(app_python\) is not on this host; found",
        ),
        ("alpha\n", {"python": "/bin/true"}, "does not answer as a Python 3"),
        ("alpha\n", {"requirements": ["none.txt"]}, r"'none.txt' \(app_requirements\)"),
        ("alpha\n", {"packages": ["--index-url=https://x"]}, "app_packages holds"),
        ("alpha\n", {"uv": "/nonexistent/uv"}, "cannot be run on this host"),
        ("alpha\n", {"shared": ["../x"]}, "app_shared holds"),
        ("alpha\n", {"directory": "../x"}, "app_directory is"),
        (
            "alpha\n",
            {"commit": "0" * 40, "release": "0" * 12 + "-0a1b2c3d"},
            "is no commit of app_repository",
        ),
        ("alpha\n", {"release": "../../etc"}, "The option release"),
        ("alpha\n", {"user": "nobody-of-this-name"}, "does not exist on this host"),
    ],
)
def test_what_cannot_be_built_leaves_nothing(
    world: World, requirements: str, options: dict[str, Any], message: str
) -> None:
    answer = world.run(world.commit({**APPLICATION, "requirements.txt": requirements}), **options)
    assert answer["failed"] and re.search(message, answer["msg"]), answer
    for directory in (world.layout.releases, world.layout.environments):
        assert not directory.exists() or not list(directory.iterdir())


def test_build_variables_must_be_a_mapping(world: World) -> None:
    assert "build_environment" in world.run(world.commit(APPLICATION), build_environment="[1]")["msg"]


def test_packages_that_contradict_each_other_are_refused(world: World) -> None:
    make_wheel(world.wheels, "alpha", "3.0")
    digest = {
        name: hashlib.sha256((world.wheels / f"{name}-py3-none-any.whl").read_bytes()).hexdigest()
        for name in ("alpha-3.0", "beta-1.0")
    }
    # Hashed files, then a package besides that contradicts them.
    files = {**APPLICATION, "requirements.txt": f"alpha==3.0 --hash=sha256:{digest['alpha-3.0']}\n"}
    (world.wheels / "alpha-1.0-py3-none-any.whl").unlink()
    answer = world.run(world.commit(files), packages=["beta"])
    assert "contradict" in answer["msg"] or "contradicts" in answer["msg"]
    assert not list(world.layout.environments.iterdir())


def test_hashed_files_demand_a_hash_of_every_package(world: World) -> None:
    digest = hashlib.sha256((world.wheels / "beta-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    answer = world.run(
        world.commit({**APPLICATION, "requirements.txt": f"beta==1.0 --hash=sha256:{digest}\n"})
    )
    assert "or one has none" in answer["msg"], answer


def test_venv_and_pip_do_it_where_there_is_no_uv(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if run([PYTHON, "-c", "import ensurepip, venv"]).rc != 0:
        pytest.skip(f"{PYTHON} has no venv")
    monkeypatch.setattr(_release, "find_uv", lambda layout, option: None)
    answer = world.built(world.commit(APPLICATION), packages=["beta"])
    path = Path(answer["release"]["environment_path"])
    manifest = json.loads((path / ".built").read_text())
    assert manifest["installer"] == "pip"
    assert {"alpha==1.0", "beta==1.0"} <= set(manifest["packages"])
    assert list(path.glob("lib/python*/site-packages/__pycache__/alpha.*.pyc"))


def test_an_editable_requirement_belongs_to_one_release(world: World) -> None:
    make_wheel(world.wheels, "backend", "1.0")
    library = {
        "lib/pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'make'\nbackend-path = ['.']\n",
        "lib/make.py": MAKE,
        "requirements.txt": "-e ./lib\n",
    }
    environments = set()
    for number in (1, 2):
        answer = world.built(world.commit({**library, "lib/libx.py": f"N = {number}\n"}))
        environments.add(answer["release"]["environment"])
        python = answer["release"]["environment_path"] + "/bin/python"
        assert (
            subprocess.check_output([python, "-c", "import libx; print(libx.N)"], text=True) == f"{number}\n"
        )
    assert len(environments) == 2


MAKE = """
import os, zipfile

INFO = {
    "libx.pth": os.getcwd() + "\\n",
    "libx-1.0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: libx\\nVersion: 1.0\\n",
    "libx-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
}

def build_editable(directory, config_settings=None, metadata_directory=None):
    name = "libx-1.0-py3-none-any.whl"
    record = "libx-1.0.dist-info/RECORD"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        for file, text in INFO.items():
            archive.writestr(file, text)
        archive.writestr(record, "".join(file + ",,\\n" for file in [*INFO, record]))
    return name
"""


def test_submodules_and_lfs(world: World) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1\n"
    commit = world.commit({**APPLICATION, ".gitattributes": "*.bin filter=lfs\n", "a.bin": pointer})
    answer = world.built(commit)
    assert answer["notes"][0].startswith("a.bin (1 in all) are pointers of Git LFS")
    world.repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},vendor/lib")
    world.repository.git("commit", "-q", "-m", "submodule")
    answer = world.run(world.repository.git("rev-parse", "HEAD"))
    assert "git submodules vendor/lib" in answer["msg"]


def test_an_archive_instead_of_a_repository(world: World) -> None:
    commit = world.commit(APPLICATION)
    archive = world.base / "shop.tar.gz"
    world.repository.git("archive", "--prefix=shop-1/", "-o", str(archive), commit)
    source = {"archive": {"path": str(archive), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}}
    foreseen = world.built(commit, source=source, _ansible_check_mode=True)
    assert foreseen["changed"] and foreseen["release"]["environment"] is None
    answer = world.built(commit, source=source)
    assert (Path(answer["release"]["path"]) / "manage.py").exists()
    assert not world.layout.mirror.exists()
    other = world.commit({"a": "1"})
    assert "push the same archive" in world.run(other, source=source)["msg"]


def test_names_of_pip_work_for_uv(world: World) -> None:
    build = {
        "PIP_INDEX_URL": "https://a/simple",
        "PIP_EXTRA_INDEX_URL": "https://b https://c",
        "PIP_CERT": "/x.pem",
    }
    variables = _environment.installer_variables(world.layout, {**build, "PIP_FIND_LINKS": "/a /b"}, True)
    assert variables["UV_INDEX_URL"] == "https://a/simple"
    assert variables["UV_EXTRA_INDEX_URL"] == "https://b https://c"
    assert variables["UV_FIND_LINKS"] == "/a,/b"
    assert variables["SSL_CERT_FILE"] == "/x.pem"
    assert (
        _environment.installer_variables(world.layout, {"UV_INDEX_URL": "u", **build}, True)["UV_INDEX_URL"]
        == "u"
    )
    assert "UV_INDEX_URL" not in _environment.installer_variables(world.layout, build, False)


def test_the_record_tells_how_it_went(world: World) -> None:
    record = {"id": "20261121T013700-ab12", "token": "0f", "host": "web2", "primary": False, "about": {}}
    commit = world.commit({**APPLICATION, "requirements.txt": "gamma\n"})
    failed = world.run(commit, record=record)
    assert failed.get("failed"), failed
    world.built(world.commit(APPLICATION), record=record)
    phases = json.loads(world.layout.record(record["id"]).read_text())["phases"]
    assert [(phase["phase"], phase["state"]) for phase in phases] == [
        ("release", "failed"),
        ("release", "done"),
    ]
    assert "app_requirements" in phases[0]["message"]
    assert phases[1]["result"]["release"]["built"] is True


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that has nothing and remembers what it was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        return None


def test_the_index_is_the_one_given_or_none(world: World) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        world.build["PIP_INDEX_URL"] = f"http://127.0.0.1:{server.server_port}/simple"
        world.built(world.commit(APPLICATION))
        assert not Index.asked
        world.build["PIP_NO_INDEX"] = "0"
        assert world.run(world.commit({"requirements.txt": "gamma\n"})).get("failed")
        assert Index.asked and set(Index.asked) == {"/simple/gamma/"}
    finally:
        server.shutdown()
        server.server_close()
