"""The terminology operations over HTTP. https://hl7.org/fhir/R4/terminology-service.html"""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.journeys.hospital import Client, Hospital, places

VS, TERMS = "http://hl7.org/fhir/ValueSet/", "http://terminology.hl7.org/CodeSystem/"
REASON = f"{TERMS}v3-ActReason"


def parameters(**given: Any) -> dict[str, Any]:
    kinds = {str: "valueString", bool: "valueBoolean", int: "valueInteger"}
    rows: list[dict[str, Any]] = []
    for name, value in given.items():
        if isinstance(value, dict):
            kind = "resource" if "resourceType" in value else (
                "valueCodeableConcept" if "coding" in value else "valueCoding")
        else:
            kind = kinds[type(value)]
        rows.append({"name": name, kind: value})
    return {"resourceType": "Parameters", "parameter": rows}


def told(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {row["name"]: next((value for key, value in row.items() if key.startswith("value")), row.get("part"))
            for row in answer.json()["parameter"]}


def codes(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["code"] for row in answer.json()["expansion"].get("contains", ())]


def system(url: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "CodeSystem", "url": url, "status": "active", "content": "complete", "version": "1",
            "property": [{"code": "legs", "type": "integer"}], "concept": [
                {"code": "animal", "display": "Animal", "concept": [
                    {"code": "dog", "display": "Dog", "property": [{"code": "legs", "valueInteger": 4}]},
                    {"code": "bird", "display": "Bird", "property": [{"code": "legs", "valueInteger": 2}]}]}],
            **elements}


def value_set(url: str, of: str, *filters: tuple[str, str, str]) -> dict[str, Any]:
    return {"resourceType": "ValueSet", "url": url, "status": "active", "compose": {"include": [{
        "system": of, **({"filter": [{"property": name, "op": operator, "value": value}
                                     for name, operator, value in filters]} if filters else {})}]}}


def fresh(kind: str) -> str:
    return f"http://example.org/{kind}/{uuid.uuid4()}"


def test_hl7s_value_sets_are_expanded_by_get_and_post(hospital: Hospital) -> None:
    url = f"{VS}administrative-gender"
    answer = hospital.feed.get(f"ValueSet/$expand?url={url}")
    assert codes(answer) == ["male", "female", "other", "unknown"]
    expansion = answer.json()["expansion"]
    assert expansion["total"] == 4
    assert expansion["identifier"].startswith("urn:uuid:")
    assert expansion["timestamp"].endswith("Z")
    assert {"name": "version", "valueUri": "http://hl7.org/fhir/administrative-gender|4.0.1"} in expansion["parameter"]
    assert codes(hospital.feed.post("ValueSet/$expand", parameters(url=url, filter="MALE", count=1, offset=1))) == [
        "female"]
    assert codes(hospital.feed.get("ValueSet/$expand?url=http://terminology.hl7.org/ValueSet/v2-0203&filter=passport")
                 ) == ["DP", "PPN"]


def test_a_value_set_is_expanded_that_was_posted_or_is_sent(hospital: Hospital) -> None:
    of, url = fresh("cs"), fresh("vs")
    hospital.new(system(of))
    id_ = hospital.new(value_set(url, of, ("concept", "descendent-of", "animal"), ("legs", "regex", "[34]")))
    assert codes(hospital.feed.get(f"ValueSet/$expand?url={url}")) == ["dog"]
    assert codes(hospital.feed.get(f"ValueSet/{id_}/$expand")) == ["dog"]
    assert codes(hospital.feed.post(f"ValueSet/{id_}/$expand", parameters(filter="cat"))) == []
    sent = value_set(fresh("vs"), of)
    assert codes(hospital.feed.post("ValueSet/$expand", sent)) == ["animal", "dog", "bird"]
    assert codes(hospital.feed.post("ValueSet/$expand", parameters(valueSet=sent, **{
        "exclude-system": of}))) == []


def test_a_new_version_of_a_value_set_is_used_at_once(hospital: Hospital) -> None:
    of, url = fresh("cs"), fresh("vs")
    hospital.new(system(of))
    id_ = hospital.new(value_set(url, of, ("concept", "=", "dog")))
    assert codes(hospital.feed.get(f"ValueSet/$expand?url={url}")) == ["dog"]
    changed = {**value_set(url, of, ("concept", "=", "bird")), "id": id_}
    assert hospital.feed.put(f"ValueSet/{id_}", changed).status_code == 200
    assert codes(hospital.feed.get(f"ValueSet/$expand?url={url}")) == ["bird"]
    assert hospital.feed.delete(f"ValueSet/{id_}").status_code == 204
    assert hospital.feed.get(f"ValueSet/$expand?url={url}").status_code == 404
    assert hospital.feed.get(f"ValueSet/{id_}/$expand").status_code == 410


def test_versions_of_a_posted_code_system_are_told_apart(hospital: Hospital) -> None:
    of = fresh("cs")
    hospital.new(system(of))
    hospital.new(system(of, version="2", concept=[{"code": "plant"}]))

    def valid(**named: str) -> bool:
        query = "&".join(f"{name}={quote(value)}" for name, value in named.items())
        return bool(told(hospital.feed.get(f"CodeSystem/$validate-code?url={of}&{query}"))["result"])

    assert valid(code="plant")
    assert valid(code="dog", version="1")
    assert not valid(code="dog", version="2")
    refused = hospital.feed.get(f"CodeSystem/$lookup?system={of}&code=dog&version=3")
    assert refused.status_code == 422
    assert "version 3" in refused.text


def test_nobody_replaces_what_hl7_defined(hospital: Hospital) -> None:
    url = f"{VS}administrative-gender"
    hospital.new({**value_set(url, REASON, ("concept", "=", "TREAT")), "version": "mine"})
    assert codes(hospital.feed.get(f"ValueSet/$expand?url={url}")) == ["male", "female", "other", "unknown"]
    assert codes(hospital.feed.get(f"ValueSet/$expand?url={url}&valueSetVersion=mine")) == ["TREAT"]


def test_codes_are_validated_against_a_value_set(hospital: Hospital) -> None:
    url, of = f"{VS}observation-status", "http://hl7.org/fhir/observation-status"
    assert told(hospital.feed.get(f"ValueSet/$validate-code?url={url}&system={of}&code=final")) == {
        "result": True, "display": "Final"}
    wrong = told(hospital.feed.get(f"ValueSet/$validate-code?url={url}&system={of}&code=final&display=Provisional"))
    assert wrong == {"result": False, "display": "Final", "message": "the display is not one of the code's"}
    coding = {"system": of, "code": "nothing-such"}
    assert told(hospital.feed.post("ValueSet/$validate-code", parameters(url=url, coding=coding)))["result"] is False
    concept = {"coding": [coding, {"system": of, "code": "amended"}]}
    assert told(hospital.feed.post("ValueSet/$validate-code", parameters(url=url, codeableConcept=concept)))["result"]


def test_a_code_is_looked_up_with_its_place_in_the_hierarchy(hospital: Hospital) -> None:
    answer = hospital.feed.get(f"CodeSystem/$lookup?system={REASON}&code=TREAT")
    assert told(answer)["display"] == "treatment"
    properties = [{part["name"]: part for part in row["part"]} for row in answer.json()["parameter"]
                  if row["name"] == "property"]
    assert {"PurposeOfUse"} == {row["value"]["valueCode"] for row in properties
                                if row["code"]["valueCode"] == "parent"}
    assert "definition" in {row["code"]["valueCode"] for row in properties}
    coding = parameters(coding={"system": REASON, "code": "PurposeOfUse"}, property="child")
    names = {row["name"] for row in hospital.feed.post("CodeSystem/$lookup", coding).json()["parameter"]}
    assert names == {"name", "version", "display", "property"}
    assert hospital.feed.get(f"CodeSystem/$lookup?system={REASON}&code=nothing-such").status_code == 404


@pytest.mark.parametrize(("first", "second", "outcome"), [
    ("PurposeOfUse", "TREAT", "subsumes"), ("TREAT", "PurposeOfUse", "subsumed-by"), ("TREAT", "TREAT", "equivalent"),
    ("TREAT", "HPAYMT", "not-subsumed")])
def test_subsumption_over_http(hospital: Hospital, first: str, second: str, outcome: str) -> None:
    asked = hospital.feed.get(f"CodeSystem/$subsumes?system={REASON}&codeA={first}&codeB={second}")
    assert told(asked) == {"outcome": outcome}
    body = parameters(codingA={"system": REASON, "code": first}, codingB={"system": REASON, "code": second})
    assert told(hospital.feed.post("CodeSystem/$subsumes", body)) == {"outcome": outcome}


def test_a_posted_code_system_is_asked_by_its_id(hospital: Hospital) -> None:
    id_ = hospital.new(system(fresh("cs")))
    assert told(hospital.feed.get(f"CodeSystem/{id_}/$subsumes?codeA=animal&codeB=dog")) == {"outcome": "subsumes"}
    assert told(hospital.feed.get(f"CodeSystem/{id_}/$validate-code?code=dog"))["result"] is True
    assert told(hospital.feed.get(f"CodeSystem/{id_}/$validate-code?code=cat"))["result"] is False
    assert places(hospital.feed.get(f"CodeSystem/{id_}/$validate-code?code=dog&url=urn:x")) == ["http.url"]


def test_posted_maps_translate_forth_and_back(hospital: Hospital) -> None:
    near, far, url = fresh("cs"), fresh("cs"), fresh("cm")
    id_ = hospital.new({"resourceType": "ConceptMap", "url": url, "status": "active", "group": [{
        "source": near, "target": far, "element": [{"code": "dog", "target": [
            {"code": "hund", "display": "Hund", "equivalence": "equivalent"}]}]}]})

    def match(answer: httpx.Response) -> Any:
        return {part["name"]: part for part in told(answer)["match"]}["concept"]["valueCoding"]

    forth = f"system={near}&code=dog"
    for asked in (f"ConceptMap/$translate?url={url}&{forth}", f"ConceptMap/{id_}/$translate?{forth}",
                  f"ConceptMap/$translate?{forth}&targetsystem={far}"):
        assert match(hospital.feed.get(asked)) == {"system": far, "code": "hund", "display": "Hund"}
    back = parameters(coding={"system": far, "code": "hund"}, reverse=True)
    assert match(hospital.feed.post("ConceptMap/$translate", back)) == {"system": near, "code": "dog"}
    none = told(hospital.feed.get(f"ConceptMap/$translate?url={url}&system={near}&code=cat"))
    assert none == {"result": False, "message": "no mapping of the code is known"}


@pytest.mark.parametrize("system_url", ["http://snomed.info/sct", "http://loinc.org", "urn:oid:2.16.840.1.113883.6.96"])
def test_what_is_not_carried_is_refused_by_name(hospital: Hospital, system_url: str) -> None:
    sent = parameters(valueSet=value_set(fresh("vs"), system_url))
    answer = hospital.feed.post("ValueSet/$expand", sent)
    assert answer.status_code == 422
    assert answer.json()["issue"][0]["code"] == "not-supported"
    assert places(answer) == ["ValueSet.compose.include[0].system"]
    assert system_url in answer.text
    for asked in (f"CodeSystem/$lookup?system={system_url}&code=1",
                  f"CodeSystem/$validate-code?url={system_url}&code=1",
                  f"CodeSystem/$subsumes?system={system_url}&codeA=1&codeB=2"):
        assert hospital.feed.get(asked).status_code == 422


@pytest.mark.parametrize(("asked", "status", "place"), [
    ("ValueSet/$expand", 400, "http.url"), ("ValueSet/$expand?url=urn:nowhere", 404, None),
    (f"ValueSet/$expand?url={VS}administrative-gender&colour=red", 400, "http.colour"),
    (f"ValueSet/$expand?url={VS}administrative-gender&contextDirection=incoming", 400, "http.contextDirection"),
    (f"ValueSet/$expand?url={VS}administrative-gender&count=-1", 400, "http.count"),
    (f"ValueSet/$expand?url={VS}administrative-gender&activeOnly=maybe", 400, "http.activeOnly"),
    (f"ValueSet/$expand?url={VS}languages&valueSet=x", 400, "http.valueSet"),
    (f"ValueSet/$expand?url={VS}all-languages", 400, "ValueSet.compose.include[0].system"),
    (f"ValueSet/$validate-code?url={VS}administrative-gender&code=male", 400, "http.system"),
    (f"ValueSet/$validate-code?url={VS}administrative-gender", 400, "http.code"),
    ("CodeSystem/$lookup?code=male", 400, "http.system"),
    (f"CodeSystem/$subsumes?system={REASON}&codeA=TREAT", 400, "http.codeB"),
    ("ConceptMap/$translate?url=urn:nowhere&system=urn:x&code=y", 404, None),
    ("ValueSet/nobody/$expand", 404, None), ("Patient/$expand", 404, None)])
def test_faulty_questions(hospital: Hospital, asked: str, status: int, place: str | None) -> None:
    answer = hospital.feed.get(asked)
    assert answer.status_code == status, answer.text
    assert places(answer) == ([] if place is None else [place])


def test_a_resource_among_the_parameters_is_validated(hospital: Hospital) -> None:
    body = parameters(valueSet={"resourceType": "ValueSet", "status": "active", "compose": {"include": "everything"}})
    assert hospital.feed.post("ValueSet/$expand", body).status_code == 400
    other = parameters(valueSet={"resourceType": "Patient"})
    assert hospital.feed.post("ValueSet/$expand", other).status_code in (400, 422)
    circle = fresh("vs")
    hospital.new({"resourceType": "ValueSet", "url": circle, "status": "active", "compose": {"include": [
        {"valueSet": [circle]}]}})
    assert hospital.feed.get(f"ValueSet/$expand?url={circle}").status_code == 422


@pytest.fixture
def outsider(hospital: Hospital) -> Client:
    """A clinician whose token reads no terminology."""
    return hospital.clinician("dr-terms", scope="user/Observation.rs")


def test_who_may_not_read_terminology_is_told_as_if_none_were_posted(hospital: Hospital, outsider: Client) -> None:
    of, url, mapping = fresh("cs"), fresh("vs"), fresh("cm")
    hospital.new(system(of))
    id_ = hospital.new(value_set(url, of))
    hospital.new({"resourceType": "ConceptMap", "url": mapping, "status": "active", "group": [{
        "source": of, "target": "urn:t", "element": [{"code": "dog", "target": [
            {"code": "hund", "equivalence": "equivalent"}]}]}]})
    for there, absent in ((url, fresh("vs")), (f"{url}|1", f"{fresh('vs')}|1")):
        seen, unseen = (outsider.get(f"ValueSet/$expand?url={quote(one)}") for one in (there, absent))
        assert (seen.status_code, seen.json()["issue"]) == (unseen.status_code, unseen.json()["issue"])
        assert seen.status_code == 404
    nowhere = fresh("cs")
    for asked in ("CodeSystem/$lookup?code=dog&system=", "CodeSystem/$validate-code?code=dog&url=",
                  "CodeSystem/$subsumes?codeA=dog&codeB=bird&system="):
        seen, unseen = outsider.get(asked + of), outsider.get(asked + nowhere)
        assert seen.status_code == unseen.status_code == 422
        assert seen.text.replace(of, "") == unseen.text.replace(nowhere, "")
    sent = parameters(valueSet={**value_set(fresh("vs"), "urn:x"), "compose": {"include": [{"valueSet": [url]}]}})
    assert outsider.post("ValueSet/$expand", sent).status_code == 422
    assert outsider.get(f"ConceptMap/$translate?url={mapping}&system={of}&code=dog").status_code == 404
    assert told(outsider.get(f"ConceptMap/$translate?system={of}&code=dog"))["result"] is False
    assert outsider.get(f"ValueSet/{id_}/$expand").status_code == outsider.get("ValueSet/nobody/$expand").status_code
    assert codes(outsider.get(f"ValueSet/$expand?url={VS}administrative-gender"))


def test_scopes_that_open_some_value_sets_open_no_others(hospital: Hospital) -> None:
    client = hospital.clinician("dr-some-terms", scope="user/ValueSet.rs?status=active user/CodeSystem.rs")
    of, shown, hidden = fresh("cs"), fresh("vs"), fresh("vs")
    hospital.new(system(of))
    hospital.new(value_set(shown, of))
    hidden_id = hospital.new({**value_set(hidden, of), "status": "draft"})
    assert codes(client.get(f"ValueSet/$expand?url={shown}")) == ["animal", "dog", "bird"]
    assert client.get(f"ValueSet/$expand?url={hidden}").status_code == 404
    assert client.get(f"ValueSet/$validate-code?url={hidden}&system={of}&code=dog").status_code == 404
    assert client.get(f"ValueSet/{hidden_id}/$expand").status_code == client.get(f"ValueSet/{hidden_id}").status_code
    hospital.new(value_set(hidden, of, ("code", "=", "dog")))
    assert codes(client.get(f"ValueSet/$expand?url={hidden}")) == ["dog"]


def test_what_an_answer_was_made_from_is_audited(hospital: Hospital) -> None:
    of, url = fresh("cs"), fresh("vs")
    system_id = hospital.new(system(of))
    set_id = hospital.new(value_set(url, of))
    assert codes(hospital.feed.get(f"ValueSet/$expand?url={url}"))
    entry = hospital.audited(limit=1)[0]
    assert entry.interaction == "expand"
    assert set(entry.what) == {f"ValueSet/{set_id}/_history/1", f"CodeSystem/{system_id}/_history/1"}
    before = len(hospital.audited())
    assert codes(hospital.feed.get(f"ValueSet/$expand?url={VS}administrative-gender"))
    assert len(hospital.audited()) == before


def coded(patient: str, of: str, code: str) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "subject": {"reference": f"Patient/{patient}"},
            "code": {"coding": [{"system": of, "code": code}]}}


