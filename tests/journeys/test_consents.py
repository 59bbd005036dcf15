"""The life of a Consent over HTTP: who may sign, change and end it, and what each step leaves. Invariants 4-6, 8."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from gateway.access import consent_refused
from gateway.access.typed_data import kind_of
from gateway.fhir.resource import parse
from gateway.fhir.xml_shapes import Shapes
from gateway.fhir.xml_writer import write_xml
from gateway.ledger.calls import GrantCall, RevokeCall
from gateway.ledger.relay import refuse
from gateway.records import finality, notices, revoking, signing
from gateway.smart.accounts import add_user
from gateway.smart.clients import add_client
from gateway.store import journal, outbox, provisions
from tests.consent import consent
from tests.journeys.hospital import Client, Hospital, places

KEY, OTHER = Account.from_key(b"\x11" * 32), Account.from_key(b"\x12" * 32)
MONTH_S = 30 * 24 * 3600


def signed(client: Client, id_: str, **given: str) -> httpx.Response:
    return client.post(f"Consent/{id_}/$sign", {"resourceType": "Parameters", "parameter": [
        {"name": name, "valueString": value} for name, value in given.items()]})


def by_wallet(key: Any, typed: dict[str, Any]) -> str:
    return "0x" + key.sign_message(encode_typed_data(full_message=typed)).signature.hex().removeprefix("0x")


def proposed(client: Client, patient: str, grantee: str = "Practitioner/1", **elements: Any) -> str:
    answer = client.post("Consent", consent(patient, grantee, **elements))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def granted_on_chain(hospital: Hospital, id_: str) -> None:
    """What the follower does once the grant's block is final."""
    hospital.database.transact(lambda tx: provisions.set_state_of_consent(tx, id_, "final", only=("pending",)))


def states(hospital: Hospital, id_: str) -> list[str]:
    return [str(state) for (state,) in hospital.database.reader.execute(
        "SELECT state FROM provision WHERE consent=?", (id_,))]


@pytest.fixture
def patient(hospital: Hospital) -> str:
    return hospital.new_patient()


@pytest.fixture
def own(hospital: Hospital, patient: str) -> Client:
    return hospital.patient(patient)


@pytest.mark.parametrize("how", ["put", "$revoke"])
@pytest.mark.parametrize("final", [False, True])
def test_ending_a_signed_consent_before_it_is_shown_active_ends_what_was_signed(
        hospital: Hospital, patient: str, own: Client, how: str, final: bool) -> None:
    id_ = proposed(own, patient, "Practitioner/dr-early")
    assert signed(own, id_).status_code == 200
    if final:
        granted_on_chain(hospital, id_)
    if how == "put":
        stored = own.get(f"Consent/{id_}").json()
        assert own.put(f"Consent/{id_}", {**stored, "status": "inactive"}).status_code == 200
    else:
        assert own.request("POST", f"Consent/{id_}/$revoke").status_code == 200
    granted_on_chain(hospital, id_)
    assert states(hospital, id_) == ["revoked"]
    assert hospital.clinician("dr-early").get(f"Patient/{patient}").status_code == 404
    kinds = [str(kind) for (kind,) in hospital.database.reader.execute(
        "SELECT kind FROM intent WHERE consent=? ORDER BY pk", (id_,))]
    assert kinds == ["grant", "revoke"], "the chain is told, even while the grant is on its way"


def test_what_was_signed_cannot_be_rewritten_or_deleted_while_it_waits_for_the_chain(hospital: Hospital,
                                                                                     patient: str) -> None:
    id_ = proposed(hospital.feed, patient, "Practitioner/dr-a")
    own = hospital.patient(patient)
    assert signed(own, id_).status_code == 200
    for client in (own, hospital.feed):
        other = {**consent(patient, "Practitioner/dr-b"), "id": id_}
        assert client.put(f"Consent/{id_}", other).status_code == 422
        assert client.put(f"Consent/{id_}", {**other, "status": "draft"}).status_code == 422
    assert hospital.feed.put(f"Consent/{id_}", {**consent(patient, "Practitioner/dr-a"), "id": id_,
                                                "status": "inactive"}).status_code == 422
    assert hospital.feed.delete(f"Consent/{id_}").status_code == 409
    assert own.get(f"Consent/{id_}").json()["meta"]["versionId"] == "1"


