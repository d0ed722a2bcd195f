# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command with a container engine, and leave the machine as it was.

    engine.py COMMAND [ARGUMENT …]

Where an engine answers, it is used. Where none does, root on Debian or Ubuntu gets one: missing packages are installed, dockerd is started in
a session of its own with its log in build/dockerd.log, and stopped again when the command has ended, however it ended.
Everybody else is told what to install. RUNBOOK_DOCKERD_OPTIONS adds options to dockerd.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

PROJECT = Path(__file__).resolve().parents[2]
LOG = PROJECT / "build" / "dockerd.log"
PID_FILE = Path("/var/run/docker.pid")
HOSTS = Path(__file__).with_name("hosts.py")
# What is looked for, and the Debian package that brings it.
NEEDS = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "ssh": "openssh-client",
    "git": "git",
}
START_SECONDS = 60
STOP_SECONDS = 60
CHILD_SECONDS = 20
# Machines without packet filtering in their kernel: the hosts are reached through the bridge all the same.
VARIANTS: tuple[tuple[str, ...], ...] = ((), ("--iptables=false", "--ip6tables=false"))


def say(text: str) -> None:
    print(f"engine: {text}", file=sys.stderr, flush=True)


def answers() -> bool:
    """Whether an engine answers this user."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        asked = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0 and bool(asked.stdout.strip())


def missing(needs: dict[str, str]) -> list[str]:
    """Packages of `needs` whose program is not on the path."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return sorted(
        {package for program, package in needs.items() if shutil.which(program, path=search) is None}
    )


def refuse(packages: list[str], why: str) -> NoReturn:
    wanted = f"install {' '.join(packages)} (apt-get install {' '.join(packages)}), " if packages else ""
    raise SystemExit(
        f"engine: the molecule scenarios could not run: no container engine answers user {os.getuid()} and {why}; {wanted}"
        "start the engine and join its group (usermod -aG docker USER), or run as root."
    )


def install(packages: list[str]) -> None:
    """Install Debian packages as root; nothing that they bring is started by their installation."""
    if shutil.which("apt-get") is None:
        refuse(packages, "this is not Debian")
    say(f"installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    log = PROJECT / "build" / "apt.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as output:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-q", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
            if done.returncode:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                raise SystemExit(
                    f"engine: apt-get {shlex.join(command)} failed with exit code {done.returncode}:\n{tail}"
                )


def remove_stale_pid_file(path: Path = PID_FILE) -> bool:
    """dockerd refuses to start beside the PID file of one that was killed, also when its number now is another's."""
    try:
        pid = int(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    try:
        running = Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        running = ""
    if running == "dockerd":
        return False
    path.unlink()
    return True


class Network:
    """The machine's packet filter and interfaces, which dockerd changes and does not put back."""

    def __init__(self) -> None:
        self.rules = {name: self._saved(name) for name in ("iptables", "ip6tables")}
        self.forward = {
            path: path.read_text() for path in (Path("/proc/sys/net/ipv4/ip_forward"),) if path.exists()
        }
        self.bridge = Path("/sys/class/net/docker0").exists()

    @staticmethod
    def _saved(name: str) -> str | None:
        program = shutil.which(f"{name}-save")
        if program is None:
            return None
        saved = subprocess.run([program], capture_output=True, text=True, check=False)
        if saved.returncode:
            return None
        # A table that did not exist is restored as one without rules, so that dockerd's own rules go.
        text = saved.stdout
        for table, chains in (
            ("filter", ("INPUT", "FORWARD", "OUTPUT")),
            ("nat", ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")),
        ):
            if f"*{table}\n" not in text:
                text += f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains) + "COMMIT\n"
        return text

    def restore(self) -> None:
        for name, text in self.rules.items():
            program = shutil.which(f"{name}-restore")
            if program and text is not None:
                subprocess.run([program], input=text, text=True, capture_output=True, check=False)
        for path, text in self.forward.items():
            path.write_text(text)
        if not self.bridge and Path("/sys/class/net/docker0").exists():
            subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)


def launch(options: tuple[str, ...]) -> subprocess.Popen | None:
    """Start dockerd and wait until it answers; None when it ended or stayed silent."""
    LOG.parent.mkdir(exist_ok=True)
    extra = shlex.split(os.environ.get("RUNBOOK_DOCKERD_OPTIONS", ""))
    with LOG.open("ab") as output:
        server = subprocess.Popen(
            ["dockerd", *options, *extra],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        if answers():
            return server
        time.sleep(0.3)
    stop(server)
    return None


def stop(server: subprocess.Popen) -> None:
    """End dockerd, which ends its containers and containerd; by force when it does not end in time."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"dockerd did not end within {STOP_SECONDS} s and is killed")
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def serve() -> tuple[subprocess.Popen, Network]:
    """Install what is missing and start an engine; returns it and the state of the network before."""
    packages = missing(NEEDS)
    if os.geteuid() != 0:
        refuse(packages, "only root may start one")
    if packages:
        install(packages)
    os.environ["PATH"] += os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))
    if remove_stale_pid_file():
        say(f"removed {PID_FILE} of an engine that is gone")
    before = Network()
    for variant in VARIANTS:
        server = launch(variant)
        if server is not None:
            say(f"started dockerd {' '.join(variant)}(log: {LOG})")
            return server, before
    before.restore()
    tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
    raise SystemExit(
        f"engine: dockerd did not start within {START_SECONDS} s; its log {LOG} ends with:\n{tail}"
    )


def used_by_others() -> list[str]:
    """Containers that still run when the command is over; whoever runs them relies on this engine."""
    listed = subprocess.run(
        ["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True, check=False
    )
    return listed.stdout.split()


def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, interrupted)
    server, before = (None, None) if answers() else serve()
    child = None
    try:
        # A group of its own, so that all of it can be ended: nothing may make hosts after they were removed.
        child = subprocess.Popen(sys.argv[1:], start_new_session=True)
        return child.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if child is not None and child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(CHILD_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        subprocess.run([sys.executable, str(HOSTS), "down", "--all"], stdout=subprocess.DEVNULL, check=False)
        if server is not None and before is not None:
            others = used_by_others()
            if others:
                say(f"left running, because containers of others use it: {', '.join(others)}")
            else:
                stop(server)
                before.restore()
                say("stopped dockerd")


if __name__ == "__main__":
    sys.exit(main())
