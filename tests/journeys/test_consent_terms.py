"""What the terms of a Consent open and shut over HTTP, at every door: named records, authors, care, departments,
privacy, exceptions. Invariants 4, 5 and 6; IHE Privacy Consent on FHIR."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.ledger.calls import RevokeCall
from gateway.ledger.relay import refuse
from gateway.records import finality, granting
from gateway.smart.accounts import add_user
from gateway.store import outbox, provisions
from tests.consent import consent
from tests.journeys.hospital import Client, Hospital, observation, places, reopened

PRS = [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "PRS"}]


@pytest.fixture
def patient(hospital: Hospital) -> str:
    return hospital.new_patient()


def new(hospital: Hospital, patient: str, **elements: Any) -> str:
    answer = hospital.feed.post("Observation", observation(patient, "7", **elements))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def seen(client: Client, patient: str, ids: list[str]) -> set[str]:
    """What a client sees of these, the same by reading, searching, counting and history."""
    read = {id_ for id_ in ids if client.get(f"Observation/{id_}").status_code == 200}
    vread = {id_ for id_ in ids if client.get(f"Observation/{id_}/_history/1").status_code == 200}
    history = {id_ for id_ in ids if client.get(f"Observation/{id_}/_history").status_code == 200}
    found = set(client.all_ids(f"Observation?patient={patient}&_count=1"))
    assert read == vread == history == found
    assert client.total(f"Observation?patient={patient}&_total=accurate") == len(found)
    assert client.total(f"Observation?patient={patient}&_summary=count") == len(found)
    listed = client.get("Observation/_history?_count=200").json().get("entry", ())
    assert {entry["resource"]["id"] for entry in listed} & set(ids) == found
    return found


def put(hospital: Hospital, patient: str, provision: dict[str, Any]) -> str:
    """A Consent's provisions as its signing puts them, final."""
    own = hospital.patient(patient)
    answer = own.post("Consent", consent(patient, "Practitioner/1", provision=provision))
    assert answer.status_code == 201, answer.text
    id_ = str(answer.json()["id"])
    signed = own.post(f"Consent/{id_}/$sign", {"resourceType": "Parameters", "parameter": [
        {"name": "kind", "valueString": "custodial"}]})
    assert signed.status_code in (200, 202), signed.text
    hospital.database.transact(lambda tx: provisions.set_state_of_consent(tx, id_, "final", only=("pending",)))
    return id_


def to(*references: str) -> list[dict[str, Any]]:
    return [consent("1", reference)["provision"]["actor"][0] for reference in references]


def named(meaning: str, reference: str) -> dict[str, Any]:
    return {"meaning": meaning, "reference": {"reference": reference}}


def test_single_records_are_shared_and_withheld_by_name(hospital: Hospital, patient: str) -> None:
    ids = [new(hospital, patient) for _ in range(4)]
    doctor = hospital.clinician("terms-1")
    shared = put(hospital, patient, {"type": "permit", "actor": to("Practitioner/terms-1"), "data": [
        named("instance", f"Observation/{id_}") for id_ in ids[:2]]})
    assert seen(doctor, patient, ids) == set(ids[:2])
    put(hospital, patient, {"type": "deny", "actor": to("Practitioner/terms-1"), "data": [
        named("instance", f"Observation/{ids[0]}")]})
    assert seen(doctor, patient, ids) == {ids[1]}
    hospital.revoke(shared)
    assert not seen(doctor, patient, ids)


