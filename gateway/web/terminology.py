"""The terminology operations over HTTP: ``$expand``, ``$validate-code``, ``$lookup``, ``$subsumes``, ``$translate``.

Owns their parameters, by GET and by POST, of a type and of an instance; refuses by name what R4 defines beyond what is
carried out here. https://hl7.org/fhir/R4/terminology-service.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from gateway.errors import BadSearch, NotFound
from gateway.fhir import terminology_expansion as expansion
from gateway.fhir import terminology_translation as translation
from gateway.fhir.resource import Resource
from gateway.fhir.terminology import Terminology
from gateway.fhir.terminology_answers import (
    Coded,
    lookup,
    subsumption,
    validate_in_system,
    validate_in_value_set,
)
from gateway.fhir.terminology_tables import CodeSystem
from gateway.records.answer import Answer
from gateway.records.terminology import Question, Shelf, answer
from gateway.store.sql import now_ms
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, Inputs, Table, inputs, refused

_URL = "http://hl7.org/fhir/OperationDefinition/"
_LANGUAGE = {"displayLanguage": Input("code")}
_CODED = {"code": Input("code"), "coding": Input("Coding"), "codeableConcept": Input("CodeableConcept")}
_JUDGED = {**_CODED, "display": Input("string"), "abstract": Input("boolean"), **_LANGUAGE}
_VALUE_SET = {"url": Input("uri"), "valueSet": Input("resource"), "valueSetVersion": Input("string")}
_EXPANDED: Mapping[str, tuple[Input, str]] = {
    "filter": (Input("string"), "valueString"), "offset": (Input("integer"), "valueInteger"),
    "count": (Input("integer"), "valueInteger"), "includeDesignations": (Input("boolean"), "valueBoolean"),
    "includeDefinition": (Input("boolean"), "valueBoolean"), "activeOnly": (Input("boolean"), "valueBoolean"),
    "displayLanguage": (Input("code"), "valueCode"), "exclude-system": (Input("canonical", many=True), "valueUri"),
}
"""The parameters an expansion says it was made with, as they were given."""
_EXPAND = {**_VALUE_SET, **{name: known for name, (known, _) in _EXPANDED.items()}, "excludeNested": Input("boolean"),
           "excludeNotForUI": Input("boolean"), "excludePostCoordinated": Input("boolean")}
_IN_VALUE_SET = {**_VALUE_SET, "system": Input("uri"), "systemVersion": Input("string"), **_JUDGED}
_IN_SYSTEM = {"url": Input("uri"), "codeSystem": Input("resource"), "version": Input("string"), **_JUDGED}
_LOOKUP = {"code": Input("code"), "system": Input("uri"), "version": Input("string"), "coding": Input("Coding"),
           "property": Input("code", many=True), **_LANGUAGE}
_SUBSUMES = {"codeA": Input("code"), "codeB": Input("code"), "system": Input("uri"), "version": Input("string"),
             "codingA": Input("Coding"), "codingB": Input("Coding")}
_TRANSLATE = {"url": Input("uri"), "conceptMap": Input("resource"), "conceptMapVersion": Input("string"), **_CODED,
              "system": Input("uri"), "version": Input("string"), "source": Input("uri"), "target": Input("uri"),
              "targetsystem": Input("uri"), "reverse": Input("boolean")}


async def expand(door: Door, ask: Ask) -> Answer:
    """The codes of a value set."""
    given = await _inputs(door, ask, _EXPAND, "expand", only="valueSet")
    wanted = expansion.Wanted(
        text=given.text("filter"), offset=given.whole("offset", 0),
        count=given.whole("count", 0) if "count" in given.values else None,
        designations=given.flag("includeDesignations"), definition=given.flag("includeDefinition"),
        active_only=given.flag("activeOnly"), not_selectable=not given.flag("excludeNotForUI", default=True),
        language=given.text("displayLanguage"), exclude_systems=tuple(given.texts("exclude-system")),
        asked=tuple((name, kind, int(value) if kind == "valueInteger" else value)
                    for name, (_, kind) in _EXPANDED.items() for value in given.values.get(name, ())))

    def work(terms: Terminology, _: Shelf, instance: Resource | None) -> Resource:
        return expansion.expand(terms, _value_set(door, given, terms, instance), wanted, now_ms=now_ms())
    return Answer(200, await answer(door.node, ask.caller, _question(ask, given), work, partial=True))


async def validate_code(door: Door, ask: Ask) -> Answer:
    """Whether a code is in a value set, or in a code system."""
    of_value_set = ask.type == "ValueSet"
    given = await _inputs(door, ask, _IN_VALUE_SET if of_value_set else _IN_SYSTEM, "validate-code")
    abstract, language = given.flag("abstract"), given.text("displayLanguage")
    if of_value_set:
        codings = _codings(given, system=given.text("system"), version=given.text("systemVersion"))
    else:
        codings = _codings(given, system=given.text("url"), version=given.text("version"), of_system=True)

    def work(terms: Terminology, _: Shelf, instance: Resource | None) -> Resource:
        if of_value_set:
            value_set = _value_set(door, given, terms, instance)
            return validate_in_value_set(terms, value_set, codings, abstract=abstract, language=language)
        system, judged = _one_system(door, given, instance), codings
        if system is None and (url := given.text("url")) is not None:
            judged = [replace(one, system=url) for one in codings if one.system in (None, url)]
        return validate_in_system(terms, system, judged, abstract=abstract, language=language)
    return Answer(200, await answer(door.node, ask.caller, _question(ask, given), work))


async def look_up(door: Door, ask: Ask) -> Answer:
    """What is known of a code."""
    given = await _inputs(door, ask, _LOOKUP, "lookup")
    coded = _one_code(given, "code", "coding")

    def work(terms: Terminology, _: Shelf, __: Resource | None) -> Resource:
        system = terms.code_system(str(coded.system), coded.version)
        return lookup(system, str(coded.code), properties=given.texts("property"),
                      language=given.text("displayLanguage"))
    return Answer(200, await answer(door.node, ask.caller, _question(ask, given), work))


async def subsumes(door: Door, ask: Ask) -> Answer:
    """How two codes of a system stand to one another."""
    given = await _inputs(door, ask, _SUBSUMES, "subsumes")
    instance_named = len(ask.parts) == 3
    first, second = (_one_code(given, f"code{one}", f"coding{one}", system_known=instance_named) for one in "AB")
    if not instance_named and first.system != second.system:
        raise refused("codingB", "is of another code system than codingA", code="invalid")

    def work(terms: Terminology, _: Shelf, instance: Resource | None) -> Resource:
        system = (terms.code_system(str(first.system), first.version) if instance is None
                  else CodeSystem.of(instance))
        if any(one.system not in (None, system.url) for one in (first, second)):
            raise refused("system", "is another than the code system asked", code="invalid")
        return subsumption(system, str(first.code), str(second.code))
    return Answer(200, await answer(door.node, ask.caller, _question(ask, given), work))


async def translate(door: Door, ask: Ask) -> Answer:
    """The codes another one is mapped to."""
    given = await _inputs(door, ask, _TRANSLATE, "translate")
    codings = _codings(given, system=given.text("system"), version=given.text("version"))
    wanted = translation.Wanted(target=given.text("target"), target_system=given.text("targetsystem"),
                                source=given.text("source"), reverse=given.flag("reverse"))

    def work(_: Terminology, shelf: Shelf, instance: Resource | None) -> Resource:
        return translation.translate(shelf, _maps(door, given, shelf, instance, codings, reverse=wanted.reverse),
                                     codings, wanted)
    return Answer(200, await answer(door.node, ask.caller, _question(ask, given), work))


async def _inputs(door: Door, ask: Ask, table: Table, operation: str, *, only: str | None = None) -> Inputs:
    """The parameters; an instance is asked without naming another beside it."""
    given = await inputs(door, ask, table, operation=operation, only=only)
    named = [name for name in ("url", "valueSet", "codeSystem", "conceptMap") if name in given.values]
    if len(ask.parts) == 3:
        named += [name for name in ("system",) if ask.type == "CodeSystem" and name in given.values]
        if named:
            raise refused(named[0], f"is not given where ${operation} is asked of an instance", code="invalid")
    elif len(named) > 1:
        raise refused(named[1], f"is not given together with {named[0]}", code="invalid")
    return given


def _question(ask: Ask, given: Inputs) -> Question:
    instance = ask.id if len(ask.parts) == 3 else None
    return Question(name=ask.parts[-1].removeprefix("$"), type=ask.type, id=instance, query=urlencode(given.pairs()))


def _resource(door: Door, given: Inputs, name: str) -> Resource | None:
    """A resource among the parameters. Raises Invalid."""
    found = given.objects(name)
    if not found:
        return None
    door.node.validator.require(found[0], expected_type=name[0].upper() + name[1:])
    return found[0]


def _value_set(door: Door, given: Inputs, terms: Terminology, instance: Resource | None) -> Resource:
    sent = _resource(door, given, "valueSet")
    if sent is not None or instance is not None:
        return sent or instance or {}
    url = given.text("url")
    if url is None:
        raise refused("url", "is required where no value set is sent", code="required")
    return terms.value_set(url, given.text("valueSetVersion"))


def _one_system(door: Door, given: Inputs, instance: Resource | None) -> CodeSystem | None:
    sent = instance if instance is not None else _resource(door, given, "codeSystem")
    return None if sent is None else CodeSystem.of(sent)


def _maps(door: Door, given: Inputs, shelf: Shelf, instance: Resource | None, codings: list[Coded], *,
          reverse: bool) -> list[Resource]:
    sent = instance if instance is not None else _resource(door, given, "conceptMap")
    if sent is not None:
        return [sent]
    url = given.text("url")
    if url is not None:
        canonical, _, version = url.partition("|")
        found = shelf.concept_map(canonical, version or given.text("conceptMapVersion"))
        if found is None:
            raise NotFound("no concept map with this url is known")
        return [found]
    maps = {str(one.get("url", place)): one for place, one in enumerate(
        concept_map for system in dict.fromkeys(one.system for one in codings if one.system)
        for concept_map in shelf.concept_maps(system, reverse=reverse))}
    return list(maps.values())


def _codings(given: Inputs, *, system: str | None, version: str | None, of_system: bool = False) -> list[Coded]:
    """The codes to judge or to translate. Raises BadSearch unless they are given in exactly one way."""
    ways = [name for name in _CODED if name in given.values]
    if len(ways) != 1:
        raise BadSearch("one of code, coding and codeableConcept is required", code="required" if not ways else
                        "invalid", expression="http.code")
    if ways == ["code"]:
        if system is None and not of_system:
            raise refused("system", "is required with code", code="required")
        return [Coded(system=system, code=given.text("code"), version=version, display=given.text("display"))]
    if "display" in given.values:
        raise refused("display", "is given with code alone", code="invalid")
    found: list[dict[str, Any]] = given.objects(ways[0])
    return [Coded.of(one) for one in (found if ways == ["coding"] else found[0].get("coding", ()))]


def _one_code(given: Inputs, code: str, coding: str, *, system_known: bool = False) -> Coded:
    """A code with its system, given as one or as a Coding. Raises BadSearch."""
    if (code in given.values) == (coding in given.values):
        raise refused(code, f"or {coding} is required, and not both", code="required")
    if code in given.values:
        found = Coded(system=given.text("system"), code=given.text(code), version=given.text("version"))
    else:
        found = Coded.of(given.objects(coding)[0])
    if found.code is None or (found.system is None and not system_known):
        raise refused("system" if code in given.values else coding, "is required with its system and code",
                      code="required")
    return found


def _routes(type_: str, name: str, handler: Any, *, instance: bool) -> tuple[Route, ...]:  # Any: routes.Handler
    shapes = (f"T/${name}", *((f"T/I/${name}",) if instance else ()))
    return tuple(Route(method=method, shape=shape, name=name, handler=handler, kind="operation",
                       types=frozenset({type_}), definition=f"{_URL}{type_}-{name}")
                 for shape in shapes for method in ("GET", "POST"))


ROUTES = (*_routes("ValueSet", "expand", expand, instance=True),
          *_routes("ValueSet", "validate-code", validate_code, instance=True),
          *_routes("CodeSystem", "validate-code", validate_code, instance=True),
          *_routes("CodeSystem", "lookup", look_up, instance=False),
          *_routes("CodeSystem", "subsumes", subsumes, instance=True),
          *_routes("ConceptMap", "translate", translate, instance=True))
