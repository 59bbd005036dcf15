"""What the hospital decides about its clients: list, show, approve, reject, close, a new secret.

Owns the standing of a client and who decided it, in the commit that audits it; refuses a second decision on what was
decided, and a secret for a client that has none. https://www.rfc-editor.org/rfc/rfc7591#section-3
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import apsw

from gateway.audit import AuditEntry
from gateway.errors import Conflict, NotFound, OAuthError, Unprocessable
from gateway.smart.clients import Client, check_purposes, find_client, new_client_secret
from gateway.smart.issuer import Smart
from gateway.smart.registration import (
    SECRET_METHODS,
    Registration,
    close_within,
    find_registration,
    put_metadata,
    put_secret,
)
from gateway.smart.tokens import Secret
from gateway.store import journal

Standing = Literal["pending", "approved", "rejected", "closed"]
STANDINGS: Final[tuple[Standing, ...]] = ("pending", "approved", "rejected", "closed")
LIST_MAX: Final = 200
_REASON_MAX: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """Who decides: an administrator (``user``, through ``client``), or the operator on the command line (no user)."""

    user: str | None = None
    role: str = "administrator"
    client: str = "cli"

    @property
    def name(self) -> str:
        return self.user or "cli"


def standing(client: Client) -> Standing:
    """One word for it; a suspended client is pending."""
    if client.state == "approved" and client.closed_ms is not None:
        return "closed"
    return client.state


def list_clients(smart: Smart, only: Standing | None = None, *, after: str = "") -> list[dict[str, Any]]:
    """Clients by id, ``LIST_MAX`` at most, from the one behind ``after``: what ``show`` says but keys and texts."""
    where = {None: "1", "pending": "state='pending'", "rejected": "state='rejected'",
             "approved": "state='approved' AND closed_ms IS NULL",
             "closed": "state='approved' AND closed_ms IS NOT NULL"}[only]
    reader = smart.database.reader
    ids = [str(row[0]) for row in reader.execute(
        f"SELECT id FROM client WHERE id>? AND {where} ORDER BY id LIMIT ?", (after, LIST_MAX)).fetchall()]  # noqa: S608
    return [_line(client) for id_ in ids if (client := find_client(reader, id_)) is not None]


def show(smart: Smart, client_id: str) -> dict[str, Any]:
    """Everything an approver needs, and no secret. Raises NotFound."""
    reader = smart.database.reader
    client, found = _client(reader, client_id), find_registration(reader, client_id)
    told = _line(client) | {
        "auth": client.auth, "scope": str(client.scopes), "purposes": list(client.purposes),
        "grant_types": list(client.grant_types), "redirect_uris": list(client.redirect_uris),
        "launch_uri": client.launch_uri, "jwks_uri": client.jwks_uri, "keys": client.jwks is not None,
        "metadata": dict(client.metadata)}
    if found is not None:
        told["revision"] = _revision(client, found)
        told["registration"] = {
            "created": _time(found.created_ms), "asked": _time(found.asked_ms), "decided": _time(found.decided_ms),
            "decided_by": found.decided_by, "reason": found.reason, "changes": _changes(found)}
    return told


def approve(smart: Smart, client_id: str, by: Decider, *, revision: str, scope: str | None = None,
            purposes: Sequence[str] | None = None) -> None:
    """Let a pending client in as it asked, or with less: ``scope`` within what it asked, ``purposes`` it may act for.

    ``revision``: of what was read (``show``): the client holds a token to change it until the very moment. Raises
    NotFound, Conflict when it does not wait or has changed, OAuthError ``invalid_scope``, or Unprocessable.
    """
    ceiling = None if scope is None else smart.parse_scope(scope)
    if purposes is not None:
        check_purposes(purposes)
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        client = _pending(connection, client_id)
        if revision != _revision(client, find_registration(connection, client_id)):
            raise Conflict("the client has changed what it asks for meanwhile: look at it again")
        metadata = dict(client.metadata)
        if ceiling is not None:
            if not ceiling.resources or not ceiling.within(client.scopes):
                raise OAuthError("invalid_scope", "an approval gives no more than was asked")
            metadata["scope"] = str(ceiling)
        put_metadata(connection, client_id, metadata)
        if metadata["token_endpoint_auth_method"] not in SECRET_METHODS:
            put_secret(connection, smart, client_id, None)
        if purposes is not None:
            connection.execute("UPDATE client SET purposes=? WHERE id=?", (" ".join(purposes), client_id))
        connection.execute("UPDATE registration SET approved=? WHERE client=?", (json.dumps(metadata), client_id))
        _stand(connection, client_id)
        _decided(smart, connection, client_id, by, "client-approved", None, now_ms)
    smart.database.transact(work)


def reject(smart: Smart, client_id: str, by: Decider, *, reason: str) -> Standing:
    """Turn a pending client away, or its change: then it stands as it was approved before. Its standing afterwards.

    Raises NotFound, Conflict when it does not wait, or Unprocessable without a reason.
    """
    if not reason.strip() or len(reason) > _REASON_MAX or not reason.isprintable():
        raise Unprocessable(f"a rejection needs a reason of at most {_REASON_MAX} printable characters")
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> Standing:
        _pending(connection, client_id)
        found = find_registration(connection, client_id)
        before = found.approved if found is not None else None
        if before is None:
            connection.execute("UPDATE client SET state='rejected' WHERE id=?", (client_id,))
        else:
            put_metadata(connection, client_id, before)
            _stand(connection, client_id)
        _decided(smart, connection, client_id, by, "client-rejected", reason, now_ms)
        return "rejected" if before is None else "approved"
    return smart.database.transact(work)


def close(smart: Smart, client_id: str, by: Decider) -> Standing:
    """Close a client for good: its tokens are refused from this commit on, on every worker. Raises NotFound.

    Its standing afterwards: one that waited is rejected.
    """
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> Standing:
        _client(connection, client_id)
        close_within(connection, client_id, now_ms)
        _audit(smart, connection, client_id, by, "client-closed", "D", now_ms)
        return standing(_client(connection, client_id))
    return smart.database.transact(work)


def rotate_secret(smart: Smart, client_id: str, by: Decider) -> Secret:
    """A new client secret, told here and never again; the old one is refused from this commit on.

    Raises NotFound, Conflict for a closed client, or Unprocessable for one that authenticates otherwise.
    """
    secret, now_ms = new_client_secret(), smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        client = _client(connection, client_id)
        if client.auth not in SECRET_METHODS:
            raise Unprocessable(f"the client authenticates by {client.auth}: it has no secret")
        if standing(client) in ("closed", "rejected"):
            raise Conflict(f"the client is {standing(client)}")
        put_secret(connection, smart, client_id, secret)
        _audit(smart, connection, client_id, by, "client-secret", "U", now_ms)
    smart.database.transact(work)
    return secret


def why_not(connection: apsw.Connection, client_id: str) -> str | None:
    """What to tell a person whose app waits or was rejected; None for any other client, known or not."""
    client = find_client(connection, client_id)
    if client is None or client.state == "approved":
        return None
    if client.state == "pending":
        return "this app waits for the approval of this hospital"
    return "this hospital did not approve this app"


def _client(connection: apsw.Connection, client_id: str) -> Client:
    client = find_client(connection, client_id)
    if client is None:
        raise NotFound(f"there is no client {client_id[:64]}")
    return client


def _pending(connection: apsw.Connection, client_id: str) -> Client:
    client = _client(connection, client_id)
    if client.state != "pending":
        raise Conflict(f"the client does not wait for a decision: it is {standing(client)}")
    return client


def _stand(connection: apsw.Connection, client_id: str) -> None:
    connection.execute("UPDATE client SET state='approved', closed_ms=NULL WHERE id=?", (client_id,))
    journal.bump_decision_seq(connection)


def _decided(smart: Smart, connection: apsw.Connection, client_id: str, by: Decider, interaction: str,
             reason: str | None, now_ms: int) -> None:
    connection.execute("UPDATE registration SET decided_ms=?, decided_by=?, reason=? WHERE client=?",
                       (now_ms, by.name, reason, client_id))
    _audit(smart, connection, client_id, by, interaction, "U", now_ms, reason)


def _line(client: Client) -> dict[str, Any]:
    return {"client_id": client.id, "name": client.name, "kind": client.kind, "state": standing(client)}


def _changes(found: Registration) -> dict[str, Any]:
    """What a waiting client asks for beside what was approved: field to ``[approved, asked]``."""
    if found.client.state != "pending" or found.approved is None:
        return {}
    old, new = found.approved, found.client.metadata
    return {name: [old.get(name), new.get(name)] for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)}


def _revision(client: Client, found: Registration | None) -> str:
    """What stands in for all that an approver reads."""
    asked = [json.dumps(dict(client.metadata), sort_keys=True), "" if found is None else str(found.asked_ms)]
    return hashlib.sha256("\n".join(asked).encode()).hexdigest()[:32]


def _time(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="seconds")


def _audit(smart: Smart, connection: apsw.Connection, client_id: str, by: Decider, interaction: str, action: str,
           now_ms: int, reason: str | None = None) -> None:
    smart.audit(connection, AuditEntry(
        time_ms=now_ms, action=action, interaction=interaction, outcome="0", what=(f"Device/{client_id}",),
        client=by.client, user=by.user, role=by.role, purpose="HOPERAT", reason=reason, operator=by.user is None), None)
