"""Resource JSON in and out: exact decimals, references, the server's stamp.

Owns the only parser and writer of resource JSON (https://hl7.org/fhir/R4/json.html), the grammar of references
(https://hl7.org/fhir/R4/references.html) and ``meta.versionId``/``meta.lastUpdated``. Refuses what RFC 8259 leaves
open: duplicate keys, NaN, Infinity, lone surrogates, nesting beyond 200.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import jiter
import orjson

from gateway.errors import Issue, Malformed

Resource = dict[str, Any]  # the one raw dict that travels: JSON values, decimals as jiter.LosslessFloat

DECIMAL = jiter.LosslessFloat
"""The type a JSON number with a fraction, an exponent, ``-0`` or 19 digits and more is parsed to."""

_BOM = b"\xef\xbb\xbf"
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19
_NEGATIVE_ZERO = re.compile(rb"-0(?![0-9.eE])")

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d+)?(?:Z|([+-])(\d\d):(\d\d))")


def parse(body: bytes) -> Resource:
    """A resource from JSON bytes (UTF-8; a byte order mark is ignored). Raises Malformed."""
    resource = parse_json(body)
    if type(resource) is not dict:
        raise Malformed(Issue("error", "structure", "a resource must be a JSON object"))
    name = resource.get("resourceType")
    if type(name) is not str or not name:
        raise Malformed(Issue("error", "structure", "a resource must have a resourceType", "resourceType"))
    return resource


def parse_json(body: bytes) -> Any:
    """Any JSON value by the same rules as ``parse``: a patch document, a batch of lines. Raises Malformed."""
    if body.startswith(_BOM):
        body = body[len(_BOM):]
    try:
        value = jiter.from_json(body, float_mode="lossless-float", catch_duplicate_keys=True,
                                allow_inf_nan=False, cache_mode="keys")
    except ValueError as error:
        raise Malformed(Issue("error", "structure", f"not JSON as FHIR has it: {error}")) from error
    if _LONG in body.translate(_DIGITS) or (b"-0" in body and _NEGATIVE_ZERO.search(body)):
        # -0 and 19 digits: jiter has accepted the text, but would not give them back as written (nor orjson write
        # them); the slower parser does. A string that looks so only costs its time.
        return json.loads(body, parse_float=_lossless, parse_int=_whole)
    return value


def number(text: str) -> Any:
    """The value ``parse`` gives a JSON number, which ``text`` must be."""
    return _whole(text) if text.lstrip("-").isdecimal() else _lossless(text)


def _lossless(text: str) -> Any:
    return DECIMAL(text.encode())


def _whole(text: str) -> Any:
    return int(text) if len(text) < 19 and text != "-0" else DECIMAL(text.encode())


def serialise(resource: Mapping[str, Any]) -> bytes:
    """JSON bytes of a resource; every decimal as it was written. Key order is kept."""
    return orjson.dumps(resource, default=_fragment)


def pretty(body: bytes) -> bytes:
    """The same JSON with line breaks and indents; every number as it was written. Raises Malformed."""
    return orjson.dumps(parse_json(body), default=_fragment, option=orjson.OPT_INDENT_2)


def canonical(resource: Mapping[str, Any]) -> bytes:
    """Bytes that are equal for resources with equal content, whatever the order of their keys. Never stored."""
    return orjson.dumps(resource, default=_fragment, option=orjson.OPT_SORT_KEYS)


def _fragment(value: Any) -> Any:
    if type(value) is DECIMAL:
        return orjson.Fragment(bytes(value))
    raise TypeError(f"{type(value).__name__} is not a JSON value of a resource")


def copy(value: Any) -> Any:
    """A deep copy of a JSON value (``copy.deepcopy`` cannot copy decimals, which are immutable)."""
    if type(value) is dict:
        return {key: copy(item) for key, item in value.items()}
    if type(value) is list:
        return [copy(item) for item in value]
    return value


def is_id(text: str) -> bool:
    """Whether ``text`` is a FHIR id: 1 to 64 of ``A-Z a-z 0-9 - .``"""
    return _ID.fullmatch(text) is not None


def stamp(resource: Resource, logical_id: str, version_id: str | int, last_updated_ms: int) -> Resource:
    """A new resource with the server's id, meta.versionId and meta.lastUpdated; other meta is kept.

    ``id`` and ``meta`` follow ``resourceType``. The argument is not changed; unchanged parts are shared.
    """
    stamped: Resource = {"resourceType": resource["resourceType"], "id": logical_id}
    meta = resource.get("meta")
    kept = meta if type(meta) is dict else {}
    stamped["meta"] = {
        "versionId": str(version_id), "lastUpdated": format_instant(last_updated_ms),
        **{key: value for key, value in kept.items()
           if key not in ("versionId", "lastUpdated", "_versionId", "_lastUpdated")},
    }
    for key, value in resource.items():
        if key not in ("resourceType", "id", "_id", "meta"):
            stamped[key] = value
    return stamped


def format_instant(ms: int) -> str:
    """Epoch milliseconds as a FHIR instant in UTC with milliseconds."""
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")[:23] + "Z"


def parse_instant(text: str) -> int:
    """Epoch milliseconds of a FHIR instant; a leap second counts as the second after. Raises ValueError."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError("not a FHIR instant")
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    leap = second == 60
    moment = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
    ms = (moment - _EPOCH) // timedelta(milliseconds=1) + leap * 1000
    ms += int((match[7] or ".0")[1:4].ljust(3, "0"))
    if match[8]:
        offset = (int(match[9]) * 60 + int(match[10])) * 60_000
        ms += -offset if match[8] == "+" else offset
    return ms


