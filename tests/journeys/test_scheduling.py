"""Appointments with their Slots over HTTP. https://hl7.org/fhir/R4/appointment.html"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.journeys.hospital import Client, Hospital, places
from tests.running import REPOSITORY

SERVICE = {"coding": [{"system": "urn:service", "code": "checkup"}]}


class Practice:
    """A practitioner with a Schedule of three free Slots, and a patient."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital
        self.practitioner = hospital.new({"resourceType": "Practitioner"})
        self.schedule = hospital.new({"resourceType": "Schedule", "actor": [
            {"reference": f"Practitioner/{self.practitioner}"}]})
        self.slots = [hospital.new({
            "resourceType": "Slot", "schedule": {"reference": f"Schedule/{self.schedule}"}, "status": "free",
            "serviceType": [SERVICE], "start": f"2030-05-01T{hour:02}:00:00Z", "end": f"2030-05-01T{hour:02}:30:00Z"})
            for hour in (8, 9, 10)]
        self.patient = hospital.new_patient()
        self.own = hospital.patient(self.patient)

    def doctor(self) -> Client:
        self.hospital.grant(self.patient, f"Practitioner/{self.practitioner}")
        return self.hospital.clinician(self.practitioner)

    def slot(self, place: int = 0) -> str:
        return str(self.hospital.feed.get(f"Slot/{self.slots[place]}").json()["status"])

    def book(self, client: Client | None = None, place: int = 0) -> httpx.Response:
        return (client or self.own).post("Appointment/$book", slot_parameters(self.slots[place]))

    def appointment(self, **elements: Any) -> dict[str, Any]:
        return {"resourceType": "Appointment", "status": "proposed", "start": "2030-05-01T08:00:00Z",
                "end": "2030-05-01T08:30:00Z", "participant": [
                    {"actor": {"reference": f"Practitioner/{self.practitioner}"}, "status": "needs-action"},
                    {"actor": {"reference": f"Patient/{self.patient}"}, "status": "accepted"}], **elements}


def slot_parameters(*slots: str) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": [
        {"name": "slot", "valueReference": {"reference": f"Slot/{slot}"}} for slot in slots]}


@pytest.fixture
def practice(hospital: Hospital) -> Practice:
    return Practice(hospital)


def test_free_time_is_found_booked_and_no_longer_found(hospital: Hospital, practice: Practice) -> None:
    url = (f"Appointment/$find?practitioner={practice.practitioner}&start=2030-05-01&end=2030-05-02"
           "&service-type=urn:service|checkup")
    found = practice.own.get(url).json()
    offers = [entry["resource"] for entry in found["entry"] if entry["search"]["mode"] == "match"]
    assert [one["slot"][0]["reference"] for one in offers] == [f"Slot/{slot}" for slot in practice.slots]
    assert offers[0]["status"] == "proposed"
    booked = practice.book()
    assert booked.status_code == 201, booked.text
    made = booked.json()
    assert (made["status"], made["start"], made["minutesDuration"]) == ("booked", "2030-05-01T08:00:00.000Z", 30)
    assert [one["status"] for one in made["participant"]] == ["accepted", "accepted"]
    assert practice.slot() == "busy"
    assert practice.own.get(url).json()["total"] == 2
    assert practice.own.get(url.replace("-05-02", "-05-01T09:30:00Z")).json()["total"] == 1


def test_a_slot_is_booked_once(hospital: Hospital, practice: Practice) -> None:
    other = hospital.patient(hospital.new_patient())
    assert practice.book().status_code == 201
    again = practice.book(other)
    assert (again.status_code, places(again)) == (409, ["Appointment.slot"])
    assert practice.book(other, 1).status_code == 201


def test_of_many_at_once_one_gets_the_slot(hospital: Hospital, practice: Practice) -> None:
    clients = [hospital.patient(hospital.new_patient()) for _ in range(8)]
    answers = hospital.together(*(client.send("POST", "Appointment/$book", slot_parameters(practice.slots[0]))
                                  for client in clients))
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * 7]
    assert practice.slot() == "busy"


