"""The index in SQL finds what ``SearchMatcher`` says of the same facts, in the order asked, page by page.

https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.crypto.index_hash import IndexHasher
from gateway.errors import BadSearch
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Facts, Query, SortKey
from gateway.fhir.resource import parse
from gateway.fhir.search import SearchExtractor, matches, parse_query
from gateway.fhir.search_contained import of_container
from gateway.store import journal
from gateway.store.index import Cursor, Index, SqlBound
from gateway.store.journal import NewVersion
from gateway.store.sql import Database

ALL = SqlBound("1")
NOW_MS = 1_700_000_000_000
CODES, SYSTEMS = ("a", "b", "c"), ("urn:s", "urn:t", None)
NUMBERS = ("5", "5.0", "5.4", "4.95", "1e2", "99.5", "0", "-3", "0.05")
DATES = ("2024", "2024-02", "2024-02-29", "2024-03-01T10:00:00Z", "2024-03-01T23:30:00-05:00", "2023-12-31", "1970")
PREFIXES = ("", "", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
WORDS = ("Ann", "ann lee", "Ångström", "O'Neil", "an", "LEE", "Anne-Marie")
PARAMETERS = {
    "Observation": ("code", "status", "date", "value-quantity", "subject", "patient", "component-value-quantity",
                    "code-value-quantity", "component-code-value-quantity", "combo-value-quantity", "combo-code",
                    "value-date", "value-string", "_id", "_lastUpdated", "code:not", "status:not", "subject:Patient",
                    "identifier", "code-value-concept", "value-concept"),
    "Patient": ("name", "family", "given", "name:exact", "birthdate", "death-date", "identifier", "gender", "active",
                "general-practitioner", "gender:not", "address-city", "telecom", "deceased", "_id", "phonetic")}
SORTS = {"Observation": ("date", "value-quantity", "_id", "_lastUpdated"), "Patient": ("_id", "_lastUpdated")}


class Ward(Random):
    """Random resources and questions over few values, so that they meet often."""

    def maybe(self, make: Any, chance: float = 0.6) -> Any:
        return make() if self.random() < chance else None

    def coding(self) -> dict[str, Any]:
        return {key: value for key, value in (("system", self.choice(SYSTEMS)), ("code", self.choice(CODES))) if value}

    def concept(self) -> dict[str, Any]:
        return {"coding": [self.coding() for _ in range(self.randint(1, 2))]}

    def quantity(self) -> dict[str, Any]:
        made: dict[str, Any] = {"value": f"@{self.choice(NUMBERS)}@"}
        if self.random() < 0.5:
            made["unit"] = self.choice(("mg", "g"))
        if self.random() < 0.5:
            made |= {"system": "urn:u", "code": self.choice(("mg", "g"))}
        if self.random() < 0.2:
            made["comparator"] = self.choice(("<", "<=", ">", ">="))
        return made

    def period(self) -> dict[str, str]:
        ends = sorted(self.sample(("2023-01-01", "2024-02-10", "2024-03-01", "2024-06"), 2))
        return {key: value for key, value in zip(("start", "end"), ends, strict=True) if self.random() < 0.8}

    def reference(self) -> dict[str, str]:
        return {"reference": self.choice(("Patient/1", "Patient/2", "http://me/fhir/Patient/1", "Group/1",
                                          "http://else/Patient/1"))}

    def observation(self) -> dict[str, Any]:
        value = self.choice((
            ("valueQuantity", self.quantity()), ("valueCodeableConcept", self.concept()),
            ("valueString", self.choice(WORDS)), ("valueDateTime", self.choice(DATES)), ("note", None)))
        when = self.choice((("effectiveDateTime", self.choice(DATES)), ("effectivePeriod", self.period()), ("x", None)))
        return {"status": self.choice(("final", "amended")), "code": self.concept(),
                "subject": self.maybe(self.reference), "identifier": self.maybe(lambda: [
                    {"system": "urn:s", "value": self.choice(CODES)}]),
                "component": self.maybe(lambda: [{"code": self.concept(), "valueQuantity": self.quantity()}
                                                 for _ in range(self.randint(1, 3))]),
                value[0]: value[1], when[0]: when[1]}

    def patient(self) -> dict[str, Any]:
        return {"name": self.maybe(lambda: [{"family": self.choice(WORDS), "given": [self.choice(WORDS)]}], 0.9),
                "birthDate": self.maybe(lambda: self.choice(DATES)[:10]), "active": self.maybe(lambda: True),
                "gender": self.maybe(lambda: self.choice(("male", "female"))),
                "deceasedDateTime": self.maybe(lambda: self.choice(DATES), 0.3),
                "identifier": self.maybe(lambda: [{"system": "urn:s", "value": self.choice(CODES)}]),
                "address": self.maybe(lambda: [{"city": self.choice(WORDS)}]),
                "telecom": self.maybe(lambda: [{"system": "phone", "value": self.choice(CODES)}]),
                "generalPractitioner": self.maybe(lambda: [{"reference": "Practitioner/1"}])}

    def resource(self, type_: str, id_: str) -> dict[str, Any]:
        made = self.observation() if type_ == "Observation" else self.patient()
        text = json.dumps({"resourceType": type_, "id": id_, **{key: value for key, value in made.items() if value}})
        return parse(text.replace('"@', "").replace('@"', "").encode())

    def value(self, name: str) -> str:
        token = self.choice(("{c}", "{s}|{c}", "|{c}", "{s}|")).format(c=self.choice(CODES), s=self.choice(SYSTEMS[:2]))
        number = self.choice(PREFIXES) + self.choice(NUMBERS) + self.choice(("", "", "||mg", "|urn:u|g", "||g"))
        date = self.choice(PREFIXES) + self.choice(DATES)
        if "-value-quantity" in name and name.startswith(("code", "component-code")):
            return f"{token}${number}"
        if name.endswith("value-quantity"):
            return number
        if name == "code-value-concept":
            return f"{token}${token}"
        if name in ("date", "value-date", "birthdate", "death-date", "_lastUpdated"):
            return date
        if name.startswith(("name", "family", "given", "address", "phonetic", "value-string")):
            return self.choice(WORDS)[:self.randint(1, 8)]
        if name.startswith(("subject", "patient", "general")):
            return self.choice(("Patient/1", "2", "http://me/fhir/Patient/1", "Practitioner/1", "Group/1"))
        return {"_id": str(self.randint(0, 12)), "gender": "male", "gender:not": "male", "active": "true",
                "deceased": "true", "status": "final", "status:not": "final"}.get(name, token)

    def pairs(self, type_: str) -> list[tuple[str, str]]:
        names = [self.choice(PARAMETERS[type_]) for _ in range(self.randint(0, 3))]
        return [(name, ",".join(self.value(name) for _ in range(self.choice((1, 1, 2))))) for name in names]


@pytest.fixture(scope="module")
def extractor() -> SearchExtractor:
    return SearchExtractor(Definitions.load(), ("http://me/fhir",))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(Path(tmp_path_factory.mktemp("index")) / "gateway.db", bytes(32))
    made.migrate()
    yield made
    made.close()


INDEX = Index(IndexHasher(bytes(range(32))))


def put(database: Database, type_: str, found: list[tuple[str, Facts, int]]) -> None:
    def work(tx: Any) -> None:
        for table in ("version", "block", "index_hash", "index_rows", "index_number", "index_date"):
            tx.execute(f"DELETE FROM {table}")
        for number, (id_, facts, updated_ms) in enumerate(found):
            unique = struct.pack(">Q", number) * 4
            journal.append(tx, NewVersion(
                type=type_, id=id_, vid=1, deleted=False, updated_ms=updated_ms, patients=(), client="c", user=None,
                confidentiality=3, labels=0, low_ms=None, high_ms=None, categories=b"", keys=b"", digest=unique,
                commitment=unique, envelope=b"", rows=INDEX.rows(facts, categories=())))
    database.transact(work)


def asked(extractor: SearchExtractor, ward: Ward, type_: str) -> Query:
    while True:
        try:
            return parse_query(extractor.plans, type_, ward.pairs(type_), strict=True, own_bases=("http://me/fhir",),
                               max_count=1000, now_ms=NOW_MS)
        except BadSearch:
            continue


def pages(database: Database, query: Query, size: int) -> list[str]:
    found: list[str] = []
    after: Cursor | None = None
    while True:
        some = INDEX.search(database.reader, query, ALL, snapshot=2**60, limit=size, after=after)
        found += [match.row.id for match in some]
        if len(some) < size:
            return found
        after = some[-1].cursor


def in_order(candidates: list[tuple[str, Facts, int]], sort: tuple[SortKey, ...]) -> list[str]:
    """The order R4 and the index's own words ask for: no value last, equals in commit order (one key: its way)."""
    ranked = list(enumerate(candidates))
    if len(sort) == 1 and sort[0].descending:
        ranked.reverse()
    for key in reversed(sort):
        def value(pair: tuple[int, tuple[str, Facts, int]], key: SortKey = key) -> Any:
            id_, facts, updated_ms = pair[1]
            if key.kind in ("id", "updated"):
                return id_ if key.kind == "id" else updated_ms
            values = ([fact.low_ms for fact in facts.dates if fact.key == key.key] if key.kind == "date" else
                      [fact.low for fact in facts.numbers if fact.key == key.key])
            return None if not values else max(values) if key.descending else min(values)

        known = [pair for pair in ranked if value(pair) is not None]
        known.sort(key=value, reverse=key.descending)
        ranked = known + [pair for pair in ranked if value(pair) is None]
    return [one[0] for _, one in ranked]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**48), type_=st.sampled_from(["Observation", "Patient"]))
