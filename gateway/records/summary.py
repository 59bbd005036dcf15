"""``$summary`` and ``$document``: documents made of what the caller may see, when it is asked for.

Owns gathering a document's resources; refuses to tell what is left out from what is not there.
https://hl7.org/fhir/uv/ips/OperationDefinition-summary.html
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from itertools import islice
from typing import Any

import apsw

from gateway.errors import BadSearch, Forbidden, NotFound
from gateway.fhir import ips
from gateway.fhir.matching import escaped
from gateway.fhir.resource import Resource, format_instant, parse, serialise
from gateway.records import read, write
from gateway.records.gate import Caller
from gateway.records.gathering import Follower, Opened, audit_rows, disclosed, open_all, walk
from gateway.records.node import Node
from gateway.records.preparing import Written
from gateway.store import journal
from gateway.store.sql import now_ms

_SECTION_MAX = 100
"""Most resources in one section, the newest."""
_CANDIDATES_MAX = 1_000
_NAMED_MAX = 500
_NAMED = frozenset({"Practitioner", "PractitionerRole", "Organization", "Medication", "Device", "Location",
                    "Substance", "Specimen", "Observation"})


async def patient_by(node: Node, caller: Caller, identifier: str) -> str:
    """The logical id of the one patient with this identifier that may be seen. Raises NotFound, BadSearch."""
    system, bar, value = identifier.partition("|")
    asked = f"{escaped(system)}|{escaped(value)}" if bar else escaped(identifier)
    query = node.query("Patient", [("identifier", asked)], strict=True)

    async def attempt(caller: Caller) -> str:
        with node.database.snapshot() as connection:
            found = list(islice(walk(node, caller, connection, query, snapshot=journal.head_seq(connection)), 2))
            rows = audit_rows(node, caller, connection, "summary", found, query="identifier", about="Patient")
        await disclosed(node, caller, rows)
        if len(found) > 1:
            raise BadSearch("identifier names several patients", code="multiple-matches", expression="http.identifier")
        if not found:
            raise NotFound("no patient has this identifier")
        return found[0].row.id
    return await node.decided(caller, attempt)


async def summary(node: Node, caller: Caller, id_: str) -> bytes:
    """The patient's IPS document. Raises as a read of the patient does."""
    patient = parse((await read.read(node, caller, "Patient", id_)).stored)

    async def attempt(caller: Caller) -> bytes:
        body, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        return body

    def work(caller: Caller) -> tuple[bytes, Any]:
        with node.database.snapshot() as connection:
            sections = [(section, _section(node, caller, connection, section, f"Patient/{id_}"))
                        for section in ips.SECTIONS]
            stored = list({one.found.reference: one for _, found in sections for one in found}.values())
            follower = Follower(node, caller, connection, types=_NAMED, known=[one.found.reference for one in stored])
            named = follower.follow([patient, *(one.resource for one in stored)], limit=_NAMED_MAX)
            rows = audit_rows(node, caller, connection, "summary", [one.found for one in (*stored, *named)], query="",
                              about=f"Patient/{id_}")
        return serialise(_summary(node, patient, sections, [*stored, *named])), rows

    return await node.decided(caller.again(), attempt)


def _section(node: Node, caller: Caller, connection: apsw.Connection, section: ips.Section,
             patient: str) -> list[Opened]:
    found: list[Opened] = []
    snapshot = journal.head_seq(connection)
    for type_, pairs in section.searches:
        query = node.query(type_, [("patient", patient), *pairs], strict=True)
        try:
            permitted = list(islice(walk(node, caller, connection, query, snapshot=snapshot), _CANDIDATES_MAX))
        except Forbidden:
            continue  # outside the token's scopes: as though there were none
        found += [one for one in open_all(node, connection, permitted) if section.keeps(one.resource)]
    return found[:_SECTION_MAX]


def _summary(node: Node, patient: Resource, sections: Sequence[tuple[ips.Section, list[Opened]]],
             others: Sequence[Opened]) -> Resource:
    base, date = node.settings.base_url, format_instant(now_ms())
    subject, custodian = f"{base}/Patient/{patient['id']}", _urn()
    made: list[tuple[str, Resource]] = []
    shown = []
    for section, found in sections:
        entries = [(f"{base}/{one.found.reference}", one.resource) for one in found]
        if not entries and section.absent is not None:
            entries = [(_urn(), section.absent(subject))]
            made += entries
        if entries:
            shown.append(ips.section(section, entries))
    hospital: Resource = {"resourceType": "Organization", "name": node.settings.hospital_name}
    return ips.document(_urn(), date, [
        (_urn(), ips.composition(subject, custodian, date, shown)), (subject, patient), (custodian, hospital), *made,
        *((f"{base}/{one.found.reference}", one.resource) for one in others)], profile=ips.BUNDLE_PROFILE)


def _urn() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


async def document(node: Node, caller: Caller, id_: str) -> Resource:
    """The Composition and everything it names that may be seen. Raises as a read of the Composition does."""
    composition = parse((await read.read(node, caller, "Composition", id_)).stored)

    async def attempt(caller: Caller) -> Resource:
        named, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        base = node.settings.base_url
        return ips.document(_urn(), format_instant(now_ms()), [
            (f"{base}/Composition/{id_}", composition),
            *((f"{base}/{one.found.reference}", one.resource) for one in named)])

    def work(caller: Caller) -> tuple[list[Opened], Any]:
        with node.database.snapshot() as connection:
            follower = Follower(node, caller, connection, types=node.definitions.resource_types,
                                known=[f"Composition/{id_}"])
            named = follower.follow([composition], limit=_CANDIDATES_MAX)
            return named, audit_rows(node, caller, connection, "document", [one.found for one in named], query="",
                                     about=f"Composition/{id_}")

    return await node.decided(caller.again(), attempt)


async def kept(node: Node, caller: Caller, made: Resource) -> Written:
    """Store a document as it was made. Raises what a create raises."""
    return await write.create(node, caller.again(), "Bundle", made)
