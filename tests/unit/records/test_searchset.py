"""A searchset's bytes: stored ones are spliced in as they are. https://hl7.org/fhir/R4/bundle.html#searchset"""

from __future__ import annotations

import tracemalloc

import orjson
import pytest

from gateway.errors import Issue
from gateway.records.searchset import searchset

ISSUE = Issue("warning", "not-supported", "x")
STORED = b'{"resourceType":"Basic","id":"a","n":1.10}'
MATCH = {"fullUrl": "http://h/fhir/Basic/a", "resource": orjson.loads(STORED), "search": {"mode": "match"}}


@pytest.mark.parametrize(("matches", "included", "issues", "modes"), [
    (0, 0, (), []), (1, 0, (), ["match"]), (0, 1, (), ["include"]), (0, 0, (ISSUE,), ["outcome"]),
    (2, 1, (ISSUE,), ["match", "match", "include", "outcome"])])
def test_entries_stand_in_their_order_with_their_modes(matches: int, included: int, issues: tuple[Issue, ...],
                                                       modes: list[str]) -> None:
    one = ("Basic/a", STORED)
    body = searchset("http://h/fhir", [("self", "http://h/fhir/Basic")], [one] * matches, [one] * included, issues,
                     total=matches)
    bundle = orjson.loads(body)
    assert (bundle["type"], bundle["total"]) == ("searchset", matches)
    assert [entry["search"]["mode"] for entry in bundle.get("entry", [])] == modes
    assert all(entry == MATCH for entry in bundle.get("entry", [])[:matches])
    assert ("fullUrl" in bundle["entry"][-1]) != bool(issues) if modes else "entry" not in bundle
    assert body.count(STORED) == matches + included


def test_a_long_page_is_copied_once() -> None:
    """Copies of tens of megabytes hold every other request."""
    one = ("Basic/a", b'"' + bytes(1_000_000) + b'"')
    tracemalloc.start()
    body = searchset("http://h/fhir", [], [one] * 20, [], (), total=None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * len(body)
