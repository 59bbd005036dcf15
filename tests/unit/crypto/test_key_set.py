"""The value beside a Version that says which keys opened it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.crypto.key_set import CUSTODIAN, KeySet, in_order, joined, key_ids
from gateway.errors import IntegrityBroken

KEYS = st.lists(st.tuples(st.integers(min_value=1, max_value=2**63 - 1), st.binary(min_size=32, max_size=32)),
                min_size=1, max_size=5)


@given(KEYS, st.randoms())
def test_a_set_does_not_depend_on_the_order_of_its_keys(keys: list[tuple[int, bytes]], chance: Random) -> None:
    """Invariant 3: two processes that find the same keys in another order seal and open alike."""
    shuffled = list(keys)
    chance.shuffle(shuffled)
    assert KeySet.of(shuffled) == KeySet.of(keys)
    assert key_ids(KeySet.of(keys).refs) == tuple(sorted(key_id for key_id, _ in keys))
    assert KeySet.of(keys).material == joined(key for _, key in keys)


@pytest.mark.parametrize("refs", [b"", b"1234567", bytes(12)])
def test_references_that_are_cut_or_empty_are_broken_integrity(refs: bytes) -> None:
    with pytest.raises(IntegrityBroken):
        key_ids(refs)


def test_owners_stand_once_and_in_order_and_nobody_is_the_custodian() -> None:
    assert in_order(["b", "a", "b"]) == ("a", "b")
    assert in_order(["a"]) == ("a",)
    assert in_order([]) == (CUSTODIAN,)


def test_material_is_not_in_a_repr() -> None:
    """Invariant 1: a key set that lands in a log tells no key."""
    keys = KeySet.of([(1, bytes(range(32)))])
    assert repr(keys.material) not in repr(keys)
