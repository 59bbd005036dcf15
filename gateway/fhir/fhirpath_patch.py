"""FHIRPath Patch: a Parameters resource of operations applied to a resource, all or none.

Owns how the five operations change it; refuses paths that name no element (but for delete) or several, naming the
operation and never the values. Decimals stay as they were written. ``patch_operations.py`` reads what is asked,
``patch_paths.py`` finds where. https://hl7.org/fhir/R4/fhirpatch.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import FHIRPathError, Issue, Unprocessable
from gateway.fhir import patch_paths
from gateway.fhir.definitions import Definitions, Element
from gateway.fhir.fhirpath import Node, TypeModel
from gateway.fhir.patch_operations import Operation, OperationRefused, operations
from gateway.fhir.patch_paths import Counting, Place
from gateway.fhir.resource import Resource, copy

Json = Any  # a JSON value as parsed


@dataclass(frozen=True, slots=True)
class _Value:
    """What an operation brings: a JSON value of FHIR type ``type``, and what hangs on it where it is a primitive."""

    value: Json
    type: str
    side: Json = None


def apply(resource: Resource, parameters: Resource, definitions: Definitions, model: TypeModel) -> Resource:
    """The patched resource; ``resource`` itself is not changed, and the result is not validated.

    Raises Malformed for what is no FHIRPath Patch, Unprocessable where an operation cannot be done, TooCostly.
    """
    to_do = operations(parameters)
    patched: Resource = copy(resource)
    counting = Counting(model)
    for operation in to_do:
        try:
            _Patching(patched, definitions, counting).carry_out(operation)
        except OperationRefused as error:
            raise Unprocessable(Issue("error", "processing", f"{operation.type}: {error}", operation.at)) from None
        except FHIRPathError as error:
            raise Unprocessable([Issue("error", "processing", issue.diagnostics, f"{operation.at}.path")
                                 for issue in error.issues]) from error
    return patched


class _Patching:
    """One operation on ``resource``, which it changes in place."""

    def __init__(self, resource: Resource, definitions: Definitions, model: Counting) -> None:
        self._resource = resource
        self._definitions = definitions
        self._model = model

    def carry_out(self, operation: Operation) -> None:
        found = patch_paths.found(self._resource, operation.path, self._model)
        if operation.type in ("insert", "move"):
            self._in_list(operation, found)
            return
        if not found and operation.type == "delete":
            return  # R4: for operations other than delete it is an error if no element matches
        if len(found) != 1:
            raise OperationRefused("the path names no element" if not found else "the path names several elements")
        place, node = found[0]
        if operation.type == "add":
            self._add(place, node, operation)
            return
        if not place:
            raise OperationRefused("the resource as a whole cannot be replaced or deleted")
        holder, key, index = self._holder(place)
        if operation.type == "delete":
            _take(holder, key, index)
            return
        element = self._element(self._type_of(place[:-1] if index is None else place[:-2]), key)
        value = self._value(operation.value, element)
        if value.type and node.type and element is not None and element.choice:
            _take(holder, key, index)  # another type of a choice stands under another name
            self._set(holder, element, value)
        else:
            _put(holder, key, index, value)

    def _add(self, place: Place, node: Node, operation: Operation) -> None:
        holder = self._at(place)
        if type(holder) is not dict:
            raise OperationRefused("a primitive takes no elements")
        element = self._element(node.type, operation.name)
        if element is None:
            raise OperationRefused("the element named is none of the type at the path")
        self._set(holder, element, self._value(operation.value, element), adding=True)

    def _set(self, holder: dict[str, Json], element: Element, value: _Value, *, adding: bool = False) -> None:
        key = self._json_name(element, value)
        if element.maximum != 1:
            _put_in(holder, key, len(holder.get(key, ())), value)
            return
        taken = {name for name, _ in element.json_names} & {*holder, *(name[1:] for name in holder if name[0] == "_")}
        if adding and taken:
            raise OperationRefused("the element is there already, and does not repeat")
        _put(holder, key, None, value)

    @staticmethod
    def _json_name(element: Element, value: _Value) -> str:
        if not element.choice:
            return element.name
        name = element.name + value.type[:1].upper() + value.type[1:]
        if name not in {known for known, _ in element.json_names}:
            raise OperationRefused("the value has a type the element does not take")
        return name

    def _in_list(self, operation: Operation, found: list[tuple[Place, Node]]) -> None:
        if not found:
            raise OperationRefused("the path names no element")
        place = found[0][0]
        lists = {one[:-1] for one, _ in found}
        if len(lists) != 1 or not place or type(place[-1]) is not int:
            raise OperationRefused("the path names no list")
        holder, key, _ = self._holder(place)
        size = len(holder.get(key) or holder["_" + key])
        if len(found) != size:
            raise OperationRefused("the path names a part of a list")
        if operation.type == "move":
            source, destination = operation.numbers["source"], operation.numbers["destination"]
            if source >= size or destination >= size:
                raise OperationRefused("the list is shorter")
            _put_in(holder, key, destination, _take(holder, key, source, keep=True))
            return
        if operation.numbers["index"] > size:
            raise OperationRefused("the list is shorter")
        element = self._element(self._type_of(place[:-2]), key)
        _put_in(holder, key, operation.numbers["index"], self._value(operation.value, element))

    def _at(self, place: Place) -> Json:
        value: Json = self._resource
        for step in place:
            value = value.get(step) if type(value) is dict and type(step) is str else value[step]
        return value

    def _holder(self, place: Place) -> tuple[dict[str, Json], str, int | None]:
        """The object an element stands in, its name there, and its index where it is one of a list."""
        index = place[-1] if type(place[-1]) is int else None
        key = place[-1] if index is None else place[-2]
        return self._at(place[:-1] if index is None else place[:-2]), str(key), index

    def _type_of(self, place: Place) -> str:
        """The type, or path of a backbone, at a place."""
        value: Json = self._resource
        type_ = str(self._resource["resourceType"])
        for step in place:
            if type(step) is str:
                type_ = self._model.child_type(type_, step)
            value = value.get(step) if type(value) is dict and type(step) is str else value[step]
            if type(value) is dict and type(value.get("resourceType")) is str:
                type_ = value["resourceType"]
        return type_

    def _element(self, type_: str, name: str) -> Element | None:
        """The definition of a child by its own or its JSON name."""
        head = type_.partition(".")[0]
        if not self._definitions.has_type(head):
            return None
        node = self._definitions.type(head).nodes.get(type_)
        if node is None:
            return None
        name = name.removesuffix("[x]")
        return node.elements.get(name) or next(
            (one for one in node.elements.values() if one.choice and name in {known for known, _ in one.json_names}),
            None)

    def _value(self, part: Mapping[str, Json], element: Element | None) -> _Value:
        if "resource" in part:
            return _Value(copy(part["resource"]), "Resource")
        for key in part:
            name = key.removeprefix("_")
            if name.startswith("value") and len(name) > 5:
                suffix = name[5:]
                type_ = next((type_ for known, type_ in self._model.choice_keys("value") if known == name), suffix)
                return _Value(copy(part.get(name)), type_, copy(part.get("_" + name)))
        if type(part.get("part")) is not list or not part["part"]:
            raise OperationRefused("the value is missing")
        return self._anonymous(part, element)

    def _anonymous(self, part: Mapping[str, Json], element: Element | None) -> _Value:
        """A backbone element, which has no value[x]: its children are parts."""
        made: dict[str, Json] = {}
        type_ = "" if element is None else element.node or element.types[0].code
        for inner in part["part"]:
            name = inner.get("name") if type(inner) is dict else None
            child = self._element(type_, name) if type(name) is str else None
            if child is None:
                raise OperationRefused("a part of the value names no element of its type")
            self._set(made, child, self._value(inner, child), adding=True)
        return _Value(made, type_)


def _take(holder: dict[str, Json], key: str, index: int | None, *, keep: bool = False) -> _Value:
    """Take an element away with what hangs on it; a list that ends empty goes too, but for ``keep``."""
    side = "_" + key
    if index is None:
        return _Value(holder.pop(key, None), "", holder.pop(side, None))
    taken: list[Json] = []
    for name in (key, side):
        items = holder.get(name)
        taken.append(items.pop(index) if type(items) is list and index < len(items) else None)
        if type(items) is list and not keep and all(item is None for item in items):
            del holder[name]
    return _Value(taken[0], "", taken[1])


def _put(holder: dict[str, Json], key: str, index: int | None, value: _Value) -> None:
    """Put an element in the place of another."""
    if index is not None:
        _take(holder, key, index, keep=True)
        _put_in(holder, key, index, value)
        return
    for name, item in ((key, value.value), ("_" + key, value.side)):
        holder.pop(name, None) if item is None else holder.__setitem__(name, item)


def _put_in(holder: dict[str, Json], key: str, index: int, value: _Value) -> None:
    """Put an element into a list, with what hangs on it in the list beside."""
    side = "_" + key
    beside = holder.get(side)
    items = holder.get(key)
    size = max(len(items) if type(items) is list else 0, len(beside) if type(beside) is list else 0)
    for name, item in ((key, value.value), (side, value.side)):
        found = holder.get(name)
        row = [*(found if type(found) is list else ()), *[None] * size][:size]
        row.insert(index, item)
        if all(one is None for one in row):
            holder.pop(name, None)
        else:
            holder[name] = row
