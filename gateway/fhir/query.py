"""What a search asks and what a resource answers, as values.

Owns the vocabulary between ``search.py`` (which parses queries and extracts facts) and the index
(which hashes and stores them); refuses any knowledge of SQL or keys. https://hl7.org/fhir/R4/search.html

Every text in a HashFact or HashIs is made by the same functions in ``search_encoding.py``, so that a keyed
hash of one equals the keyed hash of the other. ``key`` names the parameter as ``Type.code``; the number or
date part of a composite has the composite's key followed by the text of its other part.

How a stored range [low, high] answers an asked one (``holds`` is the definition; the index says it in SQL):
eq inside it, ne not inside, gt high above asked high, lt low below asked low, ge gt or eq, le lt or eq,
sa low at or above asked high, eb high at or below asked low, ap overlapping.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.fhir.search_results import Results

Comparator = Literal["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"]


@dataclass(frozen=True, slots=True)
class HashFact:
    """An equality fact: token, string prefix, reference, uri, or a rung of a date ladder."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class NumberFact:
    """A number or quantity: low = high, or the ends of a Range; both ends belong to it.

    R4 gives the implicit range of significant figures to the asked value, not to the stored one.
    ``unit`` is ``system|code``, ``unit_code`` the bare code or unit text; empty when there is none.
    """

    key: str
    low: float
    high: float
    unit: str = ""
    unit_code: str = ""


@dataclass(frozen=True, slots=True)
class DateFact:
    """A clinical date as a half-open range [low_ms, high_ms) of epoch milliseconds UTC."""

    key: str
    low_ms: int
    high_ms: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the index keeps of one resource version."""

    hashes: tuple[HashFact, ...] = ()
    numbers: tuple[NumberFact, ...] = ()
    dates: tuple[DateFact, ...] = ()
    references: tuple[HashFact, ...] = ()
    """What it refers to: ``text`` is one of the target's ``names``."""
    names: tuple[str, ...] = ()
    """What others may refer to it by: ``Type/id``, a canonical url."""
    contained: tuple[tuple[int, Facts], ...] = ()
    """What it contains, by its place from 1 on; these facts stand under keys of their own (``search_contained.py``)."""


def holds(comparator: Comparator, low: float, high: float, asked_low: float, asked_high: float) -> bool:
    """Whether a stored range answers an asked one, by R4's prefixes."""
    match comparator:
        case "eq":
            return low >= asked_low and high <= asked_high
        case "ne":
            return not (low >= asked_low and high <= asked_high)
        case "gt":
            return high > asked_high
        case "lt":
            return low < asked_low
        case "ge":
            return high > asked_high or (low >= asked_low and high <= asked_high)
        case "le":
            return low < asked_low or (low >= asked_low and high <= asked_high)
        case "sa":
            return low >= asked_high
        case "eb":
            return high <= asked_low
        case "ap":
            return low < asked_high and high > asked_low


@dataclass(frozen=True, slots=True)
class HashIs:
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class NumberIs:
    """Compare stored [low, high] with the asked [low, high], both closed; ``search_query.py`` steps the asked
    ends to the next float where R4 leaves an end out."""

    key: str
    comparator: Comparator
    low: float
    high: float
    unit: str = ""
    unit_code: str = ""


@dataclass(frozen=True, slots=True)
class SpanIs:
    """A stored [low, high] whose low end answers ``first`` and whose high end answers ``last``, each as a number."""

    key: str
    first: NumberIs
    last: NumberIs


@dataclass(frozen=True, slots=True)
class DateIs:
    """Compare stored [low_ms, high_ms) with the asked range by the prefix rules of R4 search."""

    key: str
    comparator: Comparator
    low_ms: int
    high_ms: int


@dataclass(frozen=True, slots=True)
class IdIs:
    """``_id``: the logical id."""

    id: str


@dataclass(frozen=True, slots=True)
class UpdatedIs:
    """``_lastUpdated``: compared with the version's own instant."""

    comparator: Comparator
    low_ms: int
    high_ms: int


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of the predicates on the same resource (a composite of hash facts, a range)."""

    predicates: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of the predicates on the same resource."""

    predicates: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Not:
    predicate: Predicate


