"""dag-cbor for manifests and CAR headers: the subset they use, strictly, and fast (no CID objects).

Owns int, bytes, text, list, map with text keys, and links (tag 42) as binary Cids; refuses everything that is not the
one canonical form: indefinite lengths, long-form numbers, unsorted or double keys, floats, other tags, rests.
https://ipld.io/specs/codecs/dag-cbor/spec/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.errors import BlockCorrupt
from gateway.store.cid import parse_cid_bytes

_DEPTH_MAX: Final = 16
_LINK_HEAD: Final = b"\xd8\x2a\x58\x25\x00"
_LINK_SIZE: Final = 41


@dataclass(frozen=True, slots=True)
class Link:
    """A link to another block: its 36-byte binary Cid."""

    cid: bytes


Value = int | bytes | str | Link | list["Value"] | dict[str, "Value"]


def encode(value: Value) -> bytes:
    """The canonical bytes of ``value``. Raises ValueError for what the subset lacks."""
    out: list[bytes] = []
    _encode(value, out)
    return b"".join(out)


def decode(data: bytes) -> Value:
    """The value of canonical bytes. Raises BlockCorrupt."""
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise BlockCorrupt("dag-cbor: bytes after the value")
    return value


def _encode(value: Value, out: list[bytes]) -> None:
    if isinstance(value, Link):
        out.append(_LINK_HEAD + value.cid)
    elif isinstance(value, bytes):
        out.append(_head(2, len(value)))
        out.append(value)
    elif isinstance(value, str):
        text = value.encode()
        out.append(_head(3, len(text)))
        out.append(text)
    elif isinstance(value, int) and not isinstance(value, bool):
        out.append(_head(0, value) if value >= 0 else _head(1, -1 - value))
    elif isinstance(value, list):
        out.append(_head(4, len(value)))
        for item in value:
            _encode(item, out)
    elif isinstance(value, dict):
        out.append(_head(5, len(value)))
        for key in sorted(value, key=_key_order):
            _encode(key, out)
            _encode(value[key], out)
    else:
        raise ValueError(f"dag-cbor: {type(value).__name__} is not in the subset")


def _key_order(key: str) -> tuple[int, bytes]:
    data = key.encode()
    return len(data), data


def _head(major: int, number: int) -> bytes:
    first = major << 5
    if number < 24:
        return bytes((first | number,))
    for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * size):
            return bytes((first | extra,)) + number.to_bytes(size, "big")
    raise ValueError("dag-cbor: a number has at most 64 bits")


def _decode(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if depth > _DEPTH_MAX:
        raise BlockCorrupt("dag-cbor: nested too deep")
    if data.startswith(_LINK_HEAD, at):
        end = at + _LINK_SIZE
        binary = data[at + 5:end]
        parse_cid_bytes(binary)
        return Link(binary), end
    major, number, at = _read_head(data, at)
    if major == 0:
        return number, at
    if major == 1:
        return -1 - number, at
    if major in (2, 3):
        end = at + number
        if end > len(data):
            raise BlockCorrupt("dag-cbor: cut short")
        if major == 2:
            return data[at:end], end
        try:
            return data[at:end].decode(), end
        except UnicodeDecodeError:
            raise BlockCorrupt("dag-cbor: text is not UTF-8") from None
    if number > len(data) - at:  # every member takes a byte: no allocation on a lie
        raise BlockCorrupt("dag-cbor: cut short")
    if major == 4:
        items: list[Value] = []
        for _ in range(number):
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        return items, at
    if major == 5:
        return _decode_map(data, at, number, depth)
    raise BlockCorrupt("dag-cbor: a kind of value this gateway does not use")


def _decode_map(data: bytes, at: int, number: int, depth: int) -> tuple[Value, int]:
    found: dict[str, Value] = {}
    last = (-1, b"")
    for _ in range(number):
        key, at = _decode(data, at, depth + 1)
        if not isinstance(key, str) or _key_order(key) <= last:
            raise BlockCorrupt("dag-cbor: keys are not sorted text")
        last = _key_order(key)
        found[key], at = _decode(data, at, depth + 1)
    return found, at


def _read_head(data: bytes, at: int) -> tuple[int, int, int]:
    if at >= len(data):
        raise BlockCorrupt("dag-cbor: cut short")
    major, low = data[at] >> 5, data[at] & 31
    at += 1
    if low < 24:
        return major, low, at
    if low > 27:
        raise BlockCorrupt("dag-cbor: indefinite or reserved length")
    size = 1 << (low - 24)
    if at + size > len(data):
        raise BlockCorrupt("dag-cbor: cut short")
    number = int.from_bytes(data[at:at + size], "big")
    if number < (24 if size == 1 else 1 << (4 * size)):
        raise BlockCorrupt("dag-cbor: a number is not in its shortest form")
    return major, number, at + size
