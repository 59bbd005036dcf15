"""``DocumentReference/$docref``: the documents about a patient's care in a time, as far as they may be seen.

https://hl7.org/fhir/us/core/OperationDefinition-docref.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from gateway.fhir.resource import Resource
from gateway.fhir.search_dates import Range, element_range
from gateway.records.gate import Caller
from gateway.records.gathering import Opened, at_most, audit_rows, disclosed, open_all, searchset, walk
from gateway.records.node import Node
from gateway.store import journal

_MOST = 1_000
"""Most references opened for one answer."""


async def docref(node: Node, caller: Caller, patient: str, types: Sequence[str], period: Range | None,
                 asked: Sequence[tuple[str, str]]) -> bytes:
    """A searchset of current DocumentReferences, newest first. Raises Forbidden, TooCostly, BadSearch."""
    pairs = [("patient", patient), ("status", "current"), ("_sort", "-date")]
    if types:
        pairs.append(("type", ",".join(types)))
    query = node.query("DocumentReference", pairs, strict=True)

    async def attempt(caller: Caller) -> bytes:
        found, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        link = f"{node.settings.base_url}/DocumentReference/$docref?{urlencode(asked)}"
        return searchset(node, [{"relation": "self", "url": link}], [(one, b'{"mode":"match"}') for one in found],
                         total=len(found))

    def work(caller: Caller) -> tuple[list[Opened], Any]:
        with node.database.snapshot() as connection:
            snapshot = journal.head_seq(connection)
            permitted = at_most(walk(node, caller, connection, query, snapshot=snapshot), _MOST, "$docref")
            found = [one for one in open_all(node, connection, permitted) if _within(one.resource, period)]
            return found, audit_rows(node, caller, connection, "docref", [one.found for one in found],
                                     query=urlencode(asked), about="DocumentReference")

    return await node.decided(caller, attempt)


def _within(reference: Resource, period: Range | None) -> bool:
    """About care in the time: by the context's period, else by the reference's date."""
    if period is None:
        return True
    context = reference.get("context")
    found = element_range(context.get("period") if isinstance(context, dict) else None)
    found = found or element_range(reference.get("date"))
    return found is not None and found[0] < period[1] and found[1] > period[0]
