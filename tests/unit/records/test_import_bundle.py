"""What a Bundle of each type becomes for an import (https://hl7.org/fhir/R4/bundle.html)."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import Invalid
from gateway.fhir.bundle import without_resources
from gateway.records.import_bundle import as_entry, as_transaction

TYPES = frozenset({"Patient", "Observation", "OperationOutcome"})
PATIENT = {"resourceType": "Patient", "id": "p1"}
OBSERVATION = {"resourceType": "Observation", "status": "final"}


def refused(bundle: dict[str, Any]) -> list[str | None]:
    with pytest.raises(Invalid) as raised:
        as_transaction(bundle, TYPES)
    return [issue.expression for issue in raised.value.issues]


def test_a_resource_is_put_under_its_id_and_posted_without_one() -> None:
    assert as_entry(PATIENT, TYPES, at="Patient")["request"] == {"method": "PUT", "url": "Patient/p1"}
    assert as_entry(OBSERVATION, TYPES, at="Observation")["request"] == {"method": "POST", "url": "Observation"}


@pytest.mark.parametrize("kind", ["collection", "searchset", "document", "message"])
def test_contents_become_entries_with_their_full_urls(kind: str) -> None:
    made = as_transaction({"resourceType": "Bundle", "type": kind, "entry": [
        {"fullUrl": "urn:uuid:1", "resource": PATIENT}, {"resource": OBSERVATION}]}, TYPES)
    assert made == {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"fullUrl": "urn:uuid:1", "resource": PATIENT, "request": {"method": "PUT", "url": "Patient/p1"}},
        {"resource": OBSERVATION, "request": {"method": "POST", "url": "Observation"}}]}


@pytest.mark.parametrize("kind", ["transaction", "batch"])
def test_requests_stay_as_they_are_all_or_nothing(kind: str) -> None:
    entries = [{"request": {"method": "DELETE", "url": "Patient/p1"}}]
    assert as_transaction({"resourceType": "Bundle", "type": kind, "entry": entries}, TYPES) == {
        "resourceType": "Bundle", "type": "transaction", "entry": entries}


def test_a_searchsets_outcome_is_no_match() -> None:
    made = as_transaction({"type": "searchset", "entry": [
        {"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}},
        {"resource": PATIENT}]}, TYPES)
    assert [entry["request"]["url"] for entry in made["entry"]] == ["Patient/p1"]


@pytest.mark.parametrize("kind", ["history", "transaction-response", "batch-response", "nonsense", None, 7, ["x"]])
def test_other_types_are_refused_at_bundle_type(kind: object) -> None:
    assert refused({"resourceType": "Bundle", "type": kind}) == ["Bundle.type"]


def test_every_entry_at_fault_is_named() -> None:
    assert refused({"type": "collection", "entry": [
        {"resource": PATIENT}, {"fullUrl": "urn:uuid:1"}, "x", {"resource": {"resourceType": "Alien"}},
        {"resource": {"resourceType": "Patient", "id": "a/b"}}, {"resource": {"resourceType": "Patient", "id": 7}},
        {"fullUrl": 7, "resource": PATIENT}, {"resource": []}]}) == [
        "Bundle.entry[1].resource", "Bundle.entry[2].resource", "Bundle.entry[3].resource.resourceType",
        "Bundle.entry[4].resource.id", "Bundle.entry[5].resource.id", "Bundle.entry[6].fullUrl",
        "Bundle.entry[7].resource"]
    assert refused({"type": "collection", "entry": {"resource": PATIENT}}) == ["Bundle.entry"]


def test_an_envelope_holds_no_resource_and_hostile_entries_stay_for_the_validator() -> None:
    assert without_resources({"entry": [{"fullUrl": "u", "resource": PATIENT}, 7]}) == {"entry": [{"fullUrl": "u"}, 7]}
    assert without_resources({"entry": 7}) == {"entry": 7}
