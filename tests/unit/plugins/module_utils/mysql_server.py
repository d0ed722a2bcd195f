# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MySQL's own server in the place of MariaDB's: the tests of the engine ``mysql`` run on it where MYSQL_BIN names its programs.

``make test-mysql`` fetches the server and runs them so.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils import django_servers

# The directory with mysqld, mysql and mysqldump of MySQL; empty: MariaDB's server is used.
BIN = os.environ.get("MYSQL_BIN", "")
OWN = bool(BIN)
if OWN:
    # What is tested looks for its clients there.
    os.environ["PATH"] = os.pathsep.join([BIN, os.environ.get("PATH", "")])


def portable(statement: str) -> str:
    """Return *statement* of MariaDB's for the server in use: MySQL has no ``seq_1_to_N``."""
    if not OWN:
        return statement
    return re.sub(
        r"\bFROM seq_1_to_(\d+)",
        lambda found: (
            f"FROM JSON_TABLE(CONCAT('[1', REPEAT(',1', {int(found.group(1)) - 1}), ']'), '$[*]' COLUMNS (seq FOR ORDINALITY)) AS s"
        ),
        statement,
    )


class Mysql(django_servers.Mariadb):
    """MySQL, with what it does by default: caching_sha2_password, a certificate of its own, a binary log."""

    def require(self) -> None:
        """See :meth:`Mariadb.require`: it is where ``MYSQL_BIN`` says."""

    def initialise(self) -> None:
        """See :meth:`Mariadb.initialise`."""
        self.run(self.program("mysqld"), "--no-defaults", "--initialize-insecure", *self.options())

    @staticmethod
    def program(name: str) -> str:
        """Return the path of MySQL's own *name*."""
        return str(Path(BIN) / name)

    def options(self) -> tuple[str, ...]:
        """Return where everything of this server is."""
        return (
            f"--datadir={self.data}",
            f"--tmpdir={self.directory}",
            f"--log-error={self.directory}/log",
            # Nothing is ever to be read after a power cut.
            *(
                "--innodb-flush-log-at-trx-commit=2",
                "--innodb-flush-method=nosync",
                "--innodb-doublewrite=OFF",
                "--sync-binlog=0",
            ),
            # With a binary log nobody but an administrator may make a trigger, unless this is on.
            "--log-bin-trust-function-creators=ON",
            "--secure-file-priv=NULL",
        )

    def start(self) -> None:
        self.spawn(
            *(self.program("mysqld"), "--no-defaults", *self.options()),
            *(f"--socket={self.socket}", f"--port={self.port}", "--bind-address=127.0.0.1"),
            *("--mysqlx=OFF", f"--pid-file={self.directory}/pid"),
        )

    def sql(self, statement: str, database: str | None = "shop") -> list[list[str]]:
        out = self.run(
            *(self.program("mysql"), "--no-defaults", f"--socket={self.socket}", "-u", "root", "-N", "-B"),
            *("-e", portable(statement), *([database] if database else [])),
        )
        return [line.split("\t") for line in out.splitlines()]
