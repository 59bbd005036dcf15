"""The hospital's own identity provider, as Authlib's OpenID Connect client asks it.

Owns discovery, the code flow with PKCE, state and nonce, and the link from (issuer, subject) to a login; refuses
another issuer's answer (mix-up), an unsigned or symmetric id_token, and to find a person by an e-mail address.
https://openid.net/specs/openid-connect-core-1_0.html, https://www.rfc-editor.org/rfc/rfc9207
"""

from __future__ import annotations

import ipaddress
import secrets
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import apsw
import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.deprecate import AuthlibDeprecationWarning
from authlib.oidc.discovery import get_well_known_url
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from gateway.config import Settings, origin_of
from gateway.errors import Misconfigured, Unavailable, Unprocessable
from gateway.outgoing import Pinned, Rule
from gateway.smart import ceremonies
from gateway.smart.issuer import Smart
from gateway.smart.sessions import LIFE_MS

with warnings.catch_warnings():
    # It would have the successor of httpx, at every start, of whoever runs this and can do nothing about it.
    warnings.simplefilter("ignore", AuthlibDeprecationWarning)
    from authlib.integrations.httpx_client import OAuth2Client

CALLBACK: Final = "/portal/upstream/callback"
_ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_TIMEOUT_S: Final = 5.0
_FRESH_MS: Final = 600_000
_LEEWAY_S: Final = 60
_MAX_BYTES: Final = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who the identity provider says it is, when they showed it (where it says so), and where they were going."""

    issuer: str
    subject: str
    auth_time_ms: int | None
    next_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metadata:
    table: Mapping[str, Any]
    keys: KeySet = field(repr=False)
    at_ms: int


class Upstream:
    """The client of one identity provider. Blocking; safe between threads. Make it with ``from_settings``."""

    def __init__(self, *, issuer: str, client_id: str, client_secret: str | None, redirect_uri: str) -> None:
        self.issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._redirect_uri = redirect_uri
        self._known: _Metadata | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: Settings, origin: str) -> Upstream | None:
        """None where no ``oidc_issuer`` is set. Raises Misconfigured."""
        if not settings.oidc_issuer:
            return None
        _check_url(settings.oidc_issuer, "GATEWAY_OIDC_ISSUER")
        if not settings.oidc_client_id:
            raise Misconfigured("GATEWAY_OIDC_ISSUER needs GATEWAY_OIDC_CLIENT_ID")
        secret = None
        if settings.oidc_client_secret_file:
            try:
                secret = Path(settings.oidc_client_secret_file).read_text().strip()
            except OSError as error:
                raise Misconfigured(f"GATEWAY_OIDC_CLIENT_SECRET_FILE cannot be read: {error.strerror}") from error
        return cls(issuer=settings.oidc_issuer, client_id=settings.oidc_client_id, client_secret=secret,
                   redirect_uri=origin + CALLBACK)

    def begin(self, smart: Smart, *, bound: str, next_path: str | None, anew: bool) -> str:
        """The URL to send the browser to; ``anew``: the person shows again who they are.

        Raises Unavailable when the provider does not answer.
        """
        metadata = self._metadata(smart.now_ms())
        nonce, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        with self._client() as client:
            url, state = client.create_authorization_url(
                str(metadata.table["authorization_endpoint"]), state=secrets.token_urlsafe(24), nonce=nonce,
                code_verifier=verifier,
                # Asked for a max_age, the provider must say when it saw them (OpenID Connect Core section 2).
                **({"prompt": "login", "max_age": "0"} if anew else {"max_age": str(LIFE_MS // 1_000)}))
        smart.database.transact(lambda connection: ceremonies.begin(
            connection, smart, "upstream", state, bound=bound, now_ms=smart.now_ms(),
            body={"nonce": nonce, "verifier": verifier, "next": next_path, "anew": anew}))
        return str(url)

    def finish(self, smart: Smart, query: Mapping[str, str], *, bound: str) -> Identity:
        """Whom the provider's answer names. Raises Unprocessable, Unavailable."""
        now_ms = smart.now_ms()
        body = smart.database.transact(lambda connection: ceremonies.finish(
            connection, smart, "upstream", query.get("state", ""), bound=bound, now_ms=now_ms))
        metadata = self._metadata(now_ms)
        # RFC 9207: an answer of another issuer that was led here is not taken to this one's token endpoint.
        stated = query.get("iss")
        if stated != self.issuer and (stated is not None or
                                      metadata.table.get("authorization_response_iss_parameter_supported")):
            raise Unprocessable("the answer is another identity provider's")
        if "code" not in query:
            raise Unprocessable("the identity provider did not sign you in")
        token = self._token(metadata, query["code"], str(body["verifier"]))
        claims = self._claims(token.get("id_token"), str(body["nonce"]), now_ms)
        shown_s = claims.get("auth_time")
        shown_ms = int(shown_s * 1_000) if isinstance(shown_s, (int, float)) else None
        if shown_ms is None and not body["anew"]:
            shown_ms = now_ms - LIFE_MS  # signed in there at some time: it proves nothing of now
        return Identity(issuer=self.issuer, subject=str(claims["sub"]), next_path=body["next"], auth_time_ms=shown_ms)

    def _token(self, metadata: _Metadata, code: str, verifier: str) -> Mapping[str, Any]:
        try:
            with self._client() as client:
                found: Mapping[str, Any] = client.fetch_token(
                    str(metadata.table["token_endpoint"]), grant_type="authorization_code", code=code,
                    code_verifier=verifier)
                return found
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable("the identity provider does not answer") from error
        except AuthlibBaseError as error:
            raise Unprocessable("the identity provider refused the code") from error

    def _claims(self, id_token: object, nonce: str, now_ms: int) -> Mapping[str, Any]:
        """OpenID Connect Core section 3.1.3.7."""
        if not isinstance(id_token, str):
            raise Unprocessable("the identity provider sent no id_token")
        claims = self._verified(id_token, now_ms)
        now_s = now_ms / 1_000
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        expires, issued, subject = claims.get("exp"), claims.get("iat"), claims.get("sub")
        # 1. Issuer. 2. Audience, and the party it was made for. 3. Times. 4. The nonce of this browser's own request.
        if claims.get("iss") != self.issuer:
            raise Unprocessable("the id_token is another issuer's")
        if self._client_id not in audiences or claims.get("azp", self._client_id) != self._client_id or (
                len(audiences) > 1 and "azp" not in claims):
            raise Unprocessable("the id_token is for another client")
        if not isinstance(expires, (int, float)) or not isinstance(issued, (int, float)) or \
                expires + _LEEWAY_S <= now_s or issued - _LEEWAY_S > now_s:
            raise Unprocessable("the id_token is not of now")
        if not secrets.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise Unprocessable("the id_token is not for this sign-in")
        if not isinstance(subject, str) or not 1 <= len(subject) <= 255:
            raise Unprocessable("the id_token names nobody")
        return claims

    def _verified(self, id_token: str, now_ms: int) -> Mapping[str, Any]:
        try:
            return jwt.decode(id_token, self._metadata(now_ms).keys, algorithms=_ALGORITHMS).claims
        except (JoseError, ValueError, TypeError, KeyError):
            metadata = self._metadata(now_ms, again=True)  # a key the set does not hold may be new
        try:
            return jwt.decode(id_token, metadata.keys, algorithms=_ALGORITHMS).claims
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Unprocessable("the id_token is not signed by the identity provider") from error

    def _metadata(self, now_ms: int, *, again: bool = False) -> _Metadata:
        with self._lock:
            if self._known is not None and not again and now_ms < self._known.at_ms + _FRESH_MS:
                return self._known
            table = self._fetch(get_well_known_url(self.issuer, external=True))
            # OpenID Connect Discovery section 4.3: it must name itself exactly so.
            if table.get("issuer") != self.issuer:
                raise Unavailable("the identity provider's configuration names another issuer")
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                if not isinstance(table.get(name), str):
                    raise Unavailable(f"the identity provider's configuration has no {name}")
                try:
                    _check_url(str(table[name]), name)
                except Misconfigured as error:
                    raise Unavailable(str(error)) from error
            try:
                keys = KeySet.import_key_set(self._fetch(str(table["jwks_uri"])))  # type: ignore[arg-type]  # checked there
            except (JoseError, ValueError, TypeError, KeyError) as error:
                raise Unavailable("the identity provider's keys cannot be read") from error
            self._known = _Metadata(table=table, keys=keys, at_ms=now_ms)
            return self._known

    def _fetch(self, url: str) -> dict[str, Any]:
        try:
            with httpx.Client(transport=self._transport(), timeout=_TIMEOUT_S, trust_env=False,
                              follow_redirects=False) as client:
                response = client.get(url, headers={"Accept": "application/json"})
            table = response.json() if response.status_code == 200 and len(response.content) <= _MAX_BYTES else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise Unavailable("the identity provider does not answer") from error
        if not isinstance(table, dict):
            raise Unavailable("the identity provider does not answer as one")
        return table

    def _transport(self) -> Pinned:
        """The issuer may stand within, for the operator named it; what its metadata names elsewhere may not."""
        return Pinned(Rule(what="the identity provider's URL", listed=(origin_of(self.issuer),), inside=True,
                           public=True))

    def _client(self) -> Any:
        # Any: Authlib has no types.
        return OAuth2Client(
            client_id=self._client_id, client_secret=self._client_secret, redirect_uri=self._redirect_uri,
            scope="openid", code_challenge_method="S256", timeout=_TIMEOUT_S, trust_env=False,
            transport=self._transport(),
            token_endpoint_auth_method="client_secret_basic" if self._client_secret else "none")


def login_of(connection: apsw.Connection, identity: Identity) -> str | None:
    """The login linked to an identity."""
    rows = connection.execute("SELECT login FROM upstream_identity WHERE issuer=? AND subject=?",
                              (identity.issuer, identity.subject)).fetchall()
    return str(rows[0][0]) if rows else None


def link(connection: apsw.Connection, *, issuer: str, subject: str, login: str, now_ms: int) -> None:
    """Link an identity to a login that still waits for proofing, inside the open transaction. Raises Unprocessable."""
    if connection.execute("SELECT 1 FROM upstream_identity WHERE issuer=? AND subject=?",
                          (issuer, subject)).fetchall():
        raise Unprocessable("this identity has a login already: sign in with it")
    connection.execute("INSERT INTO upstream_identity (issuer,subject,login,created_ms) VALUES (?,?,?,?)",
                       (issuer, subject, login, now_ms))


def _check_url(url: str, what: str) -> None:
    parts = urlsplit(url)
    try:
        loopback = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        loopback = False
    if not parts.hostname or parts.fragment or (parts.scheme != "https" and not (parts.scheme == "http" and loopback)):
        raise Misconfigured(f"{what} must be an https URL")
