"""Every door leaves its audit rows, chained whole, and they are read as AuditEvent. Invariant 8."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.audit import first_broken_link
from gateway.smart.accounts import add_user
from tests.journeys.hospital import Client, Hospital, next_link, observation


@pytest.fixture
def doctor(hospital: Hospital) -> Client:
    return hospital.clinician("audit-1")


def newest(hospital: Hospital, patient: str | None, since: int) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """(interaction, outcome, action, what) of the rows since a count of them, oldest first."""
    rows = hospital.audited(patient, limit=10**6)
    return [(one.interaction, one.outcome, one.action, one.what)
            for one in reversed(rows[:len(rows) - since])]


def test_each_interaction_leaves_one_row_with_the_patient(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    since = len(hospital.audited(patient))
    id_ = hospital.feed.post("Observation", observation(patient, code="audited")).json()["id"]
    place = f"Observation/{id_}"
    hospital.feed.get(place)
    hospital.feed.get(f"{place}/_history/1")
    hospital.feed.put(place, observation(patient, "2", code="audited", id=id_))
    hospital.feed.get(f"{place}/_history")
    hospital.feed.get("Observation?code=audited")
    hospital.feed.delete(place)
    hospital.feed.get(place)
    assert newest(hospital, patient, since) == [
        ("create", "0", "C", (f"{place}/_history/1",)), ("read", "0", "R", (f"{place}/_history/1",)),
        ("vread", "0", "R", (f"{place}/_history/1",)), ("update", "0", "U", (f"{place}/_history/2",)),
        ("history-instance", "0", "R", (f"{place}/_history/2", f"{place}/_history/1")),
        ("search-type", "0", "E", (f"{place}/_history/2",)), ("delete", "0", "D", (f"{place}/_history/3",)),
        ("read", "0", "R", (f"{place}/_history/3",))]
    assert hospital.audit_is_whole()


def test_a_row_says_who_asked_on_what_basis_and_for_what(hospital: Hospital, doctor: Client) -> None:
    patient = hospital.new_patient()
    consent = hospital.grant(patient, "Practitioner/audit-1")
    doctor.get(f"Patient/{patient}")
    entry = hospital.audited(patient)[0]
    assert (entry.user, entry.role, entry.purpose, entry.basis) == ("Practitioner/audit-1", "clinician", "TREAT",
        "grant")
    assert entry.provisions == (f"{consent}/0",)
    assert entry.operator, "the token was minted on the command line"
    doctor.get(f"Patient?_id={patient}&_summary=false")
    assert hospital.audited(patient)[0].query == f"_id={patient}&_summary=false"


@pytest.mark.parametrize(("method", "url", "interaction"), [
    ("GET", "Observation/{id}", "read"), ("GET", "Observation/{id}/_history/1", "vread"),
    ("GET", "Observation/{id}/_history", "history-instance"), ("PUT", "Observation/{id}", "update"),
    ("POST", "Observation", "create"), ("GET", "Observation?patient={patient}", "search-type"),
    ("GET", "Observation?_id={id}", "search-type")])
def test_a_refusal_stands_in_the_patients_own_audit(hospital: Hospital, doctor: Client, method: str, url: str,
                                                   interaction: str) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    own = hospital.patient(patient)
    since = len(hospital.audited(patient))
    body = {"PUT": observation(patient, "3", id=id_), "POST": observation(patient)}.get(method)
    answer = doctor.request(method, url.format(id=id_, patient=patient), body)
    assert answer.status_code in (200, 404, 422)
    [entry] = hospital.audited(patient)[:-since]
    assert (entry.interaction, entry.outcome, entry.user) == (interaction, "4", "Practitioner/audit-1")
    assert entry.reason
    event = own.get(f"AuditEvent?patient={patient}").json()["entry"][0]["resource"]
    assert event["outcome"] == "4"
    [asking] = [agent for agent in event["agent"] if agent["requestor"]]
    assert asking["who"] == {"reference": "Practitioner/audit-1"}


def test_a_deletion_that_was_not_permitted_is_audited_though_it_answers_as_to_absent(hospital: Hospital) -> None:
    patient, stranger = hospital.new_patient(), hospital.patient(hospital.new_patient())
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    assert stranger.delete(f"Observation/{id_}").status_code == 204
    assert (hospital.audited(patient)[0].interaction, hospital.audited(patient)[0].outcome) == ("delete", "4")
    assert hospital.feed.get(f"Observation/{id_}").status_code == 200


def test_a_transaction_leaves_a_row_for_every_entry_and_a_refused_one_its_refusal(hospital: Hospital,
                                                                                 doctor: Client) -> None:
    patient = hospital.new_patient()
    since = len(hospital.audited(patient))
    entries = [{"resource": json.loads(observation(patient)), "request": {"method": "POST", "url": "Observation"}}] * 3
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    hospital.feed.post("", bundle)
    assert [row[:2] for row in newest(hospital, patient, since)] == [("create", "0")] * 3
    doctor.post("", bundle)
    assert hospital.audited(patient)[0].outcome == "4"
    assert hospital.audit_is_whole()


def test_a_resource_of_two_patients_is_audited_for_both(hospital: Hospital) -> None:
    pair = [hospital.new_patient(), hospital.new_patient()]
    id_ = hospital.new({"resourceType": "Appointment", "status": "proposed", "participant": [
        {"actor": {"reference": f"Patient/{one}"}, "status": "accepted"} for one in pair]})
    hospital.feed.get(f"Appointment/{id_}")
    for patient in pair:
        assert hospital.audited(patient)[0].what == (f"Appointment/{id_}/_history/1",)


def test_a_patient_reads_their_own_audit_and_nobody_elses(hospital: Hospital, doctor: Client) -> None:
    patient, other = hospital.new_patient(), hospital.new_patient()
    doctor.get(f"Patient/{patient}")
    own = hospital.patient(patient)
    bundle = own.get(f"AuditEvent?patient={patient}").json()
    assert bundle["total"] >= 2
    events = [entry["resource"] for entry in bundle["entry"]]
    assert all(f"Patient/{patient}" in json.dumps(event) for event in events)
    assert own.get(f"AuditEvent/{events[0]['id']}").json() == events[0]
    stranger = hospital.patient(other)
    assert stranger.get(f"AuditEvent?patient={patient}").json()["total"] == 0
    there, nowhere = stranger.get(f"AuditEvent/{events[0]['id']}"), stranger.get("AuditEvent/log-999999999")
    assert there.status_code == nowhere.status_code == 404
    assert there.content.replace(events[0]["id"].encode(), b"log-999999999") == nowhere.content
    assert doctor.get(f"AuditEvent/{events[0]['id']}").status_code == 404


def test_a_refused_look_at_the_audit_stands_in_it_once(hospital: Hospital, doctor: Client) -> None:
    """Invariant 8: with whom the row is about, or with the custodian where it is about nobody or is not there."""
    patient = hospital.new_patient()
    own = hospital.patient(patient)
    id_ = own.ids(f"AuditEvent?patient={patient}")[0]
    narrow = hospital.clinician("audit-1", scope="user/Observation.rs")
    own.get(f"AuditEvent/{id_}")  # the spool is brought in, and what is allowed stands with the custodian
    since, whole = len(hospital.audited(patient)), len(hospital.audited(None, limit=10**6))
    for client, version, status in ((doctor, "", 404), (doctor, "/_history/1", 404), (narrow, "", 403)):
        assert client.get(f"AuditEvent/{id_}{version}").status_code == status
    what = (f"AuditEvent/{id_}",)
    assert newest(hospital, patient, since) == [("read", "4", "R", what), ("vread", "4", "R", what),
                                                ("read", "4", "R", what)]
    assert len(hospital.audited(None, limit=10**6)) == whole + 3
    for place, status in (("log-999999999", 404), (f"{id_}/_history/2", 404)):
        assert doctor.get(f"AuditEvent/{place}").status_code == status
    assert [row[:2] for row in newest(hospital, None, whole + 3)] == [("read", "4"), ("vread", "4")]
    seen = own.get(f"AuditEvent?patient={patient}").json()["entry"][0]["resource"]
    assert seen["outcome"] == "4"
    assert hospital.audit_is_whole()


def test_audit_events_are_valid_r4(hospital: Hospital, doctor: Client) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/audit-1")
    doctor.get(f"Patient?_id={patient}")
    doctor.get(f"Patient/{patient}")
    hospital.clinician("audit-2").get(f"Patient/{patient}")
    for entry in hospital.patient(patient).get(f"AuditEvent?patient={patient}").json()["entry"]:
        hospital.node.validator.require(entry["resource"], expected_type="AuditEvent")


def test_audit_searches_page_newest_first_and_narrow(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    own = hospital.patient(patient)
    for _ in range(5):
        hospital.feed.get(f"Patient/{patient}")
    found: list[dict[str, Any]] = []
    url: str | None = f"AuditEvent?patient={patient}&_count=2"
    while url is not None:
        answer = own.get(url)
        assert answer.status_code == 200, answer.text
        found += [entry["resource"] for entry in answer.json().get("entry", ())]
        url = next_link(answer)
    numbers = [int(event["id"].removeprefix("log-")) for event in found]
    assert numbers == sorted(set(numbers), reverse=True)
    assert len(numbers) == 7, "one creation, five reads, and the token minted for the patient"
    assert own.get(f"AuditEvent?patient={patient}&_summary=count").json()["total"] == 7
    assert own.get(f"AuditEvent?patient={patient}&action=C").json()["total"] == 1
    assert own.get(f"AuditEvent?patient={patient}&shoe=1").status_code == 400
    assert own.get(f"AuditEvent?patient={patient}&_sort=date").status_code == 400, "an order not kept is not pretended"


def test_nobody_writes_or_changes_the_audit(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    event = hospital.patient(patient).get(f"AuditEvent?patient={patient}").json()["entry"][0]["resource"]
    before = hospital.stored()
    assert hospital.feed.put(f"AuditEvent/{event['id']}", event).status_code in (403, 404, 405)
    assert hospital.feed.delete(f"AuditEvent/{event['id']}").status_code in (204, 403, 404, 405)
    assert hospital.patient(patient).delete(f"AuditEvent/{event['id']}").status_code == 403
    assert hospital.stored() == before
    assert hospital.patient(patient).get(f"AuditEvent/{event['id']}").json() == event


def test_an_officer_searches_every_patients_audit(hospital: Hospital) -> None:
    add_user(hospital.smart, fhir_user="Practitioner/audit-officer", role="privacy-officer", name="Officer")
    officer = hospital.client(user="Practitioner/audit-officer", purpose="HOPERAT")
    patient = hospital.new_patient()
    assert officer.get(f"AuditEvent?patient={patient}").json()["total"] == 1
    assert officer.get("AuditEvent?_count=1").status_code == 200


def test_count_zero_asks_for_the_total_alone(hospital: Hospital) -> None:
    """https://hl7.org/fhir/R4/search.html#count"""
    patient = hospital.new_patient()
    hospital.feed.get(f"Patient/{patient}")
    own = hospital.patient(patient)
    answer = own.get(f"AuditEvent?patient={patient}&_count=0")
    assert answer.status_code == 200, answer.text
    assert answer.json()["total"] == own.total(f"AuditEvent?patient={patient}&_summary=count") == 3
    assert "entry" not in answer.json()
    assert next_link(answer) is None


