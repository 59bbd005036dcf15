"""batch and transaction: the entries of a Bundle carried out each alone, or all or nothing.

Owns the order of a transaction's entries, the resolving of links and conditional references, and the one commit;
refuses to leave anything behind when one entry cannot be done. https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import apsw
import orjson

from gateway import audit
from gateway.audit import Disclosure, SealedRow
from gateway.errors import (
    BadSearch,
    GatewayError,
    InputRefused,
    Invalid,
    Issue,
    Malformed,
    Moved,
    PreconditionFailed,
    TooCostly,
    Unprocessable,
)
from gateway.fhir import bundle as plan
from gateway.fhir.bundle import BundleEntry
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource, copy
from gateway.records import write
from gateway.records.answer import Answer, version_answer
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node, still
from gateway.records.search import matching
from gateway.records.versions import Draft
from gateway.records.write import Prepared, Refused, Written
from gateway.store import journal
from gateway.store.journal import VersionRow

Door = Callable[[Caller, int, Any], Awaitable[Answer]]
"""Carries out the entry at this place, whatever it is, as the request it stands for; the caller is read anew, since
other entries may have moved the decision counter. An error is an Answer too, even that the token ended meanwhile."""


async def process(node: Node, caller: Caller, bundle: Resource, door: Door, *, also: Hook | None = None) -> bytes:
    """Carry out a batch or transaction; the response Bundle's bytes. Raises what refuses the whole.

    ``also`` is done within the one commit of a transaction (a batch has none).
    """
    kind = bundle.get("type")
    if kind not in ("batch", "transaction"):
        raise Invalid(Issue("error", "value", "a Bundle sent to the base is a batch or a transaction", "Bundle.type"))
    raw = bundle.get("entry") or []
    if len(raw) > node.settings.max_bundle_entries:
        raise TooCostly(f"a bundle holds at most {node.settings.max_bundle_entries} entries", code="too-costly",
                        expression="Bundle.entry")
    if kind == "batch":
        return await _batch(node, caller, raw, door)
    entries = plan.read_bundle(bundle, node.definitions.resource_types, node.settings.base_url)
    plan.check_distinct(entries)
    return await _transaction(node, caller, raw, entries, door, also)


async def create_unless(node: Node, caller: Caller, type_: str, resource: Resource, condition: str) -> Written:
    """Conditional create: store ``resource`` unless one resource matches ``condition``, a query string.

    Then that one is the answer, unchanged and without its bytes. Raises PreconditionFailed when several match.
    https://hl7.org/fhir/R4/http.html#ccreate
    """
    write.validated(node, resource, type_)

    async def attempt(caller: Caller) -> Written:
        node.gate.require_scope(caller, type_, "c")
        plan_ = _Plan(caller, ())
        row = plan_.one(node, node.database.reader, type_, condition, "http.If-None-Exist")
        if row is not None:
            await node.commits.join(Disclosure(caller.seq, tuple(plan_.told)))
            return Written(row.type, row.id, row.vid, row.updated_ms, b"", False, False)
        id_ = str(uuid.uuid4())
        made = write.draft(node, caller, resource, id_)
        try:
            prepared = write.prepare_create(node, caller, node.database.reader, made, id_)
        except Refused as refused:
            raise await write.audited_refusal(node, caller, refused, "c", "create") from None
        assert prepared.written is not None  # noqa: S101  # a create always writes

        def work(tx: apsw.Connection) -> None:
            still(tx, caller)
            plan_.check_conditions(node, tx)
            write.commit_prepared(tx, prepared)

        await node.commits.commit(work)
        return prepared.written
    return await node.decided(caller, attempt)


async def _batch(node: Node, caller: Caller, raw: Sequence[Any], door: Door) -> bytes:
    return _response(b"batch-response", [_answered(await door(caller, place, entry))
                                         for place, entry in enumerate(raw)])


async def _transaction(node: Node, caller: Caller, raw: Sequence[Any], entries: Sequence[BundleEntry], door: Door,
                       also: Hook | None) -> bytes:
    async def attempt(caller: Caller) -> dict[int, Written | None]:
        plan_ = _Plan(caller, entries)
        _identify(node, plan_)
        await _link(node, plan_)
        try:
            return await asyncio.to_thread(_carry_out, node, plan_, also)
        except _EntryRefused as refused:
            answer = await write.audited_refusal(node, caller, refused.refused, "c", "transaction")
            raise _at(refused.entry, answer) from None
    done = await node.decided(caller, attempt)
    answers = [_answered(await door(caller, entry.place, raw[entry.place]))
               if entry.method in ("GET", "HEAD") else _written(node, done[entry.place]) for entry in entries]
    return _response(b"transaction-response", answers)


class _Plan:
    """One attempt at a transaction: ids, linked copies of the resources, and the conditions they rest on."""

    def __init__(self, caller: Caller, entries: Sequence[BundleEntry]) -> None:
        self.caller = caller
        self.entries = entries
        self.ids: dict[int, str] = {}
        self.existing: dict[int, VersionRow] = {}
        self.resources: dict[int, Resource] = {}
        self.conditions: list[tuple[Query, str | None]] = []
        self.told: list[SealedRow] = []
        self._answers: dict[tuple[str, str], VersionRow | None] = {}

    def one(self, node: Node, connection: apsw.Connection, type_: str, text: str, expression: str) -> VersionRow | None:
        """The one match of a condition, or None; remembered, to be checked again inside the commit.

        A condition that returns is asked once: every entry may name the same ward, and the commit asks each again.
        What it finds is disclosed, and audited in that commit. Raises PreconditionFailed when there are several.
        """
        if (type_, text) in self._answers:
            return self._answers[type_, text]
        pairs = parse_qsl(text, keep_blank_values=True)
        if not pairs:
            raise Malformed("a condition needs search parameters", code="invalid", expression=expression)
        try:
            query = node.query(type_, pairs, strict=True)
        except BadSearch as error:
            raise BadSearch([replace(issue, expression=expression) for issue in error.issues]) from error
        rows = matching(node, self.caller, connection, query, limit=2)
        if len(rows) > 1:
            # The condition itself may hold an identifier: it is not repeated.
            several = PreconditionFailed(f"the condition on {type_} has several matches")
            several.expression = expression
            raise several
        found = self._answers[type_, text] = rows[0] if rows else None
        if found is not None:
            self.told += node.gate.entries(
                self.caller, "s", "search-type", node.gate.decide_version(connection, self.caller, "s", found),
                what=(f"{type_}/{found.id}/_history/{found.vid}",), query=text,
                patients=node.gate.facts(connection, found).home_patients)
        self.conditions.append((query, found.id if found else None))
        return found

    def check_conditions(self, node: Node, connection: apsw.Connection) -> None:
        """Inside the commit: every condition still has the answer the plan rests on. Raises Moved."""
        for query, id_ in self.conditions:
            rows = matching(node, self.caller, connection, query, limit=2)
            if [row.id for row in rows] != ([] if id_ is None else [id_]):
                raise Moved("a condition's answer changed")


def _identify(node: Node, plan_: _Plan) -> None:
    """The logical id of every written entry; ifNoneExist may find that its resource is there already.

    Raises Invalid when two entries would each create under one condition: their identities overlap.
    """
    new: set[tuple[str, str]] = set()
    for entry in plan_.entries:
        if entry.method == "POST":
            if entry.if_none_exist:
                node.gate.require_scope(plan_.caller, entry.type, "c")
                row = plan_.one(node, node.database.reader, entry.type, entry.if_none_exist,
                                f"{entry.expression}.request.ifNoneExist")
                if row is not None:
                    plan_.ids[entry.place], plan_.existing[entry.place] = row.id, row
                    continue
                if (entry.type, entry.if_none_exist) in new:
                    raise Invalid(Issue("error", "duplicate", "another entry has the same ifNoneExist",
                                        entry.expression))
                new.add((entry.type, entry.if_none_exist))
            plan_.ids[entry.place] = str(uuid.uuid4())
        elif entry.method in ("PUT", "DELETE") and entry.id is not None:
            plan_.ids[entry.place] = entry.id


async def _link(node: Node, plan_: _Plan) -> None:
    """Every entry's resource with its links resolved, validated. Raises Invalid naming the places."""
    targets = plan.link_targets(plan_.entries, plan_.ids)
    issues: list[Issue] = []
    for entry in plan_.entries:
        if entry.resource is None:
            continue
        resource = copy(entry.resource)
        at = f"{entry.expression}.resource"
        try:
            plan.rewrite_links(resource, targets, at)
            for path, reference, type_, text in plan.conditional_references(resource, at):
                row = plan_.one(node, node.database.reader, type_, text, path)
                if row is None:
                    raise Unprocessable(f"the conditional reference to {type_} has no match", code="not-found",
                                        expression=path)
                reference["reference"] = f"{type_}/{row.id}"
            write.validated(node, resource, entry.type, entry.expression)
        except (Invalid, Unprocessable) as error:
            issues.extend(error.issues)
        plan_.resources[entry.place] = resource
        if len(plan_.resources) % 16 == 0:
            await asyncio.sleep(0)
    if issues:
        raise Invalid(issues)


