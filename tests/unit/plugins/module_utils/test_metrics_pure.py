# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditions on measured values and pages of metrics: what is read, and what is refused rather than misunderstood."""

from __future__ import annotations

import math

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._exposition import (
    Malformed,
    choose,
    parse_page,
    parse_selector,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_prometheus import (
    PageSource,
    parse_figure,
    read_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_source import Unsampled
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import (
    Reading,
    judge,
    parse_duration,
    parse_threshold,
    require_fit,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "unit", "value", "baseline", "expected"),
    [
        ("< 500ms", "s", 0.4999, None, True),
        ("p95 < 500ms", "s", 0.5, None, False),
        ("p95<=500ms", "s", 0.5, None, True),
        ("hit_rate > 80%", "share", 0.81, None, True),
        ("hit_rate > 80%", "%", 81, None, True),
        ("hit_rate > 80%", "%", 0.81, None, False),
        ("used_memory < 500MB", "B", 499_999_999, None, True),
        ("used_memory < 1GiB", "MB", 1073, None, True),
        ("used_memory < 1GiB", "MB", 1074, None, False),
        ("queue < 1k", "", 999, None, True),
        ("age < 1.5h", "m", 89, None, True),
        ("errors == 0", "share", 0.0, None, True),
        ("x != 3", "", 3, None, False),
        ("approved between 70% and 80%", "share", 0.75, None, True),
        ("approved between 70% and 80%", "share", 0.81, None, False),
        ("approved not between 70% and 80%", "share", 0.81, None, True),
        ("value within 20% of baseline", "", 12, 10, True),
        ("value within 20% of baseline", "", 0.12, 0.1, True),
        ("value within 20% of baseline", "", 12.01, 10, False),
        ("not within 20% of baseline", "", 7.9, 10, True),
        ("not below baseline by 20%", "", 8, 10, True),
        ("not below baseline by 20%", "", 7.99, 10, False),
        ("orders below baseline by 20% for 15m", "", 7.99, 10, True),
        ("errors not above baseline by 50%", "", 0.0, 0.0, True),
        ("errors not above baseline by 50%", "", 0.1, 0.0, False),
        ("orders >= baseline", "", 10, 10, True),
        # A loss may not become greater either, by the size of it.
        ("not below baseline by 20%", "", -13, -10, False),
        ("within 20% of baseline", "", 5, None, None),
        ("< 5", "", None, None, None),
        ("x > -5", "", -4, None, True),
        ("x < 1e3", "", 999, None, True),
    ],
)
def test_conditions(text, unit, value, baseline, expected):
    threshold = parse_threshold(text, "require")
    require_fit(threshold, unit, "require")
    assert judge(threshold, Reading(value), unit, baseline) is expected


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        # The quantile lies beyond the last bucket: it is that or more.
        ("< 500ms", 0.4, None),
        ("< 300ms", 0.4, False),
        ("> 300ms", 0.4, True),
        ("> 500ms", 0.4, None),
        ("between 100ms and 300ms", 0.4, False),
        ("between 100ms and 500ms", 0.4, None),
        ("!= 1s", 0.4, None),
        ("!= 100ms", 0.4, True),
    ],
)
def test_what_is_only_known_to_be_at_least_something_is_no_pass(text, value, expected):
    assert judge(parse_threshold(text, "x"), Reading(value, at_least=True), "s") is expected


@settings(deadline=None)
@given(
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-20, 20),
    st.integers(-20, 20),
    st.lists(st.integers(0, 60), min_size=1),
)
def test_what_is_said_of_at_least_holds_for_whatever_is_more(operator, limit, value, more):
    threshold = parse_threshold(f"{operator} {limit}", "x")
    said = judge(threshold, Reading(value, at_least=True))
    if said is not None:
        assert all(judge(threshold, Reading(value + one)) is said for one in [0, *more])


def test_names_statistics_and_times():
    found = parse_threshold("  error_rate  >  5%   for 15m ", "x")
    assert (found.name, found.hold, found.statistic) == ("error_rate", 900.0, "")
    assert parse_threshold("mean(response) < 2s", "x")[1:3] == ("mean", "response")
    assert parse_threshold("p99.9() < 2s", "x")[1:3] == ("p99.9", "")
    assert parse_threshold("p95 < 2s", "x")[1:3] == ("", "p95")
    assert [parse_duration(one, "x") for one in ("90s", "1.5h", 7, "250ms", "8")] == [90, 5400, 7, 0.25, 8]


