"""Receipts of versions, for those who may read them.

Owns the wait until a version is anchored (202) and the audit of handing out a receipt, which holds the content
salt; refuses it to who may not read the version. ``FORMATS.md``, Receipt.
"""

from __future__ import annotations

import asyncio

import orjson

from gateway.errors import Gone, Issue
from gateway.fhir.outcome import operation_outcome
from gateway.ledger.receipt import document
from gateway.ledger.receipts import build_receipt
from gateway.records import audit_events, read
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.store import journal


async def receipt(node: Node, caller: Caller, type_: str, id_: str, vid: int | None) -> tuple[int, bytes]:
    """(200, the receipt's JSON) or (202, an OperationOutcome) while it waits to be anchored. Raises as read does."""
    if type_ == "AuditEvent" and audit_events.is_ours(id_) and vid in (None, 1):
        run = await audit_events.receipt(node, caller, id_)
        return (202, _waiting()) if run is None else (200, run)
    try:
        row = (await read.read(node, caller, type_, id_, vid)).row
    except Gone as deleted:
        found = journal.version(node.database.reader, type_, id_, deleted.version_id)
        if found is None:
            raise
        row = found
    made = await asyncio.to_thread(_built, node, row)
    if made is None:
        return 202, _waiting()
    return 200, made


def _waiting() -> bytes:
    return operation_outcome((Issue("information", "incomplete", "not anchored yet; ask again"),))


def _built(node: Node, row: journal.VersionRow) -> bytes | None:
    connection = node.database.reader
    opened = node.versions.open(connection, row)
    made = build_receipt(node.proofs, connection, row, opened.content_salt)
    return None if made is None else orjson.dumps(document(made))
