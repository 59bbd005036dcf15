"""Terminology: which codes a value set holds, and which code subsumes which.

Owns the meaning of ``ValueSet.compose``: includes, excludes, filters, imported value sets, and the stored expansion
where the systems are not carried; refuses to guess what it does not carry, to follow value sets in circles, and work
beyond a stated limit. https://hl7.org/fhir/R4/valueset.html#compositions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.errors import InputRefused, NotFound, TooCostly, Unprocessable
from gateway.fhir.bindings import code_check
from gateway.fhir.definitions import Definitions, ValueSet
from gateway.fhir.resource import Resource
from gateway.fhir.terminology_core import Source
from gateway.fhir.terminology_filters import concept_filter
from gateway.fhir.terminology_tables import CodeSystem, Concept

WORK_MAX = 300_000
"""Concepts looked at for one question."""
_DEPTH_MAX = 20
_GRAMMARS = {"urn:ietf:bcp:47": "bcp47", "urn:ietf:bcp:13": "mimetype", "urn:iso:std:iso:4217": "currency"}
"""Systems without a list of codes: their syntax stands for it."""
_INCLUDE = "ValueSet.compose.include"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One code of a value set; ``abstract``: there to be navigated by, not to be selected."""

    system: str
    code: str
    version: str | None = None
    display: str | None = None
    designations: Sequence[dict[str, Any]] = ()
    abstract: bool = False
    inactive: bool = False


Members = dict[tuple[str, str], Member]
Only = tuple[str, str] | None
"""Ask for this system and code alone."""


class NotCarried(Unprocessable):
    """A code system this server does not hold is needed for the answer."""