@pytest.mark.parametrize(
    ("text", "unit", "said"),
    [
        ("", "", "must be a condition"),
        (5, "", "must be a condition"),
        ("fast", "", "expected a condition"),
        ("p95 < fast", "", "expected a condition"),
        ("p95 < 5 apples", "", "expected a condition"),
        ("< 5 for ever", "", "after 'for'"),
        ("within 20% of yesterday", "", "expected a condition"),
        ("between 80% and 70%", "share", "the smaller one"),
        # What would always or never hold if the unit were guessed.
        ("p95 < 500", "s", "one of the units us, ms, s"),
        ("p95 < 500ms", "", "say so in units, such as units: {p95: ms}"),
        ("hit_rate > 80", "share", "one of the units %"),
        ("memory < 500ms", "B", "one of the units B, KB"),
    ],
)
def test_what_is_no_condition_is_refused(text, unit, said):
    with pytest.raises(Problem) as raised:
        require_fit(parse_threshold(text, "checks[0].require"), unit, "checks[0].require")
    assert said in raised.value.message and "checks[0].require" in raised.value.message


def test_values_in_words():
    assert [
        written(*one)
        for one in ((0.2314, "s"), (90, "s"), (0.051, "share"), (5.1, "%"), (5e8, "B"), (12, ""))
    ] == [*("231.4 ms", "90 s", "5.1 %", "5.1 %", "500 MB", "12")]


PAGE = r"""# HELP http_requests_total Requests, with \\ and \n.
# TYPE http_requests_total counter
http_requests_total{method="GET",status="200"} 90
http_requests_total{method="GET",status="500"} 10 1700000000000
http_requests_total { method = "POST" , status="200", } 5
# a comment
#
path_total{path="C:\\x \"q\" \n}"} 1.5e3
up 1
low -Inf
odd NaN
# TYPE t_seconds histogram
t_seconds_bucket{le="0.1"} 1
t_seconds_bucket{le="+Inf"} 2
"""


def test_a_page():
    page = parse_page(PAGE)
    assert page.types == {"http_requests_total": "counter", "t_seconds": "histogram"}
    assert len(page.series["http_requests_total"]) == 3
    assert page.series["path_total"] == {(("path", 'C:\\x "q" \n}'),): 1500.0}
    assert page.series["low"] == {(): -math.inf} and math.isnan(page.series["odd"][()])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("up 1", "cut short"),
        (PAGE[:-9], "cut short"),
        ("<html>\n<body>Not found</body>\n</html>\n", "line 1"),
        ('{"status": "ok"}\n', "line 1"),
        ("up\n", "no value"),
        ("up one\n", "no number"),
        ("up 1_000\n", "no number"),
        ("up 0x10\n", "no number"),
        ("up 1 2 3\n", "a value and perhaps a time"),
        ("up 1 soon\n", "a value and perhaps a time"),
        ('up{a="1" 1\n', "expected , or }"),
        ('up{a="1"b="2"} 1\n', "expected , or }"),
        ("up{a=1} 1\n", "labels are written"),
        ('up{a=~"1"} 1\n', "a label has no value"),
        ('up{a="1",a="2"} 1\n', "given twice"),
        (r'up{a="\q"} 1' + "\n", "unknown escape"),
        ('up{a="1"} 1\nup{a="1"} 2\n', "second time"),
        ('up{a="1",b="2"} 1\nup{b="2",a="1"} 2\n', "second time"),
        ("# TYPE up speed\nup 1\n", "a type is one of"),
        ("# TYPE up gauge\n# TYPE up gauge\nup 1\n", "second time"),
        ("up 1\n# TYPE up gauge\n", "after its values"),
        ("# only words\n", "no metric"),
    ],
)
def test_what_is_no_page_is_refused(text, said):
    with pytest.raises(Malformed, match=said):
        parse_page(text)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_whatever_is_answered_is_a_page_or_refused(text):
    try:
        assert parse_page(text).series
    except Malformed as error:
        assert error.text


