"""A query string to a Query.

Owns parameter names, modifiers, OR and AND, sorting and counting; refuses what it cannot run: unknown
parameters when strict, bad values and modifiers always. https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gateway.errors import BadSearch
from gateway.fhir.query import (
    AllOf,
    AnyOf,
    Criterion,
    HashIs,
    Not,
    Predicate,
    Query,
    ReferredBy,
    RefersTo,
    SortKey,
)
from gateway.fhir.search_chain import is_link, linked
from gateway.fhir.search_codes import BoundCodes, Codes
from gateway.fhir.search_criteria import Criteria
from gateway.fhir.search_filter import filtered
from gateway.fhir.search_plan import Plan, Plans
from gateway.fhir.search_results import ResultsDraft, Unsupported
from gateway.fhir.search_terms import Terms

Parameters = Mapping[str, Plan]

_HANDLED_BEFORE = frozenset({"_format", "_pretty"})
_CRITERIA_MAX = 100
_SORT_MAX = 10
_PREDICATES_MAX = 5_000
_RANGES_MAX = 500
"""Most predicates of a query that are no hash: each is a subquery of its own. SQLite takes 32,766 variables and
expressions 1,000 deep, so that a query within these limits is always carried out."""
_RANGES_INSIDE_MAX = 200
"""The same of what is contained: it is asked one level deeper, and of the container too."""


@dataclass(slots=True)
class _Draft:
    """A query being read."""

    results: ResultsDraft
    criteria: list[Criterion] = field(default_factory=list)
    sort: list[SortKey] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def parse_query(plans: Plans, type_name: str, pairs: Sequence[tuple[str, str]], *, strict: bool,
                own_bases: Iterable[str], max_count: int, now_ms: int, codes: Codes | None = None,
                alone: bool = False, inside: bool = False) -> Query:
    """Read the decoded name/value pairs of a type-level search.

    ``codes`` answers for value sets and hierarchies; without it, only R4's bound value sets are known. ``alone``:
    only what the facts of one resource tell may be asked, as a granular scope must. ``inside``: ``_contained`` may say
    that resources within others are meant.
    ``own_bases`` are this server's base URLs; ``now_ms`` is the moment ``ap`` on dates measures from;
    ``_count`` is cut to ``max_count``. Raises BadSearch: with code ``not-supported`` for an unknown parameter
    when ``strict`` (else it is dropped and named in ``ignored``) and for a modifier that is not supported,
    with another code for a value that is none.
    """
    parameters = plans.of(type_name)
    bases = frozenset(base.rstrip("/") for base in own_bases)
    terms = Terms(definitions=plans.definitions, own_bases=bases, now_ms=now_ms)
    criteria = Criteria(plans=plans, terms=terms, codes=codes or BoundCodes(plans.definitions), alone=alone)
    draft, used = _Draft(ResultsDraft(plans, type_name, max_count, inside)), []
    for name, value in pairs:
        if name in _HANDLED_BEFORE:
            continue
        try:
            if name.startswith("_") and _control(draft, type_name, parameters, name, value):
                used.append((name, value))
                continue
            read = filtered if name == "_filter" else linked if is_link(name) else Criteria.criterion
            draft.criteria.append(read(criteria, type_name, name, value))
            _check_size(draft.criteria, name)
            used.append((name, value))
        except Unsupported as unknown:
            if strict:
                raise BadSearch(str(unknown), code="not-supported", expression=f"http.{name}") from unknown
            draft.ignored.append(str(unknown))
    if draft.results.contained != "false":
        _check_size(draft.criteria, "_contained", _RANGES_INSIDE_MAX)
    return Query(type=type_name, criteria=tuple(draft.criteria), sort=tuple(draft.sort),
                 count=draft.results.page_size, summary_count=draft.results.counts_only, used=tuple(used),
                 ignored=tuple(draft.ignored), results=draft.results.results())


def _check_size(criteria: Sequence[Criterion], name: str, ranges_max: int = _RANGES_MAX) -> None:
    leaves = [leaf for criterion in criteria for one in criterion.any_of for leaf in _leaves(one)]
    ranges = sum(type(one) is not HashIs for one in leaves) if len(leaves) > ranges_max else 0
    if len(criteria) > _CRITERIA_MAX or len(leaves) > _PREDICATES_MAX or ranges > ranges_max:
        raise BadSearch("the search asks for too much at once: use fewer parameters or values", code="too-costly",
                        expression=f"http.{name}")


def _leaves(predicate: Predicate) -> Iterator[Predicate]:
    match predicate:
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from _leaves(part)
        case Not(part):
            yield from _leaves(part)
        case RefersTo(criteria=criteria) | ReferredBy(criteria=criteria):
            yield predicate
            for criterion in criteria:
                for one in criterion.any_of:
                    yield from _leaves(one)
        case _:
            yield predicate


def _control(draft: _Draft, type_name: str, parameters: Parameters, name: str, value: str) -> bool:
    """Parameters about the answer, not the resources; False for any other."""
    if name != "_sort":
        return draft.results.take(name, value)
    if not value:
        raise BadSearch("_sort: a value is missing", code="value", expression="http._sort")
    keys = value.split(",")
    if len(draft.sort) + len(keys) > _SORT_MAX:
        raise BadSearch(f"_sort: more than {_SORT_MAX} keys", code="too-costly", expression="http._sort")
    draft.sort += [_sort_key(type_name, parameters, one) for one in keys]
    return True


def _sort_key(type_name: str, parameters: Parameters, text: str) -> SortKey:
    descending, code = text.startswith("-"), text.removeprefix("-")
    if code == "_id":
        return SortKey("_id", "id", descending)
    if code == "_lastUpdated":
        return SortKey("_lastUpdated", "updated", descending)
    plan = parameters.get(code)
    if plan is None or plan.refused or plan.components:
        raise Unsupported(f"_sort: {type_name} cannot be sorted by {code!r}")
    joined = len(plan.aliases) > 1
    if len(plan.aliases) == 1 and plan.aliases[0][1] is None:
        plan = parameters[plan.aliases[0][0]]
    kind: Literal["date", "number", "string"] = "string"
    if plan.parameter.type == "date" and not plan.ladder:
        kind = "date"
    elif plan.parameter.type in ("number", "quantity"):
        kind = "number"
    return SortKey(plan.key, kind, descending, joined)
