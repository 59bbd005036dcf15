"""Clients that register themselves: the queue, who decides, and what they may change (RFC 7591, RFC 7592)."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import httpx
import pytest
from joserfc import jws
from joserfc.jwk import ECKey, KeySet

from gateway.smart import registration
from gateway.smart.registration import sweep_registrations
from tests.journeys.hospital import Client, Hospital
from tests.journeys.people import Browser

ORIGIN = "http://127.0.0.1:8080"
APP: dict[str, Any] = {
    "client_name": "Growth chart", "redirect_uris": ["https://app.example/cb", "https://app.example/other"],
    "scope": "launch/patient patient/*.rs", "contacts": ["dev@app.example"]}


@pytest.fixture(scope="module")
def key() -> ECKey:
    return ECKey.generate_key("P-384", {"kid": "1"})


@pytest.fixture(scope="module")
def administrator(hospital: Hospital) -> Client:
    from gateway.smart.accounts import add_user

    add_user(hospital.smart, fhir_user="Practitioner/admin", role="administrator", name="Ada")
    return hospital.client(user="Practitioner/admin")


def nobody(hospital: Hospital) -> Client:
    return Client(hospital, None)


def send(client: Client, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return client.request(method, f"{ORIGIN}{path}", body, **({"Content_Type": "application/json"} | headers))


def registered(hospital: Hospital, **asked: Any) -> dict[str, Any]:
    answer = send(nobody(hospital), "POST", "/oauth/register", {**APP, **asked})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


def backend(key: ECKey) -> dict[str, Any]:
    return {"redirect_uris": None, "grant_types": ["client_credentials"], "scope": "system/*.rs",
            "token_endpoint_auth_method": "private_key_jwt", "jwks": KeySet([key]).as_dict(private=False)}


def let_in(administrator: Client, told: dict[str, Any], **given: Any) -> httpx.Response:
    """Approve what stands."""
    path = f"/oauth/clients/{told['client_id']}"
    shown = send(administrator, "GET", path).json()
    return send(administrator, "POST", f"{path}/approve", {"revision": shown.get("revision", "none"), **given})


def holder(hospital: Hospital, told: dict[str, Any]) -> Client:
    return Client(hospital, told["registration_access_token"])


def path_of(told: dict[str, Any]) -> str:
    return str(told["registration_client_uri"]).removeprefix(ORIGIN)


def token_asked(hospital: Hospital, key: ECKey, client_id: str) -> httpx.Response:
    claims = {"iss": client_id, "sub": client_id, "aud": hospital.smart.token_url, "exp": int(time.time()) + 200,
              "jti": uuid.uuid4().hex}
    assertion = jws.serialize_compact({"alg": "ES384", "kid": "1", "typ": "JWT"}, json.dumps(claims).encode(), key,
                                      algorithms=["ES384"])
    return hospital.run(hospital.http.post(f"{ORIGIN}/oauth/token", data={
        "grant_type": "client_credentials", "scope": "system/*.rs", "client_assertion": assertion,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}))


# Registering

def test_a_registration_is_answered_with_all_that_stands_and_secrets_once(hospital: Hospital) -> None:
    """RFC 7591 section 3.2.1."""
    answer = send(nobody(hospital), "POST", "/oauth/register", {**APP, "unheard_of": True})
    told = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    assert told["status"] == "pending"
    assert told["token_endpoint_auth_method"] == "client_secret_basic"
    assert told["client_secret"].startswith("gws_")
    assert told["client_secret_expires_at"] == 0
    assert abs(told["client_id_issued_at"] - time.time()) < 60
    assert "unheard_of" not in told
    read = send(holder(hospital, told), "GET", path_of(told)).json()
    assert read == {name: value for name, value in told.items() if name != "client_secret"}
    # Neither secret is stored.
    rows = repr([list(hospital.database.reader.execute(f"SELECT * FROM {table}")) for table in (
        "client", "registration")])
    assert told["client_secret"] not in rows
    assert told["registration_access_token"] not in rows
    assert any(entry.interaction == "client-registered" and entry.what == (f"Device/{told['client_id']}",)
               for entry in hospital.audited())


@pytest.mark.parametrize(("asked", "error"), [
    ({"redirect_uris": ["http://app.example/"]}, "invalid_redirect_uri"), ({"scope": "x"}, "invalid_client_metadata"),
    ({"client_name": 'quo"te\u00e9', "scope": 'patient/"x".rs'}, "invalid_client_metadata"),
    ({"software_statement": "e.e.e"}, "unapproved_software_statement")])
def test_a_refusal_names_its_field_in_words_an_oauth_client_can_read(
        hospital: Hospital, asked: dict[str, Any], error: str) -> None:
    answer = send(nobody(hospital), "POST", "/oauth/register", {**APP, **asked})
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert answer.json()["error_description"].isascii()
    assert '"' not in answer.json()["error_description"]


def test_what_is_no_json_is_refused(hospital: Hospital) -> None:
    for body, type_ in ((b"a=b", "application/x-www-form-urlencoded"), (b"[]", "application/json"),
                        (b'{"client_name":"a","client_name":"b"}', "application/json")):
        answer = nobody(hospital).request("POST", f"{ORIGIN}/oauth/register", body, Content_Type=type_)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


# Waiting

def test_who_waits_gets_no_token_and_who_is_approved_does(
        hospital: Hospital, administrator: Client, key: ECKey) -> None:
    told = registered(hospital, **backend(key))
    client_id = told["client_id"]
    assert "client_secret" not in told
    refused = token_asked(hospital, key, client_id)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client")
    assert {"client_id": client_id, "name": "Growth chart", "kind": "backend", "state": "pending"} in send(
        administrator, "GET", "/oauth/clients?state=pending").json()["clients"]
    assert let_in(administrator, told, purposes=["HRESCH"]).status_code == 200
    answer = token_asked(hospital, key, client_id)
    assert answer.status_code == 200, answer.text
    grant, _ = hospital.smart.tokens.lookup(hospital.database.reader, answer.json()["access_token"],
                                            hospital.smart.now_ms())
    assert (grant.client_kind, grant.purpose) == ("backend", "HRESCH")
    again = let_in(administrator, told)
    assert (again.status_code, again.json()["error"]) == (409, "conflict")


def test_what_changed_while_it_was_read_is_not_let_in(hospital: Hospital, administrator: Client) -> None:
    """Bait and switch: the client holds a token to change its registration until the very moment of the decision."""
    told = registered(hospital)
    path = f"/oauth/clients/{told['client_id']}"
    read = send(administrator, "GET", path).json()["revision"]
    for uris in (["https://evil.example/cb"], APP["redirect_uris"]):  # there, and back
        assert changed(hospital, told, redirect_uris=uris).status_code == 200
        answer = send(administrator, "POST", f"{path}/approve", {"revision": read})
        assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
        time.sleep(0.002)
    assert send(administrator, "GET", path).json()["state"] == "pending"
    assert let_in(administrator, told).status_code == 200


def test_an_approval_may_give_less_and_never_more(hospital: Hospital, administrator: Client) -> None:
    told = registered(hospital)
    more = let_in(administrator, told, scope="patient/*.cruds")
    assert (more.status_code, more.json()["error"]) == (400, "invalid_scope")
    for given in ({"purposes": ["BTG"]}, {"purposes": "TREAT"}, {"everything": True}, {"revision": None}):
        assert let_in(administrator, told, **given).status_code == 400
    assert let_in(administrator, told, scope="patient/Observation.rs").status_code == 200
    read = send(holder(hospital, told), "GET", path_of(told)).json()
    assert (read["status"], read["scope"]) == ("approved", "patient/Observation.rs")


def test_who_is_rejected_reads_why_and_tries_no_more(hospital: Hospital, administrator: Client) -> None:
    told = registered(hospital)
    reject = f"/oauth/clients/{told['client_id']}/reject"
    assert send(administrator, "POST", reject, {}).status_code == 400
    answer = send(administrator, "POST", reject, {"reason": "not one of ours"})
    assert answer.json() == {"client_id": told["client_id"], "state": "rejected"}
    read = send(holder(hospital, told), "GET", path_of(told)).json()
    assert (read["status"], read["status_reason"]) == ("rejected", "not one of ours")
    assert send(holder(hospital, told), "PUT", path_of(told), {
        **APP, "client_id": told["client_id"]}).status_code == 403
    assert let_in(administrator, told).status_code == 409


def test_the_queue_is_short_and_forgets(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    told = registered(hospital)
    monkeypatch.setattr(registration, "QUEUE_MAX", 1)
    answer = send(nobody(hospital), "POST", "/oauth/register", APP)
    assert (answer.status_code, answer.json()["error"]) == (429, "temporarily_unavailable")
    monkeypatch.undo()
    monkeypatch.setattr(registration, "_HOURLY_MAX", 1)
    assert send(nobody(hospital), "POST", "/oauth/register", APP).status_code == 429
    monkeypatch.undo()
    approved = hospital.database.reader.execute("SELECT count(*) FROM client WHERE state='approved'").get
    now_ms = hospital.smart.now_ms()
    assert hospital.database.transact(lambda tx: sweep_registrations(tx, now_ms)) == 0
    assert hospital.database.transact(lambda tx: sweep_registrations(tx, now_ms + 31 * 24 * 3_600_000)) > 0
    assert send(holder(hospital, told), "GET", path_of(told)).status_code == 401
    assert hospital.database.reader.execute("SELECT count(*) FROM client WHERE state='approved'").get == approved


def test_one_address_fills_neither_the_queue_nor_the_hour_for_others(hospital: Hospital,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in SQL, by all workers together; an IPv6 customer has all of their /48."""
    def from_(address: str) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app=hospital.app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport) as client:
                return await client.post(f"{ORIGIN}/oauth/register", json=APP)
        return hospital.run(asked())

    monkeypatch.setattr(registration, "SHARE_MAX", 2)
    for number in range(2):
        assert from_(f"2001:db8:0:1::{number}").status_code == 201
    full = from_("2001:db8:0:ffff::1")
    assert (full.status_code, full.json()["error"], "retry-after" in full.headers) == (
        429, "temporarily_unavailable", True)
    assert from_("2001:db8:2::1").status_code == 201
    monkeypatch.undo()
    monkeypatch.setattr(registration, "_HOURLY_SHARE", 2)
    assert from_("2001:db8:0:1::9").status_code == 429
    assert from_("2001:db8:3::1").status_code == 201


