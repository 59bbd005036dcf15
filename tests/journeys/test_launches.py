"""An EHR opens a launch; its handle works once, for its app (SMART App Launch 2.2; list line 8)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.errors import OAuthError
from gateway.smart import launches
from gateway.smart.launches import LaunchContext, launch_of, sweep_launches, take_launch
from tests.journeys.hospital import Client, Hospital
from tests.journeys.people import Browser

JSON_ALONE = "application/json"


@pytest.fixture(scope="module")
def app_ids(hospital: Hospital) -> tuple[str, str]:
    made = []
    for name in ("Growth chart", "Other app"):
        id_ = f"app-{name.partition(' ')[0].lower()}"
        hospital.database.transact(lambda tx, id_=id_, name=name: tx.execute(
            "INSERT INTO client (id,name,kind,scope,purposes,created_ms) VALUES (?,?,'app','patient/*.rs','TREAT',1)",
            (id_, name)))
        made.append(id_)
    return made[0], made[1]


def opened(client: Client, **asked: Any) -> httpx.Response:
    return client.post("http://127.0.0.1:8080/oauth/launch", asked, Content_Type=JSON_ALONE)


def take(hospital: Hospital, handle: str, client_id: str, *, later_ms: int = 0) -> LaunchContext:
    now_ms = hospital.smart.now_ms() + later_ms
    return hospital.database.transact(lambda tx: take_launch(tx, hospital.smart, handle, client_id, now_ms))


def test_a_feed_opens_a_launch_and_is_told_its_handle_once(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    answer = opened(hospital.feed, client_id=app_ids[0], user="Practitioner/dr-1", patient="p1",
                    encounter="Encounter/e1", fhirContext=[{"reference": "ImagingStudy/i1"}],
                    intent="reconcile-medications", need_patient_banner=False)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert 0 < told["expires_in"] <= 600
    context = take(hospital, told["launch"], app_ids[0])
    assert (context.user, context.patient, context.encounter) == ("Practitioner/dr-1", "Patient/p1", "Encounter/e1")
    assert context.fhir_context == ({"reference": "ImagingStudy/i1"},)
    assert (context.intent, context.need_patient_banner) == ("reconcile-medications", False)
    assert context.is_for("Practitioner/dr-1")
    assert not context.is_for("Practitioner/dr-2")
    assert launch_of(hospital.database.reader, context.id) == context
    # The handle itself is nowhere: not in the row, not in the audit.
    rows = list(hospital.database.reader.execute("SELECT * FROM launch WHERE id=?", (context.id,)))
    assert told["launch"] not in repr(rows)
    assert any(entry.interaction == "launch" and entry.what == ("Patient/p1", "Encounter/e1")
               for entry in hospital.audited())


def test_a_handle_is_taken_once_in_time_and_by_its_own_app(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    """List line 8: one-time, bound. Every handle that does not fit is refused in the same words."""
    own, other = app_ids
    handle = opened(hospital.feed, client_id=own).json()["launch"]
    refusals = []
    for tried, client_id, later_ms in (
            (handle, other, 0), (handle, own, launches.LIFE_MS + 1), (handle + "x", own, 0), ("", own, 0),
            (handle[:-1] + ("A" if handle[-1] != "A" else "B"), own, 0), ("gwl_" + "\ud800" * 43, own, 0)):
        with pytest.raises(OAuthError) as refused:
            take(hospital, tried, client_id, later_ms=later_ms)
        refusals.append(str(refused.value))
    context = take(hospital, handle, own)
    assert context.user is None
    assert context.is_for("Patient/anyone")
    with pytest.raises(OAuthError) as again:
        take(hospital, handle, own)
    assert set(refusals) == {str(again.value)}
    assert again.value.error == "invalid_request"


def test_whether_the_patient_exists_is_not_told(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    known = hospital.new_patient()
    answers = [opened(hospital.feed, client_id=app_ids[0], patient=patient) for patient in (known, "nobody")]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json().keys() == answers[1].json().keys()
    # The row of the audit is the hospital's own: no key is made for nobody.
    assert hospital.audited("nobody") == []


@pytest.mark.parametrize(("asked", "named"), [
    ({}, "client_id"), ({"client_id": "nobody"}, "client_id"), ({"client_id": 5}, "client_id"),
    ({"client_id": "feed"}, "client_id"), ({"patient": "Observation/1"}, "patient"), ({"patient": ["1"]}, "patient"),
    ({"encounter": "e1"}, "encounter"), ({"patient": "p", "encounter": "Patient/1"}, "encounter"),
    ({"user": "dr-1"}, "user"), ({"user": "PractitionerRole/1"}, "user"), ({"intent": ""}, "intent"),
    ({"intent": "a\nb"}, "intent"), ({"need_patient_banner": "yes"}, "need_patient_banner"),
    ({"fhirContext": {}}, "fhirContext"), ({"fhirContext": [{"reference": "Patient/1"}]}, "fhirContext[0]"),
    ({"tenant": "x"}, "fields")])
def test_what_cannot_be_launched_is_refused_by_its_field(
        hospital: Hospital, app_ids: tuple[str, str], asked: dict[str, Any], named: str) -> None:
    answer = opened(hospital.feed, **({"client_id": app_ids[0]} if asked else {}) | asked)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] == "invalid_request"
    assert named in answer.json()["error_description"]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"client_id":"a","client_id":"b"}', b"\xff", b"{" * 300, b"x" * 70_000])
def test_what_is_no_json_object_is_refused(hospital: Hospital, body: bytes) -> None:
    answer = hospital.feed.request("POST", "http://127.0.0.1:8080/oauth/launch", body, Content_Type=JSON_ALONE)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    typed = hospital.feed.request("POST", "http://127.0.0.1:8080/oauth/launch", b"{}", Content_Type="text/plain")
    assert typed.status_code == 400


def test_only_this_hospitals_own_systems_open_launches(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    nobody, stale = Client(hospital, None), Client(hospital, "gw_" + "x" * 43)
    assert opened(nobody, client_id=app_ids[0]).status_code == 401
    assert "Bearer" in opened(stale, client_id=app_ids[0]).headers["www-authenticate"]
    # An app's token, though a clinician's, starts no other app in the clinician's name.
    for person in (hospital.clinician(), hospital.patient("p1")):
        answer = opened(person, client_id=app_ids[0])
        assert (answer.status_code, answer.json()["error"]) == (403, "access_denied")


def test_a_closed_app_is_not_launched(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    hospital.database.transact(lambda tx: tx.execute(
        "INSERT INTO client (id,name,kind,scope,purposes,created_ms,closed_ms) "
        "VALUES ('app-over','Over','app','patient/*.rs','TREAT',1,2)"))
    assert opened(hospital.feed, client_id="app-over").status_code == 400


def test_waiting_handles_are_bounded_and_old_ones_go(
        hospital: Hospital, app_ids: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "_OPEN_MAX", 0)
    answer = opened(hospital.feed, client_id=app_ids[0])
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    monkeypatch.undo()
    handle = opened(hospital.feed, client_id=app_ids[0]).json()["launch"]
    now_ms = hospital.smart.now_ms()
    hospital.database.transact(lambda tx: sweep_launches(tx, now_ms))
    assert take(hospital, handle, app_ids[0])
    assert hospital.database.transact(lambda tx: sweep_launches(tx, now_ms + 3 * 24 * 3_600_000)) > 0


# A person opens a launch in their own portal session

def launched(browser: Browser, **asked: Any) -> httpx.Response:
    return browser.send("POST", "/oauth/launch", asked)


def test_a_clinician_launches_an_app_for_themselves_alone(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    browser = Browser(hospital, "Practitioner/launcher", "clinician")
    answer = launched(browser, client_id=app_ids[0], patient="p1")
    assert answer.status_code == 201, answer.text
    context = take(hospital, answer.json()["launch"], app_ids[0])
    assert (context.user, context.patient) == ("Practitioner/launcher", "Patient/p1")
    assert launched(browser, client_id=app_ids[0], user="Practitioner/launcher").status_code == 201
    other = launched(browser, client_id=app_ids[0], user="Practitioner/dr-1")
    assert (other.status_code, other.json()["error"]) == (400, "invalid_request")


def test_a_patient_or_delegate_launches_an_app_on_their_own_record_alone(
        hospital: Hospital, app_ids: tuple[str, str]) -> None:
    for user, role, own, account in (
            ("Patient/launcher", "patient", "Patient/launcher", {}),
            ("RelatedPerson/launcher", "delegate", "Patient/child", {
                "represents": "Patient/child", "mandate_until_ms": hospital.smart.now_ms() + 86_400_000})):
        browser = Browser(hospital, user, role, methods=("pwd",), **account)
        for patient in (None, own, own.partition("/")[2]):
            answer = launched(browser, client_id=app_ids[0], patient=patient)
            assert answer.status_code == 201, answer.text
            assert take(hospital, answer.json()["launch"], app_ids[0]).patient == own
        assert launched(browser, client_id=app_ids[0], patient="Patient/p1").status_code == 400


def test_another_sites_page_opens_no_launch(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    """CSRF: the cookie comes along, the token and the origin do not."""
    browser = Browser(hospital, "Practitioner/launcher", "clinician")
    body = {"client_id": app_ids[0]}
    for csrf, origin, site in ((browser.csrf, "https://evil.example", ""), ("", browser.origin, ""),
                               ("x" * 64, browser.origin, ""), (browser.csrf, "", "cross-site")):
        answer = browser.send("POST", "/oauth/launch", body, csrf=csrf, origin=origin, Sec_Fetch_Site=site)
        assert (answer.status_code, answer.json()["error"]) == (403, "access_denied")


def test_a_session_that_stands_for_nobody_opens_no_launch(hospital: Hospital, app_ids: tuple[str, str]) -> None:
    weak = Browser(hospital, "Practitioner/weak", "clinician", methods=("pwd",))
    assert launched(weak, client_id=app_ids[0]).status_code == 403
    weak.cookie = "x" * 43
    assert launched(weak, client_id=app_ids[0]).status_code == 401
