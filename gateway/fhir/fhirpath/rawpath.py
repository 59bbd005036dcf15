"""Plain paths over bare dicts: the quick way to the values behind ``a.b.c``.

Owns recognising such paths in a tree and compiling their accessors; refuses anything that needs types or
what hangs on a primitive (it gives None, and the caller takes the general way).
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.fhir.fhirpath.node import Context, Json, TypeModel, choice_key
from gateway.fhir.fhirpath.parser import Ast, Member, This, Variable

RawValues = Callable[[Json, Context], list[Json]]
"""(focus, context) -> values in order; None stands for an element with extensions but no value."""

_ON_PRIMITIVES = frozenset({"extension", "id"})


def steps_of(ast: Ast) -> tuple[str, tuple[str, ...]] | None:
    """(base, names) of a plain path: base is 'this', 'resource', 'root' or the type name at its head."""
    names: list[str] = []
    while isinstance(ast, Member):
        if ast.first:
            if ast.name[0].isupper():
                return ast.name, tuple(reversed(names))
            names.append(ast.name)
            return "this", tuple(reversed(names))
        names.append(ast.name)
        ast = ast.left
    if isinstance(ast, This):
        return "this", tuple(reversed(names))
    if isinstance(ast, Variable) and ast.name in ("resource", "rootResource"):
        return ("resource" if ast.name == "resource" else "root"), tuple(reversed(names))
    return None


def _side_values(side: Json) -> list[Json]:
    return [None for one in side if one is not None] if type(side) is list else [None]


def values_of(value: Json, name: str, choice: bool) -> list[Json]:
    """Values of the child ``name`` of one JSON value."""
    if type(value) is not dict:
        return []
    found = value.get(name)
    if found is None:
        side = value.get("_" + name)
        if side is not None:
            return _side_values(side)
        if not choice:
            return []
        key = choice_key(value, name, None)
        if key is None:
            return []
        found = value.get(key[0])
        return [found]
    return found if type(found) is list else [found]


def raw_values(ast: Ast, model: TypeModel | None, *, nested: bool) -> RawValues | None:
    """The accessor of a plain path, or None. ``nested``: the focus may be a primitive's bare value."""
    found = steps_of(ast)
    if found is None:
        return None
    base, names = found
    risky = names if nested and base == "this" else names[1:]
    if not _ON_PRIMITIVES.isdisjoint(risky):
        return None
    steps = tuple((name, model is None or bool(model.choice_keys(name))) for name in names)

    if base == "this" and not steps:
        return lambda value, context: [value]
    if base == "this" and len(steps) == 1:
        name, choice = steps[0]
        return lambda value, context: values_of(value, name, choice)

    def walk(value: Json, context: Context) -> list[Json]:
        if base == "resource":
            value = value if context.resource is None else context.resource
        elif base == "root":
            value = context.root or context.resource or value
        elif base != "this" and (type(value) is not dict or value.get("resourceType") != base):
            return []
        values = [value]
        for name, choice in steps:
            if len(values) == 1:
                values = values_of(values[0], name, choice)
            else:
                values = [one for each in values for one in values_of(each, name, choice)]
            if not values:
                return values
        return values

    return walk


def child_count(value: Json) -> int:
    """children().count() of one JSON value."""
    if type(value) is not dict:
        return 0
    count = 0
    for key, found in value.items():
        if key == "resourceType":
            continue
        if key[0] == "_":
            if key[1:] not in value:
                count += len(_side_values(found))
        else:
            count += len(found) if type(found) is list else 1
    return count
