"""Opaque bearer tokens: issued, looked up on every request, revoked.

Owns the token rows and what a presented secret is worth right now; refuses to keep a secret: a row holds its
HMAC-SHA256 under a derived key, so a stolen database opens no door. https://www.rfc-editor.org/rfc/rfc6750
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import apsw

from gateway.access.grant import ClientKind, Grant
from gateway.access.scopes import ResourceScope, ScopeSet, parse
from gateway.errors import Unauthenticated
from gateway.store import journal

PREFIX: Final = "gw_"
_LENGTH: Final = len(PREFIX) + 43
_KEPT_AFTER_EXPIRY_MS: Final = 24 * 3_600_000

# One statement, so that a token, whether its client and account still stand, and the revocation counter are of
# one moment.
# Subqueries rather than joins: measured 6 us against 26.
_LOOKUP_BY: Final = """
SELECT (SELECT value FROM decision_seq), t.revoked_ms,
  (SELECT coalesce(c.closed_ms, 0) FROM client c WHERE c.id=t.client),
  (SELECT a.closed_ms FROM account a WHERE a.fhir_user=t.user), t.id, t.client, t.client_kind, t.user, t.role, t.scope,
  t.patient, t.purpose, t.grantees, t.expires_ms, t.reason, t.operator
FROM token t WHERE t.{key}=?"""
_LOOKUP: Final = _LOOKUP_BY.format(key="hash")
_LOOKUP_ID: Final = _LOOKUP_BY.format(key="id")
_STANDING: Final = 4  # columns before the facts of the token itself


class Secret(str):
    """A bearer token in the clear. Its ``repr`` hides it: Authlib logs the token response by ``%r``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(...)"


def new_secret() -> Secret:
    """256 random bits behind a prefix that secret scanners can be taught."""
    return Secret(PREFIX + secrets.token_urlsafe(32))


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header. Raises Unauthenticated (RFC 6750 sections 2.1 and 3.1)."""
    if not authorization:
        raise Unauthenticated("a bearer token is needed")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("a bearer token is needed", reason="other-scheme")
    return secret.strip(" ")


class TokenStore:
    """Tokens of one hospital. Safe between threads; the rows are read anew on every lookup."""

    def __init__(self, key: bytes, *, cache_size: int = 4_096) -> None:
        """``key``: 32 bytes, the root's ``token-hash`` key; ``cache_size``: how many built Grants are kept."""
        self._key = key
        self._cache_size = cache_size
        self._cache: dict[bytes, tuple[tuple[Any, ...], Grant]] = {}
        self._lock = threading.Lock()

    def hash(self, secret: str) -> bytes:
        """What is stored in place of ``secret``."""
        return hmac.digest(self._key, secret.encode("utf-8", "surrogatepass"), "sha256")

    def issue(self, connection: apsw.Connection, *, client_id: str, client_kind: ClientKind, user: str | None,
              role: str, scopes: ScopeSet, patient: str | None, purpose: str, grantees: Sequence[str], now_ms: int,
              expires_ms: int, break_glass_reason: str | None = None, operator: bool = False,
              secret: Secret | None = None, authorization: str | None = None,
              told: str | None = None) -> tuple[Secret, Grant]:
        """Store a new token inside the open transaction; the secret is told here and never again.

        ``authorization``: the one it hangs on; ``told``: the scope in the words the client was told.
        """
        secret = secret or new_secret()
        grant = Grant(token_id=secrets.token_hex(16), client_id=client_id, client_kind=client_kind, user=user,
                      role=role, scopes=scopes, patient=patient, purpose=purpose, grantees=tuple(grantees),
                      expires_ms=expires_ms, break_glass_reason=break_glass_reason, minted_by_operator=operator)
        connection.execute(
            "INSERT INTO token (hash,id,client,client_kind,user,role,scope,patient,purpose,grantees,reason,operator,"
            "issued_ms,expires_ms,authorization,told) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (self.hash(secret), grant.token_id, client_id, client_kind, user, role, str(scopes), patient, purpose,
             " ".join(grant.grantees), break_glass_reason, int(operator), now_ms, expires_ms, authorization, told))
        return secret, grant

    def lookup(self, connection: apsw.Connection, secret: str, now_ms: int) -> tuple[Grant, int]:
        """The Grant of a presented token and the ``decision_seq`` of the same moment.

        Raises Unauthenticated: the client is told one sentence, the audit the reason.
        """
        if len(secret) != _LENGTH or not secret.startswith(PREFIX):
            raise _refused("malformed")
        hashed = self.hash(secret)
        decision_seq, facts = _standing(next(connection.execute(_LOOKUP, (hashed,)), None))
        _refuse_expired(facts, now_ms)
        return self._grant(hashed, facts), decision_seq

    def lookup_id(self, connection: apsw.Connection, token_id: str, now_ms: int, *, work_ms: int = 0) -> tuple[
            Grant, int]:
        """As ``lookup``, for work that goes on after its request: the token by its id.

        With ``work_ms`` its expiry does not end the work (revoking it, closing the client or account, or the end of a
        delegate's mandate does), and the Grant is good for so long; a broken glass stays open no longer for it. Raises
        Unauthenticated.
        """
        decision_seq, facts = _standing(next(connection.execute(_LOOKUP_ID, (token_id,)), None))
        grant = _built(facts)
        if not work_ms or grant.break_glass_reason is not None:
            _refuse_expired(facts, now_ms)
            return grant, decision_seq
        until_ms = connection.execute("SELECT mandate_until_ms FROM account WHERE fhir_user=?", (grant.user,)).get
        if until_ms is not None and now_ms >= int(str(until_ms)):
            raise _refused("mandate-ended", grant.token_id)
        return replace(grant, expires_ms=max(grant.expires_ms, now_ms + work_ms)), decision_seq

    def _grant(self, hashed: bytes, facts: tuple[Any, ...]) -> Grant:
        with self._lock:
            known = self._cache.pop(hashed, None)
            if known is not None and known[0] == facts:
                self._cache[hashed] = known
                return known[1]
        grant = _built(facts)
        with self._lock:
            self._cache[hashed] = (facts, grant)
            while len(self._cache) > self._cache_size:
                del self._cache[next(iter(self._cache))]
        return grant

    def revoke(self, connection: apsw.Connection, secret: str, now_ms: int) -> bool:
        """Revoke the token ``secret``; whether there was one to revoke."""
        return _revoke(connection, "hash=?", self.hash(secret), now_ms)

    def revoke_id(self, connection: apsw.Connection, token_id: str, now_ms: int) -> bool:
        """Revoke the token whose ``Grant.token_id`` this is; whether there was one to revoke."""
        return _revoke(connection, "id=?", token_id, now_ms)


