# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What restores have put aside: what may go, and real restores of SQLite; the servers' are with the tests of those."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _former, _restore
from ansible_collections.runbook.deploy.plugins.module_utils import _sqlite_restore as swapping
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._inventory import former as tell
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout

NOW = "2026-11-21T12:00:00Z"
OLD, OLDER, LATE = "2026-10-01T00:00:00Z", "2026-09-01T00:00:00Z", "2026-11-20T00:00:00Z"


def entry(name: str, made: str, mark: str = "1/2") -> _former.Former:
    return _former.Former("database", name, made, 10, mark)


def states(
    found: list[_former.Former], notes: list[Any], named: tuple[str, ...] = (), days: int = 30
) -> dict[str, str]:
    plain = [each._asdict() for each in notes]
    return {each["name"]: each["state"] for each in _former.judge(found, plain, named, days, NOW)}


def test_of_ours_the_old_may_go_and_never_the_newest() -> None:
    found = [entry("c", LATE), entry("b", OLD), entry("a", OLDER)]
    assert states(found, found) == {"c": "newest", "b": "surplus", "a": "surplus"}
    assert states(found[1:], found) == {"b": "newest", "a": "surplus"}
    assert states(found, found, named=("a",)) == {"c": "newest", "b": "surplus", "a": "pinned"}
    assert states(found, found, days=70) == {"c": "newest", "b": "kept", "a": "surplus"}


@pytest.mark.parametrize("days", [0, -1])
def test_nothing_goes_unless_somebody_has_said_when(days: int) -> None:
    found = [entry("c", LATE), entry("a", "2020-01-01T00:00:00Z")]
    assert states(found, found, days=days) == {"c": "newest", "a": "kept"}


@pytest.mark.parametrize(
    "noted",
    [
        entry("a", OLDER, mark="1/3"),
        entry("b", OLDER),
        entry("a", OLDER)._replace(kind="schema"),
    ],
)
def test_what_no_note_names_with_kind_name_and_mark_is_not_ours(noted: _former.Former) -> None:
    found = [entry("c", LATE), entry("a", OLDER)]
    assert states(found, [found[0], noted]) == {"c": "newest", "a": "foreign"}
    # The newest of ours stays, also where there is a newer one that is not.
    assert states([entry("z", NOW), *found], found)["c"] == "newest"


def test_all_that_one_restore_put_aside_stays_together() -> None:
    found = [entry("public_x", OLD), entry("side_x", OLD), entry("public_w", OLDER)]
    assert states(found, found) == {"public_x": "newest", "side_x": "newest", "public_w": "surplus"}


def test_a_name_without_a_possible_time_is_none() -> None:
    assert _former.moment("20261121t101010") == "2026-11-21T10:10:10Z"
    assert _former.moment("20261341t101010") == ""


@pytest.mark.parametrize(
    ("live", "name", "made"),
    [
        ("shop", "shop_broken_20260101t000000", "2026-01-01T00:00:00Z"),
        ("shop", "shopping_broken_20260101t000000", ""),
        ("shop", "shop_broken_20260101t000000_copy", ""),
        ("shop", "shop_broken_yesterday", ""),
        ("x" * 63, "x" * 40 + "_broken_20260101t000000", "2026-01-01T00:00:00Z"),
        ("x" * 63, "x" * 39 + "_broken_20260101t000000", ""),
    ],
)
def test_names_of_restores_of_this_database(live: str, name: str, made: str) -> None:
    assert _former._named_like(live, name, 63) == made


def test_the_newest_records_and_the_unfinished_pin_what_they_name() -> None:
    def record(kept: Any, phase: str = "restore", verdict: Any = "success") -> dict[str, Any]:
        return {
            "verdict": verdict,
            "phases": [{"phase": phase, "result": {"kept": kept}}, {"phase": "gates"}],
        }

    static = record(["app.1234.css"], "collectstatic")
    records = [
        static,
        record("a"),
        record("schema b, schema c"),
        record("old"),
        record("unfinished", verdict=None),
    ]
    assert {"a", "b", "c", "unfinished"} <= _former.pinned(records)
    assert "old" not in _former.pinned(records) and "app.1234.css" not in _former.pinned(records)


# Real restores


class Place:
    """A SQLite database with a backup, of which restores are made at times of the test's choice."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layout = Layout(str(root / "srv"))
        self.layout.root.mkdir()
        self.live = root / "db.sqlite3"
        self.monkeypatch = monkeypatch
        self.write(
            "CREATE TABLE note (id integer PRIMARY KEY, body text)", "INSERT INTO note VALUES (1, 'x')"
        )
        self.engine = engine_of({"engine": "sqlite", "path": str(self.live)})
        with _backup.backups_locked(self.layout):
            _backup.take(self.layout, self.engine, _backup.Request(id="b1", kind="manual", framework="none"))

    def write(self, *statements: str) -> None:
        connection = sqlite3.connect(self.live)
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def restore(self, stamp: str) -> str:
        self.write("INSERT INTO note (body) VALUES ('y')")
        kept = self.live.with_name(f"{self.live.name}.broken-{stamp}")
        self.monkeypatch.setattr(swapping.SqliteRestorer, "_kept_name", lambda _self: kept)
        order = _restore.Order(backup="b1", consent=True, user=None, timeout=5)
        with _backup.backups_locked(self.layout):
            answer = _restore.restore(self.layout, self.engine, order)
        assert answer["kept"] == str(kept)
        return str(kept)

    def prune(self, days: int = 30, **more: Any) -> tuple[list[str], list[str]]:
        return _former.prune(self.layout, self.engine, [], days, **more)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_former_files_go_when_they_are_old_and_ours(place: Place) -> None:
    first, second, third = (place.restore(f"2026010{day}T000000") for day in (1, 2, 3))
    foreign = place.live.with_name("db.sqlite3.broken-20250101T000000")
    foreign.write_bytes(place.live.read_bytes())
    # A file of that name that somebody has put in the place of ours.
    os.unlink(second)
    Path(f"{second}.new").write_bytes(b"mine")
    os.rename(f"{second}.new", second)
    Path(f"{first}-wal").touch()
    assert place.prune(days=0) == ([], [])
    assert place.prune(check_mode=True) == ([first], [])
    found, lines = tell(place.layout, place.engine, 30)
    assert {each["name"]: each["state"] for each in found} == {
        third: "newest",
        second: "foreign",
        first: "surplus",
        str(foreign): "foreign",
    }
    assert any(
        first in line and f"{os.path.getsize(first)} bytes" in line and "next deployment" in line
        for line in lines
    )
    assert place.prune() == ([first], [])
    left = sorted(path.name for path in place.live.parent.glob("db.sqlite3*"))
    assert left == sorted([place.live.name, Path(second).name, Path(third).name, foreign.name])
    assert Path(second).read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_without_readable_notes_nothing_goes(place: Place, text: str) -> None:
    first, _second = place.restore("20260101T000000"), place.restore("20260102T000000")
    (place.layout.backups / _former.NOTES).write_text(text)
    assert place.prune() == ([], [])
    assert os.path.exists(first)


def test_a_restore_goes_on_where_nothing_can_be_noted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_former, "write_json", full)
    first = place.restore("20260101T000000")
    place.restore("20260102T000000")
    monkeypatch.undo()
    assert place.prune() == ([], []) and os.path.exists(first)
