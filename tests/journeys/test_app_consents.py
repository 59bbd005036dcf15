"""Lasting access of an app rests on a Consent, and ends with it, however that ends. Invariant 6; facts-smart 27."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.access.scopes import parse
from gateway.ledger.relay import refuse
from gateway.records import ending, finality, signing
from gateway.records.app_consents import consent_of
from gateway.smart import authorization
from gateway.smart.authorization import authorizations_of
from gateway.store import followed, outbox
from gateway.web.portal import authorize
from tests.conformance.smart_app import App
from tests.journeys.browser import Browser
from tests.journeys.hospital import Client, Hospital
from tests.journeys.test_consents import granted_on_chain, states

SCOPE = "launch/patient patient/Observation.rs patient/Patient.rs offline_access"


@pytest.fixture
def patient(hospital: Hospital, browser: Browser) -> str:
    made = hospital.new_patient()
    browser.sign_in(f"Patient/{made}")
    return made


@pytest.fixture
def app(hospital: Hospital) -> App:
    return App(hospital, name="Pulse <diary>")


def lasting(app: App, browser: Browser, scope: str = SCOPE, **fields: str) -> dict[str, Any]:
    """The token response after the person allowed it for good."""
    page = app.shown(browser, scope)
    form = page.form("allow").choose("how-long", "offline").fill(**fields)
    answer = app.exchange(app.code(browser.submit(form, "allow")))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def resting(hospital: Hospital, patient: str) -> str:
    """The Consent the newest authorization rests on."""
    found = authorizations_of(hospital.database.reader, f"Patient/{patient}")[0].consent
    assert found is not None
    return found


def test_the_consent_says_what_was_allowed_and_is_signed_by_the_kept_key(
        hospital: Hospital, browser: Browser, patient: str, app: App) -> None:
    lasting(app, browser, until="2090-01-31")
    id_ = resting(hospital, patient)
    own = hospital.patient(patient)
    consent = own.get(f"Consent/{id_}").json()
    provision = consent["provision"]
    assert provision["actor"][0]["reference"] == {"reference": f"Device/{app.id}", "display": "Pulse <diary>"}
    assert sorted(one["code"] for one in provision["class"]) == ["Observation", "Patient"]
    assert [one["code"] for one in provision["purpose"]] == ["PATRQT"]
    assert provision["period"] == {"end": "2090-01-31"}
    assert states(hospital, id_) == ["pending"]
    [act] = [one for one in outbox.open_intents(hospital.database.reader, limit=1000) if one.consent == id_]
    assert act.kind == "grant"
    listed = own.get(f"Patient/{patient}/$access-list").json()["parameter"]
    words = [part["valueString"] for one in listed for part in one.get("part", ()) if part["name"] == "statement"]
    assert len(words) == 1
    assert f'"Pulse <diary>" (Device/{app.id}) may read Observation and Patient records' in words[0]
    apps = [one for one in listed if {"name": "basis", "valueCode": "app"} in one.get("part", ())]
    assert len(apps) == 1


def ended_here(hospital: Hospital, own: Client, id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.request("POST", f"Consent/{id_}/$revoke").status_code == 200


def ended_by_put(hospital: Hospital, own: Client, id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = own.get(f"Consent/{id_}").json()
    assert own.put(f"Consent/{id_}", {**stored, "status": "inactive"}).status_code == 200


def ended_with_everything(hospital: Hospital, own: Client, id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = own.get(f"Consent/{id_}").json()["patient"]["reference"]
    assert own.request("POST", f"{patient}/$revoke-all").status_code == 200


def ended_on_chain(hospital: Hospital, own: Client, id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    granted = outbox.grant_of_consent(hospital.database.reader, id_)
    assert granted is not None
    name = signing.grant_id(granted.patient, granted.grantee, granted.terms_hash)

    def followed_to(tx: Any) -> None:
        followed.revoked(tx, name)
        finality.ended(tx)
    hospital.database.transact(followed_to)


def refused_by_the_chain(hospital: Hospital, own: Client, id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [act] = [one for one in outbox.open_intents(hospital.database.reader, limit=1000) if one.consent == id_]

    def fail(tx: Any) -> None:
        refuse(tx, act, "SignatureExpired")
        finality.ended(tx)
    hospital.database.transact(fail)


def run_out(hospital: Hospital, own: Client, id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    granted_on_chain(hospital, id_)
    finality.show_finality(hospital.node)
    later = signing.now_ms() + 100 * 365 * 24 * 3600 * 1000
    with monkeypatch.context() as patched:
        patched.setattr(finality, "now_ms", lambda: later)
        assert finality.end_expired(hospital.node) >= 1  # the hospital is others' as well: theirs run out too
        assert finality.end_expired(hospital.node) == 0
    assert own.get(f"Consent/{id_}").json()["status"] == "inactive"


@pytest.mark.parametrize("end", [ended_here, ended_by_put, ended_with_everything, ended_on_chain, refused_by_the_chain,
                                 run_out], ids=lambda one: one.__name__)
def test_when_the_consent_ends_so_do_the_apps_tokens(
        hospital: Hospital, browser: Browser, patient: str, app: App, monkeypatch: pytest.MonkeyPatch,
        end: Callable[..., None]) -> None:
    tokens = lasting(app, browser, until="2090-01-31")
    reading = Client(hospital, tokens["access_token"])
    assert reading.get(f"Patient/{patient}").status_code == 200
    id_ = resting(hospital, patient)
    end(hospital, hospital.patient(patient), id_, monkeypatch)
    assert reading.get(f"Patient/{patient}").status_code == 401
    refreshed: httpx.Response = app.refresh(tokens["refresh_token"])
    assert refreshed.status_code == 400
    assert refreshed.json()["error"] == "invalid_grant"
    assert authorizations_of(hospital.database.reader, f"Patient/{patient}") == []
    assert app.ask_about(tokens["access_token"]) == {"active": False}


def test_a_consent_that_ends_on_the_way_to_the_app_carries_no_access(
        hospital: Hospital, browser: Browser, patient: str, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended by another worker between the look at it and the commit of the code."""
    def ended_first(*given: Any, consent: str, **named: Any) -> str:
        hospital.database.transact(lambda tx: ending.here(tx, consent))
        return authorization.approve(*given, consent=consent, **named)
    form = app.shown(browser, SCOPE).form("allow").choose("how-long", "offline")
    monkeypatch.setattr(authorize, "approve", ended_first)
    refused = browser.submit(form, "allow")
    assert refused.status == 409, refused.text
    assert authorizations_of(hospital.database.reader, f"Patient/{patient}") == []


