"""The disposable search index: facts hashed into rows, queries compiled to SQL.

Owns how a Query and an access bound become one statement, and in which order candidates are walked;
refuses a search without a bound, and never opens a block. https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import apsw

from gateway.crypto.index_hash import IndexHasher
from gateway.errors import TooCostly
from gateway.fhir.query import Criterion, Facts, HashFact, HashIs, Parts, Query, SortKey
from gateway.store.index_links import Links, Sight
from gateway.store.index_paths import PROBE, Path, Paths
from gateway.store.index_sql import NAME, Conditions, Prepared, Sql, SqlBound, alive, joined
from gateway.store.journal import PLACES, VERSION_COLUMNS, IndexRows, VersionRow

__all__ = ["Cursor", "Index", "Match", "Sight", "SqlBound"]

_NOTHING: tuple[Any, ...] = ()
_SORT_LIMIT = 50_000
"""Most candidates sorted without an index to walk."""
_HASHES = 500
"""Most hashes one statement asks for."""


_P = ParamSpec("_P")
_T = TypeVar("_T")
_TOO_DEEP = ("Expression tree is too large", "parser stack overflow", "tables in a join")
"""How SQLite says that a statement asks too much: links behind links, each with more than a few other ends."""


def _bearable(asked: Callable[_P, _T]) -> Callable[_P, _T]:
    """A question whose statement SQLite may find too deep: that is the caller's to narrow."""
    @wraps(asked)
    def ask(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return asked(*args, **kwargs)
        except apsw.SQLError as error:
            if not any(text in str(error) for text in _TOO_DEEP):
                raise
            raise TooCostly("too many links behind links, each to very many resources; narrow the search",
                            code="too-costly") from error
    return ask


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


class Index:
    """Rows for facts, SQL for queries, under one index key."""

    def __init__(self, hasher: IndexHasher) -> None:
        self._hash = hasher.hash_fact
        self._conditions = Conditions(hasher)
        self._paths = Paths(self._conditions)
        self._links = Links(self._conditions, self._paths)

    def rows(self, facts: Facts, *, categories: Iterable[int]) -> IndexRows:
        """Hash ``facts`` for storage; ``categories`` are hashes of ``category``."""
        number_key, hash_fact = self._conditions.key, self._hash
        return IndexRows(
            hashes=tuple({*categories, *[hash_fact(fact.key, fact.text) for fact in facts.hashes],
                          *[hash_fact(NAME, text) for text in facts.names]}),
            # A bare unit stands in for the full one, so that rows in different units stay apart: the key has no code.
            numbers=tuple((number_key(f.key), f.low, f.high,
                           hash_fact(*(("unit", f.unit) if f.unit else ("bare", f.unit_code))),
                           hash_fact("unit", f.unit_code) if f.unit_code else 0) for f in facts.numbers),
            dates=tuple((number_key(f.key), f.low_ms, f.high_ms) for f in facts.dates),
            references=tuple((number_key(f.key), hash_fact(NAME, f.text)) for f in facts.references),
            contained=tuple((place, self.rows(inner, categories=())) for place, inner in facts.contained),
        )

    def category(self, token: str) -> int:
        """The keyed hash of a category token, as rows and provisions hold it."""
        return self._hash("category", token)

    def grantee(self, reference: str) -> int:
        """The keyed hash of a grantee's reference, as provisions hold it."""
        return self._hash("grantee", reference)

    def condition(self, query: Query) -> SqlBound:
        """The criteria alone as a condition on ``version v``: what a granular scope asks. It has no links."""
        sql = self._conditions.all_of(query.criteria, 0)
        return SqlBound(sql.text, sql.parameters)

    def matches(self, connection: apsw.Connection, query: Query, seq: int) -> bool:
        """Whether the version ``seq`` meets the criteria, which have no links."""
        sql = self.condition(query)
        return connection.execute(f"SELECT 1 FROM version v WHERE v.seq=? AND {sql.condition}",  # noqa: S608
                                  (seq, *sql.parameters)).get is not None

    def current_with(self, connection: apsw.Connection, facts: Iterable[HashFact], *, limit: int) -> list[VersionRow]:
        """Present versions that hold any of ``facts``, whoever may see them: the caller decides on each."""
        hashes = [self._hash(fact.key, fact.text) for fact in facts]
        marks = ",".join("?" * len(hashes))
        return [VersionRow(*row) for row in connection.execute(
            f"SELECT DISTINCT {VERSION_COLUMNS} FROM index_hash h JOIN version v ON v.seq=h.version "  # noqa: S608
            f"WHERE h.hash IN ({marks}) AND v.superseded IS NULL AND v.deleted=0 LIMIT ?", (*hashes, limit))]

    def holds(self, connection: apsw.Connection, fact: HashFact) -> bool:
        """Whether any version has the fact, whoever may see it."""
        return connection.execute("SELECT 1 FROM index_hash WHERE hash=? LIMIT 1",
                                  (self._hash(fact.key, fact.text),)).get is not None

    def present(self, connection: apsw.Connection, queries: Sequence[Query]) -> list[Query]:
        """Those of ``queries`` that any stored version may meet, whoever may see it: the others find nothing."""
        wanted = [self._conditions.hashes(one for criterion in query.criteria for one in criterion.any_of)
                  for query in queries]
        hashes = list({hash_ for row in wanted for hash_ in row})
        there: set[int] = set()
        for start in range(0, len(hashes), _HASHES):
            part = hashes[start:start + _HASHES]
            there.update(row[0] for row in connection.execute(
                f"WITH asked(hash) AS (VALUES {','.join(['(?)'] * len(part))}) SELECT hash FROM asked "  # noqa: S608
                "WHERE EXISTS (SELECT 1 FROM index_hash h WHERE h.hash=asked.hash)", part))
        return [query for query, own in zip(queries, wanted, strict=True)
                if not there.isdisjoint(own) or not self._hashed_alone(query)]

    @staticmethod
    def _hashed_alone(query: Query) -> bool:
        """Whether some row of hashes must be there for the query to find anything."""
        return any(all(type(one) is HashIs for one in criterion.any_of) and not criterion.negated
                   for criterion in query.criteria)

    def _where(self, type_: str, criteria: Sequence[Prepared], path: Path | None, bound: SqlBound,
               snapshot: int) -> Sql:
        parts = [Sql("v.type=?", (type_,)), alive(snapshot)]
        parts += [self._conditions.criterion(one, snapshot) for one in (path.left(criteria) if path else criteria)]
        parts.append(Sql(f"({bound.condition})", bound.parameters))
        return joined(" AND ", parts)

    def _prepared(self, connection: apsw.Connection, query: Query, bound: SqlBound, snapshot: int,
                  sight: Sight | None) -> tuple[Prepared, ...]:
        if not bound.condition:
            raise ValueError("a search without an access bound is refused")
        return self._links.prepare(connection, query.type, query.criteria, bound, snapshot=snapshot, sight=sight)

    @_bearable
    def count(self, connection: apsw.Connection, query: Query, bound: SqlBound, *, snapshot: int,
              sight: Sight | None = None) -> int:
        """How many permitted resources match: ``_summary=count``."""
        criteria = self._prepared(connection, query, bound, snapshot, sight)
        if any(one.nothing for one in criteria):
            return 0
        path = self._paths.best(connection, query.type, criteria, probe=False)
        where = self._where(query.type, criteria, path, bound, snapshot)
        each = Sql("count(*)") if query.parts is None else self._parts_count(
            connection, query.type, query.parts, bound, snapshot, sight)
        return int(str(connection.execute(f"SELECT {each.text} FROM {_from(path)} WHERE {where.text}",  # noqa: S608
                                          (*each.parameters, *_given(path), *where.parameters)).get))

    def _parts_count(self, connection: apsw.Connection, type_: str, parts: Parts, bound: SqlBound, snapshot: int,
                     sight: Sight | None) -> Sql:
        inside, itself = self._parts(connection, type_, parts, bound, snapshot, sight)
        return Sql(f"coalesce(sum((SELECT count(*) {inside.text})+({itself.text})),0)",
                   (*inside.parameters, *itself.parameters))

    def _parts(self, connection: apsw.Connection, type_: str, parts: Parts, bound: SqlBound, snapshot: int,
               sight: Sight | None) -> tuple[Sql, Sql]:
        """What ``version v`` contains that is a match, and whether it is one itself."""
        asked = (Criterion((parts.inside,)), *(parts.itself or ()))
        within, *own = self._links.prepare(connection, type_, asked, bound, snapshot=snapshot, sight=sight)
        itself = Sql("0") if parts.itself is None else self._conditions.all_of(own, snapshot)
        return self._conditions.places(within.any_of[0], snapshot), itself

    @_bearable
    def places(self, connection: apsw.Connection, query: Query, bound: SqlBound, seqs: Iterable[int], *,
               snapshot: int, sight: Sight | None = None) -> dict[int, list[int]]:
        """Of versions that match a query for parts, the places of what they contain that does; 0 is the version itself.

        Raises as ``search`` does.
        """
        if query.parts is None:
            raise ValueError("the query is not for what is contained")
        inside, itself = self._parts(connection, query.type, query.parts, bound, snapshot, sight)
        found: dict[int, list[int]] = {}
        for seq in seqs:
            own = query.parts.itself is not None and connection.execute(
                f"SELECT 1 FROM version v WHERE v.seq=? AND ({itself.text})", (seq, *itself.parameters)).get  # noqa: S608
            within = connection.execute(
                f"SELECT (SELECT group_concat(v.seq) {inside.text}) FROM version v WHERE v.seq=?",  # noqa: S608
                (*inside.parameters, seq)).get
            numbers = str(within).split(",") if within is not None else []
            found[seq] = [0] * bool(own) + sorted(-int(one) - seq * PLACES for one in numbers)
        return found

    @_bearable
    def search(self, connection: apsw.Connection, query: Query, bound: SqlBound, *, snapshot: int, limit: int,
               after: Cursor | None = None, sight: Sight | None = None) -> list[Match]:
        """At most ``limit`` permitted matches after the cursor, in the order asked.

        ``sight`` bounds what links may reach. Raises Forbidden for a link to a type outside the token's scopes,
        TooCostly when a sort that no index serves would hold too many candidates, or too many would be opened.
        """
        criteria = self._prepared(connection, query, bound, snapshot, sight)
        if any(one.nothing for one in criteria):
            return []
        path = self._paths.best(connection, query.type, criteria, probe=bool(query.sort))
        where = self._where(query.type, criteria, path, bound, snapshot)
        source, driver = _from(path), Sql("", _given(path))
        if not query.sort:
            return self._run(connection, f"SELECT {VERSION_COLUMNS}, NULL FROM {source} WHERE {where.text} "  # noqa: S608
                             "AND v.seq>? ORDER BY v.seq LIMIT ?",
                             (*driver.parameters, *where.parameters, after.seq if after else 0, limit))
        if len(query.sort) == 1:
            [key] = query.sort
            if key.kind == "date" and (path is None or path.count >= PROBE):
                everything = self._where(query.type, criteria, None, bound, snapshot)
                return self._walk_dates(connection, key, everything, limit, after)
            return self._sorted_by_one(connection, key, source, driver, where, limit, after)
        return self._sorted_by_many(connection, query.sort, source, driver, where, limit, after)

    @staticmethod
    def _run(connection: apsw.Connection, sql: str, parameters: tuple[Any, ...], offset: int = 0) -> list[Match]:
        found = []
        for number, row in enumerate(connection.execute(sql, parameters), offset + 1):
            version = VersionRow(*row[:20])
            found.append(Match(version, Cursor(row[20], version.seq, number)))
        return found

    def _value(self, key: SortKey) -> Sql:
        pick = "max" if key.descending else "min"
        match key.kind:
            case "date":
                return Sql(f"(SELECT {pick}(s.low_ms) FROM index_date s WHERE s.version=v.seq AND s.key=?)",  # noqa: S608
                            (self._conditions.key(key.key),))
            case "number":
                return Sql(f"(SELECT {pick}(s.low) FROM index_number s WHERE s.version=v.seq AND s.key=?)",  # noqa: S608
                            (self._conditions.key(key.key),))
            case "updated":
                return Sql("v.updated_ms", ())
            case "id":
                return Sql("v.id", ())
            case _:
                raise TooCostly(f"sorting by {key.key} needs the values opened", code="too-costly")

    def _sorted_by_one(self, connection: apsw.Connection, key: SortKey, source: str, driver: Sql, where: Sql,
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

    def _walk_dates(self, connection: apsw.Connection, key: SortKey, where: Sql, limit: int,
                    after: Cursor | None) -> list[Match]:
        """Walk the date index in order; the few without a date come last."""
        down, date_key = key.descending, self._conditions.key(key.key)
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

    def _sorted_by_many(self, connection: apsw.Connection, keys: Sequence[SortKey], source: str, driver: Sql,
                        where: Sql, limit: int, after: Cursor | None) -> list[Match]:
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


def _from(path: Path | None) -> str:
    return "version v" if path is None else f"({path.sql.text}) c CROSS JOIN version v ON v.seq=c.version"


def _given(path: Path | None) -> tuple[Any, ...]:
    return _NOTHING if path is None else path.sql.parameters
