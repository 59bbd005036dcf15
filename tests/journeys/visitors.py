"""Visitors of the portal: a browser without scripts, an authenticator, and the hospital's identity provider.

Owns cookies, forms as a page shows them, and the keys of the simulated devices; refuses nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.jwk import RSAKey

from gateway.smart import one_time_codes
from tests.journeys.hospital import Hospital

PASSWORD: Final = "correct horse battery staple"
ORIGIN: Final = "http://localhost:8080"


class Browser:
    """One browser at one hospital, whose base URL is on ``localhost`` unless ``origin`` says otherwise."""

    def __init__(self, hospital: Hospital, *, agent: str = "Mozilla/5.0 (X11; Linux) Firefox/130",
                 address: str = "127.0.0.1", origin: str = ORIGIN) -> None:
        self.hospital = hospital
        self.origin = origin
        self.cookies: dict[str, str] = {}
        self.agent = agent
        self.page = ""
        self.transport = httpx.ASGITransport(app=hospital.app, client=(address, 1))

    async def send(self, method: str, path: str, *, content: bytes | None = None, **headers: str) -> httpx.Response:
        sent = {"User-Agent": self.agent, "Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
        if method == "POST":
            sent["Origin"] = self.origin
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(transport=self.transport, base_url=self.origin, timeout=60) as client:
            answer = await client.request(method, path, content=content, headers={
                name: value for name, value in sent.items() if value})
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return answer

    def get(self, path: str, **headers: str) -> httpx.Response:
        answer = self.hospital.run(self.send("GET", path, **headers))
        if answer.headers.get("content-type", "").startswith("text/html"):
            self.page = answer.text
        return answer

    def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """Send a form as it stands in the page shown last: with its token."""
        form = {"csrf": self.csrf, **fields}
        answer = self.hospital.run(self.send("POST", path, content=urlencode(form).encode(), **{
            "Content_Type": "application/x-www-form-urlencoded", **headers}))
        if answer.headers.get("content-type", "").startswith("text/html"):
            self.page = answer.text
        return answer

    def script(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """Send JSON as a script of the page shown last does."""
        return self.hospital.run(self.send("POST", path, content=json.dumps({"csrf": self.csrf, **body}).encode(), **{
            "Content_Type": "application/json", "Accept": "application/json", **headers}))

    @property
    def csrf(self) -> str:
        found = re.findall(r'(?:name="csrf" value|data-csrf)="([0-9a-f]{64})"', self.page)
        return str(found[-1]) if found else ""

    @property
    def text(self) -> str:
        """The page as it is read."""
        return html.unescape(re.sub(r"<[^>]+>", " ", self.page))

    def sign_up(self, name: str, *, wanted: str = "patient", password: str = PASSWORD, **fields: str) -> httpx.Response:
        self.get("/portal/sign-up")
        return self.post("/portal/sign-up", {
            "name": name, "shown": "Ada Example", "wanted": wanted, "birth_date": "1970-02-03", "identifier": "MRN 77",
            "password": password, "again": password, **fields})

    def sign_in(self, name: str, *, password: str = PASSWORD, code: str = "", next_path: str = "") -> httpx.Response:
        self.get("/portal/sign-in" + (f"?{urlencode({'next': next_path})}" if next_path else ""))
        return self.post("/portal/sign-in", {"name": name, "password": password, "code": code, "next": next_path})

    def set_up_codes(self) -> tuple[bytes, list[str]]:
        """Turn one-time codes on; the seed and the recovery codes."""
        self.get("/portal/account")
        self.post("/portal/account/codes/begin", {})
        found = re.search(r'<code id="seed">([A-Z2-7]+)</code>', self.page)
        assert found is not None, self.page
        seed = base64.b32decode(found[1])
        answer = self.post("/portal/account/codes/confirm", {"code": code_of(seed, steps=-1)})
        assert answer.status_code == 200, answer.text
        return seed, re.findall(r"<code>([a-z2-7-]{19})</code>", self.page)

    def add_passkey(self, device: Authenticator, name: str = "Phone") -> httpx.Response:
        self.get("/portal/account")
        options = self.script("/portal/account/passkeys/options", {})
        assert options.status_code == 200, options.text
        return self.script("/portal/account/passkeys", {"name": name, "credential": device.make(options.json())})

    def sign_in_by_passkey(self, device: Authenticator, **how: Any) -> httpx.Response:
        self.get("/portal/sign-in")
        options = self.script("/portal/passkey/options", {})
        assert options.status_code == 200, options.text
        return self.script("/portal/passkey/sign-in", {"credential": device.sign(options.json(), **how)})


def code_of(seed: bytes, *, steps: int = 0) -> str:
    """The code of now, or of so many steps later."""
    return one_time_codes.code_at(seed, int(time.time() // one_time_codes.STEP_S) + steps)


def url64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def from64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Authenticator:
    """A platform authenticator with one resident P-256 key (WebAuthn level 2, section 6)."""

    def __init__(self, *, origin: str = ORIGIN, rp_id: str = "localhost", verifies: bool = True) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.id = secrets.token_bytes(32)
        self.user = b""
        self.counter = 0
        self.origin = origin
        self.rp_id = rp_id
        self.flags = 0x05 if verifies else 0x01
        self.format = "none"
        self.cose: dict[int, Any] | None = None

    def make(self, options: dict[str, Any]) -> dict[str, Any]:
        """``navigator.credentials.create``."""
        self.user = from64(options["user"]["id"])
        client = self._client_data("webauthn.create", options["challenge"])
        attested = bytes(16) + struct.pack(">H", len(self.id)) + self.id + self._cose()
        data = self._data(self.flags | 0x40) + attested
        attestation = _cbor({"fmt": self.format, "attStmt": {}, "authData": data})
        return self._credential({"clientDataJSON": url64(client), "attestationObject": url64(attestation)})

    def sign(self, options: dict[str, Any], *, counter: int | None = None) -> dict[str, Any]:
        """``navigator.credentials.get``."""
        self.counter = self.counter + 1 if counter is None else counter
        client = self._client_data("webauthn.get", options["challenge"])
        data = self._data(self.flags)
        signature = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        return self._credential({"clientDataJSON": url64(client), "authenticatorData": url64(data),
                                 "signature": url64(signature), "userHandle": url64(self.user)})

    def _credential(self, response: dict[str, str]) -> dict[str, Any]:
        return {"id": url64(self.id), "rawId": url64(self.id), "type": "public-key", "response": response,
                "clientExtensionResults": {}}

    def _client_data(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": False}).encode()

    def _data(self, flags: int) -> bytes:
        return hashlib.sha256(self.rp_id.encode()).digest() + struct.pack(">BI", flags, self.counter)

    def _cose(self) -> bytes:
        if self.cose is not None:
            return _cbor(self.cose)
        point = self.key.public_key().public_numbers()
        return _cbor({1: 2, 3: -7, -1: 1, -2: point.x.to_bytes(32, "big"), -3: point.y.to_bytes(32, "big")})


def _cbor(value: Any) -> bytes:
    """The few kinds of CBOR an authenticator writes."""
    def head(major: int, number: int) -> bytes:
        if number < 24:
            return bytes([major << 5 | number])
        if number < 256:
            return bytes([major << 5 | 24, number])
        return bytes([major << 5 | 25]) + struct.pack(">H", number)
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    return head(5, len(value)) + b"".join(_cbor(name) + _cbor(one) for name, one in value.items())


class Provider:
    """An OpenID provider on loopback that signs in ``subject`` without asking. Spoil it by its attributes."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "op-1"})
        self.subject = "staff-1"
        self.claims: dict[str, Any] = {}
        self.algorithm = "RS256"
        self.codes: dict[str, dict[str, str]] = {}
        self.secrets_seen: list[str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith("/.well-known/openid-configuration"):
                    self.answer({
                        "issuer": provider.issuer, "authorization_endpoint": provider.issuer + "/authorize",
                        "token_endpoint": provider.issuer + "/token", "jwks_uri": provider.issuer + "/jwks"})
                else:
                    self.answer({"keys": [provider.key.as_dict(private=False)]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                provider.secrets_seen.append(self.headers.get("Authorization", ""))
                self.answer(*provider.token({name: values[0] for name, values in parse_qs(body).items()}))

            def answer(self, body: dict[str, Any], status: int = 200) -> None:
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"

    def authorize(self, url: str) -> str:
        """What the provider's page sends the browser back to."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        back = urlsplit(asked["redirect_uri"])
        return f"{back.path}?{urlencode({'code': code, 'state': asked['state'], 'iss': self.issuer})}"

    def token(self, form: dict[str, str]) -> tuple[dict[str, Any], int]:
        asked = self.codes.pop(form.get("code", ""), None)
        challenge = url64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if asked is None or asked.get("code_challenge") != challenge or asked.get("code_challenge_method") != "S256":
            return {"error": "invalid_grant"}, 400
        now_s = int(time.time())
        claims = {"iss": self.issuer, "aud": asked["client_id"], "sub": self.subject, "iat": now_s, "exp": now_s + 300,
                  "nonce": asked["nonce"], "email": "ada@example.org", **self.claims}
        return {"access_token": "at", "token_type": "Bearer", "id_token": self.signed(claims)}, 200

    def signed(self, claims: dict[str, Any]) -> str:
        if self.algorithm == "none":
            header = url64(json.dumps({"alg": "none"}).encode())
            return f"{header}.{url64(json.dumps(claims).encode())}."
        return jwt.encode({"alg": self.algorithm, "kid": "op-1"}, claims, self.key, algorithms=[self.algorithm])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
