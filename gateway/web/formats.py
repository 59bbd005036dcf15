"""Media types: what a client may ask an answer in.

https://hl7.org/fhir/R4/http.html#mime-type
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

from gateway.errors import NotAcceptable

_FORMATS = frozenset({"json", "application/json", "application/fhir+json", "text/json"})
_ACCEPTED = _FORMATS | {"*/*", "application/*"}


def acceptable(query: str, headers: Mapping[str, str]) -> None:
    """Refuse a request for an answer in what this server does not write. Raises NotAcceptable."""
    if "_format=" in query:
        wanted = parse_qs(query, keep_blank_values=True).get("_format", [""])[0]
        if wanted.partition(";")[0].strip() not in _FORMATS:
            raise NotAcceptable(f"_format={wanted[:64]!r}: this server answers in application/fhir+json",
                                code="not-supported", expression="http._format")
        return
    accept = headers.get("accept")
    if accept and not any(part.partition(";")[0].strip() in _ACCEPTED for part in accept.split(",")):
        raise NotAcceptable("this server answers in application/fhir+json", code="not-supported",
                            expression="http.Accept")
