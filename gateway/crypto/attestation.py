"""The hospital's signature under what its head attests: ES256 JWS, verifiable years later.

Owns a P-256 key derived from each generation of the ``attestation`` secret, so that a rotation brings a new key and the
old ones are still named; refuses to sign anything but an attestation: the payload says its type.
https://www.rfc-editor.org/rfc/rfc7515, https://www.rfc-editor.org/rfc/rfc7638
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from gateway.crypto.hkdf import hkdf
from gateway.crypto.keys import KeyRing
from gateway.errors import BlockCorrupt

ALGORITHM: Final = "ES256"
TYPE: Final = "fhir-gateway-attestation+json"
_INFO: Final = b"gateway attestation key 1"
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def sign(ring: KeyRing, claims: Mapping[str, Any]) -> str:
    """``claims`` as a compact JWS under the newest key."""
    key = _key(ring.secrets("attestation")[0])
    return str(jws.serialize_compact({"alg": ALGORITHM, "typ": TYPE, "kid": key.thumbprint()},
                                     json.dumps(dict(claims)).encode(), key, algorithms=[ALGORITHM]))


def public_keys(ring: KeyRing) -> dict[str, Any]:
    """The JWKS of every key anything was ever signed with."""
    keys = [_key(secret) for secret in ring.secrets("attestation")]
    return {"keys": [{**key.as_dict(private=False), "kid": key.thumbprint(), "use": "sig", "alg": ALGORITHM}
                     for key in keys]}


def verified(signed: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a JWS signed by one of ``keys`` (a JWKS). Raises BlockCorrupt."""
    for one in keys["keys"]:
        try:
            found = jws.deserialize_compact(signed, ECKey.import_key(one), algorithms=[ALGORITHM])
        except (JoseError, ValueError):
            continue
        if found.headers().get("typ") == TYPE:
            claims: dict[str, Any] = json.loads(found.payload)
            return claims
    raise BlockCorrupt("no key of this hospital signed the attestation")


def _key(secret: bytes) -> ECKey:
    number = int.from_bytes(hashlib.sha512(hkdf(ikm=secret, salt=b"", info=_INFO)).digest(), "big") % (_ORDER - 1) + 1
    return ECKey.import_key(ec.derive_private_key(number, ec.SECP256R1()))
