# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages for owners, and the address that takes reports of risks."""

from __future__ import annotations

import json

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe

from owner_agreements.models import AgreementRiskSignal, OwnerAgreement

REPORT_FIELDS = {"agreement", "details", "risk_type", "severity"}


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """Show what GoExplorer is, and its version."""
    context = {
        "version": settings.VERSION,
        "agreements": OwnerAgreement.objects.count(),
        "signals": AgreementRiskSignal.objects.count(),
    }
    return render(request, "owner_agreements/home.html", context)


@require_safe
@login_required
def owners(request: HttpRequest) -> HttpResponse:
    """Show an owner's agreements."""
    return render(request, "owner_agreements/owners.html", {"agreements": request.user.agreements.all()})


@require_safe
@login_required
def document(request: HttpRequest, agreement_id: int) -> FileResponse:
    """Send the document of one of the owner's agreements."""
    agreement = get_object_or_404(OwnerAgreement, pk=agreement_id, owner=request.user)
    try:
        stream = agreement.document.open("rb")
    except (ValueError, FileNotFoundError) as error:
        raise Http404("this agreement has no document") from error
    return FileResponse(stream, as_attachment=True)


@csrf_exempt
@require_POST
def report_signal(request: HttpRequest) -> JsonResponse:
    """Store a risk signal that another system reports as JSON; answer 201 with its id, or 400 and why."""
    try:
        report = json.loads(request.body)
    except ValueError:
        return JsonResponse({"error": "the body is not JSON"}, status=400)
    if not isinstance(report, dict) or not set(report) <= REPORT_FIELDS:
        return JsonResponse(
            {"error": f"expected an object with {', '.join(sorted(REPORT_FIELDS))}"}, status=400
        )
    if "agreement" in report:
        report["agreement_id"] = report.pop("agreement")
    signal = AgreementRiskSignal(**report)
    try:
        signal.full_clean()
    except ValidationError as error:
        return JsonResponse({"error": error.message_dict}, status=400)
    signal.save()
    return JsonResponse({"id": signal.pk, "version": settings.VERSION}, status=201)
