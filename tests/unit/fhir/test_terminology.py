"""Value sets, subsumption, lookup, validation and translation over HL7's R4 terminology and made-up systems.

https://hl7.org/fhir/R4/terminology-service.html
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import NotFound, TooCostly, Unprocessable
from gateway.fhir.compile_terminology import table
from gateway.fhir.definitions import Definitions, mappings_folder
from gateway.fhir.terminology import NotCarried, Terminology
from gateway.fhir.terminology_answers import (
    Coded,
    lookup,
    subsumption,
    validate_in_system,
    validate_in_value_set,
)
from gateway.fhir.terminology_core import FILE, Library
from gateway.fhir.terminology_expansion import MOST_CODES, Wanted, expand
from gateway.fhir.terminology_tables import CodeSystem
from gateway.fhir.terminology_translation import Wanted as Mapping
from gateway.fhir.terminology_translation import translate
from tests.shared_data import SHARED, needs_shared

HL7 = Library()
DEFINITIONS = Definitions.load()
VS, TERMS = "http://hl7.org/fhir/ValueSet/", "http://terminology.hl7.org/CodeSystem/"
REASON = f"{TERMS}v3-ActReason"
URL = "urn:test:system"
VALUE_SETS = sorted(HL7.urls("ValueSet"))
SYSTEMS = sorted(HL7.urls("CodeSystem"))


@dataclass
class Shelf:
    """Made-up resources before HL7's own."""

    value_sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def value_set(self, url: str, version: str | None) -> dict[str, Any] | None:
        return self.value_sets.get(url) or HL7.value_set(url, version)

    def code_system(self, url: str, version: str | None) -> CodeSystem | None:
        return CodeSystem.of(self.systems[url]) if url in self.systems else HL7.code_system(url, version)

    def concept_map(self, url: str, version: str | None) -> dict[str, Any] | None:
        return self.maps.get(url)


def system(*concepts: dict[str, Any], **elements: Any) -> dict[str, Any]:
    return {"resourceType": "CodeSystem", "url": URL, "status": "active", "content": "complete",
            "concept": list(concepts), **elements}


ANIMALS = system(
    {"code": "animal", "property": [{"code": "notSelectable", "valueBoolean": True}], "concept": [
        {"code": "dog", "display": "Dog", "property": [{"code": "legs", "valueInteger": 4}],
         "designation": [{"language": "de", "value": "Hund"}], "concept": [{"code": "poodle", "display": "Poodle"}]},
        {"code": "bird", "display": "Bird", "property": [{"code": "legs", "valueInteger": 2},
                                                         {"code": "status", "valueCode": "retired"}]}]},
    {"code": "pet", "property": [{"code": "child", "valueCode": "dog"}]},
    property=[{"code": "legs", "type": "integer"}, {"code": "status", "type": "code"}], caseSensitive=False)


def value_set(*include: dict[str, Any], **compose: Any) -> dict[str, Any]:
    return {"resourceType": "ValueSet", "status": "active", "compose": {"include": list(include), **compose}}


def filtered(name: str, operator: str, value: str) -> dict[str, Any]:
    return value_set({"system": URL, "filter": [{"property": name, "op": operator, "value": value}]})


def terms(*, partial: bool = False, **shelf: dict[str, Any]) -> Terminology:
    return Terminology(Shelf(systems={URL: ANIMALS}, **shelf), partial=partial)


def codes(found: dict[str, Any]) -> list[str]:
    return [row["code"] for row in found["expansion"].get("contains", ())]


def result(found: dict[str, Any]) -> bool:
    return bool(found["parameter"][0]["valueBoolean"])


@needs_shared
def test_the_table_is_made_from_hl7s_definitions_as_they_are() -> None:
    assert SHARED is not None
    assert table(SHARED / "fhir-r4-core") == (mappings_folder() / "fhir" / FILE).read_bytes()


