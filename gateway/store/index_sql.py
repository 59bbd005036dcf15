"""Predicates of a query as conditions in SQL over ``version v``.

Owns the SQL reading of every predicate; refuses one that must be opened or prepared first, and a link to another
resource without the bound that says which of those the caller may find (invariant 4).
https://hl7.org/fhir/R4/search.html

A link's condition is a subquery with a ``version v`` of its own, so that the same text serves at every depth. Its
target counts as it stood at the snapshot, and only while its present version may be found as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from gateway.crypto.index_hash import IndexHasher
from gateway.errors import TooCostly
from gateway.fhir.query import (
    AllOf,
    AnyOf,
    Contains,
    Criterion,
    DateIs,
    HashIs,
    IdIs,
    Not,
    NumberIs,
    OpenedIs,
    Predicate,
    ReferredBy,
    RefersTo,
    SpanIs,
    Under,
    UpdatedIs,
    VersionIs,
)
from gateway.fhir.search_contained import MARK
from gateway.store.journal import PLACES

NAME = "self"
"""The key under which a resource's own names are hashed."""
REFERENCE_HASH = "reference_hash"
"""SQL function (key, type, id): the hash of a reference to ``type/id`` under a parameter."""
_KEYS_MAX = 8192
_APART_MAX = 200
"""Most numbers of a list that are variables of their own."""


@dataclass(frozen=True, slots=True)
class SqlBound:
    """The access bound as a condition on ``version v``; an empty condition is refused."""

    condition: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Sql:
    text: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class HashedIn:
    """Any of these hashes: what a link became once its other end was found."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Linked:
    """A link left to the statement: its criteria prepared, with the bound of the other end."""

    link: RefersTo | ReferredBy
    criteria: tuple[Prepared, ...]
    bound: SqlBound


@dataclass(frozen=True, slots=True)
class Within:
    """``Contains`` with its criteria prepared."""

    type: str
    criteria: tuple[Prepared, ...]


Ready = (HashIs | NumberIs | SpanIs | DateIs | IdIs | UpdatedIs | VersionIs | HashedIn | Linked | Within | AllOf | AnyOf
         | Not)
"""Any of them, with ``AllOf``, ``AnyOf`` and ``Not`` over them in turn."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A criterion with nothing left to open and every link bound."""

    any_of: tuple[Any, ...]  # Any: of Ready, whose nested kinds are typed for queries
    negated: bool = False

    @property
    def nothing(self) -> bool:
        """Certainly met by no resource."""
        return not self.negated and all(type(one) is HashedIn and not one.hashes for one in self.any_of)


def joined(word: str, parts: Sequence[Sql]) -> Sql:
    """Conditions with AND or OR between them; of none, what that means."""
    if not parts:
        return Sql("1" if word == " AND " else "0", ())
    if len(parts) == 1:
        return parts[0]
    return Sql("(" + word.join(part.text for part in parts) + ")",
               tuple(value for part in parts for value in part.parameters))


def marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def any_of(numbers: Sequence[int]) -> Sql:
    """What stands behind IN: many are one variable, of which a statement takes 32,766."""
    if len(numbers) <= _APART_MAX:
        return Sql(f"({marks(numbers)})", tuple(numbers))
    return Sql("(SELECT value FROM json_each(?))", (f"[{','.join(map(str, numbers))}]",))


def alive(snapshot: int) -> Sql:
    """The version that stood at ``snapshot``."""
    return Sql("v.seq<=? AND (v.superseded IS NULL OR v.superseded>?) AND v.deleted=0", (snapshot, snapshot))


def compared(comparator: str, low: str, high: str, asked_low: float, asked_high: float) -> Sql:
    """R4 prefix rules between the stored range (columns) and the asked range."""
    inside = f"({low}>=? AND {high}<=?)"
    match comparator:
        case "eq":
            return Sql(inside, (asked_low, asked_high))
        case "ne":
            return Sql(f"NOT {inside}", (asked_low, asked_high))
        case "gt":
            return Sql(f"{high}>?", (asked_high,))
        case "lt":
            return Sql(f"{low}<?", (asked_low,))
        case "ge":
            return Sql(f"({high}>? OR {inside})", (asked_high, asked_low, asked_high))
        case "le":
            return Sql(f"({low}<? OR {inside})", (asked_low, asked_low, asked_high))
        case "sa":
            return Sql(f"{low}>=?", (asked_high,))
        case "eb":
            return Sql(f"{high}<=?", (asked_low,))
        case _:
            return Sql(f"({low}<? AND {high}>?)", (asked_high, asked_low))


