"""What the ``Chain`` suite needs of any chain: a member's operator, a stranger, somebody penniless, and signatures.

The EIP-712 digests are written out here a second time, from contracts/src/libraries/ConsentMessage.sol, so that the
suite does not agree with the gateway by sharing its code.
"""

from __future__ import annotations

import base64
import itertools
import secrets
import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError

from gateway.ledger.address import Address, address
from gateway.ledger.calls import AnchorCall, Call, GrantCall, RevokeAllCall, RevokeCall, consent_nonce, grant_id
from gateway.ledger.chain import Chain
from gateway.ledger.deploy import consent_domain
from gateway.ledger.keccak import keccak
from gateway.ledger.transactions import Fees, Receipt

GRANT = keccak(b"Grant(address patient,bytes32 grantee,Terms terms,uint64 validFrom,uint64 validUntil,uint64 epoch,"
               b"uint256 nonce,uint64 deadline)Terms(string statement,string hospital,string grantee,string purposes,"
               b"string records,string period,bytes32 salt)")
REVOKE = keccak(b"Revoke(address patient,bytes32 grantId,uint256 nonce,uint64 deadline)")
REVOKE_ALL = keccak(b"RevokeAll(address patient,uint64 epoch,uint256 nonce,uint64 deadline)")


ASSERTION = ["bytes32", "bytes32", "bytes32", "bytes32", "bytes", "string"]
PASSKEY = 2
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _word(value: int | str) -> bytes:
    return bytes(12) + bytes.fromhex(value[2:]) if isinstance(value, str) else value.to_bytes(32, "big")


def digest(chain_id: int, registry: Address, call: GrantCall | RevokeCall | RevokeAllCall) -> bytes:
    """What the patient signs for a call (EIP-712)."""
    match call:
        case GrantCall():
            struct = (GRANT + _word(call.patient) + call.grantee + call.terms_hash + _word(call.valid_from_s)
                      + _word(call.valid_until_s) + _word(call.epoch) + _word(call.nonce) + _word(call.deadline_s))
        case RevokeCall():
            struct = (REVOKE + _word(call.patient) + grant_id(call.patient, call.grantee, call.terms_hash)
                      + _word(call.nonce) + _word(call.deadline_s))
        case RevokeAllCall():
            struct = (REVOKE_ALL + _word(call.patient) + _word(call.epoch) + _word(call.nonce)
                      + _word(call.deadline_s))
    return keccak(b"\x19\x01" + consent_domain(chain_id, registry) + keccak(struct))


def is_signed(chain_id: int, registry: Address, call: Call) -> bool:
    """The simulator's judgement of a signature: the contracts' own for a plain key or a passkey."""
    if not isinstance(call, GrantCall | RevokeCall | RevokeAllCall):
        return False
    if call.nonce >> 248 == PASSKEY:
        return _is_asserted(digest(chain_id, registry, call), call.patient, call.signature)
    if len(call.signature) != 65:
        return False
    v, r, s = call.signature[64] - 27, call.signature[:32], call.signature[32:64]
    try:
        signature = Signature(vrs=(v, int.from_bytes(r, "big"), int.from_bytes(s, "big")))
        signer = signature.recover_public_key_from_msg_hash(digest(chain_id, registry, call))
    except (BadSignature, ValidationError):
        return False
    return address(signer.to_canonical_address()) == call.patient


