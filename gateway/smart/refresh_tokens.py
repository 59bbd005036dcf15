"""Refresh tokens: for each authorization a family, of which one member at a time is good.

Owns their form (the family's secret, then the member's own) and their rows: one for each authorization, however often
it was refreshed. Who shows the secret of a family with a member that is not the good one shows one that was used.
https://www.rfc-editor.org/rfc/rfc9700#section-4.14
"""

from __future__ import annotations

import secrets
from typing import Final

import apsw

from gateway.smart.authorization import OFFLINE_LIFE_MS, Authorization
from gateway.smart.issuer import Smart
from gateway.smart.tokens import Secret

PREFIX: Final = "gwf_"
_FAMILY: Final = len(PREFIX) + 22
_LENGTH: Final = _FAMILY + 43


def successor(secret: str | None) -> Secret:
    """The member after ``secret``; of a new family where that is None, or is of the form without families."""
    family = secret[:_FAMILY] if secret is not None and len(secret) == _LENGTH else PREFIX + secrets.token_urlsafe(16)
    return Secret(family + secrets.token_urlsafe(32))


def family_of(connection: apsw.Connection, smart: Smart, secret: str) -> str | None:
    """The id of the authorization whose family ``secret`` is of, whether it is the good member or not."""
    if len(secret) != _LENGTH or not secret.startswith(PREFIX):
        return None
    found = connection.execute("SELECT id FROM authorization WHERE family=?", (_hash(smart, secret),)).get
    return None if found is None else str(found)


def put(connection: apsw.Connection, smart: Smart, secret: Secret, authorization: Authorization, now_ms: int) -> None:
    """Store the good member. Offline access lives on from each use, online access ends with the session."""
    expires_ms = now_ms + OFFLINE_LIFE_MS if authorization.access == "offline" else authorization.expires_ms
    connection.execute("INSERT INTO refresh_token (hash,authorization,issued_ms,expires_ms) VALUES (?,?,?,?)",
                       (smart.tokens.hash(secret), authorization.id, now_ms, expires_ms))
    connection.execute("UPDATE authorization SET family=?, used_ms=?, expires_ms=? WHERE id=?",
                       (_hash(smart, secret), now_ms, expires_ms, authorization.id))


def take(connection: apsw.Connection, smart: Smart, secret: str, now_ms: int) -> bool:
    """Use up the good member; whether it still was. One without a family is kept, to be known when it comes again."""
    hashed = smart.tokens.hash(secret)
    if len(secret) == _LENGTH:
        connection.execute("DELETE FROM refresh_token WHERE hash=? AND used_ms IS NULL", (hashed,))
    else:
        connection.execute("UPDATE refresh_token SET used_ms=? WHERE hash=? AND used_ms IS NULL", (now_ms, hashed))
    return bool(connection.changes())


def sweep_used(connection: apsw.Connection, now_ms: int) -> None:
    """Delete used ones, of the form without families, that would be over by now had they not been used."""
    connection.execute("DELETE FROM refresh_token WHERE used_ms IS NOT NULL AND expires_ms<?", (now_ms,))


def _hash(smart: Smart, secret: str) -> bytes:
    return smart.tokens.hash(f"family {secret[:_FAMILY]}")
