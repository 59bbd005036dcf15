"""Provision: one thing a patient permits or denies, as a conjunction of tagged rules.

Owns what each rule means for a permit (``covers``: certainly inside) and for a deny (``touches``: possibly
inside), so that what is unknown never widens a permit nor narrows a deny. Tags are permanent: they are stored
and named in vectors. https://hl7.org/fhir/R4/consent.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from gateway.access.facts import ResourceFacts
from gateway.access.period import MAX_MS, MIN_MS, Range
from gateway.access.roles import NORMAL, UNKNOWN_LABEL

State = Literal["pending", "final", "revoked"]


@dataclass(frozen=True, slots=True)
class Success:
    """The rule holds."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The rule does not hold: its permanent ``tag`` and why."""

    tag: int
    reason: str


Outcome = Success | Failure
_SUCCESS = Success()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as a rule sees it; ``purpose`` None stands for no purpose at all."""

    facts: ResourceFacts
    grantees: frozenset[str]
    purpose: str | None
    writing: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class ForGrantee:
    """Names the holder; None, on a deny only, names everyone."""

    tag: ClassVar[int] = 1
    grantee: str | None

    def covers(self, asked: Asked) -> Outcome:
        return _SUCCESS if self.grantee in asked.grantees else Failure(self.tag, "for another grantee")

    def touches(self, asked: Asked) -> bool:
        return self.grantee is None or self.grantee in asked.grantees


@dataclass(frozen=True, slots=True)
class ForPurpose:
    tag: ClassVar[int] = 2
    purposes: frozenset[str]

    def covers(self, asked: Asked) -> Outcome:
        return _SUCCESS if asked.purpose in self.purposes else Failure(self.tag, "for another purpose")

    def touches(self, asked: Asked) -> bool:
        return asked.purpose in self.purposes


@dataclass(frozen=True, slots=True)
class Within:
    """Validity ``[from_ms, until_ms)``."""

    tag: ClassVar[int] = 3
    from_ms: int
    until_ms: int

    def covers(self, asked: Asked) -> Outcome:
        return _SUCCESS if self.from_ms <= asked.now_ms < self.until_ms else Failure(self.tag, "not in force now")

    def touches(self, asked: Asked) -> bool:
        return self.from_ms <= asked.now_ms < self.until_ms


@dataclass(frozen=True, slots=True)
class OfType:
    tag: ClassVar[int] = 4
    types: frozenset[str]

    def covers(self, asked: Asked) -> Outcome:
        return _SUCCESS if asked.facts.type in self.types else Failure(self.tag, "for other resource types")

    def touches(self, asked: Asked) -> bool:
        return asked.facts.type in self.types


@dataclass(frozen=True, slots=True)
class OfCategory:
    """``system|code`` tokens, of which the resource carries at least one."""

    tag: ClassVar[int] = 5
    categories: frozenset[str]

    def covers(self, asked: Asked) -> Outcome:
        if self.categories.isdisjoint(asked.facts.categories):
            return Failure(self.tag, "for other categories")
        return _SUCCESS

    def touches(self, asked: Asked) -> bool:
        return not self.categories.isdisjoint(asked.facts.categories)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A permit's ceiling (rank at most, labels only these); a deny's floor (rank at least, or any of these)."""

    tag: ClassVar[int] = 6
    confidentiality: int
    labels: int

    def covers(self, asked: Asked) -> Outcome:
        if asked.facts.confidentiality > self.confidentiality:
            return Failure(self.tag, "more confidential than permitted")
        if asked.facts.labels & ~self.labels:
            return Failure(self.tag, "carries a label that is not permitted")
        return _SUCCESS

    def touches(self, asked: Asked) -> bool:
        return asked.facts.confidentiality >= self.confidentiality or bool(asked.facts.labels & self.labels)


@dataclass(frozen=True, slots=True)
class DataFrom:
    """Clinical period: a permit holds it whole, a deny meets it anywhere; an undated resource is out and in."""

    tag: ClassVar[int] = 7
    low_ms: int
    high_ms: int

    def covers(self, asked: Asked) -> Outcome:
        period = asked.facts.period
        if period is None:
            return Failure(self.tag, "undated, and the permit is for a period")
        if period[0] < self.low_ms or period[1] > self.high_ms:
            return Failure(self.tag, "outside the permitted data period")
        return _SUCCESS

    def touches(self, asked: Asked) -> bool:
        period = asked.facts.period
        return period is None or (period[0] < self.high_ms and period[1] > self.low_ms)


