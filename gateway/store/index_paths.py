"""Ways into the index: which rows a criterion names without walking a whole type.

Owns the statement that yields a criterion's candidates and the choice of the narrowest; refuses ways that would pass
over rows that do not match. https://www.sqlite.org/queryplanner.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from gateway.fhir.query import AllOf, AnyOf, DateIs, HashIs, IdIs, NumberIs, SpanIs, VersionIs
from gateway.fhir.search_contained import MARK
from gateway.store.index_sql import Conditions, HashedIn, Prepared, Sql, Within, any_of, compared, marks
from gateway.store.journal import PLACES

PROBE = 400
"""Candidates counted before a criterion is called broad."""


@dataclass(frozen=True, slots=True)
class Path:
    """Candidates of a criterion as rows of ``version``.

    ``walks``: in commit order, so that a broad one may be begun and left. ``count`` is exact below the limit it was
    counted to.
    """

    sql: Sql
    criterion: Prepared
    walks: bool
    count: int = PROBE

    def left(self, criteria: Iterable[Prepared]) -> list[Prepared]:
        """The criteria that its candidates must still be asked."""
        whole = all(type(one) in _WHOLE for one in self.criterion.any_of)
        return [one for one in criteria if one is not self.criterion or not whole]


_WHOLE = frozenset({HashIs, HashedIn, IdIs, VersionIs, DateIs})
"""Kinds whose way yields no other rows."""


class Paths:
    """Finds ways for one index key."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions

    def best(self, connection: apsw.Connection, type_: str, criteria: Sequence[Prepared], *, limit: int = PROBE,
             probe: bool = True) -> Path | None:
        """The way with fewest candidates; a broad one only where it can be left early.

        ``probe`` False: a single way is taken without being counted.
        """
        found = [path for one in criteria if not one.negated for path in self._ways(type_, one)]
        if not probe and len(found) == 1 and found[0].walks:
            return found[0]
        best: Path | None = None
        for path in found:
            counted = Path(path.sql, path.criterion, path.walks, self.count(connection, path.sql, limit))
            if (best is None or counted.count < best.count) and (counted.walks or counted.count < limit):
                best = counted
                if counted.count <= 1:
                    break
        return best

    @staticmethod
    def count(connection: apsw.Connection, sql: Sql, limit: int) -> int:
        """How many candidates, at most ``limit``."""
        return int(str(connection.execute(f"SELECT count(*) FROM ({sql.text} LIMIT {limit})",  # noqa: S608
                                          sql.parameters).get))

    def _ways(self, type_: str, criterion: Prepared) -> list[Path]:
        """Of what is contained, one for each thing asked of it; else one or none."""
        if len(criterion.any_of) == 1 and type(criterion.any_of[0]) is Within:
            return [Path(sql, criterion, walks=False) for sql in self._containers(type_, criterion.any_of[0])]
        path = self._path(type_, criterion)
        return [] if path is None else [path]

    def _containers(self, type_: str, within: Within) -> list[Sql]:
        """Of contained resources that may meet the criteria, the containers."""
        found = []
        for one in within.criteria:
            if one.negated or any(_names_versions(part) for part in one.any_of):
                continue
            ways = self._any(type_, one.any_of)
            if ways:
                found.append(_containing(Sql(" UNION ".join(way.text for way in ways),
                                             tuple(value for way in ways for value in way.parameters))))
        return found

    def _path(self, type_: str, criterion: Prepared) -> Path | None:
        parts = self._any(type_, criterion.any_of)
        if not parts:
            return None
        only = criterion.any_of
        walks = all(type(one) in (HashIs, HashedIn) for one in only)
        if len(parts) == 1:
            return Path(parts[0], criterion, walks)
        return Path(Sql(" UNION ".join(part.text for part in parts),
                        tuple(value for part in parts for value in part.parameters)), criterion, walks)

    def _any(self, type_: str, predicates: Sequence[Any]) -> list[Sql] | None:
        """The statements whose union holds every candidate; None when some predicate has no way in."""
        parts: list[Sql] = []
        hashes = self._conditions.hashes(predicates)
        if len(hashes) == 1:
            parts.append(Sql("SELECT version FROM index_hash WHERE hash=?", hashes))
        elif hashes:
            among = any_of(hashes)
            parts.append(Sql(f"SELECT DISTINCT version FROM index_hash WHERE hash IN {among.text}",  # noqa: S608
                             among.parameters))
        ids = [one.id for one in predicates if type(one) is IdIs]
        if ids:
            # Left to itself SQLite walks the type here: it has the seq in that index, and knows nothing of how many.
            parts.append(Sql("SELECT seq AS version FROM version INDEXED BY version_place "  # noqa: S608
                             f"WHERE type=? AND id IN ({marks(ids)})", (type_, *ids)))
        for one in predicates:
            if type(one) in (HashIs, HashedIn, IdIs):
                continue
            more = self._other(type_, one)
            if more is None:
                return None
            parts += more
        return parts

    def _other(self, type_: str, predicate: Any) -> list[Sql] | None:
        match predicate:
            case VersionIs(seqs):
                among = any_of(seqs)
                return [Sql(f"SELECT seq AS version FROM version WHERE seq IN {among.text}", among.parameters)]  # noqa: S608
            case DateIs(key, comparator, low, high):
                return self._range("index_date", "low_ms", "high_ms", key, comparator, low, high)
            case NumberIs(key, comparator, low, high):
                return self._range("index_number", "low", "high", key, comparator, low, high)
            case SpanIs():  # the key names what the coordinates are on; of it, the low end where that is bounded
                ends = self._conditions.span_range(predicate, "n")
                return [Sql("SELECT DISTINCT version FROM index_number n WHERE n.key=? AND "  # noqa: S608
                            f"{ends.text}", (self._conditions.key(predicate.key), *ends.parameters))]
            case AllOf(parts):
                hashed = sorted(parts, key=lambda part: type(part) not in (HashIs, HashedIn))
                ways = [way for part in hashed if (way := self._any(type_, (part,))) is not None]
                return ways[0] if ways else None
            case AnyOf(parts):
                return self._any(type_, parts)
            case Within(inner):
                marked = Sql("SELECT version FROM index_hash WHERE hash=?", (self._conditions.hash(MARK, inner),))
                return (self._containers(type_, predicate) or [_containing(marked)])[:1]
            case _:
                return None

    def _range(self, table: str, low: str, high: str, key: str, comparator: str, asked_low: float,
               asked_high: float) -> list[Sql] | None:
        """By the low end, in which the rows are ordered, where hardly another row is passed over."""
        if comparator not in ("eq", "lt", "le", "sa"):
            return None
        condition = compared(comparator, low, high, asked_low, asked_high)
        entry = Sql("1") if comparator == "sa" else Sql(f"{low}<=?", (asked_high,))
        return [Sql(f"SELECT DISTINCT version FROM {table} WHERE key=? AND {entry.text} AND {condition.text}",  # noqa: S608
                    (self._conditions.key(key), *entry.parameters, *condition.parameters))]


def _containing(inner: Sql) -> Sql:
    return Sql(f"SELECT DISTINCT -version/{PLACES} AS version FROM ({inner.text})", inner.parameters)  # noqa: S608


def _names_versions(predicate: Any) -> bool:
    """Whether it names what was opened by its number, for which no row of the index is asked."""
    match predicate:
        case VersionIs():
            return True
        case AllOf(parts) | AnyOf(parts):
            return any(_names_versions(part) for part in parts)
        case _:
            return False
