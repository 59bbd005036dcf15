"""Whose record is it: ``gateway/FORMATS.md``, Keys; invariant 4 (nothing without a Permit of every home patient)."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.fhir.definitions import Definitions
from gateway.fhir.home import home_patients

DEFINITIONS = Definitions.load()
BASE = "https://hospital.example/fhir"


def homes(resource: dict[str, Any]) -> tuple[str, ...]:
    return home_patients(resource, DEFINITIONS.home_paths, base=BASE)


@pytest.mark.parametrize(("reference", "expected"), [
    ("Patient/1", ("1",)),
    ("Patient/1/_history/2", ("1",)),
    (f"{BASE}/Patient/1", ("1",)),
    ("https://other.example/fhir/Patient/1", ()),
    ("Group/1", ()),
    ("#p", ()),
    ("urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0", ()),
    ("Patient?identifier=a|b", ()),
])
def test_which_references_name_a_home_patient(reference: str, expected: tuple[str, ...]) -> None:
    assert homes({"resourceType": "Observation", "subject": {"reference": reference}}) == expected


def test_an_identifier_only_reference_names_none() -> None:
    assert homes({"resourceType": "Observation", "subject": {"identifier": {"value": "1"}}}) == ()


def test_a_patient_is_at_home_in_its_own_record() -> None:
    assert homes({"resourceType": "Patient", "id": "7", "link": [{"other": {"reference": "Patient/8"}}]}) == ("7",)


def test_every_patient_of_an_appointment_is_a_home_patient_once() -> None:
    participants = [{"actor": {"reference": r}} for r in ("Patient/b", "Practitioner/x", "Patient/a", "Patient/b")]
    assert homes({"resourceType": "Appointment", "participant": participants}) == ("a", "b")


@pytest.mark.parametrize("role", ["performer", "focus"])
def test_roles_in_which_a_patient_only_took_part_do_not_count(role: str) -> None:
    assert homes({"resourceType": "Observation", role: [{"reference": "Patient/9"}]}) == ()


def test_a_contained_resource_does_not_speak_for_its_container() -> None:
    contained = [{"resourceType": "Observation", "id": "o", "subject": {"reference": "Patient/2"}}]
    assert homes({"resourceType": "DiagnosticReport", "contained": contained,
                  "subject": {"reference": "Patient/1"}}) == ("1",)


def test_a_bundle_is_at_home_with_the_patients_of_its_entries() -> None:
    assert homes({"resourceType": "Bundle", "entry": [
        {"fullUrl": f"{BASE}/Patient/1", "resource": {"resourceType": "Patient", "id": "1"}},
        {"fullUrl": "https://other.example/Patient/2", "resource": {"resourceType": "Patient", "id": "2"}},
        {"resource": {"resourceType": "Observation", "subject": {"reference": "Patient/3"}}},
    ]}) == ("1", "3")


def test_a_type_without_a_row_belongs_to_the_custodian() -> None:
    assert homes({"resourceType": "Organization", "name": "Patient/1"}) == ()


@pytest.mark.parametrize("broken", [None, 5, "Patient/1", [], {"reference": 5}, [{"reference": None}]])
def test_shapes_that_are_not_references_name_none(broken: Any) -> None:
    assert homes({"resourceType": "Observation", "subject": broken}) == ()


def test_every_path_of_the_table_leads_to_a_reference_that_may_be_to_a_patient() -> None:
    for name, paths in DEFINITIONS.home_paths.items():
        for path in paths:
            node = DEFINITIONS.type(name).root
            for step in path[:-1]:
                node = DEFINITIONS.type(name).nodes[node.elements[step].node or ""]
            types = node.elements[path[-1]].types
            assert any(t.code == "Reference" and (not t.targets or "Patient" in t.targets) for t in types), path


def test_every_type_of_hl7s_patient_compartment_has_a_row() -> None:
    members = {name for name in DEFINITIONS.resource_types if DEFINITIONS.patient_compartment(name)}
    assert members - set(DEFINITIONS.home_paths) == {"Patient"}
