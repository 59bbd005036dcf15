"""Searches: of a type, of several or all, and of a compartment; with GET, or with POST to ``_search``.

Owns what a request says of the place searched; both the URL and the form may hold parameters.
https://hl7.org/fhir/R4/http.html#search
"""

from __future__ import annotations

from typing import Final

from gateway.errors import BadSearch
from gateway.records import audit_events, search
from gateway.records.answer import Answer
from gateway.records.searched import Place
from gateway.web.ask import Ask
from gateway.web.door import Door, Route

COMPARTMENTS: Final = frozenset({"Device", "Encounter", "Patient", "Practitioner", "RelatedPerson"})
"""Types whose instances have a compartment. https://hl7.org/fhir/R4/compartmentdefinition.html"""
_AUDIT: Final = "AuditEvent"


async def search_type(door: Door, ask: Ask) -> Answer:
    """GET of a type, or POST to its ``_search``."""
    return await _answer(door, ask, Place(ask.type), await _pairs(ask))


async def search_system(door: Door, ask: Ask) -> Answer:
    """GET of the base, or POST to ``_search``: of the types in ``_type``, or of all."""
    pairs = await _pairs(ask)
    if [value for name, value in pairs if name == "_type"] == [_AUDIT]:
        return await _answer(door, ask, Place(_AUDIT), [pair for pair in pairs if pair[0] != "_type"])
    return await _answer(door, ask, Place(), pairs)


async def search_compartment(door: Door, ask: Ask) -> Answer:
    """GET of ``Patient/123/Observation`` or ``Patient/123/*``, or POST to its ``_search``."""
    name, id_, type_ = ask.parts[:3]
    pairs = await _pairs(ask)
    if type_ == "*":
        return await _answer(door, ask, Place(None, (name, id_)), pairs)
    if type_ != _AUDIT:
        return await _answer(door, ask, Place(type_, (name, id_)), pairs)
    if name != "Patient":
        raise BadSearch("AuditEvents are searched by AuditEvent?entity= and AuditEvent?agent=", code="not-supported")
    return await _answer(door, ask, Place(_AUDIT), [("patient", f"Patient/{id_}"), *pairs])


async def _pairs(ask: Ask) -> list[tuple[str, str]]:
    return ask.pairs + (await ask.form() if ask.method == "POST" else [])


async def _answer(door: Door, ask: Ask, place: Place, pairs: list[tuple[str, str]]) -> Answer:
    if place.type == _AUDIT:
        return Answer(200, await audit_events.search(door.node, ask.caller, pairs, strict=ask.strict))
    return Answer(200, await search.search_place(door.node, ask.caller, place, pairs, strict=ask.strict))


ROUTES = (
    Route(method="GET", shape="T", name="search-type", handler=search_type),
    Route(method="POST", shape="T/_search", name="search-type", handler=search_type),
    Route(method="GET", shape="", name="search-system", handler=search_system),
    Route(method="POST", shape="_search", name="search-system", handler=search_system),
    Route(method="GET", shape="T/I/C", name="search-type", handler=search_compartment, types=COMPARTMENTS),
    Route(method="POST", shape="T/I/C/_search", name="search-type", handler=search_compartment, types=COMPARTMENTS),
)
