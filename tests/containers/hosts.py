# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test hosts: containers that boot like machines and are reached through real ssh.

    hosts.py up --group=app web1 web2     start them, write build/containers/inventory.yml
    hosts.py reboot web1                  restart one and wait until it is up again, with the same address
    hosts.py down                         remove everything that `up` made
    hosts.py down --all                   and what it made for other sets

Names and the network carry a hash of the checkout's path, so that two checkouts do not meet. Addresses are fixed,
so that they outlive a reboot; host keys are read from the containers directly and go into a known_hosts of their own.
RUNBOOK_HOSTS=NAME works on a further set of hosts, which has all of this for itself, in build/containers-NAME. A
directory that all hosts of a set share is mounted there with --shared=/path.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import image
import supplies
from image import LABEL, MARK, PROJECT, docker

SET = os.environ.get("RUNBOOK_HOSTS", "")
BUILD = PROJECT / "build" / ("containers" + (SET and f"-{SET}"))
NETWORK = f"runbook-{MARK}" + (SET and f"-{SET}")
SET_LABEL = "runbook.deploy.hosts"
LABELS = (f"--label={LABEL}={MARK}", f"--label={SET_LABEL}={SET or 'default'}")
KEY = BUILD / "id_ed25519"
KNOWN_HOSTS = BUILD / "known_hosts"
INVENTORY = BUILD / "inventory.yml"
# Sockets of ssh's shared connections: in a short directory, because a socket's path has at most 107 bytes.
CONTROL = Path(tempfile.gettempdir()) / f"runbook-{os.getuid()}-{MARK}{SET and f'-{SET}'}"
USER = "deploy"
BOOT_SECONDS = 300
FIRST_ADDRESS = 10
# Measured: what systemd needs from a container engine; --privileged is not among it. SYS_PTRACE: root sees whose port it is.
BOOT_OPTIONS = (
    *("--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--cap-add=SYS_PTRACE"),
    *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
    *("--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"),
    *("--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp:rw,exec,nosuid,nodev,mode=1777"),
    *("--env=container=docker", "--stop-signal=SIGRTMIN+3"),
)


def container(name: str) -> str:
    return f"{NETWORK}-{name}"


def mine(kind: str, every_set: bool = False) -> list[str]:
    """Names of this set's containers, networks or volumes, or of all that this checkout made."""
    flags = ["--all"] if kind == "container" else []
    flags.append(f"--filter=label={LABEL}={MARK}")
    if not every_set:
        flags.append(f"--filter=label={SET_LABEL}={SET or 'default'}")
    form = "{{.Names}}" if kind == "container" else "{{.Name}}"
    return docker(kind, "ls", *flags, f"--format={form}", check=True).stdout.split()


def inventory_text(groups: dict[str, list[str]], addresses: dict[str, str]) -> str:
    """The inventory in YAML: `groups` as {group: [host]}, `addresses` as {host: IPv4 address}."""
    lines = [
        "---",
        "# Written by tests/containers/hosts.py; gone with the hosts.",
        "all:",
        "  vars:",
        f"    ansible_user: {USER}",
        "    ansible_become: true",
        f"    ansible_ssh_private_key_file: {KEY}",
        f"    ansible_ssh_common_args: -o UserKnownHostsFile={shlex.quote(str(KNOWN_HOSTS))} -o StrictHostKeyChecking=yes"
        " -o IdentitiesOnly=yes -o ConnectTimeout=5",
        f"    ansible_control_path_dir: {CONTROL}",
        "    ansible_pipelining: true",
        "    ansible_python_interpreter: /usr/bin/python3",
        "    # Merge these into app_build_environment: the hosts install from /wheels, with no network.",
        "    test_build_environment:",
        '      {PIP_NO_INDEX: "1", PIP_FIND_LINKS: /wheels, UV_OFFLINE: "1", UV_FIND_LINKS: /wheels}',
        "  children:",
    ]
    for group, hosts in groups.items():
        lines += [f"    {group}:", "      hosts:"]
        lines += [
            f"        {host}: {{ansible_host: {addresses[host]}, test_container: {container(host)}}}"
            for host in hosts
        ]
    return "\n".join(lines) + "\n"