class Terminology:
    """Answers from one Source; what it worked out is kept as long as it lives: make one for each request.

    ``partial``: a system that is carried in part counts for what is here, and is told in ``left_open``; else it is
    refused where codes that are not here could matter.
    """

    def __init__(self, source: Source, definitions: Definitions | None = None, *, partial: bool = False) -> None:
        self.left_open: set[str] = set()
        self._source = source
        self._partial = partial
        self._definitions = definitions
        self._work = 0
        self._known: dict[tuple[str, str | None], Members] = {}

    def value_set(self, canonical: str, version: str | None = None) -> Resource:
        """The ValueSet of a canonical. Raises NotFound."""
        url, _, named = canonical.partition("|")
        found = self._source.value_set(url, named or version)
        if found is None:
            raise NotFound("no value set with this url is known")
        return found

    def code_system(self, canonical: str, version: str | None = None) -> CodeSystem:
        """The CodeSystem of a canonical. Raises NotCarried."""
        url, _, named = canonical.partition("|")
        wanted = named or version
        found = self._source.code_system(url, wanted)
        if found is None or found.content == "not-present":
            raise NotCarried(f"the code system {url[:200]} is not carried here"
                             + (f" in version {wanted[:64]}" if wanted else ""),
                             code="not-supported", expression="CodeSystem.url")
        return found

    def known(self, url: str, version: str | None = None) -> CodeSystem | None:
        """The CodeSystem of a url, where it is carried."""
        found = self._source.code_system(url, version)
        return None if found is None or found.content == "not-present" else found

    def members(self, canonical: str) -> Mapping[str, frozenset[str]]:
        """The selectable codes of a value set by system. Raises NotFound, Unprocessable, NotCarried, TooCostly."""
        if self._definitions is not None:
            bound = self._definitions.value_set(canonical)
            if bound is not None and bound.rule is None and "|" not in canonical:
                return bound.codes
        codes: dict[str, set[str]] = {}
        for system, code in self.selectable(self.value_set(canonical)):
            codes.setdefault(system, set()).add(code)
        return {system: frozenset(found) for system, found in codes.items()}

    def selectable(self, value_set: Resource) -> list[tuple[str, str]]:
        """System and code of every member that is not abstract. Raises as ``compose`` does."""
        return [key for key, member in self.compose(value_set).items() if not member.abstract]

    def subsumes(self, system: str, above: str, below: str) -> bool:
        """Whether ``above`` is ``below`` or an ancestor of it. Raises NotCarried."""
        table = self.code_system(system)
        first, second = table.find(above), table.find(below)
        return first is not None and second is not None and table.subsumes(first.code, second.code)

    def descendants(self, system: str, code: str) -> frozenset[str]:
        """The codes that ``code`` subsumes, without it. Raises NotCarried."""
        table = self.code_system(system)
        concept = table.find(code)
        return frozenset() if concept is None else table.descendants(concept.code)

    def ancestors(self, system: str, code: str) -> frozenset[str]:
        """The codes that subsume ``code``, without it. Raises NotCarried."""
        table = self.code_system(system)
        concept = table.find(code)
        return frozenset() if concept is None else table.ancestors(concept.code)

    def find(self, value_set: Resource, system: str, code: str) -> Member | None:
        """The member of that system and code. Raises as ``compose`` does, where just this code needs it."""
        found = self.compose(value_set, (system, code))
        return next(iter(found.values()), None)

    def compose(self, value_set: Resource, only: Only = None) -> Members:
        """Every member in the order of the definition, abstract ones too.

        Raises NotCarried, Unprocessable (circles, faulty filters), TooCostly.
        """
        return self._compose(value_set, only, ())

    def _compose(self, value_set: Resource, only: Only, above: tuple[str, ...]) -> Members:
        compose, stored = value_set.get("compose"), value_set.get("expansion")
        if compose is None:
            if stored is None:
                raise Unprocessable("the value set defines no content", code="required", expression="ValueSet.compose")
            return _stored(stored, only)
        try:
            found: Members = {}
            for place, include in enumerate(compose.get("include", ())):
                for key, member in self._component(include, only, above, f"{_INCLUDE}[{place}]").items():
                    found.setdefault(key, member)
            for place, exclude in enumerate(compose.get("exclude", ())):
                if found:
                    for key in self._component(exclude, only, above, f"ValueSet.compose.exclude[{place}]"):
                        found.pop(key, None)
        except NotCarried:
            if stored is None or not _whole(stored):
                raise
            return _stored(stored, only)
        if compose.get("inactive") is False:
            return {key: member for key, member in found.items() if not member.inactive}
        return found

    def _component(self, component: Mapping[str, Any], only: Only, above: tuple[str, ...], place: str) -> Members:
        """Everything that satisfies all parts of an include or exclude."""
        result: Members | None = None
        if "system" in component:
            result = self._system(component, only, place)
        for canonical in component.get("valueSet", ()):
            if type(canonical) is not str:  # its value is an extension
                raise Unprocessable("an include names a value set by no url", code="required", expression=place)
            if result is not None and not result:
                return result
            other = self._imported(canonical, only, above, place)
            result = other if result is None else {key: one for key, one in result.items() if key in other}
        if result is None:
            raise Unprocessable("an include names a system or value sets", code="required", expression=place)
        return result

    def _imported(self, canonical: str, only: Only, above: tuple[str, ...], place: str) -> Members:
        if canonical in above or len(above) > _DEPTH_MAX:
            raise Unprocessable("value sets include each other in a circle", code="processing",
                                expression=f"{place}.valueSet")
        key = (canonical, None if only is None else "|".join(only))
        known = self._known.get(key)
        if known is None:
            url, _, version = canonical.partition("|")
            found = self._source.value_set(url, version or None)
            if found is None:
                raise NotCarried(f"the value set {canonical[:200]} is not known", code="not-found",
                                 expression=f"{place}.valueSet")
            known = self._known[key] = self._compose(found, only, (*above, canonical))
        return known

    def _system(self, component: Mapping[str, Any], only: Only, place: str) -> Members:
        url, version = component["system"], component.get("version")
        if only is not None and only[0] != url:
            return {}
        system = self.known(url, version)
        if "concept" in component:
            return self._listed(component["concept"], url, version, system, only)
        if system is None or not (system.complete or self._partial):
            return self._beyond(component, system, only, place)
        if not system.complete:
            self.left_open.add(system.canonical)
        tests = [_placed(place, system, row) for row in component.get("filter", ())]
        found: Members = {}
        for concept in self._concepts(system, only):
            if all(test(concept) for test in tests):
                found[url, concept.code] = _member(system, concept)
        return found

    def _concepts(self, system: CodeSystem, only: Only) -> Sequence[Concept]:
        if only is not None:
            concept = system.find(only[1])
            return () if concept is None else (concept,)
        self._spend(len(system.concepts))
        return tuple(system.concepts.values())

    def _listed(self, rows: Sequence[Mapping[str, Any]], url: str, version: str | None, system: CodeSystem | None,
                only: Only) -> Members:
        """Codes named one by one need no code system; what it knows of them is added. Naming one selects it."""
        self._spend(len(rows))
        wanted = None if only is None else only[1]
        folded = wanted.casefold() if wanted is not None and system is not None and not system.case_sensitive else None
        found: Members = {}
        for row in rows:
            code = row.get("code")
            if code is None or (wanted is not None and code != wanted and code.casefold() != folded):
                continue
            concept = None if system is None else system.find(code)
            member = (Member(system=url, code=code, version=version) if system is None or concept is None
                      else replace(_member(system, concept), code=code, abstract=False))
            found[url, code] = replace(member, display=row.get("display", member.display),
                                       designations=(*row.get("designation", ()), *member.designations))
        return found

    def _beyond(self, component: Mapping[str, Any], system: CodeSystem | None, only: Only, place: str) -> Members:
        """A system whose codes are not all here: one code may still be judged by syntax, or be among those that are."""
        url = component["system"]
        rule = _GRAMMARS.get(url)
        if rule is not None and "filter" not in component:
            if only is None:
                raise TooCostly(f"the code system {url} is a syntax without an end: it cannot be expanded",
                                code="too-costly", expression=f"{place}.system")
            return {only: Member(system=url, code=only[1])} if code_check(ValueSet(url=url, codes={}, rule=rule))[1](
                only[1]) else {}
        if system is not None and only is not None and "filter" not in component:
            concept = system.find(only[1])
            if concept is not None:
                return {(url, concept.code): _member(system, concept)}
        what = "is not carried here" if system is None else "is carried here in part only"
        raise NotCarried(f"the code system {url[:200]} {what}: this part of the value set cannot be told",
                         code="not-supported", expression=f"{place}.system")

    def _spend(self, concepts: int) -> None:
        self._work += concepts
        if self._work > WORK_MAX:
            raise TooCostly(f"more than {WORK_MAX} concepts would be looked at", code="too-costly")


