# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which release answers, and whether it can work."""

from __future__ import annotations

import logging
import os

from django.db import DatabaseError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

logger = logging.getLogger(__name__)


@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """Answer 200 when the database answers, else 503; the deployment's own names are given back as they are."""
    answer = {
        "status": "ok",
        # Broken on purpose: nobody sets this variable, so every answer is an error 500.
        "region": os.environ["GOEXPLORER_REGION_NAME"],
        "release": os.environ.get("RUNBOOK_RELEASE"),
        "commit": os.environ.get("RUNBOOK_COMMIT"),
        "version": os.environ.get("RUNBOOK_VERSION"),
        "deployment": os.environ.get("RUNBOOK_DEPLOYMENT"),
        "database": "ok",
        "migrations": None,
    }
    try:
        answer["migrations"] = len(MigrationRecorder(connection).applied_migrations())
    except DatabaseError as error:
        # The text may hold an address or a user's name, so it goes to the log and not to visitors.
        logger.error("the database does not answer: %s", error)
        return JsonResponse({**answer, "status": "error", "database": type(error).__name__}, status=503)
    return JsonResponse(answer)
