"""The page-encrypted SQLite file, its one writer at a time, and its readers.

Owns connections, the schema's migrations and the group commit; refuses to know what rows mean.
Writers of all processes take turns by a file lock that wakes (SQLite's own busy handler sleeps), and
inside one process everything that waits shares one transaction and one fsync (``GroupCommit``).
https://www.sqlite.org/wal.html, https://utelle.github.io/SQLite3MultipleCiphers/
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import apsw

from gateway.errors import Misconfigured, StoreBusy

T = TypeVar("T")
Work = Callable[[apsw.Connection], T]

MIGRATIONS = Path(__file__).with_name("migrations")
_LOCK_TIMEOUT_S = 30.0
_CACHE_KIB = 16_384
_THREAD_CACHE_KIB = 4_096
"""Of a reader that is not the main thread's: there are as many as there are threads."""
_UNWRITABLE = (apsw.FullError, apsw.IOError, apsw.BusyError, apsw.ReadOnlyError, apsw.CantOpenError)
"""What SQLite says when the disk, not the statement, is at fault. It may have rolled the transaction back by itself."""


def connect(path: Path, page_key: bytes, *, cache_kib: int = _CACHE_KIB) -> apsw.Connection:
    """Open ``path`` encrypted with the 32-byte ``page_key``: WAL, a durable commit on every COMMIT.

    Raises Misconfigured when the key does not fit the file.
    """
    if len(page_key) != 32:
        raise Misconfigured("the page key must be 32 bytes")
    connection: apsw.Connection = apsw.Connection(str(path), statementcachesize=512)
    connection.set_busy_timeout(10_000)
    try:
        connection.execute("PRAGMA cipher='aegis'")
        connection.execute(f"PRAGMA key='raw:{page_key.hex()}'")
        connection.execute("PRAGMA journal_mode=WAL")
    except apsw.NotADBError as error:
        raise Misconfigured(f"{path.name} does not open with this root key; restore the one that made it") from error
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute(f"PRAGMA cache_size=-{cache_kib}")
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    # Built with STAT4, SQLite else prepares a statement anew whenever a value is bound that its plan might depend on:
    # 35 of the 47 us a version's row cost.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    return connection


class Database:
    """One database file as one process sees it: a reader per thread, and the writer's turn."""

    def __init__(self, path: Path, page_key: bytes) -> None:
        self.path = path
        self._page_key = page_key
        self._local = threading.local()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._thread_lock = threading.Lock()
        self._writer = connect(path, page_key)
        os.chmod(path, 0o600)

    def migrate(self) -> None:
        """Bring the schema up to date, each step in one transaction."""
        def apply(connection: apsw.Connection) -> None:
            version = int(str(connection.execute("PRAGMA user_version").get))
            for file in sorted(MIGRATIONS.glob("*.sql")):
                number = int(file.stem)
                if number > version:
                    connection.execute(file.read_text())
                    connection.execute(f"PRAGMA user_version={number}")
        self.transact(apply)

    @property
    def reader(self) -> apsw.Connection:
        """This thread's read connection."""
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            main = threading.current_thread() is threading.main_thread()
            connection = connect(self.path, self._page_key, cache_kib=_CACHE_KIB if main else _THREAD_CACHE_KIB)
            connection.execute("PRAGMA query_only=ON")
            self._local.connection = connection
        return connection

    @contextmanager
    def snapshot(self) -> Iterator[apsw.Connection]:
        """Several reads of one moment."""
        connection = self.reader
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("COMMIT")
            if connection.txn_state() != apsw.SQLITE_TXN_NONE:
                # A statement left half read holds the moment: this thread would see no later commit, no revocation.
                self._local.connection = None

    def transact(self, work: Work[T]) -> T:
        """Run ``work`` alone in one durable transaction; for commands and background loops.

        Raises StoreBusy when the disk takes no more, else what ``work`` raises.
        """
        connection = self.begin()
        try:
            result = work(connection)
        except _UNWRITABLE as error:
            self.end(commit=False)
            raise _unwritable(error) from error
        except BaseException:
            self.end(commit=False)
            raise
        self.end(commit=True)
        return result

    def try_begin(self) -> apsw.Connection | None:
        """Take the writer's turn if it is free now."""
        if not self._thread_lock.acquire(blocking=False):
            return None
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._thread_lock.release()
            return None
        except OSError as error:
            self._thread_lock.release()
            raise StoreBusy("the writer's lock cannot be taken") from error
        return self._started()

    def begin(self) -> apsw.Connection:
        """Wait for the writer's turn and open the transaction. Raises StoreBusy after 30 s.

        The file's lock has no time limit of its own: where it is not free, a thread waits for it that may be left.
        """
        free = self.try_begin()
        if free is not None:
            return free
        waiting = _Turn(self)
        threading.Thread(target=waiting.run, name="turn", daemon=True).start()
        return waiting.had(_LOCK_TIMEOUT_S)

    def begin_whenever(self) -> apsw.Connection:
        """As ``begin``, however long it takes: for a thread that somebody else watches."""
        self._thread_lock.acquire()
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        except OSError as error:
            self._thread_lock.release()
            raise StoreBusy("the writer's lock cannot be taken") from error
        return self._started()

    def _started(self) -> apsw.Connection:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except apsw.Error as error:
            self._release()
            raise StoreBusy("the database is locked by another program") from error
        return self._writer

    def end(self, *, commit: bool) -> None:
        """Commit durably or roll back, and give the turn to the next."""
        try:
            if commit or self._writer.in_transaction:  # SQLite rolls back by itself when the disk is full
                self._writer.execute("COMMIT" if commit else "ROLLBACK")
        except apsw.Error as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise StoreBusy(f"the commit failed: {type(error).__name__}") from error
        finally:
            self._release()

    def _release(self) -> None:
        fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        self._thread_lock.release()

    def close(self) -> None:
        """Close this thread's reader and the writer."""
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None
        self._writer.close()
        os.close(self._lock_fd)


