"""Granting and revoking down to the contract, on the embedded chain: what is told here agrees with what stands there.

Invariants 6 and 11; ``contracts/README.md``: epochs, nonces, passkeys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from eth_account import Account

from gateway.access.terms import Terms
from gateway.errors import ChainReverted
from gateway.ledger.address import Address, address
from gateway.ledger.calls import GrantCall, RevokeAllCall
from gateway.ledger.events import Granted
from gateway.records import finality, signing
from gateway.records.consent_standing import Current
from gateway.smart.accounts import add_user
from gateway.store import followed, journal, outbox
from tests.consent import consent
from tests.journeys.authenticator import Passkey, registered
from tests.journeys.chained import ChainedHospital, EmbeddedChain
from tests.journeys.hospital import Client
from tests.journeys.test_consents import by_wallet, signed, states


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainedHospital]:
    embedded = EmbeddedChain(tmp_path_factory.mktemp("chain"))
    try:
        made = ChainedHospital(tmp_path_factory.mktemp("hospital") / "data", embedded)
        made.settle()
        made.chain_fresh(True)
        yield made
        made.close()
    finally:
        embedded.close()


@pytest.fixture
def patient(hospital: ChainedHospital) -> str:
    made = hospital.new_patient()
    add_user(hospital.smart, fhir_user=f"Patient/{made}", role="patient", name="Holder")
    return made


def proposed(client: Client, patient: str, grantee: str = "Practitioner/1", **elements: Any) -> str:
    answer = client.post("Consent", consent(patient, grantee, **elements))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def status(client: Client, id_: str) -> str:
    return str(client.get(f"Consent/{id_}").json()["status"])


def listed(client: Client, patient: str) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """The counts, and each Consent's access by its id."""
    answer = client.get(f"Patient/{patient}/$access-list")
    assert answer.status_code == 200, answer.text
    counts, found = {}, {}
    for one in answer.json()["parameter"]:
        if "valueInteger" in one:
            counts[one["name"]] = one["valueInteger"]
            continue
        parts = {part["name"]: next((value for key, value in part.items() if key.startswith("value")), part.get("part"))
                 for part in one["part"]}
        if "consent" in parts:
            found[parts["consent"]["reference"].split("/")[1]] = parts
    return counts, found


def addresses(hospital: ChainedHospital, patient: str) -> set[Address]:
    return {address(str(one)) for (one,) in hospital.database.reader.execute(
        "SELECT DISTINCT address FROM provision p JOIN patient h ON h.pk=p.patient WHERE h.id=? AND address>''",
        (patient,))}


def on_chain(hospital: ChainedHospital, patient: str) -> int:
    return sum(hospital.chain.granted_count(one) for one in addresses(hospital, patient))


def by_passkey(client: Client, passkey: Passkey, url: str) -> dict[str, str]:
    return passkey.answer(client.get(url).json()["publicKey"])


def test_a_passkeys_grant_and_revocation_are_what_the_contract_takes(hospital: ChainedHospital, patient: str) -> None:
    own, passkey = hospital.patient(patient), registered(hospital, f"Patient/{patient}", Passkey())
    id_ = proposed(own, patient, "Practitioner/dr-key")
    answer = signed(own, id_, **by_passkey(own, passkey, f"Consent/{id_}/$typed-data?kind=passkey"))
    assert answer.status_code == 200, answer.text
    hospital.until(lambda: states(hospital, id_) == ["final"])
    hospital.settle()
    assert status(own, id_) == "active"
    assert on_chain(hospital, patient) == 1
    assert hospital.clinician("dr-key").get(f"Patient/{patient}").status_code == 200
    counts, access = listed(own, patient)
    assert counts == {"granted": 1, "inForce": 1, "pending": 0}
    assert (access[id_]["signer"], access[id_]["state"]) == ("passkey", "active")
    assert {part["name"] for part in access[id_]["grant"]} == {"state", "transaction", "block"}

    given = by_passkey(own, passkey, f"Consent/{id_}/$typed-data")
    assert own.post(f"Consent/{id_}/$revoke", {"resourceType": "Parameters", "parameter": [
        {"name": name, "valueString": value} for name, value in given.items()]}).status_code == 200
    assert hospital.clinician("dr-key").get(f"Patient/{patient}").status_code == 404
    hospital.until(lambda: on_chain(hospital, patient) == 0)
    hospital.settle()
    counts, access = listed(own, patient)
    assert counts == {"granted": 0, "inForce": 0, "pending": 0}
    assert (access[id_]["state"], "ended" in access[id_], "revocation" in access[id_]) == ("ended", True, True)


