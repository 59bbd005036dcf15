"""Receipts of what is anchored: the inclusion proof of one Version, or of the run that holds an audit row.

Owns the reading back of a Batch's manifest and the bounded cache of its tree; refuses a manifest that does not give the
root on the chain. The content salt comes from who opened the version: it is not kept in the clear. ``FORMATS.md``,
Receipt.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Final

import apsw

from gateway.crypto.envelope import open_block
from gateway.crypto.keys import KeyRing
from gateway.errors import BlockCorrupt
from gateway.ledger import merkle
from gateway.ledger.address import address
from gateway.ledger.batch import Entry, check, parse_manifest, parse_sealed_body
from gateway.ledger.closing import run_name
from gateway.ledger.receipt import AnchoredRow, Receipt
from gateway.store import batches, followed
from gateway.store.batches import BatchRow
from gateway.store.blobs import BlobBackend
from gateway.store.journal import VersionRow

_TREES: Final = 16
"""Trees kept, of at most half a megabyte each."""


class Proofs:
    """Inclusion proofs of one custodian's Batches. Safe between threads; made once per process."""

    def __init__(self, *, ring: KeyRing, blobs: BlobBackend, custodian: str, chain_id: int, contract: str,
                 timeout_s: float = 30.0) -> None:
        self._ring = ring
        self._blobs = blobs
        self._custodian = custodian
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._trees: OrderedDict[bytes, merkle.Tree] = OrderedDict()
        self.chain_id = chain_id
        self.contract = address(contract)
        self.custodian = address(custodian)

    def path(self, batch: BatchRow, digest: bytes, commitment: bytes) -> tuple[bytes, ...]:
        """The inclusion path of an entry. Raises BlockCorrupt when it is not in the Batch, BlobUnavailable."""
        try:
            return self._tree(batch).path(merkle.leaf(digest, commitment))
        except KeyError as error:
            raise BlockCorrupt("an entry is not in the Batch it was closed with") from error

    def open_run(self, first: int, last: int, digest: bytes, keys: bytes) -> tuple[bytes, bytes]:
        """Body and content salt of an audit run's block. Raises BlockCorrupt, BlobUnavailable."""
        envelope = self._blobs.get(digest, timeout_s=self._timeout_s)
        return open_block("audit", run_name(first, last), envelope, digest, self._ring.open_keys(keys),
                          self._custodian)

    def _tree(self, batch: BatchRow) -> merkle.Tree:
        with self._lock:
            known = self._trees.get(batch.root)
            if known is not None:
                self._trees.move_to_end(batch.root)
                return known
        tree = self._read(batch)
        with self._lock:
            self._trees[batch.root] = tree
            while len(self._trees) > _TREES:
                self._trees.popitem(last=False)
        return tree

    def entries(self, root: bytes, manifest_digest: bytes, size_class: int) -> tuple[Entry, ...]:
        """What an anchored Batch holds. Raises BlockCorrupt where that does not give the root, BlobUnavailable."""
        return self._checked(root, manifest_digest, size_class)[0]

    def _read(self, batch: BatchRow) -> merkle.Tree:
        return self._checked(batch.root, batch.manifest_digest, batch.size_class)[1]

    def _checked(self, root: bytes, manifest_digest: bytes, size_class: int) -> tuple[tuple[Entry, ...], merkle.Tree]:
        block = self._blobs.get(manifest_digest, timeout_s=self._timeout_s)
        manifest = parse_manifest(block, manifest_digest)
        part = self._blobs.get(manifest.sealed, timeout_s=self._timeout_s)
        entries, salt = parse_sealed_body(self._open_part(root, part, manifest.sealed))
        return tuple(entries), check(manifest, entries, salt, root, size_class)

    def _open_part(self, root: bytes, part: bytes, digest: bytes) -> bytes:
        refused = BlockCorrupt("there is no manifest key")
        for secret in self._ring.secrets("manifest"):
            try:
                return open_block("manifest", root.hex(), part, digest, secret, self._custodian)[0]
            except BlockCorrupt as error:
                refused = error
        raise refused


def build_receipt(proofs: Proofs, connection: apsw.Connection, row: VersionRow, content_salt: bytes) -> Receipt | None:
    """The receipt of a version; None while its Batch is not final. Raises BlockCorrupt, BlobUnavailable."""
    batch = _final(connection, row.batch)
    if batch is None:
        return None
    return _receipt(proofs, connection, batch, place=(row.type, row.id, row.vid), digest=row.digest,
                    commitment=row.commitment, content_salt=content_salt)


def build_audit_receipt(
    proofs: Proofs, connection: apsw.Connection, id_: str, seq: int, row_hash: bytes
) -> Receipt | None:
    """The receipt of audit row ``seq`` (AuditEvent ``id_``), with the run that holds it, whose commitment it is; None
    while its Batch is not final. Raises BlockCorrupt, BlobUnavailable."""
    found = batches.run_of(connection, seq)
    batch = _final(connection, found[5]) if found is not None else None
    if found is None or batch is None:
        return None
    first, last, digest, commitment, keys, _ = found
    body, salt = proofs.open_run(first, last, digest, keys)
    made = _receipt(proofs, connection, batch, place=("AuditEvent", id_, 1), digest=digest, commitment=commitment,
                    content_salt=salt)
    return replace(made, row=AnchoredRow(number=seq, hash=row_hash, run=body))


def _final(connection: apsw.Connection, pk: int | None) -> BatchRow | None:
    batch = batches.batch(connection, pk) if pk is not None else None
    return batch if batch is not None and batch.state == "final" else None


def _receipt(proofs: Proofs, connection: apsw.Connection, batch: BatchRow, *, place: tuple[str, str, int],
             digest: bytes, commitment: bytes, content_salt: bytes) -> Receipt:
    if batch.expected_head is None or batch.new_head is None or batch.tx_hash is None or (
            batch.block_number is None or batch.block_hash is None or batch.block_time_s is None):
        raise BlockCorrupt("a final Batch does not say where it is")
    type_, id_, version_id = place
    return Receipt(
        type=type_, id=id_, version_id=version_id, content_salt=content_salt, content_commitment=commitment,
        block_digest=digest, path=proofs.path(batch, digest, commitment), root=batch.root,
        manifest_digest=batch.manifest_digest, size_class=batch.size_class, prior_head=batch.expected_head,
        head=batch.new_head, chain_id=proofs.chain_id, contract=proofs.contract, custodian=proofs.custodian,
        transaction=batch.tx_hash, block_number=batch.block_number, block_hash=batch.block_hash,
        block_time_s=batch.block_time_s,
        confirmations=max(1, followed.head_number(connection) - batch.block_number + 1))
