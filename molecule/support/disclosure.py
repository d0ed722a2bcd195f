# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look for secrets wherever they must not be."""

from __future__ import annotations

import json
from pathlib import Path

from machine import Machine

# Where everybody may look around on a host.
PLACES = ("/tmp", "/var/tmp", "/etc", "/run", "/var/log", "/home", "/opt", "/usr/local")


def in_text(secrets: dict[str, str], text: str) -> list[str]:
    """The names of the secrets that occur in `text`."""
    return [name for name, secret in secrets.items() if secret in text]


def in_files_of_everybody(site: Machine, secrets: dict[str, str]) -> dict:
    """Files with a secret that a stranger on the host can read, and how many he can read at all."""
    text = json.dumps(list(secrets.values()))
    return site.probe("leaks", site.root, *PLACES, user="nobody", text=text)


def in_records(site: Machine, secrets: dict[str, str]) -> list[str]:
    """Secrets in the records that the host keeps; there have to be some records."""
    records = site.run("sh", "-c", f"cat {site.root}/deployments/*.json")
    assert '"phases"' in records
    return in_text(secrets, records)


def in_journal(site: Machine, secrets: dict[str, str]) -> list[str]:
    """Secrets in the host's journal, where modules write their arguments."""
    journal = site.run("journalctl", "--no-pager", "--output=cat")
    assert "Invoked with" in journal
    return in_text(secrets, journal)


def in_reports(directory: Path, secrets: dict[str, str]) -> list[str]:
    """Secrets in what the controller stores; there has to be something."""
    texts = [path.read_text(encoding="utf-8") for path in directory.rglob("*") if path.is_file()]
    assert texts
    return in_text(secrets, "\n".join(texts))
