"""Writes that rest on a search: conditional create, update, delete and patch.

Owns asking a condition as the caller may see it, and asking it again inside the commit; refuses a condition with
several matches where one is meant. What it finds is disclosed, and audited with the write.
https://hl7.org/fhir/R4/http.html#cond-update
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl

import apsw

from gateway import audit
from gateway.audit import Disclosure, SealedRow
from gateway.errors import BadSearch, Conflict, Malformed, Moved, NotFound, PreconditionFailed, TooCostly
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource
from gateway.records import aside, drafting, patching, preconditions, preparing, refusals
from gateway.records.gate import Caller
from gateway.records.node import Node, still
from gateway.records.patching import Patch
from gateway.records.preparing import Prepared, Written
from gateway.records.references import Links
from gateway.records.refusals import Refused
from gateway.records.search import matching
from gateway.store import journal
from gateway.store.journal import VersionRow

DELETED_MAX: Final = 1_000
"""Most resources one conditional delete takes away."""
URL: Final = "http.url"
"""The place of a condition that stands in the request's URL."""


class Conditions:
    """The conditions one attempt at a write rests on, and the audit rows of what they found."""

    def __init__(self, caller: Caller) -> None:
        self.told: list[SealedRow] = []
        self.caller = caller
        self._asked: list[tuple[Query, frozenset[str], int]] = []
        self._answers: dict[tuple[str, str], VersionRow | None] = {}

    def one(self, node: Node, connection: apsw.Connection, type_: str, text: str, expression: str) -> VersionRow | None:
        """The one match of a condition, or None; remembered, to be checked again inside the commit.

        A condition that returns is asked once: every entry may name the same ward, and the commit asks each again.
        Raises PreconditionFailed when there are several, Forbidden outside the token's scopes, BadSearch.
        """
        if (type_, text) not in self._answers:
            rows = self._rows(node, connection, type_, text, expression, limit=2)
            if len(rows) > 1:
                self._tell(node, connection, rows, text)
                # The condition itself may hold an identifier: it is not repeated.
                several = PreconditionFailed(f"the condition on {type_} has several matches")
                several.expression = expression
                raise several
            self._answers[type_, text] = rows[0] if rows else None
            self._tell(node, connection, rows, text)
        return self._answers[type_, text]

    def every(self, node: Node, connection: apsw.Connection, type_: str, text: str,
              expression: str) -> list[VersionRow]:
        """Every match of a condition, remembered as by ``one``. Raises TooCostly beyond ``DELETED_MAX``."""
        rows = self._rows(node, connection, type_, text, expression, limit=DELETED_MAX + 1)
        if len(rows) > DELETED_MAX:
            raise TooCostly(f"a condition may match {DELETED_MAX} resources at most; narrow it", code="too-costly",
                            expression=expression)
        self._tell(node, connection, rows, text)
        return rows

    async def tell(self, node: Node) -> None:
        """Audit what was found where the write comes to nothing: the refusal may tell of it."""
        rows = tuple(self.told)
        if rows:
            await node.commits.commit(lambda tx: audit.append(tx, rows))

    def check(self, node: Node, connection: apsw.Connection) -> None:
        """Inside the commit: every condition still has the answer the write rests on. Raises Moved."""
        for query, ids, limit in self._asked:
            if {row.id for row in matching(node, self.caller, connection, query, limit=limit)} != ids:
                raise Moved("a condition's answer changed")

    def commit(self, node: Node, connection: apsw.Connection) -> None:
        """The first work of a commit: what was decided still holds, and what was found is audited. Raises Moved."""
        still(connection, self.caller)
        self.check(node, connection)
        audit.append(connection, tuple(self.told))

    def _rows(self, node: Node, connection: apsw.Connection, type_: str, text: str, expression: str, *,
              limit: int) -> list[VersionRow]:
        pairs = parse_qsl(text, keep_blank_values=True)
        if not pairs:
            raise Malformed("a condition needs search parameters", code="invalid", expression=expression)
        try:
            query = node.query(type_, pairs, strict=True)
        except BadSearch as error:
            raise BadSearch([replace(issue, expression=expression) for issue in error.issues]) from error
        rows = matching(node, self.caller, connection, query, limit=limit)
        self._asked.append((query, frozenset(row.id for row in rows), limit))
        return rows

    def _tell(self, node: Node, connection: apsw.Connection, rows: Sequence[VersionRow], text: str) -> None:
        for row in rows:
            self.told += node.gate.entries(
                self.caller, "s", "search-type", node.gate.decide_version(connection, self.caller, "s", row),
                what=(f"{row.type}/{row.id}/_history/{row.vid}",), query=text,
                patients=node.gate.facts(connection, row).home_patients)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt, ready for its commit; ``answer`` is what the caller is told, an exception or the writes."""

    conditions: Conditions
    prepared: tuple[Prepared, ...]
    answer: tuple[Written, ...] | Exception


async def create(node: Node, caller: Caller, type_: str, resource: Resource, condition: str) -> Written:
    """Store ``resource`` unless one resource matches ``condition``, a query string.

    Then that one is the answer, unchanged and without its bytes. Raises PreconditionFailed when several match.
    https://hl7.org/fhir/R4/http.html#ccreate
    """
    await aside.done(aside.large(resource), lambda: drafting.validated(node, resource, type_))
    id_ = str(uuid.uuid4())

    def attempt(now: Caller, conditions: Conditions, reader: apsw.Connection) -> _Attempt:
        node.gate.require_scope(now, type_, "c")
        row = conditions.one(node, reader, type_, condition, "http.If-None-Exist")
        if row is not None:
            return _Attempt(conditions, (), (Written(row.type, row.id, row.vid, row.updated_ms, b"", False, False),))
        made = drafting.draft(node, now, resource, id_)
        return _stored(conditions, preparing.prepare_create(node, now, reader, made, id_))
    return (await _carried_out(node, caller, "c", "create", attempt))[0]


async def update(node: Node, caller: Caller, type_: str, resource: Resource, condition: str, *, if_match: str | None,
                 if_none_match: str | None) -> Written:
    """Update the one match of ``condition``; without a match create, under the resource's own id where it has one.

    Raises PreconditionFailed when several match, Malformed when the resource's id is not the match's, Conflict when
    nothing matches and the resource's id is in use. https://hl7.org/fhir/R4/http.html#cond-update
    """
    expected = preconditions.expected_versions(if_match)
    await aside.done(aside.large(resource), lambda: drafting.validated(node, resource, type_))

    def attempt(now: Caller, conditions: Conditions, reader: apsw.Connection) -> _Attempt:
        node.gate.require_scope(now, type_, "u")
        found = conditions.one(node, reader, type_, condition, URL)
        id_ = chosen_id(resource, found, f"{type_}.id")
        if found is None:
            return _stored(conditions, prepare_absent(node, now, reader, resource, id_, expected))
        made = drafting.draft(node, now, resource, id_)
        return _stored(conditions, preparing.prepare_update(node, now, reader, made, id_,
                                                            journal.current(reader, type_, id_), expected,
                                                            only_new=if_none_match is not None))
    return (await _carried_out(node, caller, "u", "update", attempt))[0]


def chosen_id(resource: Resource, found: VersionRow | None, expression: str) -> str:
    """The id a conditional update goes to. Raises Malformed when the resource's own is not that of the match."""
    own = resource.get("id")
    if found is None:
        return str(own) if own else str(uuid.uuid4())
    if own and own != found.id:
        raise Malformed("the resource's id is not that of the one match", code="invalid", expression=expression)
    return found.id


