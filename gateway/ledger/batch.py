"""A Batch: Entries anchored together, its Merkle tree, and the manifest that lists its blocks.

Owns the manifest's bytes and the rolling head; refuses an empty or over-full batch, a block named twice, and every
manifest that is not canonical or does not give the root it is said to. Pure. ``FORMATS.md``, Entry and Manifest.

    manifest     dag-cbor {custodian: text, links: [raw Cid ...], sealed: raw Cid, version: 1}
    sealed part  dag-cbor {entries: [[block digest, content commitment, key refs] ...], salt: 32 bytes, version: 1},
                 sealed by ``crypto.envelope.seal_block("manifest", root in hex, ...)`` under the manifest key

``links`` stand in the order of their leaves, ``entries`` likewise. A successor manifest (after an erasure) has fewer
links and the same sealed part; the root stays the first one's. Leaves name block and content alone, so neither
placement nor patient is in a manifest.

Stability: version 1 stays readable. The head is RecordAnchor's: keccak(abi.encode(head, root, digest, size class)).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway.errors import BlockCorrupt
from gateway.ledger import merkle
from gateway.ledger.keccak import keccak
from gateway.store.cbor import Link, Value, decode, encode
from gateway.store.cid import Cid, cid, cid_bytes, parse_cid_bytes

VERSION: Final = 1
FIRST_HEAD: Final = bytes(32)
"""A custodian's rolling head before its first batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one leaf commits to, and the keys that open the block (``KeySet.refs``)."""

    digest: bytes
    content_commitment: bytes
    key_refs: bytes

    @property
    def leaf(self) -> bytes:
        """The Merkle leaf."""
        return merkle.leaf(self.digest, self.content_commitment)


class SealedPart(Protocol):
    """A sealed block, as ``crypto.envelope.Sealed``."""

    @property
    def envelope(self) -> bytes:
        """The block's bytes."""
        ...

    @property
    def digest(self) -> bytes:
        """Their sha2-256."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest read: ``links`` are block digests in leaf order, ``sealed`` the sealed part's digest."""

    custodian: str
    links: tuple[bytes, ...]
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch ready to be pushed and anchored; ``entries`` in leaf order."""

    manifest: bytes = field(repr=False)
    manifest_digest: bytes
    sealed_part: bytes = field(repr=False)
    sealed_digest: bytes
    tree: merkle.Tree
    entries: tuple[Entry, ...] = field(repr=False)

    @property
    def root(self) -> bytes:
        """What is anchored."""
        return self.tree.root

    @property
    def size_class(self) -> int:
        """0 to 4."""
        return self.tree.size_class

    @property
    def manifest_cid(self) -> Cid:
        """The dag-cbor Cid to pin."""
        return cid(self.manifest_digest, "dag-cbor")

    def paths(self) -> dict[bytes, tuple[bytes, ...]]:
        """Block digest -> inclusion path, of every entry in one pass."""
        by_leaf = self.tree.paths()
        return {entry.digest: by_leaf[entry.leaf] for entry in self.entries}


def build(
    entries: Sequence[Entry], *, custodian: str, padding_salt: bytes, seal: Callable[[str, bytes], SealedPart]
) -> Batch:
    """The batch of ``entries`` in any order; ``seal(name, body)`` seals the part that names keys.

    Equal entries, salt and sealed part give equal bytes. Raises ValueError for none, too many, or a block twice.
    """
    if len({entry.digest for entry in entries}) != len(entries):
        raise ValueError("a block stands twice in a batch")
    by_leaf = {entry.leaf: entry for entry in entries}
    tree = merkle.build(list(by_leaf), padding_salt)
    ordered = tuple(by_leaf[node] for node in sorted(by_leaf))
    part = seal(tree.root.hex(), sealed_body(ordered, padding_salt))
    manifest = encode_manifest(
        Manifest(custodian=custodian, links=tuple(entry.digest for entry in ordered), sealed=part.digest))
    return Batch(
        manifest=manifest, manifest_digest=hashlib.sha256(manifest).digest(), sealed_part=part.envelope,
        sealed_digest=part.digest, tree=tree, entries=ordered,
    )


def sealed_body(entries: Sequence[Entry], padding_salt: bytes) -> bytes:
    """The plaintext of the sealed part."""
    rows: list[Value] = [[entry.digest, entry.content_commitment, entry.key_refs] for entry in entries]
    return encode({"version": VERSION, "salt": padding_salt, "entries": rows})


def parse_sealed_body(body: bytes) -> tuple[tuple[Entry, ...], bytes]:
    """Entries and padding salt of an opened sealed part. Raises BlockCorrupt."""
    value = decode(body)
    if not isinstance(value, dict) or set(value) != {"version", "salt", "entries"} or value["version"] != VERSION:
        raise BlockCorrupt("a manifest's sealed part is not of version 1")
    salt, rows = value["salt"], value["entries"]
    if not isinstance(salt, bytes) or len(salt) != 32 or not isinstance(rows, list) or not rows:
        raise BlockCorrupt("a manifest's sealed part is malformed")
    return tuple(_entry(row) for row in rows), salt


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest block's bytes."""
    links: list[Value] = [Link(cid_bytes(digest, "raw")) for digest in manifest.links]
    return encode({
        "version": VERSION, "custodian": manifest.custodian, "links": links,
        "sealed": Link(cid_bytes(manifest.sealed, "raw")),
    })


