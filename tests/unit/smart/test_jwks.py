"""Client keys, from a file or a URL (RFC 7517, 9111; SMART client-confidential-asymmetric; SSRF)."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from gateway.errors import OAuthError, Unavailable, Unprocessable
from gateway.outgoing import is_public
from gateway.smart import jwks_url
from gateway.smart.clients import add_client, find_client
from gateway.smart.jwks import parse_key_set, pick
from gateway.smart.jwks_url import JwksUrls, fresh_s
from tests.unit.smart.hospital import Hospital, Signer, register

URL = "https://client.example/jwks.json"


def _body(*keys: Any) -> bytes:
    return json.dumps({"keys": [key if isinstance(key, dict) else key.as_dict(private=False) for key in keys]}).encode()


# Key sets

def test_usable_keys_are_taken_and_others_passed_over(rsa_key: RSAKey, ec_key: ECKey) -> None:
    small = ECKey.generate_key("P-256", {"kid": "p256"})
    others = [{"kty": "AKP", "kid": "pq"}, {**rsa_key.as_dict(private=False), "use": "enc"},
              {**rsa_key.as_dict(private=False), "alg": "RS256"},
              {**rsa_key.as_dict(private=False), "key_ops": ["wrapKey"]},
              {**rsa_key.as_dict(private=False), "kid": ""}, {**rsa_key.as_dict(private=False), "alg": ["RS384"]}]
    keys = parse_key_set(_body(rsa_key, ec_key, small, *others))
    assert [(key.kid, key.kty) for key in keys] == [("rsa-1", "RSA"), ("ec-1", "EC")]


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [1]}', b'{"keys": []}', b"\xff", b'{"keys":' * 50_000,
    b"-----BEGIN PUBLIC KEY-----", b" " * 70_000,
    b'{"keys": [{"kty": "RSA", "kid": "1"}]}', b'{"keys": [{"kty": "RSA", "kid": "1", "n": "AQ", "e": "AQAB"}]}',
    b'{"keys": [{"kty": "RSA", "kid": "1", "n": 5, "e": []}]}',
    b'{"keys": [{"kty": "EC", "kid": "1", "crv": "P-384", "x": "AQ", "y": "AQ"}]}',
    b'{"keys": [{"kty": "EC", "kid": "1", "crv": "P-384"}]}', b'{"keys": [{"kty": ["RSA"], "kid": "1"}]}',
])
def test_what_is_no_usable_key_set_is_refused(body: bytes) -> None:
    with pytest.raises(Unprocessable):
        parse_key_set(body)


@pytest.mark.filterwarnings("ignore:Key size")
def test_private_symmetric_and_weak_keys_are_refused(rsa_key: RSAKey) -> None:
    weak = RSAKey.generate_key(1024, {"kid": "weak"})
    for key in (rsa_key.as_dict(private=True), OctKey.generate_key(256, {"kid": "o"}).as_dict(private=True), weak):
        with pytest.raises(Unprocessable):
            parse_key_set(_body(key))
    with pytest.raises(Unprocessable):
        parse_key_set(_body(*[rsa_key] * 33))


def test_one_key_by_kid_and_type_or_none(rsa_key: RSAKey, ec_key: ECKey) -> None:
    twin = ECKey.generate_key("P-384", {"kid": "rsa-1"})
    keys = parse_key_set(_body(rsa_key, ec_key, twin))
    assert pick(keys, "rsa-1", "RS384") is keys[0]
    assert pick(keys, "rsa-1", "ES384") is keys[2]
    assert pick(keys, "ec-1", "RS384") is None
    assert pick((*keys, keys[0]), "rsa-1", "RS384") is None  # more than one: none


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["keys", "kty", "kid", "n", "e", "x", "y", "crv", "alg", "use", "key_ops"]), inner, max_size=5),
    max_leaves=12).map(lambda value: json.dumps({"keys": [value]}).encode()))
def test_no_body_whatever_is_more_than_refused(body: bytes) -> None:
    with pytest.raises(Unprocessable):
        parse_key_set(body)


# URLs

Answer = Callable[[httpx.Request], httpx.Response]


def _ok(body: bytes, **headers: str) -> httpx.Response:
    """As from a socket: not read yet."""
    return httpx.Response(200, stream=httpx.ByteStream(body),
                          headers={name.replace("_", "-"): value for name, value in headers.items()})


def _urls(answer: Answer, *, addresses: list[str] | None = None, allow_loopback: bool = False,
          clock: list[float] | None = None) -> JwksUrls:
    return JwksUrls(allow_loopback=allow_loopback, transport=httpx.MockTransport(answer),
                    resolve=lambda host, port: addresses if addresses is not None else ["93.184.216.34"],
                    clock=lambda: clock[0] if clock else 0.0)


@pytest.mark.parametrize("url", [
    "http://client.example/jwks", "ftp://client.example/jwks", "file:///etc/passwd", "https://", "https:///x", "::",
    "https://user:pw@client.example/jwks", "https://client.example/jwks#x", "http://8.8.8.8/jwks",
    "https://127.0.0.1/jwks", "http://127.0.0.1/jwks", "http://localhost/jwks", "https://10.0.0.1/jwks",
    "https://169.254.169.254/latest/meta-data", "https://[::1]/jwks", "https://[::ffff:10.0.0.1]/jwks",
    "https://[64:ff9b::a00:1]/jwks", "https://[2002:a00:1::]/jwks", "https://[fd00::1]/jwks", "https://0.0.0.0/jwks",
    "https://100.64.0.1/jwks", "https://224.0.0.1/jwks", "https://192.168.1.1:8443/jwks", "https://[fec0::1]/jwks",
    "https://[::7f00:1]/jwks", "https://[64:ff9b:1::a00:1]/jwks", "https://[ff0e::1]/jwks", "https://240.0.0.1/jwks",
    "https://[2001:db8::1]/jwks", "https://[2001::1]/jwks", "https://[::ffff:127.0.0.1]/jwks",
    "https://client.example:22/jwks", "https://client.example:25/jwks", "https://client.example:1023/jwks",
    "https://93.184.216.34:6/jwks",
])
def test_a_url_that_reaches_inside_is_refused_before_anybody_is_asked(url: str) -> None:
    with pytest.raises(Unprocessable):
        _urls(lambda _: httpx.Response(500)).check(url)


@pytest.mark.parametrize("addresses", [
    ["10.1.2.3"], ["93.184.216.34", "127.0.0.1"], ["fe80::1%eth0"], ["::ffff:169.254.169.254"], ["192.168.0.9"], [],
    ["fec0::1"], ["::7f00:1"], ["64:ff9b::7f00:1"], ["2002:7f00:1::"],
])
def test_a_name_that_leads_inside_is_not_connected_to(addresses: list[str]) -> None:
    asked: list[httpx.Request] = []
    urls = _urls(lambda request: asked.append(request) or httpx.Response(200), addresses=addresses)
    with pytest.raises(Unavailable):
        urls.keys(URL, kid="rsa-1")
    assert not asked


def test_the_checked_address_is_the_one_connected_to(rsa_key: RSAKey) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "93.184.216.34"
        assert request.headers["host"] == "client.example"
        assert request.extensions["sni_hostname"] == "client.example"
        return _ok(_body(rsa_key))
    assert _urls(answer).keys(URL, kid="rsa-1")[0].kid == "rsa-1"


def test_another_address_is_tried_where_one_cannot_be_reached_and_none_where_one_answers_badly(rsa_key: RSAKey) -> None:
    """A host may have an IPv6 address this machine has no way to."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == "2606:2800::1":
            raise httpx.ConnectError("no route")
        return _ok(_body(rsa_key))
    assert _urls(answer, addresses=["2606:2800::1", "93.184.216.34"]).keys(URL, kid="rsa-1")
    assert asked == ["2606:2800::1", "93.184.216.34"]
    asked.clear()
    with pytest.raises(Unavailable):
        _urls(lambda request: asked.append(request.url.host) or httpx.Response(500),
              addresses=["93.184.216.34", "93.184.216.35"]).keys(URL, kid="rsa-1")
    assert asked == ["93.184.216.34"]