def prepare_absent(node: Node, caller: Caller, connection: apsw.Connection, resource: Resource, id_: str,
                   expected: tuple[int, ...] | None, *, links: Links | None = None) -> Prepared:
    """The create of a conditional update that matches nothing. Raises Conflict where its id is in use."""
    type_ = resource["resourceType"]
    if expected is not None:
        raise PreconditionFailed(f"If-Match: no {type_} meets the condition")
    made = drafting.draft(node, caller, resource, id_)
    if "id" not in resource:
        return preparing.prepare_create(node, caller, connection, made, id_, links=links)
    try:
        row = journal.current(connection, type_, id_)
        return preparing.prepare_update(node, caller, connection, made, id_, row, None, only_new=True, links=links)
    except PreconditionFailed as error:
        raise Conflict(f"{type_}/{id_} exists, and does not meet the condition") from error


async def patch(node: Node, caller: Caller, type_: str, change: Patch, condition: str, *,
                if_match: str | None) -> Written:
    """Patch the one match of ``condition``. Raises NotFound, PreconditionFailed when several match."""
    expected = preconditions.expected_versions(if_match)

    def attempt(now: Caller, conditions: Conditions, reader: apsw.Connection) -> _Attempt:
        node.gate.require_scope(now, type_, "u")
        found = conditions.one(node, reader, type_, condition, URL)
        if found is None:
            return _Attempt(conditions, (nothing_found(node, now, type_, condition, "u", "patch"),),
                            NotFound(f"no {type_} meets the condition"))
        return _stored(conditions, patching.prepare(node, now, reader, type_, found.id, change, expected))
    return (await _carried_out(node, caller, "u", "patch", attempt))[0]