def test_counts_agree_with_the_chains(hospital: ChainedHospital, patient: str) -> None:
    own = hospital.patient(patient)
    ids = [proposed(own, patient, f"Practitioner/dr-{number}") for number in range(4)]
    soon = {**consent(patient, "Practitioner/later")["provision"], "period": {"start": "2090-01-01"}}
    ids.append(proposed(own, patient, provision=soon))
    proposed(own, patient, "Practitioner/never-signed")
    denied = consent(patient, "Practitioner/denied")["provision"]
    denies = proposed(own, patient, provision={**denied, "type": "deny"})
    for id_ in (*ids, denies):
        assert signed(own, id_).status_code == 200
    assert listed(own, patient)[0] == {"granted": 0, "inForce": 0, "pending": 5}
    hospital.until(lambda: all(states(hospital, id_) == ["final"] for id_ in ids))
    hospital.settle()
    counts, access = listed(own, patient)
    assert counts == {"granted": 5, "inForce": 4, "pending": 0}
    assert counts["granted"] == on_chain(hospital, patient) == 5
    assert own.request("POST", f"Consent/{ids[0]}/$revoke").status_code == 200
    hospital.settle()
    counts, access = listed(own, patient)
    assert counts["granted"] == on_chain(hospital, patient) == 4
    active = set(own.all_ids(f"Consent?patient=Patient/{patient}&status=active"))
    assert active == {id_ for id_, parts in access.items() if parts["state"] == "active"} == {*ids[1:], denies}
    assert set(own.all_ids(f"Consent?patient=Patient/{patient}&status=inactive")) == {ids[0]}
    assert access[denies]["type"] == "deny"


def test_everything_ends_on_chain_by_one_epoch_of_each_address(hospital: ChainedHospital, patient: str) -> None:
    own, passkey = hospital.patient(patient), registered(hospital, f"Patient/{patient}", Passkey())
    kept = [proposed(own, patient, f"Practitioner/dr-a{number}") for number in range(3)]
    by_key = proposed(own, patient, "Practitioner/dr-b")
    for id_ in kept:
        assert signed(own, id_).status_code == 200
    assert signed(own, by_key, **by_passkey(own, passkey, f"Consent/{by_key}/$typed-data?kind=passkey")
                  ).status_code == 200
    everything = [*kept, by_key]
    hospital.until(lambda: all(states(hospital, id_) == ["final"] for id_ in everything))
    hospital.settle()
    assert on_chain(hospital, patient) == 4
    accounts = addresses(hospital, patient)
    answer = own.post(f"Patient/{patient}/$revoke-all", {"resourceType": "Parameters"})
    assert answer.status_code == 200, answer.text
    told = {part["part"][0]["valueString"]: part["part"][1]["valueCode"] for part in answer.json()["parameter"][1:]}
    assert answer.json()["parameter"][0]["valueInteger"] == 4
    assert sorted(told.values()) == ["queued", "signature-needed"]
    assert set(told) == accounts
    assert all(states(hospital, id_) == ["revoked"] for id_ in everything)
    assert all(status(own, id_) == "inactive" for id_ in everything)
    hospital.settle()
    assert on_chain(hospital, patient) == 1, "the passkey's own grant waits for its signature"
    given = by_passkey(own, passkey, f"Patient/{patient}/$revoke-all?kind=passkey")
    again = own.post(f"Patient/{patient}/$revoke-all", {"resourceType": "Parameters", "parameter": [
        {"name": name, "valueString": value} for name, value in given.items()]})
    assert again.status_code == 200, again.text
    hospital.until(lambda: on_chain(hospital, patient) == 0)
    hospital.settle()
    assert {hospital.chain.epoch(one) for one in accounts} == {1}
    counts, access = listed(own, patient)
    assert counts == {"granted": 0, "inForce": 0, "pending": 0}
    assert {parts["state"] for parts in access.values()} == {"ended"}

    # What comes later is of the next epoch, and is not touched by an old signature sent again.
    fresh = proposed(own, patient, "Practitioner/dr-a0")
    assert signed(own, fresh).status_code == 200
    hospital.until(lambda: states(hospital, fresh) == ["final"])
    assert on_chain(hospital, patient) == 1
    refused = own.post(f"Patient/{patient}/$revoke-all", {"resourceType": "Parameters", "parameter": [
        {"name": name, "valueString": value} for name, value in given.items()]})
    assert refused.status_code == 422
    assert states(hospital, fresh) == ["final"]


