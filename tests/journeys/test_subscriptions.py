"""Subscriptions from asking to delivery, and what they never tell.

https://hl7.org/fhir/R4/subscription.html, https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import authority
from gateway.errors import Unavailable
from gateway.fhir.resource import format_instant
from gateway.fhir.subscriptions import ERROR_AFTER, HANDSHAKES, OFF_AFTER, TOPIC
from gateway.records import subscriptions as rules
from gateway.records.deliveries import Deliveries
from gateway.records.endpoints import Sender, resolve
from gateway.smart.accounts import add_user, close_user
from gateway.smart.approvals import Decider, close
from gateway.smart.tokens import sweep
from gateway.store import subscriptions as stored
from gateway.store.sql import now_ms
from tests.journeys.bulk import as_backend, backend
from tests.journeys.hospital import Client, Hospital, observation, places
from tests.journeys.receiver import Received, Receiver

PROFILE = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-"
SECRET = "Bearer a-secret-of-the-subscriber"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Hospital]:
    made = Hospital(tmp_path_factory.mktemp("subscribed"), subscription_hosts=f"{receiver.url},https://listed.example")
    yield made
    made.close()


class Clock:
    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms


class Serving:
    """The delivery process, one step at a time."""

    def __init__(self, hospital: Hospital, **parts: Any) -> None:
        self.clock = Clock()
        self.hospital = hospital
        self.deliveries = Deliveries(hospital.node, authority(hospital.node, hospital.smart), clock=self.clock,
                                     jitter=lambda: 1.0, **parts)

    def step(self, *, later_s: float = 0) -> int:
        self.clock.ahead_ms += int(later_s * 1000)
        return self.hospital.run(self.deliveries.step())


@pytest.fixture
def serving(hospital: Hospital, receiver: Receiver) -> Iterator[Serving]:
    receiver.answers.clear()
    receiver.taken()
    made = Serving(hospital)
    yield made
    hospital.database.transact(lambda tx: tx.execute("UPDATE subscription SET state='off'"))
    hospital.run(made.deliveries.close())


def plain(endpoint: str, criteria: str, **channel: Any) -> dict[str, Any]:
    """R4's own form."""
    return {"resourceType": "Subscription", "status": "requested", "reason": "care", "criteria": criteria,
            "channel": {"type": "rest-hook", "endpoint": endpoint, **channel}}


def topical(endpoint: str, topic: str, *, content: str = "id-only", filters: tuple[str, ...] = (),
            payload: str = "application/fhir+json", header: tuple[str, ...] = (), **numbers: Any) -> dict[str, Any]:
    """The R5 backport's form."""
    channel = {"type": "rest-hook", "endpoint": endpoint, "payload": payload, "header": list(header) or [SECRET_LINE],
               "_payload": {"extension": [{"url": f"{PROFILE}payload-content", "valueCode": content}]}}
    if numbers:
        channel["extension"] = [{"url": f"{PROFILE}{name.replace('_', '-')}",
                                 "valuePositiveInt" if name == "max_count" else "valueUnsignedInt": value}
                                for name, value in numbers.items()]
    made = {"resourceType": "Subscription", "status": "requested", "reason": "care", "criteria": f"{TOPIC}{topic}",
            "meta": {"profile": [f"{PROFILE}subscription"]}, "channel": channel}
    if filters:
        made["_criteria"] = {"extension": [{"url": f"{PROFILE}filter-criteria", "valueString": one} for one in filters]}
    return made


SECRET_LINE = f"Authorization: {SECRET}"


def subscribed(client: Client, serving: Serving, receiver: Receiver, asked: dict[str, Any]) -> str:
    """An active Subscription's id."""
    answer = client.post("Subscription", asked)
    assert answer.status_code == 201, answer.text
    serving.step()
    id_ = str(answer.json()["id"])
    assert client.get(f"Subscription/{id_}").json()["status"] == "active"
    receiver.taken()
    return id_


def events(came: list[Received]) -> list[dict[str, Any]]:
    return [one for notification in came for one in notification.status["events"]]


