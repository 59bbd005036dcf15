"""Dynamic client registration: clients that ask to be let in, and manage what they asked.

Owns the queue, the registration access token and a client's own reading, changing and ending of its registration;
refuses to let a registration do anything before the hospital approved it, and afterwards what was not approved.
The door is open, so the queue is short, nobody's to fill alone, and what waits too long is forgotten.
https://www.rfc-editor.org/rfc/rfc7591, https://www.rfc-editor.org/rfc/rfc7592
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from gateway.audit import AuditEntry
from gateway.errors import Forbidden, OAuthError, Throttled, Unauthenticated
from gateway.smart.client_metadata import Metadata, check_metadata, kind_of, widens
from gateway.smart.clients import Client, find_client, new_client_secret
from gateway.smart.issuer import Smart
from gateway.smart.lockout import source_of
from gateway.smart.tokens import Secret
from gateway.store import journal

PREFIX: Final = "gwr_"
_LENGTH: Final = len(PREFIX) + 43
QUEUE_MAX: Final = 100
"""Registrations that may wait at once."""
SHARE_MAX: Final = 20
"""... from one address, of IPv6 one /48."""
_HOURLY_MAX: Final = 120
_HOURLY_SHARE: Final = 40
_HOUR_MS: Final = 3_600_000
_FORGOTTEN_MS: Final = 30 * 24 * _HOUR_MS
"""How long a registration waits, or a rejected one can be read, before it is deleted."""
SECRET_METHODS: Final = frozenset({"client_secret_basic"})
DEFAULT_PURPOSE: Final = "TREAT"
_ISSUED: Final = ("registration_access_token", "registration_client_uri", "client_secret_expires_at",
                  "client_id_issued_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A client that registered itself. ``approved``: what was last approved; ``client.metadata``: what is asked for.

    Times in epoch milliseconds.
    """

    client: Client
    approved: Metadata | None = field(repr=False)
    created_ms: int
    asked_ms: int
    decided_ms: int | None
    decided_by: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a client is told once. ``secret`` is None where none was made."""

    registration: Registration
    secret: Secret | None
    token: str = field(repr=False)


def registration_uri(smart: Smart, client_id: str) -> str:
    """RFC 7592's ``registration_client_uri``."""
    return f"{smart.settings.base_url.removesuffix('/fhir')}/oauth/register/{client_id}"


def find_registration(connection: apsw.Connection, client_id: str) -> Registration | None:
    """The registration of a client; None for one the operator added."""
    row: tuple[Any, ...] | None = next(iter(connection.execute(
        "SELECT approved, created_ms, asked_ms, decided_ms, decided_by, reason FROM registration WHERE client=?",
        (client_id,)).fetchall()), None)
    client = find_client(connection, client_id)
    if row is None or client is None:
        return None
    return Registration(client=client, approved=None if row[0] is None else json.loads(row[0]), created_ms=row[1],
                        asked_ms=row[2], decided_ms=row[3], decided_by=row[4], reason=row[5])


def register(smart: Smart, asked: Mapping[str, Any], *, address: str | None) -> Told:
    """Put a client into the queue. ``address``: where it comes from.

    Raises OAuthError (RFC 7591 section 3.2.2), Throttled, or Forbidden where closed.
    """
    if smart.settings.registration == "closed":
        raise Forbidden("clients do not register themselves here: ask the hospital to add yours")
    metadata = check_metadata(smart, asked)
    now_ms, client_id, source = smart.now_ms(), secrets.token_hex(12), source_of(smart, address)
    token = Secret(PREFIX + secrets.token_urlsafe(32))
    secret = _secret_for(metadata)

    def work(connection: apsw.Connection) -> Told:
        _check_room(connection, source, now_ms)
        connection.execute(
            "INSERT INTO client (id,name,kind,scope,purposes,created_ms) VALUES (?,?,?,?,?,?)",
            (client_id, metadata["client_name"], kind_of(metadata), "", DEFAULT_PURPOSE, now_ms))
        connection.execute("INSERT INTO registration (client,token,created_ms,asked_ms,source) VALUES (?,?,?,?,?)",
                           (client_id, smart.tokens.hash(token), now_ms, now_ms, source))
        put_metadata(connection, client_id, metadata)
        put_secret(connection, smart, client_id, secret)
        suspend(connection, client_id, now_ms)
        _audit(smart, connection, "client-registered", "C", client_id, kind_of(metadata), now_ms)
        return Told(registration=_found(connection, client_id), secret=secret, token=token)
    return smart.database.transact(work)


