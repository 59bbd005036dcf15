"""Keyed hashes for the index, and pseudonyms: what the disk may hold instead of names, codes and references.

Owns the mapping text -> number under the index key; refuses plain hashes.  https://www.rfc-editor.org/rfc/rfc2104

``hash_fact(key, text)`` is HMAC-SHA256 under a subkey of the parameter ``key``, cut to 64 bits. Collision bound: two
different texts of one parameter collide with probability 2^-64; among n distinct texts of one parameter about
n^2 / 2^65: 3e-8 for a million, 3e-4 for a hundred million. A collision could add a match that is none, never a resource
that is not permitted: access is decided on the opened resource, not on the hash.

``parameter_id`` numbers a parameter in 48 bits, so that the index also hides which parameter a row is of.
"""

from __future__ import annotations

import hmac
from typing import Final

from gateway.crypto.hkdf import expand
from gateway.errors import Misconfigured

_digest = hmac.digest
_from_bytes = int.from_bytes
_SUBKEYS_MAX: Final = 8192


class IndexHasher:
    """Keyed hashes under one index key (32 bytes). Safe to share between threads."""

    __slots__ = ("_key", "_subkeys")

    def __init__(self, index_key: bytes) -> None:
        if len(index_key) != 32:
            raise Misconfigured("the index key must be 32 bytes")
        self._key = index_key
        self._subkeys: dict[str, bytes] = {}

    def hash_fact(self, key: str, text: str) -> int:
        """The signed 64-bit keyed hash of ``text`` under the parameter ``key`` (``Type.code``)."""
        subkey = self._subkeys.get(key) or self._subkey(key)
        return _from_bytes(_digest(subkey, text.encode(), "sha256")[:8], "big", signed=True)

    def parameter_id(self, key: str) -> int:
        """A positive 48-bit number for the parameter ``key``."""
        return _from_bytes(expand(self._key, b"gateway parameter id 1 " + key.encode())[:6], "big")

    def _subkey(self, key: str) -> bytes:
        subkey = expand(self._key, b"gateway parameter key 1 " + key.encode())
        if len(self._subkeys) < _SUBKEYS_MAX:  # keys come from search parameters; a flood of others is not kept
            self._subkeys[key] = subkey
        return subkey


class Pseudonymizer:
    """Pseudonyms under the pseudonym secret (32 bytes): stable for one purpose, unlinkable between purposes."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise Misconfigured("the pseudonym secret must be 32 bytes")
        self._secret = secret

    def pseudonym(self, purpose: str, *parts: str) -> bytes:
        """32 bytes for ``parts`` under ``purpose``; parts are length-prefixed, so ("a", "bc") is not ("ab", "c")."""
        message = bytearray()
        for part in (purpose, *parts):
            data = part.encode()
            message += len(data).to_bytes(4, "big") + data
        return _digest(self._secret, bytes(message), "sha256")

    def token(self, purpose: str, *parts: str) -> str:
        """A pseudonym for logs: 16 hex digits."""
        return self.pseudonym(purpose, *parts)[:8].hex()
