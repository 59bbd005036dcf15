"""SearchParameter resources that clients bring: what one means, as plans beside R4's own.

Owns which may be used (active, of known types, under a code of its own, with an expression that yields what its kind is
made of); refuses the others, naming the place. A custom parameter finds; it never decides: granular scopes know R4's
parameters alone. https://hl7.org/fhir/R4/searchparameter.html

Its key holds a digest of what it means, so that rows of an earlier meaning under the same code are never found by it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from gateway.errors import FHIRPathError, Issue, Unprocessable
from gateway.fhir.definitions import Definitions, SearchParameter, SearchType
from gateway.fhir.fhirpath import Context, compile_expression
from gateway.fhir.search_paths import Paths
from gateway.fhir.search_plan import Plan, components_of

MAKINGS: Final[Mapping[str, frozenset[str]]] = {
    "token": frozenset(["boolean", "canonical", "code", "id", "oid", "string", "uri", "url", "uuid",
                        "CodeableConcept", "Coding", "ContactPoint", "Identifier"]),
    "string": frozenset(["markdown", "string", "Address", "CodeableConcept", "HumanName"]),
    "reference": frozenset(["canonical", "Reference"]),
    "uri": frozenset(["canonical", "oid", "uri", "url", "uuid"]),
    "date": frozenset(["date", "dateTime", "instant", "Period", "Timing"]),
    "number": frozenset(["decimal", "integer", "positiveInt", "unsignedInt"]),
    "quantity": frozenset(["Age", "Count", "Distance", "Duration", "Money", "MoneyQuantity", "Quantity", "Range",
                           "SampledData", "SimpleQuantity"])}
"""The types of elements a parameter of each kind is made of."""
PERSONS: Final = frozenset({"Patient", "Person", "Practitioner", "RelatedPerson"})
"""A date in these may name a person: it is kept as a ladder of hashes, never as a number that compares."""
_MOMENTS: Final = frozenset({"date", "dateTime", "instant"})
_MADE: Final = "AuditEvent"
"""Made from the log, and searched by what the log's rows hold."""
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_EXPRESSION_MAX: Final = 2_000
_BASES_MAX: Final = 150


@dataclass(frozen=True, slots=True)
class Custom:
    """One usable SearchParameter: a plan for each type that it adds a parameter to."""

    url: str
    code: str
    plans: Mapping[str, Plan]


def is_used(resource: Mapping[str, Any]) -> bool:
    """Whether the resource asks to be searched by: drafts and retired ones are only kept."""
    return resource.get("status") == "active"


def read(definitions: Definitions, resource: Mapping[str, Any]) -> Custom:
    """What an active, structurally valid SearchParameter means. Raises Unprocessable naming every place at fault."""
    code, kind = str(resource["code"]), str(resource["type"])
    issues: list[Issue] = []
    if not _CODE.fullmatch(code):
        issues.append(_issue("code", "value", "is letters, digits and - after a letter, 64 at most"))
    if kind not in MAKINGS and kind != "composite":
        issues.append(_issue("type", "not-supported", "special is for parameters a server knows by itself"))
    text = resource.get("expression")
    if type(text) is not str:
        issues.append(_issue("expression", "required", "is needed: without one nothing is found"))
    elif len(text) > _EXPRESSION_MAX:
        issues.append(_issue("expression", "too-long", f"holds more than {_EXPRESSION_MAX} characters"))
    bases = list(dict.fromkeys(resource["base"]))
    for place, base in enumerate(resource["base"]):
        if base not in definitions.resource_types or base == _MADE:
            issues.append(_issue(f"base[{place}]", "not-supported", "is no type of R4 that is stored: name each type"))
    if len(bases) > _BASES_MAX:
        issues.append(_issue("base", "too-costly", f"names more than {_BASES_MAX} types"))
    if issues:
        raise Unprocessable(issues)
    plans: dict[str, Plan] = {}
    for base in bases:
        own = definitions.search_parameters(base).get(code)
        if own is not None and own.url == resource["url"]:
            continue  # R4's own definition, kept like any resource
        if own is not None:
            raise Unprocessable([_issue("code", "duplicate", f"is that of a parameter R4 gives to {base}")])
        plans[base] = _plan(definitions, base, cast(SearchType, kind), resource)
    return Custom(str(resource["url"]), code, plans)


def _plan(definitions: Definitions, base: str, kind: SearchType, resource: Mapping[str, Any]) -> Plan:
    code, text = str(resource["code"]), str(resource["expression"])
    parameter = SearchParameter(code=code, type=kind, expression=text, url=str(resource["url"]),
                                targets=tuple(resource.get("target", ())),
                                components=_components(definitions, base, resource) if kind == "composite" else ())
    paths = Paths(definitions)
    try:
        sources = paths.sources(text, base)
        if sources is None:
            _try(text, base)
    except FHIRPathError as error:
        raise Unprocessable([_issue("expression", "invalid", f"cannot be used: {error}")]) from error
    except RecursionError as error:
        raise Unprocessable([_issue("expression", "too-costly", "is too long a chain")]) from error
    plan = Plan(key=f"{base}.{code}~{_digest(base, kind, resource)}", parameter=parameter, sources=sources, custom=True)
    if kind == "composite":
        return _composite(paths, definitions, base, plan)
    if sources is None:
        return replace(plan, ladder=kind == "date" and base in PERSONS)
    fitting = tuple(one for one in sources if one.type in MAKINGS[kind])
    if not fitting:
        what = "names no element" if not sources else f"yields nothing that a {kind} parameter is made of"
        raise Unprocessable([_issue("expression", "invalid", f"{what} in {base}")])
    moments = tuple(one for one in fitting if one.type in _MOMENTS)
    if kind == "date" and base in PERSONS and moments:
        return replace(plan, sources=moments, ladder=True)
    return replace(plan, sources=fitting)


def _composite(paths: Paths, definitions: Definitions, base: str, plan: Plan) -> Plan:
    components = None if plan.sources is None else components_of(
        paths, definitions.search_parameters(base), base, plan.parameter, plan.sources)
    if components is None:
        raise Unprocessable([_issue("component", "not-supported", f"has parts that cannot be combined in {base}: "
                                    "plain paths can, a number or date at the end alone")])
    return replace(plan, components=components)


def _components(definitions: Definitions, base: str, resource: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    by_url = {one.url: code for code, one in definitions.search_parameters(base).items()}
    found = []
    for place, component in enumerate(resource.get("component", ())):
        code = by_url.get(str(component["definition"]).partition("|")[0])
        if code is None:
            raise Unprocessable([_issue(f"component[{place}].definition", "not-supported",
                                        f"is no parameter that R4 gives to {base}")])
        found.append((code, str(component["expression"])))
    if len(found) < 2:
        raise Unprocessable([_issue("component", "required", "is given twice or more in a composite")])
    return tuple(found)


def _try(text: str, base: str) -> None:
    """Run the expression once on next to nothing: what it calls must be there. Raises FHIRPathError."""
    empty = {"resourceType": base}
    compile_expression(text).nodes(empty, Context(resource=empty, type=base))


def _digest(base: str, kind: str, resource: Mapping[str, Any]) -> str:
    parts = [base, kind, str(resource["expression"]), *resource.get("target", ()),
             *(f"{one['definition']} {one['expression']}" for one in resource.get("component", ()))]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def _issue(element: str, code: str, why: str) -> Issue:
    return Issue("error", code, f"{element} {why}", f"SearchParameter.{element}")
