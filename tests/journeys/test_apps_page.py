"""The apps page over HTTP: what a person lets apps do, and its end; an administrator's queue of apps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from gateway.access.scopes import parse
from gateway.smart.authorization import approve, authorizations_of
from gateway.smart.clients import add_client, find_client
from gateway.smart.pending import keep
from gateway.smart.sessions import Session, end_sessions, session_of
from tests.journeys.browser import Browser, Page
from tests.journeys.hospital import Hospital

REDIRECT = "https://app.example/callback"
REGISTRATION = {"client_name": "Sleep Diary", "redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none",
                "grant_types": ["authorization_code"], "scope": "launch/patient patient/Observation.rs"}


def allow(hospital: Hospital, browser: Browser, name: str, scope: str, **more: Any) -> None:
    """Let a new app have ``scope``, as the authorize screen does."""
    smart = hospital.smart
    client = find_client(hospital.database.reader, add_client(
        smart, name=name, kind="app", scope="patient/*.cruds user/*.cruds openid offline_access", jwks=None,
        purposes=("TREAT",), auth="none", redirect_uris=(REDIRECT,)))
    assert client is not None
    handle = hospital.database.transact(lambda tx: keep(
        tx, smart, client=client, asked=parse(scope), v1=False, redirect_uri=REDIRECT, state="s", nonce=None,
        challenge="c" * 43, launch=None, prompt=(), max_age_s=None, now_ms=smart.now_ms()))
    session = session_of(smart, browser.cookie)
    assert isinstance(session, Session)
    approve(smart, handle, session=session, scopes=parse(scope), encounter=None, reason=None, **{
        "patient": None, "purpose": "PATRQT", "offline": None, **more})


def test_a_person_sees_in_plain_words_what_they_let_apps_do(hospital: Hospital, browser: Browser) -> None:
    user = f"Patient/{hospital.new_patient()}"
    browser.sign_in(user)
    assert "No app has access through you." in browser.get("/portal/apps").text
    allow(hospital, browser, "Pulse <i>", "openid offline_access patient/Observation.rs?date=ge2024-01-01",
          offline="offline")
    page = browser.get("/portal/apps")
    for words in ("Pulse <i>", "Know who you are", "See your test results, vital signs and other observations dated "
                  "2024-01-01 or later", "the patient's own request", "when you revoke it"):
        assert words in page.text
    assert "<i>" not in page.response.text
    assert page.inline == []
    assert "frame-ancestors 'none'" in page.response.headers["Content-Security-Policy"]


def test_one_access_ends_and_the_others_stay(hospital: Hospital, browser: Browser) -> None:
    user = f"Patient/{hospital.new_patient()}"
    browser.sign_in(user)
    allow(hospital, browser, "First", "patient/Observation.rs")
    allow(hospital, browser, "Second", "patient/Condition.rs")
    form = browser.get("/portal/apps").form("Revoke the access of First")
    page = browser.submit(form, "Revoke the access of First")
    assert "The access has ended." in page.text
    assert [find_client(hospital.database.reader, one.client).name  # type: ignore[union-attr]  # it is there
            for one in authorizations_of(hospital.database.reader, user)] == ["Second"]
    assert "had ended already" in browser.submit(form, "Revoke the access of First").text
    assert [(entry.interaction, entry.action) for entry in hospital.audited(user.removeprefix("Patient/"))
            if entry.interaction == "authorization-ended"] == [("authorization-ended", "D")]


def test_everything_ends_at_once(hospital: Hospital, browser: Browser) -> None:
    user = f"Patient/{hospital.new_patient()}"
    browser.sign_in(user)
    for number in range(3):
        allow(hospital, browser, f"App {number}", "patient/Observation.rs")
    page = browser.submit(browser.get("/portal/apps").form("Revoke all access of apps"), "Revoke all access of apps")
    assert "No app has access through you any more." in page.text
    assert authorizations_of(hospital.database.reader, user) == []


def test_anothers_access_is_beyond_reach(hospital: Hospital, open_browser: Callable[[], Browser]) -> None:
    victim, thief = open_browser(), open_browser()
    user = f"Patient/{hospital.new_patient()}"
    victim.sign_in(user)
    allow(hospital, victim, "Mine", "patient/Observation.rs")
    thief.sign_in(f"Patient/{hospital.new_patient()}")
    allow(hospital, thief, "Theirs", "patient/Observation.rs")
    form = thief.get("/portal/apps").form("Revoke the access of Theirs")
    assert "Mine" not in thief.get("/portal/apps").text
    (mine,) = authorizations_of(hospital.database.reader, user)
    assert thief.submit(form.fill(id=mine.id), "Revoke the access of Theirs").status == 409
    assert [one.id for one in authorizations_of(hospital.database.reader, user)] == [mine.id]


def test_a_patient_sees_and_ends_what_others_let_apps_do_with_their_record(
        hospital: Hospital, open_browser: Callable[[], Browser]) -> None:
    """Who has access through which app, until when; which is the patient's to end, and no delegate's to know."""
    patient, other = hospital.new_patient(), hospital.new_patient()
    doctor, mother, own, stranger = (open_browser() for _ in range(4))
    doctor.sign_in("Practitioner/apps-doctor", name="Dr Ada")
    mother.sign_in("RelatedPerson/apps-mother", role="delegate", name="Mother", represents=f"Patient/{patient}",
                   mandate_until_ms=hospital.smart.now_ms() + 10**10)
    own.sign_in(f"Patient/{patient}")
    stranger.sign_in(f"Patient/{other}")
    about = {"patient": f"Patient/{patient}", "purpose": "TREAT"}
    allow(hospital, doctor, "Ward app", "launch/patient openid patient/Observation.rs", **about)
    allow(hospital, doctor, "Another's", "patient/Observation.rs", patient=f"Patient/{other}", purpose="TREAT")
    allow(hospital, mother, "Family app", "patient/Condition.rs", **{**about, "purpose": "FAMRQT"})
    page = own.get("/portal/apps")
    for words in ("No app has access through you.", "Ward app", "Dr Ada, clinician", "Family app", "Mother, delegate",
                  "See your test results, vital signs and other observations"):
        assert words in page.text
    assert "Another's" not in page.text
    assert "Know who you are" not in page.text
    assert "Ward app" not in mother.get("/portal/apps").text
    assert "Ward app" not in stranger.get("/portal/apps").text
    button = "Revoke the access of Ward app through Dr Ada, clinician"
    assert stranger.submit(page.form(button), button).status == 403  # another session's form
    assert "The access has ended." in own.submit(page.form(button), button).text
    left = authorizations_of(hospital.database.reader, "Practitioner/apps-doctor")
    assert [one.patient for one in left] == [f"Patient/{other}"]
    assert "Ward app" not in own.get("/portal/apps").text
    (ended,) = (entry for entry in hospital.audited(patient) if entry.interaction == "authorization-ended")
    assert (ended.user, ended.role) == (f"Patient/{patient}", "patient")
    form = stranger.get("/portal/apps").form("Revoke the access of Another's through Dr Ada, clinician")
    (mothers,) = authorizations_of(hospital.database.reader, "RelatedPerson/apps-mother")
    assert stranger.submit(form.fill(id=mothers.id), "Revoke the access of Another's through Dr Ada, clinician"
                           ).status == 409
    assert authorizations_of(hospital.database.reader, "RelatedPerson/apps-mother") == [mothers]


@pytest.mark.parametrize("path", ["/portal/apps/revoke", "/portal/apps/revoke-all", "/portal/apps/waiting/x"])
@pytest.mark.parametrize("headers", [{}, {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}])
def test_a_form_of_another_site_does_nothing(hospital: Hospital, browser: Browser, path: str,
                                             headers: dict[str, str]) -> None:
    browser.sign_in("Practitioner/apps-admin", role="administrator")
    fields = {} if not headers else {"csrf": browser.get("/portal/apps/waiting").controls[0].value}
    assert browser.post(path, fields, **headers).status_code == 403


def test_without_a_session_the_page_leads_to_sign_in(browser: Browser) -> None:
    answer = browser.request("GET", "/portal/apps")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/portal/sign-in?next=/portal/apps"


def test_who_is_not_proofed_yet_is_told_so(browser: Browser) -> None:
    answer = browser.sign_in(None).request("GET", "/portal/apps")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/portal")


def registered(browser: Browser, **changes: Any) -> str:
    answer = browser.request("POST", "/oauth/register", json={**REGISTRATION, **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["client_id"])


def test_an_administrator_lets_an_app_in_or_rejects_it(hospital: Hospital, browser: Browser) -> None:
    one, other = registered(browser), registered(browser, client_name="Dubious")
    browser.sign_in("Practitioner/apps-admin-2", role="administrator")
    page = browser.get("/portal/apps/waiting")
    for words in ("Sleep Diary", "Dubious", REDIRECT, "See the test results, vital signs"):
        assert words in page.text
    form = next(form for form in page.forms if form.action.endswith(one))
    page = browser.submit(form, "approve")
    assert "Sleep Diary" not in page.text
    assert find_client(hospital.database.reader, one).stands  # type: ignore[union-attr]  # it is there
    assert browser.submit(form, "approve").status == 422
    form = next(form for form in page.forms if form.action.endswith(other))
    assert "needs a reason" in browser.submit(form, "reject").text
    assert "Dubious" not in browser.submit(form.fill(reason="nobody knows who makes it"), "reject").text
    assert find_client(hospital.database.reader, other).state == "rejected"  # type: ignore[union-attr]  # it is there


@pytest.mark.parametrize("door", ["/portal/apps/waiting/{}", "/oauth/clients/{}/approve"])
def test_a_session_that_ends_while_its_request_is_sent_lets_no_app_in(hospital: Hospital, browser: Browser,
                                                                      door: str) -> None:
    """A body may come as slowly as its sender likes: who sent it is asked when it is whole."""
    client = registered(browser)
    browser.sign_in("Practitioner/apps-admin-3", role="administrator")
    form = next(form for form in browser.get("/portal/apps/waiting").forms if form.action.endswith(client))
    csrf, revision = form.named("csrf")[0].value, form.named("revision")[0].value
    json = door.startswith("/oauth")
    sent = (f'{{"revision": "{revision}"}}' if json else urlencode(form.sent("approve"))).encode()

    async def slowly() -> AsyncIterator[bytes]:
        yield sent[:5]
        hospital.database.transact(lambda tx: end_sessions(tx, "Practitioner/apps-admin-3", hospital.smart.now_ms()))
        yield sent[5:]
    answer = browser.request("POST", door.format(client), content=slowly(), headers={
        "Content-Type": "application/json" if json else "application/x-www-form-urlencoded", "X-CSRF-Token": csrf,
        "Origin": browser.origin, "Sec-Fetch-Site": "same-origin"})
    assert answer.status_code in (303, 401), answer.text
    assert not find_client(hospital.database.reader, client).stands  # type: ignore[union-attr]  # it is there


def test_what_changed_while_it_was_read_is_not_let_in(hospital: Hospital, browser: Browser) -> None:
    client = registered(browser)
    browser.sign_in("Practitioner/apps-admin-3", role="administrator")
    form = next(form for form in browser.get("/portal/apps/waiting").forms if form.action.endswith(client))
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE registration SET asked_ms=asked_ms+2000 WHERE client=?", (client,)))
    page = browser.submit(form, "approve")
    assert page.status == 422
    assert "changed" in page.text
    assert not find_client(hospital.database.reader, client).stands  # type: ignore[union-attr]  # it is there


@pytest.mark.parametrize("role", ["clinician", "privacy-officer", "records-office"])
def test_the_queue_is_for_administrators(browser: Browser, role: str) -> None:
    client = registered(browser)
    browser.sign_in(f"Practitioner/apps-{role}", role=role)
    csrf = next(one.value for one in browser.get("/portal/apps").controls if one.name == "csrf")
    assert browser.get("/portal/apps/waiting").status == 403
    answer = browser.post(f"/portal/apps/waiting/{client}", {"csrf": csrf, "decision": "approve"})
    assert Page(answer).status == 403
