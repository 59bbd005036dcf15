"""R4's RESTful API, clause by clause: each test quotes what https://hl7.org/fhir/R4/http.html asks of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from gateway.fhir.resource import parse_instant
from tests.journeys.hospital import Client, Hospital, next_link, observation


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(Path(tmp_path_factory.mktemp("conformance")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def patient(hospital: Hospital) -> str:
    return hospital.new_patient(name=[{"family": "Clause"}])


def test_3_1_0_1_1_resource_types_and_ids_are_case_sensitive(hospital: Hospital) -> None:
    """'URLs ... are case sensitive'."""
    hospital.feed.put("Patient/CaSe", {"resourceType": "Patient", "id": "CaSe"})
    assert hospital.feed.get("Patient/CaSe").status_code == 200
    assert hospital.feed.get("Patient/case").status_code == 404
    assert hospital.feed.get("patient/CaSe").status_code == 404


@pytest.mark.parametrize("accept", ["application/fhir+json", "application/json", "*/*", "application/fhir+json;q=0.9",
                                    "text/html, application/fhir+json; fhirVersion=4.0", ""])
def test_3_1_0_1_9_the_formal_mime_type_is_used_and_json_is_accepted(hospital: Hospital, patient: str,
                                                                    accept: str) -> None:
    """'The formal MIME-type for FHIR resources is application/fhir+json'; 'if a client asks for a generic mime type',
    'the server SHOULD respond with the requested mime type'."""
    answer = hospital.feed.get(f"Patient/{patient}", Accept=accept)
    assert answer.status_code == 200
    kind = "application/json" if accept == "application/json" else "application/fhir+json"
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"


@pytest.mark.parametrize("name", ["json", "application/json", "application/fhir%2Bjson", "text/json"])
def test_3_1_0_1_11_format_overrides_accept(hospital: Hospital, patient: str, name: str) -> None:
    """'servers SHALL support' _format values for the format they offer; it 'overrides' Accept."""
    assert hospital.feed.get(f"Patient/{patient}?_format={name}", Accept="application/fhir+turtle").status_code == 200


def test_3_1_0_1_9_a_format_not_supported_is_406_and_a_body_not_understood_415(hospital: Hospital) -> None:
    """'415 Unsupported Media Type is appropriate when the client posts a format that is not supported'; 406 for
    one it asks for."""
    assert hospital.feed.get("Patient", Accept="application/fhir+turtle").status_code == 406
    assert hospital.feed.post("Patient", b"a", Content_Type="application/fhir+turtle").status_code == 415


def test_3_1_0_2_read_carries_an_etag_and_last_modified_from_meta(hospital: Hospital, patient: str) -> None:
    """'Servers SHOULD return an ETag header with the versionId ... and a Last-Modified header' that match meta."""
    answer = hospital.feed.get(f"Patient/{patient}")
    meta = answer.json()["meta"]
    assert answer.headers["etag"] == f'W/"{meta["versionId"]}"'
    modified_s = parsedate_to_datetime(answer.headers["last-modified"]).timestamp()
    assert int(modified_s) == parse_instant(meta["lastUpdated"]) // 1000


def test_3_1_0_2_1_reading_what_was_deleted_is_410_and_what_never_was_404(hospital: Hospital) -> None:
    """'a GET for a deleted resource returns a 410', 'unknown ... 404'."""
    id_ = hospital.new_patient()
    hospital.feed.delete(f"Patient/{id_}")
    assert hospital.feed.get(f"Patient/{id_}").status_code == 410
    assert hospital.feed.get("Patient/never").status_code == 404


def test_3_1_0_3_vread_returns_the_version_asked_for(hospital: Hospital) -> None:
    """'vread ... a version id that refers to a deleted version ... 410'."""
    id_ = hospital.new_patient(active=True)
    hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "active": False})
    hospital.feed.delete(f"Patient/{id_}")
    assert hospital.feed.get(f"Patient/{id_}/_history/1").json()["active"] is True
    assert hospital.feed.get(f"Patient/{id_}/_history/2").json()["active"] is False
    assert hospital.feed.get(f"Patient/{id_}/_history/3").status_code == 410


def test_3_1_0_4_update_takes_no_notice_of_the_clients_version_and_time(hospital: Hospital) -> None:
    """'the server SHALL ignore the provided versionId and lastUpdated'; other meta is kept."""
    id_ = hospital.new_patient()
    tags = [{"system": "urn:t", "code": "kept"}]
    answer = hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "active": True, "meta": {
        "versionId": "99", "lastUpdated": "1999-01-01T00:00:00Z", "tag": tags}})
    meta = answer.json()["meta"]
    assert (meta["versionId"], meta["tag"]) == ("2", tags)
    assert meta["lastUpdated"] > "2020"


def test_3_1_0_4_update_needs_an_id_equal_to_the_url(hospital: Hospital, patient: str) -> None:
    """'The request body SHALL be a Resource with an id element that has an identical value to the [id] in the URL. If
    no id element is provided, or the id disagrees ... the server SHALL respond with an HTTP 400'."""
    for body in ({"resourceType": "Patient"}, {"resourceType": "Patient", "id": "other"}):
        assert hospital.feed.put(f"Patient/{patient}", body).status_code == 400


