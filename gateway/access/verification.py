"""Which marks a written version carries: unverified, waiting to be verified, or none.

Owns the table of ``mappings/access/verification.toml`` and the one rule over it; refuses every mark a client sends:
what a version is marked with follows from who wrote it and what stood there before.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from gateway.access.grant import Grant
from gateway.access.marks import NOTICE, WITHHELD, marks_of, tag, tagged, tags_of
from gateway.errors import Misconfigured
from gateway.fhir.definitions import mappings_folder
from gateway.fhir.resource import canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """See the head of ``verification.toml``."""

    by: frozenset[str]
    types: frozenset[str]
    keepers: frozenset[str]


@cache
def rules() -> Rules:
    """The shipped table. Raises Misconfigured."""
    path = mappings_folder() / "access" / "verification.toml"
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        return Rules(**{name: frozenset(table[name]) for name in ("by", "types", "keepers")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"the access table {path} cannot be used: {error!r}") from error


def settled(new: dict[str, Any], old: Mapping[str, Any] | None, grant: Grant,
            verified_types: tuple[str, ...]) -> dict[str, Any]:
    """``new`` with the marks it is stored with; itself where they are those it has."""
    wanted = _wanted(new, old, grant, verified_types)
    return new if tags_of(new) == wanted else tagged(new, wanted)


def _wanted(new: Mapping[str, Any], old: Mapping[str, Any] | None, grant: Grant,
            verified_types: tuple[str, ...]) -> list[Mapping[str, Any]]:
    table, type_ = rules(), new["resourceType"]
    had = tags_of(old) if old is not None else []
    before = marks_of(old) if old is not None else 0
    if before & NOTICE or grant.role in table.keepers:
        return had
    if old is not None and _content(old) == _content(new):
        return had  # a label or a tag more says nothing about whether it is true
    writer = grant.role if grant.user is not None else grant.client_kind
    if writer not in table.by or (type_ not in table.types and type_ not in verified_types):
        return []
    return [tag("waiting" if type_ in verified_types or before & WITHHELD else "unverified")]


def _content(resource: Mapping[str, Any]) -> bytes:
    return canonical({name: value for name, value in resource.items() if name not in ("meta", "id")})
