"""JWKS fetched from the URL a client registered.

Owns the fetch, its limits and its cache; refuses every address an outsider could use to reach inside (SSRF):
only https to public addresses, or http and https to loopback where the operator allows that. The address checked
is the address connected to, so a name cannot change its meaning between the two. Redirects and proxies are not
followed. https://www.rfc-editor.org/rfc/rfc7517, https://www.rfc-editor.org/rfc/rfc9111
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from gateway.errors import Unavailable, Unprocessable
from gateway.smart.jwks import MAX_BYTES, VerificationKey, parse_key_set

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

_MAX_FRESH_S: Final = 3_600.0
_UNSTATED_FRESH_S: Final = 60.0
_RETRY_AFTER_S: Final = 5.0
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def resolve(host: str, port: int) -> list[str]:
    """The addresses of ``host``, by the system's resolver. Raises Unavailable."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise Unavailable("the host of the JWKS URL has no address") from error


@dataclass(frozen=True, slots=True)
class _Fetched:
    keys: tuple[VerificationKey, ...] | None
    at_s: float
    fresh_until_s: float
    error: str = ""


class JwksUrls:
    """Key sets by URL, each fetched by one thread at a time. Safe between threads."""

    def __init__(self, *, allow_loopback: bool, timeout_s: float = 3.0, resolve: Resolve = resolve,
                 transport: httpx.BaseTransport | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """``timeout_s`` bounds the whole fetch; ``transport`` replaces the network in tests."""
        self._allow_loopback = allow_loopback
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._transport = transport
        self._clock = clock
        self._known: dict[str, _Fetched] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def check(self, url: str) -> None:
        """Raises Unprocessable when ``url`` could never be fetched from here; asks nobody."""
        self._parse(url)

    def keys(self, url: str, *, kid: str) -> tuple[VerificationKey, ...]:
        """The keys at ``url``, from the cache while its headers allow; once more when ``kid`` is not among them.

        Raises Unprocessable for a URL or key set that is refused, Unavailable when it cannot be fetched.
        """
        with self._guard:
            lock = self._locks.setdefault(url, threading.Lock())
        with lock:
            known = self._known.get(url)
            now_s = self._clock()
            if known is None or not self._serves(known, kid, now_s):
                known = self._known[url] = self._fetch(url, now_s)
        if known.keys is None:
            raise Unavailable(known.error)
        return known.keys

    @staticmethod
    def _serves(known: _Fetched, kid: str, now_s: float) -> bool:
        if known.keys is None or all(key.kid != kid for key in known.keys):
            return now_s < known.at_s + _RETRY_AFTER_S
        return now_s < known.fresh_until_s

    def _fetch(self, url: str, now_s: float) -> _Fetched:
        try:
            body, headers = self._get(url)
            return _Fetched(parse_key_set(body), now_s, now_s + fresh_s(headers))
        except (Unavailable, Unprocessable) as error:
            return _Fetched(None, now_s, now_s, str(error))

    def _get(self, url: str) -> tuple[bytes, httpx.Headers]:
        parsed = self._parse(url)
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        addresses = self._resolve(parsed.host, port)
        if not addresses:
            raise Unavailable("the host of the JWKS URL has no address")
        for address in addresses:
            self._check_address(ipaddress.ip_address(address.partition("%")[0]), parsed.scheme)
        target = parsed.copy_with(host=addresses[0].partition("%")[0])
        deadline_s = time.monotonic() + self._timeout_s
        try:
            with httpx.Client(transport=self._transport, timeout=self._timeout_s, trust_env=False,
                              follow_redirects=False) as client:
                request = client.build_request(
                    "GET", target, extensions={"sni_hostname": parsed.host},
                    headers={"Host": parsed.netloc.decode("ascii"), "Accept": "application/json",
                             "Accept-Encoding": "identity"})
                response = client.send(request, stream=True)
                try:
                    return _body(response, deadline_s), response.headers
                finally:
                    response.close()
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise Unavailable(f"the JWKS URL does not answer: {type(error).__name__}") from error

    def _parse(self, url: str) -> httpx.URL:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise Unprocessable("the JWKS URL cannot be read") from error
        if not parsed.host or parsed.userinfo or parsed.fragment:
            raise Unprocessable("the JWKS URL needs a host, and no user or fragment")
        if parsed.scheme not in ("https", "http"):
            raise Unprocessable("the JWKS URL must be https")
        try:
            literal: Address | None = ipaddress.ip_address(parsed.host)
        except ValueError:
            literal = None
        if literal is not None:
            self._check_address(literal, parsed.scheme)
        elif parsed.scheme == "http" and not (self._allow_loopback and parsed.host == "localhost"):
            raise Unprocessable("the JWKS URL must be https")
        return parsed

    def _check_address(self, address: Address, scheme: str) -> None:
        address = inner(address)
        if address.is_loopback and self._allow_loopback:
            return
        if scheme != "https":
            raise Unprocessable("the JWKS URL must be https")
        if not address.is_global or address.is_multicast:
            raise Unprocessable("the JWKS URL leads to a private address; register the JWKS as a file")


def inner(address: Address) -> Address:
    """The IPv4 address an IPv6 one stands for (mapped, 6to4, NAT64), else itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _body(response: httpx.Response, deadline_s: float) -> bytes:
    if response.status_code != 200:
        raise Unavailable(f"the JWKS URL answers {response.status_code}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Unavailable("the JWKS URL answers in an encoding that was not asked for")
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_BYTES:
            raise Unprocessable(f"the JWKS is over {MAX_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise Unavailable("the JWKS URL takes too long")
    return bytes(body)


def fresh_s(headers: httpx.Headers) -> float:
    """Seconds a response may be used for: its Cache-Control, else Expires, else a minute; an hour at most."""
    directives = {name.strip().lower(): value.strip(' "') for name, _, value in
                  (part.partition("=") for part in headers.get("Cache-Control", "").split(","))}
    if "no-store" in directives or "no-cache" in directives:
        return 0.0
    try:
        if "max-age" in directives:
            return min(max(0.0, float(int(directives["max-age"]) - int(headers.get("Age", "0")))), _MAX_FRESH_S)
        if "Expires" in headers:
            now = parsedate_to_datetime(headers["Date"])
            return min(max(0.0, (parsedate_to_datetime(headers["Expires"]) - now).total_seconds()), _MAX_FRESH_S)
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0.0
    return _UNSTATED_FRESH_S
