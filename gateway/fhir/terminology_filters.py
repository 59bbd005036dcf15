"""Filters of a value set's include, by all nine operators of R4.

Owns whether a concept passes one; refuses a property the system does not have and a value that is none of its codes,
so that a slip is an error and not an empty set. https://hl7.org/fhir/R4/valueset-filter-operator.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import Unprocessable
from gateway.fhir.terminology_regex import Regex
from gateway.fhir.terminology_tables import CodeSystem, Concept

Passes = Callable[[Concept], bool]
_HIERARCHIC = frozenset({"is-a", "descendent-of", "is-not-a", "generalizes"})
_PLACE = "ValueSet.compose.include.filter"


def concept_filter(system: CodeSystem, row: Mapping[str, Any]) -> Passes:
    """The test of ``ValueSet.compose.include.filter``. Raises Unprocessable, TooCostly."""
    name, operator, value = row.get("property"), row.get("op"), row.get("value")
    if type(name) is not str or type(operator) is not str or type(value) is not str:
        raise Unprocessable("a filter needs property, op and value", code="required", expression=_PLACE)
    if not system.has_property(name):
        raise Unprocessable(f"the code system {system.url} has no such property", code="not-supported",
                            expression=f"{_PLACE}.property")
    if operator in _HIERARCHIC:
        return _hierarchic(system, name, operator, value)
    if operator == "=":
        return _codes(system, name, [value])
    if operator in ("in", "not-in"):
        inside = _codes(system, name, [part.strip() for part in value.split(",")])
        return inside if operator == "in" else lambda concept: not inside(concept)
    if operator == "exists":
        if value not in ("true", "false"):
            raise Unprocessable("the value of an exists filter is true or false", code="value",
                                expression=f"{_PLACE}.value")
        wanted = value == "true"
        return lambda concept: bool(concept.values(name)) is wanted
    if operator == "regex":
        expression = Regex(value)
        return lambda concept: any(expression.fullmatch(one) for one in concept.values(name))
    raise Unprocessable("the filter has no operator of R4", code="not-supported", expression=f"{_PLACE}.op")


def _codes(system: CodeSystem, name: str, values: list[str]) -> Passes:
    wanted = frozenset(values)
    if system.case_sensitive or name not in ("code", "concept", "parent", "child"):
        return lambda concept: any(one in wanted for one in concept.values(name))
    folded = frozenset(one.casefold() for one in wanted)
    return lambda concept: any(one.casefold() in folded for one in concept.values(name))


def _hierarchic(system: CodeSystem, name: str, operator: str, value: str) -> Passes:
    if name not in ("concept", "code"):
        raise Unprocessable(f"{operator} is asked of concept or code", code="not-supported",
                            expression=f"{_PLACE}.property")
    if not system.is_a:
        raise Unprocessable(f"the hierarchy of {system.url} does not mean is-a", code="not-supported",
                            expression=f"{_PLACE}.op")
    root = system.find(value)
    if root is None:
        raise Unprocessable(f"the code system {system.url} does not have the filter's code", code="code-invalid",
                            expression=f"{_PLACE}.value")
    if operator == "generalizes":
        above = system.ancestors(root.code) | {root.code}
        return lambda concept: concept.code in above
    below = system.descendants(root.code) | (frozenset() if operator == "descendent-of" else {root.code})
    if operator == "is-not-a":
        return lambda concept: concept.code not in below
    return lambda concept: concept.code in below
