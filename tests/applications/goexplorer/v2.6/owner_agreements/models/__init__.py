# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What GoExplorer stores."""

from __future__ import annotations

from owner_agreements.models.agreements import OwnerAgreement
from owner_agreements.models.signals import AgreementRiskSignal

__all__ = ["AgreementRiskSignal", "OwnerAgreement"]
