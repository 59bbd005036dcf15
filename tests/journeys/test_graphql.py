"""``$graphql`` over HTTP. https://hl7.org/fhir/R4/graphql.html"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.records import graphql_fetches
from gateway.records.read import Reading, read
from tests.journeys.hospital import LOINC, Client, Hospital, observation, places


def ask(client: Client, query: str, place: str = "$graphql", **variables: Any) -> dict[str, Any]:
    answer = client.post(place, {"query": query, "variables": variables}, Content_Type="application/json")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    found: dict[str, Any] = answer.json()
    return found


def data(client: Client, query: str, place: str = "$graphql", **variables: Any) -> Any:
    found = ask(client, query, place, **variables)
    assert "errors" not in found, found
    return found["data"]


def refused(client: Client, query: str, status: int = 400, place: str = "$graphql") -> httpx.Response:
    answer = client.post(place, {"query": query}, Content_Type="application/json")
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
    return answer


@pytest.fixture
def patient(hospital: Hospital) -> str:
    return hospital.new_patient(
        active=True, birthDate="1970-01-02", _birthDate={"extension": [{"url": "urn:x", "valueString": "y"}]},
        name=[{"use": "official", "family": "Chalmers", "given": ["Peter", "James"]},
              {"use": "usual", "given": ["Jim"]}],
        contained=[{"resourceType": "Organization", "id": "o", "name": "Inside"}],
        managingOrganization={"reference": "#o"})


@pytest.fixture
def observed(hospital: Hospital, patient: str) -> list[str]:
    return [hospital.feed.post("Observation", observation(patient, value, code=code)).json()["id"]
            for value, code in (("1.10", "8867-4"), ("2.50", "8867-4"), ("3.0", "8310-5"))]


# What is answered


def test_fields_of_a_resource_with_aliases_fragments_and_directives(hospital: Hospital, patient: str) -> None:
    found = data(hospital.feed, """
        query q($yes: Boolean = true, $id: ID!) {
          p: Patient(id: $id) {
            resourceType __typename id active _birthDate { extension { url valueString } }
            official: name(use: official) { ...N } jim: name(use: [usual, old], _count: 1) { given(_offset: 0) }
            name { use } gender birthDate @skip(if: $yes) deceasedBoolean @include(if: $yes)
            ... on DomainResource { text { status } } ... on Observation { status }
          }
        }
        fragment N on HumanName { family given(_offset: 1) ... on HumanName { use } }""", id=patient)
    assert found == {"p": {
        "resourceType": "Patient", "__typename": "Patient", "id": patient, "active": True,
        "_birthDate": {"extension": [{"url": "urn:x", "valueString": "y"}]},
        "official": [{"family": "Chalmers", "given": ["James"], "use": "official"}], "jim": [{"given": ["Jim"]}],
        "name": [{"use": "official"}, {"use": "usual"}], "gender": None, "deceasedBoolean": None, "text": None}}


def test_a_resource_is_asked_itself(hospital: Hospital, patient: str, observed: list[str]) -> None:
    place = f"Patient/{patient}/$graphql"
    assert data(hospital.feed, "{name{family} name{use}}", place)["name"][0] == {
        "family": "Chalmers", "use": "official"}
    found = data(hospital.feed, "{ObservationList(_reference: subject, code: \"8867-4\", _sort: \"-_id\") {id}}", place)
    assert [one["id"] for one in found["ObservationList"]] == sorted(observed[:2], reverse=True)


def test_decimals_keep_their_text_and_choices_have_a_common_name(hospital: Hospital, observed: list[str]) -> None:
    query = "{value {... on Quantity {value} ... on Period {start}} valueQuantity {value unit} valueString}"
    answer = hospital.feed.get(f"Observation/{observed[0]}/$graphql?query={quote(query)}")
    assert answer.content == (b'{"data":{"value":{"value":1.10},"valueQuantity":{"value":1.10,"unit":"bpm"},'
                              b'"valueString":null}}')


def test_references_are_followed(hospital: Hospital, patient: str, observed: list[str]) -> None:
    found = data(hospital.feed, """{subject { reference resource(type: Patient) { ... on Patient { id
        managingOrganization {resource { ... on Organization {name} }} } } other: resource(type: Group) {id} }}""",
                 f"Observation/{observed[0]}/$graphql")
    assert found["subject"] == {"reference": f"Patient/{patient}", "other": None, "resource": {
        "id": patient, "managingOrganization": {"resource": {"name": "Inside"}}}}


def test_connections_go_by_pages(hospital: Hospital, patient: str, observed: list[str]) -> None:
    query = """query q($ref: String) {ObservationConnection(subject: $ref, _count: 2, _sort: "_id") {
        count pagesize first previous next edges {mode resource {id}} }}"""
    first = data(hospital.feed, query, ref=f"Patient/{patient}")["ObservationConnection"]
    assert (first["count"], first["pagesize"], first["first"], first["previous"]) == (3, 2, None, None)
    second = data(hospital.feed, "query q($c: String) {ObservationConnection(_cursor: $c) "
                                 "{count next previous edges {mode resource {id}}}}",
                  c=first["next"])["ObservationConnection"]
    assert (second["next"], second["count"]) == (None, 3)
    assert second["previous"] is not None
    edges = [*first["edges"], *second["edges"]]
    assert [edge["resource"]["id"] for edge in edges] == sorted(observed)
    assert {edge["mode"] for edge in edges} == {"match"}


def test_get_and_a_body_of_graphql_say_the_same(hospital: Hospital, patient: str) -> None:
    query = f'query a($i: ID!) {{Patient(id: $i) {{active}}}} query b {{PatientList(_id: "{patient}") {{active}}}}'
    answer = hospital.feed.get(f"$graphql?query={quote(query)}&operationName=a&variables="
                               f"{quote(json.dumps({'i': patient}))}")
    assert answer.json() == {"data": {"Patient": {"active": True}}}
    answer = hospital.feed.post("$graphql?operationName=b", query.encode(), Content_Type="application/graphql")
    assert answer.json() == {"data": {"PatientList": [{"active": True}]}}


# What may not be seen


def test_who_has_no_grant_learns_nothing(hospital: Hospital, patient: str, observed: list[str]) -> None:
    stranger = hospital.clinician()
    query = """query q($id: ID!, $ref: String) {Patient(id: $id) {id} PatientList(_id: $id) {id}
        ObservationConnection(subject: $ref) {count edges {resource {id}}}}"""
    hidden = ask(stranger, query, id=patient, ref=f"Patient/{patient}")
    absent = ask(stranger, query, id="nobody", ref="Patient/nobody")
    assert hidden == absent
    assert hidden["data"] == {"Patient": None, "PatientList": [], "ObservationConnection": {"count": 0, "edges": []}}
    for place in (f"Patient/{patient}", f"Observation/{observed[0]}"):
        seen, never = refused(stranger, "{id}", 404, f"{place}/$graphql"), refused(
            stranger, "{id}", 404, f"{place[:-3]}zzz/$graphql")
        assert seen.text.replace(place, "") == never.text.replace(f"{place[:-3]}zzz", "")
    assert any(entry.outcome == "4" for entry in hospital.audited(patient))


def test_a_reference_to_what_may_not_be_seen_looks_like_one_to_nothing(
        hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(reference_integrity="off")
    linked = hospital.new_patient(link=[{"other": {"reference": f"Patient/{one}"}, "type": "seealso"}
                                        for one in (hospital.new_patient(), "nobody")])
    own = hospital.patient(linked)
    found = ask(own, "{link {other {resource {... on Patient {id}}}}}", f"Patient/{linked}/$graphql")
    assert found["data"] == {"link": [{"other": {"resource": None}}] * 2}
    assert [error["message"] for error in found["errors"]] == ["nothing is known here"] * 2
    assert found["errors"][1]["path"] == ["link", 1, "other", "resource"]
    assert "errors" not in ask(own, "{link {other {resource(optional: true) {id}}}}", f"Patient/{linked}/$graphql")


def test_every_resource_read_is_in_the_audit_of_its_patient(hospital: Hospital, patient: str,
                                                            observed: list[str]) -> None:
    hospital.grant(patient, "Practitioner/dr-gql")
    reader = hospital.clinician("dr-gql")
    found = data(reader, "{subject {resource {id}}}", f"Observation/{observed[0]}/$graphql")
    assert found["subject"]["resource"] == {"id": patient}
    told = {what for entry in hospital.audited(patient) if entry.user == "Practitioner/dr-gql" for what in entry.what}
    assert told == {f"Observation/{observed[0]}/_history/1", f"Patient/{patient}/_history/1"}


def test_a_revocation_between_two_reads_counts_for_both(hospital: Hospital, patient: str, observed: list[str],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    consent = hospital.grant(patient, "Practitioner/dr-gone")
    reader = hospital.clinician("dr-gone")
    reads = []

    async def revoked_after(*asked: Any) -> Reading:
        found = await read(*asked)
        reads.append(asked)
        hospital.revoke(consent)
        return found

    monkeypatch.setattr(graphql_fetches, "read", revoked_after)
    refused(reader, "{valueQuantity {value}}", 404, f"Observation/{observed[0]}/$graphql")
    assert len(reads) == 1


def test_a_token_reads_what_its_scopes_name(hospital: Hospital, patient: str, observed: list[str]) -> None:
    narrow = hospital.client(scope="system/Observation.rs")
    found = ask(narrow, "{id subject {resource {id}}}", f"Observation/{observed[0]}/$graphql")
    assert found["data"]["subject"] == {"resource": None}
    refused(narrow, "{id}", 403, f"Patient/{patient}/$graphql")
    refused(narrow, "{PatientList {id}}", 403)


# What is refused


@pytest.mark.parametrize("query", [
    "", "{", "mutation {Patient(id: 1) {id}}", "subscription {x}", "{__schema {types {name}}}", "{Nosuch}",
    "{PatientList}", "{PatientList {nosuch}}" * 2, "{Patient {id}}", '{Patient(id: "a", b: 1) {id}}',
    '{PatientList(nosuch: "x") {id}}', "{PatientList(_include: \"*\") {id}}", "{PatientConnection {nosuch}}",
    "{PatientConnection {edges {nosuch}}}", "{PatientConnection(_cursor: \"x\") {count}}",
    "{PatientConnection(_cursor: \"x\", active: true) {count}}", "{PatientList(_count: -1) {id}}",
    "{...F} fragment F on Query {...F}", "{...F}", "{a @nosuch}", "{a @skip}",
    "query q($a: ID!) {Patient(id: $a) {id}}",
    "{Patient(id: $a) {id}}", "{Patient(id: {a: 1}) {id}}", "{" * 3000, "query a {a} query b {b}", "type T {a: Int}",
    "{" + "a " * 1001 + "}", "{a" * 30 + "}" * 30, "{PatientList(name: \"x\", name: \"y\") {id}}",
    "{a: PatientList(active: true) {id} a: PatientList(active: false) {id}}",
    "{PatientList {...A}}" + "".join(f" fragment {a} on Patient {{...{b} ...{b} ...{b} ...{b}}}"
                                     for a, b in ("AB", "BC", "CD", "DE", "EF", "FG")) + " fragment G on Patient {id}",
])
def test_a_query_that_is_none_is_refused(hospital: Hospital, query: str) -> None:
    refused(hospital.feed, query)


@pytest.mark.parametrize("query", [
    "{nosuch}", "{name}", "{id {x}}", "{name(nosuch: 1) {use}}", "{name(period: 1) {use}}", "{id(x: 1)}",
    "{name(_count: x) {use}}", "{ObservationList {id}}", "{ObservationList(_reference: nosuch) {id}}",
    "{contained {PatientList(_reference: link) {id}}}", "{name {resource {id}}}", "{_name {id}}", "{multipleBirth {x}}",
    "{managingOrganization {resource(x: 1) {id}}}", "{managingOrganization {resource}}", "{x: id x: active}",
])
def test_a_field_that_r4_does_not_have_is_refused(hospital: Hospital, query: str, patient: str) -> None:
    if query == "{multipleBirth {x}}":
        hospital.feed.put(f"Patient/{patient}", {"resourceType": "Patient", "id": patient, "multipleBirthInteger": 2})
        assert data(hospital.feed, "{multipleBirth}", f"Patient/{patient}/$graphql") == {"multipleBirth": 2}
        return
    assert places(refused(hospital.feed, query, place=f"Patient/{patient}/$graphql"))


def test_work_has_limits_that_are_told(hospital: Hospital, patient: str) -> None:
    many = " ".join(f'a{number}: PatientList(_id: "{patient}") {{id}}' for number in range(101))
    assert "100 times" in refused(hospital.feed, f"{{{many}}}").text
    wide = hospital.new({"resourceType": "Basic", "code": {"coding": [
        {"system": LOINC, "code": f"c{number}"} for number in range(3000)]}})
    fields = " ".join(f"a{number}: code" for number in range(10))
    told = refused(hospital.feed, f"{{code {{coding {{{fields}}}}}}}", place=f"Basic/{wide}/$graphql")
    assert "20000 values" in told.text


@pytest.mark.parametrize(("body", "kind", "status"), [
    (b"{}", "application/json", 400), (b"[]", "application/json", 400), (b"\xff", "application/graphql", 400),
    (b"{a}", "text/plain", 415), (b'{"query":"{a}","variables":[]}', "application/json", 400),
    (b'{"query":"{a}","variables":[1]}', "application/json", 400), (b'{"query":1}', "application/json", 400),
    (b'{"query":"{a}","operationName":1}', "application/json", 400), (b"x" * 70_000, "application/graphql", 400),
])
def test_a_body_without_a_query_is_refused(hospital: Hospital, body: bytes, kind: str, status: int) -> None:
    answer = hospital.feed.post("$graphql", body, Content_Type=kind)
    assert answer.status_code == status, answer.text
    places(answer)


def test_an_answer_that_is_no_resource_stands_in_no_bundle(hospital: Hospital, patient: str) -> None:
    entry = {"request": {"method": "GET", "url": f"Patient/{patient}/$graphql?query={quote('{id}')}"}}
    answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "batch", "entry": [entry]})
    assert answer.json()["entry"][0]["response"]["status"].startswith("406")
