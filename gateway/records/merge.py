"""``Patient/$merge``: two records of one person made one, with the source's records moved, in one commit.

Owns what the two Patients become and which records move; refuses a merge that would open what a patient forbade, and
one that moves less than everything. Moving needs the authority to: ``README.md``, Decisions.
https://hl7.org/fhir/patient-operation-merge.html
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import apsw
import orjson

from gateway.errors import Conflict, Issue, Moved, TooCostly, Unprocessable
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.query import Criterion, Query
from gateway.fhir.resource import Resource, copy, parse, reference_target, references, serialise
from gateway.records import drafting, preparing, read, refusals
from gateway.records.gate import Caller
from gateway.records.node import Node, still
from gateway.records.preparing import Prepared
from gateway.records.refusals import Refused
from gateway.store import journal, provisions
from gateway.store.index import SqlBound
from gateway.store.journal import VersionRow

MOST = 2_000
"""Most records one merge moves."""
_STAYING = frozenset({"Patient", "AuditEvent", "Consent"})
"""What is no record to move: the two themselves, what happened, and what the source signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What is asked: logical ids; ``result``: what the target becomes, where that is not worked out here."""

    source: str
    target: str
    result: Resource | None
    preview: bool
    sent: Resource


async def merge(node: Node, caller: Caller, asked: Merge) -> bytes:
    """A Parameters resource with the outcome and the target as it is (``preview``: would be) now.

    Raises NotFound, Gone, Forbidden, Conflict, Unprocessable, TooCostly.
    """
    if asked.source == asked.target:
        raise Unprocessable("a patient is not merged with itself", code="invalid", expression="http.target-patient")
    for type_ in ("Patient", *sorted(_movable(node))):
        node.gate.require_scope(caller, type_, "u")  # whatever there is to move: the refusal tells nothing of it
    source = parse((await read.read(node, caller, "Patient", asked.source)).stored)
    target = parse((await read.read(node, caller.again(), "Patient", asked.target)).stored)
    replaced, result = merged(source, target, asked.result)
    for one in (result, replaced):
        await asyncio.to_thread(drafting.validated, node, one, "Patient")

    async def attempt(caller: Caller) -> tuple[int, bytes]:
        try:
            return await asyncio.to_thread(_carry_out, node, caller, asked, source, target, replaced, result)
        except Refused as refused:
            raise await refusals.audited_refusal(node, caller, refused, "u", "merge") from None

    count, stored = await node.decided(caller.again(), attempt)
    text = f"{count} records {'would be' if asked.preview else 'were'} moved"
    outcome = orjson.loads(operation_outcome((Issue("information", "informational", text),)))
    return serialise({"resourceType": "Parameters", "parameter": [
        {"name": "input", "resource": asked.sent}, {"name": "outcome", "resource": outcome},
        {"name": "result", "resource": parse(stored)}]})


def merged(source: Resource, target: Resource, given: Resource | None) -> tuple[Resource, Resource]:
    """The source and the target after the merge. Raises Unprocessable for one merged before, or an unfit ``given``."""
    for patient, side in ((source, "source"), (target, "target")):
        if any(link.get("type") == "replaced-by" for link in patient.get("link", ())):
            raise Unprocessable(f"the {side} was merged into another patient", code="business-rule",
                                expression=f"http.{side}-patient")
    ours, theirs = f"Patient/{source['id']}", f"Patient/{target['id']}"
    replaces = {"other": {"reference": ours}, "type": "replaces"}
    replaced = {**source, "active": False,
                "link": [*source.get("link", ()), {"other": {"reference": theirs}, "type": "replaced-by"}]}
    if given is not None:
        if given.get("id") != target["id"] or replaces not in [
                {"other": {"reference": link.get("other", {}).get("reference")}, "type": link.get("type")}
                for link in given.get("link", ())]:
            raise Unprocessable("result-patient is the target, with its link to the source it replaces",
                                code="business-rule", expression="http.result-patient")
        return replaced, given
    known = {(one.get("system"), one.get("value")) for one in target.get("identifier", ())}
    added = [{**one, "use": "old"} for one in source.get("identifier", ())
             if (one.get("system"), one.get("value")) not in known]
    identifiers = [*target.get("identifier", ()), *added]
    return replaced, {**target, **({"identifier": identifiers} if identifiers else {}),
                      "link": [*target.get("link", ()), replaces]}


def _carry_out(node: Node, caller: Caller, asked: Merge, source: Resource, target: Resource, replaced: Resource,
               result: Resource) -> tuple[int, bytes]:
    """Decide, seal and commit all in one transaction, in a thread: how many records moved, and the target's bytes."""
    connection = node.database.reader
    if any(not row.permit for row in provisions.of_patient(connection, asked.source)):
        raise Conflict("the source forbids something that the target does not: end or repeat its Consents first")
    rows = _records(node, connection, asked.source)
    resources = [_moved(parse(opened.stored), asked, node.settings.base_url)
                 for opened in node.versions.open_many(connection, rows)]
    drafts = [drafting.draft(node, caller, one, row.id) for one, row in zip(resources, rows, strict=True)]
    pair = [drafting.draft(node, caller, one, str(one["id"])) for one in (replaced, result)]
    node.versions.prepare_keys([*drafts, *pair])
    prepared: list[Prepared] = []
    for made, row in zip(drafts, rows, strict=True):
        prepared.append(preparing.prepare_update(node, caller, connection, made, row.id, row, None))
    for made, before in zip(pair, (source, target), strict=True):
        prepared.append(preparing.prepare_update(
            node, caller, connection, made, str(before["id"]),
            journal.current(connection, "Patient", str(before["id"])), (int(before["meta"]["versionId"]),)))
    last = prepared[-1].written
    assert last is not None  # noqa: S101  # an update always gives what is now current
    if not asked.preview:
        places = [(row.type, row.id, row.vid) for row in rows]

        def work(tx: apsw.Connection) -> None:
            still(tx, caller)
            if [(row.type, row.id, row.vid) for row in _records(node, tx, asked.source)] != places:
                raise Moved("a record of the source was written meanwhile")
            for one in prepared:
                preparing.commit_prepared(tx, one)

        node.database.transact(work)
    return len(rows), last.stored


