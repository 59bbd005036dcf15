"""People at the portal, over HTTP: signing up, in and out, proofing, and what none of it may be turned into.

Issue 5, deliverable 4: identity proofing before an account may hold a key or sign; lock-out; sessions.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from gateway.errors import Unauthenticated
from gateway.smart import factors, lockout, logins, passwords, proofing, resets, sessions, sign_in
from gateway.smart.accounts import add_user, close_user, find_account
from gateway.smart.sign_in import REFUSED
from gateway.smart.upstream import Identity, link
from tests.journeys.hospital import Hospital
from tests.journeys.visitors import ORIGIN, PASSWORD, Authenticator, Browser, Provider, code_of

HEAD = "Practitioner/head-1"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(tmp_path_factory.mktemp("people"), base_url=f"{ORIGIN}/fhir")
    yield made
    made.close()


@pytest.fixture(autouse=True, scope="module")
def light_hashes() -> Iterator[None]:
    """Argon2id at a fiftieth of its work: what it costs is unit/smart/test_passwords.py's to hold."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(passwords, "MEMORY_KIB", 1_024)
        yield


@pytest.fixture(autouse=True)
def no_delay(hospital: Hospital) -> None:
    """Each test begins without the failures of the one before."""
    hospital.database.transact(lambda tx: tx.execute("DELETE FROM sign_in_failure"))


def staff(hospital: Hospital, name: str, *, user: str = HEAD, role: str = "privacy-officer") -> tuple[Browser, bytes]:
    """Somebody the operator made, signed in with password and code; the seed of their codes."""
    add_user(hospital.smart, fhir_user=user, role=role, name="Dr Head")
    uri = logins.set_by_operator(hospital.smart, name=name, fhir_user=user, role=role, shown="Dr Head",
                                 password=PASSWORD)
    assert uri is not None
    text = parse_qs(urlsplit(uri).query)["secret"][0]
    seed = base64.b32decode(text + "=" * (-len(text) % 8))
    browser = Browser(hospital)
    assert browser.sign_in(name, code=code_of(seed)).status_code == 303
    return browser, seed


def waiting_login(hospital: Hospital, name: str, **how: str) -> tuple[Browser, str]:
    """Somebody who signed up and is signed in; their login's id."""
    browser = Browser(hospital)
    answer = browser.sign_up(name, **how)
    assert (answer.status_code, answer.headers["location"]) == (303, "/portal/sign-in?made=1")
    assert browser.sign_in(name).status_code == 303
    login = logins.find_by_name(hospital.database.reader, name)
    assert login is not None
    return browser, login.id


def patient(hospital: Hospital, name: str) -> tuple[Browser, str]:
    """A verified patient, signed in; their logical id."""
    browser, login = waiting_login(hospital, name)
    id_ = hospital.new_patient()
    proofing.verify(hospital.smart, login, fhir_user=f"Patient/{id_}",
                    decider=proofing.Decider(user=None, role=proofing.OPERATOR))
    assert browser.sign_in(name).status_code == 303
    return browser, id_


def grow_old(hospital: Hospital) -> None:
    """Every open session was signed in too long ago to change how to sign in."""
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE session SET auth_time_ms=auth_time_ms-? WHERE ended_ms IS NULL", (sessions.RECENT_MS + 1,)))


def session_of(hospital: Hospital, browser: Browser) -> sessions.Session | None:
    return sessions.session_of(hospital.smart, browser.cookies.get("gateway"))


def test_who_signed_up_waits_and_stands_for_nobody(hospital: Hospital) -> None:
    browser, login = waiting_login(hospital, "ada@example.org")
    assert browser.get("/portal").status_code == 200
    assert "Waiting for the records office" in browser.text
    session = session_of(hospital, browser)
    assert session is not None
    assert (session.user, session.role, session.state, session.methods) == (None, None, "waiting", ("pwd",))
    assert browser.get("/portal/proofing").status_code == 403
    row = hospital.database.reader.execute("SELECT matching FROM login WHERE id=?", (login,)).get
    assert b"1970" not in bytes(row)
    assert b"MRN" not in bytes(row)


def test_the_head_verifies_and_the_old_session_gains_nothing(hospital: Hospital) -> None:
    browser, login = waiting_login(hospital, "bea")
    id_ = hospital.new_patient()
    head, _ = staff(hospital, "head-a")
    assert head.get("/portal/proofing").status_code == 200
    assert {"1970-02-03", "MRN 77"} <= set(head.text.replace("\n", "|").split("|")) or "MRN 77" in head.text
    answer = head.post(f"/portal/proofing/{login}/verify", {"user": f"Patient/{id_}"})
    assert answer.status_code == 303
    assert session_of(hospital, browser) is None
    assert browser.sign_in("bea").headers["location"] == "/portal"
    session = session_of(hospital, browser)
    assert session is not None
    assert (session.user, session.role) == (f"Patient/{id_}", "patient")
    account = find_account(hospital.database.reader, f"Patient/{id_}")
    assert account is not None
    assert hospital.database.reader.execute("SELECT matching FROM login WHERE id=?", (login,)).get is None
    told = [entry.interaction for entry in hospital.audited(id_)]
    assert {"proofing-verify", "sign-in"} <= set(told)


