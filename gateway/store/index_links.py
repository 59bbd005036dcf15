"""A query made ready for one statement: links to other resources found first where they are few, else bound.

Owns the order of that work and its limits; refuses a link without the caller's sight of the other type, so that
nothing hidden can be told from what is found (invariant 4). https://hl7.org/fhir/R4/search.html#chaining
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import apsw

from gateway.errors import BadSearch, Forbidden, TooCostly
from gateway.fhir.query import (
    AllOf,
    AnyOf,
    Contains,
    Criterion,
    HashIs,
    IdIs,
    Not,
    OpenedIs,
    ReferredBy,
    RefersTo,
    Under,
    VersionIs,
)
from gateway.store.index_paths import Paths
from gateway.store.index_sql import (
    REFERENCE_HASH,
    Conditions,
    HashedIn,
    Linked,
    Prepared,
    Sql,
    SqlBound,
    Within,
    alive,
    joined,
    still_visible,
)
from gateway.store.journal import VERSION_COLUMNS, VersionRow

FOUND_MAX = 1_000
"""Other ends looked up before the search itself; more of them are asked one by one of its candidates."""
TREE_MAX = 1_000
"""Most resources that one ``:below`` or ``:above`` walks over."""
OPENED_MAX = 2_000
"""Most resources opened for one criterion."""
ANSWERED_MAX = 100_000
"""Most that may meet one criterion of what the opened ones contain."""
_HASHES_MAX = 12_000
"""Hashes of other ends in one statement, which takes 32,766 variables."""

Answer = Callable[[Sequence[VersionRow], OpenedIs], Iterable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one caller may find besides the type searched.

    ``bound`` of a type; it raises Forbidden outside the token's scopes. ``answer`` opens candidates and names the
    ``seq`` of those that meet a predicate; None where nothing may be opened (on the event loop, in a commit).
    """

    bound: Callable[[str], SqlBound]
    answer: Answer | None = None


@dataclass(slots=True)
class _Work:
    connection: apsw.Connection
    sight: Sight | None
    snapshot: int
    left: int = _HASHES_MAX
    bounds: dict[str, SqlBound] = field(default_factory=dict)


