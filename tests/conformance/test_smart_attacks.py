"""What an attacker would try at the authorization server, over HTTP (RFC 9700: OAuth 2.0 Security BCP; RFC 9207).

Each attack names itself; the server's own promises are in ``test_smart.py``.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from joserfc.jwk import RSAKey

from gateway.access.scopes import parse
from gateway.crypto.key_rotation import rotate_secret
from gateway.errors import Unauthenticated
from gateway.smart import approvals
from gateway.smart.accounts import add_user
from gateway.smart.authorization import approve, authorizations_of
from gateway.smart.sessions import session_of
from gateway.smart.sign_in import sign_out
from gateway.smart.signing import sweep_keys
from gateway.smart.sweeping import sweep_authorizations
from tests.conformance.smart_app import App, challenge, ehr_launch, scopes
from tests.journeys.browser import Browser
from tests.journeys.hospital import Hospital

SCOPE = "launch/patient openid fhirUser offline_access patient/*.rs"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(tmp_path_factory.mktemp("attacks"), address_failures="0", address_requests_per_s="0")
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(hospital: Hospital) -> App:
    return App(hospital)


@pytest.fixture(scope="module")
def other(hospital: Hospital) -> App:
    return App(hospital, name="Thief", redirect="https://thief.example/after")


def refused(answer: Any, *errors: str) -> None:
    assert answer.status_code in (400, 401), answer.text
    assert answer.json()["error"] in errors, answer.text
    assert "access_token" not in answer.json()


def dead(app: App, token: dict[str, Any]) -> bool:
    return app.fhir(token).get("Patient").status_code == 401 and app.refresh(
        token["refresh_token"]).status_code == 400


# Redirects: nothing is sent to an address that was not registered (RFC 9700 section 4.1, 4.11)

@pytest.mark.parametrize("uri", [
    "https://thief.example/after", "https://app.example/after/", "https://app.example/after?x=1", "https://app.example",
    "https://app.example/after#x", "https://app.example/AFTER", "https://APP.example/after", "http://app.example/after",
    "https://app.example:443/after", "https://app.example@thief.example/after", "https://app.example/after%2f..",
    "//app.example/after", "javascript:alert(1)", "\u00e9", '"', None])
@pytest.mark.parametrize("by", ["GET", "POST"])
def test_an_unregistered_redirect_is_never_followed(app: App, uri: str | None, by: str) -> None:
    answer = app.authorize(SCOPE, by=by, redirect_uri=uri)
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert answer.json()["error"] == "invalid_request"


def test_a_native_app_gets_its_code_on_the_port_it_opened_and_no_other_redeems_it(
        hospital: Hospital, browser: Browser) -> None:
    """RFC 8252 section 7.3: what was registered without a port is asked for with one, and the code is bound to that."""
    app = App(hospital, name="Native app", redirect="http://127.0.0.1/cb")
    app.redirect = "http://127.0.0.1:51004/cb"
    code = app.allowed(browser, SCOPE)
    refused(app.exchange(code, redirect_uri="http://127.0.0.1:51005/cb"), "invalid_grant")
    assert app.exchange(code).status_code == 200
    for uri in ("http://localhost:51004/cb", "http://127.0.0.1:51004/other", "http://127.0.0.2:51004/cb"):
        assert app.authorize(SCOPE, redirect_uri=uri).status_code == 400


@pytest.mark.parametrize("changes", [
    {"client_id": "nobody"}, {"client_id": None}, {"client_id": "feed"}, {"client_id": "\u00e9\x00"},
    {"client_id": '"<script>'}])
def test_an_unknown_client_is_told_to_the_person_alone(app: App, changes: dict[str, str | None]) -> None:
    answer = app.authorize(SCOPE, **changes)
    assert answer.status_code == 400
    assert "location" not in answer.headers
    page = app.get(f"{app.found['authorization_endpoint']}?{urlencode(app.asking(SCOPE, **changes))}",
                   headers={"Accept": "text/html,*/*"})
    assert page.status_code == 400
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("by", ["GET", "POST"])
def test_a_repeated_parameter_is_refused_before_anything_is_believed(app: App, by: str) -> None:
    pairs = [*app.asking(SCOPE).items(), ("redirect_uri", "https://thief.example/after")]
    url = app.found["authorization_endpoint"]
    answer = app.get(f"{url}?{urlencode(pairs)}") if by == "GET" else app.request(
        "POST", url, content=urlencode(pairs), headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 400
    assert "location" not in answer.headers


@pytest.mark.parametrize(("changes", "error"), [
    ({"response_type": "token"}, "unsupported_response_type"), ({"response_type": None}, "unsupported_response_type"),
    ({"response_type": 'code "\u00e9'}, "unsupported_response_type"), ({"state": None}, "invalid_request"),
    ({"state": "s" * 2_001}, "invalid_request"), ({"request": "eyJ"}, "request_not_supported"),
    ({"request_uri": "https://thief.example"}, "request_uri_not_supported"),
    ({"response_mode": "fragment"}, "invalid_request"), ({"prompt": "none login"}, "invalid_request"),
    ({"prompt": "other"}, "invalid_request"), ({"max_age": "soon"}, "invalid_request"),
    ({"scope": None}, "invalid_scope"), ({"scope": "system/*.cruds"}, "invalid_scope"),
    ({"scope": "nonsense"}, "invalid_scope"), ({"scope": "patient/Patient.sr"}, "invalid_scope"),
    ({"scope": "patient/Patient.rs?name:exact=x"}, "invalid_scope"),
    ({"scope": "patient/Observation.rs patient/Observation.rs?subject.name=x"}, "invalid_scope"),
    ({"scope": "patient/Observation.rs?_filter=x"}, "invalid_scope"), ({"launch": "gwl_x"}, "invalid_request")])
def test_errors_after_the_redirect_is_trusted_carry_state_and_issuer(
        app: App, changes: dict[str, str | None], error: str) -> None:
    told = app.told(app.authorize(**{"scope": SCOPE, **changes}))  # type: ignore[arg-type]  # None leaves it out
    assert told["error"] == error
    assert told["iss"] == app.found["issuer"]
    assert told.get("state") == changes.get("state", app.state)
    assert "code" not in told


def test_requests_nobody_can_answer_any_more_are_not_kept(hospital: Hospital, app: App) -> None:
    """Strangers make them: each is gone with the first sweep after its half hour."""
    handle = app.authorize(SCOPE).headers["Location"].rpartition("/")[2]
    hashed = hospital.smart.tokens.hash(handle)

    def kept(now_ms: int) -> bool:
        hospital.database.transact(lambda tx: sweep_authorizations(tx, now_ms))
        return bool(hospital.database.reader.execute(
            "SELECT 1 FROM authorization_request WHERE hash=?", (hashed,)).fetchall())
    assert kept(hospital.smart.now_ms())
    assert not kept(hospital.smart.now_ms() + 31 * 60_000)


def test_a_scope_too_long_to_compare_is_refused_at_once(app: App) -> None:
    """One request of a stranger keeps no worker busy (RFC 9700 section 4; the client id of an app is public)."""
    granular = " ".join(f"patient/Observation.r?code=a{number}" for number in range(101))
    parameters = "patient/Observation.r?" + "&".join(f"code=a{number}" for number in range(11))
    for scope in (granular, "patient/Observation.rs " * 601, parameters):
        begun = time.monotonic()
        answer = app.authorize(scope, by="POST")
        assert time.monotonic() - begun < 2
        assert app.told(answer)["error"] == "invalid_scope"
    begun = time.monotonic()
    most = [*(f"patient/Observation.r?code=a{number}" for number in range(100)), *["patient/Patient.rs"] * 500]
    assert app.authorize(" ".join(most), by="POST").headers["Location"].startswith("/oauth/authorize/")
    assert time.monotonic() - begun < 2


def test_scopes_nobody_knows_are_left_out_and_told_by_what_is_granted(app: App, browser: Browser) -> None:
    token = app.launched(browser, "launch/patient patient/Patient.rs nonsense patient/Nothing.rs patient/Patient.sr "
                                  "system/Patient.rs")
    assert scopes(token) == {"launch/patient", "patient/Patient.rs"}


# Codes (RFC 9700 section 4.5, 4.14)

def test_code_injection_is_refused(hospital: Hospital, app: App, other: App, browser: Browser) -> None:
    """Another client, another redirect URI, another verifier: the code stays worth nothing, and the app's own."""
    code = app.allowed(browser, SCOPE)
    refused(other.exchange(code, redirect_uri=app.redirect, code_verifier=app.verifier), "invalid_grant")
    refused(other.exchange(code), "invalid_grant")
    refused(app.exchange(code, redirect_uri=f"{app.redirect}/second"), "invalid_grant")
    refused(app.exchange(code, redirect_uri=None), "invalid_grant")
    refused(app.exchange(code, code_verifier=secrets.token_urlsafe(48)), "invalid_grant")
    assert app.exchange(code).status_code == 200


