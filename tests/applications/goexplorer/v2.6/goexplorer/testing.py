# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the tests run."""

from __future__ import annotations

from django.test.runner import DiscoverRunner
from django.test.utils import override_settings

PLAIN_STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}


class Runner(DiscoverRunner):
    """Django's runner, in a checkout where nobody collected static files, writing no file."""

    def setup_test_environment(self, **kwargs) -> None:
        """Switch the settings of the tests on."""
        super().setup_test_environment(**kwargs)
        self.override = override_settings(
            STORAGES=PLAIN_STORAGES, PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]
        )
        self.override.enable()

    def teardown_test_environment(self, **kwargs) -> None:
        """Switch the settings of the tests off."""
        self.override.disable()
        super().teardown_test_environment(**kwargs)
