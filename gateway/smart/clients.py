"""Registered clients: this hospital's feeds, foreign backends, and apps.

Owns registration by the operator, and the two built-in clients of the command line; refuses a scope its kind may not
have, a key set that cannot verify, and a second way to authenticate. A closed client's tokens die with it.
https://hl7.org/fhir/smart-app-launch/STU2.2/backend-services.html, https://www.rfc-editor.org/rfc/rfc7591#section-2
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import apsw

from gateway.access.grant import ClientKind
from gateway.access.roles import policy
from gateway.access.scopes import ScopeSet, parse
from gateway.errors import OAuthError, Unprocessable
from gateway.smart.issuer import Smart
from gateway.smart.jwks import MAX_BYTES, VerificationKey, parse_key_set
from gateway.smart.redirects import MAX_URIS, check_redirect_uri
from gateway.smart.tokens import Secret

AuthMethod = Literal["none", "client_secret_basic", "private_key_jwt"]
State = Literal["approved", "pending", "rejected"]
AUTH_METHODS: Final[tuple[AuthMethod, ...]] = get_args(AuthMethod)

FEED: Final = "feed"
"""This hospital's own feed: ``gateway token`` without a user."""
COMMAND_LINE: Final = "cli"
"""The app through which ``gateway token --user`` acts when no client is named: never a feed."""

_BUILT_IN: Final[tuple[tuple[str, str, ClientKind, str], ...]] = (
    (FEED, "Feed of this hospital", "feed", "system/*.cruds"),
    (COMMAND_LINE, "Command line", "app", "patient/*.cruds user/*.cruds"),
)
_CONTEXTS: Final[dict[ClientKind, frozenset[str]]] = {
    "feed": frozenset({"system"}), "backend": frozenset({"system"}), "app": frozenset({"patient", "user"})}
_GRANT_TYPES: Final[dict[ClientKind, tuple[str, ...]]] = {
    "feed": ("client_credentials",), "backend": ("client_credentials",), "app": ("authorization_code", "refresh_token")}
