"""Batch rows and audit runs: what waits, what was closed together, where it landed.

Owns the columns of ``batch`` and ``audit_run``, and the one transaction that closes a Batch; refuses to close over an
entry twice. ``FORMATS.md``, Entry and Manifest. Invariant: every version and audit row is in exactly one Batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import apsw

from gateway.errors import Conflict
from gateway.ledger.batch import Batch, Entry
from gateway.ledger.job import Landing

BatchState = Literal["closed", "submitted", "mined", "final"]
_CHUNK = 200
_COLUMNS = ("pk, created_ms, manifest_digest, root, size_class, entries, pushed, state, expected_head, new_head, "
            "tx_hash, block_number, block_hash, block_time_s")


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One closed Batch; ``expected_head`` is the head it was last sent on, the
    others from there on are None until it landed."""

    pk: int
    created_ms: int
    manifest_digest: bytes
    root: bytes
    size_class: int
    entries: int
    pushed: int
    state: BatchState
    expected_head: bytes | None
    new_head: bytes | None
    tx_hash: bytes | None
    block_number: int | None
    block_hash: bytes | None
    block_time_s: int | None

    @property
    def recorded(self) -> tuple[int, bytes] | None:
        """Block number and hash where it is known to have landed."""
        if self.block_number is None or self.block_hash is None:
            return None
        return self.block_number, self.block_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One audit row as a run holds it."""

    seq: int
    time_ms: int
    keys: bytes
    sealed: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRun:
    """Audit rows ``first`` to ``last``, sealed in one block."""

    first: int
    last: int
    entry: Entry
    envelope: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Versions in no Batch yet, in commit order; ``last`` is the highest ``seq`` among them, 0 for none."""

    entries: tuple[Entry, ...]
    first: int
    last: int


def full(connection: apsw.Connection, count: int) -> bool:
    """Whether at least ``count`` versions wait."""
    return connection.execute("SELECT 1 FROM version WHERE batch IS NULL LIMIT 1 OFFSET ?",
                              (count - 1,)).fetchone() is not None


def unanchored(connection: apsw.Connection) -> int:
    """How many closed Batches have not landed."""
    return int(str(connection.execute("SELECT count(*) FROM batch WHERE state IN ('closed','submitted')").get))


def waiting_versions(connection: apsw.Connection, *, limit: int) -> Waiting:
    """The oldest versions that are in no Batch."""
    rows: list[tuple[int, bytes, bytes, bytes]] = list(connection.execute(
        "SELECT seq, digest, commitment, keys FROM version WHERE batch IS NULL ORDER BY seq LIMIT ?", (limit,)))
    entries = tuple(Entry(digest=digest, content_commitment=commitment, key_refs=keys)
                    for _, digest, commitment, keys in rows)
    return Waiting(entries=entries, first=rows[0][0] if rows else 0, last=rows[-1][0] if rows else 0)


def last_audited(connection: apsw.Connection) -> int:
    """The last audit row that is in a run."""
    return int(str(connection.execute("SELECT coalesce(max(last),0) FROM audit_run").get))


def hash_of_row(connection: apsw.Connection, seq: int) -> bytes:
    """The chained hash of one audit row; zeros before the first."""
    for (value,) in connection.execute("SELECT hash FROM audit WHERE seq=?", (seq,)):
        return bytes(value)
    return bytes(32)


def audit_rows(connection: apsw.Connection, after: int, *, limit: int) -> tuple[AuditRow, ...]:
    """Audit rows above ``after``, in order."""
    return tuple(AuditRow(seq=seq, time_ms=time_ms, keys=keys, sealed=sealed, hash=hash_)
                 for seq, time_ms, keys, sealed, hash_ in connection.execute(
                     "SELECT seq, time_ms, keys, sealed, hash FROM audit WHERE seq>? ORDER BY seq LIMIT ?",
                     (after, limit)))


def close(connection: apsw.Connection, batch: Batch, versions: Waiting, runs: Sequence[AuditRun],
          created_ms: int) -> int:
    """Everything a closed Batch is, in the open transaction; its row id.

    Raises Conflict when one of the versions or audit rows is in a Batch already: nothing may be committed then.
    """
    connection.execute(
        "INSERT INTO batch (created_ms,manifest_digest,root,size_class,entries,manifest,sealed,state) "
        "VALUES (?,?,?,?,?,?,?,'closed')",
        (created_ms, batch.manifest_digest, batch.root, batch.size_class, len(batch.entries), batch.manifest,
         batch.sealed_part))
    pk = connection.last_insert_rowid()
    if versions.entries:
        connection.execute("UPDATE version SET batch=? WHERE seq BETWEEN ? AND ? AND batch IS NULL",
                           (pk, versions.first, versions.last))
        if connection.changes() != len(versions.entries):
            raise Conflict("another process closed a Batch over the same versions")
    after = last_audited(connection)
    for run in runs:
        if run.first != after + 1:
            raise Conflict("another process closed a Batch over the same audit rows")
        connection.execute(
            "INSERT INTO audit_run (first,last,digest,commitment,keys,envelope,batch) VALUES (?,?,?,?,?,?,?)",
            (run.first, run.last, run.entry.digest, run.entry.content_commitment, run.entry.key_refs, run.envelope, pk))
        after = run.last
    return pk


