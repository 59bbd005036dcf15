"""The bound as the store compiles it finds exactly what decide permits: search = filter by decide. Invariant 4."""

from __future__ import annotations

import struct
from dataclasses import replace

import apsw
from hypothesis import given, settings

from gateway.access.bound import bound
from gateway.access.decision import Permit, Request, decide
from gateway.access.facts import ResourceFacts
from gateway.access.provision import Provision
from gateway.crypto.index_hash import IndexHasher
from gateway.fhir.query import Facts
from gateway.store import journal, provisions
from gateway.store.bound_sql import BoundCompiler
from gateway.store.index import Index, SqlBound
from gateway.store.journal import NewVersion
from gateway.store.sql import MIGRATIONS
from tests.unit.access.worlds import NOW, World, matcher_of, worlds

INDEX = Index(IndexHasher(bytes(32)))


def stored(versions: list[ResourceFacts], given_: list[Provision]) -> apsw.Connection:
    """A database in memory under the real schema; versions get the seqs 1, 2, 3 ..."""
    connection = apsw.Connection(":memory:")
    for file in sorted(MIGRATIONS.glob("*.sql")):
        connection.execute(file.read_text("utf-8"))
    for number, version in enumerate(versions, 1):
        categories = [INDEX.category(token) for token in sorted(version.categories)]
        low_ms, high_ms = version.period or (None, None)
        assert number == journal.append(connection, NewVersion(
            type=version.type, id=f"v{number}", vid=1, deleted=False, updated_ms=0,
            patients=tuple(patient.removeprefix("Patient/") for patient in version.home_patients),
            client=version.author_client, user=version.author_user, confidentiality=version.confidentiality,
            labels=version.labels, low_ms=low_ms, high_ms=high_ms,
            categories=struct.pack(f"<{len(categories)}q", *categories), keys=b"", digest=bytes([number]),
            commitment=b"", envelope=b"", rows=INDEX.rows(Facts(), categories=categories)))
    for provision in given_:
        provisions.put(connection, provision, consent="c", address=None, grantee_hash=INDEX.grantee,
                       category_hash=INDEX.category)
    return connection


@settings(max_examples=40, deadline=None)
@given(worlds)
def test_a_search_by_the_bound_finds_what_decide_permits(world: World) -> None:
    versions = [world.facts() for _ in range(12)]
    given_ = [replace(p, id=f"c/{number}") for number, p in enumerate(world.provisions())]
    connection = stored(versions, given_)

    def criterion(type_: str, name: str, value: str) -> SqlBound:
        matching = [str(seq) for seq, v in enumerate(versions, 1)
                    if v.type == type_ and matcher_of(v)(type_, name, value)]
        return SqlBound(f"v.seq IN ({','.join(matching)})")

    compiler = BoundCompiler(connection, INDEX.grantee, criterion)
    for _ in range(6):
        grant, fresh = world.grant(), world.random() < 0.8
        for type_ in sorted({v.type for v in versions}):
            sql = compiler.compile(bound(grant, type_, "s", NOW, chain_fresh=fresh))
            found = [seq for (seq,) in connection.execute(
                f"SELECT v.seq FROM version v WHERE v.type=? AND {sql.condition} ORDER BY v.seq",
                (type_, *sql.parameters))]
            assert found == [seq for seq, v in enumerate(versions, 1) if v.type == type_ and isinstance(decide(
                Request(interaction="s", stored=v, chain_fresh=fresh, stored_matcher=matcher_of(v)),
                grant, given_, NOW), Permit)]
    connection.close()


def test_the_rows_of_a_patient_read_back_as_the_provisions_that_were_put() -> None:
    world = World(3)
    given_ = [replace(world.provision(), id=f"c/{number}", state="final") for number in range(60)]
    connection = stored([], given_)
    for patient in ("1", "2"):
        names = {INDEX.grantee(p.grantee): p.grantee for p in given_ if p.grantee is not None}
        expected = [replace(p, categories=None if p.categories is None else frozenset(
            str(INDEX.category(token)) for token in p.categories))
            for p in given_ if p.patient == f"Patient/{patient}"]
        assert [row.for_holder(names) for row in provisions.of_patient(connection, patient)] == expected
