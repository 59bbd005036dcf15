"""A passkey made of ``cryptography`` alone: what a browser's authenticator answers, and every way to answer wrong.

https://www.w3.org/TR/webauthn-2/#sctn-op-get-assertion
"""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.store.sql import Database
from tests.journeys.hospital import Hospital


def text(data: bytes) -> str:
    """base64url without padding, as WebAuthn's JSON has it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True)
class Passkey:
    """One credential for one relying party."""

    origin: str = "http://127.0.0.1:8080"
    rp_id: str = "127.0.0.1"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    id: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    @property
    def point(self) -> tuple[bytes, bytes]:
        numbers = self.key.public_key().public_numbers()
        return numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")

    @property
    def cose(self) -> bytes:
        """COSE_Key: EC2, ES256, P-256. https://www.rfc-editor.org/rfc/rfc9053#section-7.1.1"""
        x, y = self.point
        return b"\xa5\x01\x02\x03\x26\x20\x01\x21\x58\x20" + x + b"\x22\x58\x20" + y

    def answer(self, options: dict[str, Any], *, flags: int = 0x05, **told: Any) -> dict[str, str]:
        """What ``navigator.credentials.get`` gives for ``publicKey``, as the parameters of ``$sign``; ``told`` changes
        or adds client data."""
        assert {"type": "public-key", "id": text(self.id)} in options["allowCredentials"]
        client = {"type": "webauthn.get", "challenge": options["challenge"], "origin": self.origin,
                  "crossOrigin": False, **told}
        client_data = json.dumps(client, separators=(",", ":")).encode()
        authenticator = sha256(self.rp_id.encode()).digest() + bytes([flags]) + bytes(4)
        signature = self.key.sign(authenticator + sha256(client_data).digest(), ec.ECDSA(hashes.SHA256()))
        return {"kind": "passkey", "credential": text(self.id), "authenticatorData": text(authenticator),
                "clientDataJSON": text(client_data), "signature": text(signature)}


def registered(to: Hospital | Database, user: str, passkey: Passkey, *, state: str = "verified") -> Passkey:
    """As after a registration at sign-in: the passkey belongs to a login of ``user``."""
    login = secrets.token_hex(8)

    def work(tx: Any) -> None:
        tx.execute("INSERT INTO login (id,name,shown,wanted,state,fhir_user,created_ms) VALUES (?,?,'A',?,?,?,0)",
                   (login, login, "patient", state, user))
        tx.execute("INSERT INTO passkey (id,login,public_key,counter,name,created_ms) VALUES (?,?,?,0,'key',0)",
                   (passkey.id, login, passkey.cose))

    (to if isinstance(to, Database) else to.database).transact(work)
    return passkey
