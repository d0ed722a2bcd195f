# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Git itself: run without questions, with a deploy key or credentials that appear in no process list.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ansible_collections.runbook.deploy.plugins.module_utils._command import Finished, base_environment, run
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

FULL_COMMIT = re.compile(r"^[0-9a-f]{40}$")
CREDENTIALS = re.compile(r"(?i)\b(https?|ssh|git|ftps?)://[^/@\s]*@")
# The way to the outside is the host's, not the application's: these are passed on where the task has them.
PASSED_ON = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "GIT_SSL_CAINFO")
MOST_COMMITS = 1000
PRIVATE = "runbook-git-"
# Seconds after which a private directory belongs to nobody who still lives: no fetch may take so long.
ABANDONED = 3600


def redact_url(text: str) -> str:
    """Return *text* with the user and password of every address in it hidden.

    >>> redact_url("https://bob:secret@git.example.org/shop.git")
    'https://***@git.example.org/shop.git'
    """
    return CREDENTIALS.sub(r"\1://***@", text)


def address_secrets(repository: str) -> list[str]:
    """Return the texts in the address *repository* that may not be shown: its password, or the token before @."""
    parts = urlsplit(repository) if "://" in repository else None
    if not parts or "@" not in parts.netloc:
        return []
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    # In ssh://git@host the name is no secret.
    secret = password if colon else user if parts.scheme in ("http", "https") else ""
    return [text for text in (secret, unquote(secret)) if text]


class Access(NamedTuple):
    """How to reach the repository: ``address`` without credentials, and what git needs in its environment."""

    repository: str
    address: str
    environment: dict[str, str]
    secrets: tuple[str, ...]

    @staticmethod
    @contextlib.contextmanager
    def open(source: Mapping[str, Any]) -> Iterator[Access]:
        """Write the deploy key or the credentials into a private directory that lives as long as the context.

        :raises Problem: for an address that git would take for an option, and a key without known_hosts.
        """
        repository = source["repository"]
        key, known_hosts = source.get("key"), source.get("known_hosts")
        if repository.startswith("-"):
            raise Problem(f"app_repository {repository!r} is not an address or a path: it begins with '-'.")
        sweep(Path(tempfile.gettempdir()), time.time() - ABANDONED)
        with tempfile.TemporaryDirectory(prefix=PRIVATE) as name:
            private = Path(name)
            address = repository
            settings = ["[safe]", "\tdirectory = *"]
            parts = urlsplit(repository) if "://" in repository else None
            if parts and parts.scheme in ("http", "https") and "@" in parts.netloc:
                # In the address they would be seen in the process list of the host.
                credentials, _at, server = parts.netloc.rpartition("@")
                user, _colon, password = credentials.partition(":")
                address = parts._replace(netloc=server).geturl()
                stored = private / "credentials"
                write_private(stored, f"{parts.scheme}://{user}:{password}@{server}\n")
                settings += ["[credential]", "\thelper =", f'\thelper = "store --file={stored}"']
            write_private(private / "config", "\n".join([*own_settings(), *settings]) + "\n")
            environment = {
                "GIT_CONFIG_GLOBAL": str(private / "config"),
                "GIT_SSH_COMMAND": ssh_command(private, key, known_hosts),
            }
            for variable in PASSED_ON:
                for spelling in (variable, variable.upper()):
                    if spelling in os.environ:
                        environment[spelling] = os.environ[spelling]
            yield Access(repository, address, environment, tuple(address_secrets(repository)))


