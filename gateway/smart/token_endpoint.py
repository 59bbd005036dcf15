"""The token, revocation and introspection endpoints, on Authlib's core.

Owns what Authlib leaves to an implementation (clients, keys, storage) and mends what it does otherwise than SMART;
refuses every grant but client_credentials and every client authentication but private_key_jwt. Synchronous: run it
in a thread. https://www.rfc-editor.org/rfc/rfc6749, https://www.rfc-editor.org/rfc/rfc7009,
https://www.rfc-editor.org/rfc/rfc7662, https://hl7.org/fhir/smart-app-launch/STU2.2/backend-services.html

Authlib's names that differ from ours: a ``client`` here is ``_OAuthClient``, which wraps the registered Client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import apsw
from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientCredentialsGrant,
    ClientMixin,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    OAuth2Request,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint

from gateway.access.grant import Grant
from gateway.access.roles import policy
from gateway.access.scopes import ScopeSet, as_v1, parse
from gateway.errors import OAuthError, Unauthenticated
from gateway.smart.assertion import METHOD, Authenticated, authenticate
from gateway.smart.clients import Client, find_client
from gateway.smart.issuer import Smart
from gateway.smart.minting import grantees
from gateway.smart.tokens import Secret, new_secret

GRANT_TYPE: Final = "client_credentials"
_DESCRIPTION: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")
_V2_WORD: Final = re.compile(r"(?:patient|user|system)/[^.]+\.(?!read$|write$|\*$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an endpoint answers: JSON ``body`` and headers."""

    status: int
    body: Mapping[str, Any] = field(repr=False)
    headers: tuple[tuple[str, str], ...]


class _FormRequest(OAuth2Request):  # type: ignore[misc]  # Authlib has no types
    """One POST. ``uri`` is the configured URL, so that no header a client sends decides whether it was https."""

    def __init__(self, url: str, form: Mapping[str, str], authorization: str | None) -> None:
        super().__init__("POST", url, headers={"Authorization": authorization} if authorization else {})
        self.payload = BasicOAuth2Payload(dict(form))
        self.authenticated: Authenticated | None = None

    @property
    def args(self) -> dict[str, str]:
        return {}

    @property
    def form(self) -> dict[str, str]:
        parameters: dict[str, str] = self.payload.data
        return parameters


class _OAuthClient(ClientMixin):  # type: ignore[misc]  # Authlib has no types
    """A registered client as Authlib asks about it."""

    def __init__(self, smart: Smart, client: Client) -> None:
        self._smart = smart
        self.registered = client

    def __repr__(self) -> str:
        return f"_OAuthClient({self.registered.id!r})"

    def get_client_id(self) -> str:
        return self.registered.id

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == METHOD

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == GRANT_TYPE and self.registered.kind in ("feed", "backend")

    def get_allowed_scope(self, scope: str | None) -> str:
        """What of ``scope`` the client was pre-authorised for, by the grammar; Authlib would compare words."""
        if not scope or not scope.strip():
            raise InvalidScopeError(description="scope is required (SMART backend services)")
        try:
            asked = self._smart.parse_scope(scope)
        except OAuthError as error:
            raise InvalidScopeError(description=_plain(error.description)) from error
        if any(wanted.context != "system" for wanted in asked.resources):
            raise InvalidScopeError(description="a client without a user may have system/ scopes alone")
        granted = asked.narrow(self.registered.scopes)
        if not granted.resources:
            raise InvalidScopeError(description="nothing of the scope is within the client's registration")
        return str(granted)


class _ClientCredentials(ClientCredentialsGrant):  # type: ignore[misc]  # Authlib has no types
    TOKEN_ENDPOINT_AUTH_METHODS: Final = [METHOD]

    def validate_requested_scope(self) -> None:
        """Judged in ``get_allowed_scope``, where the client is known."""


class _Revocation(RevocationEndpoint):  # type: ignore[misc]  # Authlib has no types
    CLIENT_AUTH_METHODS: Final = [METHOD]

    def check_params(self, request: _FormRequest, client: _OAuthClient) -> None:
        _check_token(request)

    def query_token(self, token_string: str, token_type_hint: str | None) -> _StoredToken | None:
        return self.server.stored_token(token_string)  # type: ignore[no-any-return]  # Authlib has no types

    def revoke_token(self, token: _StoredToken, request: _FormRequest) -> None:
        self.server.revoke(token)


class _Introspection(IntrospectionEndpoint):  # type: ignore[misc]  # Authlib has no types
    CLIENT_AUTH_METHODS: Final = [METHOD]

    def check_params(self, request: _FormRequest, client: _OAuthClient) -> None:
        _check_token(request)

    def query_token(self, token_string: str, token_type_hint: str | None) -> _StoredToken | None:
        return self.server.stored_token(token_string)  # type: ignore[no-any-return]  # Authlib has no types

    def check_permission(self, token: _StoredToken, client: _OAuthClient, request: _FormRequest) -> bool:
        """A client sees its own tokens; this hospital's own systems (feeds) see all."""
        return token.check_client(client) or client.registered.kind == "feed"

    def introspect_token(self, token: _StoredToken) -> dict[str, Any]:
        grant = token.grant
        facts = {"active": True, "client_id": grant.client_id, "token_type": "Bearer", "scope": str(grant.scopes),
                 "exp": grant.expires_ms // 1_000, "fhirUser": grant.user,
                 "patient": grant.launch_patient.removeprefix("Patient/") if grant.launch_patient else None,
                 "purpose_of_use": [grant.purpose]}
        return {name: value for name, value in facts.items() if value is not None}