@dataclass(frozen=True, slots=True)
class ReadOnly:
    tag: ClassVar[int] = 8

    def covers(self, asked: Asked) -> Outcome:
        return Failure(self.tag, "for reading only") if asked.writing else _SUCCESS

    def touches(self, asked: Asked) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class OfData:
    """Records by name: ``Observation/1`` itself, or a name of ``facts.names_of`` (its author, what it belongs to)."""

    tag: ClassVar[int] = 9
    data: frozenset[str]

    def covers(self, asked: Asked) -> Outcome:
        return _SUCCESS if self.touches(asked) else Failure(self.tag, "for other records")

    def touches(self, asked: Asked) -> bool:
        facts = asked.facts
        return f"{facts.type}/{facts.id}" in self.data or not self.data.isdisjoint(facts.categories)


Rule = ForGrantee | ForPurpose | Within | OfType | OfCategory | Labelled | DataFrom | ReadOnly | OfData

DENY_ANY_LABEL = 0
"""``confidentiality`` of a deny without labels: every rank is at least this."""
DENY_NO_RANK = 6
"""``confidentiality`` of a deny that names sensitivity labels only: no rank is that high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """One permit or deny of one patient to one grantee, flat, as SQL columns hold it.

    ``id``: the Consent's id and the place in it. ``grantee`` None: everyone, on a deny only. ``types``,
    ``categories``, ``purposes``, ``data_period``, ``data`` None: any. ``confidentiality`` and ``labels``: see
    ``Labelled``. ``writes``: also lets staff of this hospital write. ``[valid_from_ms, valid_until_ms)``. A permit
    counts while ``final``; a deny counts unless ``revoked``. ``grant_id``: 32 bytes on chain, empty until composed.
    ``exception``: stands inside the root rule of its Consent. A permit there lifts the root's deny of the same Consent
    where it certainly covers the request; no other deny.
    """

    id: str
    patient: str
    grantee: str | None
    permit: bool
    types: frozenset[str] | None = None
    categories: frozenset[str] | None = None
    confidentiality: int = NORMAL
    labels: int = 0
    purposes: frozenset[str] | None = None
    data_period: Range | None = None
    data: frozenset[str] | None = None
    valid_from_ms: int = MIN_MS
    valid_until_ms: int = MAX_MS
    writes: bool = True
    state: State = "pending"
    grant_id: bytes = b""
    exception: bool = False
    rules: tuple[Rule, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        if self.permit and self.grantee is None:
            raise ValueError("a permit names its grantee")
        if self.permit and self.labels & UNKNOWN_LABEL:
            raise ValueError("nobody can permit a label that nobody knows")
        rules: list[Rule] = [ForGrantee(self.grantee), Within(self.valid_from_ms, self.valid_until_ms)]
        if self.purposes is not None:
            rules.append(ForPurpose(self.purposes))
        if self.types is not None:
            rules.append(OfType(self.types))
        if self.categories is not None:
            rules.append(OfCategory(self.categories))
        rules.append(Labelled(self.confidentiality, self.labels))
        if self.data_period is not None:
            rules.append(DataFrom(*self.data_period))
        if self.data is not None:
            rules.append(OfData(self.data))
        if not self.writes:
            rules.append(ReadOnly())
        object.__setattr__(self, "rules", tuple(rules))

    @property
    def consent(self) -> str:
        """The Consent it stands in."""
        return self.id.rpartition("/")[0]

    def covers(self, asked: Asked) -> Outcome:
        """Whether this permit certainly lets the request through; the first rule that fails says why not."""
        if not self.permit or self.state != "final":
            return Failure(0, "not a final permit")
        for rule in self.rules:
            outcome = rule.covers(asked)
            if isinstance(outcome, Failure):
                return outcome
        return _SUCCESS

    def forbids(self, asked: Asked) -> bool:
        """Whether this deny may concern the request, and therefore stops it."""
        return not self.permit and self.state != "revoked" and all(rule.touches(asked) for rule in self.rules)


def forbidden(provisions: Sequence[Provision], asked: Asked, *, lifting: bool) -> bool:
    """Whether a deny among one patient's ``provisions`` stops the request.

    ``lifting``: whether a permit inside a deny counts, which is a grant like others: not while the chain is stalled.
    """
    for deny in provisions:
        if deny.permit or not deny.forbids(asked):
            continue
        if not lifting or deny.exception or not any(
                one.exception and one.permit and one.consent == deny.consent
                and isinstance(one.covers(asked), Success) for one in provisions):
            return True
    return False
