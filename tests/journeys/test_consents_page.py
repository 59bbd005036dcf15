"""The page of permissions, and the step between in which an app's lasting access is signed: over HTTP, as its pages and
scripts ask. Invariants 5, 6 and 11; ``gateway/FORMATS.md``, Consent."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from eth_account import Account

from gateway.records import granting, signing
from gateway.smart.accounts import add_user
from gateway.smart.authorization import authorizations_of
from gateway.smart.wallets import change_wallet
from gateway.store import outbox
from tests.conformance.smart_app import App
from tests.consent import consent
from tests.journeys.authenticator import Passkey, registered
from tests.journeys.browser import Browser, Page
from tests.journeys.hospital import Client, Hospital
from tests.journeys.test_consents import by_wallet, granted_on_chain, signed, states

SCOPE = "launch/patient patient/Observation.rs offline_access"
CONSENTS = "/portal/consents"


@pytest.fixture
def key() -> Any:
    return Account.create()


@pytest.fixture
def patient(hospital: Hospital) -> str:
    return hospital.new_patient()


@pytest.fixture
def holder(hospital: Hospital, browser: Browser, patient: str, key: Any) -> Browser:
    """The browser of the patient, whose wallet is registered."""
    return browser.sign_in(f"Patient/{patient}", wallet=key.address)


def proposed(hospital: Hospital, patient: str, grantee: str = "Practitioner/1", **elements: Any) -> str:
    return str(hospital.feed.post("Consent", consent(patient, grantee, **elements)).json()["id"])


def script(browser: Browser, page: Page, path: str, **body: str) -> httpx.Response:
    """What the page's script sends."""
    csrf = page.forms[0].named("csrf")[0].value
    return browser.request("POST", path, json={"csrf": csrf, **body}, headers={
        "Origin": browser.origin, "Sec-Fetch-Site": "same-origin", "Accept": "application/json"})


def version_of(page: Page, id_: str) -> str:
    """Which version of a Consent the page's script says it showed; empty where it showed none to sign."""
    return page.response.text.partition(f'data-shown="{CONSENTS}/{id_}/typed-data"')[2].partition(">")[0].partition(
        'data-version="')[2].partition('"')[0]


def sign_by_wallet(browser: Browser, page: Page, key: Any, id_: str, done: str = "signed") -> httpx.Response:
    shown = script(browser, page, f"{CONSENTS}/{id_}/typed-data", kind="wallet", version=version_of(page, id_))
    assert shown.status_code == 200, shown.text
    return script(browser, page, f"{CONSENTS}/{id_}/{done}", kind="wallet", signature=by_wallet(key, shown.json()))


def test_what_waits_is_shown_in_words_and_signed_by_the_registered_wallet(
        hospital: Hospital, holder: Browser, patient: str, key: Any) -> None:
    id_ = proposed(hospital, patient, "Practitioner/dr-page")
    page = holder.get(CONSENTS)
    assert page.status == 200
    assert "may read, and when working for this hospital also write" in page.text
    assert "Practitioner/dr-page" in page.text
    assert f'data-account="{key.address}"' in page.response.text
    assert "hospital keeps for me" not in page.text, "a registered wallet ends the kept key's signing"
    assert page.inline == []
    assert sign_by_wallet(holder, page, key, id_).json() == {"next": CONSENTS}
    assert states(hospital, id_) == ["pending"]
    page = holder.get(CONSENTS)
    assert "Nothing waits." in page.text
    assert "Signed by your wallet" in page.text
    assert "On its way to the hospitals' chain" in page.text
    again = sign_by_wallet(holder, page, key, id_)
    assert again.status_code == 409


def test_another_wallets_signature_is_refused_in_words(hospital: Hospital, holder: Browser, patient: str) -> None:
    id_ = proposed(hospital, patient)
    refused = sign_by_wallet(holder, holder.get(CONSENTS), Account.create(), id_)
    assert refused.status_code == 422
    assert "not the patient's over these terms" in refused.json()["error"]
    assert states(hospital, id_) == []


