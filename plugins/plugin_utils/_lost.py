# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host did not answer, in words that fit into one sentence.

Ansible puts all that came through ssh's standard error into its error. Where a host went down while a module ran there,
that is also what the module wrote as it died: a traceback, which says nothing but that.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

# How the client's own lines begin (clientloop.c, sshconnect.c, packet.c and mux.c of OpenSSH).
SSH_WORDS = (
    "ssh:",
    "Connection ",
    "Timeout, server",
    "client_loop:",
    "kex_exchange_identification:",
    "mux_client_",
    "Read from remote host",
    "Host key verification failed",
)
# What ansible-core writes before what ssh has said.
BEFORE = "can be reached over ssh:"


def lost_because(error: Exception) -> str:
    """Return why the connection of *error* was lost: one line, without a full stop."""
    head, before, rest = str(error).partition(BEFORE)
    lines = [line.strip() for line in (rest if before else head).splitlines() if line.strip()]
    if not before:
        return (lines[0] if lines else "no reason given").rstrip(".:")
    if len(lines) > 1:
        lines = [line for line in lines if line.startswith(SSH_WORDS)][-1:]
    return f"{head}{before} {lines[0]}".rstrip(".") if lines else f"{head}{before}".rstrip(":")
