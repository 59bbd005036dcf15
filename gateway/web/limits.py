"""How often one client, one person and one address may ask.

Owns the buckets of a worker and where a request came from; refuses, with the seconds to wait, what comes faster than
the settings allow. A bucket is one number, the moment at which it is full again (the generic cell rate algorithm, ITU-T
I.371), so that a request costs one look-up and one store for each. Each worker counts what reaches it, and keeps
nothing: what must hold over all of them together is counted in SQL (``smart/failures.py``).
https://www.rfc-editor.org/rfc/rfc6585#section-4
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from gateway.access.grant import Grant
from gateway.config import Settings
from gateway.errors import Throttled

_BURST_S: Final = 10.0
_NAMES_MAX: Final = 65_536
"""Names one worker keeps; beyond, those whose buckets are full again are forgotten, and all where none is."""
_ROUNDING_S: Final = 1e-6
_HOPS_MAX: Final = 16
_IPV6_BITS: Final = 64
"""What one subscriber has at least: counted as one."""
NOWHERE: Final = "unknown"


class Buckets:
    """One bucket for each name, all of the same size. Of one event loop."""

    __slots__ = ("_burst_s", "_cell_s", "_clock", "_full")

    def __init__(self, rate_s: int, *, burst_s: float = _BURST_S, clock: Callable[[], float] = time.monotonic) -> None:
        """``rate_s``: how many a second, 0 for no limit; ``burst_s``: how many seconds' worth may come at once."""
        self._cell_s = 1.0 / rate_s if rate_s else 0.0
        self._burst_s = burst_s
        self._clock = clock
        self._full: dict[Hashable, float] = {}

    def take(self, name: Hashable) -> float:
        """Seconds until ``name`` may go on; 0.0: at once, and it is counted."""
        cell_s = self._cell_s
        if not cell_s:
            return 0.0
        now = self._clock()
        full = self._full.get(name, 0.0)
        if full < now:
            full = now
            if len(self._full) >= _NAMES_MAX:
                self._forget(now)
        elif full - now > self._burst_s - cell_s + _ROUNDING_S:
            return full - now - self._burst_s + cell_s
        self._full[name] = full + cell_s
        return 0.0

    def charge(self, name: Hashable, count: int) -> None:
        """Count so many more of ``name`` that were not asked for one by one; at most one bucket is owed."""
        if self._cell_s:
            now = self._clock()
            full = max(self._full.get(name, 0.0), now) + count * self._cell_s
            self._full[name] = min(full, now + 2 * self._burst_s)

    def _forget(self, now: float) -> None:
        self._full = {name: full for name, full in self._full.items() if full > now}
        if len(self._full) >= _NAMES_MAX:
            self._full.clear()

    def __len__(self) -> int:
        return len(self._full)


class Limits:
    """The limits of one worker's doors."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients = Buckets(settings.client_requests_per_s, clock=clock)
        self._people = Buckets(settings.account_requests_per_s, clock=clock)
        self._addresses = Buckets(settings.address_requests_per_s, clock=clock)
        self._proxies = settings.trusted_proxies

    def caller(self, grant: Grant) -> None:
        """Count one request of a token's client and person, but of this hospital's own feeds. Raises Throttled."""
        if grant.client_kind == "feed":
            return
        wait_s = self._clients.take(grant.client_id)
        if not wait_s and grant.user is not None:
            wait_s = self._people.take(grant.user)
        if wait_s:
            raise Throttled("too many requests: ask more slowly", retry_s=wait_s)

    def entries(self, grant: Grant, count: int) -> None:
        """Count the entries of a Bundle: they are carried out, and what follows waits for them."""
        if grant.client_kind == "feed":
            return
        self._clients.charge(grant.client_id, count)
        if grant.user is not None:
            self._people.charge(grant.user, count)

    def stranger(self, scope: Mapping[str, Any]) -> None:  # Any: ASGI's own loose types
        """Count one request that shows no good token, by where it came from. Raises Throttled."""
        wait_s = self._addresses.take(self.address(scope))
        if wait_s:
            raise Throttled("too many requests from this address: ask more slowly", retry_s=wait_s)

    def source(self, scope: Mapping[str, Any]) -> str | None:  # Any: as above
        """Where a request came from, for the audit; without proxies to believe, just what the socket says."""
        if self._proxies:
            return self.address(scope)
        client = scope.get("client")
        return str(client[0]) if client else None

    def address(self, scope: Mapping[str, Any]) -> str:  # Any: as above
        """Where a request came from, as it is counted: an IPv4 address, or the /64 of an IPv6 one.

        X-Forwarded-For is read from its end, for as long as a trusted proxy said so: what stands before the first
        address that is none of them was written by whoever asked.
        """
        client = scope.get("client")
        here = _address(client[0] if client else "")
        if here is None:
            return NOWHERE
        if self._proxies and self._trusted(here):
            for text in reversed(_forwarded(scope)[-_HOPS_MAX:]):
                hop = _address(text)
                if hop is None:
                    break
                here = hop
                if not self._trusted(here):
                    break
        if isinstance(here, ipaddress.IPv6Address):
            return str(ipaddress.IPv6Network((int(here) >> _IPV6_BITS << _IPV6_BITS, _IPV6_BITS)))
        return str(here)

    def _trusted(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._proxies)


def _forwarded(scope: Mapping[str, Any]) -> list[str]:  # Any: as above
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return ",".join(lines).split(",")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found
