"""Resources with less than is stored: ``_summary`` and ``_elements``, by the marks of HL7's definitions.

Owns which elements stay: those marked as summary, modifiers, and what R4 requires; refuses to leave out the
SUBSETTED tag, so that nobody takes a part for the whole. https://hl7.org/fhir/R4/search.html#summary
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gateway.fhir.definitions import Definitions, Element, Node
from gateway.fhir.resource import Resource
from gateway.fhir.search_results import Results

_TAG = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
_ALWAYS = frozenset({"id", "meta"})
_Keeps = Callable[[Element], bool]


class Subset:
    """Cuts resources down as ``results`` wants them. Made once for a search; an unprefixed element is of ``types``."""

    def __init__(self, definitions: Definitions, results: Results, types: Collection[str]) -> None:
        self._definitions = definitions
        self._results = results
        self._types = types
        self._names: dict[str, frozenset[str] | None] = {}

    def of(self, resource: Resource) -> Resource:
        """What is left of ``resource``, tagged SUBSETTED; itself where nothing speaks of its type."""
        name = resource["resourceType"]
        summary = self._results.summary
        if summary == "true":
            return _tagged(self._summary(resource, self._definitions.type(name).root))
        if summary == "data":
            return _tagged({key: value for key, value in resource.items() if key not in ("text", "_text")})
        if summary == "text":
            return _tagged(self._top(resource, lambda element: element.name == "text" or element.minimum > 0))
        names = self._elements_of(name)
        if names is None:
            return resource
        return _tagged(self._top(resource, lambda element: element.name in names or element.minimum > 0))

    def _elements_of(self, type_name: str) -> frozenset[str] | None:
        if type_name not in self._names:
            found = frozenset(name for type_, name in self._results.elements
                              if type_ == type_name or (type_ is None and type_name in self._types))
            self._names[type_name] = found or None
        return self._names[type_name]

    def _top(self, resource: Resource, keeps: _Keeps) -> Resource:
        root = self._definitions.type(resource["resourceType"]).root
        keys = _keys(root, keeps)
        return {key: value for key, value in resource.items()
                if key == "resourceType" or key.removeprefix("_") in _ALWAYS or key.removeprefix("_") in keys}

    def _summary(self, value: Mapping[str, Any], node: Node) -> dict[str, Any]:
        keys = _keys(node, _summarised)
        kept: dict[str, Any] = {}
        for key, item in value.items():
            if key == "resourceType" or key in _ALWAYS:
                kept[key] = item
                continue
            element = keys.get(key.removeprefix("_"))
            if element is not None:
                kept[key] = item if key.startswith("_") else self._below(item, self._node(key, element))
        return kept

    def _below(self, value: Any, node: Node | None) -> Any:  # Any: a JSON value
        if type(value) is list:
            return [self._below(item, node) for item in value]
        if type(value) is not dict:
            return value
        if node is None:  # a resource within: a Bundle's entry
            name = value.get("resourceType")
            known = type(name) is str and name in self._definitions.resource_types
            return self._summary(value, self._definitions.type(str(name)).root) if known else value
        return self._summary(value, node)

    def _node(self, key: str, element: Element) -> Node | None:
        """Where the children of an element are described; None for a resource."""
        if element.node is not None:
            return self._definitions.type(element.node.partition(".")[0]).nodes[element.node]
        code = next(type_.code for name, type_ in element.json_names if name == key)
        return None if code == "Resource" or not self._definitions.has_type(code) else self._definitions.type(code).root


def _summarised(element: Element) -> bool:
    return element.summary or element.modifier or element.minimum > 0


def _keys(node: Node, keeps: _Keeps) -> dict[str, Element]:
    return {key: element for element in node.elements.values() if keeps(element) for key, _ in element.json_names}


def _tagged(resource: Resource) -> Resource:
    meta = resource.get("meta")
    known = meta if type(meta) is dict else {}
    tags = known.get("tag")
    tags = tags if type(tags) is list else []
    if not any(type(tag) is dict and tag.get("code") == "SUBSETTED" for tag in tags):
        tags = [*tags, _TAG]
    tagged: Resource = {}
    for key, value in resource.items():
        if key != "meta":
            tagged[key] = value
        if key == "id" or (key == "resourceType" and "id" not in resource):
            tagged["meta"] = {**known, "tag": tags}
    return tagged
