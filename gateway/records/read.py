"""read and vread: decided before anything is fetched, audited before anything leaves.

Owns the order of those steps; refuses to tell not permitted from absent. https://hl7.org/fhir/R4/http.html#read
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import apsw

from gateway import audit
from gateway.access.decision import Decision, Deny
from gateway.audit import Disclosure, SealedRow
from gateway.crypto.envelope import Opened
from gateway.errors import Gone, NotFound
from gateway.records.gate import NOBODY, Caller, refusal
from gateway.records.node import Node
from gateway.store import journal
from gateway.store.journal import VersionRow


@dataclass(frozen=True, slots=True)
class Reading:
    """One version as it leaves: the row, and the exact stored bytes (empty for a deletion in a history)."""

    row: VersionRow
    stored: bytes


async def read(node: Node, caller: Caller, type_: str, id_: str, vid: int | None = None) -> Reading:
    """The current version, or exactly ``vid``. Raises NotFound, Gone, Forbidden."""
    async def attempt(caller: Caller) -> Reading:
        connection = node.database.reader
        row = (journal.current(connection, type_, id_) if vid is None
               else journal.version(connection, type_, id_, vid))
        decision = await permitted(node, caller, connection, row, type_, id_, "read" if vid is None else "vread")
        assert row is not None  # noqa: S101  # _permitted has refused an absent one
        opened = None if row.deleted else await opened_off_loop(node, connection, row)
        await audited(node, caller, [row], decision, "read" if vid is None else "vread")
        if opened is None:
            raise Gone(f"{type_}/{id_} was deleted", version_id=row.vid)
        return Reading(row, opened.stored)
    return await node.decided(caller, attempt)


async def opened_off_loop(node: Node, connection: apsw.Connection, row: VersionRow) -> Opened:
    """Open a row's block: at once when it is local, in a thread when it must be fetched."""
    opened = node.versions.open_local(connection, row)
    if opened is not None:
        return opened
    return await asyncio.to_thread(lambda: node.versions.open(node.database.reader, row))


async def permitted(node: Node, caller: Caller, connection: apsw.Connection, row: VersionRow | None, type_: str,
                    id_: str, name: str) -> Decision:
    """The decision to read ``row``; a refusal is audited first. Raises NotFound, Forbidden."""
    what = f"{type_}/{id_}"
    if row is None:
        decision = node.gate.decide_absent(connection, caller, "r", type_, id_)
        rows = node.gate.entries(caller, "r", name, None, what=(what,), patients=(), outcome="4")
        await node.commits.commit(lambda tx: append_alike(tx, rows))
        raise refusal(decision, what) if isinstance(decision, Deny) else NotFound(f"{what} is not known")
    decision = node.gate.decide_version(connection, caller, "r", row)
    if isinstance(decision, Deny):
        rows = node.gate.entries(caller, "r", name, decision, what=(what,),
                                 patients=node.gate.patients(connection, row))
        await node.commits.commit(lambda tx: audit.append(tx, rows))
        raise refusal(decision, what)
    return decision


def append_alike(connection: apsw.Connection, rows: tuple[SealedRow, ...]) -> None:
    """Append the rows about what is not there with the statements of a refusal, so that their time tells nothing: a
    patient is looked up, and the row is marked to be told of, though there is nobody to tell."""
    journal.patient_pk(connection, NOBODY)
    audit.append(connection, tuple([replace(row, notify=True) for row in rows]))


async def audited(node: Node, caller: Caller, rows: list[VersionRow], decision: Decision, name: str) -> None:
    """Make a disclosure durable in the audit of every patient concerned."""
    connection = node.database.reader
    patients = {reference for row in rows for reference in node.gate.patients(connection, row)}
    sealed = node.gate.entries(caller, "r", name, decision, patients=sorted(patients),
                               what=[f"{row.type}/{row.id}/_history/{row.vid}" for row in rows])
    await node.disclosures.join(Disclosure(caller.seq, sealed))