def authenticate_registration(connection: apsw.Connection, smart: Smart, client_id: str, token: str) -> Registration:
    """The registration ``token`` was issued for, if it is that of ``client_id``.

    Raises Unauthenticated, whatever fails: also a client that does not exist is 401 (RFC 7592 section 2.1).
    """
    if len(token) == _LENGTH and token.startswith(PREFIX):
        owner = connection.execute("SELECT client FROM registration WHERE token=?", (smart.tokens.hash(token),)).get
        found = find_registration(connection, client_id) if owner == client_id else None
        if found is not None:
            return found
    raise Unauthenticated("the registration access token is not one of this client", error="invalid_token")


def change(smart: Smart, client_id: str, token: str, asked: Mapping[str, Any]) -> Told:
    """Replace the metadata (RFC 7592 section 2.2). What needs an approval suspends the client until it has one.

    Raises Unauthenticated, OAuthError, or Forbidden once it was rejected.
    """
    held = authenticate_registration(smart.database.reader, smart, client_id, token).client
    if wrong := [name for name in _ISSUED if name in asked]:
        raise OAuthError("invalid_request", f"{wrong[0]}: is this server's to say")
    if asked.get("client_id") != client_id:
        raise OAuthError("invalid_request", "client_id: must be this client's")
    given = asked.get("client_secret")
    if given is not None and (not isinstance(given, str) or held.secret != smart.tokens.hash(given)):
        raise OAuthError("invalid_request", "client_secret: is not the current one; a client chooses none for itself")
    if held.state == "rejected":
        raise Forbidden("the registration was rejected: register anew")
    metadata, now_ms = check_metadata(smart, asked), smart.now_ms()
    if kind_of(metadata) != held.kind:
        raise OAuthError("invalid_client_metadata", "grant_types: an app does not become a backend; register anew")

    def work(connection: apsw.Connection) -> Told:
        now = authenticate_registration(connection, smart, client_id, token)
        secret = None
        if metadata != now.client.metadata:
            was = now.client.metadata["token_endpoint_auth_method"]
            put_metadata(connection, client_id, metadata)
            if metadata["token_endpoint_auth_method"] != was:
                secret = _secret_for(metadata)
                if secret is not None:  # else the old one's hash stays, for the change may be rejected
                    put_secret(connection, smart, client_id, secret)
            _settle(connection, now, metadata, now_ms)
            _audit(smart, connection, "client-changed", "U", client_id, now.client.kind, now_ms)
        return Told(registration=_found(connection, client_id), secret=secret, token=token)
    return smart.database.transact(work)


def end(smart: Smart, client_id: str, token: str) -> None:
    """A client ends its own registration (RFC 7592 section 2.3): it is closed for good. Raises Unauthenticated."""
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        held = authenticate_registration(connection, smart, client_id, token)
        close_within(connection, client_id, now_ms)
        _audit(smart, connection, "client-closed", "D", client_id, held.client.kind, now_ms)
    smart.database.transact(work)


def put_metadata(connection: apsw.Connection, client_id: str, metadata: Metadata) -> None:
    """Write what the metadata says into the columns that are obeyed, and the whole of it beside them."""
    jwks = metadata.get("jwks")
    connection.execute(
        "UPDATE client SET name=?, scope=?, jwks=?, jwks_uri=?, auth=?, redirect_uris=?, grant_types=?, launch_uri=?, "
        "metadata=? WHERE id=?",
        (metadata["client_name"], metadata["scope"], None if jwks is None else json.dumps(jwks),
         metadata.get("jwks_uri"), metadata["token_endpoint_auth_method"], " ".join(metadata.get("redirect_uris", ())),
         " ".join(metadata["grant_types"]), metadata.get("launch_uri"), json.dumps(metadata), client_id))


def put_secret(connection: apsw.Connection, smart: Smart, client_id: str, secret: Secret | None) -> None:
    """Keep the hash of a new secret; the old one is refused from this commit on."""
    connection.execute("UPDATE client SET secret=? WHERE id=?",
                       (None if secret is None else smart.tokens.hash(secret), client_id))


