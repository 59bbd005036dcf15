"""Every search parameter of HL7 is answered or refused by name, and HL7's examples are found by their own values.

https://hl7.org/fhir/R4/searchparameter-registry.html
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Query
from gateway.fhir.resource import parse
from gateway.fhir.search import SearchExtractor, matches, parse_query
from gateway.fhir.search_dates import date_range
from gateway.fhir.search_paths import Json, walker
from gateway.fhir.search_plan import Plan
from tests.shared_data import SHARED, needs_shared

EXTRACTOR = SearchExtractor(Definitions.load())
PLANS = EXTRACTOR.plans
REFUSED = {"_query"}
"""Named queries."""
NOW_MS = 1_700_000_000_000
KINDS = {
    "token": "x", "string": "x", "reference": "Patient/x", "uri": "http://x", "date": "2024", "number": "1",
    "quantity": "1", "special": "1|1|1"}
COUNTS = {"Patient": 23, "Observation": 38, "MedicationStatement": 11, "Appointment": 17}


def read(type_: str, name: str, value: str) -> Query:
    return parse_query(PLANS, type_, [(name, value)], strict=True, own_bases=(), max_count=10, now_ms=NOW_MS)


def sample(type_: str, plan: Plan) -> str:
    if plan.components:
        return "$".join(KINDS[part.type] for part in plan.components)
    return KINDS[plan.parameter.type]


@pytest.mark.parametrize("type_", sorted(PLANS.definitions.resource_types))
def test_every_parameter_is_answered_or_refused_by_name(type_: str) -> None:
    for code, plan in PLANS.of(type_).items():
        if plan.refused:
            assert code in REFUSED, code
            assert code in plan.refused
            continue
        assert read(type_, code, sample(type_, plan)).criteria, code
        if code not in ("_id", "_lastUpdated", "_text", "_content"):
            assert read(type_, f"{code}:missing", "true").criteria, code


def test_there_are_1375_parameters_and_each_main_type_has_all_of_its_own() -> None:
    definitions = PLANS.definitions
    assert len({plan.parameter.url for type_ in definitions.resource_types for plan in PLANS.of(type_).values()} | {
        one.url for name in ("Resource", "DomainResource") for one in definitions.search_parameters(name).values()
    }) == 1375
    for type_, count in COUNTS.items():
        assert sum(not code.startswith("_") and not plan.refused for code, plan in PLANS.of(type_).items()) == count


def values(plan: Plan, resource: dict[str, Any]) -> Iterator[tuple[str, Json]]:
    for source in plan.sources or ():
        for value in walker(source.steps)(resource):
            yield source.type, value


def escaped(text: str) -> str:
    return "".join("\\" + one if one in "\\,$|" else one for one in text)


def asked(plan: Plan, value: Json) -> Iterator[str]:
    """The texts by which a value may be asked for, as a person would write them."""
    kind = plan.parameter.type
    if kind == "token":
        yield from tokens(value)
    elif kind == "reference" and type(value) is dict and type(value.get("reference")) is str:
        if not value["reference"].startswith("#"):
            yield escaped(value["reference"])
    elif kind == "uri" and type(value) is str:
        yield escaped(value)
    elif kind == "date" and type(value) is str and date_range(value) is not None:  # an age may be a text, too
        yield value
    elif kind == "string" and type(value) is str:
        yield escaped(" ".join(value.split())[:None if plan.parameter.code == "phonetic" else 20])
    elif kind == "number" and type(value) not in (str, dict, list, bool):
        yield str(value)
    elif kind == "quantity" and type(value) is dict and "value" in value and "comparator" not in value:
        yield str(value["value"])
        if value.get("system") and value.get("code"):
            yield f"{value['value']}|{escaped(value['system'])}|{escaped(value['code'])}"


def tokens(value: Json) -> Iterator[str]:
    if type(value) is bool:
        yield "true" if value else "false"
    elif type(value) is str:
        yield escaped(value)
    elif type(value) is dict:
        for one in value.get("coding", ()) if "coding" in value else [value]:
            code = one.get("code", one.get("value"))
            if type(code) is str:
                yield escaped(code)
                if type(one.get("system")) is str and ":" in one["system"]:  # a ContactPoint's is no namespace
                    yield f"{escaped(one['system'])}|{escaped(code)}"


def examples() -> Iterator[dict[str, Any]]:
    assert SHARED is not None
    folder = SHARED / "hl7-r4-examples"
    for file in sorted(folder.glob("*/*.json*")):
        body = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        yield parse(body)
    yield from map(parse, gzip.decompress((folder / "other-types.ndjson.gz").read_bytes()).splitlines())


@needs_shared
def test_hl7s_examples_are_found_by_each_of_their_values() -> None:
    """Also: a parameter with a value is not missing, one without is."""
    found: set[tuple[str, str]] = set()
    wrong: list[tuple[str, str, str, str]] = []
    for resource in examples():
        type_, id_ = resource["resourceType"], resource.get("id", "")
        facts = EXTRACTOR.facts(resource)
        for code, plan in PLANS.of(type_).items():
            if plan.refused or plan.components or code in ("_id", "_lastUpdated", "_text", "_content", "near"):
                continue
            texts = {text for _, value in values(plan, resource) for text in asked(plan, value) if text.strip()}
            only = {one.only for one in plan.sources or () if one.only is not None}
            for text in texts:
                if only and not any(f"{one}/" in text for one in only):
                    continue
                found.add((type_, code))
                if not matches(read(type_, code, text).criteria, facts, id_, 5):
                    wrong.append((type_, id_, code, text))
            if plan.sources and all(one.only is None for one in plan.sources) and plan.parameter.code != "phonetic":
                there = bool(texts)
                missing = matches(read(type_, f"{code}:missing", "true").criteria, facts, id_, 5)
                if there and missing:
                    wrong.append((type_, id_, code, ":missing"))
    assert not wrong, (len(wrong), wrong[:20])
    assert len(found) > 600, len(found)