def test_registration_can_be_closed(hospital_with: Any) -> None:
    closed: Hospital = hospital_with(registration="closed")
    answer = send(nobody(closed), "POST", "/oauth/register", APP)
    assert (answer.status_code, answer.json()["error"]) == (403, "access_denied")


# Managing

def test_only_the_registration_access_token_of_this_client_opens_it(hospital: Hospital, administrator: Client) -> None:
    mine, other = registered(hospital), registered(hospital)
    for client in (nobody(hospital), holder(hospital, other), administrator, hospital.feed,
                   Client(hospital, mine["client_secret"]), Client(hospital, "gwr_" + "x" * 43)):
        for method, body in (("GET", None), ("PUT", {**APP, "client_id": mine["client_id"]}), ("DELETE", None)):
            assert send(client, method, path_of(mine), body).status_code == 401
    unknown = send(holder(hospital, mine), "GET", "/oauth/register/nobody")
    assert (unknown.status_code, unknown.json()) == (401, send(
        holder(hospital, other), "GET", path_of(mine)).json())
    # And it opens nothing else.
    assert holder(hospital, mine).get("Patient").status_code == 401
    assert send(holder(hospital, mine), "GET", "/oauth/clients").status_code == 401


def approved(hospital: Hospital, administrator: Client, **asked: Any) -> dict[str, Any]:
    told = registered(hospital, **asked)
    answer = let_in(administrator, told)
    assert answer.status_code == 200, answer.text
    return told


