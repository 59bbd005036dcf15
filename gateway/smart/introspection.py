"""Introspection and revocation, on Authlib's endpoints.

Owns what is told of a token, and who may ask or end it; refuses to tell anything but ``active: false`` of one that is
unknown, over, or another's. https://www.rfc-editor.org/rfc/rfc7662, https://www.rfc-editor.org/rfc/rfc7009,
https://hl7.org/fhir/smart-app-launch/STU2.2/token-introspection.html, https://profiles.ihe.net/ITI/PCF/other.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import apsw
from authlib.oauth2.rfc6749 import InvalidRequestError
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint

from gateway.access.grant import Grant
from gateway.access.scopes import ScopeSet, parse
from gateway.errors import Unauthenticated
from gateway.smart.authorization import Authorization, audit, find_authorization, revoke_authorization
from gateway.smart.client_authentication import BASIC, BEARER, JWT, NONE
from gateway.smart.issuer import Smart
from gateway.smart.issuing import context_of, identity, present
from gateway.smart.oauth import FormRequest, OAuthClient, told
from gateway.smart.refresh_tokens import PREFIX, family_of
from gateway.smart.tokens import Secret

Consents = Callable[[Grant, str | None], Mapping[str, Any]]
"""What the patient's consents leave of a Grant (its app's own Consent, if any): ``extensions`` of IHE IUA and PCF."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """A token that is good now, as Authlib asks about it. ``grant``: of an access token alone; ``whole``: whether who
    asks enforces consents and is told of them. What a patient forbids looks to its holder like what is not there.
    """

    secret: Secret = field(repr=False)
    client_id: str
    user: str | None
    scopes: ScopeSet
    told: str
    issued_ms: int
    expires_ms: int
    grant: Grant | None
    authorization: Authorization | None
    whole: bool = False

    def check_client(self, client: OAuthClient) -> bool:
        return self.client_id == client.registered.id

    def is_expired(self) -> bool:
        return False

    def is_revoked(self) -> bool:
        return False


def stored_token(smart: Smart, secret: str) -> StoredToken | None:
    """The access or refresh token ``secret``; None unless it is good now."""
    if secret.startswith(PREFIX):
        return _refresh_token(smart, secret)
    reader = smart.database.reader
    try:
        grant, _ = smart.tokens.lookup(reader, secret, smart.now_ms())
    except Unauthenticated:
        return None
    scope, words, authorization, issued_ms = next(reader.execute(
        "SELECT scope, told, authorization, issued_ms FROM token WHERE id=?", (grant.token_id,)))
    return StoredToken(
        secret=Secret(secret), client_id=grant.client_id, user=grant.user, scopes=parse(str(scope)),
        told=str(words or scope), issued_ms=int(str(issued_ms)), expires_ms=grant.expires_ms, grant=grant,
        authorization=None if authorization is None else find_authorization(reader, str(authorization)))


def _refresh_token(smart: Smart, secret: str) -> StoredToken | None:
    # Looked at, not used: one that was used before is told as inactive, and ends nothing.
    hashed, reader = smart.tokens.hash(secret), smart.database.reader
    row = next(reader.execute("SELECT issued_ms, expires_ms FROM refresh_token WHERE hash=? AND used_ms IS NULL",
                              (hashed,)), None)
    presented = None if row is None else present(smart, "refresh_token", secret, None)
    if row is None or presented is None:
        return None
    return _refreshing(secret, presented.authorization, int(str(row[0])), int(str(row[1])))


def _ever_refreshed(smart: Smart, secret: str) -> StoredToken | None:
    """A refresh token, used or not: whoever used it, what came of it hangs on the same authorization."""
    reader = smart.database.reader
    id_ = family_of(reader, smart, secret) or reader.execute(
        "SELECT authorization FROM refresh_token WHERE hash=?", (smart.tokens.hash(secret),)).get
    of = None if id_ is None else find_authorization(reader, str(id_))
    return None if of is None else _refreshing(secret, of, of.used_ms, of.expires_ms)


def _refreshing(secret: str, of: Authorization, issued_ms: int, expires_ms: int) -> StoredToken:
    return StoredToken(
        secret=Secret(secret), client_id=of.client, user=of.user, scopes=of.scopes, told=told(of.scopes, v1=of.v1),
        issued_ms=issued_ms, expires_ms=expires_ms, grant=None, authorization=of)


class Revocation(RevocationEndpoint):  # type: ignore[misc]  # Authlib has no types
    CLIENT_AUTH_METHODS: Final = [NONE, BASIC, JWT]

    def check_params(self, request: FormRequest, client: OAuthClient) -> None:
        _check_token(request)

    def query_token(self, token_string: str, token_type_hint: str | None) -> StoredToken | None:
        find = _ever_refreshed if token_string.startswith(PREFIX) else stored_token
        return find(self.server.smart, token_string)

    def revoke_token(self, token: StoredToken, request: FormRequest) -> None:
        """An access token ends alone; with a refresh token ends all its authorization gave (RFC 7009 section 2.1)."""
        smart: Smart = self.server.smart
        now_ms = smart.now_ms()

        def work(connection: apsw.Connection) -> None:
            if token.grant is not None:
                if smart.tokens.revoke(connection, token.secret, now_ms):
                    smart.audit_grant(connection, "token-revoked", token.grant, now_ms)
            elif token.authorization is not None and revoke_authorization(connection, token.authorization.id, now_ms):
                audit(smart, connection, "authorization-ended", "D", token.authorization, "", now_ms)
        smart.database.transact(work)


class Introspection(IntrospectionEndpoint):  # type: ignore[misc]  # Authlib has no types
    CLIENT_AUTH_METHODS: Final = [BASIC, JWT, BEARER]

    def check_params(self, request: FormRequest, client: OAuthClient) -> None:
        _check_token(request)

    def query_token(self, token_string: str, token_type_hint: str | None) -> StoredToken | None:
        return stored_token(self.server.smart, token_string)

    def authenticate_token(self, request: FormRequest, client: OAuthClient) -> StoredToken | None:
        token: StoredToken | None = super().authenticate_token(request, client)
        return None if token is None else replace(token, whole=client.registered.kind == "feed")

    def check_permission(self, token: StoredToken, client: OAuthClient, request: FormRequest) -> bool:
        """A client sees its own tokens; this hospital's own systems (feeds) see all."""
        return token.check_client(client) or client.registered.kind == "feed"

    def introspect_token(self, token: StoredToken) -> dict[str, Any]:
        smart: Smart = self.server.smart
        found: dict[str, Any] = {"active": True, "client_id": token.client_id, "scope": token.told,
                                 "exp": token.expires_ms // 1_000, "iat": token.issued_ms // 1_000}
        if token.user is not None:
            found["fhirUser"] = f"{smart.settings.base_url}/{token.user}"
        if token.grant is not None:
            found |= {"token_type": "Bearer", "purpose_of_use": [token.grant.purpose]}
            if token.grant.launch_patient:
                found["patient"] = token.grant.launch_patient.removeprefix("Patient/")
        if token.authorization is not None:
            found |= context_of(smart, token.authorization, token.scopes)
        if token.user is not None and "openid" in token.scopes.others:
            found |= {"iss": smart.issuer, "sub": identity(smart, token.user, token.scopes)["sub"]}
        if token.whole and token.grant is not None:
            consent = None if token.authorization is None else token.authorization.consent
            found["extensions"] = dict(self.server.consents(token.grant, consent))
        return found


def _check_token(request: FormRequest) -> None:
    if not request.form.get("token"):
        raise InvalidRequestError(description="token is missing")