def test_a_signed_deny_is_not_signed_again_over_other_terms(hospital: Hospital, patient: str, own: Client) -> None:
    denied = consent(patient, "Practitioner/dr-no")
    denied["provision"]["type"] = "deny"
    id_ = proposed(own, patient, provision=denied["provision"])
    assert signed(own, id_).status_code == 200
    assert own.put(f"Consent/{id_}", {**consent(patient, "Practitioner/dr-no"), "id": id_}).status_code == 422
    assert signed(own, id_).status_code == 409
    assert states(hospital, id_) == ["final"]


def test_an_unsigned_consent_may_be_changed_rejected_and_deleted(hospital: Hospital, patient: str) -> None:
    id_ = proposed(hospital.feed, patient)
    changed = {**consent(patient, "Practitioner/2"), "id": id_}
    assert hospital.feed.put(f"Consent/{id_}", changed).status_code == 200
    assert hospital.feed.put(f"Consent/{id_}", {**changed, "status": "rejected"}).status_code == 200
    assert hospital.feed.delete(f"Consent/{id_}").status_code == 204


@pytest.mark.parametrize("scope", ["patient/*.rs", "patient/Consent.rs", "patient/Consent.cr"])
def test_signing_is_a_change_and_needs_the_scope_of_one(hospital: Hospital, patient: str, scope: str) -> None:
    id_ = proposed(hospital.feed, patient)
    reading = hospital.patient(patient, scope=scope)
    before = hospital.stored()
    assert reading.get(f"Consent/{id_}").status_code == 200
    assert signed(reading, id_).status_code == 403
    assert hospital.stored() == before
    assert hospital.audited(patient)[0].outcome == "4"


def test_the_patient_of_a_reference_with_a_version_is_the_patient_named(hospital: Hospital) -> None:
    victim, stranger = hospital.new_patient(), "1"
    assert hospital.feed.put("Patient/1", {"resourceType": "Patient", "id": "1"}).status_code == 201
    add_user(hospital.smart, fhir_user=f"Patient/{stranger}", role="patient", name="Stranger", wallet=KEY.address)
    named = {**consent(victim, "Practitioner/1"), "patient": {"reference": f"Patient/{victim}/_history/{stranger}"}}
    id_ = hospital.feed.post("Consent", named).json()["id"]
    shown = hospital.feed.get(f"Consent/{id_}/$typed-data")
    assert shown.json()["message"]["patient"].lower() != KEY.address.lower()
    assert signed(hospital.feed, id_, signature=by_wallet(KEY, shown.json())).status_code == 422
    assert signed(hospital.patient(victim), id_).status_code == 200
    assert hospital.audited(victim)[0].interaction == "sign"


def test_a_paper_consent_is_attested_by_the_records_office(hospital: Hospital, patient: str) -> None:
    add_user(hospital.smart, fhir_user="Practitioner/paper-1", role="records-office", name="Records office")
    office = hospital.clinician("paper-1", purpose="HOPERAT")
    verified = {"verified": True, "verifiedWith": {"reference": f"Patient/{patient}"},
                "verificationDate": "2026-01-02"}
    id_ = proposed(office, patient, verification=[verified])
    assert signed(office, id_, kind="custodial").status_code == 403
    assert signed(hospital.patient(patient), id_, kind="attested").status_code == 403
    assert signed(office, id_, kind="attested").status_code == 200
    [(signer,)] = hospital.database.reader.execute("SELECT signer FROM consent_signature WHERE consent=?", (id_,))
    assert signer == "attested"
    [act] = [one for one in outbox.open_intents(hospital.database.reader, limit=1000) if one.consent == id_]
    assert isinstance(act.call, GrantCall)
    assert kind_of(act.call.nonce) == "attested"
    while notices.step(hospital.node):
        pass
    told = [entry["resource"] for entry in hospital.patient(patient).get(
        f"Communication?recipient=Patient/{patient}").json().get("entry", ())]
    assert [one["topic"]["coding"][0]["code"] for one in told if one["topic"]["coding"][0]["code"] in (
        "attested", "ended")] == ["attested"]
    assert hospital.patient(patient).request("POST", f"Consent/{id_}/$revoke").status_code == 200
    assert states(hospital, id_) == ["revoked"]


@pytest.mark.parametrize("verification", [
    [], [{"verified": False, "verificationDate": "2026-01-02"}], [{"verified": True}],
    [{"verified": True, "verificationDate": "2026-01-02"}],
    [{"verified": True, "verificationDate": "2999-01-02", "verifiedWith": {"reference": "Patient/@"}}],
    [{"verified": True, "verificationDate": "2026-01-02", "verifiedWith": {"reference": "Patient/other"}}]])
