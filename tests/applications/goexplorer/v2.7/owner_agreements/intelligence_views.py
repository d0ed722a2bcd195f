# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages for administrators: what is at risk, why, and what they noted about it."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Callable

from django import forms
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from owner_agreements.decision_assist import ORDER, DecisionAssistService
from owner_agreements.models import AdminNote, AgreementRiskSignal

logger = logging.getLogger(__name__)
View = Callable[..., HttpResponse]


def staff_only(view: View) -> View:
    """Send visitors to the administration's login page and refuse everybody who is not staff."""

    @wraps(view)
    def guarded(request: HttpRequest, **arguments: int) -> HttpResponse:
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path(), reverse("admin:login"))
        if not (request.user.is_active and request.user.is_staff):
            raise PermissionDenied
        return view(request, **arguments)

    return never_cache(guarded)


class AdminNoteForm(forms.ModelForm):
    """The form below a signal."""

    class Meta:
        model = AdminNote
        fields = ["note_text"]
        labels = {"note_text": "Note"}


@require_safe
@staff_only
def dashboard(request: HttpRequest) -> HttpResponse:
    """Show how many signals there are and what to do first."""
    context = {
        "counts": AgreementRiskSignal.objects.aggregate(
            total=Count("pk"),
            unresolved=Count("pk", filter=Q(is_resolved=False)),
            critical=Count("pk", filter=Q(is_resolved=False, severity="CRITICAL")),
        ),
        "actions": DecisionAssistService().top_actions(),
    }
    return render(request, "owner_agreements/intelligence/dashboard.html", context)


@require_safe
@staff_only
def signals(request: HttpRequest) -> HttpResponse:
    """List the unresolved signals, the worst first; at most 200."""
    service = DecisionAssistService()
    found = list(AgreementRiskSignal.objects.filter(is_resolved=False).select_related("agreement")[:200])
    found.sort(key=lambda signal: (ORDER[signal.severity], signal.pk))
    rows = [(signal, service.confidence(signal)[0]) for signal in found]
    return render(request, "owner_agreements/intelligence/signals.html", {"rows": rows})


def show_signal(
    request: HttpRequest, signal: AgreementRiskSignal, form: AdminNoteForm, status: int
) -> HttpResponse:
    """Answer with the page of *signal*, holding *form*."""
    context = {
        "explanation": DecisionAssistService().explain_risk_signal(signal),
        "form": form,
        "notes": signal.admin_notes.select_related("admin_user"),
        "signal": signal,
    }
    return render(request, "owner_agreements/intelligence/signal_detail.html", context, status=status)


@require_safe
@staff_only
def signal_detail(request: HttpRequest, signal_id: int) -> HttpResponse:
    """Explain one signal and show its notes."""
    return show_signal(request, get_object_or_404(AgreementRiskSignal, pk=signal_id), AdminNoteForm(), 200)


@require_POST
@staff_only
def add_note(request: HttpRequest, signal_id: int) -> HttpResponse:
    """Store a note about one signal."""
    signal = get_object_or_404(AgreementRiskSignal.objects.select_related("agreement__owner"), pk=signal_id)
    form = AdminNoteForm(request.POST, instance=AdminNote(signal=signal, admin_user=request.user))
    if not form.is_valid():
        return show_signal(request, signal, form, 400)
    form.save()
    logger.info(
        "[ADMIN_NOTE] Created by %s on RISK_SIGNAL (signal=%s, owner=%s)",
        request.user.get_username(),
        signal.pk,
        signal.agreement.owner.get_username() if signal.agreement else "none",
    )
    messages.success(request, "Internal note added successfully")
    return redirect("intelligence_signal", signal_id=signal.pk)
