"""The extension of a proposed Consent that says why the chain refused the grant signed for it.

Owns how it is written; refuses one that anybody but this gateway writes. Pure. ``FORMATS.md``, Consent.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.fhir.resource import Resource, walk

URL: Final = "urn:fhir-gateway:consent-refused"
"""Its ``valueCode`` is the contract's error."""
_OWN: Final = re.compile(r"Consent\.extension\[[0-9]+\]")


def telling(consent: Resource, error: str | None) -> Resource:
    """``consent`` with the extension that says why the chain refused what was signed last, or without."""
    told = [one for one in consent.get("extension") or () if one.get("url") != URL]
    if error is not None:
        told.append({"url": URL, "valueCode": error})
    rest = {name: value for name, value in consent.items() if name != "extension"}
    return {**rest, "extension": told} if told else rest


def claimed(old: Resource | None, new: Resource) -> str | None:
    """The place of the first such extension in ``new`` that the gateway did not write; None: there is none.

    One that stood in the version before may be sent back as it was, as who reads, changes and updates does.
    """
    written = [one for one in (old or {}).get("extension") or () if one.get("url") == URL]
    for place, value in walk(new, "Consent"):
        if value.get("url") == URL:
            if value not in written or _OWN.fullmatch(place) is None:
                return f"{place}.url"
            written.remove(value)
    return None
