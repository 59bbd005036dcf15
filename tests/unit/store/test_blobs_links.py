"""Reading a manifest's links without decoding it: agrees with a full decoder, survives hostile bytes."""

from __future__ import annotations

import time
from os import urandom

import dag_cbor
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID

from gateway.errors import BlockCorrupt
from gateway.store.blobs import links
from gateway.store.cid import Codec, cid, cid_bytes

digests = st.binary(min_size=32, max_size=32)
cids = st.tuples(st.sampled_from(["raw", "dag-cbor"]), digests)
values = st.recursive(
    st.integers(-(2**64), 2**64 - 1) | st.text(max_size=30)
    | st.binary(max_size=300) | cids.map(lambda pair: CID.decode(cid(pair[1], pair[0]))),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


def decoded_links(value: object) -> list[tuple[Codec, bytes]]:
    """What a full decoder finds, in the order dag-cbor writes it."""
    if isinstance(value, CID):
        return [("raw" if value.codec.name == "raw" else "dag-cbor", bytes(value.raw_digest))]
    if isinstance(value, list):
        return [link for item in value for link in decoded_links(item)]
    if isinstance(value, dict):
        return [link for item in value.values() for link in decoded_links(item)]
    return []


@given(values)
def test_the_links_are_those_a_full_decoder_finds(value: object) -> None:
    block = dag_cbor.encode(value)
    assert sorted(links(block)) == sorted(decoded_links(dag_cbor.decode(block)))


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused_or_read_never_worse(block: bytes) -> None:
    try:
        links(block)
    except BlockCorrupt:
        return


@given(values, st.data())
def test_a_cut_manifest_is_refused(value: object, data: st.DataObject) -> None:
    block = dag_cbor.encode(value)
    with pytest.raises(BlockCorrupt):
        links(block[: data.draw(st.integers(0, len(block) - 1))])


@pytest.mark.parametrize("block", [
    b"", b"\x9f\xff", b"\x5f\x41a\xff", b"\xc1\x00", b"\x00\x00", b"\x1c",
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd8\x2a\x58\x25\x01" + cid_bytes(bytes(32), "raw"),
    b"\xd8\x2a\x58\x25\x00\x01\x70\x12\x20" + bytes(32),
    b"\xd8\x2a\x58\x23\x00\x12\x20" + bytes(32),
], ids=["nothing", "open array", "open bytes", "other tag", "two items", "reserved length", "huge array", "huge map",
        "huge bytes", "other multibase", "dag-pb link", "CIDv0 link"])
def test_what_no_manifest_of_ours_says_is_refused(block: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        links(block)


def test_four_thousand_links_are_read_in_well_under_a_second() -> None:
    manifest = dag_cbor.encode([CID.decode(cid(urandom(32))) for _ in range(4096)])
    started = time.perf_counter()
    assert len(links(manifest)) == 4096
    assert time.perf_counter() - started < 0.5
