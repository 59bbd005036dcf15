"""A search as one patient's audit may tell it: without what it says of others.

Owns which parts of a query can name somebody and which of them this patient may see; refuses by default: what is not
known to be harmless, or known to be the patient's own since they were found by it alone, is not shown. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, urlencode

_CONTROL: Final = frozenset({
    "_count", "_sort", "_summary", "_elements", "_total", "_format", "_lastUpdated", "_type", "_profile", "_security",
    "_tag", "_since", "_include", "_revinclude", "_pretty", "max", "start", "end", "count"})
_TEXTS: Final = frozenset({"_filter", "_text", "_content", "_query"})
_SUSPECT: Final = re.compile(r",|%2C|nclude|%3A|:|_filter|_text|_content|_query|_has|\.[a-z]", re.IGNORECASE)
_COMMA: Final = re.compile(r"(?<!\\),")
HIDDEN: Final = "(not shown)"


def told_to(query: str, patient: str, harmless: Callable[[str], bool]) -> str:
    """``query`` (urlencoded) for the audit of ``patient``, a logical id.

    ``harmless``: whether values of a search parameter (dates, quantities, codes of things) can name nobody.
    """
    if "=" not in query or not _SUSPECT.search(query):
        return query  # one value to a parameter, and nothing brought along: this patient was found by it
    pairs = parse_qsl(query, keep_blank_values=True)
    alone = not any(name.partition(":")[0] in ("_include", "_revinclude") for name, _ in pairs)
    told = [(name, _value(name, value, patient, harmless, alone=alone)) for name, value in pairs]
    return query if told == pairs else urlencode(told)


def _value(name: str, value: str, patient: str, harmless: Callable[[str], bool], *, alone: bool) -> str:
    base, _, modifier = name.partition(":")
    chained = "." in name or base == "_has"
    if base in _TEXTS:
        return HIDDEN
    if modifier == "missing" or base in _CONTROL or (harmless(base) and not chained):
        return value
    parts = _COMMA.split(value)
    if len(parts) == 1 and alone and modifier not in ("not", "not-in") and not chained:
        return value
    own = [part for part in parts if not chained and modifier not in ("not", "not-in")
           and (part == patient or part == f"Patient/{patient}" or part.endswith(f"/Patient/{patient}"))]
    hidden = len(parts) - len(own)
    return ",".join([*own, *([f"({hidden} not shown)"] if hidden else [])])
