"""The Merkle tree of a Batch: leaves, padding, root, inclusion proofs.

Owns the rules that ``contracts/src/libraries/Entry.sol`` and OpenZeppelin's ``MerkleProof.sol`` share with us; refuses
trees of any size but a size class, duplicate leaves, and paths of another depth. Pure.
https://docs.openzeppelin.com/contracts/5.x/api/utils/cryptography#MerkleProof

    leaf  = keccak(keccak(tag 32 | block digest 32 | content commitment 32)), tag = keccak("fhir-gateway entry 1")
    inner = keccak(smaller child | larger child)

A leaf is hashed twice over 96 bytes and an inner node once over 64, so neither can pass for the other. A tree is always
full: what is missing to its size class are padding leaves, pseudorandom under the batch's salt, which nobody can tell
from real ones without it; all leaves are sorted, so a place in the tree says nothing either.

Stability: tests/vectors/merkle.json; leaf.json and proof.json are shared with the Solidity tests.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.ledger.keccak import keccak

SIZES: Final = (16, 64, 256, 1024, 4096)
"""Leaves of a tree by its size class, 0 to 4."""
DEPTHS: Final = (4, 6, 8, 10, 12)
"""Length of a path by size class."""
TAG: Final = keccak(b"fhir-gateway entry 1")
_PADDING: Final = b"gateway padding leaf 1"


def leaf(block_digest: bytes, content_commitment: bytes) -> bytes:
    """The leaf of an Entry, 32 bytes. Raises ValueError unless both are 32 bytes."""
    if len(block_digest) != 32 or len(content_commitment) != 32:
        raise ValueError("a leaf is made of two digests of 32 bytes")
    return keccak(keccak(TAG + block_digest + content_commitment))


def pair(a: bytes, b: bytes) -> bytes:
    """The inner node above two children, in whichever order they come."""
    return keccak(a + b if a < b else b + a)


def size_class(count: int) -> int:
    """The class that holds ``count`` entries. Raises ValueError for none or more than 4,096."""
    if count < 1:
        raise ValueError("a batch holds at least one entry")
    for number, size in enumerate(SIZES):
        if count <= size:
            return number
    raise ValueError(f"a batch holds at most {SIZES[-1]} entries")


def padding(salt: bytes, count: int) -> list[bytes]:
    """``count`` padding leaves under the batch's 32-byte ``salt``."""
    if len(salt) != 32:
        raise ValueError("a padding salt has 32 bytes")
    return [hmac.digest(salt, _PADDING + index.to_bytes(4, "big"), "sha256") for index in range(count)]


@dataclass(frozen=True, slots=True)
class Tree:
    """A full tree: ``layers[0]`` are the sorted leaves, ``layers[-1]`` the root alone."""

    layers: tuple[tuple[bytes, ...], ...] = field(repr=False)
    size_class: int

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self.layers[-1][0]

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """All leaves in their order, padding among them."""
        return self.layers[0]

    def paths(self) -> dict[bytes, tuple[bytes, ...]]:
        """The path of every leaf, sibling first, all in one pass from the root down."""
        below: list[tuple[bytes, ...]] = [()]
        for layer in reversed(self.layers[:-1]):
            below = [(layer[index ^ 1], *below[index >> 1]) for index in range(len(layer))]
        return dict(zip(self.layers[0], below, strict=True))

    def path(self, of: bytes) -> tuple[bytes, ...]:
        """The path of one leaf. Raises KeyError when it is not in the tree."""
        try:
            index = self.layers[0].index(of)
        except ValueError:
            raise KeyError("no such leaf") from None
        path = []
        for layer in self.layers[:-1]:
            path.append(layer[index ^ 1])
            index >>= 1
        return tuple(path)


def build(leaves: Sequence[bytes], padding_salt: bytes) -> Tree:
    """The tree over ``leaves`` and the padding of their size class. Raises ValueError for duplicates or a bad count."""
    number = size_class(len(leaves))
    layer = sorted([*leaves, *padding(padding_salt, SIZES[number] - len(leaves))])
    if len(set(layer)) != len(layer) or any(len(node) != 32 for node in layer):
        raise ValueError("the leaves of a batch are distinct and of 32 bytes")
    layers = [tuple(layer)]
    while len(layer) > 1:
        layer = [
            keccak(a + b if a < b else b + a) for a, b in zip(layer[::2], layer[1::2], strict=True)]
        layers.append(tuple(layer))
    return Tree(tuple(layers), number)


def verify(of: bytes, path: Sequence[bytes], root: bytes, number: int) -> bool:
    """Whether the leaf ``of`` is under ``root`` in a tree of size class ``number``; a path of another depth is not."""
    if not 0 <= number < len(DEPTHS) or len(path) != DEPTHS[number] or any(len(node) != 32 for node in path):
        return False
    return climb(of, path) == root


def climb(of: bytes, path: Sequence[bytes]) -> bytes:
    """The root a leaf and its path lead to."""
    node = of
    for sibling in path:
        node = pair(node, sibling)
    return node
