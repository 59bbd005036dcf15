"""The JSON texts of files and folders to import, one at a time: whole JSON files, and the lines of NDJSON.

Owns which files are taken and in which order, and bounded reading; refuses what is not a plain file of a known name,
and every text or decompression over its limit, as a ``Fault`` with its place, so that the rest goes on.
http://ndjson.org, https://hl7.org/fhir/uv/bulkdata/export.html
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, cast

from gateway.errors import Issue

WHOLE: Final = 0
"""The line number that stands for a whole JSON file."""
SUFFIXES: Final = (".json", ".ndjson", ".json.gz", ".ndjson.gz")
_FIRST: Final = ("hospitalInformation", "practitionerInformation")  # what Synthea's other bundles refer to
_SKIP_BYTES: Final = 1 << 20
# Deflate does at most 1,032 to 1 and FHIR seldom 50 to 1; a small file may be what it likes.
_RATIO_MAX: Final = 300
_RATIO_FROM_BYTES: Final = 64 << 20
_BLANK_LINES_MAX: Final = 100_000
_UNREADABLE: Final = (OSError, EOFError, zlib.error)

Advance = Callable[[int], object]
"""Told how many bytes of the files on disk were read on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One JSON text: of line ``line`` (from 1) of ``file``, or the whole of it. ``digest``: sha2-256 of the file."""

    file: Path
    line: int
    digest: bytes
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A place that cannot be read, and why."""

    file: Path
    line: int
    issue: Issue


def find(paths: Sequence[Path]) -> tuple[list[Path], list[Fault]]:
    """The files to import in their order, and what was named and cannot be.

    A folder gives every file below it with one of ``SUFFIXES``; links to folders are not followed.
    """
    files: set[Path] = set()
    faults: list[Fault] = []
    for path in paths:
        if path.is_dir():
            found = {Path(folder) / name for folder, _, names in os.walk(path) for name in names
                     if name.lower().endswith(SUFFIXES)}
            files |= found
            if not found:
                faults.append(_fault(path, WHOLE, "not-found", f"no file below it is {', '.join(SUFFIXES)}"))
        elif not path.exists():
            faults.append(_fault(path, WHOLE, "not-found", "there is no such file"))
        elif not path.name.lower().endswith(SUFFIXES):
            faults.append(_fault(path, WHOLE, "not-supported", f"the name ends in none of {', '.join(SUFFIXES)}"))
        else:
            files.add(path)
    return sorted(files, key=_order), faults


def _order(path: Path) -> tuple[int, str]:
    rank = next((place for place, prefix in enumerate(_FIRST) if path.name.startswith(prefix)), len(_FIRST))
    return rank, str(path)


def size_bytes(files: Sequence[Path]) -> int:
    """What the files take on disk; one that went away counts nothing."""
    total = 0
    for path in files:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def pieces(path: Path, *, most_bytes: int, advance: Advance) -> Iterator[Piece | Fault]:
    """Every JSON text of one file, none over ``most_bytes`` once decompressed; blank lines are passed over."""
    try:
        raw = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except OSError as error:
        yield _fault(path, WHOLE, "exception", f"it cannot be opened: {error.strerror}")
        return
    with raw:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            yield _fault(path, WHOLE, "not-supported", "it is not a plain file")
            return
        name = path.name.lower()
        reading = _Reading(path, raw, most_bytes, advance)
        yield from reading.lines() if ".ndjson" in name[-len(".ndjson.gz"):] else reading.whole()


class _Reading:
    """One open file, its place, and how much was read."""

    def __init__(self, path: Path, raw: IO[bytes], most_bytes: int, advance: Advance) -> None:
        self._path = path
        self._raw = raw
        self._most = most_bytes
        self._advance = advance
        self._told = 0
        self._line = WHOLE
        self._digest = b""
        self._stream: IO[bytes] = raw

    def whole(self) -> Iterator[Piece | Fault]:
        try:
            self._open()
            found = self._take_whole()
        except _UNREADABLE as error:
            found = self._broken(error)
        self._tell()
        yield found

    def _open(self) -> None:
        self._digest = hashlib.file_digest(self._raw, "sha256").digest()  # type: ignore[arg-type]  # a real file
        self._raw.seek(0)
        if self._path.name.lower().endswith(".gz"):
            self._stream = cast(IO[bytes], gzip.GzipFile(fileobj=self._raw, mode="rb"))  # it reads as one

    def _take_whole(self) -> Piece | Fault:
        body = self._stream.read(self._most + 1)
        if len(body) > self._most:
            return self._too_long()
        return Piece(file=self._path, line=WHOLE, digest=self._digest, body=body)

    def lines(self) -> Iterator[Piece | Fault]:
        total = blank = 0
        try:
            self._open()
            while True:
                self._line += 1
                body = self._stream.readline(self._most + 1)
                if not body:
                    break
                total += len(body)
                if len(body) > self._most and not body.endswith(b"\n"):
                    yield self._too_long()
                    while (rest := self._stream.readline(_SKIP_BYTES)) and not rest.endswith(b"\n"):
                        total += len(rest)
                        if self._is_bomb(total):
                            break
                elif body.strip():
                    blank = 0
                    yield Piece(file=self._path, line=self._line, digest=self._digest, body=body)
                else:
                    blank += 1
                if blank > _BLANK_LINES_MAX or self._is_bomb(total):
                    yield _fault(self._path, self._line, "too-long", "it is blank lines, or decompresses to more than "
                                 f"{_RATIO_MAX} times its size: what follows is not read")
                    break
                self._tell()
        except _UNREADABLE as error:
            yield self._broken(error)
        self._tell()

    def _is_bomb(self, total: int) -> bool:
        return total > _RATIO_FROM_BYTES and total > _RATIO_MAX * self._raw.tell()

    def _tell(self) -> None:
        here = self._raw.tell()
        self._advance(here - self._told)
        self._told = here

    def _too_long(self) -> Fault:
        return _fault(self._path, self._line, "too-long", f"it is longer than {self._most} bytes")

    def _broken(self, error: Exception) -> Fault:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged or cut short"
        return _fault(self._path, self._line, "exception", f"it cannot be read from here on: {why}")


def _fault(path: Path, line: int, code: str, text: str) -> Fault:
    return Fault(file=path, line=line, issue=Issue("error", code, text))