def test_json_lists_verifies_and_rejects(hospital: Hospital) -> None:
    browser, login = waiting_login(hospital, "cleo")
    head, _ = staff(hospital, "head-b")
    listed = head.get("/portal/proofing", Accept="application/json").json()
    [one] = [one for one in listed["waiting"] if one["id"] == login]
    assert (one["birth_date"], one["identifier"], one["ready"]) == ("1970-02-03", "MRN 77", True)
    head.page = f'<form data-csrf="{listed["csrf"]}">'
    wrong = head.script(f"/portal/proofing/{login}/verify", {"user": "Patient/nobody-here"})
    assert (wrong.status_code, "no record" in wrong.json()["error"]) == (422, True)
    assert head.script(f"/portal/proofing/{login}/reject", {"reason": "The number is another's."}).status_code == 200
    browser.get("/portal")
    assert "The number is another's." in browser.text
    session = session_of(hospital, browser)
    assert session is not None
    assert (session.user, session.state) == (None, "rejected")
    assert head.script(f"/portal/proofing/{login}/verify", {"user": "Patient/x"}).status_code == 404


def test_a_clinician_needs_a_second_factor_to_be_verified_and_to_sign_in(hospital: Hospital) -> None:
    browser, login = waiting_login(hospital, "dora", wanted="clinician")
    hospital.feed.put("Practitioner/dora", {"resourceType": "Practitioner", "id": "dora"})
    head, _ = staff(hospital, "head-c")
    head.get("/portal/proofing")
    assert head.post(f"/portal/proofing/{login}/verify", {"user": "Practitioner/dora"}).status_code == 422
    seed, recovery = browser.set_up_codes()
    assert len(recovery) == 8
    head.get("/portal/proofing")
    assert head.post(f"/portal/proofing/{login}/verify", {"user": "Practitioner/dora"}).status_code == 303
    assert browser.sign_in("dora").status_code == 403
    assert browser.sign_in("dora", code=code_of(seed)).status_code == 303
    session = session_of(hospital, browser)
    assert session is not None
    assert (session.role, session.methods) == ("clinician", ("pwd", "otp"))
    # RFC 6238 section 5.2: a code that was taken counts no second time.
    assert Browser(hospital).sign_in("dora", code=code_of(seed)).status_code == 403
    assert Browser(hospital).sign_in("dora", code=recovery[0]).status_code == 303
    assert Browser(hospital).sign_in("dora", code=recovery[0]).status_code == 403
    # The last factor of staff stays.
    browser.get("/portal/account")
    assert browser.post("/portal/account/codes/remove", {}).status_code == 409
    assert "last factor" in browser.text


def test_the_records_office_verifies_patients_alone_and_nobody_themselves(hospital: Hospital) -> None:
    _, doctor = waiting_login(hospital, "eve", wanted="clinician")
    office, _ = staff(hospital, "office-a", user="Practitioner/office", role="records-office")
    office.get("/portal/proofing")
    assert doctor not in office.page
    assert office.post(f"/portal/proofing/{doctor}/reject", {"reason": "no"}).status_code == 403
    plain, _ = patient(hospital, "fay")
    plain.get("/portal")
    assert plain.post(f"/portal/proofing/{doctor}/reject", {"reason": "no"}).status_code == 403


def test_those_who_wait_for_another_hide_nobody(hospital: Hospital) -> None:
    """However many sign up as clinicians, the records office sees the patients."""
    _, doctor = waiting_login(hospital, "eva", wanted="clinician")
    _, ill = waiting_login(hospital, "eli")
    hospital.database.transact(lambda tx: tx.execute("UPDATE login SET created_ms=1 WHERE id=?", (doctor,)))
    hospital.database.transact(lambda tx: tx.execute("UPDATE login SET created_ms=2 WHERE id=?", (ill,)))
    office = proofing.Decider(user="Practitioner/office", role="records-office")
    assert [one.id for one in proofing.waiting(hospital.smart, office, limit=1)] == [ill]


def test_sign_ups_nobody_decided_on_are_forgotten(hospital: Hospital) -> None:
    """Anybody makes them; with them go the birth date and the number, which are kept for the decision alone."""
    old, login = waiting_login(hospital, "una")
    assert old.add_passkey(Authenticator()).status_code == 201
    _, young = waiting_login(hospital, "ulf")
    _, id_ = patient(hospital, "uwe")
    long_ago = hospital.smart.now_ms() - logins.FORGOTTEN_MS - 1
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE login SET created_ms=? WHERE id=? OR fhir_user=?", (long_ago, login, f"Patient/{id_}")))
    assert hospital.database.transact(lambda tx: logins.sweep(tx, hospital.smart.now_ms())) > 0
    reader = hospital.database.reader
    assert logins.find_login(reader, login) is None
    assert logins.find_login(reader, young) is not None
    assert [one.state for one in logins.logins_of(reader, f"Patient/{id_}")] == ["verified"]
    assert session_of(hospital, old) is None
    for table in ("session", "passkey"):
        assert not reader.execute(f"SELECT 1 FROM {table} WHERE login=?", (login,)).fetchall()
    assert waiting_login(hospital, "una")[1] != login  # the name is free again


