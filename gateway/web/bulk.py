"""Kick-off of ``$export`` and ``$import``.

Owns their parameters, from a query string, a Parameters resource, a form or NDJSON; refuses, each by name, what this
server does not do. https://hl7.org/fhir/uv/bulkdata/export.html#bulk-data-kick-off-request
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, Final
from urllib.parse import parse_qsl

from gateway import audit
from gateway.access.decision import Deny
from gateway.errors import BadSearch, Forbidden, Invalid, Issue, Malformed, UnsupportedMedia
from gateway.fhir.resource import parse_instant, reference_target
from gateway.records import bulk_import, export, jobs, read
from gateway.records.answer import Answer
from gateway.records.bulk_import import Input as Source
from gateway.records.export import Level
from gateway.store.sql import now_ms
from gateway.web import deferral
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, Inputs, inputs, refused

_EXPORT: Final = {
    "_outputFormat": Input("string"), "_since": Input("instant"), "_type": Input("string", many=True),
    "_typeFilter": Input("string", many=True), "_elements": Input("string", many=True)}
_RESTRICTED: Final = {**_EXPORT, "patient": Input("Reference", many=True)}
_FORMATS: Final = frozenset({"application/fhir+ndjson", "application/ndjson", "ndjson"})
_NDJSON: Final = frozenset({"application/fhir+ndjson", "application/ndjson", "application/x-ndjson"})
_NEXT_FILTER: Final = re.compile(r",(?=[A-Z][A-Za-z]+\?)")
_RESULT: Final = frozenset({"_sort", "_count", "_include", "_revinclude", "_summary", "_total", "_elements", "_page",
                            "_contained", "_containedType"})
_FILTERS_MAX: Final = 50
_ELEMENTS_MAX: Final = 100
_INPUTS_MAX: Final = 100
_DEFINITIONS: Final = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"


async def export_system(door: Door, ask: Ask) -> Answer:
    """Everything the token may export."""
    return await _export(door, ask, "system")


async def export_patients(door: Door, ask: Ask) -> Answer:
    """What is about patients."""
    return await _export(door, ask, "patient")


async def export_group(door: Door, ask: Ask) -> Answer:
    """What is about the members of a Group the token may read."""
    return await _export(door, ask, "group")


async def _export(door: Door, ask: Ask, level: Level) -> Answer:
    _require_async(ask, "export")
    try:
        export.exportable(door.node, ask.caller.grant, None)
    except Forbidden as error:
        raise await _told(door, ask, "export", error) from error
    table = _EXPORT if level == "system" else _RESTRICTED
    given = await inputs(door, ask, table, operation="export")
    format_ = given.text("_outputFormat")
    if format_ is not None and format_.replace(" ", "+") not in _FORMATS:
        raise refused("_outputFormat", "is none this server writes: application/fhir+ndjson is", code="not-supported")
    filters = _filters(door, given)
    types = _types(door, given) or tuple(filters)
    try:
        found = export.exportable(door.node, ask.caller.grant, types)
    except Forbidden as error:
        raise await _told(door, ask, "export", error) from error
    if level == "group":
        await read.read(door.node, ask.caller, "Group", ask.id)
    elements = _elements(door, given, found)
    request = export.Request(
        url=deferral.url(door.node.settings, ask), level=level, time_ms=now_ms() - export.OVERLAP_MS, types=found,
        group=ask.id if level == "group" else None, since_ms=_since(given), filters=filters,
        elements=elements, holder=ask.caller.holder,
        patients=_patients(door, given) if "patient" in given.values else None,
        ignored=tuple(f"$export does not take {name[:64]!r}" for name, _ in ask.pairs if name not in table))
    id_ = await jobs.ask(door.node, ask.caller, "export", request.json(), what=f"{level} export")
    return deferral.accepted(door.node.settings, id_)


def _require_async(ask: Ask, operation: str) -> None:
    if ask.preference(deferral.PREFERENCE) is None:
        raise BadSearch(f"${operation} is carried out in the background alone: send Prefer: respond-async",
                        code="not-supported", expression="http.Prefer")


async def _told(door: Door, ask: Ask, operation: str, error: Forbidden) -> Forbidden:
    """The refusal, once it is durable in the audit."""
    rows = door.node.gate.entries(ask.caller, "s", operation, Deny("scope", str(error)), what=(operation,), patients=())
    await door.node.commits.commit(lambda tx: audit.append(tx, rows))
    return error


def _types(door: Door, given: Inputs) -> tuple[str, ...]:
    types = tuple(dict.fromkeys(part.strip() for part in given.texts("_type")))
    for type_ in types:
        if type_ not in door.node.definitions.resource_types:
            raise refused("_type", f"names {type_[:64]!r}, which is no R4 resource type")
    return types


def _since(given: Inputs) -> int | None:
    text = given.text("_since")
    try:
        return None if text is None else parse_instant(text.replace(" ", "+"))
    except ValueError as error:
        raise refused("_since", "is no FHIR instant") from error


def _filters(door: Door, given: Inputs) -> dict[str, list[list[tuple[str, str]]]]:
    """Of each type its filters, any of which may match. Raises BadSearch."""
    found: dict[str, list[list[tuple[str, str]]]] = defaultdict(list)
    texts = [text for one in given.values.get("_typeFilter", ()) for text in _NEXT_FILTER.split(str(one))]
    if len(texts) > _FILTERS_MAX:
        raise refused("_typeFilter", f"is given more than {_FILTERS_MAX} times", code="too-costly")
    listed = set(given.texts("_type"))
    for text in texts:
        type_, mark, query = text.strip().partition("?")
        if not mark or type_ not in door.node.definitions.resource_types:
            raise refused("_typeFilter", "is Type?parameter=value, of an R4 resource type")
        if listed and type_ not in listed:
            raise refused("_typeFilter", f"is about {type_}, which _type does not name", code="invalid")
        pairs = parse_qsl(query, keep_blank_values=True)
        for name, _ in pairs:
            if name.partition(":")[0] in _RESULT:
                raise refused("_typeFilter", f"takes no {name[:64]}, which is about a page", code="not-supported")
        if not pairs:
            raise refused("_typeFilter", "needs search parameters")
        export.filter_query(door.node, type_, pairs)
        found[type_].append(pairs)
    return dict(found)


def _elements(door: Door, given: Inputs, types: tuple[str, ...]) -> tuple[str, ...]:
    """``element`` of every type that has it, or ``Type.element``. Raises BadSearch."""
    names = tuple(dict.fromkeys(part.strip() for part in given.texts("_elements")))
    if len(names) > _ELEMENTS_MAX:
        raise refused("_elements", f"holds more than {_ELEMENTS_MAX} names", code="too-costly")
    for name in names:
        head, dot, tail = name.partition(".")
        of = (head,) if dot else types
        if "." in tail or (dot and head not in door.node.definitions.resource_types) or not any(
                (tail or head).removesuffix("[x]") in door.node.definitions.type(type_).root.elements for type_ in of):
            raise refused("_elements", f"names {name[:64]!r}: element or Type.element of an exported type is taken")
    return names


def _patients(door: Door, given: Inputs) -> tuple[str, ...]:
    found = []
    for reference in given.objects("patient"):
        target = reference_target(str(reference.get("reference", "")))
        if target.type != "Patient" or target.id is None or target.base not in (None, door.base):
            raise refused("patient", "is a reference to a Patient here")
        found.append(target.id)
    return tuple(dict.fromkeys(found))


async def import_(door: Door, ask: Ask) -> Answer:
    """NDJSON sent along, or read from the URLs of a Parameters resource."""
    _require_async(ask, "import")
    ask.only_known(frozenset(), "$import")
    try:
        bulk_import.require_system(ask.caller)
    except Forbidden as error:
        raise await _told(door, ask, "import", error) from error
    kind, _, rest = ask.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    bodies: list[bytes] = []
    sources: list[Source] = []
    if kind in _NDJSON:
        bodies = [await ask.read_body()]
        sources = [Source(type="", place=1)]
    elif kind == "multipart/form-data":
        for place, (name, body) in enumerate(_form(await ask.read_body(), rest), 1):
            bodies.append(body)
            sources.append(Source(type=name if name in door.node.definitions.resource_types else "", place=place))
    elif kind in ("application/fhir+json", "application/json"):
        sources = _sources(door, await ask.resource())
    else:
        raise UnsupportedMedia("$import takes Parameters, application/fhir+ndjson or multipart/form-data",
                               code="not-supported", expression="http.Content-Type")
    id_ = await jobs.ask(door.node, ask.caller, "import", {
        "url": deferral.url(door.node.settings, ask), "inputs": [one.json() for one in sources]}, what="import",
        inputs=[("Resource", body) for body in bodies])
    return deferral.accepted(door.node.settings, id_)


def _sources(door: Door, body: dict[str, Any]) -> list[Source]:
    """The inputs a Parameters resource names. Raises Invalid at their place."""
    if body["resourceType"] != "Parameters":
        raise Invalid(Issue("error", "invalid", "$import takes Parameters", "resourceType"))
    door.node.validator.require(body, expected_type="Parameters")
    found: list[Source] = []
    for place, parameter in enumerate(body.get("parameter", ())):
        at, name = f"Parameters.parameter[{place}]", parameter["name"]
        if name == "input":
            found.append(_source(door, parameter, at))
        elif name == "inputFormat":
            if _simple(parameter) not in _NDJSON:
                raise Invalid(Issue("error", "not-supported", "inputFormat is application/fhir+ndjson", at))
        elif name != "inputSource":
            raise Invalid(Issue("error", "not-supported", f"$import does not take {str(name)[:64]!r}", at))
    if not 1 <= len(found) <= _INPUTS_MAX:
        raise Invalid(Issue("error", "required", f"$import takes 1 to {_INPUTS_MAX} inputs", "Parameters.parameter"))
    return found


def _source(door: Door, parameter: dict[str, Any], at: str) -> Source:
    parts = {part["name"]: (_simple(part), f"{at}.part[{place}]")
             for place, part in enumerate(parameter.get("part", ()))}
    unknown = parts.keys() - {"type", "url"}
    if unknown:
        name = min(unknown)
        raise Invalid(Issue("error", "not-supported", f"an input does not take {name[:64]!r}", parts[name][1]))
    url, url_at = parts.get("url", ("", at))
    if not url:
        raise Invalid(Issue("error", "required", "an input needs a url", at))
    type_, type_at = parts.get("type", ("", at))
    if type_ and type_ not in door.node.definitions.resource_types:
        raise Invalid(Issue("error", "value", "the type is no R4 resource type", type_at))
    bulk_import.require_allowed(url, door.node.settings.import_sources, url_at)
    return Source(type=type_, url=url)


def _simple(parameter: dict[str, Any]) -> str:
    return next((str(value) for name, value in parameter.items() if name.startswith("value")
                 and isinstance(value, str)), "")


def _form(body: bytes, parameters: str) -> list[tuple[str, bytes]]:
    """(name, bytes) of each file of a form. Raises Malformed. https://www.rfc-editor.org/rfc/rfc7578"""
    match = re.search(r'boundary="?([^";\s]{1,70})"?', parameters)
    pieces = [] if match is None else (b"\r\n" + body).split(b"\r\n--" + match[1].encode())
    if len(pieces) < 3 or not pieces[-1].startswith(b"--") or len(pieces) - 2 > _INPUTS_MAX:
        raise Malformed(f"the form has no parts, more than {_INPUTS_MAX}, or no end", code="structure")
    found = []
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        name = re.search(rb'[;\s]name="([^"]{1,200})"', head)
        if not blank or name is None:
            raise Malformed("a part of the form has no name", code="structure")
        found.append((name[1].decode("utf-8", "replace"), content))
    return found


_LEVELS = (("$export", export_system, None, "export"),
           ("T/$export", export_patients, frozenset({"Patient"}), "patient-export"),
           ("T/I/$export", export_group, frozenset({"Group"}), "group-export"))
ROUTES = (
    *(Route(method=method, shape=shape, name="export", handler=handler, kind="operation", types=types,
            definition=f"{_DEFINITIONS}{definition}")
      for shape, handler, types, definition in _LEVELS for method in ("GET", "POST")),
    Route(method="POST", shape="$import", name="import", handler=import_, kind="operation",
          definition="urn:fhir-gateway:operation:import"))
