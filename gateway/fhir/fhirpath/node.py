"""Elements of a resource as FHIRPath sees them: value, type, and what hangs on a primitive.

Owns navigation (choice types, primitive extensions, types of children); refuses evaluation.
A resource stays the plain dict that was parsed; a Node is a view of one place in it.
https://hl7.org/fhir/R4/fhirpath.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from gateway.fhir.fhirpath.values import Quantity, Temporal

Json = Any  # a JSON value as parsed: dict, list, str, bool, int, or a decimal that keeps its text


class TypeModel(Protocol):
    """What FHIRPath wants to know of the FHIR types."""

    def child_type(self, parent: str, key: str) -> str:
        """Type of the JSON property ``key`` in ``parent`` (a type name, or a path of a backbone), or ''."""

    def choice_keys(self, name: str) -> tuple[tuple[str, str], ...]:
        """(JSON key, type) of every choice written ``name[x]`` anywhere; empty when there is none."""

    def declared(self, parent: str, name: str) -> frozenset[str] | None:
        """Types of the element ``name`` (a choice without its type) of ``parent``; empty: it has none such.

        None where anything may stand there: below an abstract type, or what is no type.
        """

    def is_a(self, name: str, base: str) -> bool:
        """Whether the FHIR type ``name`` is ``base`` or specialises it."""

    def is_type(self, name: str) -> bool:
        """Whether R4 has such a type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What an expression may look at besides its focus.

    ``resource`` is %resource, ``root`` %rootResource (``resource`` when None), ``type`` the FHIR type of
    the focus where the caller knows it. ``now`` is the moment today() and now() speak of; without it they
    are empty. ``resolve`` gives the resource behind a reference text, or None; without it, or when it
    gives None, resolve() still yields the type the text names. ``member_of`` and ``conforms_to`` answer
    for (element, canonical), None meaning unknown.
    """

    resource: Mapping[str, Json] | None = None
    root: Mapping[str, Json] | None = None
    type: str = ""
    model: TypeModel | None = None
    now: datetime | None = None
    resolve: Callable[[str], Mapping[str, Json] | None] | None = None
    member_of: Callable[[Json, str], bool | None] | None = None
    conforms_to: Callable[[Json, str], bool | None] | None = None
    html_checks: Callable[[str], bool] | None = None
    variables: Mapping[str, Json] = field(default_factory=dict)


class Node:
    """One element: its JSON ``value`` (None when only extensions are there), ``type`` or '', ``side``.

    ``side`` is the ``_name`` object beside a primitive. Two nodes are the same place when their values
    are the same object; equality of content is the operators' business.
    """

    __slots__ = ("side", "type", "value")

    def __init__(self, value: Json, type_name: str, side: Json = None) -> None:
        self.value = value
        self.type = type_name
        self.side = side


Item = Any  # a Node, bool, int, Decimal, str, Temporal or Quantity; told apart by type() where it matters

_OPEN_TYPES = (
    "base64Binary boolean canonical code date dateTime decimal id instant integer markdown oid positiveInt "
    "string time unsignedInt uri url uuid Address Age Annotation Attachment CodeableConcept Coding "
    "ContactPoint Count Distance Duration HumanName Identifier Money Period Quantity Range Ratio Reference "
    "SampledData Signature Timing ContactDetail Contributor DataRequirement Expression "
    "ParameterDefinition RelatedArtifact TriggerDefinition UsageContext Dosage Meta"
)
OPEN_TYPES: Mapping[str, str] = {name[0].upper() + name[1:]: name for name in _OPEN_TYPES.split()}
"""Suffixes of ``value[x]`` (R4 2.24.0.1) and the types they stand for."""


def choice_key(value: Mapping[str, Json], name: str, model: TypeModel | None) -> tuple[str, str] | None:
    """The key and type under which the choice ``name`` is present, or None."""
    if model is not None and not model.choice_keys(name):
        return None
    size = len(name)
    for key in value:
        if key.startswith(name):
            found = OPEN_TYPES.get(key[size:])
            if found is not None:
                return key, found
        elif key[0] == "_" and key.startswith(name, 1):
            found = OPEN_TYPES.get(key[size + 1 :])
            if found is not None:
                return key[1:], found
    return None


def _child_type(node: Node, key: str, model: TypeModel | None) -> str:
    return "" if model is None else model.child_type(node.type, key)


def node_of(value: Json, type_name: str, side: Json = None) -> Node:
    """A Node whose type is the resource's own where it is a resource."""
    if type(value) is dict:
        own = value.get("resourceType")
        if type(own) is str:
            return Node(value, own)
    return Node(value, type_name, side)


