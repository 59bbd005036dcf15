"""Three-valued logic: how N1 joins True, False and the empty collection.

Owns the connectives as closures over two tests; refuses to ask the second where the first decides.
http://hl7.org/fhirpath/N1/#boolean-logic
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.fhir.fhirpath.node import Context, Json

Truth = Callable[[Json, Context], bool | None]
"""(focus, context) -> True, False, or None where N1 has the empty collection."""


def connect(operator: str, left: Truth, right: Truth) -> Truth:
    """Both joined by ``and``, ``or``, ``implies`` or ``xor``."""
    if operator == "and":

        def conjunction(value: Json, context: Context) -> bool | None:
            one = left(value, context)
            if one is False:
                return False
            other = right(value, context)
            return other if one or other is False else None

        return conjunction
    if operator == "or":

        def disjunction(value: Json, context: Context) -> bool | None:
            one = left(value, context)
            if one:
                return True
            other = right(value, context)
            return other if one is False or other else None

        return disjunction
    if operator == "implies":

        def implication(value: Json, context: Context) -> bool | None:
            one = left(value, context)
            if one is False:
                return True
            other = right(value, context)
            return other if one or other else None

        return implication

    def exclusive(value: Json, context: Context) -> bool | None:
        one, other = left(value, context), right(value, context)
        return None if one is None or other is None else one != other

    return exclusive


def negate(test: Truth) -> Truth:
    """``not()``: empty stays empty."""

    def negation(value: Json, context: Context) -> bool | None:
        truth = test(value, context)
        return None if truth is None else not truth

    return negation


def agree(left: Truth, right: Truth, wanted: bool) -> Truth:
    """``=`` of two tests, or ``!=`` where it is not ``wanted``."""

    def agreement(value: Json, context: Context) -> bool | None:
        one, other = left(value, context), right(value, context)
        return None if one is None or other is None else (one == other) is wanted

    return agreement
