"""SMART App Launch 2.2 over HTTP: the 29 lines of the acceptance list that the public test kits (Inferno's SMART App
Launch, ONC g10, US Core) and the specification make; each test cites its line. The app is ``smart_app.py``, the
person's side are the real pages. What an attacker would try is in ``test_smart_attacks.py``.

https://hl7.org/fhir/smart-app-launch/STU2.2/, https://github.com/inferno-framework/smart-app-launch-test-kit
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from gateway.smart.clients import add_client
from tests.conformance.smart_app import ASSERTION, App, ehr_launch, key_for, scopes
from tests.journeys.browser import Browser, Form
from tests.journeys.hospital import LOINC, Client, Hospital

OBSERVATION_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
CONDITION_CATEGORY = "http://terminology.hl7.org/CodeSystem/condition-category"
CAPABILITIES = frozenset({
    "launch-standalone", "launch-ehr", "client-public", "client-confidential-symmetric",
    "client-confidential-asymmetric", "sso-openid-connect", "context-standalone-patient", "context-ehr-patient",
    "context-ehr-encounter", "context-banner", "context-style", "permission-offline", "permission-patient",
    "permission-user", "permission-v1", "permission-v2", "authorize-post"})
AUTH = ("none", "client_secret_basic", "RS384", "ES384")
STANDALONE = "launch/patient openid fhirUser offline_access patient/*.rs"
EHR = "launch openid fhirUser offline_access user/*.rs patient/*.rs"
FOUR = {"access_token", "token_type", "expires_in", "scope"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(tmp_path_factory.mktemp("smart"), address_failures="0", address_requests_per_s="0")
    yield made
    made.close()


@pytest.fixture
def patient(hospital: Hospital) -> str:
    return hospital.new_patient(name=[{"family": "Launch"}])


@pytest.fixture
def own(open_browser: Callable[[], Browser], patient: str) -> Browser:
    """The patient's own browser."""
    return open_browser().sign_in(f"Patient/{patient}")


@pytest.fixture
def doctor(hospital: Hospital, open_browser: Callable[[], Browser], patient: str) -> Browser:
    """The browser of a clinician the patient lets see everything, whose Practitioner resource is here."""
    written = hospital.feed.put(f"Practitioner/{DOCTOR}", {"resourceType": "Practitioner", "id": DOCTOR})
    assert written.status_code in (200, 201), written.text
    hospital.grant(patient, f"Practitioner/{DOCTOR}", confidentiality=5)
    return open_browser().sign_in(f"Practitioner/{DOCTOR}")


@pytest.fixture(scope="module")
def app(hospital: Hospital) -> App:
    return App(hospital)


@pytest.fixture(scope="module", params=AUTH)
def each_app(hospital: Hospital, request: pytest.FixtureRequest) -> App:
    """An app of each way to authenticate."""
    return App(hospital, auth=request.param)


DOCTOR = "dr-launch"


def only(form: Form, *wanted: str) -> Form:
    """Tick the boxes of these scopes and no others."""
    for control in form.named("scope"):
        control.checked = control.value in wanted
    assert {control.value for control in form.named("scope") if control.checked} == set(wanted), [
        control.value for control in form.named("scope")]
    return form


def observed(hospital: Hospital, patient: str, category: str) -> str:
    return hospital.new({
        "resourceType": "Observation", "status": "final", "code": {"coding": [{"system": LOINC, "code": "8867-4"}]},
        "category": [{"coding": [{"system": OBSERVATION_CATEGORY, "code": category}]}],
        "subject": {"reference": f"Patient/{patient}"}, "effectiveDateTime": "2024-03-01"})


def condition(hospital: Hospital, patient: str, category: str = "problem-list-item") -> str:
    return hospital.new({
        "resourceType": "Condition", "code": {"text": "c"}, "subject": {"reference": f"Patient/{patient}"},
        "clinicalStatus": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical",
                                       "code": "active"}]},
        "category": [{"coding": [{"system": CONDITION_CATEGORY, "code": category}]}]})


def encounter(hospital: Hospital, patient: str) -> str:
    return hospital.new({
        "resourceType": "Encounter", "status": "in-progress", "subject": {"reference": f"Patient/{patient}"},
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}})


# Discovery

