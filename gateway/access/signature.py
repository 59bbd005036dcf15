"""ECDSA signatures over the consent messages.

Owns recovering who signed, in the form the contract accepts; refuses a high ``s``, a recovery id other than 27 or 28
(0 and 1 are read as these), and anything not 65 bytes: what passes here also passes OpenZeppelin's ECDSA.
https://eips.ethereum.org/EIPS/eip-2, https://eips.ethereum.org/EIPS/eip-712
"""

from __future__ import annotations

from gateway.access.typed_data import Domain, Message, digest
from gateway.errors import Unprocessable

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def normalised(signature: bytes) -> bytes:
    """``r, s, v`` with v 27 or 28, as the contract wants it. Raises Unprocessable."""
    if len(signature) != 65:
        raise Unprocessable("a signature is 65 bytes: r, s, v")
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    if v in (0, 1):
        v += 27
    if v not in (27, 28) or not 0 < r < _ORDER or not 0 < s <= _ORDER // 2:
        raise Unprocessable("the signature is not a canonical secp256k1 signature")
    return signature[:64] + bytes([v])


def recover(message: Message, domain: Domain, signature: bytes) -> str:
    """The checksummed address whose key signed ``message``. Raises Unprocessable where none can have.

    Equal to ``message.patient`` (ignoring case) means: signed by the patient's own key.
    """
    return recover_digest(digest(message, domain), signature)


def recover_digest(signed: bytes, signature: bytes) -> str:
    """As ``recover``, for a digest already made."""
    from eth_keys.datatypes import Signature  # loaded by the few workers that check one
    from eth_keys.exceptions import BadSignature
    from eth_utils.exceptions import ValidationError

    canonical = normalised(signature)
    try:
        point = Signature(canonical[:64] + bytes([canonical[64] - 27]))
        return str(point.recover_public_key_from_msg_hash(signed).to_checksum_address())
    except (BadSignature, ValidationError, ValueError) as error:
        raise Unprocessable("the signature belongs to no key") from error