def test_what_somebody_authored_and_an_encounter_are_shared_as_such(hospital: Hospital, patient: str) -> None:
    visit = hospital.new({"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"},
                          "subject": {"reference": f"Patient/{patient}"}})
    hospital.feed.put("Practitioner/author-1", {"resourceType": "Practitioner", "id": "author-1"})
    ids = [new(hospital, patient, performer=[{"reference": "Practitioner/author-1"}]),
           new(hospital, patient, encounter={"reference": f"{hospital.base}/Encounter/{visit}"}),
           new(hospital, patient)]
    doctor, other = hospital.clinician("terms-2"), hospital.clinician("terms-3")
    put(hospital, patient, {"type": "permit", "actor": to("Practitioner/terms-2"), "data": [
        named("authoredby", "Practitioner/author-1")]})
    put(hospital, patient, {"type": "permit", "actor": to("Practitioner/terms-3"), "data": [
        named("related", f"Encounter/{visit}")]})
    assert seen(doctor, patient, ids) == {ids[0]}
    assert doctor.get(f"Encounter/{visit}").status_code == 404
    assert seen(other, patient, ids) == {ids[1]}
    assert other.get(f"Encounter/{visit}").status_code == 200
    found = other.get(f"Observation?patient={patient}&_include=Observation:encounter").json()["entry"]
    assert {entry["resource"]["id"] for entry in found} == {ids[1], visit}
    found = other.get(f"Encounter?patient={patient}&_revinclude=Observation:encounter").json()["entry"]
    assert {entry["resource"]["id"] for entry in found} == {ids[1], visit}


def test_a_department_is_let_in_without_its_hospital_and_shut_out_of_it(hospital: Hospital, patient: str) -> None:
    """Who belongs to a department says the account, never Organization.partOf, which a client writes."""
    for number, organizations in enumerate((["Organization/ward"], [])):
        add_user(hospital.smart, fhir_user=f"Practitioner/ward-{number}", role="clinician", name="A",
                 organizations=organizations)
    hospital.feed.put("Organization/ward", {"resourceType": "Organization", "id": "ward", "name": "Ward",
                                            "partOf": {"reference": hospital.settings.hospital_reference}})
    nurse, colleague = hospital.clinician("ward-0"), hospital.clinician("ward-1")
    ids = [new(hospital, patient)]
    ward = put(hospital, patient, {"type": "permit", "actor": to("Organization/ward")})
    assert seen(nurse, patient, ids) == set(ids)
    assert not seen(colleague, patient, ids)
    hospital.revoke(ward)
    put(hospital, patient, {
        "type": "permit", "actor": to(hospital.settings.hospital_reference), "provision": [
            {"type": "deny", "actor": to("Organization/ward")}]})
    assert not seen(nurse, patient, ids)
    assert seen(colleague, patient, ids) == set(ids)


def test_a_private_record_is_opened_by_grants_that_name_its_label_alone(hospital: Hospital, patient: str) -> None:
    ids = [new(hospital, patient), new(hospital, patient)]
    doctor, own = hospital.clinician("terms-4"), hospital.patient(patient)
    hospital.grant(patient, "Practitioner/terms-4", confidentiality=5)
    assert seen(doctor, patient, ids) == set(ids)
    stored = own.get(f"Observation/{ids[0]}").json()
    assert own.put(f"Observation/{ids[0]}", {**stored, "meta": {"security": PRS}}).status_code == 200
    assert doctor.ids(f"Observation?patient={patient}") == [ids[1]]
    assert doctor.get(f"Observation/{ids[0]}").status_code == 404
    assert doctor.get(f"Observation/{ids[0]}/_history/1").status_code == 404
    opened = put(hospital, patient, {"type": "permit", "actor": to("Practitioner/terms-4"), "securityLabel": PRS,
                                     "data": [named("instance", f"Observation/{ids[0]}")]})
    assert doctor.get(f"Observation/{ids[0]}").status_code == 200
    assert set(doctor.ids(f"Observation?patient={patient}")) == set(ids)
    hospital.revoke(opened)
    assert doctor.get(f"Observation/{ids[0]}").status_code == 404


def test_a_permit_inside_a_deny_lets_one_in_and_ends_with_it(hospital: Hospital, patient: str) -> None:
    ids = [new(hospital, patient)]
    doctor, other = hospital.clinician("terms-5"), hospital.clinician("terms-6")
    for name in ("terms-5", "terms-6"):
        hospital.grant(patient, f"Practitioner/{name}")
    assert seen(other, patient, ids)
    dissent = put(hospital, patient, {"type": "deny", "provision": [
        {"type": "permit", "actor": to("Practitioner/terms-5")}]})
    assert seen(doctor, patient, ids) == set(ids)
    assert not seen(other, patient, ids)
    hospital.revoke(dissent)
    assert seen(other, patient, ids) == set(ids)


