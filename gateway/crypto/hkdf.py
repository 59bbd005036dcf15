"""HKDF-SHA256 for one 32-byte output, by the standard library's ``hmac.digest``.

Owns the two steps every key of the gateway is derived by; refuses other hashes and lengths, so that no caller can
weaken one. https://www.rfc-editor.org/rfc/rfc5869
"""

from __future__ import annotations

import hmac

_digest = hmac.digest


def hkdf(*, ikm: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-Extract then one block of HKDF-Expand: 32 bytes."""
    return _digest(_digest(salt, ikm, "sha256"), info + b"\x01", "sha256")


def expand(key: bytes, info: bytes) -> bytes:
    """One block of HKDF-Expand from a key that is uniform already (RFC 5869 section 3.3): 32 bytes."""
    return _digest(key, info + b"\x01", "sha256")