def test_searches_ask_posted_value_sets_and_hierarchies(hospital: Hospital) -> None:
    of, url = fresh("cs"), fresh("vs")
    hospital.new(system(of))
    set_id = hospital.new(value_set(url, of, ("legs", "=", "4")))
    patient = hospital.new_patient()
    ids = {code: hospital.new(coded(patient, of, code)) for code in ("animal", "dog", "bird")}

    def found(query: str) -> set[str]:
        return {code for code, id_ in ids.items() if id_ in hospital.feed.ids(f"Observation?patient={patient}&{query}")}

    assert found(f"code:in={url}") == {"dog"}
    assert any(f"ValueSet/{set_id}/_history/1" in entry.what for entry in hospital.audited(limit=4))
    assert found(f"code:not-in={url}") == {"animal", "bird"}
    assert found(f"code:below={of}|animal") == {"animal", "dog", "bird"}
    assert found(f"code:above={of}|dog") == {"animal", "dog"}
    assert found(f"status:in={VS}observation-status") == set(ids)
    paged = hospital.feed.all_ids(f"Observation?patient={patient}&code:below={of}|animal&_count=1")
    assert sorted(paged) == sorted(ids.values())
    assert hospital.feed.total(f"Patient?_id={patient}&_has:Observation:patient:code:in={url}") == 1


