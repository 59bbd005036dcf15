"""``ConceptMap/$translate``: the codes another one is mapped to, or from.

Owns groups, targets and what a map says of codes it does not list; refuses to follow maps in circles, and to apply a
mapping whose dependencies are not given. https://hl7.org/fhir/R4/conceptmap-operation-translate.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.fhir.resource import Resource
from gateway.fhir.terminology_answers import Coded, parameters
from gateway.fhir.terminology_core import Source

_DEPTH_MAX = 5
_MATCHES_MAX = 500
_FALSE = frozenset({"unmatched", "disjoint"})
_REVERSED = {"wider": "narrower", "narrower": "wider", "subsumes": "specializes", "specializes": "subsumes"}
"""The equivalence of a mapping read from target to source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """``target``: the value set to arrive in; ``target_system``: the system; each None for any."""

    target: str | None = None
    target_system: str | None = None
    source: str | None = None
    reverse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    equivalence: str
    coding: Mapping[str, Any]
    products: Sequence[Mapping[str, Any]] = ()
    source: str | None = None


def translate(source: Source, maps: Sequence[Resource], codings: Sequence[Coded], wanted: Wanted) -> Resource:
    """The Parameters of the answer: ``result``, a ``message`` where there is none, and each ``match``."""
    found: list[_Match] = []
    for concept_map in maps:
        if not _fits(concept_map, wanted):
            continue
        for coded in codings:
            for match in _matches(source, concept_map, coded, wanted, 0):
                if match not in found and len(found) < _MATCHES_MAX:
                    found.append(match)
    result = any(match.equivalence not in _FALSE for match in found)
    answer = parameters(("result", "valueBoolean", result),
                        ("message", "valueString", None if result else "no mapping of the code is known"))
    answer["parameter"] += [{"name": "match", "part": _parts(match)} for match in found]
    return answer


def _fits(concept_map: Mapping[str, Any], wanted: Wanted) -> bool:
    """Whether the map goes between the value sets asked for; one that names none fits."""
    source, target = ("target", "source") if wanted.reverse else ("source", "target")
    for asked, side in ((wanted.source, source), (wanted.target, target)):
        named = concept_map.get(f"{side}Canonical") or concept_map.get(f"{side}Uri")
        if asked is not None and named is not None and _url(asked) != _url(named):
            return False
    return True


def _url(canonical: str) -> str:
    return canonical.partition("|")[0]


def _matches(source: Source, concept_map: Resource, coded: Coded, wanted: Wanted, depth: int) -> Iterator[_Match]:
    url = concept_map.get("url")
    for group in concept_map.get("group", ()):
        near, far = ("target", "source") if wanted.reverse else ("source", "target")
        if coded.system is not None and group.get(near) is not None and group[near] != coded.system:
            continue
        if wanted.target_system is not None and group.get(far) != wanted.target_system:
            continue
        if wanted.reverse:
            yield from _reversed(group, coded, url)
            continue
        listed = False
        for element in group.get("element", ()):
            if element.get("code") == coded.code:
                listed = True
                yield from _mapped(group, element, url)
        if not listed:
            yield from _unmapped(source, group, coded, wanted, depth, url)


def _mapped(group: Mapping[str, Any], element: Mapping[str, Any], url: str | None) -> Iterator[_Match]:
    for target in element.get("target", ()):
        if not target.get("dependsOn"):
            yield _Match(equivalence=target.get("equivalence", "relatedto"), source=url,
                         coding=_coding(group, "target", target), products=tuple(target.get("product", ())))


def _reversed(group: Mapping[str, Any], coded: Coded, url: str | None) -> Iterator[_Match]:
    for element in group.get("element", ()):
        for target in element.get("target", ()):
            if target.get("code") == coded.code and coded.code is not None and not target.get("dependsOn"):
                equivalence = target.get("equivalence", "relatedto")
                yield _Match(equivalence=_REVERSED.get(equivalence, equivalence), source=url,
                             coding=_coding(group, "source", element))


def _unmapped(source: Source, group: Mapping[str, Any], coded: Coded, wanted: Wanted, depth: int,
              url: str | None) -> Iterator[_Match]:
    unmapped = group.get("unmapped", {})
    mode = unmapped.get("mode")
    if mode == "provided" and coded.code is not None:
        yield _Match(equivalence="equal", source=url, coding=_coding(group, "target", {
            "code": coded.code, **({"display": coded.display} if coded.display else {})}))
    elif mode == "fixed":
        yield _Match(equivalence="inexact", source=url, coding=_coding(group, "target", unmapped))
    elif mode == "other-map" and depth < _DEPTH_MAX:
        other, _, version = str(unmapped.get("url", "")).partition("|")
        following = source.concept_map(other, version or None)
        if following is not None:
            yield from _matches(source, following, coded, wanted, depth + 1)


def _coding(group: Mapping[str, Any], side: str, row: Mapping[str, Any]) -> dict[str, Any]:
    coding = {"system": group.get(side), "version": group.get(f"{side}Version"), "code": row.get("code"),
              "display": row.get("display")}
    return {key: value for key, value in coding.items() if value is not None}


def _parts(match: _Match) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"name": "equivalence", "valueCode": match.equivalence}]
    if match.coding.get("code") is not None:
        parts.append({"name": "concept", "valueCoding": match.coding})
    parts += [{"name": "product", "part": [
        {"name": "element", "valueUri": product.get("property")},
        {"name": "concept", "valueCoding": {key: value for key, value in (
            ("system", product.get("system")), ("code", product.get("value")), ("display", product.get("display")))
            if value is not None}}]} for product in match.products]
    if match.source is not None:
        parts.append({"name": "source", "valueUri": match.source})
    return parts
