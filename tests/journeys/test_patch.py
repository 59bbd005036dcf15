"""patch over HTTP: JSON Patch and FHIRPath Patch. https://hl7.org/fhir/R4/http.html#patch"""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.journeys.hospital import Client, Hospital, observation, places

JSON_PATCH = "application/json-patch+json"


def patched(client: Client, url: str, *operations: dict[str, Any], **headers: str) -> httpx.Response:
    headers.setdefault("Content_Type", JSON_PATCH)
    return client.request("PATCH", url, json.dumps(operations).encode(), **headers)


def replace(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


def parameters(type_: str, path: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": [
        {"name": "type", "valueCode": type_}, {"name": "path", "valueString": path}, *parts]}]}


def test_a_json_patch_makes_the_next_version_and_keeps_every_decimal(hospital: Hospital) -> None:
    id_ = hospital.feed.post("Observation", observation(None, "1.10")).json()["id"]
    answer = hospital.feed.request(
        "PATCH", f"Observation/{id_}", b'[{"op":"test","path":"/valueQuantity/value","value":1.1},{"op":"add",'
        b'"path":"/referenceRange","value":[{"low":{"value":0.0100}}]}]', Content_Type=JSON_PATCH)
    assert (answer.status_code, answer.headers["etag"]) == (200, 'W/"2"'), answer.text
    assert b'"value":1.10' in answer.content
    assert b'"value":0.0100' in answer.content
    assert hospital.feed.get(f"Observation/{id_}").content == answer.content


def test_a_fhirpath_patch_makes_the_next_version(hospital: Hospital) -> None:
    id_ = hospital.new_patient(birthDate="1970-01-01")
    answer = hospital.feed.request("PATCH", f"Patient/{id_}", parameters(
        "replace", "Patient.birthDate", {"name": "value", "valueDate": "1971-01-01"}))
    assert (answer.status_code, answer.headers["etag"]) == (200, 'W/"2"'), answer.text
    assert answer.json()["birthDate"] == "1971-01-01"
    gone = hospital.feed.request("PATCH", f"Patient/{id_}", parameters("delete", "Patient.photo"))
    assert (gone.status_code, gone.headers["etag"]) == (200, 'W/"2"')


def test_a_patch_that_changes_nothing_makes_no_version(hospital: Hospital) -> None:
    id_ = hospital.new_patient(gender="male")
    before = hospital.stored()
    for operations in ((), (replace("/gender", "male"),), ({"op": "test", "path": "/meta/versionId", "value": "1"},)):
        answer = patched(hospital.feed, f"Patient/{id_}", *operations)
        assert (answer.status_code, answer.headers["etag"]) == (200, 'W/"1"'), answer.text
    assert hospital.stored() == before


@pytest.mark.parametrize(("operation", "status", "place"), [
    ({"op": "test", "path": "/gender", "value": "female"}, 422, "patch[0]"),
    ({"op": "remove", "path": "/nothing"}, 422, "patch[0]"), ({"op": "spam", "path": "/gender"}, 400, "patch[0].op"),
    (replace("/id", "other"), 422, "Patient.id"), (replace("/resourceType", "Group"), 422, "resourceType"),
    (replace("/meta/versionId", "9"), 422, "Patient.meta.versionId"), (replace("", {}), 422, "resourceType"),
    (replace("/gender", "nonsense"), 422, "Patient.gender"), ({"op": "add", "path": "/shoe", "value": 1}, 400,
                                                              "Patient.shoe")])
def test_a_patch_that_cannot_be_applied_is_refused_and_names_the_place(hospital: Hospital, operation: dict[str, Any],
                                                                       status: int, place: str) -> None:
    id_ = hospital.new_patient(gender="male")
    before = hospital.stored()
    answer = patched(hospital.feed, f"Patient/{id_}", replace("/gender", "male"), operation) \
        if not place.startswith("patch") else patched(hospital.feed, f"Patient/{id_}", operation)
    assert answer.status_code == status, answer.text
    assert any(found.startswith(place) for found in places(answer)), answer.text
    assert "female" not in answer.text.replace('female"', "")
    assert hospital.stored() == before


