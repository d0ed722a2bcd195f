# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to every request."""

from __future__ import annotations

import os
from typing import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse


class ReleaseMiddleware:
    """Say in each answer which version, and which release directory, made it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.release = os.environ.get("RUNBOOK_RELEASE", "")

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer *request*, with the headers added."""
        response = self.get_response(request)
        response["X-Goexplorer-Version"] = settings.VERSION
        if self.release:
            response["X-Goexplorer-Release"] = self.release
        return response
