"""Asking a patient for access, known by an identifier alone, and finding one by what they sign with. Invariants 4, 8.

``gateway/README.md``, Decisions: the same answer and time for unknown.
"""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from eth_account import Account
from eth_keys.datatypes import PrivateKey

from gateway.records import directory
from gateway.smart.accounts import add_user, close_user
from tests.journeys.authenticator import Passkey, registered
from tests.journeys.hospital import Client, Hospital, places
from tests.journeys.test_consents import signed, states

SYSTEM = "urn:oid:1.2.36.146.595.217.0.1"
WALLET, PUBLIC_KEY = "urn:fhir-gateway:wallet", "urn:fhir-gateway:public-key"


def asked(client: Client, value: str, **given: Any) -> Any:
    return client.post("Patient/$request-access", {"resourceType": "Parameters", "parameter": [
        {"name": "identifier", "valueIdentifier": {"system": SYSTEM, "value": value}},
        *({"name": name, key: value} for name, (key, value) in given.items())]})


def tasks(client: Client, patient: str) -> list[dict[str, Any]]:
    answer = client.get(f"Task?patient=Patient/{patient}")
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", ())]


@pytest.fixture
def number(request: pytest.FixtureRequest) -> str:
    return f"n-{abs(hash(request.node.nodeid))}"


@pytest.fixture
def patient(hospital: Hospital, number: str) -> str:
    made = hospital.new_patient(identifier=[{"system": SYSTEM, "value": number}])
    add_user(hospital.smart, fhir_user=f"Patient/{made}", role="patient", name="Asked")
    return made


def test_a_request_reaches_its_patient_and_the_head_and_becomes_a_consent(hospital: Hospital, patient: str,
                                                                        number: str) -> None:
    add_user(hospital.smart, fhir_user="Practitioner/asker", role="clinician", name="Dr Asker")
    asker = hospital.clinician("asker")
    answer = asked(asker, number, purpose=("valueCode", "TREAT"), type=("valueCode", "Observation"),
                   reason=("valueString", "Referred to me"))
    assert answer.status_code == 202, answer.text
    assert directory.deliver(hospital.node) >= 1
    own = hospital.patient(patient)
    [task] = tasks(own, patient)
    assert (task["status"], task["for"]["reference"]) == ("requested", f"Patient/{patient}")
    assert task["requester"] == {"reference": "Practitioner/asker", "display": "Dr Asker"}
    assert "Dr Asker (Practitioner/asker) asks this patient for access to Observation records" in task["description"]
    add_user(hospital.smart, fhir_user="Practitioner/head-d", role="privacy-officer", name="Head")
    head = hospital.clinician("head-d", purpose="HOPERAT")
    assert [one["id"] for one in tasks(head, patient)] == [task["id"]]
    # The one who asked learns nothing of it, not even with a grant of everything.
    assert asker.get(f"Task/{task['id']}").status_code == 404
    hospital.grant(patient, "Practitioner/asker")
    assert asker.get(f"Task/{task['id']}").status_code == 404
    assert not tasks(asker, patient)

    assert asker.request("POST", f"Task/{task['id']}/$propose-consent").status_code == 404
    proposed = own.request("POST", f"Task/{task['id']}/$propose-consent")
    assert proposed.status_code == 201, proposed.text
    consent = proposed.json()
    assert consent["status"] == "proposed"
    assert consent["provision"]["actor"][0]["reference"]["reference"] == "Practitioner/asker"
    assert [one["code"] for one in consent["provision"]["class"]] == ["Observation"]
    assert [one["code"] for one in consent["provision"]["purpose"]] == ["TREAT"]
    assert own.get(f"Task/{task['id']}").json()["status"] == "accepted"
    assert own.request("POST", f"Task/{task['id']}/$propose-consent").status_code == 409
    assert signed(own, consent["id"]).status_code == 200
    assert states(hospital, consent["id"]) == ["pending"]
    assert {entry.interaction for entry in hospital.audited(patient)} >= {"request-access", "create", "sign"}


def test_a_request_may_be_declined_by_the_patient_alone(hospital: Hospital, patient: str, number: str) -> None:
    assert asked(hospital.clinician("asker-2"), number).status_code == 202
    directory.deliver(hospital.node)
    own = hospital.patient(patient)
    [task] = tasks(own, patient)
    add_user(hospital.smart, fhir_user="Practitioner/head-e", role="privacy-officer", name="Head")
    head = hospital.clinician("head-e", purpose="HOPERAT")
    assert head.request("POST", f"Task/{task['id']}/$decline").status_code in (403, 404)
    for status in ("completed", "rejected", "accepted"):
        assert head.put(f"Task/{task['id']}", {**task, "status": status}).status_code in (403, 422)
    declined = own.request("POST", f"Task/{task['id']}/$decline")
    assert (declined.status_code, declined.json()["status"]) == (200, "rejected")
    assert own.request("POST", f"Task/{task['id']}/$decline").status_code == 409
    assert own.request("POST", f"Task/{task['id']}/$propose-consent").status_code == 409


