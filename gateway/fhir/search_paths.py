"""Search parameter expressions as plain accessors with static types.

Owns turning ``a.b.c``, ``x as T``, ``where(k='v')`` and ``where(resolve() is T)`` into key paths over the
JSON of a resource; refuses other expressions (None), which run as general FHIRPath.
https://hl7.org/fhir/R4/search.html#3.1.1.3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from gateway.fhir.definitions import SYSTEM_TYPE, Definitions, ElementType
from gateway.fhir.definitions import Node as DefinitionNode
from gateway.fhir.fhirpath.parser import Ast, Binary, Call, Literal, Member, This, TypeTest, parse

Json = Any  # a JSON value as parsed


@dataclass(frozen=True, slots=True)
class Step:
    """One key; where ``match`` is given only objects with match[0] = match[1] count."""

    key: str
    match: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where values of one type lie: ``steps`` from the focus, FHIR ``type`` (or a backbone's path).

    ``only`` keeps references to that resource type. ``value_set`` is the binding of a ``code``.
    """

    steps: tuple[Step, ...]
    type: str
    only: str | None = None
    value_set: str | None = None

    @property
    def place(self) -> tuple[tuple[Step, ...], str]:
        """What two parameters must share to be about the same values."""
        return self.steps, self.type


def parts_of(text: str) -> list[Ast]:
    """The sides of a union, in order."""
    parts: list[Ast] = []

    def split(ast: Ast) -> None:
        if isinstance(ast, Binary) and ast.operator == "|":
            split(ast.left)
            split(ast.right)
        else:
            parts.append(ast)

    split(parse(text))
    return parts


class Paths:
    """Resolves expressions against the definitions."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    def sources(self, text: str, type_name: str, *, focus: str | None = None) -> tuple[Source, ...] | None:
        """Sources of an expression on a ``type_name`` resource, or on ``focus``, a type or backbone of it.

        None where a part of it is no plain path. Parts that name another type, or elements that are not
        there, yield nothing.
        """
        found: list[Source] = []
        for part in parts_of(text):
            some = self._states(part, Source((), focus or type_name), type_name)
            if some is None:
                return None
            found += [one for one in some if one not in found]
        return tuple(found)

    def _states(self, ast: Ast, start: Source, root: str) -> list[Source] | None:
        if isinstance(ast, This):
            return [start]
        if isinstance(ast, Member):
            if ast.first and ast.name[0].isupper():
                return [start] if self._definitions.is_a(root, ast.name) else []
            before = self._states(ast.left, start, root)
            if before is None or any(self._is_primitive(one.type) for one in before):
                return None  # what hangs on a primitive stands beside it, under another key
            return [after for one in before for after in self._member(one, ast.name)]
        if isinstance(ast, TypeTest) and ast.operator in ("as", "ofType"):
            before = self._states(ast.operand, start, root)
            wanted = self._type_name(ast.type_name)
            return None if before is None else [one for one in before if self._definitions.is_a(one.type, wanted)]
        if isinstance(ast, Call) and ast.name == "where":
            before = self._states(ast.left, start, root)
            return None if before is None else self._filtered(before, ast.args[0])
        if isinstance(ast, Call) and ast.name == "extension" and len(ast.args) == 1:
            before = self._states(Member(ast.left, "extension", False), start, root)
            return None if before is None else self._with_url(before, ast.args[0])
        return None

    @staticmethod
    def _with_url(before: list[Source], url: Ast) -> list[Source] | None:
        if not isinstance(url, Literal) or type(url.value) is not str:
            return None
        return [replace(one, steps=(*one.steps[:-1], Step("extension", ("url", url.value)))) for one in before]

    def _is_primitive(self, name: str) -> bool:
        return self._definitions.has_type(name) and self._definitions.type(name).kind == "primitive-type"

    def _type_name(self, name: str) -> str:
        """``DateTime`` in a composite's component is meant as ``dateTime``."""
        if self._definitions.has_type(name):
            return name
        return name[0].lower() + name[1:]

    @staticmethod
    def _filtered(before: list[Source], criteria: Ast) -> list[Source] | None:
        if isinstance(criteria, TypeTest) and criteria.operator == "is":
            operand = criteria.operand
            if isinstance(operand, Call) and operand.name == "resolve" and isinstance(operand.left, This):
                return [replace(one, only=criteria.type_name) for one in before]
        if isinstance(criteria, Binary) and criteria.operator == "=":
            left, right = criteria.left, criteria.right
            plain = isinstance(left, Member) and left.first and isinstance(right, Literal)
            if plain and type(right.value) is str and all(one.steps for one in before):  # type: ignore[union-attr]
                match = (left.name, right.value)  # type: ignore[union-attr]  # both were just looked at
                return [replace(one, steps=(*one.steps[:-1], Step(one.steps[-1].key, match))) for one in before]
        return None

    def _node(self, type_name: str) -> DefinitionNode | None:
        owner = type_name.partition(".")[0]
        if not self._definitions.has_type(owner):
            return None
        return self._definitions.type(owner).nodes.get(type_name)

    def _member(self, source: Source, name: str) -> Iterator[Source]:
        node = self._node(source.type)
        element = node.elements.get(name) if node is not None else None
        if element is None:
            return
        value_set = element.binding.value_set if element.binding is not None else None
        types: tuple[tuple[str, ElementType], ...] = element.json_names
        for key, type_ in types:
            code = element.node or type_.code
            if code.startswith(SYSTEM_TYPE):
                code = code.removeprefix(SYSTEM_TYPE).lower()
            yield Source((*source.steps, Step(key)), code, source.only, value_set)


def walker(steps: tuple[Step, ...]) -> Callable[[Json], list[Json]]:
    """The accessor of a path: value -> the JSON values there, in order."""
    if len(steps) == 1 and steps[0].match is None:
        key = steps[0].key

        def one(value: Json) -> list[Json]:
            found = value.get(key)
            if found is None:
                return []
            return found if type(found) is list else [found]

        return one

    def walk(value: Json) -> list[Json]:
        values = [value]
        for step in steps:
            values = _step(values, step)
            if not values:
                break
        return values

    return walk


def _step(values: list[Json], step: Step) -> list[Json]:
    key, match = step.key, step.match
    found: list[Json] = []
    for value in values:
        if type(value) is not dict:
            continue
        below = value.get(key)
        if below is None:
            continue
        if type(below) is list:
            found.extend(below)
        else:
            found.append(below)
    if match is not None:
        name, wanted = match
        found = [one for one in found if type(one) is dict and one.get(name) == wanted]
    return found