def test_3_1_0_4_2_a_stale_if_match_is_412(hospital: Hospital) -> None:
    """'If the version id given in the If-Match header does not match, the server returns a 412'."""
    id_ = hospital.new_patient()
    body = {"resourceType": "Patient", "id": id_, "active": True}
    assert hospital.feed.put(f"Patient/{id_}", body, If_Match='W/"23"').status_code == 412


def test_3_1_0_7_delete_is_204_and_may_be_said_twice(hospital: Hospital) -> None:
    """'Upon successful deletion, or if the resource does not exist at all, the server SHOULD return ... 204'; 'a
    server MAY return ... an ETag'. 'Performing
    this interaction on a resource that is already deleted has no effect'."""
    id_ = hospital.new_patient()
    assert [hospital.feed.delete(f"Patient/{id_}").status_code for _ in range(3)] == [204, 204, 204]
    assert len(hospital.feed.get(f"Patient/{id_}/_history").json()["entry"]) == 2
    assert hospital.feed.delete("Patient/never").status_code == 204


def test_3_1_0_8_create_ignores_the_clients_id_and_answers_with_the_place(hospital: Hospital) -> None:
    """'If an id is provided, the server SHALL ignore it'; 'the server returns a Location header which contains the new
    Logical Id and Version Id', '201 Created'."""
    answer = hospital.feed.post("Patient", {"resourceType": "Patient", "id": "mine", "meta": {"versionId": "7"}})
    id_ = answer.json()["id"]
    assert id_ != "mine"
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{hospital.base}/Patient/{id_}/_history/1"


def test_3_1_0_8_1_conditional_create_answers_by_the_number_of_matches(hospital: Hospital) -> None:
    """'No matches: creates. One match: ignores the post and returns 200 OK. Multiple matches: 412'."""
    body = {"resourceType": "Patient", "identifier": [{"system": "urn:c", "value": "1"}]}
    statuses = [hospital.feed.post("Patient", body, If_None_Exist="identifier=urn:c|1").status_code for _ in range(2)]
    hospital.feed.post("Patient", body)
    statuses.append(hospital.feed.post("Patient", body, If_None_Exist="identifier=urn:c|1").status_code)
    assert statuses == [201, 200, 412]


def test_3_1_0_9_search_is_offered_by_get_and_post_and_says_what_it_ran(hospital: Hospital, patient: str) -> None:
    """'Servers SHALL support' GET and POST _search; 'the self link' shows the parameters used."""
    got = hospital.feed.get("Patient?family=clause").json()
    posted = hospital.feed.post("Patient/_search", b"family=clause",
                                Content_Type="application/x-www-form-urlencoded").json()
    for bundle in (got, posted):
        assert bundle["type"] == "searchset"
        assert [entry["resource"]["id"] for entry in bundle["entry"]] == [patient]
        assert bundle["link"][0] == {"relation": "self", "url": f"{hospital.base}/Patient?family=clause"}