class _StoredToken:
    """A token that is good now, as Authlib asks about it."""

    def __init__(self, secret: str, grant: Grant) -> None:
        self.secret = Secret(secret)
        self.grant = grant

    def check_client(self, client: _OAuthClient) -> bool:
        return self.grant.client_id == client.registered.id

    def is_expired(self) -> bool:
        return False

    def is_revoked(self) -> bool:
        return False


class TokenEndpoint(AuthorizationServer):  # type: ignore[misc]  # Authlib has no types
    """The three endpoints. Stateless between requests; safe between threads."""

    def __init__(self, smart: Smart) -> None:
        super().__init__()
        self._smart = smart
        self.register_grant(_ClientCredentials)
        self.register_endpoint(_Revocation)
        self.register_endpoint(_Introspection)
        self.register_client_auth_method(METHOD, self._authenticate)
        self.register_token_generator("default", BearerTokenGenerator(
            access_token_generator=lambda **_: new_secret(), expires_generator=smart.settings.token_ttl_s))

    def token(self, form: Mapping[str, str], authorization: str | None) -> Reply:
        """``POST /oauth/token``."""
        return self._answer("token", form, authorization)

    def revocation(self, form: Mapping[str, str], authorization: str | None) -> Reply:
        """``POST /oauth/revoke``."""
        return self._answer("revocation", form, authorization)

    def introspection(self, form: Mapping[str, str], authorization: str | None) -> Reply:
        """``POST /oauth/introspect``."""
        return self._answer("introspection", form, authorization)

    def _answer(self, endpoint: str, form: Mapping[str, str], authorization: str | None) -> Reply:
        try:
            request = _FormRequest(self._smart.token_url, form, authorization)
            if authorization or "client_secret" in form:
                # RFC 6749 section 2.3: one method of authentication a request, and this server knows one.
                raise InvalidRequestError(description="authenticate with client_assertion alone")
            if endpoint == "token":
                if not form.get("grant_type"):
                    raise InvalidRequestError(description="grant_type is missing")
                answered = self.create_token_response(request)
            else:
                answered = self.create_endpoint_response(endpoint, request)
        except OAuth2Error as error:
            answered = self.handle_error_response(None, error)
        reply: Reply = answered
        return reply

    def _authenticate(self, query_client: Any, request: _FormRequest) -> _OAuthClient:
        reader = self._smart.database.reader
        request.authenticated = authenticate(self._smart, lambda id_: find_client(reader, id_), request.form)
        return _OAuthClient(self._smart, request.authenticated.client)

    # What Authlib calls

    def query_client(self, client_id: str) -> _OAuthClient | None:
        client = find_client(self._smart.database.reader, client_id)
        return None if client is None else _OAuthClient(self._smart, client)

    def create_oauth2_request(self, request: _FormRequest) -> _FormRequest:
        return request

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """No listener."""

    def handle_response(self, status: int, body: Mapping[str, Any], headers: list[tuple[str, str]]) -> Reply:
        if "error_description" in body:
            body = {**body, "error_description": _plain(str(body["error_description"]))}
        return Reply(status=status, body=body, headers=tuple(headers))

    def save_token(self, token: dict[str, Any], request: _FormRequest) -> None:
        """Store the token and its audit row in one commit; the answer's scope is told in the words it was asked in."""
        smart, now_ms = self._smart, self._smart.now_ms()
        if request.authenticated is None:
            raise InvalidRequestError(description="authenticate with client_assertion")
        client, purpose = request.authenticated.client, request.authenticated.purpose or None
        role, scopes = policy().roles["system"], parse(token["scope"])

        def work(connection: apsw.Connection) -> None:
            _, grant = smart.tokens.issue(
                connection, client_id=client.id, client_kind=client.kind, user=None, role=role.name, scopes=scopes,
                patient=None, purpose=purpose or client.purposes[0],
                grantees=grantees(client, None, role, None, smart.settings.hospital_reference), now_ms=now_ms,
                expires_ms=now_ms + token["expires_in"] * 1_000, secret=token["access_token"])
            smart.audit_grant(connection, "token", grant, now_ms)
        smart.database.transact(work)
        token["scope"] = in_words_of(scopes, request.payload.scope)

    # What the endpoints above call

    def stored_token(self, secret: str) -> _StoredToken | None:
        try:
            grant, _ = self._smart.tokens.lookup(self._smart.database.reader, secret, self._smart.now_ms())
        except Unauthenticated:
            return None
        return _StoredToken(secret, grant)

    def revoke(self, token: _StoredToken) -> None:
        smart, now_ms = self._smart, self._smart.now_ms()

        def work(connection: apsw.Connection) -> None:
            if smart.tokens.revoke(connection, token.secret, now_ms):
                smart.audit_grant(connection, "token-revoked", token.grant, now_ms)
        smart.database.transact(work)


def in_words_of(granted: ScopeSet, asked: str) -> str:
    """``granted`` in v1 words when ``asked`` used no others and they can say it, else in v2."""
    if any(_V2_WORD.match(word) for word in asked.split()):
        return str(granted)
    return as_v1(granted) or str(granted)


def _check_token(request: _FormRequest) -> None:
    if not request.form.get("token"):
        raise InvalidRequestError(description="token is missing")


def _plain(text: str) -> str:
    """RFC 6749 section 5.2 allows printable ASCII without quotes and backslashes; a client's text may hold others."""
    return _DESCRIPTION.sub("?", text)[:300]