class Links:
    """Prepares criteria under one index key."""

    def __init__(self, conditions: Conditions, paths: Paths) -> None:
        self._conditions = conditions
        self._paths = paths
        self._ready: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()

    def prepare(self, connection: apsw.Connection, type_: str, criteria: Sequence[Criterion], bound: SqlBound, *,
                snapshot: int, sight: Sight | None) -> tuple[Prepared, ...]:
        """The criteria with every link and every opened predicate answered or bound.

        Raises TooCostly, and Forbidden where the token has no scope for a type that is asked about.
        """
        if all(type(one) not in _LATER for criterion in criteria for one in criterion.any_of):
            return tuple(Prepared(one.any_of, one.negated) for one in criteria)
        return self._prepare(_Work(connection, sight, snapshot), type_, criteria, bound)

    def _prepare(self, work: _Work, type_: str, criteria: Sequence[Criterion], bound: SqlBound) -> tuple[Prepared, ...]:
        linked = [Prepared(self._group(work, type_, one.any_of), one.negated) for one in criteria]
        opened = [one for one in linked if any(_holds_opened(part) for part in one.any_of)]
        if not opened:
            return tuple(linked)
        narrowing = [one for one in linked if one not in opened]
        narrowing += [Prepared(relaxed) for one in opened
                      if not one.negated and (relaxed := _relaxed_any(one.any_of)) is not None]
        rows = self._candidates(work, type_, narrowing, bound)
        return tuple(Prepared(tuple(self._opened(work, rows, part) for part in one.any_of), one.negated)
                     if one in opened else one for one in linked)

    def _candidates(self, work: _Work, type_: str, criteria: Sequence[Prepared], bound: SqlBound) -> list[VersionRow]:
        sql = self._matching(work, type_, criteria, bound)
        rows = [VersionRow(*row) for row in work.connection.execute(
            f"SELECT {VERSION_COLUMNS} FROM {sql.text} LIMIT {OPENED_MAX + 1}", sql.parameters)]  # noqa: S608
        if len(rows) > OPENED_MAX:
            raise TooCostly(f"more than {OPENED_MAX} resources would be opened to be searched; narrow the search",
                            code="too-costly")
        return rows

    def _opened(self, work: _Work, rows: Sequence[VersionRow], predicate: Any) -> Any:
        match predicate:
            case OpenedIs():
                if work.sight is None or work.sight.answer is None:
                    raise TooCostly(f"{predicate.code} must be opened to be searched, which is not done here",
                                    code="too-costly")
                seqs = tuple(islice(work.sight.answer(rows, predicate), ANSWERED_MAX + 1))
                if len(seqs) > ANSWERED_MAX:
                    raise TooCostly(f"more than {ANSWERED_MAX} contained resources meet {predicate.code}; narrow the "
                                    "search", code="too-costly")
                return VersionIs(seqs)
            case AllOf(parts):
                return AllOf(tuple(self._opened(work, rows, part) for part in parts))
            case AnyOf(parts):
                return AnyOf(tuple(self._opened(work, rows, part) for part in parts))
            case Not(part):
                return Not(self._opened(work, rows, part))
            case Within(inner, criteria):
                return Within(inner, tuple(Prepared(tuple(self._opened(work, rows, part) for part in one.any_of),
                                                    one.negated) for one in criteria))
            case _:
                return predicate

    def _matching(self, work: _Work, type_: str, criteria: Sequence[Prepared], bound: SqlBound,
                  joins: str = "", condition: Sql | None = None) -> Sql:
        """FROM and WHERE of all that the caller may find of a type and that meets the criteria."""
        path = self._paths.best(work.connection, type_, criteria, limit=FOUND_MAX + 1)
        where = [Sql("v.type=?", (type_,)), alive(work.snapshot)]
        where += [self._conditions.criterion(one, work.snapshot) for one in (path.left(criteria) if path else criteria)]
        where += [Sql(f"({bound.condition})", bound.parameters), still_visible(bound)]
        if condition is not None:
            where.append(condition)
        sql = joined(" AND ", where)
        if path is None:
            return Sql(f"version v {joins} WHERE {sql.text}", sql.parameters)
        return Sql(f"({path.sql.text}) c CROSS JOIN version v ON v.seq=c.version {joins} WHERE {sql.text}",
                   (*path.sql.parameters, *sql.parameters))

    def _group(self, work: _Work, type_: str, predicates: Sequence[Any]) -> tuple[Any, ...]:
        """Alternatives: one of a type outside the token's scopes is passed over unless there is no other."""
        found: list[Any] = []
        refused: Forbidden | None = None
        for one in predicates:
            try:
                found.append(self._predicate(work, type_, one))
            except Forbidden as error:
                if not isinstance(one, RefersTo | Under) or one.typed:
                    raise
                refused = error
        if refused is not None and not any(isinstance(one, HashedIn | Linked) for one in found):
            raise refused
        return tuple(found)

    def _predicate(self, work: _Work, type_: str, predicate: Any) -> Any:
        match predicate:
            case RefersTo() | ReferredBy():
                return self._link(work, predicate)
            case Under():
                return self._tree(work, predicate)
            case Contains(inner, criteria):
                return Within(inner, tuple(Prepared(self._group(work, inner, one.any_of), one.negated)
                                           for one in criteria))
            case AllOf(parts):
                return AllOf(tuple(self._predicate(work, type_, part) for part in parts))
            case AnyOf(parts):
                return AnyOf(self._group(work, type_, parts))
            case Not(part):
                return Not(self._predicate(work, type_, part))
            case _:
                return predicate

    def _link(self, work: _Work, link: RefersTo | ReferredBy) -> HashedIn | Linked:
        bound = self._bound(work, link.type)
        criteria = self._prepare(work, link.type, link.criteria, bound)
        if bound.condition == "0" or any(one.nothing for one in criteria):
            return HashedIn(())
        if not (link.canonical and isinstance(link, RefersTo)):
            found = self._few(work, link, criteria, bound)
            if found is not None:
                return found
            if link.canonical:
                raise TooCostly(f"more than {FOUND_MAX} resources refer by a canonical; narrow the search",
                                code="too-costly")
        self._register(work.connection)
        return Linked(link, criteria, bound)

    def _few(self, work: _Work, link: RefersTo | ReferredBy, criteria: tuple[Prepared, ...],
             bound: SqlBound) -> HashedIn | None:
        """The other ends, when they are few: as hashes that the search is entered by."""
        path = self._paths.best(work.connection, link.type, criteria, limit=FOUND_MAX + 1)
        if path is None or path.count > FOUND_MAX:
            return None
        if isinstance(link, RefersTo):
            sql = self._matching(work, link.type, criteria, bound)
            hash_ = self._conditions.hash
            hashes = {hash_(link.key, f"{link.type}/{id_}") for (id_,) in work.connection.execute(
                f"SELECT v.id FROM {sql.text} LIMIT {FOUND_MAX + 1}", sql.parameters)}  # noqa: S608
        else:
            sql = self._matching(work, link.type, criteria, bound, "CROSS JOIN index_reference r",
                                 Sql("r.version=v.seq AND r.key=?", (self._conditions.key(link.key),)))
            hashes = {int(str(target)) for (target,) in work.connection.execute(
                f"SELECT DISTINCT r.target FROM {sql.text} LIMIT {FOUND_MAX + 1}", sql.parameters)}  # noqa: S608
        if len(hashes) > min(FOUND_MAX, work.left):
            return None
        work.left -= len(hashes)
        return HashedIn(tuple(hashes))

    def _bound(self, work: _Work, type_: str) -> SqlBound:
        """Raises BadSearch where no other resources are asked about, Forbidden outside the token's scopes."""
        if work.sight is None:
            raise BadSearch("other resources cannot be asked about here", code="not-supported")
        bound = work.bounds.get(type_)
        if bound is None:
            bound = work.bounds[type_] = work.sight.bound(type_)
        return bound

    def _tree(self, work: _Work, under: Under) -> HashedIn:
        """What is named, and what is below or above it: only what the caller may find leads on, or is led to."""
        bound, found = self._bound(work, under.type), {under.id: None}
        step = self._parents if under.above else self._parts
        latest = [under.id]
        while latest:
            latest = [one for one in step(work, under, bound, latest) if one not in found]
            found.update(dict.fromkeys(latest))
            if len(found) > min(TREE_MAX, work.left):
                raise TooCostly(f"more than {TREE_MAX} resources are {'above' if under.above else 'below'} the one "
                                "named; narrow the search", code="too-costly")
        work.left -= len(found)
        return HashedIn(tuple(self._conditions.hash(under.key, f"{under.type}/{one}") for one in found))

    def _parts(self, work: _Work, under: Under, bound: SqlBound, of: Sequence[str]) -> list[str]:
        named = tuple(HashIs(under.by, f"{under.type}/{one}") for one in of)
        sql = self._matching(work, under.type, (Prepared(named),), bound)
        return [str(id_) for (id_,) in work.connection.execute(
            f"SELECT v.id FROM {sql.text} LIMIT {TREE_MAX + 1}", sql.parameters)]  # noqa: S608

    def _parents(self, work: _Work, under: Under, bound: SqlBound, of: Sequence[str]) -> list[str]:
        named = self._matching(
            work, under.type, (Prepared(tuple(IdIs(one) for one in of)),), bound,
            "CROSS JOIN index_reference r CROSS JOIN index_hash s CROSS JOIN version w",
            Sql("r.version=v.seq AND r.key=? AND s.hash=r.target AND w.seq=s.version AND w.type=v.type",
                (self._conditions.key(under.by),)))
        parents = [IdIs(str(id_)) for (id_,) in work.connection.execute(
            f"SELECT DISTINCT w.id FROM {named.text} LIMIT {TREE_MAX + 1}", named.parameters)]  # noqa: S608
        if not parents:
            return []
        seen = self._matching(work, under.type, (Prepared(tuple(parents)),), bound)
        return [str(id_) for (id_,) in work.connection.execute(
            f"SELECT v.id FROM {seen.text} LIMIT {TREE_MAX + 1}", seen.parameters)]  # noqa: S608

    def _register(self, connection: apsw.Connection) -> None:
        if connection not in self._ready:
            hash_ = self._conditions.hash

            def reference_hash(*of: Any) -> int:  # Any: apsw hands over SQLite's values, texts by their columns
                return hash_(of[0], f"{of[1]}/{of[2]}")

            connection.create_scalar_function(REFERENCE_HASH, reference_hash, 3, deterministic=True)
            self._ready.add(connection)