@given(st.ip_addresses(v=4).map(int) | st.sampled_from([0x7F000001, 0x0A000001, 0xA9FEA9FE, 0x08080808]))
def test_an_address_is_as_public_as_the_one_it_stands_for(number: int) -> None:
    """Mapped, 6to4 and NAT64 forms of an inner address are no way round; other forms of IPv4 lead nowhere public."""
    plain = ipaddress.IPv4Address(number)
    for prefix, shift in ((0xFFFF << 32, 0), (0x2002 << 112, 80), (0x64FF9B << 96, 0)):
        assert is_public(ipaddress.IPv6Address(prefix | number << shift)) is is_public(plain)
    assert not is_public(ipaddress.IPv6Address(number))  # IPv4-compatible, deprecated


# Over real sockets: one limit of time for everything

def _serve(answer: Callable[[socket.socket], None]) -> int:
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with listener, connection, contextlib.suppress(OSError):
            connection.recv(4096)
            answer(connection)
    threading.Thread(target=run, daemon=True).start()
    return int(listener.getsockname()[1])


def _drip(piece: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for _ in range(100):
            connection.sendall(piece)
            time.sleep(0.05)
    return answer


def _body_drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    _drip(b" ")(connection)


@pytest.mark.parametrize("answer", [_drip(b"H"), _body_drip, lambda _: time.sleep(5)],
                         ids=["headers", "body", "nothing"])
def test_a_host_that_dribbles_is_left_in_time(answer: Callable[[socket.socket], None]) -> None:
    urls = JwksUrls(allow_loopback=True, timeout_s=0.4)
    started_s = time.monotonic()
    with pytest.raises(Unavailable, match="too long"):
        urls.keys(f"http://127.0.0.1:{_serve(answer)}/jwks", kid="1")
    assert time.monotonic() - started_s < 2


def test_a_resolver_that_does_not_answer_is_left_in_time() -> None:
    urls = JwksUrls(allow_loopback=False, timeout_s=0.2, resolve=lambda host, port: time.sleep(1.5) or [])
    started_s = time.monotonic()
    with pytest.raises(Unavailable, match="too long"):
        urls.keys(URL, kid="1")
    assert time.monotonic() - started_s < 1


def test_keys_come_over_a_real_socket_and_a_redirect_is_not_followed(rsa_key: RSAKey) -> None:
    body = _body(rsa_key)

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    urls = JwksUrls(allow_loopback=True)
    assert urls.keys(f"http://localhost:{_serve(answer)}/jwks", kid="rsa-1")[0].kid == "rsa-1"
    inside = _serve(answer)

    def elsewhere(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/\r\n\r\n" % inside)
    with pytest.raises(Unavailable, match="302"):
        urls.keys(f"http://127.0.0.1:{_serve(elsewhere)}/jwks", kid="rsa-1")


def test_a_host_that_fails_is_asked_ever_more_rarely_and_at_once_again_once_it_answers(rsa_key: RSAKey) -> None:
    asked, clock, well = [0], [0.0], [False]

    def serve(_: httpx.Request) -> httpx.Response:
        asked[0] += 1
        return _ok(_body(rsa_key), Cache_Control="max-age=0") if well[0] else httpx.Response(500)
    urls = _urls(serve, clock=clock)
    for second in range(300):
        clock[0] = float(second)
        with pytest.raises(Unavailable):
            urls.keys(URL, kid="rsa-1")
    assert asked == [8]  # after 0, 5, 15, 35, 75, 135, 195, 255 seconds
    well[0], clock[0] = True, 400.0
    assert urls.keys(URL, kid="rsa-1")
    assert urls.keys(URL, kid="rsa-1")
    assert asked == [10]


def test_what_is_remembered_is_bounded(rsa_key: RSAKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_url, "_KNOWN_MAX", 3)
    asked = [0]

    def serve(_: httpx.Request) -> httpx.Response:
        asked[0] += 1
        return _ok(_body(rsa_key))
    urls = _urls(serve)
    for number in (1, 2, 3, 4, 4, 2, 1):
        urls.keys(f"https://client.example/{number}", kid="rsa-1")
    assert asked[0] == 5


def test_loopback_is_allowed_only_where_the_operator_says(rsa_key: RSAKey) -> None:
    urls = _urls(lambda _: _ok(_body(rsa_key)), addresses=["127.0.0.1"], allow_loopback=True)
    for url in ("http://127.0.0.1:9/jwks", "http://localhost:9/jwks", "https://client.example/jwks"):
        assert urls.keys(url, kid="rsa-1")
    for url in ("http://10.0.0.1/jwks", "http://client.example/jwks"):
        with pytest.raises(Unprocessable):
            urls.check(url)


@pytest.mark.parametrize("answer", [
    httpx.Response(404), httpx.Response(302, headers={"Location": "http://169.254.169.254/"}),
    _ok(b"{}"), _ok(b" " * 70_000),
    _ok(b"x", Content_Encoding="gzip"),
])
def test_an_unfit_answer_is_unavailable_and_not_asked_again_at_once(answer: httpx.Response) -> None:
    asked, clock = [0], [0.0]

    def serve(_: httpx.Request) -> httpx.Response:
        asked[0] += 1
        return answer
    urls = _urls(serve, clock=clock)
    for _ in range(3):
        with pytest.raises(Unavailable):
            urls.keys(URL, kid="rsa-1")
    assert asked == [1]


def test_a_host_that_does_not_answer_is_unavailable() -> None:
    def serve(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("slow")
    with pytest.raises(Unavailable):
        _urls(serve).keys(URL, kid="rsa-1")


def test_keys_are_cached_as_long_as_the_headers_say_and_rotation_is_found(rsa_key: RSAKey) -> None:
    rotated = RSAKey.generate_key(2048, {"kid": "rsa-2"})
    clock, asked, served = [0.0], [0], [_body(rsa_key)]

    def serve(_: httpx.Request) -> httpx.Response:
        asked[0] += 1
        return _ok(served[0], Cache_Control="public, max-age=100")
    urls = _urls(serve, clock=clock)
    for clock[0] in (0.0, 50.0, 99.0):
        urls.keys(URL, kid="rsa-1")
    assert asked == [1]
    served[0] = _body(rotated)
    assert urls.keys(URL, kid="rsa-2")[0].kid == "rsa-2"  # an unknown kid asks again
    assert asked == [2]
    for _ in range(5):  # but not for ever
        urls.keys(URL, kid="rsa-3")
    assert asked == [2]
    clock[0] = 199.5
    urls.keys(URL, kid="rsa-2")
    assert asked == [3]


def test_no_store_is_not_stored(rsa_key: RSAKey) -> None:
    asked = [0]

    def serve(_: httpx.Request) -> httpx.Response:
        asked[0] += 1
        return _ok(_body(rsa_key), Cache_Control="no-store")
    urls = _urls(serve)
    for _ in range(3):
        urls.keys(URL, kid="rsa-1")
    assert asked == [3]


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("headers", "seconds"), [
    ({}, 60.0), ({"Cache-Control": "max-age=10"}, 10.0), ({"Cache-Control": "MAX-AGE = 10"}, 10.0),
    ({"Cache-Control": "max-age=10", "Age": "4"}, 6.0), ({"Cache-Control": "max-age=10", "Age": "40"}, 0.0),
    ({"Cache-Control": "max-age=99999999"}, 3_600.0), ({"Cache-Control": "max-age=x"}, 0.0),
    ({"Cache-Control": "max-age=10, no-cache"}, 0.0), ({"Expires": "0"}, 0.0),
    ({"Date": format_datetime(NOW, usegmt=True), "Expires": format_datetime(NOW + timedelta(seconds=30), usegmt=True)},
     30.0),
])
def test_freshness_follows_the_headers(headers: dict[str, str], seconds: float) -> None:
    assert fresh_s(httpx.Headers(headers)) == seconds


# A client registered by URL, at the token endpoint

@pytest.mark.anyio
async def test_a_client_by_url_is_authenticated_and_jku_must_be_that_url(
        hospital: Hospital, rsa_key: RSAKey, tmp_path: Path) -> None:
    urls = _urls(lambda _: _ok(_body(rsa_key)))
    object.__setattr__(hospital.smart, "jwks", urls)
    signer = Signer(rsa_key, "RS384")
    register(hospital, signer, tmp_path, scope="system/*.rs", jwks=URL)
    async with hospital.http() as http:
        for jku, status in ((None, 200), (URL, 200), (URL + "?", 400)):
            form = signer.form(signer.assertion({"jku": jku}))
            assert (await http.post("/oauth/token", data=form)).status_code == status


# Registration

@pytest.mark.parametrize(("asked", "error"), [
    ({"scope": "user/*.rs"}, OAuthError), ({"scope": "patient/*.rs"}, OAuthError), ({"scope": "openid"}, OAuthError),
    ({"scope": "system/*.sr"}, OAuthError), ({"scope": "system/Nonsense.rs"}, OAuthError), ({"scope": ""}, OAuthError),
    ({"scope": "system/*.rs", "kind": "app"}, OAuthError), ({"jwks": None}, Unprocessable),
    ({"jwks": "/nonexistent/file"}, Unprocessable), ({"jwks": "https://10.0.0.1/jwks"}, Unprocessable),
    ({"name": ""}, Unprocessable), ({"name": "a\nb"}, Unprocessable), ({"purposes": ()}, Unprocessable),
    ({"purposes": ("BTG",)}, Unprocessable), ({"purposes": ("NONSENSE",)}, Unprocessable),
])
def test_a_registration_that_cannot_stand_is_refused(
        hospital: Hospital, asked: dict[str, Any], error: type[Exception]) -> None:
    fields = {"name": "Client", "kind": "backend", "scope": "system/*.rs", "jwks": URL, "purposes": ("TREAT",), **asked}
    with pytest.raises(error):
        add_client(hospital.smart, **fields)
    assert not hospital.audited


def test_a_registered_client_is_named_as_a_device_may_be(hospital: Hospital, rsa_key: RSAKey, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(KeySet([rsa_key]).as_dict(private=False)))
    client_id = add_client(hospital.smart, name="Feed", kind="feed", scope="system/*.cruds", jwks=str(path),
                           purposes=("TREAT",))
    assert re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", client_id)
    client = find_client(hospital.smart.database.reader, client_id)
    assert client is not None
    assert (client.kind, client.device) == ("feed", f"Device/{client_id}")
    assert "keys" not in repr(client)
