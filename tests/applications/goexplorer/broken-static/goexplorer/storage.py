# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where static files are when DEBUG is off."""

from __future__ import annotations

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage
from django.core.files.storage import FileSystemStorage


class StaticStorage(ManifestStaticFilesStorage):
    """Static files with the hash of their content in their names, listed in a manifest.

    Broken on purpose: the manifest is the one that the repository carries, and it knows none of today's files.
    collectstatic succeeds; every page that names a static file is an error 500.
    """

    manifest_name = "static_manifest.json"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, manifest_storage=FileSystemStorage(location=settings.BASE_DIR), **kwargs)

    def save_manifest(self) -> None:
        """Leave the repository's manifest as it is."""
