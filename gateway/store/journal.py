"""The append-only versions: this node's truth.

Owns the rows ``version``, ``block``, ``patient`` and the appending of index rows beside them; refuses to
open blocks and to decide anything. Everything that writes takes the connection of an open transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apsw

from gateway.errors import Conflict

PLACES = 4_096
"""The index rows of what a version contains stand under ``-(seq * PLACES + place)``, apart from every version's own;
``place`` counts from 1."""
_AT_ONCE = 2_000
"""Rows in one statement: SQLite takes 32,766 variables, and a Group may have more members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRows:
    """The hashed facts of one version, ready for SQL.

    ``numbers``: (key, low, high, unit, unit_code); ``dates``: (key, low_ms, high_ms); ``references``: (key, hash of the
    target's name); keys are keyed hashes. ``contained``: the rows of what it contains, by place.
    """

    hashes: tuple[int, ...] = ()
    numbers: tuple[tuple[int, float, float, int, int], ...] = ()
    dates: tuple[tuple[int, int, int], ...] = ()
    references: tuple[tuple[int, int], ...] = ()
    contained: tuple[tuple[int, IndexRows], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """One version about to be appended; ``vid - 1`` must be the stored one (0: none)."""

    type: str
    id: str
    vid: int
    deleted: bool
    updated_ms: int
    patients: tuple[str, ...]
    client: str
    user: str | None
    confidentiality: int
    labels: int
    low_ms: int | None
    high_ms: int | None
    categories: bytes
    keys: bytes
    digest: bytes
    commitment: bytes
    envelope: bytes
    rows: IndexRows


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One stored version without its block; ``patient`` is the first home patient's row id."""

    seq: int
    type: str
    id: str
    vid: int
    superseded: int | None
    deleted: bool
    updated_ms: int
    patient: int | None
    others: int
    client: str
    user: str | None
    confidentiality: int
    labels: int
    low_ms: int | None
    high_ms: int | None
    categories: bytes
    keys: bytes
    digest: bytes
    commitment: bytes
    batch: int | None


VERSION_COLUMNS = ("v.seq, v.type, v.id, v.vid, v.superseded, v.deleted, v.updated_ms, v.patient, v.others, "
                   "v.client, v.user, v.confidentiality, v.labels, v.low_ms, v.high_ms, v.categories, v.keys, "
                   "v.digest, v.commitment, v.batch")


def current(connection: apsw.Connection, type_: str, id_: str) -> VersionRow | None:
    """The latest version (a deletion counts), or None."""
    for row in connection.execute(
            f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.type=? AND v.id=? ORDER BY v.vid DESC LIMIT 1",  # noqa: S608
            (type_, id_)):
        return VersionRow(*row)
    return None


def version(connection: apsw.Connection, type_: str, id_: str, vid: int) -> VersionRow | None:
    """Exactly this version, or None."""
    for row in connection.execute(
            f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.type=? AND v.id=? AND v.vid=?",  # noqa: S608
            (type_, id_, vid)):
        return VersionRow(*row)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which versions a history holds: those written from ``since_ms`` on, those in force at some moment of ``at``."""

    since_ms: int | None = None
    at: tuple[int, int] | None = None

    def sql(self) -> tuple[str, tuple[int, ...]]:
        """A condition on ``version v``, to be put behind others."""
        text = ""
        parameters: tuple[int, ...] = ()
        if self.since_ms is not None:
            # The first seq of that time bounds the walk; a clock put back cannot hide what was written after.
            text = (" AND v.seq>=(SELECT coalesce(min(seq), 9223372036854775807) FROM version WHERE updated_ms>=?)"
                    " AND v.updated_ms>=?")
            parameters = (self.since_ms, self.since_ms)
        if self.at is None:
            return text, parameters
        return (f"{text} AND v.updated_ms<? AND (v.superseded IS NULL OR "  # noqa: S608
                "(SELECT w.updated_ms FROM version w WHERE w.seq=v.superseded)>?)",
                (*parameters, self.at[1], self.at[0]))


def history(connection: apsw.Connection, type_: str, id_: str, *, below: int, limit: int,
            window: Window) -> list[VersionRow]:
    """Versions of one resource with ``vid < below``, newest first."""
    within, parameters = window.sql()
    return [VersionRow(*row) for row in connection.execute(
        f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.type=? AND v.id=? AND v.vid<?{within} "  # noqa: S608
        "ORDER BY v.vid DESC LIMIT ?", (type_, id_, below, *parameters, limit))]


def history_of_type(connection: apsw.Connection, type_: str, *, below: int, limit: int, window: Window,
                    condition: str, parameters: Sequence[apsw.SQLiteValue]) -> list[VersionRow]:
    """Versions of one type with ``seq < below`` within the access bound ``condition``, newest first."""
    if not condition:
        raise ValueError("a history without an access bound is refused")
    within, values = window.sql()
    return [VersionRow(*row) for row in connection.execute(
        f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.type=? AND v.seq<?{within} AND ({condition}) "  # noqa: S608
        "ORDER BY v.seq DESC LIMIT ?", (type_, below, *values, *parameters, limit))]


def types(connection: apsw.Connection) -> list[str]:
    """Every type ever stored; walks the index from one to the next."""
    return [str(type_) for (type_,) in connection.execute(
        "WITH RECURSIVE t(type) AS (SELECT min(type) FROM version UNION ALL "
        "SELECT (SELECT min(type) FROM version WHERE type>t.type) FROM t WHERE t.type IS NOT NULL) "
        "SELECT type FROM t WHERE type IS NOT NULL")]


def patients_of(connection: apsw.Connection, row: VersionRow) -> tuple[str, ...]:
    """Logical ids of every home patient."""
    if row.patient is None:
        return ()
    if not row.others:
        return (patient_id(connection, row.patient),)
    return (patient_id(connection, row.patient), *(str(id_) for (id_,) in connection.execute(
        "SELECT p.id FROM version_patient vp JOIN patient p ON p.pk=vp.patient "
        "WHERE vp.version=? AND vp.patient<>? ORDER BY p.id", (row.seq, row.patient))))


def patient_id(connection: apsw.Connection, pk: int) -> str:
    """The logical id behind a row id."""
    for (id_,) in connection.execute("SELECT id FROM patient WHERE pk=?", (pk,)):
        return str(id_)
    raise Conflict("the patient row is gone")


def patient_pk(connection: apsw.Connection, id_: str) -> int | None:
    """The row id of a patient any record ever named."""
    for (pk,) in connection.execute("SELECT pk FROM patient WHERE id=?", (id_,)):
        return int(pk)
    return None


def ensure_patient(connection: apsw.Connection, id_: str) -> int:
    """The row id of a patient, allotted now if need be."""
    known = patient_pk(connection, id_)
    if known is not None:
        return known
    connection.execute("INSERT INTO patient (id) VALUES (?)", (id_,))
    return connection.last_insert_rowid()


class PatientNames:
    """Committed row ids and logical ids of patients, remembered: neither ever changes. One per process."""

    __slots__ = ("_ids", "_pks", "_size")

    def __init__(self, *, size: int = 50_000) -> None:
        self._ids: dict[int, str] = {}
        self._pks: dict[str, int] = {}
        self._size = size

    def id(self, reader: apsw.Connection, pk: int) -> str:
        """The logical id behind a row id, read through a connection that sees committed rows alone."""
        known = self._ids.get(pk)
        if known is None:
            known = patient_id(reader, pk)
            if len(self._ids) >= self._size:
                self._ids.clear()
                self._pks.clear()
            self._ids[pk] = known
            self._pks[known] = pk
        return known

    def known_pk(self, id_: str) -> int | None:
        """The row id, if it was seen committed."""
        return self._pks.get(id_)

    def of(self, reader: apsw.Connection, row: VersionRow) -> tuple[str, ...]:
        """Logical ids of every home patient of a version."""
        if row.patient is None:
            return ()
        if not row.others:
            return (self.id(reader, row.patient),)
        return patients_of(reader, row)


def envelope(connection: apsw.Connection, seq: int) -> bytes | None:
    """The block of a version from the local table, or None once evicted."""
    for (data,) in connection.execute("SELECT envelope FROM block WHERE seq=?", (seq,)):
        return bytes(data)
    return None


def envelope_bytes(connection: apsw.Connection, type_: str, id_: str) -> int:
    """How long the present version's block in the local table is; 0: there is none."""
    for (found,) in connection.execute(
            "SELECT length(b.envelope) FROM version v JOIN block b ON b.seq=v.seq WHERE v.type=? AND v.id=? "
            "AND v.superseded IS NULL", (type_, id_)):
        return int(str(found))
    return 0


def envelopes(connection: apsw.Connection, seqs: Sequence[int]) -> dict[int, bytes]:
    """Local blocks of several versions in one statement."""
    marks = ",".join("?" * len(seqs))
    return dict(connection.execute(f"SELECT seq, envelope FROM block WHERE seq IN ({marks})", tuple(seqs)))  # noqa: S608


def few_envelopes(connection: apsw.Connection, seqs: Sequence[int], *, most: int) -> dict[int, bytes] | None:
    """``envelopes`` where all are here and together at most ``most`` bytes long; longer ones are not read."""
    found: dict[int, bytes] = {}
    for seq, length, data in connection.execute(
            "SELECT seq, length(envelope), iif(length(envelope)<=?, envelope, NULL) FROM block "  # noqa: S608
            f"WHERE seq IN ({','.join('?' * len(seqs))})", (most, *seqs)):
        most -= length
        if most < 0 or data is None:
            return None
        found[seq] = data
    return found if len(found) == len(seqs) else None


def append(connection: apsw.Connection, new: NewVersion) -> int:
    """Append inside the open transaction; returns its ``seq``.

    Raises Conflict when the stored version is not the one ``new`` was made from: decide and seal again.
    """
    stored = connection.execute(
        "SELECT seq, vid FROM version WHERE type=? AND id=? ORDER BY vid DESC LIMIT 1", (new.type, new.id)).fetchone()
    if (stored[1] if stored else 0) != new.vid - 1:
        raise Conflict(f"{new.type}/{new.id} is at version {stored[1] if stored else 0}")
    pks = [ensure_patient(connection, id_) for id_ in new.patients]
    connection.execute(
        "INSERT INTO version (type,id,vid,deleted,updated_ms,patient,others,client,user,confidentiality,labels,"
        "low_ms,high_ms,categories,keys,digest,commitment) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (new.type, new.id, new.vid, new.deleted, new.updated_ms, pks[0] if pks else None, max(0, len(pks) - 1),
         new.client, new.user, new.confidentiality, new.labels, new.low_ms, new.high_ms, new.categories,
         new.keys, new.digest, new.commitment))
    seq = connection.last_insert_rowid()
    if stored:
        connection.execute("UPDATE version SET superseded=? WHERE seq=?", (seq, stored[0]))
    if len(pks) > 1:
        connection.executemany("INSERT INTO version_patient VALUES (?,?)", [(seq, pk) for pk in pks])
    connection.execute("INSERT INTO block VALUES (?,?,?)", (seq, new.digest, new.envelope))
    append_rows(connection, seq, new.rows)
    return seq