def parse_manifest(block: bytes, digest: bytes) -> Manifest:
    """A manifest block's content, hash checked. Raises BlockCorrupt."""
    if hashlib.sha256(block).digest() != digest:
        raise BlockCorrupt("a manifest does not hash to its Cid")
    value = decode(block)
    if not isinstance(value, dict) or set(value) != {"version", "custodian", "links", "sealed"}:
        raise BlockCorrupt("not a manifest")
    custodian, links = value["custodian"], value["links"]
    if value["version"] != VERSION or not isinstance(custodian, str) or not isinstance(links, list):
        raise BlockCorrupt("a manifest is not of version 1")
    if len(links) > merkle.SIZES[-1]:
        raise BlockCorrupt("a manifest has too many links")
    digests = tuple(_raw(link) for link in links)
    if len(set(digests)) != len(digests):
        raise BlockCorrupt("a manifest links a block twice")
    return Manifest(custodian=custodian, links=digests, sealed=_raw(value["sealed"]))


def check(
    manifest: Manifest, entries: Sequence[Entry], padding_salt: bytes, root: bytes, size_class: int
) -> merkle.Tree:
    """The tree of a manifest read back, once it is shown to be what was anchored. Raises BlockCorrupt.

    ``manifest.links`` may lack blocks that an erasure took out; it may not have others or another order.
    """
    try:
        tree = merkle.build([entry.leaf for entry in entries], padding_salt)
    except ValueError as error:
        raise BlockCorrupt(f"a manifest's entries make no tree: {error}") from error
    if tree.root != root or tree.size_class != size_class:
        raise BlockCorrupt("a manifest's entries do not give the anchored root")
    kept = set(manifest.links)
    ordered = sorted(entries, key=lambda entry: entry.leaf)
    if tuple(entry.digest for entry in ordered if entry.digest in kept) != manifest.links:
        raise BlockCorrupt("a manifest's links are not its entries")
    return tree


def rolling_head(head: bytes, root: bytes, manifest_digest: bytes, size_class: int) -> bytes:
    """RecordAnchor's head after this batch: keccak256(abi.encode(head, root, manifestDigest, sizeClass))."""
    return keccak(head + root + manifest_digest + size_class.to_bytes(32, "big"))


def _entry(row: Value) -> Entry:
    if not isinstance(row, list) or len(row) != 3:
        raise BlockCorrupt("a manifest's entry is malformed")
    digest, commitment, refs = row
    if not (isinstance(digest, bytes) and isinstance(commitment, bytes) and isinstance(refs, bytes)):
        raise BlockCorrupt("a manifest's entry is malformed")
    if len(digest) != 32 or len(commitment) != 32 or len(refs) % 8:
        raise BlockCorrupt("a manifest's entry is malformed")
    return Entry(digest=digest, content_commitment=commitment, key_refs=refs)


def _raw(value: Value) -> bytes:
    if not isinstance(value, Link):
        raise BlockCorrupt("a manifest links something that is no block")
    codec, digest = parse_cid_bytes(value.cid)
    if codec != "raw":
        raise BlockCorrupt("a manifest links a block that is not sealed")
    return digest
