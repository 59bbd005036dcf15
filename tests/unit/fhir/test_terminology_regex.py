"""Regular expressions of filters: like Python's where they are offered, and never slow."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import TooCostly, Unprocessable
from gateway.fhir.terminology_regex import Regex

atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", "[a-c0]", r"\."])
expressions = st.recursive(atoms, lambda inner: st.one_of(
    st.lists(inner, min_size=1, max_size=3).map("".join),
    st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
    st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,2}", "{2,}"])).map(
        lambda two: f"(?:{two[0]}){two[1]}")), max_leaves=6)


@given(expressions, st.text("abc0.", max_size=8))
def test_it_matches_as_pythons_does(pattern: str, text: str) -> None:
    assert Regex(pattern).fullmatch(text) is (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*b", "(a+)+b", "(.*a){20}b"])
def test_none_backtracks(pattern: str) -> None:
    started = time.perf_counter()
    expression = Regex(pattern)
    assert not expression.fullmatch("a" * 2000)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("pattern", ["(", ")", "a**", "[", "[]", "[b-a]", "a{2,1}", "a{x}", "(?=a)", r"\1", r"\b", "*",
                                     "a\\", "[a", "{2}", "a{", "x[[:alpha:]]", "(?P<n>a)"])
def test_what_is_not_offered_is_refused(pattern: str) -> None:
    with pytest.raises(Unprocessable):
        Regex(pattern)


@pytest.mark.parametrize("pattern", ["a" * 300, "((a{100}){100}){100}", "(" * 30 + "a" + ")" * 30, "a{1000}"])
def test_what_is_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(TooCostly):
        Regex(pattern)


@given(st.text(max_size=20))
def test_any_text_is_an_expression_or_is_refused(pattern: str) -> None:
    try:
        Regex(pattern).fullmatch("abc")
    except (Unprocessable, TooCostly):
        return
