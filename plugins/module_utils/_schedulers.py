# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with workers and beats before anything is asked: one beat in the fleet, and a TERM that ends workers warmly.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def check_signals(environment: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the variables *environment*: with ``REMAP_SIGTERM`` Celery drops its tasks on TERM.

    Source: "Workers Guide: Stopping the worker" of Celery's documentation.
    """
    found = str(environment.get("REMAP_SIGTERM") or "")
    if not found:
        return []
    return [
        f"app_environment.REMAP_SIGTERM is {found!r}, with which a Celery worker ends cold on TERM and drops the tasks that it has: remove it; "
        "workers are ended with TERM, after they have finished their tasks."
    ]


def hosts_of(
    service: Mapping[str, Any], hosts: Sequence[str], groups: Mapping[str, Iterable[str]]
) -> list[str]:
    """Return those of *hosts* that *service* runs on: all, or those in one of its groups."""
    wanted = service.get("groups") or []
    if not wanted:
        return list(hosts)
    chosen = {host for group in wanted for host in groups.get(group, [])}
    return [host for host in hosts if host in chosen]


def check_beats(
    services: Iterable[Mapping[str, Any]], hosts: Sequence[str], groups: Mapping[str, Iterable[str]]
) -> list[str]:
    """Return what is wrong with beats that would run on several of *hosts*: each of them sends every scheduled task."""
    errors = []
    for service in services:
        found = hosts_of(service, hosts, groups) if service.get("kind") == "beat" else []
        if len(found) > 1:
            errors.append(
                f"app_services: the beat {service.get('name')!r} would run on {len(found)} hosts ({', '.join(found[:5])}"
                f"{', …' if len(found) > 5 else ''}), and each of them would send every scheduled task: give it groups with one host."
            )
    return errors


def beats_apart(services: Iterable[Mapping[str, Any]], hosts: Sequence[str]) -> bool:
    """Return whether beats are stopped before, and started after, the workers of all *hosts*, in steps of their own.

    On one host the restart itself keeps that order.
    """
    return len(hosts) > 1 and any(service.get("kind") == "beat" for service in services)