def changed(hospital: Hospital, told: dict[str, Any], **asked: Any) -> httpx.Response:
    body = {**APP, "client_id": told["client_id"], **asked}
    return send(holder(hospital, told), "PUT", path_of(told), body)


def test_what_narrows_stands_at_once_and_what_widens_waits(hospital: Hospital, administrator: Client) -> None:
    told = approved(hospital, administrator)
    narrowed = changed(hospital, told, redirect_uris=["https://app.example/cb"], contacts=["new@app.example"])
    assert (narrowed.status_code, narrowed.json()["status"]) == (200, "approved")
    assert "client_secret" not in narrowed.json()
    # What was given up is not had back by asking.
    for widening in ({}, {"redirect_uris": ["https://evil.example/cb"]},
                     {"redirect_uris": ["https://app.example/cb"], "scope": "patient/*.cruds"},
                     {"redirect_uris": ["https://app.example/cb"], "client_name": "Hospital portal"}):
        widened = changed(hospital, told, **widening)
        assert (widened.status_code, widened.json()["status"]) == (200, "pending"), widening
        back = changed(hospital, told, redirect_uris=["https://app.example/cb"], contacts=["new@app.example"])
        assert back.json()["status"] == "approved"


def test_a_change_that_waits_suspends_the_client_and_its_tokens(
        hospital: Hospital, administrator: Client, key: ECKey) -> None:
    told = approved(hospital, administrator, **backend(key))
    client = Client(hospital, token_asked(hospital, key, told["client_id"]).json()["access_token"])
    assert client.get("Patient").status_code == 200
    thief = ECKey.generate_key("P-384", {"kid": "1"})
    widened = changed(hospital, told, **backend(thief))
    assert widened.json()["status"] == "pending"
    assert client.get("Patient").status_code == 401
    for one in (key, thief):
        assert token_asked(hospital, one, told["client_id"]).status_code == 400
    shown = send(administrator, "GET", f"/oauth/clients/{told['client_id']}").json()
    assert shown["registration"]["changes"].keys() == {"jwks"}
    # Rejected, it goes back to what it was.
    answer = send(administrator, "POST", f"/oauth/clients/{told['client_id']}/reject", {"reason": "ask by telephone"})
    assert answer.json()["state"] == "approved"
    assert token_asked(hospital, thief, told["client_id"]).status_code == 400
    assert token_asked(hospital, key, told["client_id"]).status_code == 200


