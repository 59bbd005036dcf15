"""The two grants of apps, on Authlib's: authorization_code with PKCE, and refresh_token.

Owns what Authlib leaves open or does otherwise than SMART: S256 of every client, an exact audience, a required state,
scopes by their grammar; refuses ``plain``, a verifier that is the challenge, and what another client holds.
https://www.rfc-editor.org/rfc/rfc7636, https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import Any, Final

from authlib.oauth2.rfc6749 import (
    AuthorizationCodeGrant,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    RefreshTokenGrant,
)
from authlib.oauth2.rfc7636 import CodeChallenge, create_s256_code_challenge

from gateway.access.scopes import ScopeSet
from gateway.errors import OAuthError
from gateway.smart.client_authentication import BASIC, JWT, NONE
from gateway.smart.issuing import Presented
from gateway.smart.oauth import FormRequest, OAuthClient, plain

APP_METHODS: Final = [NONE, BASIC, JWT]
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9\-._~]{43,128}")
_PROMPTS: Final = frozenset({"none", "login", "consent", "select_account"})
_MAX_TEXT: Final = 2_000


class Pkce(CodeChallenge):  # type: ignore[misc]  # Authlib has no types
    """RFC 7636 with S256 alone, of confidential clients too."""

    SUPPORTED_CODE_CHALLENGE_METHOD: Final = ["S256"]

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Of the authorization request."""
        data = grant.request.payload.data
        if data.get("code_challenge_method") != "S256":
            raise InvalidRequestError(description="code_challenge_method must be S256")
        if not _CHALLENGE.fullmatch(data.get("code_challenge", "")):
            raise InvalidRequestError(description="code_challenge is missing, or not of S256")

    def validate_code_verifier(self, grant: Any, result: Any) -> None:
        """Of the token request."""
        verifier = grant.request.form.get("code_verifier")
        if not verifier:
            raise InvalidRequestError(description="code_verifier is missing")
        if not _VERIFIER.fullmatch(verifier):
            raise InvalidRequestError(description="code_verifier is not 43 to 128 unreserved characters")
        challenge = grant.request.authorization_code.presented.challenge
        if not hmac.compare_digest(create_s256_code_challenge(verifier), challenge):
            raise InvalidGrantError(description="code_verifier does not fit the challenge")


@dataclass(frozen=True, slots=True)
class Held:
    """A code or refresh token as Authlib asks about it."""

    presented: Presented

    def get_redirect_uri(self) -> str | None:
        return self.presented.redirect_uri

    def get_scope(self) -> str:
        return str(self.presented.authorization.scopes)

    def check_client(self, client: OAuthClient) -> bool:
        return self.presented.authorization.client == client.registered.id


class CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc]  # Authlib has no types
    TOKEN_ENDPOINT_AUTH_METHODS: Final = APP_METHODS

    @staticmethod
    def validate_authorization_redirect_uri(request: FormRequest, client: OAuthClient) -> str:
        """The exact registered one (RFC 9700 section 4.1.3); Authlib's text would repeat what was sent."""
        uri = request.form.get("redirect_uri")
        if uri is None or not client.check_redirect_uri(uri):
            raise InvalidRequestError(description="redirect_uri is not one the client registered")
        return uri

    def query_authorization_code(self, code: str, client: OAuthClient) -> Held | None:
        presented = self.server.present("authorization_code", code, client.registered.id)
        return None if presented is None else Held(presented)

    def authenticate_user(self, authorization_code: Held) -> str:
        return authorization_code.presented.authorization.user

    def delete_authorization_code(self, authorization_code: Held) -> None:
        """Used up in the commit that stored the token, and kept, so that a second use is known for one."""


class RefreshGrant(RefreshTokenGrant):  # type: ignore[misc]  # Authlib has no types
    TOKEN_ENDPOINT_AUTH_METHODS: Final = APP_METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Held | None:
        presented = self.server.present("refresh_token", refresh_token, None)
        return None if presented is None else Held(presented)

    def authenticate_user(self, refresh_token: Held) -> str:
        return refresh_token.presented.authorization.user

    def revoke_old_credential(self, refresh_token: Held) -> None:
        """Used up in the commit that stored its successor."""

    def _validate_token_scope(self, token: Held) -> None:
        """By the grammar: ``.r`` is within ``.rs``. Authlib compares words."""
        narrowed(self.server, self.request, token.presented)


def narrowed(server: Any, request: FormRequest, presented: Presented) -> ScopeSet | None:
    """What a refresh asks for; None for all there is. Raises Authlib's InvalidScopeError."""
    text = request.form.get("scope")
    if not text:
        return None
    try:
        asked: ScopeSet = server.parse_scope(text)
    except OAuthError as error:
        raise InvalidScopeError(description=plain(error.description)) from error
    if not asked or not asked.within(presented.authorization.scopes):
        raise InvalidScopeError(description="more than was authorized")
    return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What an authorization request says beside client, redirect and scope."""

    state: str
    nonce: str | None
    challenge: str
    launch: str | None
    prompt: frozenset[str]
    max_age_s: int | None


def parameters(request: FormRequest, audience: str) -> Parameters:
    """The rest of an authorization request whose redirect is trusted. Raises Authlib's OAuth2Error."""
    form = request.form
    # 1. Nothing that would say the request elsewhere, or the answer otherwise (OpenID Connect Core 6, RFC 9101).
    for name, error in (("request", "request_not_supported"), ("request_uri", "request_uri_not_supported")):
        if name in form:
            raise OAuth2Error(error=error, description=f"{name} is not taken here")
    if form.get("response_mode", "query") != "query":
        raise InvalidRequestError(description="response_mode must be query")
    # 2. The app means this server: else another could pass our token on (SMART, aud).
    named = {form[name].removesuffix("/") for name in ("aud", "resource") if name in form}
    if named != {audience}:
        raise InvalidRequestError(description="aud must be the FHIR base URL of this server")
    # 3. State, and the rest.
    for name in ("state", "nonce"):
        if len(form.get(name, "")) > _MAX_TEXT:
            raise InvalidRequestError(description=f"{name} is too long")
    if "state" not in form:
        raise InvalidRequestError(description="state is required")
    prompt = frozenset(form.get("prompt", "").split())
    if not prompt <= _PROMPTS or ("none" in prompt and len(prompt) > 1):
        raise InvalidRequestError(description="prompt is none, or login, consent and select_account")
    max_age = form.get("max_age")
    if max_age is not None and not re.fullmatch(r"[0-9]{1,9}", max_age):
        raise InvalidRequestError(description="max_age is a number of seconds")
    return Parameters(state=form["state"], nonce=form.get("nonce"), challenge=form["code_challenge"],
                      launch=form.get("launch"), prompt=prompt, max_age_s=None if max_age is None else int(max_age))
