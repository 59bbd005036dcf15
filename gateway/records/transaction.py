"""batch and transaction: the entries of a Bundle carried out each alone, or all or nothing.

Owns the order of a transaction's entries, the resolving of links and conditional references, and the one commit;
refuses to leave anything behind when one entry cannot be done. https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import apsw

from gateway.errors import GatewayError, InputRefused, Invalid, Issue, Moved, NotFound, TooCostly, Unprocessable
from gateway.fhir import bundle as plan
from gateway.fhir.bundle import BundleEntry
from gateway.fhir.resource import Resource, copy
from gateway.records import aside, conditional, drafting, patching, preconditions, preparing, refusals
from gateway.records.answer import Answer, response_entry, version_answer
from gateway.records.aside import Slices
from gateway.records.conditional import Conditions
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node
from gateway.records.patching import Patch, entry_patch
from gateway.records.preparing import Prepared, Written
from gateway.records.references import Links
from gateway.records.refusals import Refused
from gateway.records.versions import Draft
from gateway.store import journal
from gateway.store.journal import VersionRow

_FEW = 100
"""So many entries are looked at on the event loop."""

Door = Callable[[Caller, int, Any], Awaitable[Answer]]
"""Carries out the entry at this place, whatever it is, as the request it stands for; the caller is read anew, since
other entries may have moved the decision counter. An error is an Answer too, even that the token ended meanwhile."""


Shown = Callable[[Answer], Answer]
"""The answer of a transaction's write as the client prefers it."""


