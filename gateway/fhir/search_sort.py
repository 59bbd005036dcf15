"""The value a resource is sorted by, read from the resource itself.

Owns which text, date or number of a resource stands for it under a ``_sort`` key, for orders that no index keeps:
names would have to lie there in the clear. Refuses to order; of several values the least stands, descending the
greatest. https://hl7.org/fhir/R4/search.html#sort
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gateway.errors import FHIRPathError
from gateway.fhir import search_emit as emit
from gateway.fhir.fhirpath import Context, compile_expression
from gateway.fhir.query import SortKey
from gateway.fhir.resource import reference_target
from gateway.fhir.search_encoding import normal
from gateway.fhir.search_paths import Json, walker
from gateway.fhir.search_plan import Plan, Plans

SortValue = str | float
_NAME = ("family", "given", "text")
_ADDRESS = ("country", "state", "city", "postalCode", "line", "text")
_WORDS = ("code", "value", "text", "display", "reference")
_Ordering = Callable[[Iterable[SortValue]], SortValue]


def sort_value(plans: Plans, type_name: str, key: SortKey) -> Callable[[Mapping[str, Json]], SortValue | None]:
    """The reader of one key: a resource to its value, None where it has none. Every value of a key compares.

    ``key`` names a parameter of ``type_name``, not ``_id`` or ``_lastUpdated``.
    """
    plan = plans.of(type_name)[key.key.partition(".")[2].partition("~")[0]]
    pick: _Ordering = max if key.descending else min
    values = _values(plan)
    read = {"date": _dates, "number": _numbers}.get(key.kind, _texts)

    def value(resource: Mapping[str, Json]) -> SortValue | None:
        found = [one for item in values(resource) for one in read(item, plan, key.descending)]
        return pick(found) if found else None

    return value


def _values(plan: Plan) -> Callable[[Mapping[str, Json]], list[Json]]:
    if plan.sources is None:
        expression = compile_expression(plan.parameter.expression)

        def evaluated(resource: Mapping[str, Json]) -> list[Json]:
            try:
                return list(expression.evaluate(resource, Context(resource=resource)))
            except FHIRPathError:
                return []  # a value the expression was not written for sorts as none

        return evaluated
    walks = [(walker(source.steps), source.only) for source in plan.sources]
    return lambda resource: [value for walk, only in walks for value in walk(resource) if _is_to(value, only)]


def _is_to(value: Json, only: str | None) -> bool:
    """Whether a reference is to a type; any value is where no type is asked."""
    if only is None:
        return True
    text = value.get("reference") if type(value) is dict else value
    return type(text) is str and reference_target(text).type == only


def _dates(value: Json, _: Plan, __: bool) -> Iterable[SortValue]:
    found = emit.dated(value)
    return () if found is None else (found[0],)


def _numbers(value: Json, _: Plan, __: bool) -> Iterable[SortValue]:
    return [low for low, _, _, _ in emit.quantity(value)]


def _texts(value: Json, plan: Plan, descending: bool) -> Iterable[SortValue]:
    if type(value) is dict:
        if type(value.get("coding")) is list:
            found = [text for one in value["coding"] if type(one) is dict for text in _texts(one, plan, descending)]
            return found or _plain(value.get("text"), plan)
        names = next((names for names in (_NAME, _ADDRESS) if not value.keys().isdisjoint(names[:-1])), ())
        if names:
            parts = [part for name in names for part in _strings(value.get(name))]
            return _plain(" ".join(parts), plan)
        return next((_plain(value[name], plan) for name in _WORDS if type(value.get(name)) is str), ())
    if type(value) is bool:
        return ("true",) if value else ("false",)
    return _plain(value if type(value) is str else None if value is None else str(value), plan)


def _strings(value: Json) -> list[str]:
    return [one for one in (value if type(value) is list else [value]) if type(one) is str]


def _plain(text: str | None, plan: Plan) -> tuple[str, ...]:
    if not text:
        return ()
    return (normal(text) or text,) if plan.parameter.type == "string" else (text,)
