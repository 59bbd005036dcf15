"""What each search parameter of a type means, worked out once.

Owns which parameters are stored, which are answered by others, and which parts of a name or address are
already stored by a parameter of their own; refuses parameters it cannot index, by a reason.
https://hl7.org/fhir/R4/searchparameter.html

A parameter whose values are exactly those of others (``combo-code``, ``patient`` beside ``subject``) stores nothing:
the query asks the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType

from gateway.fhir.definitions import Definitions, SearchParameter, SearchType
from gateway.fhir.search_paths import Paths, Source

LADDER_CODES = frozenset({"birthdate", "death-date"})
"""Dates that name a person: kept as a ladder of hashes, see ``search_dates.py``."""

PHONETIC = "phonetic"
NEAR = "near"
OPENED = frozenset({"_text", "_content"})
"""Answered by opening what the other criteria leave."""

_HASHED = frozenset({"token", "string", "reference", "uri"})
_RANGED = frozenset({"quantity", "number", "date"})
_ROOT = "%resource."
_BY_VERSION = frozenset({"_id", "_lastUpdated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One part of a composite, on the composite's focus."""

    type: SearchType
    sources: tuple[Source, ...]
    targets: tuple[str, ...]
    rooted: bool = False
    """Its paths begin at the resource, not at the focus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One parameter of one type.

    ``sources`` None: the expression runs as FHIRPath. ``aliases`` are (code, only): the stored parameters
    that answer for this one, and the resource type references are narrowed to. ``also`` are parameters that
    hold parts of this one's values (``family`` for ``name``). ``refused`` says why it cannot be searched.
    ``mandatory``: its element is always there. ``narrowed``: types to which others narrow its references.
    ``trees``: the types it may refer to whose resources are part of others of their type.
    ``custom``: a client brought it (``search_custom.py``); while it is ``pending`` it is extracted, and ``refused``.
    """

    key: str
    parameter: SearchParameter
    sources: tuple[Source, ...] | None = ()
    aliases: tuple[tuple[str, str | None], ...] = ()
    also: tuple[str, ...] = ()
    covered: frozenset[str] = frozenset()
    components: tuple[Component, ...] = ()
    ladder: bool = False
    refused: str = ""
    mandatory: bool = False
    narrowed: frozenset[str] = frozenset()
    custom: bool = False
    pending: bool = False
    trees: tuple[str, ...] = ()

    @property
    def span(self) -> bool:
        """Whether it ends in two numbers of one focus, kept as one range."""
        return len(self.components) > 1 and all(one.type == "number" for one in self.components[-2:])

    @property
    def stored(self) -> bool:
        """Whether this parameter has facts of its own."""
        code = self.parameter.code
        return (not self.aliases and (self.pending or not self.refused) and code not in _BY_VERSION
                and code not in OPENED)

    @property
    def canonical(self) -> bool:
        """Whether its references are by url."""
        return any(source.type in ("canonical", "uri") for source in self.sources or ())


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """Plans per type, each type worked out on first use. Safe to share.

    ``adopt`` is for one thread at a time; readers see a type's plans as they were or as they are.
    """

    definitions: Definitions
    _by_type: dict[str, Mapping[str, Plan]] = field(default_factory=dict, compare=False)
    _custom: dict[str, Mapping[str, Plan]] = field(default_factory=dict, compare=False)
    worded: set[str] = field(default_factory=set, compare=False)
    """Which of ``_text`` and ``_content`` the index answers: it holds the words of every resource."""
    lacking: set[str] = field(default_factory=set, compare=False)
    """Kinds of rows that the index does not hold of every resource yet: what needs them is refused."""

    def of(self, type_name: str) -> Mapping[str, Plan]:
        """Every parameter of a resource type by code."""
        found = self._by_type.get(type_name)
        if found is None:
            found = self._by_type[type_name] = MappingProxyType({
                **_plans(self.definitions, type_name), **self._custom.get(type_name, {})})
        return found

    def adopt(self, custom: Mapping[str, Mapping[str, Plan]]) -> None:
        """Put the plans of custom parameters, by type and code, in the place of those adopted before.

        One that is gone stays as a refusal, for whoever is still at a query that names it.
        """
        for type_name in {*self._custom, *custom}:
            now = custom.get(type_name, {})
            gone = {code: replace(plan, pending=False, refused=f"{code} is no longer a search parameter")
                    for code, plan in self._custom.get(type_name, {}).items() if code not in now}
            if now == self._custom.get(type_name):
                continue
            self._custom[type_name] = {**gone, **now}
            own = {code: plan for code, plan in self.of(type_name).items() if not plan.custom}
            self._by_type[type_name] = MappingProxyType({**own, **self._custom[type_name]})


