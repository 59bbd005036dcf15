"""Dates in search: precision, prefixes, and the ladder of birth dates. https://hl7.org/fhir/R4/search.html#date"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fhir.query import Comparator, holds
from gateway.fhir.resource import parse_instant
from gateway.fhir.search_dates import (
    MAX_MS,
    MIN_MS,
    date_range,
    element_range,
    ladder_cover,
    ladder_texts,
)

COMPARATORS = st.sampled_from(get_args(Comparator))


@pytest.mark.parametrize(
    ("text", "first", "after"),
    [
        ("2012", "2012-01-01T00:00:00Z", "2013-01-01T00:00:00Z"),
        ("2012-02", "2012-02-01T00:00:00Z", "2012-03-01T00:00:00Z"),
        ("2012-02-29", "2012-02-29T00:00:00Z", "2012-03-01T00:00:00Z"),
        ("2012-02-29T10:30", "2012-02-29T10:30:00Z", "2012-02-29T10:31:00Z"),
        ("2012-02-29T10:30:05+02:00", "2012-02-29T08:30:05Z", "2012-02-29T08:30:06Z"),
        ("2012-02-29T10:30:05 02:00", "2012-02-29T08:30:05Z", "2012-02-29T08:30:06Z"),
        ("2012-02-29T10:30:05.25Z", "2012-02-29T10:30:05.250Z", "2012-02-29T10:30:05.260Z"),
        ("2012-12-31T23:59:60Z", "2013-01-01T00:00:00Z", "2013-01-01T00:00:01Z"),
    ],
)
def test_a_date_is_a_range_as_wide_as_its_precision(text: str, first: str, after: str) -> None:
    assert date_range(text) == (parse_instant(first), parse_instant(after))


@pytest.mark.parametrize("text", ["", "12", "2012-13", "2012-02-30", "0000", "2012-01-01T", "2012-01-01T10",
                                  "2012-01-01T25:00", "2012-1-1", "2012-01-01Z", "yesterday", "2012-01-01T10:00+2"])
def test_what_is_no_date_has_no_range(text: str) -> None:
    assert date_range(text) is None


@given(st.text(max_size=30))
def test_any_text_is_a_date_or_not(text: str) -> None:
    found = date_range(text)
    assert found is None or found[0] < found[1]


def test_an_open_period_reaches_to_the_end_of_time() -> None:
    day = date_range("2012-01-05")
    assert day is not None
    assert element_range({"start": "2012-01-05"}) == (day[0], MAX_MS)
    assert element_range({"end": "2012-01-05"}) == (MIN_MS, day[1])
    assert element_range({}) is None


def test_a_timing_spans_its_events_and_bounds() -> None:
    found = element_range({"event": ["2012-03-01", "2012-01-01"], "repeat": {"boundsPeriod": {"start": "2011",
                                                                                            "end": "2012-02"}}})
    first, last = date_range("2011"), date_range("2012-03-01")
    assert first is not None
    assert last is not None
    assert found == (first[0], last[1])


RANGES = st.tuples(st.integers(0, 12), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(COMPARATORS, RANGES, RANGES)
def test_prefixes_mean_what_r4_says_of_the_moments_in_both_ranges(
    comparator: Comparator, stored: tuple[int, int], asked: tuple[int, int]
) -> None:
    """R4 3.1.1.4.5, said of sets of moments."""
    ours, theirs = set(range(*stored)), set(range(*asked))
    inside, above, below = ours <= theirs, max(ours) > max(theirs), min(ours) < min(theirs)
    expected = {
        "eq": inside, "ne": not inside, "gt": above, "lt": below, "ge": above or inside, "le": below or inside,
        "sa": min(ours) > max(theirs), "eb": max(ours) < min(theirs), "ap": bool(ours & theirs),
    }
    assert holds(comparator, *stored, *asked) is expected[comparator]


@st.composite
def written_dates(draw: st.DrawFn, *, clock: bool) -> str:
    year, month = draw(st.integers(1800, 2199)), draw(st.integers(1, 12))
    day = draw(st.integers(1, monthrange(year, month)[1]))
    texts = [f"{year}", f"{year}-{month:02}", f"{year}-{month:02}-{day:02}"]
    if clock:
        texts.append(f"{texts[-1]}T{draw(st.integers(0, 23)):02}:{draw(st.integers(0, 59)):02}Z")
    return draw(st.sampled_from(texts))


@given(COMPARATORS, written_dates(clock=False), written_dates(clock=True))
def test_the_ladder_answers_as_the_ranges_would(comparator: Comparator, stored: str, asked: str) -> None:
    ours, theirs = date_range(stored), date_range(asked)
    assert ours is not None
    assert theirs is not None
    cover = ladder_cover(comparator, *theirs)
    assert (not set(cover).isdisjoint(ladder_texts(stored))) is holds(comparator, *ours, *theirs)
    assert len(cover) < 150
    assert len(cover) == len(set(cover))


@given(COMPARATORS, written_dates(clock=False), st.integers(-40, 40))
def test_the_ladder_is_right_near_the_edges_too(comparator: Comparator, asked: str, days: int) -> None:
    theirs = date_range(asked)
    assert theirs is not None
    edge = theirs[0] if days % 2 else theirs[1]
    moved = edge + days * 86_400_000
    stored = next((text for text in _days_at(moved)), None)
    if stored is not None:
        ours = date_range(stored)
        assert ours is not None
        cover = ladder_cover(comparator, *theirs)
        assert (not set(cover).isdisjoint(ladder_texts(stored))) is holds(comparator, *ours, *theirs)


def _days_at(ms: int) -> list[str]:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    return [moment.date().isoformat()] if 1800 <= moment.year <= 2199 else []


def test_a_death_with_a_time_climbs_by_its_day() -> None:
    assert ladder_texts("2012-03-04T10:00:00+01:00") == ladder_texts("2012-03-04")
    assert ladder_texts("not a date") == ()


@pytest.mark.parametrize("text", ["9999-12-31T24:00", "9999-12-31T23:59:00-14:00", "0001-01-01T00:00+14:00"])
@pytest.mark.parametrize("comparator", get_args(Comparator))
def test_a_moment_beyond_the_calendar_is_no_error(text: str, comparator: Comparator) -> None:
    found = date_range(text)
    assert found is not None
    assert isinstance(ladder_cover(comparator, *found), list)
