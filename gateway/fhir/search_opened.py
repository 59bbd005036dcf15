"""What is asked of opened resources: parts of strings, words of the narrative and of everything, true distances.

Owns the readers named by ``OpenedIs.how``; refuses to fetch anything. https://hl7.org/fhir/R4/search.html#string
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from gateway.fhir.query import OpenedIs
from gateway.fhir.search_encoding import normal
from gateway.fhir.search_near import circle
from gateway.fhir.search_paths import Json, walker
from gateway.fhir.search_plan import NEAR, Plan, Plans
from gateway.fhir.search_words import READERS, words

Reader = Callable[[Mapping[str, Json]], bool]

_PARTS = {"HumanName": ("family", "given", "prefix", "suffix", "text"),
          "Address": ("line", "city", "district", "state", "postalCode", "country", "text")}


class Opened:
    """Answers for resources as parsed. Make one per process; safe to share."""

    def __init__(self, plans: Plans) -> None:
        self._plans = plans

    def reader(self, asked: OpenedIs) -> Reader:
        """Whether a resource of the type meets the predicate."""
        plan = self._plans.of(asked.type)[asked.code]
        if asked.how in READERS:
            read = READERS[asked.how]
            return lambda resource: any(asked.text in words(text) for text in read(resource))
        if asked.how == NEAR:
            around = circle(asked.text, asked.code)
            return lambda resource: around.holds(resource.get("position"))
        compare = _COMPARES[asked.how]
        values = _values(plan)
        return lambda resource: any(compare(normal(one), asked.text) for one in values(resource))


_COMPARES: Mapping[str, Callable[[str, str], bool]] = {
    "contains": lambda value, text: text in value,
    "ends": lambda value, text: value.endswith(text),
    "equals": lambda value, text: value == text,
}


def _values(plan: Plan) -> Callable[[Mapping[str, Json]], Iterator[str]]:
    walks = [(walker(source.steps), source.type) for source in plan.sources or ()]

    def values(resource: Mapping[str, Json]) -> Iterator[str]:
        for walk, type_ in walks:
            for value in walk(resource):
                yield from _texts(value, type_)

    return values


def _texts(value: Json, type_: str) -> Iterator[str]:
    if type(value) is str:
        yield value
    elif type(value) is dict:
        if type_ == "CodeableConcept":
            codings = value.get("coding")
            yield from _plain([value.get("text")])
            yield from _plain(one.get("display") for one in (codings if type(codings) is list else ())
                              if type(one) is dict)
        for name in _PARTS.get(type_, ()):
            part = value.get(name)
            yield from _plain(part if type(part) is list else [part])


def _plain(values: Iterable[Json]) -> Iterator[str]:
    yield from (one for one in values if type(one) is str)
