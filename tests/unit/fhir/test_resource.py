"""Parsing, writing, stamping and walking resources: https://hl7.org/fhir/R4/json.html, RFC 8259."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Malformed
from gateway.fhir.resource import (
    copy,
    format_instant,
    is_id,
    parse,
    parse_instant,
    reference_target,
    references,
    serialise,
    stamp,
)

FIXTURES = sorted((Path(__file__).parents[2] / "fixtures" / "fhir").glob("*.json"))


def body(value: str) -> bytes:
    return b'{"resourceType":"Basic","v":' + value.encode() + b"}"


@pytest.mark.parametrize("number", [
    "1.10", "0.0100", "1.0E-22", "1e2", "-0", "-0.0", "100", "1e999", "0", "-1", "9007199254740993",
    "9223372036854775808", "123456789012345678901234567890", "0.1234567890123456789012345678901234567890",
])
def test_numbers_keep_their_text(number: str) -> None:
    assert serialise(parse(body(number))) == body(number)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_every_decimal_keeps_its_text(number: Decimal) -> None:
    text = str(number)
    if "." in text or "E" in text:
        assert serialise(parse(body(text))) == body(text)


@given(st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.text(st.characters(codec="utf-8")),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
                    max_leaves=20))
def test_any_json_value_round_trips(value: Any) -> None:
    text = json.dumps({"resourceType": "Basic", "v": value}).encode()
    assert json.loads(serialise(parse(text))) == json.loads(text)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_examples_round_trip_with_every_decimal(path: Path) -> None:
    text = path.read_text("utf-8")
    written = serialise(parse(text.encode())).decode()
    assert json.loads(written, parse_float=str) == json.loads(text, parse_float=str)


@pytest.mark.parametrize("hostile", [
    b"", b" ", b"null", b"5", b'"text"', b"[]", b"{", b'{"resourceType":"Patient"} x', b'{"resourceType":"Patient",}',
    b'{"resourceType":"Patient","id":"a","id":"b"}', b'{"resourceType":"Patient","a":{"b":1,"b":2}}',
    body("NaN"), body("Infinity"), body("-Infinity"), body("01"), body("+1"), body("1."), body(".5"), body("0x10"),
    body("1" * 5000), body('"\\ud800"'), body('"\n"'), b'{"resourceType":"Patient","a":"\xff"}', body("'a'"),
    b'{"resourceType":5}', b'{"resourceType":""}', b'{"id":"a"}', b"[" * 100_000, b'{"a":' * 100_000,
    '{"resourceType":"Patient"}'.encode("utf-16"), b"\x00", b'{"resourceType":"Patient"}\x00',
])
def test_what_is_not_json_as_fhir_has_it_is_malformed(hostile: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse(hostile)
    assert caught.value.issues[0].code == "structure"
    assert caught.value.issues[0].severity == "error"


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_malformed(hostile: bytes) -> None:
    with suppress(Malformed):
        parse(hostile)


def test_a_byte_order_mark_is_ignored() -> None:
    assert parse(b'\xef\xbb\xbf{"resourceType":"Patient"}') == {"resourceType": "Patient"}


def test_stamp_sets_id_and_meta_first_and_keeps_other_meta() -> None:
    resource = parse(b'{"meta":{"versionId":"9","tag":[{"code":"t"}],"_lastUpdated":{"id":"x"}},"id":"old",'
                     b'"resourceType":"Patient","active":true}')
    before = copy(resource)
    stamped = stamp(resource, "new", 3, 1_700_000_000_123)
    assert list(stamped) == ["resourceType", "id", "meta", "active"]
    assert stamped["id"] == "new"
    assert stamped["meta"] == {"versionId": "3", "lastUpdated": "2023-11-14T22:13:20.123Z", "tag": [{"code": "t"}]}
    assert resource == before


@given(st.integers(min_value=-62_135_596_800_000, max_value=253_402_300_799_999))
def test_instants_round_trip(ms: int) -> None:
    assert parse_instant(format_instant(ms)) == ms


@pytest.mark.parametrize(("text", "ms"), [
    ("1970-01-01T00:00:00Z", 0),
    ("1970-01-01T01:00:00.5+01:00", 500),
    ("1969-12-31T23:00:00.1239-01:00", 123),
    ("2016-12-31T23:59:60Z", 1_483_228_800_000),
])
def test_instants_are_read(text: str, ms: int) -> None:
    assert parse_instant(text) == ms


@pytest.mark.parametrize("text", ["", "2020", "2020-01-01", "2020-01-01T00:00:00", "2020-02-30T00:00:00Z"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # calendar and form are both refused
        parse_instant(text)


@pytest.mark.parametrize(("text", "kind", "type_", "id_", "version"), [
    ("Patient/1", "relative", "Patient", "1", None),
    ("Patient/1/_history/2", "relative", "Patient", "1", "2"),
    ("https://a.example/fhir/Patient/1", "absolute", "Patient", "1", None),
    ("http://a.example/Patient/1/_history/3", "absolute", "Patient", "1", "3"),
    ("urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7", "urn", None, None, None),
    ("urn:oid:1.2.3", "urn", None, None, None),
    ("#p", "fragment", None, "p", None),
    ("#", "fragment", None, "", None),
    ("Patient?identifier=s|v", "query", "Patient", None, None),
    ("https://a.example/page", "other", None, None, None),
    ("Patient/1/", "other", None, None, None),
    ("Patient/a b", "other", None, None, None),
    ("../Patient/1", "other", None, None, None),
    ("", "other", None, None, None),
])
def test_reference_forms(text: str, kind: str, type_: str | None, id_: str | None, version: str | None) -> None:
    target = reference_target(text)
    assert (target.kind, target.type, target.id, target.version) == (kind, type_, id_, version)


def test_a_query_reference_keeps_its_query_and_an_absolute_one_its_base() -> None:
    assert reference_target("Patient?identifier=s|v").query == "identifier=s|v"
    assert reference_target("https://a.example/fhir/Patient/1").base == "https://a.example/fhir"


def test_references_are_walked_with_their_places_and_can_be_rewritten() -> None:
    bundle = parse(b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Observation",'
                   b'"subject":{"reference":"urn:uuid:1"},"performer":[{"display":"x"},{"reference":"urn:uuid:2"}]}}]}')
    found = dict(references(bundle))
    assert list(found) == ["Bundle.entry[0].resource.subject", "Bundle.entry[0].resource.performer[1]"]
    found["Bundle.entry[0].resource.subject"]["reference"] = "Patient/1"
    assert bundle["entry"][0]["resource"]["subject"] == {"reference": "Patient/1"}


@pytest.mark.parametrize(("text", "valid"), [
    ("a", True), ("A-1.b", True), ("x" * 64, True), ("x" * 65, False), ("", False), ("a/b", False), ("a_b", False),
    ("a\n", False), ("ä", False),
])
def test_ids(text: str, valid: bool) -> None:
    assert is_id(text) is valid


def test_a_copy_shares_nothing_that_can_change() -> None:
    value = parse(b'{"resourceType":"Basic","a":[{"b":1.10}]}')
    other = copy(value)
    other["a"][0]["b"] = 2
    assert serialise(value) == b'{"resourceType":"Basic","a":[{"b":1.10}]}'
