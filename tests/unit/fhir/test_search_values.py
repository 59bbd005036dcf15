"""Facts of resources, and queries answered on them. https://hl7.org/fhir/R4/search.html"""

from __future__ import annotations

import gzip
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Invalid
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Facts
from gateway.fhir.resource import parse, parse_json
from gateway.fhir.search import SearchExtractor, matches, parse_query
from tests.shared_data import SHARED, needs_shared

EXTRACTOR = SearchExtractor(Definitions.load(), own_bases=["http://own/fhir/"])

VITAL = parse(b"""{"resourceType": "Observation", "id": "v", "status": "final",
 "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category",
   "code": "vital-signs"}]}],
 "code": {"coding": [{"system": "http://loinc.org", "code": "85354-9"}], "text": "Blood pressure"},
 "subject": {"reference": "Patient/p1/_history/4"}, "encounter": {"reference": "http://own/fhir/Encounter/e1"},
 "effectiveDateTime": "2012-01-05T10:00:00+02:00",
 "component": [
  {"code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
   "valueQuantity": {"value": 118.0, "unit": "mmHg", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}},
  {"code": {"coding": [{"system": "http://loinc.org", "code": "8462-4"}]},
   "valueQuantity": {"value": 76, "unit": "mmHg", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}}]}""")

WEIGHT = parse(b"""{"resourceType": "Observation", "id": "w", "status": "final",
 "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category",
   "code": "vital-signs"}]}],
 "code": {"coding": [{"system": "http://loinc.org", "code": "29463-7"}]},
 "subject": {"reference": "Patient/p1"}, "encounter": {"reference": "Encounter/e1"},
 "effectivePeriod": {"start": "2012-01"}, "issued": "2012-01-05T10:00:00Z",
 "valueQuantity": {"value": 71.50, "unit": "kg", "system": "http://unitsofmeasure.org", "code": "kg"}}""")

ANNE = parse("""{"resourceType": "Patient", "id": "a", "active": true, "gender": "female", "birthDate": "1974-12-25",
 "meta": {"profile": ["http://p|2"], "tag": [{"system": "http://t", "code": "T1"}], "source": "http://s"},
 "identifier": [{"system": "urn:mrn", "value": "X-1"}, {"value": "bare"}],
 "name": [{"family": "van der Berg", "given": ["Anne-Marie", "Zoë"], "prefix": ["Dr."]}],
 "telecom": [{"system": "phone", "value": "555-1"}, {"system": "email", "value": "A@b.c"}],
 "address": [{"line": ["12 Long Street"], "city": "São Paulo", "postalCode": "01"}],
 "deceasedDateTime": "2020-02-02T10:00:00Z", "generalPractitioner": [{"reference": "Practitioner/d"}],
 "contained": [{"resourceType": "Patient", "id": "c", "name": [{"family": "Inner"}]}]}""".encode())


