"""The HTTP date of a version, against the standard library's."""

from __future__ import annotations

from email.utils import formatdate

from hypothesis import given
from hypothesis import strategies as st

from gateway.records.answer import Answer


@given(st.integers(0, 253_402_300_799_999))
def test_last_modified_is_an_imf_fixdate(updated_ms: int) -> None:
    """RFC 9110 section 5.6.7."""
    assert Answer(200, updated_ms=updated_ms).last_modified == formatdate(updated_ms // 1000, usegmt=True)