def unpushed(connection: apsw.Connection) -> tuple[int, bytes, bytes, bytes] | None:
    """Row id, manifest digest, manifest and sealed part of the oldest Batch the block store does not hold."""
    for pk, digest, manifest, sealed in connection.execute(
            "SELECT pk, manifest_digest, manifest, sealed FROM batch WHERE pushed=0 ORDER BY pk LIMIT 1"):
        return pk, digest, manifest, sealed
    return None


def blocks(connection: apsw.Connection, pk: int) -> Iterator[tuple[bytes, bytes]]:
    """(digest, block) of a Batch's runs and versions that are held in the journal, a bounded number at a time."""
    for digest, envelope in connection.execute(
            "SELECT digest, envelope FROM audit_run WHERE batch=? AND envelope IS NOT NULL", (pk,)).fetchall():
        yield digest, envelope  # type: ignore[misc]  # columns as declared
    after = 0
    while rows := connection.execute(
            "SELECT v.seq, b.digest, b.envelope FROM version v JOIN block b ON b.seq=v.seq "
            "WHERE v.batch=? AND v.seq>? ORDER BY v.seq LIMIT ?", (pk, after, _CHUNK)).fetchall():
        for _, digest, envelope in rows:
            yield digest, envelope  # type: ignore[misc]  # columns as declared
        after = int(str(rows[-1][0]))


def pushed(connection: apsw.Connection, pk: int) -> None:
    """The block store holds it all, durably."""
    connection.execute("UPDATE batch SET pushed=1, manifest=NULL, sealed=NULL WHERE pk=?", (pk,))
    connection.execute("UPDATE audit_run SET envelope=NULL WHERE batch=?", (pk,))


def has_open(connection: apsw.Connection) -> bool:
    """Whether any pushed Batch is not final."""
    return connection.execute(
        "SELECT 1 FROM batch WHERE state<>'final' AND pushed=1 LIMIT 1").fetchone() is not None


def open_batches(connection: apsw.Connection, *, limit: int) -> tuple[BatchRow, ...]:
    """Batches that are not final, in the order they must land."""
    return tuple(BatchRow(*row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM batch WHERE state<>'final' ORDER BY pk LIMIT ?", (limit,)))  # noqa: S608


def batch(connection: apsw.Connection, pk: int) -> BatchRow | None:
    """One Batch."""
    for row in connection.execute(f"SELECT {_COLUMNS} FROM batch WHERE pk=?", (pk,)):  # noqa: S608
        return BatchRow(*row)
    return None


def submitted(connection: apsw.Connection, pk: int, expected_head: bytes | None = None) -> None:
    """A transaction on ``expected_head`` was signed; None: a reorg took back the one that had landed on the last."""
    connection.execute(
        "UPDATE batch SET state='submitted', expected_head=coalesce(?,expected_head), new_head=NULL, tx_hash=NULL, "
        "block_number=NULL, block_hash=NULL, block_time_s=NULL WHERE pk=?", (expected_head, pk))


def landed(connection: apsw.Connection, pk: int, state: Literal["mined", "final"], at: Landing) -> None:
    """It was anchored in this block."""
    connection.execute(
        "UPDATE batch SET state=?, expected_head=?, new_head=?, tx_hash=?, block_number=?, block_hash=?, "
        "block_time_s=? WHERE pk=?",
        (state, at.prior_head, at.head, at.tx_hash, at.block_number, at.block_hash, at.block_time_s, pk))


def taken_back(connection: apsw.Connection, fork: int) -> int:
    """Batches final in blocks above ``fork`` are to be judged again; how many."""
    connection.execute("UPDATE batch SET state='mined' WHERE state='final' AND block_number>?", (fork,))
    return connection.changes()


def run_of(connection: apsw.Connection, seq: int) -> tuple[int, int, bytes, bytes, bytes, int] | None:
    """First, last, digest, commitment, keys and batch of the run that holds audit row ``seq``."""
    for first, last, digest, commitment, keys, pk in connection.execute(
            "SELECT first, last, digest, commitment, keys, batch FROM audit_run WHERE first<=? ORDER BY first DESC "
            "LIMIT 1", (seq,)):
        return (first, last, digest, commitment, keys, pk) if last >= seq else None
    return None
