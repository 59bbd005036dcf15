"""py-evm's key-value database on SQLite: a block and everything it changes is one transaction.

Owns durability (``synchronous=FULL``, WAL) and being the only process on the file (exclusive locking); refuses writes
outside ``transaction()``, so that no half of a block can ever be on disk. What it holds is public to whoever has the
chain, so it is not encrypted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from eth.abc import AtomicWriteBatchAPI
from eth.db.atomic import AtomicDBWriteBatch
from eth.db.backends.base import BaseAtomicDB

from gateway.errors import Misconfigured

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS node (key BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log (
    block_number INTEGER NOT NULL, log_index INTEGER NOT NULL, tx_index INTEGER NOT NULL, tx_hash BLOB NOT NULL,
    address BLOB NOT NULL, topics BLOB NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (block_number, log_index)) STRICT, WITHOUT ROWID;
"""
CACHED = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """One log; ``topics`` are 32-byte words, ``log_index`` counts within the block."""

    block_number: int
    log_index: int
    tx_index: int
    tx_hash: bytes
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


class ChainStore(BaseAtomicDB):
    """Not for several threads at once: its node holds one lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
        try:
            self._sql.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._sql.execute("PRAGMA journal_mode=WAL")
            self._sql.execute("PRAGMA synchronous=FULL")
            self._sql.execute("PRAGMA cache_size=-4096")
            self._sql.execute("BEGIN EXCLUSIVE")
            self._sql.execute("COMMIT")
            self._sql.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            self._sql.close()
            raise Misconfigured(f"the chain at {path} is in use by another process, or not writable: {error}") \
                from error
        except sqlite3.DatabaseError as error:
            self._sql.close()
            raise Misconfigured(f"{path} is not a chain: {error}") from error
        self._clean: dict[bytes, bytes] = {}
        self._pending: dict[bytes, bytes | None] | None = None
        self._pending_logs: list[LogRow] = []
        self._pending_meta: dict[str, str] = {}

    def close(self) -> None:
        """Leaves a single file: the write-ahead log is folded in."""
        with suppress(sqlite3.Error):
            self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._sql.close()

    # -- py-evm's database ----------------------------------------------------------------------------------------

    def __getitem__(self, key: bytes) -> bytes:
        if self._pending is not None and key in self._pending:
            pending = self._pending[key]
            if pending is None:
                raise KeyError(key)
            return pending
        if key in self._clean:
            return self._clean[key]
        row = self._sql.execute("SELECT value FROM node WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return self._remember(key, bytes(row[0]))

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._writable()[key] = value

    def __delitem__(self, key: bytes) -> None:
        self._writable()[key] = None

    def _exists(self, key: bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    @contextmanager
    def atomic_batch(self) -> Iterator[AtomicWriteBatchAPI]:
        with AtomicDBWriteBatch._commit_unless_raises(self) as batch:
            yield batch

    # -- the block's transaction ----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is on disk when this returns, or nothing is."""
        if self._pending is not None:
            raise RuntimeError("a block is being written already")
        self._pending = {}
        try:
            yield
            self._commit(self._pending)
        finally:
            self._pending, self._pending_logs, self._pending_meta = None, [], {}

    def add_logs(self, logs: Sequence[LogRow]) -> None:
        self._writable()
        self._pending_logs.extend(logs)

    def set_meta(self, meta: dict[str, object]) -> None:
        self._writable()
        self._pending_meta.update({key: json.dumps(value) for key, value in meta.items()})

    def meta(self) -> dict[str, object]:
        return {key: json.loads(value) for key, value in self._sql.execute("SELECT key, value FROM meta")}

    def logs(self, from_block: int, to_block: int, addresses: frozenset[bytes] | None, limit: int) -> list[LogRow]:
        """In chain order; one more than ``limit`` tells that there are too many."""
        where, values = "", [from_block, to_block]  # type: tuple[str, list[object]]
        if addresses is not None:
            where = f" AND address IN ({','.join('?' * len(addresses))})"
            values = [from_block, to_block, *addresses]
        rows = self._sql.execute(
            "SELECT block_number, log_index, tx_index, tx_hash, address, topics, data FROM log"  # noqa: S608
            f" WHERE block_number BETWEEN ? AND ?{where} ORDER BY block_number, log_index LIMIT ?",
            [*values, limit + 1])
        return [LogRow(block_number=number, log_index=index, tx_index=tx_index, tx_hash=tx_hash, address=address,
                       topics=tuple(topics[at:at + 32] for at in range(0, len(topics), 32)), data=data)
                for number, index, tx_index, tx_hash, address, topics, data in rows]

    def _writable(self) -> dict[bytes, bytes | None]:
        if self._pending is None:
            raise RuntimeError("the chain is written in transaction() only")
        return self._pending

    def _commit(self, pending: dict[bytes, bytes | None]) -> None:
        sql = self._sql
        sql.execute("BEGIN IMMEDIATE")
        try:
            sql.executemany("INSERT OR REPLACE INTO node (key, value) VALUES (?, ?)",
                            sorted((key, value) for key, value in pending.items() if value is not None))
            sql.executemany("DELETE FROM node WHERE key = ?",
                            [(key,) for key, value in pending.items() if value is None])
            sql.executemany("INSERT INTO log (block_number, log_index, tx_index, tx_hash, address, topics, data)"
                            " VALUES (?, ?, ?, ?, ?, ?, ?)",
                            [(log.block_number, log.log_index, log.tx_index, log.tx_hash, log.address,
                              b"".join(log.topics), log.data) for log in self._pending_logs])
            sql.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)",
                            list(self._pending_meta.items()))
            sql.execute("COMMIT")
        except BaseException:
            if sql.in_transaction:
                sql.execute("ROLLBACK")
            raise
        for key, value in pending.items():
            if value is None:
                self._clean.pop(key, None)
            else:
                self._remember(key, value)

    def _remember(self, key: bytes, value: bytes) -> bytes:
        if len(self._clean) >= CACHED:
            self._clean.clear()
        self._clean[key] = value
        return value
