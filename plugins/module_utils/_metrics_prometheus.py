# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values from a page of metrics that an application answers itself, and from a Prometheus server.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import math
import shlex
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._exposition import (
    Labels,
    Malformed,
    Page,
    Selector,
    buckets_of,
    choose,
    parse_page,
    parse_selector,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import choice, flag, keys, mapping
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import (
    BODY_LIMIT,
    Answer,
    Target,
    Unanswered,
    exchange,
    parse_url,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_source import (
    VALUE,
    Means,
    Source,
    Unsampled,
    reading,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import Reading, parse_duration
from ansible_collections.runbook.deploy.plugins.module_utils._window import histogram_quantile, increase

PAGE_KEYS = ("kind", "url", "socket", "host", "secret", "values")
QUERY_KEYS = ("kind", "url", "query", "queries", "secret")
FORMS = ("value", "rate", "increase", "ratio", "quantile")
# What else each form takes.
FORM_KEYS = {
    "value": ("aggregate",),
    "rate": ("range",),
    "increase": ("range",),
    "ratio": ("to", "range", "total"),
    "quantile": ("of", "range", "total"),
}
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "min": min,
    "max": max,
    "mean": lambda found: sum(found) / len(found),
}
# What the names of metrics say of their units (https://prometheus.io/docs/practices/naming/).
ENDINGS = (("_seconds", "s"), ("_bytes", "B"), ("_ratio", "share"))
FORMAT = "text/plain;version=0.0.4"
SHOWN = 120


class Figure(NamedTuple):
    """One value of a page: its ``form``, the series, the series below the line (``ratio``), the share (``quantile``), the seconds over
    which it is taken (0: since the sample before), and ``total``: since the application was started."""

    form: str
    selector: Selector
    to: Selector | None
    share: float
    aggregate: str
    range: float
    total: bool

    def differs(self) -> bool:
        """Return whether it is a difference between two pages."""
        return self.form in ("rate", "increase") or (self.form in ("ratio", "quantile") and not self.total)

    def selectors(self) -> list[Selector]:
        """Return the series that have to be kept for it."""
        return [self.selector, *([self.to] if self.to else [])]


class _Http(Source):
    """What both have in common: one address, and a token for it."""

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.url = item.get("url")
        self.secret = None if item.get("secret") is None else str(item["secret"])
        self._token: str | None = None
        self._target: Target | None = None
        self.socket = item.get("socket")
        self.host = item.get("host")
        if not isinstance(self.url, str) or not self.url:
            raise Problem(
                f"{where}.url must be an address such as http://127.0.0.1:9090, found {self.url!r}."
            )
        if self.socket is None:
            parse_url(self.url)
        elif not self.url.startswith("/"):
            raise Problem(
                f"{where}.url must be a path such as /metrics where there is a socket, found {self.url!r}."
            )

    def open(self, means: Means) -> None:
        """See :meth:`Source.open`."""
        self._token = means.secret(self.secret, f"{self.where}.secret")
        if self.socket is not None:
            self._target = Target(None, str(self.socket), self.host, ca=means.ca_path)
        else:
            parts = parse_url(str(self.url))
            self._target = Target(f"{parts.scheme}://{parts.netloc}", None, self.host, ca=means.ca_path)

    def ask(self, url: str, timeout: float, accept: str) -> Answer:
        """Return the answer of *url*.

        :raises Unsampled: when there is none.
        """
        if self._target is None:
            raise ValueError("open() comes first")
        headers = {"Accept": accept}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            answer = exchange(self._target, self._target.resolve(url), headers=headers, timeout=timeout)
        except Unanswered as error:
            raise Unsampled(error.text) from error
        if answer.cut:
            raise Unsampled(f"the answer has more than {BODY_LIMIT} bytes")
        return answer

    def curl(self) -> list[str]:
        """Return the beginning of a command that asks by hand."""
        words = ["curl", "-sS", "--max-time", "10"]
        words += ["--unix-socket", str(self.socket)] if self.socket is not None else []
        words += ["-H", f"Host: {self.host}"] if self.host else []
        return words + (["-H", "Authorization: Bearer …"] if self.secret else [])

    def place(self) -> str:
        """See :meth:`Source.place`."""
        return f"{self.socket} {self.url}" if self.socket is not None else str(self.url)


class PageSource(_Http):
    """A page in the text format of Prometheus."""

    kind = "prometheus_page"

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        keys(
            item, PAGE_KEYS, where, "{kind: prometheus_page, url: http://127.0.0.1:8000/metrics, values: {}}"
        )
        super().__init__(item, where)
        values = mapping(item.get("values"), f"{where}.values")
        if not values:
            raise Problem(
                f"{where}.values must name what is read from the page, such as {{requests: {{rate: http_requests_total}}}}."
            )
        self.figures = {name: parse_figure(value, f"{where}.values.{name}") for name, value in values.items()}
        self.names = tuple(self.figures)
        self.differs = any(figure.differs() for figure in self.figures.values())
        self._pages: deque[tuple[float, dict[str, dict[Labels, float]]]] = deque()

    def unit(self, name: str) -> str:
        """See :meth:`Source.unit`."""
        figure = self.figures[name]
        if figure.form == "ratio":
            return "share"
        if figure.form not in ("value", "quantile"):
            return ""
        base = figure.selector.name[: -len("_bucket")] if figure.form == "quantile" else figure.selector.name
        return next((unit for ending, unit in ENDINGS if base.endswith(ending)), "")

    def sample(self, timeout: float) -> dict[str, Reading]:
        """See :meth:`Source.sample`."""
        at = time.monotonic()
        answer = self.ask(str(self.url), timeout, FORMAT)
        if answer.status != 200:
            raise Unsampled(f"the status is {answer.status}, expected 200: {answer.text.strip()[:SHOWN]!r}")
        try:
            page = parse_page(answer.text)
            return self.read(page, at)
        except Malformed as error:
            raise Unsampled(error.text) from error

    def read(self, page: Page, at: float) -> dict[str, Reading]:
        """Return the values of *page*, which was there at *at*, together with the pages before it.

        :raises Malformed: when its histograms cannot be read.
        """
        chosen: dict[str, dict[Labels, float]] = {}
        missing: dict[str, str] = {}
        for figure in self.figures.values():
            for selector in figure.selectors():
                found, why = choose(page, selector)
                if found is None:
                    missing[selector.text] = why
                else:
                    chosen[selector.text] = found
        self._pages.append((at, chosen))
        longest = max(figure.range for figure in self.figures.values())
        # One page from before the longest range stays: a difference begins there.
        while len(self._pages) > 2 and self._pages[1][0] <= at - longest:
            self._pages.popleft()
        result = {}
        for name, figure in self.figures.items():
            why = next((missing[part.text] for part in figure.selectors() if part.text in missing), "")
            result[name] = Reading(None, why) if why else self._figure(figure, page, at)
        return result

    def _figure(self, figure: Figure, page: Page, at: float) -> Reading:
        newest = self._pages[-1][1]
        text = figure.selector.text
        if figure.form == "value":
            found = list(newest[text].values())
            if not found:
                return Reading(None, f"no series is {text}")
            return reading(AGGREGATES[figure.aggregate](found), f"{text} is not a finite number")
        if page.types.get(figure.selector.name) == "gauge":
            return Reading(None, f"{figure.selector.name!r} is a gauge, which has a value but no growth")
        if figure.total:
            grown, to, elapsed = newest[text], newest[figure.to.text] if figure.to else {}, 0.0
        else:
            pages = self._since(figure, at)
            if len(pages) < 2:
                return Reading(None, "it takes two samples", pending=True)
            grown = growth(pages, text)
            to = growth(pages, figure.to.text) if figure.to else {}
            elapsed = pages[-1][0] - pages[0][0]
        if not all(map(math.isfinite, [*grown.values(), *to.values()])):
            return Reading(None, f"a series of {text} is not a finite number")
        if figure.form == "quantile":
            return _quantile(grown, figure)
        total = sum(grown.values())
        if figure.form == "ratio":
            whole = sum(to.values())
            return Reading(total / whole) if whole > 0 else Reading(None, f"{figure.to.text} did not grow")  # type: ignore[union-attr]
        if figure.form == "rate":
            return (
                Reading(total / elapsed)
                if elapsed > 0
                else Reading(None, "it takes two samples", pending=True)
            )
        return Reading(total)

    def _since(self, figure: Figure, at: float) -> list[tuple[float, dict[str, dict[Labels, float]]]]:
        """Return the pages that *figure* is taken over, those only that had its series at all."""
        pages = [
            (when, page)
            for when, page in self._pages
            if all(part.text in page for part in figure.selectors())
        ]
        begin = 0
        for index, (when, _page) in enumerate(pages[:-1]):
            if not figure.range or when <= at - figure.range:
                begin = index
        return pages[begin:]

    def repeat(self) -> str:
        """See :meth:`Source.repeat`."""
        url = f"http://localhost{self.url}" if self.socket is not None else str(self.url)
        wanted = sorted(
            {selector.name for figure in self.figures.values() for selector in figure.selectors()}
        )
        return f"{shlex.join([*self.curl(), url])} | grep -E {shlex.quote('^(' + '|'.join(wanted) + ')')}"


def growth(pages: list[tuple[float, dict[str, dict[Labels, float]]]], text: str) -> dict[Labels, float]:
    """Return by how much each series of *text* has grown over *pages*.

    A series that is made later began at 0, and one that is no longer there was that of a process that has ended.
    """
    names = {labels for _at, page in pages for labels in page[text]}
    result = {}
    for labels in names:
        counts = [(at, page[text].get(labels, 0.0)) for at, page in pages]
        result[labels] = increase(counts) or 0.0
    return result


def _quantile(grown: Mapping[Labels, float], figure: Figure) -> Reading:
    histograms = buckets_of(dict(grown))
    bounds = {frozenset(buckets) for buckets in histograms.values()}
    if len(bounds) > 1:
        return Reading(None, f"the histograms of {figure.selector.text} have different buckets")
    together: dict[float, float] = {}
    for buckets in histograms.values():
        for bound, count in buckets.items():
            together[bound] = together.get(bound, 0.0) + count
    found = histogram_quantile(list(together.items()), figure.share)
    if found is None:
        return Reading(None, f"nothing was observed in {figure.selector.text}")
    return Reading(found[0], at_least=found[1])


def parse_figure(value: Any, where: str) -> Figure:
    """Return one value of a page; a text is the metric whose value it is.

    :raises Problem: when it is not well written.
    """
    item = {"value": value} if isinstance(value, str) else value
    if not isinstance(item, Mapping):
        raise Problem(
            f"{where} must be a metric or a mapping such as {{rate: http_requests_total}}, found {value!r}."
        )
    forms = [form for form in FORMS if form in item]
    if len(forms) != 1:
        raise Problem(
            f"{where} must have exactly one of {', '.join(FORMS)}, found {', '.join(forms) or 'none'}."
        )
    form = forms[0]
    keys(item, (form, *FORM_KEYS[form]), where, "{rate: http_requests_total}")
    share, to = 0.0, None
    if form == "quantile":
        share = item["quantile"]
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise Problem(
                f"{where}.quantile must be a number between 0 and 1, such as 0.95, found {share!r}."
            )
        selector = parse_selector(item.get("of"), f"{where}.of")
        if not selector.name.endswith("_bucket"):
            name = f"{selector.name}_bucket"
            selector = selector._replace(name=name, text=name + selector.text[len(selector.name) :])
    else:
        selector = parse_selector(item[form], f"{where}.{form}")
        to = parse_selector(item.get("to"), f"{where}.to") if form == "ratio" else None
    return Figure(
        form,
        selector,
        to,
        float(share),
        choice(item.get("aggregate", "sum"), tuple(AGGREGATES), f"{where}.aggregate"),
        parse_duration(item.get("range", 0), f"{where}.range"),
        flag(item.get("total", False), f"{where}.total"),
    )


class QuerySource(_Http):
    """A Prometheus server, asked by its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries)."""

    kind = "prometheus_query"

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        keys(item, QUERY_KEYS, where, "{kind: prometheus_query, url: http://127.0.0.1:9090, query: up}")
        super().__init__(item, where)
        queries = mapping(item.get("queries"), f"{where}.queries")
        if bool(queries) == (item.get("query") is not None):
            raise Problem(f"{where} must have either query or queries.")
        self.queries = queries or {VALUE: item["query"]}
        for name, query in self.queries.items():
            if not isinstance(query, str) or not query.strip():
                raise Problem(f"{where}: the query {name!r} must be a text in PromQL, found {query!r}.")
        self.names = tuple(self.queries)
        self._base = urllib.parse.urlsplit(str(self.url)).path.rstrip("/")

    def sample(self, timeout: float) -> dict[str, Reading]:
        """See :meth:`Source.sample`."""
        limit = time.monotonic() + timeout
        result = {}
        for name, query in self.queries.items():
            left = limit - time.monotonic()
            if left <= 0:
                raise Unsampled(f"no time was left for the query {name!r}")
            # The server may end its work a little before we give up, and say that it did.
            asked = urllib.parse.urlencode({"query": query, "timeout": f"{max(1, int(left * 950))}ms"})
            answer = self.ask(f"{self._base}/api/v1/query?{asked}", left, "application/json")
            result[name] = read_result(answer.status, answer.text)
        return result

    def place(self) -> str:
        """See :meth:`Source.place`."""
        return f"Prometheus at {self.url}"

    def repeat(self) -> str:
        """See :meth:`Source.repeat`."""
        base = str(self.url).rstrip("/")
        words = [*self.curl(), "-G", f"{base}/api/v1/query", "--data-urlencode"]
        return "; ".join(shlex.join([*words, f"query={query}"]) for query in self.queries.values())


def read_result(status: int, text: str) -> Reading:
    """Return the one value of an answer of ``/api/v1/query``.

    :param status: of HTTP; the server answers errors of a query with 400, 422 or 503 and a document.
    :raises Unsampled: when it is an error, or no answer of that kind.
    """
    try:
        document = json.loads(text)
        state = document["status"]
    except (ValueError, TypeError, KeyError) as error:
        raise Unsampled(
            f"the status is {status} and the answer is none of Prometheus: {text.strip()[:SHOWN]!r}"
        ) from error
    if state != "success" or status != 200:
        said = f"{document.get('errorType', 'error')}: {document.get('error', 'no reason given')}"
        raise Unsampled(f"the server refused the query (status {status}): {said[: 2 * SHOWN]}")
    try:
        kind, result = document["data"]["resultType"], document["data"]["result"]
        if kind == "vector":
            if not result:
                return Reading(None, "the query returns nothing")
            if len(result) > 1:
                raise Unsampled(
                    f"the query returns {len(result)} series, expected one: aggregate them, as by sum()"
                )
            value = result[0]["value"][1]
        elif kind == "scalar":
            value = result[1]
        else:
            raise Unsampled(f"the query returns a {kind}, expected one number")
        return reading(float(value), "it is not a finite number")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unsampled(
            f"the answer has no number where Prometheus has one: {text.strip()[:SHOWN]!r}"
        ) from error
