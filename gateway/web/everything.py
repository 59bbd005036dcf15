"""``$everything`` of a patient, of all patients, and of an encounter, over HTTP.

https://hl7.org/fhir/R4/patient-operation-everything.html
"""

from __future__ import annotations

from gateway.access.period import MAX_MS, MIN_MS
from gateway.records import everything as records
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, Inputs, inputs, refused

_PAGED = {"_since": Input("instant"), "_type": Input("code", many=True), "_count": Input("integer"),
          records.PAGE: Input("string")}
_DATED = {**_PAGED, "start": Input("date"), "end": Input("date")}
_URL = "http://hl7.org/fhir/OperationDefinition/"


async def everything(door: Door, ask: Ask) -> Answer:
    """The whole record, in pages."""
    given = await inputs(door, ask, _DATED if ask.type == "Patient" else _PAGED, operation="everything")
    id_ = ask.id if len(ask.parts) == 3 else None
    token, page = given.text(records.PAGE), None
    if token is not None:
        if len(given.values) > 1:
            raise refused(records.PAGE, "stands alone", code="invalid")
        path = f"{ask.type}/{id_}/$everything" if id_ else f"{ask.type}/$everything"
        page = records.opened_link(door.node, ask.caller, token, path)
        given = _again(page.pairs)
    return Answer(200, await records.everything(door.node, ask.caller, _asked(door, ask.type, id_, given), page))


def _again(pairs: tuple[tuple[str, str], ...]) -> Inputs:
    """The parameters a page link was sealed over."""
    names = dict.fromkeys(name for name, _ in pairs)
    return Inputs({name: tuple(value for other, value in pairs if other == name) for name in names})


def _asked(door: Door, compartment: str, id_: str | None, given: Inputs) -> records.Asked:
    types = frozenset(given.texts("_type"))
    if types - door.node.definitions.resource_types:
        raise refused("_type", "names what is no R4 resource type")
    since, start, end = given.moment("_since"), given.moment("start"), given.moment("end")
    count = given.whole("_count", door.node.settings.max_page)
    if count == 0:
        raise refused("_count", "is at least 1 here")
    return records.Asked(
        compartment=compartment, id=id_, pairs=tuple(given.pairs()), types=types,
        since_ms=None if since is None else since[0],
        period=None if start is None and end is None else (start[0] if start else MIN_MS, end[1] if end else MAX_MS),
        count=min(count, door.node.settings.max_page))


def _routes(type_: str, shapes: tuple[str, ...]) -> tuple[Route, ...]:
    return tuple(Route(method=method, shape=shape, name="everything", handler=everything, kind="operation",
                       types=frozenset({type_}), definition=f"{_URL}{type_}-everything")
                 for shape in shapes for method in ("GET", "POST"))


ROUTES = (*_routes("Patient", ("T/I/$everything", "T/$everything")), *_routes("Encounter", ("T/I/$everything",)))
