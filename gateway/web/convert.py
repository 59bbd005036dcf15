"""``$convert``: a resource in one form, given back in another; ``Accept`` and ``_format`` say which.

Owns reading what was sent, bare or in Parameters, and giving it back the same way; refuses what does not parse. Nothing
is validated, looked up or stored, so there is nothing to decide. https://hl7.org/fhir/R4/resource-operation-convert.html
"""

from __future__ import annotations

import asyncio

from gateway.errors import BadSearch, Malformed
from gateway.fhir.resource import Resource, serialise
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route


async def convert(door: Door, ask: Ask) -> Answer:
    """What was sent; Parameters with an ``input`` are answered by Parameters with the ``output``."""
    ask.only_known(frozenset(), "$convert")
    resource = await ask.resource()
    inner = _input(resource)
    if inner is not None:
        resource = {"resourceType": "Parameters", "parameter": [{"name": "output", "resource": inner}]}
    return Answer(200, await asyncio.to_thread(serialise, resource))


def _input(body: Resource) -> Resource | None:
    """The resource a call in Parameters holds; None where the Parameters themselves are to be converted."""
    rows = body.get("parameter") if body["resourceType"] == "Parameters" else None
    if type(rows) is not list:
        return None
    calls = [row for row in rows if type(row) is dict and row.get("name") == "input"]
    if not calls:
        return None
    if len(rows) > 1:
        raise BadSearch("$convert takes one input and nothing else", code="invalid", expression="Parameters.parameter")
    resource = calls[0].get("resource")
    if type(resource) is not dict or type(resource.get("resourceType")) is not str:
        raise Malformed("must be a resource", code="structure", expression="Parameters.parameter[0].resource")
    found: Resource = resource
    return found


ROUTES = (Route(method="POST", shape="$convert", name="convert", handler=convert, kind="operation",
                definition="http://hl7.org/fhir/OperationDefinition/Resource-convert"),)
