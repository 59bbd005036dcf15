"""Chained parameters and ``_has``: names that lead through references to a parameter of another resource.

Owns their grammar, which types an untyped link may lead to, and the same question asked of contained resources (R4
3.1.1.5.8); refuses a link that no reference parameter is, and more links than a statement holds.
https://hl7.org/fhir/R4/search.html#chaining, https://hl7.org/fhir/R4/search.html#has
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway.errors import BadSearch
from gateway.fhir.query import (
    AllOf,
    AnyOf,
    Criterion,
    DateIs,
    HashIs,
    Not,
    NumberIs,
    Predicate,
    ReferredBy,
    RefersTo,
)
from gateway.fhir.search_criteria import Criteria
from gateway.fhir.search_encoding import contained_key
from gateway.fhir.search_plan import Plan
from gateway.fhir.search_results import Unsupported

Reader = Callable[[str], Criterion]
"""What is asked of a resource of a type. Raises Unsupported, BadSearch where it has no such parameter."""
DEPTH_MAX = 10
"""Most links one after another."""
_TYPES_MAX = 24
"""Most types an untyped link is tried on."""
_BRANCHES_MAX = 64
"""Most links of one parameter, all its alternatives counted."""
MADE = frozenset({"AuditEvent"})
"""Made from the log when asked for: not in the index that links are followed by."""


def is_link(name: str) -> bool:
    """Whether a parameter's name leads to another resource."""
    return name.startswith("_has:") or "." in name.partition(":_has")[0]


def linked(criteria: Criteria, type_name: str, name: str, value: str) -> Criterion:
    """A chain or ``_has`` as a criterion on ``type_name``. Raises Unsupported, BadSearch."""
    if criteria.alone:
        raise Unsupported(f"{name}: other resources are not asked about here")
    return _counted(lambda: _read(criteria, type_name, name, value, name, 0), name)


class _Crowded(Exception):  # control flow: no other type is tried
    pass


def _counted(read: Callable[[], Criterion], asked: str) -> Criterion:
    try:
        return _few(read())
    except _Crowded as error:
        raise BadSearch(f"{asked}: it may lead along more than {_BRANCHES_MAX} links; name the types",
                        code="too-costly", expression=f"http.{asked}") from error


def _few(found: Criterion) -> Criterion:
    if sum(map(_links, found.any_of)) > _BRANCHES_MAX:
        raise _Crowded
    return found


def _read(criteria: Criteria, type_name: str, name: str, value: str, asked: str, depth: int) -> Criterion:
    if not is_link(name):
        return criteria.criterion(type_name, name, value, asked=asked)
    if depth >= DEPTH_MAX:
        raise BadSearch(f"{asked}: more than {DEPTH_MAX} links", code="too-costly", expression=f"http.{asked}")
    if type_name in MADE:
        raise Unsupported(f"{asked}: {type_name} is made from the log and linked to nothing")
    if name.startswith("_has:"):
        return _reverse(criteria, type_name, name, value, asked, depth)
    head, _, rest = name.partition(".")
    return _chain(criteria, type_name, head, rest,
                  lambda target: _read(criteria, target, rest, value, asked, depth + 1), asked)


def _reverse(criteria: Criteria, type_name: str, name: str, value: str, asked: str, depth: int) -> Criterion:
    parts = name.split(":", 3)
    if len(parts) != 4 or not all(parts):
        raise BadSearch(f"{asked}: _has:Type:reference:parameter is expected", code="value", expression=f"http.{asked}")
    _, source, code, rest = parts
    _check_type(criteria, source, asked)
    plan = _reference(criteria, source, code, asked)
    if plan.parameter.targets and type_name not in plan.parameter.targets:
        raise BadSearch(f"{asked}: {source}.{code} refers to no {type_name}", code="value", expression=f"http.{asked}")
    inner = _read(criteria, source, rest, value, asked, depth + 1)
    return Criterion(tuple(
        ReferredBy(source, stored.key, (inner,), stored.canonical) for stored, only in _stored(criteria, source, plan)
        if only is None or only == type_name))


def linked_to(criteria: Criteria, type_name: str, head: str, rest: str, read: Reader) -> Criterion:
    """A link ``reference`` or ``reference:Type`` to what ``read`` asks of each type; ``rest`` is a path on that type.

    For ``_filter``, whose brackets ask several things of one resource. Raises Unsupported, BadSearch.
    """
    if criteria.alone:
        raise Unsupported("_filter: other resources are not asked about here")
    return _counted(lambda: _chain(criteria, type_name, head, rest, read, "_filter"), "_filter")