def make_network() -> str:
    """Make the network and return the first three numbers of its subnet, which fixed addresses need.

    It is internal: the controller reaches the hosts, and the hosts reach nothing but each other and the controller.
    """
    start = int(MARK, 16) % 200
    for offset in range(200):
        prefix = f"10.213.{20 + (start + offset) % 200}"
        made = docker("network", "create", "--internal", *LABELS, f"--subnet={prefix}.0/24", NETWORK)
        if made.returncode == 0:
            return prefix
        if "overlap" not in made.stderr.lower():
            raise SystemExit(f"hosts: docker cannot make the network {NETWORK}: {made.stderr.strip()}")
    raise SystemExit(
        "hosts: no free subnet in 10.213.20.0 to 10.213.219.0; remove networks with `docker network prune`."
    )


def wait_booted(name: str) -> None:
    """Wait until systemd says that the host is up; a failed unit ends the program with its name."""
    until = time.monotonic() + BOOT_SECONDS
    state = ""
    while time.monotonic() < until:
        answer = docker("exec", container(name), "systemctl", "is-system-running")
        state = (answer.stdout or answer.stderr).strip()
        if state == "running":
            return
        if state == "degraded":
            failed = docker("exec", container(name), "systemctl", "--failed", "--plain", "--no-legend").stdout
            raise SystemExit(f"hosts: {name} booted with failed units:\n{failed}")
        time.sleep(0.2)
    log = docker("logs", "--tail=20", container(name))
    raise SystemExit(
        f"hosts: {name} has not booted within {BOOT_SECONDS} s; systemd says {state!r}, expected 'running'.\n"
        f"{log.stdout}{log.stderr}"
    )


def wait_login(name: str, address: str) -> None:
    """Wait until a login through ssh works, the way that Ansible logs in."""
    command = [
        "ssh",
        "-F",
        "none",
        "-i",
        str(KEY),
        "-o",
        f"UserKnownHostsFile={KNOWN_HOSTS}",
        "-o",
        "BatchMode=yes",
    ]
    command += ["-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=2"]
    until = time.monotonic() + 20
    while True:
        answer = subprocess.run(
            [*command, f"{USER}@{address}", "sudo true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode == 0:
            return
        if time.monotonic() > until:
            raise SystemExit(f"hosts: {name} ({address}) refuses ssh: {answer.stderr.strip()}")
        time.sleep(0.2)


def address_of(name: str) -> str:
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker("inspect", f"--format={form}", container(name), check=True).stdout.strip()


def start(name: str, address: str, others: dict[str, str], made_of: str, shared: str = "") -> None:
    """Start one container; it boots while the next ones are started."""
    names = [f"--add-host={other}:{its}" for other, its in others.items() if other != name]
    if shared:
        names.append(f"--volume={NETWORK}:{shared}")
    docker(
        *("run", "--detach", f"--name={container(name)}", f"--hostname={name}", *LABELS),
        *(f"--network={NETWORK}", f"--ip={address}", *names, *BOOT_OPTIONS),
        *(f"--volume={supplies.WHEELS}:/wheels:ro", f"--volume={supplies.REPOSITORIES}:/repositories:ro"),
        *(made_of, "/sbin/init"),
        check=True,
    )


def admit(name: str) -> None:
    """Let the test key in, as the deploying user and as root; let git read the mounted repositories."""
    public = KEY.with_suffix(".pub").read_text()
    for user, home in ((USER, f"/home/{USER}"), ("root", "/root")):
        script = f"install -d -m 700 -o {user} -g {user} {home}/.ssh && cat > {home}/.ssh/authorized_keys && "
        script += f"chown {user}:{user} {home}/.ssh/authorized_keys && chmod 600 {home}/.ssh/authorized_keys"
        docker("exec", "--interactive", container(name), "sh", "-c", script, input=public, check=True)
    # They belong to whoever runs the tests, and git refuses to serve what belongs to others.
    for repository in sorted(supplies.REPOSITORIES.glob("*.git")):
        command = ("git", "config", "--system", "--add", "safe.directory", f"/repositories/{repository.name}")
        docker("exec", container(name), *command, check=True)


def host_key(name: str, address: str) -> str:
    """A line for known_hosts, read from inside the container rather than from the network."""
    key = docker(
        "exec", container(name), "cat", "/etc/ssh/ssh_host_ed25519_key.pub", check=True
    ).stdout.split()
    return f"{address} {key[0]} {key[1]}\n"


def up(groups: dict[str, list[str]], shared: str = "") -> None:
    """Make the hosts of all groups; hosts of an earlier call are removed first.

    `shared`: where a directory that all of them share is mounted; "" for none.
    """
    down(quiet=True)
    hosts = [host for members in groups.values() for host in members]
    hosts = list(dict.fromkeys(hosts))
    supplies.prepare()
    made_of = image.ensure()
    BUILD.mkdir(parents=True, exist_ok=True)
    if not KEY.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NETWORK, "-f", str(KEY)],
            stdin=subprocess.DEVNULL,
            check=True,
        )
    CONTROL.mkdir(mode=0o700, exist_ok=True)
    prefix = make_network()
    if shared:
        docker("volume", "create", *LABELS, NETWORK, check=True)
    addresses = {host: f"{prefix}.{FIRST_ADDRESS + index}" for index, host in enumerate(hosts)}
    for host in hosts:
        start(host, addresses[host], addresses, made_of, shared)
    for host in hosts:
        wait_booted(host)
        admit(host)
    KNOWN_HOSTS.write_text("".join(host_key(host, addresses[host]) for host in hosts))
    for host in hosts:
        wait_login(host, addresses[host])
    INVENTORY.write_text(inventory_text(groups, addresses))
    print(f"started {', '.join(f'{host} ({addresses[host]})' for host in hosts)}; inventory {INVENTORY}")