def test_two_entries_of_a_transaction_do_not_share_a_slot(hospital: Hospital, practice: Practice) -> None:
    entry = {"resource": practice.appointment(slot=[{"reference": f"Slot/{practice.slots[0]}"}], status="booked"),
             "request": {"method": "POST", "url": "Appointment"}}
    for client in (hospital.feed, practice.own):
        answer = client.post("", {"resourceType": "Bundle", "type": "transaction", "entry": [entry, entry]})
        assert answer.status_code == 409, answer.text
    assert practice.slot() == "free"


def test_cancelling_frees_the_slot_for_either_side(hospital: Hospital, practice: Practice) -> None:
    doctor = practice.doctor()
    for client in (practice.own, doctor):
        id_ = practice.book(place=1).json()["id"]
        answer = client.post(f"Appointment/{id_}/$cancel", {"resourceType": "Parameters", "parameter": [
            {"name": "reason", "valueCodeableConcept": {"text": "ill"}}]})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["status"], answer.json()["cancelationReason"]) == ("cancelled", {"text": "ill"})
        assert practice.slot(1) == "free"


def test_rescheduling_takes_one_slot_and_frees_the_other(hospital: Hospital, practice: Practice) -> None:
    id_ = practice.book().json()["id"]
    moved = practice.own.post(f"Appointment/{id_}/$reschedule", slot_parameters(practice.slots[2]))
    assert moved.status_code == 200, moved.text
    assert (moved.json()["start"], moved.json()["status"]) == ("2030-05-01T10:00:00.000Z", "booked")
    assert (practice.slot(0), practice.slot(2)) == ("free", "busy")
    practice.book(hospital.patient(hospital.new_patient()), 1)
    refused = practice.own.post(f"Appointment/{id_}/$reschedule", slot_parameters(practice.slots[1]))
    assert refused.status_code == 409
    assert practice.slot(2) == "busy"


def test_the_status_follows_the_participants(hospital: Hospital, practice: Practice) -> None:
    doctor = practice.doctor()
    made = practice.own.post("Appointment", practice.appointment(slot=[{"reference": f"Slot/{practice.slots[0]}"}]))
    assert made.status_code == 201, made.text
    appointment = made.json()
    assert (appointment["status"], practice.slot()) == ("pending", "busy-tentative")
    appointment["participant"][0]["status"] = "accepted"
    accepted = doctor.put(f"Appointment/{appointment['id']}", appointment)
    assert accepted.status_code == 200, accepted.text
    assert (accepted.json()["status"], practice.slot()) == ("booked", "busy")
    appointment = accepted.json()
    appointment["participant"][1]["status"] = "declined"
    declined = practice.own.put(f"Appointment/{appointment['id']}", appointment)
    assert declined.status_code == 200, declined.text
    assert (declined.json()["status"], practice.slot()) == ("cancelled", "free")


def test_a_patient_alone_cannot_make_a_practitioner_accept(hospital: Hospital, practice: Practice) -> None:
    wanted = practice.appointment(status="booked")
    wanted["participant"][0]["status"] = "accepted"
    made = practice.own.post("Appointment", wanted).json()
    assert (made["status"], made["participant"][0]["status"]) == ("pending", "needs-action")


@pytest.mark.parametrize("side", ["patient", "practitioner"])
def test_either_side_completes(hospital: Hospital, practice: Practice, side: str) -> None:
    client = practice.own if side == "patient" else practice.doctor()
    appointment = practice.book().json()
    done = client.put(f"Appointment/{appointment['id']}", {**appointment, "status": "fulfilled"})
    assert (done.status_code, done.json()["status"]) == (200, "fulfilled")
    again = client.put(f"Appointment/{appointment['id']}", {**done.json(), "status": "booked"})
    assert (again.status_code, places(again)) == (422, ["Appointment.status"])


