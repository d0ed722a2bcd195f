# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection is cut in a migration of a minute, while the controller lives: it waits for the migration, and then takes the deployment back."""

from __future__ import annotations

import subprocess
import time

from site_tools import DATABASE, ROOT

SECONDS = 60
# Whoever uses the database keeps the migration waiting until it is stopped; no longer than SQLite waits.
HOLDER = f"""
import glob, os, sqlite3, time
while not glob.glob("{ROOT}/deployments/*.work"):
    if any('"collectstatic"' in open(path).read() for path in glob.glob("{ROOT}/deployments/*.json")[-1:]):
        break
    time.sleep(0.02)
connection = sqlite3.connect("{DATABASE}", isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
open("/run/held", "w").close()
while os.path.exists("/run/held"):
    time.sleep(0.02)
connection.execute("ROLLBACK")
"""
# The migration's own process, below the one that outlives connections.
WORKER = f"grep -ho '\"pid\": [0-9]*' {ROOT}/deployments/*.work/migrate.json | head -1 | grep -o '[0-9]*'"
STOP = f"""
for i in $(seq 6000); do
    worker=$({WORKER} 2>/dev/null)
    if [ -n "$worker" ] && pkill -STOP -P "$worker"; then rm -f /run/held; echo "$worker"; exit 0; fi
    sleep 0.02
done
exit 1
"""
# Every connection, and not the server.
CUT = "pkill -KILL -f '^sshd(-session)?: [a-z_][a-z0-9_-]*(@| \\[priv\\])'"


def test_the_connection_is_cut_in_a_migration(alone):
    lost = alone.members[0]
    script = ["docker", "exec", "--interactive", lost.container, "python3", "-c", HOLDER]
    holder = subprocess.Popen(script, stdin=subprocess.DEVNULL)
    running = alone.start(alone.command("deploy", version="v2.7"))
    try:
        worker = lost.sh(STOP)
        begun = time.monotonic()
        lost.sh(CUT)
        until = begun + 120
        while f"still runs as process {worker}" not in alone.output.read_text(encoding="utf-8"):
            assert running.poll() is None and time.monotonic() < until, alone.output.read_text()[-4000:]
            time.sleep(0.2)
        # Nothing is taken back meanwhile, and the lock is kept.
        while time.monotonic() < begun + SECONDS:
            assert running.poll() is None, alone.output.read_text()[-4000:]
            assert lost.version() == "v2.6"
            time.sleep(1)
        lost.sh(f"pkill -CONT -P {worker}")
        code = running.wait(240)
    finally:
        lost.sh(f"rm -f /run/held; pkill -CONT -P $({WORKER} 2>/dev/null) 2>/dev/null; true")
        running.kill()
        running.wait()
        holder.kill()
        holder.wait()
    said = alone.output.read_text(encoding="utf-8")
    assert code != 0 and f"still runs as process {worker}" in said, said[-6000:]
    assert lost.version() == "v2.6" and len(lost.instances()) == 1, said[-6000:]
    (record,) = (found for found in lost.records() if found["version"] == "v2.7")
    assert record["verdict"] == "rolled_back", record["verdict"]
    # The migration came to its end, once.
    assert [phase["state"] for phase in record["phases"] if phase["phase"] == "migrate"] == ["done"]
    assert not lost.sh(f"ls -d {ROOT}/deployments/*.work {ROOT}/deployment.lock 2>/dev/null", check=False)
    assert "nothing needs attention." in alone.good("status").end
    alone.good("deploy", version="v2.7")
    assert lost.version() == "v2.7"
    query = "select count(*) from django_migrations where name = '0004_adminnote'"
    assert lost.rows(query) == ["1"]
