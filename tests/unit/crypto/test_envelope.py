"""Envelope: round trip, hostile input, vectors (invariant 3; ``gateway/FORMATS.md``, Envelope)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.crypto.envelope import (
    HEAD_SIZE,
    Placement,
    Sealed,
    VersionHeader,
    content_commitment,
    derive_dek,
    open_block,
    open_envelope,
    open_with_dek,
    padded_size,
    seal,
    seal_block,
    unsafe_seal_with_entropy,
)
from gateway.errors import BlockCorrupt, WrongPlacement

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "envelope.json"
MATERIAL = bytes(range(32))
HEADER = VersionHeader(
    type="Observation", id="o-1", version_id=3, time_ms=1_763_000_000_123, client="feed", user="Practitioner/7",
    deleted=False)
PLACE = Placement(type="Observation", id="o-1", version_id=3)
STORED = b'{"resourceType":"Observation","id":"o-1","valueQuantity":{"value":1.10}}'

headers = st.builds(
    VersionHeader, type=st.sampled_from(["Patient", "Observation", "MedicationStatement"]),
    id=st.from_regex(r"[A-Za-z0-9\-.]{1,64}", fullmatch=True), version_id=st.integers(1, 2**64 - 1),
    time_ms=st.integers(-(2**63), 2**63 - 1), client=st.text(max_size=20), user=st.text(max_size=20),
    deleted=st.booleans())


def _place(header: VersionHeader) -> Placement:
    return Placement(type=header.type, id=header.id, version_id=header.version_id)


@given(headers, st.binary(max_size=3000), st.integers(1, 3), st.text(max_size=20))
def test_what_was_sealed_opens_the_same(header: VersionHeader, stored: bytes, owners: int, custodian: str) -> None:
    material = os.urandom(32 * owners)
    sealed = seal(material, custodian, header, stored)
    opened = open_envelope(sealed.envelope, sealed.digest, material, custodian, _place(header))
    assert opened.header == header
    assert opened.stored == stored
    assert opened.content_salt == sealed.content_salt
    assert sealed.content_commitment == content_commitment(opened.content_salt, stored)
    assert sealed.digest == hashlib.sha256(sealed.envelope).digest()


def test_any_bit_flipped_anywhere_is_an_error() -> None:
    sealed = seal(MATERIAL, "a", HEADER, STORED)
    for at in range(len(sealed.envelope)):
        bad = bytearray(sealed.envelope)
        bad[at] ^= 1 << (at % 8)
        with pytest.raises(BlockCorrupt, match="hash"):
            open_envelope(bytes(bad), sealed.digest, MATERIAL, "a", PLACE)
        with pytest.raises(BlockCorrupt):  # even where the attacker may name the digest
            open_envelope(bytes(bad), hashlib.sha256(bad).digest(), MATERIAL, "a", PLACE)


@given(st.integers(0, 700), st.binary(max_size=40))
@settings(max_examples=60)
def test_cut_or_lengthened_envelopes_are_an_error(keep: int, tail: bytes) -> None:
    sealed = seal(MATERIAL, "a", HEADER, STORED)
    bad = sealed.envelope[:keep] + tail
    if bad != sealed.envelope:
        with pytest.raises(BlockCorrupt):
            open_envelope(bad, hashlib.sha256(bad).digest(), MATERIAL, "a", PLACE)


@given(st.binary(max_size=900))
def test_hostile_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        open_envelope(data, hashlib.sha256(data).digest(), MATERIAL, "a", None)


def test_another_version_id_or_type_is_a_wrong_placement() -> None:
    sealed = seal(MATERIAL, "a", HEADER, STORED)
    for other in (replace(PLACE, version_id=2), replace(PLACE, id="o-2"), replace(PLACE, type="Patient")):
        with pytest.raises(WrongPlacement):
            open_envelope(sealed.envelope, sealed.digest, MATERIAL, "a", other)


def test_swapped_blocks_are_an_error() -> None:
    first = seal(MATERIAL, "a", HEADER, STORED)
    second = seal(MATERIAL, "a", replace(HEADER, version_id=4), STORED)
    with pytest.raises(BlockCorrupt):
        open_envelope(second.envelope, first.digest, MATERIAL, "a", PLACE)
    with pytest.raises(WrongPlacement):
        open_envelope(second.envelope, second.digest, MATERIAL, "a", PLACE)


def test_parts_of_two_envelopes_do_not_mix() -> None:
    first, second = (seal(MATERIAL, "a", HEADER, STORED).envelope for _ in range(2))
    for cut in (37, 49, HEAD_SIZE):
        mixed = first[:cut] + second[cut:]
        with pytest.raises(BlockCorrupt):
            open_envelope(mixed, hashlib.sha256(mixed).digest(), MATERIAL, "a", PLACE)


def test_another_custodian_or_key_does_not_open() -> None:
    sealed = seal(MATERIAL, "a", HEADER, STORED)
    with pytest.raises(BlockCorrupt, match="custodian"):
        open_envelope(sealed.envelope, sealed.digest, MATERIAL, "b", PLACE)
    with pytest.raises(BlockCorrupt, match="key"):
        open_envelope(sealed.envelope, sealed.digest, bytes(32), "a", PLACE)


def test_the_dek_alone_opens_this_block_and_no_other() -> None:
    sealed = seal(MATERIAL, "a", HEADER, STORED)
    other = seal(MATERIAL, "a", HEADER, STORED)
    dek = derive_dek(sealed.envelope, MATERIAL)
    assert open_with_dek(sealed.envelope, sealed.digest, dek, "a", PLACE).stored == STORED
    with pytest.raises(BlockCorrupt):
        open_with_dek(other.envelope, other.digest, dek, "a", PLACE)


def test_equal_plaintexts_give_unrelated_blocks() -> None:
    first, second = (seal(MATERIAL, "a", HEADER, STORED) for _ in range(2))
    assert first.digest != second.digest
    assert first.content_commitment != second.content_commitment
    assert first.content_commitment != hashlib.sha256(STORED).digest()


def test_nothing_of_the_plaintext_is_in_the_block() -> None:
    envelope = seal(MATERIAL, "a", HEADER, STORED).envelope
    for text in (b"Observation", b"o-1", b"Practitioner", b"feed"):
        assert text not in envelope


@given(st.integers(0, 2**40))
def test_padding_is_at_most_12_percent_above_the_least_size(size: int) -> None:
    padded = padded_size(size)
    assert padded >= size
    assert padded == 512 or padded <= size * 1.12
    assert padded_size(padded) == padded


def test_sizes_within_a_rung_look_the_same() -> None:
    sizes = {len(seal(MATERIAL, "a", HEADER, b"x" * size).envelope) for size in range(300)}
    assert len(sizes) == 1


def test_manifest_parts_and_audit_runs_are_no_versions() -> None:
    sealed = seal_block("manifest", "batch 7", MATERIAL, "a", b"body")
    body, salt = open_block("manifest", "batch 7", sealed.envelope, sealed.digest, MATERIAL, "a")
    assert (body, content_commitment(salt, body)) == (b"body", sealed.content_commitment)
    for attempt in (("audit", "batch 7"), ("manifest", "batch 8")):
        with pytest.raises(WrongPlacement):
            open_block(attempt[0], attempt[1], sealed.envelope, sealed.digest, MATERIAL, "a")  # type: ignore[arg-type]
    with pytest.raises(WrongPlacement):
        open_envelope(sealed.envelope, sealed.digest, MATERIAL, "a", None)
    version = seal(MATERIAL, "a", HEADER, STORED)
    with pytest.raises(WrongPlacement):
        open_block("manifest", "Observation", version.envelope, version.digest, MATERIAL, "a")


@pytest.mark.parametrize("material", [b"", b"x" * 31, b"x" * 33])
def test_sealing_refuses_material_that_is_no_keys(material: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(material, "a", HEADER, STORED)


def test_sealing_refuses_a_field_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="fit"):
        seal(MATERIAL, "a", replace(HEADER, client="x" * 65_536), STORED)


def test_committed_vectors_hold() -> None:
    """Stability: format 1 is what is on every disk and in every IPFS node; these bytes may never change."""
    cases = json.loads(VECTORS.read_text())["cases"]
    assert len(cases) >= 4
    for case in cases:
        header = VersionHeader(**case["header"])
        stored, material = case["stored"].encode(), bytes.fromhex(case["material"])
        sealed = unsafe_seal_with_entropy(
            material, case["custodian"], header, stored, bytes.fromhex(case["entropy"]))
        assert sealed == Sealed(
            envelope=bytes.fromhex(case["envelope"]), digest=bytes.fromhex(case["digest"]),
            content_commitment=bytes.fromhex(case["content_commitment"]),
            content_salt=bytes.fromhex(case["entropy"])[44:])
        assert derive_dek(sealed.envelope, material).hex() == case["dek"]
        opened = open_envelope(sealed.envelope, sealed.digest, material, case["custodian"], _place(header))
        assert (opened.header, opened.stored) == (header, stored)
