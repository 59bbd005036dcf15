"""The disposable search index: facts hashed into rows, queries compiled to SQL.

Owns how a Query and an access bound become one statement, and in which order candidates are walked;
refuses a search without a bound, and never opens a block. https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from gateway.crypto.index_hash import IndexHasher
from gateway.errors import TooCostly
from gateway.fhir.query import (
    AllOf,
    Criterion,
    DateIs,
    Facts,
    HashIs,
    IdIs,
    NumberIs,
    Predicate,
    Query,
    SortKey,
    UpdatedIs,
)
from gateway.store.journal import VERSION_COLUMNS, IndexRows, VersionRow

_PROBE = 400
"""Candidates counted before a criterion is called broad."""
_KEYS_MAX = 8192
_NOTHING: tuple[Any, ...] = ()
_SORT_LIMIT = 50_000
"""Most candidates sorted without an index to walk."""


@dataclass(frozen=True, slots=True)
class SqlBound:
    """The access bound as a condition on ``version v``; an empty condition is refused."""

    condition: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the last page ended: the sort value (None: those without one) and the seq, or a plain offset."""

    value: int | float | None
    seq: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    row: VersionRow
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class _Sql:
    text: str
    parameters: tuple[Any, ...]


def _range(comparator: str, low: str, high: str, asked_low: float, asked_high: float) -> _Sql:
    """R4 prefix rules between the stored range (columns) and the asked range."""
    inside = f"({low}>=? AND {high}<=?)"
    match comparator:
        case "eq":
            return _Sql(inside, (asked_low, asked_high))
        case "ne":
            return _Sql(f"NOT {inside}", (asked_low, asked_high))
        case "gt":
            return _Sql(f"{high}>?", (asked_high,))
        case "lt":
            return _Sql(f"{low}<?", (asked_low,))
        case "ge":
            return _Sql(f"({high}>? OR {inside})", (asked_high, asked_low, asked_high))
        case "le":
            return _Sql(f"({low}<? OR {inside})", (asked_low, asked_low, asked_high))
        case "sa":
            return _Sql(f"{low}>=?", (asked_high,))
        case "eb":
            return _Sql(f"{high}<=?", (asked_low,))
        case _:
            return _Sql(f"({low}<? AND {high}>?)", (asked_high, asked_low))


