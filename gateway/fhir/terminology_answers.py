"""``$validate-code``, ``$lookup`` and ``$subsumes``: what is said of single codes.

Owns their Parameters; refuses to call a code wrong because its system is not carried here: that is an error, not a
``false``. https://hl7.org/fhir/R4/terminology-service.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import NotFound, Unprocessable
from gateway.fhir.resource import Resource
from gateway.fhir.terminology import Member, NotCarried, Terminology, by_syntax
from gateway.fhir.terminology_expansion import display_in
from gateway.fhir.terminology_tables import CodeSystem, Concept

_ALWAYS = frozenset({"url", "name", "version", "display"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A code to judge; ``display`` None: not judged."""

    system: str | None
    code: str | None
    version: str | None = None
    display: str | None = None

    @classmethod
    def of(cls, coding: Mapping[str, Any]) -> Coded:
        return cls(system=coding.get("system"), code=coding.get("code"), version=coding.get("version"),
                   display=coding.get("display"))


def parameters(*rows: tuple[str, str, Any]) -> Resource:
    """A Parameters resource; rows whose value is None are left out."""
    return {"resourceType": "Parameters", "parameter": [
        {"name": name, kind: value} for name, kind, value in rows if value is not None]}


def validate_in_value_set(terminology: Terminology, value_set: Resource, codings: Sequence[Coded], *, abstract: bool,
                          language: str | None = None) -> Resource:
    """Whether one of ``codings`` is in the value set. Raises NotCarried where that cannot be told."""
    def member(coded: Coded) -> Member | str:
        if coded.system is None or coded.code is None:
            return "the coding has no system and code"
        found = terminology.find(value_set, coded.system, coded.code)
        if found is not None and coded.version is not None and found.version not in (None, coded.version):
            return "the code is in the value set in another version of its system"
        return "the code is not in the value set" if found is None else found
    return _judged(codings, member, abstract=abstract, language=language)


def validate_in_system(terminology: Terminology, system: CodeSystem | None, codings: Sequence[Coded], *,
                       abstract: bool, language: str | None = None) -> Resource:
    """Whether one of ``codings`` is a code of ``system``, or of its own where that is None. Raises NotCarried."""
    def member(coded: Coded) -> Member | str:
        if coded.code is None or (system is None and coded.system is None):
            return "the coding has no system and code"
        if system is not None and coded.system not in (None, system.url):
            return "the coding is of another code system"
        if system is None and coded.system is not None:
            told = by_syntax(coded.system, coded.code)
            if told is not None:
                return (Member(system=coded.system, code=coded.code) if told
                        else "the code does not have the syntax of its code system")
        table = system or terminology.code_system(coded.system or "", coded.version)
        found = table.find(coded.code)
        if found is not None:
            return Member(system=table.url, code=found.code, display=found.display, designations=found.designations,
                          abstract=found.abstract, inactive=found.inactive)
        if not table.complete:
            raise NotCarried(f"the code system {table.url[:200]} is carried here in part only, without this code",
                             code="not-supported", expression="CodeSystem.content")
        return "the code system does not have the code"
    return _judged(codings, member, abstract=abstract, language=language)


def _judged(codings: Sequence[Coded], member: Callable[[Coded], Member | str], *, abstract: bool,
            language: str | None) -> Resource:
    reasons: list[str] = []
    display: str | None = None
    beyond: NotCarried | None = None
    for coded in codings:
        try:
            found = member(coded)
        except NotCarried as error:
            beyond = beyond or error
            continue
        if isinstance(found, str):
            reasons.append(found)
            continue
        display = display_in(found, language)
        if found.abstract and not abstract:
            reasons.append("the code is abstract: it is not to be selected")
        elif not _is_display(found, coded.display):
            reasons.append("the display is not one of the code's")
        else:
            note = "the code is inactive" if found.inactive else None
            return parameters(("result", "valueBoolean", True), ("message", "valueString", note),
                              ("display", "valueString", display))
    if beyond is not None:
        raise beyond
    message = "; ".join(dict.fromkeys(reasons)) or "there is no coding"
    return parameters(("result", "valueBoolean", False), ("message", "valueString", message),
                      ("display", "valueString", display))