@pytest.mark.parametrize("accept", ["application/json", "application/fhir+json", "text/html", "*/*"])
def test_01_smart_configuration_is_json_for_anyone(hospital: Hospital, accept: str) -> None:
    answer = hospital.run(hospital.http.get(f"{hospital.base}/.well-known/smart-configuration",
                                            headers={"Accept": accept}))
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "application/json"


def test_02_the_members_have_their_types_and_what_openid_needs(app: App) -> None:
    found = app.found
    for name in ("authorization_endpoint", "token_endpoint", "issuer", "jwks_uri"):
        assert isinstance(found[name], str)
        assert found[name].strip()
    for name in ("capabilities", "grant_types_supported", "code_challenge_methods_supported"):
        assert isinstance(found[name], list)
        assert all(isinstance(one, str) for one in found[name])
    assert "authorization_code" in found["grant_types_supported"]
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert "sso-openid-connect" in found["capabilities"]


def test_03_urls_are_absolute_and_every_endpoint_answers(app: App) -> None:
    for name, value in app.found.items():
        if name.endswith(("_endpoint", "_uri")):
            parts = urlsplit(value)
            assert parts.scheme in ("http", "https"), name
            assert parts.netloc, name
            answer = app.request("POST" if name in (
                "token_endpoint", "introspection_endpoint", "revocation_endpoint", "registration_endpoint") else "GET",
                value)
            assert answer.status_code in (200, 303, 400, 401, 403), (name, answer.status_code)
    assert {"client_credentials", "refresh_token"} <= set(app.found["grant_types_supported"])
    assert {"private_key_jwt", "client_secret_basic"} <= set(app.found["token_endpoint_auth_methods_supported"])
    assert {"introspection_endpoint", "revocation_endpoint", "management_endpoint", "scopes_supported"} <= {*app.found}
    for scope in app.found["scopes_supported"]:
        assert app.hospital.smart.parse_scope(scope)


def test_04_capabilities_are_those_a_certified_server_needs(app: App) -> None:
    offered: list[str] = app.found["capabilities"]
    assert not CAPABILITIES.difference(offered)
    assert len(set(offered)) == len(offered)


# Authorize

@pytest.mark.parametrize("by", ["GET", "POST"])
def test_05_a_request_comes_by_query_or_by_a_form_of_another_site(app: App, own: Browser, by: str) -> None:
    """The form is sent by another origin's page: no CSRF token, no cookie; it is kept and led on by 303 to a GET."""
    answer = app.authorize(STANDALONE, by=by)
    assert answer.status_code == 303
    assert urlsplit(answer.headers["Location"]).path.startswith("/oauth/authorize/")
    assert app.launched(own, STANDALONE, by=by)["patient"]


def test_06_code_and_state_come_back_to_the_exact_redirect_uri(app: App, own: Browser) -> None:
    page = app.shown(own, STANDALONE)
    told = app.told(own.submit(page.form("allow"), "allow"))
    assert set(told) == {"code", "state", "iss"}
    assert told["state"] == app.state
    second = app.shown(own, STANDALONE, redirect_uri=f"{app.redirect}/second")
    location = own.submit(second.form("allow"), "allow").response.headers["Location"]
    assert location.startswith(f"{app.redirect}/second?")


@pytest.mark.parametrize("changes", [
    {"aud": "https://elsewhere.example/fhir"}, {"aud": None}, {"aud": "http://127.0.0.1:8080/fhir/Patient"},
    {"resource": "https://elsewhere.example/fhir"}])
def test_07_another_audience_gives_no_code(app: App, changes: dict[str, str | None]) -> None:
    told = app.told(app.authorize(STANDALONE, **changes))
    assert "code" not in told
    assert (told["error"], told["state"]) == ("invalid_request", app.state)


def test_07_resource_is_a_synonym_of_aud(app: App, own: Browser) -> None:
    base = app.hospital.base
    assert app.launched(own, STANDALONE, aud=None, resource=base)["patient"]
    assert app.launched(own, STANDALONE, resource=base, aud=f"{base}/")["patient"]