def test_a_patient_answers_what_the_feed_wrote_and_changes_nothing_else(hospital: Hospital,
                                                                       practice: Practice) -> None:
    id_ = hospital.new(practice.appointment(status="booked", description="Check-up"))
    written = practice.own.get(f"Appointment/{id_}").json()
    refused = practice.own.put(f"Appointment/{id_}", {**written, "description": "Surgery"})
    assert (refused.status_code, places(refused)) == (422, ["Appointment.description"])
    assert practice.own.put(f"Appointment/{id_}", {**written, "status": "noshow"}).status_code == 422
    assert practice.own.post(f"Appointment/{id_}/$cancel", {"resourceType": "Parameters"}).status_code == 200
    after = hospital.feed.put(f"Appointment/{id_}", {**written, "status": "entered-in-error"})
    assert after.status_code == 200, after.text


def test_a_booked_slot_stays_the_feeds(hospital: Hospital, practice: Practice) -> None:
    practice.book()
    slot = hospital.feed.get(f"Slot/{practice.slots[0]}").json()
    assert hospital.feed.put(f"Slot/{slot['id']}", {**slot, "comment": "room 2"}).status_code == 200
    assert practice.own.put(f"Slot/{slot['id']}", {**slot, "status": "free"}).status_code in (403, 404)


def test_deleting_an_appointment_frees_its_slot(hospital: Hospital, practice: Practice) -> None:
    id_ = hospital.new(practice.appointment(status="booked", slot=[{"reference": f"Slot/{practice.slots[0]}"}]))
    assert practice.slot() == "busy"
    assert hospital.feed.delete(f"Appointment/{id_}").status_code == 204
    assert practice.slot() == "free"


def test_a_slot_that_may_not_be_seen_is_not_known(hospital: Hospital, practice: Practice) -> None:
    slot = hospital.feed.get(f"Slot/{practice.slots[0]}").json()
    slot["meta"]["security"] = [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "V"}]
    hospital.feed.put(f"Slot/{slot['id']}", slot)
    hidden, absent = (practice.own.post("Appointment/$book", slot_parameters(id_))
                      for id_ in (slot["id"], "nobody-1"))
    assert hidden.status_code == absent.status_code == 404
    assert hidden.text.replace(slot["id"], "nobody-1") == absent.text
    direct = practice.own.post("Appointment", practice.appointment(
        status="booked", slot=[{"reference": f"Slot/{slot['id']}"}]))
    assert direct.status_code == 422


def test_nobody_books_for_another_or_learns_of_their_appointments(hospital: Hospital, practice: Practice) -> None:
    id_ = practice.book().json()["id"]
    other = hospital.patient(hospital.new_patient())
    for url in ("$cancel", "$reschedule"):
        sent = slot_parameters(practice.slots[1]) if url == "$reschedule" else {"resourceType": "Parameters"}
        hidden, absent = (other.post(f"Appointment/{one}/{url}", sent) for one in (id_, "nobody-1"))
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace(id_, "nobody-1") == absent.text
    for_another = other.post("Appointment/$book", {"resourceType": "Parameters", "parameter": [
        *slot_parameters(practice.slots[1])["parameter"],
        {"name": "patient", "valueReference": {"reference": f"Patient/{practice.patient}"}}]})
    assert for_another.status_code in (403, 422)
    assert practice.slot(1) == "free"


@pytest.mark.parametrize(("query", "place"), [
    ("start=x", "http.start"), ("start=2030&end=2029", "http.end"), ("practitioner=a b", "http.practitioner"),
    ("more=1", "http.more"), ("_count=x", "http._count")])
def test_find_refuses_by_name(hospital: Hospital, query: str, place: str) -> None:
    answer = hospital.feed.get(f"Appointment/$find?{query}")
    assert (answer.status_code, places(answer)) == (400, [place])


