"""A SMART app as its developer would write it: it knows the FHIR base and its registration, and discovers the rest.

Owns PKCE, state and the requests of the App Launch; the person's browser is ``tests/journeys/browser.py``.
https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
from joserfc import jws
from joserfc.jwk import ECKey, KeySet, RSAKey

from gateway.smart.clients import add_client, new_client_secret
from tests.journeys.browser import Browser, Page
from tests.journeys.hospital import Client, Hospital

EVERYTHING = ("openid fhirUser profile launch launch/patient launch/encounter online_access offline_access "
              "patient/*.cruds user/*.cruds")
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_KEYS: dict[str, RSAKey | ECKey] = {}


def key_for(algorithm: str) -> RSAKey | ECKey:
    """One key of each kind, made once."""
    if algorithm not in _KEYS:
        _KEYS[algorithm] = RSAKey.generate_key(2048, {"kid": "rsa"}) if algorithm == "RS384" \
            else ECKey.generate_key("P-384", {"kid": "ec"})
    return _KEYS[algorithm]


class App:
    """One registered app. ``auth``: none, client_secret_basic, RS384 or ES384."""

    def __init__(self, hospital: Hospital, *, auth: str = "none", scope: str = EVERYTHING, name: str = "Growth chart",
                 redirect: str = "https://app.example/after", **more: Any) -> None:
        self.hospital, self.auth, self.redirect = hospital, auth, redirect
        self.secret = new_client_secret() if auth == "client_secret_basic" else None
        jwks = None
        if auth in ("RS384", "ES384"):
            jwks = Path(tempfile.mkdtemp()) / "jwks.json"
            jwks.write_text(json.dumps(KeySet([key_for(auth)]).as_dict(private=False)))
        self.id = add_client(
            hospital.smart, name=name, kind="app", scope=scope, jwks=None if jwks is None else str(jwks),
            purposes=("TREAT",), auth="private_key_jwt" if jwks else auth,  # type: ignore[arg-type]  # one of them
            secret=self.secret, redirect_uris=(redirect, f"{redirect}/second"), **more)
        self.verifier = secrets.token_urlsafe(48)
        self.found: dict[str, Any] = self.get(f"{hospital.base}/.well-known/smart-configuration").json()

    # What an app sends

    def request(self, method: str, url: str, **more: Any) -> httpx.Response:
        return self.hospital.run(self.hospital.http.request(method, url, **more))

    def get(self, url: str, **more: Any) -> httpx.Response:
        return self.request("GET", url, **more)

    def asking(self, scope: str, **changes: str | None) -> dict[str, str]:
        """The parameters of an authorization request; None leaves one out."""
        self.state = secrets.token_urlsafe(16)
        asked: dict[str, str | None] = {
            "response_type": "code", "client_id": self.id, "redirect_uri": self.redirect, "scope": scope,
            "state": self.state, "aud": self.hospital.base, "code_challenge_method": "S256",
            "code_challenge": challenge(self.verifier), **changes}
        return {name: value for name, value in asked.items() if value is not None}

    def authorize(self, scope: str, *, by: str = "GET", **changes: str | None) -> httpx.Response:
        """What the authorization endpoint answers."""
        asked, url = self.asking(scope, **changes), self.found["authorization_endpoint"]
        if by == "GET":
            return self.get(f"{url}?{urlencode(asked)}")
        return self.request("POST", url, data=asked)

    def token(self, **form: str | None) -> httpx.Response:
        """The token endpoint, authenticated as registered."""
        headers, own = self.proof()
        sent = {name: value for name, value in {**own, **form}.items() if value is not None}
        return self.request("POST", self.found["token_endpoint"], data=sent, headers=headers)

    def proof(self, **claims: Any) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and form fields that authenticate this app."""
        if self.auth == "none":
            return {}, {"client_id": self.id}
        if self.secret is not None:
            pair = base64.b64encode(f"{self.id}:{self.secret}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}, {}
        return {}, {"client_assertion_type": ASSERTION, "client_assertion": self.assertion(**claims)}

    def assertion(self, *, key: Any = None, **claims: Any) -> str:
        """A JWT as Inferno's: no ``iat``, five minutes."""
        said = {"iss": self.id, "sub": self.id, "aud": self.found["token_endpoint"], "exp": int(time.time()) + 300,
                "jti": uuid.uuid4().hex, **claims}
        head = {"alg": self.auth, "typ": "JWT", "kid": key_for(self.auth).kid}
        return jws.serialize_compact(head, json.dumps(said).encode(), key or key_for(self.auth), algorithms=[self.auth])

    def exchange(self, code: str, **changes: str | None) -> httpx.Response:
        return self.token(**{"grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect,
                             "code_verifier": self.verifier, **changes})

    def refresh(self, refresh_token: str, **changes: str | None) -> httpx.Response:
        return self.token(**{"grant_type": "refresh_token", "refresh_token": refresh_token, **changes})

    def ask_about(self, token: str, **headers: str) -> dict[str, Any]:
        """Introspection of a token by the feed's own bearer token."""
        answer = self.request("POST", self.found["introspection_endpoint"], data={"token": token}, headers={
            "Authorization": f"Bearer {self.hospital.feed.token}", **headers})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    # With a person

    def shown(self, browser: Browser, scope: str, *, by: str = "GET", **changes: str | None) -> Page:
        """The page the browser of a person stands at, the app having sent it to authorize."""
        asked, url = self.asking(scope, **changes), self.found["authorization_endpoint"]
        if by == "GET":
            return browser.get(f"{url}?{urlencode(asked)}")
        # Another site's page sends the form: a Lax cookie does not come along, the browser follows the 303 with it.
        sent = self.request("POST", url, data=asked)
        assert sent.status_code == 303, sent.text
        return browser.get(sent.headers["Location"])

    def allowed(self, browser: Browser, scope: str, *, how_long: str | None = None, by: str = "GET",
                **changes: str | None) -> str:
        """The code, the person having allowed all of it."""
        page = self.shown(browser, scope, by=by, **changes)
        form = page.form("allow")
        if how_long is not None:
            form.choose("how-long", how_long)
        return self.code(browser.submit(form, "allow"))

    def told(self, page: Page | httpx.Response) -> dict[str, str]:
        """What comes back at the redirect URI."""
        response = page.response if isinstance(page, Page) else page
        assert response.status_code == 303, response.text
        location = response.headers["Location"]
        assert location.partition("?")[0] == self.redirect, location
        return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}

    def code(self, page: Page | httpx.Response) -> str:
        told = self.told(page)
        assert told["state"] == self.state
        assert told["iss"] == self.found["issuer"]  # RFC 9207: no mix-up
        return told["code"]

    def launched(self, browser: Browser, scope: str, **more: Any) -> dict[str, Any]:
        """The token response of a whole launch."""
        answer = self.exchange(self.allowed(browser, scope, **more))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def fhir(self, token: dict[str, Any]) -> Client:
        return Client(self.hospital, token["access_token"])


def challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def ehr_launch(hospital: Hospital, app: App, **context: Any) -> str:
    """What the EHR does before it starts the app: the launch handle."""
    answer = hospital.feed.post(f"{hospital.base.removesuffix('/fhir')}/oauth/launch", {"client_id": app.id, **context},
                                Content_Type="application/json")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["launch"])


def scopes(answer: dict[str, Any]) -> set[str]:
    return set(answer["scope"].split())
