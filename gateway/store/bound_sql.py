"""The access bound as SQL: ``gateway/access/bound.py`` compiled over ``version v`` and ``provision p``.

Owns the translation of every class of the algebra; refuses one it does not know. A property test holds it
equal to the interpreter, so that search and read are the same decision (invariant 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, assert_never

import apsw

from gateway.access.bound import AccessBound, AuthoredBy, EveryPatient, NoHomePatient, OnDuty, OwnOf, ScopeClause, Way
from gateway.access.marks import MARKS, NOTICE, VERIFYING, WITHHELD
from gateway.store import journal
from gateway.store.index import SqlBound
from gateway.store.provisions import NAMES, RECORDS

CriterionSql = Callable[[str, str, str], SqlBound]
"""``(type, parameter, value)`` of a granular scope as a condition on ``version v``."""

_NOBODY = -1
"""A row id no patient has."""
_NAMED_BY_E = (
    "EXISTS (SELECT 1 FROM provision_record r WHERE r.type=v.type AND r.id=v.id AND r.provision=e.pk) "
    "OR EXISTS (SELECT 1 FROM provision_name n CROSS JOIN index_hash ih ON ih.hash=n.hash AND ih.version=v.seq "
    "WHERE n.provision=e.pk)")


class _Now:
    """Stands in a compiled bound's parameters for the moment it is asked at."""


_NOW: Final = _Now()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A bound as SQL for any moment; ``lasting``: the same while ``decision_seq`` and the bound's own facts are,
    since everybody it names had a row."""

    condition: str
    parameters: tuple[Any, ...]
    lasting: bool

    def at(self, now_ms: int) -> SqlBound:
        """The condition a version must meet to be seen at ``now_ms``."""
        return SqlBound(self.condition, tuple([now_ms if one is _NOW else one for one in self.parameters]))


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Which rarer kinds of provisions there are at all. One that comes between this look and the search moves
    ``decision_seq``, as every change of provisions does, and the search is done again."""

    records: int
    names: int
    lifting: int