def test_the_feed_lifts_no_signed_deny_whose_permits_the_chain_refused(hospital: Hospital, patient: str) -> None:
    terms = consent(patient, "Practitioner/1", provision={"type": "deny", "provision": [
        {"type": "permit", "actor": to("Practitioner/dr-lift")}]})
    hospital.grant(patient, "Practitioner/dr-lift")
    hospital.grant(patient, "Practitioner/dr-shut")
    id_ = str(hospital.feed.post("Consent", terms).json()["id"])
    own = hospital.patient(patient)
    answer = own.post(f"Consent/{id_}/$sign", {"resourceType": "Parameters", "parameter": [
        {"name": "kind", "valueString": "custodial"}]})
    assert answer.status_code == 200, answer.text
    [act] = [one for one in outbox.open_intents(hospital.database.reader, limit=1000) if one.consent == id_]
    hospital.database.transact(lambda tx: refuse(tx, act, "SignatureExpired"))
    finality.show_finality(hospital.node)
    shut = hospital.clinician("dr-shut")
    for changed in ({**terms, "id": id_, "status": "inactive"}, {**terms, "id": id_, "status": "rejected"},
                    {**consent(patient, "Practitioner/1"), "id": id_}):
        assert hospital.feed.put(f"Consent/{id_}", changed).status_code == 422
    assert hospital.feed.delete(f"Consent/{id_}").status_code == 409
    assert shut.get(f"Patient/{patient}").status_code == 404
    assert own.put(f"Consent/{id_}", {**terms, "id": id_, "language": "de"}).status_code == 200, "it may be put right"
    assert own.request("POST", f"Consent/{id_}/$revoke").status_code == 200
    assert shut.get(f"Patient/{patient}").status_code == 200