def sweep(directory: Path, before: float) -> None:
    """Remove our private directories in *directory* from before the time *before*: a killed run left its key there."""
    for path in directory.glob(f"{PRIVATE}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mtime < before:
                shutil.rmtree(path)


def own_settings() -> list[str]:
    """Return the lines that read the user's own git settings first (mirrors by insteadOf, certificates)."""
    home = base_environment(None)["HOME"]
    return [f'[include]\n\tpath = "{home}/{name}"' for name in (".config/git/config", ".gitconfig")]


def ssh_command(private: Path, key: str | None, known_hosts: str | None) -> str:
    """Return GIT_SSH_COMMAND; with a *key* nothing else is tried, and the server must be a known one."""
    if not key:
        command = ["ssh", "-o", "BatchMode=yes"]
        if known_hosts:
            write_private(private / "known_hosts", ended(known_hosts))
            command += [
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                f"UserKnownHostsFile={private / 'known_hosts'}",
            ]
        return shlex.join(command)
    if not known_hosts:
        raise Problem(
            "app_repository_key is set, but app_repository_known_hosts is empty: give the server's public key "
            "as ssh-keyscan prints it, so that the key is never offered to another server."
        )
    write_private(private / "key", ended(key))
    write_private(private / "known_hosts", ended(known_hosts))
    options = {
        "IdentityFile": str(private / "key"),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(private / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "BatchMode": "yes",
    }
    # -F: a user's own ssh settings could name other keys or other servers.
    command = ["ssh", "-F", "/dev/null"]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    return shlex.join(command)


def ended(text: str) -> str:
    """Return *text* with exactly one newline at its end: without it ssh cannot read a key."""
    return text.replace("\r\n", "\n").rstrip("\n") + "\n"


def write_private(path: Path, text: str) -> None:
    """Write *text* to the new file *path*, readable for nobody else from its first moment."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)


def git_environment(access: Access | None) -> dict[str, str]:
    """Return the variables under which git asks nothing, reads no setting of the host and speaks English."""
    return {
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
        "GIT_OPTIONAL_LOCKS": "0",
        **(access.environment if access else {}),
    }


def git(
    git_dir: Path,
    *arguments: str,
    cwd: Path | None = None,
    access: Access | None = None,
    timeout: float = 60.0,
) -> Finished:
    """Run git on the bare repository *git_dir*; the output carries no credentials.

    :raises Problem: when git is not installed.
    """
    try:
        done = run(
            ["git", f"--git-dir={git_dir}", *arguments],
            cwd=cwd or git_dir,
            environment=git_environment(access),
            timeout=timeout,
            secrets=access.secrets if access else (),
            # The tree is read by nobody but the deploying user, the commits are no secret to the host's users.
            umask=0o022,
        )
    except Problem as problem:
        if (
            "'git'" not in problem.message
            or "No such file" not in problem.message
            or not git_dir.parent.is_dir()
        ):
            raise
        raise Problem(
            "git is not installed on this host: install it, or set app_archive to deploy from an archive."
        ) from problem
    return done._replace(stderr=redact_url(done.stderr))


def has_commit(git_dir: Path, commit: str, peel: bool = True) -> bool:
    """Return whether the repository has *commit*; without *peel* a tag object that leads to one does not count."""
    if not (git_dir / "objects").is_dir():
        return False
    if peel:
        return git(git_dir, "cat-file", "-e", f"{commit}^{{commit}}").rc == 0
    return git(git_dir, "cat-file", "-t", commit).stdout.strip() == "commit"


def reference_names(git_dir: Path) -> dict[str, str]:
    """Return full reference name → object, oldest first; an annotated tag is followed one step."""
    done = git(
        git_dir,
        "for-each-ref",
        "--sort=creatordate",
        "--format=%(refname)%09%(objectname)%09%(*objectname)",
        "refs/heads",
        "refs/tags",
    )
    names = {}
    for line in done.stdout.splitlines():
        name, own, peeled = line.split("\t")
        names[name] = peeled or own
    return names


def peeled(git_dir: Path, name: str) -> str | None:
    """Return the commit that the reference *name* leads to, through any number of tags; None when it is none."""
    done = git(git_dir, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return done.stdout.strip() if done.rc == 0 else None


def commits_between(git_dir: Path | None, old: str | None, new: str) -> list[dict[str, str]]:
    """Return the commits of *new* that *old* has not, newest first, at most ``MOST_COMMITS``.

    Each is ``{commit, subject, author, date}``, the date in ISO 8601. [] where *old* is unknown here.
    """
    if not usable(git_dir, old, new):
        return []
    done = git(
        git_dir, "log", f"-n{MOST_COMMITS}", "-z", "--format=%H%x1f%s%x1f%an%x1f%aI", f"{old}..{new}", "--"
    )
    keys = ("commit", "subject", "author", "date")
    return [dict(zip(keys, entry.split("\x1f"))) for entry in done.stdout.split("\0") if entry]


def changed_files(git_dir: Path | None, old: str | None, new: str) -> list[dict[str, str]]:
    """Return ``{status, path}`` of each file that differs; status A, M, D or T. [] where *old* is unknown here."""
    if not usable(git_dir, old, new):
        return []
    done = git(git_dir, "diff-tree", "-r", "-z", "--no-renames", "--name-status", old, new, "--")
    fields = done.stdout.split("\0")
    return [{"status": status, "path": path} for status, path in zip(fields[0::2], fields[1::2])]


def usable(git_dir: Path | None, *commits: str | None) -> bool:
    """Return whether all of *commits* are in *git_dir*."""
    return git_dir is not None and all(commit and has_commit(git_dir, commit) for commit in commits)


def list_files(git_dir: Path | None, commit: str) -> list[str]:
    """Return the paths of all files in *commit*; [] where it is unknown here."""
    if git_dir is None:
        return []
    done = git(git_dir, "ls-tree", "-r", "-z", "--name-only", commit, "--")
    return [path for path in done.stdout.split("\0") if path] if done.rc == 0 else []


def read_file(git_dir: Path | None, commit: str, path: str) -> str | None:
    """Return the text of *path* in *commit*, or None where there is no such file."""
    if git_dir is None:
        return None
    done = git(git_dir, "cat-file", "blob", f"{commit}:{path}")
    return done.stdout if done.rc == 0 else None


def submodules(git_dir: Path, commit: str) -> list[str]:
    """Return the paths of the submodules in *commit*: git stores them as entries of mode 160000."""
    done = git(git_dir, "ls-tree", "-r", "-z", commit, "--")
    entries = (entry.partition("\t") for entry in done.stdout.split("\0"))
    return [path for head, _tab, path in entries if head.startswith("160000 ")]


@contextlib.contextmanager
def commit_content(git_dir: Path, commit: str) -> Iterator[IO[bytes]]:
    """Yield the files of *commit* as a tar stream, and see that git came to its end.

    :raises Problem: when git fails, as with a damaged repository or a full disk.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            ["git", f"--git-dir={git_dir}", "archive", "--format=tar", commit],
            cwd=git_dir,
            env={**base_environment(None), **git_environment(None)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            yield process.stdout
            # The padding behind the last member: with it unread git would die of a broken pipe.
            while process.stdout.read(1 << 16):
                pass
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
            process.wait()
        if process.returncode != 0:
            errors.seek(0)
            raise Problem(
                f"The commit {commit} cannot be read from the mirror {str(git_dir)!r}: remove that directory, the "
                "next run fetches it anew.",
                errors.read().decode("utf-8", "replace")[-2000:],
            )
