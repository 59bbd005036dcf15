"""The EIP-712 messages a patient signs for the chain, and their hashes.

Owns the three message types, their ``eth_signTypedData_v4`` JSON and their digests; refuses values outside their
Solidity types. The Solidity side is ``contracts/src/libraries/ConsentMessage.sol``; both read the same vectors.
https://eips.ethereum.org/EIPS/eip-712
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway.access.period import MAX_MS
from gateway.access.provision import Provision
from gateway.access.terms import Terms

NAME = "FHIR Gateway Consent"
VERSION = "1"
WITHOUT_END_S = 2**40 - 1
"""``validUntil`` from which the contract takes a grant to have no end."""

SignerKind = Literal["wallet", "custodial", "passkey", "attested"]
SIGNER_KINDS: tuple[SignerKind, ...] = ("wallet", "custodial", "passkey", "attested")
"""In the order of the contract's enum; the kind is the top byte of a nonce."""

Hash = bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """``contract`` is the ConsentRegistry's 0x address."""

    chain_id: int
    contract: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantMessage:
    """``patient`` a 0x address, ``grantee`` 32 bytes; times in seconds; ``nonce`` as ``nonce_of`` makes it.

    ``epoch``: the patient's when it is signed. A revoke-all ends that, and with it a signature nobody has sent yet.
    """

    patient: str
    grantee: bytes
    terms: Terms
    valid_from_s: int
    valid_until_s: int
    epoch: int
    nonce: int
    deadline_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeMessage:
    patient: str
    grant_id: bytes
    nonce: int
    deadline_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeAllMessage:
    """Ends ``epoch``: the patient's present one."""

    patient: str
    epoch: int
    nonce: int
    deadline_s: int


Message = GrantMessage | RevokeMessage | RevokeAllMessage


def nonce_of(kind: SignerKind, random: bytes) -> int:
    """A nonce that says how it is signed, from 31 random bytes."""
    if len(random) != 31:
        raise ValueError("a nonce is made of 31 random bytes")
    return SIGNER_KINDS.index(kind) << 248 | int.from_bytes(random, "big")


def kind_of(nonce: int) -> SignerKind:
    """The signer kind in a nonce. Raises ValueError where there is none."""
    if not 0 <= nonce >> 248 < len(SIGNER_KINDS):
        raise ValueError("the nonce names no signer kind")
    return SIGNER_KINDS[nonce >> 248]