def test_one_address_fills_the_queue_of_sign_ups_for_nobody_else(hospital: Hospital,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in SQL, by all workers together; an IPv6 host has all of its /64."""
    monkeypatch.setattr(logins, "SHARE_MAX", 2)
    for number, name in enumerate(("fay-queued", "fin-queued")):
        assert Browser(hospital, address=f"2001:db8:0:1::{number}").sign_up(name).status_code == 303
    full = Browser(hospital, address="2001:db8:0:1:ffff::1").sign_up("flo-queued")
    assert (full.status_code, int(full.headers["retry-after"]) > 0) == (429, True)
    assert "records office" in full.text
    assert Browser(hospital, address="2001:db8:0:1::9").sign_up("fay-queued").text == full.text  # whoever has the name
    assert Browser(hospital, address="2001:db8:2::1").sign_up("flo-queued").status_code == 303
    fay = logins.find_by_name(hospital.database.reader, "fay-queued")
    assert fay is not None
    proofing.reject(hospital.smart, fay.id, reason="unknown", decider=proofing.Decider(
        user=None, role=proofing.OPERATOR))
    assert Browser(hospital, address="2001:db8:0:1::1").sign_up("fred-queued").status_code == 303  # there is room
    monkeypatch.setattr(logins, "WAITING_MAX", 1)
    assert Browser(hospital, address="2001:db8:3::1").sign_up("fox-queued").status_code == 429


def test_unknown_wrong_and_delayed_are_one_answer(hospital: Hospital) -> None:
    patient(hospital, "gil")
    hospital.database.transact(lambda tx: tx.execute("DELETE FROM sign_in_failure"))

    def refused(name: str, password: str) -> tuple[int, str, set[str]]:
        browser = Browser(hospital, address="198.51.100.7")
        answer = browser.sign_in(name, password=password)
        return answer.status_code, answer.text.replace(browser.csrf, "csrf"), set(answer.headers)

    wrong = refused("gil", "not the password at all")
    assert wrong == refused("nobody at all", PASSWORD)
    assert wrong == refused("gil", "x" * 5_000)
    for _ in range(lockout.LOGIN.free):
        refused("gil", "not the password at all")
    assert wrong == refused("gil", PASSWORD)  # the right one, during the delay
    assert "gil" not in wrong[1]
    outcomes = [(entry.outcome, entry.reason) for entry in hospital.audited()[:8] if entry.interaction == "sign-in"]
    assert ("4", "delayed") in outcomes
    assert ("4", "wrong-password") in outcomes


def test_what_began_before_a_reset_adds_no_way_in(hospital: Hospital) -> None:
    """A thief's requests that were past the look at their session when all of them ended."""
    browser, id_ = patient(hospital, "robbed")
    smart, device, key = hospital.smart, Authenticator(), Account.create()
    session, login = session_of(hospital, browser), logins.find_by_name(hospital.database.reader, "robbed")
    assert session is not None
    assert login is not None
    who = Identity(issuer="https://idp.example", subject="robbed", auth_time_ms=None, next_path=None)
    hospital.database.transact(lambda tx: link(tx, issuer=who.issuer, subject=who.subject, login=login.id, now_ms=1))
    made = device.make(factors.begin_passkey(smart, session))
    text = sign_in.begin_wallet(smart, "wallet-add", key.address, chain_id=1, bound=session.id)
    proof = key.sign_message(encode_defunct(text=text)).signature.to_0x_hex()
    resets.reset(smart, fhir_user=f"Patient/{id_}", name="robbed", password="another long password")
    for act in (lambda: factors.add_passkey(smart, session, name="Mine", credential=made),
                lambda: factors.add_wallet(smart, session, text, proof, chain_id=1),
                lambda: sign_in.change_password(smart, session, "another long password", "the password of a thief")):
        with pytest.raises(Unauthenticated):
            act()
    stranger = Browser(hospital)
    stranger.get("/portal/sign-in")
    assert stranger.sign_in_by_passkey(device).status_code == 403
    made_by = sign_in.Browser(visit="v", cookie=None, known_device="", address=None, device="")
    assert sign_in.by_upstream(smart, who, made_by) is None
    assert Browser(hospital).sign_in("robbed", password="another long password").status_code == 303


def test_a_stranger_does_not_lock_anybody_out(hospital: Hospital) -> None:
    browser, _ = patient(hospital, "hal")
    device = Authenticator()
    assert browser.add_passkey(device).status_code == 201
    for _ in range(lockout.LOGIN.free + 1):
        Browser(hospital, address="198.51.100.9").sign_in("hal", password="wrong wrong wrong")
    assert Browser(hospital, address="198.51.100.8").sign_in("hal").status_code == 403
    # A browser they signed in from before is counted apart; a passkey is not held up at all.
    assert browser.sign_in("hal").status_code == 303
    assert Browser(hospital).sign_in_by_passkey(device).status_code == 200
    # The delay ends by itself, and trying meanwhile did not lengthen it.
    hospital.database.transact(lambda tx: tx.execute("UPDATE sign_in_failure SET until_ms=0"))
    assert Browser(hospital, address="198.51.100.8").sign_in("hal").status_code == 303


def test_a_source_that_tries_many_names_has_to_wait_and_nobody_else(hospital: Hospital) -> None:
    patient(hospital, "hope")
    guesser = Browser(hospital, address="203.0.113.5")
    for number in range(lockout.SOURCE.free + 1):
        assert guesser.sign_in(f"guess-{number}").status_code == 403
    refused = guesser.sign_in("hope")
    assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
    assert guesser.sign_in("nobody-there").text == refused.text
    assert Browser(hospital, address="203.0.113.6").sign_in("hope").status_code == 303


def test_a_passkey_signs_in_verified_by_its_user_and_never_twice(hospital: Hospital) -> None:
    browser, id_ = patient(hospital, "ida")
    device = Authenticator()
    assert browser.add_passkey(device).status_code == 201
    elsewhere = Browser(hospital)
    assert elsewhere.sign_in_by_passkey(device).json() == {"next": "/portal"}
    session = session_of(hospital, elsewhere)
    assert session is not None
    assert (session.user, session.methods) == (f"Patient/{id_}", ("hwk",))
    assert Browser(hospital).sign_in_by_passkey(device, counter=1).status_code == 403  # a clone
    # The challenge is of one browser, and of one use.
    mine, thief = Browser(hospital), Browser(hospital)
    mine.get("/portal/sign-in")
    thief.get("/portal/sign-in")
    options = mine.script("/portal/passkey/options", {}).json()
    signed = device.sign(options)
    assert thief.script("/portal/passkey/sign-in", {"credential": signed}).status_code == 403
    assert mine.script("/portal/passkey/sign-in", {"credential": signed}).status_code == 403
    for spoiled in ("verifies", "origin", "rp_id"):
        wrong = Authenticator(**({"verifies": False} if spoiled == "verifies" else {spoiled: "https://evil.example"}))
        wrong.key, wrong.id, wrong.user, wrong.counter = device.key, device.id, device.user, 100
        assert Browser(hospital).sign_in_by_passkey(wrong).status_code == 403, spoiled
    assert Browser(hospital).sign_in_by_passkey(device, counter=101).status_code == 200


def test_a_passkey_is_added_in_a_fresh_session_verified_and_once(hospital: Hospital) -> None:
    browser, _ = patient(hospital, "jon")
    assert browser.add_passkey(Authenticator(verifies=False)).status_code == 422
    assert browser.add_passkey(Authenticator(origin="https://evil.example")).status_code == 422
    device = Authenticator()
    browser.get("/portal/account")
    options = browser.script("/portal/account/passkeys/options", {}).json()
    made = {"name": "Key", "credential": device.make(options)}
    assert browser.script("/portal/account/passkeys", made).status_code == 201
    assert browser.script("/portal/account/passkeys", made).status_code == 422
    for junk in (None, {}, "x", {"id": "a", "rawId": "a", "response": {}, "type": "public-key"}):
        assert browser.script("/portal/account/passkeys", {"credential": junk}).status_code == 422
        stranger = Browser(hospital)
        stranger.get("/portal/sign-in")
        answer = stranger.script("/portal/passkey/sign-in", {"credential": junk})
        assert (answer.status_code, answer.json()["error"]) == (403, REFUSED)
    # Attestations that cannot be: no key type, no statement, no certificate.
    for cose, fmt in (({3: -7}, "none"), ({1: 9}, "none"), ({1: 2, 3: -7, -1: 1, -2: b"1", -3: b"2"}, "packed")):
        options = browser.script("/portal/account/passkeys/options", {}).json()
        wrong = Authenticator()
        wrong.cose, wrong.format = cose, fmt
        answer = browser.script("/portal/account/passkeys", {"name": "x", "credential": wrong.make(options)})
        assert answer.status_code == 422, cose
    grow_old(hospital)
    assert browser.get("/portal/account").status_code == 200
    assert "sign in again" in browser.text
    assert browser.script("/portal/account/passkeys/options", {}).status_code == 403
    assert browser.post("/portal/account/passkeys/00/remove", {}).status_code == 403


def test_a_wallet_is_registered_and_signs_in(hospital: Hospital) -> None:
    browser, id_ = patient(hospital, "kim")
    wallet, other = Account.create(), Account.create()

    def signed(browser: Browser, path: str, key: object = wallet, **changed: str) -> dict[str, str]:
        message = browser.script(f"{path}/message", {"address": wallet.address}).json()["message"]
        for old, new in changed.items():
            message = message.replace({"domain": "localhost:8080 wants", "chain": "Chain ID: 77"}[old], new)
        return {"message": message, "signature": "0x" + key.sign_message(encode_defunct(text=message)).signature.hex()}

    stranger = Browser(hospital)
    stranger.get("/portal/sign-in")
    body = {**signed(stranger, "/portal/wallet"), "next": "/portal"}
    assert stranger.script("/portal/wallet/sign-in", body).status_code == 403  # registered with nobody
    browser.get("/portal/account")
    added = browser.script("/portal/account/wallet", signed(browser, "/portal/account/wallet"))
    assert (added.status_code, added.json()["address"]) == (201, wallet.address)
    again = browser.script("/portal/account/wallet/message", {"address": other.address})
    assert again.status_code == 409
    for spoiled in ({"domain": "evil.example wants"}, {"chain": "Chain ID: 1"}, {"key": other}):
        stranger.get("/portal/sign-in")
        body = signed(stranger, "/portal/wallet", **spoiled)
        assert stranger.script("/portal/wallet/sign-in", body).status_code == 403, spoiled
    stranger.get("/portal/sign-in")
    body = signed(stranger, "/portal/wallet")
    thief = Browser(hospital)
    thief.get("/portal/sign-in")
    assert thief.script("/portal/wallet/sign-in", body).status_code == 403  # bound to the browser that asked
    assert stranger.script("/portal/wallet/sign-in", body).status_code == 403  # and used
    body = signed(stranger, "/portal/wallet")
    assert stranger.script("/portal/wallet/sign-in", body).status_code == 200
    session = session_of(hospital, stranger)
    assert session is not None
    assert (session.user, session.methods) == (f"Patient/{id_}", ("wallet",))
    stranger.get("/portal/sign-in")
    assert stranger.script("/portal/wallet/sign-in", body).status_code == 403  # replayed


def test_sessions_are_listed_and_ended_one_by_one_or_all(hospital: Hospital) -> None:
    here, _ = patient(hospital, "leo")
    there = Browser(hospital, agent="Mozilla/5.0 (iPhone) Safari/600")
    assert there.sign_in("leo").status_code == 303
    here.get("/portal/account")
    assert "Safari on iPhone" in here.text
    assert "Firefox on Linux" in here.text
    session = session_of(hospital, there)
    assert session is not None
    assert here.post(f"/portal/account/sessions/{session.id}/end", {}).status_code == 303
    assert there.get("/portal/account").headers["location"] == "/portal/sign-in?next=/portal/account"
    assert there.sign_in("leo").status_code == 303
    here.get("/portal/account")
    assert here.post("/portal/account/sessions/end-all", {}).status_code == 303
    assert session_of(hospital, there) is None
    assert here.get("/portal/account").status_code == 303


def test_all_logins_of_a_person_are_signed_out_together(hospital: Hospital) -> None:
    first, id_ = patient(hospital, "lia")
    second, login = waiting_login(hospital, "lia-2")
    proofing.verify(hospital.smart, login, fhir_user=f"Patient/{id_}",
                    decider=proofing.Decider(user=None, role=proofing.OPERATOR))
    assert second.sign_in("lia-2").status_code == 303
    assert session_of(hospital, first) is not None
    first.get("/portal/account")
    assert first.post("/portal/account/sessions/end-all", {}).status_code == 303
    assert session_of(hospital, second) is None


def test_a_patient_reads_in_the_audit_who_signed_in(hospital: Hospital) -> None:
    """DICOM PS3.15 A.5: user authentication, 110114."""
    _, id_ = patient(hospital, "lou")
    Browser(hospital).sign_in("lou", password="not the password")
    found = hospital.patient(id_).get("AuditEvent").json()
    signed_in = [entry["resource"] for entry in found["entry"] if entry["resource"]["type"]["code"] == "110114"]
    assert {one["outcome"] for one in signed_in} == {"0", "4"}


def test_another_persons_session_cannot_be_ended(hospital: Hospital) -> None:
    mallory, _ = patient(hospital, "mallory")
    victim, _ = patient(hospital, "mia")
    session = session_of(hospital, victim)
    assert session is not None
    mallory.get("/portal/account")
    mallory.post(f"/portal/account/sessions/{session.id}/end", {})
    assert session_of(hospital, victim) == session


def test_a_session_has_a_new_id_at_every_sign_in_and_ends_by_itself(hospital: Hospital) -> None:
    browser, _ = patient(hospital, "ned")
    first = browser.cookies["gateway"]
    assert browser.sign_in("ned").status_code == 303
    assert browser.cookies["gateway"] != first
    assert sessions.session_of(hospital.smart, first) is None
    planted = Browser(hospital)
    planted.cookies["gateway"] = "A" * 43
    assert planted.sign_in("ned").status_code == 303
    assert planted.cookies["gateway"] != "A" * 43
    for column, ago_ms in (("seen_ms", sessions.IDLE_MS), ("expires_ms", sessions.LIFE_MS)):
        assert browser.sign_in("ned").status_code == 303
        assert session_of(hospital, browser) is not None
        hospital.database.transact(lambda tx, column=column, ago_ms=ago_ms: tx.execute(
            f"UPDATE session SET {column}={column}-? WHERE ended_ms IS NULL", (ago_ms,)))
        assert session_of(hospital, browser) is None


def test_a_closed_account_has_no_session_and_no_way_in(hospital: Hospital) -> None:
    browser, id_ = patient(hospital, "oda")
    close_user(hospital.smart, f"Patient/{id_}")
    assert session_of(hospital, browser) is None
    assert browser.sign_in("oda").status_code == 403
    add_user(hospital.smart, fhir_user=f"Patient/{id_}", role="patient", name="Oda")
    assert session_of(hospital, browser) is None
    assert browser.sign_in("oda").status_code == 303


def test_forms_of_another_site_or_session_are_refused(hospital: Hospital) -> None:
    browser, _ = patient(hospital, "pia")
    other, _ = patient(hospital, "pol")
    browser.get("/portal/account")
    other.get("/portal/account")
    path = "/portal/account/codes/begin"
    assert browser.post(path, {"csrf": ""}).status_code == 403
    assert browser.post(path, {"csrf": other.csrf}).status_code == 403
    browser.get("/portal/account")
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"},
                    {"Sec_Fetch_Site": "same-site"}, {"Origin": "null"}, {"Origin": "", "Sec_Fetch_Site": ""}):
        token = browser.csrf
        assert browser.post(path, {"csrf": token}, **headers).status_code == 403, headers
        browser.get("/portal/account")
    assert browser.post(path, {}, Content_Type="text/plain").status_code == 415
    browser.get("/portal/account")
    assert browser.post(path, {}).status_code == 200
    # Login CSRF: a form needs the visit it was shown to.
    fresh = Browser(hospital)
    fresh.get("/portal/sign-in")
    fresh.cookies.clear()
    assert fresh.post("/portal/sign-in", {"name": "pia", "password": PASSWORD}).status_code == 403
    assert "gateway" not in fresh.cookies