@cache
def _plans(definitions: Definitions, type_name: str) -> Mapping[str, Plan]:
    """Of HL7's parameters: the same for every gateway of the process."""
    paths = Paths(definitions)
    parameters = definitions.search_parameters(type_name)
    plans: dict[str, Plan] = {}
    for code, parameter in parameters.items():
        plans[code] = _first(paths, parameters, type_name, parameter)
    plans = _with_parts(_with_aliases(plans))
    narrowed = {(code, only) for plan in plans.values() for code, only in plan.aliases if only is not None}
    for code, plan in plans.items():
        types = frozenset(only for other, only in narrowed if other == code)
        plans[code] = replace(plan, narrowed=types, mandatory=_mandatory(definitions, type_name, plan),
                              trees=_trees(definitions, plan))
    return plans


def part_of(definitions: Definitions, type_name: str) -> str | None:
    """The parameter by which a resource names another of its type that it is part of (R4 3.1.1.5.9, circular)."""
    for code in ("partof", "part-of"):
        found = definitions.search_parameters(type_name).get(code)
        if found is not None and found.type == "reference" and type_name in found.targets:
            return code
    return None


def _trees(definitions: Definitions, plan: Plan) -> tuple[str, ...]:
    if plan.parameter.type != "reference" or plan.sources is None:
        return ()
    only = _only(plan)
    return tuple(one for one in plan.parameter.targets or sorted(definitions.resource_types)
                 if only in (None, one) and part_of(definitions, one) is not None)


def _mandatory(definitions: Definitions, type_name: str, plan: Plan) -> bool:
    """Whether every resource has its element, save where a primitive has no value."""
    elements = definitions.type(type_name).root.elements
    for source in plan.sources or ():
        element = elements.get(source.steps[0].key) if len(source.steps) == 1 else None
        if element is not None and element.minimum and source.steps[0].match is None and source.only is None:
            return True
    return False


def _first(paths: Paths, parameters: Mapping[str, SearchParameter], type_name: str,
           parameter: SearchParameter) -> Plan:
    key = f"{type_name}.{parameter.code}"
    if parameter.code in OPENED:
        return Plan(key=key, parameter=parameter)
    if (parameter.type == "special" and parameter.code != NEAR) or not parameter.expression:
        return Plan(key=key, parameter=parameter, refused=f"{parameter.code} is not supported yet")
    sources = paths.sources(parameter.expression, type_name)
    if parameter.type != "composite":
        ladder = parameter.type == "date" and parameter.code in LADDER_CODES
        return Plan(key=key, parameter=parameter, sources=sources, ladder=ladder)
    components = components_of(paths, parameters, type_name, parameter, sources)
    if components is None:
        return Plan(key=key, parameter=parameter, refused=f"{parameter.code} has parts that cannot be combined here")
    return Plan(key=key, parameter=parameter, sources=sources, components=components)