def test_an_audit_event_has_one_version(hospital: Hospital) -> None:
    """Invariant 3: the version asked, or an error."""
    patient = hospital.new_patient()
    own = hospital.patient(patient)
    id_ = own.ids(f"AuditEvent?patient={patient}")[0]
    assert own.get(f"AuditEvent/{id_}/_history/1").status_code == 200
    for other in ("2", "0", "x"):
        assert own.get(f"AuditEvent/{id_}/_history/{other}").status_code == 404


def test_outside_the_scopes_an_audit_event_that_is_there_answers_as_one_that_is_not(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    id_ = hospital.patient(patient).ids(f"AuditEvent?patient={patient}")[0]
    narrow = hospital.patient(patient, scope="patient/Observation.rs")
    there, absent = narrow.get(f"AuditEvent/{id_}"), narrow.get("AuditEvent/log-999999999")
    assert there.status_code == absent.status_code == 403
    assert there.content == absent.content


def test_who_may_see_no_audit_opens_no_row_of_it(hospital: Hospital, doctor: Client,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one search of anyone's keeps a worker opening the whole log."""
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/audit-1")
    opened: list[Any] = []
    monkeypatch.setattr("gateway.audit.Audit.open", lambda _, row: opened.append(row))
    for client in (doctor, hospital.feed, hospital.clinician("audit-3", patient=patient, purpose="BTG", reason="r")):
        for query in ("", f"?patient={patient}", "?_summary=count"):
            answer = client.get(f"AuditEvent{query}")
            assert answer.status_code == 200, answer.text
            assert answer.json()["total"] == len(answer.json().get("entry", ()))
    assert not opened


def test_a_search_opens_so_many_rows_a_page_and_refuses_to_count_more(hospital: Hospital,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.records.audit_events._SCAN_LIMIT", 2)
    monkeypatch.setattr("gateway.records.audit_events._AT_ONCE", 1)
    patient = hospital.new_patient()
    for _ in range(3):
        hospital.feed.get(f"Patient/{patient}")
    own = hospital.patient(patient)
    count = own.get(f"AuditEvent?patient={patient}&_summary=count")
    assert count.status_code == 400
    assert count.json()["issue"][0]["code"] == "too-costly"
    first = own.get(f"AuditEvent?patient={patient}&action=C")
    assert first.status_code == 200, first.text
    assert "entry" not in first.json()
    assert next_link(first) is not None
    assert len(own.all_ids(f"AuditEvent?patient={patient}&action=C")) == 1
    assert len(own.all_ids(f"AuditEvent?patient={patient}")) == 5


def test_an_altered_or_missing_row_breaks_the_chain(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with()
    for _ in range(4):
        hospital.new_patient()
    assert hospital.audit_is_whole()
    for statement, broken in (("UPDATE audit SET time_ms=time_ms+1 WHERE seq=2", 2),
    ("DELETE FROM audit WHERE seq=3", 4)):
        connection = hospital.database.begin()
        connection.execute(statement)
        assert first_broken_link(connection) == broken
        hospital.database.end(commit=False)
    assert hospital.audit_is_whole()


def test_the_chain_is_whole_after_everything_above(hospital: Hospital) -> None:
    assert hospital.audit_is_whole()


def test_many_at_once_leave_one_whole_chain(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    since = len(hospital.audited(patient))
    answers = hospital.together(*(hospital.feed.send("GET", f"Patient/{patient}") for _ in range(20)),
                                *(hospital.feed.send("POST", "Observation", observation(patient)) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200, 201}
    assert len(hospital.audited(patient)) - since == 40
    assert hospital.audit_is_whole()


def test_a_record_moved_to_another_patient_is_audited_for_both(hospital: Hospital) -> None:
    wrong, right = hospital.new_patient(), hospital.new_patient()
    add_user(hospital.smart, fhir_user="Practitioner/mover", role="records-office", name="Office")
    office = hospital.client(user="Practitioner/mover", purpose="HOPERAT")
    task = {"resourceType": "Task", "status": "draft", "intent": "order", "for": {"reference": f"Patient/{wrong}"}}
    id_ = hospital.new(task)
    moved = office.put(f"Task/{id_}", {**task, "id": id_, "for": {"reference": f"Patient/{right}"}})
    assert moved.status_code == 200, moved.text
    for patient in (wrong, right):
        entry = hospital.audited(patient)[0]
        assert (entry.interaction, entry.outcome, entry.what) == ("update", "0", (f"Task/{id_}/_history/2",))


def test_a_refused_update_is_told_to_whom_it_would_have_moved_the_record(hospital: Hospital, doctor: Client) -> None:
    granting, other = hospital.new_patient(), hospital.new_patient()
    hospital.grant(granting, "Practitioner/audit-1")
    id_ = hospital.feed.post("Observation", observation(granting)).json()["id"]
    assert doctor.put(f"Observation/{id_}", observation(other, id=id_)).status_code == 403
    for patient in (granting, other):
        assert (hospital.audited(patient)[0].interaction, hospital.audited(patient)[0].outcome) == ("update", "4")


def test_an_absent_place_is_audited_as_one_that_is_not_permitted(hospital: Hospital) -> None:
    """So that the durable commit of the row is no clock that tells them apart."""
    patient = hospital.new_patient()
    hidden = hospital.feed.post("Observation", observation(patient)).json()["id"]
    sending = hospital.clinician("audit-1", scope="user/*.cruds")
    for id_ in (hidden, "absent-1"):
        before = len(hospital.audited(limit=10**6))
        sending.put(f"Observation/{id_}", observation(patient, id=id_), If_Match='W/"1"')
        assert len(hospital.audited(limit=10**6)) == before + 1, id_


def test_a_condition_that_finds_something_is_audited_as_the_search_it_is(hospital: Hospital, doctor: Client) -> None:
    patient = hospital.new_patient(identifier=[{"system": "urn:asked", "value": "7"}])
    hospital.grant(patient, "Practitioner/audit-1")
    body = {"resourceType": "Patient"}
    condition = "identifier=urn:asked|7"
    observed = json.loads(observation(patient))

    def asked() -> int:
        return sum(one.interaction == "search-type" for one in hospital.audited(patient))

    def bundle(kind: str, *entries: dict[str, Any]) -> None:
        answer = doctor.post("", {"resourceType": "Bundle", "type": kind, "entry": list(entries)})
        assert answer.status_code == 200, answer.text

    unless = {"resource": body, "request": {"method": "POST", "url": "Patient", "ifNoneExist": condition}}
    assert asked() == 0
    answer = doctor.post("Patient", body, If_None_Exist=condition)
    assert answer.status_code == 200, answer.text
    assert asked() == 1
    bundle("batch", unless)
    assert asked() == 2
    bundle("transaction", unless)
    assert asked() == 3
    bundle("transaction", {"resource": {**observed, "subject": {"reference": f"Patient?{condition}"}},
                           "request": {"method": "POST", "url": "Observation"}})
    assert asked() == 4
    assert hospital.audited(patient)[0].user == "Practitioner/audit-1"


def test_a_refusal_about_a_patient_nobody_knows_leaves_no_patient_behind(hospital: Hospital, doctor: Client) -> None:
    def patients() -> Any:
        return hospital.database.reader.execute("SELECT count(*) FROM patient").get

    before = patients(), len(hospital.audited(limit=10**6))
    answer = doctor.post("Observation", observation("nobody-audited"))
    assert answer.status_code == 422
    assert (patients(), len(hospital.audited(limit=10**6))) == (before[0], before[1] + 1)
    assert hospital.audited()[0].what == ("Observation",)


def test_a_condition_alone_is_no_way_to_search_without_the_scope_to_create(hospital: Hospital) -> None:
    patient = hospital.new_patient(identifier=[{"system": "urn:asked", "value": "8"}])
    hospital.grant(patient, "Practitioner/audit-1")
    searching = hospital.clinician("audit-1", scope="user/Patient.rs")
    answers = [searching.post("Patient", {"resourceType": "Patient"}, If_None_Exist=f"identifier=urn:asked|{value}")
               for value in ("8", "none")]
    assert [answer.status_code for answer in answers] == [403, 403]


def test_a_long_query_is_told_by_its_beginning_and_its_hash(hospital: Hospital) -> None:
    patient = hospital.new_patient(identifier=[{"system": "urn:long", "value": "told"}])
    form = f"identifier=urn:long|told,urn:long|{'x' * 300_000}"
    answer = hospital.feed.post("Patient/_search", form.encode(), Content_Type="application/x-www-form-urlencoded")
    assert answer.status_code == 200, answer.text[:300]
    assert hospital.audited(patient)[0].query == "identifier=%282+not+shown%29", "the others' are not this patient's"
    told = next(one.query for one in hospital.audited() if (one.query or "").startswith("identifier=urn"))
    assert len(told) < 5_000
    assert "sha256" in told