def test_a_paper_consent_says_who_verified_it_and_when(hospital: Hospital, patient: str,
                                                       verification: list[dict[str, Any]]) -> None:
    if journal.current(hospital.database.reader, "Patient", "other") is None:
        hospital.feed.put("Patient/other", {"resourceType": "Patient", "id": "other"})
    add_user(hospital.smart, fhir_user="Practitioner/paper-2", role="records-office", name="Records office")
    office = hospital.clinician("paper-2", purpose="HOPERAT")
    for one in verification:
        if "verifiedWith" in one:
            one["verifiedWith"] = {"reference": one["verifiedWith"]["reference"].replace("@", patient)}
    id_ = proposed(office, patient, **({"verification": verification} if verification else {}))
    before = hospital.stored()
    assert signed(office, id_, kind="attested").status_code == 422
    assert hospital.stored() == before


def test_a_delegate_brings_no_wallet_of_the_patient(hospital: Hospital, patient: str) -> None:
    person = f"RelatedPerson/{patient}"
    add_user(hospital.smart, fhir_user=person, role="delegate", name="Mother", represents=f"Patient/{patient}",
             mandate_until_ms=2**42)
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Child")
    delegate = hospital.client(user=person)
    id_ = proposed(delegate, patient)
    assert delegate.get(f"Consent/{id_}/$typed-data?wallet={KEY.address}").status_code == 403
    assert signed(delegate, id_).status_code == 200, "the kept key signs for whom the delegate represents"


def test_the_kept_key_does_not_sign_where_a_wallet_is_registered(hospital: Hospital, patient: str) -> None:
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Holder", wallet=KEY.address)
    own = hospital.patient(patient)
    id_ = proposed(own, patient)
    before = hospital.stored()
    for given in ({}, {"kind": "custodial"}):
        assert signed(own, id_, **given).status_code == 422
    assert hospital.stored() == before
    typed = own.get(f"Consent/{id_}/$typed-data").json()
    assert signed(own, id_, signature=by_wallet(KEY, typed)).status_code == 200


@pytest.mark.parametrize("wallet", ["0x" + "ab " * 20, " 0x" + "ab" * 20, "0x" + "é" * 40, "0x", "ab" * 19])
def test_a_wallet_that_is_no_address_is_refused(own: Client, patient: str, wallet: str) -> None:
    id_ = proposed(own, patient)
    assert signed(own, id_, wallet=wallet, signature="0x" + "11" * 65).status_code == 422


def test_terms_whose_time_is_over_are_not_signed(hospital: Hospital, patient: str, own: Client) -> None:
    provision = {**consent(patient, "Practitioner/1")["provision"], "period": {"end": "2020-01-01"}}
    id_ = proposed(own, patient, provision=provision)
    before = hospital.stored()
    assert signed(own, id_).status_code == 422
    assert hospital.stored() == before


def test_what_is_shown_to_be_signed_is_audited(hospital: Hospital, patient: str, own: Client) -> None:
    id_ = proposed(own, patient)
    assert own.get(f"Consent/{id_}/$typed-data").status_code == 200
    entry = hospital.audited(patient)[0]
    assert (entry.interaction, entry.outcome, entry.basis) == ("typed-data", "0", "self")
    assert entry.what == (f"Consent/{id_}/_history/1",)


@pytest.mark.parametrize("send", [
    lambda client, id_: client.get(f"Consent/{id_}/$typed-data"), signed,
    lambda client, id_: client.request("POST", f"Consent/{id_}/$revoke")])
def test_outside_the_scopes_a_consent_that_is_there_answers_as_one_that_is_not(hospital: Hospital, own: Client,
                                                                               patient: str, send: Any) -> None:
    id_ = proposed(own, patient)
    narrow = hospital.clinician("narrow-1", scope="user/Observation.rs")
    there, absent = send(narrow, id_), send(narrow, "nobody-1")
    assert there.status_code == absent.status_code == 403
    assert there.content == absent.content


