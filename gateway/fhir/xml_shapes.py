"""What a reader and a writer of FHIR XML know of a node: its children in order, and what each is.

Owns the table from R4's definitions to XML; refuses to know any type by name. https://hl7.org/fhir/R4/xml.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.fhir.definitions import Definitions, Element, ElementType

FHIR = "http://hl7.org/fhir"
XHTML = "http://www.w3.org/1999/xhtml"

Kind = Literal["attribute", "primitive", "complex", "resource", "xhtml"]
Json = Literal["text", "boolean", "integer", "decimal"]

_JSON: Mapping[str, Json] = {"boolean": "boolean", "decimal": "decimal", "integer": "integer",
                             "unsignedInt": "integer", "positiveInt": "integer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One child of a node. ``order`` is its place among them, one for all types of a choice.

    ``node`` names the shape of its own children (``Element`` for a primitive, empty for a resource of any type);
    ``json`` is what the value of a primitive is in JSON.
    """

    name: str
    order: int
    kind: Kind
    many: bool
    node: str
    json: Json = "text"


class Shapes:
    """The fields of each node, made when it is first met."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._nodes: dict[str, dict[str, Field]] = {}

    def is_resource(self, name: str) -> bool:
        return name in self._definitions.resource_types

    def of(self, path: str) -> dict[str, Field]:
        """The fields of a type's root (``Quantity``) or a backbone (``Observation.component``) by JSON name."""
        found = self._nodes.get(path)
        if found is None:
            node = self._definitions.type(path.partition(".")[0]).nodes[path]
            found = self._nodes[path] = {
                name: self._field(name, order, element, type_)
                for order, element in enumerate(node.elements.values()) for name, type_ in element.json_names}
        return found

    def _field(self, name: str, order: int, element: Element, type_: ElementType) -> Field:
        kind: Kind = "complex"
        node = element.node or type_.code
        if element.attribute:
            kind, node = "attribute", ""
        elif type_.code in ("Resource", "DomainResource"):
            kind, node = "resource", ""
        elif type_.code == "xhtml":
            kind, node = "xhtml", ""
        elif self._definitions.type(type_.code).kind == "primitive-type":
            kind, node = "primitive", "Element"
        return Field(name=name, order=order, kind=kind, many=element.maximum != 1, node=node,
                     json=_JSON.get(type_.code, "text"))