class _EntryRefused(Exception):  # control flow, as Refused
    def __init__(self, entry: BundleEntry, refused: Refused) -> None:
        self.entry = entry
        self.refused = refused


def _carry_out(node: Node, plan_: _Plan, also: Hook | None) -> dict[int, Written | None]:
    """Decide, seal and commit everything in one transaction; runs in a thread."""
    connection = node.database.reader
    drafts = {place: write.draft(node, plan_.caller, resource, plan_.ids[place])
              for place, resource in plan_.resources.items() if place not in plan_.existing}
    node.versions.prepare_keys(drafts.values())
    done: dict[int, Written | None] = {}
    prepared: list[Prepared] = []
    for entry in plan.processing_order(plan_.entries):
        if entry.method in ("GET", "HEAD"):
            continue
        try:
            found = _prepared(node, plan_, connection, entry, drafts)
        except Refused as refused:
            raise _EntryRefused(entry, refused) from None
        except GatewayError as error:
            raise _at(entry, error) from error
        if isinstance(found, Prepared):
            prepared.append(found)
        done[entry.place] = found.written if isinstance(found, Prepared) else found

    def work(tx: apsw.Connection) -> None:
        still(tx, plan_.caller)
        plan_.check_conditions(node, tx)
        audit.append(tx, tuple(plan_.told))
        for one in prepared:
            write.commit_prepared(tx, one)
        if also is not None:
            also(tx)

    node.database.transact(work)
    return done