def written(hospital: Hospital, patient: str | None, **elements: Any) -> str:
    answer = hospital.feed.post("Observation", observation(patient, **elements))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_topic_begins_with_a_handshake_and_tells_every_event_in_order(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    doctor = hospital.clinician()
    asked = topical(f"{receiver.url}/hook", "Observation", content="full-resource")
    answer = doctor.post("Subscription", asked)
    id_ = answer.json()["id"]
    assert answer.json()["status"] == "requested"
    early = written(hospital, patient, value="7.10")
    assert serving.step() >= 1
    handshake, *rest = receiver.taken()
    assert handshake.status["type"] == "handshake"
    assert handshake.status["status"] == "requested"
    assert handshake.status["events-since-subscription-start"] == "0"
    assert handshake.headers["Authorization"] == SECRET
    assert doctor.get(f"Subscription/{id_}").json()["status"] == "active"
    assert [one["focus"] for one in events(rest)] == [f"{hospital.base}/Observation/{early}"]

    hospital.feed.put(f"Observation/{early}", observation(patient, "7.20", id=early))
    other = written(hospital, patient, value="8.00")
    hospital.feed.delete(f"Observation/{early}")
    serving.step()
    (came,) = receiver.taken()
    bundle = came.bundle
    assert bundle["type"] == "history"
    assert bundle["meta"]["profile"] == [f"{PROFILE}subscription-notification-r4"]
    assert came.status["type"] == "event-notification"
    assert came.status["events-since-subscription-start"] == "4"
    assert came.status["topic"] == f"{TOPIC}Observation"
    assert [one["event-number"] for one in came.status["events"]] == ["2", "3", "4"]
    assert [one["request"]["method"] for one in bundle["entry"]] == ["GET", "PUT", "POST", "DELETE"]
    assert [one.get("resource", {}).get("id") for one in bundle["entry"][1:]] == [early, other, None]
    assert b'"value":7.20' in came.body, "decimals keep their text"
    serving.step()
    assert receiver.taken() == []

    row = [entry for entry in hospital.audited(patient) if entry.interaction == "subscription-notification"]
    assert {one.user for one in row} == {"Practitioner/dr-1"}
    assert {what for one in row for what in one.what} >= {f"Observation/{other}/_history/1",
                                                          f"Observation/{early}/_history/2"}


def test_r4s_own_form_puts_the_resource_or_posts_nothing(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    doctor = hospital.clinician()
    subscribed(doctor, serving, receiver, plain(f"{receiver.url}/all/", "Observation?code=http://loinc.org|8867-4",
                                                payload="application/fhir+json", header=[SECRET_LINE]))
    subscribed(doctor, serving, receiver, plain(f"{receiver.url}/bare", "Observation?code=8867-4&status=final"))
    subscribed(doctor, serving, receiver, plain(f"{receiver.url}/xml", "Observation", payload="application/fhir+xml"))
    written(hospital, patient, code="1234-5")
    id_ = written(hospital, patient)
    hospital.feed.delete(f"Observation/{id_}")
    serving.step()
    (came,) = receiver.taken()
    assert came.path.startswith("/xml/"), "what is deleted by now is not sent as if it were there"
    id_ = written(hospital, patient)
    serving.step()
    by_path = {one.path: one for one in receiver.taken()}
    assert by_path.keys() == {f"/all/Observation/{id_}", "/bare", f"/xml/Observation/{id_}"}
    put, bare = by_path[f"/all/Observation/{id_}"], by_path["/bare"]
    assert (put.method, put.bundle["id"], put.headers["Authorization"]) == ("PUT", id_, SECRET)
    assert (bare.method, bare.body) == ("POST", b"")
    assert by_path[f"/xml/Observation/{id_}"].body.startswith(b"<?xml")


@pytest.mark.parametrize("content", ["empty", "id-only", "full-resource"])
def test_a_notification_holds_what_was_asked_for_and_no_more(
        hospital: Hospital, serving: Serving, receiver: Receiver, content: str) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    subscribed(hospital.clinician(), serving, receiver, topical(receiver.url, "Observation-created", content=content))
    id_ = written(hospital, patient)
    serving.step()
    (came,) = receiver.taken()
    assert (id_.encode() in came.body) is (content != "empty")
    assert (b"valueQuantity" in came.body) is (content == "full-resource")
    assert (patient.encode() in came.body) is (content == "full-resource")
    assert any(f"Observation/{id_}/_history/1" in one.what for one in hospital.audited(patient)
               if one.interaction == "subscription-notification"), "an empty one discloses as well"


def test_filters_narrow_a_topic_and_events_are_batched_by_max_count(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient, other = hospital.new_patient(), hospital.new_patient()
    for one in (patient, other):
        hospital.grant(one, "Practitioner/dr-1")
    subscribed(hospital.clinician(), serving, receiver, topical(
        receiver.url, "Observation-created", max_count=2, filters=(f"Observation?subject=Patient/{patient}",)))
    made = [written(hospital, patient) for _ in range(5)]
    written(hospital, other)
    serving.step()
    came = receiver.taken()
    assert [len(one.status["events"]) for one in came] == [2, 2, 1]
    assert [one["focus"].rsplit("/", 1)[1] for one in events(came)] == made
    assert [one["event-number"] for one in events(came)] == ["1", "2", "3", "4", "5"]


def test_an_encounter_starts_once(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    subscribed(hospital.clinician(), serving, receiver, topical(receiver.url, "encounter-start"))
    encounter = {"resourceType": "Encounter", "status": "planned", "class": {"code": "AMB"},
                 "subject": {"reference": f"Patient/{patient}"}}
    id_ = hospital.new(encounter)
    for status in ("in-progress", "in-progress", "finished"):
        encounter = {**encounter, "id": id_, "status": status, "length": {"value": len(status)}}
        assert hospital.feed.put(f"Encounter/{id_}", {**encounter, "language": "en"}).status_code == 200
    serving.step()
    (one,) = events(receiver.taken())
    assert one["focus"] == f"{hospital.base}/Encounter/{id_}"


def test_a_quiet_topic_has_heartbeats(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    subscribed(hospital.clinician(), serving, receiver, topical(receiver.url, "Observation", heartbeat_period=30))
    serving.step()
    serving.step(later_s=20)
    assert receiver.taken() == []
    serving.step(later_s=20)
    (came,) = receiver.taken()
    assert (came.status["type"], came.status["events-since-subscription-start"]) == ("heartbeat", "0")
    serving.step(later_s=20)
    assert receiver.taken() == []
    serving.step(later_s=20)
    assert len(receiver.taken()) == 1


def test_nothing_is_told_without_a_grant_and_a_revocation_stops_it_at_once(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    """Invariants 4 and 6: no notification, no number missing, whatever was allowed when it was asked for."""
    known, hidden = hospital.new_patient(), hospital.new_patient()
    consent = hospital.grant(known, "Practitioner/dr-1")
    doctor = hospital.clinician()
    id_ = subscribed(doctor, serving, receiver, topical(receiver.url, "Observation", content="empty"))
    written(hospital, hidden)
    assert serving.step() == 0
    assert receiver.taken() == []
    first = written(hospital, known)
    written(hospital, hidden)
    written(hospital, known)
    serving.step()
    assert [one["event-number"] for one in events(receiver.taken())] == ["1", "2"]
    assert not any(one.interaction == "subscription-notification" for one in hospital.audited(hidden))

    written(hospital, known)
    hospital.revoke(consent)
    serving.step()
    assert receiver.taken() == []
    assert doctor.get(f"Subscription/{id_}").json()["status"] == "active"
    status = doctor.get(f"Subscription/{id_}/$status").json()["entry"][0]["resource"]["parameter"]
    assert {"name": "events-since-subscription-start", "valueString": "2"} in status
    past = doctor.get(f"Subscription/{id_}/$events?content=full-resource")
    assert past.status_code == 200
    assert first not in past.text
    assert [one["name"] for one in past.json()["entry"][0]["resource"]["parameter"]].count("notification-event") == 0


def test_a_revocation_between_attempts_leaves_no_gap(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    first, second = hospital.new_patient(), hospital.new_patient()
    consent = hospital.grant(first, "Practitioner/dr-1")
    hospital.grant(second, "Practitioner/dr-1")
    subscribed(hospital.clinician(), serving, receiver, topical(receiver.url, "Observation"))
    written(hospital, first)
    receiver.answers[:] = [503]
    serving.step()
    assert len(receiver.taken()) == 1
    hospital.revoke(consent)
    id_ = written(hospital, second)
    serving.step(later_s=5)
    assert [(one["event-number"], one["focus"]) for one in events(receiver.taken())] == [
        ("1", f"{hospital.base}/Observation/{id_}")]


def test_a_revocation_while_a_notification_is_made_stops_it(hospital: Hospital, serving: Serving) -> None:
    """Invariant 6: between the decision and the sending the counter of revocations is compared again."""
    sent: list[httpx.Request] = []
    patient = hospital.new_patient()
    consent = hospital.grant(patient, "Practitioner/dr-1")

    def answered(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    def resolving(host: str, port: int) -> list[str]:
        if sent:  # the second time, for the event: decided, and not yet sent
            hospital.revoke(consent)
        return ["93.184.216.34"]

    one = Serving(hospital, sender=Sender(httpx.MockTransport(answered)), resolving=resolving)
    assert hospital.clinician().post("Subscription", topical(
        "https://listed.example/hook", "Observation", content="full-resource")).status_code == 201
    one.step()
    assert len(sent) == 1
    written(hospital, patient)
    one.step()
    one.step()
    assert len(sent) == 1, "the handshake alone"


def test_a_delegates_subscription_ends_with_the_mandate(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    add_user(hospital.smart, fhir_user="RelatedPerson/mother", role="delegate", name="Mother",
             represents=f"Patient/{patient}", mandate_until_ms=now_ms() + 3_600_000)
    mother = hospital.client(user="RelatedPerson/mother")
    id_ = subscribed(mother, serving, receiver, topical(receiver.url, "Observation"))
    written(hospital, patient)
    serving.step()
    assert len(events(receiver.taken())) == 1
    written(hospital, patient)
    serving.step(later_s=3_601)
    assert receiver.taken() == []
    at = stored.find(hospital.database.reader, id_)
    assert at is not None
    assert at.state == "off"


def test_it_ends_when_it_says_and_when_it_is_switched_off(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    doctor = hospital.clinician()
    ending = subscribed(doctor, serving, receiver, {
        **topical(receiver.url, "Observation"), "end": format_instant(now_ms() + 600_000)})
    patched = subscribed(doctor, serving, receiver, topical(receiver.url, "Observation"))
    answer = doctor.request("PATCH", f"Subscription/{patched}", [
        {"op": "replace", "path": "/status", "value": "off"}], Content_Type="application/json-patch+json")
    assert answer.status_code == 200, answer.text
    written(hospital, patient)
    serving.step()
    assert len(receiver.taken()) == 1
    written(hospital, patient)
    serving.step(later_s=601)
    assert receiver.taken() == []
    assert doctor.get(f"Subscription/{ending}").json()["error"] == "its end has come"


def test_one_owner_has_a_bounded_number(
        hospital: Hospital, serving: Serving, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor = hospital.clinician("dr-many")
    monkeypatch.setattr(rules, "OWNED_MAX", 2)
    for _ in range(2):
        id_ = doctor.post("Subscription", plain(receiver.url, "Observation")).json()["id"]
    assert doctor.post("Subscription", plain(receiver.url, "Observation")).status_code == 429
    doctor.delete(f"Subscription/{id_}")
    assert doctor.post("Subscription", plain(receiver.url, "Observation")).status_code == 201


def test_granular_scopes_hold_at_delivery(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    doctor = hospital.clinician(scope="user/Subscription.cruds user/Observation.rs?code=http://loinc.org|8867-4")
    subscribed(doctor, serving, receiver, topical(receiver.url, "Observation"))
    written(hospital, patient, code="1234-5")
    gone = written(hospital, patient, code="1234-5")
    told = written(hospital, patient)
    hospital.feed.delete(f"Observation/{gone}")
    serving.step()
    hospital.feed.delete(f"Observation/{told}")
    serving.step()
    assert [one["focus"].rsplit("/", 1)[1] for one in events(receiver.taken())] == [told, told]
    refused = doctor.post("Subscription", topical(receiver.url, "Condition"))
    assert refused.status_code == 403


def test_a_failing_endpoint_is_tried_again_and_given_up(
        hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    doctor = hospital.clinician()
    id_ = subscribed(doctor, serving, receiver, topical(receiver.url, "Observation"))
    written(hospital, patient)
    receiver.answers[:] = [500] * ERROR_AFTER
    serving.step()
    assert len(receiver.taken()) == 1
    serving.step()
    assert receiver.taken() == [], "not before its time"
    for _ in range(ERROR_AFTER - 1):
        serving.step(later_s=10)
    shown = doctor.get(f"Subscription/{id_}").json()
    assert (shown["status"], shown["error"]) == ("error", "the endpoint answered 500")
    serving.step(later_s=60)
    assert events(receiver.taken()[-1:])[0]["event-number"] == "1"
    shown = doctor.get(f"Subscription/{id_}").json()
    assert shown["status"] == "active"
    assert "error" not in shown

    written(hospital, patient)
    receiver.answers[:] = [302] * OFF_AFTER
    for _ in range(OFF_AFTER):
        serving.step(later_s=700)
    shown = doctor.get(f"Subscription/{id_}").json()
    assert shown["status"] == "off"
    assert f"after {OFF_AFTER} attempts" in shown["error"]
    assert all(one.path == "/" for one in receiver.taken()), "a redirect is not followed"
    serving.step(later_s=7000)
    assert receiver.taken() == []

    # R4: the client may ask anew; what happened meanwhile is not told.
    assert doctor.put(f"Subscription/{id_}", {**shown, "status": "requested"}).status_code == 200
    serving.step()
    assert [one.status["type"] for one in receiver.taken()] == ["handshake"]


def test_a_handshake_in_vain_never_activates(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    doctor = hospital.clinician()
    id_ = doctor.post("Subscription", topical(receiver.url, "Observation")).json()["id"]
    receiver.answers[:] = [404] * HANDSHAKES
    for _ in range(HANDSHAKES):
        serving.step(later_s=60)
    assert doctor.get(f"Subscription/{id_}").json()["status"] == "off"


@pytest.mark.parametrize("ends", ["token", "client", "user"])
def test_who_no_longer_stands_is_told_nothing(
        hospital: Hospital, serving: Serving, receiver: Receiver, tmp_path: Path, ends: str) -> None:
    patient = hospital.new_patient()
    if ends == "client":
        name = backend(hospital, tmp_path, "system/*.rs system/Subscription.cruds")
        client = as_backend(hospital, name)
        hospital.grant(patient, f"Device/{name}")
    else:
        hospital.grant(patient, "Practitioner/dr-9")
        client = hospital.clinician("dr-9")
    id_ = subscribed(client, serving, receiver, topical(receiver.url, "Observation"))
    if ends == "client":
        close(hospital.smart, name, Decider())
    elif ends == "user":
        add_user(hospital.smart, fhir_user="Practitioner/dr-9", role="clinician", name="Nine")
        close_user(hospital.smart, "Practitioner/dr-9")
    else:
        hospital.database.transact(lambda tx: hospital.smart.tokens.revoke(tx, str(client.token), now_ms()))
    written(hospital, patient)
    serving.step()
    assert receiver.taken() == []
    at = stored.find(hospital.database.reader, id_)
    assert at is not None
    assert at.state == "off"


def test_it_outlives_its_token_which_is_kept_for_it(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    doctor = hospital.clinician(ttl_s=60)
    subscribed(doctor, serving, receiver, topical(receiver.url, "Observation"))
    hospital.database.transact(lambda tx: tx.execute("UPDATE token SET expires_ms=1 WHERE hash=?", (
        hospital.smart.tokens.hash(str(doctor.token)),)))
    hospital.database.transact(lambda tx: sweep(tx, now_ms()))
    written(hospital, patient)
    serving.step()
    assert len(events(receiver.taken())) == 1


def test_a_subscription_is_its_makers_alone(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    doctor, other = hospital.clinician(), hospital.clinician("dr-2")
    id_ = subscribed(doctor, serving, receiver, topical(receiver.url, "Observation"))
    stranger = {**topical(receiver.url, "Observation"), "id": id_}
    for client in (other, hospital.feed, hospital.patient(hospital.new_patient())):
        assert client.get(f"Subscription/{id_}").status_code == 404
        assert client.put(f"Subscription/{id_}", stranger).status_code in (403, 404)
        assert client.get(f"Subscription/{id_}/$events").status_code == 404
        assert client.get(f"Subscription/{id_}/$status").json()["total"] == 0
        assert client.get("Subscription/$status").json()["total"] == 0
        assert client.total("Subscription?_total=accurate") == 0
        client.delete(f"Subscription/{id_}")
    assert doctor.get("Subscription/$status?status=active").json()["total"] >= 1
    assert id_ in doctor.ids("Subscription?_count=100")
    assert doctor.delete(f"Subscription/{id_}").status_code in (200, 204)
    assert stored.find(hospital.database.reader, id_) is None


def test_past_events_can_be_asked_for_again(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")
    doctor = hospital.clinician()
    id_ = subscribed(doctor, serving, receiver, topical(receiver.url, "Observation"))
    made = [written(hospital, patient) for _ in range(3)]
    serving.step()
    answer = doctor.get(f"Subscription/{id_}/$events?eventsSinceNumber=2&eventsUntilNumber=3&content=full-resource")
    assert answer.status_code == 200, answer.text
    assert [one["resource"]["id"] for one in answer.json()["entry"][1:]] == made[1:]
    assert doctor.get(f"Subscription/{id_}/$events?content=everything").status_code == 400
    assert doctor.get(f"Subscription/{id_}/$events?eventsSinceNumber=x").status_code == 400
    assert doctor.get("Subscription/nobody/$events").status_code == 404


@pytest.mark.parametrize(("change", "place"), [
    ({"status": "active"}, "Subscription.status"),
    ({"status": "error"}, "Subscription.status"),
    ({"criteria": "urn:no-such-topic"}, "Subscription.criteria"),
    ({"criteria": "Nothing?code=1"}, "Subscription.criteria"),
    ({"criteria": "AuditEvent?"}, "Subscription.criteria"),
    ({"criteria": "Subscription?"}, "Subscription.criteria"),
    ({"criteria": "Observation?subject:Patient.name=x"}, "Subscription.criteria"),
    ({"criteria": "Observation?_has:Provenance:target:agent=x"}, "Subscription.criteria"),
    ({"criteria": "Observation?_include=*"}, "Subscription.criteria"),
    ({"criteria": "Observation?no-such-parameter=1"}, "Subscription.criteria"),
    ({"end": "2999-01-01T00:00:00Z", "channel": {"type": "websocket"}}, "Subscription.channel.type"),
    ({"channel": {"type": "rest-hook"}}, "Subscription.channel.endpoint"),
])
def test_what_could_never_be_delivered_is_refused_with_its_place(
        hospital: Hospital, receiver: Receiver, change: dict[str, Any], place: str) -> None:
    answer = hospital.clinician().post("Subscription", {**plain(receiver.url, "Observation?code=1"), **change})
    assert answer.status_code == 422, answer.text
    assert places(answer) == [place]


@pytest.mark.parametrize("line", ["no colon", "Host: other", "X: a\r\nY: b", "Content-Length: 3", "X: \u00e9", ": x",
                                  "Transfer-Encoding: chunked"])
def test_a_header_is_one_line_of_the_subscribers_own(hospital: Hospital, receiver: Receiver, line: str) -> None:
    answer = hospital.clinician().post("Subscription", plain(receiver.url, "Observation", header=["X-A: 1", line]))
    assert answer.status_code in (400, 422), answer.text
    assert "channel.header" in answer.text


@pytest.mark.parametrize("endpoint", [
    "http://127.0.0.1/", "http://127.0.0.1:1/hook", "https://127.0.0.1/", "http://localhost/", "https://localhost.",
    "http://169.254.169.254/latest/meta-data", "http://[::1]/", "https://[::ffff:127.0.0.1]/", "http://10.1.2.3/",
    "http://192.168.0.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/",
    "https://listed.example@127.0.0.1/", "https://listed.example:8443/", "http://listed.example/",
    "https://listed.example.evil.example/", "https://evil.example\\@listed.example/",
    "https://evil.example#@listed.example",
    "ftp://listed.example/", "https://user:pass@listed.example/", "file:///etc/passwd", "//listed.example/", "",
    "https://listed.example/\u202e", "https://0/", "https://example.org/"])
def test_only_listed_hosts_are_endpoints(hospital: Hospital, endpoint: str) -> None:
    """Server-side request forgery: a listed host is compared whole, as it will be connected to."""
    before = hospital.stored()
    answer = hospital.clinician().post("Subscription", plain(endpoint, "Observation"))
    assert answer.status_code in (400, 422), answer.text
    assert hospital.stored()[0] == before[0]


def test_by_default_no_host_is_allowed(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    answer = hospital.clinician().post("Subscription", plain("https://example.org/hook", "Observation"))
    assert answer.status_code == 422
    assert places(answer) == ["Subscription.channel.endpoint"]
    hospital.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.8", "169.254.169.254", "::1", "fd00::1", "fe80::1%eth0",
                                     "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "0.0.0.0",  # noqa: S104
                                     "100.64.0.1", "224.0.0.1", "192.168.1.1", "2001:0:a00:1::"])
def test_a_listed_name_that_leads_inside_is_not_connected_to(
        hospital: Hospital, serving: Serving, receiver: Receiver, address: str) -> None:
    """127.0.0.1 itself is listed here, over http alone: as a name's address it is what the operator listed."""
    sent: list[httpx.Request] = []
    addresses = ["93.184.216.34", address]  # one of them inside is enough to refuse

    def answered(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    one = Serving(hospital, sender=Sender(httpx.MockTransport(answered)), resolving=lambda host, port: addresses)
    doctor = hospital.clinician()
    id_ = doctor.post("Subscription", topical("https://listed.example/hook", "Observation")).json()["id"]
    one.step()
    if address == "127.0.0.1":
        assert sent
        return
    assert sent == []
    shown = doctor.get(f"Subscription/{id_}").json()
    assert (shown["status"], shown["error"]) == ("off", "the endpoint leads to an internal address")


def test_a_name_that_turns_inside_later_is_not_followed(hospital: Hospital, serving: Serving) -> None:
    """DNS rebinding: each delivery resolves once, checks, and connects to that very address."""
    sent: list[httpx.Request] = []
    answers = [["93.184.216.34"], ["10.0.0.1"]]
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-1")

    def answered(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    one = Serving(hospital, sender=Sender(httpx.MockTransport(answered)), resolving=lambda host, port: answers.pop(0))
    doctor = hospital.clinician()
    id_ = doctor.post("Subscription", topical("https://listed.example/hook", "Observation")).json()["id"]
    one.step()
    (handshake,) = sent
    assert (handshake.url.host, handshake.headers["Host"]) == ("93.184.216.34", "listed.example")
    assert handshake.extensions["sni_hostname"] == "listed.example"
    written(hospital, patient)
    one.step()
    assert len(sent) == 1
    assert doctor.get(f"Subscription/{id_}").json()["status"] == "off"


def test_a_host_without_an_address_is_tried_again(hospital: Hospital, serving: Serving) -> None:
    def nowhere(host: str, port: int) -> list[str]:
        raise Unavailable("the endpoint's host has no address")

    one = Serving(hospital, resolving=nowhere)
    doctor = hospital.clinician()
    id_ = doctor.post("Subscription", topical("https://listed.example/hook", "Observation")).json()["id"]
    one.step()
    assert doctor.get(f"Subscription/{id_}").json()["status"] == "requested"
    with pytest.raises(Unavailable):
        resolve("no-such-host.invalid", 443)


def test_secrets_of_headers_are_sealed(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    """Invariant 1: they are in the sealed version, and in no row beside it."""
    subscribed(hospital.clinician(), serving, receiver, topical(receiver.url, "Observation"))
    rows = json.dumps([list(row) for row in hospital.database.reader.execute("SELECT * FROM subscription")])
    assert "secret" not in rows
    assert receiver.url not in rows


def test_a_broken_glass_and_the_last_of_too_many_are_refused(hospital: Hospital, receiver: Receiver) -> None:
    patient = hospital.new_patient()
    glass = hospital.clinician(purpose="BTG", patient=patient, reason="unconscious",
                               scope="patient/*.rs patient/Subscription.cruds")
    answer = glass.post("Subscription", plain(receiver.url, "Observation"))
    assert answer.status_code in (403, 422), answer.text


def test_a_patient_hears_of_their_own_record(hospital: Hospital, serving: Serving, receiver: Receiver) -> None:
    patient, other = hospital.new_patient(), hospital.new_patient()
    subscribed(hospital.patient(patient), serving, receiver, topical(receiver.url, "Observation"))
    written(hospital, other)
    mine = written(hospital, patient)
    serving.step()
    assert [one["focus"].rsplit("/", 1)[1] for one in events(receiver.taken())] == [mine]


def test_the_statement_offers_the_operations(hospital: Hospital) -> None:
    statement = hospital.feed.get("metadata").json()["rest"][0]
    kind = next(one for one in statement["resource"] if one["type"] == "Subscription")
    assert {"status", "events"} <= {one["name"] for one in kind["operation"]}
    offered = {one["valueCanonical"] for one in kind["extension"]}
    assert {f"{TOPIC}Observation", f"{TOPIC}encounter-start"} <= offered
    assert all(hospital.clinician(scope="user/*.crus").post("Subscription", {
        **plain("https://listed.example/", url), "status": "off"}).status_code == 201 for url in sorted(offered)[:3])
