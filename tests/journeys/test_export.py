"""Bulk Data export: what a system may find leaves, decided when exported and again when fetched (invariants 4, 6, 8).

https://hl7.org/fhir/uv/bulkdata/export.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.fhir.resource import format_instant
from gateway.smart.approvals import Decider, close
from gateway.store import jobs
from tests.journeys.bulk import ASYNC, as_backend, backend, exported, kept, kicked_off, lines, manifest, work
from tests.journeys.hospital import Client, Hospital, observation, places


@pytest.fixture
def other(hospital: Hospital, tmp_path: Path) -> Client:
    """A foreign system: it sees what patients granted its Device."""
    return as_backend(hospital, backend(hospital, tmp_path))


def device(hospital: Hospital, client: Client) -> str:
    grant, _ = hospital.smart.tokens.lookup(hospital.database.reader, str(client.token), 0)
    return f"Device/{grant.client_id}"


def patient_with_pulse(hospital: Hospital, value: str = "1.10") -> tuple[str, str]:
    patient = hospital.new_patient()
    return patient, hospital.feed.post("Observation", observation(patient, value)).json()["id"]


def ids(found: dict[str, list[dict[str, Any]]], type_: str) -> set[str]:
    return {one["id"] for one in found.get(type_, ())}


def test_the_export_of_a_system_holds_the_patients_who_granted_it_and_nobody_else(
        hospital: Hospital, other: Client) -> None:
    granting, granted = patient_with_pulse(hospital)
    silent, hidden = patient_with_pulse(hospital)
    hospital.grant(granting, device(hospital, other))
    for url in ("$export?_type=Patient,Observation", "Patient/$export?_type=Patient,Observation"):
        found = exported(other, url)
        assert granting in ids(found, "Patient")
        assert granted in ids(found, "Observation")
        assert silent not in str(found)
        assert hidden not in str(found)


def test_lines_are_the_stored_bytes(hospital: Hospital, other: Client) -> None:
    patient, id_ = patient_with_pulse(hospital, "72.500")
    hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Observation", **ASYNC))
    work(hospital)
    [output] = manifest(other, place)["output"]
    stored = hospital.feed.get(f"Observation/{id_}").content
    assert stored in other.get(output["url"]).content.splitlines()
    assert b"72.500" in stored


def test_a_manifest_says_what_the_specification_wants(hospital: Hospital, other: Client) -> None:
    patient, _ = patient_with_pulse(hospital)
    hospital.grant(patient, device(hospital, other))
    answer = other.get("$export?_type=Patient&_outputFormat=ndjson", **ASYNC)
    place = kicked_off(answer)
    assert place.startswith(hospital.base)
    waiting = other.get(place)
    assert waiting.status_code == 202
    assert waiting.headers["x-progress"]
    assert int(waiting.headers["retry-after"]) >= 1
    assert waiting.content == b""
    work(hospital)
    done = other.get(place)
    assert done.headers["content-type"] == "application/json"
    assert done.headers["expires"].endswith("GMT")
    found = done.json()
    assert found["request"] == f"{hospital.base}/$export?_type=Patient&_outputFormat=ndjson"
    assert found["requiresAccessToken"] is True
    assert found["error"] == []
    assert found["transactionTime"] < format_instant(int(time.time() * 1000))
    assert all(one["url"].startswith(place) for one in found["output"])


def test_a_revocation_between_the_export_and_its_delivery_takes_the_lines(hospital: Hospital, other: Client) -> None:
    """Invariant 6: running exports and their files too."""
    staying, stays = patient_with_pulse(hospital)
    leaving, leaves = patient_with_pulse(hospital)
    hospital.grant(staying, device(hospital, other))
    consent = hospital.grant(leaving, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Observation", **ASYNC))
    work(hospital)
    [output] = manifest(other, place)["output"]
    before = output["count"]
    hospital.revoke(consent)
    [again] = manifest(other, place)["output"]
    assert again["count"] == before - 1
    found = {one["id"] for one in lines(other, output["url"])}
    assert stays in found
    assert leaves not in found
    refused = next(one for one in hospital.audited(leaving) if one.interaction == "export")
    assert refused.outcome == "4"


def test_a_file_left_without_lines_is_not_named(hospital: Hospital, other: Client) -> None:
    patient, _ = patient_with_pulse(hospital)
    consent = hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Patient,Observation", **ASYNC))
    work(hospital)
    assert manifest(other, place)["output"]
    hospital.revoke(consent)
    assert manifest(other, place)["output"] == []


def test_a_consent_revoked_while_the_export_waits_is_not_found_by_it(hospital: Hospital, other: Client) -> None:
    patient, _ = patient_with_pulse(hospital)
    consent = hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Patient", **ASYNC))
    hospital.revoke(consent)
    work(hospital)
    assert manifest(other, place)["output"] == []


def test_every_patient_delivered_reads_of_it_in_their_audit(hospital: Hospital, other: Client) -> None:
    """Invariant 8: one row for each patient at delivery, none for what was merely listed."""
    patient, id_ = patient_with_pulse(hospital)
    hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Observation", **ASYNC))
    work(hospital)
    [output] = manifest(other, place)["output"]
    assert not [one for one in hospital.audited(patient) if one.interaction == "export"]
    lines(other, output["url"])
    [row] = [one for one in hospital.audited(patient) if one.interaction == "export"]
    assert (row.action, row.outcome, row.basis, row.what) == ("R", "0", "grant", (f"Observation/{id_}/_history/1",))
    assert hospital.audit_is_whole()


def test_people_do_not_export(hospital: Hospital) -> None:
    patient, _ = patient_with_pulse(hospital)
    hospital.grant(patient, "Practitioner/dr-1")
    for client in (hospital.patient(patient), hospital.clinician()):
        for url in ("$export", "Patient/$export", "Group/any/$export"):
            assert client.get(url, **ASYNC).status_code == 403, url


def test_the_export_of_a_type_outside_the_scopes_is_refused_and_the_rest_goes(
        hospital: Hospital, tmp_path: Path) -> None:
    narrow = as_backend(hospital, backend(hospital, tmp_path, "system/Observation.rs system/Patient.r"))
    patient, id_ = patient_with_pulse(hospital)
    hospital.grant(patient, device(hospital, narrow))
    assert narrow.get("$export?_type=Condition", **ASYNC).status_code == 403
    assert narrow.get("$export?_type=Patient", **ASYNC).status_code == 403, "exporting finds and reads"
    found = exported(narrow, "$export")
    assert ids(found, "Observation") == {id_}
    assert set(found) == {"Observation"}


def test_a_granular_scope_bounds_an_export(hospital: Hospital, tmp_path: Path) -> None:
    narrow = as_backend(hospital, backend(hospital, tmp_path, "system/Observation.rs?code=http://loinc.org|8867-4"))
    patient, pulse = patient_with_pulse(hospital)
    hospital.feed.post("Observation", observation(patient, code="29463-7"))
    hospital.grant(patient, device(hospital, narrow))
    assert ids(exported(narrow, "$export?_type=Observation"), "Observation") == {pulse}


def test_a_job_is_its_owners_alone(hospital: Hospital, other: Client, tmp_path: Path) -> None:
    patient, _ = patient_with_pulse(hospital)
    hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Patient", **ASYNC))
    (tmp_path / "b").mkdir()
    stranger = as_backend(hospital, backend(hospital, tmp_path / "b"))
    work(hospital)
    [output] = manifest(other, place)["output"]
    nothing = stranger.get(f"{hospital.base}/_jobs/{'0' * 32}")
    for client in (stranger, hospital.feed, hospital.clinician(), hospital.patient(patient)):
        assert client.get(place).status_code == 404
        assert client.delete(place).status_code == 404
        assert client.get(output["url"]).status_code == 404
    assert stranger.get(place).json() == nothing.json()
    assert Client(hospital, None).get(output["url"]).status_code == 401
    assert lines(other, output["url"])


def test_another_token_of_the_same_client_fetches_and_a_revoked_one_does_not(
        hospital: Hospital, tmp_path: Path) -> None:
    client_id = backend(hospital, tmp_path)
    first, second = as_backend(hospital, client_id), as_backend(hospital, client_id)
    patient, _ = patient_with_pulse(hospital)
    hospital.grant(patient, f"Device/{client_id}")
    place = kicked_off(first.get("$export?_type=Patient", **ASYNC))
    work(hospital)
    [output] = manifest(second, place)["output"]
    hospital.database.transact(lambda tx: hospital.smart.tokens.revoke(tx, str(first.token), 1))
    assert first.get(output["url"]).status_code == 401
    assert [one["id"] for one in lines(second, output["url"])] == [patient]


def test_a_narrower_token_of_the_same_client_is_told_of_no_more_than_it_may_see(
        hospital: Hospital, tmp_path: Path) -> None:
    client_id = backend(hospital, tmp_path)
    whole, narrow = as_backend(hospital, client_id), as_backend(hospital, client_id, scope="system/Observation.rs")
    patient, _ = patient_with_pulse(hospital)
    hospital.grant(patient, f"Device/{client_id}")
    place = kicked_off(whole.get("$export?_type=Patient,Observation", **ASYNC))
    work(hospital)
    assert {one["type"] for one in manifest(whole, place)["output"]} == {"Patient", "Observation"}
    assert {one["type"] for one in manifest(narrow, place)["output"]} == {"Observation"}


@pytest.mark.parametrize("ended", ["token", "client"])
def test_a_token_revoked_or_a_client_closed_ends_the_export_that_waits(
        hospital: Hospital, tmp_path: Path, ended: str) -> None:
    client_id = backend(hospital, tmp_path)
    first, second = as_backend(hospital, client_id), as_backend(hospital, client_id)
    place = kicked_off(first.get("$export?_type=Patient", **ASYNC))
    if ended == "token":
        hospital.database.transact(lambda tx: hospital.smart.tokens.revoke(tx, str(first.token), 1))
    else:
        close(hospital.smart, client_id, Decider())
    work(hospital)
    answer = second.get(place)
    assert answer.status_code == (500 if ended == "token" else 401)
    assert answer.json()["resourceType"] == "OperationOutcome"
    row = jobs.find(hospital.database.reader, place.rsplit("/", 1)[1])
    assert row is not None
    assert row.state == "failed"


def test_a_token_that_runs_out_ends_no_export(hospital: Hospital, tmp_path: Path) -> None:
    """A backend's token lives 300 s at most; who fetches shows another."""
    client_id = backend(hospital, tmp_path)
    first = as_backend(hospital, client_id)
    place = kicked_off(first.get("$export?_type=Patient", **ASYNC))
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE token SET expires_ms=1 WHERE hash=?", (hospital.smart.tokens.hash(str(first.token)),)))
    assert first.get(place).status_code == 401
    work(hospital)
    assert manifest(as_backend(hospital, client_id), place)["output"] == []