def test_3_1_0_11_transaction_order_and_links(hospital: Hospital) -> None:
    """'1. DELETE 2. POST 3. PUT 4. GET'; 'the server SHALL replace all matching links'; the answers keep the order."""
    urn = "urn:uuid:b3f9f1c2-1b6f-4c6e-9d58-5f0c7c8a7e11"
    resource = json.loads(observation(None))
    resource["subject"] = {"reference": urn}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"request": {"method": "GET", "url": "Patient/tx-clause"}},
        {"resource": resource, "request": {"method": "POST", "url": "Observation"}},
        {"fullUrl": urn, "resource": {"resourceType": "Patient", "id": "tx-clause"},
         "request": {"method": "PUT", "url": "Patient/tx-clause"}}]}
    answer = hospital.feed.post("", bundle).json()
    assert answer["type"] == "transaction-response"
    assert [entry["response"]["status"][:3] for entry in answer["entry"]] == ["200", "201", "201"]
    made = hospital.feed.get(answer["entry"][1]["response"]["location"]).json()
    assert made["subject"]["reference"] == "Patient/tx-clause"


def test_3_1_0_11_2_a_failing_transaction_changes_nothing(hospital: Hospital) -> None:
    """'servers SHALL either accept all actions and return a 200 OK ... or reject all resources and return an HTTP
    400 or 500 type response'."""
    before = hospital.stored()
    entries = [{"resource": {"resourceType": "Patient"}, "request": {"method": "POST", "url": "Patient"}},
               {"resource": {"resourceType": "Patient", "id": "x", "gender": "?"},
                "request": {"method": "PUT", "url": "Patient/x"}}]
    answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "transaction", "entry": entries})
    assert 400 <= answer.status_code < 500
    assert hospital.stored() == before


def test_3_1_0_12_history_is_a_bundle_of_versions_newest_first(hospital: Hospital) -> None:
    """'sorted with oldest versions last, and SHALL include deleted resources'; 'each entry SHALL minimally contain at
    least one of: a resource ... or the response'; 'links ... next'."""
    id_ = hospital.new_patient()
    hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "active": True})
    hospital.feed.delete(f"Patient/{id_}")
    first = hospital.feed.get(f"Patient/{id_}/_history?_count=2")
    assert [entry["request"]["method"] for entry in first.json()["entry"]] == ["DELETE", "PUT"]
    following = next_link(first)
    assert following is not None
    assert [entry["request"]["method"] for entry in hospital.feed.get(following).json()["entry"]] == ["POST"]
    for entry in first.json()["entry"]:
        assert entry["response"]["etag"].startswith('W/"')
        assert entry["response"]["lastModified"]


def test_3_1_0_10_capabilities_are_an_instance_and_valid(hospital: Hospital) -> None:
    """'The information returned depends on the value of the mode parameter'; a server's is kind instance."""
    statement = Client(hospital, None).get("metadata").json()
    assert statement["kind"] == "instance"
    hospital.node.validator.require(statement, expected_type="CapabilityStatement")


def test_head_is_get_without_a_body(hospital: Hospital, patient: str) -> None:
    """'Any server that supports GET SHOULD support HEAD' (3.1.0.1.2)."""
    for url in (f"Patient/{patient}", "Patient?family=clause", "metadata", f"Patient/{patient}/_history/1"):
        head, got = hospital.feed.request("HEAD", url), hospital.feed.get(url)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers.get("etag") == got.headers.get("etag")


def test_an_operation_outcome_is_valid_and_accompanies_every_refusal(hospital: Hospital) -> None:
    """'servers SHOULD ... return an OperationOutcome' (3.1.0.1.5)."""
    nobody = Client(hospital, None)
    for answer in (hospital.feed.get("Patient/never"), nobody.get("Patient/1"), hospital.feed.post("Patient", b"{"),
                   hospital.feed.get("Patient?shoe=1"), hospital.feed.put("Patient", {}), hospital.feed.get("Zzyzx"),
                   hospital.feed.post("Patient", {"resourceType": "Patient", "gender": "?"})):
        assert answer.status_code >= 400
        hospital.node.validator.require(answer.json(), expected_type="OperationOutcome")


def test_bundles_of_the_server_are_valid(hospital: Hospital, patient: str) -> None:
    """What is sent back is held to the rules that what comes in is held to."""
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [
        {"request": {"method": "GET", "url": f"Patient/{patient}"}}, {"request": {"method": "GET",
            "url": "Patient/no"}}]}
    for answer in (hospital.feed.get("Patient?family=clause"), hospital.feed.get("Patient?_summary=count"),
                   hospital.feed.get(f"Patient/{patient}/_history"), hospital.feed.post("", batch),
                   hospital.feed.get("Patient?family=clause&shoe=1", Prefer="handling=lenient")):
        hospital.node.validator.require(answer.json(), expected_type="Bundle")
