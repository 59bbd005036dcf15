"""How a client proves itself at the token, revocation and introspection endpoints.

Owns the one way each request takes (its own registered one) and the checks of it; refuses two ways at once, a secret in
the body, and an unknown client in the same words and time as a wrong secret.
https://www.rfc-editor.org/rfc/rfc6749#section-2.3, https://hl7.org/fhir/smart-app-launch/STU2.2/client-confidential-symmetric.html
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_plus

from authlib.oauth2.rfc6749 import InvalidRequestError

from gateway.errors import Unauthenticated
from gateway.smart import assertion
from gateway.smart.assertion import Authenticated, authenticate, refused
from gateway.smart.clients import Client, find_client
from gateway.smart.issuer import Smart
from gateway.smart.oauth import FormRequest, OAuthClient
from gateway.smart.tokens import bearer

NONE: Final = "none"
BASIC: Final = "client_secret_basic"
JWT: Final = assertion.METHOD
BEARER: Final = "bearer"
Method = Callable[[object, FormRequest], OAuthClient | None]
_NO_HASH: Final = bytes(32)


def methods(smart: Smart) -> dict[str, Method]:
    """Each method by its name: the client a request proves with it, None where it takes another."""
    def with_(name: str, prove: Callable[[Smart, FormRequest], Authenticated]) -> Method:
        def method(_: object, request: FormRequest) -> OAuthClient | None:
            if taken(request) != name:
                return None
            proved = prove(smart, request)
            request.authenticated = proved
            return OAuthClient(smart, proved.client)
        return method
    return {NONE: with_(NONE, _public), BASIC: with_(BASIC, _secret), JWT: with_(JWT, _assertion),
            BEARER: with_(BEARER, _bearer)}


def taken(request: FormRequest) -> str:
    """The method a request takes. Raises Authlib's InvalidRequestError where it takes two (RFC 6749 section 2.3)."""
    form, header = request.form, request.authorization
    if "client_secret" in form:
        raise InvalidRequestError(description="a client secret goes into the Authorization header alone")
    signed = "client_assertion" in form or "client_assertion_type" in form
    if header is None:
        return JWT if signed else NONE
    if signed:
        raise InvalidRequestError(description="authenticate in one way, not two")
    return BEARER if header[:7].lower() == "bearer " else BASIC


def _public(smart: Smart, request: FormRequest) -> Authenticated:
    client = find_client(smart.database.reader, request.form.get("client_id", ""))
    if client is None or not client.stands or client.auth != NONE:
        raise refused("no such client, or it must authenticate")
    return Authenticated(client=client, purpose=None)


def _secret(smart: Smart, request: FormRequest) -> Authenticated:
    client_id, secret = _basic(request.authorization or "")
    client = find_client(smart.database.reader, client_id)
    known = client is not None and client.stands and client.auth == BASIC
    expected = client.secret if known and client is not None else None
    right = hmac.compare_digest(smart.tokens.hash(secret), expected or _NO_HASH)
    if client is None or expected is None or not right or request.form.get("client_id", client_id) != client_id:
        raise refused("no such client, or not its secret")
    return Authenticated(client=client, purpose=None)


def _basic(header: str) -> tuple[str, str]:
    """Id and secret, which RFC 6749 has form-encoded before RFC 7617's encoding."""
    scheme, _, encoded = header.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError(scheme)
        user, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise refused("the Authorization header is not that of a client") from None
    if not colon:
        raise refused("the Authorization header is not that of a client")
    return unquote_plus(user), unquote_plus(secret)


def _assertion(smart: Smart, request: FormRequest) -> Authenticated:
    reader = smart.database.reader

    def find(client_id: str) -> Client | None:
        client = find_client(reader, client_id)
        return client if client is not None and client.stands and client.auth == JWT else None
    return authenticate(smart, find, request.form)


def _bearer(smart: Smart, request: FormRequest) -> Authenticated:
    """RFC 7662 section 2.1: a token of the caller's own stands for it."""
    try:
        grant, _ = smart.tokens.lookup(smart.database.reader, bearer(request.authorization), smart.now_ms())
    except Unauthenticated:
        raise refused("the bearer token is unknown, expired or revoked") from None
    client = find_client(smart.database.reader, grant.client_id)
    if client is None:
        raise refused("the bearer token is unknown, expired or revoked")
    return Authenticated(client=client, purpose=None)
