"""The validator, rule by rule: https://hl7.org/fhir/R4/validation.html and https://hl7.org/fhir/R4/json.html

Each broken resource names the place (FHIRPath) and the issue type an OperationOutcome must carry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import Invalid, Issue
from gateway.fhir.definitions import Definitions
from gateway.fhir.resource import parse
from gateway.fhir.validate import Validator

FIXTURES = sorted((Path(__file__).parents[2] / "fixtures" / "fhir").glob("*.json"))
VALIDATOR = Validator(Definitions.load())

OBSERVATION: dict[str, Any] = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
PATIENT: dict[str, Any] = {"resourceType": "Patient"}
DAR = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"


def validate(resource: dict[str, Any]) -> list[Issue]:
    return VALIDATOR.validate(parse(json.dumps(resource).encode()))


def errors(resource: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(issue.code, issue.expression) for issue in validate(resource) if issue.severity == "error"]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_hl7s_examples_are_valid(path: Path) -> None:
    assert [i for i in VALIDATOR.validate(parse(path.read_bytes())) if i.severity == "error"] == []


@pytest.mark.parametrize(
    "resource",
    [
        {**PATIENT, "birthDate": "2024-02-29"},
        {
            **PATIENT,
            "name": [{"given": ["A", None], "_given": [None, {"extension": [{"url": DAR, "valueCode": "masked"}]}]}],
        },
        {**PATIENT, "name": [{"given": ["A", "B"], "_given": [{"id": "x"}]}]},
        {**PATIENT, "_birthDate": {"extension": [{"url": DAR, "valueCode": "unknown"}]}},
        {**PATIENT, "birthDate": "2024", "_birthDate": {"id": "b"}},
        {**PATIENT, "deceasedBoolean": False},
        {**PATIENT, "managingOrganization": {"reference": "urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7"}},
        {**PATIENT, "managingOrganization": {"identifier": {"value": "1"}}},
        {**PATIENT, "managingOrganization": {"reference": "Organization?identifier=a|b"}},
        {**PATIENT, "managingOrganization": {"reference": "https://a.example/fhir/Organization/1/_history/2"}},
        {**PATIENT, "managingOrganization": {"reference": "https://a.example/not-fhir"}},
        {
            **PATIENT,
            "contained": [{"resourceType": "Organization", "id": "o", "name": "O"}],
            "managingOrganization": {"reference": "#o"},
        },
        {
            **PATIENT,
            "contained": [
                {
                    "resourceType": "Provenance",
                    "id": "p",
                    "target": [{"reference": "#"}],
                    "recorded": "2020-01-01T00:00:00Z",
                    "agent": [{"who": {"display": "x"}}],
                }
            ],
        },
        {**PATIENT, "extension": [{"url": "http://a.example/x", "extension": [{"url": "y", "valueString": "z"}]}]},
        {
            **PATIENT,
            "extension": [
                {"url": "http://a.example/x", "_valueString": {"extension": [{"url": DAR, "valueCode": "unknown"}]}}
            ],
        },
        {**PATIENT, "language": "de-CH"},
        {**OBSERVATION, "status": "final", "valueQuantity": {"value": 1, "comparator": "<"}},
        {
            "resourceType": "Observation",
            "_status": {"extension": [{"url": DAR, "valueCode": "unknown"}]},
            "code": {"text": "x"},
        },
        {**OBSERVATION, "effectivePeriod": {"start": "2020", "end": "2020-05"}},
        {**OBSERVATION, "referenceRange": [{"low": {"value": 1, "unit": "a"}, "high": {"value": 0.5, "unit": "b"}}]},
        {"resourceType": "Binary", "contentType": "image/png", "data": "aGVsbG8="},
        {"resourceType": "Bundle", "type": "collection"},
    ],
)
def test_valid(resource: dict[str, Any]) -> None:
    assert errors(resource) == []


@pytest.mark.parametrize(
    ("resource", "code", "expression"),
    [
        # names
        ({"resourceType": "Patientt"}, "structure", "resourceType"),
        ({"resourceType": "DomainResource"}, "structure", "resourceType"),
        ({"resourceType": "HumanName"}, "structure", "resourceType"),
        ({**PATIENT, "name1": []}, "structure", "Patient.name1"),
        ({**PATIENT, "name": [{"use1": "official"}]}, "structure", "Patient.name[0].use1"),
        ({**PATIENT, "_name": [{"id": "x"}]}, "structure", "Patient._name"),
        ({**PATIENT, "fhir_comments": ["x"]}, "structure", "Patient.fhir_comments"),
        ({**PATIENT, "deceased": True}, "structure", "Patient.deceased"),
        ({**PATIENT, "deceasedString": "x"}, "structure", "Patient.deceasedString"),
        (
            {**PATIENT, "name": [{"resourceType": "HumanName", "family": "x"}]},
            "structure",
            "Patient.name[0].resourceType",
        ),
        # shapes
        ({**PATIENT, "name": {"family": "x"}}, "structure", "Patient.name"),
        ({**PATIENT, "gender": ["male"]}, "structure", "Patient.gender"),
        ({**PATIENT, "gender": None}, "value", "Patient.gender"),
        ({**PATIENT, "name": None}, "structure", "Patient.name"),
        ({**PATIENT, "name": []}, "structure", "Patient.name"),
        ({**PATIENT, "name": [None]}, "structure", "Patient.name[0]"),
        ({**PATIENT, "name": [{}]}, "structure", "Patient.name[0]"),
        ({**PATIENT, "name": [{"id": "x"}]}, "structure", "Patient.name[0]"),
        ({**PATIENT, "name": ["x"]}, "structure", "Patient.name[0]"),
        ({**PATIENT, "name": [{"given": "x"}]}, "structure", "Patient.name[0].given"),
        ({**PATIENT, "name": [{"given": ["x", None]}]}, "value", "Patient.name[0].given[1]"),
        (
            {**PATIENT, "name": [{"given": ["x", None], "_given": [{"id": "a"}, None]}]},
            "value",
            "Patient.name[0].given[1]",
        ),
        ({**PATIENT, "name": [{"given": ["x"], "_given": {"id": "a"}}]}, "structure", "Patient.name[0].given"),
        ({**PATIENT, "name": [{"_given": [{"id": "a"}]}]}, "structure", "Patient.name[0].given"),
        ({**PATIENT, "_birthDate": {}}, "structure", "Patient.birthDate"),
        ({**PATIENT, "_birthDate": {"id": "a"}}, "structure", "Patient.birthDate"),
        ({**PATIENT, "_birthDate": None}, "structure", "Patient.birthDate"),
        ({**PATIENT, "_birthDate": {"x": 1, "id": "a"}}, "structure", "Patient.birthDate.x"),
        ({**PATIENT, "birthDate": ""}, "value", "Patient.birthDate"),
        ({**PATIENT, "maritalStatus": {}}, "structure", "Patient.maritalStatus"),
        ({**PATIENT, "maritalStatus": "M"}, "structure", "Patient.maritalStatus"),
        # formats
        ({**PATIENT, "birthDate": "2024-02-30"}, "value", "Patient.birthDate"),
        ({**PATIENT, "active": "true"}, "value", "Patient.active"),
        ({**PATIENT, "id": "a/b"}, "value", "Patient.id"),
        ({**PATIENT, "id": 5}, "value", "Patient.id"),
        ({**PATIENT, "multipleBirthInteger": 1.0}, "value", "Patient.multipleBirth.ofType(integer)"),
        ({**OBSERVATION, "valueQuantity": {"value": "1"}}, "value", "Observation.value.ofType(Quantity).value"),
        ({**OBSERVATION, "issued": "2020-01-01"}, "value", "Observation.issued"),
        # cardinality
        ({"resourceType": "Observation", "code": {"text": "x"}}, "required", "Observation.status"),
        ({"resourceType": "Observation", "status": "final"}, "required", "Observation.code"),
        (
            {**OBSERVATION, "component": [{"code": {"text": "a"}}, {"valueString": "a"}]},
            "required",
            "Observation.component[1].code",
        ),
        (
            {"resourceType": "MedicationStatement", "status": "active", "subject": {"reference": "Patient/1"}},
            "required",
            "MedicationStatement.medication",
        ),
        ({"resourceType": "Appointment", "status": "proposed"}, "required", "Appointment.participant"),
        # choice
        ({**OBSERVATION, "valueString": "a", "valueInteger": 1}, "structure", "Observation.value"),
        (
            {**OBSERVATION, "valueString": "a", "_valueInteger": {"extension": [{"url": DAR, "valueCode": "unknown"}]}},
            "structure",
            "Observation.value",
        ),
        # bindings
        ({**OBSERVATION, "status": "done"}, "code-invalid", "Observation.status"),
        ({**OBSERVATION, "status": "Final"}, "code-invalid", "Observation.status"),
        ({**PATIENT, "gender": "m"}, "code-invalid", "Patient.gender"),
        ({**PATIENT, "language": "not a language"}, "code-invalid", "Patient.language"),
        ({**PATIENT, "photo": [{"contentType": "png"}]}, "code-invalid", "Patient.photo[0].contentType"),
        (
            {
                "resourceType": "Condition",
                "subject": {"reference": "Patient/1"},
                "clinicalStatus": {
                    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "x"}]
                },
            },
            "code-invalid",
            "Condition.clinicalStatus",
        ),
        (
            {"resourceType": "Condition", "subject": {"reference": "Patient/1"}, "clinicalStatus": {"text": "active"}},
            "code-invalid",
            "Condition.clinicalStatus",
        ),
        (
            {
                "resourceType": "Condition",
                "subject": {"reference": "Patient/1"},
                "clinicalStatus": {"coding": [{"system": "http://wrong.example", "code": "active"}]},
            },
            "code-invalid",
            "Condition.clinicalStatus",
        ),
        # references
        ({**PATIENT, "managingOrganization": {"reference": "Patient/1"}}, "invalid", "Patient.managingOrganization"),
        (
            {**PATIENT, "managingOrganization": {"reference": "https://a.example/Patient/1"}},
            "invalid",
            "Patient.managingOrganization",
        ),
        ({**PATIENT, "managingOrganization": {"reference": "Patient?x=y"}}, "invalid", "Patient.managingOrganization"),
        (
            {**PATIENT, "managingOrganization": {"type": "Patient", "identifier": {"value": "1"}}},
            "invalid",
            "Patient.managingOrganization",
        ),
        (
            {**PATIENT, "managingOrganization": {"reference": "Organization/1", "type": "Patient"}},
            "invalid",
            "Patient.managingOrganization",
        ),
        (
            {**PATIENT, "managingOrganization": {"reference": "Org/1"}},
            "value",
            "Patient.managingOrganization.reference",
        ),
        ({**PATIENT, "managingOrganization": {"reference": "1"}}, "value", "Patient.managingOrganization.reference"),
        (
            {**PATIENT, "managingOrganization": {"reference": "Organization/a b"}},
            "value",
            "Patient.managingOrganization.reference",
        ),
        ({**PATIENT, "managingOrganization": {"reference": "#o"}}, "invariant", "Patient.managingOrganization"),
        (
            {
                **PATIENT,
                "contained": [{"resourceType": "Group", "id": "o", "type": "person", "actual": False}],
                "managingOrganization": {"reference": "#o"},
            },
            "invalid",
            "Patient.managingOrganization",
        ),
        # contained
        (
            {**PATIENT, "contained": [{"resourceType": "Organization", "id": "o", "name": "x"}]},
            "invariant",
            "Patient.contained[0]",
        ),
        (
            {**PATIENT, "contained": [{"id": "o"}], "managingOrganization": {"display": "o"}},
            "structure",
            "Patient.contained[0]",
        ),
        (
            {
                **PATIENT,
                "contained": [{"resourceType": "Organization", "id": "o", "nam": "x"}],
                "managingOrganization": {"reference": "#o"},
            },
            "structure",
            "Patient.contained[0].nam",
        ),
        (
            {
                **PATIENT,
                "contained": [{"resourceType": "Organization", "id": "o", "name": "x", "meta": {"versionId": "1"}}],
                "managingOrganization": {"reference": "#o"},
            },
            "invariant",
            "Patient.contained[0]",
        ),
        (
            {
                **PATIENT,
                "contained": [
                    {
                        "resourceType": "Organization",
                        "id": "o",
                        "name": "x",
                        "contained": [{"resourceType": "Organization", "id": "i", "name": "x"}],
                    }
                ],
                "managingOrganization": {"reference": "#o"},
            },
            "invariant",
            "Patient.contained[0]",
        ),
        # extensions and narrative
        ({**PATIENT, "extension": [{"valueString": "x"}]}, "required", "Patient.extension[0].url"),
        ({**PATIENT, "extension": [{"url": "http://a.example"}]}, "invariant", "Patient.extension[0]"),
        (
            {
                **PATIENT,
                "extension": [
                    {"url": "http://a.example", "valueString": "a", "extension": [{"url": "b", "valueString": "c"}]}
                ],
            },
            "invariant",
            "Patient.extension[0]",
        ),
        ({**PATIENT, "text": {"status": "generated", "div": "<div>x</div>"}}, "value", "Patient.text.div"),
        ({**PATIENT, "text": {"status": "generated"}}, "required", "Patient.text.div"),
        # invariants
        ({**PATIENT, "contact": [{"gender": "male"}]}, "invariant", "Patient.contact[0]"),
        ({**PATIENT, "telecom": [{"value": "1"}]}, "invariant", "Patient.telecom[0]"),
        ({**OBSERVATION, "valueString": "a", "dataAbsentReason": {"text": "b"}}, "invariant", "Observation"),
        (
            {**OBSERVATION, "effectivePeriod": {"start": "2021-01-02", "end": "2021-01-01"}},
            "invariant",
            "Observation.effective.ofType(Period)",
        ),
        ({**OBSERVATION, "valueQuantity": {"code": "kg"}}, "invariant", "Observation.value.ofType(Quantity)"),
        (
            {**OBSERVATION, "referenceRange": [{"low": {"value": 1, "comparator": "<"}}]},
            "invariant",
            "Observation.referenceRange[0].low",
        ),
        ({"resourceType": "Organization", "active": True}, "invariant", "Organization"),
        (
            {"resourceType": "Organization", "name": "x", "address": [{"text": "a"}, {"use": "home"}]},
            "invariant",
            "Organization.address[1]",
        ),
        (
            {
                "resourceType": "Appointment",
                "status": "booked",
                "participant": [{"status": "accepted", "actor": {"reference": "Patient/1"}}],
            },
            "invariant",
            "Appointment",
        ),
        ({"resourceType": "Bundle", "type": "collection", "total": 1}, "invariant", "Bundle"),
        (
            {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": {**PATIENT, "gender": "x"}}]},
            "code-invalid",
            "Bundle.entry[0].resource.gender",
        ),
        # prose
        (
            {"resourceType": "Bundle", "type": "collection", "entry": [{"fullUrl": "Patient/1", "resource": PATIENT}]},
            "value",
            "Bundle.entry[0].fullUrl",
        ),
        (
            {**PATIENT, "extension": [{"_url": {"id": "a"}, "valueString": "a"}]},
            "structure",
            "Patient.extension[0]._url",
        ),
        ({**PATIENT, "extension": [{"url": "x", "valueString": "a"}]}, "value", "Patient.extension[0].url"),
        (
            {**OBSERVATION, "code": {"coding": [{"system": "http://hl7.org/fhir/ValueSet/x", "code": "a"}]}},
            "value",
            "Observation.code.coding[0].system",
        ),
    ],
)
def test_invalid(resource: dict[str, Any], code: str, expression: str) -> None:
    assert (code, expression) in errors(resource)


def test_the_type_of_the_url_is_the_type_of_the_resource() -> None:
    assert VALIDATOR.validate(PATIENT, expected_type="Observation")[0].expression == "resourceType"
    assert VALIDATOR.validate(PATIENT, expected_type="Patient") == []


def test_require_raises_every_issue_and_gives_warnings_back() -> None:
    with pytest.raises(Invalid) as caught:
        VALIDATOR.require({**PATIENT, "gender": "x", "birthDate": "2024-02-30"})
    assert len(caught.value.issues) == 2
    warnings = VALIDATOR.require({"resourceType": "ValueSet", "status": "draft", "name": "not an identifier"})
    assert [issue.severity for issue in warnings] == ["warning"]


def test_inner_resources_of_a_bundle_are_their_own_root() -> None:
    """%resource and contained ids of one entry are not those of another."""
    organization = {"resourceType": "Organization", "id": "o", "name": "x"}
    first = {**PATIENT, "contained": [organization], "managingOrganization": {"reference": "#o"}}
    second = {**PATIENT, "managingOrganization": {"reference": "#o"}}
    assert errors(
        {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": first}, {"resource": second}]}
    ) == [("invariant", "Bundle.entry[1].resource.managingOrganization")]


def test_a_body_broken_everywhere_gives_a_bounded_answer() -> None:
    assert len(validate({**PATIENT, **{f"x{i}": 1 for i in range(5000)}})) == 200


def test_issues_do_not_repeat_the_values_they_refuse() -> None:
    """A refusal may be kept in a report or log (invariant 1): a birth date or a name must not get there with it."""
    secret = "2024-02-30"
    issues = validate(
        {
            **PATIENT,
            "birthDate": secret,
            "gender": secret,
            "name": [{"given": secret}],
            "managingOrganization": {"reference": secret},
        }
    )
    assert len(issues) == 4
    assert not any(secret in issue.diagnostics for issue in issues)


def test_deep_nesting_is_checked_without_running_out_of_stack() -> None:
    value: dict[str, Any] = {"url": "http://a.example", "valueString": "x"}
    for _ in range(95):
        value = {"url": "http://a.example", "extension": [value]}
    assert errors({**PATIENT, "extension": [value]}) == []


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "value",
                    "extension",
                    "url",
                    "coding",
                    "code",
                    "reference",
                    "id",
                    "start",
                    "low",
                    "resourceType",
                    "contained",
                    "text",
                    "div",
                    "valueString",
                    "_value",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.sampled_from(["Patient", "Observation", "MedicationStatement", "Appointment", "Bundle", "Questionnaire"]),
    st.dictionaries(
        st.sampled_from(
            [
                "contained",
                "text",
                "extension",
                "valueQuantity",
                "valuePeriod",
                "component",
                "referenceRange",
                "entry",
                "item",
                "dosage",
                "meta",
                "code",
                "status",
                "type",
                "name",
                "subject",
                "_status",
                "effectivePeriod",
                "link",
                "participant",
            ]
        ),
        JUNK,
    ),
)
def test_no_shape_makes_the_validator_raise(name: str, content: dict[str, Any]) -> None:
    VALIDATOR.validate({**content, "resourceType": name})


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_breaking_a_valid_resource_anywhere_never_raises(data: st.DataObject) -> None:
    resource = parse(data.draw(st.sampled_from(FIXTURES)).read_bytes())
    places = list(_places(resource))
    owner, key = data.draw(st.sampled_from(places))
    owner[key] = data.draw(JUNK)
    VALIDATOR.validate(resource)


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, item in value.items():
            if key != "resourceType":
                yield value, key
                yield from _places(item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield value, index
            yield from _places(item)
