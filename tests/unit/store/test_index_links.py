"""Chains and ``_has`` in SQL find what following every visible reference finds, under any bound.

https://hl7.org/fhir/R4/search.html#chaining; invariant 4: what may not be found changes no result.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.crypto.index_hash import IndexHasher
from gateway.errors import BadSearch, Forbidden
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Criterion, Facts, OpenedIs, Query, ReferredBy, RefersTo, Under, VersionIs
from gateway.fhir.search import SearchExtractor, SearchMatcher, parse_query
from gateway.store import index_links, journal
from gateway.store.index import Index, Sight, SqlBound
from gateway.store.journal import NewVersion
from gateway.store.sql import Database

EXTRACTOR = SearchExtractor(Definitions.load(), ("http://me/fhir",))
INDEX = Index(IndexHasher(bytes(range(32))))
NOW_MS = 1_700_000_000_000
TABLES = ("version", "block", "index_hash", "index_rows", "index_number", "index_date", "index_reference")
Stored = list[tuple[str, str, Facts]]
Visible = dict[str, set[str]]

QUESTIONS = (
    ("Observation", "subject:Patient.family", "berg,lee"), ("Observation", "subject.family", "berg"),
    ("Observation", "patient.organization.name", "west"), ("Observation", "subject:Patient.gender:not", "male"),
    ("Observation", "subject.identifier", "urn:s|1,urn:s|2"), ("Observation", "patient._id", "1,2"),
    ("Observation", "patient.birthdate:missing", "true"), ("Observation", "encounter.subject:Patient.family", "lee"),
    ("Observation", "encounter.date", "ge2024-02"), ("Observation", "encounter.date", "2024-01"),
    ("Observation", "patient._has:Observation:patient:code", "a"), ("Observation", "subject:missing", "true"),
    ("Observation", "encounter:missing", "false"), ("Observation", "patient:missing", "true"),
    ("Observation", "value-quantity:missing", "true"), ("Observation", "date:missing", "false"),
    ("Observation", "status:missing", "true"), ("Observation", "code:missing", "false"),
    ("Observation", "code:text", "blood"), ("Observation", "subject:identifier", "urn:s|x"),
    ("Observation", "patient:identifier", "urn:s|x"),
    ("Observation", "_filter", "subject.family sw berg or code eq a"),
    ("Observation", "_filter", "not (code eq a) and value-quantity gt 3"),
    ("Observation", "_filter", "date po 2024-01 or code pr false"),
    ("Observation", "_filter", "subject[gender eq male].family sw berg or code eq a"),
    ("Observation", "_filter", "encounter[class eq AMB].subject[gender eq male].organization.name sw w"),
    ("Patient", "_has:Observation:patient:code", "a"), ("Patient", "_has:Observation:subject:code:not", "a,b"),
    ("Patient", "_has:Observation:patient:_has:Provenance:target:recorded", "ge2024"),
    ("Patient", "_has:Observation:patient:encounter.class", "AMB"), ("Patient", "organization.partof.name", "north"),
    ("Patient", "organization.name:exact", "West"), ("Patient", "_has:Encounter:patient:date", "lt2024-02"),
    ("Patient", "identifier:of-type", "urn:t|MR|1"), ("Patient", "phonetic", "bergh"),
    ("Patient", "_filter", "family sw be and gender ne male"), ("Patient", "gender:in",
     "http://hl7.org/fhir/ValueSet/administrative-gender"), ("Encounter", "_has:Observation:encounter:code", "b,c"),
    ("Organization", "_has:Patient:organization:family", "berg"), ("Encounter", "subject.organization.name", "west"),
    ("Organization", "_has:Organization:partof:_has:Patient:organization:gender", "female"),
    ("Patient", "organization:below", "1"), ("Patient", "organization:above", "Organization/2,Organization/3"),
    ("Organization", "partof:below", "1,2"), ("Organization", "partof:above", "Organization/3"),
    ("Observation", "patient.organization:below", "2"), ("Organization", "_has:Patient:organization:organization:above",
                                                         "1"),
)


class Hospital(Random):
    """A small world whose resources refer to one another, now and then to nobody."""

    def refer(self, type_: str, most: int = 4) -> dict[str, Any]:
        made: dict[str, Any] = {"reference": f"{type_}/{self.randint(1, most)}"}
        if self.random() < 0.2:
            made = {"identifier": {"system": "urn:s", "value": "x"}, **({} if self.random() < 0.5 else {"type": type_})}
        return made

    def resources(self) -> Iterator[dict[str, Any]]:
        for number in range(1, 4):
            yield {"resourceType": "Organization", "id": f"{number}",
                   "name": self.choice(("West", "North", "west wing")),
                   **({"partOf": self.refer("Organization", 3)} if self.random() < 0.7 else {})}
        for number in range(1, 6):
            yield {"resourceType": "Patient", "id": f"{number}", "gender": self.choice(("male", "female")),
                   "name": [{"family": self.choice(("Berg", "Lee", "Bergson", "Burk"))}],
                   "identifier": [{"system": "urn:s", "value": str(number),
                                   "type": {"coding": [{"system": "urn:t", "code": "MR"}]}}],
                   **({"birthDate": "1970"} if self.random() < 0.5 else {}),
                   **({"managingOrganization": self.refer("Organization", 3)} if self.random() < 0.7 else {})}
        for number in range(1, 6):
            yield {"resourceType": "Encounter", "id": f"{number}", "status": "finished",
                   "class": {"code": self.choice(("AMB", "IMP"))}, "subject": self.refer("Patient", 5),
                   "period": {"start": self.choice(("2024-01-01", "2024-02-01", "2024-03-01")), "end": "2024-03-02"}}
        for number in range(1, 12):
            yield {"resourceType": "Observation", "id": f"{number}",
                   **({"status": "final"} if self.random() < 0.8 else {"_status": {"extension": []}}),
                   "code": {"coding": [{"system": "urn:c", "code": self.choice("abc"), "display": "Blood pressure"}]},
                   **({"subject": self.refer(self.choice(("Patient", "Patient", "Group")), 5)}
                      if self.random() < 0.8 else {}),
                   **({"encounter": self.refer("Encounter", 5)} if self.random() < 0.6 else {}),
                   **({"valueQuantity": {"value": self.randint(1, 6)}} if self.random() < 0.5 else {}),
                   **({"effectiveDateTime": "2024-01-05"} if self.random() < 0.5 else {})}
        for number in range(1, 4):
            yield {"resourceType": "Provenance", "id": f"{number}", "recorded": self.choice(
                ("2023-01-01T00:00:00Z", "2024-01-01T00:00:00Z")), "target": [self.refer("Observation", 11)],
                "agent": [{"who": {"reference": "Practitioner/1"}}]}

    def visible(self, stored: Stored) -> Visible:
        found: Visible = {}
        for type_, id_, _ in stored:
            if self.random() < 0.8:
                found.setdefault(type_, set()).add(id_)
        return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(Path(tmp_path_factory.mktemp("links")) / "gateway.db", bytes(32))
    made.migrate()
    yield made
    made.close()


def put(database: Database, resources: list[dict[str, Any]]) -> Stored:
    stored = [(one["resourceType"], one["id"], EXTRACTOR.facts(one)) for one in resources]

    def work(tx: apsw.Connection) -> None:
        for table in TABLES:
            tx.execute(f"DELETE FROM {table}")
        for number, (type_, id_, facts) in enumerate(stored):
            unique = struct.pack(">Q", number) * 4
            journal.append(tx, NewVersion(
                type=type_, id=id_, vid=1, deleted=False, updated_ms=5, patients=(), client="c", user=None,
                confidentiality=3, labels=0, low_ms=None, high_ms=None, categories=b"", keys=b"", digest=unique,
                commitment=unique, envelope=b"", rows=INDEX.rows(facts, categories=())))
    database.transact(work)
    return stored


def bound_of(visible: Visible, type_: str) -> SqlBound:
    ids = sorted(visible.get(type_, ()))
    return SqlBound(f"v.id IN ({','.join('?' * len(ids))})", tuple(ids)) if ids else SqlBound("0")


def read(type_: str, name: str, value: str) -> Query:
    return parse_query(EXTRACTOR.plans, type_, [(name, value)], strict=True, own_bases=("http://me/fhir",),
                       max_count=1000, now_ms=NOW_MS)


def find(database: Database, visible: Visible, query: Query) -> list[str]:
    connection, sight = database.reader, Sight(bound=lambda type_: bound_of(visible, type_))
    bound = bound_of(visible, query.type)
    found = INDEX.search(connection, query, bound, snapshot=2**60, limit=1000, sight=sight)
    assert INDEX.count(connection, query, bound, snapshot=2**60, sight=sight) == len(found)
    return [match.row.id for match in found]


def expected(stored: Stored, visible: Visible, query: Query) -> list[str]:
    """By following every reference to what may be found."""
    seen = [one for one in stored if one[1] in visible.get(one[0], ())]

    def tree(asked: Under) -> set[str]:
        """What is named, and all that leads to it, or it leads to, over what may be found."""
        links = [(f"{type_}/{id_}", fact.text) for type_, id_, facts in seen for fact in facts.references
                 if fact.key == asked.by]
        there = {f"{type_}/{id_}" for type_, id_, _ in seen}
        steps = [(upper, lower) for lower, upper in links]
        if asked.above:
            steps = [(lower, upper) for upper, lower in steps if upper in there]
        found = {f"{asked.type}/{asked.id}"}
        while more := {end for start, end in steps if start in found} - found:
            found |= more
        return found

    def holds(one: tuple[str, str, Facts], criteria: tuple[Criterion, ...]) -> bool:
        def beyond(asked: RefersTo | ReferredBy | Under | OpenedIs | VersionIs) -> bool:
            if isinstance(asked, Under):
                return any(fact.key == asked.key and fact.text in tree(asked) for fact in one[2].references)
            assert isinstance(asked, RefersTo | ReferredBy)
            others = [other for other in seen if other[0] == asked.type]
            if isinstance(asked, RefersTo):
                names = {fact.text for fact in one[2].references if fact.key == asked.key}
                return any(names & set(other[2].names) and holds(other, asked.criteria) for other in others)
            return any({fact.text for fact in other[2].references if fact.key == asked.key} & set(one[2].names)
                       and holds(other, asked.criteria) for other in others)

        return SearchMatcher(one[2], logical_id=one[1], last_updated_ms=5, beyond=beyond).matches(criteria)

    return [one[1] for one in seen if one[0] == query.type and holds(one, query.criteria)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("few", [index_links.FOUND_MAX, 0])
def test_links_find_what_following_visible_references_finds(database: Database, few: int, seed: int) -> None:
    """``few`` 0: every link is left to the statement itself."""
    hospital = Hospital(seed)
    stored = put(database, list(hospital.resources()))
    visible = hospital.visible(stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_links, "FOUND_MAX", few)
        for type_, name, value in QUESTIONS:
            query = read(type_, name, value)
            assert find(database, visible, query) == expected(stored, visible, query), (type_, name, value)


def test_a_link_needs_the_sight_of_the_other_type(database: Database) -> None:
    query = read("Observation", "patient.family", "berg")
    with pytest.raises(BadSearch):
        INDEX.search(database.reader, query, SqlBound("1"), snapshot=2**60, limit=1)

    def outside(type_: str) -> SqlBound:
        raise Forbidden(type_)

    with pytest.raises(Forbidden):
        INDEX.search(database.reader, query, SqlBound("1"), snapshot=2**60, limit=1, sight=Sight(bound=outside))
    untyped = read("Observation", "subject.identifier", "urn:s|1")
    with pytest.raises(Forbidden):
        INDEX.search(database.reader, untyped, SqlBound("1"), snapshot=2**60, limit=1, sight=Sight(bound=outside))


def test_one_type_outside_the_scopes_is_passed_over_where_another_may_be_asked(database: Database) -> None:
    put(database, [
        {"resourceType": "Patient", "id": "1", "identifier": [{"value": "x"}]},
        {"resourceType": "Group", "id": "1", "type": "person", "actual": True, "identifier": [{"value": "x"}]},
        {"resourceType": "Observation", "id": "p", "subject": {"reference": "Patient/1"}},
        {"resourceType": "Observation", "id": "g", "subject": {"reference": "Group/1"}}])

    def only_patients(type_: str) -> SqlBound:
        if type_ != "Patient":
            raise Forbidden(type_)
        return SqlBound("1")

    found = INDEX.search(database.reader, read("Observation", "subject.identifier", "x"), SqlBound("1"),
                         snapshot=2**60, limit=9, sight=Sight(bound=only_patients))
    assert [match.row.id for match in found] == ["p"]


def test_what_is_contained_is_found_through_the_reference_to_it(database: Database) -> None:
    """R4 3.1.1.5.8: a chained condition is evaluated inside contained resources."""
    put(database, [{
        "resourceType": "MedicationRequest", "id": "m", "status": "active", "intent": "order",
        "medicationReference": {"reference": "#med"}, "subject": {"reference": "Patient/1"},
        "contained": [{"resourceType": "Medication", "id": "med", "code": {"coding": [{"code": "aspirin"}]}},
                      {"resourceType": "Practitioner", "id": "dr", "name": [{"family": "Inner"}]}]}])
    everything = {"MedicationRequest": {"m"}}
    for name, value, there in (
            ("medication.code", "aspirin", True), ("medication:Medication.code", "aspirin", True),
            ("medication.code", "ibuprofen", False), ("medication.code:not", "ibuprofen", True),
            ("medication.code:not", "aspirin", False), ("requester.name", "Inner", False)):
        found = find(database, everything, read("MedicationRequest", name, value))
        assert found == (["m"] if there else []), (name, value)


def test_a_canonical_is_followed_by_url_both_ways(database: Database) -> None:
    put(database, [
        {"resourceType": "Questionnaire", "id": "q", "url": "http://q", "version": "2", "title": "Pain"},
        {"resourceType": "QuestionnaireResponse", "id": "r", "questionnaire": "http://q|2", "status": "completed"}])
    everything = {"Questionnaire": {"q"}, "QuestionnaireResponse": {"r"}}
    assert find(database, everything, read("QuestionnaireResponse", "questionnaire.title", "pain")) == ["r"]
    assert find(database, everything, read("Questionnaire", "_has:QuestionnaireResponse:questionnaire:status",
                                           "completed")) == ["q"]
    assert find(database, {"QuestionnaireResponse": {"r"}},
                read("QuestionnaireResponse", "questionnaire.title", "pain")) == []


def plan_of(database: Database, query: Query, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How SQLite carries out every statement of a search."""
    steps: list[str] = []

    def trace(_: Any, sql: str, parameters: Any) -> bool:
        if sql.lstrip().startswith("SELECT") and "sqlite_" not in sql:
            pending.append((sql, parameters))
        return True

    pending: list[tuple[str, Any]] = []
    connection = database.reader
    connection.exec_trace = trace
    try:
        INDEX.search(connection, query, SqlBound("1"), snapshot=2**60, limit=20,
                     sight=Sight(bound=lambda _: SqlBound("1")))
    finally:
        connection.exec_trace = None
    for sql, parameters in pending:
        steps += [f"{row[3]}: {sql}" for row in connection.execute("EXPLAIN QUERY PLAN " + sql, parameters)]
    return steps


@pytest.mark.parametrize(("type_", "name", "value"), [one for one in QUESTIONS if not one[1].startswith("_filter")
                                                      and ":missing" not in one[1]])
@pytest.mark.parametrize("few", [index_links.FOUND_MAX, 0])
def test_no_link_walks_a_whole_table(database: Database, monkeypatch: pytest.MonkeyPatch, type_: str, name: str,
                                     value: str, few: int) -> None:
    put(database, list(Hospital(1).resources()))
    monkeypatch.setattr(index_links, "FOUND_MAX", few)
    steps = plan_of(database, read(type_, name, value), monkeypatch)
    assert steps
    assert not [step for step in steps if re.match(r"SCAN [a-z]+[ :]", step) and not step.startswith("SCAN c")]
