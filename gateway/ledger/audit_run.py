"""An audit run: rows of the audit as one Entry of a Batch seals them, each chained by hash to the one before.

Owns a run's bytes, the hash that chains its rows, and finding one of them; refuses bytes that are not the one form of a
run. Pure. ``FORMATS.md``, Audit; format 1 is dag-cbor:

    {version: 1, first: row number, previous: hash before it, rows: [[time ms, key refs, sealed, hash] ...]}
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from gateway.errors import BlockCorrupt
from gateway.store.cbor import Value, decode, encode

_VERSION: Final = 1
_HASH_BYTES: Final = 32
_NUMBER_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as it was sealed: epoch milliseconds, key refs, sealed bytes, and the hash that chains it."""

    time_ms: int
    keys: bytes
    sealed: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows without a gap from number ``first`` on, and the hash before them: 32 zero bytes before row 1."""

    first: int
    previous: bytes
    rows: tuple[Row, ...]

    @property
    def last(self) -> int:
        """The number of the last row."""
        return self.first + len(self.rows) - 1


def row_hash(previous: bytes, time_ms: int, keys: bytes, sealed: bytes) -> bytes:
    """sha256(previous hash, time, key ids, sealed row): the chain's link."""
    digest = hashlib.sha256(previous)
    digest.update(struct.pack(">qII", time_ms, len(keys), len(sealed)))
    digest.update(keys)
    digest.update(sealed)
    return digest.digest()


def pack(run: Run) -> bytes:
    """The run's bytes."""
    rows: list[Value] = [[row.time_ms, row.keys, row.sealed, row.hash] for row in run.rows]
    return encode({"version": _VERSION, "first": run.first, "previous": run.previous, "rows": rows})


def parse(body: bytes) -> Run:
    """The run of such bytes; whether its rows hang together is asked apart. Raises BlockCorrupt."""
    whole = decode(body)
    if not isinstance(whole, dict) or set(whole) != {"version", "first", "previous", "rows"} or (
            whole["version"] != _VERSION):
        raise BlockCorrupt("audit run: not of a form this gateway knows")
    first, previous, rows = whole["first"], whole["previous"], whole["rows"]
    if not isinstance(first, int) or not isinstance(previous, bytes) or not isinstance(rows, list) or (
            not 1 <= first <= _NUMBER_MAX or len(previous) != _HASH_BYTES or not rows):
        raise BlockCorrupt("audit run: first, previous or rows are malformed")
    return Run(first=first, previous=previous, rows=tuple(_row(row) for row in rows))


def first_unchained(run: Run) -> int | None:
    """The number of the first row whose hash is not made of it and the row before; None when all hang together."""
    previous = run.previous
    for number, row in enumerate(run.rows, run.first):
        previous = row_hash(previous, row.time_ms, row.keys, row.sealed)
        if previous != row.hash:
            return number
    return None


def _row(value: Value) -> Row:
    if isinstance(value, list) and len(value) == 4:
        time_ms, keys, sealed, hash_ = value
        if isinstance(time_ms, int) and isinstance(keys, bytes) and isinstance(sealed, bytes) and (
                isinstance(hash_, bytes) and len(hash_) == _HASH_BYTES and abs(time_ms) <= _NUMBER_MAX):
            return Row(time_ms=time_ms, keys=keys, sealed=sealed, hash=hash_)
    raise BlockCorrupt("audit run: a row is malformed")
