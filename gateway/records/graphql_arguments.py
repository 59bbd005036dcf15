"""Arguments of ``$graphql`` fields: the search they ask for, the elements they keep, the part of a list they name.

Owns how names and values of arguments read; refuses those a field does not take. https://hl7.org/fhir/R4/graphql.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.fhir.definitions import Definitions
from gateway.fhir.graphql_query import Asked, refused
from gateway.fhir.resource import DECIMAL
from gateway.fhir.xml_shapes import Shapes
from gateway.records import search

LEAF: Final = frozenset({"attribute", "primitive", "xhtml"})
"""The shapes of elements that are values, and have no fields."""


def search_pairs(definitions: Definitions, asked: Asked, type_: str, paged: bool,
                 about: str | None) -> list[tuple[str, str]]:
    """The search of a field: ``_`` stands for ``-``, several values for any of them.

    ``about``: the resource the field is asked of, to which those found refer.
    """
    codes = {code.replace("-", "_"): code for code in definitions.search_parameters(type_)}
    found: list[tuple[str, str]] = []
    for name, texts in asked.arguments.items():
        if name == "_cursor" and paged:
            if len(asked.arguments) > (2 if about else 1) or len(texts) != 1:
                raise refused("_cursor stands alone: it holds what was first asked")
            return [(search.PAGE, texts[0])]
        if name == "_reference" and about is not None:
            if len(texts) != 1 or texts[0].replace("-", "_") not in codes:
                raise refused(f"_reference names one search parameter of {type_}", code="value")
            found.append((codes[texts[0].replace("-", "_")], about))
        elif name in ("_count", "_sort", "_filter") or name in codes:
            found.append((codes.get(name, name), ",".join(texts)))
        else:
            raise refused(f"{asked.name} does not take {name[:64]!r}", code="not-supported")
    if about is not None and "_reference" not in asked.arguments:
        raise refused(f"within a resource {asked.name} takes _reference: the parameter that refers to it",
                      code="required")
    return found


def keeps(shapes: Shapes, value: Any, type_: str, asked: Asked) -> bool:
    """Whether the children that the arguments name have one of the values wanted."""
    for name, texts in asked.arguments.items():
        if name in ("_count", "_offset"):
            continue
        shape = shapes.of(type_).get(name) if type_ else None
        if shape is None or shape.kind not in LEAF:
            raise refused(f"{asked.name} is filtered by values of its own; {name[:64]!r} is none",
                          code="not-supported")
        held = value.get(name) if value is not None else None
        if not any(_text(one) in texts for one in (held if type(held) is list else [held])):
            return False
    return True


def sliced(values: Sequence[Any], asked: Asked) -> list[Any]:
    """The part of a list that ``_offset`` and ``_count`` name."""
    numbers: list[int | None] = []
    for name in ("_offset", "_count"):
        texts = asked.arguments.get(name)
        if texts is not None and (len(texts) != 1 or not texts[0].isascii() or not texts[0].isdecimal()
                                  or len(texts[0]) > 9):
            raise refused(f"{name} is a natural number", code="value")
        numbers.append(int(texts[0]) if texts else None)
    start = numbers[0] or 0
    return list(values[start:] if numbers[1] is None else values[start:start + numbers[1]])


def _text(value: Any) -> str | None:
    if type(value) is bool:
        return "true" if value else "false"
    return None if value is None else bytes(value).decode() if type(value) is DECIMAL else str(value)
