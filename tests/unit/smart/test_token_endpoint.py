"""Backend services over HTTP (SMART App Launch 2.2 backend-services; RFC 6749, 7009, 7662, 7523)."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, RSAKey
from joserfc.util import urlsafe_b64encode

from gateway.errors import Unauthenticated
from gateway.smart.approvals import Decider, close
from tests.unit.smart.hospital import ASSERTION_TYPE, TOKEN_URL, Hospital, Signer, register

pytestmark = pytest.mark.anyio


async def _post(hospital: Hospital, form: Any, path: str = "/oauth/token", **kwargs: Any) -> httpx.Response:
    async with hospital.http() as http:
        return await http.post(path, data=form, **kwargs)


def _refused(response: httpx.Response, error: str) -> None:
    assert response.status_code == 400, response.text
    assert response.json()["error"] == error, response.text
    assert "access_token" not in response.text
    assert response.headers["cache-control"] == "no-store"
    assert all(c in "\x20\x21" or "\x23" <= c <= "\x5b" or "\x5d" <= c <= "\x7e"
               for c in response.json().get("error_description", ""))


# Success: acceptance 22 and 24

@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
async def test_a_signed_assertion_gives_the_four_fields_and_no_refresh_token(
        hospital: Hospital, rsa_key: RSAKey, ec_key: ECKey, tmp_path: Path, algorithm: str) -> None:
    signer = Signer(rsa_key if algorithm == "RS384" else ec_key, algorithm)
    register(hospital, signer, tmp_path, scope="system/*.rs")
    response = await _post(hospital, signer.form())
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"access_token", "token_type", "expires_in", "scope"}
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 300, "system/*.rs")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["pragma"] == "no-cache"
    assert response.headers["content-type"].startswith("application/json")
    reader = hospital.smart.database.reader
    grant, _ = hospital.smart.tokens.lookup(reader, body["access_token"], hospital.clock_ms[0])
    assert (grant.client_id, grant.client_kind, grant.user, grant.role) == (signer.client_id, "backend", None, "system")
    assert (grant.purpose, grant.grantees) == ("TREAT", (f"Device/{signer.client_id}",))
    assert [entry.interaction for entry, _ in hospital.audited] == ["client", "token"]
    with pytest.raises(Unauthenticated) as refusal:
        hospital.smart.tokens.lookup(reader, body["access_token"], hospital.clock_ms[0] + 300_000)
    assert refusal.value.reason == "expired"


async def test_authlibs_own_client_is_served(hospital: Hospital, rsa_key: RSAKey, signer: Signer) -> None:
    async with AsyncOAuth2Client(
            signer.client_id, rsa_key.as_pem(private=True), token_endpoint_auth_method="private_key_jwt",
            transport=httpx.ASGITransport(hospital.app)) as client:
        client.register_client_auth_method(PrivateKeyJWT(
            TOKEN_URL, alg="RS384", headers={"kid": "rsa-1"}, claims={"exp": hospital.clock_ms[0] // 1_000 + 240}))
        token = await client.fetch_token(TOKEN_URL, grant_type="client_credentials", scope="system/Patient.rs")
    assert token["scope"] == "system/Patient.rs"


@pytest.mark.parametrize(("ceiling", "asked", "granted"), [
    ("system/*.rs", "system/*.cruds", "system/*.rs"),
    ("system/Observation.rs system/Patient.r", "system/*.rs", "system/Observation.rs system/Patient.r"),
    ("system/*.rs", "system/Observation.rs?category=laboratory", "system/Observation.rs?category=laboratory"),
    ("system/*.cruds", "system/Patient.read system/Observation.write",
     "system/Observation.write system/Patient.read"),
    ("system/*.rs", "system/*.read", "system/*.read"),
    ("system/*.rs", "system/Patient.r", "system/Patient.r"),
])
async def test_scope_is_cut_to_what_was_pre_authorised_by_the_grammar(
        hospital: Hospital, rsa_key: RSAKey, tmp_path: Path, ceiling: str, asked: str, granted: str) -> None:
    signer = Signer(rsa_key, "RS384")
    register(hospital, signer, tmp_path, scope=ceiling)
    response = await _post(hospital, signer.form(scope=asked))
    assert response.status_code == 200, response.text
    assert response.json()["scope"] == granted


@pytest.mark.parametrize("asked", [
    "", "system/Patient.c", "user/*.rs", "patient/*.rs system/*.rs", "system/Nonsense.rs", "system/Patient.sr",
    "openid", "system/Observation.rs?subject:Patient.name=x", "system/Patient.rs?nonsense=1", "\u00e9", 'a"b',
])
async def test_scope_outside_the_registration_or_the_grammar_is_invalid_scope(
        hospital: Hospital, signer: Signer, asked: str) -> None:
    _refused(await _post(hospital, signer.form(scope=asked)), "invalid_scope")


async def test_an_assertion_may_choose_among_registered_purposes(
        hospital: Hospital, rsa_key: RSAKey, tmp_path: Path) -> None:
    signer = Signer(rsa_key, "RS384")
    register(hospital, signer, tmp_path, scope="system/*.rs", purposes=("HOPERAT", "HPAYMT"))
    for stated, expected in (("urn:oid:2.16.840.1.113883.5.8#HPAYMT", 200), ("HPAYMT", 200), ("TREAT", 400),
                             ("BTG", 400)):
        claims = {"extensions": {"hl7-b2b": {"version": "1", "purpose_of_use": [stated]}}}
        response = await _post(hospital, signer.form(signer.assertion(**claims)))
        assert response.status_code == expected, response.text
    entry, _ = hospital.audited[-1]
    assert entry.purpose == "HPAYMT"


# Refusals: acceptance 22

async def test_bad_grant_type_is_400(hospital: Hospital, signer: Signer) -> None:
    _refused(await _post(hospital, signer.form(grant_type="not_a_grant_type\u00e9")), "unsupported_grant_type")
    _refused(await _post(hospital, signer.form(grant_type="")), "invalid_request")


async def test_bad_or_missing_assertion_type_is_invalid_client(hospital: Hospital, signer: Signer) -> None:
    _refused(await _post(hospital, signer.form(client_assertion_type="not_an_assertion_type")), "invalid_client")
    _refused(await _post(hospital, {"grant_type": "client_credentials", "scope": "system/*.rs"}), "invalid_client")
    _refused(await _post(hospital, {"grant_type": "client_credentials", "client_id": signer.client_id}),
             "invalid_client")


# Refusals: acceptance 23

@pytest.mark.parametrize("claims", [
    {"aud": "http://127.0.0.1:8080/fhir"}, {"aud": None}, {"aud": [TOKEN_URL, "https://elsewhere.example/token"]},
    {"aud": {"url": TOKEN_URL}}, {"iss": "another"}, {"sub": "another"}, {"sub": None}, {"iss": 7, "sub": 7},
    {"iss": "nobody", "sub": "nobody"}, {"iss": "feed", "sub": "feed"}, {"iss": "\ud800", "sub": "\ud800"},
    {"exp": None}, {"exp": "soon"}, {"exp": True}, {"exp": float("nan")}, {"exp": float("inf")}, {"exp": 10**400},
    {"exp": -1}, {"jti": None}, {"jti": 5}, {"jti": ""}, {"jti": "x" * 300}, {"jti": "\ud800"},
    {"extensions": {"hl7-b2b": {"purpose_of_use": []}}},
])
async def test_an_assertion_with_wrong_claims_is_invalid_client(
        hospital: Hospital, signer: Signer, claims: dict[str, Any]) -> None:
    _refused(await _post(hospital, signer.form(signer.assertion(**claims))), "invalid_client")


async def test_a_single_audience_in_a_list_is_accepted(hospital: Hospital, signer: Signer) -> None:
    response = await _post(hospital, signer.form(signer.assertion(aud=[TOKEN_URL])))
    assert response.status_code == 200


@pytest.mark.parametrize(("ahead_s", "status"), [(301, 200), (359, 200), (362, 400), (-59, 200), (-61, 400)])
async def test_exp_is_at_most_five_minutes_ahead_with_a_minute_of_skew(
        hospital: Hospital, signer: Signer, ahead_s: int, status: int) -> None:
    hospital.clock_ms[0] -= hospital.clock_ms[0] % 1_000
    now_s = hospital.clock_ms[0] // 1_000
    response = await _post(hospital, signer.form(signer.assertion(exp=now_s + ahead_s)))
    assert response.status_code == status, response.text


@pytest.mark.parametrize("name", ["nbf", "iat"])
async def test_an_assertion_from_the_future_is_refused(hospital: Hospital, signer: Signer, name: str) -> None:
    now_s = hospital.clock_ms[0] // 1_000
    _refused(await _post(hospital, signer.form(signer.assertion(**{name: now_s + 120}))), "invalid_client")
    response = await _post(hospital, signer.form(signer.assertion(**{name: now_s + 30})))
    assert response.status_code == 200


@pytest.mark.parametrize("header", [
    {"kid": "unknown"}, {"kid": None}, {"kid": 4}, {"typ": None}, {"typ": "at+jwt"},
    {"jku": "https://elsewhere.example/jwks"},
])
async def test_an_assertion_with_a_wrong_header_is_invalid_client(
        hospital: Hospital, signer: Signer, header: dict[str, Any]) -> None:
    now_s = hospital.clock_ms[0] // 1_000
    if not isinstance(header.get("kid", ""), str) and header["kid"] is not None:
        part = _unsigned({"alg": "RS384", "typ": "JWT", **header}, {"sub": signer.client_id, "exp": now_s})
        _refused(await _post(hospital, signer.form(part)), "invalid_client")
    else:
        _refused(await _post(hospital, signer.form(signer.assertion(header))), "invalid_client")


def _unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [urlsafe_b64encode(json.dumps(part).encode()).decode() for part in (header, claims)]
    return ".".join((*parts, ""))


async def test_alg_none_is_refused(hospital: Hospital, signer: Signer) -> None:
    now_s = hospital.clock_ms[0] // 1_000
    claims = {"iss": signer.client_id, "sub": signer.client_id, "aud": TOKEN_URL, "exp": now_s + 60, "jti": "1"}
    for name in ("none", "None", "NONE"):
        assertion = _unsigned({"alg": name, "typ": "JWT", "kid": "rsa-1"}, claims)
        _refused(await _post(hospital, signer.form(assertion)), "invalid_client")


async def test_an_hmac_over_the_public_key_is_refused(hospital: Hospital, signer: Signer, rsa_key: RSAKey) -> None:
    for name, digest in (("HS256", "sha256"), ("HS384", "sha384")):
        head, claims, _ = signer.assertion({"alg": "RS384"}).split(".")
        head = urlsafe_b64encode(json.dumps({"alg": name, "typ": "JWT", "kid": "rsa-1"}).encode()).decode()
        mac = hmac.digest(rsa_key.as_pem(private=False), f"{head}.{claims}".encode(), digest)
        assertion = f"{head}.{claims}.{urlsafe_b64encode(mac).decode()}"
        _refused(await _post(hospital, signer.form(assertion)), "invalid_client")


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS384"])
async def test_other_algorithms_of_the_right_key_are_refused(
        hospital: Hospital, signer: Signer, algorithm: str) -> None:
    _refused(await _post(hospital, signer.form(signer.assertion({"alg": algorithm}))), "invalid_client")


async def test_another_key_under_the_registered_kid_is_refused(hospital: Hospital, signer: Signer) -> None:
    thief = RSAKey.generate_key(2048, {"kid": "rsa-1"})
    _refused(await _post(hospital, signer.form(signer.assertion(key=thief))), "invalid_client")


async def test_a_key_of_another_type_under_the_registered_kid_is_refused(hospital: Hospital, signer: Signer) -> None:
    thief = ECKey.generate_key("P-384", {"kid": "rsa-1"})
    _refused(await _post(hospital, signer.form(signer.assertion({"alg": "ES384"}, key=thief))), "invalid_client")


async def test_a_key_brought_along_in_the_header_is_not_used(hospital: Hospital, signer: Signer) -> None:
    thief = RSAKey.generate_key(2048, {"kid": "rsa-1"})
    header = {"jwk": thief.as_dict(private=False)}
    _refused(await _post(hospital, signer.form(signer.assertion(header, key=thief))), "invalid_client")


async def test_an_altered_payload_is_refused(hospital: Hospital, signer: Signer) -> None:
    head, _, signature = signer.assertion().split(".")
    _, other, _ = signer.assertion(jti="other").split(".")
    _refused(await _post(hospital, signer.form(f"{head}.{other}.{signature}")), "invalid_client")


async def test_a_replayed_assertion_is_refused_and_an_unsigned_one_burns_no_jti(
        hospital: Hospital, signer: Signer) -> None:
    assertion = signer.assertion(jti="once")
    forged = signer.assertion(jti="once", key=RSAKey.generate_key(2048, {"kid": "rsa-1"}))
    _refused(await _post(hospital, signer.form(forged)), "invalid_client")
    assert (await _post(hospital, signer.form(assertion))).status_code == 200
    _refused(await _post(hospital, signer.form(assertion)), "invalid_client")
    hospital.clock_ms[0] += 330_000  # within the skew it would still be good
    _refused(await _post(hospital, signer.form(assertion)), "invalid_client")


async def test_the_same_jti_of_two_clients_is_two_ids(
        hospital: Hospital, signer: Signer, ec_key: ECKey, tmp_path: Path) -> None:
    other = Signer(ec_key, "ES384")
    register(hospital, other, tmp_path, scope="system/*.rs")
    for each in (signer, other):
        assert (await _post(hospital, each.form(each.assertion(jti="shared")))).status_code == 200


async def test_one_of_many_concurrent_uses_of_an_assertion_wins(hospital: Hospital, signer: Signer) -> None:
    form = signer.form()
    async with hospital.http() as http:
        answers = await asyncio.gather(*(http.post("/oauth/token", data=form) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 11


async def test_client_id_beside_the_assertion_must_be_the_same(hospital: Hospital, signer: Signer) -> None:
    _refused(await _post(hospital, signer.form(client_id="other")), "invalid_client")
    assert (await _post(hospital, signer.form(client_id=signer.client_id))).status_code == 200


async def test_a_closed_client_is_refused_at_the_endpoint_and_its_tokens_at_once(
        hospital: Hospital, signer: Signer) -> None:
    secret = (await _post(hospital, signer.form())).json()["access_token"]
    close(hospital.smart, signer.client_id, Decider())
    _refused(await _post(hospital, signer.form()), "invalid_client")
    with pytest.raises(Unauthenticated) as refusal:
        hospital.smart.tokens.lookup(hospital.smart.database.reader, secret, hospital.clock_ms[0])
    assert refusal.value.reason == "client-closed"


async def test_an_app_may_not_use_client_credentials(hospital: Hospital, rsa_key: RSAKey, tmp_path: Path) -> None:
    signer = Signer(rsa_key, "RS384")
    register(hospital, signer, tmp_path, scope="patient/*.rs", kind="app")
    _refused(await _post(hospital, signer.form()), "unauthorized_client")


# The form: RFC 6749 section 3.2

async def test_get_and_other_methods_are_refused(hospital: Hospital, signer: Signer) -> None:
    async with hospital.http() as http:
        for method in ("GET", "PUT", "DELETE"):
            response = await http.request(method, "/oauth/token", params=signer.form() if method == "GET" else None)
            assert (response.status_code, response.headers["allow"]) == (405, "OPTIONS, POST")
            assert response.json()["error"] == "invalid_request"


@pytest.mark.parametrize("name", ["grant_type", "scope", "client_assertion", "unheard_of"])
async def test_a_repeated_parameter_is_invalid_request(hospital: Hospital, signer: Signer, name: str) -> None:
    pairs = [*signer.form(unheard_of="1").items(), (name, "again")]
    content = str(httpx.QueryParams(pairs))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with hospital.http() as http:
        _refused(await http.post("/oauth/token", content=content, headers=headers), "invalid_request")


async def test_parameters_in_the_url_are_refused(hospital: Hospital, signer: Signer) -> None:
    _refused(await _post(hospital, signer.form(), "/oauth/token?grant_type=client_credentials"), "invalid_request")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a=%ff", b"x" * 70_000, b"&".join([b"a=b"] * 40), b"novalue"])
async def test_a_body_that_is_no_form_is_invalid_request(hospital: Hospital, content: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with hospital.http() as http:
        _refused(await http.post("/oauth/token", content=content, headers=headers), "invalid_request")


async def test_json_is_not_a_form(hospital: Hospital, signer: Signer) -> None:
    async with hospital.http() as http:
        _refused(await http.post("/oauth/token", json=signer.form()), "invalid_request")


async def test_a_second_way_to_authenticate_is_refused(hospital: Hospital, signer: Signer) -> None:
    _refused(await _post(hospital, signer.form(client_secret="x")), "invalid_request")
    response = await _post(hospital, signer.form(), auth=("a", "b"))
    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
    assert "www-authenticate" not in response.headers


@given(assertion=st.text(max_size=200) | st.builds(
    lambda *parts: ".".join(parts), *[st.text("abcdefghijklmnopqrstuvwxyzABC0123456789-_=", max_size=60)] * 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_assertion_whatever_makes_the_server_stumble(
        hospital: Hospital, signer: Signer, assertion: str) -> None:
    form = {**signer.form(), "client_assertion": assertion.encode("utf-8", "replace").decode()}
    _refused(await _post(hospital, form), "invalid_client")


@given(header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "jku", "crit", "b64", "x5c"]),
                              st.sampled_from(["RS384", "ES384", "JWT", "rsa-1", "exp"]) | st.none() | st.booleans()
                              | st.lists(st.text(max_size=3), max_size=2) | st.text(max_size=20)),
       claims=st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "jti"]),
                              st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.just(TOKEN_URL)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_unsigned_header_and_claims_are_believed(
        hospital: Hospital, signer: Signer, header: dict[str, Any], claims: dict[str, Any]) -> None:
    merged = {"iss": signer.client_id, "sub": signer.client_id, **claims}
    assertion = _unsigned({"alg": "RS384", "kid": "rsa-1", "typ": "JWT", **header}, merged)
    _refused(await _post(hospital, signer.form(assertion + "AAAA")), "invalid_client")


# No secret in a log, or on the disk

async def test_no_log_line_holds_a_token_or_an_assertion(
        hospital: Hospital, signer: Signer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    form = signer.form()
    secret = (await _post(hospital, form)).json()["access_token"]
    await _post(hospital, form)
    await _post(hospital, signer.form(token=secret), "/oauth/revoke")
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "Issue token" in logged  # Authlib does log the response
    assert secret not in logged
    assert form["client_assertion"] not in logged


async def test_an_unknown_error_shows_an_id_alone(
        hospital: Hospital, signer: Signer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"secret {signer.client_id}")
    monkeypatch.setattr(type(hospital.smart.tokens), "issue", broken)
    response = await _post(hospital, signer.form())
    assert (response.status_code, response.json()["error"]) == (500, "server_error")
    number = response.json()["error_description"].split()[-1]
    record = next(record for record in caplog.records if record.name == "gateway.oauth")
    assert record.__dict__["error_id"] == number
    assert signer.client_id not in str(record.__dict__)


async def test_a_base_url_in_the_clear_beyond_this_machine_gives_no_token(hospital: Hospital, signer: Signer) -> None:
    """SMART asks for TLS; the configured URL decides, never a header of the request."""
    settings_ = dataclasses.replace(hospital.smart.settings, base_url="http://hospital.example/fhir")
    object.__setattr__(hospital.smart, "settings", settings_)
    _refused(await _post(hospital, signer.form(), headers={"X-Forwarded-Proto": "https"}), "insecure_transport")


# Revocation (RFC 7009) and introspection (RFC 7662, acceptance 21)

def _authenticated(signer: Signer, token: str) -> dict[str, str]:
    return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": signer.assertion(), "token": token}


async def test_a_revoked_token_is_refused_at_once_and_moves_decision_seq(hospital: Hospital, signer: Signer) -> None:
    secret = (await _post(hospital, signer.form())).json()["access_token"]
    reader = hospital.smart.database.reader
    _, before = hospital.smart.tokens.lookup(reader, secret, hospital.clock_ms[0])
    for _ in range(2):  # revoking twice is no error (RFC 7009 section 2.2)
        response = await _post(hospital, _authenticated(signer, secret), "/oauth/revoke")
        assert response.status_code == 200
    with pytest.raises(Unauthenticated) as refusal:
        hospital.smart.tokens.lookup(reader, secret, hospital.clock_ms[0])
    assert refusal.value.reason == "revoked"
    other = (await _post(hospital, signer.form())).json()["access_token"]
    assert hospital.smart.tokens.lookup(reader, other, hospital.clock_ms[0])[1] == before + 1


async def test_only_its_own_client_revokes_a_token(
        hospital: Hospital, signer: Signer, ec_key: ECKey, tmp_path: Path) -> None:
    other = Signer(ec_key, "ES384")
    register(hospital, other, tmp_path, scope="system/*.rs")
    secret = (await _post(hospital, signer.form())).json()["access_token"]
    _refused(await _post(hospital, _authenticated(other, secret), "/oauth/revoke"), "invalid_grant")
    _refused(await _post(hospital, {"token": secret}, "/oauth/revoke"), "invalid_client")
    _refused(await _post(hospital, _authenticated(signer, ""), "/oauth/revoke"), "invalid_request")
    assert (await _post(hospital, _authenticated(other, "gw_unknown"), "/oauth/revoke")).status_code == 200
    hospital.smart.tokens.lookup(hospital.smart.database.reader, secret, hospital.clock_ms[0])


async def test_introspection_tells_its_client_and_this_hospitals_feed_alone(
        hospital: Hospital, signer: Signer, ec_key: ECKey, tmp_path: Path) -> None:
    other, feed = Signer(ec_key, "ES384"), Signer(ec_key, "ES384")
    register(hospital, other, tmp_path, scope="system/*.rs")
    register(hospital, feed, tmp_path, scope="system/*.rs", kind="feed")
    issued = (await _post(hospital, signer.form())).json()
    for each in (signer, feed):
        body = (await _post(hospital, _authenticated(each, issued["access_token"]), "/oauth/introspect")).json()
        assert body["active"] is True
        assert (body["client_id"], body["scope"]) == (signer.client_id, issued["scope"])
        assert abs(body["exp"] - (hospital.clock_ms[0] // 1_000 + 300)) <= 1
    for each, token in ((other, issued["access_token"]), (feed, "gw_unknown"), (feed, "\u00e9" * 46)):
        response = await _post(hospital, _authenticated(each, token), "/oauth/introspect")
        assert (response.status_code, response.json()) == (200, {"active": False})