class BoundCompiler:
    """Compiles bounds for one connection; ``grantee`` hashes a reference as provisions hold it."""

    def __init__(self, connection: apsw.Connection, grantee: Callable[[str], int], criterion: CriterionSql) -> None:
        self._connection = connection
        self._grantee = grantee
        self._criterion = criterion
        self._lasting = True
        self._kinds = _Kinds(*next(connection.execute(
            "SELECT EXISTS (SELECT 1 FROM provision_record), EXISTS (SELECT 1 FROM provision_name), "
            "EXISTS (SELECT 1 FROM provision WHERE exception=1 AND permit=1)")))

    def compile(self, bound: AccessBound) -> Compiled:
        """The bound at any moment: the one its ways name is left to ``Compiled.at``."""
        if bound.nothing:
            return Compiled("0", (), lasting=True)
        self._lasting = True
        sql = _all(_any(self._clause(bound.type, clause) for clause in bound.clauses),
                   _any(self._way(bound.type, way) for way in bound.ways))
        return Compiled(sql.condition, sql.parameters, self._lasting)

    def _clause(self, type_: str, clause: ScopeClause) -> SqlBound:
        parts = [SqlBound("1")]
        if clause.patient is not None:
            pk = self._patient(clause.patient)
            parts.append(SqlBound(
                "(v.patient IS NULL OR v.patient=? OR (v.others>0 AND EXISTS (SELECT 1 FROM version_patient vp "
                "WHERE vp.version=v.seq AND vp.patient=?)))", (pk, pk)))
        parts += [self._criterion(type_, name, value) for name, value in clause.criteria]
        return _all(*parts)

    def _way(self, type_: str, way: Way) -> SqlBound:
        match way:
            case AuthoredBy(client):
                return SqlBound("v.client=?", (client,))
            case OwnOf(client, user):
                return SqlBound("(v.patient IS NULL AND v.client=? AND v.user IS ?)", (client, user))
            case NoHomePatient(confidentiality, labels):
                return SqlBound("(v.patient IS NULL AND v.confidentiality<=? AND v.labels & ~? = 0)",
                                (confidentiality, labels))
            case OnDuty(confidentiality, labels, 0):
                return SqlBound("(v.confidentiality<=? AND v.labels & ~? = 0)", (confidentiality, labels))
            case OnDuty(confidentiality, labels, marks):
                return SqlBound("(v.confidentiality<=? AND v.labels & ~? = 0 AND v.labels & ? <> 0)",
                                (confidentiality, labels | MARKS, marks))
            case EveryPatient():
                first = self._door(type_, way, "v.patient")
                other = self._door(type_, way, "vp.patient")
                wrote, who = ("v.user=?", way.user) if way.user is not None else (
                    "(v.client=? AND v.user IS NULL)", way.client)
                return SqlBound(
                    f"(v.patient IS NOT NULL AND (v.labels & {WITHHELD} = 0 OR {wrote}) "  # noqa: S608
                    f"AND {first.condition} AND (v.others=0 OR NOT EXISTS (SELECT 1 "
                    f"FROM version_patient vp WHERE vp.version=v.seq AND NOT {other.condition})))",
                    (who, *first.parameters, *other.parameters))
            case _:
                assert_never(way)

    def _door(self, type_: str, way: EveryPatient, patient: str) -> SqlBound:
        doors: list[SqlBound] = []
        everyone = [self._grantee(reference) for reference in sorted(way.grantees)]
        if way.own_patient is not None:
            own = [self._grantee(reference) for reference in sorted(way.own_grantees)]
            deny = self._deny(type_, way, patient, own, everyone_matches=False)
            doors.append(_all(SqlBound(f"{patient}=?", (self._patient(way.own_patient),)),
                              SqlBound("v.labels & ? = 0", (way.hidden,)), _not(deny)))
        if way.grants:
            admitting = [self._grantee(reference) for reference in sorted(way.permitted_as)]
            doors.append(_all(self._permit(type_, way, patient, admitting),
                              _not(self._deny(type_, way, patient, everyone, everyone_matches=True))))
        if way.emergency_patient is not None:
            deny = self._deny(type_, way, patient, everyone, everyone_matches=True, with_purposes=True)
            doors.append(_all(SqlBound(f"{patient}=?", (self._patient(way.emergency_patient),)),
                              SqlBound(f"v.labels & {1 | NOTICE} = 0"), _not(deny)))
        return _any(doors)

    def _permit(self, type_: str, way: EveryPatient, patient: str, grantees: list[int]) -> SqlBound:
        return self._speaking(SqlBound(
            f"p.patient={patient} AND ifnull(p.grantee,0) IN ({_marks(grantees)}) AND p.permit=1", tuple(grantees)),
            _covers("p", type_, way))

    def _deny(self, type_: str, way: EveryPatient, patient: str, grantees: list[int], *, everyone_matches: bool,
              with_purposes: bool = False) -> SqlBound:
        named = [0, *grantees] if everyone_matches else grantees
        purposes = " AND p.purposes IS NOT NULL" if with_purposes else ""
        meets = _all(_common("p", type_, way), SqlBound(
            f"p.state<>'revoked'{purposes} AND (v.confidentiality>=p.confidentiality OR v.labels & p.labels <> 0) "
            "AND (p.low_ms IS NULL OR v.low_ms IS NULL OR (v.low_ms<p.high_ms AND v.high_ms>p.low_ms))"))
        if way.grants and self._kinds.lifting:
            lifts = _all(_covers("e", type_, way), SqlBound(f"(e.data=0 OR {_NAMED_BY_E})"))
            meets = _all(meets, SqlBound(
                "(p.exception=1 OR NOT EXISTS (SELECT 1 FROM provision e WHERE e.consent=p.consent "  # noqa: S608
                f"AND e.patient=p.patient AND e.exception=1 AND e.permit=1 AND e.grantee IN ({_marks(grantees)}) "
                f"AND {lifts.condition}))", (*grantees, *lifts.parameters)))
        whose = SqlBound(f"p.patient={patient} AND ifnull(p.grantee,0) IN ({_marks(named)}) AND p.permit=0",
                         tuple(named))
        return self._speaking(whose, meets)

    def _speaking(self, whose: SqlBound, meets: SqlBound) -> SqlBound:
        """A provision for any record, one that names ``v``, or one that names its author or care; each found by its own
        index, and left out where this hospital has none of its kind."""
        values = (*whose.parameters, *meets.parameters)
        held = "provision p INDEXED BY provision_holder"
        parts = [SqlBound(f"EXISTS (SELECT 1 FROM {held} WHERE {whose.condition} AND p.data=0 "  # noqa: S608
                          f"AND {meets.condition})", values)]
        if self._kinds.records:
            parts.append(SqlBound(
                "EXISTS (SELECT 1 FROM provision_record r CROSS JOIN provision p ON p.pk=r.provision "  # noqa: S608
                f"WHERE r.type=v.type AND r.id=v.id AND {whose.condition} AND {meets.condition})", values))
        if self._kinds.names:
            parts.append(SqlBound(
                f"EXISTS (SELECT 1 FROM {held} WHERE {whose.condition} AND p.data IN ({NAMES},{NAMES | RECORDS}) "  # noqa: S608
                "AND EXISTS (SELECT 1 FROM provision_name n CROSS JOIN index_hash ih ON ih.hash=n.hash "
                f"AND ih.version=v.seq WHERE n.provision=p.pk) AND {meets.condition})", values))
        return _any(parts)

    def _patient(self, reference: str) -> int:
        pk = journal.patient_pk(self._connection, reference.removeprefix("Patient/"))
        if pk is None:
            self._lasting = False
            return _NOBODY
        return pk


def _common(p: str, type_: str, way: EveryPatient) -> SqlBound:
    return SqlBound(
        f"{p}.valid_from_ms<=? AND {p}.valid_until_ms>? AND ({p}.purposes IS NULL OR instr({p}.purposes, ?)>0) "  # noqa: S608
        f"AND ({p}.types IS NULL OR instr({p}.types, ?)>0) AND ({p}.categories=0 OR EXISTS (SELECT 1 "
        f"FROM provision_category pc JOIN index_hash ih ON ih.hash=pc.hash AND ih.version=v.seq "
        f"WHERE pc.provision={p}.pk))",
        (_NOW, _NOW, f"|{way.purpose}|", f"|{type_}|"))


def _covers(p: str, type_: str, way: EveryPatient) -> SqlBound:
    return _all(_common(p, type_, way), SqlBound(
        f"{p}.state='final' AND v.confidentiality<={p}.confidentiality AND v.labels & ~{p}.labels & ~{VERIFYING} = 0 "
        f"AND ({p}.low_ms IS NULL OR (v.low_ms>={p}.low_ms AND v.high_ms<={p}.high_ms))"))


def _marks(values: list[Any]) -> str:
    return ",".join("?" * len(values))


def _all(*parts: SqlBound) -> SqlBound:
    return SqlBound("(" + " AND ".join(part.condition for part in parts) + ")",
                    tuple(value for part in parts for value in part.parameters))


def _any(parts: Iterable[SqlBound]) -> SqlBound:
    found = list(parts)
    if not found:
        return SqlBound("0")
    return SqlBound("(" + " OR ".join(part.condition for part in found) + ")",
                    tuple(value for part in found for value in part.parameters))


def _not(part: SqlBound) -> SqlBound:
    return SqlBound(f"(NOT {part.condition})", part.parameters)