def by_syntax(url: str, code: str) -> bool | None:
    """Whether a code has the syntax of its system; None where the system is none that has only a syntax."""
    rule = _GRAMMARS.get(url)
    return None if rule is None else code_check(ValueSet(url=url, codes={}, rule=rule))[1](code)


def _member(system: CodeSystem, concept: Concept) -> Member:
    return Member(system=system.url, code=concept.code, version=system.version, display=concept.display,
                  designations=concept.designations, abstract=concept.abstract, inactive=concept.inactive)


def _placed(place: str, system: CodeSystem, row: Mapping[str, Any]) -> Any:  # Any: Passes, whose module is imported
    try:
        return concept_filter(system, row)
    except InputRefused as error:
        raise type(error)([replace(issue, expression=(issue.expression or place).replace(_INCLUDE, place, 1))
                           for issue in error.issues]) from error


def _whole(expansion: Mapping[str, Any]) -> bool:
    """Whether a stored expansion holds all it counts."""
    rows = _flat(expansion.get("contains", ()))
    return "offset" not in expansion and expansion.get("total", len(rows)) <= len(rows)


def _stored(expansion: Mapping[str, Any], only: Only) -> Members:
    found: Members = {}
    for row in _flat(expansion.get("contains", ())):
        if "system" in row and "code" in row and only in (None, (row["system"], row["code"])):
            found.setdefault((row["system"], row["code"]), Member(
                system=row["system"], code=row["code"], version=row.get("version"), display=row.get("display"),
                designations=tuple(row.get("designation", ())), abstract=row.get("abstract") is True,
                inactive=row.get("inactive") is True))
    return found


def _flat(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    waiting = list(reversed(rows))
    while waiting:
        row = waiting.pop()
        found.append(row)
        waiting += reversed(row.get("contains", ()))
    return found
