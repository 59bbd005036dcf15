"""Where notifications may go, and the sending: the address that was checked is the address connected to.

Owns the rule of ``subscription_hosts`` and one bounded request; refuses, by ``gateway/outgoing.py``, any host that is
not listed, a name that leads to an internal address unless that address is itself listed, redirects and proxies.
https://hl7.org/fhir/R4/subscription.html#safety
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import httpx

from gateway import outgoing
from gateway.errors import Issue, Unavailable, Unprocessable
from gateway.outgoing import DestinationRefused, Resolve, Rule, addressed, resolve

__all__ = ["EndpointRefused", "Resolve", "Sender", "check", "pinned", "resolve"]


class EndpointRefused(Unprocessable):
    """The endpoint is none that notifications may go to."""

    def __init__(self, why: str) -> None:
        super().__init__([Issue("error", "forbidden", why, "Subscription.channel.endpoint")])


def check(hosts: Sequence[str], endpoint: str) -> httpx.URL:
    """The endpoint, where its origin is one of ``hosts``; asks nobody. Raises EndpointRefused."""
    try:
        return outgoing.check(_rule(hosts), endpoint)
    except DestinationRefused as error:
        raise EndpointRefused(str(error)) from error


async def pinned(hosts: Sequence[str], url: httpx.URL, resolving: Resolve = resolve) -> str:
    """The address to connect to. Raises EndpointRefused for an internal one, Unavailable without any."""
    try:
        return await outgoing.pinned_in_time(_rule(hosts), url, resolving)
    except DestinationRefused as error:
        raise EndpointRefused(str(error)) from error


def _rule(hosts: Sequence[str]) -> Rule:
    return Rule(what="the endpoint", listed=tuple(hosts))


class Sender:
    """Sends one request at a time to a pinned address; keeps no connection, so that none is shared between names."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """``transport`` replaces the network in tests."""
        self._client = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False,
                                         limits=httpx.Limits(max_keepalive_connections=0))

    async def send(self, method: str, url: httpx.URL, address: str, *, headers: Mapping[str, str], body: bytes,
                   timeout_s: float, any_answer: bool = False) -> None:
        """Return when the endpoint acknowledged (2xx; with ``any_answer`` anything). Raises Unavailable saying why."""
        try:
            async with asyncio.timeout(timeout_s):
                request = self._client.build_request(method, url, content=body, timeout=timeout_s,
                                                     headers={**headers, "User-Agent": "fhir-gateway"})
                response = await self._client.send(addressed(request, address), stream=True)
                await response.aclose()
        except TimeoutError as error:
            raise Unavailable(f"the endpoint did not answer within {timeout_s:.0f} s") from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, ValueError) as error:
            raise Unavailable(f"the endpoint cannot be reached: {type(error).__name__}") from error
        if not any_answer and not response.is_success:
            raise Unavailable(f"the endpoint answered {response.status_code}")

    async def close(self) -> None:
        """End the client."""
        await self._client.aclose()
