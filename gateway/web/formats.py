"""Media types: what a client asks an answer in and what it sends, and the one place where an answer takes its form.

Owns ``_format``, ``_pretty``, Accept and the types of request bodies; refuses what is neither FHIR JSON nor FHIR XML,
and a fhirVersion other than R4's. https://hl7.org/fhir/R4/http.html#mime-type
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import parse_qsl

from gateway.errors import Malformed, NotAcceptable, UnsupportedMedia
from gateway.fhir.resource import Resource, parse, pretty
from gateway.fhir.xml_reader import read_xml
from gateway.fhir.xml_shapes import Shapes
from gateway.fhir.xml_writer import write_xml
from gateway.records.answer import FHIR_JSON, Answer

Syntax = Literal["json", "xml"]

FHIR_XML = "application/fhir+xml; charset=utf-8"
THREAD_BYTES = 65_536
"""Above this, work on a body leaves the event loop."""

# Answered in the type asked for; the first of each syntax is the formal one.
_OFFERED: tuple[tuple[str, Syntax], ...] = (
    ("application/fhir+json", "json"), ("application/json", "json"), ("text/json", "json"),
    ("application/fhir+xml", "xml"), ("application/xml", "xml"), ("text/xml", "xml"))
MEDIA_TYPES = tuple(type_ for type_, _ in _OFFERED)
_SYNTAX: Mapping[str, Syntax] = {**dict(_OFFERED), "application/json+fhir": "json", "application/xml+fhir": "xml"}
_NAMES: Mapping[str, Syntax] = {**_SYNTAX, "json": "json", "xml": "xml"}
_FORMAL: Mapping[Syntax, str] = {"json": FHIR_JSON, "xml": FHIR_XML}
_FHIR = frozenset({"application/fhir+json", "application/fhir+xml"})
_PLAIN = frozenset({None, "", "*/*", "application/fhir+json"})
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})


@dataclass(frozen=True, slots=True)
class Form:
    """How resources are answered."""

    media_type: str
    syntax: Syntax = "json"
    pretty: bool = False


PLAIN = Form(FHIR_JSON)
"""Resources as they are stored."""


def wanted(query: str, headers: Mapping[str, str]) -> Form:
    """The form a request asks for: ``_format`` before Accept. Raises NotAcceptable."""
    accept = headers.get("accept")
    if "_format=" not in query and "_pretty=" not in query:
        return PLAIN if accept in _PLAIN else _by_accept(accept or "")
    asked = dict(reversed(parse_qsl(query, keep_blank_values=True)))
    laid_out = asked.get("_pretty") == "true"
    if "_format" not in asked:
        return replace(_by_accept(accept or ""), pretty=laid_out)
    # A plus that nobody escaped has become a space.
    name, parameters = _media_range(asked["_format"].strip().replace(" ", "+"))
    syntax = _NAMES.get(name)
    if syntax is None or not _version_fits(parameters):
        raise NotAcceptable("_format: this server answers in json or xml, of fhirVersion 4.0", code="not-supported",
                            expression="http._format")
    return Form(_FORMAL[syntax], syntax, laid_out)


def _by_accept(accept: str) -> Form:
    if accept in _PLAIN:
        return PLAIN
    ranges = []
    for place, part in enumerate(accept.split(",")):
        name, parameters = _media_range(part)
        if _version_fits(parameters):
            ranges.append((name, _quality(parameters), -place))
    best: tuple[tuple[float, int, int], str, Syntax] | None = None
    for type_, syntax in _OFFERED:
        rank = _rank(type_, ranges)
        if rank is not None and (best is None or rank > best[0]):
            best = (rank, type_, syntax)
    if best is None:
        raise NotAcceptable("this server answers in application/fhir+json or application/fhir+xml, of fhirVersion 4.0",
                            code="not-supported", expression="http.Accept")
    return Form(f"{best[1]}; charset=utf-8", best[2])


def _rank(type_: str, ranges: list[tuple[str, float, int]]) -> tuple[float, int, int] | None:
    """Quality, exactness and place of the most exact range that holds ``type_``; None where it is not wanted."""
    found = None
    for name, quality, place in ranges:
        exactness = 3 if name == type_ else 2 if name == type_.partition("/")[0] + "/*" else 1 if name == "*/*" else 0
        if exactness and (found is None or exactness > found[1]):
            found = (quality, exactness, place)
    return found if found is not None and found[0] > 0 else None


def _media_range(text: str) -> tuple[str, dict[str, str]]:
    """The lower-case type and its parameters."""
    name, *rest = text.split(";")
    pairs = (part.partition("=") for part in rest)
    return name.strip().lower(), {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}


def _quality(parameters: Mapping[str, str]) -> float:
    text = parameters.get("q", "1")
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0


def _version_fits(parameters: Mapping[str, str]) -> bool:
    return (parameters.get("fhirversion", "4.0") == "4.0"
            and parameters.get("charset", "utf-8").lower() in _UTF8)


def asks_for_fhir(query: str, headers: Mapping[str, str]) -> bool:
    """Whether a resource is asked for by name, and not its content: how a read of a Binary is told apart.

    https://hl7.org/fhir/R4/binary.html#rest
    """
    if "_format=" in query:
        return any(name == "_format" and _media_range(text.replace(" ", "+"))[0] in _NAMES
                   for name, text in parse_qsl(query))
    for part in headers.get("accept", "").split(","):
        name, parameters = _media_range(part)
        if name in _FHIR and _quality(parameters) > 0:
            return True
    return False


def body_syntax(content_type: str) -> Syntax | None:
    """What a resource of this Content-Type is written in; None for what is no resource. Raises UnsupportedMedia."""
    name, parameters = _media_range(content_type)
    syntax = _SYNTAX.get(name)
    if syntax is None:
        return None
    if parameters.get("charset", "utf-8").lower() not in _UTF8:
        raise UnsupportedMedia("resources are UTF-8", code="not-supported", expression="http.Content-Type")
    if parameters.get("fhirversion", "4.0") != "4.0":
        raise UnsupportedMedia("this server speaks fhirVersion 4.0", code="not-supported",
                               expression="http.Content-Type")
    return syntax


def is_fhir(content_type: str) -> bool:
    """Whether a Content-Type is FHIR's own: a Binary of any other type is its content."""
    return _media_range(content_type)[0] in _FHIR


async def read_resource(body: bytes, syntax: Syntax, shapes: Shapes) -> Resource:
    """The resource of a request body. Raises Malformed."""
    if syntax == "json":
        return await asyncio.to_thread(parse, body) if len(body) > THREAD_BYTES else parse(body)
    if len(body) > THREAD_BYTES // 4:
        return await asyncio.to_thread(read_xml, body, shapes)
    return read_xml(body, shapes)


async def rendered(answer: Answer, form: Form, shapes: Shapes) -> Answer:
    """An answer in the form asked for; what is no resource stays as it is. Raises NotAcceptable."""
    if form is PLAIN or answer.media_type != FHIR_JSON or not answer.body:
        return answer
    if len(answer.body) > THREAD_BYTES:
        body = await asyncio.to_thread(_written, answer.body, form, shapes)
    else:
        body = _written(answer.body, form, shapes)
    return replace(answer, body=body, media_type=form.media_type)


def _written(body: bytes, form: Form, shapes: Shapes) -> bytes:
    if form.syntax == "xml":
        try:
            resource = parse(body)
        except Malformed as error:
            raise NotAcceptable("this answer is no resource: it is to be had in application/json alone",
                                code="not-supported", expression="http.Accept") from error
        return write_xml(resource, shapes, pretty=form.pretty)
    return pretty(body) if form.pretty else body