def test_a_second_use_of_a_code_ends_what_the_first_gave(app: App, browser: Browser) -> None:
    code = app.allowed(browser, SCOPE, how_long="offline")
    token = app.exchange(code).json()
    assert app.fhir(token).get("Patient").status_code == 200
    refused(app.exchange(code), "invalid_grant")
    assert dead(app, token)


def test_of_many_uses_at_once_one_wins_and_none_keeps_it(hospital: Hospital, app: App, browser: Browser) -> None:
    code = app.allowed(browser, SCOPE, how_long="offline")
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": app.redirect, "client_id": app.id,
            "code_verifier": app.verifier}
    answers = hospital.together(*(hospital.http.post(app.found["token_endpoint"], data=form) for _ in range(8)))
    won = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(won) == 1
    assert dead(app, won[0])


def test_a_code_lives_two_minutes(hospital: Hospital, app: App, browser: Browser) -> None:
    code = app.allowed(browser, SCOPE)
    hospital.database.transact(lambda tx: tx.execute("UPDATE authorization_code SET expires_ms=1 WHERE hash=?", (
        hospital.smart.tokens.hash(code),)))
    refused(app.exchange(code), "invalid_grant")


def test_a_confidential_clients_code_needs_its_secret(hospital: Hospital, browser: Browser) -> None:
    app = App(hospital, auth="client_secret_basic")
    code = app.allowed(browser, SCOPE)
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": app.redirect,
            "code_verifier": app.verifier}
    url = app.found["token_endpoint"]
    refused(app.request("POST", url, data={**form, "client_id": app.id}), "invalid_client")
    refused(app.request("POST", url, data=form, headers={"Authorization": "Basic bm9ib2R5Ong="}), "invalid_client")
    refused(app.request("POST", url, data={**form, "client_id": app.id, "client_secret": str(app.secret)}),
            "invalid_request")
    wrong = app.request("POST", url, data=form, auth=(app.id, "gws_wrong"))
    refused(wrong, "invalid_client")
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"].startswith("Basic")
    assert app.exchange(code).status_code == 200