def test_value_sets_of_bindings_hold_the_codes_the_validator_knows() -> None:
    compared = 0
    for url in VALUE_SETS:
        bound = DEFINITIONS.value_set(url)
        if bound is not None and bound.rule is None:
            assert Terminology(HL7).members(url) == bound.codes, url
            compared += 1
    assert compared > 200


def test_members_of_hl7s_value_sets() -> None:
    found = Terminology(HL7, DEFINITIONS).members(f"{VS}administrative-gender")
    assert found == {"http://hl7.org/fhir/administrative-gender": {"male", "female", "other", "unknown"}}
    assert "MR" in Terminology(HL7).members("http://terminology.hl7.org/ValueSet/v2-0203")[f"{TERMS}v2-0203"]
    with pytest.raises(NotFound):
        Terminology(HL7).members("urn:nowhere")


@pytest.mark.parametrize(("first", "second", "outcome"), [
    ("TREAT", "TREAT", "equivalent"), ("PurposeOfUse", "TREAT", "subsumes"), ("TREAT", "PurposeOfUse", "subsumed-by"),
    ("TREAT", "HPAYMT", "not-subsumed"), ("HMARKT", "PurposeOfUse", "subsumed-by")])
def test_subsumption_in_act_reason(first: str, second: str, outcome: str) -> None:
    table = HL7.code_system(REASON, None)
    assert table is not None
    assert subsumption(table, first, second)["parameter"] == [{"name": "outcome", "valueCode": outcome}]


def test_ancestors_and_descendants() -> None:
    found = terms()
    assert found.ancestors(URL, "poodle") == {"dog", "animal", "pet"}
    assert found.descendants(URL, "PET") == {"dog", "poodle"}
    assert found.subsumes(URL, "animal", "POODLE")
    assert not found.subsumes(URL, "poodle", "animal")
    with pytest.raises(NotCarried, match=r"http://snomed.info/sct is not carried"):
        found.descendants("http://snomed.info/sct", "404684003")


hierarchies = st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), max_size=3))


@given(hierarchies, st.booleans())
@settings(max_examples=60, deadline=None)
def test_subsumes_is_a_partial_order_where_the_hierarchy_is_one(children: dict[str, set[str]], acyclic: bool) -> None:
    rows = [{"code": code, "property": [{"code": "child", "valueCode": below} for below in sorted(
        one for one in children.get(code, ()) if not acyclic or one > code)]} for code in "abcdefgh"]
    found = CodeSystem.of(system(*rows))
    for a in "abcdefgh":
        assert found.subsumes(a, a)
        for b in found.descendants(a):
            assert a in found.ancestors(b)
            assert found.descendants(b) - {a} <= found.descendants(a)
            assert not acyclic or not found.subsumes(b, a)


@pytest.mark.parametrize(("name", "operator", "value", "expected"), [
    ("concept", "is-a", "dog", {"dog", "poodle"}), ("concept", "descendent-of", "DOG", {"poodle"}),
    ("concept", "is-not-a", "dog", {"animal", "bird", "pet"}), ("code", "generalizes", "dog", {"dog", "animal", "pet"}),
    ("legs", "=", "4", {"dog"}), ("legs", "in", "2, 4", {"dog", "bird"}), ("code", "not-in", "dog,pet",
                                                                          {"animal", "bird", "poodle"}),
    ("legs", "exists", "true", {"dog", "bird"}), ("legs", "exists", "false", {"animal", "poodle", "pet"}),
    ("code", "regex", "p.*", {"poodle", "pet"}), ("display", "regex", "(Do|Po+)[a-z]{1,4}", {"dog", "poodle"}),
    ("parent", "=", "animal", {"dog", "bird"}), ("child", "=", "dog", {"animal", "pet"}),
    ("status", "=", "retired", {"bird"})])
def test_filters(name: str, operator: str, value: str, expected: set[str]) -> None:
    assert {code for _, code in terms().compose(filtered(name, operator, value))} == expected


