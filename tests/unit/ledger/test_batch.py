"""Batches and manifests: what is listed is what was anchored (``gateway/FORMATS.md``, Manifest)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import dag_cbor
import pytest
from eth_abi import encode as abi_encode
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import CID

from gateway.crypto.envelope import Sealed, open_block, seal_block
from gateway.errors import BlockCorrupt
from gateway.ledger import batch, merkle
from gateway.ledger.batch import Batch, Entry, Manifest
from gateway.ledger.keccak import keccak
from gateway.store.cid import parse_cid

SALT = bytes(range(32))
MATERIAL = bytes(range(32, 64))


def entries(count: int) -> list[Entry]:
    return [Entry(digest=keccak(b"b%d" % index), content_commitment=keccak(b"c%d" % index),
                  key_refs=index.to_bytes(8, "big") * (1 + index % 2)) for index in range(count)]


def seal(name: str, body: bytes) -> Sealed:
    return seal_block("manifest", name, MATERIAL, "hospital-a", body)


def built(count: int) -> Batch:
    return batch.build(entries(count), custodian="hospital-a", padding_salt=SALT, seal=seal)


@settings(max_examples=15, deadline=None)
@given(st.permutations(entries(20)))
def test_a_batch_reads_back_whatever_the_order_of_its_entries(order: list[Entry]) -> None:
    made = batch.build(order, custodian="hospital-a", padding_salt=SALT, seal=seal)
    manifest = batch.parse_manifest(made.manifest, made.manifest_digest)
    assert manifest == Manifest(
        custodian="hospital-a", links=tuple(entry.digest for entry in made.entries), sealed=made.sealed_digest)
    body, _ = open_block(
        "manifest", made.root.hex(), made.sealed_part, manifest.sealed, MATERIAL, "hospital-a")
    read, salt = batch.parse_sealed_body(body)
    assert (read, salt) == (made.entries, SALT)
    assert batch.check(manifest, read, salt, made.root, made.size_class) == made.tree
    assert set(read) == set(order)


def test_links_stand_in_the_order_of_their_leaves() -> None:
    leaves = [entry.leaf for entry in built(40).entries]
    assert leaves == sorted(leaves)


def test_every_entry_has_its_path() -> None:
    made = built(40)
    paths = made.paths()
    assert len(paths) == 40
    assert all(merkle.verify(entry.leaf, paths[entry.digest], made.root, made.size_class) for entry in made.entries)


def test_a_manifest_is_what_any_dag_cbor_reader_sees() -> None:
    """IPFS nodes follow its links to pin the blocks."""
    made = built(3)
    value = dag_cbor.decode(made.manifest)
    assert isinstance(value, dict)
    assert dag_cbor.encode(value) == made.manifest
    assert value["links"] == [CID("base32", 1, "raw", ("sha2-256", entry.digest)) for entry in made.entries]
    assert value["sealed"] == CID("base32", 1, "raw", ("sha2-256", made.sealed_digest))
    assert (value["version"], value["custodian"]) == (1, "hospital-a")
    assert parse_cid(made.manifest_cid) == ("dag-cbor", hashlib.sha256(made.manifest).digest())


def test_a_manifest_tells_neither_keys_nor_commitments() -> None:
    made = built(3)
    for entry in made.entries:
        for secret in (entry.content_commitment, entry.key_refs, entry.leaf):
            assert secret not in made.manifest
            assert secret not in made.sealed_part


def test_the_head_is_the_contracts_head() -> None:
    """RecordAnchor: keccak256(abi.encode(head, root, manifestDigest, sizeClass))."""
    head, root, digest = (keccak(bytes([index])) for index in range(3))
    encoded = abi_encode(["bytes32", "bytes32", "bytes32", "uint8"], [head, root, digest, 3])
    assert batch.rolling_head(head, root, digest, 3) == keccak(encoded)


@pytest.mark.parametrize(
    "bad", [[], entries(1) * 2, [entries(2)[0], replace(entries(2)[1], digest=entries(1)[0].digest)]])
def test_an_empty_batch_or_a_block_twice_is_refused(bad: list[Entry]) -> None:
    with pytest.raises(ValueError, match="batch"):
        batch.build(bad, custodian="a", padding_salt=SALT, seal=seal)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        batch.parse_manifest(data, hashlib.sha256(data).digest())
    with pytest.raises(BlockCorrupt):
        batch.parse_sealed_body(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_manifest_is_refused_or_is_not_the_anchored_one(data: st.DataObject) -> None:
    made = built(5)
    bad = bytearray(made.manifest)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BlockCorrupt):
        batch.parse_manifest(bytes(bad), made.manifest_digest)
    try:
        manifest = batch.parse_manifest(bytes(bad), hashlib.sha256(bad).digest())
    except BlockCorrupt:
        return
    if manifest.links != tuple(entry.digest for entry in made.entries):
        with pytest.raises(BlockCorrupt):
            batch.check(manifest, made.entries, SALT, made.root, made.size_class)


@pytest.mark.parametrize("value", [
    {"version": 2, "custodian": "a", "links": [], "sealed": CID("base32", 1, "raw", ("sha2-256", SALT))},
    {"version": 1, "custodian": "a", "links": [], "sealed": CID("base32", 1, "dag-cbor", ("sha2-256", SALT))},
    {"version": 1, "custodian": "a", "links": [b"x"], "sealed": CID("base32", 1, "raw", ("sha2-256", SALT))},
    {"version": 1, "custodian": "a", "links": [CID("base32", 1, "raw", ("sha2-256", SALT))] * 2,
     "sealed": CID("base32", 1, "raw", ("sha2-256", SALT))},
    {"version": 1, "custodian": b"a", "links": [], "sealed": CID("base32", 1, "raw", ("sha2-256", SALT))},
    {"version": 1, "custodian": "a", "links": [], "sealed": CID("base32", 1, "raw", ("sha2-256", SALT)), "x": 1},
])
def test_another_shape_is_no_manifest(value: dict[str, object]) -> None:
    block = dag_cbor.encode(value)  # type: ignore[arg-type]
    with pytest.raises(BlockCorrupt):
        batch.parse_manifest(block, hashlib.sha256(block).digest())


def test_entries_that_were_not_anchored_do_not_pass() -> None:
    made = built(5)
    manifest = batch.parse_manifest(made.manifest, made.manifest_digest)
    for wrong in (made.entries[1:], (*made.entries[1:], entries(6)[5]), ()):
        with pytest.raises(BlockCorrupt):
            batch.check(manifest, wrong, SALT, made.root, made.size_class)
    with pytest.raises(BlockCorrupt):
        batch.check(manifest, made.entries, SALT, made.root, 1)
    with pytest.raises(BlockCorrupt, match="links"):
        batch.check(replace(manifest, links=manifest.links[::-1]), made.entries, SALT, made.root, made.size_class)


def test_a_successor_without_an_erased_block_still_gives_the_root() -> None:
    """Invariant 9: receipts of others still verify."""
    made = built(5)
    manifest = batch.parse_manifest(made.manifest, made.manifest_digest)
    successor = replace(manifest, links=manifest.links[:2] + manifest.links[3:])
    block = batch.encode_manifest(successor)
    again = batch.parse_manifest(block, hashlib.sha256(block).digest())
    assert batch.check(again, made.entries, SALT, made.root, made.size_class).root == made.root