# Refresh tokens (RFC 9700 section 4.14)

def test_a_refresh_token_that_comes_twice_ends_the_whole_family(app: App, browser: Browser) -> None:
    first = app.launched(browser, SCOPE, how_long="offline")
    second = app.refresh(first["refresh_token"]).json()
    assert app.fhir(second).get("Patient").status_code == 200
    refused(app.refresh(first["refresh_token"]), "invalid_grant")
    assert dead(app, second)


def test_the_oldest_of_many_still_ends_the_family_and_none_of_them_is_kept(hospital: Hospital, app: App,
                                                                           browser: Browser) -> None:
    """However often an app refreshes, one row stands for it; whatever of the family comes but the last was used."""
    first = app.launched(browser, SCOPE, how_long="offline")
    token = first
    for _ in range(5):
        token = app.refresh(token["refresh_token"]).json()
    user = f"Patient/{first['patient']}"
    (given,) = authorizations_of(hospital.database.reader, user)
    assert hospital.database.reader.execute(
        "SELECT count(*) FROM refresh_token WHERE authorization=?", (given.id,)).get == 1
    unknown = f"gwf_{secrets.token_urlsafe(16)}{secrets.token_urlsafe(32)}"
    for wrong in (unknown, token["refresh_token"][:-1], token["refresh_token"][:30], f"{token['refresh_token']}A"):
        refused(app.refresh(wrong), "invalid_grant")
    assert app.fhir(token).get("Patient").status_code == 200
    refused(app.refresh(first["refresh_token"]), "invalid_grant")
    assert dead(app, token)


