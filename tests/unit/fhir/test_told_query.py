"""A patient's audit shows no query that names others."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fhir.told_query import told_to

HARMLESS = frozenset({"code", "date", "status", "category"})


def told(*pairs: tuple[str, str]) -> str:
    return told_to(urlencode(pairs), "a-1", HARMLESS.__contains__)


@pytest.mark.parametrize("pairs", [
    [("patient", "a-1")], [("subject", "Patient/a-1"), ("code", "x,y"), ("date", "ge2020-01-01T10:00:00Z")],
    [("identifier", "urn:x|7")], [("code", "x,y"), ("_count", "5")], [("name", "Smith")], [],
    [("patient", "a-1"), ("_include", "Observation:subject")]])
def test_what_names_nobody_else_is_kept_whole(pairs: list[tuple[str, str]]) -> None:
    assert told(*pairs) == urlencode(pairs)


@pytest.mark.parametrize("pairs", [
    [("patient", "a-1,b-2")], [("subject", "Patient/b-2,Patient/a-1")], [("_id", "b-2,a-1")],
    [("identifier", "urn:x|b-2,urn:x|7")], [("name", "b-2,Smith")], [("patient:not", "b-2")],
    [("patient.identifier", "b-2")], [("_has:Observation:subject:performer", "b-2")],
    [("patient", "b-2"), ("_include", "Observation:specimen")], [("_filter", "patient eq b-2")],
    [("_content", "b-2")], [("performer", "Patient/b-2,Patient/a-1")], [("code", "x"), ("patient", "b-2,a-1")]])
def test_what_names_others_is_not_shown(pairs: list[tuple[str, str]]) -> None:
    shown = told(*pairs)
    assert "b-2" not in shown
    assert "not+shown" in shown


def test_ones_own_name_stays_among_others() -> None:
    assert "Patient%2Fa-1" in told(("subject", "Patient/b-2,Patient/a-1"))
    assert "code=x" in told(("code", "x"), ("patient", "b-2,a-1"))


@given(st.lists(st.tuples(st.sampled_from(["patient", "subject", "_id", "identifier", "name", "patient:not", "x.y"]),
                          st.lists(st.sampled_from(["a-1", "Patient/a-1", "other", "Patient/other", "s|other"]),
                                   min_size=2, max_size=4)), max_size=4))
def test_no_list_of_values_ever_shows_another(pairs: list[tuple[str, list[str]]]) -> None:
    assert "other" not in told(*((name, ",".join(values)) for name, values in pairs))
