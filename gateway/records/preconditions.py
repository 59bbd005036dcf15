"""If-Match: which versions a write expects to find.

Owns how the header reads; refuses what is no ETag. https://hl7.org/fhir/R4/http.html#concurrency, RFC 9110 section 13
"""

from __future__ import annotations

import re

from gateway.errors import Malformed, PreconditionFailed
from gateway.store.journal import VersionRow

_ETAG = re.compile(r'(?:W/)?"([^"]*)"')


def expected_versions(header: str | None) -> tuple[int, ...] | None:
    """Version ids of an If-Match header (weak or strong ETags, a list); none for ``*`` (any); None without a header.

    Raises Malformed on anything else.
    """
    if header is None:
        return None
    if header.strip() == "*":
        return ()
    found = []
    for part in header.split(","):
        match = _ETAG.fullmatch(part.strip())
        if match is None:
            raise Malformed(f"If-Match {header!r} is not an ETag", code="value", expression="http.If-Match")
        # No version has an id of 16 digits; int() refuses a text of thousands.
        found.append(int(match[1]) if match[1].isdecimal() and len(match[1]) < 16 else 0)
    return tuple(found)


def require_match(row: VersionRow, expected: tuple[int, ...] | None) -> None:
    """Raises PreconditionFailed when the stored version is none of those expected."""
    if expected is not None and (row.vid not in expected if expected else row.deleted):
        raise PreconditionFailed(f"If-Match: {row.type}/{row.id} is at version {row.vid}")