def validity_s(provision: Provision) -> tuple[int, int]:
    """``(validFrom, validUntil)`` of the contract: whole seconds around the provision's own milliseconds."""
    until = WITHOUT_END_S if provision.valid_until_ms >= MAX_MS else -(-provision.valid_until_ms // 1000)
    return max(0, provision.valid_from_ms // 1000), max(0, min(until, WITHOUT_END_S))

_FIELDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "EIP712Domain": (("name", "string"), ("version", "string"), ("chainId", "uint256"),
                     ("verifyingContract", "address")),
    "Terms": (("statement", "string"), ("hospital", "string"), ("grantee", "string"), ("purposes", "string"),
              ("records", "string"), ("period", "string"), ("salt", "bytes32")),
    "Grant": (("patient", "address"), ("grantee", "bytes32"), ("terms", "Terms"), ("validFrom", "uint64"),
              ("validUntil", "uint64"), ("epoch", "uint64"), ("nonce", "uint256"), ("deadline", "uint64")),
    "Revoke": (("patient", "address"), ("grantId", "bytes32"), ("nonce", "uint256"), ("deadline", "uint64")),
    "RevokeAll": (("patient", "address"), ("epoch", "uint64"), ("nonce", "uint256"), ("deadline", "uint64")),
}


def typed_data(message: Message, domain: Domain) -> dict[str, Any]:
    """The JSON of ``eth_signTypedData_v4``; whole numbers beyond 2^53 as decimal strings, bytes as 0x hex."""
    primary, values = _values(message)
    names = ("EIP712Domain", primary, *(("Terms",) if primary == "Grant" else ()))
    return {
        "types": {name: [{"name": field, "type": type_} for field, type_ in _FIELDS[name]] for name in names},
        "primaryType": primary,
        "domain": {"name": NAME, "version": VERSION, "chainId": domain.chain_id,
                   "verifyingContract": domain.contract},
        "message": {name: _json(value) for name, value in values.items()},
    }


def _values(message: Message) -> tuple[str, dict[str, Any]]:
    match message:
        case GrantMessage():
            return "Grant", {"patient": message.patient, "grantee": message.grantee, "terms": message.terms,
                             "validFrom": message.valid_from_s, "validUntil": message.valid_until_s,
                             "epoch": message.epoch, "nonce": message.nonce, "deadline": message.deadline_s}
        case RevokeMessage():
            return "Revoke", {"patient": message.patient, "grantId": message.grant_id, "nonce": message.nonce,
                              "deadline": message.deadline_s}
        case RevokeAllMessage():
            return "RevokeAll", {"patient": message.patient, "epoch": message.epoch, "nonce": message.nonce,
                                 "deadline": message.deadline_s}


def _json(value: Any) -> Any:
    if isinstance(value, Terms):
        return {name: _json(getattr(value, name)) for name, _ in _FIELDS["Terms"]}
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return str(value) if isinstance(value, int) and value >= 2**53 else value


def keccak(data: bytes) -> Hash:
    """Keccak-256; the library is loaded on first use, so that workers that never sign do not carry it."""
    from eth_hash.auto import keccak as hash_

    digest: bytes = hash_(data)
    return digest


def _type_text(name: str) -> str:
    return f"{name}({','.join(f'{type_} {field}' for field, type_ in _FIELDS[name])})"


def _type_hash(name: str) -> Hash:
    return keccak((_type_text(name) + (_type_text("Terms") if name == "Grant" else "")).encode())


def _word(type_: str, value: Any) -> bytes:
    if type_ == "Terms":
        return terms_hash(value)
    if type_ == "string":
        return keccak(value.encode())
    if type_ == "address":
        raw = bytes.fromhex(value.removeprefix("0x"))
        if len(raw) != 20:
            raise ValueError("an address is 20 bytes")
        return raw.rjust(32, b"\0")
    if type_ == "bytes32":
        if len(value) != 32:
            raise ValueError("32 bytes")
        return bytes(value)
    if not 0 <= value < 2 ** int(type_.removeprefix("uint")):
        raise ValueError(f"{value} is no {type_}")
    return int(value).to_bytes(32, "big")


def _struct_hash(name: str, values: Mapping[str, Any]) -> Hash:
    return keccak(_type_hash(name) + b"".join(_word(type_, values[field]) for field, type_ in _FIELDS[name]))


def terms_hash(terms: Terms) -> Hash:
    """EIP-712 hashStruct: all the contract learns of the Terms."""
    return _struct_hash("Terms", {name: getattr(terms, name) for name, _ in _FIELDS["Terms"]})


def grantee_hash(salt: bytes, grantee: str) -> Hash:
    """keccak256(salt, UTF-8 of ``grantee_text``): who is granted, for those who know the salt."""
    if len(salt) != 32:
        raise ValueError("the salt is 32 bytes")
    return keccak(salt + grantee.encode())


def grant_id(patient: str, grantee: bytes, terms: bytes) -> Hash:
    """keccak256(abi.encode(patient, grantee, termsHash)), the id the contract gives the grant."""
    return keccak(_word("address", patient) + _word("bytes32", grantee) + _word("bytes32", terms))


def domain_separator(domain: Domain) -> Hash:
    return _struct_hash("EIP712Domain", {"name": NAME, "version": VERSION, "chainId": domain.chain_id,
                                         "verifyingContract": domain.contract})


def digest(message: Message, domain: Domain) -> Hash:
    """The 32 bytes that are signed."""
    return keccak(b"\x19\x01" + domain_separator(domain) + _struct_hash(*_values(message)))