def test_a_refresh_token_from_before_there_were_families_works_once_and_ends_all_when_it_comes_again(
        hospital: Hospital, app: App, browser: Browser) -> None:
    token = app.launched(browser, SCOPE, how_long="offline")
    (given,) = authorizations_of(hospital.database.reader, f"Patient/{token['patient']}")
    old = "gwf_" + secrets.token_urlsafe(32)

    def older(tx: Any) -> None:
        tx.execute("UPDATE refresh_token SET hash=? WHERE authorization=?", (hospital.smart.tokens.hash(old), given.id))
        tx.execute("UPDATE authorization SET family=NULL WHERE id=?", (given.id,))
    hospital.database.transact(older)
    renewed = app.refresh(old).json()
    assert len(renewed["refresh_token"]) > len(old)
    hospital.database.transact(lambda tx: sweep_authorizations(tx, int(time.time() * 1_000)))
    refused(app.refresh(old), "invalid_grant")
    assert dead(app, renewed)


def test_a_refresh_never_widens(app: App, browser: Browser) -> None:
    """Scope upgrade by refresh."""
    token = app.launched(browser, "launch/patient offline_access patient/Observation.rs?category=laboratory",
                         how_long="offline")
    for more in ("patient/Observation.rs", "patient/*.rs", "patient/Observation.rs?category=laboratory,survey",
                 "openid", "patient/Observation.cruds?category=laboratory",
                 "user/Observation.r?category=laboratory", "nonsense", "system/*.rs"):
        refused(app.refresh(token["refresh_token"], scope=more), "invalid_scope")
    assert app.refresh(token["refresh_token"], scope="patient/Observation.r?category=laboratory").status_code == 200


def test_a_refresh_token_is_its_own_clients_alone(app: App, other: App, browser: Browser) -> None:
    token = app.launched(browser, SCOPE, how_long="offline")
    refused(other.refresh(token["refresh_token"]), "invalid_grant")
    assert app.refresh(token["refresh_token"]).status_code == 200


def test_no_refresh_token_where_none_was_chosen(app: App, browser: Browser) -> None:
    token = app.launched(browser, SCOPE, how_long="once")
    assert "refresh_token" not in token
    assert "offline_access" not in scopes(token)


def test_what_shrank_since_shrinks_at_the_next_refresh(hospital: Hospital, browser: Browser) -> None:
    app = App(hospital, scope="launch/patient offline_access patient/*.rs")
    token = app.launched(browser, "launch/patient offline_access patient/*.rs", how_long="offline")
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE client SET scope='launch/patient offline_access patient/Patient.rs' WHERE id=?", (app.id,)))
    assert "patient/*.rs" not in scopes(app.refresh(token["refresh_token"]).json())


@pytest.mark.parametrize("end", ["client", "standing", "revocation"])
def test_what_a_token_stands_on_ends_it_at_once(hospital: Hospital, browser: Browser, end: str) -> None:
    app = App(hospital)
    token = app.launched(browser, SCOPE, how_long="offline")
    user = f"Patient/{token['patient']}"
    if end == "client":
        approvals.close(hospital.smart, app.id, approvals.Decider())
    elif end == "standing":
        add_user(hospital.smart, fhir_user=user, role="patient", name="Anew")
    else:
        answer = app.request("POST", app.found["revocation_endpoint"], data={
            "token": token["refresh_token"], "client_id": app.id})
        assert answer.status_code == 200
    assert app.fhir(token).get("Patient").status_code == 401
    refused(app.refresh(token["refresh_token"]), "invalid_grant", "invalid_client")
    assert app.ask_about(token["refresh_token"]) == {"active": False}


