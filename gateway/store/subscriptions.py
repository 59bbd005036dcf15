"""Where the delivery of Subscriptions stands: one row each, moved only from where it was read.

Owns the cursor in the journal, the count of what was acknowledged and the next attempt; refuses to move a row that
another process moved, or that was asked for anew meanwhile. What is asked for, and with which secrets, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from gateway.fhir.subscriptions import State
from gateway.store.journal import VERSION_COLUMNS, VersionRow

EVENTS_KEPT: Final = 1_000
"""How many acknowledged events of one Subscription can be asked for again."""
_COLUMNS = "id, client, user, token, state, cursor, delivered, failures, next_ms"


@dataclass(frozen=True, slots=True)
class Standing:
    """One Subscription: in whose name, how far, and when next."""

    id: str
    client: str
    user: str | None
    token: str
    state: State
    cursor: int
    delivered: int
    failures: int
    next_ms: int


def begin(connection: apsw.Connection, *, id_: str, client: str, user: str | None, token: str) -> None:
    """Asked for, or asked for anew: everything committed from here on counts."""
    connection.execute(
        "INSERT OR REPLACE INTO subscription (id,client,user,token,state,cursor) "
        "VALUES (?,?,?,?,'requested',(SELECT coalesce(max(seq),0) FROM version))", (id_, client, user, token))
    connection.execute("DELETE FROM subscription_event WHERE subscription=?", (id_,))


def switch_off(connection: apsw.Connection, id_: str) -> None:
    """No more is delivered."""
    connection.execute("UPDATE subscription SET state='off' WHERE id=?", (id_,))


def forget(connection: apsw.Connection, id_: str) -> None:
    """As if it had never been."""
    connection.execute("DELETE FROM subscription WHERE id=?", (id_,))
    connection.execute("DELETE FROM subscription_event WHERE subscription=?", (id_,))


def find(connection: apsw.Connection, id_: str) -> Standing | None:
    """One row, or None."""
    for row in connection.execute(f"SELECT {_COLUMNS} FROM subscription WHERE id=?", (id_,)):  # noqa: S608
        return Standing(*row)
    return None


def due(connection: apsw.Connection, now_ms: int) -> list[Standing]:
    """Those that are not off and may be tried."""
    return [Standing(*row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM subscription WHERE state<>'off' AND next_ms<=?", (now_ms,))]  # noqa: S608


def of_owner(connection: apsw.Connection, client: str, user: str | None) -> list[Standing]:
    """Those of one client and user."""
    return [Standing(*row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM subscription WHERE client=? AND user IS ? ORDER BY id", (client, user))]  # noqa: S608


def move(connection: apsw.Connection, at: Standing, *, state: State, cursor: int, failures: int, next_ms: int,
         events: Sequence[int] = ()) -> bool:
    """Move a row on from ``at``; whether it still stood there. ``events``: the ``seq`` of those acknowledged."""
    connection.execute(
        "UPDATE subscription SET state=?, cursor=?, delivered=delivered+?, failures=?, next_ms=? "
        "WHERE id=? AND token=? AND state=? AND cursor=? AND delivered=? AND failures=?",
        (state, cursor, len(events), failures, next_ms, at.id, at.token, at.state, at.cursor, at.delivered,
         at.failures))
    if not connection.changes():
        return False
    if events:
        connection.executemany("INSERT OR REPLACE INTO subscription_event VALUES (?,?,?)", [
            (at.id, at.delivered + place, seq) for place, seq in enumerate(events, 1)])
        connection.execute("DELETE FROM subscription_event WHERE subscription=? AND number<=?",
                           (at.id, at.delivered + len(events) - EVENTS_KEPT))
    return True


def events(connection: apsw.Connection, id_: str, low: int, high: int, *, limit: int) -> list[tuple[int, int]]:
    """(number, seq) of acknowledged events with ``low <= number <= high``."""
    return [(int(number), int(seq)) for number, seq in connection.execute(
        "SELECT number, version FROM subscription_event WHERE subscription=? AND number>=? AND number<=? "
        "ORDER BY number LIMIT ?", (id_, low, high, limit))]


def version(connection: apsw.Connection, seq: int) -> VersionRow | None:
    """The version of an event."""
    for row in connection.execute(f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.seq=?", (seq,)):  # noqa: S608
        return VersionRow(*row)
    return None


def after(connection: apsw.Connection, type_: str, seq: int, *, limit: int) -> list[VersionRow]:
    """Versions of a type written after ``seq``, in their order."""
    return [VersionRow(*row) for row in connection.execute(
        f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.type=? AND v.seq>? ORDER BY v.seq LIMIT ?",  # noqa: S608
        (type_, seq, limit))]


def mandate_until_ms(connection: apsw.Connection, user: str | None) -> int | None:
    """Until when a delegate acts for the patient; None where nothing ends."""
    for (until,) in connection.execute("SELECT mandate_until_ms FROM account WHERE fhir_user=?", (user,)):
        return None if until is None else int(until)
    return None
