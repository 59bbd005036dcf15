"""Bulk Data ``$export``: which versions leave, found under one snapshot, and decided again when they do.

Owns the walk over types, the files and their delivery; refuses to copy: a file is a list of versions, whose blocks stay
sealed under their patients' keys until the lines are sent, so that a revocation or an erasure after the export takes
its lines away. https://hl7.org/fhir/uv/bulkdata/export.html
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import apsw
import orjson

from gateway.access.decision import Decision, Deny
from gateway.access.grant import Grant
from gateway.audit import Disclosure, SealedRow
from gateway.errors import Forbidden, Gone, NotFound
from gateway.fhir.query import Query
from gateway.fhir.resource import format_instant, parse, reference_target
from gateway.records.gate import Caller
from gateway.records.jobs import Outcome, Task
from gateway.records.node import Node
from gateway.store import exported, jobs, journal
from gateway.store.index import Cursor, SqlBound
from gateway.store.jobs import JobRow, Part
from gateway.store.journal import VersionRow

Level = Literal["system", "patient", "group"]
Filters = Sequence[Sequence[tuple[str, str]]]
Elements = Callable[[bytes], bytes]
"""Stored bytes to those that leave."""

FILE_LINES: Final = 10_000
OVERLAP_MS: Final = 5_000
"""``transactionTime`` lies before the moment of the export: a write stamped just before it may be committed just after,
and an export ``_since`` that time finds it (SHALL), along with a few known already."""
_SLICE: Final = 250
_CHUNK: Final = 100
_RECOUNT_MAX: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An export as asked for. ``patients``: logical ids it is restricted to; ``filters``: of a type, any of them;
    ``holder``: whom its counts were made for."""

    url: str
    level: Level
    time_ms: int
    types: tuple[str, ...]
    group: str | None = None
    since_ms: int | None = None
    patients: tuple[str, ...] | None = None
    filters: Mapping[str, Filters]
    elements: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    holder: str = ""

    def json(self) -> dict[str, Any]:  # Any: JSON
        """What a job keeps."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Request:  # Any: JSON
        """What a job kept."""
        return cls(**{**kept, "types": tuple(kept["types"]), "elements": tuple(kept["elements"]),
                      "ignored": tuple(kept["ignored"]),
                      "patients": None if kept["patients"] is None else tuple(kept["patients"]),
                      "filters": {type_: [[(name, value) for name, value in pairs] for pairs in filters]
                                  for type_, filters in kept["filters"].items()}})


def exportable(node: Node, grant: Grant, types: Sequence[str] | None) -> tuple[str, ...]:
    """The types a token may export, of ``types`` or of all. Raises Forbidden.

    Export is for systems: a patient's or a person's token has other doors.
    """
    if grant.user is not None or not any(scope.context == "system" for scope in grant.scopes.resources):
        raise Forbidden("$export is for system/ scopes alone")
    for type_ in types or ():
        if not _in_scope(grant, type_):
            raise Forbidden(f"exporting {type_} is outside the token's scopes")
    found = tuple(types) if types else tuple(
        type_ for type_ in sorted(node.definitions.resource_types) if _in_scope(grant, type_))
    if not found:
        raise Forbidden("no type is within the token's scopes to read and to search")
    return found


def _in_scope(grant: Grant, type_: str) -> bool:
    return all(grant.scopes.allows(type_, letter, "system") for letter in "rs")


def filter_query(node: Node, type_: str, pairs: Sequence[tuple[str, str]]) -> Query:
    """A ``_typeFilter`` as a query. Raises BadSearch."""
    return node.query(type_, pairs, strict=True)


async def carry_out(task: Task) -> Outcome:
    """Find every version that may leave, type by type; goes on at the stored cursor."""
    node = task.node
    request = Request.of(task.request)
    at = task.cursor
    caller = task.authority(task.row.token, outlives=True)
    if not at:
        at = {"snapshot": journal.head_seq(node.database.reader), "seq": caller.seq, "type": 0, "after": 0,
              "deleted": False}
        if request.ignored:
            body = b"\n".join(operation_outcomes(request.ignored)) + b"\n"
            await task.advance("starting", at, lambda tx: jobs.add_part(
                tx, task.row.pk, "error", "OperationOutcome", len(request.ignored), body))
    whose = await asyncio.to_thread(_whose, node, caller, request)
    for number in range(at["type"], len(request.types)):
        type_ = request.types[number]
        queries = [node.query(type_, [*pairs, *_since(request)], strict=True)
                   for pairs in request.filters.get(type_, ((),))]
        for deleted in ([True] if at["deleted"] else [False, True] if request.since_ms is not None else [False]):
            walk = _Walk(task, request, type_, queries, whose, at["snapshot"], deleted)
            await walk.run(number, at)
            at = {**at, "after": 0, "deleted": True}
        at = {**at, "type": number + 1, "after": 0, "deleted": False}
    return Outcome("done", b"{}", at["seq"])


def operation_outcomes(texts: Sequence[str]) -> list[bytes]:
    """Each as the line of an error file."""
    return [orjson.dumps({"resourceType": "OperationOutcome", "issue": [
        {"severity": "warning", "code": "not-supported", "diagnostics": text}]}) for text in texts]


def _since(request: Request) -> list[tuple[str, str]]:
    return [] if request.since_ms is None else [("_lastUpdated", f"ge{format_instant(request.since_ms)}")]


def _whose(node: Node, caller: Caller, request: Request) -> SqlBound:
    """Whose records, as a condition on versions. Raises NotFound where the Group may not be read any more."""
    if request.level == "system":
        return exported.about_anyone()
    connection = node.database.reader
    ids: set[str] | None = None if request.patients is None else set(request.patients)
    if request.group is not None:
        members = group_members(node, caller, connection, request.group)
        ids = members if ids is None else ids & members
    if ids is None:
        return exported.about_a_patient()
    pks = [journal.patient_pk(connection, id_) for id_ in ids]
    return exported.about([pk for pk in pks if pk is not None])


def group_members(node: Node, caller: Caller, connection: apsw.Connection, group: str) -> set[str]:
    """Logical ids of the Group's patients now in it. Raises NotFound, Gone."""
    row = journal.current(connection, "Group", group)
    if row is None or isinstance(node.gate.decide_version(connection, caller, "r", row), Deny):
        raise NotFound(f"Group/{group} is not known")
    if row.deleted:
        raise Gone(f"Group/{group} was deleted", version_id=row.vid)
    base = node.settings.base_url
    members: set[str] = set()
    for member in parse(node.versions.open(connection, row).stored).get("member", ()):
        target = reference_target(member.get("entity", {}).get("reference", ""))
        ours = target.type == "Patient" and target.base in (None, base)
        if ours and target.id and member.get("inactive") is not True:
            members.add(target.id)
    return members


