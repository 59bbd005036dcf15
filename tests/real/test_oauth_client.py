"""A client that is not ours: Authlib's, with ``private_key_jwt``, ES384 and RS384, against the running server.

SMART Backend Services: https://hl7.org/fhir/smart-app-launch/backend-services.html; RFC 7523, RFC 8414.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from authlib.integrations.httpx_client import OAuth2Client, OAuthError
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc.jwk import ECKey, RSAKey

from tests.running import Gateway

pytestmark = pytest.mark.real
FHIR = {"Content-Type": "application/fhir+json"}
SCOPE = "system/Patient.crus system/Observation.cruds"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("gateway"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def key() -> ECKey:
    return ECKey.generate_key("P-384", parameters={"kid": "feed-2026", "use": "sig", "alg": "ES384"}, private=True)


@pytest.fixture(scope="module")
def client_id(gateway: Gateway, key: ECKey, tmp_path_factory: pytest.TempPathFactory) -> str:
    jwks = tmp_path_factory.mktemp("keys") / "jwks.json"
    jwks.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    return gateway.run("client", "add", "--name", "Laboratory", "--jwks", str(jwks), "--scope", SCOPE).stdout.strip()


def configuration(gateway: Gateway) -> dict[str, object]:
    """What a client discovers, as it would."""
    found: dict[str, object] = httpx.get(f"{gateway.base}/.well-known/smart-configuration").json()
    return found


def session(gateway: Gateway, client_id: str, key: ECKey | RSAKey, *, scope: str = SCOPE,
            life_s: int = 240) -> OAuth2Client:
    """Authlib's assertions live an hour by default, SMART allows five minutes."""
    token_url = str(configuration(gateway)["token_endpoint"])
    method = PrivateKeyJWT(token_url, alg=str(key.alg), headers={"kid": "feed-2026", "typ": "JWT"},
                           claims={"exp": int(time.time()) + life_s})
    made = OAuth2Client(client_id, key, token_endpoint=token_url, scope=scope, timeout=30,
                        token_endpoint_auth_method="private_key_jwt",
                        base_url=gateway.base.removesuffix("/fhir"))
    made.register_client_auth_method(method)
    return made


def test_discovery_offers_what_the_client_uses(gateway: Gateway) -> None:
    found = configuration(gateway)
    assert "private_key_jwt" in found["token_endpoint_auth_methods_supported"]  # type: ignore[operator]  # a list
    assert "ES384" in found["token_endpoint_auth_signing_alg_values_supported"]  # type: ignore[operator]  # a list
    assert "client_credentials" in found["grant_types_supported"]  # type: ignore[operator]  # a list


def test_a_foreign_client_gets_a_token_creates_and_reads(gateway: Gateway, client_id: str, key: ECKey) -> None:
    with session(gateway, client_id, key) as client:
        token = client.fetch_token(grant_type="client_credentials")
        assert token["token_type"].lower() == "bearer"
        assert token["expires_in"] <= 300
        assert set(token["scope"].split()) == set(SCOPE.split())
        made = client.post("/fhir/Patient", headers=FHIR, json={
            "resourceType": "Patient", "name": [{"family": "Authlibson"}]})
        assert made.status_code == 201, made.text
        patient = made.json()["id"]
        assert client.get(f"/fhir/Patient/{patient}").json()["name"] == [{"family": "Authlibson"}]
        body = ('{"resourceType":"Observation","status":"final","code":{"text":"dose"},"subject":{"reference":'
                f'"Patient/{patient}"}},"valueQuantity":{{"value":0.0100}}}}')
        observed = client.post("/fhir/Observation", headers=FHIR, content=body)
        assert observed.status_code == 201, observed.text
        read = client.get(f"/fhir/Observation/{observed.json()['id']}")
        assert '"value":0.0100' in read.text
        found = client.get("/fhir/Observation", params={"subject": f"Patient/{patient}"}).json()
        assert [entry["resource"]["id"] for entry in found["entry"]] == [observed.json()["id"]]
        refused = client.post("/fhir/Encounter", headers=FHIR, json={
            "resourceType": "Encounter", "status": "planned", "class": {"code": "AMB"}})
        assert refused.status_code == 403, refused.text


def test_an_rsa_key_does_as_well(gateway: Gateway, tmp_path: Path) -> None:
    key = RSAKey.generate_key(2048, parameters={"kid": "feed-2026", "use": "sig", "alg": "RS384"}, private=True)
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    id_ = gateway.run("client", "add", "--name", "Imaging", "--jwks", str(jwks), "--scope", SCOPE).stdout.strip()
    with session(gateway, id_, key) as client:
        assert set(client.fetch_token(grant_type="client_credentials")["scope"].split()) == set(SCOPE.split())


def test_an_assertion_is_taken_once(gateway: Gateway, client_id: str, key: ECKey) -> None:
    """RFC 7523 section 3, point 7: no replay."""
    with session(gateway, client_id, key) as client:
        assert client.fetch_token(grant_type="client_credentials")["access_token"]
        with pytest.raises(OAuthError, match="invalid_client"):  # Authlib keeps the claims, and so the jti
            client.fetch_token(grant_type="client_credentials")


def test_an_assertion_that_lives_too_long_is_refused(gateway: Gateway, client_id: str, key: ECKey) -> None:
    """SMART: no later than five minutes in the future."""
    with session(gateway, client_id, key, life_s=3_600) as client, pytest.raises(OAuthError, match="invalid_client"):
        client.fetch_token(grant_type="client_credentials")


def test_another_key_is_refused(gateway: Gateway, client_id: str) -> None:
    other = ECKey.generate_key("P-384", parameters={"kid": "feed-2026", "alg": "ES384"}, private=True)
    with session(gateway, client_id, other) as client, pytest.raises(OAuthError, match="invalid_client"):
        client.fetch_token(grant_type="client_credentials")


def test_no_more_than_the_registered_scope_is_given(gateway: Gateway, client_id: str, key: ECKey) -> None:
    with session(gateway, client_id, key, scope="system/Encounter.r") as client, \
            pytest.raises(OAuthError, match="invalid_scope"):
        client.fetch_token(grant_type="client_credentials")


def test_a_closed_client_gets_nothing_more(gateway: Gateway, key: ECKey, tmp_path: Path) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    id_ = gateway.run("client", "add", "--name", "Gone", "--jwks", str(jwks), "--scope", SCOPE).stdout.strip()
    with session(gateway, id_, key) as client:
        client.fetch_token(grant_type="client_credentials")
        assert client.get("/fhir/Patient").status_code == 200
        gateway.run("client", "close", id_)
        assert client.get("/fhir/Patient").status_code == 401
    with session(gateway, id_, key) as client, pytest.raises(OAuthError, match="invalid_client"):
        client.fetch_token(grant_type="client_credentials")
