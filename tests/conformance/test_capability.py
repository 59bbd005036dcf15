"""The CapabilityStatement is true to the last parameter: every claim is tried, and nothing unclaimed is offered.

https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.journeys.hospital import Hospital

VALUES = {"token": "x", "string": "x", "date": "2024", "reference": "Patient/nobody", "number": "1", "quantity": "1",
          "uri": "http://example.org/x", "composite": "", "special": ""}
INTERACTIONS = {
    "read": ("GET", "{type}/nobody", {404}), "vread": ("GET", "{type}/nobody/_history/1", {404}),
    "update": ("PUT", "{type}/nobody", {400, 422}), "patch": ("PATCH", "{type}/nobody", {400, 404, 415}),
    "delete": ("DELETE", "{type}/nobody", {204, 404}), "create": ("POST", "{type}", {400, 422}),
    "history-instance": ("GET", "{type}/nobody/_history", {404}), "history-type": ("GET", "{type}/_history", {200}),
    "search-type": ("GET", "{type}?_count=1", {200})}
SYSTEM = {"batch": ("POST", "", {400, 422}), "transaction": ("POST", "", {400, 422}),
          "history-system": ("GET", "_history", {200}), "search-system": ("GET", "?_type=Patient&_count=1", {200})}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(tmp_path_factory.mktemp("capability"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def rest(hospital: Hospital) -> dict[str, Any]:
    answer = hospital.feed.get("metadata")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()["rest"][0]
    return found


def test_the_statement_is_valid_r4(hospital: Hospital) -> None:
    assert hospital.node.validator.validate(hospital.feed.get("metadata").json()) == []


def test_every_interaction_of_every_type_is_there(hospital: Hospital, rest: dict[str, Any]) -> None:
    assert len(rest["resource"]) == len(hospital.node.definitions.resource_types)
    for kind in rest["resource"]:
        for code in (one["code"] for one in kind["interaction"]):
            method, path, expected = INTERACTIONS[code]
            body = {"resourceType": kind["type"], "id": "nobody", "noSuchElement": 1} if method in (
                "PUT", "POST", "PATCH") else None
            answer = hospital.feed.request(method, path.format(type=kind["type"]), body)
            assert answer.status_code in expected, (kind["type"], code, answer.text)


def test_every_interaction_of_the_system_is_there(hospital: Hospital, rest: dict[str, Any]) -> None:
    for code in (one["code"] for one in rest["interaction"]):
        method, path, expected = SYSTEM[code]
        answer = hospital.feed.request(method, path, {"resourceType": "Bundle"} if method == "POST" else None)
        assert answer.status_code in expected, (code, answer.text)


def test_every_search_parameter_and_include_is_answered(hospital: Hospital, rest: dict[str, Any]) -> None:
    """An unclaimed one is refused, so an answer of 200 is a claim kept."""
    tried: set[tuple[str, str]] = set()
    for kind in rest["resource"]:
        type_ = kind["type"]
        assert hospital.feed.get(f"{type_}?no-such-parameter=1").status_code == 400
        for parameter in kind["searchParam"]:
            name, value = parameter["name"], VALUES[parameter["type"]]
            if not value or (name.startswith("_") and name not in ("_id", "_profile", "_security", "_source", "_tag")):
                continue  # those have tests of their own, by name
            answer = hospital.feed.get(f"{type_}?{name}={value}")
            assert answer.status_code == 200, (type_, name, answer.text)
            if parameter["type"] == "reference" and ":below" in parameter.get("documentation", ""):
                for modifier in ("above", "below"):
                    answer = hospital.feed.get(f"{type_}?{name}:{modifier}=nobody")
                    assert answer.status_code == 200, (type_, name, modifier, answer.text)
        for relation, names in (("_include", "searchInclude"), ("_revinclude", "searchRevInclude")):
            for name in kind.get(names, ()):
                if (relation, name) in tried:
                    continue  # a name means the same wherever it is claimed
                tried.add((relation, name))
                answer = hospital.feed.get(f"{type_}?{relation}={name}&_count=1")
                assert answer.status_code == 200, (type_, relation, name, answer.text)


def test_every_operation_has_a_door(hospital: Hospital, rest: dict[str, Any]) -> None:
    """Its answer may be a refusal of what is missing, never that it is not offered."""
    places = [("", operation) for operation in rest.get("operation", ())]
    places += [(kind["type"], operation) for kind in rest["resource"] for operation in kind.get("operation", ())]
    for type_, operation in places:
        name = f"${operation['name']}"
        paths = [f"{type_}/{name}".lstrip("/"), f"{type_}/nobody/{name}", f"{type_}/nobody/_history/1/{name}"]
        answers = [hospital.feed.request(method, path, {"resourceType": "Parameters"} if method == "POST" else None)
                   for path in (paths if type_ else paths[:1]) for method in ("GET", "POST")]
        assert any(answer.status_code != 405 and "is not offered" not in answer.text for answer in answers), (
            type_, name)
        assert all(answer.status_code < 500 for answer in answers), (type_, name, [one.text for one in answers])


def test_patch_formats_and_formats_are_taken(hospital: Hospital) -> None:
    statement = hospital.feed.get("metadata").json()
    for format_ in statement["format"]:
        answer = hospital.feed.get("metadata", Accept=format_ if "/" in format_ else f"application/fhir+{format_}")
        assert answer.status_code == 200, format_
    for format_ in statement.get("patchFormat", ()):
        patient = hospital.new_patient()
        answer = hospital.feed.request("PATCH", f"Patient/{patient}", b"[]", Content_Type=format_)
        assert answer.status_code != 415, format_
