"""A reader never stays at one moment: what is committed later, a revocation above all, is seen. Invariant 6."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from gateway.access.provision import Provision
from gateway.store import journal, provisions
from gateway.store.sql import Database

MANY = 200



@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "gateway.db", bytes(32))
    made.migrate()
    yield made
    made.close()


def granted(database: Database) -> None:
    def store(tx: apsw.Connection) -> None:
        for number in range(MANY):
            provisions.put(tx, Provision(
                id=f"c/{number}", patient="Patient/p", grantee="Practitioner/d", permit=True, state="final",
                categories=frozenset({"a"})), consent="c", address=None, grantee_hash=hash, category_hash=hash)

    database.transact(store)


def interrupted(connection: apsw.Connection, after: int) -> None:
    """Read provisions as a search whose time is over at the look ``after`` at the clock."""
    looks = iter(range(after))
    connection.set_progress_handler(lambda: next(looks, None) is None, 50)
    try:
        with pytest.raises(apsw.InterruptError):
            provisions.of_patient(connection, "p")
    finally:
        connection.set_progress_handler(None)


def test_a_reading_of_provisions_cut_short_holds_no_moment(database: Database) -> None:
    granted(database)
    connection = database.reader
    for after in range(80, 140):
        interrupted(connection, after)
        assert connection.txn_state() == apsw.SQLITE_TXN_NONE
    before = journal.decision_seq(connection)
    database.transact(journal.bump_decision_seq)
    assert journal.decision_seq(connection) == before + 1


def test_a_snapshot_left_over_a_half_read_statement_does_not_stay(database: Database) -> None:
    def leaves_early(connection: apsw.Connection) -> None:
        for _ in connection.execute("SELECT value FROM decision_seq UNION ALL SELECT 2"):
            connection.execute("SELECT 1 FROM patient").fetchall()
            raise ValueError("given up")

    with pytest.raises(ValueError, match="given up"), database.snapshot() as connection:
        leaves_early(connection)
    before = journal.decision_seq(database.reader)
    database.transact(journal.bump_decision_seq)
    assert journal.decision_seq(database.reader) == before + 1
