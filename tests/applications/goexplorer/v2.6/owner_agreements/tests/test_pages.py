# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages that everybody and that owners see."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.test import TestCase

from owner_agreements.models import OwnerAgreement


class PagesTest(TestCase):
    """Home, login, the owner's page and what does not exist."""

    def test_home_shows_the_version(self) -> None:
        """The version is on the page and in the header."""
        response = self.client.get("/")
        self.assertContains(response, settings.VERSION)
        self.assertContains(response, "owner_agreements/site.css")
        self.assertEqual(response["X-Goexplorer-Version"], settings.VERSION)

    def test_owner_page_needs_a_login(self) -> None:
        """A visitor is sent to the login page."""
        self.assertRedirects(self.client.get("/owners/"), "/login/?next=/owners/")

    def test_owner_sees_own_agreements_only(self) -> None:
        """Another owner's agreement is neither listed nor sent."""
        users = get_user_model().objects
        owner, other = users.create_user("owner", password="p"), users.create_user("other", password="p")
        mine = OwnerAgreement.objects.create(owner=owner, property_name="Lighthouse")
        mine.document.save("mine.txt", ContentFile(b"mine"))
        theirs = OwnerAgreement.objects.create(owner=other, property_name="Old Mill")
        self.client.force_login(owner)
        response = self.client.get("/owners/")
        self.assertContains(response, "Lighthouse")
        self.assertNotContains(response, "Old Mill")
        sent = self.client.get(f"/owners/documents/{mine.pk}/")
        self.assertEqual(b"".join(sent.streaming_content), b"mine")
        self.assertEqual(self.client.get(f"/owners/documents/{theirs.pk}/").status_code, 404)

    def test_missing_page_below_admin_is_not_found(self) -> None:
        """A visitor can tell a page that is not there from one that needs a login."""
        self.assertEqual(self.client.get("/admin/no-such-page/").status_code, 404)
        self.assertEqual(self.client.get("/admin/").status_code, 302)
