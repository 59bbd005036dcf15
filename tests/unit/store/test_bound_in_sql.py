"""Invariant 4 in the real schema: a search through the compiled bound is everything filtered by ``decide``.

Three readings of one world agree: the facts and provisions as made, the same as read back from their rows, and the
bound compiled to SQL over those rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings

from gateway.access.bound import bound
from gateway.access.decision import Permit, Request, decide
from gateway.access.facts import ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.crypto.index_hash import IndexHasher
from gateway.records.versions import stored_facts
from gateway.store import journal, provisions
from gateway.store.bound_sql import BoundCompiler
from gateway.store.index import Index, SqlBound
from gateway.store.journal import IndexRows, NewVersion, PatientNames
from gateway.store.sql import Database
from tests.unit.access.worlds import CRITERIA, NOW, World, matcher_of, worlds

INDEX = Index(IndexHasher(bytes(range(32))))
TABLES = ("version", "version_patient", "block", "patient", "index_hash", "index_rows", "provision",
          "provision_category", "matched")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(Path(tmp_path_factory.mktemp("bound")) / "gateway.db", bytes(32))
    made.migrate()
    made.transact(lambda tx: tx.execute("CREATE TABLE matched (version, name, value)"))
    yield made
    made.close()


def store(tx: apsw.Connection, versions: list[ResourceFacts], permits: list[Provision]) -> None:
    for table in TABLES:
        tx.execute(f"DELETE FROM {table}")
    for number, facts in enumerate(versions):
        low, high = facts.period or (None, None)
        categories = [INDEX.category(token) for token in sorted(facts.categories)]
        unique = struct.pack(">Q", number) * 4
        seq = journal.append(tx, NewVersion(
            type=facts.type, id=f"{number}", vid=1, deleted=False, updated_ms=0, client=facts.author_client,
            patients=tuple(home.partition("/")[2] for home in facts.home_patients), user=facts.author_user,
            confidentiality=facts.confidentiality, labels=facts.labels, low_ms=low, high_ms=high,
            categories=struct.pack(f"<{len(categories)}q", *categories), keys=b"", digest=unique, commitment=unique,
            envelope=b"", rows=IndexRows(hashes=tuple(categories))))
        tx.executemany("INSERT INTO matched VALUES (?,?,?)",
                       [(seq, *one) for one in CRITERIA if matcher_of(facts)(facts.type, *one)])
    for provision in permits:
        provisions.put(tx, provision, consent=provision.id, address=None, grantee_hash=INDEX.grantee,
                       category_hash=INDEX.category)


def criterion(_: str, name: str, value: str) -> SqlBound:
    return SqlBound("EXISTS (SELECT 1 FROM matched m WHERE m.version=v.seq AND m.name=? AND m.value=?)", (name, value))


def read_back(connection: apsw.Connection, facts: ResourceFacts, grant: Grant) -> list[Provision]:
    names = {INDEX.grantee(reference): reference for reference in grant.grantees}
    return [row.for_holder(names) for home in facts.home_patients
            for row in provisions.of_patient(connection, home.partition("/")[2])]


@settings(max_examples=60, deadline=None)
@given(world=worlds)
def test_a_search_through_the_bound_is_everything_filtered_by_decide(database: Database, world: World) -> None:
    versions = [world.facts() for _ in range(10)]
    permits = [replace(provision, id=f"c{number}/0") for number, provision in enumerate(world.provisions())]
    database.transact(lambda tx: store(tx, versions, permits))
    connection, names = database.reader, PatientNames()
    stored = [(journal.version(connection, facts.type, f"{number}", 1), facts) for number, facts in enumerate(versions)]
    for _ in range(6):
        grant, fresh = world.grant(), world.random() < 0.8
        for type_ in sorted({facts.type for facts in versions}):
            compiled = BoundCompiler(connection, INDEX.grantee, criterion).compile(
                bound(grant, type_, "s", NOW, chain_fresh=fresh))
            found = [seq for (seq,) in connection.execute(
                f"SELECT v.seq FROM version v WHERE v.type=? AND {compiled.condition} ORDER BY v.seq",
                (type_, *compiled.parameters))]
            as_made, as_stored = [], []
            for row, facts in stored:
                assert row is not None
                if facts.type != type_:
                    continue
                request = Request(interaction="s", stored=facts, chain_fresh=fresh, stored_matcher=matcher_of(facts))
                if isinstance(decide(request, grant, permits, NOW), Permit):
                    as_made.append(row.seq)
                request = replace(request, stored=stored_facts(connection, row, names))
                if isinstance(decide(request, grant, read_back(connection, facts, grant), NOW), Permit):
                    as_stored.append(row.seq)
            assert found == as_made == as_stored
