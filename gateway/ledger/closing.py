"""Closing Batches on their cadence, and pushing what they hold to the block store.

Owns the sealing of audit runs, and when a Batch is closed; refuses to close in more than one transaction: before it
nothing happened, after it the Batch is decided for good and every later step can be repeated. ``FORMATS.md``, Audit.
A run (``audit_run.py``) is sealed as ``seal_block("audit", "first-last", ...)`` under the custodian's audit key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import apsw

from gateway.crypto.envelope import Sealed, seal_block
from gateway.crypto.keys import KeyRing
from gateway.ledger.audit_run import Row, Run, pack
from gateway.ledger.batch import Entry, build
from gateway.ledger.merkle import SIZES
from gateway.store import batches
from gateway.store.batches import AuditRow, AuditRun
from gateway.store.blobs import BlobBackend
from gateway.store.cid import digest_block
from gateway.store.sql import Database, now_ms

LOG = logging.getLogger(__name__)
RUN_GROUP = "audit"
_RUN_BYTES = 512 * 1024
_ROWS_AT_ONCE = 2_000
_RUNS_MAX = 16
_BACKLOG_MAX = 4
"""Closed Batches that may wait for the chain; then entries gather in the outbox instead."""


class Closer:
    """Closes and pushes for one custodian. One instance in the whole hospital (``loops.py`` holds the lock)."""

    def __init__(self, *, database: Database, ring: KeyRing, blobs: BlobBackend, custodian: str, interval_s: float,
                 batch_max: int, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._ring = ring
        self._blobs = blobs
        self._custodian = custodian
        self._interval_ms = int(interval_s * 1000)
        self._batch_max = max(2, min(batch_max, SIZES[-1]))
        self._clock = clock
        self._next_ms = 0

    def close_if_due(self) -> bool:
        """Close a Batch when the cadence or its size says so; whether one was closed."""
        now = self._clock()
        reader = self._database.reader
        if now < self._next_ms and not batches.full(reader, self._batch_max):
            return False
        self._next_ms = now + self._interval_ms
        return batches.unanchored(reader) < _BACKLOG_MAX and self.close() is not None

    def close(self) -> int | None:
        """Close a Batch over what waits; its row id, None when nothing does."""
        with self._database.snapshot() as connection:
            rows = self._waiting_rows(connection)
            runs = list(self._runs(connection, rows))
            versions = batches.waiting_versions(connection, limit=self._batch_max - len(runs))
        entries = (*(run.entry for run in runs), *versions.entries)
        if not entries:
            return None
        batch = build(entries, custodian=self._custodian, padding_salt=os.urandom(32), seal=self._seal_part)
        created_ms = self._clock()
        pk = self._database.transact(
            lambda connection: batches.close(connection, batch, versions, runs, created_ms))
        LOG.info("batch closed", extra={"batch": pk, "versions": len(versions.entries), "audit_runs": len(runs)})
        return pk

    def push(self) -> bool:
        """Give the oldest closed Batch to the block store; whether there was one. Raises BlobUnavailable."""
        found = batches.unpushed(self._database.reader)
        if found is None:
            return False
        pk, digest, manifest, sealed = found
        self._blobs.push(manifest, digest, self._blocks(pk, sealed))
        self._database.transact(lambda connection: batches.pushed(connection, pk))
        return True

    def _blocks(self, pk: int, sealed: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield digest_block(sealed), sealed
        yield from batches.blocks(self._database.reader, pk)

    def _seal_part(self, name: str, body: bytes) -> Sealed:
        return seal_block("manifest", name, self._ring.secret("manifest"), self._custodian, body)

    def _waiting_rows(self, connection: apsw.Connection) -> Iterator[AuditRow]:
        after = batches.last_audited(connection)
        while rows := batches.audit_rows(connection, after, limit=_ROWS_AT_ONCE):
            yield from rows
            after = rows[-1].seq

    def _runs(self, connection: apsw.Connection, rows: Iterator[AuditRow]) -> Iterator[AuditRun]:
        """Runs of at most half a megabyte, so that a run stays one raw block."""
        previous = batches.hash_of_row(connection, batches.last_audited(connection))
        keys = None
        waiting: list[AuditRow] = []
        size = made = 0
        most = min(_RUNS_MAX, self._batch_max // 2)
        for row in rows:
            waiting.append(row)
            size += len(row.sealed) + len(row.keys) + 64
            if size >= _RUN_BYTES:
                keys = keys or self._ring.category_keys((), RUN_GROUP)
                yield self._run(waiting, previous, keys.refs, keys.material)
                previous, waiting, size, made = waiting[-1].hash, [], 0, made + 1
                if made >= most:
                    return
        if waiting:
            keys = keys or self._ring.category_keys((), RUN_GROUP)
            yield self._run(waiting, previous, keys.refs, keys.material)

    def _run(self, rows: list[AuditRow], previous: bytes, refs: bytes, material: bytes) -> AuditRun:
        first, last = rows[0].seq, rows[-1].seq
        body = pack(Run(first=first, previous=previous, rows=tuple(
            Row(time_ms=row.time_ms, keys=row.keys, sealed=row.sealed, hash=row.hash) for row in rows)))
        sealed = seal_block("audit", run_name(first, last), material, self._custodian, body)
        return AuditRun(first=first, last=last, envelope=sealed.envelope, entry=Entry(
            digest=sealed.digest, content_commitment=sealed.content_commitment, key_refs=refs))


def run_name(first: int, last: int) -> str:
    """How the block of a run is placed."""
    return f"{first}-{last}"
