"""Cid <-> digest: one block has one name (invariant 3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID

from gateway.errors import BlockCorrupt
from gateway.store.cid import Codec, cid, cid_bytes, digest_block, parse_cid, parse_cid_bytes, raw_digest

digests = st.binary(min_size=32, max_size=32)
codecs: st.SearchStrategy[Codec] = st.sampled_from(["raw", "dag-cbor"])


@given(digests, codecs)
def test_equals_the_multiformats_library_and_reads_back(digest: bytes, codec: Codec) -> None:
    text = cid(digest, codec)
    reference = CID("base32", 1, codec, ("sha2-256", digest))
    assert text == str(reference)
    assert cid_bytes(digest, codec) == bytes(reference)
    assert parse_cid(text) == parse_cid_bytes(bytes(reference)) == (codec, digest)


def test_known_vector() -> None:
    assert cid(digest_block(b"hello world")) == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


@pytest.mark.parametrize("text", [
    "", "b", "QmY7Yh4UquoXHLPFo2XbhXkhBvFoPwmQUSa92pxnxjQuPU",
    "BAFKREIFZJUT3TE2NHYEKKLSS27NH3K72YSCO7Y32KOAO5EEI66WOF36N5E",
    "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5f",  # stray low bits
    "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e=",
    "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n51",
    "bafybeifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",  # dag-pb
    "éafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
])
def test_every_other_text_is_refused(text: str) -> None:
    with pytest.raises(BlockCorrupt):
        parse_cid(text)


@given(st.text(max_size=70))
def test_any_text_is_a_canonical_cid_or_refused(text: str) -> None:
    try:
        codec, digest = parse_cid(text)
    except BlockCorrupt:
        return
    assert cid(digest, codec) == text


def test_a_digest_of_another_length_or_codec_is_refused() -> None:
    with pytest.raises(BlockCorrupt):
        cid(b"short")
    with pytest.raises(BlockCorrupt):
        raw_digest(cid(bytes(32), "dag-cbor"))
    with pytest.raises(BlockCorrupt):
        parse_cid_bytes(cid_bytes(bytes(32), "raw") + b"x")
    assert raw_digest(cid(bytes(32))) == bytes(32)