def test_08_a_launch_is_the_issued_one_once_for_its_app_and_person(
        hospital: Hospital, app: App, doctor: Browser, own: Browser, patient: str,
        open_browser: Callable[[], Browser]) -> None:
    other = App(hospital)
    handle = ehr_launch(hospital, app, patient=patient, user=f"Practitioner/{DOCTOR}")
    for tried, by in (("gwl_" + "x" * 43, app), ("nonsense", app), (handle, other)):
        told = by.told(by.authorize(EHR, launch=tried))
        assert told["error"] == "invalid_request"
        assert "code" not in told
    # Another person may not take it up: the screen says so, and nothing is given.
    page = app.shown(open_browser().sign_in("Practitioner/dr-other"), EHR, launch=handle)
    assert page.status == 403
    assert not any("allow" in {control.value for control in form.controls} for form in page.forms)
    assert app.told(app.authorize(EHR, launch=handle))["error"] == "invalid_request"  # and it was taken
    again = ehr_launch(hospital, app, patient=patient, user=f"Practitioner/{DOCTOR}")
    assert app.launched(doctor, EHR, launch=again)["patient"] == patient


@pytest.mark.parametrize("verifier", [None, "", "wrong-but-of-the-right-length-and-made-of-good-characters",
                                      "challenge", "short", "x" * 129, "\u00e9" * 43])
def test_09_without_the_verifier_a_code_is_worth_nothing(each_app: App, own: Browser, verifier: str | None) -> None:
    """RFC 7636; of every client, confidential ones too."""
    asked = each_app.asking(STANDALONE)
    code = each_app.allowed(own, STANDALONE)
    answer = each_app.exchange(code, code_verifier=asked["code_challenge"] if verifier == "challenge" else verifier)
    assert answer.status_code in (400, 401)
    assert answer.json()["error"] in ("invalid_grant", "invalid_request")
    assert "access_token" not in answer.json()
    assert each_app.exchange(code).status_code == 200  # the app itself lost nothing by it


@pytest.mark.parametrize("changes", [
    {"code_challenge": None}, {"code_challenge_method": "plain"}, {"code_challenge_method": None},
    {"code_challenge": "short"}, {"code_challenge": "x" * 44}, {"code_challenge": None, "code_challenge_method": None}])
def test_09_every_client_must_bring_an_s256_challenge(each_app: App, changes: dict[str, str | None]) -> None:
    told = each_app.told(each_app.authorize(STANDALONE, **changes))
    assert told["error"] == "invalid_request"


def test_10_a_subset_of_types_is_what_the_scope_says_and_the_server_gives(
        hospital: Hospital, app: App, own: Browser, patient: str) -> None:
    observed(hospital, patient, "laboratory")
    kept = condition(hospital, patient)
    page = app.shown(own, "launch/patient openid fhirUser patient/Patient.rs patient/Condition.rs "
                          "patient/Observation.rs")
    form = only(page.form("allow"), "openid", "patient/Patient.rs", "patient/Condition.rs")
    token = app.exchange(app.code(own.submit(form, "allow"))).json()
    assert {scope for scope in scopes(token) if "/" in scope and not scope.startswith("launch")} == {
        "patient/Patient.rs", "patient/Condition.rs"}
    here = app.fhir(token)
    assert here.ids(f"Condition?patient={patient}") == [kept]
    assert here.get(f"Observation?patient={patient}").status_code in (401, 403)
    assert here.get(f"Patient/{patient}").status_code == 200


def test_11_categories_can_be_chosen_instead_of_whole_types(
        hospital: Hospital, app: App, own: Browser, patient: str) -> None:
    laboratory, survey = observed(hospital, patient, "laboratory"), observed(hospital, patient, "survey")
    problem, visit = condition(hospital, patient), condition(hospital, patient, "encounter-diagnosis")
    page = app.shown(own, "launch/patient patient/Condition.rs patient/Observation.rs patient/Patient.rs")
    chosen = {f"patient/Observation.rs?category={OBSERVATION_CATEGORY}|laboratory",
              f"patient/Condition.rs?category={CONDITION_CATEGORY}|problem-list-item"}
    form = only(page.form("allow"), "patient/Patient.rs", *chosen)
    token = app.exchange(app.code(own.submit(form, "allow"))).json()
    assert {scope for scope in scopes(token) if "?" in scope} == chosen
    assert "patient/Patient.rs" in scopes(token)
    assert not scopes(token) & {"patient/Condition.rs", "patient/Observation.rs"}
    here = app.fhir(token)
    assert here.ids(f"Observation?patient={patient}") == [laboratory]
    assert here.ids(f"Condition?patient={patient}") == [problem]
    for hidden in (f"Observation/{survey}", f"Condition/{visit}"):
        refused = here.get(hidden)
        assert 400 <= refused.status_code < 500
        assert refused.json()["resourceType"] == "OperationOutcome"


