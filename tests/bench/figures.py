# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmark makes of its times: medians, ratios, targets; and how busy the machine is."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Ratio to the floor, the median of doing the same by hand, that must not be exceeded.
TARGETS = {"deployment": 0.9, "no_change": 0.3, "rollback": 4.0, "backup": 0.6, "backup_restored": 0.9}
WIDTH = 26


def rows_of(rounds: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Return the table: one row for each measurement, with its times in all rounds.

    The time in which what was started must stay up (``stay_up``, ``rollback_stay_up``) is waiting that was asked for: it is
    taken off, round by round, and shown as a row of its own.
    """
    times = {name: [entry[name] for entry in rounds] for name in rounds[0]}
    for name, proof in (("deployment", "stay_up"), ("rollback", "rollback_stay_up")):
        whole = times[f"{name}_with_stay_up"] = times.pop(name)
        times[name] = [seconds - proof for seconds, proof in zip(whole, times[proof])]
    floors = {name: statistics.median(times[f"script_{name}"]) for name in ("deployment", "rollback")}
    rows = []
    for name in (
        "deployment", "no_change", "rollback",
        "stay_up", "deployment_with_stay_up", "rollback_stay_up", "rollback_with_stay_up",
    ):  # fmt: skip
        floor = floors["rollback" if name.startswith("rollback") else "deployment"]
        seconds = statistics.median(times[name])
        rows.append(
            {
                "name": name,
                "seconds": round(seconds, 3),
                "floor": round(floor, 3),
                "ratio": round(seconds / floor, 3),
                "times": times[name],
            }
        )
    for name, floor in floors.items():
        rows.append(
            {
                "name": f"script_{name}",
                "seconds": round(floor, 3),
                "floor": round(floor, 3),
                "ratio": 1.0,
                "times": times[f"script_{name}"],
            }
        )
    return rows


def row_of(name: str, times: Sequence[float], floors: Sequence[float]) -> dict[str, Any]:
    """Return the row *name* of a table: its *times* in all rounds beside those of the same done by hand."""
    seconds, floor = statistics.median(times), statistics.median(floors)
    return {
        "name": name,
        "seconds": round(seconds, 3),
        "floor": round(floor, 3),
        "ratio": round(seconds / floor, 3),
        "times": list(times),
    }


def enter(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Enter *rows* into the JSON list *path*, in place of those of the same names; others stay.

    :raises ValueError: when what is there is no such list.
    """
    there = json.loads(path.read_text()) if path.exists() else []
    names = {row["name"] for row in rows}
    kept = [row for row in there if row["name"] not in names]
    kept_keys = ("name", "seconds", "floor", "ratio", "executions")
    added = [{key: row[key] for key in kept_keys if key in row} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(kept + added, indent=1) + "\n")
    os.replace(partial, path)


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each target that *rows* do not reach."""
    return [
        f"{row['name']} took {row['ratio']} of the time by hand, the target is at most {TARGETS[row['name']]}"
        for row in rows
        if row["name"] in TARGETS and row["ratio"] > TARGETS[row["name"]]
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return *rows* as text, with their spread."""
    lines = [f"{'':{WIDTH}}{'median':>9}{'fastest':>9}{'slowest':>9}{'floor':>9}{'ratio':>8}{'target':>8}"]
    for row in rows:
        target = TARGETS.get(row["name"], "")
        lines.append(
            f"{row['name']:{WIDTH}}{row['seconds']:9.2f}{min(row['times']):9.2f}{max(row['times']):9.2f}"
            f"{row['floor']:9.2f}{row['ratio']:8.2f}{target:>8}"
        )
    return "\n".join(lines)


def busy(seconds: float = 1.0) -> float:
    """Return the share of all processors that was in use during *seconds* from now."""

    def read() -> tuple[int, int]:
        times = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        # proc_stat(5): the fourth and the fifth are idle and waiting for a disk.
        return sum(times), sum(times) - times[3] - times[4]

    before = read()
    time.sleep(seconds)
    after = read()
    return (after[1] - before[1]) / max(1, after[0] - before[0])