async def process(node: Node, caller: Caller, bundle: Resource, door: Door, *, shown: Shown | None = None,
                  also: Hook | None = None, check_references: bool = True) -> bytes:
    """Carry out a batch or transaction; the response Bundle's bytes. Raises what refuses the whole.

    ``shown``: without it a write's answer has no resource. ``also`` is done within the one commit of a transaction (a
    batch has none). ``check_references`` False: an import, whose records come in any order.
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
    entries = await aside.done(len(raw) > _FEW, lambda: _read(node, bundle))
    return await _transaction(node, caller, raw, entries, door, shown or _minimal, also, check_references)


async def _batch(node: Node, caller: Caller, raw: Sequence[Any], door: Door) -> bytes:
    answers, slices = [], Slices()
    for place, entry in enumerate(raw):
        answers.append(response_entry(await door(caller, place, entry)))
        await slices.turn()
    return _response(b"batch-response", answers)


def _read(node: Node, bundle: Resource) -> tuple[BundleEntry, ...]:
    entries = plan.read_bundle(bundle, node.definitions.resource_types, node.settings.base_url)
    plan.check_distinct(entries)
    return entries


async def _transaction(node: Node, caller: Caller, raw: Sequence[Any], entries: Sequence[BundleEntry], door: Door,
                       shown: Shown, also: Hook | None, check_references: bool) -> bytes:
    async def attempt(caller: Caller) -> dict[int, Written | None]:
        plan_ = _Plan(caller, entries)
        try:
            await asyncio.to_thread(_planned, node, plan_)
            links = plan_.links(checked=check_references)
            return await asyncio.to_thread(_carry_out, node, plan_, links, also)
        except Moved:
            raise
        except _EntryRefused as refused:
            await plan_.conditions.tell(node)
            interaction, name = _ASKED[refused.entry.method]
            answer = await refusals.audited_refusal(node, caller, refused.refused, interaction, name)
            raise _at(refused.entry, answer) from None
        except Refused as refused:  # by the rules of a type, once everything stood together
            await plan_.conditions.tell(node)
            raise await refusals.audited_refusal(node, caller, refused, "u", "transaction") from None
        except Exception:
            await plan_.conditions.tell(node)
            raise
    done = await node.decided(caller, attempt)
    answers, slices = [], Slices()
    for entry in entries:
        await slices.turn()
        written = done.get(entry.place)
        if entry.method in ("GET", "HEAD"):
            answers.append(response_entry(await door(caller, entry.place, raw[entry.place])))
        elif written is not None and not written.changed and not written.stored:
            answers.append(response_entry(shown(await _found_again(caller, entry.place, written, node, door))))
        else:
            answers.append(response_entry(shown(_written(node, written))))
    return _response(b"transaction-response", answers)


_ASKED = {"POST": ("c", "create"), "PUT": ("u", "update"), "PATCH": ("u", "patch"), "DELETE": ("d", "delete")}


def _minimal(answer: Answer) -> Answer:
    return replace(answer, body=b"")


async def _found_again(caller: Caller, place: int, written: Written, node: Node, door: Door) -> Answer:
    """The answer of a create that found its resource: with the resource where it may be read."""
    answer = _written(node, written)
    url = f"{written.type}/{written.id}/_history/{written.vid}"
    reading = await door(caller, place, {"request": {"method": "GET", "url": url}})
    return replace(answer, body=reading.body) if reading.status == 200 else answer


class _Plan:
    """One attempt at a transaction: ids, linked copies of the resources, and the conditions they rest on."""

    def __init__(self, caller: Caller, entries: Sequence[BundleEntry]) -> None:
        self.caller = caller
        self.entries = entries
        self.ids: dict[int, str] = {}
        self.existing: dict[int, VersionRow] = {}
        self.absent: set[int] = set()
        self.several: dict[int, list[VersionRow]] = {}
        self.resources: dict[int, Resource] = {}
        self.patches: dict[int, Patch] = {}
        self.conditions = Conditions(caller)

    def links(self, *, checked: bool) -> Links:
        """What this transaction writes and takes away."""
        deleted = {f"{entry.type}/{id_}" for entry in self.entries if entry.method == "DELETE"
                   for id_ in (self.ids.get(entry.place), *(row.id for row in self.several.get(entry.place, ())))}
        written = {f"{entry.type}/{self.ids[entry.place]}" for entry in self.entries
                   if entry.method in ("POST", "PUT", "PATCH") and entry.place not in self.existing}
        return Links(checked=checked, written=frozenset(written), deleted=frozenset(deleted))


def _planned(node: Node, plan_: _Plan) -> None:
    _identify(node, plan_)
    plan.check_distinct([entry for entry in plan_.entries if entry.place not in plan_.existing], plan_.ids)
    _link(node, plan_)


def _identify(node: Node, plan_: _Plan) -> None:
    """The logical id of every written entry; a condition may find that its resource is there already.

    Raises Invalid when two entries would each create under one condition: their identities overlap.
    """
    new: set[tuple[str, str]] = set()
    for entry in plan_.entries:
        if entry.method == "POST" and entry.if_none_exist is None:
            plan_.ids[entry.place] = str(uuid.uuid4())
        elif entry.method == "POST" or (entry.id is None and entry.method == "PUT"):
            text = entry.query or str(entry.if_none_exist).lstrip("?")
            if not _found(node, plan_, entry, text):
                if (entry.type, text) in new:
                    raise Invalid(Issue("error", "duplicate", "another entry has the same condition", entry.expression))
                new.add((entry.type, text))
        elif entry.id is not None:
            plan_.ids[entry.place] = entry.id
        elif entry.method == "PATCH":
            _found(node, plan_, entry, entry.query)
        elif entry.method == "DELETE":
            plan_.several[entry.place] = conditional.to_delete(
                node, plan_.caller, plan_.conditions, node.database.reader, entry.type, entry.query,
                f"{entry.expression}.request.url")


def _found(node: Node, plan_: _Plan, entry: BundleEntry, text: str) -> bool:
    """Whether the entry's condition has its one match. Raises NotFound for a patch of nothing."""
    name = "ifNoneExist" if entry.method == "POST" else "url"
    node.gate.require_scope(plan_.caller, entry.type, "c" if entry.method == "POST" else "u")
    row = plan_.conditions.one(node, node.database.reader, entry.type, text, f"{entry.expression}.request.{name}")
    if entry.method == "PUT":
        plan_.ids[entry.place] = conditional.chosen_id(entry.resource or {}, row, f"{entry.expression}.resource.id")
        if row is None:
            plan_.absent.add(entry.place)
    elif row is not None:
        plan_.ids[entry.place] = row.id
        if entry.method == "POST":
            plan_.existing[entry.place] = row
    elif entry.method == "PATCH":
        raise _at(entry, NotFound(f"no {entry.type} meets the condition"))
    else:
        plan_.ids[entry.place] = str(uuid.uuid4())
    return row is not None


def _link(node: Node, plan_: _Plan) -> None:
    """Every entry's resource with its links resolved, validated. Raises Invalid naming the places."""
    targets = plan.link_targets(plan_.entries, plan_.ids)
    # What a patch leaves alone was stored: there a relative reference means this server's own.
    named = {link: target for link, target in targets.items() if ":" in link}
    issues: list[Issue] = []
    for entry in plan_.entries:
        if entry.resource is None:
            continue
        at = f"{entry.expression}.resource"
        try:
            if entry.method == "PATCH":
                plan_.patches[entry.place] = Patch(entry_patch(entry.resource, entry.expression),
                                                   partial(_resolve, node, plan_, targets=named, at=at))
                continue
            resource = plan_.resources[entry.place] = copy(entry.resource)
            _resolve(node, plan_, resource, targets, at)
            drafting.validated(node, resource, entry.type, entry.expression)
        except (Invalid, Unprocessable) as error:
            issues.extend(error.issues)
    if issues:
        raise Invalid(issues)


