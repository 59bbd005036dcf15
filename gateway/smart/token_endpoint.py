"""The authorization server on Authlib's core: authorize, token, revocation and introspection.

Owns what Authlib leaves to an implementation (clients, keys, storage) and puts its parts together; refuses every grant
but authorization_code, refresh_token and client_credentials. Synchronous: run it in a thread.
https://www.rfc-editor.org/rfc/rfc6749, https://www.rfc-editor.org/rfc/rfc9207,
https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html, https://hl7.org/fhir/smart-app-launch/STU2.2/backend-services.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import apsw
from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientCredentialsGrant,
    InvalidGrantError,
    InvalidRequestError,
    OAuth2Error,
)
from authlib.oauth2.rfc6750 import BearerTokenGenerator

from gateway.access.roles import policy
from gateway.access.scopes import ScopeSet, parse
from gateway.errors import OAuthError
from gateway.smart.app_grants import CodeGrant, Pkce, RefreshGrant, narrowed, parameters
from gateway.smart.approvals import why_not
from gateway.smart.client_authentication import JWT, methods
from gateway.smart.clients import find_client
from gateway.smart.introspection import Consents, Introspection, Revocation
from gateway.smart.issuer import Smart
from gateway.smart.issuing import Issuing, Kind, Presented, present
from gateway.smart.launches import LaunchContext, take_launch
from gateway.smart.minting import grantees
from gateway.smart.oauth import FormRequest, OAuthClient, Reply, is_v1, plain, told
from gateway.smart.pending import keep
from gateway.smart.redirects import redirect
from gateway.smart.signing import SigningKeys
from gateway.smart.tokens import new_secret

GRANT_TYPES: Final = ("authorization_code", "client_credentials", "refresh_token")


class _ClientCredentials(ClientCredentialsGrant):  # type: ignore[misc]  # Authlib has no types
    TOKEN_ENDPOINT_AUTH_METHODS: Final = [JWT]

    def validate_requested_scope(self) -> None:
        """Judged in ``get_allowed_scope``, where the client is known."""


class TokenEndpoint(AuthorizationServer):  # type: ignore[misc]  # Authlib has no types
    """The endpoints. Stateless between requests; safe between threads."""

    def __init__(self, smart: Smart, consents: Consents) -> None:
        super().__init__()
        self.smart = smart
        self.consents = consents
        self.keys = SigningKeys(smart)
        self.parse_scope = smart.parse_scope
        self._issuing = Issuing(smart, self.keys)
        self.register_grant(CodeGrant, [Pkce(required=True)])
        self.register_grant(RefreshGrant)
        self.register_grant(_ClientCredentials)
        self.register_endpoint(Revocation)
        self.register_endpoint(Introspection)
        for name, method in methods(smart).items():
            self.register_client_auth_method(name, method)
        self.register_token_generator("default", BearerTokenGenerator(
            access_token_generator=lambda **_: new_secret(), expires_generator=smart.settings.token_ttl_s))
        for kind in ("authorization_code", "refresh_token"):
            self.register_token_generator(kind, lambda **_: {"access_token": new_secret(), "token_type": "Bearer"})

    def authorize(self, form: Mapping[str, str]) -> str:
        """``/oauth/authorize``: where the browser goes next, to this server's screen or back to the app with an error.

        ``prompt=none`` goes to the screen too, which answers it without showing: only there do cookies come along.

        Raises OAuthError while there is no redirect URI to trust.
        """
        waits = why_not(self.smart.database.reader, form.get("client_id", ""))
        if waits is not None:  # nothing it registered is trusted yet, its redirect URIs least
            raise OAuthError("unauthorized_client", waits)
        try:
            request = FormRequest(self.smart.authorize_url, form, None)
            grant = self.get_consent_grant(request)
            return self._kept(request, str(grant.redirect_uri))
        except OAuth2Error as error:
            description = plain(str(error.get_error_description() or ""))
            if not error.redirect_uri:
                raise OAuthError(str(error.error), description) from error
            return redirect(str(error.redirect_uri), {
                "error": str(error.error), "error_description": description or None, "state": form.get("state"),
                "iss": self.smart.issuer})

    def _kept(self, request: FormRequest, redirect_uri: str) -> str:
        smart, now_ms = self.smart, self.smart.now_ms()
        client = request.client.registered
        try:
            rest = parameters(request, smart.settings.base_url)
        except OAuth2Error as error:
            error.redirect_uri = redirect_uri
            raise

        def work(connection: apsw.Connection) -> str:
            launch: LaunchContext | None = None
            if rest.launch is not None:
                launch = take_launch(connection, smart, rest.launch, client.id, now_ms)
            return keep(connection, smart, client=client, asked=parse(request.scope), v1=is_v1(request.form["scope"]),
                        redirect_uri=redirect_uri, state=rest.state, nonce=rest.nonce, challenge=rest.challenge,
                        launch=launch, prompt=rest.prompt, max_age_s=rest.max_age_s, now_ms=now_ms)
        try:
            handle = smart.database.transact(work)
        except OAuthError as error:
            raise OAuth2Error(error=error.error, description=plain(error.description),
                              redirect_uri=redirect_uri) from error
        return f"/oauth/authorize/{handle}"

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
            request = FormRequest(self.smart.token_url, form, authorization)
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

    # What Authlib calls

    def get_authorization_grant(self, request: FormRequest) -> Any:
        """Authlib's, but for its text about an unknown response type, which would repeat what was sent."""
        if request.payload.response_type == "code":
            return super().get_authorization_grant(request)
        client = self.query_client(request.form.get("client_id", ""))
        uri = request.form.get("redirect_uri")
        trusted = client is not None and uri is not None and client.check_redirect_uri(uri)
        raise OAuth2Error(error="unsupported_response_type", description="response_type must be code",
                          redirect_uri=uri if trusted else None)

    def query_client(self, client_id: str) -> OAuthClient | None:
        client = find_client(self.smart.database.reader, client_id)
        return None if client is None or not client.stands else OAuthClient(self.smart, client)

    def create_oauth2_request(self, request: FormRequest) -> FormRequest:
        return request

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """No listener."""

    def handle_response(self, status: int, body: Mapping[str, Any], headers: list[tuple[str, str]]) -> Reply:
        if "error_description" in body:
            body = {**body, "error_description": plain(str(body["error_description"]))}
        return Reply(status=status, body=body, headers=tuple(headers))

    def save_token(self, token: dict[str, Any], request: FormRequest) -> None:
        """Store the token, and what comes with it, in one commit with its audit row; ``token`` becomes the answer."""
        held = request.authorization_code or request.refresh_token
        if held is None:
            self._save_own(token, request)
            return
        presented: Presented = held.presented
        asked: ScopeSet | None = None
        v1 = presented.authorization.v1
        if presented.kind == "refresh_token":
            asked = narrowed(self, request, presented)
            v1 = v1 if asked is None else is_v1(request.form["scope"])
        try:
            token |= self._issuing.issue(presented, token["access_token"], asked=asked, v1=v1)
        except OAuthError as error:
            raise InvalidGrantError(description=plain(error.description)) from error

    def _save_own(self, token: dict[str, Any], request: FormRequest) -> None:
        """A client's own token: the answer's scope is told in the words it was asked in."""
        smart, now_ms = self.smart, self.smart.now_ms()
        if request.authenticated is None:
            raise InvalidRequestError(description="authenticate with client_assertion")
        client, purpose = request.authenticated.client, request.authenticated.purpose or None
        role, scopes = policy().roles["system"], parse(token["scope"])
        words = told(scopes, v1=is_v1(request.payload.scope))

        def work(connection: apsw.Connection) -> None:
            _, grant = smart.tokens.issue(
                connection, client_id=client.id, client_kind=client.kind, user=None, role=role.name, scopes=scopes,
                patient=None, purpose=purpose or client.purposes[0],
                grantees=grantees(client, None, role, None, smart.settings.hospital_reference), now_ms=now_ms,
                expires_ms=now_ms + token["expires_in"] * 1_000, secret=token["access_token"], told=words)
            smart.audit_grant(connection, "token", grant, now_ms)
        smart.database.transact(work)
        token["scope"] = words

    # What the grants above call

    def present(self, kind: Kind, secret: str, client_id: str | None) -> Presented | None:
        return present(self.smart, kind, secret, client_id)
