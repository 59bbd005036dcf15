"""JWKS: the public keys a client authenticates with.

Owns which keys are fit to verify an assertion and which one an assertion names; refuses private and symmetric
keys, weak RSA, and an ambiguous choice. https://www.rfc-editor.org/rfc/rfc7517,
https://hl7.org/fhir/smart-app-launch/STU2.2/client-confidential-asymmetric.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from gateway.errors import Unprocessable

ALGORITHMS: Final[Mapping[str, str]] = {"RS384": "RSA", "ES384": "EC"}
"""The signature algorithms spoken here, and the ``kty`` each needs."""
MAX_BYTES: Final = 65_536
_MAX_KEYS: Final = 32
_RSA_BITS: Final = (2_048, 8_192)
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key: ``kty`` RSA or EC (P-384)."""

    kid: str
    kty: str
    key: RSAKey | ECKey = field(repr=False)


def parse_key_set(body: bytes) -> tuple[VerificationKey, ...]:
    """The keys of a JWKS that can verify RS384 or ES384; keys for other uses are passed over.

    Raises Unprocessable when it is no JWKS, holds a private key, a weak one, or none that is usable.
    """
    if len(body) > MAX_BYTES:
        raise Unprocessable(f"the JWKS is over {MAX_BYTES} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Unprocessable("the JWKS is not JSON") from None
    rows = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unprocessable('a JWKS is an object with a list "keys" (a public key set, not a key or PEM)')
    if len(rows) > _MAX_KEYS:
        raise Unprocessable(f"the JWKS has more than {_MAX_KEYS} keys")
    keys = tuple(found for row in rows if (found := _key(row)) is not None)
    if not keys:
        raise Unprocessable("the JWKS has no key for RS384 or ES384 with a kid")
    return keys


def _key(row: dict[str, Any]) -> VerificationKey | None:
    if _PRIVATE & row.keys():
        raise Unprocessable("the JWKS holds a private or symmetric key: replace it, and give public keys alone")
    kty, kid = row.get("kty"), row.get("kid")
    if not isinstance(kid, str) or not kid or row.get("use", "sig") != "sig" or kty not in ALGORITHMS.values():
        return None
    if row.get("alg") not in (None, "RS384" if kty == "RSA" else "ES384"):
        return None
    operations = row.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        if kty == "EC":
            return _elliptic(row, kid)
        key = RSAKey.import_key(row)
        bits = key.public_key.key_size
    except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, OverflowError) as error:
        raise Unprocessable("a key of the JWKS cannot be read") from error
    if not _RSA_BITS[0] <= bits <= _RSA_BITS[1]:
        raise Unprocessable(f"an RSA key of {bits} bits is not between {_RSA_BITS[0]} and {_RSA_BITS[1]}")
    return VerificationKey(kid, "RSA", key)


def _elliptic(row: dict[str, Any], kid: str) -> VerificationKey | None:
    if row.get("crv") != "P-384":
        return None
    key = ECKey.import_key(row)
    key.public_key.public_numbers()  # a point off the curve fails here
    return VerificationKey(kid, "EC", key)


def pick(keys: Sequence[VerificationKey], kid: str, algorithm: str) -> VerificationKey | None:
    """The one key with this ``kid`` whose type fits ``algorithm``; None when none fits, or more than one does."""
    fitting = [key for key in keys if key.kid == kid and key.kty == ALGORITHMS[algorithm]]
    return fitting[0] if len(fitting) == 1 else None
