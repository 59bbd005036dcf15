"""What was narrowed on the screen is what token, introspection and every decision say. Facts-smart 10, 11, 26."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from gateway.smart.clients import add_client
from tests.journeys.browser import Browser, Form
from tests.journeys.hospital import Client, Hospital, observation

REDIRECT = "https://app.example/callback"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
SCOPE = "patient/*.cruds user/*.cruds openid fhirUser launch/patient launch/encounter online_access offline_access"


@dataclass(frozen=True, kw_only=True)
class Granted:
    """What an app holds after the screen: the token response, and a client with the token."""

    told: dict[str, Any]
    client: Client


class App:
    """A public app at a hospital; ``authorized`` goes the whole way with a person who fills the form by ``decide``."""

    def __init__(self, hospital: Hospital, browser: Browser) -> None:
        self.hospital, self.browser = hospital, browser
        self.id = add_client(hospital.smart, name="Growth Chart", kind="app", scope=SCOPE, jwks=None,
                             purposes=("TREAT",), auth="none", redirect_uris=(REDIRECT,))
        self.verifier = secrets.token_urlsafe(48)

    def asked(self, scope: str) -> str:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return "/oauth/authorize?" + urlencode({
            "response_type": "code", "client_id": self.id, "redirect_uri": REDIRECT, "scope": scope, "state": "s-1",
            "aud": self.hospital.base, "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256"})

    def token(self, **fields: str) -> dict[str, Any]:
        answer = self.browser.request("POST", "/oauth/token", data={"client_id": self.id, **fields})
        return {"status": answer.status_code, **answer.json()}

    def authorized(self, scope: str, decide: Callable[[Form], object] = lambda form: None) -> Granted:
        form = self.browser.get(self.asked(scope)).form("allow")
        decide(form)
        return self.exchanged(form, "allow")

    def exchanged(self, form: Form, button: str) -> Granted:
        answer = self.browser.post(form.action, form.sent(button))
        assert answer.status_code == 303, answer.text
        code = parse_qs(urlsplit(answer.headers["Location"]).query)["code"][0]
        told = self.token(grant_type="authorization_code", code=code, redirect_uri=REDIRECT,
                          code_verifier=self.verifier)
        assert told["status"] == 200, told
        return Granted(told=told, client=Client(self.hospital, told["access_token"]))

    def introspected(self, granted: Granted) -> dict[str, Any]:
        """As this hospital's own resource servers see the token."""
        answer = self.browser.request("POST", "/oauth/introspect", data={"token": granted.told["access_token"]},
                                      headers={"Authorization": f"Bearer {self.hospital.feed.token}"})
        return dict(answer.json())


@pytest.fixture
def app(hospital: Hospital, browser: Browser) -> App:
    return App(hospital, browser)


def category(code: str) -> dict[str, Any]:
    return {"category": [{"coding": [{"system": CATEGORY, "code": code}]}]}


@pytest.fixture
def patient(hospital: Hospital, browser: Browser) -> str:
    """A patient with two kinds of observations, old and new, and a diagnosis; signed in."""
    id_ = hospital.new_patient()
    for kind in ("laboratory", "vital-signs"):
        for when in ("2019-05-01", "2024-05-01"):
            hospital.new(json.loads(observation(id_, when=when, **category(kind))))
    hospital.new({"resourceType": "Condition", "subject": {"reference": f"Patient/{id_}"},
                  "recordedDate": "2024-02-01", "code": {"text": "gout"}})
    browser.sign_in(f"Patient/{id_}")
    return id_


def found(granted: Granted, query: str) -> list[tuple[str, str]]:
    bundle = granted.client.get(query).json()
    return sorted((entry["resource"]["category"][0]["coding"][0]["code"], entry["resource"]["effectiveDateTime"])
                  for entry in bundle.get("entry", ()))


