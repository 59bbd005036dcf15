"""Addresses of the open internet: where a URL somebody else chose may lead.

Owns the one rule; refuses everything that could lead inside, in whichever way IPv6 writes an IPv4 address.
https://www.iana.org/assignments/iana-ipv6-special-registry/, https://www.rfc-editor.org/rfc/rfc6890
"""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""Outside of it are loopback, local, site-local, mapped, IPv4-compatible and translated ones, and nothing public."""


def inner(address: Address) -> Address:
    """The IPv4 address an IPv6 one stands for (mapped, 6to4, NAT64), else itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def is_public(address: Address) -> bool:
    """Whether it belongs to the open internet, and to nothing inside."""
    real = inner(address)
    if isinstance(real, ipaddress.IPv6Address) and real not in _GLOBAL_UNICAST:
        return False
    return real.is_global and not real.is_multicast and not real.is_reserved
