"""What a Subscription tells: versions of its type as events, each decided for its subscriber at that moment.

Owns which version is an event, and ``$events``, which tells again what was acknowledged; refuses to tell, count or
number what the subscriber may not find. Opens blocks: to be called in a thread.
https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/notifications.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import apsw
import httpx

from gateway.access.decision import Deny
from gateway.audit import SealedRow
from gateway.errors import Gone, KeyDestroyed, NotFound
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource, parse
from gateway.fhir.search_match import SearchMatcher
from gateway.fhir.subscriptions import Content, Event, Interaction, Wanted, notification
from gateway.records.gate import Caller
from gateway.records.gathering import Permitted, audit_rows, disclosed
from gateway.records.node import Node
from gateway.records.subscriptions import read_wanted
from gateway.store import journal, subscriptions
from gateway.store.index import Cursor
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms
from gateway.store.subscriptions import Standing

EVENTS_MAX: Final = 100
"""Most events of one ``$events``."""
_SLICE: Final = 200
_LOOKED_AT_MAX: Final = 5_000
_BODY_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Subscribed:
    """One Subscription as it is now, and for whom."""

    at: Standing
    wanted: Wanted
    query: Query | None
    url: httpx.URL


@dataclass(frozen=True, slots=True)
class Batch:
    """What one notification tells: everything up to ``cursor`` was looked at."""

    cursor: int
    events: Sequence[Event]
    seqs: Sequence[int]
    audit: tuple[SealedRow, ...]


def gather(node: Node, caller: Caller, asked: Subscribed, cursor: int) -> Batch:
    """The next events after ``cursor``, decided now."""
    at, wanted = asked.at, asked.wanted
    looked_at, size = 0, 0
    events: list[Event] = []
    found: list[Permitted] = []
    with node.database.snapshot() as connection:
        head = journal.head_seq(connection)
        while looked_at < _LOOKED_AT_MAX and len(events) < wanted.max_count and size < _BODY_MAX:
            rows = subscriptions.after(connection, wanted.type, cursor, limit=_SLICE)
            for row in rows:
                made = _event(node, connection, caller, asked, row, at.delivered + len(events) + 1)
                cursor, looked_at = row.seq, looked_at + 1
                if made is not None:
                    events.append(made[0])
                    found.append(made[1])
                    size += len(made[0].stored or b"")
                if len(events) == wanted.max_count or size >= _BODY_MAX:
                    break
            else:
                if len(rows) < _SLICE:
                    cursor = max(cursor, head)
                    break
        audit = audit_rows(node, caller, connection, "subscription-notification", found,
                           query=f"Subscription/{at.id}", about="Subscription") if found else ()
    return Batch(cursor, events, [one.row.seq for one in found], audit)


def _event(node: Node, connection: apsw.Connection, caller: Caller, asked: Subscribed, row: VersionRow,
           number: int) -> tuple[Event, Permitted] | None:
    """What a version is to this subscriber: an event, or nothing at all."""
    wanted = asked.wanted
    previous = before(connection, row)
    interaction = interaction_of(row, previous)
    if interaction not in wanted.interactions:
        return None
    if wanted.topic is None and row.superseded is not None:
        # R4's own form has no word for a deletion: what is gone by now is not sent as if it were there.
        present = journal.current(connection, row.type, row.id)
        if present is None or present.deleted:
            return None
    one = permitted(node, caller, connection, row, previous)
    if one is None:
        return None
    about = previous if row.deleted else row
    if about is None or about.deleted:
        return None
    try:
        stored = None
        if asked.query is not None or wanted.topic is None or wanted.content == "full-resource" or (
                wanted.topic.entering is not None):
            stored = node.versions.open(connection, about).stored
        if stored is not None and not _matches(node, connection, caller, asked, about, stored, previous):
            return None
    except KeyDestroyed:  # erased meanwhile: there is nothing to tell of
        return None
    along = stored if wanted.content == "full-resource" and not row.deleted else None
    return Event(number=number, time_ms=row.updated_ms, type=row.type, id=row.id, interaction=interaction,
                 stored=along), one


def _matches(node: Node, connection: apsw.Connection, caller: Caller, asked: Subscribed, row: VersionRow,
             stored: bytes, previous: VersionRow | None) -> bool:
    resource: Resource = parse(stored)
    topic = asked.wanted.topic
    if topic is not None and topic.entering is not None and (
            resource.get("status") != topic.entering
            or _was(node, connection, caller, previous, topic.entering)):
        return False
    if asked.query is None:
        return True
    return SearchMatcher(node.extractor.facts(resource), logical_id=row.id,
                         last_updated_ms=row.updated_ms).matches(asked.query.criteria)


def _was(node: Node, connection: apsw.Connection, caller: Caller, previous: VersionRow | None, status: str) -> bool:
    """Whether the version before, as far as the subscriber may know it, had the status."""
    if previous is None or previous.deleted or permitted(
            node, caller, connection, previous, None) is None:
        return False
    return bool(parse(node.versions.open(connection, previous).stored).get("status") == status)


def interaction_of(row: VersionRow, previous: VersionRow | None) -> Interaction:
    """What wrote a version."""
    if row.deleted:
        return "delete"
    return "create" if previous is None or previous.deleted else "update"


def before(connection: apsw.Connection, row: VersionRow) -> VersionRow | None:
    """The version a version replaced."""
    return journal.version(connection, row.type, row.id, row.vid - 1) if row.vid > 1 else None


def permitted(node: Node, caller: Caller, connection: apsw.Connection, row: VersionRow,
              previous: VersionRow | None) -> Permitted | None:
    """``row`` where the subscriber may find it now. A deletion is judged by what was deleted."""
    if not row.deleted:
        decision = node.gate.decide_version(connection, caller, "s", row)
    else:
        seq = row.seq if previous is None else previous.seq
        decision = node.gate.decide(connection, caller, "s", stored=node.gate.facts(connection, row),
                                    stored_matcher=node.gate.stored_matcher(connection, seq))
        present = journal.current(connection, row.type, row.id)
        if not isinstance(decision, Deny) and present is not None and present.seq != row.seq:
            later = node.gate.decide_version(connection, caller, "s", present)
            decision = later if isinstance(later, Deny) else decision
    return None if isinstance(decision, Deny) else Permitted(row, decision, Cursor(None, row.seq))


async def events(node: Node, caller: Caller, id_: str, low: int, high: int | None, content: Content | None) -> bytes:
    """``$events``: what was acknowledged before, each event decided anew for who asks. Raises NotFound, Gone."""
    async def attempt(caller: Caller) -> bytes:
        connection = node.database.reader
        row = journal.current(connection, "Subscription", id_)
        at = subscriptions.find(connection, id_)
        node.gate.require_scope(caller, "Subscription", "r")
        decision = None if row is None else node.gate.decide_version(connection, caller, "r", row)
        if row is None or decision is None or isinstance(decision, Deny) or at is None:
            if row is not None and row.deleted and decision is not None and not isinstance(decision, Deny):
                raise Gone(f"Subscription/{id_} was deleted", version_id=row.vid)
            raise NotFound(f"Subscription/{id_} is not known")
        asked = read_wanted(node, parse(node.versions.open(connection, row).stored))
        wanted_content = content or asked.content
        found = [Permitted(row, decision, Cursor(None, row.seq))]
        told_events = []
        for number, seq in subscriptions.events(connection, id_, low, high or at.delivered, limit=EVENTS_MAX):
            version = subscriptions.version(connection, seq)
            if version is None:
                continue
            previous = before(connection, version)
            one = permitted(node, caller, connection, version, previous)
            if one is None:
                continue
            try:
                stored = None if wanted_content != "full-resource" or version.deleted else node.versions.open(
                    connection, version).stored
            except KeyDestroyed:
                continue
            found.append(one)
            told_events.append(Event(number=number, time_ms=version.updated_ms, type=version.type, id=version.id,
                                     interaction=interaction_of(version, previous), stored=stored))
        await disclosed(node, caller, audit_rows(node, caller, connection, "subscription-events", found,
                                                 query=f"Subscription/{id_}", about=f"Subscription/{id_}"))
        return notification("query-event", base=node.settings.base_url, id_=id_, topic=asked.topic, state=at.state,
                            count=at.delivered, now_ms=now_ms(), events=told_events, content=wanted_content)
    return await node.decided(caller, attempt)
