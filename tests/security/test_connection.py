"""What a client can do to a connection: send slowly, send without end, send what means two things. RFC 9112."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.journeys.hospital import observation
from tests.running import Gateway

STRICT = (b"x-content-type-options: nosniff", b"cache-control: no-store",
          b"content-security-policy: default-src 'none'")


@contextlib.contextmanager
def connected(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as made:
        yield made


def rest(connection: socket.socket) -> bytes:
    """Everything until the other side hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            found += piece
    return found


def asked(gateway: Gateway, request: bytes) -> bytes:
    with connected(gateway) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(request)
        return rest(connection)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def trickled(connection: socket.socket, piece: bytes, *, for_s: float) -> float:
    """Send ``piece`` four times a second until the other side hangs up; the seconds it took."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while time.monotonic() - began < for_s:
            connection.sendall(piece)
            connection.settimeout(0.25)
            with contextlib.suppress(TimeoutError):
                if connection.recv(65_536, socket.MSG_PEEK):
                    break
    connection.settimeout(20)
    return time.monotonic() - began


def test_a_head_that_comes_byte_by_byte_is_cut_off(impatient: Gateway) -> None:
    with connected(impatient) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\nX: ")
        assert 1.5 < trickled(connection, b"a", for_s=10) < 6
        answer = rest(connection)
    assert status(answer) == 408
    assert all(header in answer for header in STRICT)


def test_a_connection_that_asks_nothing_is_closed(impatient: Gateway) -> None:
    with connected(impatient) as connection:
        began = time.monotonic()
        rest(connection)
        assert time.monotonic() - began < 6


@pytest.mark.parametrize("path", ["/fhir/Observation", "/oauth/token", "/nowhere"])
def test_a_body_of_a_byte_a_second_is_cut_off_at_every_door(impatient: Gateway, path: str) -> None:
    token = impatient.token()
    with connected(impatient) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: "
                           f"{'application/x-www-form-urlencoded' if 'oauth' in path else 'application/fhir+json'}"
                           "\r\nContent-Length: 5000\r\n\r\n{".encode())
        if path != "/nowhere":  # answered before its body is there
            assert trickled(connection, b" ", for_s=10) < 7
            assert status(rest(connection)) == 408
            return
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() - began < 12:
                connection.sendall(b" ")
                time.sleep(0.25)
        assert time.monotonic() - began < 10


def test_a_steady_body_is_taken_however_long_it_lasts(impatient: Gateway) -> None:
    token, body = impatient.token(), observation(None) + b" " * 2_000
    with connected(impatient) as connection:
        connection.sendall(f"POST /fhir/Observation HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
                           "Connection: close\r\nContent-Type: application/fhir+json\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n".encode())
        step = len(body) // 20 + 1
        for place in range(0, len(body), step):
            connection.sendall(body[place:place + step])
            time.sleep(0.2)
        assert status(rest(connection)) in (201, 403, 422)


def test_an_answer_nobody_takes_is_given_up(impatient: Gateway) -> None:
    with connected(impatient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        for _ in range(40):  # more than the two kernels keep
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /fhir/metadata HTTP/1.1\r\nHost: a\r\n\r\n")
        end = time.monotonic() + 20
        while time.monotonic() < end and b"the answer is not taken" not in impatient.log.read_bytes():
            time.sleep(0.2)
    assert b"the answer is not taken" in impatient.log.read_bytes()


@pytest.mark.parametrize(("request_", "expected"), [
    (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(120)) + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 400_000, 431),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400)],
    ids=["url", "headers", "head", "no-host", "two-hosts", "tls", "bytes"])
def test_a_head_that_is_too_long_or_no_head_is_refused(impatient: Gateway, request_: bytes, expected: int) -> None:
    answer = asked(impatient, request_)
    assert status(answer) == expected
    assert all(header in answer for header in STRICT)
    assert b"server:" not in answer.lower()


SMUGGLED = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("head", [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: 5, 6\r\n", b"Content-Length: +5\r\n",
    b"Content-Length: 0x5\r\n", b"Content-Length : 5\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"X: a\nContent-Length: 5\r\n",
    b"X: a\x00b\r\n", b"X\x00: a\r\n"])
def test_a_request_that_could_be_two_is_refused_and_the_connection_ends(impatient: Gateway, head: bytes) -> None:
    """RFC 9112 sections 6.1, 6.3 and 11.2: what a proxy in front might read otherwise."""
    answer = asked(impatient, b"POST /oauth/token HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n0\r\n\r\n" + SMUGGLED)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"live" not in answer


@pytest.mark.parametrize("chunk", [b"5;a=\nb\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n",
                                   b"5\rXhello\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\nhello", b"5\r\nhelloX0\r\n\r\n"])
def test_a_chunk_that_could_be_read_twice_ends_the_connection(impatient: Gateway, chunk: bytes) -> None:
    answer = asked(impatient, b"POST /oauth/token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Type: "
                   b"application/x-www-form-urlencoded\r\n\r\n" + chunk + SMUGGLED)
    assert b'"live"' not in answer
    assert answer.count(b"HTTP/1.1 ") <= 1


def test_an_upgrade_is_not_taken(impatient: Gateway) -> None:
    for offered in (b"websocket", b"h2c"):
        answer = asked(impatient, b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: " + offered
                       + b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        assert not answer.startswith(b"HTTP/1.1 101")


def test_more_connections_than_a_worker_holds_are_told_so_and_it_recovers(impatient: Gateway) -> None:
    with contextlib.ExitStack() as open_:
        for _ in range(32):
            open_.enter_context(connected(impatient))
        answer = asked(impatient, b"GET /fhir/metadata HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status(answer) == 503
        assert b"retry-after" in answer
        assert b"OperationOutcome" in answer
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if status(asked(impatient, b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) == 200:
            return
        time.sleep(0.2)
    raise AssertionError("it did not recover")


def test_a_client_cannot_say_where_it_comes_from(impatient: Gateway) -> None:
    """X-Forwarded-* counts from trusted proxies alone, and loopback is none by itself."""
    answer = asked(impatient, b"GET /fhir/.well-known/smart-configuration HTTP/1.1\r\nHost: evil.example\r\n"
                   b"Connection: close\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n\r\n")
    assert b"evil.example" not in answer
    assert f"http://127.0.0.1:{impatient.port}".encode() in answer
