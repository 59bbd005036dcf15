"""What the contracts tell: their events, as any adapter of the chain gives them.

Owns each event as a value with its place; refuses ABI bytes and JSON-RPC, which stay in the adapters. Hashes, roots and
digests are 32 raw bytes; times are whole seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.ledger.address import Address
from gateway.ledger.keccak import keccak

ZERO_HASH = bytes(32)
"""The rolling head of a custodian who never anchored, and the parent of block 0."""


def rolling_head(head: bytes, root: bytes, manifest_digest: bytes, size_class: int) -> bytes:
    """RecordAnchor's head after one more batch; from ``ZERO_HASH``."""
    return keccak(head + root + manifest_digest + size_class.to_bytes(32, "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a log stands; ``(block_hash, log_index)`` names it through every reorg."""

    block_number: int
    block_hash: bytes
    tx_hash: bytes
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """RecordAnchor: ``head`` is the custodian's ``rolling_head`` after this batch, ``previous_head`` before it."""

    place: Place
    custodian: Address
    previous_head: bytes
    root: bytes
    manifest_digest: bytes
    size_class: int
    head: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """ConsentRegistry: in force in ``[valid_from_s, valid_until_s)`` while the patient's epoch is ``epoch``.

    ``kind`` is a ``SIGNER_KINDS`` position; ``custodian`` the member who relayed it, None where nobody's operator did.
    """

    place: Place
    patient: Address
    grant_id: bytes
    custodian: Address | None
    grantee: bytes
    terms_hash: bytes
    valid_from_s: int
    valid_until_s: int
    kind: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """ConsentRegistry: this id is over for good, also when it was never granted."""

    place: Place
    patient: Address
    grant_id: bytes
    grantee: bytes
    terms_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedAll:
    """ConsentRegistry: the patient's epoch is ``epoch`` now; every grant of an earlier one is over."""

    place: Place
    patient: Address
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoncesCancelled:
    """ConsentRegistry: nonces ``word << 8 | bit`` for every bit of ``mask`` can no longer be used."""

    place: Place
    patient: Address
    word: int
    mask: int


MemberChange = Literal["admitted", "removed", "endpoint", "operator-added", "operator-removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChanged:
    """HospitalRegistry: ``operator`` is set by operator changes, ``endpoint_digest`` (sha-256 of the endpoint
    document) by ``admitted`` and ``endpoint``."""

    place: Place
    change: MemberChange
    member: Address
    operator: Address | None
    endpoint_digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessorNamed:
    """HospitalRegistry: the contract of this name is replaced by the one at ``successor``."""

    place: Place
    name: str
    successor: Address


Event = Anchored | Granted | Revoked | RevokedAll | NoncesCancelled | MemberChanged | SuccessorNamed
