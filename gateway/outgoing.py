"""Every request this gateway sends to an address somebody else chose: the one place that decides where it may go.

Owns the rules and the pinning: the address that was checked is the address connected to, so that a name cannot change
its meaning between the two (DNS rebinding). Refuses other schemes, user names in a URL, ports that are no web server's,
and every address that leads inside (private, loopback, link-local and with it the metadata services of clouds, and IPv4
addresses in any of their IPv6 disguises), unless the operator listed it. Redirects and proxies are never followed: each
would be another address. https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from gateway.config import origin_of
from gateway.errors import Unavailable, Unprocessable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""Outside of it are loopback, local, site-local, mapped, IPv4-compatible and translated ones, and nothing public."""
_TEREDO: Final = ipaddress.IPv6Network("2001::/32")
_RESOLVE_S: Final = 5.0
_URL_MAX: Final = 2_000
_FIRST_FREE_PORT: Final = 1_024
_HTTPS: Final = 443


class DestinationRefused(Unprocessable):
    """A URL that nothing is sent to from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Where one kind of request may go.

    ``what``: how a refusal calls the URL. ``listed``: origins the operator named (``config.origin_of``); a name among
    them may lead inside where ``inside``, else only if the address itself is listed too. ``public``: any public host by
    https. ``loopback``: this machine, by http too.
    """

    what: str
    listed: tuple[str, ...] = ()
    inside: bool = False
    public: bool = False
    loopback: bool = False


def resolve(host: str, port: int) -> list[str]:
    """The addresses of ``host``, by the system's resolver. Raises Unavailable."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise Unavailable("the host has no address") from error


def check(rule: Rule, url: str) -> httpx.URL:
    """The URL, where the rule lets it through; asks nobody. Raises DestinationRefused."""
    if len(url) > _URL_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise DestinationRefused(f"{rule.what} is too long, or has characters a URL does not have")
    try:
        found = httpx.URL(url)
        # Of what will be connected to: no second reading of the text could differ from it.
        origin = origin_of(f"{found.scheme}://{found.netloc.decode('ascii')}/")
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise DestinationRefused(f"{rule.what} cannot be read as an https URL") from error
    if found.userinfo or found.fragment:
        raise DestinationRefused(f"{rule.what} has no user and no fragment")
    if origin in rule.listed:
        return found
    literal = _literal(found.host)
    if rule.loopback and (found.host == "localhost" or (literal is not None and inner(literal).is_loopback)):
        return found
    if not rule.public:
        raise DestinationRefused(f"{rule.what} leads to a host that is none to ask from here")
    if found.scheme != "https":
        raise DestinationRefused(f"{rule.what} must be https")
    if found.port is not None and found.port < _FIRST_FREE_PORT and found.port != _HTTPS:
        # They belong to services of other protocols, which a request must not be made to speak to.
        raise DestinationRefused(f"{rule.what} must have port {_HTTPS}, or one from {_FIRST_FREE_PORT}")
    if literal is not None and not is_public(literal):
        raise DestinationRefused(f"{rule.what} leads to an internal address")
    return found


def pinned(rule: Rule, url: httpx.URL, resolving: Resolve = resolve) -> str:
    """The address to connect to for a checked URL: every one the name has must do.

    Raises DestinationRefused for an internal one, Unavailable without any.
    """
    return fit(rule, url, resolving(url.raw_host.decode("ascii"), port_of(url)))[0]


def fit(rule: Rule, url: httpx.URL, found: Sequence[str]) -> list[str]:
    """The addresses a name was found at, if all of them will do: which one is reached is not ours to say.

    Raises as ``pinned``.
    """
    if not found:
        raise Unavailable(f"{rule.what}: the host has no address")
    addresses = [_literal(text.partition("%")[0]) for text in found]
    if any(address is None or not _may(rule, url, address) for address in addresses):
        raise DestinationRefused(f"{rule.what} leads to an internal address")
    return list(dict.fromkeys(map(str, addresses)))


async def pinned_in_time(rule: Rule, url: httpx.URL, resolving: Resolve = resolve) -> str:
    """``pinned`` beside the event loop. Raises as it does, and Unavailable when names take too long."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(pinned, rule, url, resolving), _RESOLVE_S)
    except TimeoutError as error:
        raise Unavailable(f"{rule.what}: the host is not found in time") from error


def addressed(request: httpx.Request, address: str) -> httpx.Request:
    """``request``, going to ``address`` while it names its own host, in HTTP and in TLS."""
    url = request.url
    request.headers["Host"] = url.netloc.decode("ascii")
    request.extensions = {**request.extensions, "sni_hostname": url.raw_host.decode("ascii")}
    request.url = url.copy_with(host=address)
    return request


class Pinned(httpx.BaseTransport):
    """For ``httpx.Client(transport=..., trust_env=False)``: each request is checked and pinned."""

    def __init__(self, rule: Rule, *, resolving: Resolve = resolve, onward: httpx.BaseTransport | None = None) -> None:
        """``onward`` replaces the network in tests."""
        self._rule = rule
        self._resolving = resolving
        self._onward = onward or httpx.HTTPTransport(trust_env=False, retries=0)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises DestinationRefused, Unavailable, and what the network raises."""
        url = check(self._rule, str(request.url))
        return self._onward.handle_request(addressed(request, pinned(self._rule, url, self._resolving)))

    def close(self) -> None:
        """End its connections."""
        self._onward.close()


class AsyncPinned(httpx.AsyncBaseTransport):
    """The same for ``httpx.AsyncClient``."""

    def __init__(self, rule: Rule, *, resolving: Resolve = resolve,
                 onward: httpx.AsyncBaseTransport | None = None) -> None:
        """``onward`` replaces the network in tests."""
        self._rule = rule
        self._resolving = resolving
        self._onward = onward or httpx.AsyncHTTPTransport(trust_env=False, retries=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises DestinationRefused, Unavailable, and what the network raises."""
        url = check(self._rule, str(request.url))
        address = await pinned_in_time(self._rule, url, self._resolving)
        return await self._onward.handle_async_request(addressed(request, address))

    async def aclose(self) -> None:
        """End its connections."""
        await self._onward.aclose()


def inner(address: Address) -> Address:
    """The IPv4 address an IPv6 one stands for (mapped, 6to4, NAT64), else itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def is_public(address: Address) -> bool:
    """Whether it belongs to the open internet, and to nothing inside.

    https://www.iana.org/assignments/iana-ipv6-special-registry/, https://www.rfc-editor.org/rfc/rfc6890
    """
    real = inner(address)
    if isinstance(real, ipaddress.IPv6Address) and (real not in _GLOBAL_UNICAST or real in _TEREDO):
        return False
    return real.is_global and not real.is_multicast and not real.is_reserved


def _may(rule: Rule, url: httpx.URL, address: Address) -> bool:
    origin = origin_of(f"{url.scheme}://{url.netloc.decode('ascii')}/")
    if is_public(address):
        return url.scheme == "https" or origin in rule.listed
    real = inner(address)
    if real.is_loopback and rule.loopback:
        return True
    if origin not in rule.listed or real.is_link_local or real.is_multicast or real.is_unspecified:
        # Not even where it is listed by name: no web server of a hospital's, but metadata services are there.
        return _literal(url.host) == address and origin in rule.listed
    return rule.inside or address in {_literal(httpx.URL(one).host) for one in rule.listed}


def port_of(url: httpx.URL) -> int:
    """The port a checked URL means."""
    return url.port or (_HTTPS if url.scheme == "https" else 80)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
