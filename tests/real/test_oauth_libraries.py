"""OAuth and OpenID Connect clients that are not ours, with a person: Authlib's, npm's openid-client and oauth4webapi.

Each discovers, is registered, goes through code with PKCE, checks the id_token and who answered, refreshes,
revokes and introspects by its own rules. https://www.rfc-editor.org/rfc/rfc9700, https://www.rfc-editor.org/rfc/rfc9207
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from authlib.common.security import generate_token
from authlib.integrations.httpx_client import OAuth2Client, OAuthError
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from tests.journeys.browser import Page
from tests.real.foreign import let_in, seen_by
from tests.real.visitor import Visitor
from tests.running import Gateway

pytestmark = pytest.mark.real
CLIENTS = Path(__file__).with_name("clients")
PASSWORD = "correct horse battery staple 7"
REDIRECT = "https://app.example/after"
SCOPE = "openid fhirUser launch/patient offline_access patient/Patient.rs"
KEYS = {"RS384": RSAKey.generate_key, "ES384": ECKey.generate_key}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("gateway"))
    running.start()
    with running.client() as feed:
        feed.put("/Patient/anna", json={"resourceType": "Patient", "id": "anna"}).raise_for_status()
    secret = running.folder / "password"
    secret.write_text(PASSWORD)
    running.run("user", "add", "--user", "Patient/anna", "--role", "patient", "--name", "Anna", "--login", "anna",
                "--password-file", str(secret))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def origin(gateway: Gateway) -> str:
    return gateway.base.removesuffix("/fhir")


@pytest.fixture(scope="module")
def anna(origin: str) -> Iterator[Visitor]:
    visitor = Visitor(origin, login="anna", password=PASSWORD)
    yield visitor
    visitor.close()


@pytest.fixture(scope="module")
def found(origin: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{origin}/.well-known/openid-configuration").json()
    return answer


@pytest.fixture(scope="module")
def seen(gateway: Gateway, origin: str, anna: Visitor, node: str) -> dict[str, Any]:
    """What both libraries of npm saw."""
    def answer(said: dict[str, Any]) -> dict[str, Any]:
        if "approve" in said:
            let_in(gateway, said["approve"])
            return {}
        press = said["press"]
        told = anna.sent_to(said["visit"], press=press, how_long="offline" if press == "allow" else None)
        return {"status": told.status} if isinstance(told, Page) else {"url": told}
    return seen_by([node, str(CLIENTS / "oauth_clients.mjs"), origin, gateway.base], answer)


# Authlib


def test_authlib_takes_a_code_checks_refreshes_and_revokes(gateway: Gateway, anna: Visitor,
                                                           found: dict[str, Any]) -> None:
    client_id, secret = gateway.run(
        "client", "add", "--kind", "app", "--auth", "client_secret_basic", "--name", "Calendar", "--scope", SCOPE,
        "--redirect-uri", REDIRECT).stdout.split()
    with OAuth2Client(client_id, secret, scope=SCOPE, redirect_uri=REDIRECT, code_challenge_method="S256",
                      token_endpoint_auth_method="client_secret_basic", timeout=30) as client:
        verifier, nonce = generate_token(64), generate_token(20)
        url, state = client.create_authorization_url(
            found["authorization_endpoint"], code_verifier=verifier, nonce=nonce, aud=gateway.base)
        token = client.fetch_token(found["token_endpoint"], state=state, code_verifier=verifier,
                                   authorization_response=anna.sent_to(url, how_long="offline"))
        assert token["patient"] == "anna"
        assert set(token["scope"].split()) == set(SCOPE.split())
        claims = checked(token["id_token"], found, client_id, nonce=nonce)
        assert client.get(found["userinfo_endpoint"]).json() == {
            "sub": claims["sub"], "fhirUser": f"{gateway.base}/Patient/anna"}
        assert client.get(f"{gateway.base}/Patient/anna").status_code == 200
        worth = client.introspect_token(found["introspection_endpoint"], token=token["access_token"]).json()
        assert (worth["active"], worth["patient"], worth["client_id"]) == (True, "anna", client_id)

        renewed = client.refresh_token(found["token_endpoint"], refresh_token=token["refresh_token"])
        assert renewed["refresh_token"] != token["refresh_token"]
        assert client.get(f"{gateway.base}/Patient/anna").status_code == 200
        revoked = client.revoke_token(found["revocation_endpoint"], token=renewed["refresh_token"],
                                      token_type_hint="refresh_token")
        assert revoked.status_code == 200
        assert client.get(f"{gateway.base}/Patient/anna").status_code == 401
        with pytest.raises(OAuthError, match="invalid_grant"):
            client.refresh_token(found["token_endpoint"], refresh_token=renewed["refresh_token"])


def checked(id_token: str, found: dict[str, Any], client_id: str, *, nonce: str) -> dict[str, Any]:
    """OpenID Connect Core 3.1.3.7: the claims of a token that holds."""
    keys = KeySet.import_key_set(httpx.get(found["jwks_uri"]).json())
    token = jwt.decode(id_token, keys, algorithms=["RS256"])
    jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": found["issuer"]}, aud={"essential": True, "value": client_id},
        nonce={"essential": True, "value": nonce}, exp={"essential": True}, iat={"essential": True},
        sub={"essential": True}).validate(token.claims)
    return token.claims


@pytest.mark.parametrize("algorithm", KEYS)
def test_authlib_authenticates_an_app_by_its_key(gateway: Gateway, anna: Visitor, found: dict[str, Any], tmp_path: Path,
                                                 algorithm: str) -> None:
    key: RSAKey | ECKey = KEYS[algorithm](  # type: ignore[operator]  # two signatures
        2048 if algorithm == "RS384" else "P-384", {"kid": "one", "use": "sig", "alg": algorithm}, private=True)
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    client_id = gateway.run("client", "add", "--kind", "app", "--name", f"Notes {algorithm}", "--scope", SCOPE,
                            "--redirect-uri", REDIRECT, "--jwks", str(jwks)).stdout.strip()

    def client() -> OAuth2Client:
        """Authlib keeps an assertion's claims, its jti too, as long as the client: each request has its own."""
        made = OAuth2Client(client_id, key, scope=SCOPE, redirect_uri=REDIRECT, code_challenge_method="S256",
                            token_endpoint_auth_method="private_key_jwt", timeout=30)
        made.register_client_auth_method(PrivateKeyJWT(
            found["token_endpoint"], alg=algorithm, headers={"kid": "one", "typ": "JWT"},
            claims={"exp": int(time.time()) + 240}))  # its own are of an hour, SMART's of five minutes
        return made

    verifier = generate_token(64)
    with client() as asking:
        url, state = asking.create_authorization_url(
            found["authorization_endpoint"], code_verifier=verifier, aud=gateway.base)
        token = asking.fetch_token(found["token_endpoint"], state=state, code_verifier=verifier,
                                   authorization_response=anna.sent_to(url, how_long="offline"))
    with client() as renewing:
        assert renewing.refresh_token(found["token_endpoint"], refresh_token=token["refresh_token"])["access_token"]
    with client() as replaying, pytest.raises(OAuthError, match="invalid_grant"):
        replaying.refresh_token(found["token_endpoint"], refresh_token=token["refresh_token"])