class _Walk:
    """The versions of one type, or its deletions, from the cursor to the snapshot's end."""

    def __init__(self, task: Task, request: Request, type_: str, queries: Sequence[Query], whose: SqlBound,
                 snapshot: int, deleted: bool) -> None:
        self._task = task
        self._request = request
        self._type = type_
        self._queries = queries
        self._whose = whose
        self._snapshot = snapshot
        self._deleted = deleted

    async def run(self, number: int, at: Mapping[str, Any]) -> None:
        """Each slice is decided with the caller read anew: a revoked token ends it. Raises Unauthenticated."""
        task, pending = self._task, list[int]()
        after: int | None = int(at["after"])
        while after is not None:
            caller = task.authority(task.row.token, outlives=True)
            found, following = await asyncio.to_thread(self._slice, caller, after)
            pending += found
            if pending and (following is None or len(pending) >= FILE_LINES):
                kept, pending = pending, []
                await self._store(number, {**at, "type": number, "after": following or self._snapshot,
                                           "deleted": self._deleted}, kept)
            after = following

    async def _store(self, number: int, at: Mapping[str, Any], seqs: Sequence[int]) -> None:
        kind: Literal["deleted", "output"] = "deleted" if self._deleted else "output"
        await self._task.advance(
            f"type {number + 1} of {len(self._request.types)}", at, lambda tx: jobs.add_part(
                tx, self._task.row.pk, kind, self._type, len(seqs), exported.packed(seqs)))

    def _slice(self, caller: Caller, after: int) -> tuple[list[int], int | None]:
        """Seqs that may leave, and where the next slice begins (None: at the end); runs in a thread."""
        node = self._task.node
        with node.database.snapshot() as connection:
            if self._deleted:
                rows = exported.deletions(
                    connection, self._type, self._whose, since_ms=self._request.since_ms or 0, snapshot=self._snapshot,
                    after=after, limit=_SLICE)
                following = rows[-1].seq if len(rows) == _SLICE else None
            else:
                rows, following = self._matches(connection, caller, after)
            return [row.seq for row in rows if may_leave(node, caller, connection, row)], following

    def _matches(self, connection: apsw.Connection, caller: Caller, after: int) -> tuple[list[VersionRow], int | None]:
        """What any of the filters matches, each once, as far as all of them were read."""
        node = self._task.node
        bound = node.gate.bound(connection, caller, self._type)
        narrowed = SqlBound(f"({self._whose.condition}) AND ({bound.condition})",
                            (*self._whose.parameters, *bound.parameters))
        lists = [[match.row for match in node.index.search(
            connection, query, narrowed, snapshot=self._snapshot, limit=_SLICE, after=Cursor(None, after))]
            for query in self._queries]
        ends = [rows[-1].seq for rows in lists if len(rows) == _SLICE]
        end = min(ends) if ends else None
        found = {row.seq: row for rows in lists for row in rows if end is None or row.seq <= end}
        return [found[seq] for seq in sorted(found)], end


