"""JWKS fetched from the URL a client registered.

Owns the fetch, its limits and its cache; refuses every address an outsider could use to reach inside
(``gateway/outgoing.py``): only https to public addresses, or http and https to loopback where the operator allows that.
One limit of time holds over the look-up of the name, the connection, its headers and the body together.
https://www.rfc-editor.org/rfc/rfc7517, https://www.rfc-editor.org/rfc/rfc9111
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from gateway import outgoing
from gateway.errors import Unavailable, Unprocessable
from gateway.outgoing import Resolve, Rule
from gateway.smart.jwks import MAX_BYTES, VerificationKey, parse_key_set

_MAX_FRESH_S: Final = 3_600.0
_UNSTATED_FRESH_S: Final = 60.0
_RETRY_AFTER_S: Final = 5.0
_RETRY_MAX_S: Final = 60.0
_KNOWN_MAX: Final = 1_000
_LOOK_UPS: Final = 4
"""Names looked up at once: the system's resolver has a patience of its own, so it is asked in threads that are left."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    keys: tuple[VerificationKey, ...] | None
    at_s: float
    fresh_until_s: float
    error: str = ""
    failures: int = 0


class JwksUrls:
    """Key sets by URL, each fetched by one thread at a time. Safe between threads, but not for an event loop's own."""

    def __init__(self, *, allow_loopback: bool, timeout_s: float = 3.0, resolve: Resolve = outgoing.resolve,
                 transport: httpx.AsyncBaseTransport | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """``timeout_s`` bounds the whole fetch; ``transport`` replaces the network in tests."""
        self._rule = Rule(what="the JWKS URL", public=True, loopback=allow_loopback)
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._transport = transport
        self._clock = clock
        self._known: dict[str, _Fetched] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._look_ups = ThreadPoolExecutor(_LOOK_UPS, thread_name_prefix="jwks-name")

    def check(self, url: str) -> None:
        """Raises Unprocessable when ``url`` could never be fetched from here; asks nobody."""
        outgoing.check(self._rule, url)

    def keys(self, url: str, *, kid: str) -> tuple[VerificationKey, ...]:
        """The keys at ``url``, from the cache while its headers allow; once more when ``kid`` is not among them.

        Raises Unprocessable for a URL or key set that is refused, Unavailable when it cannot be fetched.
        """
        with self._guard:
            lock = self._locks.setdefault(url, threading.Lock())
        with lock:
            known = self._known.get(url)
            if known is None or not self._serves(known, kid, self._clock()):
                known = self._fetch(url, 0 if known is None else known.failures)
                self._remember(url, known)
        if known.keys is None:
            raise Unavailable(known.error)
        return known.keys

    @staticmethod
    def _serves(known: _Fetched, kid: str, now_s: float) -> bool:
        if known.keys is None:
            # A host that does not answer holds a thread up for the whole limit each time: it is asked ever more rarely.
            return now_s < known.at_s + min(_RETRY_AFTER_S * 2.0 ** (known.failures - 1), _RETRY_MAX_S)
        if all(key.kid != kid for key in known.keys):
            return now_s < known.at_s + _RETRY_AFTER_S
        return now_s < known.fresh_until_s

    def _remember(self, url: str, fetched: _Fetched) -> None:
        with self._guard:
            self._known.pop(url, None)
            self._known[url] = fetched
            while len(self._known) > _KNOWN_MAX:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self._locks.pop(oldest, None)

    def _fetch(self, url: str, failures: int) -> _Fetched:
        asked_s = self._clock()
        try:
            body, headers = asyncio.run(self._get(url))
            # Fresh from when it was asked for: it may have been on its way for a while.
            return _Fetched(parse_key_set(body), self._clock(), asked_s + fresh_s(headers))
        except (Unavailable, Unprocessable) as error:
            return _Fetched(None, self._clock(), asked_s, str(error), min(failures + 1, 10))

    async def _get(self, url: str) -> tuple[bytes, httpx.Headers]:
        parsed = outgoing.check(self._rule, url)
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = await self._addresses(parsed)
                return await self._first_answer(parsed, addresses)
        except TimeoutError as error:
            raise Unavailable("the JWKS URL takes too long") from error

    async def _addresses(self, parsed: httpx.URL) -> list[str]:
        """Where the host is. All of its addresses must be fit: which one is reached is not ours to say."""
        host = parsed.raw_host.decode("ascii")
        found = await asyncio.get_running_loop().run_in_executor(self._look_ups, self._resolve, host,
                                                                 outgoing.port_of(parsed))
        return outgoing.fit(self._rule, parsed, found)

    async def _first_answer(self, parsed: httpx.URL, addresses: list[str]) -> tuple[bytes, httpx.Headers]:
        failed: Exception | None = None
        async with httpx.AsyncClient(transport=self._transport, timeout=self._timeout_s, trust_env=False,
                                     follow_redirects=False) as client:
            for address in addresses:
                try:
                    request = client.build_request("GET", parsed, headers={
                        "Accept": "application/json", "Accept-Encoding": "identity"})
                    response = await client.send(outgoing.addressed(request, address), stream=True)
                    try:
                        return await _body(response), response.headers
                    finally:
                        await response.aclose()
                except httpx.ConnectError as error:
                    failed = error  # a host may have an address of a family this machine does not speak
                except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
                    failed = error
                    break
        raise Unavailable(f"the JWKS URL does not answer: {type(failed).__name__}") from failed


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != 200:
        raise Unavailable(f"the JWKS URL answers {response.status_code}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Unavailable("the JWKS URL answers in an encoding that was not asked for")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_BYTES:
            raise Unprocessable(f"the JWKS is over {MAX_BYTES} bytes")
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