def test_delete_cancels_and_removes(hospital: Hospital, other: Client) -> None:
    patient, _ = patient_with_pulse(hospital)
    hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Patient", **ASYNC))
    assert other.delete(place).status_code == 202
    assert other.get(place).status_code == 404
    assert work(hospital) == 0
    place = kicked_off(other.get("$export?_type=Patient", **ASYNC))
    work(hospital)
    [output] = manifest(other, place)["output"]
    assert other.delete(place).status_code == 202
    assert other.get(output["url"]).status_code == 404


def test_an_export_ends_at_its_expiry(hospital: Hospital, other: Client) -> None:
    patient, _ = patient_with_pulse(hospital)
    hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Patient", **ASYNC))
    work(hospital)
    hospital.database.transact(lambda tx: tx.execute("UPDATE job SET expires_ms=1"))
    assert other.get(place).status_code == 404
    hospital.database.transact(lambda tx: jobs.sweep(tx, 2))
    assert hospital.database.reader.execute("SELECT count(*) FROM job_part").get == 0


def test_since_gives_what_changed_and_names_what_was_deleted(hospital: Hospital, other: Client) -> None:
    patient, old = patient_with_pulse(hospital)
    gone = hospital.feed.post("Observation", observation(patient)).json()["id"]
    hospital.grant(patient, device(hospital, other))
    time.sleep(0.01)
    since = format_instant(int(time.time() * 1000))
    new = hospital.feed.post("Observation", observation(patient)).json()["id"]
    assert hospital.feed.delete(f"Observation/{gone}").status_code == 204
    place = kicked_off(other.get(f"Patient/$export?_type=Observation&_since={since}", **ASYNC))
    work(hospital)
    found = manifest(other, place)
    [output], [deleted] = found["output"], found["deleted"]
    assert [one["id"] for one in lines(other, output["url"])] == [new] != [old]
    [bundle] = lines(other, deleted["url"])
    assert bundle == {"resourceType": "Bundle", "type": "transaction",
                      "entry": [{"request": {"method": "DELETE", "url": f"Observation/{gone}"}}]}