def asked(resource: dict[str, Any], name: str, value: str) -> bool:
    query = parse_query(EXTRACTOR.plans, resource["resourceType"], [(name, value)], strict=True,
                        own_bases=["http://own/fhir"], max_count=10, now_ms=1_700_000_000_000)
    return matches(query.criteria, EXTRACTOR.facts(resource), resource["id"], 1_325_757_600_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "final"), ("status", "http://hl7.org/fhir/observation-status|final"), ("status", "|final"),
        ("category", "vital-signs"), ("category", "VITAL-SIGNS"), ("code", "http://loinc.org|85354-9"),
        ("code", "http://loinc.org|"), ("code:not", "8480-6"), ("combo-code", "8480-6"), ("component-code", "8462-4"),
        ("subject", "Patient/p1"), ("subject", "p1"), ("subject:Patient", "p1"), ("patient", "p1"),
        ("patient", "http://own/fhir/Patient/p1"), ("encounter", "Encounter/e1"), ("encounter", "e1"),
        ("date", "2012-01-05"), ("date", "2012"), ("date", "gt2012-01-04"), ("date", "2012-01-05T08:00:00Z"),
        ("date", "lt2012-01-05T08:00:01Z"), ("date", "sa2012-01-04"), ("date", "eb2012-01-06"),
        ("component-value-quantity", "118"), ("component-value-quantity", "118.0||mmHg"),
        ("component-value-quantity", "118|http://unitsofmeasure.org|mm[Hg]"), ("component-value-quantity", "gt117.9"),
        ("combo-value-quantity", "76||mm[Hg]"), ("combo-value-quantity", "ap80"), ("combo-value-quantity", "eb76.1"),
        ("component-code-value-quantity", "http://loinc.org|8480-6$gt110"),
        ("combo-code-value-quantity", "8480-6$118||mmHg"), ("combo-code-value-quantity", "8462-4$le76"),
        ("_id", "v"), ("_id", "x,v"), ("_id:not", "x"), ("_lastUpdated", "2012-01-05"),
    ],
)
def test_an_observation_is_found_by(name: str, value: str) -> None:
    assert asked(VITAL, name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "http://loinc.org|final"), ("code", "8480-6"), ("code", "|85354-9"), ("code:not", "85354-9"),
        ("code", "Blood pressure"), ("subject", "Group/p1"), ("subject:Group", "p1"), ("patient", "p2"),
        ("date", "2012-01-05T10:00"), ("date", "lt2012-01-05"), ("date", "2012-01-06"), ("date", "sa2012-01-05"),
        ("component-value-quantity", "118||kg"), ("component-value-quantity", "gt118"), ("value-quantity", "118"),
        ("component-value-quantity", "sa118"), ("component-value-quantity", "eb76"),
        ("component-value-quantity", "118.4"), ("component-code-value-quantity", "8480-6$76"),
        ("combo-code-value-quantity", "85354-9$118"), ("_id", "w"), ("_lastUpdated", "gt2012-01-05"),
    ],
)
def test_an_observation_is_not_found_by(name: str, value: str) -> None:
    """Composites above all: both parts from one component."""
    assert not asked(VITAL, name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "van"), ("name", "berg"), ("name", "ANNE MARIE"), ("name", "marie"), ("name", "zoe"), ("name", "dr"),
        ("family", "Van Der"), ("family:exact", "van der Berg"), ("name:exact", "Zoë"), ("given", "anne-m"),
        ("phonetic", "berg"), ("address", "long"), ("address", "sao p"), ("address-city", "são"), ("address", "01"),
        ("gender", "female"), ("gender", "http://hl7.org/fhir/administrative-gender|female"), ("active", "true"),
        ("identifier", "urn:mrn|X-1"), ("identifier", "x-1"), ("identifier", "|bare"), ("email", "a@b.c"),
        ("phone", "555-1"), ("telecom", "555-1"), ("deceased", "true"), ("death-date", "2020-02-02"),
        ("death-date", "gt2019"), ("birthdate", "1974-12-25"), ("birthdate", "ge1974"), ("birthdate", "lt1975-01"),
        ("birthdate", "ne1975"), ("birthdate", "1974"), ("general-practitioner", "Practitioner/d"),
        ("_profile", "http://p"), ("_profile", "http://p|2"), ("_tag", "http://t|t1"), ("_source", "http://s"),
    ],
)
def test_a_patient_is_found_by(name: str, value: str) -> None:
    assert asked(ANNE, name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "inner"), ("name", "erg"), ("family", "berg"), ("family:exact", "Van der Berg"), ("given", "marie"),
        ("identifier", "|X-1"), ("identifier", "urn:other|X-1"), ("email", "555-1"), ("phone", "a@b.c"),
        ("birthdate", "1974-12-24"), ("birthdate", "gt1974-12-25"), ("birthdate", "sa1974"), ("deceased", "false"),
        ("_tag", "http://T|t1"), ("_profile", "http://p|3"), ("active", "false"),
    ],
)
def test_a_patient_is_not_found_by(name: str, value: str) -> None:
    assert not asked(ANNE, name, value)


def test_other_types_are_found_by_their_own_shapes() -> None:
    appointment = {"resourceType": "Appointment", "id": "x", "status": "booked", "start": "2024-01-01T10:00:00Z",
                   "participant": [{"actor": {"reference": "Patient/1"}, "status": "accepted"},
                                   {"actor": {"reference": "Location/2"}, "status": "tentative"}]}
    assert asked(appointment, "patient", "1")
    assert asked(appointment, "actor", "Location/2")
    assert not asked(appointment, "patient", "2")
    assert asked(appointment, "part-status", "tentative")
    risk = parse(b'{"resourceType": "RiskAssessment", "id": "r", "prediction": [{"probabilityDecimal": 0.30},'
                 b' {"probabilityRange": {"low": {"value": 0.6}, "high": {"value": 0.8}}}]}')
    assert asked(risk, "probability", "0.3")
    assert asked(risk, "probability", "gt0.7")
    assert not asked(risk, "probability", "gt0.8")
    bundle = {"resourceType": "Bundle", "id": "b", "type": "document",
              "entry": [{"resource": {"resourceType": "Composition", "id": "c"}}]}
    assert asked(bundle, "composition", "Composition/c")
    assert not asked(bundle, "message", "Composition/c")
    document = {"resourceType": "DocumentReference", "id": "d",
                "relatesTo": [{"code": "replaces", "target": {"reference": "DocumentReference/1"}},
                              {"code": "appends", "target": {"reference": "DocumentReference/2"}}]}
    assert asked(document, "relationship", "replaces$DocumentReference/1")
    assert asked(document, "relationship", "http://hl7.org/fhir/document-relationship-type|appends$2")
    assert not asked(document, "relationship", "replaces$DocumentReference/2")
    invoice = parse(b'{"resourceType": "Invoice", "id": "i", "totalGross": {"value": 40.00, "currency": "EUR"}}')
    assert asked(invoice, "totalgross", "40|urn:iso:std:iso:4217|EUR")
    assert not asked(invoice, "totalgross", "40||USD")


