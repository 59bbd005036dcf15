"""An answer's HTTP date, against the standard library's, and its form within a Bundle."""

from __future__ import annotations

from email.utils import formatdate

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.records.answer import Answer, response_entry


@given(st.integers(0, 253_402_300_799_999))
def test_last_modified_is_an_imf_fixdate(updated_ms: int) -> None:
    """RFC 9110 section 5.6.7."""
    assert Answer(200, updated_ms=updated_ms).last_modified == formatdate(updated_ms // 1000, usegmt=True)


@pytest.mark.parametrize(("answer", "place"), [
    (Answer(200, b'{"resourceType":"Patient"}'), ("resource",)),
    (Answer(201, b'{"resourceType":"OperationOutcome"}', is_outcome=True), ("response", "outcome")),
    (Answer(404, b'{"resourceType":"OperationOutcome"}', is_outcome=True), ("response", "outcome"))])
def test_an_outcome_is_told_beside_the_status_and_a_resource_in_its_own_place(answer: Answer,
                                                                              place: tuple[str, ...]) -> None:
    """R4 Bundle.entry.response.outcome: hints and warnings, or why it failed."""
    entry = found = orjson.loads(response_entry(answer))
    for name in place:
        found = found[name]
    assert found == orjson.loads(answer.body)
    assert (str(answer.status) in entry["response"]["status"], "resource" in entry) == (True, place == ("resource",))
