"""The bound's SQL reading, as its docstrings give it, finds exactly what decide permits (search = filter by decide)."""

from __future__ import annotations

import sqlite3

from hypothesis import given, settings

from gateway.access.bound import AuthoredBy, EveryPatient, NoHomePatient, OnDuty, ScopeClause, bound
from gateway.access.decision import Permit, Request, decide
from gateway.access.facts import ResourceFacts
from gateway.access.provision import Provision
from tests.unit.access.worlds import CRITERIA, NOW, World, matcher_of, worlds

SCHEMA = """
CREATE TABLE version (seq INTEGER PRIMARY KEY, type, client, confidentiality, labels, low_ms, high_ms);
CREATE TABLE home (version, patient);
CREATE TABLE version_category (version, token);
CREATE TABLE matched (version, name, value);
CREATE TABLE provision (pk INTEGER PRIMARY KEY, patient, grantee, permit, types, categories, confidentiality, labels,
  purposes, low_ms, high_ms, valid_from_ms, valid_until_ms, state);
CREATE TABLE provision_category (provision, token);
"""


def store(connection: sqlite3.Connection, versions: list[ResourceFacts], provisions: list[Provision]) -> None:
    for table in ("version", "home", "version_category", "matched", "provision", "provision_category"):
        connection.execute(f"DELETE FROM {table}")
    for seq, v in enumerate(versions):
        low, high = v.period or (None, None)
        connection.execute("INSERT INTO version VALUES (?,?,?,?,?,?,?)",
                           (seq, v.type, v.author_client, v.confidentiality, v.labels, low, high))
        connection.executemany("INSERT INTO home VALUES (?,?)", [(seq, p) for p in v.home_patients])
        connection.executemany("INSERT INTO version_category VALUES (?,?)", [(seq, c) for c in v.categories])
        connection.executemany("INSERT INTO matched VALUES (?,?,?)",
                               [(seq, *c) for c in CRITERIA if matcher_of(v)(v.type, *c)])
    for pk, p in enumerate(provisions):
        low, high = p.data_period or (None, None)
        types, purposes = (None if s is None else f"|{'|'.join(s)}|" for s in (p.types, p.purposes))
        connection.execute(
            "INSERT INTO provision VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (pk, p.patient, p.grantee, p.permit, types, p.categories is not None, p.confidentiality, p.labels, purposes,
             low, high, p.valid_from_ms, p.valid_until_ms, p.state))
        connection.executemany("INSERT INTO provision_category VALUES (?,?)", [(pk, c) for c in p.categories or ()])


def provision_sql(way: EveryPatient, type_: str, grantees: frozenset[str], *, permit: bool, everyone: bool,
                  explicit: bool = False) -> str:
    """EXISTS a permit (certainly inside) or a deny (possibly inside) of patient ``h``. Values are the test's own."""
    named = f"p.grantee IN ({','.join(repr(g) for g in sorted(grantees))})"
    parts = [
        f"p.patient = h.patient AND {'' if permit else 'NOT'} p.permit",
        "p.state = 'final'" if permit else "p.state <> 'revoked'",
        f"({named} OR p.grantee IS NULL)" if everyone else named,
        f"p.valid_from_ms <= {way.now_ms} AND {way.now_ms} < p.valid_until_ms",
        f"(p.types IS NULL OR instr(p.types, '|{type_}|'))",
        f"{'p.purposes IS NOT NULL AND' if explicit else ''} "
        f"(p.purposes IS NULL OR instr(p.purposes, '|{way.purpose}|'))",
        "(NOT p.categories OR EXISTS (SELECT 1 FROM provision_category a JOIN version_category b ON a.token = b.token "
        "WHERE a.provision = p.pk AND b.version = v.seq))",
        "v.confidentiality <= p.confidentiality AND v.labels & ~p.labels = 0" if permit
        else "(v.confidentiality >= p.confidentiality OR v.labels & p.labels <> 0)",
        "(p.low_ms IS NULL OR coalesce(v.low_ms >= p.low_ms AND v.high_ms <= p.high_ms, 0))" if permit
        else "(p.low_ms IS NULL OR v.low_ms IS NULL OR v.low_ms < p.high_ms AND v.high_ms > p.low_ms)",
    ]
    return f"EXISTS (SELECT 1 FROM provision p WHERE {' AND '.join(parts)})"


def way_sql(way: AuthoredBy | NoHomePatient | OnDuty | EveryPatient, type_: str) -> str:
    has_home = "EXISTS (SELECT 1 FROM home h WHERE h.version = v.seq)"
    match way:
        case AuthoredBy(client):
            return f"v.client = '{client}'"
        case NoHomePatient(rank, labels):
            return f"NOT {has_home} AND v.confidentiality <= {rank} AND v.labels & ~{labels} = 0"
        case OnDuty(rank, labels):
            return f"v.confidentiality <= {rank} AND v.labels & ~{labels} = 0"
        case EveryPatient():
            own = (f"h.patient = '{way.own_patient}' AND v.labels & {way.hidden} = 0 AND NOT "
                   + provision_sql(way, type_, way.own_grantees, permit=False, everyone=False))
            granted = (f"{int(way.grants)} AND {provision_sql(way, type_, way.grantees, permit=True, everyone=False)} "
                       f"AND NOT {provision_sql(way, type_, way.grantees, permit=False, everyone=True)}")
            emergency = (f"h.patient = '{way.emergency_patient}' AND v.labels & 1 = 0 AND NOT "
                         + provision_sql(way, type_, way.grantees, permit=False, everyone=True, explicit=True))
            return (f"{has_home} AND NOT EXISTS (SELECT 1 FROM home h WHERE h.version = v.seq AND NOT "
                    f"(({own}) OR ({granted}) OR ({emergency})))")


def clause_sql(clause: ScopeClause) -> str:
    parts = ["1"]
    if clause.patient is not None:
        parts.append("(NOT EXISTS (SELECT 1 FROM home h WHERE h.version = v.seq) OR EXISTS "
                     f"(SELECT 1 FROM home h WHERE h.version = v.seq AND h.patient = '{clause.patient}'))")
    parts += [f"EXISTS (SELECT 1 FROM matched m WHERE m.version = v.seq AND m.name = '{n}' AND m.value = '{x}')"
              for n, x in clause.criteria]
    return " AND ".join(parts)


@settings(max_examples=40, deadline=None)
@given(world=worlds)
def test_a_search_by_the_bound_finds_what_decide_permits(world: World) -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    versions, provisions = [world.facts() for _ in range(12)], world.provisions()
    store(connection, versions, provisions)
    for _ in range(6):
        grant, fresh = world.grant(), world.random() < 0.8
        for type_ in sorted({v.type for v in versions}):
            limit = bound(grant, type_, "s", NOW, chain_fresh=fresh)
            found = [] if limit.nothing else [seq for (seq,) in connection.execute(
                f"SELECT v.seq FROM version v WHERE v.type = '{type_}' AND "
                f"({' OR '.join(f'({clause_sql(c)})' for c in limit.clauses)}) AND "
                f"({' OR '.join(f'({way_sql(w, type_)})' for w in limit.ways)}) ORDER BY v.seq")]
            assert found == [seq for seq, v in enumerate(versions) if v.type == type_ and isinstance(decide(
                Request(interaction="s", stored=v, chain_fresh=fresh, stored_matcher=matcher_of(v)),
                grant, provisions, NOW), Permit)]
    connection.close()