def test_the_index_finds_what_the_matcher_says(database: Database, extractor: SearchExtractor, seed: int,
                                               type_: str) -> None:
    ward = Ward(seed)
    found = []
    for number in range(10):
        resource = ward.resource(type_, str(number))
        found.append((str(number), extractor.facts(resource), ward.choice((1_709_000_000_000, 1_709_251_200_000, 5))))
    put(database, type_, found)
    for _ in range(12):
        query = asked(extractor, ward, type_)
        expected = [one for one in found if matches(query.criteria, one[1], one[0], one[2])]
        assert pages(database, query, ward.choice((1, 3, 100))) == [one[0] for one in expected], query
        assert INDEX.count(database.reader, query, ALL, snapshot=2**60) == len(expected)
        for seq, one in enumerate(found, 1):
            assert INDEX.matches(database.reader, query, seq) is matches(query.criteria, one[1], one[0], one[2])
        names = [ward.choice(("", "-")) + name for name in ward.sample(
            SORTS[type_], ward.randint(1, min(3, len(SORTS[type_]))))]
        sort = parse_query(extractor.plans, type_, [("_sort", ",".join(names))], strict=True, own_bases=(),
                           max_count=10, now_ms=NOW_MS).sort
        ordered = in_order(expected, sort)
        assert pages(database, replace(query, sort=sort), ward.choice((1, 2, 4, 100))) == ordered, (query, names)


