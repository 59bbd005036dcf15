"""ResourceFacts: what the decision needs to know of one version, without its body.

Owns which elements give the clinical period, the category tokens and the names; refuses to guess any: a resource
without a date has no period, and a permit for a period does not reach it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.access.labels import labels_of
from gateway.access.period import MAX_MS, MIN_MS, Range, date_range, period_range
from gateway.access.roles import NORMAL

Matcher = Callable[[str, str, str], bool]
"""``(type, parameter, value)``: whether the resource at hand matches one granular criterion."""

_DATES = ("effective", "occurrence", "performed", "onset", "period", "started", "serviced", "billablePeriod",
          "servicedPeriod", "authoredOn", "dateTime", "date", "recorded", "recordedDate", "issued", "whenPrepared",
          "dateWritten", "dateAsserted", "created", "sent")
_SUFFIXES = ("", "DateTime", "Period", "Instant", "Date")
_CATEGORIES = ("category", "code", "type", "class", "serviceCategory", "serviceType", "appointmentType",
               "vaccineCode", "medicationCodeableConcept")


AUTHOR: Final = "author:"
"""Before a reference: who the resource says made it."""
ABOUT: Final = "about:"
"""Before a reference: the encounter, plan or episode of care the resource refers to."""
UNTOLD: Final = "?"
"""In place of a reference that names nobody here: contained, an identifier alone, another server's."""
_AUTHORS = ("author", "recorder", "requester", "performer", "asserter", "assessor", "resultsInterpreter", "sender")
_CARE = frozenset({"Encounter", "EpisodeOfCare", "CarePlan"})
_CARE_ELEMENTS = frozenset({"encounter", "context", "episodeOfCare", "carePlan"})
_LITERAL = re.compile(r"([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/.+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFacts:
    """One version as the decision sees it.

    ``home_patients``: ``("Patient/1", ...)``; ``author_*``: who wrote this version; ``confidentiality``: U = 0 ..
    V = 5; ``labels``: bits of labels.toml, 1 = unknown; ``period``: clinical ``[low_ms, high_ms)`` or None;
    ``categories``: ``system|code`` tokens, and the names of ``names_of``, which have no bar.
    """

    type: str
    id: str
    home_patients: tuple[str, ...]
    author_client: str
    author_user: str | None
    confidentiality: int = NORMAL
    labels: int = 0
    period: Range | None = None
    categories: frozenset[str] = frozenset()


def facts_of(resource: Mapping[str, Any], home_patients: Sequence[str], *, author_client: str,
             author_user: str | None, base: str = "") -> ResourceFacts:
    """The facts of a resource whose home patients are the logical ids ``home_patients``; ``base``: our FHIR base."""
    confidentiality, labels = labels_of(resource)
    return ResourceFacts(
        type=resource["resourceType"], id=resource.get("id", ""),
        home_patients=tuple(f"Patient/{id_}" for id_ in home_patients), author_client=author_client,
        author_user=author_user, confidentiality=confidentiality, labels=labels, period=period_of(resource),
        categories=categories_of(resource) | names_of(resource, base))


def period_of(resource: Mapping[str, Any]) -> Range | None:
    """The clinical ``[low_ms, high_ms)`` of a resource: what happened, else when it was written down; else None."""
    if isinstance(resource.get("start"), str):  # Appointment, Slot
        return _range({"start": resource["start"], "end": resource.get("end")})
    for name in _DATES:
        for suffix in _SUFFIXES:
            value = resource.get(name + suffix)
            if value is not None and (found := _range(value)) is not None:
                return found
    return None


def _range(value: Any) -> Range | None:
    try:
        if isinstance(value, str):
            return date_range(value)
        if isinstance(value, dict) and ("start" in value or "end" in value):
            return period_range(value)
    except (ValueError, TypeError, OverflowError):
        # Unreadable: not None, which a deny would have to read as "any time" anyway, but all of time.
        return MIN_MS, MAX_MS
    return None


def categories_of(resource: Mapping[str, Any]) -> frozenset[str]:
    """``system|code`` of every coding that says what kind of thing this is (``|code`` without a system)."""
    return frozenset(token for name in _CATEGORIES for token in _tokens(resource.get(name)))


def names_of(resource: Mapping[str, Any], base: str = "") -> frozenset[str]:
    """``author:Practitioner/1``, ``about:Encounter/1``: whom and what a resource names as its author and its care."""
    prefix = base.rstrip("/") + "/" if base else ""
    found: set[str] = set()
    for name in _AUTHORS:
        value = resource.get(name)
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, dict):
                actor = one.get("actor")
                found.add(AUTHOR + (_literal(actor if isinstance(actor, dict) else one, prefix) or UNTOLD))
    _care(resource, "", prefix, found)
    return frozenset(found)


def _care(value: Any, name: str, prefix: str, found: set[str]) -> None:
    if type(value) is dict:
        if "reference" in value or ("identifier" in value and name in _CARE_ELEMENTS):
            literal = _literal(value, prefix)
            if literal is None:
                if name in _CARE_ELEMENTS:
                    found.add(ABOUT + UNTOLD)
            elif literal.partition("/")[0] in _CARE:
                found.add(ABOUT + literal)
        for key, item in value.items():
            if type(item) is dict or type(item) is list:
                _care(item, key, prefix, found)
    elif type(value) is list:
        for item in value:
            _care(item, name, prefix, found)


def _literal(reference: Mapping[str, Any], prefix: str) -> str | None:
    """``Type/id`` of a literal reference to this server."""
    text = reference.get("reference")
    if not isinstance(text, str):
        return None
    if prefix and text.startswith(prefix):
        text = text[len(prefix):]
    match = _LITERAL.fullmatch(text)
    return f"{match[1]}/{match[2]}" if match else None


def _tokens(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _tokens(item)
    elif isinstance(value, dict):
        if isinstance(value.get("code"), str):
            system = value.get("system")
            yield f"{system if isinstance(system, str) else ''}|{value['code']}"
        else:
            yield from _tokens(value.get("coding"))
