"""``$meta``, ``$meta-add`` and ``$meta-delete`` over HTTP. https://hl7.org/fhir/R4/resource-operations.html"""

from __future__ import annotations

from typing import cast

from gateway.records import meta as records
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.interactions import version_id
from gateway.web.operations import Input, inputs

_URL = "http://hl7.org/fhir/OperationDefinition/Resource-"


async def meta(door: Door, ask: Ask) -> Answer:
    """Of a version, of the current one, of a type, or of all."""
    await inputs(door, ask, {}, operation="meta")
    if len(ask.parts) > 2:
        vid = version_id(ask) if len(ask.parts) > 3 else None
        return Answer(200, await records.of_version(door.node, ask.caller, ask.type, ask.id, vid))
    return Answer(200, await records.of_all(door.node, ask.caller, ask.type if len(ask.parts) == 2 else None))


async def change(door: Door, ask: Ask) -> Answer:
    """Add to the Meta of the current version, or take from it."""
    how = cast("records.Change", ask.parts[-1].removeprefix("$"))  # the two shapes below
    given = await inputs(door, ask, {"meta": Input("Meta", required=True)}, operation=how)
    return Answer(200, await records.change(door.node, ask.caller, ask.type, ask.id, how, given.objects("meta")[0]))


ROUTES = (
    *(Route(method="GET", shape=shape, name="meta", handler=meta, kind="operation", definition=f"{_URL}meta")
      for shape in ("$meta", "T/$meta", "T/I/$meta", "T/I/_history/V/$meta")),
    *(Route(method="POST", shape=f"T/I/${name}", name=name, handler=change, kind="operation",
            definition=f"{_URL}{name}") for name in ("meta-add", "meta-delete")),
)
