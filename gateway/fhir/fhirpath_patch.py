"""FHIRPath Patch: a Parameters resource of operations applied to a resource, all or none.

Owns finding the one element a path names and the five operations; refuses paths that name none (but for delete) or
several, and expressions beyond selecting elements, naming the operation and never the values. Decimals stay as they
were written. https://hl7.org/fhir/R4/fhirpatch.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import FHIRPathError, Issue, Malformed, TooCostly, Unprocessable
from gateway.fhir.definitions import Definitions, Element
from gateway.fhir.fhirpath import Context, Node, TypeModel, compile_expression
from gateway.fhir.fhirpath.checking import check_types
from gateway.fhir.fhirpath.parser import Ast, Binary, Call, Indexer, Member, Sign, TypeTest, parse
from gateway.fhir.resource import Resource, copy

Json = Any  # a JSON value as parsed
Place = tuple[str | int, ...]

OPERATIONS_MAX: Final = 1_000
PATH_MAX: Final = 1_000
_STEPS_MAX: Final = 200_000
_SHADOWED_MAX: Final = 500_000
"""Values all operations of one patch may look through: each looks at the resource as the one before left it."""
_SELECTING: Final = frozenset({
    "where", "first", "last", "tail", "skip", "take", "single", "exists", "empty", "not", "all", "count", "extension",
    "ofType", "as", "is", "startsWith", "endsWith", "contains", "lower", "upper", "length", "hasValue", "toString",
    "iif"})
"""Functions that select elements; none makes more than it is given, so that a path's work is bounded."""
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "add": ("path", "name", "value"), "insert": ("path", "index", "value"), "delete": ("path",),
    "replace": ("path", "value"), "move": ("path", "source", "destination")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """One ``operation`` parameter; ``at`` is its place in the Parameters."""

    at: str
    type: str
    path: str
    name: str
    value: Mapping[str, Json]
    numbers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Value:
    """What an operation brings: a JSON value of FHIR type ``type``, and what hangs on it where it is a primitive."""

    value: Json
    type: str
    side: Json = None


class _Refused(Exception):  # control flow: apply says which operation it was
    pass


class _Counting:
    """A TypeModel that ends an expression after so many steps from element to element."""

    def __init__(self, model: TypeModel) -> None:
        self._model = model
        self._left = _STEPS_MAX
        self._to_shadow = _SHADOWED_MAX

    def shadowing(self, values: int) -> None:
        """Count so many values of the resource. Raises TooCostly."""
        self._to_shadow -= values
        if self._to_shadow < 0:
            raise TooCostly(f"the operations of a patch look through {_SHADOWED_MAX} values at most", code="too-costly")

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooCostly("the paths of the patch look at too many elements", code="too-costly")

    def child_type(self, parent: str, key: str) -> str:
        self._step()
        return self._model.child_type(parent, key)

    def choice_keys(self, name: str) -> tuple[tuple[str, str], ...]:
        self._step()
        return self._model.choice_keys(name)

    def is_a(self, name: str, base: str) -> bool:
        self._step()
        return self._model.is_a(name, base)

    def declared(self, parent: str, name: str) -> frozenset[str] | None:
        return self._model.declared(parent, name)

    def is_type(self, name: str) -> bool:
        return self._model.is_type(name)


def apply(resource: Resource, parameters: Resource, definitions: Definitions, model: TypeModel) -> Resource:
    """The patched resource; ``resource`` itself is not changed, and the result is not validated.

    Raises Malformed for what is no FHIRPath Patch, Unprocessable where an operation cannot be done, TooCostly.
    """
    operations = _operations(parameters)
    patched: Resource = copy(resource)
    counting = _Counting(model)
    for operation in operations:
        try:
            _Patching(patched, definitions, counting).carry_out(operation)
        except _Refused as error:
            raise Unprocessable(Issue("error", "processing", f"{operation.type}: {error}", operation.at)) from None
        except FHIRPathError as error:
            raise Unprocessable([Issue("error", "processing", issue.diagnostics, f"{operation.at}.path")
                                 for issue in error.issues]) from error
    return patched


def _operations(parameters: Resource) -> list[_Operation]:
    if parameters.get("resourceType") != "Parameters":
        raise Malformed("a FHIRPath Patch is a Parameters resource", code="invalid", expression="resourceType")
    raw = parameters.get("parameter", [])
    if type(raw) is not list:
        raise Malformed("parameter is a list", code="structure", expression="Parameters.parameter")
    if len(raw) > OPERATIONS_MAX:
        raise TooCostly(f"a patch holds at most {OPERATIONS_MAX} operations", code="too-costly",
                        expression="Parameters.parameter")
    return [_operation(one, f"Parameters.parameter[{place}]") for place, one in enumerate(raw)]