@pytest.mark.parametrize(("asked", "named"), [
    ({"client_id": "other"}, "client_id"), ({"client_id": None}, "client_id"),
    ({"client_secret": "chosen"}, "client_secret"), ({"client_secret": 5}, "client_secret"),
    ({"registration_access_token": "x"}, "registration_access_token"),
    ({"client_id_issued_at": 1}, "client_id_issued_at"),
    ({"redirect_uris": ["http://app.example"]}, "redirect_uris")])
def test_a_client_does_not_say_what_is_the_servers_to_say(
        hospital: Hospital, asked: dict[str, Any], named: str) -> None:
    """RFC 7592 section 2.2."""
    answer = changed(hospital, registered(hospital), **asked)
    assert answer.status_code == 400
    assert answer.json()["error_description"].startswith(named)


def test_a_change_of_kind_is_refused_and_of_method_waits(
        hospital: Hospital, administrator: Client, key: ECKey) -> None:
    told = approved(hospital, administrator)
    assert changed(hospital, told, **backend(key)).status_code == 400
    assert changed(hospital, told, client_secret=told["client_secret"]).json()["status"] == "approved"
    public = changed(hospital, told, token_endpoint_auth_method="none").json()
    assert public["status"] == "pending"
    assert "client_secret_expires_at" not in public
    secret_again = changed(hospital, told, token_endpoint_auth_method="client_secret_basic").json()
    assert secret_again["status"] == "approved"


def test_a_client_ends_itself_for_good(hospital: Hospital, administrator: Client, key: ECKey) -> None:
    """RFC 7592 section 2.3."""
    told = approved(hospital, administrator, **backend(key))
    client = Client(hospital, token_asked(hospital, key, told["client_id"]).json()["access_token"])
    ended = send(holder(hospital, told), "DELETE", path_of(told))
    assert (ended.status_code, ended.content) == (204, b"")
    assert send(holder(hospital, told), "GET", path_of(told)).status_code == 401
    assert client.get("Patient").status_code == 401
    assert token_asked(hospital, key, told["client_id"]).status_code == 400
    assert send(administrator, "GET", f"/oauth/clients/{told['client_id']}").json()["state"] == "closed"


def test_whoever_closed_a_client_closed_it(hospital: Hospital, administrator: Client) -> None:
    for told in (registered(hospital), approved(hospital, administrator)):
        path = f"/oauth/clients/{told['client_id']}"
        assert send(administrator, "POST", f"{path}/close", {}).status_code == 200
        assert changed(hospital, told).status_code == 401
        assert let_in(administrator, told).status_code == 409


# Deciding

