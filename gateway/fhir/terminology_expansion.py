"""``ValueSet/$expand``: the members of a value set as an expansion.

Owns its parameters' meaning, pages, languages and limits; refuses more codes at once than the limit says.
https://hl7.org/fhir/R4/valueset-operation-expand.html
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import TooCostly
from gateway.fhir.resource import Resource, format_instant
from gateway.fhir.terminology import Member, Terminology

MOST_CODES = 5_000
"""Codes in one answer; more are paged with ``count`` and ``offset``."""
_UNCLOSED = "http://hl7.org/fhir/StructureDefinition/valueset-unclosed"
_KEPT = ("url", "version", "name", "title", "status", "copyright")
_SPACE = uuid.UUID("5a4c3b1e-93c1-5f0e-8b7c-6f1f7c5d2a10")
"""Namespace of the identifiers of expansions: equal for the pages of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of an expansion. ``not_selectable``: abstract codes too, marked as such."""

    text: str | None = None
    offset: int = 0
    count: int | None = None
    designations: bool = False
    definition: bool = False
    active_only: bool = False
    not_selectable: bool = False
    language: str | None = None
    exclude_systems: tuple[str, ...] = ()
    asked: tuple[tuple[str, str, str | bool | int], ...] = ()
    """What goes into ``expansion.parameter``: name, value[x], value."""


def expand(terminology: Terminology, value_set: Resource, wanted: Wanted, *, now_ms: int) -> Resource:
    """The ValueSet with its expansion. Raises Unprocessable, NotCarried, TooCostly."""
    words = (wanted.text or "").casefold().split()
    found = [member for member in terminology.compose(value_set).values()
             if (wanted.not_selectable or not member.abstract) and not (wanted.active_only and member.inactive)
             and not _excluded(member, wanted.exclude_systems) and _matches(member, words)]
    size = wanted.count if wanted.count is not None else len(found) - wanted.offset
    if size > MOST_CODES and len(found) - wanted.offset > MOST_CODES:
        raise TooCostly(f"the expansion has {len(found)} codes, and an answer may hold {MOST_CODES}: page with count "
                        "and offset, or filter", code="too-costly", expression="ValueSet.expansion")
    page = found[wanted.offset:wanted.offset + size] if size > 0 else []
    expansion: dict[str, Any] = {
        **({"extension": [{"url": _UNCLOSED, "valueBoolean": True}]} if terminology.left_open else {}),
        "identifier": f"urn:uuid:{_identifier(found, wanted)}", "timestamp": format_instant(now_ms),
        "total": len(found)}
    if wanted.count is not None or wanted.offset:
        expansion["offset"] = wanted.offset
    expansion["parameter"] = _parameters(found, wanted)
    if page:
        expansion["contains"] = [_contains(member, wanted) for member in page]
    return {"resourceType": "ValueSet", **{key: value_set[key] for key in _KEPT if key in value_set},
            "status": value_set.get("status", "active"),
            **({"compose": value_set["compose"]} if wanted.definition and "compose" in value_set else {}),
            "expansion": expansion}


def display_in(member: Member, language: str | None) -> str | None:
    """The display in a language, where a designation has one: ``de`` finds ``de-AT`` too; else the one it has."""
    if language is not None:
        for exact in (True, False):
            for one in member.designations:
                tag = str(one.get("language", "")).casefold()
                if tag and (tag == language.casefold() if exact else _primary(tag) == _primary(language.casefold())):
                    return str(one.get("value", ""))
    return member.display


def _primary(tag: str) -> str:
    return tag.partition("-")[0]


def _excluded(member: Member, systems: Iterable[str]) -> bool:
    return any(one == member.system or one == f"{member.system}|{member.version}" for one in systems)


def _matches(member: Member, words: list[str]) -> bool:
    """Every word of the filter stands in the code, the display or one designation."""
    if not words:
        return True
    texts = [member.code, member.display or "", *(str(one.get("value", "")) for one in member.designations)]
    return any(all(word in text for word in words) for text in (one.casefold() for one in texts))


def _contains(member: Member, wanted: Wanted) -> dict[str, Any]:
    row: dict[str, Any] = {"system": member.system}
    if member.abstract:
        row["abstract"] = True
    if member.inactive:
        row["inactive"] = True
    if member.version is not None:
        row["version"] = member.version
    row["code"] = member.code
    display = display_in(member, wanted.language)
    if display:
        row["display"] = display
    if wanted.designations and member.designations:
        row["designation"] = [_designation(one) for one in member.designations]
    return row


def _designation(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("language", "use", "value") if key in row}


def _parameters(found: Iterable[Member], wanted: Wanted) -> list[dict[str, Any]]:
    versions = sorted({f"{one.system}|{one.version}" for one in found if one.version is not None})
    return [*({"name": name, kind: value} for name, kind, value in wanted.asked),
            {"name": "excludeNested", "valueBoolean": True},
            {"name": "excludeNotForUI", "valueBoolean": not wanted.not_selectable},
            *({"name": "version", "valueUri": one} for one in versions)]


def _identifier(found: Iterable[Member], wanted: Wanted) -> uuid.UUID:
    """The same for every page of one expansion, another where a code or what is asked differs."""
    asked = [one for one in wanted.asked if one[0] not in ("offset", "count")]
    return uuid.uuid5(_SPACE, orjson.dumps([asked, [(one.system, one.version, one.code, one.display) for one in found]]
                                           ).hex())
