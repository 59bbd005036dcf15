"""How likely two Patients are one person: agreement of their parts, weighed as Fellegi and Sunter do.

Owns the weights, the comparison of names, dates and numbers, and the grades; refuses to call a match certain on a name
and a birth date alone: twins and namesakes have both. Pure. https://hl7.org/fhir/R4/patient-operation-match.html

A weight is log2 of how much likelier an agreement (or its lack) is for one person than for two. The sum, with the odds
that any two records are one person's, gives a probability.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway.fhir.search_encoding import normal

Grade = Literal["certain", "probable", "possible", "certainly-not"]
GRADE_URL = "http://hl7.org/fhir/StructureDefinition/match-grade"

_PRIOR = -13.0
"""Two records found by a common part are one person's about once in 8,000."""
_CERTAIN, _PROBABLE, _POSSIBLE = 0.99, 0.9, 0.2
_REPEATS_MAX = 20
"""Most names, identifiers and the like of one person that are looked at: what is compared grows with their square."""
_LONGEST = 64
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")


@dataclass(frozen=True, slots=True)
class Part:
    """What agreement of one part weighs: in full, nearly, and its contradiction."""

    same: float
    near: float
    other: float


_IDENTIFIER = Part(14.0, 0.0, -4.0)
_FAMILY = Part(7.5, 4.0, -3.5)
_GIVEN = Part(6.0, 3.0, -3.0)
_BIRTH = Part(11.0, 4.0, -6.0)
_GENDER = Part(1.0, 0.0, -4.0)
_TELECOM = Part(8.0, 0.0, -0.5)
_POSTCODE = Part(4.0, 0.0, -0.5)
_LINE = Part(4.0, 2.0, -0.5)

Agreement = Literal["same", "near", "other", "unknown"]


@dataclass(frozen=True, slots=True)
class Score:
    """``probability`` 0 to 1; ``agreements`` by part."""

    probability: float
    agreements: Mapping[str, Agreement]

    @property
    def grade(self) -> Grade:
        """Certain needs more than who shares a name and a birth date: an identifier, a number or an address."""
        agreed = {part for part, how in self.agreements.items() if how == "same"}
        contradicted = any(self.agreements[part] == "other" for part in ("family", "birthDate", "gender"))
        named = {"family", "birthDate"} <= agreed
        beyond = "identifier" in agreed or ("given" in agreed and agreed & {"telecom", "postalCode", "line"})
        if self.probability >= _CERTAIN and named and beyond and not contradicted:
            return "certain"
        if self.probability >= _PROBABLE and (not contradicted or "identifier" in agreed):
            return "probable"
        return "possible" if self.probability >= _POSSIBLE else "certainly-not"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """The parts of a Patient that are compared."""

    identifiers: frozenset[tuple[str, str]]
    families: frozenset[str]
    givens: frozenset[str]
    birth: str
    gender: str
    telecoms: frozenset[str]
    postcodes: frozenset[str]
    lines: frozenset[str]


def person(patient: Mapping[str, Any]) -> Person:
    """Read a Patient, whatever of it is there."""
    names, addresses = list(_objects(patient.get("name"))), list(_objects(patient.get("address")))
    birth, gender = patient.get("birthDate"), patient.get("gender")
    return Person(
        identifiers=frozenset((one["system"], one["value"]) for one in _objects(patient.get("identifier"))
                              if isinstance(one.get("system"), str) and isinstance(one.get("value"), str)),
        families=frozenset(_words(name.get("family") for name in names)),
        givens=frozenset(_words(given for name in names for given in _list(name.get("given")))),
        birth=birth if isinstance(birth, str) and _DATE.fullmatch(birth) else "",
        gender=gender if gender in ("male", "female") else "",
        telecoms=frozenset(_telecoms(_objects(patient.get("telecom")))),
        postcodes=frozenset(_words(one.get("postalCode") for one in addresses)),
        lines=frozenset(_words(line for one in addresses for line in _list(one.get("line")))))


def _list(value: Any) -> list[Any]:
    return value[:_REPEATS_MAX] if isinstance(value, list) else []


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (one for one in _list(value) if isinstance(one, dict))


def _words(texts: Iterable[Any]) -> Iterator[str]:
    for text in texts:
        if isinstance(text, str) and (word := normal(text)[:_LONGEST]):
            yield word


