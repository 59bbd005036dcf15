"""WebAuthn assertions over the consent messages.

Owns what makes an assertion a signature the contract accepts, and the bytes the contract takes it in; refuses another
site's, one without the user verified, and a challenge that is not the message's digest. A passkey's patient address is
the last 20 bytes of ``keccak256(x, y)``: ``contracts/src/libraries/Passkey.sol``.
https://www.w3.org/TR/webauthn-2/#sctn-verifying-assertion
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from gateway.access.typed_data import keccak
from gateway.errors import Unprocessable

_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_PRESENT, _VERIFIED = 0x01, 0x04
_LONGEST: Final = 4_096
"""Bytes of an authenticator's data or of the client's: a relayed signature is paid for by the byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A P-256 public key: both coordinates, 32 bytes each."""

    x: bytes
    y: bytes

    def __post_init__(self) -> None:
        if len(self.x) != 32 or len(self.y) != 32:
            raise ValueError("a coordinate is 32 bytes")

    @property
    def account(self) -> str:
        """The patient address, 0x and 40 hex digits."""
        return "0x" + keccak(self.x + self.y)[12:].hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """What ``navigator.credentials.get`` gave: bytes as they came, ``signature`` in DER."""

    authenticator_data: bytes
    client_data: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelyingParty:
    """Whose passkeys these are: its id (a host) and the origins its pages have."""

    id: str
    origins: Collection[str]


def challenge_text(digest: bytes) -> str:
    """The challenge as clientDataJSON carries it: base64url without padding."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def checked(assertion: Assertion, *, key: PublicKey, digest: bytes, party: RelyingParty) -> bytes:
    """``abi.encode(x, y, r, s, authenticatorData, clientDataTail)``, as the contract takes it.

    Raises Unprocessable naming the step that fails. The counter is not looked at: synced passkeys have none.
    """
    authenticator, client = assertion.authenticator_data, assertion.client_data
    if len(authenticator) > _LONGEST or len(client) > _LONGEST:
        raise _refused(f"is longer than {_LONGEST} bytes")
    # 1. Type and challenge, in the one order the contract rebuilds (section 5.8.1.1).
    head = f'{{"type":"webauthn.get","challenge":"{challenge_text(digest)}"'.encode()
    if not client.startswith(head):
        raise _refused("is over another challenge")
    told = _client_data(client)
    if told.get("type") != "webauthn.get" or told.get("challenge") != challenge_text(digest):
        raise _refused("says its type or challenge twice")
    # 2. Whose page asked. A frame of another site may not.
    if told.get("origin") not in party.origins or told.get("crossOrigin") not in (None, False):
        raise _refused("was asked for by another site")
    # 3. For which relying party, and whether somebody was there and known to the authenticator.
    if len(authenticator) < 37 or authenticator[:32] != hashlib.sha256(party.id.encode()).digest():
        raise _refused("is for another relying party")
    if not authenticator[32] & _PRESENT or not authenticator[32] & _VERIFIED:
        raise _refused("does not say that the user was verified")
    # 4. The signature.
    r, s = _verified(assertion, key)
    return _encoded(key, r, min(s, _ORDER - s), authenticator, client[len(head):])


def _client_data(client: bytes) -> dict[str, Any]:
    try:
        told = json.loads(client.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _refused("carries client data that is no JSON") from error
    if not isinstance(told, dict):
        raise _refused("carries client data that is no object")
    return told


def _verified(assertion: Assertion, key: PublicKey) -> tuple[int, int]:
    from cryptography.exceptions import InvalidSignature  # loaded by the few workers that check one
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(key.x), int.from_bytes(key.y), ec.SECP256R1())
        numbers.public_key().verify(
            assertion.signature, assertion.authenticator_data + hashlib.sha256(assertion.client_data).digest(),
            ec.ECDSA(SHA256()))
        r, s = utils.decode_dss_signature(assertion.signature)
    except (InvalidSignature, ValueError) as error:
        raise _refused("is not of the registered passkey") from error
    return r, s


def _encoded(key: PublicKey, r: int, s: int, authenticator: bytes, tail: bytes) -> bytes:
    """https://docs.soliditylang.org/en/latest/abi-spec.html: four words, two offsets, two lengths with their bytes."""
    first = 6 * 32
    second = first + 32 + _padded(len(authenticator))
    words = [key.x, key.y, *(number.to_bytes(32, "big") for number in (r, s, first, second))]
    return b"".join(words) + _dynamic(authenticator) + _dynamic(tail)


def _padded(length: int) -> int:
    return -(-length // 32) * 32


def _dynamic(data: bytes) -> bytes:
    return len(data).to_bytes(32, "big") + data.ljust(_padded(len(data)), b"\0")


def _refused(why: str) -> Unprocessable:
    return Unprocessable(f"the passkey's answer {why}", code="security",
                         expression="Parameters.parameter.where(name='signature')")