def test_a_wallet_signs_a_revocation_long_after_the_grant(hospital: Hospital, patient: str, own: Client,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = proposed(own, patient)
    typed = own.get(f"Consent/{id_}/$typed-data?wallet={KEY.address}").json()
    assert signed(own, id_, wallet=KEY.address, signature=by_wallet(KEY, typed)).status_code == 200
    granted_on_chain(hospital, id_)
    finality.show_finality(hospital.node)
    assert own.get(f"Consent/{id_}").json()["status"] == "active"
    later = signing.now_ms() + 400 * 24 * 3600 * 1000
    monkeypatch.setattr(signing, "now_ms", lambda: later)
    typed = own.get(f"Consent/{id_}/$typed-data").json()
    assert typed["primaryType"] == "Revoke"
    assert MONTH_S <= int(typed["message"]["deadline"]) - later // 1000 <= 2 * MONTH_S
    parameters = {"resourceType": "Parameters", "parameter": [{"name": "signature", "valueString": "?"}]}
    parameters["parameter"][0]["valueString"] = by_wallet(OTHER, typed)  # type: ignore[index]
    assert own.post(f"Consent/{id_}/$revoke", parameters).status_code == 422
    parameters["parameter"][0]["valueString"] = by_wallet(KEY, typed)  # type: ignore[index]
    monkeypatch.setattr(signing, "now_ms", lambda: later + (MONTH_S - 1) * 1000)
    assert own.post(f"Consent/{id_}/$revoke", parameters).status_code == 200
    [call] = [one.call for one in outbox.open_intents(hospital.database.reader, limit=100)
              if one.consent == id_ and one.kind == "revoke"]
    assert isinstance(call, RevokeCall)
    assert call.deadline_s == int(typed["message"]["deadline"])


def test_a_wallet_may_still_tell_the_chain_of_a_consent_ended_here(hospital: Hospital, patient: str,
                                                                   own: Client) -> None:
    id_ = proposed(own, patient)
    typed = own.get(f"Consent/{id_}/$typed-data?wallet={KEY.address}").json()
    assert signed(own, id_, wallet=KEY.address, signature=by_wallet(KEY, typed)).status_code == 200
    assert own.request("POST", f"Consent/{id_}/$revoke").status_code == 200
    typed = own.get(f"Consent/{id_}/$typed-data").json()
    assert typed["primaryType"] == "Revoke"
    answer = own.post(f"Consent/{id_}/$revoke", {"resourceType": "Parameters", "parameter": [
        {"name": "signature", "valueString": by_wallet(KEY, typed)}]})
    assert answer.status_code == 200
    assert [one.kind for one in outbox.open_intents(hospital.database.reader, limit=500) if one.consent == id_] == [
        "grant", "revoke"]


def test_a_revocation_that_meets_the_active_version_being_written_still_holds(
        hospital: Hospital, patient: str, own: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = proposed(own, patient)
    assert signed(own, id_).status_code == 200
    granted_on_chain(hospital, id_)
    update = revoking.write.update

    async def meanwhile(*given: Any, **named: Any) -> Any:
        finality.show_finality(hospital.node)
        return await update(*given, **named)

    monkeypatch.setattr(revoking.write, "update", meanwhile)
    assert own.request("POST", f"Consent/{id_}/$revoke").status_code == 200
    assert own.get(f"Consent/{id_}").json()["status"] == "inactive"
    assert states(hospital, id_) == ["revoked"]


def test_a_revocation_seen_while_active_is_written_is_shown_next(hospital: Hospital, patient: str, own: Client,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = proposed(own, patient)
    assert signed(own, id_).status_code == 200
    granted_on_chain(hospital, id_)
    seal = hospital.node.versions.seal

    def meanwhile(*given: Any, **named: Any) -> Any:
        hospital.revoke(id_)
        return seal(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(hospital.node.versions, "seal", meanwhile)
        finality.show_finality(hospital.node)
    finality.show_finality(hospital.node)
    assert own.get(f"Consent/{id_}").json()["status"] == "inactive"


def test_a_grant_the_chain_refuses_is_told_in_the_consent_and_can_be_signed_anew(
        hospital: Hospital, patient: str, own: Client) -> None:
    id_ = proposed(own, patient, "Practitioner/dr-refused")
    assert signed(own, id_).status_code == 200
    first = own.get(f"Consent/{id_}/$typed-data").json()
    [act] = [one for one in outbox.open_intents(hospital.database.reader, limit=1000) if one.consent == id_]
    hospital.database.transact(lambda tx: refuse(tx, act, "SignatureExpired"))
    assert states(hospital, id_) == ["revoked"]
    assert finality.show_finality(hospital.node) == 1
    told = own.get(f"Consent/{id_}").json()
    assert (told["status"], told["extension"]) == (
        "proposed", [{"url": consent_refused.URL, "valueCode": "SignatureExpired"}])
    assert finality.show_finality(hospital.node) == 0
    again = own.put(f"Consent/{id_}", {**told, "dateTime": "2026-11-01"})
    assert (again.status_code, again.json()["extension"]) == (200, told["extension"]), "who read it may send it back"
    forged = {**told, "extension": [{**told["extension"][0], "valueCode": "NonceUsed"}]}
    assert own.put(f"Consent/{id_}", forged).status_code == 422
    anew = own.get(f"Consent/{id_}/$typed-data").json()
    assert anew["primaryType"] != first["primaryType"], "the grant is asked for, no more its revocation"
    assert signed(own, id_).status_code == 200
    assert states(hospital, id_) == ["pending"]
    granted_on_chain(hospital, id_)
    assert finality.show_finality(hospital.node) == 1
    told = own.get(f"Consent/{id_}").json()
    assert told["status"] == "active"
    assert "extension" not in told


def test_only_the_gateway_says_that_the_chain_refused_a_grant(hospital: Hospital, patient: str, own: Client) -> None:
    """By every door that writes a Consent."""
    forged = {"url": consent_refused.URL, "valueCode": "SignatureExpired"}
    body = {**consent(patient, "Practitioner/1"), "extension": [forged]}
    id_ = proposed(own, patient)
    as_xml = write_xml(parse(json.dumps({**body, "id": id_}).encode()), Shapes(hospital.node.definitions))
    by_path = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": [
        {"name": "type", "valueCode": "add"}, {"name": "path", "valueString": "Consent"},
        {"name": "name", "valueString": "extension"}, {"name": "value", "valueExtension": forged}]}]}
    put = {"request": {"method": "PUT", "url": f"Consent/{id_}"}, "resource": {**body, "id": id_}}
    for method, url, sent, kind in (
            ("POST", "Consent", body, ""), ("PUT", f"Consent/{id_}", {**body, "id": id_}, ""),
            ("PUT", f"Consent/{id_}", as_xml, "application/fhir+xml"),
            ("PATCH", f"Consent/{id_}", [{"op": "add", "path": "/extension", "value": [forged]}],
             "application/json-patch+json"),
            ("PATCH", f"Consent/{id_}", by_path, ""),
            ("POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": [put]}, "")):
        answer = own.request(method, url, sent, **({"Content_Type": kind} if kind else {}))
        assert answer.status_code == 422, (method, url, answer.text)
        [found] = places(answer)
        assert found.endswith(".extension[0].url"), (method, url, answer.text)
    batch = own.post("", {"resourceType": "Bundle", "type": "batch", "entry": [put]}).json()
    assert batch["entry"][0]["response"]["status"].startswith("422")
    assert hospital.feed.post("Consent", body).status_code == 422
    assert own.get(f"Consent/{id_}").headers["etag"] == 'W/"1"'


