"""``$convert`` over HTTP. https://hl7.org/fhir/R4/resource-operation-convert.html"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.fhir.definitions import Definitions
from gateway.fhir.resource import canonical, parse
from gateway.fhir.xml_reader import read_xml
from gateway.fhir.xml_shapes import Shapes
from tests.journeys.hospital import JSON, Hospital, observation, places

XML = "application/fhir+xml"
SHAPES = Shapes(Definitions.load())


def test_json_becomes_xml_and_the_same_json_again(hospital: Hospital) -> None:
    before = hospital.stored()
    sent = observation("nobody", "1.10", _status={"extension": [{"url": "urn:x", "valueDecimal": 2}]})
    there = hospital.feed.post("$convert", sent, Accept=XML)
    assert (there.status_code, there.headers["content-type"]) == (200, f"{XML}; charset=utf-8")
    assert b'<value value="1.10"/>' in there.content
    back = hospital.feed.post("$convert", there.content, Content_Type=XML, Accept=JSON)
    assert back.headers["content-type"].startswith(JSON)
    assert canonical(parse(back.content)) == canonical(parse(sent))
    assert hospital.stored() == before


def test_parameters_are_answered_by_parameters(hospital: Hospital) -> None:
    inner = {"resourceType": "Patient", "active": True}
    call = {"resourceType": "Parameters", "parameter": [{"name": "input", "resource": inner}]}
    output = {"resourceType": "Parameters", "parameter": [{"name": "output", "resource": inner}]}
    assert hospital.feed.post("$convert", call).json() == output
    assert read_xml(hospital.feed.post("$convert?_format=xml", call).content, SHAPES) == output
    plain = {"resourceType": "Parameters", "parameter": [{"name": "x", "valueString": "y"}]}
    assert hospital.feed.post("$convert", plain).json() == plain
    call["parameter"].append({"name": "z", "valueString": "y"})  # type: ignore[attr-defined]
    assert places(hospital.feed.post("$convert", call)) == ["Parameters.parameter"]


def test_a_rule_of_r4_that_the_form_does_not_need_is_not_asked(hospital: Hospital) -> None:
    odd = {"resourceType": "Observation", "status": "nosuch", "subject": {"reference": "Patient/nobody"}}
    assert hospital.feed.post("$convert", odd).json() == odd
    assert b'value="nosuch"' in hospital.feed.post("$convert", odd, Accept=XML).content


@pytest.mark.parametrize(("elements", "place"), [
    ({"name": "x"}, "Patient.name"), ({"name": ["x"]}, "Patient.name"), ({"active": "true"}, "Patient.active"),
    ({"gender": True}, "Patient.gender"), ({"gender": None}, "Patient.gender"), ({"_gender": [1]}, "Patient.gender"),
    ({"_gender": {"x": 1}}, "Patient.gender"), ({"_gender": {"id": 1}}, "Patient.gender"),
    ({"_gender": {"extension": {}}}, "Patient.gender"), ({"name": [{"given": "x"}]}, "Patient.name.given"),
    ({"name": [{"given": [None]}]}, "Patient.name.given"), ({"name": [{"id": 1}]}, "Patient.name"),
    ({"name": [{"_given": {}}]}, "Patient.name.given"), ({"contained": [1]}, "Patient.contained"),
    ({"contained": [{"resourceType": 1}]}, "Patient.contained"), ({"contained": {}}, "Patient.contained"),
    ({"text": {"div": 1}}, "Patient.text.div"), ({"multipleBirthInteger": 1.5}, "Patient.multipleBirthInteger"),
    ({"nosuch": 1}, "Patient"), ({"resourceType": "Nosuch"}, "Nosuch"),
])
def test_what_xml_cannot_say_is_refused_with_the_place(hospital: Hospital, elements: dict[str, Any],
                                                       place: str) -> None:
    answer = hospital.feed.post("$convert", {"resourceType": "Patient", **elements}, Accept=f"{XML}, {JSON};q=0.1")
    assert answer.status_code == 406, answer.text
    assert read_xml(answer.content, SHAPES)["issue"][0]["expression"] == [place]


@pytest.mark.parametrize(("body", "kind", "status"), [
    (b"", JSON, 400), (b"{}", JSON, 400), (b"not xml", XML, 400), (b"x", "text/plain", 415),
    (b'<!DOCTYPE x [<!ENTITY e "a">]><Patient xmlns="http://hl7.org/fhir"/>', XML, 400),
    (b'{"resourceType":"Parameters","parameter":[{"name":"input"}]}', JSON, 400),
])
def test_what_does_not_parse_is_refused(hospital: Hospital, body: bytes, kind: str, status: int) -> None:
    answer = hospital.feed.post("$convert", body, Content_Type=kind)
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_it_is_asked_with_a_token_also_within_a_batch(hospital: Hospital) -> None:
    patient = {"resourceType": "Patient"}
    assert hospital.feed.post("$convert", patient, Authorization="Bearer nosuch").status_code == 401
    entry = {"resource": patient, "request": {"method": "POST", "url": "$convert"}}
    answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "batch", "entry": [entry]})
    assert answer.json()["entry"][0]["resource"] == patient, json.dumps(answer.json())
