"""The headers every answer of a door carries: what a browser, a proxy or a cache must not do with it.

Owns them for all doors, each added here once; refuses nothing. What an answer says for itself holds, the rest is added.
https://developer.mozilla.org/docs/Web/HTTP/Headers, https://www.rfc-editor.org/rfc/rfc6797
"""

from __future__ import annotations

from typing import Final

from gateway.config import Settings

Header = tuple[bytes, bytes]

_DATA_POLICY: Final = b"default-src 'none'; frame-ancestors 'none'"
_YEAR_S: Final = 31_536_000

_ALWAYS: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
NO_STORE: Final[Header] = (b"cache-control", b"no-store")
POLICY: Final[Header] = (b"content-security-policy", _DATA_POLICY)
VARY: Final[Header] = (b"vary", b"Accept, Accept-Encoding, Authorization")


def of_every_door(settings: Settings) -> tuple[Header, ...]:
    """What no answer goes without; HSTS where clients come by https."""
    if settings.base_url.startswith("https://"):
        return (*_ALWAYS, (b"strict-transport-security", b"max-age=%d" % _YEAR_S))
    return _ALWAYS


def of_fhir(settings: Settings) -> tuple[Header, ...]:
    """The FHIR door's, which sets its own Cache-Control and, for a Binary's content, its own policy."""
    return (*of_every_door(settings), VARY)


def of_others(settings: Settings) -> tuple[Header, ...]:
    """The other doors': data and pages alike are not kept, not framed, and load nothing unless a page says so."""
    return (*of_every_door(settings), POLICY, (b"x-frame-options", b"DENY"), NO_STORE)


def completed(headers: list[Header], wanted: tuple[Header, ...]) -> list[Header]:
    """``headers`` and those of ``wanted`` they do not have; no word about the server's software."""
    there = {name.lower() for name, _ in headers}
    return [*((name, value) for name, value in headers if name.lower() != b"server"),
            *(pair for pair in wanted if pair[0] not in there)]
