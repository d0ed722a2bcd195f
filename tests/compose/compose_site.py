# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo application in a container of this machine's own engine, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import make_repository
import yaml
from played_site import PROJECT, PlayedSite, Run

REQUIREMENTS = ["Django==5.2.19", "gunicorn==27.0.1", "whitenoise==6.12.0"]
SECRET = "a secret of the tests $HOME ${NAME} 'quoted' \"twice\" #and long enough"
BASE_DOCKERFILE = """
FROM {base}
COPY lib /opt/lib
ENV PYTHONPATH=/opt/lib PATH=/opt/lib/bin:/usr/local/bin:/usr/bin:/bin
"""
DOCKERFILE = """
FROM {base}
WORKDIR /app
COPY . /app
RUN GOEXPLORER_SECRET_KEY=of-the-build python3 manage.py collectstatic --noinput
CMD ["python3", "-m", "gunicorn", "goexplorer.wsgi", "--workers", "2", "--bind", "0.0.0.0:8000"]
"""
COMPOSE: dict[str, Any] = {
    "services": {
        "web": {
            "build": ".",
            "user": "${RUNBOOK_UID}:${RUNBOOK_GID}",
            "ports": ["127.0.0.1:${RUNBOOK_PORT}:8000"],
            "volumes": ["${RUNBOOK_ROOT}/shared:${RUNBOOK_ROOT}/shared"],
            "healthcheck": {
                "test": [
                    "CMD",
                    "python3",
                    "-c",
                    "import socket; socket.create_connection(('127.0.0.1', 8000), 5)",
                ],
                "interval": "1s",
                "timeout": "10s",
                "retries": 5,
                "start_period": "20s",
            },
            # Never started: a deployment is about one service.
            "depends_on": ["stranger"],
        },
        "stranger": {"image": "runbook.invalid/stranger:1"},
    }
}
# A version of the demo application, what of its Compose service is another, and its image where it builds none.
VERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2.6": ("v2.6", {}),
    "v2.7": ("v2.7", {}),
    "v2.8": ("v2.8", {}),
    "broken-boot": ("broken-boot", {}),
    "broken-health": ("broken-health", {}),
    "crash-later": ("crash-later", {}),
    "unhealthy": (
        "v2.7",
        {"healthcheck": {"test": ["CMD", "/bin/false"], "interval": "1s", "timeout": "5s", "retries": 2}},
    ),
    "not-built": ("v2.7", {"build": {"context": ".", "dockerfile": "Dockerfile.broken"}}),
}


