"""``_contained``: what is asked of a type, asked of the resources of that type which others contain.

Owns the keys that facts of contained resources stand under, apart from all others so that no ordinary search meets
them, and the query that a container is found by; refuses an order by values of theirs. Who may see what is contained is
who may see its container: nothing here decides. https://hl7.org/fhir/R4/search.html#contained
"""

from __future__ import annotations

from dataclasses import replace

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
    Parts,
    Predicate,
    Query,
    RefersTo,
    SpanIs,
    Under,
)
from gateway.fhir.search_encoding import contained_key

PLACES_MAX = 4_095
"""Most contained resources of one resource that are indexed."""
ID = "_id"
MARK = contained_key("", "")
"""Under it stands the type of a contained resource."""


def holder(type_name: str, contained: str) -> HashFact:
    """That a ``type_name`` contains a ``contained``: what containers are found by where nothing narrower does."""
    return HashFact(contained_key("", type_name), contained)


def facts_within(type_name: str, id_: object, facts: Facts) -> Facts:
    """The facts of a contained ``type_name`` under their own keys; its id is searched by its hash."""
    named = [HashFact(contained_key("", ID), id_)] if type(id_) is str else []
    return Facts(
        hashes=(HashFact(MARK, type_name), *named,
                *[HashFact(contained_key("", fact.key), fact.text) for fact in facts.hashes]),
        numbers=tuple([replace(fact, key=contained_key("", fact.key)) for fact in facts.numbers]),
        dates=tuple([replace(fact, key=contained_key("", fact.key)) for fact in facts.dates]),
        references=tuple([HashFact(contained_key("", fact.key), fact.text) for fact in facts.references]))


def check(query: Query) -> None:
    """Raises BadSearch for what cannot be asked together with ``_contained``.

    Several keys are sorted otherwise where several types contain any, which is known of hidden resources too.
    """
    if len(query.sort) > 1 or any(key.kind not in ("id", "updated") for key in query.sort):
        raise BadSearch("_sort: what is contained is in the order of its containers, by _id or by _lastUpdated",
                        code="not-supported", expression="http._sort")
    if query.results.inner and query.results.includes:
        raise BadSearch("_containedType=contained goes with no _include and no _revinclude", code="not-supported",
                        expression="http._containedType")


def of_container(query: Query, container: str) -> Query:
    """The query that finds the ``container`` resources in which ``query``'s type is contained and meets its criteria.

    Where ``_contained=both`` and a container is itself of that type, it is found by its own values too.
    """
    inside = Contains(query.type, tuple(_inner(criterion) for criterion in query.criteria))
    itself = query.criteria if query.results.contained == "both" and container == query.type else None
    mark = holder(container, query.type)
    criteria: tuple[Criterion, ...] = (Criterion((HashIs(mark.key, mark.text),)), Criterion((inside,)))
    if itself is not None:
        criteria = (Criterion((AllOf(tuple(_whole(one) for one in itself)), inside)),)
    return replace(query, type=container, criteria=criteria,
                   parts=Parts(inside, itself) if query.results.inner else None)


def _whole(criterion: Criterion) -> Predicate:
    found = criterion.any_of[0] if len(criterion.any_of) == 1 else AnyOf(criterion.any_of)
    return Not(found) if criterion.negated else found


def _inner(criterion: Criterion) -> Criterion:
    return Criterion(tuple(_within(one) for one in criterion.any_of), criterion.negated)


def _within(predicate: Predicate) -> Predicate:
    match predicate:
        case HashIs() | NumberIs() | DateIs() | SpanIs() | RefersTo() | Under():
            return replace(predicate, key=contained_key("", predicate.key))
        case IdIs(id_):
            return HashIs(contained_key("", ID), id_)
        case AllOf(parts) | AnyOf(parts):
            return type(predicate)(tuple(_within(part) for part in parts))
        case Not(part):
            return Not(_within(part))
        case OpenedIs():
            return replace(predicate, contained=True)
        case _:
            return AnyOf(())  # nothing from outside refers to it, and it has no instant of its own