def _movable(node: Node) -> frozenset[str]:
    return frozenset(node.definitions.home_paths) - _STAYING


def _records(node: Node, connection: apsw.Connection, patient: str) -> list[VersionRow]:
    """Every current record whose home the patient is, by type and place. Raises TooCostly."""
    pk = journal.patient_pk(connection, patient)
    home = SqlBound("(v.patient=? OR (v.others>0 AND EXISTS (SELECT 1 FROM version_patient vp "
                    "WHERE vp.version=v.seq AND vp.patient=?)))", (pk, pk))
    found: list[VersionRow] = []
    for type_ in sorted(_movable(node)):
        query = _naming(node, type_, patient)
        if query is not None and pk is not None:
            found += [match.row for match in node.index.search(
                connection, query, home, snapshot=journal.head_seq(connection), limit=MOST + 1)]
        if len(found) > MOST:
            raise TooCostly(f"the source has more than {MOST} records: move them in parts first", code="too-costly")
    return found


def _naming(node: Node, type_: str, patient: str) -> Query | None:
    """Whatever of the type names the patient, by any reference a search knows."""
    found: dict[Any, None] = {}
    for code, parameter in node.definitions.search_parameters(type_).items():
        plan = node.extractor.plans.of(type_).get(code)
        if parameter.type == "reference" and plan is not None and not plan.refused and (
                not parameter.targets or "Patient" in parameter.targets):
            for criterion in node.query(type_, [(code, f"Patient/{patient}")], strict=True).criteria:
                found |= dict.fromkeys(criterion.any_of)
    return Query(type=type_, criteria=(Criterion(tuple(found)),)) if found else None


def _moved(resource: Resource, asked: Merge, base: str) -> Resource:
    """With every reference to the source leading to the target, however it was written: a version of it too."""
    found: Resource = copy(resource)
    for _, reference in references(found):
        target = reference_target(reference["reference"])
        if (target.type, target.id) == ("Patient", asked.source) and (
                target.kind == "relative" or (target.base or "").rstrip("/") == base):
            reference["reference"] = f"Patient/{asked.target}"
    return found
