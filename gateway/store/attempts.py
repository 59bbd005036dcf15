"""Attempt rows: transactions signed, stored before they are sent.

Owns the columns of ``attempt``; refuses to forget one whose Job a reorg may still take back.
"""

from __future__ import annotations

import apsw

from gateway.ledger.job import Attempt, JobKind
from gateway.ledger.transactions import Fees

_COLUMNS = "hash, kind, job, nonce, max_fee, priority, raw, basis, sent_ms, sent_block"
_KEPT_MS = 24 * 3_600_000


def put(connection: apsw.Connection, attempt: Attempt) -> None:
    """Store one; the same transaction twice is one."""
    connection.execute(
        f"INSERT OR IGNORE INTO attempt ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
        (attempt.hash, attempt.kind, attempt.job, attempt.nonce, attempt.fees.max_fee, attempt.fees.priority,
         attempt.raw, attempt.basis, attempt.sent_ms, attempt.sent_block))


def of_job(connection: apsw.Connection, kind: JobKind, job: int) -> tuple[Attempt, ...]:
    """Every attempt of one Job, in the order they were made."""
    return _read(connection, "WHERE kind=? AND job=? ORDER BY rowid", (kind, job))


def from_nonce(connection: apsw.Connection, nonce: int) -> tuple[Attempt, ...]:
    """Attempts of any Job at this nonce and above."""
    return _read(connection, "WHERE nonce>=? ORDER BY nonce, rowid", (nonce,))


def sweep(connection: apsw.Connection, now_ms: int) -> int:
    """Delete what was sent over a day ago for Jobs that are final or failed; how many rows went."""
    connection.execute(
        "DELETE FROM attempt WHERE sent_ms < ? AND ("
        "(kind='batch' AND job IN (SELECT pk FROM batch WHERE state='final')) OR "
        "(kind='intent' AND job IN (SELECT pk FROM intent WHERE state IN ('final','failed'))))",
        (now_ms - _KEPT_MS,))
    return connection.changes()


def _read(connection: apsw.Connection, where: str, bindings: tuple[str | int, ...]) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(kind=kind, job=job, hash=hash_, nonce=nonce, fees=Fees(max_fee=max_fee, priority=priority), raw=raw,
                basis=basis, sent_ms=sent_ms, sent_block=sent_block)
        for hash_, kind, job, nonce, max_fee, priority, raw, basis, sent_ms, sent_block
        in connection.execute(f"SELECT {_COLUMNS} FROM attempt {where}", bindings))  # noqa: S608