def test_sign_out_takes_a_token_and_ends_the_session(hospital: Hospital) -> None:
    browser, _ = patient(hospital, "quin")
    cookie = browser.cookies["gateway"]
    browser.get("/portal")
    assert browser.post("/portal/sign-out", {"csrf": "0" * 64}).status_code == 403
    assert sessions.session_of(hospital.smart, cookie) is not None
    browser.get("/portal")
    assert browser.post("/portal/sign-out", {}).headers["location"] == "/portal/sign-in"
    assert "gateway" not in browser.cookies
    assert sessions.session_of(hospital.smart, cookie) is None


@pytest.mark.parametrize("path", [
    "https://evil.example/", "//evil.example", "/\\evil.example", "/portal/\\evil", "\\\\evil", "/portal\t//evil",
    "/portal\n", "javascript:alert(1)", "/fhir/Patient", "/portalx", "/", "", "/oauth/x" + "y" * 3_000])
def test_the_way_back_is_an_own_page_or_none(hospital: Hospital, path: str) -> None:
    browser = Browser(hospital)
    browser.sign_up("rex")
    assert browser.sign_in("rex", next_path=path).headers["location"] == "/portal"


def test_the_way_back_keeps_own_pages(hospital: Hospital) -> None:
    browser = Browser(hospital)
    browser.sign_up("sam")
    assert browser.get("/portal/account?x=1").headers["location"] == "/portal/sign-in?next=/portal/account%3Fx%3D1"
    back = "/oauth/authorize/abc-123?x=%20y"
    assert browser.sign_in("sam", next_path=back).headers["location"] == back