def test_an_identifier_nobody_has_is_answered_alike(hospital: Hospital, patient: str, number: str) -> None:
    asker = hospital.clinician("asker-3")
    there, absent = asked(asker, number), asked(asker, f"{number}-not")
    assert (there.status_code, there.content) == (absent.status_code, absent.content)
    assert dict(there.headers) == dict(absent.headers)
    mine = [one for one in hospital.audited()
            if one.user == "Practitioner/asker-3" and one.interaction != "token-minted"]
    assert [(one.interaction, one.outcome) for one in mine] == [("request-access", "0")] * 2
    before = hospital.stored()
    directory.deliver(hospital.node)
    after = hospital.stored()
    assert after[0] - before[0] == 1, "one Task, for the one who is there"
    assert hospital.database.reader.execute("SELECT count(*) FROM access_request WHERE body IS NOT NULL").get == 0


def test_what_is_asked_is_nowhere_in_the_clear(hospital: Hospital, patient: str, number: str) -> None:
    assert asked(hospital.clinician("asker-4"), number, reason=("valueString", "Zebrafish")).status_code == 202
    for row in hospital.database.reader.execute("SELECT * FROM access_request"):
        assert not any(word in (value if isinstance(value, bytes) else str(value).encode())
                       for value in row for word in (number.encode(), b"Zebrafish", b"asker-4"))
    directory.deliver(hospital.node)


def test_two_patients_of_one_identifier_are_not_asked(hospital: Hospital, patient: str, number: str) -> None:
    other = hospital.new_patient(identifier=[{"system": SYSTEM, "value": number}])
    assert asked(hospital.clinician("asker-5"), number).status_code == 202
    directory.deliver(hospital.node)
    for one in (patient, other):
        assert not tasks(hospital.patient(one), one)


def test_asking_again_does_not_fill_the_patients_list_and_has_a_limit(hospital: Hospital, patient: str,
                                                                      number: str) -> None:
    asker = hospital.clinician("asker-6")
    answers = [asked(asker, number).status_code for _ in range(directory.REQUESTS_MAX + 1)]
    assert answers == [202] * directory.REQUESTS_MAX + [429]
    directory.deliver(hospital.node)
    assert len(tasks(hospital.patient(patient), patient)) == 1
    assert asked(hospital.clinician("asker-7"), number).status_code == 202
    directory.deliver(hospital.node)
    assert len(tasks(hospital.patient(patient), patient)) == 2


@pytest.mark.parametrize("given", [
    {"grantee": ("valueReference", {"reference": "Practitioner/somebody-else"})},
    {"purpose": ("valueCode", "NONSENSE")}, {"type": ("valueCode", "Nonsense")},
    {"reason": ("valueString", "x" * 1001)}])
def test_what_cannot_be_asked_is_refused(hospital: Hospital, patient: str, number: str, given: dict[str, Any]) -> None:
    assert asked(hospital.clinician("asker-8"), number, **given).status_code in (400, 403, 422)


def test_a_role_no_grant_admits_does_not_ask(hospital: Hospital, number: str) -> None:
    add_user(hospital.smart, fhir_user="Practitioner/admin-d", role="administrator", name="Admin")
    assert asked(hospital.clinician("admin-d"), number).status_code == 403
    assert asked(hospital.clinician("asker-9", scope="user/Observation.rs"), number).status_code == 403


def test_a_task_of_another_kind_is_no_request(hospital: Hospital, patient: str) -> None:
    id_ = hospital.new({"resourceType": "Task", "status": "requested", "intent": "order",
                        "for": {"reference": f"Patient/{patient}"},
                        "code": {"coding": [{"system": directory.SYSTEM, "code": directory.ACCESS_REQUEST}]},
                        "requester": {"reference": f"Patient/{patient}"}})
    assert hospital.patient(patient).request("POST", f"Task/{id_}/$propose-consent").status_code == 422


# -- found by what they sign with -------------------------------------------------------------------------------------


