"""dag-cbor subset: equal to the reference library, strict on hostile input."""

from __future__ import annotations

import dag_cbor
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BlockCorrupt
from gateway.store.cbor import Link, Value, decode, encode
from gateway.store.cid import cid_bytes

links = st.binary(min_size=32, max_size=32).map(lambda digest: Link(cid_bytes(digest, "raw")))
plain: st.SearchStrategy[Value] = st.recursive(
    st.one_of(st.integers(-(2**64), 2**64 - 1), st.binary(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=30), st.dictionaries(st.text(max_size=300), inner, max_size=5)),
    max_leaves=12)
values: st.SearchStrategy[Value] = st.one_of(
    plain, links, st.lists(links, max_size=4), st.dictionaries(st.text(), links, max_size=3))


@given(values)
def test_reads_back_what_it_wrote(value: Value) -> None:
    assert decode(encode(value)) == value


@given(plain)
def test_equals_the_reference_library(value: Value) -> None:
    assert encode(value) == dag_cbor.encode(value)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_any_bytes_are_canonical_or_refused(data: bytes) -> None:
    try:
        value = decode(data)
    except BlockCorrupt:
        return
    assert encode(value) == data


@pytest.mark.parametrize("data", [
    b"", b"\x18\x01", b"\x19\x00\xff", b"\x9f\xff", b"\x5f\xff", b"\xf6", b"\xfb" + bytes(8), b"\x01\x01",
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff", b"\x5b\x7f" + bytes(7),
    b"\xa2\x61b\x01\x61a\x01", b"\xa2\x61a\x01\x61a\x01", b"\xa1\x01\x01", b"\x62\xff\xff", b"\xd8\x2a\x58\x25\x00",
    b"\xd8\x2a\x01", b"\x81" * 40 + b"\x01", b"\x1c", b"\x3e",
], ids=lambda data: data[:12].hex())
def test_hostile_bytes_are_refused_without_allocating(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        decode(data)


@pytest.mark.parametrize("value", [1.5, None, True, 2**64, {1: 2}])
def test_what_the_subset_lacks_is_refused(value: object) -> None:
    with pytest.raises((ValueError, AttributeError)):
        encode(value)  # type: ignore[arg-type]
