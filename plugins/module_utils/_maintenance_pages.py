# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nginx reads to show the maintenance page: two files, one for its http block and one for the server block. Pure.

Sources: nginx's documentation of ngx_http_rewrite_module (what ``if`` and ``set`` may do in a server block, which runs before a
location is chosen), ngx_http_geo_module, ngx_http_map_module, and of ``internal``, ``error_page`` and ``satisfy`` in its core.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_window import FLAG

MARK = "# Managed by runbook.deploy"
# By this header an answer is known as ours: an application has a 503 of its own.
HEADER = "X-Runbook-Maintenance"
MESSAGE = "The site is being maintained and will be back soon."
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>Maintenance</title>
<style>
body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 32rem; margin: 20vh auto; padding: 0 1.5rem; color: #222; background: #fff; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #1b1b1b; }} }}
</style>
</head>
<body>
<h1>We will be back soon</h1>
<p>{message} Please try again in {wait}.</p>
</body>
</html>
"""


def default_page(retry_after: int) -> str:
    """Return our page; it needs no other file, as nothing else is served meanwhile."""
    minutes = -(-retry_after // 60)
    wait = (
        f"{retry_after} seconds" if retry_after < 60 else "a minute" if minutes == 1 else f"{minutes} minutes"
    )
    return PAGE.format(message=html.escape(MESSAGE), wait=wait)


def variable(name: str, stage: str) -> str:
    """Return the beginning of the names of our variables in nginx, which are global: those of two applications differ.

    >>> variable("my-shop", "prod")
    'runbook_my_shop__prod'
    """
    return f"runbook_{name.replace('-', '_')}__{stage.replace('-', '_')}"


def place(name: str, stage: str) -> str:
    """Return the address below which our locations are; nobody reaches them from outside."""
    return f"/.runbook-maintenance/{name}-{stage}"


def _pattern(path: str) -> str:
    return "^" + path.replace(".", r"\.")


def http_text(name: str, stage: str, options: Mapping[str, Any]) -> str:
    """Return the file for the http block: who is let through, and who gets which answer.

    :param options: ``allow``, ``trusted_proxies``, ``open``, ``json``, ``webhooks``: lists of texts.
    """
    own = variable(name, stage)
    lines = [
        MARK,
        f"# Maintenance of {name} ({stage}): who gets what. Written anew by playbooks/setup.yml and by each maintenance.",
        f"geo ${own}_visitor {{",
        *(f"    proxy {network};" for network in options["trusted_proxies"]),
        *(["    proxy_recursive;"] if options["trusted_proxies"] else []),
        "    default other;",
        *(f"    {network} allowed;" for network in options["allow"]),
        "}",
        # Regular expressions are asked in their order: paused paths are paused whatever else is said of them.
        f"map $uri ${own}_path {{",
        "    default page;",
        *(f'    "~{_pattern(path)}" webhook;' for path in options["webhooks"]),
        *(f'    "~{_pattern(path)}" open;' for path in options["open"]),
        *(f'    "~{_pattern(path)}" json;' for path in options["json"]),
        "}",
        f"map $http_accept ${own}_accept {{",
        "    default page;",
        '    "~*application/([a-z0-9.-]+[+])?json" json;',
        "}",
        # It names nothing of the other file, so that nginx takes it alone, too.
        f'map "${own}_visitor:${own}_path:${own}_accept" ${own}_answer {{',
        '    default "";',
        '    "~^[a-z]+:webhook:" json;',
        '    "~^other:json:" json;',
        '    "~^other:page:json" json;',
        '    "~^other:page:page" page;',
        "}",
    ]
    return "\n".join(lines) + "\n"


def server_text(name: str, stage: str, directory: str, retry_after: int) -> str:
    """Return the file for the server block: the flag, tested at each request, and the answers.

    :param directory: where the flag and the page are.
    """
    own, prefix = variable(name, stage), place(name, stage)
    document = json.dumps({"error": "maintenance", "message": MESSAGE, "retry_after": retry_after})
    headers = [
        f"    add_header Retry-After {retry_after} always;",
        "    add_header Cache-Control no-store always;",
        f"    add_header {HEADER} {name}-{stage} always;",
    ]
    # Whoever is asked for a password is not told; an upload is not refused for its size first.
    always = ["    internal;", "    satisfy any;", "    allow all;", "    client_max_body_size 0;"]
    lines = [
        MARK,
        f"# Maintenance of {name} ({stage}): include this in each of its server blocks.",
        f'set ${own}_now "";',
        f'set ${own}_tens "";',
        f'set ${own}_thousands "";',
        r'if ($msec ~ "^((\d+)\d\d)\d\.") {',
        f"    set ${own}_tens $1;",
        f"    set ${own}_thousands $2;",
        "}",
        f"if (-f {directory}/{FLAG}/t${own}_tens) {{ set ${own}_now ${own}_answer; }}",
        f"if (-f {directory}/{FLAG}/k${own}_thousands) {{ set ${own}_now ${own}_answer; }}",
        # The page is a request of its own inside nginx, which comes here once more.
        f'if ($uri ~ "{_pattern(prefix)}/") {{ set ${own}_now ""; }}',
        f'if (${own}_now = "json") {{ rewrite ^ {prefix}/json? last; }}',
        f'if (${own}_now = "page") {{ rewrite ^ {prefix}/page? last; }}',
        f"location = {prefix}/json {{",
        *always,
        *headers,
        "    default_type application/json;",
        f"    return 503 '{document}';",
        "}",
        f"location = {prefix}/page {{",
        *always,
        # By an address and not by a named location: so a POST gets the page, too.
        f"    error_page 503 {prefix}/page.html;",
        "    return 503;",
        "}",
        f"location = {prefix}/page.html {{",
        *always,
        *headers,
        "    types { }",
        '    default_type "text/html; charset=utf-8";',
        "    open_file_cache off;",
        f"    alias {directory}/page.html;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def ours(text: str) -> bool:
    """Say whether a file with *text* may be written: it is new, empty, or has our mark."""
    return not text.strip() or text.startswith(MARK)