def may_leave(node: Node, caller: Caller, connection: apsw.Connection, row: VersionRow) -> bool:
    """Whether this version may be exported: found and read."""
    return not isinstance(_decision(node, caller, connection, row), Deny)


def _decision(node: Node, caller: Caller, connection: apsw.Connection, row: VersionRow) -> Decision:
    found = node.gate.decide_version(connection, caller, "s", row)
    return found if isinstance(found, Deny) else node.gate.decide_version(connection, caller, "r", row)


async def manifest(node: Node, caller: Caller, row: JobRow, request: Request, url: str) -> bytes:
    """The manifest as the caller may see it now: counts are of lines that still may leave. ``url``: of the job.

    https://hl7.org/fhir/uv/bulkdata/export.html#response---complete-status
    """
    async def attempt(caller: Caller) -> bytes:
        parts = jobs.parts(node.database.reader, row.pk)
        counts: Mapping[int, int | None] = {part.place: part.count for part in parts}
        if row.decision_seq != caller.seq or request.holder != caller.holder:
            counts = await asyncio.to_thread(_recounted, node, caller, row, parts)
        entries = node.gate.entries(caller, "s", "export", None, what=(f"job/{row.id}",), patients=(), outcome="0")
        await node.disclosures.join(Disclosure(caller.seq, entries))
        shown: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for part in parts:
            count = counts[part.place]
            if count != 0:
                shown[part.kind].append({"type": "Bundle" if part.kind == "deleted" else part.type,
                                         "url": f"{url}/_file/{part.place}",
                                         **({} if count is None else {"count": count})})
        return orjson.dumps({
            "transactionTime": format_instant(request.time_ms), "request": request.url, "requiresAccessToken": True,
            "output": shown["output"], "error": shown["error"],
            **({"deleted": shown["deleted"]} if request.since_ms is not None else {})})
    return await node.decided(caller, attempt)


def _recounted(node: Node, caller: Caller, row: JobRow, parts: Sequence[Part]) -> dict[int, int | None]:
    """How many lines of each part may leave now; None (it is not said) beyond so many; runs in a thread."""
    connection = node.database.reader
    counts: dict[int, int | None] = {}
    left = _RECOUNT_MAX
    for part in parts:
        body = jobs.part_body(connection, row.pk, part.place) if part.kind != "error" else None
        left -= part.count
        if body is None:
            counts[part.place] = part.count
        elif left < 0:
            counts[part.place] = None if _in_scope(caller.grant, part.type) else 0
        else:
            counts[part.place] = sum(may_leave(node, caller, connection, version)
                                     for version in exported.versions(connection, exported.unpacked(body)))
    return counts