def test_a_granted_type_opens_and_a_denied_one_is_refused(app: App, patient: str) -> None:
    """Facts-smart 10: the returned scope is the subset; the granted search 200, the denied 403."""
    granted = app.authorized("launch/patient patient/Observation.rs patient/Condition.rs patient/Patient.rs",
                             lambda form: form.untick("See your health problems and diagnoses"))
    expected = {"launch/patient", "patient/Observation.rs", "patient/Patient.rs"}
    assert set(granted.told["scope"].split()) == expected
    assert set(app.introspected(granted)["scope"].split()) == expected
    assert granted.told["patient"] == patient
    assert len(found(granted, f"Observation?patient={patient}")) == 4
    assert granted.client.get(f"Condition?patient={patient}").status_code == 403
    assert granted.client.get(f"Patient/{patient}").status_code == 200


def test_a_kind_opens_that_kind_alone(app: App, patient: str) -> None:
    """Facts-smart 11: no resource-level scope of the type, at least one granular, plus patient/Patient.rs."""
    granted = app.authorized("launch/patient patient/Observation.rs patient/Patient.rs",
                             lambda form: form.tick("See your laboratory results"))
    words = set(granted.told["scope"].split())
    assert words == {"launch/patient", f"patient/Observation.rs?category={CATEGORY}|laboratory", "patient/Patient.rs"}
    assert set(app.introspected(granted)["scope"].split()) == words
    assert {kind for kind, _ in found(granted, f"Observation?patient={patient}")} == {"laboratory"}
    assert found(granted, f"Observation?patient={patient}&category=vital-signs") == []
    assert granted.client.total(f"Observation?patient={patient}&_total=accurate") == 2
    hidden = app.hospital.feed.ids(f"Observation?patient={patient}&category=vital-signs")
    assert {granted.client.get(f"Observation/{id_}").status_code for id_ in hidden} <= {403, 404}


def test_a_date_opens_what_is_newer(app: App, patient: str) -> None:
    granted = app.authorized("launch/patient patient/Observation.rs",
                             lambda form: form.tick("See your laboratory results").fill(since="2020-01-01"))
    assert found(granted, f"Observation?patient={patient}") == [("laboratory", "2024-05-01")]
    assert f"patient/Observation.rs?category={CATEGORY}|laboratory&date=ge2020-01-01" in granted.told["scope"]
    assert app.introspected(granted)["scope"] == granted.told["scope"]


def test_a_wildcard_narrowed_by_type_and_date_is_held_to_both(app: App, patient: str) -> None:
    granted = app.authorized("launch/patient patient/*.rs", lambda form: form.fill(since="2020-01-01").untick(
        "See your health problems and diagnoses"))
    assert {when for _, when in found(granted, f"Observation?patient={patient}")} == {"2024-05-01"}
    assert granted.client.get("Condition").status_code == 403
    assert granted.client.get(f"Patient/{patient}").status_code == 200
    assert granted.client.get("Practitioner").status_code == 200


def test_what_was_asked_in_v1_is_told_in_v1(app: App, patient: str) -> None:
    """Facts-smart 26."""
    granted = app.authorized("launch/patient patient/Observation.read patient/Condition.read",
                             lambda form: form.untick("See your health problems and diagnoses"))
    assert set(granted.told["scope"].split()) == {"launch/patient", "patient/Observation.read"}
    assert len(found(granted, f"Observation?patient={patient}")) == 4


def test_one_token_is_all_there_is_unless_more_was_chosen(app: App, patient: str) -> None:
    granted = app.authorized("launch/patient patient/Observation.rs offline_access online_access")
    assert "refresh_token" not in granted.told
    assert not {"offline_access", "online_access"} & set(granted.told["scope"].split())
    lasting = app.authorized("launch/patient patient/Observation.rs offline_access online_access",
                             lambda form: form.choose("how-long", "online"))
    assert "online_access" in lasting.told["scope"].split()
    assert app.token(grant_type="refresh_token", refresh_token=lasting.told["refresh_token"])["status"] == 200