_COLUMNS: Final = ("id, name, kind, scope, purposes, jwks, jwks_uri, closed_ms, auth, secret, redirect_uris, "
                   "grant_types, launch_uri, state, metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A registration. ``scopes`` is the ceiling of every token; ``purposes`` what it may act for, the default first.

    ``auth``: its one way to authenticate at the token endpoint; ``secret``: the keyed hash of its client secret;
    ``metadata``: what else it registered, in RFC 7591's words, to be shown and never obeyed.
    """

    id: str
    name: str
    kind: ClientKind
    scopes: ScopeSet
    purposes: tuple[str, ...]
    jwks: str | None = field(repr=False)
    jwks_uri: str | None
    closed_ms: int | None
    auth: AuthMethod
    secret: bytes | None = field(repr=False)
    redirect_uris: tuple[str, ...]
    grant_types: tuple[str, ...]
    launch_uri: str | None
    state: State
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def stands(self) -> bool:
        """Whether anything may be issued to it."""
        return self.state == "approved" and self.closed_ms is None

    @property
    def device(self) -> str:
        """How a patient's grant names this client."""
        return f"Device/{self.id}"


def find_client(connection: apsw.Connection, client_id: str) -> Client | None:
    """The client, open or closed."""
    row: tuple[Any, ...]
    for row in connection.execute(f"SELECT {_COLUMNS} FROM client WHERE id=?", (client_id,)):  # noqa: S608
        return Client(id=row[0], name=row[1], kind=row[2], scopes=parse(row[3]), purposes=tuple(row[4].split()),
                      jwks=row[5], jwks_uri=row[6], closed_ms=row[7], auth=row[8], secret=row[9],
                      redirect_uris=tuple(row[10].split()), grant_types=tuple(row[11].split()) or _GRANT_TYPES[row[2]],
                      launch_uri=row[12], state=row[13], metadata=json.loads(row[14]))
    return None


def is_app_origin(connection: apsw.Connection, origin: str) -> bool:
    """Whether an app that stands has a redirect URI of this web origin (its pages may call the token endpoint)."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM client WHERE kind='app' AND state='approved' AND closed_ms IS NULL AND ("
        "instr(' '||redirect_uris, ' '||?1||'/') OR instr(' '||redirect_uris||' ', ' '||?1||' ') OR "
        "instr(' '||redirect_uris, ' '||?1||'?')))", (origin,)).get
    return bool(row)


def new_client_secret() -> Secret:
    """A client secret of 256 random bits, told once; ``TokenStore.hash`` of it is what is stored."""
    return Secret("gws_" + secrets.token_urlsafe(32))


def ensure_built_in(connection: apsw.Connection, now_ms: int) -> None:
    """Register the two built-in clients where they are not yet; they have no key and cannot use the token endpoint."""
    for id_, name, kind, scope in _BUILT_IN:
        connection.execute(
            "INSERT INTO client (id,name,kind,scope,purposes,created_ms) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING",
            (id_, name, kind, scope, "TREAT", now_ms))


def add_client(smart: Smart, *, name: str, kind: ClientKind, scope: str, jwks: str | None,
               purposes: Sequence[str], auth: AuthMethod = "private_key_jwt", secret: Secret | None = None,
               redirect_uris: Sequence[str] = (), launch_uri: str | None = None) -> str:
    """Register a client and return its id.

    ``jwks``: a file path or a URL; needed by feeds and backends. ``scope``: the ceiling. ``purposes``: v3-ActReason
    codes, the default first. ``auth``: how it authenticates, with ``secret`` where that is ``client_secret_basic``.
    ``redirect_uris``: where an app's codes go. Raises Unprocessable, or OAuthError ``invalid_scope``.
    """
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise Unprocessable("a client needs a name of at most 200 printable characters")
    scopes = smart.parse_scope(scope)
    check_scopes(scopes, kind)
    check_purposes(purposes)
    inline, url = _key_source(smart, jwks)
    if kind != "app" and inline is None and url is None:
        raise Unprocessable(f"a {kind} client authenticates with its keys: give a JWKS file or URL")
    check_redirects(kind, redirect_uris, launch_uri)
    if kind != "app" and auth != "private_key_jwt":
        raise Unprocessable(f"a {kind} client authenticates by private_key_jwt alone")
    if (auth == "client_secret_basic") != (secret is not None):
        raise Unprocessable("a client secret belongs to client_secret_basic, and to nothing else")
    if auth != "private_key_jwt" and (inline or url):
        raise Unprocessable(f"keys are for private_key_jwt: a client of {auth} registers none")
    client_id, now_ms = secrets.token_hex(12), smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        connection.execute(
            "INSERT INTO client (id,name,kind,scope,purposes,jwks,jwks_uri,created_ms,auth,secret,redirect_uris,"
            "launch_uri) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (client_id, name, kind, str(scopes), " ".join(purposes), inline, url, now_ms, auth,
             None if secret is None else smart.tokens.hash(secret), " ".join(redirect_uris), launch_uri))
        smart.audit_operator(connection, "client", "C", f"Device/{client_id}", kind, now_ms)
    smart.database.transact(work)
    return client_id


def check_redirects(kind: ClientKind, redirect_uris: Sequence[str], launch_uri: str | None) -> None:
    """Raises Unprocessable naming what cannot be registered."""
    if kind != "app":
        if redirect_uris or launch_uri:
            raise Unprocessable(f"a {kind} client has no redirect or launch URI")
        return
    if len(redirect_uris) > MAX_URIS:
        raise Unprocessable(f"an app has at most {MAX_URIS} redirect URIs")
    for uri in (*redirect_uris, *((launch_uri,) if launch_uri else ())):
        check_redirect_uri(uri)


def client_keys(smart: Smart, client: Client, *, kid: str) -> tuple[VerificationKey, ...]:
    """The keys the client authenticates with. Raises Unprocessable, or Unavailable when its URL does not answer."""
    if client.jwks is not None:
        return parse_key_set(client.jwks.encode())
    if client.jwks_uri is not None:
        return smart.jwks.keys(client.jwks_uri, kid=kid)
    raise Unprocessable("the client has no registered keys")


def check_scopes(scopes: ScopeSet, kind: ClientKind) -> None:
    """Raises OAuthError ``invalid_scope`` for a ceiling this kind may not have."""
    if not scopes.resources:
        raise OAuthError("invalid_scope", "a client needs at least one resource scope")
    for scope in scopes.resources:
        if scope.context not in _CONTEXTS[kind]:
            allowed = " and ".join(f"{context}/" for context in sorted(_CONTEXTS[kind]))
            raise OAuthError("invalid_scope", f"{scope}: a client of kind {kind} may have {allowed} scopes alone")


def check_purposes(purposes: Sequence[str]) -> None:
    """Raises Unprocessable for purposes a client may not have."""
    tables = policy()
    if not purposes:
        raise Unprocessable("a client needs a purpose of use")
    for purpose in purposes:
        if purpose not in tables.purposes:
            raise Unprocessable(f"{purpose} is not a purpose of use known here")
        if purpose in tables.break_glass_purposes:
            raise Unprocessable(f"{purpose} is for a person in an emergency, never a client's own purpose")


def _key_source(smart: Smart, jwks: str | None) -> tuple[str | None, str | None]:
    if jwks is None:
        return None, None
    if "://" in jwks:
        smart.jwks.check(jwks)
        return None, jwks
    try:
        with Path(jwks).open("rb") as file:
            body = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unprocessable(f"the JWKS file cannot be read: {error.strerror}") from error
    parse_key_set(body)
    return body.decode(), None
