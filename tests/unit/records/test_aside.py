"""What is stored aside of the event loop: what it takes long to store, whatever of it makes it long."""

from __future__ import annotations

import pytest

from gateway.records import aside
from gateway.store.journal import IndexRows, NewVersion


def version(rows: IndexRows, envelope: bytes = b"") -> NewVersion:
    return NewVersion(
        type="Observation", id="a", vid=1, deleted=False, updated_ms=0, patients=(), client="c", user=None,
        confidentiality=0, labels=0, low_ms=None, high_ms=None, categories=b"", keys=b"", digest=b"", commitment=b"",
        envelope=envelope, rows=rows)


FEW = IndexRows(hashes=(1, 2))
MANY = IndexRows(hashes=tuple(range(aside.VALUES + 1)))


@pytest.mark.parametrize(("new", "apart"), [
    (version(FEW), False), (version(MANY), True), (version(FEW, bytes(aside.BYTES + 1)), True),
    (version(IndexRows(contained=((1, MANY),))), True),
    (version(IndexRows(contained=tuple((place, FEW) for place in range(1, aside.VALUES)))), True),
    (version(IndexRows(contained=((1, FEW), (2, FEW)))), False), (None, False)])
def test_many_rows_are_stored_in_a_thread_those_of_what_is_contained_too(new: NewVersion | None, apart: bool) -> None:
    assert aside.large_version(new) is apart