@settings(deadline=None)
@given(
    st.dictionaries(st.from_regex(r"\A[a-z_][a-z0-9_]{0,5}\Z"), st.text(max_size=20), max_size=4),
    st.floats(allow_nan=False),
)
def test_what_is_written_is_read(labels, value):
    def escaped(text):
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    inside = ",".join(f'{name}="{escaped(text)}"' for name, text in labels.items())
    text = {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, repr(value))
    assert parse_page(f"m{{{inside}}} {text}\n").series == {"m": {tuple(sorted(labels.items())): value}}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("http_requests_total", 3),
        ('http_requests_total{status="500"}', 1),
        ('http_requests_total{status=~"2.."}', 2),
        ('http_requests_total{status=~"2"}', 0),
        ('http_requests_total{status!="200"}', 1),
        ('http_requests_total{status!~"2..", method="GET"}', 1),
        ('http_requests_total{status="404"}', 0),
        ('http_requests_total{host!="x"}', 3),
        ('path_total{path=~"C:.*"}', 0),
    ],
)
def test_series_are_chosen_as_prometheus_does(text, count):
    found, why = choose(parse_page(PAGE), parse_selector(text, "x"))
    assert (len(found), why) == (count, "")


def test_a_name_that_nothing_has_is_no_zero():
    page = parse_page(PAGE)
    found, why = choose(page, parse_selector("http_request_total", "x"))
    assert found is None and "http_requests_total" in why
    found, why = choose(page, parse_selector('http_requests_total{state="500"}', "x"))
    assert found is None and "its labels are: method, status" in why


@pytest.mark.parametrize(
    "text", ["", None, "9x", 'a{b="c"', "a{b}", "sum(a)", 'a{b=~"("}', 'a{b="c"} > 5', "rate(a[5m])"]
)
def test_what_is_no_selector_is_refused(text):
    with pytest.raises(Problem):
        parse_selector(text, "x")


def pages(values, *texts):
    """What *values* are after each of *texts*, ten seconds apart."""
    source = PageSource({"kind": "prometheus_page", "url": "http://x/metrics", "values": values}, "source")
    return [source.read(parse_page(text), 10.0 * index) for index, text in enumerate(texts)]


def requests(good, bad=None):
    text = f'r_total{{status="200"}} {good}\n'
    return text + (f'r_total{{status="500"}} {bad}\n' if bad is not None else "")


RATIO = {"ratio": 'r_total{status=~"5.."}', "to": "r_total"}


