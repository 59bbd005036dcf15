"""The authorize screen over HTTP, as a browser without scripts sees it. SMART App Launch 2.2; facts-smart 10, 11."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from gateway.access.scopes import parse
from gateway.records import notices
from gateway.smart.authorization import Authorization, authorizations_of
from gateway.smart.clients import add_client, find_client
from gateway.smart.launches import LaunchContext, open_launch, take_launch
from gateway.smart.pending import LIFE_MS, keep
from tests.journeys.browser import Browser, Form, Page
from tests.journeys.hospital import Hospital

REDIRECT = "https://app.example/callback"
EVERYTHING = ("patient/*.cruds user/*.cruds openid fhirUser launch launch/patient launch/encounter online_access "
              "offline_access __tenant")
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
OBSERVATIONS = "See your test results, vital signs and other observations"
PROBLEMS = "See your health problems and diagnoses"
IDENTITY = "Know who you are: your name and which account is yours"
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def app(hospital: Hospital) -> str:
    return add_client(hospital.smart, name="Growth <Chart>", kind="app", scope=EVERYTHING, jwks=None,
                      purposes=("TREAT", "HRESCH"), auth="none", redirect_uris=(REDIRECT,))


@pytest.fixture
def ask(hospital: Hospital, app: str) -> Ask:
    """An app's request, as /oauth/authorize keeps it; the page it leads to."""
    def asked(scope: str, *, client: str = app, launch: LaunchContext | None = None, prompt: tuple[str, ...] = (),
              max_age_s: int | None = None) -> str:
        smart = hospital.smart
        found = find_client(hospital.database.reader, client)
        assert found is not None
        handle = hospital.database.transact(lambda tx: keep(
            tx, smart, client=found, asked=parse(scope), v1=False, redirect_uri=REDIRECT, state="state-1", nonce=None,
            challenge="c" * 43, launch=launch, prompt=prompt, max_age_s=max_age_s, now_ms=smart.now_ms()))
        return f"/oauth/authorize/{handle}"
    return asked


@pytest.fixture
def launch(hospital: Hospital, app: str) -> Callable[..., LaunchContext]:
    def opened(**context: Any) -> LaunchContext:
        smart = hospital.smart
        values: dict[str, Any] = {"user": None, "patient": None, "encounter": None, **context}

        def work(tx: Any) -> LaunchContext:
            handle = open_launch(tx, smart, client_id=app, opener="feed", role="system", fhir_context=(),
                                 need_patient_banner=True, intent=None, now_ms=smart.now_ms(), **values)
            return take_launch(tx, smart, handle, app, smart.now_ms())
        return hospital.database.transact(work)
    return opened


def answered(page: Page) -> dict[str, str]:
    """What the app is told: the query of the redirect it stands at."""
    location = page.response.headers["Location"]
    assert location.split("?")[0] == REDIRECT, location
    assert page.response.status_code == 303
    return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}


def allowed(hospital: Hospital, user: str, page: Page) -> Authorization:
    """What was approved, the redirect having brought a code."""
    told = answered(page)
    assert told["state"] == "state-1"
    assert told["iss"] == hospital.base.removesuffix("/fhir")
    assert told["code"]
    return authorizations_of(hospital.database.reader, user)[0]


def nothing_allowed(hospital: Hospital, user: str) -> bool:
    return not authorizations_of(hospital.database.reader, user)


def doctor(browser: Browser, id_: str, **account: Any) -> str:
    browser.sign_in(f"Practitioner/{id_}", **account)
    return f"Practitioner/{id_}"


# What a person sees

def test_a_patient_reads_in_plain_words_what_is_asked_and_by_whom(
        hospital: Hospital, browser: Browser, ask: Ask) -> None:
    browser.sign_in(f"Patient/{hospital.new_patient()}")
    page = browser.get(ask("launch/patient openid fhirUser patient/Observation.rs patient/Appointment.crus "
                           "offline_access __tenant"))
    assert page.status == 200
    for words in ("Growth <Chart> asks for access", "Demonstration Hospital registered it.", "https://app.example",
                  OBSERVATIONS, "See your appointments", "Add and change your appointments", IDENTITY,
                  "asks for access while you are away", "the patient's own request", "__tenant"):
        assert words in page.text
    assert "<Chart>" not in page.response.text