def test_revoking_with_a_refresh_token_that_was_used_ends_what_came_of_it(app: App, other: App,
                                                                          browser: Browser) -> None:
    """RFC 7009 section 2.1: told 200, a client whose token a thief has used rests assured that all of it ended."""
    first = app.launched(browser, SCOPE, how_long="offline")
    stolen = app.refresh(first["refresh_token"]).json()
    url = app.found["revocation_endpoint"]
    refused(other.request("POST", url, data={"token": first["refresh_token"], "client_id": other.id}), "invalid_grant")
    assert app.fhir(stolen).get("Patient").status_code == 200
    assert app.ask_about(first["refresh_token"]) == {"active": False}  # asking ends nothing
    assert app.fhir(stolen).get("Patient").status_code == 200
    assert app.request("POST", url, data={"token": first["refresh_token"], "client_id": app.id}).status_code == 200
    assert dead(app, stolen)


def test_only_its_own_client_revokes(app: App, other: App, browser: Browser) -> None:
    token = app.launched(browser, SCOPE, how_long="offline")
    for secret in (token["access_token"], token["refresh_token"]):
        refused(other.request("POST", app.found["revocation_endpoint"], data={"token": secret, "client_id": other.id}),
                "invalid_grant")
    assert app.request("POST", app.found["revocation_endpoint"], data={
        "token": token["access_token"], "client_id": app.id}).status_code == 200
    assert app.fhir(token).get("Patient").status_code == 401
    assert app.refresh(token["refresh_token"]).status_code == 200  # an access token ends alone


# Token substitution, confused deputy, mix-up

def test_no_secret_passes_for_another_kind(app: App, browser: Browser) -> None:
    """Token substitution: code, refresh token, id_token, handle and access token each open their own door alone."""
    handle = app.authorize(SCOPE).headers["Location"].rpartition("/")[2]
    code = app.allowed(browser, SCOPE, how_long="offline")
    token = app.exchange(code).json()
    for secret in (handle, code, token["refresh_token"], token["id_token"]):
        assert app.fhir({"access_token": secret}).get("Patient").status_code == 401
    for secret in (handle, token["access_token"], token["id_token"]):
        refused(app.refresh(secret), "invalid_grant")
    for secret in (handle, token["access_token"], token["refresh_token"]):
        refused(app.exchange(secret), "invalid_grant")
    for secret in (token["access_token"], code):
        assert app.request("GET", f"{app.found['issuer']}/oauth/authorize/{secret}").status_code == 404
    who = app.get(f"{app.found['issuer']}/oauth/userinfo", headers={
        "Authorization": f"Bearer {token['refresh_token']}"})
    assert who.status_code == 401


def test_an_app_an_administrator_uses_decides_about_no_client(hospital: Hospital) -> None:
    """Confused deputy: they let it know who they are, and it would let in, close or take over every client."""
    app, victim = App(hospital), App(hospital, auth="client_secret_basic")
    made = Browser(hospital).sign_in("Practitioner/chief", role="administrator")
    try:
        for scope in ("openid", "openid user/*.cruds"):
            client = app.fhir(app.launched(made, scope))
            url = f"{app.found['issuer']}/oauth/clients"
            assert client.request("GET", url).status_code == 403
            assert client.request("POST", f"{url}/{victim.id}/rotate-secret", {},
                                  Content_Type="application/json").status_code == 403
    finally:
        made.close()


def test_an_access_token_without_openid_says_nothing_of_its_person(hospital: Hospital, app: App,
                                                                   browser: Browser) -> None:
    token = app.launched(browser, "launch/patient patient/Patient.rs")
    assert "id_token" not in token
    url = f"{app.found['issuer']}/oauth/userinfo"
    assert app.get(url, headers={"Authorization": f"Bearer {token['access_token']}"}).status_code == 403
    assert app.get(url, headers={"Authorization": f"Bearer {hospital.feed.token}"}).status_code == 401
    assert app.get(url).status_code == 401


