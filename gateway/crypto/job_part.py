"""A part of a job, sealed where it waits: what was asked for, sent along and made; a request for access, a parameter.

Owns its sealing under the hospital secret ``job``, bound to whose part it is and which; refuses one from another
place. Format 1: nonce 12 | AES-256-GCM, AAD "gateway job 1 ID PART". It never leaves this hospital, and goes with what
it is a part of.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.crypto.keys import KeyRing
from gateway.errors import BlockCorrupt


def seal(ring: KeyRing, id_: str, part: str, body: bytes) -> bytes:
    """Seal ``part`` of what goes by ``id_``."""
    nonce = os.urandom(12)
    return nonce + AESGCM(ring.secret("job")).encrypt(nonce, body, _place(id_, part))


def unseal(ring: KeyRing, id_: str, part: str, sealed: bytes) -> bytes:
    """The part. Raises BlockCorrupt."""
    for key in ring.secrets("job"):
        try:
            return AESGCM(key).decrypt(sealed[:12], sealed[12:], _place(id_, part))
        except InvalidTag:
            continue
    raise BlockCorrupt("a part of a job does not open")


def _place(id_: str, part: str) -> bytes:
    return f"gateway job 1 {id_} {part}".encode()