def test_grants_on_their_way_do_not_come_back_after_everything_was_ended(hospital: ChainedHospital,
                                                                         patient: str) -> None:
    own = hospital.patient(patient)
    sent, unsent = (proposed(own, patient, f"Practitioner/dr-way-{number}") for number in range(2))
    assert signed(own, sent).status_code == 200
    hospital.relay.poll()
    assert signed(own, unsent).status_code == 200
    copies = [one.call for one in outbox.open_intents(hospital.database.reader, limit=500)
              if one.consent in (sent, unsent)]
    assert own.request("POST", f"Patient/{patient}/$revoke-all").status_code == 200
    hospital.settle()
    assert on_chain(hospital, patient) == 0
    assert [states(hospital, id_) for id_ in (sent, unsent)] == [["revoked"], ["revoked"]]
    acts = {str(consent): (str(state), error) for consent, state, error in hospital.database.reader.execute(
        "SELECT consent, state, error FROM intent WHERE consent IN (?,?)", (sent, unsent))}
    assert acts == {sent: ("final", None), unsent: ("failed", outbox.WITHDRAWN)}
    for id_ in (sent, unsent):
        assert signed(own, id_).status_code == 409
        assert own.put(f"Consent/{id_}", {**consent(patient, "Practitioner/dr-way-0"), "id": id_}).status_code == 422
    # Somebody who copied the signature that was never sent brings it to the chain: here it still counts for nothing.
    [copy] = [one for one in copies if isinstance(one, GrantCall) and one.signature not in {b""} and not
              hospital.chain.is_nonce_used(one.patient, one.nonce)]
    hospital.chain.send(copy, nonce=hospital.chain.nonce("pending"), fees=hospital.chain.fees())
    hospital.settle()
    assert states(hospital, unsent) == ["revoked"]
    assert hospital.clinician("dr-way-1").get(f"Patient/{patient}").status_code == 404


def test_what_a_wallet_ends_on_chain_by_itself_ends_here(hospital: ChainedHospital, patient: str) -> None:
    own, key = hospital.patient(patient), Account.create()
    id_ = proposed(own, patient, "Practitioner/dr-w")
    typed = own.get(f"Consent/{id_}/$typed-data?wallet={key.address}").json()
    assert signed(own, id_, wallet=key.address, signature=by_wallet(key, typed)).status_code == 200
    hospital.until(lambda: states(hospital, id_) == ["final"])
    typed = own.get(f"Patient/{patient}/$revoke-all").json()
    assert typed["primaryType"] == "RevokeAll"
    message, account = typed["message"], address(key.address)
    call = RevokeAllCall(patient=account, epoch=int(message["epoch"]), nonce=int(message["nonce"]),
                         deadline_s=int(message["deadline"]), signature=bytes.fromhex(by_wallet(key, typed)[2:]))
    hospital.chain.send(call, nonce=hospital.chain.nonce("pending"), fees=hospital.chain.fees())
    hospital.until(lambda: states(hospital, id_) == ["revoked"])
    hospital.settle()
    assert status(own, id_) == "inactive"
    assert followed.epoch_of(hospital.database.reader, account) == 1


