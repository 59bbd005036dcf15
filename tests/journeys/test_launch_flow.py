"""An EHR launch from its opening to what its token may read (SMART App Launch 2.2; list lines 8, 16)."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from gateway.errors import Forbidden
from gateway.smart.authorization import approve, pending
from gateway.smart.clients import add_client
from gateway.smart.sessions import Session, session_of
from gateway.store.journal import patient_pk
from tests.journeys.hospital import Client, Hospital, observation
from tests.journeys.people import Browser
from tests.journeys.test_launches import opened
from tests.journeys.test_registration import holder, path_of, registered, send

ORIGIN = "http://127.0.0.1:8080"
REDIRECT = "https://chart.example/cb"
SCOPE = "launch openid fhirUser user/*.rs patient/*.rs"
VERIFIER = secrets.token_urlsafe(48)


@pytest.fixture(scope="module")
def app(hospital: Hospital) -> str:
    return add_client(hospital.smart, name="Chart", kind="app", scope=SCOPE, jwks=None, purposes=("TREAT",),
                      auth="none", redirect_uris=(REDIRECT,), launch_uri="https://chart.example/launch?tenant=1")


@pytest.fixture(scope="module")
def other(hospital: Hospital) -> str:
    return add_client(hospital.smart, name="Other", kind="app", scope=SCOPE, jwks=None, purposes=("TREAT",),
                      auth="none", redirect_uris=(REDIRECT,))


def asked(hospital: Hospital, client_id: str, **parameters: str) -> httpx.Response:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
    query = {"response_type": "code", "client_id": client_id, "redirect_uri": REDIRECT, "scope": SCOPE, "state": "s1",
             "aud": hospital.base, "code_challenge": challenge, "code_challenge_method": "S256", **parameters}
    return hospital.run(hospital.http.get(f"{ORIGIN}/oauth/authorize?{urlencode(query)}"))


def answer_of(response: httpx.Response) -> dict[str, str]:
    """What the app is told at its redirect URI."""
    assert response.status_code == 303, response.text
    location = response.headers["location"]
    assert location.startswith(REDIRECT), location
    return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}


def handle_of(response: httpx.Response) -> str:
    assert response.status_code == 303, response.text
    assert response.headers["location"].startswith("/oauth/authorize/"), response.headers["location"]
    return str(response.headers["location"]).rpartition("/")[2]


def session(hospital: Hospital, user: str) -> Session:
    found = session_of(hospital.smart, Browser(hospital, user, "clinician").cookie)
    assert found is not None
    return found


def approved(hospital: Hospital, handle: str, who: Session) -> dict[str, Any]:
    """The token's answer, once the person agreed."""
    url = approve(hospital.smart, handle, session=who, scopes=pending(hospital.smart, handle).asked, patient=None,
                  encounter=None, purpose="TREAT", reason=None, offline=None)
    code = parse_qs(urlsplit(url).query)["code"][0]
    answer = hospital.run(hospital.http.post(f"{ORIGIN}/oauth/token", data={
        "grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "code_verifier": VERIFIER,
        "client_id": pending_client(hospital, handle)}))
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def pending_client(hospital: Hospital, handle: str) -> str:
    return str(hospital.database.reader.execute("SELECT client FROM authorization_request WHERE hash=?", (
        hospital.smart.tokens.hash(handle),)).get)


def test_the_token_of_a_launch_brings_its_context_and_reads_what_was_granted(hospital: Hospital, app: str) -> None:
    patient = hospital.new_patient()
    encounter = hospital.new({"resourceType": "Encounter", "status": "in-progress",
                              "class": {"code": "AMB"}, "subject": {"reference": f"Patient/{patient}"}})
    told = opened(hospital.feed, client_id=app, user="Practitioner/ward", patient=patient, encounter=encounter,
                  fhirContext=[{"reference": "ImagingStudy/1"}], intent="reconcile", need_patient_banner=False).json()
    url = urlsplit(told["launch_url"])
    query = parse_qs(url.query)
    assert (url.netloc, query["tenant"], query["iss"], query["launch"]) == (
        "chart.example", ["1"], [hospital.base], [told["launch"]])
    hospital.grant(patient, "Practitioner/ward")
    answer = approved(hospital, handle_of(asked(hospital, app, launch=told["launch"])),
                      session(hospital, "Practitioner/ward"))
    assert (answer["patient"], answer["encounter"]) == (patient, encounter)
    assert answer["fhirContext"] == [{"reference": "ImagingStudy/1"}]
    assert (answer["need_patient_banner"], answer["intent"]) == (False, "reconcile")
    client = Client(hospital, answer["access_token"])
    assert client.get(f"Patient/{patient}").status_code == 200
    assert client.get(f"Encounter/{encounter}").status_code == 200


