"""Merkle trees: agreement with OpenZeppelin's rules, padding, second preimages (``gateway/FORMATS.md``, Entry)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from eth_abi import encode as abi_encode
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ledger import merkle
from gateway.ledger.batch import FIRST_HEAD, rolling_head
from gateway.ledger.keccak import keccak

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
SALT = bytes(range(32))
digests = st.binary(min_size=32, max_size=32)


def some_leaves(count: int) -> list[bytes]:
    return [merkle.leaf(keccak(b"block %d" % index), keccak(b"content %d" % index)) for index in range(count)]


@given(digests, digests)
def test_a_leaf_is_the_contracts_leaf(block: bytes, commitment: bytes) -> None:
    encoded = abi_encode(["bytes32", "bytes32", "bytes32"], [keccak(b"fhir-gateway entry 1"), block, commitment])
    assert merkle.leaf(block, commitment) == keccak(keccak(encoded))


@given(st.sets(digests, min_size=1, max_size=80), digests)
@settings(max_examples=60, deadline=None)
def test_every_leaf_has_a_path_that_verifies_and_no_other_leaf_does(leaves: set[bytes], salt: bytes) -> None:
    tree = merkle.build(list(leaves), salt)
    paths = tree.paths()
    for leaf in leaves:
        assert merkle.verify(leaf, paths[leaf], tree.root, tree.size_class)
        assert tree.path(leaf) == paths[leaf]
        stranger = keccak(leaf)
        assert not merkle.verify(stranger, paths[leaf], tree.root, tree.size_class)


@given(st.permutations(some_leaves(20)))
def test_the_order_of_entries_does_not_matter(leaves: list[bytes]) -> None:
    assert merkle.build(leaves, SALT) == merkle.build(some_leaves(20), SALT)


@given(st.integers(0, 63), st.integers(0, 5), st.integers(0, 255))
def test_any_bit_of_a_path_changed_is_refused(which: int, level: int, bit: int) -> None:
    tree = merkle.build(some_leaves(64), SALT)
    leaf = tree.leaves[which]
    path = list(tree.path(leaf))
    broken = bytearray(path[level])
    broken[bit // 8] ^= 1 << (bit % 8)
    path[level] = bytes(broken)
    assert not merkle.verify(leaf, path, tree.root, tree.size_class)


def test_an_inner_node_is_no_leaf() -> None:
    """Second preimage: a node with the rest of its path climbs to the root, and is refused for its depth."""
    tree = merkle.build(some_leaves(16), SALT)
    leaf = tree.leaves[5]
    path = tree.path(leaf)
    node = merkle.pair(leaf, path[0])
    assert merkle.climb(node, path[1:]) == tree.root
    assert not merkle.verify(node, path[1:], tree.root, tree.size_class)
    for number in range(5):
        assert not merkle.verify(node, path[1:], tree.root, number)


@given(digests, digests)
def test_no_pair_of_children_is_the_preimage_of_a_leaf(left: bytes, right: bytes) -> None:
    """A leaf's preimage is 32 bytes hashed twice over 96; an inner node's 64, hashed once."""
    assert merkle.pair(left, right) not in (merkle.leaf(left, right), merkle.leaf(right, left))


@pytest.mark.parametrize(("count", "number"), [
    (1, 0), (16, 0), (17, 1), (64, 1), (65, 2), (256, 2), (257, 3), (1024, 3), (1025, 4), (4096, 4)])
def test_the_size_class_alone_is_visible(count: int, number: int) -> None:
    assert merkle.size_class(count) == number
    if count <= 257:
        tree = merkle.build(some_leaves(count), SALT)
        assert len(tree.leaves) == merkle.SIZES[number]
        assert {len(path) for path in tree.paths().values()} == {merkle.DEPTHS[number]}


@pytest.mark.parametrize("count", [0, 4097])
def test_no_entry_or_too_many_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="batch holds"):
        merkle.size_class(count)


def test_padding_depends_on_the_salt_and_hides_among_leaves() -> None:
    first, second = merkle.build(some_leaves(3), SALT), merkle.build(some_leaves(3), os.urandom(32))
    assert first.root != second.root
    assert len(set(first.leaves) & set(second.leaves)) == 3
    assert list(first.leaves) == sorted(first.leaves)
    places = {merkle.build(some_leaves(1), os.urandom(32)).leaves.index(some_leaves(1)[0]) for _ in range(40)}
    assert len(places) > 1


def test_duplicates_and_wrong_lengths_are_refused() -> None:
    leaves = some_leaves(2)
    for bad in ([leaves[0], leaves[0]], [leaves[0][:31]], [merkle.padding(SALT, 1)[0]]):
        with pytest.raises(ValueError, match="distinct"):
            merkle.build(bad, SALT)
    with pytest.raises(ValueError, match="32 bytes"):
        merkle.leaf(b"short", bytes(32))
    with pytest.raises(ValueError, match="32 bytes"):
        merkle.padding(b"short", 1)
    with pytest.raises(KeyError):
        merkle.build(leaves, SALT).path(bytes(32))


@pytest.mark.parametrize("number", [-1, 5, 99])
def test_an_unknown_size_class_verifies_nothing(number: int) -> None:
    tree = merkle.build(some_leaves(1), SALT)
    assert not merkle.verify(some_leaves(1)[0], tree.path(some_leaves(1)[0]), tree.root, number)


def test_committed_vectors_hold() -> None:
    """Stability: anchored roots depend on these bytes."""
    vectors = json.loads((VECTORS / "merkle.json").read_text())
    assert "0x" + merkle.TAG.hex() == vectors["tag"]
    head = FIRST_HEAD
    for case in vectors["batches"]:
        entries = [(bytes.fromhex(e["blockDigest"][2:]), bytes.fromhex(e["contentCommitment"][2:]))
                   for e in case["entries"]]
        tree = merkle.build([merkle.leaf(*entry) for entry in entries], bytes.fromhex(case["paddingSalt"][2:]))
        assert ("0x" + tree.root.hex(), tree.size_class) == (case["root"], case["sizeClass"])
        for entry, expected in zip(entries, case["entries"], strict=True):
            leaf = merkle.leaf(*entry)
            assert "0x" + leaf.hex() == expected["leaf"]
            assert ["0x" + node.hex() for node in tree.path(leaf)] == expected["path"]
        head = rolling_head(head, tree.root, bytes.fromhex(case["manifestDigest"][2:]), tree.size_class)
        assert "0x" + head.hex() == case["head"]


def test_the_vectors_shared_with_the_solidity_tests_hold() -> None:
    leaves = json.loads((VECTORS / "leaf.json").read_text())
    assert leaves["tag"] == "0x" + merkle.TAG.hex()
    for case in leaves["cases"]:
        block, commitment = (bytes.fromhex(case[name][2:]) for name in ("blockDigest", "contentCommitment"))
        assert "0x" + merkle.leaf(block, commitment).hex() == case["leaf"]
    for tree in json.loads((VECTORS / "proof.json").read_text())["trees"]:
        for proof in tree["proofs"]:
            leaf = merkle.leaf(*(bytes.fromhex(proof[name][2:]) for name in ("blockDigest", "contentCommitment")))
            path = [bytes.fromhex(node[2:]) for node in proof["path"]]
            assert merkle.verify(leaf, path, bytes.fromhex(tree["root"][2:]), tree["sizeClass"])