@dataclass(frozen=True, slots=True)
class RefersTo:
    """A chain's link: under the reference parameter ``key`` it refers to a ``type`` that meets the criteria.

    Only targets the caller may find count. ``typed``: the query names the type, so that a token without it is
    refused, where one of several possible types is passed over. ``canonical``: by url rather than by id.
    """

    key: str
    type: str
    criteria: tuple[Criterion, ...]
    typed: bool = True
    canonical: bool = False


@dataclass(frozen=True, slots=True)
class ReferredBy:
    """``_has``: a ``type`` that the caller may find refers to it under ``key`` and meets the criteria."""

    type: str
    key: str
    criteria: tuple[Criterion, ...]
    canonical: bool = False


@dataclass(frozen=True, slots=True)
class Under:
    """``:below`` or ``:above`` on a reference: under ``key`` it refers to ``type/id``, or to what is below (above) it.

    ``by`` is the key of the parameter by which a ``type`` names what it is part of. Only what the caller may find is
    walked over. ``typed`` as in RefersTo.
    """

    key: str
    type: str
    id: str
    by: str
    above: bool
    typed: bool = True


@dataclass(frozen=True, slots=True)
class Contains:
    """A resource of the ``type`` is contained in it that meets all the criteria, which ``search_contained.py`` made."""

    type: str
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class OpenedIs:
    """What no index says: it is asked of opened resources, few enough. ``how`` is a reader of ``search_opened.py``.

    ``contained``: it is asked of the resources of the type that the opened ones contain.
    """

    type: str
    code: str
    how: str
    text: str
    contained: bool = False


@dataclass(frozen=True, slots=True)
class VersionIs:
    """One of these stored versions, or contained resources: an ``OpenedIs`` once answered."""

    seqs: tuple[int, ...]


Predicate = (HashIs | NumberIs | SpanIs | DateIs | IdIs | UpdatedIs | AllOf | AnyOf | Not | RefersTo | ReferredBy
             | Under | Contains | OpenedIs | VersionIs)


@dataclass(frozen=True, slots=True)
class Criterion:
    """One query parameter: any of the predicates (comma = OR); ``negated`` turns the whole around.

    Without predicates it matches nothing (negated: everything): asked for what no resource can have.
    """

    any_of: tuple[Predicate, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class SortKey:
    """``key`` is ``Type.code`` of a date, number or hash parameter, or ``_id`` / ``_lastUpdated``."""

    key: str
    kind: Literal["date", "number", "string", "id", "updated"]
    descending: bool = False
    joined: bool = False
    """The parameter's values stand under several keys of the index: the resources are read."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a found resource is a match: what it contains and ``inside`` finds, and itself where ``itself`` holds."""

    inside: Contains
    itself: tuple[Criterion, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One parsed type-level search: criteria are ANDed."""

    type: str
    criteria: tuple[Criterion, ...] = ()
    sort: tuple[SortKey, ...] = ()
    count: int = 20
    summary_count: bool = False
    used: tuple[tuple[str, str], ...] = ()
    """Parameters really used, in order, as they belong in the self link."""
    ignored: tuple[str, ...] = field(default=())
    """Lenient mode: one sentence per parameter dropped."""
    results: Results = field(default=Results())
    """What the answer shall be, besides the matches."""
    parts: Parts | None = None
    """The matches are what the found resources contain."""

    @property
    def opens(self) -> bool:
        """Whether resources must be opened to answer it: not for the event loop's thread."""
        return any(_asks(criterion, OpenedIs) for criterion in self.criteria)

    @property
    def links(self) -> bool:
        """Whether it asks about other resources too."""
        return any(_asks(criterion, (RefersTo, ReferredBy, Under)) for criterion in self.criteria)


def _asks(asked: Criterion | Predicate, kinds: type | tuple[type, ...]) -> bool:
    match asked:
        case Criterion(any_of=parts) | AllOf(parts) | AnyOf(parts):
            return any(_asks(part, kinds) for part in parts)
        case Not(part):
            return _asks(part, kinds)
        case RefersTo(criteria=criteria) | ReferredBy(criteria=criteria) | Contains(criteria=criteria):
            return isinstance(asked, kinds) or any(_asks(one, kinds) for one in criteria)
        case _:
            return isinstance(asked, kinds)
