"""Ethereum addresses: ``0x`` and 40 lower-case hex digits, one text for each account.

Owns that form; refuses whatever is no address. Checksum case (https://eips.ethereum.org/EIPS/eip-55) is read and not
kept.
"""

from __future__ import annotations

import re
from typing import NewType

from gateway.errors import Misconfigured

Address = NewType("Address", str)

_ADDRESS = re.compile(r"(?:0x|0X)?([0-9a-fA-F]{40})")


def address(value: str | bytes) -> Address:
    """20 bytes, or hex of any case, as an ``Address``; anything else is ``Misconfigured``."""
    text = value.hex() if isinstance(value, bytes | bytearray) else value
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise Misconfigured(f"not an Ethereum address: {text!r}")
    return Address("0x" + match.group(1).lower())