async def delete(node: Node, caller: Caller, type_: str, condition: str, *,
                 if_match: str | None) -> tuple[Written, ...]:
    """Delete what matches ``condition``: one, or all of them where the setting ``conditional_delete`` says so.

    Raises PreconditionFailed when several match and one is meant. https://hl7.org/fhir/R4/http.html#3.1.0.7.1
    """
    expected = preconditions.expected_versions(if_match)

    def attempt(now: Caller, conditions: Conditions, reader: apsw.Connection) -> _Attempt:
        found = to_delete(node, now, conditions, reader, type_, condition, URL)
        if not found:
            return _Attempt(conditions, (nothing_found(node, now, type_, condition, "d", "delete"),), ())
        together = frozenset(f"{type_}/{row.id}" for row in found)
        return _stored(conditions, *(preparing.prepare_delete(
            node, now, reader, type_, row.id, journal.current(reader, type_, row.id), expected,
            links=Links(deleted=together)) for row in found))
    return await _carried_out(node, caller, "d", "delete", attempt)


def to_delete(node: Node, caller: Caller, conditions: Conditions, connection: apsw.Connection, type_: str, text: str,
              expression: str) -> list[VersionRow]:
    """What a conditional delete takes away. Raises Forbidden, PreconditionFailed, TooCostly."""
    node.gate.require_scope(caller, type_, "d")
    if node.settings.conditional_delete == "multiple":
        return conditions.every(node, connection, type_, text, expression)
    found = conditions.one(node, connection, type_, text, expression)
    return [] if found is None else [found]


def nothing_found(node: Node, caller: Caller, type_: str, text: str, interaction: str, name: str) -> Prepared:
    """The audit of a condition nothing met, as durable as the write would have been."""
    return Prepared(None, None, node.gate.entries(caller, interaction, name, None, what=(type_,), patients=(),
                                                  outcome="4", query=text))


def _stored(conditions: Conditions, *prepared: Prepared) -> _Attempt:
    return _Attempt(conditions, prepared, tuple(one.written for one in prepared if one.written is not None))


async def _carried_out(node: Node, caller: Caller, interaction: str, name: str, prepare: Callable[
        [Caller, Conditions, apsw.Connection], _Attempt]) -> tuple[Written, ...]:
    """Prepare in a thread, since a condition is a search, and commit with what it rests on."""
    async def attempt(caller: Caller) -> tuple[Written, ...]:
        conditions = Conditions(caller)
        try:
            made = await carried_out(conditions)
        except Moved:
            raise
        except Refused as refused:
            await conditions.tell(node)
            raise await refusals.audited_refusal(node, conditions.caller, refused, interaction, name) from None
        except Exception:
            await conditions.tell(node)
            raise
        if isinstance(made.answer, Exception):
            raise made.answer
        return made.answer

    async def carried_out(conditions: Conditions) -> _Attempt:
        made = await asyncio.to_thread(lambda: prepare(conditions.caller, conditions, node.database.reader))
        if not made.prepared:
            await node.disclosures.join(Disclosure(conditions.caller.seq, tuple(conditions.told)))
        else:
            apart = len(made.prepared) > 1 or aside.large_version(made.prepared[0].new)
            await aside.committed(node, apart, lambda tx: _commit(node, made, tx))
        return made

    return await node.decided(caller, attempt)


def _commit(node: Node, made: _Attempt, connection: apsw.Connection) -> None:
    made.conditions.commit(node, connection)
    for one in made.prepared:
        preparing.commit_prepared(connection, one)