def docker(*words: str, check: bool = True) -> str:
    """What the docker command prints."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 or not check, f"docker {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def containers(name: str) -> list[dict[str, Any]]:
    """The containers of the application *name*, running or not, as ``docker inspect`` shows them."""
    found = docker(
        "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={name}-test"
    ).split()
    return json.loads(docker("inspect", *found)) if found else []


def clean(name: str) -> None:
    """Remove the containers, the network and the images of the application *name*."""
    for entry in containers(name):
        docker("rm", "--force", "--volumes", entry["Id"], check=False)
    docker("network", "rm", f"{name}-test_default", check=False)
    words = ["--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference=runbook/{name}-test/*"]
    for tag in docker("image", "ls", *words).split():
        docker("image", "rm", "--force", tag, check=False)


def base_image() -> str:
    """The image that the application's are built on: Python 3 of RUNBOOK_COMPOSE_BASE (by default the test hosts'), and its packages."""
    base = os.environ.get("RUNBOOK_COMPOSE_BASE", "")
    if not base:
        script = PROJECT / "tests" / "containers" / "image.py"
        base = subprocess.run(
            [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()[-1]
    text = BASE_DOCKERFILE.format(base=base)
    name = f"runbook-compose-base:{hashlib.sha256((text + str(REQUIREMENTS)).encode()).hexdigest()[:12]}"
    if docker("image", "ls", "--quiet", name):
        return name
    version = docker(
        "run",
        "--rm",
        "--entrypoint",
        "python3",
        base,
        "-c",
        "import sys; print('%d.%d' % sys.version_info[:2])",
    )
    with tempfile.TemporaryDirectory() as directory:
        words = ["install", "--quiet", "--disable-pip-version-check", "--target", f"{directory}/lib"]
        words += ["--only-binary", ":all:", "--python-version", version, *REQUIREMENTS]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
        Path(directory, "Dockerfile").write_text(text, encoding="utf-8")
        docker("build", "--quiet", "--tag", name, directory)
    return name


class Answer(NamedTuple):
    """What one request got; status 0 where no answer came."""

    status: int
    version: str
    body: dict[str, Any]


class Site(PlayedSite):
    """The application below *directory*, its service under Compose."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.name = f"goexp-{os.getpid()}"
        self.base = base_image()
        self.commits = self._repository()
        variables = self.variables
        environment = {
            **variables["app_environment"],
            "GOEXPLORER_SECRET_KEY": SECRET.replace("{", "{{ '{' }}", 1),
        }
        variables.update(
            app_name=self.name,
            app_stage="test",
            app_environment={**environment, "GOEXPLORER_ALLOWED_HOSTS": "127.0.0.1,localhost"},
            app_stay_up=5,
            app_gate_timeout=60,
            app_start_timeout=180,
            app_services=[{"name": "web", "manager": "compose", "port": self.port, "stop_timeout": 10}],
        )
        self.write()

    def _repository(self) -> dict[str, str]:
        """Make the repository: a commit and a tag for each version, with a Compose file and what its image is built from."""
        work = self.directory / "work"
        work.mkdir()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "GIT_CONFIG_NOSYSTEM": "1",
            **{
                f"GIT_{who}_{what}": "tests@example.org"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }

        def git(*words: str) -> str:
            done = subprocess.run(
                ["git", *words],
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            return done.stdout.strip()

        git("init", "--quiet", "--initial-branch=main")
        commits = {}
        for tag, (source, changes) in VERSIONS.items():
            for path in work.iterdir():
                if path.name != ".git":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            files = make_repository.tree(source)
            service = {**COMPOSE["services"]["web"], **changes}
            compose = {"services": {**COMPOSE["services"], "web": service}}
            files["compose.yaml"] = yaml.safe_dump(compose).encode()
            files["Dockerfile"] = DOCKERFILE.format(base=self.base).encode()
            files["Dockerfile.broken"] = f"FROM {self.base}\nRUN echo no such package; exit 3\n".encode()
            files[".dockerignore"] = b"media\nstaticfiles\n"
            for name, content in files.items():
                path = work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            git("add", "--all", "--force")
            git("commit", "--quiet", "--message", tag)
            git("tag", tag)
            commits[tag] = git("rev-parse", "HEAD")
        git("clone", "--quiet", "--bare", str(work), str(self.directory / "goexplorer.git"))
        return commits

    def deploy(self, version: str, *words: str) -> Run:
        """Deploy *version*."""
        return self.play("deploy", "-e", f"version={version}", *words)

    # --- what is asked over HTTP

    def get(self, path: str = "/healthz/") -> Answer:
        """Ask the application."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
            body = {}
            with contextlib.suppress(ValueError):
                body = json.loads(text)
            return Answer(answer.status, answer.headers.get("X-Goexplorer-Version", ""), body)
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, "", {"error": f"{type(error).__name__}: {error}"})
        finally:
            connection.close()

    # --- what the engine says

    def containers(self) -> list[dict[str, Any]]:
        """The containers of the application, running or not, as ``docker inspect`` shows them."""
        return containers(self.name)

    def container(self) -> dict[str, Any]:
        """The only container, which runs."""
        (found,) = self.containers()
        assert found["State"]["Running"], found["State"]
        return found

    def image(self, reference: str) -> str:
        """The digest of an image."""
        return docker("image", "inspect", "--format", "{{.Id}}", reference)

    def kept_image(self, release: str) -> str:
        """The digest of the image that is kept for *release*."""
        return self.image(f"runbook/{self.name}-test/web:{release}")

    # --- what lies on the host

    def current(self) -> str:
        """The release that is current."""
        return Path(os.readlink(self.root / "current")).name

    def clean(self) -> None:
        """Remove all that the engine has of the application."""
        clean(self.name)