# Token

def test_12_each_way_to_authenticate_serves_code_and_refresh(each_app: App, own: Browser) -> None:
    token = each_app.launched(own, STANDALONE, how_long="offline")
    renewed = each_app.refresh(token["refresh_token"])
    assert renewed.status_code == 200, renewed.text
    assert each_app.fhir(renewed.json()).get(f"Patient/{token['patient']}").status_code == 200


def test_13_a_token_response_has_the_four_fields(app: App, own: Browser) -> None:
    answer = app.exchange(app.allowed(own, STANDALONE))
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "application/json"
    body = answer.json()
    assert set(body) >= FOUR
    assert body["token_type"] == "Bearer"
    assert isinstance(body["expires_in"], int)
    assert 0 < body["expires_in"] <= 3_600


def test_14_neither_answer_is_kept(app: App, own: Browser) -> None:
    answer = app.exchange(app.allowed(own, STANDALONE, how_long="offline"))
    for one in (answer, app.refresh(answer.json()["refresh_token"])):
        assert one.status_code == 200
        assert "no-store" in one.headers["cache-control"]
        assert one.headers["pragma"] == "no-cache"


def test_15_what_is_bad_is_refused_with_the_status_the_kits_expect(each_app: App, own: Browser) -> None:
    token = each_app.launched(own, STANDALONE, how_long="offline")
    for code in ("BAD_CODE", "gwc_" + "x" * 43, "\u00e9"):
        answer = each_app.exchange(code)
        assert answer.status_code in ((400,) if each_app.secret is None else (400, 401))
    assert each_app.refresh("BAD").status_code in (400, 401)
    fresh = each_app.allowed(own, STANDALONE)
    if each_app.auth == "none":
        assert each_app.exchange(fresh, client_id="BAD_CLIENT_ID").status_code in (400, 401)
    assert each_app.refresh(token["refresh_token"]).status_code == 200


def test_16_the_launch_patient_is_told_and_readable(app: App, own: Browser, patient: str) -> None:
    for scope in ("patient/Patient.rs", "launch/patient patient/*.rs", "patient/Patient.read"):
        token = app.launched(own, scope)
        assert token["patient"] == patient
        assert app.fhir(token).get(f"Patient/{token['patient']}").status_code == 200


def test_16_an_ehr_launch_brings_its_whole_context(
        hospital: Hospital, app: App, doctor: Browser, patient: str) -> None:
    visit = encounter(hospital, patient)
    handle = ehr_launch(hospital, app, patient=patient, encounter=visit, need_patient_banner=False,
                        intent="reconcile-medications", fhirContext=[
                            {"reference": "ImagingStudy/123"}, {"canonical": "http://example.org/PlanDefinition/p|1"},
                            {"identifier": {"system": "http://example.org/n", "value": "7"}, "type": "ServiceRequest"}])
    token = app.launched(doctor, EHR, launch=handle)
    assert (token["patient"], token["encounter"], token["need_patient_banner"], token["intent"]) == (
        patient, visit, False, "reconcile-medications")
    for entry in token["fhirContext"]:
        assert isinstance(entry, dict)
        assert entry.keys() & {"reference", "canonical", "identifier"}
        assert "://" not in entry.get("reference", "")
    assert len(token["fhirContext"]) == 3
    style = app.get(token["smart_style_url"])
    assert style.status_code == 200
    assert style.headers["content-type"].partition(";")[0] == "application/json"
    assert isinstance(style.json(), dict)
    here = app.fhir(token)
    assert here.get(f"Patient/{patient}").status_code == 200
    assert here.get(f"Encounter/{visit}").status_code == 200