class Index:
    """Rows for facts, SQL for queries, under one index key."""

    def __init__(self, hasher: IndexHasher) -> None:
        self._hash = hasher.hash_fact
        self._hasher = hasher
        self._keys: dict[str, int] = {}

    def _key(self, key: str) -> int:
        known = self._keys.get(key)
        if known is None:
            known = self._hasher.parameter_id(key)
            if len(self._keys) < _KEYS_MAX:
                self._keys[key] = known
        return known

    def rows(self, facts: Facts, *, categories: Iterable[int]) -> IndexRows:
        """Hash ``facts`` for storage; ``categories`` are hashes of ``category``."""
        number_key, hash_fact = self._key, self._hash
        return IndexRows(
            hashes=tuple({*categories, *[hash_fact(fact.key, fact.text) for fact in facts.hashes]}),
            # A bare unit stands in for the full one, so that rows in different units stay apart: the key has no code.
            numbers=tuple((number_key(f.key), f.low, f.high,
                           hash_fact(*(("unit", f.unit) if f.unit else ("bare", f.unit_code))),
                           hash_fact("unit", f.unit_code) if f.unit_code else 0) for f in facts.numbers),
            dates=tuple((number_key(f.key), f.low_ms, f.high_ms) for f in facts.dates),
        )

    def category(self, token: str) -> int:
        """The keyed hash of a category token, as rows and provisions hold it."""
        return self._hash("category", token)

    def grantee(self, reference: str) -> int:
        """The keyed hash of a grantee's reference, as provisions hold it."""
        return self._hash("grantee", reference)

    def _predicate(self, predicate: Predicate) -> _Sql:
        match predicate:
            case HashIs(key, text):
                return _Sql("EXISTS (SELECT 1 FROM index_hash h WHERE h.hash=? AND h.version=v.seq)",
                            (self._hash(key, text),))
            case NumberIs():
                compare = _range(predicate.comparator, "n.low", "n.high", predicate.low, predicate.high)
                unit, parameters = "", _NOTHING
                if predicate.unit:
                    unit, parameters = " AND n.unit=?", (self._hash("unit", predicate.unit),)
                elif predicate.unit_code:
                    unit, parameters = " AND n.unit_code=?", (self._hash("unit", predicate.unit_code),)
                return _Sql("EXISTS (SELECT 1 FROM index_number n WHERE n.version=v.seq AND n.key=? AND "  # noqa: S608
                            f"{compare.text}{unit})", (self._key(predicate.key), *compare.parameters, *parameters))
            case DateIs():
                compare = _range(predicate.comparator, "d.low_ms", "d.high_ms", predicate.low_ms, predicate.high_ms)
                return _Sql("EXISTS (SELECT 1 FROM index_date d WHERE d.version=v.seq AND d.key=? AND "  # noqa: S608
                            f"{compare.text})", (self._key(predicate.key), *compare.parameters))
            case IdIs(id_):
                return _Sql("v.id=?", (id_,))
            case UpdatedIs():
                return _range(predicate.comparator, "v.updated_ms", "(v.updated_ms+1)", predicate.low_ms,
                              predicate.high_ms)
            case AllOf(parts):
                return self._join(" AND ", [self._predicate(part) for part in parts])

    def _criterion(self, criterion: Criterion) -> _Sql:
        hashes = self._hashes(criterion)
        if hashes is not None:
            marks = ",".join("?" * len(hashes))
            sql = _Sql(f"EXISTS (SELECT 1 FROM index_hash h WHERE h.hash IN ({marks}) AND h.version=v.seq)",  # noqa: S608
                       hashes)
        else:
            sql = self._join(" OR ", [self._predicate(predicate) for predicate in criterion.any_of])
        return _Sql(f"NOT {sql.text}", sql.parameters) if criterion.negated else sql

    @staticmethod
    def _join(word: str, parts: Sequence[_Sql]) -> _Sql:
        if not parts:
            return _Sql("1" if word == " AND " else "0", ())
        return _Sql("(" + word.join(part.text for part in parts) + ")",
                    tuple(value for part in parts for value in part.parameters))

    def _hashes(self, criterion: Criterion) -> tuple[int, ...] | None:
        hashes = []
        for predicate in criterion.any_of:
            if not isinstance(predicate, HashIs):
                return None
            hashes.append(self._hash(predicate.key, predicate.text))
        return tuple(hashes)

    def condition(self, query: Query) -> SqlBound:
        """The criteria alone as a condition on ``version v``: what a granular scope asks."""
        sql = self._join(" AND ", [self._criterion(criterion) for criterion in query.criteria])
        return SqlBound(sql.text, sql.parameters)

    def matches(self, connection: apsw.Connection, query: Query, seq: int) -> bool:
        """Whether the version ``seq`` meets the criteria."""
        sql = self.condition(query)
        return connection.execute(f"SELECT 1 FROM version v WHERE v.seq=? AND {sql.condition}",  # noqa: S608
                                  (seq, *sql.parameters)).get is not None

    def _driver(self, connection: apsw.Connection, query: Query) -> tuple[_Sql, int, Criterion | None]:
        """The FROM clause that yields fewest candidates, about how many (at most _PROBE), what it covers."""
        best: tuple[int, Criterion, tuple[int, ...]] | None = None
        candidates = [(criterion, hashes) for criterion in query.criteria
                      if not criterion.negated and (hashes := self._hashes(criterion)) is not None]
        for criterion, hashes in candidates:
            if len(candidates) == 1 and not query.sort:
                best = (_PROBE, criterion, hashes)
                break
            marks = ",".join("?" * len(hashes))
            count = int(str(connection.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM index_hash WHERE hash IN ({marks}) LIMIT {_PROBE})",  # noqa: S608
                hashes).get))
            if best is None or count < best[0]:
                best = (count, criterion, hashes)
        for criterion in query.criteria:
            ids = [predicate.id for predicate in criterion.any_of if isinstance(predicate, IdIs)]
            if len(ids) == len(criterion.any_of) and not criterion.negated:
                marks = ",".join("?" * len(ids))
                return (_Sql(f"(SELECT seq AS version FROM version WHERE type=? AND id IN ({marks}))",  # noqa: S608
                             (query.type, *ids)), len(ids), criterion)
        if best is None:
            return _Sql("", ()), _PROBE, None
        count, criterion, hashes = best
        if len(hashes) == 1:
            return _Sql("(SELECT version FROM index_hash WHERE hash=?)", hashes), count, criterion
        marks = ",".join("?" * len(hashes))
        return _Sql(f"(SELECT DISTINCT version FROM index_hash WHERE hash IN ({marks}))", hashes), count, criterion  # noqa: S608

    def _where(self, query: Query, covered: Criterion | None, bound: SqlBound, snapshot: int) -> _Sql:
        if not bound.condition:
            raise ValueError("a search without an access bound is refused")
        parts = [_Sql("v.type=? AND v.seq<=? AND (v.superseded IS NULL OR v.superseded>?) AND v.deleted=0",
                      (query.type, snapshot, snapshot))]
        parts += [self._criterion(criterion) for criterion in query.criteria if criterion is not covered]
        parts.append(_Sql(f"({bound.condition})", bound.parameters))
        return _Sql(" AND ".join(part.text for part in parts),
                    tuple(value for part in parts for value in part.parameters))

    def count(self, connection: apsw.Connection, query: Query, bound: SqlBound, *, snapshot: int) -> int:
        """How many permitted resources match: ``_summary=count``."""
        driver, _, covered = self._driver(connection, query)
        where = self._where(query, covered, bound, snapshot)
        source = f"{driver.text} c CROSS JOIN version v ON v.seq=c.version" if driver.text else "version v"
        return int(str(connection.execute(f"SELECT count(*) FROM {source} WHERE {where.text}",  # noqa: S608
                                          (*driver.parameters, *where.parameters)).get))

    def search(self, connection: apsw.Connection, query: Query, bound: SqlBound, *, snapshot: int, limit: int,
               after: Cursor | None = None) -> list[Match]:
        """At most ``limit`` permitted matches after the cursor, in the order asked.

        Raises TooCostly when a sort that no index serves would hold too many candidates.
        """
        driver, estimate, covered = self._driver(connection, query)
        where = self._where(query, covered, bound, snapshot)
        source = f"{driver.text} c CROSS JOIN version v ON v.seq=c.version" if driver.text else "version v"
        if not query.sort:
            return self._run(connection, f"SELECT {VERSION_COLUMNS}, NULL FROM {source} WHERE {where.text} "  # noqa: S608
                             "AND v.seq>? ORDER BY v.seq LIMIT ?",
                             (*driver.parameters, *where.parameters, after.seq if after else 0, limit))
        if len(query.sort) == 1:
            [key] = query.sort
            if key.kind == "date" and estimate >= _PROBE:
                return self._walk_dates(connection, query, key, bound, snapshot, limit, after)
            return self._sorted_by_one(connection, key, source, driver, where, limit, after)
        return self._sorted_by_many(connection, query.sort, source, driver, where, limit, after)

    @staticmethod
    def _run(connection: apsw.Connection, sql: str, parameters: tuple[Any, ...], offset: int = 0) -> list[Match]:
        found = []
        for number, row in enumerate(connection.execute(sql, parameters), offset + 1):
            version = VersionRow(*row[:20])
            found.append(Match(version, Cursor(row[20], version.seq, number)))
        return found

    def _value(self, key: SortKey) -> _Sql:
        pick = "max" if key.descending else "min"
        match key.kind:
            case "date":
                return _Sql(f"(SELECT {pick}(s.low_ms) FROM index_date s WHERE s.version=v.seq AND s.key=?)",  # noqa: S608
                            (self._key(key.key),))
            case "number":
                return _Sql(f"(SELECT {pick}(s.low) FROM index_number s WHERE s.version=v.seq AND s.key=?)",  # noqa: S608
                            (self._key(key.key),))
            case "updated":
                return _Sql("v.updated_ms", ())
            case "id":
                return _Sql("v.id", ())
            case _:
                raise TooCostly(f"sorting by {key.key} needs the values opened", code="too-costly")

    def _sorted_by_one(self, connection: apsw.Connection, key: SortKey, source: str, driver: _Sql, where: _Sql,
                       limit: int, after: Cursor | None) -> list[Match]:
        value, down = self._value(key), key.descending
        seek, seek_parameters = "", _NOTHING
        if after is not None and after.value is not None:
            beyond = "<" if down else ">"
            seek = f"WHERE (o{beyond}? OR (o=? AND seq{beyond}?) OR o IS NULL)"
            seek_parameters = (after.value, after.value, after.seq)
        elif after is not None:
            seek, seek_parameters = f"WHERE o IS NULL AND seq{'<' if down else '>'}?", (after.seq,)
        order = "DESC" if down else "ASC"
        sql = (f"SELECT * FROM (SELECT {VERSION_COLUMNS}, {value.text} AS o FROM {source} WHERE {where.text}) "  # noqa: S608
               f"{seek} ORDER BY o IS NULL, o {order}, seq {order} LIMIT ?")
        return self._run(connection, sql, (*value.parameters, *driver.parameters, *where.parameters,
                                           *seek_parameters, limit))

    def _walk_dates(self, connection: apsw.Connection, query: Query, key: SortKey, bound: SqlBound, snapshot: int,
                    limit: int, after: Cursor | None) -> list[Match]:
        """Walk the date index in order; the few without a date come last."""
        where = self._where(query, None, bound, snapshot)
        down, date_key = key.descending, self._key(key.key)
        order, beyond = ("DESC", "<") if down else ("ASC", ">")
        found: list[Match] = []
        if after is None or after.value is not None:
            seek, seek_parameters = "", _NOTHING
            if after is not None:
                # The plain range comes first so that the index is entered at the cursor.
                seek = f"AND t.low_ms{beyond}=? AND (t.low_ms{beyond}? OR t.version{beyond}?)"
                seek_parameters = (after.value, after.value, after.seq)
            found = self._run(connection, (
                f"SELECT {VERSION_COLUMNS}, t.low_ms FROM index_date t CROSS JOIN version v ON v.seq=t.version "  # noqa: S608
                f"WHERE t.key=? {seek} AND {where.text} AND NOT EXISTS (SELECT 1 FROM index_date u "
                f"WHERE u.version=t.version AND u.key=t.key AND (u.low_ms{'>' if down else '<'}t.low_ms "
                "OR (u.low_ms=t.low_ms AND u.high_ms<t.high_ms))) "
                f"ORDER BY t.low_ms {order}, t.version {order} LIMIT ?"),
                (date_key, *seek_parameters, *where.parameters, limit))
            after = None
        if len(found) < limit:
            found += self._run(connection, (
                f"SELECT {VERSION_COLUMNS}, NULL FROM version v WHERE {where.text} AND NOT EXISTS "  # noqa: S608
                f"(SELECT 1 FROM index_date u WHERE u.version=v.seq AND u.key=?) AND v.seq{beyond}? "
                f"ORDER BY v.seq {order} LIMIT ?"),
                (*where.parameters, date_key, after.seq if after else (2**62 if down else 0), limit - len(found)))
        return found

    def _sorted_by_many(self, connection: apsw.Connection, keys: Sequence[SortKey], source: str, driver: _Sql,
                        where: _Sql, limit: int, after: Cursor | None) -> list[Match]:
        values = [self._value(key) for key in keys]
        columns = ", ".join(f"{value.text} AS o{n}" for n, value in enumerate(values))
        order = ", ".join(f"o{n} IS NULL, o{n} {'DESC' if key.descending else 'ASC'}" for n, key in enumerate(keys))
        parameters = (*(p for value in values for p in value.parameters), *driver.parameters, *where.parameters)
        inner = f"SELECT {VERSION_COLUMNS}, {columns} FROM {source} WHERE {where.text}"  # noqa: S608
        candidates = int(str(connection.execute(
            f"SELECT count(*) FROM ({inner} LIMIT {_SORT_LIMIT + 1})", parameters).get))  # noqa: S608
        if candidates > _SORT_LIMIT:
            raise TooCostly(f"sorting more than {_SORT_LIMIT} resources by several keys; narrow the search",
                            code="too-costly")
        offset = after.offset if after else 0
        return self._run(connection, f"SELECT * FROM ({inner}) ORDER BY {order}, seq LIMIT ? OFFSET ?",  # noqa: S608
                         (*parameters, limit, offset), offset)
