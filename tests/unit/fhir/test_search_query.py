"""Query strings to Query values. https://hl7.org/fhir/R4/search.html"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadSearch
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Criterion, DateIs, HashIs, IdIs, NumberIs, Query, SortKey, UpdatedIs
from gateway.fhir.resource import parse_instant
from gateway.fhir.search import Plans, parse_query
from gateway.fhir.search_dates import date_range
from gateway.fhir.search_encoding import token_bare, token_code, token_full, token_system

PLANS = Plans(Definitions.load())
NOW_MS = parse_instant("2024-01-01T00:00:00Z")
OWN = "http://own/fhir"


def read(type_name: str, *pairs: tuple[str, str], strict: bool = True, max_count: int = 100) -> Query:
    return parse_query(PLANS, type_name, pairs, strict=strict, own_bases=[OWN], max_count=max_count, now_ms=NOW_MS)


def any_of(type_name: str, name: str, value: str) -> Sequence[object]:
    [criterion] = read(type_name, (name, value)).criteria
    return criterion.any_of


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("http://loinc.org|8480-6", [token_full("http://loinc.org", "8480-6")]),
        ("8480-6", [token_code("8480-6")]),
        ("http://loinc.org|", [token_system("http://loinc.org")]),
        ("|8480-6", [token_bare("8480-6")]),
        (r"a\,b,c\|d", [token_code("a,b"), token_code("c|d")]),
    ],
)
def test_the_four_forms_of_a_token(value: str, texts: list[str]) -> None:
    assert any_of("Observation", "code", value) == tuple(HashIs("Observation.code", text) for text in texts)


def test_the_system_of_a_plain_code_is_implied_by_its_binding() -> None:
    final = HashIs("Observation.status", token_code("final"))
    assert final in any_of("Observation", "status", "http://hl7.org/fhir/observation-status|final")
    assert final not in any_of("Observation", "status", "http://loinc.org|final")
    assert final in any_of("Observation", "status", "http://hl7.org/fhir/observation-status|")


def test_a_parameter_whose_values_others_hold_asks_them() -> None:
    assert any_of("Observation", "combo-code", "x") == (
        HashIs("Observation.code", token_code("x")), HashIs("Observation.component-code", token_code("x")))
    assert any_of("Observation", "patient", "1") == (HashIs("Observation.subject", "Patient/1"),)
    assert any_of("Observation", "patient", "Group/1") == ()
    assert {one.key for one in any_of("Patient", "name", "ann") if isinstance(one, HashIs)} == {
        "Patient.name", "Patient.family", "Patient.given"}
    assert any_of("AuditEvent", "patient", "1") == (
        HashIs("AuditEvent.agent", "Patient/1"), HashIs("AuditEvent.entity", "Patient/1"))


@pytest.mark.parametrize("value", ["Patient/1", f"{OWN}/Patient/1", "Patient/1/_history/2"])
def test_a_reference_is_known_by_type_and_id(value: str) -> None:
    assert any_of("Observation", "subject", value) == (HashIs("Observation.subject", "Patient/1"),)


def test_an_id_alone_may_be_of_any_target_and_a_type_modifier_narrows_it() -> None:
    assert {one.text for one in any_of("Observation", "subject", "1") if isinstance(one, HashIs)} == {
        "Group/1", "Device/1", "Patient/1", "Location/1"}
    assert any_of("Observation", "subject:Patient", "1") == (HashIs("Observation.subject", "Patient/1"),)
    assert any_of("Observation", "subject:Patient", "Group/1") == ()


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("100", 99.5, 100.5), ("100.00", 99.995, 100.005), ("5.40e-3", 0.005395, 0.005405), ("-2", -2.5, -1.5)],
)
def test_a_number_is_as_wide_as_its_digits(value: str, low: float, high: float) -> None:
    [found] = any_of("RiskAssessment", "probability", value)
    assert isinstance(found, NumberIs)
    assert (found.low, found.high) == (low, pytest.approx(high))
    assert found.high < high


@pytest.mark.parametrize(
    ("value", "unit", "unit_code"),
    [("5.4|http://unitsofmeasure.org|mg", "http://unitsofmeasure.org|mg", ""), ("gt5.4||mg", "", "mg"), ("5", "", "")],
)
def test_a_quantity_may_name_its_unit(value: str, unit: str, unit_code: str) -> None:
    [found] = any_of("Observation", "value-quantity", value)
    assert isinstance(found, NumberIs)
    assert (found.unit, found.unit_code) == (unit, unit_code)


def test_dates_keep_their_prefix_and_birth_dates_become_rungs() -> None:
    asked = date_range("2012-01")
    assert asked is not None
    assert any_of("Observation", "date", "ge2012-01") == (DateIs("Observation.date", "ge", *asked),)
    assert any_of("Patient", "_lastUpdated", "lt2012-01") == (UpdatedIs("lt", *asked),)
    assert any_of("Patient", "birthdate", "1974-12") == (HashIs("Patient.birthdate", "m1974-12"),)
    assert all(isinstance(one, HashIs) for one in any_of("Patient", "birthdate", "ge1974-12-25"))


def test_ap_widens_by_a_tenth_of_the_way_to_now() -> None:
    [found] = any_of("Observation", "date", "ap2014-01-01")
    asked = date_range("2014-01-01")
    assert isinstance(found, DateIs)
    assert asked is not None
    assert asked[0] - found.low_ms == (NOW_MS - asked[0]) // 10


def test_commas_are_or_repeats_are_and_and_not_turns_around() -> None:
    query = read("Observation", ("_id", "a,b"), ("status:not", "final"), ("status", "amended"))
    assert query.criteria == (
        Criterion((IdIs("a"), IdIs("b"))),
        Criterion((HashIs("Observation.status", "cfinal"),), negated=True),
        Criterion((HashIs("Observation.status", "camended"),)),
    )
    assert query.used == (("_id", "a,b"), ("status:not", "final"), ("status", "amended"))


def test_sort_count_and_summary_shape_the_result() -> None:
    query = read("Observation", ("_sort", "-date,_id,_lastUpdated,value-quantity,patient"), ("_count", "500"),
                 ("_summary", "count"))
    assert query.sort == (
        SortKey("Observation.date", "date", True), SortKey("_id", "id"), SortKey("_lastUpdated", "updated"),
        SortKey("Observation.value-quantity", "number"), SortKey("Observation.patient", "string"))
    assert query.count == 100
    assert query.summary_count
    assert read("Observation", ("_count", "0")).summary_count
    assert read("Observation").count == 20


@pytest.mark.parametrize(
    "pair",
    [("nosuch", "1"), ("subject.nosuch", "x"), ("_has:Provenance:nosuch:agent", "x"), ("_filter", "nosuch eq 1"),
     ("_include", "Observation:nosuch"), ("_sort", "nosuch"), ("_revinclude", "Nosuch:subject"),
     ("_elements", "nosuch")],
)
def test_an_unknown_parameter_is_named_when_strict_and_dropped_with_a_word_when_lenient(pair: tuple[str, str]) -> None:
    with pytest.raises(BadSearch) as refused:
        read("Observation", pair)
    [issue] = refused.value.issues
    assert (issue.code, issue.expression) == ("not-supported", f"http.{pair[0]}")
    query = read("Observation", pair, ("status", "final"), strict=False)
    assert len(query.ignored) == 1
    assert query.used == (("status", "final"),)
    assert len(query.criteria) == 1


@pytest.mark.parametrize(
    ("type_name", "name", "value"),
    [
        ("Observation", "date", "xx2012"), ("Observation", "date", "2012-13"), ("Observation", "date", ""),
        ("Observation", "date", "gt"), ("Observation", "value-quantity", "abc"),
        ("Observation", "value-quantity", "5|mg"), ("Observation", "value-quantity", "1e9999"),
        ("Observation", "value-quantity", "zz5"), ("Observation", "code", ""), ("Observation", "code", "|"),
        ("Observation", "code", "a,,b"), ("Observation", "code:in", "x"), ("Observation", "code:missing", "maybe"),
        ("Observation", "code:exact", "x"), ("Observation", "subject:Nothing", "1"),
        ("Observation", "code-value-quantity", "8480-6"), ("Observation", "code-value-quantity", "a$b$c"),
        ("Patient", "name", "..."), ("Patient", "name", "x" * 33), ("Patient", "_count", "-1"),
        ("Patient", "_count", "many"), ("Patient", "_sort", ""), ("Observation", "subject", "#p"),
        ("Patient", "_lastUpdated", "now"), ("Patient", "gender", ",".join("x" * 501)),
    ],
)
def test_a_bad_value_or_modifier_is_refused_even_when_lenient(type_name: str, name: str, value: str) -> None:
    with pytest.raises(BadSearch) as refused:
        read(type_name, (name, value), strict=False)
    assert refused.value.issues[0].expression == f"http.{name}"


@given(st.sampled_from(sorted(PLANS.of("Observation"))), st.text(max_size=20), st.booleans())
def test_any_value_is_read_or_refused(name: str, value: str, strict: bool) -> None:
    with contextlib.suppress(BadSearch):
        query = read("Observation", (name, value), strict=strict)
        assert query.used or query.ignored


@given(st.text(max_size=20), st.text(max_size=5))
def test_any_name_is_read_or_refused(name: str, value: str) -> None:
    with contextlib.suppress(BadSearch):
        read("Patient", (name, value), strict=False)


@pytest.mark.parametrize("pairs", [
    [("gender", "male")] * 101,
    [("_sort", ",".join(["_id"] * 11))],
    [("general-practitioner", ",".join(f"Practitioner/{n}" for n in range(500)))] * 11,
    [("_lastUpdated", ",".join(f"ge{n:04}" for n in range(1, 301)))] * 2,
])
def test_a_search_too_large_to_carry_out_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(BadSearch) as caught:
        read("Patient", *pairs)
    assert [issue.code for issue in caught.value.issues] == ["too-costly"]


def test_zeros_before_a_count_change_nothing() -> None:
    assert (read("Patient", ("_count", "0000000005")).count, read("Patient", ("_count", "000")).summary_count) == (
        5, True)
