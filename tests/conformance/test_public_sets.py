"""Whole public sets through the door: what is sent is what is read, and patients of a generator come in whole.

They run where the sets are beside the checkout, and say so where they are not.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.fhir.resource import parse
from tests.conformance.validator_sets import KNOWN_DEFECTS, SETS, bodies
from tests.journeys.hospital import Hospital
from tests.shared_data import SHARED, needs_shared

pytestmark = needs_shared

EXAMPLES = tuple(name for name in SETS if name != "synthea-r4-smart")

NOT_SENT = ("AuditEvent", "Consent", "Subscription")
"""AuditEvents are made by the server alone, a Consent becomes active by a signature, a Subscription has its hosts."""


@pytest.fixture
def open_hospital(tmp_path: Path) -> Iterator[Hospital]:
    """A hospital whose feed may send examples apart from what they refer to."""
    made = Hospital(tmp_path, reference_integrity="off")
    yield made
    made.close()


def exactly(body: bytes) -> list[tuple[str, Any]]:
    """Elements in their order and numbers as their text, but the three the server puts first and stamps."""
    written = json.loads(body, object_pairs_hook=list, parse_float=str, parse_int=str)
    return [pair for pair in written if pair[0] not in ("resourceType", "id", "meta")]


def stamped(body: bytes) -> dict[str, Any]:
    """``meta`` without what is stamped."""
    return {name: value for name, value in json.loads(body).get("meta", {}).items()
            if name not in ("versionId", "lastUpdated")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_read_as_it_was_sent(open_hospital: Hospital, name: str) -> None:
    assert SHARED is not None
    sent, refused = 0, {}
    for file, body in bodies(SHARED / name):
        resource = parse(body)
        type_ = resource.get("resourceType")
        if type_ is None or type_ in NOT_SENT:
            continue
        answer = open_hospital.feed.post(type_, body)
        if answer.status_code != 201:
            refused[f"{type_}/{resource.get('id', file)}"] = answer.text[:400]
            continue
        id_ = answer.headers["location"].split("/")[-3]
        stored = open_hospital.feed.get(f"{type_}/{id_}", Accept="application/fhir+json").content
        before = body.removeprefix(b"\xef\xbb\xbf")
        assert exactly(stored) == exactly(before), file
        assert stamped(stored) == stamped(before), file
        sent += 1
    assert sent
    known = {place for set_, place in KNOWN_DEFECTS if set_ == name}
    assert refused.keys() <= known, refused


def test_every_patient_of_the_generator_comes_in_whole(tmp_path: Path) -> None:
    """28 transactions in their order after the two of hospitals and practitioners: none is refused."""
    assert SHARED is not None
    hospital, folder = Hospital(tmp_path, max_bundle_entries="20000"), SHARED / "synthea-r4-smart"
    files = sorted(folder.rglob("*.json.gz"), key=lambda path: ("Information" not in path.name, path.name))
    wanted: Counter[str] = Counter()
    for path in files:
        bundle = json.loads(gzip.decompress(path.read_bytes()))
        answer = hospital.feed.post("", bundle)
        assert answer.status_code == 200, (path.name, answer.text[:2_000])
        for entry, made in zip(bundle["entry"], answer.json()["entry"], strict=True):
            if made["response"]["status"].startswith("201"):
                wanted[entry["resource"]["resourceType"]] += 1
    for type_, number in wanted.items():
        assert hospital.feed.total(f"{type_}?_summary=count") == number, type_
    assert sum(wanted.values()) > 6_000
    hospital.close()