def test_what_is_sent_must_be_a_patch(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    for body, kind, status in ((b"[", JSON_PATCH, 400), (b"{}", JSON_PATCH, 400), (b"[]", "text/plain", 415),
                               (b'{"resourceType":"Patient"}', "application/fhir+json", 400),
                               (b"[]", "application/fhir+json", 400), (b"<diff/>", "application/xml-patch+xml", 415)):
        answer = hospital.feed.request("PATCH", f"Patient/{id_}", body, Content_Type=kind)
        assert answer.status_code == status, (kind, answer.text)
        assert places(answer) is not None


def test_a_patch_of_what_is_not_there_is_404_and_of_what_is_deleted_410(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    assert patched(hospital.feed, "Patient/nobody").status_code == 404
    hospital.feed.delete(f"Patient/{id_}")
    assert patched(hospital.feed, f"Patient/{id_}").status_code == 410


def test_if_match_guards_a_patch(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    answers = hospital.together(*(hospital.feed.send(
        "PATCH", f"Patient/{id_}", json.dumps([{"op": "add", "path": "/multipleBirthInteger", "value": n}]).encode(),
        If_Match='W/"1"', Content_Type=JSON_PATCH) for n in range(6)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 5}


def test_patches_at_the_same_time_lose_none_of_each_other(hospital: Hospital) -> None:
    id_ = hospital.new_patient(name=[{"text": "0"}])
    answers = hospital.together(*(hospital.feed.send(
        "PATCH", f"Patient/{id_}", json.dumps([{"op": "add", "path": "/name/-", "value": {"text": str(n)}}]).encode(),
        Content_Type=JSON_PATCH) for n in range(1, 7)))
    assert {answer.status_code for answer in answers} == {200}
    names = hospital.feed.get(f"Patient/{id_}").json()["name"]
    assert sorted(one["text"] for one in names) == [str(n) for n in range(7)]


def test_who_may_not_see_it_cannot_tell_it_by_a_patch(hospital: Hospital) -> None:
    """A failing test would say what is stored (invariant 4)."""
    id_ = hospital.new_patient(gender="male")
    clinician = hospital.clinician("dr-patch")
    tests = [{"op": "test", "path": "/gender", "value": value} for value in ("male", "female")]
    answers = [patched(clinician, f"Patient/{id_}", one) for one in tests]
    absent = patched(clinician, "Patient/nobody-here", tests[0])
    assert {answer.status_code for answer in (*answers, absent)} == {404}
    assert {answer.text.replace(id_, "x").replace("nobody-here", "x") for answer in (*answers, absent)} == {
        absent.text.replace("nobody-here", "x")}
    assert hospital.audited(id_)[0].outcome == "4"


def test_a_token_that_only_writes_patches_nothing(hospital: Hospital) -> None:
    id_ = hospital.new_patient(gender="male")
    for scope in ("system/Patient.u", "system/Patient.r"):
        answer = patched(hospital.client(scope=scope), f"Patient/{id_}", replace("/gender", "other"))
        assert answer.status_code == 403, answer.text
        assert patched(hospital.client(scope=scope), "Patient/nobody", replace("/gender", "x")).status_code == 403


def test_a_refused_patch_is_in_the_patients_audit(hospital: Hospital) -> None:
    id_ = hospital.new_patient(gender="male")
    patched(hospital.feed, f"Patient/{id_}", {"op": "test", "path": "/gender", "value": "female"})
    newest = hospital.audited(id_)[0]
    assert (newest.interaction, newest.outcome) == ("patch", "4")


def test_patches_in_a_transaction(hospital: Hospital) -> None:
    id_ = hospital.new_patient(gender="male", identifier=[{"system": "urn:tx-patch", "value": "1"}])
    other = hospital.new_patient(gender="male")
    org = "urn:uuid:6f1ac2d5-2f3b-4c52-9d6e-0c1b6f4b7a10"
    data = base64.b64encode(json.dumps([{"op": "add", "path": "/managingOrganization",
                                         "value": {"reference": org}}]).encode()).decode()
    answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"resource": {"resourceType": "Binary", "contentType": JSON_PATCH, "data": data},
         "request": {"method": "PATCH", "url": "Patient?identifier=urn:tx-patch|1"}},
        {"resource": parameters("replace", "Patient.gender", {"name": "value", "valueCode": "female"}),
         "request": {"method": "PATCH", "url": f"Patient/{other}", "ifMatch": 'W/"1"'}},
        {"fullUrl": org, "resource": {"resourceType": "Organization", "name": "O"},
         "request": {"method": "POST", "url": "Organization"}}]}, Prefer="return=representation")
    assert answer.status_code == 200, answer.text
    first, second, third = answer.json()["entry"]
    assert first["resource"]["managingOrganization"]["reference"] == f"Organization/{third['resource']['id']}"
    assert (first["resource"]["id"], first["response"]["etag"]) == (id_, 'W/"2"')
    assert second["resource"]["gender"] == "female"


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_a_bad_patch_in_a_bundle_names_its_entry(hospital: Hospital, kind: str) -> None:
    id_ = hospital.new_patient(gender="male")
    before = hospital.stored()
    for resource, status in ((parameters("replace", "Patient.photo", {"name": "value", "valueString": "x"}), "422"),
                             ({"resourceType": "Binary", "contentType": JSON_PATCH, "data": "W10"}, "400"),
                             ({"resourceType": "Binary", "contentType": JSON_PATCH}, "400"),
                             ({"resourceType": "Patient"}, "400")):
        answer = hospital.feed.post("", {"resourceType": "Bundle", "type": kind, "entry": [
            {"resource": resource, "request": {"method": "PATCH", "url": f"Patient/{id_}"}}]})
        if kind == "batch":
            assert answer.json()["entry"][0]["response"]["status"].startswith(status), answer.text
        else:
            assert answer.status_code == int(status), answer.text
            assert places(answer)[0].startswith("Bundle.entry[0]")
    assert hospital.stored() == before


