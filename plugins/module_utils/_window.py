# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What samples over time say: for how long something has held, how fast a counter grows, percentiles.

A sample is a pair ``(time, value)`` with the time in seconds of any clock; samples are in the order of their times.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Sample = tuple[float, float]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* (0 to 1) of *values* do not exceed, between neighbours in proportion.

    Definition 7 of Hyndman and Fan (1996), the one that NumPy and spreadsheets use.

    :raises ValueError: when there are no values, or *share* is not from 0 to 1.
    """
    if not values:
        raise ValueError("percentile of nothing")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, found {share}")
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def held_since(states: Iterable[tuple[float, bool | None]]) -> float | None:
    """Return the time since which a state has been true, or None where it is not true at the end.

    :param states: pairs of a time and whether it was true then; None where that was not known, which neither ends a row
        nor begins one.
    """
    since: float | None = None
    for at, state in states:
        if state is None:
            continue
        since = None if not state else at if since is None else since
    return since


def held_for(states: Sequence[tuple[float, bool | None]]) -> float | None:
    """Return for how many seconds a state has been true up to the last time at which it was known; None where it is not true.

    One true state has held for 0 seconds: what was before is not known.
    """
    since = held_since(states)
    if since is None:
        return None
    return max(at for at, state in states if state is not None) - since


def increase(counts: Sequence[Sample]) -> float | None:
    """Return by how much a counter has grown over *counts*; None with fewer than two of them.

    A counter that is smaller than before began again at 0: its process was started anew.
    """
    if len(counts) < 2:
        return None
    grown = 0.0
    for (_at, before), (_later, after) in zip(counts, counts[1:]):
        grown += after - before if after >= before else after
    return grown


def rate(counts: Sequence[Sample]) -> float | None:
    """Return the growth of a counter per second; None with fewer than two of *counts*, or where no time has passed."""
    grown = increase(counts)
    elapsed = counts[-1][0] - counts[0][0] if counts else 0.0
    return None if grown is None or elapsed <= 0 else grown / elapsed


def histogram_quantile(buckets: Sequence[tuple[float, float]], share: float) -> tuple[float, bool] | None:
    """Return the quantile of a histogram, and whether it is only known to be at least that much.

    As Prometheus calculates it: observations lie evenly within a bucket, and the first one begins at 0 where its bound is
    above (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile). There the answer for a
    quantile beyond the last bound is that bound, which would be a pass for whatever took longer; here it is said.

    :param buckets: pairs of an upper bound and the number of observations up to it, cumulative; one has the bound infinity.
    :return: None where nothing was observed, the bound infinity is missing or there is no other.
    :raises ValueError: when *share* is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, found {share}")
    ordered = sorted(buckets)
    if len(ordered) < 2 or ordered[-1][0] != math.inf:
        return None
    # Read while they change, buckets may disagree by an observation or two: never less than the one below.
    counts: list[float] = []
    for _bound, count in ordered:
        counts.append(max(count, counts[-1] if counts else 0.0))
    if not counts[-1] > 0:
        return None
    wanted = share * counts[-1]
    index = next(
        (place for place, count in enumerate(counts) if count >= wanted and count > 0), len(counts) - 1
    )
    upper = ordered[index][0]
    if upper == math.inf:
        return ordered[-2][0], True
    lower = ordered[index - 1][0] if index else min(0.0, upper)
    below = counts[index - 1] if index else 0.0
    inside = counts[index] - below
    part = (wanted - below) / inside if inside > 0 else 0.0
    return (
        (lower + (upper - lower) * min(1.0, max(0.0, part)), False) if upper > 0 or index else (upper, False)
    )
