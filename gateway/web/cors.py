"""Cross-origin requests: which pages a browser lets read the FHIR door.

Owns the headers of https://fetch.spec.whatwg.org/#http-cors-protocol; refuses, by saying nothing, origins that neither
the setting ``cors_origins`` names nor an app registered (SMART: its pages call the FHIR door themselves). Credentials
are never allowed: tokens travel in Authorization, which pages set themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.records.answer import Answer

_EXPOSED = ("Accept-Ranges, Allow, Content-Disposition, Content-Location, Content-Range, ETag, Expires, Last-Modified, "
            "Location, Preference-Applied, Retry-After, WWW-Authenticate, X-Progress")
_SENT = ("Accept, Authorization, Cache-Control, Content-Encoding, Content-Type, If-Match, If-Modified-Since, "
         "If-None-Exist, If-None-Match, If-Range, Prefer, Range, X-Requested-With, X-Security-Context")
_MAX_AGE_S = 600

Header = tuple[bytes, bytes]


class Cors:
    """The origins allowed: ``*`` stands for any; ``registered`` says whether an app that stands registered one."""

    def __init__(self, origins: Sequence[str], registered: Callable[[str], bool]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)
        self._registered = registered

    def headers(self, origin: str) -> list[Header]:
        """What lets a page of ``origin`` read an answer; nothing where it may not."""
        allowed = self._allowed(origin)
        if allowed is None:
            return []
        return [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", _EXPOSED.encode())]

    def preflight(self, origin: str | None, methods: Sequence[str]) -> Answer:
        """The answer to OPTIONS, which needs no token: ``methods`` are what the path offers to anyone who may."""
        allow = ", ".join((*methods, "OPTIONS"))
        headers = {"Allow": allow}
        if origin is not None and self._allowed(origin) is not None:
            headers |= {"Access-Control-Allow-Methods": allow, "Access-Control-Allow-Headers": _SENT,
                        "Access-Control-Max-Age": str(_MAX_AGE_S)}
        return Answer(204, headers=headers)

    def _allowed(self, origin: str) -> bytes | None:
        if self._any:
            return b"*"
        if not origin or (origin not in self._origins and not self._registered(origin)):
            return None
        return origin.encode("latin-1")
