# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run playbooks while everybody writes to a database server, and say what holds after each, whatever became of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, Protocol

from disclosure import in_files_of_everybody, in_journal, in_records, in_reports, in_text
from machine import Machine
from seen import backups
from traffic import Traffic
from writes import Book, Copy, Writer, contradictions, missing


class Server(Protocol):
    """A database server of a test host, asked by its own clients: postgresql.py, mariadb.py."""

    def kept(self) -> list[str]:
        """The former databases that restores have put aside, oldest first."""

    def strangers(self) -> list[str]:
        """Databases that nobody should have left behind."""

    def objects(self, database: str = "") -> dict[str, str]:
        """Everything in a database that is no row."""

    def copy(self, database: str = "") -> Copy:
        """What the writers left in a database."""

    def backup(self, path: str) -> Copy:
        """What the writers left in the dump in the directory `path`."""


class Access(NamedTuple):
    """How writer.py reaches the database past the application: a client's command, and who runs it on the host."""

    command: tuple[str, ...]
    user: str


class Steps:
    """The steps of a scenario on one host.

    :param secrets: by name; looked for after every step wherever they must not be, that named `database` also in the files
        that everybody on the host can read. :param reports: where the controller stores reports.
    """

    def __init__(
        self,
        site: Machine,
        server: Server,
        book: Book,
        access: Access,
        secrets: dict[str, str],
        reports: Path,
    ) -> None:
        self.site = site
        self.server = server
        self.book = book
        self.access = access
        self.secrets = secrets
        self.reports = reports
        self._seen: dict[str, Copy] = {}

    @contextlib.contextmanager
    def writing(self) -> Iterator[Traffic]:
        """People who write through the application and past it, for as long as the context lasts."""
        writer = Writer(self.site, self.book, self.access.command, self.access.user)
        with writer, Traffic(self.site.address, self.book, pause=0.1) as traffic:
            time.sleep(0.5)
            yield traffic

    def run(
        self,
        name: str,
        *words: str,
        quiet: bool = False,
        meanwhile: contextlib.AbstractContextManager | None = None,
    ) -> SimpleNamespace:
        """Run a playbook while everybody writes (`quiet`: nobody) and `meanwhile` lasts; return what was seen."""
        site, book = self.site, self.book
        before = SimpleNamespace(
            backups=backups(site),
            kept=self.server.kept(),
            book=set(book.acknowledged),
            objects=self.server.objects(),
        )
        load = contextlib.nullcontext() if quiet else self.writing()
        with meanwhile or contextlib.nullcontext(), site.commands() as seen, load as traffic:
            done = site.playbook(name, *words)
        # Kept where a person finds it when a step fails: pytest shows it then.
        print(f"\n[{done.seconds:.1f} s, exit code {done.code}] {done.command}\n{done.report}")
        return SimpleNamespace(
            run=done,
            traffic=traffic,
            before=before,
            seen=seen,
            disclosed=self._disclosed("\n".join(seen), done.output),
            written=len(set(book.acknowledged) - before.book),
        )

    def _disclosed(self, commands: str, output: str) -> list[str]:
        """Where a secret is that must not be there."""
        site, secrets = self.site, self.secrets
        places = {
            "process": in_text(secrets, commands),
            "output": in_text(secrets, output),
            "record": in_records(site, secrets),
            "report": in_reports(self.reports, secrets),
            "journal": in_journal(site, secrets),
        }
        found = [f"{place} {name}" for place, names in places.items() for name in names]
        return found + in_files_of_everybody(site, {"database": secrets["database"]})["found"]

    def everything(self, settled: bool = True) -> SimpleNamespace:
        """Find each acknowledged write, one by one, in what is there now; backups are restored only for what is nowhere else.

        :param settled: whether what was put aside changes no more, so that it need not be read again next time.
        """
        copies = [self.server.copy()]
        copies += [self._once(name, settled, self.server.copy, name) for name in self.server.kept()]
        lost = missing(self.book.acknowledged, copies)
        for name in sorted(backups(self.site), reverse=True) if lost else []:
            copies.append(self._once(name, True, self.server.backup, f"{self.site.root}/backups/{name}"))
            lost = missing(lost, copies[-1:])
            if not lost:
                break
        wrong = [each for copy in copies for each in contradictions(copy, self.book.sent)]
        return SimpleNamespace(live=copies[0], copies=copies, lost=lost, wrong=wrong)

    def _once(self, name: str, settled: bool, read: Callable[[str], Copy], where: str) -> Copy:
        """Read a copy that does not change only the first time."""
        found = self._seen.get(name) or read(where)
        if settled:
            self._seen[name] = found
        return found

    def untidy(self) -> list[str]:
        """What is left behind: databases and scratch directories, or backups that others can read."""
        root = self.site.root
        wrong = [f"database {name}" for name in self.server.strangers()]
        wrong += [f"scratch {name}" for name in self.site.run("ls", "-A", f"{root}/scratch").split()]
        modes = set(self.site.run("find", f"{root}/backups", "-printf", "%y %m %u\n").splitlines())
        return wrong + [f"mode {mode}" for mode in modes - {"d 700 root", "f 600 root"}]

    def check(self, done: SimpleNamespace, serving: str) -> None:
        """What holds after every step: the release `serving` serves, no write is lost, nothing left behind, nothing disclosed."""
        assert self.site.wrong_soon(serving) == [], str(done.run)
        assert self.untidy() == []
        assert done.disclosed == []
        found = self.everything()
        assert found.lost == []
        assert found.wrong == []

    def told(self) -> str:
        """Where the acknowledged writes are, in words."""
        found, all_of_them = self.everything(), set(self.book.acknowledged)
        places = [f"{len(copy.marks & all_of_them)} in {copy.name}" for copy in found.copies]
        return f"{len(all_of_them)} writes acknowledged ({dict(self.book.kinds())}): {', '.join(places)}"
