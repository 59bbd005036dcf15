"""Where a Kubo RPC may be: its address as multiaddr and as URL.

Owns the parsing of both forms; refuses what is not loopback unless allowed, what is public without TLS even
then, and the unspecified address: whoever reaches the RPC owns the node.
https://docs.ipfs.tech/reference/kubo/rpc/ (never expose it), https://github.com/multiformats/multiaddr
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from gateway.errors import Misconfigured

_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d{1,5})(?:/(http|https))?/?")
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(\d{1,5}))?/?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAddress:
    """One RPC endpoint: ``/ip4/127.0.0.1/tcp/5001`` or ``http://127.0.0.1:5001`` when written."""

    host: str
    port: int
    scheme: Literal["http", "https"]

    @classmethod
    def parse(cls, text: str, *, allow_remote: bool) -> ApiAddress:
        """Read either form. Raises Misconfigured for another form or a place that is refused."""
        if match := _MULTIADDR.fullmatch(text):
            host, port, scheme = match[2], match[3], match[4] or "http"
        elif match := _URL.fullmatch(text):
            scheme, host, port = match[1], match[2].strip("[]"), match[3] or ("443" if match[1] == "https" else "80")
        else:
            raise Misconfigured("ipfs_api must look like /ip4/127.0.0.1/tcp/5001 or http://127.0.0.1:5001")
        if host == "localhost":  # by its number, so that no resolver can say otherwise
            host = "127.0.0.1"
        secure = scheme == "https"
        _refuse_exposed(host, secure=secure, allow_remote=allow_remote)
        if not 0 < int(port) < 65536:
            raise Misconfigured("ipfs_api has a port out of range")
        return cls(host=host, port=int(port), scheme="https" if secure else "http")

    @property
    def url(self) -> str:
        """``http://host:port``, without a trailing slash."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def multiaddr(self) -> str:
        """The form ipfshttpclient takes."""
        number = _number(self.host)
        kind = "dns" if number is None else f"ip{number.version}"
        return f"/{kind}/{self.host}/tcp/{self.port}/{self.scheme}"


def _number(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _refuse_exposed(host: str, *, secure: bool, allow_remote: bool) -> None:
    number = _number(host)
    if number is None and not _HOST.fullmatch(host):
        raise Misconfigured("ipfs_api names no host")
    if number is not None and number.is_loopback:
        return
    if not allow_remote:
        raise Misconfigured("ipfs_api is not loopback; set ipfs_allow_remote only for a private network: "
                            "whoever reaches Kubo's RPC owns the node")
    if number is not None and number.is_unspecified:
        raise Misconfigured("ipfs_api is the unspecified address; name the node's own")
    if number is not None and number.is_global and not secure:
        raise Misconfigured("ipfs_api is a public address without TLS; Kubo's RPC must never be public")