@pytest.mark.parametrize(("name", "operator", "value", "place"), [
    ("wings", "=", "2", "filter.property"), ("concept", "is-a", "cat", "filter.value"),
    ("legs", "is-a", "dog", "filter.property"), ("legs", "exists", "yes", "filter.value"),
    ("code", "regex", "(a", "filter.value"), ("code", "regex", r"\p{L}", "filter.value")])
def test_a_faulty_filter_is_an_error_with_its_place(name: str, operator: str, value: str, place: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        terms().compose(filtered(name, operator, value))
    assert str(caught.value.issues[0].expression).endswith(place)


def test_includes_are_joined_and_their_parts_intersected() -> None:
    dogs = filtered("concept", "is-a", "dog")
    shelf = {"value_sets": {"urn:dogs": dogs, "urn:loop": value_set({"valueSet": ["urn:loop"]})}}
    both = value_set({"system": URL, "valueSet": ["urn:dogs"], "filter": [
        {"property": "legs", "op": "exists", "value": "true"}]})
    assert terms(**shelf).selectable(both) == [(URL, "dog")]
    either = value_set({"valueSet": ["urn:dogs"]}, {"system": "urn:other", "concept": [{"code": "x"}]},
                       exclude=[{"system": URL, "concept": [{"code": "dog"}]}])
    assert terms(**shelf).selectable(either) == [(URL, "poodle"), ("urn:other", "x")]
    with pytest.raises(Unprocessable, match="circle"):
        terms(**shelf).compose(value_set({"valueSet": ["urn:loop"]}))
    with pytest.raises(NotCarried, match="not known"):
        terms(**shelf).compose(value_set({"valueSet": ["urn:nowhere"]}))
    assert (URL, "bird") not in terms().compose(value_set({"system": URL}, inactive=False))


def test_what_is_not_carried_is_told_and_not_guessed() -> None:
    snomed = value_set({"system": "http://snomed.info/sct"}, {"system": URL})
    with pytest.raises(NotCarried) as caught:
        terms().compose(snomed)
    assert caught.value.issues[0].expression == "ValueSet.compose.include[0].system"
    assert terms().find(snomed, URL, "dog") is not None
    with pytest.raises(NotCarried):
        terms().find(snomed, "http://snomed.info/sct", "404684003")
    listed = value_set({"system": "http://loinc.org", "concept": [{"code": "8867-4", "display": "Heart rate"}]})
    assert codes(expand(terms(), listed, Wanted(), now_ms=0)) == ["8867-4"]
    kept = {**value_set({"system": "http://snomed.info/sct"}), "expansion": {
        "total": 1, "contains": [{"system": "http://snomed.info/sct", "code": "1"}]}}
    assert terms().selectable(kept) == [("http://snomed.info/sct", "1")]
    with pytest.raises(NotCarried):
        terms().selectable({**kept, "expansion": {**kept["expansion"], "total": 2}})
    with pytest.raises(TooCostly):
        terms().compose(value_set({"system": "urn:ietf:bcp:47"}))
    assert terms().find(value_set({"system": "urn:ietf:bcp:47"}), "urn:ietf:bcp:47", "de-AT") is not None


def test_an_expansion_leaves_open_what_a_partial_system_may_add() -> None:
    part = {**ANIMALS, "content": "fragment"}
    found = expand(Terminology(Shelf(systems={URL: part}), partial=True), value_set({"system": URL}), Wanted(),
                   now_ms=0)
    assert found["expansion"]["extension"] == [{
        "url": "http://hl7.org/fhir/StructureDefinition/valueset-unclosed", "valueBoolean": True}]
    with pytest.raises(NotCarried):
        Terminology(Shelf(systems={URL: part})).compose(value_set({"system": URL}))


def test_an_expansion_in_pages_languages_and_words() -> None:
    animals = value_set({"system": URL})
    first = expand(terms(), animals, Wanted(count=2), now_ms=0)
    second = expand(terms(), animals, Wanted(count=2, offset=2), now_ms=0)
    assert codes(first) + codes(second) == ["dog", "poodle", "bird", "pet"]
    assert first["expansion"]["identifier"] == second["expansion"]["identifier"]
    assert (first["expansion"]["total"], second["expansion"]["offset"]) == (4, 2)
    assert codes(expand(terms(), animals, Wanted(offset=9), now_ms=0)) == []
    assert codes(expand(terms(), animals, Wanted(text="hUN"), now_ms=0)) == ["dog"]
    assert codes(expand(terms(), animals, Wanted(active_only=True), now_ms=0)) == ["dog", "poodle", "pet"]
    assert codes(expand(terms(), animals, Wanted(exclude_systems=(URL,)), now_ms=0)) == []
    everything = expand(terms(), animals, Wanted(not_selectable=True, designations=True, language="de-AT"), now_ms=0)
    rows = {row["code"]: row for row in everything["expansion"]["contains"]}
    assert rows["animal"]["abstract"] is True
    assert rows["bird"]["inactive"] is True
    assert rows["dog"]["display"] == "Hund"
    assert rows["dog"]["designation"] == [{"language": "de", "value": "Hund"}]


def test_too_many_codes_at_once_are_too_costly() -> None:
    many = Terminology(Shelf(systems={URL: system(*({"code": f"c{n}"} for n in range(MOST_CODES + 1)))}))
    with pytest.raises(TooCostly, match="page with count"):
        expand(many, value_set({"system": URL}), Wanted(), now_ms=0)
    assert len(codes(expand(many, value_set({"system": URL}), Wanted(count=10), now_ms=0))) == 10


@given(st.sampled_from(VALUE_SETS))
@settings(max_examples=80, deadline=None)
def test_every_code_of_an_expansion_validates_and_is_in_its_system(url: str) -> None:
    defined = HL7.value_set(url, None)
    assert defined is not None
    try:
        found = expand(Terminology(HL7), defined, Wanted(count=50), now_ms=0)
    except (NotCarried, Unprocessable, TooCostly):
        return
    for row in found["expansion"].get("contains", ()):
        coded = Coded(system=row["system"], code=row["code"], display=row.get("display"))
        assert result(validate_in_value_set(Terminology(HL7), defined, [coded], abstract=False)), (url, row)


def test_every_system_of_hl7_has_a_hierarchy_without_circles() -> None:
    for url in SYSTEMS:
        found = HL7.code_system(url, None)
        assert found is not None
        for code, concept in found.concepts.items():
            assert all(code in found.concepts[one].children for one in concept.parents)
            if concept.children and concept.parents:
                assert not found.descendants(code) & found.ancestors(code), (url, code)


def test_validation_says_why_not() -> None:
    dogs = filtered("concept", "is-a", "animal")

    def judged(code: str, display: str | None = None, *, abstract: bool = False) -> dict[str, Any]:
        found = validate_in_value_set(terms(), dogs, [Coded(system=URL, code=code, display=display)],
                                      abstract=abstract)
        return {row["name"]: row.get("valueBoolean", row.get("valueString")) for row in found["parameter"]}

    assert judged("DOG", "hund") == {"result": True, "display": "Dog"}
    assert judged("dog", "Cat") == {"result": False, "display": "Dog",
                                    "message": "the display is not one of the code's"}
    assert judged("bird") == {"result": True, "display": "Bird", "message": "the code is inactive"}
    assert judged("animal")["result"] is False
    assert judged("animal", abstract=True)["result"] is True
    assert judged("pet") == {"result": False, "message": "the code is not in the value set"}
    several = [Coded(system="urn:x", code="y"), Coded(system=None, code="dog"), Coded(system=URL, code="dog")]
    assert result(validate_in_value_set(terms(), dogs, several, abstract=False))


def test_a_code_is_judged_by_its_system() -> None:
    def valid(url: str, code: str) -> bool:
        return result(validate_in_system(terms(), None, [Coded(system=url, code=code)], abstract=False))

    assert valid(f"{TERMS}v2-0203", "MR")
    assert not valid(f"{TERMS}v2-0203", "mr-not")
    assert valid("urn:ietf:bcp:47", "de-AT")
    assert not valid("urn:ietf:bcp:47", "not a tag")
    with pytest.raises(NotCarried, match="loinc"):
        valid("http://loinc.org", "8867-4")


def test_lookup_gives_properties_designations_and_the_hierarchy() -> None:
    found = lookup(CodeSystem.of(ANIMALS), "DOG")["parameter"]
    rows = [{part["name"]: next(value for key, value in part.items() if key != "name") for part in row["part"]}
            for row in found if row["name"] == "property"]
    assert {"code": "parent", "value": "animal"} in rows
    assert {"code": "parent", "value": "pet"} in rows
    assert {"code": "child", "value": "poodle"} in rows
    assert {"code": "legs", "value": 4} in rows
    assert {"name": "display", "valueString": "Dog"} in found
    only = lookup(CodeSystem.of(ANIMALS), "dog", properties=["legs"], language="de")["parameter"]
    assert [row["name"] for row in only] == ["name", "display", "property"]
    assert only[1]["valueString"] == "Hund"
    with pytest.raises(NotFound):
        lookup(CodeSystem.of(ANIMALS), "cat")
    with pytest.raises(Unprocessable):
        lookup(CodeSystem.of(ANIMALS), "dog", properties=["wings"])


MAP = {"resourceType": "ConceptMap", "url": "urn:map", "status": "active", "sourceUri": "urn:s", "targetUri": "urn:t",
       "group": [{"source": URL, "target": "urn:tiere", "unmapped": {"mode": "fixed", "code": "tier"}, "element": [
           {"code": "dog", "target": [{"code": "hund", "equivalence": "equivalent"},
                                      {"code": "welpe", "equivalence": "narrower"}]},
           {"code": "bird", "target": [{"equivalence": "unmatched"}]}]}]}


def translated(code: str, url: str = URL, **wanted: Any) -> list[tuple[str, str | None]]:
    found = translate(Shelf(), [MAP], [Coded(system=url, code=code)], Mapping(**wanted))["parameter"]
    matches = [{part["name"]: part for part in row["part"]} for row in found if row["name"] == "match"]
    return [(row["equivalence"]["valueCode"], row["concept"]["valueCoding"]["code"] if "concept" in row else None)
            for row in matches]


def test_translation_and_its_way_back() -> None:
    assert translated("dog") == [("equivalent", "hund"), ("narrower", "welpe")]
    assert translated("bird") == [("unmatched", None)]
    assert translated("pet") == [("inexact", "tier")]
    assert translated("dog", "urn:other") == []
    assert translated("dog", target="urn:elsewhere") == []
    assert translated("dog", target_system="urn:elsewhere") == []
    assert translated("welpe", "urn:tiere", reverse=True) == [("wider", "dog")]
    unmatched = translate(Shelf(), [MAP], [Coded(system=URL, code="bird")], Mapping())
    assert not result(unmatched)


names = st.sampled_from("abcd")
pairs = st.sets(st.tuples(names, names, st.sampled_from(["equivalent", "wider", "narrower", "inexact"])), max_size=8)


@given(pairs)
def test_what_translates_translates_back(rows: set[tuple[str, str, str]]) -> None:
    elements = [{"code": source, "target": [{"code": target, "equivalence": how}]} for source, target, how in rows]
    made = {"url": "urn:m", "group": [{"source": "urn:a", "target": "urn:b", "element": elements}]}

    def found(url: str, code: str, *, reverse: bool) -> set[str]:
        answer = translate(Shelf(), [made], [Coded(system=url, code=code)], Mapping(reverse=reverse))["parameter"]
        return {part["valueCoding"]["code"] for row in answer if row["name"] == "match"
                for part in row["part"] if part["name"] == "concept"}

    for source, target, _ in rows:
        assert target in found("urn:a", source, reverse=False)
        assert source in found("urn:b", target, reverse=True)
    assert not {one for one in "abcd" if found("urn:a", one, reverse=False)} - {source for source, _, _ in rows}