def _telecoms(points: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Numbers by their last nine digits, whatever stands before and between; the rest without case."""
    for point in points:
        value = point.get("value")
        if not isinstance(value, str):
            continue
        digits = "".join(re.findall(r"\d", value))
        yield digits[-9:] if len(digits) >= 7 and "@" not in value else value.casefold().strip()


def distance(one: str, other: str) -> int:
    """Letters to change, drop, add or swap with their neighbour, to make one text of the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        following = [i]
        for j, wanted in enumerate(other, 1):
            cost = min(row[j] + 1, following[j - 1] + 1, row[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            following.append(cost)
        before, row = row, following
    return row[-1]


def _alike(one: str, other: str) -> bool:
    """A slip of the pen, more of it in a long text; or an initial for the name."""
    shorter, longer = sorted((one, other), key=len)
    if len(shorter) == 1:
        return longer.startswith(shorter)
    slips = 0 if len(shorter) < 4 else 1 if len(shorter) < 8 else 2
    return len(longer) - len(shorter) <= slips and distance(one, other) <= slips


def _texts(ours: frozenset[str], theirs: frozenset[str]) -> Agreement:
    if not ours or not theirs:
        return "unknown"
    if ours & theirs:
        return "same"
    return "near" if any(_alike(one, other) for one in ours for other in theirs) else "other"


def _identifiers(ours: Person, theirs: Person) -> Agreement:
    if ours.identifiers & theirs.identifiers:
        return "same"
    systems = {system for system, _ in ours.identifiers} & {system for system, _ in theirs.identifiers}
    return "other" if systems else "unknown"


def _births(one: str, other: str) -> Agreement:
    """The same day; nearly: one is less exact, or one digit or the order of month and day differs."""
    if not one or not other:
        return "unknown"
    if one == other:
        return "same" if len(one) == 10 else "near"
    if len(one) != len(other):
        return "near" if one.startswith(other) or other.startswith(one) else "other"
    if len(one) < 10:
        return "other"
    swapped = other[:4] + other[7:] + other[4:7]
    slips = sum(a != b for a, b in zip(one, other, strict=True))
    return "near" if one == swapped or slips == 1 else "other"


def compare(ours: Person, theirs: Person) -> Score:
    """How likely both are one person. The order of the two does not matter."""
    agreements: dict[str, Agreement] = {
        "identifier": _identifiers(ours, theirs), "family": _texts(ours.families, theirs.families),
        "given": _texts(ours.givens, theirs.givens), "birthDate": _births(ours.birth, theirs.birth),
        "gender": "unknown" if not ours.gender or not theirs.gender else
                  "same" if ours.gender == theirs.gender else "other",
        "telecom": _texts_exactly(ours.telecoms, theirs.telecoms),
        "postalCode": _texts_exactly(ours.postcodes, theirs.postcodes), "line": _texts(ours.lines, theirs.lines)}
    weight = _PRIOR + sum(_weight(_PARTS[part], how) for part, how in agreements.items())
    return Score(1 / (1 + 2 ** -weight), agreements)


def _texts_exactly(ours: frozenset[str], theirs: frozenset[str]) -> Agreement:
    if not ours or not theirs:
        return "unknown"
    return "same" if ours & theirs else "other"


_PARTS: Mapping[str, Part] = {
    "identifier": _IDENTIFIER, "family": _FAMILY, "given": _GIVEN, "birthDate": _BIRTH, "gender": _GENDER,
    "telecom": _TELECOM, "postalCode": _POSTCODE, "line": _LINE}


def _weight(part: Part, how: Agreement) -> float:
    return {"same": part.same, "near": part.near, "other": part.other, "unknown": 0.0}[how]


def keys(patient: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """The searches that find candidates: each alone is narrow, together they let one wrong part pass.

    Values are escaped for a query; a part too rare to be there twice stands alone, the others in pairs.
    """
    one = person(patient)
    found = [[("identifier", f"{escaped(system)}|{escaped(value)}")] for system, value in sorted(one.identifiers)]
    found += [[("telecom", escaped(point["value"]))] for point in _objects(patient.get("telecom"))
              if isinstance(point.get("value"), str) and point["value"].strip()]
    common = [*(("family", name[:32]) for name in sorted(one.families)),
              *[("given", name[:32]) for name in sorted(one.givens) if len(name) > 1][:_REPEATS_MAX],
              *([("birthdate", one.birth)] if one.birth else [])]
    pairs = [[first, second] for place, first in enumerate(common) for second in common[place + 1:]
             if first[0] != second[0]]
    return found + (pairs or [[part] for part in common])


def escaped(text: str) -> str:
    """A value that a query takes literally."""
    return re.sub(r"([\\,$|])", r"\\\1", text)
