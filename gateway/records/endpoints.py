"""Where notifications may go, and the sending: the address that was checked is the address connected to.

Owns the rule of ``subscription_hosts`` and one bounded request; refuses what an outsider could use to reach inside: any
host that is not listed, a name that leads to an internal address unless that address is itself listed, redirects and
proxies. https://hl7.org/fhir/R4/subscription.html#safety
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import httpx

from gateway.config import origin_of
from gateway.errors import Issue, Unavailable, Unprocessable
from gateway.smart.addresses import Address, is_public

Resolve = Callable[[str, int], list[str]]

_RESOLVE_S: Final = 5.0
_ENDPOINT_MAX: Final = 2_000


class EndpointRefused(Unprocessable):
    """The endpoint is none that notifications may go to."""

    def __init__(self, why: str) -> None:
        super().__init__([Issue("error", "forbidden", why, "Subscription.channel.endpoint")])


def resolve(host: str, port: int) -> list[str]:
    """The addresses of ``host``, by the system's resolver. Raises Unavailable."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise Unavailable("the endpoint's host has no address") from error


def check(hosts: Sequence[str], endpoint: str) -> httpx.URL:
    """The endpoint, where its origin is one of ``hosts``; asks nobody. Raises EndpointRefused."""
    if len(endpoint) > _ENDPOINT_MAX or not endpoint.isascii() or not endpoint.isprintable():
        raise EndpointRefused("the endpoint is too long, or has characters a URL does not have")
    try:
        url = httpx.URL(endpoint)
        # Of what will be connected to: no second reading of the text could differ from it.
        origin = origin_of(f"{url.scheme}://{url.netloc.decode('ascii')}/")
    except (httpx.InvalidURL, ValueError) as error:
        raise EndpointRefused("the endpoint cannot be read as an https URL") from error
    if url.userinfo or url.fragment:
        raise EndpointRefused("the endpoint has no user and no fragment; credentials go into channel.header")
    if origin not in hosts:
        raise EndpointRefused("the endpoint's host is none that subscriptions may go to here")
    return url


async def pinned(hosts: Sequence[str], url: httpx.URL, resolving: Resolve = resolve) -> str:
    """The address to connect to. Raises EndpointRefused for an internal one, Unavailable without any."""
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await asyncio.wait_for(asyncio.to_thread(resolving, url.raw_host.decode("ascii"), port), _RESOLVE_S)
    except TimeoutError as error:
        raise Unavailable("the endpoint's host is not found in time") from error
    if not found:
        raise Unavailable("the endpoint's host has no address")
    listed = {literal for one in hosts if (literal := _literal(httpx.URL(one).host)) is not None}
    addresses = []
    for text in found:
        address = _literal(text.partition("%")[0])
        if address is None or not (address in listed or is_public(address)):
            raise EndpointRefused("the endpoint leads to an internal address")
        addresses.append(str(address))
    return addresses[0]


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


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
                request = self._client.build_request(
                    method, url.copy_with(host=address), content=body, timeout=timeout_s,
                    headers={**headers, "Host": url.netloc.decode("ascii"), "User-Agent": "fhir-gateway"},
                    extensions={"sni_hostname": url.raw_host.decode("ascii")})
                response = await self._client.send(request, stream=True)
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
