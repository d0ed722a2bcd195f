# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Explains risk signals to the administrators who have to decide."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from owner_agreements.models import AgreementRiskSignal

logger = logging.getLogger(__name__)

# For each kind of risk: why it happens, what to do, what follows from doing nothing.
KNOWLEDGE = {
    "LATE_PAYMENT": (
        "A payment of this owner was due and has not arrived.",
        "Call the owner and agree on a date for the payment.",
        "The agreement may be suspended, and bookings of the property lost.",
    ),
    "EXPIRING": (
        "The agreement ends soon and nobody has renewed it.",
        "Send the owner the renewed agreement to sign.",
        "The property disappears from the search on the day the agreement ends.",
    ),
    "COMPLAINTS": (
        "Guests complained about the property more often than usual.",
        "Read the complaints and arrange a visit to the property.",
        "Bad reviews lower the bookings of the property for months.",
    ),
    "DOCUMENT_MISSING": (
        "A document that the law asks for was never uploaded.",
        "Ask the owner for the document and close bookings until it is there.",
        "The authorities may fine the owner and GoExplorer.",
    ),
}
ORDER = {"CRITICAL": 0, "WARNING": 1, "INFO": 2}


@dataclass(frozen=True)
class Explanation:
    """What an administrator reads about one signal; confidence is HIGH, MEDIUM or LOW."""

    signal: AgreementRiskSignal
    why: str
    action: str
    consequences: str
    confidence: str
    confidence_reason: str


class DecisionAssistService:
    """Explanations from rules; nothing is stored."""

    def explain_risk_signal(self, signal: AgreementRiskSignal) -> Explanation:
        """Return the explanation of *signal*."""
        logger.info("[DECISION_ASSIST] Explaining risk signal #%s (%s)", signal.pk, signal.risk_type)
        why, action, consequences = KNOWLEDGE[signal.risk_type]
        confidence, reason = self.confidence(signal)
        return Explanation(signal, why, action, consequences, confidence, reason)

    def confidence(self, signal: AgreementRiskSignal) -> tuple[str, str]:
        """Return how sure the explanation is, and why: it depends on what the report holds."""
        known = [signal.agreement_id is not None, bool(signal.details.strip())]
        if all(known):
            return "HIGH", "The report names the agreement and gives details."
        if any(known):
            return "MEDIUM", "The report names the agreement or gives details, not both."
        return "LOW", "The report names no agreement and gives no details."

    def top_actions(self, limit: int = 3) -> list[Explanation]:
        """Return the explanations of the unresolved critical signals, oldest first, at most *limit*."""
        critical = AgreementRiskSignal.objects.filter(is_resolved=False, severity="CRITICAL")
        return [self.explain_risk_signal(signal) for signal in critical.order_by("created_at", "pk")[:limit]]
