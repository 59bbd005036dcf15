"""Content codings, both ways: gzip and zstd.

Owns Accept-Encoding and Content-Encoding; refuses other codings, broken streams, and what inflates beyond the limit of
a body before it has done so. https://www.rfc-editor.org/rfc/rfc9110#field.content-encoding
"""

from __future__ import annotations

import gzip
import zlib

import zstandard

from gateway.errors import Malformed, TooLarge, UnsupportedMedia

LEAST_BYTES = 1500
"""What fits into one packet is sent as it is."""
_GZIP = 31
_WINDOW_BYTES = 8 * 1024 * 1024
# A zstd block of four bytes may say 128 KiB: fed so, at most 8 MiB come out beyond the limit.
_FEED_BYTES = 256
_PREFERRED = ("zstd", "gzip")


def inflated(body: bytes, coding: str, limit: int) -> bytes:
    """The bytes of a coded request body, at most ``limit``. Raises TooLarge, Malformed, UnsupportedMedia."""
    name = coding.strip().lower()
    if name in ("gzip", "x-gzip"):
        return _gunzipped(body, limit)
    if name == "zstd":
        return _unzstd(body, limit)
    if name in ("", "identity"):
        return body
    raise UnsupportedMedia("Content-Encoding is gzip or zstd, once", code="not-supported",
                           expression="http.Content-Encoding")


def _gunzipped(body: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise _broken("gzip") from error
    if len(found) > limit:
        raise _too_long(limit)
    if not stream.eof or stream.unused_data:
        raise _broken("gzip")
    return found


def _unzstd(body: bytes, limit: int) -> bytes:
    stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
    found, size = [], 0
    for place in range(0, len(body), _FEED_BYTES):
        if stream.eof:
            raise _broken("zstd")
        try:
            piece = stream.decompress(body[place:place + _FEED_BYTES])
        except zstandard.ZstdError as error:
            raise _broken("zstd") from error
        found.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_long(limit)
    if not stream.eof or stream.unused_data:
        raise _broken("zstd")
    return b"".join(found)


def _broken(name: str) -> Malformed:
    return Malformed(f"the body is not one whole {name} stream", code="structure", expression="http.Content-Encoding")


def _too_long(limit: int) -> TooLarge:
    return TooLarge(f"a body may hold {limit} bytes once inflated", code="too-long")


def coding(accept: str) -> str | None:
    """The coding to answer in by Accept-Encoding; None for none."""
    asked: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, _, parameter = part.partition(";")
        key, _, text = parameter.partition("=")
        try:
            asked[name.strip()] = float(text) if key.strip() == "q" else 1.0
        except ValueError:
            asked[name.strip()] = 0.0
    best = max(_PREFERRED, key=lambda name: asked.get(name, asked.get("*", 0.0)))
    return best if asked.get(best, asked.get("*", 0.0)) > 0 else None


def deflated(body: bytes, name: str) -> bytes:
    """The body in a coding of ``coding``."""
    if name == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(body)
    return gzip.compress(body, 5, mtime=0)