def test_16_a_clinician_picks_the_patient_of_a_standalone_launch(
        app: App, doctor: Browser, patient: str) -> None:
    page = app.shown(doctor, "launch/patient patient/*.rs")
    binding = [(one.name, one.value) for one in page.form("find").controls if one.kind == "hidden"]
    page = doctor.page(doctor.post(page.form("find").action, [
        *binding, ("step", "pick"), ("patient", f"Patient/{patient}")]))
    token = app.exchange(app.code(doctor.submit(page.form("allow"), "allow"))).json()
    assert (token["patient"], token["need_patient_banner"]) == (patient, True)
    assert app.fhir(token).get(f"Patient/{patient}").status_code == 200


def test_17_a_refresh_gives_the_same_fields_and_never_more(each_app: App, own: Browser) -> None:
    first = each_app.launched(own, STANDALONE, how_long="offline")
    plain = each_app.refresh(first["refresh_token"])
    assert plain.status_code == 200
    assert set(plain.json()) >= FOUR
    assert scopes(plain.json()) == scopes(first)
    less = each_app.refresh(plain.json()["refresh_token"], scope="launch/patient patient/Patient.r")
    assert less.status_code == 200, less.text
    assert set(less.json()) >= FOUR
    assert scopes(less.json()) == {"launch/patient", "patient/Patient.r"}
    assert each_app.fhir(less.json()).get(f"Observation?patient={first['patient']}").status_code == 403
    whole = each_app.refresh(less.json()["refresh_token"])  # narrowing a token narrows no authorization
    assert scopes(whole.json()) == scopes(first)


def test_17_offline_access_lives_three_months_and_longer_with_each_use(hospital: Hospital, app: App,
                                                                       own: Browser) -> None:
    first = app.launched(own, STANDALONE, how_long="offline")
    told = app.ask_about(first["refresh_token"])
    assert told["exp"] - told["iat"] >= 92 * 86_400
    renewed = app.refresh(first["refresh_token"]).json()["refresh_token"]
    assert app.ask_about(renewed)["exp"] >= told["exp"]
    page = app.shown(own, STANDALONE)
    assert "asks for access while you are away" in page.text


def test_17_native_apps_get_refresh_tokens_at_their_own_scheme(hospital: Hospital, own: Browser) -> None:
    native = App(hospital, redirect="org.example.app:/after")
    token = native.launched(own, STANDALONE, how_long="offline")
    assert native.refresh(token["refresh_token"]).status_code == 200


def test_17_online_access_ends_with_the_session(hospital: Hospital, app: App, own: Browser) -> None:
    token = app.launched(own, "launch/patient online_access patient/*.rs", how_long="online")
    renewed = app.refresh(token["refresh_token"])
    assert renewed.status_code == 200
    form = own.get("/portal").form("Sign out")
    own.submit(form, "Sign out")
    assert app.refresh(renewed.json()["refresh_token"]).status_code == 400


# OpenID Connect

def test_18_the_id_token_is_signed_and_says_what_it_must(app: App, own: Browser) -> None:
    token = app.launched(own, STANDALONE, nonce="n-0S6_WzA2Mj")
    found = app.get(f"{app.found['issuer']}/.well-known/openid-configuration").json()
    keys = KeySet.import_key_set(app.get(found["jwks_uri"]).json())
    read = jwt.decode(token["id_token"], keys, algorithms=["RS256"])
    assert read.header["alg"] == "RS256"
    assert read.header["kid"] in {key.kid for key in keys.keys}
    claims = read.claims
    assert (claims["iss"], claims["aud"], claims["nonce"]) == (app.found["issuer"], app.id, "n-0S6_WzA2Mj")
    assert 0 < len(claims["sub"]) < 256
    assert claims["iat"] < claims["exp"] <= claims["iat"] + 3_600
    assert claims["auth_time"] <= claims["iat"]
    again = jwt.decode(app.launched(own, STANDALONE)["id_token"], keys, algorithms=["RS256"]).claims
    assert again["sub"] == claims["sub"]
    assert "nonce" not in again


def test_19_openid_discovery_stands_below_the_issuer(app: App) -> None:
    found = app.get(f"{app.found['issuer']}/.well-known/openid-configuration").json()
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "issuer"):
        assert found[name] == app.found[name]
    assert found["response_types_supported"] == ["code"]
    assert found["subject_types_supported"] == ["public"]
    assert found["id_token_signing_alg_values_supported"] == ["RS256"]
    (key,) = app.get(found["jwks_uri"]).json()["keys"]
    assert key["kty"] == "RSA"
    assert not key.keys() & {"d", "p", "q", "dp", "dq", "qi"}
    assert app.get(f"{app.found['issuer']}/.well-known/oauth-authorization-server").json() == found