def test_book_says_what_is_missing(hospital: Hospital, practice: Practice) -> None:
    answer = practice.own.post("Appointment/$book", {"resourceType": "Parameters"})
    assert (answer.status_code, places(answer)) == (400, ["http.slot"])
    answer = hospital.feed.post("Appointment/$book", slot_parameters(practice.slots[0]))
    assert (answer.status_code, places(answer)) == (400, ["http.patient"])


BOOKER = """
import asyncio, json, sys
import httpx
from gateway.app import build_app
from gateway.config import load_settings

async def book(folder, token, slots):
    settings = load_settings({"GATEWAY_DATA_DIR": folder})
    app = build_app(settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=settings.base_url) as http:
        async def one(slot):
            answer = await http.post("Appointment/$book", headers={"Authorization": f"Bearer {token}"}, json={
                "resourceType": "Parameters", "parameter": [
                    {"name": "slot", "valueReference": {"reference": f"Slot/{slot}"}}]},)
            return answer.status_code
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(await asyncio.gather(*(one(slot) for slot in slots))))

asyncio.run(book(sys.argv[1], sys.argv[2], sys.argv[3:]))
"""


def test_processes_do_not_book_a_slot_twice(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with()
    practice = Practice(hospital)
    tokens = [hospital.token(user=f"Patient/{hospital.new_patient()}") for _ in range(2)]
    children = [subprocess.Popen([sys.executable, "-c", BOOKER, str(hospital.settings.data_dir), token,
                                  *practice.slots], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 text=True) for token in tokens]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outcomes = [json.loads(child.communicate(timeout=60)[0]) for child in children]
    assert [sorted(pair) for pair in zip(*outcomes, strict=True)] == [[201, 409]] * 3
    assert [practice.slot(place) for place in range(3)] == ["busy"] * 3
    assert hospital.audit_is_whole()


@pytest.mark.parametrize("slot_first", [True, False])
def test_a_transaction_books_a_slot_it_writes_in_any_order(hospital: Hospital, practice: Practice,
                                                           slot_first: bool) -> None:
    """R4 3.1.0.11.2: the outcome depends on no order of the entries."""
    slot = {**hospital.feed.get(f"Slot/{practice.slots[0]}").json(), "comment": "room 2"}
    booked = practice.appointment(status="booked", slot=[{"reference": f"Slot/{slot['id']}"}])
    made = {name: value for name, value in slot.items() if name not in ("id", "meta")}
    new = practice.appointment(status="booked", slot=[{"reference": "urn:uuid:5b1c1f6e-0000-4000-8000-000000000001"}])
    for entries in (
            [{"resource": slot, "request": {"method": "PUT", "url": f"Slot/{slot['id']}"}},
             {"resource": booked, "request": {"method": "POST", "url": "Appointment"}}],
            [{"fullUrl": "urn:uuid:5b1c1f6e-0000-4000-8000-000000000001", "resource": made,
              "request": {"method": "POST", "url": "Slot"}},
             {"resource": new, "request": {"method": "POST", "url": "Appointment"}}]):
        answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "transaction",
                                         "entry": entries if slot_first else entries[::-1]})
        assert answer.status_code == 200, answer.text
        named = next(entry["response"]["location"] for entry in answer.json()["entry"]
                     if "/Slot/" in entry["response"]["location"])
        assert hospital.feed.get(named.partition("/_history")[0]).json()["status"] == "busy"


def test_a_transaction_that_cancels_one_appointment_gives_its_slot_to_another(hospital: Hospital,
                                                                             practice: Practice) -> None:
    reference = [{"reference": f"Slot/{practice.slots[0]}"}]
    first = hospital.feed.post("Appointment", practice.appointment(status="booked", slot=reference)).json()
    answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"resource": practice.appointment(status="booked", slot=reference),
         "request": {"method": "POST", "url": "Appointment"}},
        {"resource": {**first, "status": "cancelled"},
         "request": {"method": "PUT", "url": f"Appointment/{first['id']}"}}]})
    assert answer.status_code == 200, answer.text
    assert practice.slot() == "busy"