def test_a_patient_is_found_by_wallet_or_public_key(hospital: Hospital, patient: str) -> None:
    key = Account.create()
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Holder", wallet=key.address)
    public = PrivateKey(bytes(key.key)).public_key
    passkey = registered(hospital, f"Patient/{patient}", Passkey())
    compressed = passkey.key.public_key().public_numbers()
    names = [f"{WALLET}|{key.address}", f"{WALLET}|{key.address.lower()}", f"{PUBLIC_KEY}|{public.to_hex()}",
             f"{PUBLIC_KEY}|0x04{public.to_hex()[2:]}", f"{PUBLIC_KEY}|0x{public.to_compressed_bytes().hex()}",
             f"{PUBLIC_KEY}|0x{b''.join(passkey.point).hex()}",
             f"{PUBLIC_KEY}|0x{'03' if compressed.y % 2 else '02'}{passkey.point[0].hex()}"]
    for name in names:
        answer = hospital.feed.get("Patient", params=None) if not name else hospital.feed.get(
            f"Patient?identifier={name}")
        assert [entry["resource"]["id"] for entry in answer.json().get("entry", ())] == [patient], name
        assert name.replace("|", "%7C") in answer.json()["link"][0]["url"].replace("%3A", ":") or name in (
            answer.json()["link"][0]["url"])
    assert hospital.feed.total(f"Patient?identifier={names[0]},{names[5]}&_total=accurate") == 1
    assert hospital.feed.ids(f"Patient?identifier={WALLET}|{Account.create().address}") == []
    form = hospital.feed.post("Patient/_search", f"identifier={names[0]}".encode(),
                              Content_Type="application/x-www-form-urlencoded")
    assert [entry["resource"]["id"] for entry in form.json()["entry"]] == [patient]
    close_user(hospital.smart, f"Patient/{patient}")
    for name in names:
        assert hospital.feed.ids(f"Patient?identifier={name}") == []


def test_who_may_not_see_the_patient_finds_nobody_by_their_wallet(hospital: Hospital, patient: str) -> None:
    key, nobodys = Account.create(), Account.create()
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Holder", wallet=key.address)
    doctor = hospital.clinician("dr-wallet")
    there = doctor.get(f"Patient?identifier={WALLET}|{key.address}")
    absent = doctor.get(f"Patient?identifier={WALLET}|{nobodys.address}")
    assert there.status_code == absent.status_code == 200
    assert "entry" not in there.json()
    assert patient not in there.text
    assert (there.json()["link"][0]["url"].replace(key.address, ""), there.json().get("total")) == (
        absent.json()["link"][0]["url"].replace(nobodys.address, ""), absent.json().get("total"))
    hospital.grant(patient, "Practitioner/dr-wallet")
    assert doctor.ids(f"Patient?identifier={WALLET}|{key.address}") == [patient]


def test_no_resource_says_what_a_patient_signs_with(hospital: Hospital, patient: str) -> None:
    key = Account.create()
    said = {"resourceType": "Patient", "identifier": [{"system": WALLET, "value": key.address}]}
    answer = hospital.feed.post("Patient", said)
    assert (answer.status_code, places(answer)) == (422, ["Patient.identifier[0].system"])
    add_user(hospital.smart, fhir_user="Practitioner/wallet-dr", role="clinician", name="No patient",
             wallet=key.address)
    assert hospital.feed.ids(f"Patient?identifier={WALLET}|{key.address}") == []


@pytest.mark.parametrize("value", [f"{WALLET}|0x12", f"{WALLET}|", f"{PUBLIC_KEY}|0x{'12' * 64}00",
                                   "urn:fhir-gateway:nonsense|0x" + "12" * 20, f"{WALLET}|0x{'12' * 20},Smith"])
def test_an_address_that_is_none_is_refused(hospital: Hospital, value: str) -> None:
    assert hospital.feed.get(f"Patient?identifier={value}").status_code == 400


def test_a_point_off_the_curves_is_nobodys(hospital: Hospital) -> None:
    p = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    assert hospital.feed.ids(f"Patient?identifier={PUBLIC_KEY}|0x{p.x:064x}{(p.y + 1) % 2**256:064x}") == []


def test_an_access_request_names_a_patient_by_wallet_too(hospital: Hospital, patient: str) -> None:
    key = Account.create()
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Holder", wallet=key.address)
    answer = hospital.clinician("asker-w").post("Patient/$request-access", {"resourceType": "Parameters", "parameter": [
        {"name": "identifier", "valueIdentifier": {"system": WALLET, "value": key.address}}]})
    assert answer.status_code == 202, answer.text
    directory.deliver(hospital.node)
    assert len(tasks(hospital.patient(patient), patient)) == 1