def test_the_apps_page_ends_tokens_at_once(app: App, browser: Browser, patient: str) -> None:
    granted = app.authorized("launch/patient patient/Observation.rs offline_access",
                             lambda form: form.choose("how-long", "offline"))
    assert granted.client.get(f"Observation?patient={patient}").status_code == 200
    page = browser.get("/portal/apps")
    assert "when you revoke it" in page.text
    button = "Revoke the access of Growth Chart"
    assert "The access has ended." in browser.submit(page.form(button), button).text
    assert granted.client.get(f"Observation?patient={patient}").status_code == 401
    again = app.token(grant_type="refresh_token", refresh_token=granted.told["refresh_token"])
    assert (again["status"], again["error"]) == (400, "invalid_grant")


OFFLINE = "launch/patient patient/Observation.rs patient/Condition.rs offline_access"


def consents(app: App, patient: str) -> list[dict[str, Any]]:
    """The patient's Consents that name the app."""
    bundle = app.hospital.patient(patient).get(f"Consent?patient={patient}&actor=Device/{app.id}").json()
    return [entry["resource"] for entry in bundle.get("entry", ())]


def lasting(app: App, **fields: str) -> Granted:
    return app.authorized(OFFLINE, lambda form: form.choose("how-long", "offline").fill(**fields))


def test_lasting_access_rests_on_a_consent_the_patient_sees(app: App, patient: str) -> None:
    granted = lasting(app, until="2099-12-31")
    (consent,) = consents(app, patient)
    provision = consent["provision"]
    assert provision["actor"][0]["reference"]["reference"] == f"Device/{app.id}"
    assert {one["code"] for one in provision["class"]} == {"Observation", "Condition"}
    assert provision["period"]["end"].startswith("2099-12-31")
    assert app.token(grant_type="refresh_token", refresh_token=granted.told["refresh_token"])["status"] == 200


def test_the_end_of_the_consent_ends_the_access(app: App, patient: str) -> None:
    granted = lasting(app)
    (consent,) = consents(app, patient)
    ended = app.hospital.patient(patient).post(f"Consent/{consent['id']}/$revoke", {"resourceType": "Parameters"})
    assert ended.status_code == 200, ended.text
    assert granted.client.get(f"Observation?patient={patient}").status_code == 401
    assert app.token(grant_type="refresh_token", refresh_token=granted.told["refresh_token"])["status"] == 400


@pytest.mark.parametrize("wallet", [None, "0x" + "ab" * 20])
def test_the_end_of_the_access_ends_the_consent(app: App, browser: Browser, patient: str, wallet: str | None) -> None:
    lasting(app)
    app.hospital.database.transact(lambda tx: tx.execute(  # registered since: the kept key signed before
        "UPDATE account SET wallet=? WHERE fhir_user=?", (wallet, f"Patient/{patient}")))
    form = browser.get("/portal/apps").form("Revoke all access of apps")
    assert "No app has access through you any more." in browser.submit(form).text
    assert [consent["status"] for consent in consents(app, patient)] == ["inactive"]


def test_what_one_patient_lets_an_app_do_is_no_others(app: App, browser: Browser, patient: str) -> None:
    """Confused deputy: a Consent that names the app opens nothing to whoever else signs in to it."""
    lasting(app)
    app.hospital.database.transact(lambda tx: tx.execute("UPDATE provision SET state='final' WHERE state='pending'"))
    browser.sign_in(f"Patient/{app.hospital.new_patient()}")
    other = app.authorized("user/Observation.rs")
    assert other.client.total(f"Observation?patient={patient}&_total=accurate") == 0
    browser.sign_in("Practitioner/narrowed-other")
    doctor = app.authorized("user/Observation.rs")
    assert doctor.client.total(f"Observation?patient={patient}&_total=accurate") == 0