def test_a_grant_that_was_on_chain_before_it_was_signed_here_counts(hospital: ChainedHospital, patient: str) -> None:
    """A wallet that sends its own transaction is quicker than the page that tells the gateway."""
    own, key = hospital.patient(patient), Account.create()
    id_ = proposed(own, patient, "Practitioner/dr-quick")
    ended = proposed(own, patient, "Practitioner/dr-ended")
    given = {}
    for one in (id_, ended):
        typed = own.get(f"Consent/{one}/$typed-data?wallet={key.address}").json()
        signature = by_wallet(key, typed)
        row = journal.current(hospital.database.reader, "Consent", one)
        assert row is not None
        message = signing.signable_of(hospital.node, hospital.database.reader, Current(
            row=row, consent=own.get(f"Consent/{one}").json(), patient=patient, decision=None),  # type: ignore[arg-type]
            signing.Signer(kind="wallet", address=address(key.address))).message
        call = GrantCall(patient=address(key.address), grantee=message.grantee, terms_hash=signing.terms_hash(
            message.terms), valid_from_s=message.valid_from_s, valid_until_s=message.valid_until_s,
            epoch=message.epoch, nonce=message.nonce, deadline_s=message.deadline_s,
            signature=bytes.fromhex(signature[2:]))
        hospital.chain.send(call, nonce=hospital.chain.nonce("pending"), fees=hospital.chain.fees())
        given[one] = signature
    hospital.settle()
    assert len([e for e in hospital.chain.logs(0, hospital.chain.head().number)
                if isinstance(e, Granted) and e.patient == address(key.address)]) == 2
    assert signed(own, id_, wallet=key.address, signature=given[id_]).status_code == 200
    assert states(hospital, id_) == ["pending"]
    hospital.until(lambda: states(hospital, id_) == ["final"])
    hospital.settle()
    assert status(own, id_) == "active"
    assert hospital.clinician("dr-quick").get(f"Patient/{patient}").status_code == 200
    # The other was ended on chain before it was signed here.
    typed = own.get(f"Patient/{patient}/$revoke-all").json()
    call_all = RevokeAllCall(patient=address(key.address), epoch=0, nonce=int(typed["message"]["nonce"]),
                             deadline_s=int(typed["message"]["deadline"]),
                             signature=bytes.fromhex(by_wallet(key, typed)[2:]))
    hospital.chain.send(call_all, nonce=hospital.chain.nonce("pending"), fees=hospital.chain.fees())
    assert signed(own, ended, wallet=key.address, signature=given[ended]).status_code == 200, "not seen here yet"
    hospital.until(lambda: states(hospital, id_) == states(hospital, ended) == ["revoked"])
    assert hospital.clinician("dr-ended").get(f"Patient/{patient}").status_code == 404


def bring(own: Client, path: str, account: Any, given: dict[str, str]) -> httpx.Response:
    """Send a wallet's signature to an operation."""
    return own.post(path, {"resourceType": "Parameters", "parameter": [
        {"name": name, "valueString": value} for name, value in {"wallet": account.address, **given}.items()]})