def fhir_user(app: App, token: dict[str, Any]) -> str:
    keys = KeySet.import_key_set(app.get(app.found["jwks_uri"]).json())
    claims = jwt.decode(token["id_token"], keys, algorithms=["RS256"]).claims
    who = app.get(f"{app.found['issuer']}/oauth/userinfo", headers={"Authorization": f"Bearer {token['access_token']}"})
    assert who.status_code == 200, who.text
    assert (who.json()["sub"], who.json()["fhirUser"]) == (claims["sub"], claims["fhirUser"])
    found: str = claims["fhirUser"]
    return found


@pytest.mark.parametrize("scope", ["openid fhirUser user/*.rs", "openid fhirUser user/Observation.rs",
                                   "openid fhirUser launch/patient patient/Observation.rs", "openid fhirUser"])
def test_20_fhir_user_can_be_read_by_a_patients_token(app: App, own: Browser, patient: str, scope: str) -> None:
    token = app.launched(own, scope)
    user = fhir_user(app, token)
    assert user == f"{app.hospital.base}/Patient/{patient}"
    assert app.fhir(token).get(user).status_code == 200


@pytest.mark.parametrize("scope", ["launch openid fhirUser user/*.rs", "launch openid fhirUser patient/Observation.rs"])
def test_20_fhir_user_can_be_read_by_a_clinicians_token(
        hospital: Hospital, app: App, doctor: Browser, patient: str, scope: str) -> None:
    token = app.launched(doctor, scope, launch=ehr_launch(hospital, app, patient=patient))
    user = fhir_user(app, token)
    assert user == f"{app.hospital.base}/Practitioner/{DOCTOR}"
    here = app.fhir(token)
    assert here.get(user).status_code == 200
    if "user/" not in scope:  # this one resource, and no other of its kind
        other = hospital.new({"resourceType": "Practitioner"})
        assert here.get(f"Practitioner/{other}").status_code in (403, 404)
        assert here.get("Practitioner").status_code == 403


def test_20_fhir_user_can_be_read_by_a_delegates_token(
        hospital: Hospital, app: App, open_browser: Callable[[], Browser], patient: str) -> None:
    related = hospital.new({"resourceType": "RelatedPerson", "patient": {"reference": f"Patient/{patient}"}})
    mother = open_browser().sign_in(f"RelatedPerson/{related}", role="delegate", represents=f"Patient/{patient}",
                                    mandate_until_ms=hospital.smart.now_ms() + 1_800_000)
    token = app.launched(mother, "openid fhirUser launch/patient patient/Patient.rs")
    assert token["patient"] == patient
    assert token["expires_in"] <= 1_800  # never longer than the mandate
    user = fhir_user(app, token)
    assert user.endswith(f"/RelatedPerson/{related}")
    assert app.fhir(token).get(user).status_code == 200


# Introspection

def test_21_introspection_says_what_the_token_response_said(
        hospital: Hospital, app: App, doctor: Browser, patient: str) -> None:
    visit = encounter(hospital, patient)
    token = app.launched(doctor, EHR, launch=ehr_launch(hospital, app, patient=patient, encounter=visit))
    claims = jwt.decode(token["id_token"], KeySet.import_key_set(app.get(app.found["jwks_uri"]).json()),
                        algorithms=["RS256"]).claims
    told = app.ask_about(token["access_token"])
    assert told["active"] is True
    assert told["client_id"] == app.id
    assert set(told["scope"].split()) == scopes(token)
    assert isinstance(told["exp"], int)
    assert (told["patient"], told["encounter"]) == (patient, visit)
    assert (told["iss"], told["sub"], told["fhirUser"]) == (claims["iss"], claims["sub"], claims["fhirUser"])
    assert app.ask_about("unknown") == {"active": False}
    v1 = app.launched(doctor, "patient/Patient.read", launch=ehr_launch(hospital, app, patient=patient))
    assert app.ask_about(v1["access_token"])["scope"] == v1["scope"] == "patient/Patient.read"