def test_a_launch_on_a_patient_gives_no_sight_of_them(hospital: Hospital, app: str) -> None:
    """Trust: the EHR names the patient, the patient's grant alone opens the record; absent looks like not permitted."""
    patient = hospital.new_patient()
    hospital.feed.post("Observation", observation(patient))
    answers = []
    for named in (patient, "nobody-at-all"):
        told = opened(hospital.feed, client_id=app, patient=named).json()
        answer = approved(hospital, handle_of(asked(hospital, app, launch=told["launch"])),
                          session(hospital, "Practitioner/stranger"))
        client = Client(hospital, answer["access_token"])
        read = client.get(f"Patient/{named}")
        answers.append((sorted(answer), read.status_code, read.text.replace(named, "ID"),
                        client.total(f"Observation?patient={named}&_total=accurate")))
    assert answers[0] == answers[1]
    assert answers[0][1:2] == (404,)


def test_a_handle_that_does_not_fit_gives_no_code(hospital: Hospital, app: str, other: str) -> None:
    """List line 8: unknown, reused, expired, another client's."""
    launch = opened(hospital.feed, client_id=app).json()["launch"]
    stale = opened(hospital.feed, client_id=app).json()["launch"]
    hospital.database.transact(lambda tx: tx.execute("UPDATE launch SET expires_ms=1 WHERE hash=?", (
        hospital.smart.tokens.hash(stale),)))
    refusals = [answer_of(asked(hospital, client_id, launch=handle)) for client_id, handle in (
        (app, "gwl_" + "x" * 43), (app, "1"), (other, launch), (app, stale))]
    handle_of(asked(hospital, app, launch=launch))
    refusals.append(answer_of(asked(hospital, app, launch=launch)))
    for refusal in refusals:
        assert refusal.keys() >= {"error", "state", "iss"}
        assert refusal == refusals[0]
        assert "code" not in refusal
        assert refusal["error"] == "invalid_request"


def test_a_handle_asked_for_by_many_at_once_is_taken_by_one(hospital: Hospital, app: str) -> None:
    launch = opened(hospital.feed, client_id=app).json()["launch"]
    challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
    query = urlencode({"response_type": "code", "client_id": app, "redirect_uri": REDIRECT, "scope": SCOPE,
                       "state": "s", "aud": hospital.base, "code_challenge": challenge,
                       "code_challenge_method": "S256", "launch": launch})
    answers = hospital.together(*(hospital.http.get(f"{ORIGIN}/oauth/authorize?{query}") for _ in range(8)))
    taken = [answer for answer in answers if answer.headers["location"].startswith("/oauth/authorize/")]
    assert len(taken) == 1


def test_a_launch_for_one_person_is_taken_up_by_no_other(hospital: Hospital, app: str) -> None:
    told = opened(hospital.feed, client_id=app, user="Practitioner/ward").json()
    handle = handle_of(asked(hospital, app, launch=told["launch"]))
    with pytest.raises(Forbidden):
        approved(hospital, handle, session(hospital, "Practitioner/other"))


def test_an_app_that_waits_is_told_so_and_sent_nowhere(hospital: Hospital) -> None:
    """Its redirect URIs are not trusted yet: the person is told, and the browser is not sent there."""
    told = registered(hospital, redirect_uris=[REDIRECT], token_endpoint_auth_method="none")
    waiting = asked(hospital, told["client_id"], scope="launch/patient patient/*.rs")
    assert (waiting.status_code, waiting.json()["error"]) == (400, "unauthorized_client")
    assert "waits for the approval" in waiting.json()["error_description"]
    refused = hospital.run(hospital.http.post(f"{ORIGIN}/oauth/token", data={
        "grant_type": "authorization_code", "code": "gwc_" + "x" * 43, "redirect_uri": REDIRECT,
        "code_verifier": VERIFIER, "client_id": told["client_id"]}))
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client")
    administrator = Browser(hospital, "Practitioner/admin-flow", "administrator")
    assert administrator.approve(told["client_id"]).status_code == 200
    handle_of(asked(hospital, told["client_id"], scope="launch/patient patient/*.rs"))


