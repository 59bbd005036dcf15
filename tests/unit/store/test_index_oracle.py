"""The index answers every query as the matcher does on the same facts. https://hl7.org/fhir/R4/search.html"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.crypto.index_hash import IndexHasher
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Criterion, Facts, Query
from gateway.fhir.search import SearchExtractor, matches, parse_query
from gateway.fhir.search_contained import of_container
from gateway.store import index_upkeep, journal
from gateway.store.index import Index, SqlBound
from gateway.store.journal import NewVersion, append, head_seq
from gateway.store.sql import Database

EXTRACTOR = SearchExtractor(Definitions.load(), words=("_text", "_content"))
EXTRACTOR.plans.worded.update(EXTRACTOR.words)
World = tuple[Database, Index, list[tuple[str, str, Facts, int]]]
"""What is stored: (type, id, facts, last updated) beside the index that holds it."""
NOW_MS = 1_700_000_000_000
_CODES = ("x", "X", "y")
_SYSTEMS = (None, "http://a", "http://b")
_DATES = ("2012", "2012-01", "2012-01-05", "2012-01-05T10:00:00Z", "2013-03-01T00:30:00+01:00")
_WORDS = ("Bone", "liver &amp; spleen", "the", "metastases")
_PREFIXES = ("", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")


def _observation(number: int) -> dict[str, Any]:
    """One of many, its parts varied by the digits of ``number``."""
    pick = [number // 7**place % 7 for place in range(8)]
    coding = {"code": _CODES[pick[0] % 3], "system": _SYSTEMS[pick[1] % 3]}
    quantity = {"value": pick[2], "unit": ("mg", "mmHg")[pick[3] % 2], "code": ("mg", "mm[Hg]")[pick[3] % 2],
                "system": ("http://unitsofmeasure.org", None)[pick[4] % 2]}
    body: dict[str, Any] = {
        "resourceType": "Observation", "id": f"o{number}", "status": ("final", "amended")[pick[5] % 2],
        "code": {"coding": [coding]}, "subject": {"reference": f"{('Patient', 'Group')[pick[6] % 2]}/{pick[6]}"},
        "effectiveDateTime": _DATES[pick[7] % 5]}
    if pick[1]:
        words = " ".join(_WORDS[one % 4] for one in pick[:pick[1] % 4])
        body["text"] = {"status": "generated", "div": f"<div>{words}</div>"}
    if pick[0] > 3:
        body["valueQuantity"] = quantity
    else:
        body["component"] = [{"code": {"coding": [{"code": _CODES[pick[7] % 3]}]}, "valueQuantity": quantity}]
    return body


def _request(number: int) -> dict[str, Any]:
    """A container of up to three Observations, and sometimes a Patient."""
    inside = [{**_observation(number * 31 + place * 977), "id": f"c{place}"} for place in range(number % 4)]
    if number % 3 == 0:
        inside.append({**_patient(number), "id": "p"})
    return {"resourceType": ("ServiceRequest", "Observation")[number % 2], "id": f"r{number}", "status": "active",
            "code": {"coding": [{"code": _CODES[number % 3]}]}, **({"contained": inside} if inside else {})}


def _patient(number: int) -> dict[str, Any]:
    names = ("Anne", "Ann", "van der Berg", "Zoë", "Berg")
    return {"resourceType": "Patient", "id": f"p{number}", "active": number % 2 == 0,
            "birthDate": ("1974", "1974-12", "1974-12-25", "1980-01-01")[number % 4],
            "name": [{"family": names[number % 5], "given": [names[number // 5 % 5]]}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("index")
    database, index = Database(folder / "gateway.db", bytes(32)), Index(IndexHasher(bytes(range(32))))
    database.migrate()
    stored = []
    resources = [*(_observation(number * 7919) for number in range(120)), *(_patient(number) for number in range(25)),
                 *(_request(number) for number in range(40))]
    for resource in resources:
        facts = EXTRACTOR.facts(resource)
        updated_ms = NOW_MS - len(stored) * 3_600_000
        stored.append((resource["resourceType"], resource["id"], facts, updated_ms))
        new = NewVersion(
            type=resource["resourceType"], id=resource["id"], vid=1, deleted=False, updated_ms=updated_ms, patients=(),
            client="test", user=None, confidentiality=0, labels=0, low_ms=None, high_ms=None, categories=b"",
            keys=b"", digest=hashlib.sha256(resource["id"].encode()).digest(), commitment=b"", envelope=b"",
            rows=index.rows(facts, categories=()))
        database.transact(lambda connection, new=new: append(connection, new))
    yield database, index, stored
    database.close()


def _read(type_name: str, pairs: list[tuple[str, str]], *, inside: bool = False) -> Query:
    return parse_query(EXTRACTOR.plans, type_name, pairs, strict=True, own_bases=(), max_count=1000, now_ms=NOW_MS,
                       inside=inside)


_PREFIX = st.sampled_from(_PREFIXES)
_TOKEN = st.builds(lambda system, code: code if system is None else f"{system}|{code}",
                   st.sampled_from([None, "", "http://a", "http://b"]), st.sampled_from(["x", "y", "z"]))
_NUMBER = st.builds(lambda prefix, value, unit: f"{prefix}{value}{unit}", _PREFIX,
                    st.sampled_from(["0", "3", "3.0", "5e0", "2.6"]),
                    st.sampled_from(["", "||mg", "||mmHg", "||mm[Hg]", "|http://unitsofmeasure.org|mg"]))
_DATE = st.builds(lambda prefix, value: prefix + value.replace("+", " "), _PREFIX, st.sampled_from(_DATES))
_OBSERVATION_PAIR = st.one_of(
    st.tuples(st.sampled_from(["code", "combo-code", "component-code", "code:not"]), _TOKEN),
    st.tuples(st.sampled_from(["value-quantity", "combo-value-quantity"]), _NUMBER),
    st.tuples(st.sampled_from(["code-value-quantity", "combo-code-value-quantity"]),
              st.builds(lambda token, number: f"{token}${number}", _TOKEN, _NUMBER)),
    st.tuples(st.sampled_from(["date", "_lastUpdated"]), _DATE),
    st.tuples(st.sampled_from(["subject", "patient", "subject:Group"]), st.sampled_from(["1", "Patient/2", "Group/3"])),
    st.tuples(st.sampled_from(["_text", "_content"]), st.recursive(
        st.sampled_from(["bone", "liver", "spleen", "metastases", "amended", "mg"]),
        lambda inner: st.one_of(st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR", ""]), inner),
                                st.builds("NOT {}".format, inner)), max_leaves=4)),
    st.tuples(st.just("status"), st.sampled_from(["final", "final,amended", "http://a|final"])),
    st.tuples(st.sampled_from(["_id", "_id:not"]), st.sampled_from(["o0", "o7919,o15838"])),
)
_PATIENT_PAIR = st.one_of(
    st.tuples(st.sampled_from(["name", "family", "given", "phonetic"]), st.sampled_from(["a", "ann", "berg", "zoe"])),
    st.tuples(st.just("name:exact"), st.sampled_from(["Ann", "ann"])),
    st.tuples(st.just("birthdate"), st.builds(lambda prefix, date: prefix + date, _PREFIX, st.sampled_from(
        ["1974", "1974-12", "1974-12-25", "1974-12-24", "1979-12-31", "1974-12-25T10:00"]))),
    st.tuples(st.sampled_from(["active", "active:not"]), st.sampled_from(["true", "false"])),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(
    st.tuples(st.just("Observation"), st.lists(_OBSERVATION_PAIR, min_size=1, max_size=3)),
    st.tuples(st.just("Patient"), st.lists(_PATIENT_PAIR, min_size=1, max_size=2)),
))
def test_the_index_finds_what_the_matcher_finds(
    world: World, asked: tuple[str, list[tuple[str, str]]]
) -> None:
    database, index, stored = world
    type_name, pairs = asked
    query = _read(type_name, pairs)
    with database.snapshot() as connection:
        snapshot = head_seq(connection)
        found = index.search(connection, query, SqlBound("1"), snapshot=snapshot, limit=1000)
        count = index.count(connection, query, SqlBound("1"), snapshot=snapshot)
    expected = {id_ for kind, id_, facts, updated_ms in stored
                if kind == type_name and matches(query.criteria, facts, id_, updated_ms)}
    assert {match.row.id for match in found} == expected
    assert count == len(found) == len(expected)


def test_rows_of_what_is_contained_come_and_go_with_their_container(tmp_path: Path) -> None:
    """Invariant 7, and no row outlives its version."""
    database, index = Database(tmp_path / "gateway.db", bytes(32)), Index(IndexHasher(bytes(range(32))))
    database.migrate()

    def counts() -> list[int]:
        return [int(str(database.reader.execute(f"SELECT count(*) FROM {table}").get)) for table in index_upkeep.TABLES]

    few, many = (index.rows(EXTRACTOR.facts(_request(number)), categories=()) for number in (5, 3))
    assert (len(few.contained), len(many.contained)) == (1, 4)
    for rows, other in ((few, many), (many, few)):
        database.transact(lambda tx, rows=rows: journal.append_rows(tx, 7, rows))
        assert index_upkeep.stored(database.reader, 7) == index_upkeep.settled(rows)
        database.transact(lambda tx, other=other: index_upkeep.replace(tx, 7, other))
        assert index_upkeep.stored(database.reader, 7) == index_upkeep.settled(other)
        database.transact(lambda tx: journal.append_rows(tx, 8, many))
        database.transact(lambda tx: journal.drop_rows(tx, [7]))
        assert index_upkeep.stored(database.reader, 8) == index_upkeep.settled(many)
        database.transact(lambda tx: journal.drop_rows(tx, [8]))
        assert counts() == [0] * len(index_upkeep.TABLES)
    database.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(
    st.tuples(st.just("Observation"), st.lists(_OBSERVATION_PAIR, max_size=3)),
    st.tuples(st.just("Patient"), st.lists(_PATIENT_PAIR, max_size=2)),
), st.sampled_from(["ServiceRequest", "Observation"]), st.sampled_from(["true", "both"]),
    st.sampled_from(["container", "contained"]))
def test_the_index_finds_of_what_is_contained_what_the_matcher_finds(
    world: World, asked: tuple[str, list[tuple[str, str]]], container: str, contained: str, alone: str
) -> None:
    """R4 3.1.1.5.10: every criterion holds of one and the same contained resource."""
    database, index, stored = world
    type_name, pairs = asked
    own = _read(type_name, [*pairs, ("_contained", contained), ("_containedType", alone)], inside=True)
    query = of_container(own, container)
    with database.snapshot() as connection:
        snapshot = head_seq(connection)
        found = index.search(connection, query, SqlBound("1"), snapshot=snapshot, limit=1000)
        count = index.count(connection, query, SqlBound("1"), snapshot=snapshot)
        places = index.places(connection, query, SqlBound("1"), [match.row.seq for match in found],
                              snapshot=snapshot) if query.parts is not None else {}
    expected = [(id_, facts, updated_ms) for kind, id_, facts, updated_ms in stored
                if kind == container and matches(query.criteria, facts, id_, updated_ms)]
    assert [match.row.id for match in found] == [id_ for id_, _, _ in expected]
    if query.parts is None:
        assert count == len(expected)
        return
    wanted = []
    for id_, facts, updated_ms in expected:
        itself = query.parts.itself is not None and matches(query.parts.itself, facts, id_, updated_ms)
        wanted.append([0] * itself + [place for place, inner in facts.contained if matches(
            (Criterion((query.parts.inside,)),), Facts(contained=((place, inner),)), id_, NOW_MS)])
    assert list(places.values()) == wanted
    assert count == sum(map(len, wanted))