_LATER = frozenset({RefersTo, ReferredBy, Under, Contains, OpenedIs, AllOf, AnyOf, Not})
"""Kinds that must be looked into before a statement is made of them."""


def _holds_opened(predicate: Any) -> bool:
    match predicate:
        case OpenedIs():
            return True
        case AllOf(parts) | AnyOf(parts):
            return any(_holds_opened(part) for part in parts)
        case Not(part):
            return _holds_opened(part)
        case Within(_, criteria):
            return any(_holds_opened(part) for one in criteria for part in one.any_of)
        case _:
            return False


def _relaxed_any(predicates: Sequence[Any]) -> tuple[Any, ...] | None:
    """Alternatives that hold wherever these do and need nothing opened; None: they say nothing."""
    relaxed = [_relaxed(one) for one in predicates]
    return None if any(one is None for one in relaxed) else tuple(relaxed)


def _relaxed(predicate: Any) -> Any:
    match predicate:
        case AllOf(parts):
            known = tuple(one for part in parts if (one := _relaxed(part)) is not None)
            return AllOf(known) if known else None
        case AnyOf(parts):
            found = _relaxed_any(parts)
            return None if found is None else AnyOf(found)
        case Within(inner, criteria):
            left = [Prepared(some, one.negated) for one in criteria
                    if (some := one.any_of if not any(map(_holds_opened, one.any_of)) else
                        None if one.negated else _relaxed_any(one.any_of)) is not None]
            return Within(inner, tuple(left))
        case _:
            return None if _holds_opened(predicate) else predicate
