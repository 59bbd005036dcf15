"""``Prefer: respond-async``: the same answers as at once, by a job, to the one who asked and while they may.

https://hl7.org/fhir/R4/async.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.store import jobs
from tests.journeys.bulk import ASYNC, as_backend, backend, kept, kicked_off, work
from tests.journeys.hospital import Client, Hospital, observation


def outcome(client: Client, place: str) -> dict[str, Any]:
    """The one entry of the answer."""
    answer = client.get(place)
    assert answer.status_code == 200, answer.text
    bundle = answer.json()
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "batch-response")
    [entry] = bundle["entry"]
    found: dict[str, Any] = entry
    return found


def test_a_search_is_answered_as_it_would_be_at_once(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient, "1.10")).json()["id"]
    for method, url, body, headers in (
            ("GET", f"Observation?patient={patient}", None, ASYNC),
            ("POST", "Observation/_search", f"patient={patient}".encode(),
             {**ASYNC, "Content_Type": "application/x-www-form-urlencoded"})):
        answer = hospital.feed.request(method, url, body, **headers)
        place = kicked_off(answer)
        assert answer.headers["preference-applied"] == "respond-async"
        assert hospital.feed.get(place).status_code == 202
        work(hospital)
        entry = outcome(hospital.feed, place)
        assert entry["response"]["status"].startswith("200")
        assert [one["resource"]["id"] for one in entry["resource"]["entry"]] == [id_]
        assert b'"value":1.10' in hospital.feed.get(place).content


def test_a_transaction_is_carried_out_once_and_told_entry_by_entry(hospital: Hospital) -> None:
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"fullUrl": "urn:uuid:5b3cbb9e-6f52-4bd5-8f38-5d3d1b2c0001", "resource": {"resourceType": "Patient"},
         "request": {"method": "POST", "url": "Patient"}}]}
    before = hospital.stored()[0]
    place = kicked_off(hospital.feed.post("", bundle, **ASYNC))
    assert hospital.stored()[0] == before
    work(hospital)
    assert hospital.stored()[0] == before + 1
    entry = outcome(hospital.feed, place)
    [made] = entry["resource"]["entry"]
    assert made["response"]["status"].startswith("201")
    assert hospital.feed.get(made["response"]["location"]).status_code == 200


def test_an_error_is_the_outcome_of_the_entry(hospital: Hospital) -> None:
    place = kicked_off(hospital.feed.get("Observation?nonsense=1", **ASYNC))
    work(hospital)
    entry = outcome(hospital.feed, place)
    assert entry["response"]["status"].startswith("400")
    assert entry["response"]["outcome"]["resourceType"] == "OperationOutcome"
    assert "resource" not in entry


def test_what_cannot_wait_is_answered_at_once(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    assert hospital.feed.get(f"Patient/{patient}", **ASYNC).status_code == 200
    assert hospital.feed.post("Patient", {"resourceType": "Patient"}, **ASYNC).status_code == 201


def test_nothing_is_read_that_is_not_granted_when_it_runs(hospital: Hospital) -> None:
    """Invariant 6: decided when it is carried out, not when it was asked for."""
    patient = hospital.new_patient()
    hospital.feed.post("Observation", observation(patient))
    consent = hospital.grant(patient, "Practitioner/dr-async")
    clinician = hospital.clinician("dr-async")
    place = kicked_off(clinician.get(f"Observation?patient={patient}", **ASYNC))
    hospital.revoke(consent)
    work(hospital)
    assert "entry" not in outcome(clinician, place)["resource"]


def test_an_answer_decided_before_a_revocation_is_made_again(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    hospital.feed.post("Observation", observation(patient))
    consent = hospital.grant(patient, "Practitioner/dr-late")
    clinician = hospital.clinician("dr-late")
    place = kicked_off(clinician.get(f"Observation?patient={patient}", **ASYNC))
    work(hospital)
    hospital.revoke(consent)
    assert clinician.get(place).status_code == 202
    work(hospital)
    assert "entry" not in outcome(clinician, place)["resource"]


def test_the_answer_of_a_write_leaves_without_resources_after_a_revocation(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    consent = hospital.grant(patient, "Practitioner/dr-batch")
    clinician = hospital.clinician("dr-batch")
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [
        {"request": {"method": "GET", "url": f"Observation/{id_}"}}]}
    place = kicked_off(clinician.post("", batch, **ASYNC))
    work(hospital)
    hospital.revoke(consent)
    answer = clinician.get(place)
    assert answer.status_code == 200
    assert b"valueQuantity" not in answer.content
    [told] = answer.json()["entry"][0]["resource"]["entry"]
    assert told["response"]["status"].startswith("200")


@pytest.mark.parametrize("ended", ["revoked", "expired"])
def test_a_token_that_ended_is_done_nothing_for(hospital: Hospital, ended: str) -> None:
    first, second = hospital.clinician("dr-gone"), hospital.clinician("dr-gone")
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"resource": {"resourceType": "Patient"}, "request": {"method": "POST", "url": "Patient"}}]}
    writes = kicked_off(hospital.feed.post("", bundle, **ASYNC))
    place = kicked_off(first.get("Practitioner", **ASYNC))
    tokens = hospital.smart.tokens
    before = hospital.stored()[0]
    feed = str(hospital.feed.token)
    try:
        for secret in (str(first.token), feed):
            hospital.database.transact(lambda tx, secret=secret: (  # type: ignore[misc]
                tokens.revoke(tx, secret, 1) if ended == "revoked"
                else tx.execute("UPDATE token SET expires_ms=1 WHERE hash=?", (tokens.hash(secret),))))
        work(hospital)
    finally:
        hospital.feed = hospital.client()
    assert hospital.stored()[0] == before
    assert first.get(place).status_code == 401
    answer = second.get(place)
    assert answer.status_code == 500
    assert "entry" not in answer.json()
    assert hospital.feed.get(writes).status_code == 500


def test_an_answer_is_for_the_very_grant_it_was_made_for(hospital: Hospital, tmp_path: Path) -> None:
    """Another token of the same client may see less."""
    client_id = backend(hospital, tmp_path)
    wide, narrow = as_backend(hospital, client_id), as_backend(hospital, client_id, scope="system/Patient.rs")
    place = kicked_off(wide.get("Observation", **ASYNC))
    assert kicked_off(wide.get("Observation", **ASYNC)) != place
    work(hospital)
    assert wide.get(place).status_code == 200
    assert narrow.get(place).status_code == 404
    assert hospital.feed.get(place).status_code == 404


def test_a_write_whose_runner_died_is_not_done_again(hospital: Hospital) -> None:
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"resource": {"resourceType": "Patient"}, "request": {"method": "POST", "url": "Patient"}}]}
    place = kicked_off(hospital.feed.post("", bundle, **ASYNC))
    hospital.database.transact(lambda tx: jobs.claim(tx, "dead", 0))
    hospital.database.transact(lambda tx: tx.execute("UPDATE job SET lease_ms=0 WHERE state='running'"))
    before = hospital.stored()[0]
    work(hospital)
    assert hospital.stored()[0] == before
    answer = hospital.feed.get(place)
    assert answer.status_code == 500
    assert answer.json()["issue"][0]["code"] == "incomplete"


def test_what_a_job_keeps_is_sealed(hospital: Hospital) -> None:
    """Invariant 1: neither the request nor the answer can be read in the rows."""
    hospital.new_patient(name=[{"family": "Quittenbaum"}])
    kicked_off(hospital.feed.get("Patient?family=Quittenbaum", **ASYNC))
    work(hospital)
    assert b"Quittenbaum" not in kept(hospital)