def test_one_number_in_two_units_is_found_in_both(database: Database, extractor: SearchExtractor) -> None:
    facts = extractor.facts(parse(json.dumps({"resourceType": "Observation", "component": [
        {"valueQuantity": {"value": 5, "unit": unit}} for unit in ("mg", "g")]}).encode()))
    put(database, "Observation", [("0", facts, 5)])
    for unit, found in (("mg", ["0"]), ("g", ["0"]), ("kg", [])):
        query = parse_query(extractor.plans, "Observation", [("component-value-quantity", f"5||{unit}")], strict=True,
                            own_bases=(), max_count=10, now_ms=NOW_MS)
        assert pages(database, query, 10) == found


@pytest.mark.parametrize("sort", ["date", "-date"])
def test_a_broad_search_by_date_walks_the_same_order(database: Database, extractor: SearchExtractor,
                                                     sort: str) -> None:
    """Beyond a few hundred candidates the date index itself is walked: pages may change between the two ways."""
    ward = Ward(7)
    found = [(str(number), extractor.facts({**ward.resource("Observation", str(number)), "code": {"coding": [
        {"code": "broad"}]}}), 5) for number in range(450)]
    put(database, "Observation", found)
    query = parse_query(extractor.plans, "Observation", [("code", "broad"), ("_sort", sort)], strict=True,
                        own_bases=(), max_count=1000, now_ms=NOW_MS)
    expected = in_order(found, query.sort)
    for size in (7, 100, 1000):
        assert pages(database, query, size) == expected
    few = replace(query, criteria=(*query.criteria, *parse_query(
        extractor.plans, "Observation", [("_id", ",".join(map(str, range(40))))], strict=True, own_bases=(),
        max_count=1000, now_ms=NOW_MS).criteria))
    assert pages(database, few, 7) == [id_ for id_ in expected if int(id_) < 40]


