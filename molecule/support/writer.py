# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Insert, update and delete through a connection of its own, and say each write that the server acknowledged.

    python3 -c <this text> FIRST PAUSE COMMAND…

COMMAND is the server's own client, psql or mariadb, reading statements from standard input. Each line that is printed is
`acknowledged <mark> <kind>`; before it is sent, a write is announced as `sent <mark>`. Ends with standard input.

A write is known by its mark, `s<number>`. A row's text is `writer` and the marks of all writes on it, so that each of
them is found in a copy of the table or is not, whatever was written before and after it; a row that is deleted leaves its
text, with the mark of the deletion, in the table `writer_deletions`, in the same transaction.

This file's text is given to the host's own ``python3 -c``: standard library only.
"""

from __future__ import annotations

import itertools
import select
import subprocess
import sys
import time
from typing import NamedTuple

END = "--end--"


class Dialect(NamedTuple):
    """The statements of each kind, what makes the client say END, the error and the number of rows, and what it says for one."""

    statements: dict[str, str]
    end: str
    written: list[str]


SIGNALS = "owner_agreements_agreementrisksignal"
SIGNAL = f"SELECT id FROM {SIGNALS} WHERE details LIKE 'writer %' ORDER BY random() LIMIT 1"
# A subquery on the table that is written has to be a table of its own.
LEAD = "SELECT id FROM leads WHERE email LIKE 'writer %' AND CHAR_LENGTH(email) < 170 ORDER BY RAND() LIMIT 1"
DIALECTS = {
    "psql": Dialect(
        {
            "insert": (
                f"INSERT INTO {SIGNALS} (risk_type, severity, details, is_resolved, created_at) "
                "VALUES ('EXPIRING', 'INFO', 'writer {mark}', false, now())"
            ),
            "update": f"UPDATE {SIGNALS} SET details = details || ' {{mark}}' WHERE id = ({SIGNAL})",
            "delete": (
                f"WITH gone AS (DELETE FROM {SIGNALS} WHERE id = ({SIGNAL}) RETURNING details) "
                "INSERT INTO writer_deletions (details) SELECT details || ' {mark}' FROM gone"
            ),
        },
        f"\\echo {END} :SQLSTATE :ROW_COUNT",
        ["00000", "1"],
    ),
    # The first error ends the client, and with it the transaction.
    "mariadb": Dialect(
        {
            "insert": (
                "INSERT INTO leads (email, company, score, created_at) VALUES ('writer {mark}', 'Writers', 0, NOW()); "
                "SET @written = ROW_COUNT()"
            ),
            "update": (
                f"UPDATE leads SET email = CONCAT(email, ' {{mark}}') WHERE id = (SELECT id FROM ({LEAD}) AS one); "
                "SET @written = ROW_COUNT()"
            ),
            "delete": (
                f"START TRANSACTION; SET @gone = ({LEAD}); INSERT INTO writer_deletions (details) "
                "SELECT CONCAT(email, ' {mark}') FROM leads WHERE id = @gone FOR UPDATE; SET @written = ROW_COUNT(); "
                "DELETE FROM leads WHERE id = @gone; SET @written = LEAST(@written, ROW_COUNT()); COMMIT"
            ),
        },
        f"SELECT '{END}', 'no error', @written;",
        ["no", "error", "1"],
    ),
}
# More rows come than go.
ORDER = ("insert", "update", "insert", "update", "delete")


class Client:
    """One process of the server's client; a statement is acknowledged when it says that one row was written."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.dialect = DIALECTS[command[0]]
        self.process: subprocess.Popen[str] | None = None

    def write(self, statement: str) -> bool:
        """Send *statement* and wait for its end; a client that is gone is started again for the next one."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        try:
            self.process.stdin.write(f"{statement};\n{self.dialect.end}\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith(END):
                    return line.split()[1:] == self.dialect.written
        except OSError:
            pass
        self.close()
        return False

    def close(self) -> None:
        """End the client."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def main(first: str, pause: str, *command: str) -> None:
    """Write until standard input ends."""
    client = Client(list(command))
    for number, kind in zip(itertools.count(int(first)), itertools.cycle(ORDER)):
        if select.select([sys.stdin], [], [], float(pause))[0]:
            break
        mark = f"s{number}"
        print(f"sent {mark}", flush=True)
        if client.write(client.dialect.statements[kind].format(mark=mark)):
            print(f"acknowledged {mark} {kind}", flush=True)
        else:
            time.sleep(0.1)
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
