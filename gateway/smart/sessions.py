"""Sessions of people who signed in on the portal.

Owns the opaque cookie, its two lives (idle and absolute), what a session is worth right now, and its end; refuses to
keep a cookie (a row holds its keyed hash) and to let a session gain standing: one that began before its login was
verified, or without the factor its role needs, stands for nobody.
https://cheatsheetseries.owasp.org/cheatsheets/Session_Management_Cheat_Sheet.html
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import apsw

from gateway.config import Settings
from gateway.errors import StoreBusy, Unauthenticated
from gateway.smart.issuer import Smart

IDLE_MS: Final = 30 * 60_000
LIFE_MS: Final = 12 * 3_600_000
RECENT_MS: Final = 10 * 60_000
"""How long after a sign-in its person may change how they sign in."""
_TOUCH_MS: Final = 60_000
_KEPT_ENDED_MS: Final = 30 * 24 * 3_600_000
_BYTES: Final = 32
_LENGTH: Final = 43
FACTOR_FREE: Final = frozenset({"patient", "delegate"})
"""Roles that may sign in by a password or a wallet alone."""
STRONG: Final = frozenset({"otp", "hwk", "oidc"})
"""Methods that satisfy the roles that may not; an identity provider answers for its own factors."""

State = Literal["waiting", "rejected", "verified", "weak"]
"""``weak``: verified, but signed in without the second factor the role needs."""

_LOOKUP: Final = """
SELECT s.id, s.login, s.methods, s.auth_time_ms, s.seen_ms, s.expires_ms, l.state, l.shown, l.fhir_user,
  a.role, a.name, a.closed_ms, a.mandate_until_ms, l.decided_ms
