"""The index made anew from the versions: which of them have rows, and how rows are replaced.

Owns clearing the index, replacing the rows of one version, and the mark of a rebuild that is under way; refuses to know
what a row means. The index is disposable (invariant 7): everything here can be done again at any time.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

import apsw

from gateway.store import journal
from gateway.store.journal import VERSION_COLUMNS, IndexRows, VersionRow

TABLES = ("index_hash", "index_rows", "index_reference", "index_date", "index_number")
_MARK = "index_rebuilt_to"
_INDEXED = ("v.deleted=0 AND (v.superseded IS NULL OR EXISTS "
            "(SELECT 1 FROM version w WHERE w.seq=v.superseded AND w.updated_ms>=?))")


def rebuilt_to(connection: apsw.Connection) -> int | None:
    """Up to which ``seq`` a rebuild under way has come; None when there is none."""
    found = connection.execute("SELECT value FROM setting WHERE name=?", (_MARK,)).get
    return None if found is None else int(str(found))


def begin(connection: apsw.Connection) -> None:
    """Clear the index inside the open transaction, and say that it is not whole."""
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}")  # noqa: S608  # names of our own
    mark(connection, 0)


def mark(connection: apsw.Connection, seq: int) -> None:
    """A rebuild has come to ``seq``."""
    connection.execute("INSERT OR REPLACE INTO setting VALUES (?,?)", (_MARK, seq))


def end(connection: apsw.Connection) -> None:
    """The index is whole."""
    connection.execute("DELETE FROM setting WHERE name=?", (_MARK,))


def indexed(connection: apsw.Connection, *, after: int, since_ms: int, limit: int) -> list[VersionRow]:
    """Versions above ``after`` that have index rows: present ones, and those superseded from ``since_ms`` on, which the
    link to a page may still show."""
    return [VersionRow(*row) for row in connection.execute(
        f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.seq>? AND {_INDEXED} ORDER BY v.seq LIMIT ?",  # noqa: S608
        (after, since_ms, limit))]


def current(connection: apsw.Connection, *, after: int, to: int, types: Collection[str] | None,
            limit: int) -> list[VersionRow]:
    """Present versions with ``after < seq <= to``, of some types or of all."""
    marks = "" if types is None else f" AND v.type IN ({','.join('?' * len(types))})"
    return [VersionRow(*row) for row in connection.execute(
        f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.seq>? AND v.seq<=? AND v.deleted=0 "  # noqa: S608
        f"AND v.superseded IS NULL{marks} ORDER BY v.seq LIMIT ?", (after, to, *(types or ()), limit))]


def count(connection: apsw.Connection, *, after: int, since_ms: int) -> int:
    """How many ``indexed`` would give without a limit."""
    return int(str(connection.execute(
        f"SELECT count(*) FROM version v WHERE v.seq>? AND {_INDEXED}", (after, since_ms)).get))  # noqa: S608


def count_current(connection: apsw.Connection, *, after: int, to: int, types: Collection[str] | None) -> int:
    """How many ``current`` would give without a limit."""
    marks = "" if types is None else f" AND v.type IN ({','.join('?' * len(types))})"
    return int(str(connection.execute(
        f"SELECT count(*) FROM version v WHERE v.seq>? AND v.seq<=? AND v.deleted=0 AND v.superseded IS NULL"  # noqa: S608
        f"{marks}", (after, to, *(types or ()))).get))


def replace(connection: apsw.Connection, seq: int, rows: IndexRows) -> bool:
    """Bring the rows of one version to ``rows`` inside the open transaction; whether anything changed.

    Only what differs is written: of a record that is indexed by one parameter more, that is a few rows.
    """
    if stored(connection, seq) == settled(rows):
        return False
    before = _hashes(connection, seq)
    after = set(rows.hashes)
    connection.executemany("DELETE FROM index_hash WHERE hash=? AND version=?", [(one, seq) for one in before - after])
    connection.execute("DELETE FROM index_rows WHERE version=?", (seq,))
    connection.execute("DELETE FROM index_reference WHERE version=?", (seq,))
    connection.execute("DELETE FROM index_date WHERE version=?", (seq,))
    connection.execute("DELETE FROM index_number WHERE version=?", (seq,))
    journal.drop_rows(connection, journal.places_of(connection, seq))
    journal.append_rows(connection, seq, rows)
    return True


Own = tuple[frozenset[int], frozenset[tuple[int, int]], frozenset[tuple[int, int, int]],
            frozenset[tuple[int, float, float, int, int]]]
"""Hashes, references, dates and numbers, whatever their order."""
Settled = tuple[frozenset[int], frozenset[tuple[int, int]], frozenset[tuple[int, int, int]],
                frozenset[tuple[int, float, float, int, int]], frozenset[tuple[int, Own]]]
"""Those of a version, and at last of what it contains, by place."""


def settled(rows: IndexRows) -> Settled:
    """Rows as they are compared."""
    return (*_settled(rows), frozenset((place, _settled(inner)) for place, inner in rows.contained))


def _settled(rows: IndexRows) -> Own:
    # Of numbers that differ in their bare unit alone, the first is kept.
    numbers = {row[:4]: row for row in reversed(rows.numbers)}
    return frozenset(rows.hashes), frozenset(rows.references), frozenset(rows.dates), frozenset(numbers.values())


def stored(connection: apsw.Connection, seq: int) -> Settled:
    """The rows of one version as they stand, each hash looked for where searches find it."""
    return (*_stored(connection, seq), frozenset(
        (-one - seq * journal.PLACES, _stored(connection, one)) for one in journal.places_of(connection, seq)))


def _stored(connection: apsw.Connection, seq: int) -> Own:
    packed = _hashes(connection, seq)
    there = frozenset(one for one in packed if connection.execute(
        "SELECT 1 FROM index_hash WHERE hash=? AND version=?", (one, seq)).get is not None)
    return (there,
            frozenset(connection.execute("SELECT key, target FROM index_reference WHERE version=?", (seq,))),
            frozenset(connection.execute("SELECT key, low_ms, high_ms FROM index_date WHERE version=?", (seq,))),
            frozenset(connection.execute("SELECT key, low, high, unit, unit_code FROM index_number WHERE version=?",
                                         (seq,))))


def _hashes(connection: apsw.Connection, seq: int) -> set[int]:
    found: set[int] = set()
    for (packed,) in connection.execute("SELECT hashes FROM index_rows WHERE version=?", (seq,)):
        data = bytes(packed)
        found.update(struct.unpack(f"<{len(data) // 8}q", data))
    return found
