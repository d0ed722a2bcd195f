# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What samples over time say, compared with NumPy and with plain references."""

from __future__ import annotations

import math

import numpy
import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._window import (
    held_for,
    held_since,
    histogram_quantile,
    increase,
    percentile,
    rate,
)
from hypothesis import given, settings
from hypothesis import strategies as st

VALUES = st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=60)
STATES = st.lists(st.tuples(st.integers(1, 50), st.sampled_from([True, False, None])), max_size=40)


def timed(steps):
    """Pairs of a pause and a state as pairs of a time and a state."""
    at, result = 0, []
    for pause, state in steps:
        at += pause
        result.append((float(at), state))
    return result


@settings(deadline=None)
@given(VALUES, st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values, share):
    expected = float(numpy.percentile(values, share * 100))
    assert math.isclose(percentile(values, share), expected, rel_tol=1e-9, abs_tol=1e-6)


def test_percentiles_of_nothing_and_beyond():
    for values, share in (([], 0.5), ([1.0], 1.5), ([1.0], -0.1)):
        with pytest.raises(ValueError):
            percentile(values, share)


@settings(deadline=None)
@given(STATES)
def test_held_is_the_longest_end_without_a_false(steps):
    states = timed(steps)
    known = [(at, state) for at, state in states if state is not None]
    ends = [
        known[-1][0] - known[begin][0]
        for begin in range(len(known))
        if all(state for _at, state in known[begin:])
    ]
    assert held_for(states) == (max(ends) if ends else None)


@settings(deadline=None)
@given(STATES, st.integers(1, 50))
def test_a_false_at_the_end_ends_every_row_and_nothing_known_changes_none(steps, pause):
    states = timed(steps)
    end = (states[-1][0] if states else 0) + pause
    assert held_since([*states, (end, False)]) is None
    assert held_for([*states, (end, None)]) == held_for(states)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 100), st.booleans()), min_size=1, max_size=40))
def test_growth_is_what_was_counted_whatever_was_started_anew(steps):
    at, count, total, seen = 0.0, 0, 0, []
    for index, (pause, more, again) in enumerate(steps):
        at += pause
        # A counter that begins anew and is at once above what it was cannot be told from one that went on.
        if again and more < count:
            count = 0
        count += more
        total += more if index else 0
        seen.append((at, float(count)))
    # The first sample is where the counting begins.
    assert (increase(seen) or 0.0) == total
    if len(seen) > 1:
        assert rate(seen) == pytest.approx(total / (seen[-1][0] - seen[0][0]))


def test_a_rate_takes_two_samples_and_time():
    assert rate([]) is None and rate([(0, 5)]) is None and rate([(1, 5), (1, 9)]) is None
    assert increase([(0, 5)]) is None
    assert rate([(0, 10), (10, 3)]) == 0.3


@settings(deadline=None)
@given(
    st.lists(st.floats(0.001, 9.9), min_size=1, max_size=200),
    st.lists(st.floats(0.01, 10), min_size=1, max_size=12, unique=True),
    st.floats(0.01, 0.99),
)
def test_the_quantile_of_a_histogram_is_in_the_bucket_of_the_real_one(values, bounds, share):
    limits = [*sorted(bounds), math.inf]
    buckets = [(bound, float(sum(value <= bound for value in values))) for bound in limits]
    found, at_least = histogram_quantile(buckets, share)
    # The smallest value that at least the share of all does not exceed.
    real = sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]
    index = next(place for place, bound in enumerate(limits) if real <= bound)
    if limits[index] == math.inf:
        assert at_least and found == limits[-2] and real > found
    else:
        lower = limits[index - 1] if index else 0.0
        assert not at_least and lower <= found <= limits[index]


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([(1, 0), (math.inf, 0)], 0.5, None),
        ([(math.inf, 5)], 0.5, None),
        ([(1, 3), (2, 5)], 0.5, None),
        ([], 0.5, None),
        ([(1, 10), (2, 10), (math.inf, 10)], 0.5, (0.5, False)),
        ([(1, 0), (2, 10), (math.inf, 10)], 0.95, (1.95, False)),
        # Nothing is known of how much longer it took.
        ([(0.1, 1), (0.4, 90), (math.inf, 100)], 0.95, (0.4, True)),
        # Buckets that were read while they changed.
        ([(1, 6), (2, 5), (math.inf, 10)], 0.5, (5 / 6, False)),
        ([(-1, 4), (math.inf, 4)], 0.5, (-1, False)),
    ],
)
def test_quantiles_by_hand(buckets, share, expected):
    found = histogram_quantile(buckets, share)
    assert found == (None if expected is None else (pytest.approx(expected[0]), expected[1]))
