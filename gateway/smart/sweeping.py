"""What is deleted of the authorization server's rows once nobody can use it.

Owns the order: what expired ends first, with everything that hangs on it, and is deleted a day later; refuses to forget
a used code while its authorization stands, or its second use would go unnoticed; a used refresh token is known by its
family (``refresh_tokens.py``).
"""

from __future__ import annotations

from typing import Final

import apsw

from gateway.smart.authorization import revoke_authorization
from gateway.smart.refresh_tokens import sweep_used
from gateway.smart.signing import sweep_keys

_KEPT_MS: Final = 24 * 3_600_000
_AT_ONCE: Final = 500


def sweep_authorizations(connection: apsw.Connection, now_ms: int) -> int:
    """End what expired, delete what ended over a day ago; how many rows went or changed."""
    before = connection.total_changes()
    ended = connection.execute("SELECT id FROM authorization WHERE expires_ms<? AND revoked_ms IS NULL LIMIT ?",
                               (now_ms, _AT_ONCE)).fetchall()
    for (id_,) in ended:
        revoke_authorization(connection, str(id_), now_ms)
    for table in ("authorization_code", "refresh_token"):
        connection.execute(f"DELETE FROM {table} WHERE authorization IN (SELECT id FROM authorization "  # noqa: S608
                           "WHERE revoked_ms<?)", (now_ms - _KEPT_MS,))
    connection.execute("DELETE FROM authorization WHERE revoked_ms<?", (now_ms - _KEPT_MS,))
    connection.execute("DELETE FROM authorization_request WHERE expires_ms<?", (now_ms,))
    sweep_used(connection, now_ms)
    sweep_keys(connection, now_ms)
    return connection.total_changes() - before
