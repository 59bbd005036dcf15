"""What a client may say of itself (RFC 7591 section 2; RFC 8252 section 7; RFC 9700 section 2.1)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, KeySet, RSAKey

from gateway.errors import OAuthError
from gateway.smart.client_metadata import check_metadata, kind_of, widens
from tests.unit.smart.hospital import Hospital

APP: dict[str, Any] = {
    "client_name": "Growth chart", "redirect_uris": ["https://app.example/cb"], "scope": "launch/patient patient/*.rs",
    "token_endpoint_auth_method": "none"}


def backend(key: Any) -> dict[str, Any]:
    return {"client_name": "Analytics", "grant_types": ["client_credentials"], "scope": "system/*.rs",
            "token_endpoint_auth_method": "private_key_jwt", "jwks": KeySet([key]).as_dict(private=False)}


def test_defaults_are_those_of_the_rfc(hospital: Hospital) -> None:
    asked = {name: value for name, value in APP.items() if name != "token_endpoint_auth_method"}
    kept = check_metadata(hospital.smart, asked)
    assert kept["token_endpoint_auth_method"] == "client_secret_basic"
    assert (kept["grant_types"], kept["response_types"]) == (["authorization_code"], ["code"])
    assert kind_of(kept) == "app"


def test_an_app_registers_what_smart_apps_register(hospital: Hospital) -> None:
    kept = check_metadata(hospital.smart, {
        **APP, "grant_types": ["authorization_code", "refresh_token"], "response_types": ["code"],
        "launch_uri": "https://app.example/launch", "logo_uri": "https://app.example/logo.png",
        "client_uri": "https://app.example", "policy_uri": "https://app.example/policy",
        "tos_uri": "https://app.example/tos", "contacts": ["dev@app.example"], "software_id": "4NRB1",
        "software_version": "2.2", "application_type": "native", "client_name#de": "Wachstum", "unheard_of": {"x": 1},
        "redirect_uris": ["https://app.example/cb", "http://127.0.0.1:4567/cb", "http://localhost/cb",
                          "http://[::1]:1/cb", "com.example.app:/cb", "https://app.example/cb"]})
    assert kept["redirect_uris"] == ["https://app.example/cb", "http://127.0.0.1:4567/cb", "http://localhost/cb",
                                     "http://[::1]:1/cb", "com.example.app:/cb"]
    assert "unheard_of" not in kept
    assert "client_name#de" not in kept


def test_a_backend_registers_its_keys(hospital: Hospital, ec_key: ECKey) -> None:
    kept = check_metadata(hospital.smart, backend(ec_key))
    assert (kind_of(kept), kept["response_types"]) == ("backend", [])
    by_url = {**backend(ec_key), "jwks_uri": "https://client.example/jwks.json"}
    del by_url["jwks"]
    assert check_metadata(hospital.smart, by_url)["jwks_uri"] == "https://client.example/jwks.json"


@pytest.mark.parametrize("uri", [
    "http://app.example/cb", "https://app.example/cb#x", "https://*.app.example/cb", "https://app.example/*", "",
    "//app.example/cb", "/cb", "javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "myapp:/cb",
    "https://user@app.example/cb", "https://user:pw@app.example/", "https://", "https:///cb", "http://localhost.evil/",
    "http://127.0.0.1.evil.example/", "http://127.0.0.1@evil.example/", "https://app.example/c b",
    "https://app.example/\n", "https://app.example/\u202e", "https://app.example\\@evil.example/", "x" * 3_000, 5, None,
    {}, "https://app.example:99999999/",
])
def test_a_redirect_uri_that_could_lead_elsewhere_is_refused(hospital: Hospital, uri: Any) -> None:
    with pytest.raises(OAuthError) as refused:
        check_metadata(hospital.smart, {**APP, "redirect_uris": ["https://app.example/cb", uri]})
    assert refused.value.error == "invalid_redirect_uri"


@pytest.mark.parametrize("uris", [None, [], "https://app.example/cb", {"0": "x"}, [f"https://a.example/{n}"
                                                                                  for n in range(21)]])
def test_an_app_needs_redirect_uris_and_not_too_many(hospital: Hospital, uris: Any) -> None:
    with pytest.raises(OAuthError) as refused:
        check_metadata(hospital.smart, {**APP, "redirect_uris": uris})
    assert refused.value.error == "invalid_redirect_uri"


@pytest.mark.parametrize(("changed", "named"), [
    ({"client_name": None}, "client_name"), ({"client_name": " "}, "client_name"), ({"client_name": 5}, "client_name"),
    ({"client_name": "x" * 201}, "client_name"), ({"client_name": "Bank\u202egnp.exe"}, "client_name"),
    ({"token_endpoint_auth_method": "client_secret_post"}, "token_endpoint_auth_method"),
    ({"token_endpoint_auth_method": ["none"]}, "token_endpoint_auth_method"),
    ({"grant_types": ["implicit"]}, "grant_types"), ({"grant_types": []}, "grant_types"),
    ({"grant_types": ["refresh_token"]}, "grant_types"), ({"grant_types": "authorization_code"}, "grant_types"),
    ({"grant_types": ["authorization_code", "client_credentials"]}, "grant_types"),
    ({"grant_types": [["authorization_code"]]}, "grant_types"),
    ({"response_types": ["token"]}, "response_types"), ({"response_types": []}, "response_types"),
    ({"response_types": ["code", "token"]}, "response_types"),
    ({"scope": None}, "scope"), ({"scope": ""}, "scope"), ({"scope": "openid"}, "scope"), ({"scope": ["x"]}, "scope"),
    ({"scope": "system/*.rs"}, "scope"), ({"scope": "patient/Nothing.rs"}, "scope"),
    ({"scope": "patient/*.sr"}, "scope"),
    ({"jwks": {"keys": []}}, "jwks"), ({"jwks_uri": "https://client.example/jwks"}, "jwks"),
    ({"token_endpoint_auth_method": "private_key_jwt"}, "jwks"),
    ({"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": []}}, "jwks"),
    ({"token_endpoint_auth_method": "private_key_jwt", "jwks": "keys"}, "jwks"),
    ({"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": 5}, "jwks_uri"),
    ({"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://10.0.0.1/jwks"}, "jwks_uri"),
    ({"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "http://client.example/jwks"}, "jwks_uri"),
    ({"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": []}, "jwks_uri": "https://a.example/"}, "jwks"),
    ({"logo_uri": "http://app.example/logo.png"}, "logo_uri"), ({"logo_uri": "javascript:alert(1)"}, "logo_uri"),
    ({"client_uri": "app.example"}, "client_uri"), ({"policy_uri": "https://app.example/\"><script>"}, "policy_uri"),
    ({"tos_uri": "data:,x"}, "tos_uri"), ({"tos_uri": "https://u@app.example/"}, "tos_uri"),
    ({"tos_uri": 1}, "tos_uri"), ({"contacts": ["x"] * 6}, "contacts"),
    ({"client_uri": "https://[::1"}, "client_uri"), ({"client_uri": "https://a.example:x/"}, "client_uri"),
    ({"contacts": "dev@app.example"}, "contacts"), ({"contacts": [5]}, "contacts"),
    ({"software_id": ""}, "software_id"), ({"software_version": {}}, "software_version"),
    ({"id_token_signed_response_alg": "none"}, "id_token_signed_response_alg"),
    ({"token_endpoint_auth_signing_alg": "HS256"}, "token_endpoint_auth_signing_alg"),
    ({"subject_type": "pairwise"}, "subject_type"), ({"application_type": []}, "application_type"),
    ({"launch_uri": 5}, "launch_uri"), ({"launch_uri": "com.example.app:/launch"}, "launch_uri"),
])
def test_what_cannot_be_honoured_is_refused_by_its_field(
        hospital: Hospital, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(OAuthError) as refused:
        check_metadata(hospital.smart, {**APP, **changed})
    assert refused.value.error == "invalid_client_metadata"
    assert refused.value.description.startswith(f"{named}:")


@pytest.mark.parametrize("changed", [
    {"redirect_uris": ["https://app.example/cb"]}, {"launch_uri": "https://app.example/launch"},
])
def test_a_backend_has_nowhere_to_be_sent(hospital: Hospital, ec_key: ECKey, changed: dict[str, Any]) -> None:
    with pytest.raises(OAuthError, match="authorization_code"):
        check_metadata(hospital.smart, {**backend(ec_key), **changed})


def test_a_backend_proves_itself_by_its_keys_alone(hospital: Hospital, ec_key: ECKey) -> None:
    for method in ("none", "client_secret_basic", None):
        with pytest.raises(OAuthError, match="token_endpoint_auth_method"):
            check_metadata(hospital.smart, {**backend(ec_key), "token_endpoint_auth_method": method})
    with pytest.raises(OAuthError, match="scope"):
        check_metadata(hospital.smart, {**backend(ec_key), "scope": "user/*.rs"})


def test_private_keys_are_refused(hospital: Hospital, rsa_key: RSAKey) -> None:
    with pytest.raises(OAuthError, match="private"):
        check_metadata(hospital.smart, {**backend(rsa_key), "jwks": KeySet([rsa_key]).as_dict(private=True)})


def test_a_software_statement_is_refused_by_its_name(hospital: Hospital) -> None:
    """RFC 7591 section 3.2.2: what cannot be verified is not believed, nor quietly left out."""
    with pytest.raises(OAuthError) as refused:
        check_metadata(hospital.smart, {**APP, "software_statement": "eyJ.eyJ.x"})
    assert refused.value.error == "unapproved_software_statement"


@pytest.mark.parametrize(("change", "needs"), [
    ({"redirect_uris": ["https://app.example/cb"]}, False), ({"redirect_uris": ["https://app.example/new"]}, True),
    ({"scope": "patient/Observation.rs"}, False), ({"scope": "patient/*.r launch/patient"}, False),
    ({"scope": "patient/*.cruds"}, True), ({"scope": "patient/*.rs user/*.rs"}, True),
    ({"scope": "patient/*.rs launch/patient offline_access"}, True),
    ({"grant_types": ["authorization_code"]}, False),
    ({"contacts": ["other@app.example"], "software_version": "3"}, False),
    ({"client_name": "St. Elsewhere Portal"}, True), ({"logo_uri": "https://app.example/new.png"}, True),
    ({"client_uri": None}, True), ({"token_endpoint_auth_method": "none"}, True),
    ({"launch_uri": "https://app.example/launch"}, True), ({"jwks_uri": "https://other.example/jwks"}, True),
])
def test_a_change_that_does_more_or_looks_otherwise_needs_an_approval(
        hospital: Hospital, change: dict[str, Any], needs: bool) -> None:
    held = {**APP, "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://app.example/jwks",
            "redirect_uris": ["https://app.example/cb", "https://app.example/cb2"], "client_uri": "https://app.example",
            "grant_types": ["authorization_code", "refresh_token"]}
    wanted = {**held, **change}
    if wanted["token_endpoint_auth_method"] == "none":
        del wanted["jwks_uri"]
    old, new = check_metadata(hospital.smart, held), check_metadata(hospital.smart, wanted)
    assert widens(old, new) is needs
    assert not widens(old, old)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=10), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from([
    *APP, "jwks", "jwks_uri", "grant_types", "response_types", "logo_uri", "contacts", "launch_uri",
    "software_statement", "client_uri"]), values, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_no_request_whatever_is_more_than_refused(hospital: Hospital, changed: dict[str, Any]) -> None:
    try:
        kept = check_metadata(hospital.smart, {**APP, **changed})
    except OAuthError as error:
        if error.error not in {"invalid_client_metadata", "invalid_redirect_uri", "unapproved_software_statement"}:
            raise
        return
    assert json.loads(json.dumps(kept)) == kept
    assert check_metadata(hospital.smart, kept) == kept