def _is_asserted(signed: bytes, patient: Address, signature: bytes) -> bool:
    x, y, r, s, authenticator, tail = abi_decode(ASSERTION, signature)
    if address(keccak(x + y)[12:]) != patient:
        return False
    public = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
    try:
        public.public_key().verify(encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")),
                                   authenticator + sha256(_client_data(signed, tail)).digest(),
                                   ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _client_data(signed: bytes, tail: str) -> bytes:
    """clientDataJSON as WebAuthn 2 section 5.8.1.1 serialises it."""
    challenge = base64.urlsafe_b64encode(signed).rstrip(b"=").decode()
    return f'{{"type":"webauthn.get","challenge":"{challenge}"{tail}'.encode()


Signable = TypeVar("Signable", GrantCall, RevokeCall, RevokeAllCall)


@dataclass(frozen=True)
class Patient:
    """A fresh key; what it signs is for one chain and one ConsentRegistry."""

    chain_id: int
    registry: Address
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def address(self) -> Address:
        return address(Account.from_key(self.key).address)

    def signed(self, call: Signable) -> Signable:
        signature = Account.unsafe_sign_hash(digest(self.chain_id, self.registry, call), self.key).signature
        return replace(call, signature=bytes(signature))

    def grant(self, now_s: int, *, terms: bytes | None = None, kind: int = 0, nonce: int | None = None,
              valid_from_s: int | None = None, valid_until_s: int | None = None,
              deadline_s: int | None = None, epoch: int = 0) -> GrantCall:
        """Signed; in force from before ``now_s`` for a year unless told otherwise."""
        return self.signed(GrantCall(
            patient=self.address, grantee=keccak(b"grantee"), terms_hash=terms or secrets.token_bytes(32),
            valid_from_s=now_s - 60 if valid_from_s is None else valid_from_s,
            valid_until_s=now_s + 31_536_000 if valid_until_s is None else valid_until_s,
            epoch=epoch, nonce=consent_nonce(kind, next(self.numbers)) if nonce is None else nonce,
            deadline_s=now_s + 3600 if deadline_s is None else deadline_s, signature=b""))

    def revoke(self, now_s: int, granted: GrantCall) -> RevokeCall:
        return self.signed(RevokeCall(
            patient=self.address, grantee=granted.grantee, terms_hash=granted.terms_hash,
            nonce=consent_nonce(0, next(self.numbers)), deadline_s=now_s + 3600, signature=b""))

    def revoke_all(self, now_s: int, epoch: int) -> RevokeAllCall:
        return self.signed(RevokeAllCall(patient=self.address, epoch=epoch, nonce=consent_nonce(
            0, next(self.numbers)), deadline_s=now_s + 3600, signature=b""))


@dataclass(frozen=True)
class PasskeyPatient(Patient):
    """Signs as a browser's passkey does: WebAuthn over P-256, the address being that of the public key."""

    passkey: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()),
                                                repr=False)

    @property
    def point(self) -> tuple[bytes, bytes]:
        numbers = self.passkey.public_key().public_numbers()
        return numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")

    @property
    def address(self) -> Address:
        return address(keccak(b"".join(self.point))[12:])

    def signed(self, call: Signable) -> Signable:
        tail = ',"origin":"https://portal.example","crossOrigin":false}'
        authenticator = sha256(b"portal.example").digest() + b"\x05" + bytes(4)
        client_data = _client_data(digest(self.chain_id, self.registry, call), tail)
        r, s = decode_dss_signature(self.passkey.sign(authenticator + sha256(client_data).digest(),
                                                      ec.ECDSA(hashes.SHA256())))
        words: list[bytes] = [part.to_bytes(32, "big") for part in (r, min(s, P256_ORDER - s))]
        return replace(call, signature=abi_encode(ASSERTION, [*self.point, *words, authenticator, tail]))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """``chain``'s operator is a member; ``stranger`` has ether and no member; ``pauper`` has neither.

    State is kept between the tests of one chain, so each starts from what it finds.
    """

    chain: Chain
    stranger: Chain
    pauper: Chain
    wait_s: float = 20.0

    def patient(self) -> Patient:
        return Patient(self.chain.chain_id, self.chain.contracts.consent_registry)

    def passkey_patient(self) -> PasskeyPatient:
        return PasskeyPatient(self.chain.chain_id, self.chain.contracts.consent_registry)

    @property
    def now_s(self) -> int:
        return self.chain.head().time_s

    def anchor(self, mark: int = 1) -> AnchorCall:
        custodian = self.chain.member_of()
        assert custodian is not None
        return AnchorCall(expected_head=self.chain.anchor_head(custodian), root=secrets.token_bytes(32),
                          manifest_digest=bytes([mark]) * 32, size_class=0)

    def send(self, call: Call, *, by: Chain | None = None, fees: Fees | None = None) -> bytes:
        sender = by or self.chain
        return sender.send(call, nonce=sender.nonce("pending"), fees=fees or sender.fees())

    def mined(self, tx_hash: bytes) -> Receipt:
        """The receipt, waited for."""
        deadline = time.monotonic() + self.wait_s
        while (receipt := self.chain.receipt(tx_hash)) is None:
            assert time.monotonic() < deadline, "the transaction was not mined in time"
            time.sleep(0.05)
        return receipt

    def done(self, call: Call, *, by: Chain | None = None) -> Receipt:
        receipt = self.mined(self.send(call, by=by))
        assert receipt.revert is None, receipt.revert
        return receipt

    def refused(self, call: Call, *, by: Chain | None = None) -> tuple[str, tuple[object, ...]]:
        """Name and arguments of the revert."""
        revert = self.mined(self.send(call, by=by)).revert
        assert revert is not None
        return revert.name, revert.arguments
