"""The key store's file: wrapped keys in a page-encrypted SQLite file apart from the database.

Owns the schema, connections, the one write transaction at a time over all processes, and the statements; refuses to
know any key in the clear (``keys.py`` does). Commits are durable (WAL, ``synchronous=FULL``); erased wraps are
overwritten (``secure_delete``) and leave the WAL at once. https://utelle.github.io/SQLite3MultipleCiphers/

A destroyed or replaced key keeps its row with no wrap: its id stays known, so that an erasure certificate can name it
and a restore can refuse it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import apsw

from gateway.crypto.wrap import KeyName, Kind
from gateway.errors import Misconfigured, StoreBusy

Connection = apsw.Connection

FORMAT: Final = 1
_BUSY_TIMEOUT_MS: Final = 10_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS key (
  id INTEGER PRIMARY KEY,          -- random 63 bits: says nothing, merges without clash
  owner TEXT NOT NULL,
  kind TEXT NOT NULL,              -- patient | category | signing
  grp TEXT NOT NULL,
  generation INTEGER NOT NULL,
  wrapped BLOB,                    -- NULL once replaced or destroyed
  created_ms INTEGER NOT NULL,
  retired_ms INTEGER,              -- a rotation replaced it
  destroyed_ms INTEGER,            -- an erasure destroyed it
  UNIQUE (owner, kind, grp, generation)
) STRICT;
CREATE TABLE IF NOT EXISTS secret (
  label TEXT NOT NULL,
  generation INTEGER NOT NULL,
  wrapped BLOB NOT NULL,
  created_ms INTEGER NOT NULL,
  PRIMARY KEY (label, generation)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  format INTEGER NOT NULL,
  root BLOB NOT NULL,              -- fingerprint of the root whose wrap key holds the rows
  changes INTEGER NOT NULL         -- bumped by every destroy, rotation and restore: caches compare it
) STRICT;
"""
_COLUMNS: Final = "id, owner, kind, grp, generation, wrapped, created_ms, retired_ms, destroyed_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """One row of the key table; ``wrapped`` is None once the key was replaced or destroyed."""

    name: KeyName
    wrapped: bytes | None
    created_ms: int
    retired_ms: int | None
    destroyed_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """What caches compare: the root in force and the counter of changes."""

    root: bytes
    changes: int


def now_ms() -> int:
    """The wall clock, epoch milliseconds UTC."""
    return time.time_ns() // 1_000_000


def new_key_id() -> int:
    """A random positive 63-bit id, never 0."""
    return secrets.randbits(62) + (1 << 62)


class KeyStore:
    """One key store file as one process sees it; safe between threads. Open it after forking, not before."""

    def __init__(self, path: Path, page_key: bytes, root_fingerprint: bytes) -> None:
        """Open or create ``path``. Raises Misconfigured when the page key does not fit or the format is newer."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            self._writer = _connect(path, page_key)
            self._writer.execute("PRAGMA secure_delete=ON")
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute(_SCHEMA)
            self._writer.execute("INSERT OR IGNORE INTO state VALUES (1, ?, ?, 0)", (FORMAT, root_fingerprint))
            found = self._writer.execute("SELECT format FROM state").get
            self._writer.execute("COMMIT")
            if found != FORMAT:
                raise Misconfigured(f"the key store has format {found}; this gateway reads {FORMAT}")
            self._reader = _connect(path, page_key)
            self._reader.execute("PRAGMA query_only=ON")
        except apsw.NotADBError as error:
            raise Misconfigured("the key store does not open with its page key: restore it") from error
        except apsw.BusyError as error:
            raise StoreBusy("the key store is locked by another program") from error
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close both connections."""
        self._reader.close()
        self._writer.close()
        os.close(self._lock_fd)

    def data_version(self) -> int:
        """A number that differs once any connection or process has committed; about 2 us."""
        with self._read_lock:
            return cast(int, self._reader.execute("PRAGMA data_version").get)

    def state(self) -> StoreState:
        """The root in force and the counter of changes, now."""
        with self._read_lock:
            return state(self._reader)

    @contextmanager
    def read(self) -> Iterator[apsw.Connection]:
        """Several reads of one moment."""
        with self._read_lock:
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("COMMIT")

    @contextmanager
    def write(self) -> Iterator[apsw.Connection]:
        """One durable transaction, alone among all processes; rolled back when the body raises.

        Raises StoreBusy when another program holds the file.
        """
        with self._write_lock:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except apsw.BusyError as error:
                raise StoreBusy("the key store is locked by another program") from error
            except (apsw.FullError, apsw.IOError) as error:
                raise StoreBusy(f"the key store cannot be written: {type(error).__name__}") from error
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def purge_log(self) -> None:
        """Move everything out of the WAL and empty it, so that an erased wrap is in no file; tried, not forced."""
        with self._write_lock:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").get  # noqa: B018  .get runs the statement


def state(connection: apsw.Connection) -> StoreState:
    """The root in force and the counter of changes, as a transaction sees them."""
    root, changes = cast(tuple[bytes, int], connection.execute("SELECT root, changes FROM state").get)
    return StoreState(root=root, changes=changes)


def bump(connection: apsw.Connection) -> None:
    """Tell every process's caches that keys changed."""
    connection.execute("UPDATE state SET changes = changes + 1")