def test_what_was_deleted_of_a_silent_patient_is_not_named(hospital: Hospital, other: Client) -> None:
    _, gone = patient_with_pulse(hospital)
    assert hospital.feed.delete(f"Observation/{gone}").status_code == 204
    place = kicked_off(other.get("$export?_type=Observation&_since=2020-01-01T00:00:00Z", **ASYNC))
    work(hospital)
    found = manifest(other, place)
    assert gone not in "".join(other.get(one["url"]).text for one in found["deleted"])


def test_filters_of_a_type_are_alternatives(hospital: Hospital, other: Client) -> None:
    patient, pulse = patient_with_pulse(hospital)
    weight = hospital.feed.post("Observation", observation(patient, code="29463-7")).json()["id"]
    hospital.feed.post("Observation", observation(patient, code="8302-2"))
    hospital.grant(patient, device(hospital, other))
    found = exported(other, "$export?_typeFilter=Observation%3Fcode%3D8867-4%26status%3Dfinal,"
                            "Observation%3Fcode%3D29463-7,Observation%3Fcode%3D8867-4")
    assert [one["id"] for one in found["Observation"]] == [pulse, weight]
    assert set(found) == {"Observation"}


def test_elements_cut_the_lines_and_say_so(hospital: Hospital, other: Client) -> None:
    patient = hospital.new_patient(gender="female", name=[{"family": "Short"}])
    hospital.feed.post("Observation", observation(patient, "1.10"))
    hospital.grant(patient, device(hospital, other))
    found = exported(other, "$export?_type=Patient,Observation&_elements=Patient.gender,value[x]")
    [person] = [one for one in found["Patient"] if one["id"] == patient]
    assert set(person) == {"resourceType", "id", "meta", "gender"}
    assert person["meta"]["tag"][-1]["code"] == "SUBSETTED"
    assert "valueQuantity" in found["Observation"][0]
    assert "effectiveDateTime" not in found["Observation"][0]
    for wrong in ("Patient.nonsense", "nonsense", "Pateint.name", "Patient.name.family", "."):
        answer = other.get(f"$export?_type=Patient&_elements={wrong}", **ASYNC)
        assert (answer.status_code, places(answer)) == (400, ["http._elements"]), wrong


