# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where copies of backups go: ``app_backup_store``, read and judged, and the names of what lies there.

A copy is the objects below ``<prefix>/<application>/<stage>/<id>/``: the dump, and ``manifest.json``, which is written
last. What has no manifest is no copy.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import nearest
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

VARIABLE = "app_backup_store"
# The option `store` of the modules: all of app_backup_store.
OPTIONS: dict[str, dict[str, Any]] = {
    "endpoint": {"type": "str", "default": ""},
    "bucket": {"type": "str", "required": True},
    "prefix": {"type": "str", "default": ""},
    "region": {"type": "str", "default": ""},
    # Its id, which is shown; the secret is the other one.
    "access_key": {"type": "str", "default": "", "no_log": False},
    "secret_key": {"type": "str", "default": "", "no_log": True},
    "ca_path": {"type": "str", "default": ""},
    "proxy": {"type": "str", "default": ""},
    "required": {"type": "bool", "default": True},
    "keep": {"type": "int", "default": 10},
    "keep_days": {"type": "int", "default": 0},
    "server_side_encryption": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 3600},
}
WORDS = {"str": "a text", "bool": "true or false", "int": "a whole number"}
KINDS: dict[str, type] = {"str": str, "bool": bool, "int": int}
ENCRYPTIONS = ("", "AES256", "aws:kms", "aws:kms:dsse")
# Bucket names by S3's rules ("Bucket naming rules"); older ones and other servers' have capitals and underscores, too.
BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$")
# The characters that need no escape in a key ("Naming Amazon S3 objects": safe characters).
PREFIX = re.compile(r"^[A-Za-z0-9!_.*'()/-]{0,512}$")
SHORTEST_TIMEOUT = 10
# Seconds until a connection is there, and without a byte on one that is; shorter where less is left for everything.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
ATTEMPTS = 4
MIB = 1024 * 1024
# A multipart upload has at most so many parts of at least 5 MiB ("Amazon S3 multipart upload limits").
MOST_PARTS = 10_000
PART_SIZE = 16 * MIB


class Settings(NamedTuple):
    """``app_backup_store``, complete; ``prefix`` has no slash at its ends, ``timeout`` is in seconds."""

    endpoint: str
    bucket: str
    prefix: str
    region: str
    access_key: str
    secret_key: str
    ca_path: str
    proxy: str
    required: bool
    keep: int
    keep_days: int
    server_side_encryption: str
    timeout: int

    def place(self) -> str:
        """Return where the copies are, in words for messages."""
        return f"the bucket {self.bucket!r} at {self.endpoint or 'AWS'}"


def defaults() -> dict[str, Any]:
    """Return the keys that may be left out, with their defaults."""
    return {key: option["default"] for key, option in OPTIONS.items() if "default" in option}


def check(store: Mapping[str, Any], variable: str = VARIABLE) -> list[str]:
    """Return what is wrong with *store*, a sentence each, without its values where they may be secret."""
    if not store:
        return []
    errors = []
    for key, value in store.items():
        if key not in OPTIONS:
            errors.append(f"{variable}.{key} is not known{nearest(str(key), list(OPTIONS))}")
            continue
        kind = OPTIONS[key]["type"]
        if not isinstance(value, KINDS[kind]) or (kind == "int" and isinstance(value, bool)):
            errors.append(f"{variable}.{key} must be {WORDS[kind]}, found {type(value).__name__}.")
    if errors:
        return errors
    full = {**defaults(), **store}
    if not BUCKET.fullmatch(str(full.get("bucket") or "")):
        errors.append(
            f"{variable}.bucket is {full.get('bucket', '')!r}: name the bucket, 3 characters or more, letters, digits, '.', '_' and '-'."
        )
    for key in ("endpoint", "proxy"):
        parts = urlsplit(full[key])
        if full[key] and (parts.scheme not in ("http", "https") or not parts.hostname):
            errors.append(
                f"{variable}.{key} must be an address with scheme and host, such as https://s3.example.org."
            )
    parts = urlsplit(full["endpoint"])
    if not errors and (parts.username or parts.password or parts.query or parts.path not in ("", "/")):
        errors.append(
            f"{variable}.endpoint must be scheme, host and port alone: keys go into access_key and secret_key, the bucket into bucket."
        )
    if not PREFIX.fullmatch(full["prefix"]) or {"", ".", ".."} & set(
        full["prefix"].strip("/").split("/")[1:]
    ):
        errors.append(
            f"{variable}.prefix is {full['prefix']!r}: use letters, digits and !_.*'()-, with one '/' between names."
        )
    if bool(full["access_key"]) != bool(full["secret_key"]):
        errors.append(
            f"{variable}.access_key and secret_key belong together: give both, or neither where the host has a role of its own."
        )
    if full["server_side_encryption"] not in ENCRYPTIONS:
        errors.append(
            f"{variable}.server_side_encryption is {full['server_side_encryption']!r}, expected one of {', '.join(ENCRYPTIONS[1:])}."
        )
    for key, least in (("keep", 0), ("keep_days", 0), ("timeout", SHORTEST_TIMEOUT)):
        if full[key] < least:
            errors.append(f"{variable}.{key} must be a whole number of at least {least}, found {full[key]}.")
    return errors


def parse(store: Mapping[str, Any]) -> Settings:
    """Return the option *store* as Settings.

    :raises Problem: with a sentence for each thing that is wrong.
    """
    given = {key: value for key, value in store.items() if value is not None}
    errors = check(given)
    if not given:
        errors = [f"{VARIABLE} is empty: name the bucket, or leave this step out."]
    if errors:
        raise Problem("\n".join(errors))
    full = {**defaults(), **given}
    full["prefix"] = full["prefix"].strip("/")
    return Settings(**full)


def base_of(settings: Settings, application: str, stage: str) -> str:
    """Return what the keys of all copies of this application and stage begin with; its last character is a slash."""
    for name, value in (("application", application), ("stage", stage)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise Problem(f"The option {name} is {value!r}: expected letters, digits, '.', '_' and '-'.")
    return "/".join([*([settings.prefix] if settings.prefix else []), application, stage, ""])


def location(settings: Settings, key: str) -> str:
    """Return the object's address as the tools of S3 write it."""
    return f"s3://{settings.bucket}/{key}"


def part_size(size: int) -> int:
    """Return the bytes of a part for a file of *size* bytes: 16 MiB, more where that would be too many parts."""
    needed = -(-size // MOST_PARTS)
    return max(PART_SIZE, -(-needed // MIB) * MIB)


def extra(settings: Settings, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the further arguments of a request that writes an object."""
    result: dict[str, Any] = {"Metadata": dict(metadata)}
    if settings.server_side_encryption:
        result["ServerSideEncryption"] = settings.server_side_encryption
    return result