def test_21_a_resource_server_shows_its_own_bearer_token(hospital: Hospital, app: App, own: Browser) -> None:
    token, url = app.launched(own, STANDALONE), app.found["introspection_endpoint"]
    for proof, active in ((f"Bearer {hospital.feed.token}", True), (f"Bearer {token['access_token']}", True)):
        answer = app.request("POST", url, data={"token": token["access_token"]}, headers={"Authorization": proof})
        assert answer.json()["active"] is active
    for proof in ("Bearer unknown", "Basic eDp5", "Bearer"):
        refused = app.request("POST", url, data={"token": token["access_token"]}, headers={"Authorization": proof})
        assert refused.status_code == 401
        assert "www-authenticate" in refused.headers
    for form in ({}, {"client_id": app.id}):  # a public client proves nothing
        assert app.request("POST", url, data={"token": token["access_token"], **form}).status_code in (400, 401)


# Backend services

class Backend:
    """A system with a key of its own."""

    def __init__(self, hospital: Hospital, folder: Path, algorithm: str, scope: str = "system/*.rs") -> None:
        self.app = App(hospital, auth=algorithm)
        path = folder / "jwks.json"
        path.write_text(json.dumps(KeySet([key_for(algorithm)]).as_dict(private=False)))
        self.app.id = add_client(hospital.smart, name="Registry", kind="backend", scope=scope, jwks=str(path),
                                 purposes=("TREAT",))

    def token(self, **changes: Any) -> Any:
        form = {"grant_type": "client_credentials", "scope": "system/*.rs", "client_assertion_type": ASSERTION,
                "client_assertion": self.app.assertion(), **changes}
        return self.app.request("POST", self.app.found["token_endpoint"], data=form)


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_22_a_backend_gets_the_four_fields_or_the_expected_refusal(
        hospital: Hospital, tmp_path: Path, algorithm: str) -> None:
    backend = Backend(hospital, tmp_path, algorithm)
    answer = backend.token()
    assert answer.status_code in (200, 201), answer.text
    assert set(answer.json()) == FOUR
    assert backend.token(grant_type="not_a_grant_type").status_code == 400
    assert backend.token(client_assertion_type="not_an_assertion_type").status_code in (400, 401)


@pytest.mark.parametrize("claims", [
    {"aud": "https://elsewhere.example/token"}, {"exp": 1}, {"exp": 2**40}, {"iss": "other"}, {"sub": "other"},
    {"jti": None}])
def test_23_an_assertion_with_a_wrong_claim_is_invalid_client(
        hospital: Hospital, tmp_path: Path, claims: dict[str, Any]) -> None:
    backend = Backend(hospital, tmp_path, "ES384")
    answer = backend.token(client_assertion=backend.app.assertion(**claims))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client")


def test_23_a_replayed_or_wrongly_signed_assertion_is_invalid_client(hospital: Hospital, tmp_path: Path) -> None:
    backend = Backend(hospital, tmp_path, "RS384")
    once = backend.app.assertion()
    assert backend.token(client_assertion=once).status_code == 200
    head, body, _ = once.split(".")
    for bad in (once, f"{head}.{body}.AAAA", "nonsense"):
        assert backend.token(client_assertion=bad).json()["error"] == "invalid_client"


def test_24_a_backends_token_lives_five_minutes_within_its_registration(hospital: Hospital, tmp_path: Path) -> None:
    backend = Backend(hospital, tmp_path, "ES384", scope="system/Observation.rs")
    body = backend.token(scope="system/*.cruds").json()
    assert 0 < body["expires_in"] <= 300
    assert "refresh_token" not in body
    assert body["scope"] == "system/Observation.rs"


# The resource server

def test_25_no_token_or_a_wrong_one_is_401(hospital: Hospital, patient: str) -> None:
    for token in (None, "gw_" + "x" * 43, "nonsense"):
        answer = Client(hospital, token).get(f"Patient/{patient}")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_25_expiry_and_scope_are_checked(hospital: Hospital, app: App, own: Browser, patient: str) -> None:
    token = app.launched(own, "patient/Patient.rs")
    assert app.fhir(token).get(f"Observation?patient={patient}").status_code == 403
    hospital.database.transact(lambda tx: tx.execute("UPDATE token SET expires_ms=1 WHERE hash=?", (
        hospital.smart.tokens.hash(token["access_token"]),)))
    assert app.fhir(token).get(f"Patient/{patient}").status_code == 401