def test_the_kept_key_does_not_sign_where_a_wallet_was_registered_meanwhile(
        hospital: Hospital, patient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Holder")
    own, signing = hospital.patient(patient), granting.signature_of
    id_ = str(own.post("Consent", consent(patient, "Practitioner/1")).json()["id"])

    def meanwhile(*args: Any) -> bytes:
        made = signing(*args)
        hospital.database.transact(lambda tx: tx.execute("UPDATE account SET wallet=? WHERE fhir_user=?", (
            "0x" + "5b" * 20, f"Patient/{patient}")))
        return made
    monkeypatch.setattr(granting, "signature_of", meanwhile)
    assert own.post(f"Consent/{id_}/$sign", {"resourceType": "Parameters"}).status_code == 422
    assert provisions.of_patient(hospital.database.reader, patient) == ()


def test_consents_of_who_was_erased_hold_up_no_others(hospital: Hospital, patient: str,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    other = hospital.new_patient()
    whose = {who: put(hospital, who, {"type": "permit", "actor": to("Practitioner/1"), "period": {"end": "2090"}})
             for who in (patient, other)}
    hospital.node.ring.destroy(patient)
    finality.show_finality(hospital.node)
    own = hospital.patient(other)
    assert own.get(f"Consent/{whose[other]}").json()["status"] == "active"
    monkeypatch.setattr(finality, "now_ms", lambda: 4_000_000_000_000)
    finality.end_expired(hospital.node)
    assert own.get(f"Consent/{whose[other]}").json()["status"] == "inactive"
    [act] = [one for one in outbox.open_intents(hospital.database.reader, limit=1000)
             if one.consent == whose[patient]]
    hospital.database.transact(lambda tx: outbox.enqueue(
        tx, kind="revoke", consent=whose[patient], created_ms=1, call=RevokeCall(
            patient=act.call.patient, grantee=bytes(32), terms_hash=bytes(32), nonce=1, deadline_s=1, signature=b"")))
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE intent SET state='failed', error='NonceUsed' WHERE kind='revoke' AND consent=?", (whose[patient],)))
    assert finality.renew(hospital.node) == 0


def test_a_consent_comes_back_as_written_and_means_the_same(hospital: Hospital, patient: str) -> None:
    own, record = hospital.patient(patient), new(hospital, patient)
    hospital.feed.put("Practitioner/author-1", {"resourceType": "Practitioner", "id": "author-1"})
    provision = {"type": "permit", "actor": to("Practitioner/1"), "data": [named("instance", f"Observation/{record}")],
                 "provision": [{"type": "deny", "data": [named("authoredby", "Practitioner/author-1")]},
                               {"type": "permit", "actor": to("Practitioner/2"), "period": {"end": "2030"}}]}
    written = consent(patient, "Practitioner/1", provision=provision)
    id_ = own.post("Consent", written).json()["id"]
    shown = own.get(f"Consent/{id_}").json()
    assert {name: value for name, value in shown.items() if name not in ("id", "meta")} == written
    words = own.get(f"Consent/{id_}/$typed-data").json()["message"]["terms"]["statement"]
    assert f"only Observation/{record}" in words
    assert "except, for Practitioner/1, for any purpose, without end: all records, only what Practitioner/aut" in words
    assert "and Practitioner/2 may read" in words


@pytest.mark.parametrize(("provision", "place"), [
    ({"type": "permit"}, "Consent.provision.actor"),
    ({"type": "deny", "provision": [{"type": "permit", "actor": to("Group/1")}]},
     "Consent.provision.provision[0].actor[0].reference"),
    ({"type": "deny", "provision": [{"type": "permit", "actor": to("Practitioner/1"), "provision": [
        {"type": "deny", "actor": to("Practitioner/2")}]}]}, "Consent.provision.provision[0].provision"),
    ({"type": "deny", "data": [named("related", "Observation/1")]}, "Consent.provision.data[0].meaning"),
])
def test_what_cannot_be_enforced_is_not_stored(hospital: Hospital, patient: str, provision: dict[str, Any],
                                               place: str) -> None:
    before = hospital.stored()
    answer = hospital.patient(patient).post("Consent", consent(patient, "Practitioner/1", provision=provision))
    assert answer.status_code == 422
    assert place in places(answer)
    assert hospital.stored() == before


def test_another_worker_sees_a_revocation_at_once_however_warm_its_caches(hospital: Hospital, patient: str) -> None:
    """Invariant 6: what a worker keeps of provisions counts for one ``decision_seq`` alone."""
    ids = [new(hospital, patient) for _ in range(2)]
    token = hospital.token(user="Practitioner/terms-7")
    here, there = Client(hospital, token), Client(reopened(hospital), token)
    whole = put(hospital, patient, {"type": "permit", "actor": to("Practitioner/terms-7")})
    for round_ in range(3):
        assert seen(there, patient, ids) == seen(here, patient, ids) == set(ids)
        deny = put(hospital, patient, {"type": "deny", "actor": to("Practitioner/terms-7"), "data": [
            named("instance", f"Observation/{ids[round_ % 2]}")]})
        assert seen(there, patient, ids) == seen(here, patient, ids) == {ids[(round_ + 1) % 2]}
        assert hospital.patient(patient).request("POST", f"Consent/{deny}/$revoke").status_code == 200
    assert seen(there, patient, ids) == set(ids)
    assert hospital.patient(patient).request("POST", f"Consent/{whole}/$revoke").status_code == 200
    assert not seen(there, patient, ids)
    assert not seen(here, patient, ids)


def test_of_grants_that_say_the_same_the_last_one_left_still_opens(hospital: Hospital, patient: str) -> None:
    """Only the one that lasts longest is looked at while all of them stand."""
    ids, doctor = [new(hospital, patient)], hospital.clinician("terms-8")
    made = [hospital.grant(patient, "Practitioner/terms-8", **({} if end is None else {"valid_until_ms": end}))
            for end in (2**42, None, 2**43, 5)]
    for consent_ in (made[1], made[3], made[2]):
        assert seen(doctor, patient, ids) == set(ids)
        hospital.revoke(consent_)
    assert seen(doctor, patient, ids) == set(ids)
    hospital.revoke(made[0])
    assert not seen(doctor, patient, ids)