Kind = Literal["relative", "absolute", "urn", "fragment", "query", "other"]

_TYPE_ID = r"([A-Z][A-Za-z]{1,63})/([A-Za-z0-9\-.]{1,64})(?:/_history/([A-Za-z0-9\-.]{1,64}))?(?:#(.*))?"
_RELATIVE = re.compile(_TYPE_ID)
_ABSOLUTE = re.compile(r"(https?://[^\s?#]+?)/" + _TYPE_ID, re.IGNORECASE)
_QUERY = re.compile(r"([A-Z][A-Za-z]{1,63})\?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ReferenceTarget:
    """What a ``Reference.reference`` says. ``type``/``id``/``version`` where the text shows them.

    ``relative`` Type/id; ``absolute`` base + Type/id; ``urn`` uuid or oid; ``fragment`` ``#id`` (``id`` is empty for
    the container itself); ``query`` Type?search (conditional reference, ``query`` holds what follows ``?``); ``other``.
    """

    kind: Kind
    text: str
    type: str | None = None
    id: str | None = None
    version: str | None = None
    base: str | None = None
    query: str | None = None


def reference_target(text: str) -> ReferenceTarget:
    """Read a reference; never raises: what has no known form is ``other``."""
    if text.startswith("#"):
        return ReferenceTarget("fragment", text, id=text[1:])
    match = _RELATIVE.fullmatch(text)
    if match is not None:
        return ReferenceTarget("relative", text, match[1], match[2], match[3])
    if text.startswith(("urn:uuid:", "urn:oid:")):
        return ReferenceTarget("urn", text)
    match = _ABSOLUTE.fullmatch(text)
    if match is not None:
        return ReferenceTarget("absolute", text, match[2], match[3], match[4], base=match[1])
    match = _QUERY.fullmatch(text)
    if match is not None:
        return ReferenceTarget("query", text, match[1], query=match[2])
    return ReferenceTarget("other", text)


def walk(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object under ``value`` with its location (``Bundle.entry[0].resource.subject``), itself first.

    ``path`` is the location of ``value``; choice elements appear under their JSON name.
    """
    if type(value) is dict:
        yield path, value
        for key, item in value.items():
            if type(item) is dict or type(item) is list:
                yield from walk(item, f"{path}.{key}")
    elif type(value) is list:
        for place, item in enumerate(value):
            if type(item) is dict:
                yield from walk(item, f"{path}[{place}]")


def references(resource: Resource) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Reference with a literal ``reference`` text: its location and the Reference object itself.

    The object is the resource's own: changing its ``reference`` rewrites the resource.
    """
    for path, value in walk(resource, resource["resourceType"]):
        # Bundle.link.relation, canonical etc. have no `reference`; contained resources are walked like the rest.
        if type(value.get("reference")) is str:
            yield path, value


__all__ = [
    "DECIMAL", "Kind", "ReferenceTarget", "Resource", "canonical", "copy", "format_instant", "is_id", "number",
    "parse", "parse_instant", "parse_json", "pretty", "reference_target", "references", "serialise", "stamp", "walk",
]
