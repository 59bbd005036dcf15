"""Several answers as one, some of them unknown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.fhir.unknowns import all_of, any_of

ANSWERS = st.lists(st.sampled_from([True, False, None]), max_size=6)


@given(ANSWERS)
def test_what_is_unknown_decides_nothing_and_hides_nothing(answers: list[bool | None]) -> None:
    """Kleene: an answer is given exactly where every way of knowing the unknown ones would give it."""
    assert any_of(answers) is (True if True in answers else None if None in answers else False)
    assert all_of(answers) is (False if False in answers else None if None in answers else True)


@given(ANSWERS)
def test_all_are_so_where_none_is_otherwise(answers: list[bool | None]) -> None:
    otherwise = any_of(None if answer is None else not answer for answer in answers)
    assert all_of(answers) is (None if otherwise is None else not otherwise)
