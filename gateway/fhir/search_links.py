"""References as ``_include`` and ``_revinclude`` follow them, both ways.

Owns which references and canonicals of a resource a parameter names, and which index facts a reference to a
resource has; refuses references to other servers, contained resources and identifiers alone.
https://hl7.org/fhir/R4/search.html#include
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.fhir.query import Criterion, HashIs, Predicate
from gateway.fhir.resource import reference_target
from gateway.fhir.search_encoding import token_code
from gateway.fhir.search_paths import walker
from gateway.fhir.search_plan import Plan, Plans
from gateway.fhir.search_results import Include, may_target, refers


@dataclass(frozen=True, slots=True)
class Literal:
    """A reference to a resource of this server; ``version`` where it names one."""

    type: str
    id: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Canonical:
    """A canonical url, to a resource of any of ``types``."""

    url: str
    version: str | None
    types: tuple[str, ...]


class Links:
    """Follows references under one base URL."""

    def __init__(self, plans: Plans, base_url: str) -> None:
        self._plans = plans
        self._base = base_url.rstrip("/")

    def forward(self, resource: Mapping[str, Any], includes: Iterable[Include]) -> Iterator[Literal | Canonical]:
        """What ``resource`` refers to under the includes that speak of its type."""
        name = resource["resourceType"]
        for include in includes:
            if include.reverse or include.type not in (None, name):
                continue
            for plan in self.parameters(name, include.code):
                for source in plan.sources or ():
                    for value in walker(source.steps)(resource):
                        only = include.target if source.only is None else source.only
                        if include.target in (None, only):
                            yield from self._target(value, plan, only, canonical=source.type == "canonical")

    def parameters(self, type_name: str, code: str | None) -> list[Plan]:
        """The parameters of a type that can be followed: one, or all."""
        plans = self._plans.of(type_name)
        return [plan for plan in ([plans[code]] if code is not None else plans.values()) if refers(plan)]

    def _target(self, value: Any, plan: Plan, only: str | None, *, canonical: bool) -> Iterator[Literal | Canonical]:
        text = value.get("reference") if type(value) is dict else value
        if type(text) is not str:
            return
        target = reference_target(text)
        local = target.kind == "relative" or (target.kind == "absolute" and str(target.base).rstrip("/") == self._base)
        if local and target.type in self._plans.definitions.resource_types and target.id is not None:
            if only in (None, target.type):
                yield Literal(str(target.type), target.id, target.version)
        elif canonical and type(value) is str and not text.startswith("#"):
            url, _, version = text.partition("#")[0].partition("|")
            types = [one for one in plan.parameter.targets if only in (None, one)]
            yield Canonical(url, version or None, tuple(one for one in types if "url" in self._plans.of(one)))

    def canonical_criteria(self, type_name: str, canonical: Canonical) -> tuple[Criterion, ...]:
        """What a ``type_name`` must meet to be what a canonical names."""
        found = [Criterion((HashIs(f"{type_name}.url", canonical.url),))]
        if canonical.version is not None:
            found.append(Criterion((HashIs(f"{type_name}.version", token_code(canonical.version)),)))
        return tuple(found)

    def pointing(self, type_name: str, code: str | None, targets: Iterable[str]) -> list[Predicate]:
        """Any of these: a ``type_name`` refers to one of ``targets`` ("Type/id") under the parameter, or under any."""
        found: dict[Predicate, None] = {}
        wanted = list(targets)
        for plan in self.parameters(type_name, code):
            narrow = {source.only for source in plan.sources or ()}
            for target in wanted:
                type_ = target.partition("/")[0]
                if may_target(plan, type_) and (None in narrow or type_ in narrow):
                    for key in self._keys(type_name, plan):
                        found[HashIs(key, target)] = None
        return list(found)

    def _keys(self, type_name: str, plan: Plan) -> Iterator[str]:
        plans = self._plans.of(type_name)
        for code, _ in plan.aliases or ((plan.parameter.code, None),):
            yield plans[code].key
