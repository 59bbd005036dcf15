"""Plain words for scopes: what a person reads in place of ``patient/Observation.rs?category=laboratory``.

Owns the table ``mappings/access/words.toml`` and the sentences made of it; refuses a table that does not hold
together. https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gateway.access.scopes import Context, Criterion, ResourceScope, ScopeSet
from gateway.errors import Misconfigured
from gateway.fhir.definitions import mappings_folder

_COMMA: Final = re.compile(r"(?<!\\),")
_SINCE: Final = re.compile(r"ge(\d{4}(?:-\d\d){0,2})")
_EVERYTHING: Final = "records of every kind"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeWords:
    """A type's plain name; ``group``: its heading's key, None for what is about no single person; ``date``: the
    search parameter by which "only since" narrows it, None where there is none."""

    name: str
    group: str | None
    date: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of records of a type that can be chosen alone: the granular ``criterion`` and its plain name."""

    criterion: Criterion
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The table. ``groups`` stand in the order in which they are shown."""

    types: Mapping[str, TypeWords]
    groups: Mapping[str, str]
    kinds: Mapping[str, tuple[Kind, ...]]
    letters: Mapping[str, str]

    def kind(self, type_: str, criterion: Criterion) -> Kind | None:
        """The kind a criterion of a type means; a code without its system is the kind of that code."""
        name, value = criterion
        return next((kind for kind in self.kinds.get(type_, ()) if kind.criterion[0] == name
                     and value in (kind.criterion[1], kind.criterion[1].rpartition("|")[2])), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How the reader is spoken to: whose records each context means, with ``{}`` where the name goes."""

    patient: str
    user: str
    system: str = "the {} in this hospital"

    def of(self, context: Context, name: str) -> str:
        """``your vital signs``."""
        template = {"patient": self.patient, "user": self.user, "system": self.system}[context]
        return template.replace("{}", name)


YOURS: Final = Voice(patient="your {}", user="your {}")
"""To a patient about their own records."""
OF_A_PATIENT: Final = Voice(patient="the {} of this patient", user="the {} of every patient whose records you may see")
"""To a clinician."""


def represented(name: str) -> Voice:
    """To a delegate about the person they represent."""
    return Voice(patient=f"the {{}} of {name}", user=f"the {{}} of {name}")


@cache
def words() -> Words:
    """The shipped table. Raises Misconfigured."""
    return load(mappings_folder() / "access" / "words.toml")


def load(path: Path) -> Words:
    """Read the table. Raises Misconfigured."""
    try:
        return _words(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"the words in {path} cannot be used: {error!r}") from error


def _words(table: dict[str, Any]) -> Words:
    types = {name: TypeWords(name=row["name"], group=row.get("group"), date=row.get("date"))
             for name, row in table["type"].items()}
    if strange := {row.group for row in types.values() if row.group is not None} - table["groups"].keys():
        raise ValueError(f"groups without a heading: {sorted(strange)}")
    kinds: dict[str, tuple[Kind, ...]] = {}
    for row in table["kind"]:
        if row["type"] not in types:
            raise ValueError(f"a kind of {row['type']}, which has no name")
        made = Kind(criterion=(row.get("parameter", "category"), row["value"]), name=row["name"])
        kinds[row["type"]] = (*kinds.get(row["type"], ()), made)
    return Words(types=MappingProxyType(types), groups=MappingProxyType(dict(table["groups"])),
                 kinds=MappingProxyType(kinds), letters=MappingProxyType(dict(table["letters"])))


def verbs(letters: str, table: Words) -> str:
    """``see``, ``add, change and delete`` ...: what the letters let one do."""
    done = ["see"] if set(letters) & set("rs") else []
    done += [word for letter, word in table.letters.items() if letter in letters]
    return done[0] if len(done) == 1 else f"{', '.join(done[:-1])} and {done[-1]}"


def name_of(type_: str, criteria: Iterable[Criterion], table: Words, *, every: str = _EVERYTHING) -> str:
    """``laboratory results recorded since 2024-01-01``: the records the criteria leave of a type; ``every``: of all."""
    name = every if type_ == "*" else table.types[type_].name if type_ in table.types else f"{type_} records"
    date = table.types[type_].date if type_ in table.types else None
    named, limits = False, []
    for parameter, value in criteria:
        alternatives = _COMMA.split(value)
        kinds = [kind.name for alternative in alternatives
                 if (kind := table.kind(type_, (parameter, alternative))) is not None]
        since = _SINCE.fullmatch(value)
        if parameter == date and since is not None:
            limits.append(f"dated {since[1]} or later")
        elif len(kinds) == len(alternatives) and not named:
            name, named = " or ".join(kinds), True
        else:
            limits.append(f"whose {parameter} is {' or '.join(alternatives)}")
    return " ".join((name, *([", ".join(limits)] if limits else ())))


def sentence(scope: ResourceScope, voice: Voice, table: Words) -> str:
    """``See your laboratory results``."""
    verb = verbs(scope.letters, table)
    return f"{verb.capitalize()} {voice.of(scope.context, name_of(scope.type, scope.criteria, table))}"


def sentences(scopes: ScopeSet, voice: Voice, table: Words) -> tuple[str, ...]:
    """What a set of scopes lets an app do, in plain words; types in the order of the table, wildcards first."""
    order = {name: number for number, name in enumerate(table.types)}
    ranked = sorted(scopes.resources, key=lambda scope: (order.get(scope.type, -1), scope))
    return tuple(dict.fromkeys(sentence(scope, voice, table) for scope in ranked))
