"""Invariant 4 in the real schema: a search through the compiled bound is everything filtered by ``decide``.

Four readings of one world agree: the prose of the design, ``decide`` over facts and provisions as they were made, the
same over rows read back the way the gate reads them, and the bound compiled to SQL over those rows.

``make test`` looks at 150 random worlds; ``WORLDS=10000 pytest tests/unit/store/test_bound_in_sql.py`` at as many.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings

from gateway.access.bound import bound
from gateway.access.decision import Permit, Request, decide
from gateway.access.facts import ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.crypto.index_hash import IndexHasher
from gateway.records.gate import Caller, Gate
from gateway.records.versions import stored_facts
from gateway.store import journal, provisions
from gateway.store.bound_sql import BoundCompiler
from gateway.store.index import Index, SqlBound
from gateway.store.journal import IndexRows, NewVersion, PatientNames
from gateway.store.sql import MIGRATIONS
from tests.unit.access import oracle
from tests.unit.access.worlds import CRITERIA, NOW, PRIVATE, World, matcher_of, smallest, worlds

MANY = int(os.environ.get("WORLDS", "150"))
INDEX = Index(IndexHasher(bytes(range(32))))
RECORDS, HOLDERS = 12, 6


@pytest.fixture(scope="module")
def schema() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    for file in sorted(MIGRATIONS.glob("*.sql")):
        connection.execute(file.read_text("utf-8"))
    connection.execute("CREATE TABLE matched (version, name, value)")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gateway.records.gate.now_ms", lambda: NOW)
        yield connection


def category(token: str) -> int:
    return INDEX.category(token)


class Stored:
    """One world in the database."""

    def __init__(self, connection: apsw.Connection, versions: Sequence[ResourceFacts], given_: Sequence[Provision]):
        self.versions, self.given, self.connection = versions, given_, connection
        for table in ("version", "version_patient", "block", "patient", "index_hash", "index_rows", "provision",
                      "provision_category", "provision_record", "provision_name", "matched"):
            connection.execute(f"DELETE FROM {table}")
        for number, facts in enumerate(versions):
            self._append(facts, struct.pack(">Q", number) * 4)
        for provision in given_:
            provisions.put(connection, provision, consent=provision.consent, address=None,
                           grantee_hash=INDEX.grantee, category_hash=INDEX.category)
        names = PatientNames()
        rows = [journal.version(connection, facts.type, facts.id, 1) for facts in versions]
        self.read_back = [stored_facts(connection, row, names) for row in rows if row is not None]

    def _append(self, facts: ResourceFacts, unique: bytes) -> None:
        low, high = facts.period or (None, None)
        categories = [INDEX.category(token) for token in sorted(facts.categories)]
        seq = journal.append(self.connection, NewVersion(
            type=facts.type, id=facts.id, vid=1, deleted=False, updated_ms=0, client=facts.author_client,
            patients=tuple(home.partition("/")[2] for home in facts.home_patients), user=facts.author_user,
            confidentiality=facts.confidentiality, labels=facts.labels, low_ms=low, high_ms=high,
            categories=struct.pack(f"<{len(categories)}q", *categories), keys=b"", digest=unique, commitment=unique,
            envelope=b"", rows=IndexRows(hashes=tuple(categories))))
        self.connection.executemany("INSERT INTO matched VALUES (?,?,?)", [
            (seq, *one) for one in CRITERIA if matcher_of(facts)(facts.type, *one)])

    def searched(self, grant: Grant, fresh: bool) -> list[str]:
        """What the bound lets this holder find, as ``Type/id``."""
        found, compiler = [], BoundCompiler(self.connection, INDEX.grantee, criterion)
        for type_ in {facts.type for facts in self.versions}:
            sql = compiler.compile(bound(grant, type_, "s", NOW, chain_fresh=fresh)).at(NOW)
            found += [f"{type_}/{id_}" for (id_,) in self.connection.execute(
                f"SELECT v.id FROM version v WHERE v.type=? AND {sql.condition}", (type_, *sql.parameters))]
        return sorted(found)

    def readings(self, grant: Grant, fresh: bool) -> tuple[list[str], ...]:
        """The same by the bound, by the prose, by ``decide``, and by ``decide`` over what is stored."""
        gate = Gate(index=INDEX, audit=None, plans=None, base_url="")  # type: ignore[arg-type]  # neither is asked
        caller = Caller(grant=grant, seq=journal.decision_seq(self.connection), again=lambda: caller)
        prose, made, stored = [], [], []
        for facts, back in zip(self.versions, self.read_back, strict=True):
            name, matches = f"{facts.type}/{facts.id}", matcher_of(facts)
            if oracle.may_read("s", facts, grant, self.given, NOW, fresh, matches):
                prose.append(name)
            request = Request(interaction="s", stored=facts, chain_fresh=fresh, stored_matcher=matches)
            if isinstance(decide(request, grant, self.given, NOW), Permit):
                made.append(name)
            held = gate.provisions(self.connection, caller, back)
            if isinstance(decide(replace(request, stored=back), grant, held, NOW), Permit):
                stored.append(name)
        return self.searched(grant, fresh), sorted(prose), sorted(made), sorted(stored)

    def differ(self, grant: Grant, fresh: bool) -> bool:
        found = self.readings(grant, fresh)
        return any(one != found[0] for one in found)


def criterion(_: str, name: str, value: str) -> SqlBound:
    return SqlBound("EXISTS (SELECT 1 FROM matched m WHERE m.version=v.seq AND m.name=? AND m.value=?)", (name, value))


def placed(given_: list[Provision]) -> list[Provision]:
    """Provisions drawn one by one each get a place of their own."""
    return [replace(p, id=f"c/{number}") if p.consent == "c" else p for number, p in enumerate(given_)]


@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds)
def test_a_search_through_the_bound_is_everything_filtered_by_decide(schema: apsw.Connection, world: World) -> None:
    versions, given_ = world.records(RECORDS), placed(world.provisions())
    stored = Stored(schema, versions, given_)
    for _ in range(HOLDERS):
        grant, fresh = world.grant(), world.random() < 0.8
        if stored.differ(grant, fresh):
            raise AssertionError(least(schema, versions, given_, grant, fresh))


def least(schema: apsw.Connection, versions: list[ResourceFacts], given_: list[Provision], grant: Grant,
          fresh: bool) -> str:
    """The least of a world whose readings still differ, in words."""
    few = smallest(versions, lambda some: Stored(schema, some, given_).differ(grant, fresh))
    left = smallest(given_, lambda some: Stored(schema, few, some).differ(grant, fresh))
    return f"{Stored(schema, few, left).readings(grant, fresh)}: {few} {left} {grant} {fresh=}"


CHANGES: dict[str, dict[str, Any]] = {
    "named data": {"data": None}, "exceptions": {"exception": False}, "categories": {"categories": None},
    "types": {"types": None}, "purposes": {"purposes": None}, "data periods": {"data_period": None},
    "labels": {"labels": 0}, "confidentiality": {"confidentiality": 5}, "states": {"state": "final"},
    "validity": {"valid_from_ms": 0, "valid_until_ms": 5_000}}


def test_the_worlds_reach_what_they_are_for(schema: apsw.Connection) -> None:
    """Each term of a provision decides something in some of them: without it, somebody finds more or less."""
    world, seen = World(11), Counter(dict.fromkeys((*CHANGES, "several patients", "private", "stalled chain"), 0))
    for _ in range(500):
        if min(seen.values()) >= 3:
            return
        versions, given_ = world.records(RECORDS), placed(world.consents())
        grants = [world.grant() for _ in range(4)]
        stored = Stored(schema, versions, given_)
        before = [stored.searched(grant, True) for grant in grants]
        seen["stalled chain"] += before != [stored.searched(grant, False) for grant in grants]
        found = {name for some in before for name in some}
        seen["several patients"] += any(len(v.home_patients) > 1 and f"{v.type}/{v.id}" in found for v in versions)
        seen["private"] += any(v.labels & PRIVATE and f"{v.type}/{v.id}" in found for v in versions)
        for what, change in CHANGES.items():
            if seen[what] >= 3:
                continue
            other = [replace(p, **change) for p in given_]
            if other != given_:
                after = Stored(schema, versions, other)
                seen[what] += before != [after.searched(grant, True) for grant in grants]
    raise AssertionError(seen)
