"""Texts both sides of a search hash. https://hl7.org/fhir/R4/search.html#string, #token, #reference"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fhir.search_encoding import (
    PREFIX_MAX,
    normal,
    prefix_text,
    prefix_texts,
    reference_text,
    reference_type,
    token_bare,
    token_code,
    token_full,
    token_system,
    token_texts,
    uri_texts,
)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Müller", "muller"),
        ("O\u2019Brien", "obrien"),
        ("  Anne-Marie ", "anne marie"),
        ("ŁÓDŹ", "łodz"),
        ("Straße 5", "strasse 5"),
        ("\ufb01ne", "fine"),
        ("\U0001d400", "a"),
        ("...", ""),
        ("山田 太郎", "山田 太郎"),
    ],
)
def test_case_accents_and_punctuation_do_not_count(text: str, outcome: str) -> None:
    assert normal(text) == outcome


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normal(normal(text)) == normal(text)


@given(st.text(max_size=60), st.integers(0, 60))
def test_a_prefix_is_found_exactly_when_it_is_one(text: str, size: int) -> None:
    whole = normal(text)
    asked = whole[:size]
    if 0 < len(asked) <= PREFIX_MAX:
        assert prefix_text(asked) in prefix_texts(whole)
        assert prefix_text("x" + asked[1:]) not in prefix_texts(whole) or asked[0] == "x"


_CODES = st.text(alphabet="aA1|\x20", min_size=1, max_size=3)
_SYSTEMS = st.sampled_from([None, "http://a", "http://A", "urn:b"])


@given(_SYSTEMS, _CODES, _SYSTEMS, _CODES)
def test_tokens_meet_exactly_when_r4_says(system: str | None, code: str, asked_system: str | None,
                                          asked: str) -> None:
    texts = token_texts(system, code)
    same = code.casefold() == asked.casefold()
    assert (token_code(asked) in texts) is same
    assert (token_bare(asked) in texts) is (same and system is None)
    if asked_system is not None:
        assert (token_full(asked_system, asked) in texts) is (same and system == asked_system)
        assert (token_system(asked_system) in texts) is (system == asked_system)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Patient/1", "Patient/1"),
        ("Patient/1/_history/3", "Patient/1"),
        ("http://own/fhir/Patient/1", "Patient/1"),
        ("http://other/fhir/Patient/1/_history/2", "http://other/fhir/Patient/1"),
        ("urn:uuid:0-1", "urn:uuid:0-1"),
        ("#p", None),
        ("Patient?identifier=x", None),
    ],
)
def test_references_lose_version_and_own_base(text: str, outcome: str | None) -> None:
    assert reference_text(text, frozenset({"http://own/fhir"})) == outcome


def test_the_type_of_a_reference_is_read_from_its_text() -> None:
    assert reference_type("http://other/fhir/Patient/1") == "Patient"
    assert reference_type("urn:uuid:0-1") is None


def test_a_canonical_is_found_with_and_without_its_version() -> None:
    assert uri_texts("http://a|1") == ("http://a|1", "http://a")
    assert uri_texts("http://a") == ("http://a",)