def test_every_answer_names_its_issuer(app: App, browser: Browser) -> None:
    """Mix-up (RFC 9207): answers, refusals and errors say whose they are."""
    page = app.shown(browser, SCOPE)
    assert app.told(browser.submit(page.form("deny"), "deny")) == {
        "error": "access_denied", "state": app.state, "iss": app.found["issuer"]}
    assert app.found["authorization_response_iss_parameter_supported"] is True


def test_a_redirect_uri_taken_away_meanwhile_gets_no_code(hospital: Hospital, browser: Browser) -> None:
    """What a client registers counts when the code is sent, not when it was asked for."""
    app = App(hospital)
    page = app.shown(browser, SCOPE)
    hospital.database.transact(lambda tx: tx.execute(
        "UPDATE client SET redirect_uris='https://app.example/new' WHERE id=?", (app.id,)))
    for step in ("allow", "deny"):
        answer = browser.submit(page.form(step), step)
        assert answer.status == 404
        assert "location" not in answer.response.headers


def test_a_decided_request_is_over(app: App, browser: Browser) -> None:
    page = app.shown(browser, SCOPE)
    form = page.form("allow")
    app.code(browser.submit(form, "allow"))
    assert browser.submit(form, "allow").status == 404


@pytest.mark.parametrize(("more", "told"), [
    ("patient/*.cruds", "more than the app asked for"), ("openid", "more than the app asked for")])
def test_nobody_approves_more_than_was_asked(hospital: Hospital, app: App, browser: Browser, more: str,
                                             told: str) -> None:
    """Below the screen, too: a screen's mistake gives nothing away."""
    handle = app.authorize("launch/patient patient/Patient.rs").headers["Location"].rpartition("/")[2]
    session = session_of(hospital.smart, browser.cookie)
    assert session is not None
    with pytest.raises(Exception, match=told):
        approve(hospital.smart, handle, session=session, scopes=parse(more), patient=None, encounter=None,
                purpose="PATRQT", reason=None, offline=None)


def test_a_session_that_ended_on_the_way_approves_nothing(hospital: Hospital, app: App, browser: Browser) -> None:
    """Signed out everywhere, a stolen session's answer under way gives no app a lasting access."""
    handle = app.authorize("launch/patient patient/Patient.rs offline_access").headers["Location"].rpartition("/")[2]
    session = session_of(hospital.smart, browser.cookie)
    assert session is not None
    user = str(session.user)
    sign_out(hospital.smart, session)
    with pytest.raises(Unauthenticated):
        approve(hospital.smart, handle, session=session, scopes=parse("patient/Patient.rs offline_access"),
                patient=None, encounter=None, purpose="PATRQT", reason=None, offline="offline")
    assert not authorizations_of(hospital.database.reader, user)


def test_a_patient_approves_for_nobody_else(hospital: Hospital, app: App, browser: Browser) -> None:
    handle = app.authorize("launch/patient patient/Patient.rs").headers["Location"].rpartition("/")[2]
    session = session_of(hospital.smart, browser.cookie)
    assert session is not None
    for patient in ("other", "Patient/other"):
        with pytest.raises(Exception, match="no other"):
            approve(hospital.smart, handle, session=session, scopes=parse("patient/Patient.rs"), patient=patient,
                    encounter=None, purpose="PATRQT", reason=None, offline=None)
    with pytest.raises(Exception, match="glass"):
        approve(hospital.smart, handle, session=session, scopes=parse("patient/Patient.rs"), patient=None,
                encounter=None, purpose="BTG", reason="because", offline=None)


def test_an_app_launched_for_one_patient_reads_no_other(hospital: Hospital, app: App) -> None:
    """Confused deputy: the clinician may see both, the token was given for one."""
    mine, theirs = hospital.new_patient(), hospital.new_patient()
    for patient in (mine, theirs):
        hospital.grant(patient, "Practitioner/dr-two")
    doctor = Browser(hospital).sign_in("Practitioner/dr-two")
    token = app.launched(doctor, "launch patient/*.rs", launch=ehr_launch(hospital, app, patient=mine))
    here = app.fhir(token)
    assert here.get(f"Patient/{mine}").status_code == 200
    assert here.get(f"Patient/{theirs}").status_code == 404
    assert here.ids("Patient") == [mine]
    doctor.close()


