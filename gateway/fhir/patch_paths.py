"""Which elements of a resource a path of a FHIRPath Patch names, each with its place.

Owns the selecting part of FHIRPath, its bounds, and the way back from a result to where it stands; refuses expressions
that do more than select elements, and results that are no elements. https://hl7.org/fhir/R4/fhirpatch.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import TooCostly
from gateway.fhir.fhirpath import Context, Node, TypeModel, compile_expression
from gateway.fhir.fhirpath.checking import check_types
from gateway.fhir.fhirpath.parser import Ast, Binary, Call, Indexer, Member, Sign, TypeTest, parse
from gateway.fhir.patch_operations import OperationRefused
from gateway.fhir.resource import Resource

Json = Any  # a JSON value as parsed
Place = tuple[str | int, ...]
"""Names and indexes from the resource down; a primitive with extensions has one place, that of its value."""

PATH_MAX: Final = 1_000
_STEPS_MAX: Final = 200_000
_SHADOWED_MAX: Final = 500_000
"""Values all operations of one patch may look through: each looks at the resource as the one before left it."""
_SELECTING: Final = frozenset({
    "where", "first", "last", "tail", "skip", "take", "single", "exists", "empty", "not", "all", "count", "extension",
    "ofType", "as", "is", "startsWith", "endsWith", "contains", "lower", "upper", "length", "hasValue", "toString",
    "iif"})
"""Functions that select elements; none makes more than it is given, so that a path's work is bounded."""


class Counting:
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


def found(resource: Resource, path: str, model: Counting) -> list[tuple[Place, Node]]:
    """The elements ``path`` names, each with its place. Raises OperationRefused, FHIRPathError, TooCostly."""
    if len(path) > PATH_MAX:
        raise OperationRefused(f"a path has at most {PATH_MAX} characters")
    _require_selecting(parse(path))
    shadow = _Shadow(resource, model)
    type_ = str(resource["resourceType"])
    check_types(path, model, type_)
    nodes = compile_expression(path, model).nodes(
        shadow.root, Context(resource=shadow.root, root=shadow.root, type=type_, model=model))
    places: dict[Place, Node] = {}
    for node in nodes:
        place = shadow.place(node) if type(node) is Node else None
        if place is None:
            raise OperationRefused("the path names a value, not an element")
        places[place] = node
    return list(places.items())


class _Shadow:
    """A copy of a resource in which every element can be told from every other.

    A path's result is a place only by the identity of its value, and equal texts or numbers may be one object: each
    primitive gets an object of its own beside it, as one with extensions has.
    """

    def __init__(self, resource: Resource, counting: Counting) -> None:
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
            raise OperationRefused(f"a path does not take {ast.name[:32]}()")
        for argument in (ast.left, *ast.args):
            _require_selecting(argument, depth)
    elif isinstance(ast, Binary):
        if ast.operator in ("|", "&", "+", "*"):
            raise OperationRefused(f"a path does not take {ast.operator}")
        _require_selecting(ast.left, depth)
        _require_selecting(ast.right, depth)
    elif isinstance(ast, Member):
        _require_selecting(ast.left, depth)
    elif isinstance(ast, Indexer):
        _require_selecting(ast.left, depth)
        _require_selecting(ast.index, depth)
    elif isinstance(ast, TypeTest | Sign):
        _require_selecting(ast.operand, depth)