def reboot(name: str) -> None:
    """Restart a host as a machine reboots: everything in it is stopped by its own systemd, /run is emptied."""
    address = address_of(name)
    docker("restart", "--time=60", container(name), check=True, seconds=120)
    wait_booted(name)
    if address_of(name) != address:
        raise SystemExit(f"hosts: {name} had the address {address} and came back with {address_of(name)}")
    wait_login(name, address)


def close_connections() -> None:
    """End ssh's shared connections: they would outlive the tests by ControlPersist."""
    for socket in CONTROL.glob("*") if CONTROL.is_dir() else ():
        command = ["ssh", "-F", "none", "-O", "exit", "-o", f"ControlPath={socket}", "host"]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    shutil.rmtree(CONTROL, ignore_errors=True)


def down(quiet: bool = False, every_set: bool = False) -> None:
    """Remove this set's containers, network, shared directory, inventory and keys."""
    close_connections()
    containers = mine("container", every_set)
    if containers:
        docker("rm", "--force", "--volumes", *containers, check=True, seconds=120)
    for kind in ("network", "volume"):
        names = mine(kind, every_set)
        if names:
            docker(kind, "rm", *names, check=True)
    for path in (INVENTORY, KNOWN_HOSTS, KEY, KEY.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    if not quiet:
        print(f"removed {len(containers)} containers" if containers else "nothing to do")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("up", help="start hosts: group=host,host …")
    making.add_argument("--group", default="app", help="the group of hosts that are named without one")
    making.add_argument("--shared", default="", help="where a directory that all hosts share is mounted")
    making.add_argument("hosts", nargs="+", metavar="[GROUP=]HOST[,HOST…]")
    commands.add_parser("reboot").add_argument("host")
    removing = commands.add_parser("down", help="remove the hosts")
    removing.add_argument("--all", action="store_true", help="those of every set of this checkout")
    arguments = parser.parse_args()
    if arguments.command == "down":
        down(every_set=arguments.all)
    elif arguments.command == "reboot":
        reboot(arguments.host)
    else:
        groups: dict[str, list[str]] = {}
        for word in arguments.hosts:
            group, _equals, names = word.rpartition("=")
            groups.setdefault(group or arguments.group, []).extend(names.split(","))
        up(groups, arguments.shared)


if __name__ == "__main__":
    main()
