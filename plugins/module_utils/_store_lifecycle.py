# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of a bucket that delete or archive copies behind our back, judged from its lifecycle configuration.

The shapes are those of ``GetBucketLifecycleConfiguration`` ("Lifecycle configuration elements" of Amazon S3), with dates as
text. Nothing here asks the store. What ends noncurrent versions, delete markers or unfinished uploads touches no copy.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import NAME
from ansible_collections.runbook.deploy.plugins.module_utils._retention import MINIMUM_BACKUPS
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import VARIABLE, Settings

# Objects in these classes must be restored, for hours, before they can be read ("Restoring an archived object").
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
# A bucket may have 1000 rules; who has read so many warnings will look for himself.
MOST_WARNINGS = 5


def touches(prefix: str, base: str) -> bool:
    """Return whether a rule for keys that begin with *prefix* reaches ``<base><backup id>/<file>``.

    :param base: what all keys of the copies begin with; its last character is a slash.
    """
    if base.startswith(prefix):
        return True
    if not prefix.startswith(base):
        return False
    name, slash, file = prefix[len(base) :].partition("/")
    # Copies lie one level deep, and where no id can begin like this there are none.
    return bool(NAME.fullmatch(name)) and not (slash and "/" in file)


def prefix_of(rule: Mapping[str, Any], base: str) -> str | None:
    """Return the prefix of an enabled *rule* that reaches copies below *base*, "" for the whole bucket; None for any other rule.

    Copies have no tags, so that a rule for tagged objects reaches none. Of sizes only an empty range reaches none: manifests
    are small, and dumps grow.
    """
    chosen = rule.get("Filter") or {}
    both = chosen.get("And") or {}
    if rule.get("Status") != "Enabled" or chosen.get("Tag") or both.get("Tags"):
        return None
    above, below = (
        next((part[key] for part in (chosen, both) if part.get(key) is not None), None)
        for key in ("ObjectSizeGreaterThan", "ObjectSizeLessThan")
    )
    if below is not None and below <= (-1 if above is None else above) + 1:
        return None
    # Older configurations have the prefix beside the filter.
    prefix = str(both.get("Prefix") or chosen.get("Prefix") or rule.get("Prefix") or "")
    return prefix if touches(prefix, base) else None


def actions(rule: Mapping[str, Any]) -> list[tuple[str, int | None, str]]:
    """Return what *rule* does that makes live objects unreadable, (storage class or "" for deletion, days or None, date or "")."""
    found: list[tuple[str, int | None, str]] = []
    for action in [rule.get("Expiration") or {}, *(rule.get("Transitions") or [])]:
        moves = str(action.get("StorageClass") or "")
        days, date = action.get("Days"), str(action.get("Date") or "")[:10]
        if moves in ARCHIVES:
            # Zero is a time to move; some servers leave it out.
            found.append((moves, None if date else int(days or 0), date))
        elif not moves and (days or date):
            found.append(("", None if date else int(days), date))
    return found


def harmful(rules: Iterable[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """Return what the *rules* of a bucket do with copies below *base*: ``{id, prefix, storage_class, days, date}``.

    There is no number of days that is long enough: the newest copies and those that a rollback needs stay however old.
    """
    found = []
    for rule in rules:
        prefix = prefix_of(rule, base)
        if prefix is None:
            continue
        for moves, days, date in actions(rule):
            found.append(
                {
                    "id": str(rule.get("ID") or ""),
                    "prefix": prefix,
                    "storage_class": moves,
                    "days": days,
                    "date": date,
                }
            )
    return found


def promise(settings: Settings, days: int | None) -> str:
    """Return what the retention of the copies holds against an end after *days*, None for an end at a date.

    An object is no older than its backup, so that after ``keep_days`` or more a rule only reaches what stays at any age.
    """
    if settings.keep <= 0:
        return "keep 0: all copies stay"
    if settings.keep_days <= 0:
        return f"keep {settings.keep}: so many of the newest stay, however old they are"
    if days is None or days < settings.keep_days:
        return f"keep {settings.keep}, keep_days {settings.keep_days}: so many of the newest stay, for so many days"
    return (
        f"keep {settings.keep}, keep_days {settings.keep_days}: the newest {min(settings.keep, MINIMUM_BACKUPS)} stay, however old they are, "
        "and so do those that a rollback needs"
    )


def sentence(found: Mapping[str, Any], settings: Settings, base: str) -> str:
    """Return the warning of one entry of :func:`harmful`."""
    name = f"The lifecycle rule {found['id']!r}" if found["id"] else "A lifecycle rule without an id"
    where = f"prefix {found['prefix']!r}" if found["prefix"] else "no prefix"
    days = "1 day" if found["days"] == 1 else f"{found['days']} days"
    when = f"from {found['date']} on" if found["date"] else f"{days} after they were written"
    what = (
        f"moves objects into {found['storage_class']}, where they must be restored before they can be read,"
        if found["storage_class"]
        else "deletes objects"
    )
    return (
        f"{name} of {settings.place()} ({where}) {what} {when}, copies of backups below {base} among them, whatever {VARIABLE} says "
        f"({promise(settings, found['days'])}): limit the rule to other prefixes or to noncurrent versions, or choose another {VARIABLE}.prefix."
    )


def warnings_of(found: list[dict[str, Any]], settings: Settings, base: str) -> list[str]:
    """Return a sentence for each of *found*, of many only the first ones and how many more there are."""
    told = [sentence(entry, settings, base) for entry in found[:MOST_WARNINGS]]
    more = len(found) - len(told)
    if more:
        told.append(
            f"{more} more lifecycle rules or actions of {settings.place()} delete or archive copies of backups below {base}: see 'lifecycle' in "
            "the result, and limit them to other prefixes."
        )
    return told