def test_only_administrators_decide(hospital: Hospital, administrator: Client) -> None:
    from gateway.smart.accounts import add_user

    add_user(hospital.smart, fhir_user="Practitioner/officer", role="privacy-officer", name="Olga")
    told = registered(hospital)
    path = f"/oauth/clients/{told['client_id']}"
    for client, status in ((nobody(hospital), 401), (hospital.feed, 403), (hospital.clinician(), 403),
                           (hospital.patient("p"), 403), (hospital.client(user="Practitioner/officer"), 403)):
        for method, at, body in (("GET", "/oauth/clients", None), ("GET", path, None), ("POST", f"{path}/approve", {}),
                                 ("POST", f"{path}/reject", {"reason": "x"}), ("POST", f"{path}/close", {}),
                                 ("POST", f"{path}/rotate-secret", {})):
            assert send(client, method, at, body).status_code == status, (method, at)
    assert send(administrator, "GET", path).json()["state"] == "pending"


def test_an_app_that_registered_itself_decides_about_none_in_an_administrators_name(
        hospital: Hospital, administrator: Client) -> None:
    """Confused deputy: an administrator uses an app, and the app approves its fellow."""
    told = approved(hospital, administrator, scope="user/*.cruds")
    deputy = hospital.client(user="Practitioner/admin", client=told["client_id"])
    fellow = registered(hospital)
    answer = let_in(deputy, fellow)
    assert (answer.status_code, answer.json()["error"]) == (403, "access_denied")


def test_what_is_shown_holds_no_secret_and_every_decision_is_audited(
        hospital: Hospital, administrator: Client) -> None:
    told = registered(hospital, logo_uri="https://app.example/logo.png")
    path = f"/oauth/clients/{told['client_id']}"
    shown = send(administrator, "GET", path)
    assert shown.json()["metadata"]["logo_uri"] == "https://app.example/logo.png"
    for secret in ("client_secret", "registration_access_token"):
        assert told[secret] not in shown.text
    rotated = send(administrator, "POST", f"{path}/rotate-secret", {}).json()
    assert rotated["client_secret"] != told["client_secret"]
    stored = hospital.database.reader.execute("SELECT secret FROM client WHERE id=?", (told["client_id"],)).get
    assert stored == hospital.smart.tokens.hash(rotated["client_secret"])
    assert let_in(administrator, told).status_code == 200
    assert send(administrator, "POST", f"{path}/close", {}).json()["state"] == "closed"
    assert send(administrator, "POST", f"{path}/rotate-secret", {}).status_code == 409
    deeds = [(entry.interaction, entry.user) for entry in hospital.audited()
             if entry.what == (f"Device/{told['client_id']}",)]
    assert set(deeds) == {("client-registered", None), ("client-secret", "Practitioner/admin"),
                          ("client-approved", "Practitioner/admin"), ("client-closed", "Practitioner/admin")}


def test_a_list_is_read_in_pages(hospital: Hospital, administrator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.smart import approvals

    wanted = {registered(hospital)["client_id"] for _ in range(3)}
    monkeypatch.setattr(approvals, "LIST_MAX", 2)
    seen: list[str] = []
    page = send(administrator, "GET", "/oauth/clients").json()
    while True:
        seen += [client["client_id"] for client in page["clients"]]
        if "after" not in page:
            break
        page = send(administrator, "GET", f"/oauth/clients?after={page['after']}").json()
    assert len(set(seen)) == len(seen)
    assert wanted <= set(seen)
    assert send(administrator, "GET", "/oauth/clients?state=new").status_code == 400
    assert send(administrator, "GET", "/oauth/clients/nobody").status_code == 404
    assert send(administrator, "POST", "/oauth/clients/nobody/promote", {}).status_code == 400


def test_an_administrator_decides_in_the_portal_and_no_other_sites_page_does(hospital: Hospital) -> None:
    told = registered(hospital)
    path = f"/oauth/clients/{told['client_id']}"
    browser = Browser(hospital, "Practitioner/admin-2", "administrator")
    assert browser.send("GET", path).json()["state"] == "pending"
    for csrf, origin in (("", None), ("x", None), (None, "https://evil.example")):
        assert browser.send("POST", f"{path}/approve", {}, csrf=csrf, origin=origin).status_code == 403
    assert browser.approve(told["client_id"]).json() == {"client_id": told["client_id"], "state": "approved"}
    assert any(entry.interaction == "client-approved" and entry.user == "Practitioner/admin-2"
               and entry.client == "portal" for entry in hospital.audited())
    for other in (Browser(hospital, "Practitioner/no-admin", "clinician"),
                  Browser(hospital, "Practitioner/admin-3", "administrator", methods=("pwd",))):
        assert other.send("GET", "/oauth/clients").status_code == 403
