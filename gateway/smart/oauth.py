"""What Authlib is handed: one request, and one client as Authlib asks about it; and what an endpoint answers.

Owns the bridge between Authlib's names and ours, the scopes a client may have, and RFC 6749's rule for error texts;
refuses to let a header of the request decide whether it was https. https://www.rfc-editor.org/rfc/rfc6749
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from authlib.oauth2.rfc6749 import ClientMixin, InvalidScopeError, OAuth2Request
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload

from gateway.access.scopes import ScopeSet, as_v1, words_of
from gateway.errors import OAuthError
from gateway.smart.assertion import Authenticated
from gateway.smart.clients import Client
from gateway.smart.issuer import Smart
from gateway.smart.redirects import is_registered

_DESCRIPTION: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")
_V2_WORD: Final = re.compile(r"(?:patient|user|system)/[^.]+\.(?!read$|write$|\*$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an endpoint answers: JSON ``body`` and headers."""

    status: int
    body: Mapping[str, Any] = field(repr=False)
    headers: tuple[tuple[str, str], ...]


class FormRequest(OAuth2Request):  # type: ignore[misc]  # Authlib has no types
    """One request. ``uri`` is the configured URL, so that no header a client sends decides whether it was https."""

    def __init__(self, url: str, form: Mapping[str, str], authorization: str | None, *, method: str = "POST") -> None:
        super().__init__(method, url, headers={"Authorization": authorization} if authorization else {})
        self.payload = BasicOAuth2Payload(dict(form))
        self.authenticated: Authenticated | None = None

    @property
    def args(self) -> dict[str, str]:
        return self.form if self.method == "GET" else {}

    @property
    def form(self) -> dict[str, str]:
        parameters: dict[str, str] = self.payload.data
        return parameters

    @property
    def authorization(self) -> str | None:
        """The Authorization header."""
        value: str | None = self.headers.get("Authorization")
        return value


class OAuthClient(ClientMixin):  # type: ignore[misc]  # Authlib has no types
    """A registered client as Authlib asks about it."""

    def __init__(self, smart: Smart, client: Client) -> None:
        self._smart = smart
        self.registered = client

    def __repr__(self) -> str:
        return f"OAuthClient({self.registered.id!r})"

    def get_client_id(self) -> str:
        return self.registered.id

    def get_default_redirect_uri(self) -> str | None:
        """None: SMART has the request name it."""
        return None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return is_registered(redirect_uri, self.registered.redirect_uris)

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and self.check_grant_type("authorization_code")

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in (self.registered.auth, "bearer")

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.registered.grant_types

    def get_allowed_scope(self, scope: str | None) -> str:
        """What of ``scope`` the client may have, by the grammar; Authlib would compare words."""
        if not scope or not scope.strip():
            raise InvalidScopeError(description="scope is required")
        if self.registered.kind == "app":
            return str(asked_by_app(self._smart, self.registered, scope))
        try:
            asked = self._smart.parse_scope(scope)
        except OAuthError as error:
            raise InvalidScopeError(description=plain(error.description)) from error
        if any(wanted.context != "system" for wanted in asked.resources):
            raise InvalidScopeError(description="a client without a user may have system/ scopes alone")
        granted = asked.narrow(self.registered.scopes)
        if not granted.resources:
            raise InvalidScopeError(description="nothing of the scope is within the client's registration")
        return str(granted)


def asked_by_app(smart: Smart, client: Client, scope: str) -> ScopeSet:
    """What of an app's request may be put to its user.

    A scope nobody knows, or beyond the registration, is left out (SMART: MAY be ignored), and told by what is granted;
    a granular one that cannot be honoured is refused: what it means to narrow is not for us to guess. Raises Authlib's
    InvalidScopeError.
    """
    known = []
    try:
        for word in words_of(scope):
            try:
                known.append(smart.parse_scope(word))
            except OAuthError:
                if "?" in word:
                    raise
    except OAuthError as error:
        raise InvalidScopeError(description=plain(error.description)) from error
    # One union, not one for each word: making a set compares all of it.
    asked = ScopeSet(tuple(scope for one in known for scope in one.resources),
                     frozenset().union(*(one.others for one in known))).narrow(client.scopes)
    if not asked.resources and "openid" not in asked.others:
        raise InvalidScopeError(description="nothing of the scope is within the client's registration")
    return asked


def is_v1(asked: str) -> bool:
    """Whether no word of ``asked`` is of SMART v2, so that the answer is told in v1 words where they can say it."""
    return not any(_V2_WORD.match(word) for word in asked.split())


def told(granted: ScopeSet, *, v1: bool) -> str:
    """``granted`` in the words of the request."""
    return (as_v1(granted) if v1 else None) or str(granted)


def plain(text: str) -> str:
    """RFC 6749 section 5.2 allows printable ASCII without quotes and backslashes; a client's text may hold others."""
    return _DESCRIPTION.sub("?", text)[:300]
