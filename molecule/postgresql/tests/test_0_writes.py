# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check that finds every write can fail: on a lost write, on one that nobody made, on a row that is twice."""

from __future__ import annotations

from writes import Book, Copy, contradictions, missing

LIVE = Copy("live", ["writer s1 s4", "writer h1"], ["writer s2 s3"])
KEPT = Copy("kept", ["writer s1", "writer s5"], [])


def test_every_write_is_looked_for_by_itself():
    assert missing(["s1", "s2", "s3", "s4", "h1", "s5"], [LIVE, KEPT]) == []
    # An insert and an update of a row that was written again later, in another copy.
    assert missing(["s1", "s4", "s5"], [KEPT]) == ["s4"]
    assert missing(["s5", "s6"], [LIVE]) == ["s5", "s6"]
    # A deletion is not proved by a row that is absent.
    assert missing(["s3"], [KEPT]) == ["s3"]
    assert missing(["h1"], [KEPT]) == ["h1"]


def test_a_mark_is_found_whole():
    assert missing(["s1"], [Copy("live", ["writer s10"], [])]) == ["s1"]


def test_what_no_history_can_have_left():
    sent = {"s1", "s2", "s3", "s4", "h1", "s5"}
    assert contradictions(LIVE, sent) == []
    assert contradictions(LIVE, sent - {"s3"}) == ["live: nobody sent s3"]
    assert contradictions(Copy("live", ["writer s1"], ["writer s1 s2"]), sent) == [
        "live: the row of s1 is there 2 times"
    ]


def test_only_what_was_acknowledged_counts():
    book = Book()
    for line in ("sent s1", "acknowledged s1 insert", "sent s2"):
        book.heard(line)
    assert book.sent == {"s1", "s2"}
    assert dict(book.kinds()) == {"insert": 1}


def test_no_mark_is_given_twice():
    book = Book()
    first = book.next_statement()
    book.heard(f"sent s{first}")
    assert book.next_statement() == first + 1
