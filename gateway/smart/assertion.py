"""private_key_jwt: a client proves itself with a JWT it signed.

Owns every check of a client assertion, in order; refuses any algorithm but RS384 and ES384, a key named inside the
assertion, several audiences, a life over five minutes, and a second use. The one refusal is ``invalid_client``.
https://hl7.org/fhir/smart-app-launch/STU2.2/client-confidential-asymmetric.html, https://www.rfc-editor.org/rfc/rfc7523

Authlib's own checks are replaced because they take the default algorithms, cap no life, and put the sender's text
into the error (which then fails RFC 6749's character rule).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import apsw
from authlib.oauth2.rfc6749.errors import InvalidClientError
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.util import urlsafe_b64decode

from gateway.access.roles import policy
from gateway.errors import Unavailable, Unprocessable
from gateway.smart.clients import Client, client_keys
from gateway.smart.issuer import Smart
from gateway.smart.jwks import ALGORITHMS, pick

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
METHOD: Final = "private_key_jwt"
MAX_LIFE_S: Final = 300
SKEW_S: Final = 60
_MAX_CHARACTERS: Final = 16_384
_MAX_JTI: Final = 256
_MAX_TIME_S: Final = 1e11
_PURPOSE_URNS: Final = ("urn:oid:2.16.840.1.113883.5.8#", "http://terminology.hl7.org/CodeSystem/v3-ActReason|", "")


class _Registry(jws.JWSRegistry):
    """joserfc allows 512 bytes of header; a long ``jku`` or a certificate needs more."""

    max_header_length = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated:
    """The client that signed, and the purpose its assertion states (UDAP ``hl7-b2b``), if any."""

    client: Client
    purpose: str | None


def authenticate(smart: Smart, find: Callable[[str], Client | None], form: Mapping[str, str]) -> Authenticated:
    """The client behind ``client_assertion``. Raises Authlib's InvalidClientError; the assertion is used up."""
    # 1. An assertion of the one type there is.
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise refused("client_assertion_type must be jwt-bearer (RFC 7523 section 2.2)")
    assertion = form.get("client_assertion", "")
    header, claims = _unverified(assertion)
    # 2. The header: algorithm, type, key id. Nothing in it is trusted as a key.
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise refused("the assertion must be signed with RS384 or ES384")
    if str(header.get("typ", "")).upper() != "JWT":
        raise refused("the assertion's header needs typ JWT")
    if not isinstance(kid, str) or not kid:
        raise refused("the assertion's header needs a kid")
    # 3. Who it says it is, read before the signature only to find the keys.
    issuer, subject = claims.get("iss"), claims.get("sub")
    if not isinstance(issuer, str) or issuer != subject or not issuer.isascii() or not issuer.isprintable():
        raise refused("iss and sub must both be the client id")
    if form.get("client_id", issuer) != issuer:
        raise refused("client_id names another client than the assertion")
    client = find(issuer)
    if client is None or client.closed_ms is not None:
        raise refused("no such client, or its keys do not verify the assertion")
    # 4. jku only as registered: otherwise a sender could bring its own keys.
    if "jku" in header and header["jku"] != client.jwks_uri:
        raise refused("jku is not the registered JWKS URL")
    # 5. One key by kid and kty; 6. the signature.
    claims = _verified(smart, client, assertion, algorithm, kid)
    # 7. Audience, life.
    expires_s = _check_claims(claims, smart.token_url, smart.now_ms() / 1_000)
    # 8. Never seen before; burnt last, so that nobody without the key can burn an id.
    _use_up(smart, client.id, claims.get("jti"), expires_s)
    return Authenticated(client=client, purpose=_stated_purpose(claims, client))


def refused(description: str) -> Exception:
    """Authlib's ``invalid_client``; ``description`` is a constant of ours, never the sender's text."""
    error: Exception = InvalidClientError(description=description)
    return error


def _unverified(assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = assertion.split(".")
    if len(assertion) > _MAX_CHARACTERS or len(parts) != 3 or not assertion.isascii():
        raise refused("the client assertion is not a signed JWT")
    try:
        header, claims = (json.loads(urlsafe_b64decode(part.encode())) for part in parts[:2])
    except (ValueError, RecursionError):
        raise refused("the client assertion is not a signed JWT") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise refused("the client assertion is not a signed JWT")
    return header, claims


def _verified(smart: Smart, client: Client, assertion: str, algorithm: str, kid: str) -> dict[str, Any]:
    try:
        key = pick(client_keys(smart, client, kid=kid), kid, algorithm)
    except (Unprocessable, Unavailable) as error:
        raise refused("the client's registered keys cannot be had") from error
    if key is None:
        raise refused("no such client, or its keys do not verify the assertion")
    try:
        signed = jws.deserialize_compact(assertion, key.key, registry=_Registry(algorithms=[algorithm]))
        claims = json.loads(signed.payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise refused("no such client, or its keys do not verify the assertion") from None
    if not isinstance(claims, dict):
        raise refused("the client assertion is not a signed JWT")
    return claims


def _check_claims(claims: Mapping[str, Any], audience: str, now_s: float) -> float:
    """The ``exp`` of the claims, in seconds."""
    # One audience alone: with several, each of them could use the assertion here.
    if claims.get("aud") not in (audience, [audience]):
        raise refused("aud must be the URL of the token endpoint, and nothing else")
    expires_s = _time(claims, "exp")
    if expires_s is None:
        raise refused("exp is missing")
    if expires_s + SKEW_S <= now_s:
        raise refused("the assertion has expired")
    if expires_s > now_s + MAX_LIFE_S + SKEW_S:
        raise refused("exp is more than five minutes ahead")
    for name in ("nbf", "iat"):
        at_s = _time(claims, name)
        if at_s is not None and at_s > now_s + SKEW_S:
            raise refused(f"{name} is in the future")
    return expires_s


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    # NaN and Infinity pass json.loads and every comparison that is written the wrong way round.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_TIME_S:
        raise refused(f"{name} is not a time in seconds")
    return float(value)


def _use_up(smart: Smart, client_id: str, jti: object, expires_s: float) -> None:
    if not isinstance(jti, str) or not 1 <= len(jti) <= _MAX_JTI or not jti.isprintable():
        raise refused("jti is missing or too long")
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> bool:
        connection.execute("DELETE FROM assertion WHERE expires_ms < ?", (now_ms,))
        connection.execute("INSERT INTO assertion (client,jti,expires_ms) VALUES (?,?,?) ON CONFLICT DO NOTHING",
                           (client_id, jti, math.ceil((expires_s + SKEW_S) * 1_000)))
        return connection.changes() == 1
    if not smart.database.transact(work):
        raise refused("the assertion was used before")


def _stated_purpose(claims: Mapping[str, Any], client: Client) -> str | None:
    """UDAP B2B: ``extensions.hl7-b2b.purpose_of_use``, one of those the client is registered for."""
    extensions = claims.get("extensions")
    stated = extensions.get("hl7-b2b") if isinstance(extensions, dict) else None
    if stated is None:
        return None
    codes = stated.get("purpose_of_use") if isinstance(stated, dict) else None
    if not isinstance(codes, list) or len(codes) != 1 or not isinstance(codes[0], str):
        raise refused("hl7-b2b needs exactly one purpose_of_use")
    purpose = next(codes[0].removeprefix(urn) for urn in _PURPOSE_URNS if codes[0].startswith(urn))
    if purpose not in client.purposes or purpose in policy().break_glass_purposes:
        raise refused("purpose_of_use is not one the client is registered for")
    return purpose
