"""The keys id_tokens are signed with.

Owns the RSA keys (made on first use, sealed under the hospital's ``id-token`` secret, which is kept under the root as
every other), the JWKS, and their rotation: a new generation of that secret brings a new key, and the old one stays in
the JWKS for a day, longer than anything it signed. Refuses every algorithm but RS256.
https://openid.net/specs/openid-connect-core-1_0.html#Signing, https://www.rfc-editor.org/rfc/rfc7517
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import apsw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from joserfc import jws
from joserfc.jwk import RSAKey

from gateway.errors import IntegrityBroken
from gateway.smart.issuer import Smart

ALGORITHM: Final = "RS256"
_BITS: Final = 2_048
_SHOWN_AFTER_MS: Final = 24 * 3_600_000
_NONCE: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """One RSA key and its ``kid``; ``newest``: sealed under the generation of the secret in force."""

    kid: str
    newest: bool
    created_ms: int
    key: RSAKey = field(repr=False)


class SigningKeys:
    """The keys of one hospital. Safe between threads; rows are read anew, opened keys are kept."""

    def __init__(self, smart: Smart) -> None:
        self._smart = smart
        self._opened: dict[tuple[bytes, str], tuple[bool, RSAKey]] = {}
        self._lock = threading.Lock()

    def current(self) -> SigningKey:
        """The key to sign with, made when there is none under the secret in force."""
        found = self._all(self._smart.database.reader)
        if found and found[0].newest:
            return found[0]
        made = RSAKey.generate_key(_BITS)  # outside the transaction: it takes a tenth of a second

        def work(connection: apsw.Connection) -> None:
            there = self._all(connection)
            if not (there and there[0].newest):
                self._store(connection, made)
        self._smart.database.transact(work)
        return self._all(self._smart.database.reader)[0]

    def public(self) -> dict[str, Any]:
        """The JWKS (RFC 7517): the current key, and those replaced within a day."""
        self.current()
        found, now_ms = self._all(self._smart.database.reader), self._smart.now_ms()
        shown = [key for place, key in enumerate(found)
                 if place == 0 or found[place - 1].created_ms > now_ms - _SHOWN_AFTER_MS]
        return {"keys": [{**key.key.as_dict(private=False), "kid": key.kid, "use": "sig", "alg": ALGORITHM}
                         for key in shown]}

    def sign(self, claims: Mapping[str, Any]) -> str:
        """``claims`` as a JWT."""
        key = self.current()
        header = {"alg": ALGORITHM, "typ": "JWT", "kid": key.kid}
        return str(jws.serialize_compact(header, json.dumps(dict(claims)).encode(), key.key, algorithms=[ALGORITHM]))

    def _all(self, connection: apsw.Connection) -> list[SigningKey]:
        rows: list[tuple[Any, ...]] = connection.execute(
            "SELECT kid, sealed, created_ms FROM signing_key ORDER BY created_ms DESC, kid").fetchall()
        generations = self._smart.secrets("id-token")
        return [self._open(generations, *row) for row in rows]

    def _open(self, generations: tuple[bytes, ...], kid: str, sealed: bytes, created_ms: int) -> SigningKey:
        known = self._opened.get((generations[0], kid))
        if known is None:
            known = _opened(generations, kid, sealed)
            with self._lock:
                self._opened[generations[0], kid] = known
        return SigningKey(kid=kid, newest=known[0], created_ms=created_ms, key=known[1])

    def _store(self, connection: apsw.Connection, key: RSAKey) -> None:
        kid, nonce, now_ms = secrets.token_hex(8), os.urandom(_NONCE), self._smart.now_ms()
        sealed = nonce + AESGCM(self._smart.secrets("id-token")[0]).encrypt(nonce, key.as_pem(private=True), _name(kid))
        connection.execute("INSERT INTO signing_key (kid,sealed,created_ms) VALUES (?,?,?)", (kid, sealed, now_ms))


def sweep_keys(connection: apsw.Connection, now_ms: int) -> None:
    """Delete keys replaced more than two days ago."""
    connection.execute(
        "DELETE FROM signing_key WHERE EXISTS (SELECT 1 FROM signing_key newer WHERE newer.created_ms > "
        "signing_key.created_ms AND newer.created_ms < ?)", (now_ms - 2 * _SHOWN_AFTER_MS,))


def _opened(generations: tuple[bytes, ...], kid: str, sealed: bytes) -> tuple[bool, RSAKey]:
    """Whether it is sealed under the newest generation, and the key. Raises IntegrityBroken."""
    for place, secret in enumerate(generations):
        try:
            encoded = AESGCM(secret).decrypt(sealed[:_NONCE], sealed[_NONCE:], _name(kid))
        except InvalidTag:
            continue
        return place == 0, RSAKey.import_key(encoded)
    raise IntegrityBroken("a signing key does not open under the hospital's id-token secret")


def _name(kid: str) -> bytes:
    return b"gateway id-token key 1 " + kid.encode()
