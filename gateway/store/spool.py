"""Sealed append-only files, one to a process: durable when ``append`` returns, taken into SQL afterwards.

Owns the files, their framing and which bytes were taken; refuses to know what the records mean. A disclosure's audit
row must be on disk before the disclosure leaves: in a file of its own it costs one write and one fsync, takes no turn
at the database, and leaves every reader's page cache warm. Records are sealed with their file and place, so that one
altered or moved does not open: it is told in the log, and its file kept under another name to be looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import apsw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import StoreBusy

LOG = logging.getLogger("gateway.spool")
_SUFFIX = ".spool"
_BROKEN = ".broken"
_FILE_MAX = 4 * 1024 * 1024
_TAKE_MAX = 1024 * 1024
"""Most bytes of a file taken at once, unless one record has more."""
_HEAD = struct.Struct(">I")
_NONCE = 12


class Spool:
    """This process's files under ``folder``, sealed with the 32-byte ``key``. One thread appends."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder = folder
        self._cipher = AESGCM(key)
        self._fd: int | None = None
        self._name = b""
        self._size = 0
        self._number = 0

    def append(self, records: Sequence[bytes]) -> None:
        """Write the records and fsync once. Raises StoreBusy, with nothing acknowledged, when the disk refuses."""
        try:
            if self._fd is None or self._size >= _FILE_MAX:
                self._begin_file()
            assert self._fd is not None  # noqa: S101  # begun above
            framed = b"".join(self._framed(record, self._number + place) for place, record in enumerate(records))
            written = os.write(self._fd, framed)
            if written < len(framed):
                raise OSError("a short write")
            os.fdatasync(self._fd)
        except OSError as error:
            self.close()  # what came after a torn record would not be read: a new file begins
            raise StoreBusy(f"the audit cannot be written: {type(error).__name__}") from error
        self._size += len(framed)
        self._number += len(records)

    def _framed(self, record: bytes, number: int) -> bytes:
        nonce = os.urandom(_NONCE)
        sealed = self._cipher.encrypt(nonce, record, _place(self._name, number))
        return _HEAD.pack(_NONCE + len(sealed)) + nonce + sealed

    def _begin_file(self) -> None:
        self.close()
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sync_folder(self.folder.parent)
        linked = False
        while not linked:
            self.close()
            name = f"{time.time_ns():020d}-{secrets.token_hex(8)}{_SUFFIX}"
            self._fd = os.open(self.folder / name,
                               os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            linked = os.fstat(self._fd).st_nlink > 0  # until the lock is held, an empty file may be taken for left
        _sync_folder(self.folder)
        self._name, self._size, self._number = name.encode(), 0, 0

    def close(self) -> None:
        """End the file; the next append begins another."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def waiting(folder: Path, connection: apsw.Connection) -> bool:
    """Whether any file holds more than was taken."""
    taken = _taken(connection)
    return any(size > taken.get(path.name, (0, 0))[0] for path, size in _files(folder))


def take(folder: Path, key: bytes, connection: apsw.Connection) -> list[bytes]:
    """The next records of every file, marked as taken inside the open transaction; bounded, oldest file first."""
    cipher, taken, found = AESGCM(key), _taken(connection), []
    names = {path.name for path, _ in _files(folder)}
    connection.executemany("DELETE FROM spool WHERE name=?", [(name,) for name in taken if name not in names])
    for path, size in _files(folder):
        offset, number = taken.get(path.name, (0, 0))
        if size <= offset:
            continue
        records, offset, number = _read(path, cipher, offset, number)
        found += records
        connection.execute("INSERT OR REPLACE INTO spool (name,taken,number) VALUES (?,?,?)",
                           (path.name, offset, number))
    return found


def drop_finished(folder: Path, connection: apsw.Connection) -> None:
    """Remove files that were taken whole and that no process writes any more. After the commit of ``take``."""
    taken = _taken(connection)
    for path, size in _files(folder):
        if taken.get(path.name, (0, 0))[0] < size and not _torn(path, taken.get(path.name)):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_size == size:
                    if taken.get(path.name, (0, 0))[0] < size:
                        LOG.warning("a spool file ends in less than a record", extra={"spool": path.name})
                    path.unlink()
            finally:
                os.close(fd)


def _torn(path: Path, taken: tuple[int, int] | None) -> bool:
    """Whether what is left of a file is less than a record: a crash tore it before it was acknowledged."""
    if taken is None:
        return False
    return next(_frames(_next_bytes(path, taken[0])), None) is None


def _next_bytes(path: Path, offset: int) -> bytes:
    """What a file holds from ``offset`` on: at most ``_TAKE_MAX``, or its next frame where that is longer."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        data = file.read(_TAKE_MAX)
        if len(data) == _TAKE_MAX:
            [length] = _HEAD.unpack_from(data)
            left = os.fstat(file.fileno()).st_size - offset - len(data)
            data += file.read(max(0, min(_HEAD.size + length - len(data), left)))
        return data
    return b""


def _taken(connection: apsw.Connection) -> Mapping[str, tuple[int, int]]:
    return {str(name): (int(offset), int(number)) for name, offset, number in connection.execute(
        "SELECT name, taken, number FROM spool")}


def _files(folder: Path) -> list[tuple[Path, int]]:
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):
            found.append((path, path.stat().st_size))
    return found


def _frames(data: bytes) -> Iterator[bytes]:
    """Whole frames; the tail of a write under way is left."""
    place = 0
    while place + _HEAD.size <= len(data):
        [length] = _HEAD.unpack_from(data, place)
        end = place + _HEAD.size + length
        if length <= _NONCE or end > len(data):
            return
        yield data[place + _HEAD.size:end]
        place = end


def _read(path: Path, cipher: AESGCM, offset: int, number: int) -> tuple[list[bytes], int, int]:
    """The next records that open, and the place and number of the one after them."""
    records: list[bytes] = []
    for frame in _frames(_next_bytes(path, offset)):
        try:
            records.append(cipher.decrypt(frame[:_NONCE], frame[_NONCE:], _place(path.name.encode(), number)))
        except InvalidTag:
            LOG.error("a spooled audit record does not open", extra={"spool": path.name, "number": number})
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(path, path.with_suffix(_BROKEN))
        offset += _HEAD.size + len(frame)
        number += 1
    return records, offset, number


def _place(name: bytes, number: int) -> bytes:
    return name + number.to_bytes(8, "big")