def _chain(criteria: Criteria, type_name: str, head: str, rest: str, read: Reader, asked: str) -> Criterion:
    code, colon, wanted = head.partition(":")
    plan = _reference(criteria, type_name, code, asked)
    if colon:
        _check_type(criteria, wanted, asked)
    predicates: list[Predicate] = []
    for stored, only in _stored(criteria, type_name, plan):
        if colon and only is not None and only != wanted:
            continue
        targets = [wanted] if colon else [only] if only is not None else _targets(criteria, plan, rest, asked)
        predicates += _to_any(stored, targets, read)
    return _few(Criterion(tuple(dict.fromkeys(predicates))))


def _to_any(plan: Plan, targets: Sequence[str], read: Reader) -> list[Predicate]:
    """Links to each of the types whose parameter takes the value; the first refusal where none does."""
    found: list[Predicate] = []
    refused: BadSearch | Unsupported | None = None
    for target in targets:
        try:
            inner = read(target)
        except (BadSearch, Unsupported) as error:
            refused = refused or error
            continue
        found.append(RefersTo(plan.key, target, (inner,), typed=len(targets) == 1, canonical=plan.canonical))
        found += _contained(plan.key, target, inner)
    if not found and refused is not None:
        raise refused
    return found


def _reference(criteria: Criteria, type_name: str, code: str, asked: str) -> Plan:
    plan = criteria.plan(type_name, code)
    if plan.parameter.type != "reference" or plan.sources is None:
        raise BadSearch(f"{asked}: {type_name}.{code[:64]} refers to no resource", code="value",
                        expression=f"http.{asked}")
    return plan


def _stored(criteria: Criteria, type_name: str, plan: Plan) -> list[tuple[Plan, str | None]]:
    parameters = criteria.plans.of(type_name)
    return [(parameters[code], only) for code, only in plan.aliases or ((plan.parameter.code, None),)]


def _check_type(criteria: Criteria, type_name: str, asked: str) -> None:
    if type_name not in criteria.plans.definitions.resource_types:
        raise BadSearch(f"{asked}: {type_name[:64]!r} is no R4 resource type", code="value",
                        expression=f"http.{asked}")
    if type_name in MADE:
        raise Unsupported(f"{asked}: {type_name} is made from the log and linked to nothing")


def _targets(criteria: Criteria, plan: Plan, rest: str, asked: str) -> list[str]:
    """The types an untyped link may lead to: those that have the parameter asked of them."""
    first = rest.partition(".")[0].partition(":")[0]
    possible = [target for target in plan.parameter.targets or sorted(criteria.plans.definitions.resource_types)
                if target not in MADE and target in criteria.plans.definitions.resource_types]
    found = [target for target in possible if first == "_has" or (
        (one := criteria.plans.of(target).get(first)) is not None and not one.refused)]
    if not found:
        raise Unsupported(f"{asked}: nothing it may refer to has the parameter {first[:64]!r}")
    if len(found) > _TYPES_MAX:
        raise BadSearch(f"{asked}: it may refer to {len(found)} types; name one, as in {plan.parameter.code}:Patient",
                        code="too-costly", expression=f"http.{asked}")
    return found


def _contained(key: str, target: str, inner: Criterion) -> list[Predicate]:
    """The criterion asked of what is contained: its facts stand under keys of the outer resource."""
    within = [_within(key, one) for one in inner.any_of]
    known = tuple(one for one in within if one is not None)
    if not known or (inner.negated and len(known) < len(within)):
        return []
    if inner.negated:
        return [AllOf((HashIs(contained_key(key, target), ""), Not(AnyOf(known))))]
    return list(known)


def _within(key: str, predicate: Predicate) -> Predicate | None:
    match predicate:
        case HashIs() | NumberIs() | DateIs():
            return replace(predicate, key=contained_key(key, predicate.key))
        case AllOf(parts) | AnyOf(parts):
            found = [_within(key, part) for part in parts]
            return None if None in found else type(predicate)(tuple(one for one in found if one is not None))
        case _:
            return None


def _links(predicate: Predicate) -> int:
    match predicate:
        case RefersTo(criteria=criteria) | ReferredBy(criteria=criteria):
            return 1 + sum(_links(one) for criterion in criteria for one in criterion.any_of)
        case AllOf(parts) | AnyOf(parts):
            return sum(map(_links, parts))
        case Not(part):
            return _links(part)
        case _:
            return 0