def _unwritable(error: BaseException) -> StoreBusy:
    return StoreBusy(f"the database cannot be written: {type(error).__name__}")


class _Turn:
    """A turn waited for in a thread of its own; had too late, it is given back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._left = False
        self._connection: apsw.Connection | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._connection = self._database.begin_whenever()
        except Exception as error:
            self._error = error
        with self._lock:
            if self._left and self._connection is not None:
                self._database.end(commit=False)
            self._ready.set()

    def had(self, timeout_s: float) -> apsw.Connection:
        """The writer. Raises StoreBusy when the time is over."""
        self._ready.wait(timeout_s)
        with self._lock:
            self._left = not self._ready.is_set()
        if self._error is not None:
            raise self._error
        if self._left or self._connection is None:
            raise _too_late()
        return self._connection


def _too_late() -> StoreBusy:
    return StoreBusy("the writer's turn was not had in time")


class _Waiting:
    """A work, and who waits for it."""

    __slots__ = ("future", "work")

    def __init__(self, future: asyncio.Future[Any], work: Work[Any]) -> None:
        self.future = future
        self.work = work


class GroupCommit:
    """Everything that waits in this event loop shares one transaction and one fsync.

    The statements run on the loop's own thread (a second thread would trade the interpreter lock at
    every step); waiting for the turn and the fsync itself happen in a thread of its own: in the loop's shared
    pool the fsync could wait behind threads that wait for the turn it ends. One failing work is rolled back
    to its savepoint and fails alone; a failing COMMIT or a full disk fails all of its group.
    """

    def __init__(self, database: Database, *, group_size: int = 64) -> None:
        self._database = database
        self._group_size = group_size
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._turn: asyncio.Future[apsw.Connection] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self.groups = 0
        self.works = 0

    async def commit(self, work: Work[T]) -> T:
        """Run ``work`` in the next group; returns once it is durable."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(future, work))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return await future  # left by who was cancelled, it is passed over: the work is done all the same

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._group()
        finally:
            self._task = None

    async def _group(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection = self._database.try_begin() if self._turn is None else None
            if connection is None:
                connection = await self._own_turn(loop)
        except Exception as error:
            self._fail(list(self._waiting), error)
            self._waiting.clear()
            return
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._group_size))]
        try:
            outcomes = self._carried_out(connection, taken)
        except Exception as error:
            self._database.end(commit=False)
            self._fail(taken, error)
            return
        try:
            await loop.run_in_executor(self._thread, lambda: self._database.end(commit=True))
        except Exception as error:
            # What failed by itself is told so; the rest shares the failure of the commit.
            self._fail([waiting for waiting, (_, refused) in outcomes if refused is None], error)
        else:
            self.groups += 1
            self.works += len(taken)
        # Only now, so that who tries again sees what this group committed, and does not lose to it twice.
        for waiting, (result, refused) in outcomes:
            if refused is not None:
                self._fail([waiting], refused)
            elif not waiting.future.done():
                waiting.future.set_result(result)

    async def _own_turn(self, loop: asyncio.AbstractEventLoop) -> apsw.Connection:
        """The writer. Raises StoreBusy when the time is over; the turn is waited for on, for who comes next."""
        turn = self._turn
        if turn is None:
            turn = self._turn = loop.run_in_executor(self._thread, self._database.begin_whenever)
            turn.add_done_callback(self._unless_taken)
        done, _ = await asyncio.wait((turn,), timeout=_LOCK_TIMEOUT_S)
        if not done:
            raise _too_late()
        self._turn = None
        return turn.result()

    def _unless_taken(self, turn: asyncio.Future[apsw.Connection]) -> None:
        """Give a turn back that came after everybody had gone."""
        if self._turn is turn and self._task is None:
            self._turn = None
            if turn.exception() is None:
                self._database.end(commit=False)

    def _carried_out(self, connection: apsw.Connection, taken: list[_Waiting]) -> list[
            tuple[_Waiting, tuple[Any, BaseException | None]]]:
        """Each work under its own savepoint: (result, error) of each.

        Raises StoreBusy when SQLite took back the whole transaction: nothing of the group may be told as done, and
        nothing more be done outside of it.
        """
        return [(waiting, self._alone(connection, waiting.work)) for waiting in taken]

    @staticmethod
    def _alone(connection: apsw.Connection, work: Work[Any]) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT work")
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = work(connection), None
        except Exception as error:
            if not connection.in_transaction:
                raise _unwritable(error) from error
            connection.execute("ROLLBACK TO work")
            outcome = None, _unwritable(error) if isinstance(error, _UNWRITABLE) else error
        connection.execute("RELEASE work")
        return outcome

    @staticmethod
    def _fail(items: list[_Waiting], error: BaseException) -> None:
        for item in items:
            if not item.future.done():
                item.future.set_exception(error)


def now_ms() -> int:
    """The wall clock, epoch milliseconds UTC."""
    return time.time_ns() // 1_000_000
