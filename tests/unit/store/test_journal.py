"""What the index forgets: rows of versions no page link can reach any more, and no others."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.store import journal
from gateway.store.journal import IndexRows, NewVersion
from gateway.store.sql import Database

ROWS = IndexRows(hashes=(1, 2), numbers=((3, 1.0, 2.0, 0, 0),), dates=((4, 5, 6),))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "gateway.db", bytes(32))
    made.migrate()
    yield made
    made.close()


def put(database: Database, vid: int, updated_ms: int) -> int:
    unique = struct.pack(">Q", vid) * 4
    return database.transact(lambda tx: journal.append(tx, NewVersion(
        type="Observation", id="o", vid=vid, deleted=False, updated_ms=updated_ms, patients=(), client="c", user=None,
        confidentiality=3, labels=0, low_ms=None, high_ms=None, categories=b"", keys=b"", digest=unique,
        commitment=unique, envelope=b"", rows=ROWS)))


def indexed(database: Database) -> list[set[int]]:
    return [{int(str(seq)) for (seq,) in database.reader.execute(f"SELECT version FROM {table}")}
            for table in ("index_hash", "index_number", "index_date", "index_rows")]


def test_rows_of_versions_superseded_long_ago_go_and_no_others(database: Database) -> None:
    first, second, current = (put(database, vid, ms) for vid, ms in ((1, 100), (2, 200), (3, 300)))
    assert journal.superseded_before(database.reader, 200) == []
    old = journal.superseded_before(database.reader, 300)
    assert old == [first]
    database.transact(lambda tx: journal.drop_rows(tx, old))
    assert indexed(database) == [{second, current}] * 4
    assert journal.superseded_before(database.reader, 1_000) == [second]
    assert journal.superseded_before(database.reader, 1_000, limit=0) == []
