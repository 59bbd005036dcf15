"""CAR version 1, streamed: a manifest and its blocks on their way to or from an IPFS node or another hospital.

Owns both directions; refuses, while reading, a block that does not hash to its Cid, sections over the block limit, more
blocks than asked for, other codecs, and any other version. https://ipld.io/specs/transport/car/carv1/
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from gateway.errors import BlockCorrupt
from gateway.store.cbor import Link, decode, encode
from gateway.store.cid import BINARY_SIZE, Codec, cid_bytes, parse_cid_bytes

BLOCK_MAX: Final = 2 * 1024 * 1024
"""What IPFS peers exchange at most; larger resources do not become one block."""
_HEADER_MAX: Final = 64 * 1024
_VARINT_MAX: Final = 9

Block = tuple[Codec, bytes, bytes]
"""Codec, digest, bytes."""


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


def write_car(roots: Sequence[tuple[Codec, bytes]], blocks: Iterable[Block]) -> Iterator[bytes]:
    """Chunks of a CAR with ``roots`` (codec, digest), then ``blocks``; their hashes are the caller's word."""
    header = encode({"roots": [Link(cid_bytes(digest, codec)) for codec, digest in roots], "version": 1})
    yield _varint(len(header)) + header
    for codec, digest, data in blocks:
        if len(data) > BLOCK_MAX:
            raise ValueError(f"a block has at most {BLOCK_MAX} bytes")
        yield _varint(BINARY_SIZE + len(data)) + cid_bytes(digest, codec)
        yield data


class CarReader:
    """One CAR being read: ``roots`` at once, then ``blocks()``, each checked against its Cid."""

    def __init__(self, stream: Readable, *, blocks_max: int) -> None:
        """Read the header. ``blocks_max`` bounds the sections a sender may make us read. Raises BlockCorrupt."""
        self._stream = stream
        self._blocks_max = blocks_max
        size = self._section_size(_HEADER_MAX)
        if size is None:
            raise BlockCorrupt("CAR: empty")
        header = decode(self._exactly(size))
        if not isinstance(header, dict) or set(header) != {"roots", "version"} or header["version"] != 1:
            raise BlockCorrupt("CAR: not version 1")
        roots = header["roots"]
        if not isinstance(roots, list):
            raise BlockCorrupt("CAR: roots are not a list")
        self.roots: tuple[tuple[Codec, bytes], ...] = tuple(_root(root) for root in roots)

    def blocks(self) -> Iterator[Block]:
        """Every block, hash-checked, as it arrives. Raises BlockCorrupt."""
        count = 0
        while (size := self._section_size(BINARY_SIZE + BLOCK_MAX)) is not None:
            count += 1
            if count > self._blocks_max:
                raise BlockCorrupt("CAR: more blocks than expected")
            if size < BINARY_SIZE:
                raise BlockCorrupt("CAR: a section without a Cid")
            section = self._exactly(size)
            codec, digest = parse_cid_bytes(section[:BINARY_SIZE])
            data = section[BINARY_SIZE:]
            if hashlib.sha256(data).digest() != digest:
                raise BlockCorrupt("CAR: a block does not hash to its Cid")
            yield codec, digest, data

    def _section_size(self, limit: int) -> int | None:
        size = shift = 0
        while True:
            byte = self._stream.read(1)
            if not byte:
                if shift:
                    raise BlockCorrupt("CAR: cut short")
                return None
            size |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                break
            if shift >= 7 * _VARINT_MAX:
                raise BlockCorrupt("CAR: a length is too long")
        if size > limit:
            raise BlockCorrupt("CAR: a section is over the limit")
        if shift > 7 and size < 1 << (shift - 7):
            raise BlockCorrupt("CAR: a length is not in its shortest form")
        return size

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            part = self._stream.read(left)
            if not part:
                raise BlockCorrupt("CAR: cut short")
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _root(value: object) -> tuple[Codec, bytes]:
    if not isinstance(value, Link):
        raise BlockCorrupt("CAR: a root is no link")
    return parse_cid_bytes(value.cid)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