def test_a_wallet_brought_with_a_signature_is_registered_as_one_that_signs_in(
        hospital: Hospital, browser: Browser, patient: str, key: Any) -> None:
    browser.sign_in(f"Patient/{patient}")
    own, id_ = hospital.patient(patient), proposed(hospital, patient)
    typed = own.get(f"Consent/{id_}/$typed-data?wallet={key.address}").json()
    assert signed(own, id_, wallet=key.address.lower(), signature=by_wallet(key, typed)).status_code == 200
    assert signing.wallet_of(hospital.database.reader, patient) == key.address, "EIP-55, as EIP-4361 has it"


def test_an_app_registers_no_wallet_of_its_own_as_the_patients(hospital: Hospital, browser: Browser, patient: str,
                                                               key: Any) -> None:
    """It would be a way in: Sign-In with Ethereum opens a session of the patient to whoever holds it."""
    browser.sign_in(f"Patient/{patient}")
    app, scope = App(hospital, name="Wallet thief"), "launch/patient patient/Consent.crus"
    token = app.exchange(app.allowed(browser, scope)).json()["access_token"]
    own, id_ = Client(hospital, token), proposed(hospital, patient)
    assert own.get(f"Consent/{id_}").status_code == 200
    assert own.get(f"Consent/{id_}/$typed-data?wallet={key.address}").status_code == 403
    typed = hospital.patient(patient).get(f"Consent/{id_}/$typed-data?wallet={key.address}").json()
    assert signed(own, id_, wallet=key.address, signature=by_wallet(key, typed)).status_code == 403
    assert signing.wallet_of(hospital.database.reader, patient) is None


def test_a_passkey_signs_where_one_is_registered(hospital: Hospital, browser: Browser, patient: str) -> None:
    browser.sign_in(f"Patient/{patient}")
    passkey = registered(hospital, f"Patient/{patient}", Passkey())
    id_ = proposed(hospital, patient)
    page = browser.get(CONSENTS)
    assert "passkey key" in page.text
    credential = page.response.text.partition('data-credential="')[2].partition('"')[0]
    shown = script(browser, page, f"{CONSENTS}/{id_}/typed-data", kind="passkey", credential=credential,
                   version=version_of(page, id_)).json()
    answer = script(browser, page, f"{CONSENTS}/{id_}/signed", **passkey.answer(shown["publicKey"]))
    assert answer.status_code == 200, answer.text
    assert states(hospital, id_) == ["pending"]
    assert "Signed by a passkey" in browser.get(CONSENTS).text


