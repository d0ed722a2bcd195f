# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command that asks by hand what a check asked.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
import shlex
import urllib.parse

from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import Check, Values
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Target

_SENSITIVE = re.compile(r"auth|cookie|token|secret|passw|pwd|key|session|credential", re.IGNORECASE)


def _place_of(url: str) -> tuple[str | None, int]:
    """Return the host and port that *url*, plain HTTP, would be asked at."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname, parts.port or 80


def repeat(check: Check, target: Target, values: Values, method: str) -> str:
    """Return the curl command that asks the same by hand; secrets stay ``{secret.name}`` in it."""
    route = target.resolve(values.fill(check.url, check.where))
    words = ["curl", "-sS", "-i", "--max-time", "10"]
    if check.follow:
        words.append("-L")
    if method == "HEAD":
        words.append("-I")
    elif method != ("POST" if check.form is not None or check.body else "GET"):
        words += ["-X", method]
    url = route.url
    if route.socket:
        words += ["--unix-socket", route.socket]
    elif route.scheme == "https":
        words += [] if target.verify else ["-k"]
        words += ["--cacert", target.ca] if target.ca else []
        name = urllib.parse.urlsplit(f"//{route.host}")
        if name.hostname != route.name:
            words += ["--connect-to", f"{name.hostname}:{name.port or 443}:{route.name}:{route.port}"]
    elif _place_of(url) != (route.name, route.port):
        url = f"http://{route.name}:{route.port}{route.path}"
        words += ["-H", f"Host: {route.host}"]
    for name, text in {**(target.headers if route.target else {}), **check.headers}.items():
        hidden = _SENSITIVE.search(name) and "{secret." not in text
        words += ["-H", f"{name}: {'…' if hidden else values.fill(text, check.where)}"]
    for name, text in (check.form or {}).items():
        hidden = _SENSITIVE.search(name) and "{secret." not in text
        shown = "…" if hidden else values.fill(text, check.where)
        words += ["--form-string" if check.files else "--data-urlencode", f"{name}={shown}"]
    for field, file in check.files.items():
        words += ["-F", f"{field}=@{file.name};type={file.type}"]
    if check.body is not None:
        words += ["--data-binary", values.fill(check.body, check.where)[:500]]
    return shlex.join([*words, url])