def _resolve(node: Node, plan_: _Plan, resource: Resource, targets: Mapping[str, str], at: str) -> None:
    """Links to entries and conditional references become ids, in place. Raises Unprocessable, PreconditionFailed."""
    plan.rewrite_links(resource, targets, at)
    for path, reference, type_, text in plan.conditional_references(resource, at):
        row = plan_.conditions.one(node, node.database.reader, type_, text, path)
        if row is None:
            raise Unprocessable(f"the conditional reference to {type_} has no match", code="not-found", expression=path)
        reference["reference"] = f"{type_}/{row.id}"


class _EntryRefused(Exception):  # control flow, as Refused
    def __init__(self, entry: BundleEntry, refused: Refused) -> None:
        self.entry = entry
        self.refused = refused


def _carry_out(node: Node, plan_: _Plan, links: Links, also: Hook | None) -> dict[int, Written | None]:
    """Decide, seal and commit everything in one transaction; runs in a thread."""
    connection = node.database.reader
    drafts = {place: drafting.draft(node, plan_.caller, resource, plan_.ids[place])
              for place, resource in plan_.resources.items() if place not in plan_.existing}
    node.versions.prepare_keys(drafts.values())
    done: dict[int, Written | None] = {}
    prepared: list[Prepared] = []
    for entry in plan.processing_order(plan_.entries):
        if entry.method in ("GET", "HEAD"):
            continue
        try:
            found = _prepared(node, plan_, connection, entry, drafts, links)
        except Refused as refused:
            raise _EntryRefused(entry, refused) from None
        except GatewayError as error:
            raise _at(entry, error) from error
        if isinstance(found, Written):
            done[entry.place] = found
        else:
            prepared += found
            done[entry.place] = found[-1].written

    def work(tx: apsw.Connection) -> None:
        plan_.conditions.commit(node, tx)
        for one in prepared:
            preparing.commit_prepared(tx, replace(one, hook=None))
        for one in prepared:  # what follows from a write looks at all that was written: order says nothing
            if one.hook is not None:
                one.hook(tx)
        if also is not None:
            also(tx)

    node.database.transact(work)
    return done


def _prepared(node: Node, plan_: _Plan, connection: apsw.Connection, entry: BundleEntry,
              drafts: dict[int, Draft], links: Links) -> list[Prepared] | Written:
    existing = plan_.existing.get(entry.place)
    if existing is not None:
        return Written(existing.type, existing.id, existing.vid, existing.updated_ms, b"", False, False)
    expected = preconditions.expected_versions(entry.if_match)
    if entry.place in plan_.several:
        rows = plan_.several[entry.place]
        if not rows:
            return [conditional.nothing_found(node, plan_.caller, entry.type, entry.query, "d", "delete")]
        return [preparing.prepare_delete(node, plan_.caller, connection, entry.type, row.id,
                                         journal.current(connection, entry.type, row.id), expected, links=links)
                for row in rows]
    id_ = plan_.ids[entry.place]
    if entry.place in plan_.absent:
        return [conditional.prepare_absent(node, plan_.caller, connection, plan_.resources[entry.place], id_, expected,
                                           links=links)]
    if entry.method == "POST":
        return [preparing.prepare_create(node, plan_.caller, connection, drafts[entry.place], id_, links=links)]
    if entry.method == "PATCH":
        return [patching.prepare(node, plan_.caller, connection, entry.type, id_, plan_.patches[entry.place], expected,
                                 links=links)]
    row = journal.current(connection, entry.type, id_)
    if entry.method == "DELETE":
        return [preparing.prepare_delete(node, plan_.caller, connection, entry.type, id_, row, expected, links=links)]
    return [preparing.prepare_update(node, plan_.caller, connection, drafts[entry.place], id_, row, expected,
                                     only_new=entry.if_none_match is not None, links=links)]


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


def _written(node: Node, written: Written | None) -> Answer:
    if written is None:
        return Answer(204)
    if not written.stored and written.changed:
        return Answer(204, headers={"ETag": f'W/"{written.vid}"'})
    location = f"{node.settings.base_url}/{written.type}/{written.id}/_history/{written.vid}"
    return version_answer(201 if written.created else 200, written.stored, written.vid, written.updated_ms,
                          location=location)


def _response(kind: bytes, answers: Sequence[bytes]) -> bytes:
    entries = b',"entry":[%s]' % b",".join(answers) if answers else b""
    return b'{"resourceType":"Bundle","type":"%s"%s}' % (kind, entries)