async def deliver(node: Node, caller: Caller, row: JobRow, place: int, elements: Elements | None) -> AsyncIterator[
        bytes]:
    """The lines of one file, chunk by chunk; its audit rows are durable before the first leaves.

    Raises NotFound where there is no such file.
    """
    part = next((part for part in jobs.parts(node.database.reader, row.pk)
                 if part.place == place and part.kind != "input"), None)
    body = None if part is None else jobs.part_body(node.database.reader, row.pk, place)
    if part is None or body is None:
        raise NotFound("there is no such file")
    if part.kind == "error":
        return _one(body)
    seqs = exported.unpacked(body)

    async def attempt(caller: Caller) -> tuple[Caller, list[VersionRow]]:
        rows, entries = await asyncio.to_thread(_disclosed, node, caller, seqs)
        await node.disclosures.join(Disclosure(caller.seq, entries))
        return caller, rows

    decided, rows = await node.decided(caller, attempt)
    return _lines(node, decided, rows, elements)


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _disclosed(node: Node, caller: Caller, seqs: Sequence[int]) -> tuple[list[VersionRow], tuple[SealedRow, ...]]:
    """What of a file may leave, and an audit row for each patient concerned, refused ones too; runs in a thread."""
    with node.database.snapshot() as connection:
        rows: list[VersionRow] = []
        groups: dict[tuple[tuple[str, ...], Decision], list[str]] = defaultdict(list)
        erased: dict[str, bool] = {}
        for row in exported.versions(connection, seqs):
            patients = node.gate.patients(connection, row)
            if any(_erased(node, erased, patient) for patient in patients):
                continue  # its block opens no more, and neither would an audit row about it
            decision = _decision(node, caller, connection, row)
            groups[patients, decision].append(f"{row.type}/{row.id}/_history/{row.vid}")
            if not isinstance(decision, Deny):
                rows.append(row)
        entries: list[SealedRow] = []
        for (patients, decision), what in groups.items():
            entries.extend(node.gate.entries(caller, "r", "export", decision, what=what, patients=patients))
        if not groups:
            entries.extend(node.gate.entries(caller, "r", "export", None, what=(), patients=(), outcome="0"))
    return rows, tuple(entries)


def _erased(node: Node, known: dict[str, bool], patient: str) -> bool:
    if patient not in known:
        known[patient] = node.ring.is_destroyed(patient.removeprefix("Patient/"))
    return known[patient]


async def _lines(node: Node, caller: Caller, rows: Sequence[VersionRow], elements: Elements | None) -> AsyncIterator[
        bytes]:
    """NDJSON. A revocation meanwhile takes the lines not sent yet; of the token itself, it breaks the answer off."""
    decided = caller.seq
    for start in range(0, len(rows), _CHUNK):
        chunk, caller = await asyncio.to_thread(_chunk, node, caller, decided, rows[start:start + _CHUNK], elements)
        if chunk:
            yield chunk


def _chunk(node: Node, caller: Caller, decided: int, rows: Sequence[VersionRow], elements: Elements | None) -> tuple[
        bytes, Caller]:
    """Opened first and asked last, so that nothing lies between the answer and the sending; runs in a thread."""
    connection = node.database.reader
    opened = _opened(node, connection, [row for row in rows if not row.deleted])
    if decided != journal.decision_seq(connection):
        caller = caller.again()
        rows = [row for row in rows if may_leave(node, caller, connection, row)]
    lines = []
    for row in rows:
        if row.deleted:
            lines.append(deletion(row))
        elif row.seq in opened:
            stored = opened[row.seq]
            lines.append(stored if elements is None else elements(stored))
    return b"".join(line + b"\n" for line in lines), caller


def _opened(node: Node, connection: apsw.Connection, rows: Sequence[VersionRow]) -> dict[int, bytes]:
    """Stored bytes by seq; without those whose patient's key was erased since."""
    return {seq: one.stored for seq, one in (node.versions.open_kept(connection, rows) or {}).items()}


def deletion(row: VersionRow) -> bytes:
    """A deleted resource as a line: a transaction that deletes it."""
    return orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [
        {"request": {"method": "DELETE", "url": f"{row.type}/{row.id}"}}]})