class Conditions:
    """Compiles predicates under one index key."""

    def __init__(self, hasher: IndexHasher) -> None:
        self.hash: Callable[[str, str], int] = hasher.hash_fact
        self._hasher = hasher
        self._keys: dict[str, int] = {}

    def key(self, key: str) -> int:
        """The number of a parameter."""
        known = self._keys.get(key)
        if known is None:
            known = self._hasher.parameter_id(key)
            if len(self._keys) < _KEYS_MAX:
                self._keys[key] = known
        return known

    def all_of(self, criteria: Iterable[Criterion | Prepared], snapshot: int) -> Sql:
        """Every criterion."""
        return joined(" AND ", [self.criterion(criterion, snapshot) for criterion in criteria])

    def criterion(self, criterion: Criterion | Prepared, snapshot: int) -> Sql:
        sql = self._any(criterion.any_of, snapshot)
        return Sql(f"NOT {sql.text}", sql.parameters) if criterion.negated else sql

    def hashes(self, predicates: Iterable[Any]) -> tuple[int, ...]:
        """The hashes among the predicates, each once."""
        found: dict[int, None] = {}
        for one in predicates:
            if type(one) is HashIs:
                found[self.hash(one.key, one.text)] = None
            elif type(one) is HashedIn:
                found.update(dict.fromkeys(one.hashes))
        return tuple(found)

    def _any(self, predicates: Sequence[Any], snapshot: int) -> Sql:
        """All hashes in one subquery, all ids in one list, the rest beside them."""
        hashes = self.hashes(predicates)
        parts = []
        if len(hashes) == 1:
            parts.append(Sql("EXISTS (SELECT 1 FROM index_hash h WHERE h.hash=? AND h.version=v.seq)", hashes))
        elif hashes:
            among = any_of(hashes)
            parts.append(Sql(f"EXISTS (SELECT 1 FROM index_hash h WHERE h.hash IN {among.text} "  # noqa: S608
                             "AND h.version=v.seq)", among.parameters))
        ids = [one.id for one in predicates if type(one) is IdIs]
        if ids:
            parts.append(Sql(f"v.id IN ({marks(ids)})", tuple(ids)))
        parts += [self.predicate(one, snapshot) for one in predicates if type(one) not in (HashIs, HashedIn, IdIs)]
        return joined(" OR ", parts)

    def predicate(self, predicate: Predicate | HashedIn | Linked | Within, snapshot: int) -> Sql:
        """One predicate as a condition on ``version v``."""
        match predicate:
            case HashIs() | HashedIn() | IdIs():
                return self._any((predicate,), snapshot)
            case NumberIs():
                range_ = self.number_range(predicate, "n")
                return Sql("EXISTS (SELECT 1 FROM index_number n WHERE n.version=v.seq AND n.key=? AND "  # noqa: S608
                           f"{range_.text})", (self.key(predicate.key), *range_.parameters))
            case SpanIs():
                ends = self.span_range(predicate, "n")
                return Sql("EXISTS (SELECT 1 FROM index_number n WHERE n.version=v.seq AND n.key=? AND "  # noqa: S608
                           f"{ends.text})", (self.key(predicate.key), *ends.parameters))
            case DateIs():
                range_ = self.date_range(predicate, "d")
                return Sql("EXISTS (SELECT 1 FROM index_date d WHERE d.version=v.seq AND d.key=? AND "  # noqa: S608
                           f"{range_.text})", (self.key(predicate.key), *range_.parameters))
            case UpdatedIs():
                return compared(predicate.comparator, "v.updated_ms", "(v.updated_ms+1)", predicate.low_ms,
                                predicate.high_ms)
            case VersionIs(seqs):
                among = any_of(seqs)
                return Sql(f"v.seq IN {among.text}", among.parameters)
            case AllOf(parts):
                return joined(" AND ", [self.predicate(part, snapshot) for part in parts])
            case AnyOf(parts):
                return self._any(parts, snapshot)
            case Not(part):
                sql = self.predicate(part, snapshot)
                return Sql(f"(NOT {sql.text})", sql.parameters)
            case Linked():
                return self._linked(predicate, snapshot)
            case Within():
                places = self.places(predicate, snapshot)
                return Sql(f"EXISTS (SELECT 1 {places.text})", places.parameters)
            case Contains():
                raise ValueError("what is asked of contained resources is prepared first")
            case RefersTo() | ReferredBy() | Under():
                raise ValueError("a link without the bound of its other end is refused")
            case OpenedIs():
                raise TooCostly("what must be opened to be searched is not supported here", code="too-costly")
            case _:
                assert_never(predicate)

    def places(self, within: Within, snapshot: int) -> Sql:
        """FROM and WHERE of what ``version v`` contains of the type and meets the criteria; its ``v.seq`` is negative.

        Within the brackets ``v`` is the container, outside them what it contains.
        """
        met = self.all_of(within.criteria, snapshot)
        return Sql("FROM (SELECT h.version AS seq FROM index_hash h WHERE h.hash=? AND h.version BETWEEN "  # noqa: S608
                   f"-v.seq*{PLACES}-{PLACES - 1} AND -v.seq*{PLACES}-1) v WHERE {met.text}",
                   (self.hash(MARK, within.type), *met.parameters))

    def number_range(self, asked: NumberIs, row: str) -> Sql:
        """Range and unit of a number, on the alias ``row``."""
        compare = compared(asked.comparator, f"{row}.low", f"{row}.high", asked.low, asked.high)
        if asked.unit:
            return Sql(f"{compare.text} AND {row}.unit=?", (*compare.parameters, self.hash("unit", asked.unit)))
        if asked.unit_code:
            return Sql(f"{compare.text} AND {row}.unit_code=?",
                       (*compare.parameters, self.hash("unit", asked.unit_code)))
        return compare

    @staticmethod
    def span_range(asked: SpanIs, row: str) -> Sql:
        """Each end of a pair of numbers by itself, on the alias ``row``."""
        return joined(" AND ", [compared(one.comparator, f"{row}.{end}", f"{row}.{end}", one.low, one.high)
                                for one, end in ((asked.first, "low"), (asked.last, "high"))])

    @staticmethod
    def date_range(asked: DateIs, row: str) -> Sql:
        """Range of a date, on the alias ``row``."""
        return compared(asked.comparator, f"{row}.low_ms", f"{row}.high_ms", asked.low_ms, asked.high_ms)

    def _linked(self, linked: Linked, snapshot: int) -> Sql:
        link = linked.link
        visible = self._visible(linked, snapshot)
        if isinstance(link, RefersTo):
            return Sql("EXISTS (SELECT 1 FROM index_reference r CROSS JOIN index_hash s CROSS JOIN version w "  # noqa: S608
                       "WHERE r.version=v.seq AND r.key=? AND s.hash=r.target AND w.seq=s.version "
                       f"AND {visible.text})", (self.key(link.key), *visible.parameters))
        return Sql("EXISTS (SELECT 1 FROM index_hash r CROSS JOIN version w "  # noqa: S608
                   f"WHERE r.hash={REFERENCE_HASH}(?,v.type,v.id) AND w.seq=r.version AND {visible.text})",
                   (link.key, *visible.parameters))

    def _visible(self, linked: Linked, snapshot: int) -> Sql:
        """``version w`` is the other end, meets the criteria, and may be found: then, and as it is now."""
        asked = joined(" AND ", [Sql(f"({linked.bound.condition})", linked.bound.parameters),
                                 self.all_of(linked.criteria, snapshot)])
        return Sql("w.type=? AND w.seq<=? AND (w.superseded IS NULL OR w.superseded>?) AND w.deleted=0 "  # noqa: S608
                   f"AND EXISTS (SELECT 1 FROM version v WHERE v.seq=w.seq AND {asked.text}) "
                   "AND (w.superseded IS NULL OR EXISTS (SELECT 1 FROM version v WHERE v.type=w.type AND v.id=w.id "
                   f"AND v.superseded IS NULL AND ({linked.bound.condition})))",
                   (linked.link.type, snapshot, snapshot, *asked.parameters, *linked.bound.parameters))


def still_visible(bound: SqlBound) -> Sql:
    """``version v`` is the present one, or the present one may be found too."""
    return Sql("(v.superseded IS NULL OR EXISTS (SELECT 1 FROM version w WHERE w.type=v.type AND w.id=v.id "  # noqa: S608
               "AND w.superseded IS NULL AND EXISTS (SELECT 1 FROM version v WHERE v.seq=w.seq "
               f"AND ({bound.condition}))))", bound.parameters)