# openid-client


def test_openid_client_registers_and_waits_for_the_hospital(seen: dict[str, Any]) -> None:
    told = seen["openidClient"]
    assert told["waiting"] == {"status": 400}
    assert (told["unapproved"]["error"], told["unapproved"]["status"]) == ("invalid_client", 400)


def test_openid_client_trusts_the_code_the_id_token_and_the_user(
        gateway: Gateway, origin: str, seen: dict[str, Any]) -> None:
    told = seen["openidClient"]
    assert (told["issuer"], told["audience"]) == (origin, [told["clientId"]])
    assert told["fhirUser"] == [f"{gateway.base}/Patient/anna"] * 2
    assert (told["patient"], told["read"]) == ("anna", "anna")
    assert set(told["scope"].split()) == set(SCOPE.split())
    assert (told["worth"]["active"], told["worth"]["patient"]) == (True, "anna")


def test_openid_client_takes_no_code_of_another_server(seen: dict[str, Any]) -> None:
    """RFC 9207 section 2.4: another ``iss``, or none where one was promised."""
    for name in ("mixedUp", "unnamed", "otherState"):
        assert seen["openidClient"][name]["status"] is None, name  # its own refusal: nothing was sent


def test_openid_client_sees_reuse_end_everything(seen: dict[str, Any]) -> None:
    """RFC 9700 section 4.14.2, in the status and words of RFC 6749 section 5.2."""
    told = seen["openidClient"]
    assert (told["rotated"], told["revoked"]) == (True, False)
    for name in ("reused", "afterReuse"):
        assert (told[name]["kind"], told[name]["error"], told[name]["status"]) == (
            "ResponseBodyError", "invalid_grant", 400)


def test_openid_client_gets_a_systems_token(seen: dict[str, Any]) -> None:
    assert seen["openidClient"]["system"] == ["system/Patient.rs", False]


# oauth4webapi


def test_oauth4webapi_discovers_the_same_both_ways(seen: dict[str, Any]) -> None:
    assert seen["oauth4webapi"]["sameByRfc8414"]


def test_oauth4webapi_goes_through_the_code_as_a_public_app(gateway: Gateway, seen: dict[str, Any]) -> None:
    told = seen["oauth4webapi"]
    assert told["fhirUser"] == [f"{gateway.base}/Patient/anna"] * 2
    assert told["found"] == 1
    assert told["denied"]["error"] == "access_denied"
    assert (told["otherVerifier"]["error"], told["otherVerifier"]["status"]) == ("invalid_grant", 400)


def test_oauth4webapi_loses_what_a_replayed_code_gave(seen: dict[str, Any]) -> None:
    """RFC 6749 section 4.1.2."""
    told = seen["oauth4webapi"]
    assert (told["codeAgain"]["error"], told["codeAgain"]["status"]) == ("invalid_grant", 400)
    assert told["afterCodeAgain"]["status"] == 401


def test_oauth4webapi_revokes_all_with_the_refresh_token(seen: dict[str, Any]) -> None:
    """RFC 7009 section 2.1."""
    refresh, read = seen["oauth4webapi"]["afterRevocation"]
    assert (refresh["error"], refresh["status"], read["status"]) == ("invalid_grant", 400, 401)


def test_oauth4webapi_signs_assertions_as_smart_has_them(seen: dict[str, Any]) -> None:
    """``typ`` JWT and the token endpoint as ``aud``: https://hl7.org/fhir/smart-app-launch/STU2.2/
    client-confidential-asymmetric.html. Its own, with neither, and one for another audience are refused."""
    told = seen["oauth4webapi"]
    assert told["system"] == "system/Patient.rs"
    for name in ("itsOwn", "elsewhere"):
        assert (told[name]["kind"], told[name]["error"], told[name]["status"]) == (
            "ResponseBodyError", "invalid_client", 400)
    assert told["worth"]["active"] is True