# prompt and max_age (OpenID Connect Core 3.1.2.1)

def silent(app: App, browser: Browser, scope: str, **changes: str | None) -> dict[str, str]:
    return app.told(app.shown(browser, scope, prompt="none", **changes))


def test_prompt_none_answers_without_a_question(hospital: Hospital, app: App, browser: Browser) -> None:
    nobody = Browser(hospital)
    assert silent(app, nobody, SCOPE)["error"] == "login_required"
    nobody.close()
    assert silent(app, browser, "launch/patient openid patient/Patient.rs")["error"] == "consent_required"
    first = app.launched(browser, "launch/patient openid patient/Patient.rs")
    told = silent(app, browser, "launch/patient openid patient/Patient.rs")
    again = app.exchange(told["code"]).json()
    assert again["patient"] == first["patient"]
    assert silent(app, browser, "launch/patient openid patient/*.rs")["error"] == "consent_required"
    assert "Apps" not in app.shown(browser, SCOPE, prompt="none").text


def test_whoever_listens_on_this_machine_is_answered_in_silence_by_nobody(hospital: Hospital, browser: Browser) -> None:
    """RFC 8252 section 8.6: any local process may take a port and the name of a public app; a person has to look."""
    scope = "launch/patient openid patient/Patient.rs"
    for redirect in ("http://127.0.0.1/cb", "com.example.app:/cb"):
        public = App(hospital, redirect=redirect)
        public.launched(browser, scope)
        assert silent(public, browser, scope)["error"] == "interaction_required"
    public = App(hospital, redirect="http://127.0.0.1/cb")
    public.launched(browser, scope)
    public.redirect = "http://127.0.0.1:51004/cb"
    assert silent(public, browser, scope)["error"] == "interaction_required"
    known = App(hospital, redirect="http://127.0.0.1/cb", auth="client_secret_basic")
    known.launched(browser, scope)
    assert "code" in silent(known, browser, scope), "its code is worth nothing without its secret"


def test_silence_multiplies_no_lasting_access(app: App, browser: Browser) -> None:
    scope = "launch/patient openid offline_access patient/Patient.rs"
    assert "refresh_token" in app.launched(browser, scope, how_long="offline")
    again = app.exchange(silent(app, browser, scope)["code"]).json()
    assert "refresh_token" not in again
    assert "offline_access" not in again["scope"]


@pytest.mark.parametrize("changes", [{"prompt": "login"}, {"max_age": "0"}])
def test_a_fresh_sign_in_is_asked_for_again(hospital: Hospital, app: App, browser: Browser,
                                            changes: dict[str, str]) -> None:
    hospital.database.transact(lambda tx: tx.execute("UPDATE session SET auth_time_ms=auth_time_ms-5000; "
                                                     "UPDATE login SET decided_ms=decided_ms-9000"))
    answer = browser.request("GET", f"{app.found['authorization_endpoint']}?{urlencode(app.asking(SCOPE, **changes))}")
    page = browser.request("GET", answer.headers["Location"])
    assert page.headers["Location"].startswith("/portal/sign-in?next=")
    handle = answer.headers["Location"].rpartition("/")[2]
    session = session_of(hospital.smart, browser.cookie)
    assert session is not None
    with pytest.raises(Exception, match="fresh sign-in"):
        approve(hospital.smart, handle, session=session, scopes=parse("launch/patient"), patient=None, encounter=None,
                purpose="PATRQT", reason=None, offline=None)


# Keys, logs, leftovers