FROM session s JOIN login l ON l.id=s.login LEFT JOIN account a ON a.fhir_user=l.fhir_user
WHERE s.hash=? AND s.ended_ms IS NULL"""
_THEIRS: Final = """login IN (WITH own AS (SELECT id, state, fhir_user FROM login WHERE id=?)
  SELECT id FROM own UNION SELECT o.id FROM own JOIN login o ON o.fhir_user=own.fhir_user
  WHERE own.state='verified' AND o.state='verified')"""
"""Of a person, whichever of their logins they came in by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody signed in. ``user`` and ``role`` are None until proofing, and while a needed factor is missing.

    ``methods``: of RFC 8176 "pwd", "otp", "hwk", and "wallet", "oidc"; ``csrf``: what its forms must carry.
    """

    id: str
    user: str | None
    login: str
    role: str | None
    name: str
    auth_time_ms: int
    methods: tuple[str, ...]
    csrf: str = field(repr=False)
    state: State = "verified"

    def is_recent(self, now_ms: int) -> bool:
        """Whether the person proved who they are just now."""
        return now_ms - self.auth_time_ms <= RECENT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionShown:
    """One line of the list a person sees. Times in epoch milliseconds."""

    id: str
    device: str
    methods: tuple[str, ...]
    auth_time_ms: int
    seen_ms: int


def web_origin(settings: Settings) -> str:
    """The origin browsers see, without a default port."""
    parts = urlsplit(settings.base_url)
    default = {"https": ":443", "http": ":80"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower().removesuffix(default)}"


def is_secure(settings: Settings) -> bool:
    """Whether cookies can be confined to TLS."""
    return settings.base_url.startswith("https://")


def cookie_name(settings: Settings) -> str:
    """``__Host-`` binds the cookie to this very host, path / and TLS."""
    return "__Host-gateway" if is_secure(settings) else "gateway"


def csrf_of(smart: Smart, cookie_value: str) -> str:
    """The token a form of the holder of this cookie carries."""
    return smart.tokens.hash(f"csrf {cookie_value}").hex()


def session_of(smart: Smart, cookie_value: str | None) -> Session | None:
    """Who holds this cookie right now; None when nobody does. Moves the idle end on, at most once a minute."""
    if not cookie_value or len(cookie_value) != _LENGTH or not cookie_value.isascii():
        return None
    hashed, now_ms = _hash(smart, cookie_value), smart.now_ms()
    row: tuple[Any, ...] | None = next(iter(smart.database.reader.execute(_LOOKUP, (hashed,)).fetchall()), None)
    if row is None:
        return None
    (id_, login, methods, auth_time_ms, seen_ms, expires_ms, state, shown, fhir_user, role, name, closed_ms,
     mandate_until_ms, decided_ms) = row
    if expires_ms <= now_ms or seen_ms + IDLE_MS <= now_ms or state == "closed":
        return None
    used = tuple(methods.split())
    if state == "verified":
        # 1. A closed account has no sessions. 2. Nor has one signed in before the standing it would now have.
        if role is None or closed_ms is not None or expires_ms - LIFE_MS < (decided_ms or 0):
            return None
        if mandate_until_ms is not None and mandate_until_ms <= now_ms:
            return None
        if not is_enough(role, used):
            state = "weak"
    if seen_ms + _TOUCH_MS <= now_ms:
        _touch(smart, hashed, now_ms)
    stands = state == "verified"
    return Session(id=id_, user=fhir_user if stands else None, login=login, role=role if stands else None,
                   name=name if stands else shown, auth_time_ms=auth_time_ms, methods=used,
                   csrf=csrf_of(smart, cookie_value), state=state)


def is_enough(role: str, methods: Sequence[str]) -> bool:
    """Whether these methods let a person of this role act: staff need more than a password or a wallet."""
    return role in FACTOR_FREE or not STRONG.isdisjoint(methods)


def start_session(connection: apsw.Connection, smart: Smart, *, login: str, methods: Sequence[str], device: str,
                  previous: str | None, now_ms: int, auth_time_ms: int | None = None) -> str:
    """Open a session inside the transaction and return its cookie, told once.

    ``previous``: the cookie the browser came with, which ends here: no id known before a sign-in outlives it;
    ``auth_time_ms``: when the person proved who they are, if that was not now.
    """
    if previous:
        connection.execute("UPDATE session SET ended_ms=? WHERE hash=? AND ended_ms IS NULL",
                           (now_ms, _hash(smart, previous)))
    value = secrets.token_urlsafe(_BYTES)
    connection.execute(
        "INSERT INTO session (hash,id,login,methods,device,auth_time_ms,seen_ms,expires_ms) VALUES (?,?,?,?,?,?,?,?)",
        (_hash(smart, value), secrets.token_hex(16), login, " ".join(dict.fromkeys(methods)), device,
         now_ms if auth_time_ms is None else min(auth_time_ms, now_ms), now_ms, now_ms + LIFE_MS))
    return value


def id_of(connection: apsw.Connection, smart: Smart, cookie_value: str) -> str | None:
    """The id of the open session behind a cookie, expired or not."""
    rows = connection.execute("SELECT id FROM session WHERE hash=? AND ended_ms IS NULL",
                              (_hash(smart, cookie_value),)).fetchall()
    return str(rows[0][0]) if rows else None


def require_open(connection: apsw.Connection, session_id: str) -> None:
    """Raises Unauthenticated where a session has ended since its request was taken, inside the open transaction."""
    if not connection.execute("SELECT EXISTS (SELECT 1 FROM session WHERE id=? AND ended_ms IS NULL)",
                              (session_id,)).get:
        raise Unauthenticated("your session has ended: sign in again")


def end_session(connection: apsw.Connection, session_id: str, now_ms: int, *, login: str | None = None) -> bool:
    """End one session inside the transaction (with ``login``, only if it is that person's); whether there was one."""
    if login is None:
        connection.execute("UPDATE session SET ended_ms=? WHERE id=? AND ended_ms IS NULL", (now_ms, session_id))
    else:
        connection.execute(f"UPDATE session SET ended_ms=? WHERE id=? AND ended_ms IS NULL AND {_THEIRS}",  # noqa: S608
                           (now_ms, session_id, login))
    return bool(connection.changes())


def end_all(connection: apsw.Connection, login: str, now_ms: int, *, but: str | None = None) -> tuple[str, ...]:
    """End every session of a login's person inside the transaction, ``but`` one; the ids of those that ended."""
    ended = tuple(str(row[0]) for row in connection.execute(
        f"SELECT id FROM session WHERE ended_ms IS NULL AND id IS NOT ? AND {_THEIRS}",  # noqa: S608
        (but, login)).fetchall())
    for id_ in ended:
        connection.execute("UPDATE session SET ended_ms=? WHERE id=?", (now_ms, id_))
    return ended


def end_sessions(connection: apsw.Connection, fhir_user: str, now_ms: int) -> None:
    """End every session of a person, whichever login it began with, inside the transaction."""
    connection.execute("UPDATE session SET ended_ms=? WHERE ended_ms IS NULL AND login IN "
                       "(SELECT id FROM login WHERE fhir_user=?)", (now_ms, fhir_user))


def sessions_of(connection: apsw.Connection, login: str, now_ms: int) -> list[SessionShown]:
    """The open sessions of a login's person, the last seen first."""
    query = (f"SELECT id, device, methods, auth_time_ms, seen_ms FROM session WHERE {_THEIRS} "  # noqa: S608
             "AND ended_ms IS NULL AND expires_ms>? AND seen_ms>? ORDER BY seen_ms DESC")
    return [SessionShown(id=row[0], device=row[1], methods=tuple(row[2].split()), auth_time_ms=row[3], seen_ms=row[4])
            for row in connection.execute(query, (login, now_ms, now_ms - IDLE_MS))]


def sweep(connection: apsw.Connection, now_ms: int) -> int:
    """Delete sessions that ended or expired a month ago; how many rows went."""
    before = connection.total_changes()
    connection.execute("DELETE FROM session WHERE expires_ms < ?", (now_ms - _KEPT_ENDED_MS,))
    return connection.total_changes() - before


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that says nothing."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _hash(smart: Smart, cookie_value: str) -> bytes:
    return smart.tokens.hash(f"session {cookie_value}")


def _touch(smart: Smart, hashed: bytes, now_ms: int) -> None:
    # Only when the writer's turn is free this moment, and where the disk takes it: the next page will do it.
    connection = smart.database.try_begin()
    if connection is None:
        return
    try:
        connection.execute("UPDATE session SET seen_ms=? WHERE hash=? AND seen_ms<?", (now_ms, hashed, now_ms))
    except BaseException:
        smart.database.end(commit=False)
        raise
    with contextlib.suppress(StoreBusy):
        smart.database.end(commit=True)
