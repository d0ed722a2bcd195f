# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What supervisord runs when it starts: a script that starts the instance of the current release, and no other.

It follows the same links as the boot unit under systemd, so that ``current`` alone decides. Once in the life of a
supervisord it does anything: a stamp names the one that it was done for, so that a ``supervisorctl update`` by
hand starts nothing that was stopped.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout

# In the environment of everything that supervisord runs for an application, with the application's root.
MARK = "RUNBOOK_SUPERVISOR"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# A supervisord that was killed leaves its programs running without it. These half seconds they have from TERM to KILL.
HALVES = 60

_SCRIPT = r"""#!/bin/sh
# Run by supervisord when it starts: starts the instance of the current release, and no other. Written by runbook.deploy.
root={root}
control={control}
config={config}
application={application}
born() {{ sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }}
# What an earlier supervisord started: it has our mark, and is older than the one that started us.
left() {{
  for pid in $(grep -lzxF -- "{mark}=$root" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3); do
    at=$(born "$pid")
    [ "${{at:-$own}}" -ge "$own" ] || echo "$pid"
  done
}}
cd "$root/shared/env" || exit 1
own=$(born "$PPID")
stamp="$(cat {boot_id}) $PPID $own"
[ "$(cat {stamp_name} 2>/dev/null)" != "$stamp" ] || exit 0
members=" $(left | tr '\n' ' ') "
for pid in $members; do
  parent=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -d' ' -f2)
  case $members in *" $parent "*) ;; *) kill -TERM "$pid" 2>/dev/null ;; esac
done
waited=0
while [ -n "$(left)" ] && [ "$waited" -lt {halves} ]; do waited=$((waited+1)); sleep 0.5; done
for pid in $(left); do kill -KILL "$pid" 2>/dev/null; done
release=$(readlink ../../current) && deployment=$(readlink "${{release##*/}}.deployment") && [ -f "$deployment.supervisor" ] || exit 0
set --
while read -r service address; do
  if [ "$address" = socket ]; then
    ln -sfnT "$service.$deployment.sock" "../../run/.$service.boot" && mv -fT "../../run/.$service.boot" "../../run/$service.sock" || exit 1
  fi
  set -- "$@" "$application-$service-$deployment"
done <"$deployment.supervisor"
[ "$#" -eq 0 ] || "$control" -c "$config" start "$@" || exit 1
echo "$stamp" >{stamp_name}
"""


def script_file(layout: Layout) -> Path:
    """Return the script that supervisord runs when it starts."""
    return layout.instances / "supervisor.sh"


def stamp_file(layout: Layout) -> Path:
    """Return the file that names the supervisord which has started what is current."""
    return layout.instances / "supervisor.started"


def boot_stamp(pid: int) -> str:
    """Return what the stamp says of the supervisord *pid*: no other has had it since the machine was made."""
    with open(BOOT_ID, encoding="ascii") as stream:
        return f"{stream.read().strip()} {pid} {_processes.start_time(pid)}\n"


def boot_script(layout: Layout, application: tuple[str, str], control: str, config: str) -> str:
    """Return the script.

    :param application: name and stage; :param control: path of supervisorctl; :param config: the file it is told with ``-c``.
    """
    return _SCRIPT.format(
        root=shlex.quote(str(layout.root)),
        control=shlex.quote(control),
        config=shlex.quote(config),
        application=shlex.quote("-".join(application)),
        mark=MARK,
        boot_id=BOOT_ID,
        stamp_name=stamp_file(layout).name,
        halves=HALVES,
    )