def test_another_apps_access_goes_on(hospital: Hospital, browser: Browser, patient: str, app: App) -> None:
    first = lasting(app, browser)
    id_ = resting(hospital, patient)
    other = App(hospital, name="Other")
    second = lasting(other, browser)
    assert hospital.patient(patient).request("POST", f"Consent/{id_}/$revoke").status_code == 200
    assert app.refresh(first["refresh_token"]).status_code == 400
    assert other.refresh(second["refresh_token"]).status_code == 200


@pytest.mark.parametrize(("scope", "expected"), [
    ("patient/*.rs", {"action": ["access"]}),
    ("patient/Observation.cruds", {"action": ["access", "correct"], "class": ["Observation"]}),
    ("patient/Observation.rs?category=http://c|laboratory patient/Condition.rs?category=http://c|laboratory",
     {"action": ["access"], "class": ["Condition", "Observation"], "code": ["laboratory"]}),
    ("patient/Observation.rs?category=http://c|laboratory patient/Condition.rs",
     {"action": ["access"], "class": ["Condition", "Observation"]}),
    ("patient/Observation.rs?category=laboratory", {"action": ["access"], "class": ["Observation"]}),
    ("patient/Observation.rs?date=ge2024-01-01", {"action": ["access"], "class": ["Observation"],
                                                  "dataPeriod": {"start": "2024-01-01"}})])
def test_the_terms_say_no_less_than_the_scopes(scope: str, expected: dict[str, Any]) -> None:
    made = consent_of("Patient/1", client_id="app", client_name="App", scopes=parse(scope), purpose="PATRQT")
    provision = made["provision"]
    found = {"action": [one["coding"][0]["code"] for one in provision["action"]]}
    if "class" in provision:
        found["class"] = [one["code"] for one in provision["class"]]
    if "code" in provision:
        found["code"] = [one["coding"][0]["code"] for one in provision["code"]]
    if "dataPeriod" in provision:
        found["dataPeriod"] = provision["dataPeriod"]
    assert found == expected
