"""FHIRPath Patch as a pure rule. https://hl7.org/fhir/R4/fhirpatch.html"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InputRefused, Malformed, TooCostly, Unprocessable
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath.model import DefinitionsModel
from gateway.fhir.fhirpath_patch import apply
from gateway.fhir.resource import parse_json, serialise
from gateway.fhir.validate import Validator
from tests.shared_data import SHARED, needs_shared

CASES: list[dict[str, Any]] = [] if SHARED is None else json.loads((SHARED / "fhir-patch" / "cases.json").read_text())
DEFINITIONS = Definitions.load()
MODEL = DefinitionsModel.load(DEFINITIONS)
VALIDATOR = Validator(DEFINITIONS, MODEL)


def operation(type_: str, path: str | None = None, **parts: Any) -> dict[str, Any]:
    """One operation; a part is ``name=("valueString", "x")``, or ``name=[parts]`` for an anonymous value."""
    made: list[dict[str, Any]] = [{"name": "type", "valueCode": type_}]
    if path is not None:
        made.append({"name": "path", "valueString": path})
    for name, part in parts.items():
        if isinstance(part, int):
            made.append({"name": name, "valueInteger": part})
        elif isinstance(part, str):
            made.append({"name": name, "valueString": part})
        elif isinstance(part, list):
            made.append({"name": name, "part": part})
        else:
            made.append({"name": name, part[0]: part[1]})
    return {"name": "operation", "part": made}


def patched(resource: dict[str, Any], *operations: dict[str, Any]) -> dict[str, Any]:
    before = json.dumps(resource)
    found = apply(resource, {"resourceType": "Parameters", "parameter": list(operations)}, DEFINITIONS, MODEL)
    assert json.dumps(resource) == before
    return found


PATIENT: dict[str, Any] = {
    "resourceType": "Patient", "active": True, "name": [{"given": ["A", "A"], "_given": [None, {"id": "second"}]}],
    "identifier": [{"system": "urn:a", "value": "1"}, {"system": "urn:b", "value": "1"}]}


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_public_suite(case: dict[str, Any]) -> None:
    resource, diff = (parse_json(orjson.dumps(case[name])) for name in ("input", "diff"))
    if case["output"] is None:
        with pytest.raises(Unprocessable):
            apply(resource, diff, DEFINITIONS, MODEL)
    else:
        assert apply(resource, diff, DEFINITIONS, MODEL) == case["output"]


def test_of_equal_elements_the_one_named_is_meant() -> None:
    found = patched(PATIENT, operation("replace", "Patient.name.given[1]", value=("valueString", "B")))
    assert found["name"] == [{"given": ["A", "B"]}]
    found = patched(PATIENT, operation("delete", "Patient.identifier.where(system = 'urn:b').value"))
    assert found["identifier"] == [{"system": "urn:a", "value": "1"}, {"system": "urn:b"}]
    found = patched(PATIENT, operation("delete", "name.given.first()"))
    assert found["name"] == [{"given": ["A"], "_given": [{"id": "second"}]}]


def test_what_hangs_on_a_primitive_moves_with_it() -> None:
    found = patched(PATIENT, operation("move", "Patient.name.given", source=1, destination=0))
    assert found["name"] == [{"given": ["A", "A"], "_given": [{"id": "second"}, None]}]
    found = patched(PATIENT, operation("insert", "Patient.name.given", index=0, value=("valueString", "Z")))
    assert found["name"] == [{"given": ["Z", "A", "A"], "_given": [None, None, {"id": "second"}]}]


def test_a_choice_is_written_under_the_name_of_its_type() -> None:
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "valueString": "high"}
    quantity = ("valueQuantity", {"value": 1})
    assert patched(observation, operation("replace", "Observation.value", value=quantity)) == {
        "resourceType": "Observation", "status": "final", "code": {"text": "x"}, "valueQuantity": {"value": 1}}
    with pytest.raises(Unprocessable, match="there already"):
        patched(observation, operation("add", "Observation", name="value", value=quantity))
    with pytest.raises(Unprocessable, match="type"):
        patched(observation, operation("add", "Observation", name="effective", value=quantity))
    assert patched(PATIENT, operation("add", "Patient", name="deceased", value=("valueBoolean", False)))[
        "deceasedBoolean"] is False


def test_decimals_keep_their_text() -> None:
    resource = parse_json(b'{"resourceType":"Observation","valueQuantity":{"value":1.10}}')
    diff = parse_json(b'{"resourceType":"Parameters","parameter":[{"name":"operation","part":[{"name":"type",'
                      b'"valueCode":"add"},{"name":"path","valueString":"Observation"},{"name":"name","valueString":'
                      b'"referenceRange"},{"name":"value","part":[{"name":"low","valueQuantity":{"value":0.0100}}]}]}]}')
    assert serialise(apply(resource, diff, DEFINITIONS, MODEL)) == (
        b'{"resourceType":"Observation","valueQuantity":{"value":1.10},"referenceRange":[{"low":{"value":0.0100}}]}')


def test_an_anonymous_value_repeats_what_repeats() -> None:
    found = patched(PATIENT, operation("add", "Patient", name="contact", value=[
        {"name": "relationship", "valueCodeableConcept": {"text": "a"}},
        {"name": "relationship", "valueCodeableConcept": {"text": "b"}},
        {"name": "name", "valueHumanName": {"text": "n"}}]))
    assert found["contact"] == [{"relationship": [{"text": "a"}, {"text": "b"}], "name": {"text": "n"}}]
    assert VALIDATOR.require(found) is not None


def test_deleting_nothing_is_no_error_and_deleting_several_is() -> None:
    """R4: for operations other than delete it is an error if no element matches; several always are."""
    assert patched(PATIENT, operation("delete", "Patient.photo")) == PATIENT
    for type_, parts in (("delete", {}), ("replace", {"value": ("valueString", "x")})):
        with pytest.raises(Unprocessable, match="several"):
            patched(PATIENT, operation(type_, "Patient.identifier.value", **parts))
    assert "identifier" not in patched(PATIENT, *[operation("delete", "Patient.identifier[0]")] * 2)


@pytest.mark.parametrize("made", [
    operation("replace", "Patient.birthDate", value=("valueDate", "2000-01-01")),
    operation("add", "Patient.photo", name="title", value="x"), operation("add", "Patient", name="nonsense", value="x"),
    operation("add", "Patient", name="active", value=("valueBoolean", True)),
    operation("add", "Patient.active", name="x", value="x"), operation("delete", "Patient"),
    operation("delete", "1 + 1"), operation("delete", "'text'"), operation("delete", "Patient.nonsense("),
    operation("delete", "Patient.descendants()"), operation("delete", "Patient.name | Patient.name"),
    operation("insert", "Patient.identifier", index=9, value=("valueIdentifier", {"value": "x"})),
    operation("insert", "Patient.active", index=0, value=("valueBoolean", True)),
    operation("insert", "Patient.photo", index=0, value=("valueAttachment", {})),
    operation("move", "Patient.identifier", source=2, destination=0),
    operation("move", "Patient.identifier.where(system='urn:a')", source=0, destination=0),
    operation("delete", "x" * 2_000), operation("replace", "Patient.active", value=[])])
def test_what_cannot_be_done_is_refused_at_its_operation(made: dict[str, Any]) -> None:
    with pytest.raises(Unprocessable) as caught:
        patched(PATIENT, operation("delete", "Patient.photo"), made)
    assert all((issue.expression or "").startswith("Parameters.parameter[1]") for issue in caught.value.issues)


@pytest.mark.parametrize("parameters", [
    {"resourceType": "Patient"}, {"resourceType": "Parameters", "parameter": {}},
    {"resourceType": "Parameters", "parameter": [{"name": "other"}]},
    *({"resourceType": "Parameters", "parameter": [made]} for made in (
        {"name": "operation"}, {"name": "operation", "part": [1]}, operation("spam", "Patient"), operation("delete"),
        operation("add", "Patient", name="x"), operation("move", "Patient.name", source=0),
        operation("insert", "Patient.name", index=-1, value="x"),
        operation("insert", "Patient.name", index="0", value="x"), operation("delete", "Patient", type="x")))])
def test_what_is_no_patch_is_malformed(parameters: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        apply(PATIENT, parameters, DEFINITIONS, MODEL)


def test_a_path_that_would_look_at_everything_over_and_over_ends_at_a_limit() -> None:
    many = {"resourceType": "Patient", "identifier": [{"value": str(number)} for number in range(1_000)]}
    path = "Patient.identifier.where(%resource.identifier.where(%resource.identifier.value.exists()).exists())"
    with pytest.raises(TooCostly):
        patched(many, operation("delete", path))


def test_operations_that_each_look_through_a_long_resource_end_at_a_limit() -> None:
    long = {"resourceType": "Patient", "identifier": [{"value": str(number)} for number in range(1_000)]}
    change = operation("replace", "Patient.identifier[0].value", value=("valueString", "x"))
    assert patched(long, *[change] * 20)["identifier"][0]["value"] == "x"
    with pytest.raises(TooCostly):
        patched(long, *[change] * 1_000)


steps = st.lists(st.sampled_from(["Patient", "name", "given", "[0]", "where(true)", "first()", "value", "$this", "("]),
                 max_size=4).map(".".join)


@given(path=steps, type_=st.sampled_from(["add", "insert", "delete", "replace", "move"]),
       name=st.sampled_from(["name", "given", "active", "value", "_x", ""]), number=st.integers(0, 3))
def test_any_operation_gives_a_resource_or_a_refusal(path: str, type_: str, name: str, number: int) -> None:
    made = operation(type_, path, name=name, value=("valueString", "x"), index=number, source=number, destination=0)
    try:
        found = patched(PATIENT, made)
    except InputRefused:
        return
    assert found["resourceType"] == "Patient"
