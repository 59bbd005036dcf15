"""Labels, clinical periods and categories as the decision reads them from a resource."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.facts import categories_of, facts_of, names_of, period_of
from gateway.access.labels import labels_of
from gateway.access.period import MAX_MS, MIN_MS, date_range, instant_text, period_range
from gateway.access.roles import policy
from tests.shared_data import SHARED, needs_shared

LABEL = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
RANK = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"


def labelled(*codings: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "meta": {"security": list(codings)}}


@pytest.mark.parametrize(("resource", "expected"), [
    ({"resourceType": "Observation"}, (3, 0)),
    (labelled({"system": RANK, "code": "U"}), (0, 0)),
    (labelled({"system": RANK, "code": "L"}, {"system": RANK, "code": "R"}), (4, 0)),
    (labelled({"system": "http://hl7.org/fhir/v3/Confidentiality", "code": "V"}), (5, 0)),
    (labelled({"system": LABEL, "code": "PSY"}, {"system": LABEL, "code": "HIV"}), (3, 1 << 5 | 1 << 9)),
    (labelled({"system": LABEL, "code": "MAGIC"}), (3, 1)),
    (labelled({"system": RANK, "code": "X"}), (3, 1)),
    (labelled({"code": "R"}), (3, 1)),
    (labelled({"system": "http://example.org", "code": "R"}), (3, 1)),
    (labelled("R", None), (3, 1)),
    ({"resourceType": "Observation", "meta": {"security": {"system": RANK, "code": "R"}}}, (4, 0)),
    (labelled({"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST"}), (3, 0)),
])
def test_labels_are_read_by_the_high_water_mark_and_unknown_ones_are_kept(
        resource: dict[str, Any], expected: tuple[int, int]) -> None:
    assert labels_of(resource) == expected


def test_a_bundle_is_as_sensitive_as_what_it_holds() -> None:
    inner = labelled({"system": LABEL, "code": "PSY"}, {"system": RANK, "code": "R"})
    assert labels_of({"resourceType": "Bundle", "entry": [{"resource": inner}, {}, None]}) == (4, 1 << 5)
    assert labels_of({"resourceType": "Parameters", "parameter": [{"name": "x", "resource": inner}]}) == (4, 1 << 5)


def test_every_label_has_a_bit_of_its_own_and_words() -> None:
    labels = policy().labels
    bits = list(labels.bits.values())
    assert len(set(bits)) == len(bits)
    assert all(bit.bit_count() == 1 and 1 < bit < 1 << 63 for bit in bits)
    assert labels.bits.keys() == labels.bit_texts.keys()
    assert len(set(labels.bit_texts.values())) == len(bits)
    # Stored with every version: these never change.
    assert [labels.bits[code] for code in ("ETH", "PSY", "HIV", "ADOL", "REDACT")] == [
        1 << 1, 1 << 5, 1 << 9, 1 << 15, 1 << 43]


@pytest.mark.parametrize(("text", "low", "high"), [
    ("2024", "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
    ("2024-12", "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z"),
    ("2024-02", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
    ("2024-02-29", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
    ("2024-02-29T10:00", "2024-02-29T10:00:00Z", "2024-02-29T10:01:00Z"),
    ("2024-02-29T10:00:00+02:00", "2024-02-29T08:00:00Z", "2024-02-29T08:00:01Z"),
    ("2024-02-29T10:00:00.5-03:30", "2024-02-29T13:30:00.500Z", "2024-02-29T13:30:00.600Z"),
    ("2024-02-29T10:00:00.123456Z", "2024-02-29T10:00:00.123Z", "2024-02-29T10:00:00.124Z"),
    ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z", "2017-01-01T00:00:01Z"),
    ("9999", "9999-01-01T00:00:00Z", None),
])
def test_a_partial_date_is_all_it_may_mean(text: str, low: str, high: str | None) -> None:
    assert date_range(text)[0] == date_range(low)[0]
    assert date_range(text)[1] == (MAX_MS if high is None else date_range(high)[0])


@pytest.mark.parametrize("text", ["", "24", "2024-13", "2024-02-30", "2024-1-1", "2024-01-01T", "today",
                                  "2024-01-01 10:00", "0000", "\u0662\u0660\u0662\u0664"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any wording
        date_range(text)


@given(st.integers(MIN_MS, MAX_MS - 1))
def test_a_moment_is_written_so_that_it_reads_back(ms: int) -> None:
    assert date_range(instant_text(ms))[0] == ms


def test_a_period_ends_with_the_last_moment_of_its_end() -> None:
    assert period_range({"start": "2024-01", "end": "2024-01"}) == date_range("2024-01")
    assert period_range({"end": "2024"}) == (MIN_MS, date_range("2024")[1])
    with pytest.raises(ValueError, match="ends before"):
        period_range({"start": "2024-02", "end": "2024-01"})


@pytest.mark.parametrize(("resource", "expected"), [
    ({"effectiveDateTime": "2024-01-01", "issued": "2025-01-01T00:00:00Z"}, date_range("2024-01-01")),
    ({"effectivePeriod": {"start": "2024-01-01"}}, (date_range("2024-01-01")[0], MAX_MS)),
    ({"start": "2024-01-01T10:00:00Z", "end": "2024-01-01T11:00:00Z"},
     (date_range("2024-01-01T10:00:00Z")[0], date_range("2024-01-01T11:00:00Z")[1])),
    ({"onsetAge": {"value": 3}, "recordedDate": "2024"}, date_range("2024")),
    ({"period": {"start": "2024", "end": "2023"}}, (MIN_MS, MAX_MS)),
    ({"birthDate": "2024-01-01"}, None),
    ({}, None),
])
def test_the_clinical_period_is_when_it_happened_else_when_it_was_written(
        resource: dict[str, Any], expected: tuple[int, int] | None) -> None:
    assert period_of(resource) == expected


def test_categories_are_what_a_resource_is_called() -> None:
    assert categories_of({
        "category": [{"coding": [{"system": "s", "code": "vital-signs"}, {"code": "x"}]}, {"text": "t"}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "1-8"}]},
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "valueCodeableConcept": {"coding": [{"system": "v", "code": "never"}]},
    }) == {"s|vital-signs", "|x", "http://loinc.org|1-8", "http://terminology.hl7.org/CodeSystem/v3-ActCode|AMB"}
    assert categories_of({"category": ["food"], "code": "active", "type": 3}) == frozenset()


def test_facts_name_patients_as_references() -> None:
    facts = facts_of({"resourceType": "Observation", "id": "o"}, ("1", "2"), author_client="ehr", author_user=None)
    assert facts.home_patients == ("Patient/1", "Patient/2")
    assert (facts.type, facts.id, facts.confidentiality, facts.labels) == ("Observation", "o", 3, 0)


@needs_shared
def test_published_examples_have_facts_and_few_unknown_labels() -> None:
    assert SHARED is not None
    dated = count = unknown = 0
    for path in sorted((SHARED / "hl7-r4-examples" / "Observation").glob("*.json")):
        facts = facts_of(json.loads(path.read_text("utf-8")), (), author_client="x", author_user=None)
        count += 1
        dated += facts.period is not None
        unknown += bool(facts.labels & 1)
    assert count > 30
    assert dated > 0.9 * count
    assert unknown == 0


def refer(reference: str) -> dict[str, str]:
    return {"reference": reference}


@pytest.mark.parametrize(("resource", "names"), [
    ({}, set()),
    ({"performer": [refer("Practitioner/1"), refer("https://h.example/fhir/Organization/2/_history/3")]},
     {"author:Practitioner/1", "author:Organization/2"}),
    ({"author": refer("Device/d"), "recorder": refer("Practitioner/1"), "requester": refer("PractitionerRole/2")},
     {"author:Device/d", "author:Practitioner/1", "author:PractitionerRole/2"}),
    ({"performer": [{"actor": refer("Practitioner/1"), "function": {"text": "x"}}]}, {"author:Practitioner/1"}),
    ({"author": [{"identifier": {"value": "7"}}, refer("#p"), refer("https://b.example/Practitioner/1")]},
     {"author:?"}),
    ({"encounter": refer("Encounter/1"), "basedOn": [refer("CarePlan/2"), refer("ServiceRequest/3")]},
     {"about:Encounter/1", "about:CarePlan/2"}),
    ({"context": {"encounter": [refer("Encounter/1")], "related": [refer("EpisodeOfCare/4")]}},
     {"about:Encounter/1", "about:EpisodeOfCare/4"}),
    ({"encounter": {"identifier": {"value": "7"}}}, {"about:?"}),
    ({"context": refer("urn:uuid:1")}, {"about:?"}),
    ({"subject": {"identifier": {"value": "7"}}, "performer": "x", "author": [None]}, set()),
])
def test_authors_and_care_are_named_and_what_cannot_be_told_is_said(resource: dict[str, Any], names: set[str]) -> None:
    assert names_of(resource, "https://h.example/fhir/") == names


def test_no_coding_can_pose_as_an_author() -> None:
    code = {"coding": [{"system": "author:Practitioner/9", "code": ""}, {"code": "author:Practitioner/9"}]}
    facts = facts_of({"resourceType": "Observation", "code": code}, ["1"], author_client="app", author_user=None)
    assert "author:Practitioner/9" not in facts.categories