def test_the_signing_key_rotates_and_the_old_one_stays_a_day(hospital: Hospital, app: App, browser: Browser) -> None:
    def kids() -> list[str]:
        return [key["kid"] for key in app.get(app.found["jwks_uri"]).json()["keys"]]
    before = kids()
    rotate_secret(hospital.ring, "id-token")
    after = kids()
    assert len(after) == len(before) + 1
    assert after[1:] == before
    hospital.database.transact(lambda tx: tx.execute("UPDATE signing_key SET created_ms=created_ms-2*86400000-1"))
    assert kids() == after[:1]
    hospital.database.transact(lambda tx: sweep_keys(tx, hospital.smart.now_ms()))
    assert kids() == after[:1]
    rows = hospital.database.reader.execute("SELECT sealed FROM signing_key").fetchall()
    assert len(rows) == 1
    assert b"PRIVATE" not in bytes(rows[0][0])


def test_an_id_token_signed_by_another_key_is_of_nobody(app: App) -> None:
    """The JWKS holds this hospital's keys alone, whatever kid a forger claims."""
    forged = RSAKey.generate_key(2048, {"kid": app.get(app.found["jwks_uri"]).json()["keys"][0]["kid"]})
    assert forged.as_dict(private=False)["n"] not in app.get(app.found["jwks_uri"]).text


def test_no_secret_of_a_whole_launch_is_in_a_log_or_on_the_disk(
        hospital: Hospital, browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    app = App(hospital, auth="client_secret_basic")
    code = app.allowed(browser, SCOPE, how_long="offline", nonce="nonce-of-this-launch")
    token = app.exchange(code).json()
    renewed = app.refresh(token["refresh_token"]).json()
    app.refresh("gwf_" + "x" * 43)
    app.exchange(code)
    secrets_ = [code, app.verifier, str(app.secret), *(one[name] for one in (token, renewed) for name in (
        "access_token", "refresh_token", "id_token"))]
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records
                       if not record.name.startswith(("httpx", "httpcore")))  # the test's own client
    kept = "".join(str(row) for table in ("authorization_code", "refresh_token", "token", "client", "authorization",
                                          "authorization_request")
                   for row in hospital.database.reader.execute(f"SELECT * FROM {table}"))
    disk = b"".join(path.read_bytes() for path in hospital.settings.data_dir.rglob("*") if path.is_file())
    for secret in secrets_:
        assert secret not in logged
        assert secret not in kept
        assert secret.encode() not in disk


def test_what_expired_is_swept_with_all_that_hung_on_it(hospital: Hospital, app: App, browser: Browser) -> None:
    token = app.launched(browser, SCOPE, how_long="offline")
    app.authorize(SCOPE)
    user = f"Patient/{token['patient']}"
    now_ms = hospital.smart.now_ms()
    later_ms = now_ms + 101 * 86_400_000
    reader = hospital.database.reader
    assert authorizations_of(reader, user)
    hospital.database.transact(lambda tx: sweep_authorizations(tx, now_ms))
    assert authorizations_of(reader, user)
    hospital.database.transact(lambda tx: sweep_authorizations(tx, later_ms))
    assert app.fhir(token).get("Patient").status_code == 401
    hospital.database.transact(lambda tx: sweep_authorizations(tx, later_ms + 3 * 86_400_000))
    for table in ("authorization", "authorization_request", "authorization_code", "refresh_token"):
        assert not reader.execute(f"SELECT count(*) FROM {table}").get, table


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/authorize", "/oauth/userinfo"])
def test_nothing_an_outsider_sends_makes_the_server_stumble(app: App, path: str) -> None:
    url = f"{app.found['issuer']}{path}"
    for content in (b"", b"\xff", b"=", b"&&", b"a=%00", b"grant_type=refresh_token&client_id=%00&refresh_token=%f0",
                    urlencode({"grant_type": "authorization_code", "client_id": app.id, "code": "\x00" * 47}).encode(),
                    urlencode({**app.asking(SCOPE), "scope": "patient/" * 4_000}).encode()):
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain", ""):
            answer = app.request("POST", url, content=content, headers={"Content-Type": kind})
            assert answer.status_code in (303, 400, 401), (answer.status_code, answer.text)


def test_a_challenge_is_s256(app: App) -> None:
    """RFC 7636 appendix B: the vector."""
    assert challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
