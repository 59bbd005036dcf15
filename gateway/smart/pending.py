"""Pending authorizations: what a browser brought to /oauth/authorize, validated, until its person decides.

Owns the handle (a keyed hash is stored, so that a copy of the database opens no page), its life and its one use;
refuses a handle that is unknown, used or expired with one and the same answer.
https://www.rfc-editor.org/rfc/rfc6749#section-4.1.1
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from gateway.access.scopes import ScopeSet, parse
from gateway.errors import NotFound
from gateway.smart.clients import Client, find_client
from gateway.smart.issuer import Smart
from gateway.smart.launches import LaunchContext, launch_of
from gateway.smart.redirects import is_registered
from gateway.smart.sessions import Session
from gateway.smart.tokens import Secret

PREFIX: Final = "gwa_"
LIFE_MS: Final = 30 * 60_000
"""Time to sign in, or even up, and to read."""
_LENGTH: Final = len(PREFIX) + 43


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAuthorization:
    """One validated request. ``asked``: what of its scope the client may have; ``v1``: asked in v1 words alone.

    ``challenge``: PKCE S256; ``launch``: what an EHR launch brought; ``prompt``: of OpenID Connect Core 3.1.2.1.
    """

    handle: str = field(repr=False)
    client: Client
    asked: ScopeSet
    v1: bool
    redirect_uri: str
    state: str = field(repr=False)
    nonce: str | None = field(repr=False)
    challenge: str = field(repr=False)
    launch: LaunchContext | None
    prompt: frozenset[str]
    max_age_s: int | None
    created_ms: int
    expires_ms: int

    def needs_sign_in(self, session: Session, now_ms: int) -> bool:
        """Whether the person must prove anew who they are: ``prompt=login``, or a sign-in older than ``max_age``."""
        if self.prompt & {"login", "select_account"} and session.auth_time_ms < self.created_ms:
            return True
        return self.max_age_s is not None and now_ms - session.auth_time_ms > max(self.max_age_s, 1) * 1_000 \
            and session.auth_time_ms < self.created_ms


def keep(connection: apsw.Connection, smart: Smart, *, client: Client, asked: ScopeSet, v1: bool, redirect_uri: str,
         state: str, nonce: str | None, challenge: str, launch: LaunchContext | None, prompt: Iterable[str],
         max_age_s: int | None, now_ms: int) -> Secret:
    """Store a validated request inside the open transaction; its handle."""
    handle = Secret(PREFIX + secrets.token_urlsafe(32))
    connection.execute(
        "INSERT INTO authorization_request (hash,client,scope,v1,redirect_uri,state,nonce,challenge,launch,prompt,"
        "max_age_s,created_ms,expires_ms) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (smart.tokens.hash(handle), client.id, str(asked), int(v1), redirect_uri, state, nonce, challenge,
         None if launch is None else launch.id, " ".join(sorted(prompt)), max_age_s, now_ms, now_ms + LIFE_MS))
    return handle


def pending(smart: Smart, handle: str) -> PendingAuthorization:
    """The request behind a handle. Raises NotFound when it is unknown, used or expired, or its client is closed."""
    return find(smart.database.reader, smart, handle)


def find(connection: apsw.Connection, smart: Smart, handle: str) -> PendingAuthorization:
    """``pending``, as an open transaction sees it."""
    row = _row(connection, smart, handle)
    client = None if row is None else find_client(connection, row[0])
    if row is None or client is None or not client.stands or not is_registered(row[3], client.redirect_uris):
        raise NotFound("this authorization was decided, has expired, or never was: start again from the app")
    launch = None if row[7] is None else launch_of(connection, row[7])
    if row[7] is not None and launch is None:
        raise NotFound("the launch has expired: start again from the record system")
    return PendingAuthorization(
        handle=handle, client=client, asked=parse(row[1]), v1=bool(row[2]), redirect_uri=row[3], state=row[4],
        nonce=row[5], challenge=row[6], launch=launch, prompt=frozenset(row[8].split()), max_age_s=row[9],
        created_ms=row[10], expires_ms=row[11])


def use_up(connection: apsw.Connection, smart: Smart, handle: str, now_ms: int) -> None:
    """Mark a handle decided inside the open transaction, which holds the writer's turn: nobody can be between."""
    connection.execute("UPDATE authorization_request SET used_ms=? WHERE hash=?", (now_ms, smart.tokens.hash(handle)))


def _row(connection: apsw.Connection, smart: Smart, handle: str) -> tuple[Any, ...] | None:
    if len(handle) != _LENGTH or not handle.startswith(PREFIX):
        return None
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT client, scope, v1, redirect_uri, state, nonce, challenge, launch, prompt, max_age_s, created_ms, "
        "expires_ms FROM authorization_request WHERE hash=? AND used_ms IS NULL AND expires_ms>?",
        (smart.tokens.hash(handle), smart.now_ms())).fetchall()
    return rows[0] if rows else None