def test_the_secret_told_at_registration_works_once_approved_and_until_it_is_changed(hospital: Hospital) -> None:
    told = registered(hospital)
    administrator = Browser(hospital, "Practitioner/admin-flow", "administrator")

    def introspected(secret: str) -> int:
        return hospital.run(hospital.http.post(f"{ORIGIN}/oauth/introspect", data={"token": "x"}, auth=(
            told["client_id"], secret))).status_code
    assert introspected(told["client_secret"]) == 401
    path = f"/oauth/clients/{told['client_id']}"
    assert administrator.approve(told["client_id"]).status_code == 200
    assert introspected(told["client_secret"]) == 200
    fresh = administrator.send("POST", f"{path}/rotate-secret", {}).json()["client_secret"]
    assert (introspected(told["client_secret"]), introspected(fresh)) == (401, 200)
    assert send(holder(hospital, told), "GET", path_of(told)).status_code == 200


def test_a_change_that_waits_ends_what_people_authorized_until_it_is_decided(hospital: Hospital) -> None:
    """A stolen registration access token turns an app neither to another address nor to more scopes."""
    told = registered(hospital, redirect_uris=[REDIRECT], token_endpoint_auth_method="none", scope=SCOPE)
    administrator = Browser(hospital, "Practitioner/admin-flow", "administrator")
    path = f"/oauth/clients/{told['client_id']}"
    assert administrator.approve(told["client_id"]).status_code == 200
    launch = opened(hospital.feed, client_id=told["client_id"], patient="p9").json()["launch"]
    handle = handle_of(asked(hospital, told["client_id"], launch=launch))
    client = Client(hospital, approved(hospital, handle, session(hospital, "Practitioner/ward"))["access_token"])
    assert client.get("Patient").status_code == 200
    body = {"client_name": "Growth chart", "client_id": told["client_id"], "scope": SCOPE, "contacts": told["contacts"],
            "token_endpoint_auth_method": "none", "redirect_uris": [REDIRECT, "https://evil.example/cb"]}
    assert send(holder(hospital, told), "PUT", path_of(told), body).json()["status"] == "pending"
    assert client.get("Patient").status_code == 401
    assert asked(hospital, told["client_id"], redirect_uri="https://evil.example/cb").status_code == 400
    assert administrator.send("POST", f"{path}/reject", {"reason": "no"}).json()["state"] == "approved"
    assert client.get("Patient").status_code == 200
    assert asked(hospital, told["client_id"], redirect_uri="https://evil.example/cb").status_code == 400


def test_the_discovery_names_the_door_while_it_is_open(hospital: Hospital, hospital_with: Any) -> None:
    def named(one: Hospital) -> bool:
        return "registration_endpoint" in one.run(one.http.get(
            f"{ORIGIN}/fhir/.well-known/smart-configuration")).json()
    assert named(hospital)
    assert not named(hospital_with(registration="closed"))


def test_a_launch_on_an_erased_patient_is_as_one_on_nobody(hospital_with: Callable[[], Hospital]) -> None:
    """Invariant 9: not even an error tells that somebody was here; and no key is made for nobody."""
    hospital = hospital_with()
    app = add_client(hospital.smart, name="Chart", kind="app", scope=SCOPE, jwks=None, purposes=("TREAT",),
                     auth="none", redirect_uris=(REDIRECT,))
    erased = hospital.new_patient()
    hospital.ring.destroy(erased)
    told = []
    for named in (erased, "never-here"):
        launch = opened(hospital.feed, client_id=app, patient=named).json()["launch"]
        answer = approved(hospital, handle_of(asked(hospital, app, launch=launch)),
                          session(hospital, "Practitioner/stranger"))
        read = Client(hospital, answer["access_token"]).get(f"Patient/{named}")
        told.append((sorted(answer), read.status_code, read.text.replace(named, "ID")))
    assert told[0] == told[1]
    assert patient_pk(hospital.database.reader, "never-here") is None