def test_the_page_keeps_to_its_policy_and_its_controls_have_labels(
        hospital: Hospital, browser: Browser, ask: Ask) -> None:
    browser.sign_in(f"Patient/{hospital.new_patient()}")
    page = browser.get(ask("launch/patient openid patient/*.cruds offline_access"))
    policy = page.response.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self' https://app.example" in policy
    assert page.response.headers["X-Frame-Options"] == "DENY"
    assert page.response.headers["Cache-Control"] == "no-store"
    assert page.inline == []
    assert not [link for link in page.links if "//" in link]
    assert all(control.label for control in page.controls if control.kind not in ("hidden", "submit"))
    ids = re.findall(r'\bid="([^"]+)"', page.response.text)
    assert len(ids) == len(set(ids))


def test_a_wildcard_is_spread_over_what_a_person_knows(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(ask("patient/*.rs")).form("allow")
    form.untick(OBSERVATIONS, "See your insurance claims")
    scopes = allowed(hospital, user, browser.submit(form, "allow")).scopes
    assert scopes.allows("Condition", "r")
    assert scopes.allows("Practitioner", "r")
    assert not scopes.allows("Observation", "r")
    assert not scopes.allows("Claim", "s")


def test_all_there_is_to_ask_fits_a_form(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = doctor(browser, "screen-all")
    patient = hospital.new_patient()
    hospital.grant(patient, user)
    page = browser.get(ask("launch/patient patient/*.cruds user/*.cruds openid offline_access"))
    binding = [(one.name, one.value) for one in page.form("find").controls if one.kind == "hidden"]
    page = Page(browser.post(page.form("find").action, [*binding, ("step", "pick"), ("patient", patient)]))
    made = allowed(hospital, user, browser.submit(page.form("allow"), "allow"))
    assert {str(scope) for scope in made.scopes.resources} >= {"patient/*.crus", "user/*.crus"}


# What comes of it

def test_left_as_it_is_an_app_gets_what_it_asked_for_an_hour(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    asked = "launch/patient openid fhirUser patient/Observation.rs patient/Patient.rs offline_access"
    page = browser.sign_in(user).get(ask(asked))
    made = allowed(hospital, user, browser.submit(page.form("allow"), "allow"))
    assert str(made.scopes) == str(parse(asked.removesuffix(" offline_access")))
    assert (made.patient, made.purpose, made.access) == (user, "PATRQT", None)


def test_kinds_and_a_date_are_granular_scopes(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    """Facts-smart 11: category sub-scopes, none at resource level, and patient/Patient.rs."""
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(
        ask("launch/patient patient/Condition.rs patient/Observation.rs patient/Patient.rs")).form("allow")
    form.tick("See your laboratory results", "See your health concerns").fill(since="2024-01-01")
    made = allowed(hospital, user, browser.submit(form, "allow"))
    assert str(made.scopes) == (
        "launch/patient patient/Condition.rs?category=http://hl7.org/fhir/us/core/CodeSystem/condition-category|"
        "health-concern&recorded-date=ge2024-01-01 "
        f"patient/Observation.rs?category={CATEGORY}|laboratory&date=ge2024-01-01 patient/Patient.rs")


def test_a_date_of_one_line_is_its_own(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(ask("patient/Condition.rs patient/Observation.rs")).form("allow")
    form.labelled("Only since, for test results, vital signs and other observations").value = "2023-05-06"
    made = allowed(hospital, user, browser.submit(form, "allow"))
    assert str(made.scopes) == "patient/Condition.rs patient/Observation.rs?date=ge2023-05-06"


def test_what_reads_the_same_is_one_box(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(
        ask("patient/Observation.rs user/Observation.rs patient/Condition.rs")).form("allow")
    form.untick(OBSERVATIONS)
    assert str(allowed(hospital, user, browser.submit(form, "allow")).scopes) == "patient/Condition.rs"


def test_deny_is_told_to_the_app(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    page = browser.sign_in(user).get(ask("patient/Observation.rs"))
    assert answered(browser.submit(page.form("deny"), "deny")) == {
        "error": "access_denied", "state": "state-1", "iss": hospital.base.removesuffix("/fhir")}
    assert nothing_allowed(hospital, user)


def test_the_enter_key_allows_nothing(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    browser.sign_in(f"Patient/{hospital.new_patient()}")
    form = browser.get(ask("patient/Observation.rs")).form("allow")
    assert next(control for control in form.controls if control.kind == "submit").value == "deny"


def test_everything_unticked_is_a_refusal(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(ask("openid launch/patient patient/Observation.rs")).form("allow").only()
    assert answered(browser.submit(form, "allow"))["error"] == "access_denied"
    assert nothing_allowed(hospital, user)


def test_signing_in_alone_can_be_allowed(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(ask("openid fhirUser launch/patient patient/Observation.rs")).form("allow")
    made = allowed(hospital, user, browser.submit(form.only(IDENTITY), "allow"))
    assert str(made.scopes) == "fhirUser openid"


def test_a_wrong_date_is_said_and_what_was_chosen_is_kept(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(ask("patient/Condition.rs patient/Observation.rs")).form("allow")
    page = browser.submit(form.untick(PROBLEMS).fill(since="last year"), "allow")
    assert page.status == 422
    assert "2024-01-31" in page.text
    again = page.form("allow")
    assert not again.labelled(PROBLEMS).checked
    assert again.labelled(OBSERVATIONS).checked
    made = allowed(hospital, user, browser.submit(again.fill(since=""), "allow"))
    assert str(made.scopes) == "patient/Observation.rs"


# Who may answer

def test_signed_out_leads_to_sign_in_and_back(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    path = ask("patient/Observation.rs")
    answer = browser.request("GET", path)
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"/portal/sign-in?next={path}"


@pytest.mark.parametrize(("prompt", "max_age_s"), [(("login",), None), ((), 0)])
def test_a_fresh_sign_in_is_asked_for_where_the_app_wants_one(
        hospital: Hospital, browser: Browser, ask: Ask, prompt: tuple[str, ...], max_age_s: int | None) -> None:
    user = f"Patient/{hospital.new_patient()}"
    path = ask("patient/Observation.rs", prompt=prompt, max_age_s=max_age_s) if prompt else None
    browser.sign_in(user)
    path = path or ask("patient/Observation.rs", max_age_s=max_age_s)
    if prompt:  # signed in after the app asked
        assert browser.request("GET", path).status_code == 200
        path = ask("patient/Observation.rs", prompt=prompt)
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE session SET auth_time_ms=auth_time_ms-5000 WHERE login IN (SELECT id FROM login WHERE fhir_user=?)",
        (user,)))
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE login SET decided_ms=decided_ms-9000 WHERE fhir_user=?", (user,)))
    answer = browser.request("GET", path)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/portal/sign-in?next={path}")


@pytest.mark.parametrize(("signed_in", "error"), [(False, "login_required"), (True, "consent_required")])
def test_prompt_none_never_asks(hospital: Hospital, browser: Browser, ask: Ask, signed_in: bool, error: str) -> None:
    """OpenID Connect Core 3.1.2.1 and 3.1.2.6."""
    if signed_in:
        browser.sign_in(f"Patient/{hospital.new_patient()}")
    assert answered(browser.get(ask("patient/Observation.rs", prompt=("none",))))["error"] == error


def test_who_is_not_proofed_yet_can_only_go_back(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    page = browser.sign_in(None).get(ask("patient/Observation.rs"))
    assert page.status == 403
    assert [form.action for form in page.forms if any(one.value == "allow" for one in form.controls)] == []
    assert answered(browser.submit(page.form("deny"), "deny"))["error"] == "access_denied"


def test_a_second_factor_is_asked_of_staff(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    page = browser.sign_in("Practitioner/screen-weak", methods=("pwd",)).get(ask("user/Observation.rs"))
    assert page.status == 403
    assert "second factor" in page.text


def test_a_role_that_may_not_use_the_app_is_told_so(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    page = browser.sign_in("Practitioner/screen-admin", role="administrator").get(ask("patient/Observation.rs"))
    assert page.status == 403
    assert "administrator may not have" in page.text


def test_what_a_role_may_not_have_is_not_offered(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = f"Patient/{hospital.new_patient()}"
    page = browser.sign_in(user).get(ask("patient/Condition.cruds"))
    assert "Change your health problems" in page.text
    assert "delete" not in page.text.lower()
    assert str(allowed(hospital, user, browser.submit(page.form("allow"), "allow")).scopes) == "patient/Condition.rus"


def test_a_delegate_decides_for_whom_they_represent(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    patient, user = f"Patient/{hospital.new_patient()}", "RelatedPerson/screen-mother"
    page = browser.sign_in(user, role="delegate", represents=patient, mandate_until_ms=2**52).get(
        ask("launch/patient patient/Observation.rs"))
    assert "for the person you represent" in page.text
    made = allowed(hospital, user, browser.submit(page.form("allow"), "allow"))
    assert (made.patient, made.purpose) == (patient, "FAMRQT")


# The clinician's pickers

def test_a_clinician_finds_only_whom_they_may_see(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    seen = hospital.new_patient(name=[{"family": "Zimtstern", "given": ["Ada"]}], birthDate="1980-02-03",
                                identifier=[{"system": "urn:mrn", "value": "zs-1"}])
    hidden = hospital.new_patient(name=[{"family": "Zimtstern", "given": ["Bert"]}])
    user = doctor(browser, "screen-dr")
    hospital.grant(seen, user)
    page = browser.get(ask("launch/patient patient/Observation.rs"))
    assert "which patient?" in page.text
    page = browser.submit(page.form("find").fill(name="Zimtstern"), "find")
    assert "Ada Zimtstern" in page.text
    assert "born 1980-02-03, zs-1" in page.text
    assert hidden not in page.response.text
    assert "Bert" not in page.response.text
    page = browser.submit(page.form(f"Patient/{seen}"), f"Patient/{seen}")
    assert "Ada Zimtstern" in page.text
    made = allowed(hospital, user, browser.submit(page.form("allow"), "allow"))
    assert (made.patient, made.purpose) == (f"Patient/{seen}", "TREAT")
    shown = [entry for entry in hospital.audited(seen) if entry.user == user]
    assert {"search-type", "read"} <= {entry.interaction for entry in shown}


@pytest.mark.parametrize("known", [True, False])
def test_a_patient_the_clinician_may_not_see_cannot_be_slipped_in(
        hospital: Hospital, browser: Browser, ask: Ask, known: bool) -> None:
    mine, other = hospital.new_patient(), hospital.new_patient() if known else "nobody-1"
    user = doctor(browser, f"screen-slip-{known}")
    hospital.grant(mine, user)
    page = browser.get(ask("launch/patient patient/Observation.rs"))
    binding = [(one.name, one.value) for one in page.form("find").controls if one.kind == "hidden"]
    action = page.form("find").action
    picked = Page(browser.post(action, [*binding, ("step", "pick"), ("patient", f"Patient/{other}")]))
    assert picked.status == 422
    assert "choose a patient whose record you may see" in picked.text
    page = Page(browser.post(action, [*binding, ("step", "pick"), ("patient", f"Patient/{mine}")]))
    form = page.form("allow").fill(patient=f"Patient/{other}")
    assert browser.submit(form, "allow").status == 422
    assert nothing_allowed(hospital, user)


def test_an_encounter_is_picked_among_the_patients(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    patient, other = hospital.new_patient(), hospital.new_patient()
    user = doctor(browser, "screen-visit")
    for one in (patient, other):
        hospital.grant(one, user)

    def encounter(of: str, when: str) -> str:
        return "Encounter/" + hospital.new({
            "resourceType": "Encounter", "status": "finished", "period": {"start": when},
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB",
                      "display": "ambulatory"}, "subject": {"reference": f"Patient/{of}"}})
    first, foreign = encounter(patient, "2024-02-03"), encounter(other, "2024-02-04")
    page = browser.get(ask("launch/patient launch/encounter patient/Observation.rs"))
    binding = [(one.name, one.value) for one in page.form("find").controls if one.kind == "hidden"]
    page = Page(browser.post(page.form("find").action, [*binding, ("step", "pick"), ("patient", patient)]))
    assert "ambulatory, 2024-02-03, finished" in page.text
    assert foreign not in page.response.text
    form = page.form("allow").choose("encounter", first)
    tampered = [(name, foreign if name == "encounter" else value) for name, value in form.sent("allow")]
    assert browser.post(form.action, tampered).status_code == 422
    assert allowed(hospital, user, browser.submit(form, "allow")).encounter == first


def test_the_context_of_an_ehr_launch_is_settled(hospital: Hospital, browser: Browser, ask: Ask,
                                                 launch: Callable[..., LaunchContext]) -> None:
    patient, other = hospital.new_patient(name=[{"text": "Lena Launched"}]), hospital.new_patient()
    user = doctor(browser, "screen-ehr")
    for one in (patient, other):
        hospital.grant(one, user)
    path = ask("launch patient/Observation.rs", launch=launch(patient=patient, user=user))
    page = browser.get(path)
    assert "Lena Launched" in page.text
    assert "It cannot be changed here" in page.text
    form = page.form("allow")
    assert form.named("patient") == []
    fields = [*form.sent("allow"), ("patient", f"Patient/{other}")]
    assert allowed(hospital, user, Page(browser.post(form.action, fields))).patient == f"Patient/{patient}"


def test_a_launch_for_another_person_is_refused(hospital: Hospital, browser: Browser, ask: Ask,
                                                launch: Callable[..., LaunchContext]) -> None:
    doctor(browser, "screen-ehr-other")
    page = browser.get(ask("launch patient/Observation.rs", launch=launch(user="Practitioner/somebody-else")))
    assert page.status == 403
    assert "started for somebody else" in page.text


def test_a_launch_about_another_patient_is_refused(hospital: Hospital, browser: Browser, ask: Ask,
                                                   launch: Callable[..., LaunchContext]) -> None:
    browser.sign_in(f"Patient/{hospital.new_patient()}")
    page = browser.get(ask("launch patient/Observation.rs", launch=launch(patient=hospital.new_patient())))
    assert page.status == 403


def test_a_clinician_chooses_among_the_purposes_of_the_app(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = doctor(browser, "screen-purpose")
    form = browser.get(ask("user/Observation.rs")).form("allow")
    assert [one.label for one in form.named("purpose")] == ["treatment", "research"]
    fields = [(name, "BTG" if name == "purpose" else value) for name, value in form.sent("allow")]
    assert browser.post(form.action, fields).status_code == 422
    assert allowed(hospital, user, browser.submit(form.choose("purpose", "HRESCH"), "allow")).purpose == "HRESCH"


# Breaking the glass

def test_a_broken_glass_needs_one_patient_and_a_reason_and_is_told(
        hospital: Hospital, browser: Browser, ask: Ask) -> None:
    patient = hospital.new_patient(name=[{"text": "Emil Ernst"}], identifier=[{"system": "urn:mrn", "value": "em-7"}])
    user = doctor(browser, "screen-er")
    page = browser.get(ask("launch/patient patient/Observation.rs offline_access"))
    assert "told at once" in page.text
    page = browser.submit(page.form("emergency").fill(identifier="em-7"), "emergency")
    assert page.status == 422
    assert "reason" in page.text
    assert "Emil" not in page.response.text
    page = browser.submit(page.form("emergency").fill(identifier="em-0", reason="unconscious"), "emergency")
    assert page.status == 422
    assert "no one patient" in page.text
    page = browser.submit(page.form("emergency").fill(identifier="em-7", reason="unconscious"), "emergency")
    assert "Emil Ernst" in page.text
    assert nothing_allowed(hospital, user)
    made = allowed(hospital, user, browser.submit(page.form("break-glass"), "break-glass"))
    assert (made.patient, made.purpose, made.reason, made.access) == (
        f"Patient/{patient}", "BTG", "unconscious", None)
    assert "offline_access" not in made.scopes.others
    seen = [entry for entry in hospital.audited(patient) if entry.user == user]
    assert {(entry.interaction, entry.basis, entry.reason) for entry in seen if entry.interaction == "read"} == {
        ("read", "break-glass", "unconscious")}


def test_whom_was_looked_at_in_an_emergency_is_told(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    patient = hospital.new_patient(name=[{"text": "Nora Notified"}], birthDate="1971-07-07")
    user = doctor(browser, "screen-er-told", name="Dr Erna")
    page = browser.get(ask("launch/patient patient/Observation.rs"))
    page = browser.submit(page.form("emergency").fill(
        name="Nora Notified", birthdate="1971-07-07", reason="found unconscious"), "emergency")
    assert "Nora Notified" in page.text
    while notices.step(hospital.node):
        pass
    told = hospital.patient(patient).get(f"Communication?recipient=Patient/{patient}").json()
    texts = [entry["resource"]["payload"][0]["contentString"] for entry in told["entry"]]
    assert [text for text in texts if "found unconscious" in text and user in text], texts


def test_who_is_beyond_an_emergency_is_answered_as_nobody(
        hospital: Hospital, browser: Browser, ask: Ask) -> None:
    patient = hospital.new_patient(identifier=[{"system": "urn:mrn", "value": "em-denied"}])
    user = doctor(browser, "screen-er-denied")
    hospital.grant(patient, user, permit=False, purposes=frozenset({"BTG"}))
    page = browser.get(ask("launch/patient patient/Observation.rs"))
    answers = [browser.submit(page.form("emergency").fill(identifier=value, reason="trying"), "emergency")
               for value in ("em-denied", "em-nobody-has")]
    assert patient not in answers[0].text
    assert ["no one patient" in answer.text for answer in answers] == [True, True]
    assert [entry.outcome for entry in hospital.audited(patient) if entry.user == user] == ["4"]


def test_who_looked_without_finding_is_in_the_audit(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    user = doctor(browser, "screen-er-looks")
    page = browser.get(ask("launch/patient patient/Observation.rs"))
    browser.submit(page.form("emergency").fill(identifier="nobody-has-this", reason="trying"), "emergency")
    entry = next(entry for entry in hospital.audited() if entry.user == user)
    assert (entry.interaction, entry.outcome, entry.reason) == ("emergency-look-up", "4", "trying")


def test_a_role_without_it_is_offered_no_glass(hospital: Hospital, browser: Browser, ask: Ask) -> None:
    patient = hospital.new_patient()
    browser.sign_in(f"Patient/{patient}")
    page = browser.get(ask("launch/patient patient/Observation.rs"))
    assert "Emergency" not in page.text
    fields = [*page.form("allow").sent("allow"), ("reason", "please"), ("patient", f"Patient/{patient}")]
    tampered = [(name, "break-glass" if name == "step" else value) for name, value in fields]
    assert browser.post(page.form("allow").action, tampered).status_code == 422


# Hostile

def binding(form: Form, step: str) -> dict[str, str]:
    return {**{one.name: one.value for one in form.controls if one.kind == "hidden"}, "step": step,
            "scope": "patient/Observation.rs"}


@pytest.fixture
def shown(hospital: Hospital, browser: Browser, ask: Ask) -> tuple[str, Form]:
    user = f"Patient/{hospital.new_patient()}"
    return user, browser.sign_in(user).get(ask("patient/Observation.rs")).form("allow")


def test_a_forged_handle_opens_nothing(hospital: Hospital, browser: Browser, shown: tuple[str, Form]) -> None:
    forged = "/oauth/authorize/gwa_" + "A" * 43
    assert browser.get(forged).status == 404
    assert browser.post(forged, binding(shown[1], "allow")).status_code == 404
    assert nothing_allowed(hospital, shown[0])


@pytest.mark.parametrize("wrong", [
    {"csrf": None}, {"csrf": "0" * 64}, {"request": None}, {"request": "0" * 64}, {"csrf": "\ud800"[:0]}])
def test_a_form_without_its_binding_is_refused(hospital: Hospital, browser: Browser, shown: tuple[str, Form],
                                               wrong: dict[str, str | None]) -> None:
    fields = {name: value for name, value in {**binding(shown[1], "allow"), **wrong}.items() if value is not None}
    assert browser.post(shown[1].action, fields).status_code == 403
    assert nothing_allowed(hospital, shown[0])


@pytest.mark.parametrize("headers", [
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}])
def test_a_form_of_another_site_is_refused(hospital: Hospital, browser: Browser, shown: tuple[str, Form],
                                           headers: dict[str, str]) -> None:
    assert browser.post(shown[1].action, binding(shown[1], "allow"), **headers).status_code == 403
    assert nothing_allowed(hospital, shown[0])


def test_a_form_is_good_in_its_own_session_alone(
        hospital: Hospital, open_browser: Callable[[], Browser], shown: tuple[str, Form]) -> None:
    other, user = open_browser(), f"Patient/{hospital.new_patient()}"
    other.sign_in(user)
    assert other.post(shown[1].action, binding(shown[1], "allow")).status_code == 403
    assert nothing_allowed(hospital, user)
    assert nothing_allowed(hospital, shown[0])


def test_a_form_is_good_for_its_own_request_alone(
        hospital: Hospital, browser: Browser, ask: Ask, shown: tuple[str, Form]) -> None:
    assert browser.post(ask("patient/Observation.rs"), binding(shown[1], "allow")).status_code == 403
    assert nothing_allowed(hospital, shown[0])


@pytest.mark.parametrize("scope", ["patient/Condition.rs", "patient/*.rs", "patient/Observation.cruds",
                                   "user/Observation.rs", "patient/Observation.rs openid", "offline_access"])
def test_more_than_was_asked_is_refused(hospital: Hospital, browser: Browser, shown: tuple[str, Form],
                                        scope: str) -> None:
    answer = browser.post(shown[1].action, {**binding(shown[1], "allow"), "scope": scope})
    assert answer.status_code == 422
    assert "not offered" in Page(answer).text
    assert nothing_allowed(hospital, shown[0])


@pytest.mark.parametrize("fields", [{"how-long": "offline"}, {"how-long": "forever"}, {"purpose": "BTG"},
                                    {"since": "1;DROP"}, {"since patient/Condition.rs": "2024-01-01"}])
def test_what_was_not_offered_is_refused(hospital: Hospital, browser: Browser, shown: tuple[str, Form],
                                         fields: dict[str, str]) -> None:
    assert browser.post(shown[1].action, {**binding(shown[1], "allow"), **fields}).status_code == 422
    assert nothing_allowed(hospital, shown[0])


@pytest.mark.parametrize("step", ["", "find", "pick", "emergency", "break-glass", "Allow"])
def test_a_step_that_is_none_of_this_persons_is_refused(browser: Browser, shown: tuple[str, Form], step: str) -> None:
    assert browser.post(shown[1].action, binding(shown[1], step)).status_code == 422


def test_an_expired_request_cannot_be_answered(hospital: Hospital, browser: Browser, shown: tuple[str, Form]) -> None:
    handle = hospital.smart.tokens.hash(shown[1].action.rpartition("/")[2])
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE authorization_request SET expires_ms=expires_ms-? WHERE hash=?", (LIFE_MS, handle)))
    assert browser.post(shown[1].action, binding(shown[1], "allow")).status_code == 404
    assert browser.get(shown[1].action).status == 404
    assert nothing_allowed(hospital, shown[0])


def test_sent_twice_it_counts_once(hospital: Hospital, browser: Browser, shown: tuple[str, Form]) -> None:
    fields, user = binding(shown[1], "allow"), shown[0]
    assert browser.post(shown[1].action, fields).status_code == 303
    assert browser.post(shown[1].action, fields).status_code == 404
    assert len(authorizations_of(hospital.database.reader, user)) == 1


def test_sent_twice_at_once_it_counts_once(hospital: Hospital, browser: Browser, shown: tuple[str, Form]) -> None:
    body = urlencode(binding(shown[1], "allow"))
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": browser.origin}
    answers = hospital.together(*(browser.http.post(shown[1].action, content=body, headers=headers)
                                  for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [303, 404, 404, 404]
    assert len(authorizations_of(hospital.database.reader, shown[0])) == 1


def test_a_session_that_ended_answers_nothing(hospital: Hospital, browser: Browser, shown: tuple[str, Form]) -> None:
    hospital.database.transact(lambda tx: tx.execute("UPDATE session SET ended_ms=1 WHERE ended_ms IS NULL"))
    assert browser.post(shown[1].action, binding(shown[1], "allow")).status_code == 401
    assert nothing_allowed(hospital, shown[0])


def test_a_closed_app_is_answered_nothing(hospital: Hospital, browser: Browser, ask: Ask, app: str) -> None:
    closed = add_client(hospital.smart, name="Closed", kind="app", scope=EVERYTHING, jwks=None, purposes=("TREAT",),
                        auth="none", redirect_uris=(REDIRECT,))
    user = f"Patient/{hospital.new_patient()}"
    form = browser.sign_in(user).get(ask("patient/Observation.rs", client=closed)).form("allow")
    hospital.database.transact(lambda tx: tx.execute("UPDATE client SET closed_ms=1 WHERE id=?", (closed,)))
    assert browser.submit(form, "allow").status == 404
    assert nothing_allowed(hospital, user)
