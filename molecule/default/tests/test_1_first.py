# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first deployment, made by the converge: v2.6 answers through nginx, as its own user, out of that user's reach."""

from __future__ import annotations

import json
import re

import pytest
from disclosure import in_files_of_everybody

testinfra_hosts = ["ansible://app"]
# What the application's user has no business to change; shared paths, its sockets and its database are its own.
KEPT = (
    "releases",
    "environments",
    "tools",
    "repository.git",
    "deployments",
    "backups",
    "shared/static",
    "shared/env",
)


class TestFirstDeployment:
    def test_exactly_one_instance_of_v2_6_serves(self, site):
        assert site.wrong("v2.6") == []

    def test_the_web_server_is_in_front(self, site, host):
        page = site.ask("/")
        assert page.status == 200
        assert page.headers["server"].startswith("nginx")
        assert b"GoExplorer" in page.body
        # Nothing of the application listens on the network.
        listening = host.run("ss --listening --tcp --numeric --processes --no-header").stdout
        assert "gunicorn" not in listening
        assert "python" not in listening
        assert "nginx" in listening

    def test_static_files_come_from_the_web_server(self, site):
        paths = re.findall(r'(?:href|src)="(/static/[^"]+)"', site.ask("/").body.decode())
        assert paths
        for path in paths:
            answer = site.ask(path)
            assert (answer.status, answer.version) == (200, ""), path

    def test_the_user_is_the_application_s_own(self, host):
        user = host.user("goexplorer")
        assert user.shell == "/usr/sbin/nologin"
        assert user.uid not in (0, host.user("www-data").uid)
        assert host.run("sudo passwd --status goexplorer").stdout.split()[1] == "L"
        assert {process.user for process in host.process.filter(comm="gunicorn")} <= {"goexplorer"}

    def test_the_service_has_no_more_of_the_host_than_it_needs(self, site):
        """By the kernel's own account of the process, and by what fails in its view of the files, even for root."""
        look = """
            touch /tmp/of-the-host; pid=$(pgrep -o -u goexplorer gunicorn) && grep NoNewPrivs /proc/$pid/status
            nsenter --target "$pid" --mount sh -c '
                for path in /etc /usr /srv/goexplorer/releases /srv/goexplorer/shared; do test -w $path && echo "may write $path"; done
                test -e /tmp/of-the-host && echo "sees /tmp"; true'
        """
        assert site.run("sh", "-c", look).split() == [
            "NoNewPrivs:",
            "1",
            "may",
            "write",
            "/srv/goexplorer/shared",
        ]

    def test_the_boot_unit_alone_is_enabled(self, host):
        assert host.service("goexplorer-test.service").is_enabled
        enabled = host.run(
            "systemctl list-unit-files --state=enabled --no-legend 'goexplorer*'"
        ).stdout.split("\n")
        assert [line.split()[0] for line in enabled if line] == ["goexplorer-test.service"]

    def test_the_initial_command_has_run_once(self, site):
        counts = site.database()["counts"]
        assert counts["owner_agreements_owneragreement"] == 3
        assert counts["auth_user"] == 2
        documents = site.run("find", f"{site.root}/shared/media", "-name", "GX-*.txt").split()
        assert len(documents) == 3

    def test_no_backup_of_an_empty_database(self, site):
        assert site.run("sh", "-c", f"ls {site.root}/backups").split() == []

    def test_a_reboot_brings_it_back(self, reboot):
        assert reboot("v2.6") == []


class TestOutOfTheApplicationsReach:
    def test_nothing_of_it_is_writable_for_its_user(self, site):
        assert site.probe("writable", *(f"{site.root}/{path}" for path in KEPT), user=site.user) == []

    def test_its_own_paths_are_writable_for_its_user(self, site):
        """The test above would find a writable path."""
        found = site.probe(
            "writable", f"{site.root}/shared/media", site.database_path.rpartition("/")[0], user=site.user
        )
        assert f"{site.root}/shared/media" in found
        assert site.database_path in found

    @pytest.mark.parametrize(
        "command",
        [
            "echo >> current/manage.py",
            "rm current/manage.py",
            "mv current current2",
            "ln -sfn /tmp current",
            "rm current",
            "mkdir releases/x",
            "touch releases/$(readlink current | cut -d/ -f2)/x",
            "chmod -R u+w releases",
            "touch environments/x",
            "touch $(ls -d environments/*)/lib/x",
            "mv releases releases2",
            "rm shared/env/*.env",
            "ln -sfn /tmp run/web.sock",
            "rm run/web.sock",
            "ls backups",
            "ls deployments",
        ],
    )
    def test_its_user_is_refused(self, site, command):
        before = site.run("ls", "-lR", f"{site.root}/releases", f"{site.root}/shared/env", f"{site.root}/run")
        done = site.attempt("sh", "-c", f"cd {site.root} && {command}", user=site.user)
        assert done.returncode != 0
        assert re.search("denied|not permitted|Read-only", done.stderr), done.stderr
        after = site.run("ls", "-lR", f"{site.root}/releases", f"{site.root}/shared/env", f"{site.root}/run")
        assert after == before

    def test_the_environment_file_is_for_root_and_the_application(self, site, host, secrets):
        deployment = json.loads(site.ask("/healthz/").body)["deployment"]
        with host.sudo():
            file = host.file(f"{site.root}/shared/env/{deployment}.env")
            assert file.mode == 0o640
            assert (file.user, file.group) == ("root", "goexplorer")
            assert secrets["key"] in file.content_string
        modes = site.run("find", f"{site.root}/shared/env", "-type", "f", "-printf", "%m\n").split()
        assert set(modes) == {"640"}
        assert site.attempt("cat", file.path, user="nobody").returncode != 0

    def test_no_stranger_on_the_host_can_read_a_secret(self, site, secrets):
        looked = in_files_of_everybody(site, secrets)
        assert looked["found"] == []
        assert looked["read"] > 1000

    def test_a_stranger_would_find_what_he_can_read(self, site, secrets):
        """The test above would find a secret."""
        site.run("sh", "-c", "umask 022; cat > /var/tmp/left-behind", text=f"x={secrets['build']}\n")
        try:
            assert in_files_of_everybody(site, secrets)["found"] == ["/var/tmp/left-behind"]
        finally:
            site.run("rm", "/var/tmp/left-behind")