@pytest.mark.parametrize("told", [True, False], ids=["the chain is told", "the wallet does not sign the end"])
def test_what_was_signed_before_everything_was_ended_and_never_sent_ended_too(
        hospital: ChainedHospital, patient: str, told: bool) -> None:
    own, key = hospital.patient(patient), Account.create()
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Holder", wallet=key.address)
    own = hospital.patient(patient)
    id_ = proposed(own, patient, "Practitioner/dr-held")
    typed = own.get(f"Consent/{id_}/$typed-data").json()
    assert typed["message"]["epoch"] == 0
    held, call = by_wallet(key, typed), typed["message"]
    given = {"signature": by_wallet(key, own.get(f"Patient/{patient}/$revoke-all").json())} if told else {}
    assert bring(own, f"Patient/{patient}/$revoke-all", key, given).status_code == 200
    refused = signed(own, id_, wallet=key.address, signature=held)
    assert refused.status_code == 422, "at once here, before any block"
    assert states(hospital, id_) == []
    if told:
        assert bring(own, f"Patient/{patient}/$revoke-all", key, given).status_code == 200, "the same once more"
        assert len([one for one in outbox.open_intents(hospital.database.reader, limit=500)
                    if one.call.patient == address(key.address)]) == 1
        hospital.until(lambda: hospital.chain.epoch(address(key.address)) == 1)
        hospital.settle()
        terms = Terms(**{**call["terms"], "salt": bytes.fromhex(call["terms"]["salt"][2:])})
        with pytest.raises(ChainReverted) as error:  # nor does the chain take it from anybody else
            hospital.chain.estimate(GrantCall(
                patient=address(key.address), grantee=bytes.fromhex(call["grantee"][2:]),
                terms_hash=signing.terms_hash(terms), valid_from_s=call["validFrom"],
                valid_until_s=call["validUntil"], epoch=0, nonce=int(call["nonce"]), deadline_s=call["deadline"],
                signature=bytes.fromhex(held[2:])))
        assert error.value.name == "EpochMismatch"
    anew = own.get(f"Consent/{id_}/$typed-data").json()
    assert (anew["message"]["epoch"], anew["message"]["nonce"] != call["nonce"]) == (int(told), True)
    assert signed(own, id_, wallet=key.address, signature=by_wallet(key, anew)).status_code == 200
    hospital.until(lambda: states(hospital, id_) == ["final"])


def test_what_is_granted_right_after_everything_was_ended_lands_behind_it(hospital: ChainedHospital,
                                                                          patient: str) -> None:
    own = hospital.patient(patient)
    first, after = (proposed(own, patient, f"Practitioner/dr-{name}") for name in ("first", "after"))
    assert signed(own, first).status_code == 200
    hospital.until(lambda: states(hospital, first) == ["final"])
    assert own.request("POST", f"Patient/{patient}/$revoke-all").status_code == 200
    assert own.get(f"Consent/{after}/$typed-data").json()["message"]["epoch"] == 1, "nothing has landed yet"
    assert signed(own, after).status_code == 200
    hospital.until(lambda: states(hospital, after) == ["final"])
    assert states(hospital, first) == ["revoked"]
    assert on_chain(hospital, patient) == 1


def test_a_revocation_that_came_too_late_for_the_chain_is_signed_anew(hospital: ChainedHospital, patient: str,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    own = hospital.patient(patient)
    id_ = proposed(own, patient, "Practitioner/dr-late")
    assert signed(own, id_).status_code == 200
    hospital.until(lambda: states(hospital, id_) == ["final"])
    long_ago = signing.now_ms() - 90 * 24 * 3600 * 1000
    with monkeypatch.context() as patched:
        patched.setattr("gateway.records.ending.now_ms", lambda: long_ago)
        assert own.request("POST", f"Consent/{id_}/$revoke").status_code == 200
    hospital.relay.poll()
    late = outbox.failed_of_kind(hospital.database.reader, "revoke", ("SignatureExpired",))
    assert [one.consent for one in late] == [id_]
    assert finality.renew(hospital.node) == 1
    assert finality.renew(hospital.node) == 0
    hospital.until(lambda: on_chain(hospital, patient) == 0)
    hospital.settle()
    assert outbox.act_of_consent(hospital.database.reader, id_, "revoke").state == "final"  # type: ignore[union-attr]
