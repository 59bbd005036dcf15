"""Operators' doors to the search index: ``$reindex``, and how far each custom search parameter is.

Owns their parameters and answers; refuses a pass to anyone but this hospital's administrators and its feed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import apsw
import orjson

from gateway import audit
from gateway.access.decision import Deny
from gateway.audit import Disclosure
from gateway.errors import Forbidden
from gateway.records import search_parameters
from gateway.records.answer import Answer
from gateway.store import journal
from gateway.web import deferral
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, inputs, refused

_TABLE: Final = {"type": Input("code", many=True)}
_DEFINITIONS: Final = "urn:fhir-gateway:operation:"


async def reindex(door: Door, ask: Ask) -> Answer:
    """POST to the base, of the types named or of all; POST to a type."""
    types = [ask.type] if len(ask.parts) == 2 else []
    given = await inputs(door, ask, {} if types else _TABLE, operation="reindex")
    for name in given.texts("type"):
        if name not in door.node.definitions.resource_types:
            raise refused("type", f"names {name[:64]!r}, which is no R4 resource type")
        types.append(name)
    try:
        id_ = await search_parameters.reindex(door.node, ask.caller, list(dict.fromkeys(types)))
    except Forbidden as error:
        rows = door.node.gate.entries(ask.caller, "s", "reindex", Deny("scope", str(error)), what=("reindex",),
                                      patients=())
        await door.node.commits.commit(lambda tx: audit.append(tx, rows))
        raise
    return deferral.accepted(door.node.settings, id_)


async def status(door: Door, ask: Ask) -> Answer:
    """GET: every custom parameter in use that the caller may find, and whether it can be searched by."""
    ask.only_known(frozenset(), "$status")

    async def attempt(caller: Any) -> Answer:  # Any: a Caller, as ``decided`` hands it over
        node = door.node
        node.gate.require_scope(caller, "SearchParameter", "s")
        found, rows = await asyncio.to_thread(_found, door, caller)
        await node.disclosures.join(Disclosure(caller.seq, rows))
        return Answer(200, orjson.dumps({"resourceType": "Parameters", **({"parameter": found} if found else {})}))

    return await door.node.decided(ask.caller, attempt)


def _found(door: Door, caller: Any) -> tuple[list[dict[str, Any]], tuple[Any, ...]]:
    node, connection = door.node, door.node.database.reader
    seen = [one for one in node.parameters.known if _may_see(door, connection, caller, one.id)]
    found = [{"name": "parameter", "part": [
        {"name": "reference", "valueReference": {"reference": f"SearchParameter/{one.id}"}},
        {"name": "url", "valueUri": one.custom.url}, {"name": "code", "valueCode": one.custom.code},
        *({"name": "type", "valueCode": type_} for type_ in sorted(one.custom.plans)),
        {"name": "status", "valueCode": "ready" if one.ready else "indexing"},
        *([] if one.ready else [{"name": "progress", "valueString": search_parameters.progress(connection)}])]}
        for one in seen]
    what = tuple(f"SearchParameter/{one.id}" for one in seen) or ("SearchParameter",)
    return found, node.gate.entries(caller, "s", "status", None, what=what, patients=(), outcome="0")


def _may_see(door: Door, connection: apsw.Connection, caller: Any, id_: str) -> bool:
    row = journal.current(connection, "SearchParameter", id_)
    return row is not None and not isinstance(door.node.gate.decide_version(connection, caller, "s", row), Deny)


_STATUS: Final = frozenset({"SearchParameter"})
ROUTES = (
    Route(method="POST", shape="$reindex", name="reindex", handler=reindex, kind="operation",
          definition=f"{_DEFINITIONS}reindex"),
    Route(method="POST", shape="T/$reindex", name="reindex", handler=reindex, kind="operation",
          definition=f"{_DEFINITIONS}reindex"),
    Route(method="GET", shape="T/$status", name="status", handler=status, kind="operation", types=_STATUS,
          definition=f"{_DEFINITIONS}search-parameter-status"),
)
