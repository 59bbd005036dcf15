"""Statistics and the newest of each kind. https://hl7.org/fhir/R4/codesystem-observation-statistics.html"""

from __future__ import annotations

import statistics as reference
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fhir.resource import parse
from gateway.fhir.statistics import OFFERED, amounts, decimal_text, kind_of, newest, statistic

values = st.lists(st.decimals(min_value=-10**6, max_value=10**6, places=3), min_size=2, max_size=30)
codes = st.lists(st.frozensets(st.sampled_from("abcdef"), max_size=3), max_size=30)


@given(values)
def test_statistics_are_those_of_the_library(numbers: list[Decimal]) -> None:
    assert statistic("average", numbers) == pytest.approx(reference.mean(numbers))
    assert statistic("median", numbers) == pytest.approx(reference.median(numbers))
    assert float(statistic("variance", numbers) or 0) == pytest.approx(float(reference.variance(numbers)), abs=1e-9)
    quarters = reference.quantiles(numbers, n=4, method="inclusive")
    assert statistic("4-lower", numbers) == pytest.approx(quarters[0])
    assert statistic("4-upper", numbers) == pytest.approx(quarters[2])
    fifths = reference.quantiles(numbers, n=5, method="inclusive")
    assert [statistic(f"5-{n}", numbers) for n in (1, 2, 3, 4)] == pytest.approx(fifths)


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, min_value=Decimal("-1e300"),
                            max_value=Decimal("1e300")), max_size=5))
def test_every_statistic_is_a_number_or_none_and_written_as_json(numbers: list[Decimal]) -> None:
    for code in OFFERED - {"count", "total-count"}:
        found = statistic(code, numbers)
        if found is not None:
            assert parse(b'{"resourceType":"X","v":%s}' % decimal_text(found).encode())["v"] is not None


@given(codes, st.integers(1, 3))
def test_newest_keeps_order_and_gives_each_kind_its_share(kinds: list[frozenset[str]], most: int) -> None:
    taken = newest(kinds, most)
    assert taken == sorted(set(taken))
    for place, kind in enumerate(kinds):
        alike = [earlier for earlier in range(place) if kinds[earlier] & kind]
        if place in taken:
            assert len(alike) < most
        if not any(kinds[other] & kind for other in range(len(kinds)) if other != place) and kind:
            assert place in taken


def test_values_with_a_comparator_or_no_number_count_for_the_total_alone() -> None:
    def of(value: str) -> list[object]:
        observation = parse(b'{"resourceType":"Observation","code":{"coding":[{"system":"s","code":"c"}]},%s}'
                            % value.encode())
        return list(amounts(observation, frozenset({"s|c"})))

    assert of('"valueQuantity":{"value":1,"comparator":"<"}') == [None]
    assert of('"valueString":"1"') == [None]
    assert of('"valueQuantity":{"value":1e999}') == [None]
    assert [str(one.value) for one in of('"valueQuantity":{"value":1.50}')] == ["1.50"]  # type: ignore[attr-defined]


def test_a_kind_is_its_codings_else_its_text() -> None:
    assert kind_of({"coding": [{"system": "s", "code": "c"}, {"code": "d"}], "text": "x"}) == {"s|c", "|d"}
    assert kind_of({"text": "Pulse"}) == {"text|pulse"}
    assert kind_of(None) == frozenset()
