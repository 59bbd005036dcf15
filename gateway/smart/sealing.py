"""Small secrets of sign-in (one-time code seeds, sign-up facts, ceremonies), sealed under the hospital's own key.

Owns the layout ``nonce 12 | AES-256-GCM`` and what binds a sealed thing to its place; refuses one that was moved or
altered. https://csrc.nist.gov/pubs/sp/800/38/d/final
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import IntegrityBroken
from gateway.smart.issuer import Smart


def seal(smart: Smart, body: bytes, place: str) -> bytes:
    """``body`` readable by this hospital alone, at ``place`` alone."""
    nonce = os.urandom(12)
    return nonce + AESGCM(smart.secrets("sign-in")[0]).encrypt(nonce, body, place.encode())


def open_sealed(smart: Smart, sealed: bytes, place: str) -> bytes:
    """What was sealed, under any generation of the key. Raises IntegrityBroken."""
    for key in smart.secrets("sign-in"):
        try:
            return AESGCM(key).decrypt(sealed[:12], sealed[12:], place.encode())
        except InvalidTag:
            continue
    raise IntegrityBroken(f"what was sealed for {place.partition(' ')[0]} does not open")
