"""ResourceFacts: what the decision needs to know of one version, without its body.

Owns which elements give the clinical period and the category tokens; refuses to guess either: a resource
without a date has no period, and a permit for a period does not reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFacts:
    """One version as the decision sees it.

    ``home_patients``: ``("Patient/1", ...)``; ``author_*``: who wrote this version; ``confidentiality``: U = 0 ..
    V = 5; ``labels``: bits of labels.toml, 1 = unknown; ``period``: clinical ``[low_ms, high_ms)`` or None;
    ``categories``: ``system|code`` tokens.
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
             author_user: str | None) -> ResourceFacts:
    """The facts of a resource whose home patients are the logical ids ``home_patients``."""
    confidentiality, labels = labels_of(resource)
    return ResourceFacts(
        type=resource["resourceType"], id=resource.get("id", ""),
        home_patients=tuple(f"Patient/{id_}" for id_ in home_patients), author_client=author_client,
        author_user=author_user, confidentiality=confidentiality, labels=labels, period=period_of(resource),
        categories=categories_of(resource))


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
