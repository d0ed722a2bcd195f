# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a page of metrics in the text format of Prometheus, and choose series from it.

The format is https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4). The reading is strict: half a page, or
something else that looks like one, must not be taken for a page without errors.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

TYPES = ("counter", "gauge", "histogram", "summary", "untyped")
# Endings of the series that a histogram or a summary consists of.
PARTS = ("_bucket", "_count", "_sum")
_METRIC = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_NAME = re.compile(_METRIC)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\\n]|\\.)*)"\s*')
_NUMBER = re.compile(r"^[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[Ii]nf(?:inity)?|[Nn]a[Nn])$")
_TIMESTAMP = re.compile(r"^[-+]?\d+$")
_ESCAPED = re.compile(r"\\(.)")
SHOWN = 60

Labels = tuple[tuple[str, str], ...]


class Malformed(Exception):
    """What was answered is no page of metrics; ``text`` says where, as a part of a sentence."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Page(NamedTuple):
    """The values by name and labels (sorted), and the types by the name of the family."""

    series: dict[str, dict[Labels, float]]
    types: dict[str, str]


class Selector(NamedTuple):
    """Which series are meant: a name and, for each label, how it is compared and with what."""

    text: str
    name: str
    matchers: tuple[tuple[str, str, str], ...]

    def matches(self, labels: Labels) -> bool:
        """Return whether a series with *labels* is meant; a label that is not there is an empty one, as Prometheus has it."""
        found = dict(labels)
        for name, operator, wanted in self.matchers:
            value = found.get(name, "")
            same = value == wanted if operator in ("=", "!=") else re.fullmatch(wanted, value) is not None
            if same != (operator in ("=", "=~")):
                return False
        return True


def _float(text: str) -> float:
    if not _NUMBER.match(text):
        raise ValueError(text)
    return float(text)


def parse_page(text: str) -> Page:
    """Return what is on a page.

    :raises Malformed: when it is not written as the format says, is cut short, or has a series twice.
    """
    if not text.strip():
        raise Malformed("the page is empty")
    if not text.endswith("\n"):
        raise Malformed(f"the page is cut short: its last line {text.splitlines()[-1][:SHOWN]!r} has no end")
    series: dict[str, dict[Labels, float]] = {}
    types: dict[str, str] = {}
    # Only \n ends a line: a label's value may have any other character.
    for index, line in enumerate(text.split("\n")[:-1], 1):
        line = line.strip(" \t\r")
        if not line:
            continue
        try:
            if line.startswith("#"):
                _comment(line, series, types)
                continue
            name, labels, value = _sample(line)
        except ValueError as error:
            raise Malformed(f"line {index} is no metric ({error}): {line[:SHOWN]!r}") from error
        found = series.setdefault(name, {})
        if labels in found:
            raise Malformed(f"line {index} has a series for the second time: {line[:SHOWN]!r}")
        found[labels] = value
    if not series:
        raise Malformed("there is no metric on the page")
    return Page(series, types)


def _comment(line: str, series: dict[str, dict[Labels, float]], types: dict[str, str]) -> None:
    words = line.split(None, 3)
    if len(words) < 2 or words[0] != "#" or words[1] != "TYPE":
        return
    if len(words) != 4 or not _NAME.fullmatch(words[2]) or words[3].strip() not in TYPES:
        raise ValueError(f"a type is one of {', '.join(TYPES)}")
    if words[2] in types:
        raise ValueError("the type is given for the second time")
    if words[2] in series:
        raise ValueError("the type stands after its values")
    types[words[2]] = words[3].strip()


def _sample(line: str) -> tuple[str, Labels, float]:
    found = _NAME.match(line)
    if not found:
        raise ValueError("no name")
    name, rest = found.group(0), line[found.end() :]
    labels: Labels = ()
    if rest.lstrip(" \t").startswith("{"):
        rest = rest.lstrip(" \t")
        matchers, end = _braces(rest)
        if any(operator != "=" for _name, operator, _value in matchers):
            raise ValueError("a label has no value")
        labels = tuple(sorted((label, value) for label, _operator, value in matchers))
        if len({label for label, _value in labels}) != len(labels):
            raise ValueError("a label is given twice")
        rest = rest[end:]
    elif rest[:1] not in (" ", "\t"):
        raise ValueError("no value")
    words = rest.split()
    if not 1 <= len(words) <= 2 or (len(words) == 2 and not _TIMESTAMP.match(words[1])):
        raise ValueError("expected a value and perhaps a time")
    try:
        return name, labels, _float(words[0])
    except ValueError as error:
        raise ValueError(f"{words[0]!r} is no number") from error


def _braces(text: str) -> tuple[list[tuple[str, str, str]], int]:
    """Return the labels in the braces that *text* begins with, and where these end.

    :raises ValueError: when they are not well written.
    """
    position, found = 1, []
    while True:
        closed = re.match(r"\s*\}", text[position:])
        if closed:
            return found, position + closed.end()
        label = _LABEL.match(text, position)
        if not label:
            raise ValueError('labels are written like {name="value"}')
        found.append((label.group(1), label.group(2), _unescaped(label.group(3))))
        position = label.end()
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "}":
            raise ValueError("expected , or } after a label")


def _unescaped(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        known = {"\\": "\\", '"': '"', "n": "\n"}
        if found.group(1) not in known:
            raise ValueError(f"unknown escape \\{found.group(1)}")
        return known[found.group(1)]

    return _ESCAPED.sub(one, text)


def _selector_text(text: str) -> str:
    # As in PromQL, a regular expression's own backslashes are written twice; written once they are taken as they are.
    return _ESCAPED.sub(
        lambda found: {"\\": "\\", '"': '"', "n": "\n"}.get(found.group(1), found.group(0)), text
    )


def parse_selector(value: object, where: str) -> Selector:
    """Return which series ``name{label="value",other=~"5.."}`` means.

    :raises Problem: when it cannot be read.
    """
    text = str(value).strip()
    found = _NAME.match(text) if isinstance(value, str) else None
    if not found:
        raise Problem(
            f"{where} must be a metric such as 'http_requests_total{{status=~\"5..\"}}', found {value!r}."
        )
    matchers: list[tuple[str, str, str]] = []
    rest = text[found.end() :].strip()
    if rest:
        position, end = 1, len(rest) - 1
        while rest[0] == "{" and position < end:
            label = _LABEL.match(rest, position)
            if not label:
                break
            matchers.append((label.group(1), label.group(2), _selector_text(label.group(3))))
            position = label.end()
            if rest[position : position + 1] != ",":
                break
            position += 1
        if rest[0] != "{" or rest[position:].strip() != "}":
            raise Problem(
                f'{where} is {value!r}: expected labels such as {{status=~"5..", method!="GET"}} after {found.group(0)!r}; '
                "sums, rates and quantiles have keys of their own."
            )
    for name, operator, wanted in matchers:
        if operator in ("=~", "!~"):
            try:
                re.compile(wanted)
            except re.error as error:
                raise Problem(
                    f"{where}: the label {name!r} has no regular expression: {wanted!r} ({error})."
                ) from error
    return Selector(text, found.group(0), tuple(matchers))


def choose(page: Page, selector: Selector) -> tuple[dict[Labels, float] | None, str]:
    """Return the series that *selector* means, or None and why there are none that could be.

    Series with other values of the labels are no series at all: an application makes them when they are first counted. A name or a label
    that nothing on the page has is a typing error.
    """
    known = page.series.get(selector.name)
    if known is None:
        names = nearest_names(selector.name, page.series)
        return None, f"there is no metric {selector.name!r} on the page{names}"
    labels = {name for series in known for name, _value in series}
    for name, operator, wanted in selector.matchers:
        empty = (wanted == "") if operator in ("=", "!=") else re.fullmatch(wanted, "") is not None
        if name not in labels and empty != (operator in ("=", "=~")):
            has = ", ".join(sorted(labels)) or "none"
            return None, f"no series of {selector.name!r} has the label {name!r}, its labels are: {has}"
    return {key: value for key, value in known.items() if selector.matches(key)}, ""


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence with names that are like *name*, or ""."""
    import difflib  # only needed to explain what is missing

    found = difflib.get_close_matches(name, list(known), 3, 0.6)
    return f"; there are: {', '.join(found)}" if found else ""


def buckets_of(chosen: dict[Labels, float]) -> dict[Labels, dict[float, float]]:
    """Return the buckets (bound: count) of each histogram in *chosen*, the series of a name that ends in ``_bucket``.

    :raises Malformed: when a series has no bound, or one that is no number.
    """
    result: dict[Labels, dict[float, float]] = {}
    for labels, count in chosen.items():
        try:
            bound = _float(dict(labels)["le"])
        except (KeyError, ValueError) as error:
            raise Malformed("a bucket has no bound: its label le is no number") from error
        if math.isnan(bound):
            raise Malformed("a bucket has the bound NaN")
        rest = tuple(pair for pair in labels if pair[0] != "le")
        result.setdefault(rest, {})[bound] = count
    return result
