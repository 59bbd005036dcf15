"""Roles, labels and purposes: the tables of ``mappings/access`` as frozen values.

Owns reading them, once, on first use; refuses a table that names what it does not define.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.access.marks import BITS, FIRST_BIT
from gateway.access.scopes import ScopeSet, parse_strict
from gateway.errors import Misconfigured, OAuthError
from gateway.fhir.definitions import mappings_folder

UNKNOWN_LABEL = 1
"""The bit of a label nobody here knows."""
NORMAL = 3
"""Confidentiality N, and what an unlabelled resource has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Confidentiality codes to ranks (U = 0 .. V = 5) and sensitivity codes to bits."""

    ranks: Mapping[str, int]
    rank_texts: tuple[str, ...]
    confidentiality_systems: frozenset[str]
    bits: Mapping[str, int]
    bit_texts: Mapping[str, str]
    sensitivity_systems: frozenset[str]
    harmless_systems: frozenset[str]

    @property
    def known(self) -> int:
        """Every bit but the unknown one."""
        return sum(self.bits.values())

    def codes(self, mask: int) -> tuple[str, ...]:
        """The codes of the known bits in ``mask``, in the order of the bits."""
        return tuple(code for code, bit in self.bits.items() if mask & bit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    text: str
    includes: frozenset[str]
    """Itself and the narrower purposes a provision that names it also names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DutyRule:
    """One piece of a role's own work; ``*`` is every type. ``labels`` is the mask of what it may see; ``marks``, where
    it is for marked versions alone, of which each must carry one."""

    types: frozenset[str]
    letters: str
    purpose: str
    confidentiality: int
    labels: int
    marks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a role may at most do; see the head of ``roles.toml`` for each field."""

    name: str
    ceiling: ScopeSet
    grant: bool
    write_grant: bool
    break_glass: bool
    reads: frozenset[str]
    writes: frozenset[str]
    authority: frozenset[str]
    duties: tuple[DutyRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The three tables together."""

    roles: Mapping[str, Role]
    labels: Labels
    purposes: Mapping[str, Purpose]
    purpose_system: str
    append_only: frozenset[str]
    patient_only: frozenset[str]
    patient_owned: frozenset[str]
    patient_takes_part: frozenset[str]
    author_owned: frozenset[str]
    public: frozenset[str]
    break_glass_purposes: frozenset[str]
    hidden_from_delegates: int


@cache
def policy() -> Policy:
    """The shipped tables. Raises Misconfigured."""
    return load(mappings_folder() / "access")


def load(folder: Path) -> Policy:
    """Read ``roles.toml``, ``labels.toml`` and ``purposes.toml``. Raises Misconfigured."""
    try:
        tables = [tomllib.loads((folder / name).read_text("utf-8"))
                  for name in ("roles.toml", "labels.toml", "purposes.toml")]
        return _policy(*tables)
    except (OSError, ValueError, KeyError, TypeError, OAuthError) as error:
        raise Misconfigured(f"the access tables in {folder} cannot be used: {error!r}") from error


def _policy(roles: dict[str, Any], labels: dict[str, Any], purposes: dict[str, Any]) -> Policy:
    order = labels["confidentiality"]["order"]
    numbers = labels["sensitivity"]["bits"]
    if len(set(numbers.values())) != len(numbers) or not all(0 < number < FIRST_BIT for number in numbers.values()):
        raise ValueError(f"label bits must be distinct and within 1..{FIRST_BIT - 1}")
    known = Labels(
        ranks=MappingProxyType({code: rank for rank, code in enumerate(order)}),
        rank_texts=tuple(labels["confidentiality"]["text"][code] for code in order),
        confidentiality_systems=frozenset(labels["confidentiality"]["systems"]),
        bits=MappingProxyType({code: 1 << number for code, number in sorted(numbers.items(), key=lambda n: n[1])}),
        bit_texts=MappingProxyType({code: labels["sensitivity"]["text"][code] for code in numbers}),
        sensitivity_systems=frozenset(labels["sensitivity"]["systems"]),
        harmless_systems=frozenset(labels["harmless"]["systems"]))
    uses = {code: Purpose(text=row["text"], includes=frozenset((code, *row.get("includes", ()))))
            for code, row in purposes["purpose"].items()}
    unknown = {code for use in uses.values() for code in use.includes} - uses.keys()
    if unknown:
        raise ValueError(f"purposes without a row: {sorted(unknown)}")
    rules = roles["policy"]
    public = frozenset(rules["public"])
    return Policy(
        roles=MappingProxyType({name: _role(name, row, public, known, uses) for name, row in roles["role"].items()}),
        labels=known, purposes=MappingProxyType(uses), purpose_system=purposes["system"],
        append_only=frozenset(rules["append_only"]), patient_only=frozenset(rules["patient_only"]),
        patient_owned=frozenset(rules["patient_owned"]),
        patient_takes_part=frozenset(rules["patient_takes_part"]), author_owned=frozenset(rules["author_owned"]),
        public=public,
        break_glass_purposes=frozenset(rules["break_glass_purposes"]),
        hidden_from_delegates=sum(known.bits[code] for code in rules["hidden_from_delegates"]) | UNKNOWN_LABEL)


def _role(name: str, row: dict[str, Any], public: frozenset[str], labels: Labels,
          purposes: Mapping[str, Purpose]) -> Role:
    def types(key: str) -> frozenset[str]:
        named = frozenset(row.get(key, ()))
        return (named - {"public"}) | public if "public" in named else named

    duties = tuple(
        DutyRule(types=frozenset(duty["types"]), letters=duty["letters"], purpose=duty["purpose"],
                 confidentiality=labels.ranks[duty["confidentiality"]],
                 labels=labels.known if duty.get("all_labels", False) else 0,
                 marks=sum(BITS[code] for code in duty.get("marks", ())))
        for duty in row.get("duty", ()))
    if missing := {duty.purpose for duty in duties} - purposes.keys():
        raise ValueError(f"role {name}: no such purpose {sorted(missing)}")
    return Role(name=name, ceiling=parse_strict(row["ceiling"]), grant=row.get("grant", False),
                write_grant=row.get("write_grant", False), break_glass=row.get("break_glass", False),
                reads=types("reads"), writes=types("writes"), authority=frozenset(row.get("authority", ())),
                duties=duties)