def append_rows(connection: apsw.Connection, seq: int, rows: IndexRows) -> None:
    """Append the index rows of one version inside the open transaction."""
    for start in range(0, len(rows.hashes), _AT_ONCE):
        hashes = rows.hashes[start:start + _AT_ONCE]
        marks = ",".join(["(?,?)"] * len(hashes))
        values: list[int] = []
        for value in hashes:
            values += (value, seq)
        connection.execute(f"INSERT OR IGNORE INTO index_hash VALUES {marks}", values)  # noqa: S608
    if rows.hashes:
        connection.execute("INSERT INTO index_rows VALUES (?,?)",
                           (seq, struct.pack(f"<{len(rows.hashes)}q", *rows.hashes)))
    if rows.references:
        connection.executemany("INSERT OR IGNORE INTO index_reference VALUES (?,?,?)",
                               [(seq, key, target) for key, target in rows.references])
    if rows.dates:
        connection.executemany("INSERT OR IGNORE INTO index_date VALUES (?,?,?,?)",
                               [(key, low, seq, high) for key, low, high in rows.dates])
    if rows.numbers:
        connection.executemany("INSERT OR IGNORE INTO index_number VALUES (?,?,?,?,?,?)",
                               [(key, low, high, seq, unit, code) for key, low, high, unit, code in rows.numbers])
    for place, inner in rows.contained:
        append_rows(connection, -(seq * PLACES + place), inner)