def _is_display(member: Member, display: str | None) -> bool:
    """Displays are compared without case and with any spaces; where none is known, any will do."""
    if display is None or member.display is None:
        return True
    known = [member.display, *(str(one.get("value", "")) for one in member.designations)]
    return _plain(display) in [_plain(one) for one in known]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def concept_of(system: CodeSystem, code: str) -> Concept:
    """A concept that must be there. Raises NotFound, NotCarried."""
    found = system.find(code)
    if found is None:
        if not system.complete:
            raise NotCarried(f"the code system {system.url[:200]} is carried here in part only, without this code",
                             code="not-supported", expression="CodeSystem.content")
        raise NotFound("the code system does not have the code")
    return found


def lookup(system: CodeSystem, code: str, *, properties: Iterable[str] = (), language: str | None = None) -> Resource:
    """What is known of a code; without ``properties``, all. Raises NotFound, NotCarried, Unprocessable."""
    concept = concept_of(system, code)
    wanted = frozenset(properties)
    for name in sorted(wanted):
        if not (system.has_property(name) or name in _ALWAYS or name in ("system", "designation")
                or name.startswith("lang.")):
            raise Unprocessable("the code system has no such property", code="not-supported",
                                expression="http.property")
    member = Member(system=system.url, code=concept.code, display=concept.display, designations=concept.designations)
    rows: list[dict[str, Any]] = [{"name": "name", "valueString": system.title or system.name or system.url}]
    if system.version is not None:
        rows.append({"name": "version", "valueString": system.version})
    rows.append({"name": "display", "valueString": display_in(member, language) or concept.code})
    rows += [_designation(one) for one in concept.designations if _designated(one, wanted)]
    rows += [_property(name, kind, value) for name, kind, value in _properties(concept)
             if not wanted or name in wanted]
    return {"resourceType": "Parameters", "parameter": rows}


def _designated(row: Mapping[str, Any], wanted: frozenset[str]) -> bool:
    return not wanted or "designation" in wanted or f"lang.{row.get('language')}" in wanted


def _designation(row: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (("language", "valueCode"), ("use", "valueCoding"), ("value", "valueString"))
    return {"name": "designation", "part": [{"name": name, kind: row[name]} for name, kind in kinds if name in row]}


def _properties(concept: Concept) -> list[tuple[str, str, Any]]:
    """Code, value[x] and value; the direct hierarchy however the system writes it, each once."""
    rows: list[tuple[str, str, Any]] = []
    if concept.definition is not None:
        rows.append(("definition", "valueString", concept.definition))
    rows += [("parent", "valueCode", one) for one in concept.parents]
    rows += [("child", "valueCode", one) for one in concept.children]
    rows += [row for row in concept.properties if row[0] not in ("parent", "child")]
    if concept.inactive and all(name != "inactive" for name, _, _ in concept.properties):
        rows.append(("inactive", "valueBoolean", True))
    return rows


def _property(name: str, kind: str, value: Any) -> dict[str, Any]:
    return {"name": "property", "part": [{"name": "code", "valueCode": name}, {"name": "value", kind: value}]}


def subsumption(system: CodeSystem, first: str, second: str) -> Resource:
    """How two codes of a system stand to one another. Raises NotFound, NotCarried, Unprocessable."""
    above, below = concept_of(system, first).code, concept_of(system, second).code
    if not system.is_a:
        raise Unprocessable("the hierarchy of the code system does not mean is-a", code="not-supported",
                            expression="CodeSystem.hierarchyMeaning")
    down, up = system.subsumes(above, below), system.subsumes(below, above)
    outcome = ("equivalent" if down and up else "subsumes" if down else "subsumed-by" if up else "not-subsumed")
    return parameters(("outcome", "valueCode", outcome))