def test_a_taken_name_is_told_nobody(hospital: Hospital) -> None:
    first = Browser(hospital).sign_up("tom")
    second = Browser(hospital).sign_up("TOM", password="another long password")
    assert (first.status_code, first.headers["location"]) == (second.status_code, second.headers["location"])
    assert Browser(hospital).sign_in("tom", password="another long password").status_code == 403
    assert Browser(hospital).sign_in("tom").status_code == 303


@pytest.mark.parametrize("fields", [
    {"wanted": "administrator"}, {"birth_date": "3.2.1970"}, {"birth_date": "0001-01-01"}, {"shown": " "},
    {"identifier": ""}, {"name": "a b"}, {"name": "upstream-1"}, {"password": "short"}, {"again": "different password"},
    {"password": "aaaaaaaaaaaaaaaa"}])
def test_a_sign_up_that_cannot_be_is_refused_with_the_reason(hospital: Hospital, fields: dict[str, str]) -> None:
    browser = Browser(hospital)
    browser.get("/portal/sign-up")
    answer = browser.post("/portal/sign-up", {
        "name": "uma", "shown": "Uma", "wanted": "patient", "birth_date": "1970-02-03", "identifier": "1",
        "password": PASSWORD, "again": PASSWORD, **fields})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert PASSWORD not in answer.text