def test_a_patch_makes_nothing_that_could_not_be_sent_whole(hospital: Hospital) -> None:
    """What is stored is read back by the parser of requests: no longer, no deeper."""
    id_ = hospital.new_patient(name=[{"text": "x" * 200_000}])
    copies = [{"op": "copy", "from": "/name/0", "path": "/name/-"}] * 60
    sizes = []
    for _ in range(4):
        answer = patched(hospital.feed, f"Patient/{id_}", *copies)
        sizes.append((answer.status_code, len(hospital.feed.get(f"Patient/{id_}").content)))
    assert [status for status, _ in sizes] == [200, 413, 413, 413]
    assert all(size <= hospital.settings.max_body_bytes for _, size in sizes)
    nested = [{"op": "copy", "from": "", "path": "/a" * 2**power} for power in range(12)]
    id_ = hospital.new_patient(name=[{"text": "x"}])
    before = hospital.feed.get(f"Patient/{id_}").content
    assert patched(hospital.feed, f"Patient/{id_}", *nested).status_code == 422
    deep: dict[str, Any] = {"url": "http://a", "valueString": "x"}
    for _ in range(60):
        deep = {"url": "http://a", "extension": [deep]}
    grown = [{"op": "add", "path": "/extension", "value": [deep]},
             {"op": "move", "from": "/extension", "path": "/name/0/extension"},
             {"op": "add", "path": "/name/0/extension/0" + "/extension/0" * 59 + "/extension/0/extension",
              "value": [deep]}]
    assert patched(hospital.feed, f"Patient/{id_}", *grown).status_code == 422
    assert hospital.feed.get(f"Patient/{id_}").content == before