def child(node: Node, name: str, model: TypeModel | None) -> list[Item]:
    """The elements called ``name`` of ``node``, in order."""
    value = node.value
    if type(value) is not dict:
        value = node.side
        if type(value) is not dict or name not in ("extension", "id"):
            return []
        node = Node(value, "Element")
    found = value.get(name)
    side = value.get("_" + name)
    if found is None and side is None:
        choice = choice_key(value, name, model)
        if choice is None:
            return []
        name, type_name = choice
        found = value.get(name)
        side = value.get("_" + name)
    else:
        type_name = _child_type(node, name, model)
    return _nodes(found, type_name, side)


def _nodes(found: Json, type_name: str, side: Json) -> list[Item]:
    if type(found) is not list:
        if type(side) is list:
            return [Node(None, type_name, one) for one in side if one is not None]
        return [node_of(found, type_name, side)]
    if side is None:
        return [node_of(one, type_name) for one in found if one is not None]
    sides = side if type(side) is list else [side]
    sides = [*sides, *[None] * (len(found) - len(sides))]
    return [
        node_of(one, type_name, other)
        for one, other in zip(found, sides, strict=False)
        if one is not None or other is not None
    ]


def children(node: Node, model: TypeModel | None) -> list[Item]:
    """Every child element, in the order written."""
    value = node.value
    result: list[Item] = []
    if type(value) is not dict:
        value = node.side
        if type(value) is not dict:
            return []
        node = Node(value, "Element")
    for key, found in value.items():
        if key == "resourceType":
            continue
        if key[0] == "_":
            if key[1:] not in value:
                result.extend(_nodes(None, _child_type(node, key[1:], model), found))
            continue
        result.extend(_nodes(found, _child_type(node, key, model), value.get("_" + key)))
    return result


def descendants(node: Node, model: TypeModel | None) -> list[Item]:
    """Children, their children, and so on; the node itself is not among them."""
    result: list[Item] = []
    layer = children(node, model)
    while layer:
        result.extend(layer)
        layer = [below for one in layer for below in children(one, model)]
    return result


_TEXT_TYPES = "string code id uri url canonical oid uuid markdown base64Binary date dateTime instant time xhtml"
_SHAPES: Mapping[type, frozenset[str]] = {
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "positiveInt", "unsignedInt", "decimal"}),
    str: frozenset(_TEXT_TYPES.split()),
}
_DECIMAL_SHAPE = frozenset({"decimal"})
_ABSTRACT = frozenset({"Element", "BackboneElement", "Resource", "DomainResource"})
_SYSTEM: Mapping[type, str] = {bool: "Boolean", int: "Integer", str: "String"}


def system_type(item: Item) -> str:
    """System type name of a value made by an expression."""
    if type(item) is Temporal:
        return item.kind
    if type(item) is Quantity:
        return "Quantity"
    return _SYSTEM.get(type(item), "Decimal")


def has_type(item: Item, type_name: str, model: TypeModel | None) -> bool:
    """``item is type_name``. An element whose type is not known is judged by its JSON shape."""
    space, _, bare = type_name.rpartition(".")
    if type(item) is not Node:
        return space in ("", "System") and (system_type(item) == bare or bare == "Any")
    if space == "System":
        return False
    known = item.type
    if known and model is not None:
        return model.is_a(known, bare)
    value = item.value
    if type(value) is dict:
        if "resourceType" in value:
            return value["resourceType"] == bare or bare in ("Resource", "DomainResource")
        return known == bare if known else (bare[:1].isupper() and bare not in _ABSTRACT)
    if known:
        return known == bare
    return bare in _SHAPES.get(type(value), _DECIMAL_SHAPE)