def _prepared(node: Node, plan_: _Plan, connection: apsw.Connection, entry: BundleEntry,
              drafts: dict[int, Draft]) -> Prepared | Written:
    id_ = plan_.ids[entry.place]
    existing = plan_.existing.get(entry.place)
    if existing is not None:
        return Written(existing.type, existing.id, existing.vid, existing.updated_ms, b"", False, False)
    if entry.method == "POST":
        return write.prepare_create(node, plan_.caller, connection, drafts[entry.place], id_)
    row = journal.current(connection, entry.type, id_)
    expected = write.expected_versions(entry.if_match)
    if entry.method == "DELETE":
        return write.prepare_delete(node, plan_.caller, connection, entry.type, id_, row, expected)
    return write.prepare_update(node, plan_.caller, connection, drafts[entry.place], id_, row, expected,
                                only_new=entry.if_none_match is not None)


def _at(entry: BundleEntry, error: BaseException) -> GatewayError:
    """The error that refuses the whole transaction, saying which entry it was."""
    if isinstance(error, InputRefused):
        return type(error)([replace(issue, expression=_place(entry, issue.expression)) for issue in error.issues])
    if isinstance(error, GatewayError):
        error.args = (f"{entry.expression}: {error}",)
        error.expression = entry.expression
        return error
    raise error


def _place(entry: BundleEntry, expression: str | None) -> str:
    """A place within the entry's resource as a place of the bundle; the entry for any other."""
    head, dot, tail = (expression or "").partition(".")
    return f"{entry.expression}.resource{dot}{tail}" if head == entry.type else entry.expression


def _written(node: Node, written: Written | None) -> bytes:
    if written is None:
        return _answered(Answer(204))
    if not written.stored and written.changed:
        return _answered(Answer(204, headers={"ETag": f'W/"{written.vid}"'}))
    location = f"{node.settings.base_url}/{written.type}/{written.id}/_history/{written.vid}"
    return _answered(version_answer(201 if written.created else 200, b"", written.vid, written.updated_ms,
                                    location=location))


def _answered(answer: Answer) -> bytes:
    """One entry of the response Bundle."""
    response: dict[str, object] = {"status": f"{answer.status} {HTTPStatus(answer.status).phrase}"}
    for name, header in (("location", "Location"), ("etag", "ETag")):
        if header in answer.headers:
            response[name] = answer.headers[header]
    if answer.instant is not None:
        response["lastModified"] = answer.instant
    entry: dict[str, object] = {"response": response}
    if answer.body and answer.status < 300:
        entry = {"resource": orjson.Fragment(answer.body), **entry}
    elif answer.body:
        response["outcome"] = orjson.Fragment(answer.body)
    return orjson.dumps(entry)


def _response(kind: bytes, answers: Sequence[bytes]) -> bytes:
    entries = b',"entry":[%s]' % b",".join(answers) if answers else b""
    return b'{"resourceType":"Bundle","type":"%s"%s}' % (kind, entries)