def test_searches_by_value_sets_a_token_may_not_read_are_refused_as_unknown(hospital: Hospital) -> None:
    of, url = fresh("cs"), fresh("vs")
    hospital.new(system(of))
    hospital.new(value_set(url, of))
    client = hospital.clinician("dr-unread-terms", scope="user/Observation.rs")
    for query, other in ((f"code:in={url}", f"code:in={fresh('vs')}"), (f"code:below={of}|dog",
                                                                       f"code:below={fresh('cs')}|dog")):
        seen, unseen = client.get(f"Observation?{query}"), client.get(f"Observation?{other}")
        assert seen.status_code == unseen.status_code == 400
        assert seen.json()["issue"][0]["code"] == unseen.json()["issue"][0]["code"]
    assert client.get(f"Observation?status:in={VS}observation-status").status_code == 200
    assert client.get(f"Observation?code:below={REASON}|PurposeOfUse").status_code == 200


def test_an_operation_inside_a_batch(hospital: Hospital) -> None:
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": [{"request": {
        "method": "GET", "url": f"ValueSet/$expand?url={VS}administrative-gender"}}]}
    answer = hospital.feed.post("", bundle).json()["entry"][0]
    assert answer["response"]["status"].startswith("200")
    assert answer["resource"]["expansion"]["total"] == 4


def test_the_statement_names_hl7s_definitions(hospital: Hospital) -> None:
    statement = hospital.feed.get("metadata").json()["rest"][0]
    rows = {row["type"]: row.get("operation", []) for row in statement["resource"]}
    for type_, names in (("ValueSet", {"expand", "validate-code"}), ("ConceptMap", {"translate"}),
                         ("CodeSystem", {"lookup", "subsumes", "validate-code"})):
        offered = {row["name"]: row["definition"] for row in rows[type_]}
        assert {name: offered[name] for name in names} == {
            name: f"http://hl7.org/fhir/OperationDefinition/{type_}-{name}" for name in names}