def test_the_password_is_changed_by_who_knows_it(hospital: Hospital) -> None:
    browser, _ = patient(hospital, "vera")
    elsewhere = Browser(hospital)
    assert elsewhere.sign_in("vera").status_code == 303
    new = "a quite different password"
    browser.get("/portal/account")
    for old, chosen, status in (("wrong", new, 403), (PASSWORD, "short", 422), (PASSWORD, new, 200)):
        answer = browser.post("/portal/account/password", {"old": old, "new": chosen, "again": chosen})
        assert answer.status_code == status
    assert session_of(hospital, elsewhere) is None
    assert session_of(hospital, browser) is not None
    assert Browser(hospital).sign_in("vera").status_code == 403
    assert Browser(hospital).sign_in("vera", password=new).status_code == 303


def test_pages_are_confined_and_work_without_scripts(hospital: Hospital) -> None:
    browser, _ = patient(hospital, "wim")
    for path in ("/portal", "/portal/account", "/portal/sign-in", "/portal/sign-up"):
        answer = browser.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert "<script>" not in answer.text
        assert " style=" not in answer.text
        assert " onclick" not in answer.text
        assert '<html lang="en">' in answer.text
        for field in re.findall(r'<(?:input|select|textarea)(?![^>]*type="hidden")[^>]*id="([^"]+)"', answer.text):
            assert f'for="{field}"' in answer.text, (path, field)
    for name in ("portal.css", "ask.js", "passkey.js", "wallet.js", "signing.js"):
        file = browser.get(f"/portal/static/{name}")
        assert file.headers["x-content-type-options"] == "nosniff"
        assert browser.get(f"/portal/static/{name}", If_None_Match=file.headers["etag"]).status_code == 304
    assert browser.get("/portal/static/..%2fpages.py").status_code == 404


