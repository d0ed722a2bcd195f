# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of the test hosts: Debian bookworm that boots with systemd.

Built once and tagged by a hash of what goes into it. The base image is RUNBOOK_BASE_IMAGE (default debian:12)
from a registry; where no registry answers, the same base is made by debootstrap from the machine's own mirror.
Prints the image's name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Marks what belongs to this checkout, so that two of them do not meet and each can clean up after itself.
PROJECT = Path(__file__).resolve().parents[2]
LABEL = "runbook.deploy.checkout"
MARK = hashlib.sha256(str(PROJECT).encode()).hexdigest()[:8]
DEFAULT_BASE = "debian:12"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
INSTALL = Path(__file__).with_name("install.sh")
# A registry that does not let the base image through in this time counts as unreachable.
PULL_SECONDS = 90
BUILD_SECONDS = 900
# The settings of the machine's apt that decide whether downloads work at all: proxies, certificates, checks.
APT_SETTINGS = re.compile(r"^Acquire::(?:https?::|Check-|Retries|ForceIPv|Languages)", re.MULTILINE)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def docker(*arguments: str, seconds: float = 60, **options) -> subprocess.CompletedProcess:
    """Run docker; with `check`, a failure ends the program with docker's own last lines."""
    check = options.pop("check", False)
    options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
    if options["stdin"] is None:
        del options["stdin"]
    answer = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False, **options
    )
    if check and answer.returncode:
        reason = "\n".join(answer.stderr.strip().splitlines()[-5:])
        raise SystemExit(f"docker {arguments[0]} failed with exit code {answer.returncode}: {reason}")
    return answer


def exists(image: str) -> bool:
    return docker("image", "inspect", image).returncode == 0


def name_of(base: str, install: bytes) -> str:
    """The image's name: a hash of everything that decides its content."""
    return "runbook-deploy-host:" + hashlib.sha256(base.encode() + b"\0" + install).hexdigest()[:12]


def apt_settings(dump: str) -> str:
    """Lines of `apt-config dump` that a build elsewhere needs; empty values are only headings."""
    return "".join(
        line + "\n" for line in dump.splitlines() if APT_SETTINGS.match(line) and not line.endswith(' "";')
    )


def sources_of(targets: str, suite: str) -> list[str]:
    """Lines for sources.list from `apt-get indextargets` (`site codename component` per line), Debian's own only."""
    found = []
    for line in targets.splitlines():
        words = line.split()
        if len(words) == 3 and words[1].split("-")[0] == suite and words[2] == "main":
            entry = f"deb {words[0]} {words[1]} {words[2]}"
            if entry not in found:
                found.append(entry)
    return found


def machine_sources() -> list[str]:
    """The Debian sources of this machine when it runs the same suite; none otherwise."""
    if shutil.which("apt-get") is None:
        return []
    answer = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    # Other vendors publish for the same suite names: only archives with Debian's directory names are taken.
    return [line for line in sources_of(answer.stdout, SUITE) if re.search(r"/debian(-security)?/? ", line)]


def pulled(base: str) -> bool:
    """Whether the base image is here, or came from its registry in time."""
    if exists(base):
        return True
    try:
        answer = docker("pull", "--quiet", base, seconds=PULL_SECONDS)
    except subprocess.TimeoutExpired:
        say(f"image: the registry of {base} did not deliver within {PULL_SECONDS} s.")
        return False
    if answer.returncode:
        say(f"image: {base} cannot be pulled: {answer.stderr.strip().splitlines()[-1:]}")
    return answer.returncode == 0


def bootstrapped() -> str:
    """Make the base with debootstrap and import it; returns its name."""
    name = f"runbook-deploy-base:{SUITE}"
    if exists(name):
        return name
    for need in ("debootstrap", "tar"):
        if shutil.which(need) is None:
            raise SystemExit(
                f"image: no registry delivers {DEFAULT_BASE} and {need} is not installed, so that no test host can be "
                f"made; install it (apt-get install {need}) or set RUNBOOK_BASE_IMAGE to an image that can be pulled."
            )
    if os.geteuid() != 0:
        raise SystemExit(
            f"image: no registry delivers {DEFAULT_BASE} and debootstrap needs root; run `sudo python3 "
            f"{Path(__file__)}` once, or set RUNBOOK_BASE_IMAGE to an image that can be pulled."
        )
    mirror = next((line.split()[1] for line in machine_sources() if line.split()[2] == SUITE), MIRROR)
    say(f"image: making Debian {SUITE} with debootstrap …")
    with tempfile.TemporaryDirectory(prefix="runbook-image-") as scratch:
        root = Path(scratch, "root")
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", SUITE, str(root), mirror],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if made.returncode:
            log = "\n".join((made.stdout + made.stderr).splitlines()[-20:])
            raise SystemExit(f"image: debootstrap of {SUITE} failed with exit code {made.returncode}:\n{log}")
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
            docker("import", "-", name, stdin=archive.stdout, seconds=BUILD_SECONDS, check=True)
        if archive.returncode:
            docker("image", "rm", name)
            raise SystemExit(f"image: tar of {root} failed with exit code {archive.returncode}")
    return name


def build(base: str, image: str) -> None:
    """Run install.sh in a container of the base and keep the result as `image`."""
    with tempfile.TemporaryDirectory(prefix="runbook-image-") as scratch:
        dump = ""
        if shutil.which("apt-config"):
            dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
        settings = apt_settings(dump)
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        if certificates.exists():
            shutil.copy(certificates, Path(scratch, "certificates.pem"))
            settings += 'Acquire::https::CaInfo "/machine/certificates.pem";\n'
        Path(scratch, "apt.conf").write_text(settings)
        Path(scratch, "sources.list").write_text("".join(line + "\n" for line in machine_sources()))
        shutil.copy(INSTALL, Path(scratch, "install.sh"))
        os.chmod(scratch, 0o755)  # apt downloads as a user of its own
        say(f"image: installing into {image} …")
        worker = f"runbook-image-{os.getpid()}"
        try:
            # The build uses the machine's own network: engines without packet filtering have no other way out.
            made = docker(
                *(
                    "run",
                    "--name",
                    worker,
                    f"--label={LABEL}={MARK}",
                    "--network=host",
                    f"--volume={scratch}:/machine:ro",
                ),
                *(base, "sh", "/machine/install.sh"),
                seconds=BUILD_SECONDS,
            )
            if made.returncode:
                log = "\n".join((made.stdout + made.stderr).splitlines()[-20:])
                raise SystemExit(f"image: installing packages into {base} failed:\n{log}")
            changes = ('CMD ["/sbin/init"]', "ENV container=docker")
            options = [word for change in changes for word in ("--change", change)]
            docker("commit", *options, worker, image, seconds=BUILD_SECONDS, check=True)
        finally:
            docker("rm", "--force", worker)


def ensure() -> str:
    """The image's name; built when it is not there yet."""
    wanted = os.environ.get("RUNBOOK_BASE_IMAGE", "")
    base = wanted or DEFAULT_BASE
    image = name_of(base, INSTALL.read_bytes())
    if exists(image):
        return image
    if not pulled(base):
        if wanted:
            raise SystemExit(
                f"image: RUNBOOK_BASE_IMAGE is {wanted}, which is neither here nor can be pulled; "
                "correct it, or unset it to have the base made by debootstrap."
            )
        base = bootstrapped()
    build(base, image)
    return image


if __name__ == "__main__":
    print(ensure())