def test_an_open_period_is_later_than_any_day_it_may_contain() -> None:
    assert asked(WEIGHT, "date", "gt2020")
    assert asked(WEIGHT, "date", "ap2012-01")
    assert not asked(WEIGHT, "date", "2012-01")


def test_a_vital_sign_takes_at_most_twenty_rows_and_a_patient_at_most_150() -> None:
    assert rows(EXTRACTOR.facts(WEIGHT)) <= 20
    assert rows(EXTRACTOR.facts(ANNE)) <= 150


def rows(facts: Facts) -> int:
    return len(facts.hashes) + len(facts.numbers) + len(facts.dates) + len(facts.references)


def test_a_birth_date_is_nowhere_as_a_number() -> None:
    facts = EXTRACTOR.facts(ANNE)
    assert not facts.dates
    assert not facts.numbers


@pytest.mark.parametrize("resource", [{}, {"resourceType": 5}, {"resourceType": "Nothing"}])
def test_a_resource_of_no_type_is_refused(resource: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        EXTRACTOR.facts(resource)


_KEYS = st.sampled_from(["status", "code", "coding", "system", "value", "subject", "reference", "category", "component",
                         "valueQuantity", "valueString", "effectivePeriod", "start", "unit", "low", "name", "given",
                         "identifier", "birthDate", "address", "line", "telecom", "meta", "tag", "deceasedBoolean"])
_ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
                    max_leaves=15)


@settings(max_examples=300)
@given(st.sampled_from(["Observation", "Patient", "Appointment"]), st.dictionaries(_KEYS, _ANY, max_size=6))
def test_a_misshapen_resource_never_breaks_extraction(type_name: str, body: dict[str, Any]) -> None:
    """Validation may be off for a type (or a block older than a rule): the index must still be built."""
    facts = EXTRACTOR.facts({"resourceType": type_name, **body})
    assert all(type(fact.text) is str for fact in facts.hashes)


_CODINGS = st.fixed_dictionaries(
    {}, optional={"system": st.sampled_from(["http://a", "http://b"]), "code": st.sampled_from(["x", "X", "y"])})
_CONCEPTS = st.fixed_dictionaries({"coding": st.lists(_CODINGS, min_size=1, max_size=2)})
_QUANTITIES = st.fixed_dictionaries({"value": st.integers(0, 4)})
_PART = st.fixed_dictionaries({"code": _CONCEPTS}, optional={"valueQuantity": _QUANTITIES})
_OBSERVATIONS = st.fixed_dictionaries(
    {"resourceType": st.just("Observation"), "id": st.just("o"), "code": _CONCEPTS},
    optional={"valueQuantity": _QUANTITIES, "component": st.lists(_PART, min_size=1, max_size=2)})


def _coded(element: dict[str, Any], system: str, code: str) -> bool:
    return any(one.get("code", "").lower() == code and (not system or one.get("system") == system)
               for one in element["code"]["coding"])


@given(_OBSERVATIONS, st.sampled_from(["", "http://a"]), st.sampled_from(["x", "y"]), st.integers(0, 4),
       st.sampled_from(["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb"]))
def test_codes_and_composites_agree_with_a_plain_reading_of_the_resource(
    observation: dict[str, Any], system: str, code: str, number: int, prefix: str
) -> None:
    token = f"{system}|{code}" if system else code
    parts = [observation, *observation.get("component", [])]
    assert asked(observation, "combo-code", token) is any(_coded(one, system, code) for one in parts)
    compare = {"eq": int.__eq__, "ne": int.__ne__, "gt": int.__gt__, "lt": int.__lt__, "ge": int.__ge__,
               "le": int.__le__, "sa": int.__gt__, "eb": int.__lt__}[prefix]
    assert asked(observation, "combo-code-value-quantity", f"{token}${prefix}{number}") is any(
        _coded(one, system, code) and "valueQuantity" in one and compare(one["valueQuantity"]["value"], number)
        for one in parts)


@needs_shared
def test_every_synthea_resource_stays_within_its_rows() -> None:
    assert SHARED is not None
    [first, *_] = sorted((SHARED / "synthea-r4-smart").glob("*.gz"))
    most: Counter[str] = Counter()
    for entry in parse_json(gzip.decompress(first.read_bytes()))["entry"]:
        resource = entry["resource"]
        most[resource["resourceType"]] = max(most[resource["resourceType"]], rows(EXTRACTOR.facts(resource)))
    assert most
    assert max(most.values()) <= 160, most