def test_a_group_export_holds_its_members_who_granted(hospital: Hospital, other: Client) -> None:
    member, pulse = patient_with_pulse(hospital)
    silent, _ = patient_with_pulse(hospital)
    outside, outside_pulse = patient_with_pulse(hospital)
    past, _ = patient_with_pulse(hospital)
    for one in (member, outside, past):
        hospital.grant(one, device(hospital, other))
    group = hospital.new({"resourceType": "Group", "type": "person", "actual": True, "member": [
        {"entity": {"reference": f"Patient/{member}"}}, {"entity": {"reference": f"Patient/{silent}"}},
        {"entity": {"reference": f"Patient/{past}"}, "inactive": True}]})
    answer = other.get(f"Group/{group}/$export?_type=Patient,Observation", **ASYNC)
    if answer.status_code == 404:  # every member is asked before the Group itself is shown
        hospital.grant(silent, device(hospital, other), types=frozenset({"Group"}))
        hospital.grant(past, device(hospital, other), types=frozenset({"Group"}))
    found = exported(other, f"Group/{group}/$export?_type=Patient,Observation")
    assert ids(found, "Patient") == {member}
    assert ids(found, "Observation") == {pulse}
    body = {"resourceType": "Parameters", "parameter": [
        {"name": "_type", "valueString": "Patient"},
        {"name": "patient", "valueReference": {"reference": f"Patient/{outside}"}}]}
    place = kicked_off(other.post(f"Group/{group}/$export", body, **ASYNC))
    work(hospital)
    assert manifest(other, place)["output"] == [], "who is asked for must be a member"
    place = kicked_off(other.post("Patient/$export", body, **ASYNC))
    work(hospital)
    [output] = manifest(other, place)["output"]
    assert [one["id"] for one in lines(other, output["url"])] == [outside]
    assert outside_pulse


def test_a_group_that_may_not_be_read_looks_like_none(hospital: Hospital, other: Client) -> None:
    patient = hospital.new_patient()
    group = hospital.new({"resourceType": "Group", "type": "person", "actual": True,
                          "member": [{"entity": {"reference": f"Patient/{patient}"}}]})
    hidden = other.get(f"Group/{group}/$export", **ASYNC)
    absent = other.get("Group/nobody/$export", **ASYNC)
    assert (hidden.status_code, absent.status_code) == (404, 404)
    assert hidden.text.replace(group, "nobody") == absent.text