def test_what_is_not_there_is_a_page_or_json(hospital: Hospital) -> None:
    """Invariant 12: one error face per door."""
    browser = Browser(hospital)
    for path in ("/portal/nope", "/portal/proofing/x/y/z"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "there is no such page" in answer.text
    assert browser.get("/portal/nope", Accept="application/json").json() == {"error": "there is no such page"}
    assert browser.get("/portal/account", Accept="application/json").status_code == 401
    broken = browser.script("/portal/passkey/options", {"csrf": ["not text"]})
    assert (broken.status_code, broken.json()) == (422, {"error": "csrf is text"})


def test_signing_out_ends_what_apps_got_for_that_long(hospital: Hospital) -> None:
    """SMART App Launch: online_access lasts as long as the person is online."""
    browser, id_ = patient(hospital, "xena")
    session = session_of(hospital, browser)
    assert session is not None

    def authorized(name: str, access: str) -> None:
        hospital.database.transact(lambda tx: tx.execute(
            "INSERT INTO authorization (id,client,user,session,scope,v1,patient,purpose,access,launch,auth_time_ms,"
            "created_ms,used_ms,expires_ms) VALUES (?,'app',?,?,'patient/*.rs',0,?,'PATRQT',?,'{}',1,1,1,?)",
            (name, f"Patient/{id_}", session.id, f"Patient/{id_}", access, 2**53)))

    def ended(name: str) -> bool:
        return bool(hospital.database.reader.execute(
            "SELECT 1 FROM authorization WHERE id=? AND revoked_ms IS NOT NULL", (name,)).fetchall())

    authorized("x-online", "online")
    authorized("x-offline", "offline")
    browser.get("/portal")
    assert browser.post("/portal/sign-out", {}).status_code == 303
    assert ended("x-online")
    assert not ended("x-offline")


def test_cookies_are_bound_to_the_host_over_https(tmp_path: Path) -> None:
    secure = Hospital(tmp_path / "secure", base_url="https://hospital.example/fhir")
    try:
        answer = Browser(secure).get("/portal/sign-in")
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-gateway-visit=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
    finally:
        secure.close()


def test_a_base_url_that_names_its_default_port_signs_people_in(tmp_path: Path) -> None:
    """Browsers leave the port out of the Origin (RFC 6454 section 6.2)."""
    secure = Hospital(tmp_path / "port", base_url="https://hospital.example:443/fhir")
    try:
        browser = Browser(secure, origin="https://hospital.example")
        answer = browser.sign_up("ned")
        assert (answer.status_code, answer.headers.get("location")) == (303, "/portal/sign-in?made=1")
        assert browser.sign_in("ned").status_code == 303
    finally:
        secure.close()


def test_plain_http_away_from_loopback_signs_nobody_in(tmp_path: Path) -> None:
    plain = Hospital(tmp_path / "plain", base_url="http://hospital.example/fhir")
    try:
        assert Browser(plain).get("/portal/sign-in").status_code == 404
    finally:
        plain.close()


def test_the_hospitals_identity_provider_signs_in_whom_it_was_linked_to(tmp_path: Path) -> None:
    provider = Provider()
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    hospital = Hospital(tmp_path / "upstream", base_url=f"{ORIGIN}/fhir", oidc_issuer=provider.issuer,
                        oidc_client_id="gateway", oidc_client_secret_file=str(secret))
    try:
        browser = Browser(hospital)
        away = browser.get("/portal/upstream?next=/portal/account").headers["location"]
        assert away.startswith(provider.issuer + "/authorize?")
        assert parse_qs(urlsplit(away).query)["code_challenge_method"] == ["S256"]
        # Nobody's yet: they sign up, and wait; no e-mail address finds them an account.
        up = browser.get(provider.authorize(away)).headers["location"]
        assert up.startswith("/portal/sign-up?upstream=")
        browser.get(up)
        handle = parse_qs(urlsplit(up).query)["upstream"][0]
        asked = {"upstream": handle, "shown": "Ada", "wanted": "clinician", "birth_date": "1970-02-03",
                 "identifier": "staff 1"}
        thief = Browser(hospital)
        thief.get(up)
        assert thief.post("/portal/sign-up", asked).status_code == 422
        browser.get(browser.get(provider.authorize(browser.get("/portal/upstream").headers["location"])).headers["location"])
        found = re.search(r'name="upstream" value="([^"]+)"', browser.page)
        assert found is not None
        assert browser.post("/portal/sign-up", {**asked, "upstream": found[1]}).status_code == 303
        session = session_of(hospital, browser)
        assert session is not None
        assert (session.state, session.methods) == ("waiting", ("oidc",))
        hospital.feed.put("Practitioner/ada", {"resourceType": "Practitioner", "id": "ada"})
        operator = proofing.Decider(user=None, role=proofing.OPERATOR)
        [one] = proofing.waiting(hospital.smart, operator)
        assert one.upstream == (provider.issuer, "staff-1")
        proofing.verify(hospital.smart, one.id, fhir_user="Practitioner/ada", decider=operator)
        provider.claims = {"auth_time": 1_700_000_000}
        away = browser.get("/portal/upstream?next=/portal/account").headers["location"]
        assert "prompt" not in away  # nobody is signed in any more
        back = browser.get(provider.authorize(away))
        assert back.headers["location"] == "/portal/account"
        session = session_of(hospital, browser)
        assert session is not None
        assert (session.user, session.auth_time_ms) == ("Practitioner/ada", 1_700_000_000_000)
        assert "prompt=login" in browser.get("/portal/upstream?next=/portal/account").headers["location"]
        # Who is signed in at the provider still has not shown anew who they are, session here or not.
        for claims, fresh in (({}, False), ({"auth_time": int(time.time()) - 3_600}, False),
                              ({"auth_time": int(time.time())}, True)):
            provider.claims, alone = claims, Browser(hospital)
            away = alone.get("/portal/upstream?next=/portal/account").headers["location"]
            assert parse_qs(urlsplit(away).query)["max_age"] == [str(sessions.LIFE_MS // 1_000)]
            assert alone.get(provider.authorize(away)).headers["location"] == "/portal/account"
            session = session_of(hospital, alone)
            assert session is not None
            assert session.is_recent(hospital.smart.now_ms()) is fresh, claims
        assert provider.secrets_seen[-1].startswith("Basic ")
        refuse_spoiled_answers(hospital, provider)
    finally:
        hospital.close()
        provider.close()


def refuse_spoiled_answers(hospital: Hospital, provider: Provider) -> None:
    """OpenID Connect Core 3.1.3.7; RFC 9207; RFC 6749 section 10.12."""
    def away(browser: Browser) -> str:
        return str(browser.get("/portal/upstream").headers["location"])

    for claims in ({"iss": "https://evil.example"}, {"aud": "another"}, {"aud": ["gateway", "another"]},
                   {"exp": 1}, {"nonce": "x"}, {"sub": ""}, {"azp": "another"}):
        provider.claims = claims
        browser = Browser(hospital)
        assert browser.get(provider.authorize(away(browser))).status_code == 422, claims
        assert "gateway" not in browser.cookies
    provider.claims = {}
    provider.algorithm = "none"
    browser = Browser(hospital)
    assert browser.get(provider.authorize(away(browser))).status_code == 422
    provider.algorithm = "RS256"
    callback = provider.authorize(away(browser))
    assert browser.get(callback.replace("iss=", "iss=x")).status_code == 422  # mix-up
    assert browser.get(callback).status_code == 422  # the state is used
    victim = Browser(hospital)
    assert victim.get(provider.authorize(away(browser))).status_code == 422  # login CSRF: another browser's state
    assert "gateway" not in victim.cookies
