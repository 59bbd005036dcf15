"""Resources from XML: the same dict that their JSON gives.

Owns reading: expat, event by event, because it tells where a narrative's bytes begin and end, which so keep their text.
Refuses, with the place: document types and with them every entity, encodings other than UTF-8, elements and attributes
that R4 does not have there, other namespaces, elements out of R4's order, text between elements, nesting beyond that
of resource JSON. https://hl7.org/fhir/R4/xml.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn
from xml.parsers import expat

from gateway.errors import Malformed
from gateway.fhir.resource import Resource, number
from gateway.fhir.xml_shapes import FHIR, XHTML, Field, Shapes
from gateway.fhir.xml_writer import element_end, tag_end

DEPTH = 200
"""Nesting of the JSON that comes out: an object and an array each count one."""
_SCHEMA_LOCATION = "http://www.w3.org/2001/XMLSchema-instance schemaLocation"
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_ATTRIBUTES_MAX = 100
_NAMESPACES_MAX = 200
_MANY_ATTRIBUTES = re.compile(
    rb"<[A-Za-z_][^<>\"']*+(?:(?:\"[^\"<]*+\"|'[^'<]*+')[^<>\"']*+){%d}" % (_ATTRIBUTES_MAX + 1))
_WINDOW_BYTES, _OVERLAP_BYTES = 1 << 20, 1 << 16
_DECLARED = re.compile(r"\sxmlns(?::([^\s=]+))?\s*=")


def read_xml(body: bytes, shapes: Shapes) -> Resource:
    """A resource from XML bytes (UTF-8). Raises Malformed with the place."""
    _require_few_attributes(body)
    reader = _Reader(body, shapes)
    try:
        reader.parser.Parse(body, True)
    except expat.ExpatError as error:
        raise Malformed(f"not well-formed XML: {expat.ErrorString(error.code)}, line {error.lineno}",
                        code="structure") from error
    resource: Resource = reader.root
    return resource


def _require_few_attributes(body: bytes) -> None:
    """Refuse a tag of very many attributes before expat works on it for seconds without a pause. Raises Malformed.

    Looked for piece by piece, so that other threads get their turn.
    """
    for start in range(0, len(body), _WINDOW_BYTES):
        if _MANY_ATTRIBUTES.search(body, start, start + _WINDOW_BYTES + _OVERLAP_BYTES):
            raise Malformed(f"an element has more than {_ATTRIBUTES_MAX} attributes", code="structure")


class _Frame:
    """An open element; ``object`` is what its children go into: for a primitive the ``_name`` beside its value."""

    __slots__ = ("depth", "field", "fields", "kind", "name", "object", "once", "order", "place", "unvalued", "value")

    def __init__(self, kind: str, name: str, place: str, fields: Mapping[str, Field], depth: int,
                 field: Field | None = None) -> None:
        self.kind = kind
        self.name = name
        self.place = place
        self.fields = fields
        self.depth = depth
        self.field = field
        self.object: dict[str, Any] = {}
        self.order = -1
        self.once: set[str] = set()
        self.unvalued: set[str] = set()
        self.value: Any = None


class _Reader:
    def __init__(self, body: bytes, shapes: Shapes) -> None:
        self.body = body
        self.shapes = shapes
        self.root: dict[str, Any] = {}
        self.stack: list[_Frame] = []
        self.scope: list[tuple[str | None, str]] = []
        self.div_start = 0
        self.div_depth = 0
        self.parser = parser = expat.ParserCreate("UTF-8", namespace_separator=" ")
        parser.buffer_text = True
        parser.XmlDeclHandler = self.declaration
        parser.StartDoctypeDeclHandler = self.doctype
        parser.StartNamespaceDeclHandler = self.namespace
        parser.EndNamespaceDeclHandler = self.namespace_end
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.text

    def refuse(self, problem: str, below: str = "", code: str = "structure") -> NoReturn:
        place = self.path() + (f".{below[:64]}" if below else "")
        raise Malformed(f"{problem} (line {self.parser.CurrentLineNumber})", code=code,
                        expression=place.lstrip(".") or None)

    def path(self) -> str:
        return ".".join(frame.place for frame in self.stack if frame.place)

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
            self.refuse("resource XML is UTF-8")

    def doctype(self, *_: object) -> None:
        self.refuse("a document type declaration is not allowed, nor are entities")

    def namespace(self, prefix: str | None, uri: str | None) -> None:
        if len(self.scope) == _NAMESPACES_MAX:
            self.refuse(f"more than {_NAMESPACES_MAX} namespaces are declared around one element")
        self.scope.append((prefix, uri or ""))

    def namespace_end(self, prefix: str | None) -> None:
        self.scope.pop()

    def start(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, local = name.rpartition(" ")
        if not self.stack:
            self.open_resource(namespace, local, attributes, 1)
            return
        owner = self.stack[-1]
        if owner.kind == "resource":
            if owner.object:
                self.refuse("holds one resource")
            self.open_resource(namespace, local, attributes, owner.depth)
            return
        field = owner.fields.get(local)
        if field is None or field.kind == "attribute" or (owner.kind == "primitive" and local != "extension"):
            self.refuse(f"unknown element {local[:64]!r}", local)
        expected = XHTML if field.kind == "xhtml" else FHIR
        if namespace != expected:
            self.refuse(f"element {local[:64]!r} is not in the namespace {expected}", local)
        if field.order < owner.order:
            self.refuse(f"element {local[:64]!r} is out of order", local)
        owner.order = field.order
        if not field.many:
            if local in owner.once:
                self.refuse(f"element {local[:64]!r} may appear once", local)
            owner.once.add(local)
        if field.kind == "xhtml":
            self.open_narrative()
            return
        depth = owner.depth + (2 if field.many else 1)
        if depth > DEPTH:
            self.refuse(f"nested deeper than {DEPTH}")
        place = f"{local}[{_count(owner.object, local)}]" if field.many else local
        fields = self.shapes.of(field.node) if field.node else {}
        frame = _Frame(field.kind, local, place, fields, depth, field)
        self.stack.append(frame)
        for key, text in attributes.items():
            if field.kind == "primitive" and key == "value":
                frame.value = self.value(field, text)
            elif key in fields and fields[key].kind == "attribute":
                frame.object[key] = text
            else:
                self.refuse(f"unknown attribute {key.rpartition(' ')[2][:64]!r}")
        if field.kind == "complex":
            _put(owner.object, field, frame.object)

    def open_resource(self, namespace: str, local: str, attributes: dict[str, str], depth: int) -> None:
        if namespace != FHIR:
            self.refuse(f"a resource is in the namespace {FHIR}", local)
        if not self.shapes.is_resource(local):
            self.refuse(f"{local[:64]!r} is no R4 resource type", local)
        for key in attributes:
            if key != _SCHEMA_LOCATION:
                self.refuse(f"unknown attribute {key.rpartition(' ')[2][:64]!r}", local)
        frame = _Frame("complex", local, "" if self.stack else local, self.shapes.of(local), depth)
        frame.object["resourceType"] = local
        if self.stack:
            self.stack[-1].object = frame.object
        else:
            self.root = frame.object
        self.stack.append(frame)

    def value(self, field: Field, text: str) -> Any:
        if field.json == "text":
            return text
        if field.json == "boolean":
            if text not in ("true", "false"):
                self.refuse("a boolean is true or false", code="value")
            return text == "true"
        if (_DECIMAL if field.json == "decimal" else _INTEGER).fullmatch(text) is None:
            self.refuse(f"not a number as {field.json} has it", code="value")
        return number(text.removeprefix("+"))

    def end(self, name: str) -> None:
        frame = self.stack.pop()
        for key in frame.unvalued:
            if all(value is None for value in frame.object[key]):
                del frame.object[key]  # JSON writes the siblings alone
        if frame.field is None:
            return
        owner = self.stack[-1]
        if frame.kind == "primitive":
            _put_primitive(owner, frame.field, frame.value, frame.object)
        elif frame.kind == "resource":
            if not frame.object:
                self.stack.append(frame)
                self.refuse("holds one resource")
            _put(owner.object, frame.field, frame.object)

    def text(self, data: str) -> None:
        if not data.isspace():
            self.refuse("text between elements is not allowed")

    def open_narrative(self) -> None:
        parser = self.parser
        self.div_start, self.div_depth = parser.CurrentByteIndex, 1
        parser.StartElementHandler, parser.EndElementHandler = self.start_within, self.end_within
        parser.CharacterDataHandler = None

    def start_within(self, name: str, attributes: dict[str, str]) -> None:
        self.div_depth += 1
        if self.div_depth > DEPTH:
            self.refuse(f"nested deeper than {DEPTH}")

    def end_within(self, name: str) -> None:
        self.div_depth -= 1
        if self.div_depth:
            return
        parser = self.parser
        parser.StartElementHandler, parser.EndElementHandler = self.start, self.end
        parser.CharacterDataHandler = self.text
        raw = self.body[self.div_start:element_end(self.body, self.div_start, parser.CurrentByteIndex)]
        self.stack[-1].object["div"] = self.standing_alone(raw)

    def standing_alone(self, raw: bytes) -> str:
        """The narrative with the namespace declarations it had from around it."""
        text = raw.decode()
        first = raw[:tag_end(raw, 0)].decode()
        known = {match[1] for match in _DECLARED.finditer(first)}
        missing = {prefix: uri for prefix, uri in self.scope if prefix not in known and (
            prefix is None or f"{prefix}:" in text)}
        tag = re.match(r"<[^\s/>]+", text)
        if not missing or tag is None:
            return text
        added = "".join(f' xmlns{"" if prefix is None else ":" + prefix}="{_attribute(uri)}"'
                        for prefix, uri in missing.items())
        return tag[0] + added + text[tag.end():]


def _count(owner: dict[str, Any], name: str) -> int:
    return len(owner.get(name, ()))


def _put(owner: dict[str, Any], field: Field, value: Any) -> None:
    if not field.many:
        owner[field.name] = value
    elif field.name in owner:
        owner[field.name].append(value)
    else:
        owner[field.name] = [value]


def _put_primitive(owner: _Frame, field: Field, value: Any, sibling: dict[str, Any]) -> None:
    """The value, and its id and extensions beside it; in arrays null keeps the place of what is not there."""
    target, beside = owner.object, "_" + field.name
    if not field.many:
        if value is not None:
            target[field.name] = value
        if sibling or value is None:
            target[beside] = sibling
        return
    values = target.setdefault(field.name, [])
    if value is None:
        owner.unvalued.add(field.name)
    if beside in target:
        target[beside].append(sibling or None)
    elif sibling or value is None:
        target[beside] = [None] * len(values) + [sibling]
    values.append(value)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
