"""What is wrong with an expression before it runs: the types of its paths, where they can be told.

Owns N1's strict evaluation: a name that no type on the way has, the JSON name of a choice (``valueQuantity`` for
``value``), a type that does not exist, an order asked of what has none. Refuses nothing it is not sure of: a path from
an unknown focus, or through a resource of any type, passes. http://hl7.org/fhirpath/N1/#type-safety-and-strict-evaluation
"""

from __future__ import annotations

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.node import TypeModel
from gateway.fhir.fhirpath.parser import Ast, Binary, Call, Indexer, Member, Sign, This, TypeTest, parse

Types = frozenset[str] | None
"""The types a collection's items may have (a backbone by its path); None where that is open."""

_SYSTEM = frozenset({"Any", "Boolean", "String", "Integer", "Decimal", "Date", "DateTime", "Time", "Quantity"})
_SAME = frozenset({"where", "first", "last", "tail", "skip", "take", "single", "distinct", "trace"})
_ORDERED = frozenset({"first", "last", "tail", "skip", "take"})
_UNORDERED = frozenset({"children", "descendants"})
_OVER_ITEMS = frozenset({"where", "select", "all", "exists", "repeat", "trace", "sort"})


def check_types(text: str, model: TypeModel, focus: str | None = None) -> None:
    """Refuse an expression that cannot mean anything on a ``focus``. Raises FHIRPathError with what is wrong."""
    try:
        _Checker(model).types(parse(text), None if focus is None else frozenset({focus}))
    except RecursionError as error:
        raise FHIRPathError("FHIRPath: the expression is too long a chain") from error


class _Checker:
    def __init__(self, model: TypeModel) -> None:
        self._model = model

    def types(self, ast: Ast, focus: Types) -> Types:
        """The types of what ``ast`` gives on ``focus``."""
        match ast:
            case This():
                return focus
            case Member(left=left, name=name, first=first):
                if first and name[0].isupper():
                    return frozenset({name}) if self._model.is_type(name) else None
                return self._below(focus if first else self.types(left, focus), name)
            case Call():
                return self._call(ast, focus)
            case Indexer(left=left, index=index):
                self._require_order(left)
                self.types(index, focus)
                return self.types(left, focus)
            case TypeTest():
                return self._type_test(ast, focus)
            case Sign(operand=operand):
                self.types(operand, focus)
                return None
            case Binary(operator=operator, left=left, right=right):
                one, other = self.types(left, focus), self.types(right, focus)
                return one | other if operator == "|" and one is not None and other is not None else None
            case _:
                return None

    def _below(self, types: Types, name: str) -> Types:
        """The types of the children called ``name``; a name that none of the types has is refused."""
        if types is None:
            return None
        found: frozenset[str] = frozenset()
        for type_ in types:
            below = self._model.declared(type_, name)
            if below is None:
                return None
            found |= below
        if not found:
            raise FHIRPathError(f"FHIRPath: {' or '.join(sorted(types))} has no element {name[:64]!r}")
        return found

    def _call(self, ast: Call, focus: Types) -> Types:
        left = self.types(ast.left, focus)
        if ast.name in _ORDERED:
            self._require_order(ast.left)
        given = [self.types(one, left if ast.name in _OVER_ITEMS else focus) for one in ast.args]
        if ast.name == "select":
            return given[0] if given else None
        return left if ast.name in _SAME else None

    def _require_order(self, ast: Ast) -> None:
        if isinstance(ast, Call) and ast.name in _UNORDERED:
            raise FHIRPathError(f"FHIRPath: what {ast.name}() gives has no order")

    def _type_test(self, ast: TypeTest, focus: Types) -> Types:
        self.types(ast.operand, focus)
        space, _, bare = ast.type_name.rpartition(".")
        known = space != "System" and self._model.is_type(bare)
        if not known and (space == "FHIR" or bare not in _SYSTEM) and not (
                space == "System" and ast.operator == "is"):
            raise FHIRPathError(f"FHIRPath: there is no type {ast.type_name[:64]!r}")
        return frozenset({bare}) if known and ast.operator != "is" else None