def test_26_v1_scopes_work_and_are_told_in_v1(hospital: Hospital, app: App, own: Browser, patient: str) -> None:
    condition(hospital, patient)
    token = app.launched(own, "launch/patient openid fhirUser patient/Patient.read patient/Condition.read")
    assert {"patient/Patient.read", "patient/Condition.read"} <= scopes(token)
    here = app.fhir(token)
    assert here.get(f"Patient/{patient}").status_code == 200
    assert len(here.ids(f"Condition?patient={patient}")) == 1
    assert here.get(f"Observation?patient={patient}").status_code == 403


def test_27_a_patients_revocation_ends_tokens_and_refresh_at_once(
        hospital: Hospital, app: App, own: Browser, patient: str) -> None:
    token = app.launched(own, STANDALONE, how_long="offline")
    here = app.fhir(token)
    assert here.get(f"Patient/{patient}").status_code == 200
    page = own.get(app.found["management_endpoint"])
    forms = [form for form in page.forms if form.action.endswith("/revoke")]
    own.submit(forms[0], next(control.value for control in forms[0].controls if control.kind == "submit"))
    assert here.get(f"Patient/{patient}").status_code in (401, 403, 404)
    assert app.refresh(token["refresh_token"]).status_code in (400, 401)
    assert app.ask_about(token["access_token"]) == {"active": False}


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/userinfo", "/oauth/introspect"])
def test_28_pages_of_registered_apps_may_call(hospital: Hospital, app: App, path: str) -> None:
    url = f"{app.found['issuer']}{path}"
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = app.request("OPTIONS", url, headers=asked)
    assert preflight.status_code in (200, 204)
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    answer = app.request("POST", url, data={"grant_type": "x"}, headers={"Origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in answer.headers
    for stranger in ("https://evil.example", "https://app.example.evil.example", "https://app", "null"):
        for one in (app.request("OPTIONS", url, headers={**asked, "Origin": stranger}),
                    app.request("POST", url, data={"grant_type": "x"}, headers={"Origin": stranger})):
            assert "access-control-allow-origin" not in one.headers


def test_28_discovery_and_keys_are_for_any_origin(app: App) -> None:
    for url in (f"{app.hospital.base}/.well-known/smart-configuration", app.found["jwks_uri"],
                f"{app.found['issuer']}/.well-known/openid-configuration"):
        answer = app.get(url, headers={"Origin": "https://anywhere.example"})
        assert answer.headers["access-control-allow-origin"] == "*"


def test_28_pages_of_registered_apps_may_call_the_fhir_door(app: App, own: Browser, patient: str) -> None:
    here = app.fhir(app.launched(own, "launch/patient patient/Patient.rs"))
    answer = here.get(f"Patient/{patient}", Origin="https://app.example")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in answer.headers
    preflight = here.request("OPTIONS", f"Patient/{patient}", Origin="https://app.example",
                             Access_Control_Request_Method="GET", Access_Control_Request_Headers="authorization")
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    for stranger in ("https://evil.example", "https://app.example.evil.example", "null", ""):
        assert "access-control-allow-origin" not in here.get(f"Patient/{patient}", Origin=stranger).headers


def test_29_beyond_this_machine_there_is_no_plain_http(tmp_path: Path) -> None:
    """TLS itself is the deployment's: it ends before this server. What the server holds to: a base URL in the clear is
    for this machine's loopback alone, whatever a header claims, and by https browsers are told to stay there."""
    clear = Hospital(tmp_path / "clear", base_url="http://hospital.example/fhir")
    secure = Hospital(tmp_path / "secure", base_url="https://hospital.example/fhir")
    try:
        for hospital, refused in ((clear, True), (secure, False)):
            app = App(hospital)
            told = app.request("POST", app.found["token_endpoint"], data={"grant_type": "x"}, headers={
                "X-Forwarded-Proto": "https"})
            assert (told.json()["error"] == "insecure_transport") is refused
            asked = app.authorize(STANDALONE)
            assert (asked.status_code == 400) is refused, asked.text
            assert ("strict-transport-security" in told.headers) is not refused
            assert all(value.startswith("https://") for name, value in app.found.items() if name.endswith("_endpoint")
                       ) is not refused
    finally:
        clear.close()
        secure.close()