def places_of(connection: apsw.Connection, seq: int) -> list[int]:
    """Under which numbers the rows of what a version contains stand; each has hashes."""
    return [int(str(one)) for (one,) in connection.execute(
        "SELECT version FROM index_rows WHERE version BETWEEN ? AND ?", (-(seq + 1) * PLACES + 1, -seq * PLACES - 1))]


def drop_rows(connection: apsw.Connection, seqs: Iterable[int]) -> None:
    """Forget the index rows of versions no search may reach any more."""
    for seq in [one for own in seqs for one in (own, *places_of(connection, own))]:
        for (packed,) in connection.execute("SELECT hashes FROM index_rows WHERE version=?", (seq,)).fetchall():
            data = bytes(packed)  # type: ignore[arg-type]  # apsw types a column as any SQLite value
            hashes = struct.unpack(f"<{len(data) // 8}q", data)
            connection.executemany("DELETE FROM index_hash WHERE hash=? AND version=?", [(h, seq) for h in hashes])
        connection.execute("DELETE FROM index_rows WHERE version=?", (seq,))
        connection.execute("DELETE FROM index_reference WHERE version=?", (seq,))
        connection.execute("DELETE FROM index_date WHERE version=?", (seq,))
        connection.execute("DELETE FROM index_number WHERE version=?", (seq,))


def superseded_before(connection: apsw.Connection, before_ms: int, *, limit: int = 500) -> list[int]:
    """Versions superseded before ``before_ms`` (older than any live page link) whose rows are still indexed.

    For ``drop_rows``. It passes over all that was ever superseded, so read it before the writer's turn, not within.
    """
    return [int(str(seq)) for (seq,) in connection.execute(
        "SELECT v.seq FROM version v JOIN version w ON w.seq=v.superseded JOIN index_rows r ON r.version=v.seq "
        "WHERE v.superseded IS NOT NULL AND w.updated_ms<? LIMIT ?", (before_ms, limit))]


def head_seq(connection: apsw.Connection) -> int:
    """The newest committed ``seq``: a snapshot for searches."""
    return int(str(connection.execute("SELECT coalesce(max(seq),0) FROM version").get))


def decision_seq(connection: apsw.Connection) -> int:
    """The revocation counter; a decision made at another value must be made again."""
    return int(str(connection.execute("SELECT value FROM decision_seq").get))


def bump_decision_seq(connection: apsw.Connection) -> None:
    """Every decision made before this commit is void."""
    connection.execute("UPDATE decision_seq SET value=value+1")
