"""Resources as XML: what JSON says, in the order R4's definitions give.

Owns writing; decimals, dates and narratives keep their text. Refuses, with the place, what XML has no way to say: a
character outside XML 1.0, a property R4 does not have, a value of another shape than its element's. https://hl7.org/fhir/R4/xml.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.parsers import expat

from gateway.errors import NotAcceptable
from gateway.fhir.resource import DECIMAL, Resource
from gateway.fhir.xml_shapes import FHIR, Field, Json, Shapes

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'
_NOT_PLAIN = re.compile("[^ !#-%'-;=?-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_IMPOSSIBLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# White space in an attribute is folded to spaces by whoever reads it, unless it is written as a reference.
_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;",
                          "\r": "&#13;"})
_VALUES: Mapping[Json, tuple[type, ...]] = {"text": (str,), "boolean": (bool,), "integer": (int,),
                                            "decimal": (DECIMAL, int)}
_BESIDE = frozenset({"id", "extension"})
_TAG = re.compile(rb"<(?:[^>\"']|\"[^\"]*\"|'[^']*')*>")


class _Unwritable(Exception):  # control flow: on its way out it gathers the place
    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.place: list[str] = []


def write_xml(resource: Resource, shapes: Shapes, *, pretty: bool = False) -> bytes:
    """A resource as XML bytes (UTF-8). Raises NotAcceptable with the place of what cannot be written."""
    out = [_DECLARATION]
    try:
        _Writer(shapes, out).resource(resource, f' xmlns="{FHIR}"', "\n" if pretty else "")
    except _Unwritable as error:
        raise NotAcceptable(f"{error}: ask for application/fhir+json", code="not-supported",
                            expression=".".join((resource["resourceType"], *reversed(error.place)))) from error
    return "".join(out).encode()


class _Writer:
    __slots__ = ("out", "shapes")

    def __init__(self, shapes: Shapes, out: list[str]) -> None:
        self.shapes = shapes
        self.out = out

    def resource(self, resource: Any, attributes: str, pad: str) -> None:
        name = resource.get("resourceType") if type(resource) is dict else None
        if type(name) is not str or not self.shapes.is_resource(name):
            raise _Unwritable("not a resource type of R4")
        self.element(name, resource, name, attributes, pad)

    def element(self, tag: str, value: Any, node: str, attributes: str, pad: str) -> None:
        """``pad`` is the line break and indent before the tag, empty where nothing is laid out."""
        if type(value) is not dict:
            raise _Unwritable("not an object, as R4 has it")
        fields = self.shapes.of(node)
        out = self.out
        children: list[tuple[int, Field, Any, Any]] = []
        for key, item in value.items():
            field = fields.get(key)
            if field is not None and field.kind != "attribute":
                children.append((field.order, field, item, value.get("_" + key) if field.kind == "primitive" else None))
            elif field is not None:
                attributes += f' {key}="{_attribute(item)}"'
            elif key != "resourceType":
                field = fields.get(key[1:]) if key[:1] == "_" else None
                if field is None or field.kind != "primitive":
                    raise _Unwritable("not an element of R4")
                if field.name not in value:
                    children.append((field.order, field, None, item))
        if not children:
            out.append(f"{pad}<{tag}{attributes}/>")
            return
        out.append(f"{pad}<{tag}{attributes}>")
        inner = pad and pad + "  "
        children.sort(key=_order)
        for _, field, item, sibling in children:
            try:
                self.child(field, item, sibling, inner)
            except _Unwritable as error:
                error.place.append(field.name)
                raise
        out.append(f"{pad}</{tag}>")

    def child(self, field: Field, item: Any, sibling: Any, pad: str) -> None:
        tag = field.name
        if field.kind == "primitive":
            if field.many:
                values, beside = _list(() if item is None else item), _list(() if sibling is None else sibling)
                for place in range(max(len(values), len(beside))):
                    self.primitive(field, values[place] if place < len(values) else None,
                                   beside[place] if place < len(beside) else None, pad)
            else:
                self.primitive(field, item, sibling, pad)
        elif field.kind == "complex":
            for one in _list(item) if field.many else (item,):
                self.element(tag, one, field.node, "", pad)
        elif field.kind == "resource":
            for one in _list(item) if field.many else (item,):
                self.out.append(f"{pad}<{tag}>")
                self.resource(one, "", pad and pad + "  ")
                self.out.append(f"{pad}</{tag}>")
        else:
            self.out.append(pad + _narrative(item))

    def primitive(self, field: Field, value: Any, sibling: Any, pad: str) -> None:
        tag, attributes = field.name, ""
        extensions: Any = ()
        if sibling is not None:
            if type(sibling) is not dict or not _BESIDE.issuperset(sibling):
                raise _Unwritable("not an element of R4 beside its value")
            if "id" in sibling:
                attributes = f' id="{_attribute(sibling["id"])}"'
            extensions = _list(sibling.get("extension", ()))
        if value is not None:
            if type(value) not in _VALUES[field.json]:
                raise _Unwritable("not a value of its type")
            attributes += f' value="{_text(value)}"'
        elif not attributes and not extensions:
            raise _Unwritable("without a value")
        if not extensions:
            self.out.append(f"{pad}<{tag}{attributes}/>")
            return
        self.out.append(f"{pad}<{tag}{attributes}>")
        for extension in extensions:
            self.element("extension", extension, "Extension", "", pad and pad + "  ")
        self.out.append(f"{pad}</{tag}>")


def _list(value: Any) -> Any:
    if type(value) not in (list, tuple):
        raise _Unwritable("not a list, as R4 has it")
    return value


def _attribute(value: Any) -> str:
    if type(value) is not str:
        raise _Unwritable("not a value of its type")
    return _text(value)


def _order(child: tuple[int, Field, Any, Any]) -> int:
    return child[0]


def _text(value: Any) -> str:
    if type(value) is str:
        if _NOT_PLAIN.search(value) is None:
            return value
        if _IMPOSSIBLE.search(value) is not None:
            raise _Unwritable("holds a character that XML cannot carry")
        return value.translate(_ESCAPED)
    if type(value) is bool:
        return "true" if value else "false"
    return bytes(value).decode() if type(value) is DECIMAL else str(value)


def _narrative(text: Any) -> str:
    """The ``div`` as it was written, without what may stand around it (a declaration, comments)."""
    if type(text) is not str:
        raise _Unwritable("not a value of its type")
    if _IMPOSSIBLE.search(text) is not None:
        raise _Unwritable("holds a character that XML cannot carry")
    raw = text.encode()
    ends = [0, 0]
    depth = 0

    def start(*_: object) -> None:
        nonlocal depth
        if depth == 0:
            ends[0] = parser.CurrentByteIndex
        depth += 1

    def end(*_: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            ends[1] = parser.CurrentByteIndex

    def refuse(*_: object) -> None:
        raise _Unwritable("holds a document type declaration")

    parser = expat.ParserCreate("UTF-8", namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, refuse
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise _Unwritable("is not well-formed XHTML") from error
    return raw[ends[0]:element_end(raw, *ends)].decode()


def element_end(raw: bytes, start: int, ending: int) -> int:
    """Where an element ends whose tags begin at ``start`` and ``ending``; it may be one empty tag."""
    first = tag_end(raw, start)
    return first if raw.endswith(b"/>", start, first) else tag_end(raw, ending)


def tag_end(raw: bytes, start: int) -> int:
    """Where the tag that begins at ``start`` ends, in well-formed XML."""
    match = _TAG.match(raw, start)
    return len(raw) if match is None else match.end()
