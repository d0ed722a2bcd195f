# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host of the scenario `gates`: its visitors, its services, and what the gates of a deployment's beginning say of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from machine import Machine, until_empty
from runs import Run
from traffic import ask

# Everything is asked at the beginning, as the tests deploy nothing.
MOMENTS = {"test_moments": ["preflight"], "test_visited": ["preflight"]}
# What a deployment must not leave otherwise when it was taken back: what the database is made of, and the rows of all tables.
CONTENT = """SELECT json_build_object(
 'columns', (SELECT json_agg(table_name || '.' || column_name || ' ' || data_type ORDER BY 1)
  FROM (SELECT * FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, ordinal_position) c),
 'indexes', (SELECT json_agg(indexdef ORDER BY indexdef) FROM pg_indexes WHERE schemaname = 'public'),
 'depots', (SELECT json_agg(name ORDER BY name) FROM depots),
 'parcels', (SELECT json_agg(p ORDER BY id) FROM parcels p),
 'databases', (SELECT json_agg(datname ORDER BY datname) FROM pg_database))"""
# What a service or a server may need to be as it was, on a machine that does other things besides.
PATIENCE = 60.0


class Found(NamedTuple):
    """What a run of the gates came to: its exit code, and the verdict of each check that is no pass."""

    code: int
    verdicts: dict[str, str]
    run: Run


class Visitors:
    """Somebody who asks for a page all the time; `lost`: every second time for the one that fails."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._visit, daemon=True)

    def __enter__(self) -> Visitors:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _visit(self) -> None:
        while not self._ended.wait(0.05):
            ask(self.address, "/", host="parcels.example")
            if self.lost:
                ask(self.address, "/lost", host="parcels.example")


class Host:
    """The host, its services, and what the tests do to it; `password`: the broker's, `names`: of all checks."""

    def __init__(self, site: Machine, visitors: Visitors, names: set[str], password: str) -> None:
        self.site = site
        self.password = password
        self.visitors = visitors
        self.names = names

    def deployment(self) -> str:
        """The deployment that serves."""
        return json.loads(self.site.ask(self.site.health).body)["deployment"]

    def unit(self, service: str) -> str:
        """The unit of a service in the instance that is live."""
        return f"{self.site.application}-test-{service}@{self.deployment()}.service"

    def main(self, service: str) -> str:
        """The process of a service that is started by systemd; "0" where there is none."""
        return self.site.run("systemctl", "show", "--property=MainPID", "--value", self.unit(service)).strip()

    def sql(self, statement: str) -> str:
        """What the database's administrator is answered."""
        words = ("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "parcels")
        return self.site.run(*words, user="postgres", text=statement).strip()

    def celery_command(self, *words: str) -> str:
        """A line for a shell that runs the application's own Celery in the environment of its worker."""
        code = "set -a; . {0}/shared/env/{1}.env; cd {0}/current; exec celery -A parcels.tasks {2}"
        return code.format(self.site.root, self.deployment(), " ".join(words))

    def beats(self) -> list[str]:
        """The beats that run."""
        return self.site.attempt("pgrep", "--full", "bin/celery -A parcels.tasks beat").stdout.split()

    def waiting(self) -> list[str]:
        """Nothing as soon as a message waits in the queue."""
        words = ("redis-cli", "--no-auth-warning", "-a", self.password, "llen", "celery")
        return [] if int(self.site.run(*words)) else ["no message waits"]

    def settle(self, question: Callable[[], list[str]]) -> None:
        """Wait until nothing is wrong any more."""
        assert until_empty(question, PATIENCE) == []

    def listening(self, port: int) -> list[str]:
        """Nothing as soon as somebody listens on `port` of the host."""
        words = ("ss", "--listening", "--tcp", "--numeric", "--no-header", f"sport = :{port}")
        return [] if self.site.run(*words).strip() else [f"nobody listens on {port}"]

    def working(self) -> list[str]:
        """Nothing as soon as a worker answers."""
        line = self.celery_command("inspect", "ping", "--timeout", "2")
        done = self.site.attempt("sh", "-c", line, user=self.site.user)
        return [] if done.returncode == 0 else [(done.stdout + done.stderr)[-500:]]

    def journal(self, service: str) -> str:
        """What a service of the instance that is live has written."""
        return self.site.run("journalctl", "--no-pager", "--output=cat", "--unit", self.unit(service))

    def state(self) -> dict[str, object]:
        """What serves, and everything in the database."""
        version = json.loads(self.site.ask(self.site.health).body)["version"]
        return {"version": version, "release": self.site.release(), "database": json.loads(self.sql(CONTENT))}

    def records(self) -> list[str]:
        """The records that the host keeps, each with its digest."""
        return self.site.run("sh", "-c", f"sha256sum {self.site.root}/deployments/*.json").splitlines()

    def newest_record(self) -> dict[str, Any]:
        """The record of the last deployment."""
        path = self.records()[-1].split()[1]
        return json.loads(self.site.run("cat", path))

    def wrong(self, tag: str) -> list[str]:
        """What contradicts that one instance of the version `tag` serves, with all its services, and nothing of another one."""
        commit = self.site.commit(tag)
        answers = [json.loads(self.site.ask(self.site.health).body) for _number in range(6)]
        wanted = {"version": tag, "commit": commit, "status": "ok", "database": "ok"}
        wrong = [
            f"health says {name} {answer[name]!r}, expected {value!r}"
            for answer in answers
            for name, value in {**answers[0], **wanted}.items()
            if answer[name] != value
        ]
        deployment, release = answers[0]["deployment"], answers[0]["release"]
        if self.site.release() != release or not release.startswith(commit[:12]):
            wrong.append(
                f"current leads to {self.site.release()}, {release} answers, expected one of {commit[:12]}"
            )
        wrong += [
            f"process {one['pid']} of deployment {one['deployment']!r}: {one['command']}"
            for one in self.site.probe("processes", self.site.user, user=self.site.user)
            if (one["deployment"], one["release"]) != (deployment, release)
        ]
        listed = self.site.run(
            *("systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service"),
            f"{self.site.application}-test-*",
        )
        units = sorted(tuple(line.split()[:4]) for line in listed.splitlines())
        services = sorted(
            (self.unit(name), "loaded", "active", "running") for name in ("beat", "live", "web", "worker")
        )
        return [
            *dict.fromkeys(wrong),
            *([] if units == services else [f"units {units}, expected {services}"]),
        ]

    def ask(self, *words: str, **variables: object) -> Found:
        """Run the gates of a deployment's beginning; the inventory's variables may be others."""
        more = json.dumps({"version": "v1", **MOMENTS, **variables})
        run = self.site.playbook("pre_deploy", "-e", more, *words)
        verdicts = {check["name"]: check["verdict"] for check in run.checks}
        assert len(run.checks) == len(verdicts)
        # Each was asked, whatever became of the others.
        assert set(verdicts) == self.names, str(run)
        return Found(
            run.code, {name: verdict for name, verdict in verdicts.items() if verdict != "pass"}, run
        )