def _operation(raw: Json, at: str) -> _Operation:
    if type(raw) is not dict or raw.get("name") != "operation":
        raise Malformed("a FHIRPath Patch has parameters called operation alone", code="value", expression=f"{at}.name")
    parts: dict[str, dict[str, Json]] = {}
    for place, part in enumerate(_parts(raw, at)):
        name = part.get("name")
        if type(name) is not str or name in parts:
            raise Malformed("each part of an operation has a name of its own", code="duplicate",
                            expression=f"{at}.part[{place}].name")
        parts[name] = part
    kind = _text(parts, "type", at)
    if kind not in _NEEDS:
        raise Malformed(f"type is one of {', '.join(_NEEDS)}", code="value", expression=f"{at}.part.where(name='type')")
    for name in _NEEDS[kind]:
        if name not in parts:
            raise Malformed(f"{kind} needs {name}", code="required", expression=f"{at}.part.where(name='{name}')")
    numbers: dict[str, int] = {}
    for name in ("index", "source", "destination"):
        if name in _NEEDS[kind]:
            number = next((value for key, value in parts[name].items() if key.startswith("value")), None)
            if type(number) is not int or number < 0:
                raise Malformed(f"{name} is a number from 0", code="value",
                                expression=f"{at}.part.where(name='{name}')")
            numbers[name] = number
    return _Operation(at=at, type=kind, path=_text(parts, "path", at), numbers=numbers,
                      name=_text(parts, "name", at) if kind == "add" else "", value=parts.get("value", {}))


def _parts(raw: Mapping[str, Json], at: str) -> list[dict[str, Json]]:
    parts = raw.get("part")
    if type(parts) is not list or not all(type(part) is dict for part in parts):
        raise Malformed("an operation has parts", code="structure", expression=f"{at}.part")
    return parts


def _text(parts: Mapping[str, Mapping[str, Json]], name: str, at: str) -> str:
    found = next((value for key, value in parts.get(name, {}).items() if key.startswith("value")), None)
    if type(found) is not str:
        raise Malformed(f"{name} is a text", code="required" if found is None else "value",
                        expression=f"{at}.part.where(name='{name}')")
    return found


class _Patching:
    """One operation on ``resource``, which it changes in place."""

    def __init__(self, resource: Resource, definitions: Definitions, model: _Counting) -> None:
        self._resource = resource
        self._definitions = definitions
        self._model = model

    def carry_out(self, operation: _Operation) -> None:
        found = self._found(operation.path)
        if operation.type in ("insert", "move"):
            self._in_list(operation, found)
            return
        if not found and operation.type == "delete":
            return  # R4: for operations other than delete it is an error if no element matches
        if len(found) != 1:
            raise _Refused("the path names no element" if not found else "the path names several elements")
        place, node = found[0]
        if operation.type == "add":
            self._add(place, node, operation)
            return
        if not place:
            raise _Refused("the resource as a whole cannot be replaced or deleted")
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

    def _add(self, place: Place, node: Node, operation: _Operation) -> None:
        holder = self._at(place)
        if type(holder) is not dict:
            raise _Refused("a primitive takes no elements")
        element = self._element(node.type, operation.name)
        if element is None:
            raise _Refused("the element named is none of the type at the path")
        self._set(holder, element, self._value(operation.value, element), adding=True)

    def _set(self, holder: dict[str, Json], element: Element, value: _Value, *, adding: bool = False) -> None:
        key = self._json_name(element, value)
        if element.maximum != 1:
            _put_in(holder, key, len(holder.get(key, ())), value)
            return
        taken = {name for name, _ in element.json_names} & {*holder, *(name[1:] for name in holder if name[0] == "_")}
        if adding and taken:
            raise _Refused("the element is there already, and does not repeat")
        _put(holder, key, None, value)

    @staticmethod
    def _json_name(element: Element, value: _Value) -> str:
        if not element.choice:
            return element.name
        name = element.name + value.type[:1].upper() + value.type[1:]
        if name not in {known for known, _ in element.json_names}:
            raise _Refused("the value has a type the element does not take")
        return name

    def _in_list(self, operation: _Operation, found: list[tuple[Place, Node]]) -> None:
        if not found:
            raise _Refused("the path names no element")
        place = found[0][0]
        lists = {one[:-1] for one, _ in found}
        if len(lists) != 1 or not place or type(place[-1]) is not int:
            raise _Refused("the path names no list")
        holder, key, _ = self._holder(place)
        size = len(holder.get(key) or holder["_" + key])
        if len(found) != size:
            raise _Refused("the path names a part of a list")
        if operation.type == "move":
            source, destination = operation.numbers["source"], operation.numbers["destination"]
            if source >= size or destination >= size:
                raise _Refused("the list is shorter")
            _put_in(holder, key, destination, _take(holder, key, source, keep=True))
            return
        if operation.numbers["index"] > size:
            raise _Refused("the list is shorter")
        element = self._element(self._type_of(place[:-2]), key)
        _put_in(holder, key, operation.numbers["index"], self._value(operation.value, element))

    def _found(self, path: str) -> list[tuple[Place, Node]]:
        """The elements a path names, each with its place."""
        if len(path) > PATH_MAX:
            raise _Refused(f"a path has at most {PATH_MAX} characters")
        _require_selecting(parse(path))
        shadow = _Shadow(self._resource, self._model)
        type_ = str(self._resource["resourceType"])
        check_types(path, self._model, type_)
        nodes = compile_expression(path, self._model).nodes(
            shadow.root, Context(resource=shadow.root, root=shadow.root, type=type_, model=self._model))
        places: dict[Place, Node] = {}
        for node in nodes:
            place = shadow.place(node) if type(node) is Node else None
            if place is None:
                raise _Refused("the path names a value, not an element")
            places[place] = node
        return list(places.items())

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
            raise _Refused("the value is missing")
        return self._anonymous(part, element)

    def _anonymous(self, part: Mapping[str, Json], element: Element | None) -> _Value:
        """A backbone element, which has no value[x]: its children are parts."""
        made: dict[str, Json] = {}
        type_ = "" if element is None else element.node or element.types[0].code
        for inner in part["part"]:
            name = inner.get("name") if type(inner) is dict else None
            child = self._element(type_, name) if type(name) is str else None
            if child is None:
                raise _Refused("a part of the value names no element of its type")
            self._set(made, child, self._value(inner, child), adding=True)
        return _Value(made, type_)