def suspend(connection: apsw.Connection, client_id: str, now_ms: int) -> None:
    """Nothing is issued to it, and its tokens are refused, until it is approved. Both columns: the token look-up of
    every request reads ``closed_ms``."""
    connection.execute("UPDATE client SET state='pending', closed_ms=coalesce(closed_ms, ?) WHERE id=?",
                       (now_ms, client_id))
    journal.bump_decision_seq(connection)


def close_within(connection: apsw.Connection, client_id: str, now_ms: int) -> None:
    """Close a client for good: its tokens, and its registration access token, are refused from this commit on."""
    connection.execute("UPDATE client SET closed_ms=coalesce(closed_ms, ?), "
                       "state=CASE state WHEN 'pending' THEN 'rejected' ELSE state END WHERE id=?", (now_ms, client_id))
    connection.execute("UPDATE registration SET token=NULL WHERE client=?", (client_id,))
    journal.bump_decision_seq(connection)


def sweep_registrations(connection: apsw.Connection, now_ms: int) -> int:
    """Delete registrations never approved that waited, or were rejected, a month ago; how many went."""
    connection.execute(
        "DELETE FROM client WHERE state<>'approved' AND id IN (SELECT client FROM registration WHERE approved IS NULL "
        "AND max(asked_ms, coalesce(decided_ms, 0))<?)", (now_ms - _FORGOTTEN_MS,))
    gone = int(connection.changes())
    connection.execute("DELETE FROM registration WHERE client NOT IN (SELECT id FROM client)")
    return gone


def _check_room(connection: apsw.Connection, source: bytes, now_ms: int) -> None:
    """No address takes all there is of the queue or the hour. Raises Throttled."""
    waiting, own = _counted(connection, "client.state='pending'", source)
    if own >= SHARE_MAX:
        raise Throttled("too many registrations from this address wait for an approval; ask the hospital to look at "
                        "them", retry_s=_HOUR_MS / 1_000)
    if waiting >= QUEUE_MAX:
        raise Throttled("too many registrations wait for an approval; ask the hospital to look at them",
                        retry_s=_HOUR_MS / 1_000)
    lately, own = _counted(connection, f"registration.created_ms>{now_ms - _HOUR_MS}", source)
    if own >= _HOURLY_SHARE:
        raise Throttled("too many clients registered from this address within this hour", retry_s=_HOUR_MS / 1_000)
    if lately >= _HOURLY_MAX:
        raise Throttled("too many clients registered within this hour", retry_s=_HOUR_MS / 1_000)


def _counted(connection: apsw.Connection, which: str, source: bytes) -> tuple[int, int]:
    """How many registrations there are, and how many of them from ``source``."""
    count, own = next(connection.execute(
        "SELECT count(*), coalesce(sum(registration.source IS ?), 0) FROM registration JOIN client "  # noqa: S608
        f"ON client.id=registration.client WHERE {which}", (source,)))
    return int(str(count)), int(str(own))


def _settle(connection: apsw.Connection, held: Registration, metadata: Metadata, now_ms: int) -> None:
    """What a change does to the client's standing."""
    client_id = held.client.id
    if held.approved is not None and not widens(held.approved, metadata):
        # Within what was approved: it stands as it did, or again, and can widen no more without an approval.
        connection.execute("UPDATE client SET state='approved', closed_ms=NULL WHERE id=?", (client_id,))
        connection.execute("UPDATE registration SET approved=?, asked_ms=? WHERE client=?",
                           (json.dumps(metadata), now_ms, client_id))
        journal.bump_decision_seq(connection)
        return
    connection.execute("UPDATE registration SET asked_ms=? WHERE client=?", (now_ms, client_id))
    suspend(connection, client_id, now_ms)


def _secret_for(metadata: Metadata) -> Secret | None:
    method = metadata["token_endpoint_auth_method"]
    return new_client_secret() if method in SECRET_METHODS else None


def _found(connection: apsw.Connection, client_id: str) -> Registration:
    found = find_registration(connection, client_id)
    if found is None:
        raise Unauthenticated("the registration has ended", error="invalid_token")
    return found


def _audit(smart: Smart, connection: apsw.Connection, interaction: str, action: str, client_id: str, kind: str,
           now_ms: int) -> None:
    smart.audit(connection, AuditEntry(
        time_ms=now_ms, action=action, interaction=interaction, outcome="0", what=(f"Device/{client_id}",),
        client=client_id, user=None, role=kind, purpose="HOPERAT"), None)
