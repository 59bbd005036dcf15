"""Search parameters that clients bring. https://hl7.org/fhir/R4/searchparameter.html"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway import app, upkeep_command
from gateway.records import search_parameters
from gateway.web.asynchronous import runner
from gateway.web.fhir import open_door
from tests.journeys.hospital import Hospital

CONTACT = [{"gender": "female", "name": {"text": "Mother"}}]
EYES = "http://hospital.example/eye-colour"


def parameter(code: str, expression: str, type_: str = "token", base: tuple[str, ...] = ("Patient",),
              **elements: Any) -> dict[str, Any]:
    return {"resourceType": "SearchParameter", "url": f"http://hospital.example/SearchParameter/{code}", "name": "P",
            "status": "active", "description": "as the hospital needs it", "code": code, "base": list(base),
            "type": type_, "expression": expression, **elements}


def eyes(colour: str) -> list[dict[str, Any]]:
    return [{"url": EYES, "valueCode": colour}]


def carry_out_jobs(hospital: Hospital) -> None:
    node = app.build_node(hospital.settings, hospital.ring, hospital.database)
    hospital.run(runner(open_door(node), app.authority(node, hospital.smart)).drain())


@pytest.fixture
def own(hospital_with: Callable[..., Hospital]) -> Hospital:
    return hospital_with()


def ids(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 200, answer.text
    return {entry["resource"]["id"] for entry in answer.json().get("entry", ())}


def outcome(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["issue"][0].get("expression", [""])[0]


def test_a_parameter_finds_what_was_there_before_it_once_indexed_and_what_comes_after(own: Hospital) -> None:
    before = own.new_patient(extension=eyes("green"))
    made = own.feed.post("SearchParameter", parameter("eyes", f"Patient.extension.where(url='{EYES}').value"))
    assert made.status_code == 201, made.text
    during = own.new_patient(extension=eyes("green"))
    own.new_patient(extension=eyes("blue"))
    waiting = own.feed.get("Patient?eyes=green")
    assert waiting.status_code == 400
    assert "still being indexed" in waiting.text
    lenient = own.feed.get("Patient?eyes=green", Prefer="handling=lenient").json()
    assert lenient["entry"][-1]["search"]["mode"] == "outcome", "a part is never taken for the whole"
    parts = own.feed.get("SearchParameter/$status").json()["parameter"][0]["part"]
    assert {"name": "status", "valueCode": "indexing"} in parts
    assert {"name": "progress", "valueString": "queued"} in parts
    carry_out_jobs(own)
    after = own.new_patient(extension=eyes("green"))
    assert ids(own.feed.get("Patient?eyes=green")) == {before, during, after}
    assert ids(own.feed.get("Patient?eyes=GREEN,blue&eyes:not=blue")) == {before, during, after}
    assert {"name": "status", "valueCode": "ready"} in own.feed.get("SearchParameter/$status").json()[
        "parameter"][0]["part"]
    assert upkeep_command.fsck(own.settings) == 0


CASES = (
    ("token", "Patient.extension('http://hospital.example/eye-colour').value", {"extension": eyes("green")}, "green"),
    ("token", "Patient.contact.telecom.where(system='phone')", {"contact": [{"telecom": [
        {"system": "phone", "value": "044"}]}]}, "044"),
    ("token", "Patient.contact.first().gender", {"contact": CONTACT}, "female"),
    ("token", "Patient.contact.first().relationship", {"contact": [{"name": {"text": "x"}, "relationship": [
        {"coding": [{"system": "urn:r", "code": "N"}]}]}]}, "urn:r|N"),
    ("token", "Patient.name.exists()", {"name": [{"family": "A"}]}, "true"),
    ("string", "Patient.contact.name", {"contact": [{"name": {"family": "Zürcher"}}]}, "zurch"),
    ("string", "Patient.birthDate.extension('http://e.example/place').value",
     {"birthDate": "1970-01-01", "_birthDate": {"extension": [
         {"url": "http://e.example/place", "valueString": "Uster"}]}}, "uster"),
    ("date", "Patient.identifier.period", {"identifier": [{"value": "1", "period": {
        "start": "2020-01-05", "end": "2020-01-05"}}]}, "2020-01-05"),
    ("number", "Patient.multipleBirth", {"multipleBirthInteger": 3}, "gt2"),
    ("reference", "Patient.contact.organization", {"contact": [{"organization": {
        "reference": "Organization/x9", "display": "X"}}]}, "Organization/x9"),
    ("uri", "Patient.identifier.system", {"identifier": [{"system": "urn:a:b", "value": "1"}]}, "urn:a:b"),
)


def test_every_kind_of_parameter_finds_by_paths_and_by_fhirpath(hospital_with: Callable[..., Hospital]) -> None:
    own = hospital_with(reference_integrity="off")
    for number, (type_, expression, _, _) in enumerate(CASES):
        made = own.feed.post("SearchParameter", parameter(f"p-{number}", expression, type_))
        assert made.status_code == 201, made.text
    carry_out_jobs(own)
    assert int(str(own.database.reader.execute("SELECT count(*) FROM job WHERE kind='reindex'").get)) == 1, \
        "one pass serves all that wait"
    for number, (_, _, elements, value) in enumerate(CASES):
        patient = own.new_patient(**elements)
        assert patient in ids(own.feed.get(f"Patient?p-{number}={value}")), CASES[number]
    own.new_patient(active=True)
    assert all(len(ids(own.feed.get(f"Patient?p-{number}:missing=true"))) for number in range(len(CASES))
               if number != 4)
    body = own.feed.get("Patient?_sort=-p-8&p-8:missing=false").json()
    assert len(body["entry"]) == 1


def test_it_sorts_chains_includes_and_conditions_like_any_other(own: Hospital) -> None:
    own.feed.post("SearchParameter", parameter("rank", "Patient.extension.where(url='urn:rank').value", "number"))
    own.feed.post("SearchParameter", parameter("home", "Patient.extension.where(url='urn:home').value", "reference",
                                               target=["Organization"]))
    carry_out_jobs(own)
    place = own.new({"resourceType": "Organization", "name": "Uster"})
    low, high = (own.new_patient(extension=[
        {"url": "urn:rank", "valueInteger": rank},
        {"url": "urn:home", "valueReference": {"reference": f"Organization/{place}"}}]) for rank in (3, 11))
    body = own.feed.get("Patient?rank=gt0&_sort=-rank").json()
    assert [one["resource"]["id"] for one in body["entry"]] == [high, low]
    assert ids(own.feed.get("Patient?home.name=uster&rank=lt5&_include=Patient:home")) == {low, place}
    assert ids(own.feed.get("Organization?_has:Patient:home:rank=11")) == {place}
    again = own.feed.post("Patient", {"resourceType": "Patient"}, If_None_Exist="rank=11")
    assert again.status_code == 200
    assert again.headers["Location"].split("/")[-3] == high


def test_the_statement_follows_without_a_restart(own: Hospital) -> None:
    first = own.feed.get("metadata")
    assert own.feed.post("SearchParameter", parameter("eyes", "Patient.contact.gender")).status_code == 201
    assert '"eyes"' not in own.feed.get("metadata").text, "it cannot be searched by yet"
    carry_out_jobs(own)
    told = own.feed.get("metadata", If_None_Match=first.headers["ETag"])
    assert told.status_code == 200
    patient = next(one for one in told.json()["rest"][0]["resource"] if one["type"] == "Patient")
    assert {"name": "eyes", "type": "token", "definition": "http://hospital.example/SearchParameter/eyes"}.items() <= \
        next(one for one in patient["searchParam"] if one["name"] == "eyes").items()


def test_one_that_is_retired_or_deleted_is_unknown_and_its_code_free(own: Hospital) -> None:
    made = own.feed.post("SearchParameter", parameter("eyes", "Patient.contact.gender")).json()
    carry_out_jobs(own)
    patient = own.new_patient(contact=CONTACT)
    assert ids(own.feed.get("Patient?eyes=female")) == {patient}
    taken = own.feed.post("SearchParameter", parameter("eyes", "Patient.gender"))
    assert taken.status_code == 409
    assert own.feed.put(f"SearchParameter/{made['id']}", {**made, "status": "retired"}).status_code == 200
    assert own.feed.get("Patient?eyes=female").status_code == 400
    other = own.feed.post("SearchParameter", parameter("eyes", "Patient.gender")).json()
    carry_out_jobs(own)
    assert ids(own.feed.get("Patient?eyes=female")) == set(), "rows of the earlier meaning are never found by it"
    assert own.feed.delete(f"SearchParameter/{other['id']}").status_code == 204
    assert own.feed.get("Patient?eyes=female").status_code == 400


def test_a_change_of_words_alone_needs_no_pass(own: Hospital) -> None:
    made = own.feed.post("SearchParameter", parameter("eyes", "Patient.contact.gender")).json()
    carry_out_jobs(own)
    assert own.feed.put(f"SearchParameter/{made['id']}", {**made, "description": "better"}).status_code == 200
    assert own.feed.get("Patient?eyes=female").status_code == 200
    assert own.feed.put(f"SearchParameter/{made['id']}", {**made, "expression": "Patient.gender"}).status_code == 200
    assert own.feed.get("Patient?eyes=female").status_code == 400
    carry_out_jobs(own)
    assert own.feed.get("Patient?eyes=female").status_code == 200


BAD = (
    ({"expression": "Patient.extension.where("}, "SearchParameter.expression"),
    ({"expression": "Patient.nowhere"}, "SearchParameter.expression"),
    ({"expression": "Patient.frobnicate()"}, "SearchParameter.expression"),
    ({"expression": "Patient.name", "type": "date"}, "SearchParameter.expression"),
    ({"expression": "Patient.birthDate", "type": "number"}, "SearchParameter.expression"),
    ({"expression": "(" * 900 + "Patient" + ")" * 900}, "SearchParameter.expression"),
    ({"expression": "Patient.gender | " * 200 + "Patient.gender"}, "SearchParameter.expression"),
    ({"expression": "a|" * 990 + "a"}, "SearchParameter.expression"),
    ({"expression": "a." * 990 + "a"}, "SearchParameter.expression"),
    ({"expression": "a" * 2001}, "SearchParameter.expression"),
    ({"code": "name"}, "SearchParameter.code"),
    ({"code": "_mine"}, "SearchParameter.code"),
    ({"code": "a.b"}, "SearchParameter.code"),
    ({"base": ["Resource"]}, "SearchParameter.base[0]"),
    ({"base": ["Patient", "AuditEvent"]}, "SearchParameter.base[1]"),
    ({"type": "special"}, "SearchParameter.type"),
)


@pytest.mark.parametrize(("change", "place"), BAD)
def test_what_cannot_be_used_is_refused_with_its_place(hospital: Hospital, change: dict[str, Any], place: str) -> None:
    answer = hospital.feed.post("SearchParameter", {**parameter("bad-one", "Patient.gender"), **change})
    assert outcome(answer) == (422, place), answer.text
    kept = hospital.feed.post("SearchParameter", {
        **parameter("bad-one", "Patient.gender"), **change, "status": "draft"})
    assert kept.status_code == 201, "what is not in use is kept as it is"


def test_a_composite_of_known_parts(own: Hospital) -> None:
    made = own.feed.post("SearchParameter", parameter(
        "part-code-status", "Observation", "composite", ("Observation",), component=[
            {"definition": "http://hl7.org/fhir/SearchParameter/clinical-code", "expression": "code"},
            {"definition": "http://hl7.org/fhir/SearchParameter/Observation-status", "expression": "status"}]))
    assert made.status_code == 201, made.text
    carry_out_jobs(own)
    one = own.new({"resourceType": "Observation", "status": "final", "code": {"coding": [{"code": "c"}]}})
    own.new({"resourceType": "Observation", "status": "amended", "code": {"coding": [{"code": "c"}]}})
    assert ids(own.feed.get("Observation?part-code-status=c$final")) == {one}


def test_clinicians_and_patients_bring_none_and_run_no_pass(own: Hospital) -> None:
    someone = own.new_patient()
    for client in (own.clinician(), own.patient(someone)):
        assert client.post("SearchParameter", parameter("eyes", "Patient.gender")).status_code == 403
        update = client.put("SearchParameter/p1", {**parameter("eyes", "Patient.gender"), "id": "p1"})
        assert update.status_code in (403, 404)
        assert client.post("$reindex", {"resourceType": "Parameters"}).status_code == 403
    assert own.feed.get("Patient?eyes=female").status_code == 400


def test_a_custom_parameter_opens_nothing_to_who_has_no_grant(own: Hospital) -> None:
    """Invariant 4: it finds; what is found is decided."""
    patient = own.new_patient(extension=eyes("green"))
    own.feed.post("SearchParameter", parameter("eyes", f"Patient.extension.where(url='{EYES}').value"))
    carry_out_jobs(own)
    clinician = own.clinician()
    for search in ("Patient?eyes=green", "Patient?eyes=green&_summary=count",
                   "Patient?eyes:missing=false&_total=accurate"):
        answer = clinician.get(search).json()
        assert answer["total"] == 0
        assert "entry" not in answer
    own.grant(patient, "Practitioner/dr-1")
    assert ids(clinician.get("Patient?eyes=green")) == {patient}


def test_a_granular_scope_by_a_custom_parameter_opens_nothing(own: Hospital) -> None:
    """Its meaning can change after the scope was granted."""
    patient = own.new_patient(extension=eyes("green"))
    own.feed.post("SearchParameter", parameter("eyes", f"Patient.extension.where(url='{EYES}').value"))
    carry_out_jobs(own)
    own.grant(patient, "Practitioner/dr-1")
    try:
        clinician = own.clinician(scope="user/Patient.rs?eyes=green")
    except Exception:
        return
    answer = clinician.get("Patient")
    assert answer.status_code in (400, 401, 403) or answer.json()["total"] == 0
    assert clinician.get(f"Patient/{patient}").status_code in (400, 401, 403, 404)


def test_a_birth_date_stays_a_ladder_of_hashes(own: Hospital) -> None:
    """Invariant 1: what names a person is no number on the disk."""
    own.feed.post("SearchParameter", parameter("born", "Patient.birthDate", "date"))
    carry_out_jobs(own)
    patient = own.new_patient(birthDate="1974-12-25")
    assert own.database.reader.execute("SELECT count(*) FROM index_date").get == 0
    assert ids(own.feed.get("Patient?born=ge1974-12")) == {patient}


def test_reindex_is_a_job_with_progress_and_goes_on_where_it_was_cut_short(
        own: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_parameters, "SLICE", 2)
    patients = {own.new_patient(contact=CONTACT) for _ in range(7)}
    own.feed.post("SearchParameter", parameter("eyes", "Patient.contact.gender"))
    node = app.build_node(own.settings, own.ring, own.database)
    running = runner(open_door(node), app.authority(node, own.smart))
    slices = 0
    slice_ = search_parameters._slice

    def stopping(*given: Any) -> Any:
        nonlocal slices
        slices += 1
        if slices == 3:
            raise asyncio.CancelledError
        return slice_(*given)

    monkeypatch.setattr(search_parameters, "_slice", stopping)
    with pytest.raises(asyncio.CancelledError):
        own.run(running.drain())
    assert own.feed.get("Patient?eyes=female").status_code == 400
    assert search_parameters.progress(own.database.reader) == "4 of 7 resources"
    patients.add(own.new_patient(contact=CONTACT))
    own.database.transact(lambda tx: tx.execute("UPDATE job SET lease_ms=0"))
    carry_out_jobs(own)
    assert ids(own.feed.get("Patient?eyes=female&_count=50")) == patients


def test_an_operators_pass_mends_the_index_while_others_write(own: Hospital) -> None:
    patient = own.new_patient(name=[{"family": "Meier"}])
    own.database.transact(lambda tx: tx.execute("DELETE FROM index_hash"))
    assert ids(own.feed.get("Patient?family=meier")) == set()
    asked = own.feed.post("$reindex", {"resourceType": "Parameters", "parameter": [
        {"name": "type", "valueCode": "Patient"}]})
    assert asked.status_code == 202, asked.text
    place = asked.headers["Content-Location"]
    assert own.feed.get(place).status_code == 202
    carry_out_jobs(own)
    assert own.feed.get(place).json()["parameter"] == [{"name": "reindexed", "valueInteger": 1}]
    assert ids(own.feed.get("Patient?family=meier")) == {patient}
    assert own.clinician("dr-2").get(place).status_code == 404, "a job is its owner's"
    assert own.feed.post("Patient/$reindex", None).status_code == 202
    assert outcome(own.feed.post("$reindex?type=Nothing", None)) == (400, "http.type")


def test_one_that_cannot_be_used_any_more_stops_nothing(own: Hospital) -> None:
    own.feed.post("SearchParameter", parameter("eyes", "Patient.contact.gender"))
    carry_out_jobs(own)
    own.database.transact(lambda tx: (tx.execute("UPDATE search_parameter SET body=zeroblob(64), made=made+1"),
                                      tx.execute("UPDATE setting SET value=value+9 WHERE name='search_parameters'"),
                                      tx.execute("UPDATE decision_seq SET value=value+1")))
    assert own.feed.get("Patient?eyes=female").status_code == 400
    assert own.feed.get("Patient?gender=female").status_code == 200


def test_every_worker_learns_of_it_and_no_write_that_races_it_is_missed(own: Hospital) -> None:
    """Invariant 4's other side: what may be seen and matches is found, whichever worker stored it, and when."""
    other = httpx.AsyncClient(transport=httpx.ASGITransport(app=app.build_app(own.settings)), base_url=own.base)
    headers = {"Authorization": f"Bearer {own.feed.token}", "Content-Type": "application/fhir+json"}

    async def write() -> httpx.Response:
        return await other.post("Patient", headers=headers, json={
            "resourceType": "Patient", "extension": eyes("green")})

    answers = own.together(
        *(write() for _ in range(15)),
        own.feed.send("POST", "SearchParameter", parameter("eyes", f"Patient.extension.where(url='{EYES}').value")),
        *(write() for _ in range(15)))
    assert {answer.status_code for answer in answers} == {201}
    assert own.run(other.get("Patient?eyes=green", headers=headers)).status_code == 400
    carry_out_jobs(own)
    for answer in (own.feed.get("Patient?eyes=green&_count=100"),
                   own.run(other.get("Patient?eyes=green&_count=100", headers=headers))):
        assert len(ids(answer)) == 30
    assert '"eyes"' in own.run(other.get("metadata")).text
    own.run(other.aclose())