@pytest.mark.parametrize(
    ("figure", "texts", "expected"),
    [
        ("r_total", [requests(3, 4)], 7),
        ({"value": "r_total", "aggregate": "max"}, [requests(3, 4)], 4),
        ('r_total{status="404"}', [requests(3, 4)], None),
        ("nothing", [requests(3, 4)], None),
        ("r_total", ["r_total NaN\n"], None),
        ("r_total", ["r_total +Inf\n"], None),
        ({"rate": "r_total"}, [requests(10)], None),
        ({"rate": "r_total"}, [requests(10), requests(110)], 10),
        # It was started anew, and has counted 20 since.
        ({"rate": "r_total"}, [requests(100), requests(20)], 2),
        # Its first error makes the series, and counts.
        ({"increase": 'r_total{status="500"}'}, [requests(100), requests(200, 5)], 5),
        ({"increase": "r_total", "range": "20s"}, [requests(0), requests(10), requests(30)], 30),
        ({"increase": "r_total"}, [requests(0), requests(10), requests(30)], 20),
        (RATIO, [requests(100), requests(190, 10)], 0.1),
        # No error has ever been: 0. No request: no data.
        (RATIO, [requests(100), requests(190)], 0),
        (RATIO, [requests(100, 1), requests(100, 1)], None),
        ({**RATIO, "total": True}, [requests(90, 10)], 0.1),
        ({"ratio": 'r_total{code="500"}', "to": "r_total"}, [requests(1), requests(2)], None),
        ({"rate": "r_total"}, ["# TYPE r_total gauge\nr_total 1\n"] * 2, None),
        (
            {"quantile": 0.5, "of": "t_seconds", "total": True},
            ['t_seconds_bucket{le="1"} 10\nt_seconds_bucket{le="+Inf"} 10\n'],
            0.5,
        ),
        # What was slow before does not count.
        (
            {"quantile": 0.5, "of": "t_seconds"},
            [
                't_seconds_bucket{le="1"} 0\nt_seconds_bucket{le="2"} 900\nt_seconds_bucket{le="+Inf"} 900\n',
                't_seconds_bucket{le="1"} 10\nt_seconds_bucket{le="2"} 910\nt_seconds_bucket{le="+Inf"} 910\n',
            ],
            0.5,
        ),
        (
            {"quantile": 0.5, "of": "t_seconds"},
            ['t_seconds_bucket{le="1"} 9\nt_seconds_bucket{le="+Inf"} 9\n'] * 2,
            None,
        ),
        # Two workers with the same buckets, and with others.
        (
            {"quantile": 0.75, "of": "t", "total": True},
            [
                't_bucket{w="a",le="1"} 10\nt_bucket{w="a",le="+Inf"} 10\nt_bucket{w="b",le="1"} 10\nt_bucket{w="b",le="+Inf"} 10\n'
            ],
            0.75,
        ),
        (
            {"quantile": 0.75, "of": "t", "total": True},
            ['t_bucket{w="a",le="1"} 10\nt_bucket{w="a",le="+Inf"} 10\nt_bucket{w="b",le="+Inf"} 10\n'],
            None,
        ),
    ],
)
def test_values_of_pages(figure, texts, expected):
    last = pages({"x": figure}, *texts)[-1]["x"]
    assert last.value == (None if expected is None else pytest.approx(expected))
    assert (last.value is None) == bool(last.why)


def test_a_bucket_without_a_bound_is_an_error():
    with pytest.raises(Malformed, match="no bound"):
        pages({"x": {"quantile": 0.5, "of": "t", "total": True}}, "t_bucket 5\n")


@pytest.mark.parametrize(
    "value", [5, {}, {"rate": "a", "increase": "a"}, {"ratio": "a"}, {"quantile": 95, "of": "a"}, {"quantile": 0.5}, {"rat": "a"},
              {"rate": "a", "to": "b"}, {"value": "a", "aggregate": "avg"}, {"rate": "a", "range": "soon"}]
)  # fmt: skip
def test_what_is_no_value_of_a_page_is_refused(value):
    with pytest.raises(Problem):
        parse_figure(value, "x")


SUCCESS = '{"status": "success", "data": {"resultType": "%s", "result": %s}}'


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (200, SUCCESS % ("vector", '[{"metric": {}, "value": [1, "0.5"]}]'), 0.5),
        (200, SUCCESS % ("scalar", '[1, "7"]'), 7.0),
        (200, SUCCESS % ("vector", "[]"), None),
        (200, SUCCESS % ("vector", '[{"metric": {}, "value": [1, "NaN"]}]'), None),
        (200, SUCCESS % ("scalar", '[1, "+Inf"]'), None),
        (200, SUCCESS % ("vector", '[{"value": [1, "1"]}, {"value": [1, "2"]}]'), "2 series"),
        (200, SUCCESS % ("matrix", "[]"), "a matrix"),
        (
            400,
            '{"status": "error", "errorType": "bad_data", "error": "parse error"}',
            "bad_data: parse error",
        ),
        (200, '{"status": "error"}', "no reason given"),
        (503, SUCCESS % ("scalar", '[1, "7"]'), "status 503"),
        (401, "Unauthorized", "status is 401"),
        (200, "[]", "none of Prometheus"),
        (200, "5", "none of Prometheus"),
        (200, '{"status": "success"}', "no number"),
        (200, SUCCESS % ("vector", '[{"metric": {}}]'), "no number"),
        (200, SUCCESS % ("scalar", '[1, "many"]'), "no number"),
    ],
)
def test_answers_of_prometheus(status, text, expected):
    if isinstance(expected, str):
        with pytest.raises(Unsampled, match=expected):
            read_result(status, text)
        return
    found = read_result(status, text)
    assert found.value == expected and (expected is not None or found.why)
