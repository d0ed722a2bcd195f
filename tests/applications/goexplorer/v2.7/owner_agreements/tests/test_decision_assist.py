# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The explanations."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.test import TestCase
from owner_agreements.decision_assist import KNOWLEDGE, ORDER, DecisionAssistService
from owner_agreements.models import AgreementRiskSignal, OwnerAgreement


class DecisionAssistTest(TestCase):
    """``DecisionAssistService``."""

    def setUp(self) -> None:
        """Make an agreement."""
        owner = get_user_model().objects.create_user("owner")
        self.agreement = OwnerAgreement.objects.create(owner=owner, property_name="Lighthouse")
        self.service = DecisionAssistService()

    def test_every_kind_of_risk_is_known(self) -> None:
        """No kind and no severity lacks its entry."""
        self.assertEqual(set(KNOWLEDGE), set(AgreementRiskSignal.RiskType.values))
        self.assertEqual(set(ORDER), set(AgreementRiskSignal.Severity.values))

    def test_confidence_follows_the_report(self) -> None:
        """The more a report holds, the surer the explanation."""
        for agreement, details, expected in [
            (self.agreement, "late", "HIGH"),
            (None, "late", "MEDIUM"),
            (None, " ", "LOW"),
        ]:
            with self.subTest(expected=expected):
                signal = AgreementRiskSignal(agreement=agreement, details=details, risk_type="EXPIRING")
                self.assertEqual(self.service.confidence(signal)[0], expected)

    def test_explanation_is_logged(self) -> None:
        """The log names the signal and its kind."""
        signal = AgreementRiskSignal.objects.create(risk_type="EXPIRING")
        with self.assertLogs("owner_agreements.decision_assist", "INFO") as log:
            explanation = self.service.explain_risk_signal(signal)
        self.assertIn(f"[DECISION_ASSIST] Explaining risk signal #{signal.pk} (EXPIRING)", log.output[0])
        self.assertEqual(explanation.action, KNOWLEDGE["EXPIRING"][1])

    def test_top_actions_are_critical_unresolved_and_few(self) -> None:
        """Oldest first, and nothing that is done."""
        made = [
            AgreementRiskSignal.objects.create(risk_type="EXPIRING", severity="CRITICAL")
            for _number in range(4)
        ]
        AgreementRiskSignal.objects.create(risk_type="EXPIRING", severity="INFO")
        made[0].is_resolved = True
        made[0].save()
        self.assertEqual([action.signal for action in self.service.top_actions(2)], made[1:3])