class _Shadow:
    """A copy of a resource in which every element can be told from every other.

    A path's result is a place only by the identity of its value, and equal texts or numbers may be one object: each
    primitive gets an object of its own beside it, as one with extensions has.
    """

    def __init__(self, resource: Resource, counting: _Counting) -> None:
        self._counting = counting
        self._places: dict[int, Place] = {}
        self.root: dict[str, Json] = self._object(resource, ())

    def place(self, node: Node) -> Place | None:
        """Where a Node stands in the resource."""
        return self._places.get(id(node.value if type(node.value) is dict else node.side))

    def _object(self, value: Mapping[str, Json], place: Place) -> dict[str, Json]:
        made: dict[str, Json] = {}
        self._places[id(made)] = place
        self._counting.shadowing(len(value))
        for key, item in value.items():
            if key[:1] == "_":
                if key[1:] not in value:
                    made[key] = self._sides(item, (*place, key[1:]))
            elif type(item) is dict:
                made[key] = self._object(item, (*place, key))
            elif type(item) is list:
                self._counting.shadowing(len(item))
                made[key] = [self._object(one, (*place, key, index)) if type(one) is dict else one
                             for index, one in enumerate(item)]
                sides = value.get("_" + key)
                sides = sides if type(sides) is list else []
                if not any(type(one) is dict for one in item):
                    made["_" + key] = self._sides([sides[index] if index < len(sides) else None
                                                   for index in range(len(item))], (*place, key))
            else:
                made[key] = item
                if key != "resourceType":
                    made["_" + key] = self._sides(value.get("_" + key), (*place, key))
        return made

    def _sides(self, side: Json, place: Place) -> Json:
        if type(side) is list:
            return [self._sides(one, (*place, index)) for index, one in enumerate(side)]
        made = self._object(side, place) if type(side) is dict else {}
        self._places[id(made)] = place
        return made


def _require_selecting(ast: Ast, depth: int = 0) -> None:
    """Refuse what does more than select elements: it could make work without bound."""
    if isinstance(ast, Call):
        if ast.name not in _SELECTING:
            raise _Refused(f"a path does not take {ast.name[:32]}()")
        for argument in (ast.left, *ast.args):
            _require_selecting(argument, depth)
    elif isinstance(ast, Binary):
        if ast.operator in ("|", "&", "+", "*"):
            raise _Refused(f"a path does not take {ast.operator}")
        _require_selecting(ast.left, depth)
        _require_selecting(ast.right, depth)
    elif isinstance(ast, Member):
        _require_selecting(ast.left, depth)
    elif isinstance(ast, Indexer):
        _require_selecting(ast.left, depth)
        _require_selecting(ast.index, depth)
    elif isinstance(ast, TypeTest | Sign):
        _require_selecting(ast.operand, depth)


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