def test_long_exports_make_several_files_and_go_on_where_they_stopped(
        hospital: Hospital, other: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.records.export._SLICE", 3)
    monkeypatch.setattr("gateway.records.export.FILE_LINES", 4)
    monkeypatch.setattr("gateway.records.export._CHUNK", 2)
    patient = hospital.new_patient()
    written = {hospital.feed.post("Observation", observation(patient)).json()["id"] for _ in range(10)}
    hospital.grant(patient, device(hospital, other))
    found = exported(other, "$export?_type=Observation")
    assert len(found["Observation"]) == len(ids(found, "Observation"))
    assert written <= ids(found, "Observation")
    place = kicked_off(other.get("$export?_type=Observation", **ASYNC))
    row = jobs.find(hospital.database.reader, place.rsplit("/", 1)[1])
    assert row is not None
    halfway = Interrupted(hospital)
    halfway.work()
    assert 0 < sum(part.count for part in jobs.parts(hospital.database.reader, row.pk)) < len(found["Observation"])
    hospital.database.transact(lambda tx: tx.execute("UPDATE job SET lease_ms=0 WHERE pk=?", (row.pk,)))
    work(hospital)
    again = [one for output in manifest(other, place)["output"] for one in lines(other, output["url"])]
    assert sorted(one["id"] for one in again) == sorted(ids(found, "Observation"))


class Interrupted:
    """A runner that dies at its second checkpoint."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital

    def work(self) -> None:
        from gateway.records.jobs import Task

        steps = 0
        original = Task.advance

        async def dying(task: Task, *arguments: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 2:
                raise jobs.LeaseLost
            await original(task, *arguments)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Task, "advance", dying)
            work(self.hospital)


@pytest.mark.parametrize(("url", "expression"), [
    ("$export?_outputFormat=csv", "http._outputFormat"), ("$export?_since=yesterday", "http._since"),
    ("$export?_type=Pateint", "http._type"), ("$export?_typeFilter=Observation", "http._typeFilter"),
    ("$export?_typeFilter=Observation%3F_sort%3Ddate", "http._typeFilter"),
    ("$export?_type=Patient&_typeFilter=Observation%3Fcode%3D1", "http._typeFilter"),
    ("$export?_typeFilter=Observation%3Fnonsense%3D1", "http.nonsense"),
    ("$export?includeAssociatedData=LatestProvenanceResources", "http.includeAssociatedData"),
    ("$export?patient=Patient/1", "http.patient"), ("$export?_type=Patient&_type=", "")])
def test_what_an_export_does_not_do_is_refused_by_name(other: Client, url: str, expression: str) -> None:
    answer = other.get(url, **ASYNC)
    assert answer.status_code == 400, answer.text
    if expression:
        assert places(answer) == [expression]


def test_an_unknown_parameter_is_told_in_the_error_file_where_handling_is_lenient(other: Client) -> None:
    place = kicked_off(other.get("$export?_type=Patient&_until=2020", Prefer="respond-async, handling=lenient"))
    work(other.hospital)
    [error] = manifest(other, place)["error"]
    assert error["type"] == "OperationOutcome"
    [outcome] = lines(other, error["url"])
    assert outcome["issue"][0]["severity"] == "warning"


def test_an_export_is_asked_for_in_the_background(other: Client) -> None:
    assert other.get("$export").status_code == 400


def test_one_owner_has_so_many_jobs_at_once(other: Client) -> None:
    answers = [other.get("$export?_type=Patient", **ASYNC) for _ in range(17)]
    assert [one.status_code for one in answers[:16]] == [202] * 16
    assert answers[16].status_code == 429
    assert answers[16].headers["retry-after"]
    work(other.hospital)


def test_the_disk_holds_no_line_of_an_export(hospital_with: Callable[..., Hospital], tmp_path: Path) -> None:
    """Invariant 1, and 9: a file is a list of versions; their blocks stay under their patients' keys."""
    hospital = hospital_with()
    other = as_backend(hospital, backend(hospital, tmp_path))
    patient = hospital.new_patient(name=[{"family": "Zwickelhuber"}])
    hospital.grant(patient, device(hospital, other))
    place = kicked_off(other.get("$export?_type=Patient&_typeFilter=Patient%3Fname%3DZwickelhuber", **ASYNC))
    work(hospital)
    assert manifest(other, place)["output"]
    assert b"Zwickelhuber" not in kept(hospital)
    ring = hospital.ring
    ring.destroy(patient)
    hospital.node.ring.refresh()
    [output] = manifest(other, place)["output"]
    assert "Zwickelhuber" not in json.dumps(lines(other, output["url"]))