def test_a_search_without_a_bound_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="without an access bound"):
        INDEX.search(database.reader, Query(type="Patient"), SqlBound(""), snapshot=1, limit=1)


@pytest.mark.parametrize("sort", ["location-period", "-location-period"])
def test_one_resource_with_two_dates_of_one_start_stands_once(database: Database, extractor: SearchExtractor,
                                                              sort: str) -> None:
    """The date index is walked where no criterion narrows the search."""
    found = [(str(number), extractor.facts(parse(json.dumps({
        "resourceType": "Encounter", "status": "finished", "location": [
            {"location": {"reference": "Location/1"}, "period": {"start": "2024-01-01", "end": end}}
            for end in ("2024-01-02", "2024-01-03", "2024-01-04")]}).encode())), 5) for number in range(3)]
    put(database, "Encounter", found)
    query = parse_query(extractor.plans, "Encounter", [("_sort", sort)], strict=True, own_bases=(), max_count=10,
                        now_ms=NOW_MS)
    for size in (1, 2, 10):
        assert sorted(pages(database, query, size)) == ["0", "1", "2"]


def test_the_largest_search_let_through_is_carried_out(database: Database, extractor: SearchExtractor) -> None:
    put(database, "Observation", [])
    hashes = ("focus", ",".join(f"Device/{number}" for number in range(450)))
    dates = ("date", ",".join(f"ap{number:04}" for number in range(1, 501)))
    for pairs in ([hashes] * 10, [("code", "a")] * 99 + [dates], [("status:not", "final")] * 100,
                  [("_sort", ",".join(["date"] * 10))]):
        query = parse_query(extractor.plans, "Observation", pairs, strict=True, own_bases=(), max_count=10,
                            now_ms=NOW_MS)
        assert pages(database, query, 10) == []
        assert INDEX.count(database.reader, query, ALL, snapshot=2**60) == 0

    few = ("date", ",".join(f"ap{number:04}" for number in range(1, 201)))
    for pairs in ([hashes] * 10, [("code", "a")] * 99 + [few], [few] + [("code", "a")] * 99,
                  [("status:not", "final")] * 100):
        inside = [*pairs, ("_contained", "both"), ("_containedType", "contained")]
        query = of_container(parse_query(extractor.plans, "Observation", inside, strict=True, own_bases=(),
                                         max_count=10, now_ms=NOW_MS, inside=True), "Observation")
        assert pages(database, query, 10) == []
        assert INDEX.count(database.reader, query, ALL, snapshot=2**60) == 0
    with pytest.raises(BadSearch, match="too much"):
        parse_query(extractor.plans, "Observation", [dates, ("_contained", "both")], strict=True, own_bases=(),
                    max_count=10, now_ms=NOW_MS, inside=True)


def test_a_resource_may_have_more_values_than_a_statement_takes_variables(database: Database,
                                                                          extractor: SearchExtractor) -> None:
    facts = extractor.facts(parse(json.dumps({"resourceType": "Group", "type": "person", "actual": True, "member": [
        {"entity": {"reference": f"Practitioner/{number}"}} for number in range(17_000)]}).encode()))
    put(database, "Group", [("0", facts, 5)])
    for number in (0, 16_999):
        query = parse_query(extractor.plans, "Group", [("member", f"Practitioner/{number}")], strict=True,
                            own_bases=(), max_count=10, now_ms=NOW_MS)
        assert pages(database, query, 10) == ["0"]