def test_what_a_wallet_shows_says_who_may_what_for_which_purpose_and_how_long(hospital: Hospital, patient: str,
                                                                            own: Client) -> None:
    """EIP-712: every word of the terms is a field a wallet shows; names come from accounts and registrations alone."""
    add_user(hospital.smart, fhir_user="Practitioner/dr-words", role="clinician", name="Dr Ada Words")
    app = add_client(hospital.smart, name="Pulse diary", kind="app", scope="patient/*.rs", jwks=None,
                     purposes=["TREAT"], auth="none", redirect_uris=("https://app.example/after",))
    hospital.feed.put("Practitioner/dr-words", {"resourceType": "Practitioner", "id": "dr-words",
                                                "name": [{"text": "Somebody else"}]})
    provision = {
        **consent(patient, "Practitioner/dr-words")["provision"],
        "period": {"start": "2027-01-01", "end": "2027-12-31"},
        "class": [{"system": "http://hl7.org/fhir/resource-types", "code": code}
                  for code in ("Observation", "Condition")],
        "purpose": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREAT"}]}
    provision["actor"].append({**provision["actor"][0], "reference": {"reference": f"Device/{app}",
                                                                      "display": "A name the client chose"}})
    id_ = proposed(own, patient, provision=provision)
    terms = own.get(f"Consent/{id_}/$typed-data?wallet={KEY.address}").json()["message"]["terms"]
    for words in ('"Dr Ada Words" (Practitioner/dr-words)', f'"Pulse diary" (Device/{app})',
                  "Condition and Observation records", "treatment (TREAT)", "from 2027-01-01", "until 2028-01-01",
                  "You can revoke this at any time."):
        assert words in terms["statement"], words
    assert terms["hospital"] == hospital.settings.hospital_name
    assert terms["grantee"] == f'"Pulse diary" (Device/{app}) and "Dr Ada Words" (Practitioner/dr-words)'
    assert "treatment (TREAT)" in terms["purposes"]
    assert terms["period"].startswith("from 2027-01-01")
    assert "Somebody else" not in str(terms)
    assert "chose" not in str(terms)
