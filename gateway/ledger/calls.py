"""What the contracts are asked to do: state-changing calls, each with the errors it may end in.

Owns the calls as values, and what names a grant and a consent's nonce; refuses ABI bytes, which stay in
``contract_codec.py``. Hashes and digests are 32 raw bytes; times are whole seconds.
Spec: https://eips.ethereum.org/EIPS/eip-712 (signed intents).
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.ledger.address import Address
from gateway.ledger.keccak import keccak

SIGNER_KINDS: tuple[str, ...] = ("wallet", "custodial", "passkey", "attested")
"""ConsentRegistry.SignerKind in its own order; the top byte of every consent nonce is a position here."""

WITHOUT_END_S = 2**40 - 1
"""A ``valid_until_s`` of this or more never ends (the contract stores 40 bits)."""


def grant_id(patient: Address, grantee: bytes, terms_hash: bytes) -> bytes:
    """``keccak256(abi.encode(patient, grantee, termsHash))``, ConsentRegistry's name of a grant."""
    return keccak(bytes(12) + bytes.fromhex(patient[2:]) + grantee + terms_hash)


def consent_nonce(kind: int, unique: int) -> int:
    """The signer kind in the top byte over 248 bits that the patient never used before."""
    if not 0 <= kind < len(SIGNER_KINDS) or not 0 <= unique < 1 << 248:
        raise ValueError("a nonce is a signer kind over 248 bits")
    return kind << 248 | unique


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorCall:
    """RecordAnchor.anchor: ``HeadMismatch`` unless ``expected_head`` is the custodian's head, ``NotMember``,
    ``SizeClassUnknown`` (0: up to 16 entries, 1: 64, 2: 256, 3: 1,024, 4: 4,096)."""

    expected_head: bytes
    root: bytes
    manifest_digest: bytes
    size_class: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantCall:
    """ConsentRegistry.grantBySig. ``nonce`` carries the signer kind (``consent_nonce``); ``deadline_s`` is the last
    second the signature counts. ``InvalidSignature``, ``NonceUsed``, ``SignatureExpired``, ``InvalidPeriod``,
    ``GrantExists`` (an id lives once: the same terms again need a new salt), ``NotMember``, ``SignerKindUnknown``,
    ``EpochMismatch`` (``epoch`` is not the patient's present one: a revoke-all came between)."""

    patient: Address
    grantee: bytes
    terms_hash: bytes
    valid_from_s: int
    valid_until_s: int
    epoch: int
    nonce: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeCall:
    """ConsentRegistry.revokeBySig: as ``GrantCall``, and ``AlreadyRevoked``."""

    patient: Address
    grantee: bytes
    terms_hash: bytes
    nonce: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeAllCall:
    """ConsentRegistry.revokeAllBySig: ends ``epoch``, which must be the patient's present one (``EpochMismatch``)."""

    patient: Address
    epoch: int
    nonce: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantBatchCall:
    """ConsentRegistry.grantBatchBySig: all or none."""

    grants: tuple[GrantCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeBatchCall:
    """ConsentRegistry.revokeBatchBySig: all or none."""

    revocations: tuple[RevokeCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOperatorCall:
    """HospitalRegistry.addOperator, by a member: ``NotMember``, ``OperatorTaken``, ``TooManyOperators``."""

    operator: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEndpointCall:
    """HospitalRegistry.setEndpoint, by a member: ``NotMember``."""

    endpoint_digest: bytes


Call = (AnchorCall | GrantCall | RevokeCall | RevokeAllCall | GrantBatchCall | RevokeBatchCall | AddOperatorCall
        | SetEndpointCall)
