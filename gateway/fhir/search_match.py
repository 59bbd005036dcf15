"""A query's criteria evaluated on facts in memory.

Owns the meaning of predicates; the index must say the same in SQL. Serves granular SMART scopes and is the
oracle of the index's tests. Refuses sorting and paging. https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.errors import BadSearch
from gateway.fhir.query import (
    AllOf,
    AnyOf,
    Contains,
    Criterion,
    DateIs,
    Facts,
    HashFact,
    HashIs,
    IdIs,
    Not,
    NumberIs,
    OpenedIs,
    Predicate,
    ReferredBy,
    RefersTo,
    SpanIs,
    Under,
    UpdatedIs,
    VersionIs,
    holds,
)
from gateway.fhir.search_contained import MARK

Beyond = Callable[[RefersTo | ReferredBy | Under | OpenedIs | VersionIs], bool]
"""Answers for what facts do not hold: other resources, and what must be opened."""


class SearchMatcher:
    """Decides for one resource version whether criteria hold; made once, asked often.

    Without ``beyond``, a criterion about other resources is refused with BadSearch.
    """

    __slots__ = ("_beyond", "_facts", "_hashes", "_id", "_updated_ms")

    def __init__(self, facts: Facts, *, logical_id: str, last_updated_ms: int, beyond: Beyond | None = None) -> None:
        self._facts = facts
        self._beyond = beyond
        self._hashes = frozenset((fact.key, fact.text) for fact in facts.hashes)
        self._id = logical_id
        self._updated_ms = last_updated_ms

    def matches(self, criteria: Iterable[Criterion]) -> bool:
        """Whether every criterion holds."""
        return all(self._criterion(criterion) for criterion in criteria)

    def _criterion(self, criterion: Criterion) -> bool:
        return any(self._holds(predicate) for predicate in criterion.any_of) is not criterion.negated

    def _holds(self, predicate: Predicate) -> bool:
        match predicate:
            case HashIs(key, text):
                return (key, text) in self._hashes
            case NumberIs():
                return any(
                    holds(predicate.comparator, fact.low, fact.high, predicate.low, predicate.high)
                    for fact in self._facts.numbers
                    if fact.key == predicate.key
                    and (not predicate.unit or fact.unit == predicate.unit)
                    and (not predicate.unit_code or fact.unit_code == predicate.unit_code)
                )
            case SpanIs(key, first, last):
                return any(holds(first.comparator, fact.low, fact.low, first.low, first.high)
                           and holds(last.comparator, fact.high, fact.high, last.low, last.high)
                           for fact in self._facts.numbers if fact.key == key)
            case DateIs(key, comparator, low_ms, high_ms):
                return any(
                    holds(comparator, fact.low_ms, fact.high_ms, low_ms, high_ms)
                    for fact in self._facts.dates
                    if fact.key == key
                )
            case IdIs(logical_id):
                return self._id == logical_id
            case UpdatedIs(comparator, low_ms, high_ms):
                return holds(comparator, self._updated_ms, self._updated_ms + 1, low_ms, high_ms)
            case AllOf(predicates):
                return all(self._holds(one) for one in predicates)
            case AnyOf(predicates):
                return any(self._holds(one) for one in predicates)
            case Not(one):
                return not self._holds(one)
            case Contains(type_, criteria):
                mark = HashFact(MARK, type_)
                return any(mark in inner.hashes and SearchMatcher(
                    inner, logical_id="", last_updated_ms=0, beyond=self._beyond).matches(criteria)
                    for _, inner in self._facts.contained)
            case RefersTo() | ReferredBy() | Under() | OpenedIs() | VersionIs():
                if self._beyond is None:
                    raise BadSearch("what one resource alone does not tell cannot be asked here", code="not-supported")
                return self._beyond(predicate)


def matches(criteria: Iterable[Criterion], facts: Facts, logical_id: str, last_updated_ms: int) -> bool:
    """``SearchMatcher`` for a single question."""
    return SearchMatcher(facts, logical_id=logical_id, last_updated_ms=last_updated_ms).matches(criteria)
