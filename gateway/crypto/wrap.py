"""A key wrapped under another: AES-256-GCM with the key's whole identity as AAD.

Owns the layout ``nonce 12 | ciphertext 32 | tag 16`` and the AAD; refuses a wrap moved to another id, owner, kind,
group or generation. The 96-bit nonce is random: NIST SP 800-38D allows 2^32 of them under one key, far above
the number of patients. https://csrc.nist.gov/pubs/sp/800/38/d/final
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import IntegrityBroken

Kind = Literal["patient", "category", "signing"]

WRAPPED_SIZE: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyName:
    """What a wrapped key is: bound to its wrap. ``group`` is empty for patient and signing keys."""

    id: int
    owner: str
    kind: Kind
    group: str
    generation: int

    def aad(self) -> bytes:
        """Length-prefixed, so that no two names share their bytes."""
        owner, group = self.owner.encode(), self.group.encode()
        return b"".join((
            b"gateway key 1 ", self.kind.encode(), b"\0", self.id.to_bytes(8, "big"),
            self.generation.to_bytes(4, "big", signed=True), len(owner).to_bytes(2, "big"), owner, group,
        ))


def secret_aad(label: str, generation: int) -> bytes:
    """What binds a wrapped hospital secret to its place."""
    return b"gateway secret 1 " + label.encode() + generation.to_bytes(4, "big")


def wrap(under: bytes, key: bytes, aad: bytes) -> bytes:
    """60 bytes that give ``key`` (32 bytes) back to who holds ``under`` and the same ``aad``."""
    nonce = os.urandom(12)
    return nonce + AESGCM(under).encrypt(nonce, key, aad)


def unwrap(under: bytes, wrapped: bytes, aad: bytes) -> bytes:
    """The 32-byte key. Raises IntegrityBroken when the wrap is altered, moved, or under another key."""
    if len(wrapped) != WRAPPED_SIZE:
        raise IntegrityBroken("a wrapped key has the wrong length")
    try:
        return AESGCM(under).decrypt(wrapped[:12], wrapped[12:], aad)
    except InvalidTag:
        raise IntegrityBroken("a wrapped key does not open: altered, moved, or under another key") from None