def revoke_user(connection: apsw.Connection, fhir_user: str, now_ms: int) -> bool:
    """Revoke every token of a person, and what they let apps do; whether there was a token."""
    connection.execute("UPDATE authorization SET revoked_ms=? WHERE user=? AND revoked_ms IS NULL", (now_ms, fhir_user))
    return _revoke(connection, "user=?", fhir_user, now_ms)


def revoke_of_authorization(connection: apsw.Connection, authorization: str, now_ms: int) -> bool:
    """Revoke every token that hangs on an authorization; whether there was one."""
    return _revoke(connection, "authorization=?", authorization, now_ms)


def sweep(connection: apsw.Connection, now_ms: int) -> int:
    """Delete tokens expired over a day ago, but those Subscriptions act by, and assertions nobody can replay; how many
    rows went."""
    before = connection.total_changes()
    # A subscription is delivered for as long as the token it was made with is not revoked.
    connection.execute("DELETE FROM token WHERE expires_ms < ? AND NOT EXISTS (SELECT 1 FROM subscription s "
                       "WHERE s.token=token.id AND s.state<>'off')", (now_ms - _KEPT_AFTER_EXPIRY_MS,))
    connection.execute("DELETE FROM assertion WHERE expires_ms < ?", (now_ms,))
    return connection.total_changes() - before


def _revoke(connection: apsw.Connection, where: str, value: str | bytes, now_ms: int) -> bool:
    connection.execute(f"UPDATE token SET revoked_ms=? WHERE {where} AND revoked_ms IS NULL",  # noqa: S608
                       (now_ms, value))
    if not connection.changes():
        return False
    journal.bump_decision_seq(connection)
    return True


def _standing(row: tuple[Any, ...] | None) -> tuple[int, tuple[Any, ...]]:
    """The ``decision_seq`` and the facts of a token that stands. Raises Unauthenticated."""
    if row is None:
        raise _refused("unknown")
    decision_seq, revoked_ms, client_closed_ms, account_closed_ms = row[:_STANDING]
    facts = row[_STANDING:]
    token = facts[0]
    if revoked_ms is not None:
        raise _refused("revoked", token)
    if client_closed_ms != 0:  # None where the client's row is gone
        raise _refused("client-closed", token)
    if account_closed_ms is not None:
        raise _refused("account-closed", token)
    return int(decision_seq), facts


def _refuse_expired(facts: tuple[Any, ...], now_ms: int) -> None:
    if now_ms >= facts[9]:
        raise _refused("expired", facts[0])


def _built(facts: tuple[Any, ...]) -> Grant:
    (token, client, kind, user, role, scope, patient, purpose, grantees, expires_ms, reason, operator) = facts
    return Grant(token_id=token, client_id=client, client_kind=kind, user=user, role=role,
                 scopes=_with_oneself(parse(scope), user), patient=patient, purpose=purpose,
                 grantees=tuple(grantees.split()), expires_ms=expires_ms, break_glass_reason=reason,
                 minted_by_operator=bool(operator))


def _with_oneself(scopes: ScopeSet, user: str | None) -> ScopeSet:
    """``fhirUser`` tells an app who signed in, by a reference it may follow: it reads that one resource and no other.

    https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html#scopes-for-requesting-identity-data
    """
    if user is None or "fhirUser" not in scopes.others:
        return scopes
    type_, _, id_ = user.partition("/")
    return ScopeSet((*scopes.resources, ResourceScope("user", type_, "r", (("_id", id_),))), scopes.others)


def _refused(reason: str, token: str | None = None) -> Unauthenticated:
    return Unauthenticated("the access token is unknown, expired or revoked", error="invalid_token", reason=reason,
                           token=token)