@pytest.mark.parametrize("kind", ["wallet", "passkey"])
def test_a_signer_that_goes_while_it_signs_signs_nothing(hospital: Hospital, browser: Browser, patient: str, key: Any,
                                                         monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """After a theft: between the check of the signature and its commit the wallet was changed, the passkey removed."""
    browser.sign_in(f"Patient/{patient}", wallet=key.address if kind == "wallet" else None)
    passkey = registered(hospital, f"Patient/{patient}", Passkey())
    id_, page = proposed(hospital, patient), browser.get(CONSENTS)
    if kind == "passkey":
        page = browser.get(CONSENTS)
        given = {"credential": page.response.text.partition('data-credential="')[2].partition('"')[0]}
    else:
        given = {}
    shown = script(browser, page, f"{CONSENTS}/{id_}/typed-data", kind=kind, version="1", **given).json()
    sent = passkey.answer(shown["publicKey"]) if given else {"kind": "wallet", "signature": by_wallet(key, shown)}
    checked = granting.signature_of

    def checked_and_gone(*said: Any) -> bytes:
        found = checked(*said)
        if given:
            hospital.database.transact(lambda tx: tx.execute("DELETE FROM passkey WHERE id=?", (passkey.id,)))
        else:
            change_wallet(hospital.smart, f"Patient/{patient}", Account.create().address)
        return found
    monkeypatch.setattr(granting, "signature_of", checked_and_gone)
    assert script(browser, page, f"{CONSENTS}/{id_}/signed", **sent).status_code in (401, 422)
    assert states(hospital, id_) == []


def test_what_was_rewritten_since_it_was_shown_is_not_signed(hospital: Hospital, browser: Browser,
                                                             patient: str) -> None:
    """A kept key and a passkey show nothing themselves: what the page said is what they sign, or nothing."""
    browser.sign_in(f"Patient/{patient}")
    passkey = registered(hospital, f"Patient/{patient}", Passkey())
    id_ = proposed(hospital, patient, "Practitioner/dr-shown")
    page = browser.get(CONSENTS)
    stored = hospital.patient(patient).get(f"Consent/{id_}").json()
    other = consent(patient, "Practitioner/dr-swapped", id=id_, meta=stored["meta"])
    assert hospital.feed.put(f"Consent/{id_}", other).status_code == 200
    credential = page.response.text.partition('data-credential="')[2].partition('"')[0]
    given = {"kind": "passkey", "credential": credential}
    for version in ({"version": version_of(page, id_)}, {}):
        refused = script(browser, page, f"{CONSENTS}/{id_}/typed-data", **given, **version)
        assert refused.status_code == 409
        assert "changed since it was shown" in refused.json()["error"]
    assert script(browser, page, f"{CONSENTS}/{id_}/signed").status_code == 422, "the kept key signs by the form alone"
    button = "Sign with the key the hospital keeps for me"
    again = browser.submit(page.form(button), button)
    assert (again.status, "changed since it was shown" in again.text) == (409, True)
    assert "dr-swapped" in again.text
    assert states(hospital, id_) == []
    shown = script(browser, again, f"{CONSENTS}/{id_}/typed-data", **given, version=version_of(again, id_)).json()
    assert script(browser, again, f"{CONSENTS}/{id_}/signed", **passkey.answer(shown["publicKey"])).status_code == 200


def test_without_a_wallet_the_kept_key_signs_without_scripts_and_everything_can_end(
        hospital: Hospital, browser: Browser, patient: str) -> None:
    browser.sign_in(f"Patient/{patient}")
    first, second = (proposed(hospital, patient, f"Practitioner/dr-{name}") for name in ("one", "two"))
    button = "Sign with the key the hospital keeps for me"
    for _ in (first, second):
        page = browser.get(CONSENTS)
        page = browser.submit(page.form(button), button)
        assert "Signed. It counts once the hospitals' chain holds it." in page.text
    assert [states(hospital, id_) for id_ in (first, second)] == [["pending"], ["pending"]]
    page = browser.submit(page.form("Revoke this"), "Revoke this")
    assert "from now on it lets nobody in" in page.text
    assert sorted(states(hospital, id_)[0] for id_ in (first, second)) == ["pending", "revoked"]
    page = browser.submit(page.form("Revoke all I permitted"), "Revoke all I permitted")
    assert [states(hospital, id_) for id_ in (first, second)] == [["revoked"], ["revoked"]]
    assert "not yet on the chain" not in page.text, "the kept key ends its own"


def test_a_proposal_is_declined_and_an_old_one_proposed_anew(
        hospital: Hospital, browser: Browser, patient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    browser.sign_in(f"Patient/{patient}")
    id_ = proposed(hospital, patient)
    with monkeypatch.context() as patched:
        patched.setattr("gateway.records.consent_signers.DEADLINE_S", -1)
        page = browser.get(CONSENTS)
        assert "proposed more than 30 days ago" in page.text
        assert "hospital keeps for me" not in page.text
        page = browser.submit(page.form("I want to sign it now"), "I want to sign it now")
        assert "It can be signed now." in page.text
    own = hospital.patient(patient)
    assert own.get(f"Consent/{id_}").json()["meta"]["versionId"] == "2"
    page = browser.get(CONSENTS)
    page = browser.submit(page.form("Decline"), "Decline")
    assert "nobody gets anything by it" in page.text
    assert own.get(f"Consent/{id_}").json()["status"] == "rejected"


def test_a_wallet_signs_an_end_that_the_chain_waits_for(hospital: Hospital, holder: Browser, patient: str,
                                                         key: Any) -> None:
    id_ = proposed(hospital, patient)
    assert sign_by_wallet(holder, holder.get(CONSENTS), key, id_).status_code == 200
    granted_on_chain(hospital, id_)
    page = holder.get(CONSENTS)
    page = holder.submit(page.form("Revoke this"), "Revoke this")
    assert states(hospital, id_) == ["revoked"]
    assert "Ended here, not yet on the chain" in page.text
    assert sign_by_wallet(holder, page, key, id_, "ended").status_code == 200
    kinds = [one.kind for one in outbox.open_intents(hospital.database.reader, limit=1000) if one.consent == id_]
    assert kinds == ["grant", "revoke"]
    assert "not yet on the chain" not in holder.get(CONSENTS).text


def test_everything_ends_on_the_chain_too_where_the_wallet_signs_it(hospital: Hospital, holder: Browser, patient: str,
                                                                    key: Any) -> None:
    id_, unsent = proposed(hospital, patient), proposed(hospital, patient, "Practitioner/2")
    page = holder.get(CONSENTS)
    held = by_wallet(key, script(holder, page, f"{CONSENTS}/{unsent}/typed-data", kind="wallet",
                                 version=version_of(page, unsent)).json())
    assert sign_by_wallet(holder, page, key, id_).status_code == 200
    granted_on_chain(hospital, id_)
    assert sign_by_wallet(holder, page, key, "_all", "ended").status_code == 200
    assert states(hospital, id_) == ["revoked"]
    [act] = [one for one in outbox.open_intents(hospital.database.reader, limit=1000)
             if one.kind == "revoke-all" and one.call.patient == key.address.lower()]
    assert act.state == "signed"
    late = script(holder, page, f"{CONSENTS}/{unsent}/signed", kind="wallet", signature=held)
    assert late.status_code == 422, "signed before, and not sent: over"
    assert "not yet on the chain" not in holder.get(CONSENTS).text


def test_the_page_is_the_patients_and_their_delegates(hospital: Hospital, browser: Browser, patient: str) -> None:
    id_ = proposed(hospital, patient)
    other = Browser(hospital).sign_in(f"Patient/{hospital.new_patient()}")
    page = other.get(CONSENTS)
    assert "Nothing waits." in page.text
    home = other.get("/portal")
    refused = script(other, home, f"{CONSENTS}/{id_}/typed-data", kind="custodial")
    assert refused.status_code == 404
    assert refused.json() == {"error": f"Consent/{id_} is not known"}
    assert other.post(f"{CONSENTS}/{id_}/sign", {"csrf": home.forms[0].named("csrf")[0].value}).status_code == 409
    assert other.post(f"{CONSENTS}/{id_}/sign", {"csrf": "x"}).status_code == 403
    assert states(hospital, id_) == []
    other.close()
    staff = Browser(hospital).sign_in("Practitioner/dr-nosy")
    assert staff.get(CONSENTS).response.url.path == "/portal"
    csrf = staff.get("/portal").forms[0].named("csrf")[0].value
    assert staff.post(f"{CONSENTS}/{id_}/revoke", {"csrf": csrf}).status_code == 403
    staff.close()
    browser.sign_in("RelatedPerson/mother-of-one", role="delegate", represents=f"Patient/{patient}",
                    mandate_until_ms=hospital.smart.now_ms() + 10**9)
    page = browser.get(CONSENTS)
    assert f"What is permitted in the name of {patient}" in page.text
    button = "Sign with the key the hospital keeps for me"
    browser.submit(page.form(button), button)
    assert states(hospital, id_) == ["pending"]


# -- the step between, on the authorize screen -------------------------------------------------------------------------


@pytest.fixture
def app(hospital: Hospital) -> App:
    return App(hospital, name="Pulse <diary>")


def to_sign(app: App, browser: Browser, **fields: str) -> tuple[Page, str]:
    """The step in which the person signs, and the Consent it is about."""
    form = app.shown(browser, SCOPE).form("allow").choose("how-long", "offline").fill(**fields)
    page = browser.submit(form, "allow")
    assert page.status == 200, page.text
    return page, page.form("deny").named("consent")[0].value


def test_an_apps_lasting_access_is_signed_by_the_registered_wallet_before_it_begins(
        hospital: Hospital, holder: Browser, patient: str, key: Any, app: App) -> None:
    page, id_ = to_sign(app, holder, until="2090-01-31")
    assert "Sign the lasting access of Pulse <diary>" in page.text
    assert "may read Observation records" in page.text
    assert page.inline == []
    assert "app.example" in page.response.headers["Content-Security-Policy"]
    assert authorizations_of(hospital.database.reader, f"Patient/{patient}") == []
    early = holder.submit(page.form("I have signed: go on"), "I have signed: go on")
    assert (early.status, "It is not signed yet." in early.text) == (422, True)
    assert sign_by_wallet(holder, page, key, id_).status_code == 200
    answer = app.exchange(app.code(holder.submit(page.form("I have signed: go on"), "I have signed: go on")))
    assert answer.status_code == 200, answer.text
    [found] = authorizations_of(hospital.database.reader, f"Patient/{patient}")
    assert (found.consent, found.access) == (id_, "offline")
    own = hospital.patient(patient)
    stored = own.get(f"Consent/{id_}").json()
    assert stored["provision"]["actor"][0]["reference"]["reference"] == f"Device/{app.id}"
    assert stored["provision"]["period"] == {"end": "2090-01-31"}
    assert own.get(f"Consent?patient=Patient/{patient}&_summary=count").json()["total"] == 1, "one, not each step"
    tokens = answer.json()
    assert app.refresh(tokens["refresh_token"]).status_code == 200
    assert own.request("POST", f"Consent/{id_}/$revoke").status_code == 200
    assert Client(hospital, tokens["access_token"]).get(f"Patient/{patient}").status_code == 401


def test_what_is_signed_is_what_is_allowed(hospital: Hospital, holder: Browser, patient: str, key: Any,
                                           app: App) -> None:
    page, id_ = to_sign(app, holder, until="2090-01-31")
    assert sign_by_wallet(holder, page, key, id_).status_code == 200
    form = page.form("I have signed: go on")
    form.fill(until="2091-01-31")
    changed = holder.submit(form, "I have signed: go on")
    assert (changed.status, "not what is allowed here" in changed.text) == (422, True)
    form.fill(until="2090-01-31", consent=proposed(hospital, hospital.new_patient()))
    assert holder.submit(form, "I have signed: go on").status == 422
    form.fill(consent="no-such")
    assert holder.submit(form, "I have signed: go on").status == 422
    form.fill(consent=id_)
    assert "code" in app.told(holder.submit(form, "I have signed: go on"))
    other, _ = to_sign(app, holder, until="2090-01-31")
    taken = other.form("deny").fill(consent=id_)
    assert holder.submit(taken, "I have signed: go on").status == 422, "another access rests on it"


def test_without_a_signature_access_is_for_now_or_not_at_all(hospital: Hospital, holder: Browser, patient: str,
                                                             app: App) -> None:
    own = hospital.patient(patient)
    page, id_ = to_sign(app, holder)
    label = "Allow it for an hour at most, without a signature"
    answer = app.exchange(app.code(holder.submit(page.form(label), label)))
    assert answer.status_code == 200
    assert "refresh_token" not in answer.json()
    [found] = authorizations_of(hospital.database.reader, f"Patient/{patient}")
    assert (found.consent, found.access) == (None, None)
    assert own.get(f"Consent/{id_}").json()["status"] == "inactive"
    page, id_ = to_sign(app, holder)
    assert app.told(holder.submit(page.form("deny"), "deny"))["error"] == "access_denied"
    assert own.get(f"Consent/{id_}").json()["status"] == "inactive"


def test_sent_twice_the_signed_step_counts_once_and_ends_nothing(hospital: Hospital, holder: Browser, patient: str,
                                                                 key: Any, app: App) -> None:
    page, id_ = to_sign(app, holder)
    assert sign_by_wallet(holder, page, key, id_).status_code == 200
    form = page.form("I have signed: go on")
    assert "code" in app.told(holder.submit(form, "I have signed: go on"))
    assert holder.submit(form, "I have signed: go on").status >= 400
    assert [one.consent for one in authorizations_of(hospital.database.reader, f"Patient/{patient}")] == [id_]
    assert states(hospital, id_) == ["pending"]


def test_a_person_without_a_wallet_is_asked_nothing_more(hospital: Hospital, browser: Browser, patient: str,
                                                         app: App) -> None:
    browser.sign_in(f"Patient/{patient}")
    form = app.shown(browser, SCOPE).form("allow").choose("how-long", "offline")
    assert "code" in app.told(browser.submit(form, "allow"))
    found = authorizations_of(hospital.database.reader, f"Patient/{patient}")[0]
    assert found.consent is not None
    add_user(hospital.smart, fhir_user=f"Patient/{patient}", role="patient", name="Sam",
             wallet=Account.create().address)
    assert signing.wallet_of(hospital.database.reader, patient) is not None
    assert states(hospital, found.consent) == ["pending"], "what the kept key signed before stands"