def test_sent_twice_one_consent_stands(app: App, browser: Browser, patient: str) -> None:
    form = browser.get(app.asked(OFFLINE)).form("allow").choose("how-long", "offline")
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": browser.origin}
    answers = app.hospital.together(*(browser.http.post(
        form.action, content=urlencode(form.sent("allow")), headers=headers) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [303, 404, 404]
    standing = [consent for consent in consents(app, patient) if consent["status"] != "inactive"]
    assert len(standing) == 1


def test_lasting_access_to_nothing_but_who_one_is_needs_no_consent(app: App, patient: str) -> None:
    granted = app.authorized("openid offline_access patient/Observation.rs", lambda form: form.choose(
        "how-long", "offline").untick("See your test results, vital signs and other observations"))
    assert granted.told["refresh_token"]
    assert consents(app, patient) == []


def test_everything_but_one_kind_can_be_lasting(app: App, patient: str) -> None:
    granted = app.authorized("patient/*.cruds offline_access", lambda form: form.choose("how-long", "offline").untick(
        "See your health problems and diagnoses").fill(since="2020-01-01"))
    assert {when for _, when in found(granted, f"Observation?patient={patient}")} == {"2024-05-01"}
    (consent,) = consents(app, patient)
    assert "Observation" in {one["code"] for one in consent["provision"]["class"]}


@pytest.mark.parametrize("until", ["2001-01-01", "tomorrow"])
def test_an_end_that_is_none_is_refused(app: App, browser: Browser, patient: str, until: str) -> None:
    form = browser.get(app.asked(OFFLINE)).form("allow").choose("how-long", "offline").fill(until=until)
    page = browser.submit(form, "allow")
    assert page.status == 422
    assert "end" in page.text
    assert consents(app, patient) == []


def test_a_clinicians_app_sees_the_picked_patient_alone(app: App, browser: Browser, patient: str) -> None:
    hospital, other = app.hospital, app.hospital.new_patient()
    browser.sign_in("Practitioner/narrowed-dr")
    for one in (patient, other):
        hospital.grant(one, "Practitioner/narrowed-dr")
        hospital.new(json.loads(observation(one, **category("exam"))))
    page = browser.get(app.asked("launch/patient patient/Observation.rs"))
    form = page.form("find")
    fields = [(one.name, one.value) for one in form.controls if one.kind == "hidden"]
    page = browser.page(browser.post(form.action, [*fields, ("step", "pick"), ("patient", patient)]))
    granted = app.exchanged(page.form("allow"), "allow")
    assert granted.told["patient"] == patient
    entries = granted.client.get("Observation").json()["entry"]
    assert {entry["resource"]["subject"]["reference"] for entry in entries} == {f"Patient/{patient}"}


def test_a_broken_glass_opens_one_record_for_a_quarter_of_an_hour(app: App, browser: Browser, patient: str) -> None:
    hospital, other = app.hospital, app.hospital.new_patient()
    hospital.new(json.loads(observation(other, **category("exam"))))
    browser.sign_in("Practitioner/narrowed-er")
    mrn = secrets.token_hex(6)
    record = hospital.feed.get(f"Patient/{patient}").json()
    hospital.feed.put(f"Patient/{patient}", {**record, "identifier": [{"system": "urn:mrn", "value": mrn}]})
    page = browser.get(app.asked("launch/patient patient/Observation.rs user/Observation.rs offline_access"))
    page = browser.submit(page.form("emergency").fill(identifier=mrn, reason="unconscious"), "emergency")
    granted = app.exchanged(page.form("break-glass"), "break-glass")
    assert "refresh_token" not in granted.told
    assert granted.told["expires_in"] <= 900
    assert len(found(granted, f"Observation?patient={patient}")) == 4
    assert found(granted, f"Observation?patient={other}") == []
    told = app.introspected(granted)
    assert told["patient"] == patient