def set_root(connection: apsw.Connection, fingerprint: bytes) -> None:
    """Name the root whose wrap key holds the rows from now on."""
    connection.execute("UPDATE state SET root = ?, changes = changes + 1", (fingerprint,))


def current(connection: apsw.Connection, owner: str, kind: Kind, group: str) -> KeyRow | None:
    """The newest generation, destroyed or not."""
    return _one(connection.execute(
        f"SELECT {_COLUMNS} FROM key WHERE owner = ? AND kind = ? AND grp = ? "  # noqa: S608
        "ORDER BY generation DESC LIMIT 1", (owner, kind, group)).fetchone())


def by_id(connection: apsw.Connection, key_id: int) -> KeyRow | None:
    """The key of this id, destroyed or not."""
    return _one(connection.execute(f"SELECT {_COLUMNS} FROM key WHERE id = ?", (key_id,)).fetchone())  # noqa: S608


def of_owner(connection: apsw.Connection, owner: str) -> list[KeyRow]:
    """Every key of ``owner``, patient keys first."""
    return [_row(row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM key WHERE owner = ? ORDER BY kind = 'patient' DESC, id", (owner,))]  # noqa: S608


def all_rows(connection: apsw.Connection) -> list[KeyRow]:
    """Every key, patient keys first and in the order of their generations."""
    return [_row(row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM key ORDER BY kind = 'patient' DESC, generation, id")]  # noqa: S608


def taken(connection: apsw.Connection, name: KeyName) -> bool:
    """Whether another key has this owner, kind, group and generation."""
    return connection.execute(
        "SELECT 1 FROM key WHERE owner = ? AND kind = ? AND grp = ? AND generation = ?",
        (name.owner, name.kind, name.group, name.generation)).fetchone() is not None


def oldest_generation(connection: apsw.Connection, name: KeyName) -> int:
    """The lowest generation of this owner, kind and group; 1 when there is none."""
    found = connection.execute("SELECT min(generation) FROM key WHERE owner = ? AND kind = ? AND grp = ?",
                               (name.owner, name.kind, name.group)).get
    return 1 if found is None else cast(int, found)


def owners(connection: apsw.Connection) -> list[str]:
    """Every owner of a key, destroyed ones included."""
    return [cast(str, row[0]) for row in connection.execute("SELECT DISTINCT owner FROM key ORDER BY owner")]


def insert(connection: apsw.Connection, name: KeyName, wrapped: bytes | None, *,
           created_ms: int, retired_ms: int | None = None, destroyed_ms: int | None = None) -> None:
    """Add a key, or its tombstone."""
    connection.execute(
        "INSERT INTO key (id, owner, kind, grp, generation, wrapped, created_ms, retired_ms, destroyed_ms) "
        "VALUES (?,?,?,?,?,?,?,?,?)",
        (name.id, name.owner, name.kind, name.group, name.generation, wrapped, created_ms, retired_ms, destroyed_ms))


def rewrap(connection: apsw.Connection, key_id: int, wrapped: bytes) -> None:
    """Replace a live key's wrap."""
    connection.execute("UPDATE key SET wrapped = ? WHERE id = ? AND wrapped IS NOT NULL", (wrapped, key_id))


def retire(connection: apsw.Connection, key_id: int, at_ms: int) -> None:
    """Forget the wrap of a key that a rotation replaced."""
    connection.execute("UPDATE key SET wrapped = NULL, retired_ms = ? WHERE id = ?", (at_ms, key_id))


def destroy(connection: apsw.Connection, owner: str, at_ms: int) -> None:
    """Forget every wrap of ``owner``; the rows stay as tombstones."""
    connection.execute(
        "UPDATE key SET wrapped = NULL, destroyed_ms = coalesce(destroyed_ms, ?) WHERE owner = ?", (at_ms, owner))


def secrets_of(connection: apsw.Connection, label: str) -> list[tuple[int, bytes]]:
    """(generation, wrap) of a hospital secret, newest first."""
    return [cast(tuple[int, bytes], row) for row in connection.execute(
        "SELECT generation, wrapped FROM secret WHERE label = ? ORDER BY generation DESC", (label,))]


def put_secret(connection: apsw.Connection, label: str, generation: int, wrapped: bytes, created_ms: int) -> None:
    """Add a generation of a hospital secret, or replace its wrap."""
    connection.execute(
        "INSERT INTO secret VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET wrapped = excluded.wrapped",
        (label, generation, wrapped, created_ms))


def drop_secrets(connection: apsw.Connection, *, other_than: Sequence[str]) -> None:
    """Forget the hospital secrets of every other label."""
    connection.execute(f"DELETE FROM secret WHERE label NOT IN ({','.join('?' * len(other_than))})",  # noqa: S608  # marks
                       tuple(other_than))


def _connect(path: Path, page_key: bytes) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    connection.execute("PRAGMA cipher='aegis'")
    connection.execute(f"PRAGMA key='raw:{page_key.hex()}'")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def _one(row: Any) -> KeyRow | None:  # Any: apsw rows are untyped
    return None if row is None else _row(row)


def _row(row: Any) -> KeyRow:  # Any: apsw rows are untyped
    key_id, owner, kind, group, generation, wrapped, created_ms, retired_ms, destroyed_ms = row
    return KeyRow(
        name=KeyName(id=key_id, owner=owner, kind=kind, group=group, generation=generation),
        wrapped=wrapped, created_ms=created_ms, retired_ms=retired_ms, destroyed_ms=destroyed_ms,
    )
