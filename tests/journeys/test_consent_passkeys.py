"""A patient's passkey signs consents: checked here first, then as the contract has it. WebAuthn 2, section 7.2."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from eth_abi import decode
from eth_utils.crypto import keccak

from gateway.access.typed_data import kind_of
from gateway.ledger.calls import GrantCall, RevokeCall
from gateway.smart.accounts import add_user, close_user
from gateway.store import outbox
from tests.consent import consent
from tests.journeys.authenticator import Passkey, registered
from tests.journeys.hospital import Client, Hospital


@pytest.fixture
def patient(hospital: Hospital) -> str:
    made = hospital.new_patient()
    add_user(hospital.smart, fhir_user=f"Patient/{made}", role="patient", name="Holder")
    return made


@pytest.fixture
def passkey(hospital: Hospital, patient: str) -> Passkey:
    return registered(hospital, f"Patient/{patient}", Passkey())


def proposed(client: Client, patient: str) -> str:
    answer = client.post("Consent", consent(patient, "Practitioner/1"))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def shown(client: Client, id_: str) -> dict[str, Any]:
    answer = client.get(f"Consent/{id_}/$typed-data?kind=passkey")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def sent(client: Client, id_: str, given: dict[str, str], operation: str = "$sign") -> httpx.Response:
    return client.post(f"Consent/{id_}/{operation}", {"resourceType": "Parameters", "parameter": [
        {"name": name, "valueString": value} for name, value in given.items()]})


def acts(hospital: Hospital, id_: str) -> list[Any]:
    return [one.call for one in outbox.open_intents(hospital.database.reader, limit=1000) if one.consent == id_]


def test_a_passkey_grants_and_revokes(hospital: Hospital, patient: str, passkey: Passkey) -> None:
    own = hospital.patient(patient)
    id_ = proposed(own, patient)
    asked = shown(own, id_)
    account = "0x" + keccak(b"".join(passkey.point))[12:].hex()
    assert asked["message"]["patient"] == account
    assert asked["publicKey"]["rpId"] == "127.0.0.1"
    assert asked["publicKey"]["userVerification"] == "required"
    answer = sent(own, id_, passkey.answer(asked["publicKey"]))
    assert answer.status_code == 200, answer.text
    [call] = acts(hospital, id_)
    assert isinstance(call, GrantCall)
    assert (call.patient, kind_of(call.nonce)) == (account, "passkey")
    x, y, _, s, authenticator, tail = decode(["bytes32", "bytes32", "bytes32", "bytes32", "bytes", "string"],
                                             call.signature)
    assert ((x, y), authenticator[32]) == (passkey.point, 5)
    assert int.from_bytes(s) <= 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551 // 2
    assert tail == ',"origin":"http://127.0.0.1:8080","crossOrigin":false}'

    again = own.get(f"Consent/{id_}/$typed-data").json()
    assert again["primaryType"] == "Revoke"
    assert sent(own, id_, Passkey(id=passkey.id).answer(again["publicKey"]), "$revoke").status_code == 422
    assert sent(own, id_, passkey.answer(again["publicKey"]), "$revoke").status_code == 200
    _, revocation = acts(hospital, id_)
    assert isinstance(revocation, RevokeCall)
    assert (revocation.patient, kind_of(revocation.nonce)) == (account, "passkey")


@pytest.mark.parametrize(("why", "told"), [
    ("another challenge", {"challenge": "AAAA"}), ("a registration", {"type": "webauthn.create"}),
    ("another site", {"origin": "https://evil.example"}), ("a frame of another site", {"crossOrigin": True}),
    ("no user verified", {"flags": 0x01}), ("nobody present", {"flags": 0x04})])
def test_an_answer_that_proves_less_is_refused(hospital: Hospital, patient: str, passkey: Passkey, why: str,
                                               told: dict[str, Any]) -> None:
    own = hospital.patient(patient)
    id_ = proposed(own, patient)
    before = hospital.stored()
    answer = sent(own, id_, passkey.answer(shown(own, id_)["publicKey"], **told))
    assert answer.status_code == 422, why
    assert hospital.stored() == before


def test_another_relying_partys_or_persons_passkey_is_refused(hospital: Hospital, patient: str,
                                                              passkey: Passkey) -> None:
    own = hospital.patient(patient)
    id_ = proposed(own, patient)
    options = shown(own, id_)["publicKey"]
    elsewhere = Passkey(rp_id="other.example", key=passkey.key, id=passkey.id)
    assert sent(own, id_, elsewhere.answer(options)).status_code == 422
    assert sent(own, id_, Passkey(id=passkey.id).answer(options)).status_code == 422
    stranger = hospital.new_patient()
    add_user(hospital.smart, fhir_user=f"Patient/{stranger}", role="patient", name="Stranger")
    theirs = registered(hospital, f"Patient/{stranger}", Passkey())
    given = {**theirs.answer({**options, "allowCredentials": [{"type": "public-key", "id": _text(theirs)}]})}
    assert sent(own, id_, given).status_code == 422


def _text(passkey: Passkey) -> str:
    from tests.journeys.authenticator import text

    return text(passkey.id)


def test_an_answer_over_other_terms_is_refused(hospital: Hospital, patient: str, passkey: Passkey) -> None:
    own = hospital.patient(patient)
    id_ = proposed(own, patient)
    given = passkey.answer(shown(own, id_)["publicKey"])
    assert own.put(f"Consent/{id_}", {**consent(patient, "Practitioner/2"), "id": id_}).status_code == 200
    assert sent(own, id_, given).status_code == 422
    other = proposed(own, patient)
    assert sent(own, other, given).status_code == 422


def test_only_a_passkey_of_a_proofed_open_account_signs(hospital: Hospital, patient: str) -> None:
    own = hospital.patient(patient)
    id_ = proposed(own, patient)
    registered(hospital, f"Patient/{patient}", Passkey(), state="waiting")
    assert own.get(f"Consent/{id_}/$typed-data?kind=passkey").status_code == 422
    registered(hospital, f"Patient/{patient}", Passkey())
    assert own.get(f"Consent/{id_}/$typed-data?kind=passkey").status_code == 200
    close_user(hospital.smart, f"Patient/{patient}")
    assert hospital.feed.get(f"Consent/{id_}/$typed-data?kind=passkey").status_code in (404, 422)


def test_the_passkey_of_a_delegate_is_not_the_patients(hospital: Hospital, patient: str) -> None:
    person = f"RelatedPerson/{patient}"
    add_user(hospital.smart, fhir_user=person, role="delegate", name="Mother", represents=f"Patient/{patient}",
             mandate_until_ms=2**42)
    registered(hospital, person, Passkey())
    delegate = hospital.client(user=person)
    id_ = proposed(delegate, patient)
    assert delegate.get(f"Consent/{id_}/$typed-data?kind=passkey").status_code == 422


def test_one_of_several_passkeys_is_named_by_its_credential(hospital: Hospital, patient: str,
                                                            passkey: Passkey) -> None:
    second = registered(hospital, f"Patient/{patient}", Passkey())
    own = hospital.patient(patient)
    id_ = proposed(own, patient)
    asked = own.get(f"Consent/{id_}/$typed-data?credential={_text(second)}").json()
    assert asked["publicKey"]["allowCredentials"] == [{"type": "public-key", "id": _text(second)}]
    assert sent(own, id_, second.answer(asked["publicKey"])).status_code == 200
