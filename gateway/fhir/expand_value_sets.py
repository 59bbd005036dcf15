"""ValueSet expansion at compile time, from the CodeSystems HL7 publishes with R4.

Owns compose include/exclude by concept, whole system, value set import and the ``is-a``/``descendent-of``/
``=`` filters; refuses to guess: systems that are not in the sources give an open rule.
https://hl7.org/fhir/R4/valueset.html#compositions
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

MAXIMUM = "http://hl7.org/fhir/StructureDefinition/elementdefinition-maxValueSet"
"""Extension of a binding: the value set no code may leave."""

OPEN_SYSTEMS = {
    "urn:ietf:bcp:13": "mimetype",
    "urn:ietf:bcp:47": "bcp47",
    "urn:iso:std:iso:4217": "currency",
}
"""Systems whose codes HL7 does not list, with the syntax that stands for them."""

OPEN_VALUE_SETS = {
    "http://www.rfc-editor.org/bcp/bcp13.txt": "mimetype",
    "http://loinc.org/vs/LL379-9": "any",
}
"""Value sets that are not in the sources at all."""

Json = dict[str, Any]
Codes = dict[str, set[str]]


class _OpenError(Exception):
    """The value set reaches a system whose codes are not listed; carries the rule."""


class Expander:
    """All ValueSets and CodeSystems by url; ``expand`` gives ``{"codes": {...}}`` or ``{"rule": ...}``."""

    def __init__(self, resources: Iterable[Json]) -> None:
        self._value_sets: dict[str, Json] = {}
        self._code_systems: dict[str, Json] = {}
        for resource in resources:
            if resource["resourceType"] == "ValueSet":
                self._value_sets[resource["url"]] = resource
            elif resource["resourceType"] == "CodeSystem":
                self._code_systems[resource["url"]] = resource

    def expand(self, url: str) -> Json:
        if url in OPEN_VALUE_SETS:
            return {"rule": OPEN_VALUE_SETS[url]}
        try:
            codes = self._codes(url)
        except _OpenError as error:
            return {"rule": str(error)}
        return {"codes": {system: sorted(members) for system, members in codes.items() if members}}

    def _codes(self, url: str) -> Codes:
        compose = self._value_sets[url.partition("|")[0]]["compose"]
        result: Codes = {}
        for include in compose["include"]:
            for system, members in self._component(include).items():
                result.setdefault(system, set()).update(members)
        for exclude in compose.get("exclude", ()):
            for system, members in self._component(exclude).items():
                result.get(system, set()).difference_update(members)
        return result

    def _component(self, component: Json) -> Codes:
        parts: list[Codes] = [self._codes(url) for url in component.get("valueSet", ())]
        if "system" in component:
            parts.append({component["system"]: self._system(component)})
        result = parts[0]
        for part in parts[1:]:  # Several constraints in one component are an intersection.
            result = {system: members & part.get(system, set()) for system, members in result.items()}
        return result

    def _system(self, component: Json) -> set[str]:
        if "concept" in component:
            return {concept["code"] for concept in component["concept"]}
        url = component["system"]
        system = self._code_systems.get(url)
        if system is None or system["content"] != "complete":
            raise _OpenError(OPEN_SYSTEMS.get(url, f"system:{url}"))
        concepts = list(_walk(system.get("concept", ()), ()))
        members = {concept["code"] for concept, _ in concepts if not _abstract(concept)}
        for rule in component.get("filter", ()):
            members &= {concept["code"] for concept, above in concepts if _passes(concept, above, rule)}
        return members


def _walk(concepts: Iterable[Json], above: tuple[str, ...]) -> Iterator[tuple[Json, tuple[str, ...]]]:
    for concept in concepts:
        parents = tuple(p["valueCode"] for p in concept.get("property", ()) if p["code"] == "subsumedBy")
        yield concept, above + parents
        yield from _walk(concept.get("concept", ()), (*above, concept["code"]))


def _abstract(concept: Json) -> bool:
    return any(p["code"] in ("notSelectable", "abstract") and p.get("valueBoolean") is True
               for p in concept.get("property", ()))


def _passes(concept: Json, above: tuple[str, ...], rule: Json) -> bool:
    operator, value = rule["op"], rule["value"]
    if operator == "is-a":
        return concept["code"] == value or value in above
    if operator == "descendent-of":
        return value in above
    if operator == "is-not-a":
        return concept["code"] != value and value not in above
    if operator == "=":
        if rule["property"] in ("concept", "code"):
            return bool(concept["code"] == value)
        return any(p["code"] == rule["property"] and str(next(v for k, v in p.items() if k != "code")) == value
                   for p in concept.get("property", ()))
    raise ValueError(f"no such filter operator here: {operator}")
