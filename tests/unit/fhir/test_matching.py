"""The likelihood that two Patients are one person. https://hl7.org/fhir/R4/patient-operation-match.html"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fhir.matching import compare, distance, keys, person

names = st.text("abcdeé' -", max_size=9)
patients = st.fixed_dictionaries({}, optional={
    "identifier": st.lists(st.fixed_dictionaries({}, optional={
        "system": st.sampled_from(["s", "t"]), "value": st.sampled_from("123")}), max_size=3),
    "name": st.lists(st.fixed_dictionaries({}, optional={"family": names, "given": st.lists(names, max_size=2)}),
                     max_size=2),
    "birthDate": st.sampled_from(["1970", "1970-01", "1970-01-02", "1970-02-01", "1971-01-02", "no"]),
    "gender": st.sampled_from(["male", "female", "other"]),
    "telecom": st.lists(st.fixed_dictionaries({"value": st.sampled_from(["+41 79 123 45 67", "0791234567", "a@b"])}),
                        max_size=2),
    "address": st.lists(st.fixed_dictionaries({}, optional={"postalCode": names, "line": st.lists(names, max_size=1)}),
                        max_size=1)})
ANNA: dict[str, Any] = {
    "identifier": [{"system": "urn:mrn", "value": "17"}], "name": [{"family": "Meier", "given": ["Anna"]}],
    "birthDate": "1970-02-03", "gender": "female", "telecom": [{"value": "+41 79 123 45 67"}],
    "address": [{"line": ["Hauptstrasse 1"], "postalCode": "8000"}]}


def grade(**changes: Any) -> str:
    return compare(person(ANNA), person({name: value for name, value in {**ANNA, **changes}.items() if value})).grade


@given(patients, patients)
def test_the_order_of_two_records_does_not_matter(one: dict[str, Any], other: dict[str, Any]) -> None:
    there, back = compare(person(one), person(other)), compare(person(other), person(one))
    assert there == back
    assert 0 <= there.probability <= 1


@given(patients)
def test_agreement_on_one_part_more_never_lowers_the_score(one: dict[str, Any]) -> None:
    before = compare(person(one), person(one)).probability
    more = {**one, "identifier": [{"system": "urn:more", "value": "1"}, *one.get("identifier", [])]}
    assert compare(person(more), person(more)).probability >= before


@given(patients)
def test_without_an_identifier_or_contact_nothing_is_certain(one: dict[str, Any]) -> None:
    bare = {name: value for name, value in one.items() if name in ("name", "birthDate", "gender")}
    assert compare(person(bare), person(bare)).grade != "certain"


@given(patients)
def test_candidates_are_searched_by_what_is_there(one: dict[str, Any]) -> None:
    for pairs in keys(one):
        assert pairs
        assert all(value for _, value in pairs)


@given(names, names, names)
def test_distance_is_one(one: str, other: str, third: str) -> None:
    assert distance(one, other) == distance(other, one) <= max(len(one), len(other))
    assert (distance(one, other) == 0) is (one == other)


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, "certain"), ({"identifier": None}, "certain"), ({"telecom": None, "address": None}, "certain"),
    ({"identifier": None, "telecom": None, "address": None}, "probable"),
    ({"name": [{"family": "Mayer", "given": ["Anna"]}]}, "probable"),
    ({"birthDate": "1970-03-02", "identifier": None}, "probable"),
    ({"identifier": None, "telecom": None, "address": None, "gender": "male"}, "possible"),
    ({"identifier": None, "birthDate": "1990-01-01", "telecom": None, "address": None}, "certainly-not"),
    ({"identifier": None, "name": [{"family": "Other", "given": ["Eve"]}], "telecom": None, "address": None},
     "certainly-not")])
def test_grades(changes: dict[str, Any], expected: str) -> None:
    assert grade(**changes) == expected


def test_numbers_are_compared_by_their_digits() -> None:
    assert grade(identifier=None, address=None, telecom=[{"value": "079 123 45 67"}]) == "certain"


def test_a_swap_of_neighbours_is_one_slip() -> None:
    assert distance("meier", "meire") == 1
