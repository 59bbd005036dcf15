"""CAR version 1: streamed both ways, every block's hash checked on reading (invariant 3)."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BlockCorrupt
from gateway.store.car import BLOCK_MAX, Block, CarReader, write_car

Codecs = st.sampled_from(["raw", "dag-cbor"])


def block(data: bytes) -> Block:
    return "raw", hashlib.sha256(data).digest(), data


class Dribble(io.BytesIO):
    """A stream that gives less than it is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 7))


def car(*datas: bytes) -> bytes:
    blocks = [block(data) for data in datas]
    return b"".join(write_car([("raw", blocks[0][1])] if blocks else [], blocks))


def read(data: bytes, limit: int = 100) -> list[Block]:
    return list(CarReader(io.BytesIO(data), blocks_max=limit).blocks())


@given(st.lists(st.binary(max_size=400), max_size=8))
def test_reads_back_what_it_wrote(datas: list[bytes]) -> None:
    reader = CarReader(Dribble(car(*datas)), blocks_max=8)
    assert list(reader.blocks()) == [block(data) for data in datas]
    assert reader.roots == tuple(("raw", hashlib.sha256(data).digest()) for data in datas[:1])


def test_known_vector() -> None:
    """The header of the specification's shape: version 1, one root, then sections."""
    written = car(b"hello world")
    assert written[:1] == b"\x3a"
    assert written[1:18] == b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00\x01\x55\x12\x20"[:17]


@settings(max_examples=200)
@given(st.data())
def test_any_byte_changed_or_cut_is_an_error(data: st.DataObject) -> None:
    whole = bytearray(car(b"one block", b"another block"))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        cut = bytes(whole[:at])
        try:
            blocks = read(cut)
        except BlockCorrupt:
            return
        assert blocks == read(bytes(whole))[:len(blocks)]  # only at a section's end
        return
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        reader = CarReader(io.BytesIO(bytes(whole)), blocks_max=10)
    except BlockCorrupt:
        return
    original = CarReader(io.BytesIO(car(b"one block", b"another block")), blocks_max=10)
    if reader.roots == original.roots:
        with pytest.raises(BlockCorrupt):
            list(reader.blocks())


@given(st.binary(max_size=200))
def test_hostile_bytes_are_an_error_or_hash_checked(data: bytes) -> None:
    try:
        for _, digest, content in read(data):
            assert hashlib.sha256(content).digest() == digest
    except BlockCorrupt:
        pass


@pytest.mark.parametrize("data", [
    b"", b"\x00", b"\xff" * 12, b"\xff\xff\xff\xff\x7f", b"\x80\x00", b"\x01\xa0", b"\x0a\xa1gversion\x02",
    b"\x0a\xa1gversion\x01", b"\x11\xa2eroots\x01gversion\x01",
])
def test_malformed_headers_are_refused(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        read(data)


def test_a_section_without_a_cid_or_over_the_limit_is_refused_before_it_is_read() -> None:
    header = car()
    for section in (b"\x03abc", b"\xff\xff\xff\x7f"):
        with pytest.raises(BlockCorrupt):
            read(header + section)


def test_more_blocks_than_expected_are_refused() -> None:
    with pytest.raises(BlockCorrupt, match="more blocks"):
        read(car(b"1", b"2", b"3"), limit=2)


def test_a_block_over_the_limit_is_not_written() -> None:
    with pytest.raises(ValueError, match="at most"):
        list(write_car([], [block(b"x" * (BLOCK_MAX + 1))]))