def components_of(paths: Paths, parameters: Mapping[str, SearchParameter], type_name: str,
                  parameter: SearchParameter, foci: tuple[Source, ...] | None) -> tuple[Component, ...] | None:
    """The parts of a composite; None unless they are plain paths, the last alone being a number or date, or the last
    two numbers."""
    if not foci:
        return None
    components = []
    for code, text in parameter.components:
        part, rooted = parameters.get(code), text.startswith(_ROOT)
        per_focus = [paths.sources(text.removeprefix(_ROOT), type_name, focus=type_name if rooted else focus.type)
                     for focus in foci]
        if part is None or not per_focus[0] or any(sources != per_focus[0] for sources in per_focus):
            return None
        components.append(Component(type=_kind(part.type, per_focus[0]), sources=per_focus[0], targets=part.targets,
                                    rooted=rooted))
    kinds = [one.type for one in components]
    span = len(kinds) > 2 and kinds[-2:] == ["number", "number"]
    if any(one.rooted for one in (components if not span else components[-2:])):
        return None
    if span:
        del kinds[-2]
    if not all(kind in _HASHED for kind in kinds[:-1]) or kinds[-1] not in _HASHED | _RANGED:
        return None
    return tuple(components)


def _kind(declared: SearchType, sources: tuple[Source, ...]) -> SearchType:
    """The type of a part by its elements: R4 swaps the two parts of DocumentReference.relationship."""
    types = {source.type for source in sources}
    if types == {"Reference"}:
        return "reference"
    return "token" if declared == "reference" and types == {"code"} else declared


def _only(plan: Plan) -> str | None:
    return plan.sources[0].only if plan.sources else None


def _places(plan: Plan) -> frozenset[object]:
    return frozenset(source.place for source in plan.sources or ())


def _with_aliases(plans: dict[str, Plan]) -> dict[str, Plan]:
    """Smallest first, so that whatever answers for another is itself stored."""
    result: dict[str, Plan] = {}
    ranked = sorted(plans.values(), key=lambda plan: (len(_places(plan)), _only(plan) is not None,
                                                      len(plan.parameter.code), plan.parameter.code))
    for plan in ranked:
        answers = _answers(plan, [one for one in result.values() if one.stored and one.parameter.code != PHONETIC])
        result[plan.parameter.code] = replace(plan, aliases=answers) if answers else plan
    return {code: result[code] for code in plans}


def _answers(plan: Plan, stored: list[Plan]) -> tuple[tuple[str, str | None], ...]:
    if plan.refused or not plan.sources or plan.parameter.code in _BY_VERSION | {PHONETIC}:
        return ()
    only, wanted = _only(plan), _places(plan)
    if any(source.only != only for source in plan.sources):
        return ()
    left, answers = set(wanted), []
    for other in sorted(stored, key=lambda one: -len(_places(one))):
        places = _places(other)
        same_kind = (other.parameter.type == plan.parameter.type and other.ladder == plan.ladder
                     and _shapes(other) == _shapes(plan) and _only(other) is None)
        if same_kind and places and places <= wanted and places & left:
            left -= places
            answers.append((other.parameter.code, only))
    return () if left else tuple(answers)


def _shapes(plan: Plan) -> tuple[tuple[SearchType, tuple[Source, ...]], ...]:
    return tuple((one.type, one.sources) for one in plan.components)


def _with_parts(plans: dict[str, Plan]) -> dict[str, Plan]:
    """A name or address parameter leaves out the parts that parameters of their own store."""
    strings = {code: (plan, plan.sources[0]) for code, plan in plans.items() if plan.parameter.type == "string"
               and plan.stored and plan.sources and len(plan.sources) == 1 and code != PHONETIC}
    for code, (plan, source) in strings.items():
        if source.type not in ("HumanName", "Address"):
            continue
        parts = {other.steps[-1].key: name for name, (_, other) in strings.items()
                 if other.steps[:-1] == source.steps and other.steps[-1].match is None}
        if parts:
            plans[code] = replace(plan, also=tuple(parts.values()), covered=frozenset(parts))
    return plans
