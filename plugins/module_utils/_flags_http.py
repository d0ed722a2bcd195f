# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Feature flags kept by a service that is asked over HTTP.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import lookup
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import METHODS, text_of
from ansible_collections.runbook.deploy.plugins.module_utils._flags_store import (
    Store,
    Values,
    filled,
    one_by_one,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import (
    Answer,
    Target,
    Unanswered,
    exchange,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Such services are often caches of something else, which show a change a moment later.
SETTLE = 3.0
SHOWN = 200
TOKEN = "{token}"


def body_of(template: Any, name: str, value: Any) -> Any:
    """Return *template* filled; a text that is exactly ``{value}`` becomes the value with its type, such as true."""
    if isinstance(template, Mapping):
        return {
            filled(str(key), {"{name}": name}): body_of(item, name, value) for key, item in template.items()
        }
    if isinstance(template, list):
        return [body_of(item, name, value) for item in template]
    if template == "{value}":
        return value
    if isinstance(template, str):
        return filled(template, {"{name}": name, "{value}": text_of(value, name)})
    return template


def address_of(template: str, name: str, value: Any = "") -> str:
    """Return the address with what it names quoted."""
    quote = urllib.parse.quote
    return filled(template, {"{name}": quote(name, safe=""), "{value}": quote(text_of(value, name), safe="")})


class HttpStore(Store):
    """A service; redirects are not followed, so that a token goes nowhere else."""

    settle = SETTLE

    def __init__(self, store: Mapping[str, Any], token: str | None, timeout: float) -> None:
        self.store = store
        self.values = Values(store)
        self.timeout = timeout
        self.token = token or ""
        headers = {str(name): str(value) for name, value in (store.get("headers") or {}).items()}
        if self.token and not any(TOKEN in value for value in headers.values()):
            headers["Authorization"] = f"Bearer {TOKEN}"
        if not self.token and any(TOKEN in value for value in headers.values()):
            raise Problem(
                f"app_flags.store.headers names {TOKEN}, but app_flags_token is empty: set it from a vault."
            )
        self.headers = headers

    def place(self) -> str:
        """See :meth:`Store.place`."""
        return f"service {self.store['show']}"

    def _ask(self, method: str, url: str, body: bytes | None = None, kind: str = "") -> Answer:
        headers = {name: filled(value, {TOKEN: self.token}) for name, value in self.headers.items()}
        if kind:
            headers = {"Content-Type": kind, **headers}
        target = Target(address=url, ca=self.store.get("ca_path"))
        shown = redact(url, [self.token] if self.token else [])
        try:
            answer = exchange(
                target, target.resolve(url), method=method, headers=headers, body=body, timeout=self.timeout
            )
        except Unanswered as error:
            raise Problem(
                f"The service of the flags gave no answer to {method} {shown}: {error.text.rstrip('.')}; start it, or correct "
                "app_flags.store."
            ) from error
        if not 200 <= answer.status < 300:
            where = answer.headers.get("location", "")
            hint = f" (to {where[:SHOWN]}; redirects are not followed)" if where else ""
            raise Problem(
                f"The service of the flags answered {method} {shown} with status {answer.status}{hint}, expected 200 to 299: "
                f"{'set app_flags_token' if answer.status in (401, 403) else 'correct app_flags.store, or see its log'}.",
                redact(answer.text[:SHOWN], [self.token] if self.token else []),
            )
        return answer

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """See :meth:`Store.read`; an address without ``{name}`` is asked once."""
        found: dict[str, str | None] = {}
        answers: dict[str, Answer] = {}
        for name in names:
            url = address_of(self.store["show"], name)
            if url not in answers:
                answers[url] = self._ask("GET", url)
            found[name] = self._value(answers[url].text, name, url)
        return found

    def _value(self, text: str, name: str, url: str) -> str | None:
        path = self.store.get("read")
        if not path:
            return self.values.back(text.strip()) if text.strip() else None
        try:
            document = json.loads(text)
        except ValueError as error:
            raise Problem(
                f"The service of the flags answered GET {url} with what is no JSON ({error}): correct app_flags.store.show.",
                redact(text[:SHOWN], [self.token] if self.token else []),
            ) from error
        there, value = lookup(document, filled(path, {"{name}": name}))
        return self.values.back(value) if there else None

    def write(self, changes: Mapping[str, str | None], go_on: bool = False) -> list[str]:
        """See :meth:`Store.write`; a request that got no answer may have been heard: reading back tells."""

        def one(name: str, value: str | None) -> None:
            thing = self.values.out(value)
            template = self.store.get("body")
            body = None
            kind = ""
            if template is not None:
                made = body_of(template, name, thing)
                kind = "text/plain; charset=utf-8" if isinstance(template, str) else "application/json"
                body = (
                    made if isinstance(made, str) and isinstance(template, str) else json.dumps(made)
                ).encode()
            self._ask(
                self.store.get("method", METHODS[0]), address_of(self.store["url"], name, thing), body, kind
            )

        return one_by_one(changes, one, go_on)
