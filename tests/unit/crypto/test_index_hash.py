"""Keyed hashes and pseudonyms (invariant 1: search works on keyed hashes)."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.crypto.index_hash import IndexHasher, Pseudonymizer
from gateway.errors import Misconfigured

KEY = bytes(range(32))


@given(st.text(min_size=1), st.text())
def test_the_same_fact_has_the_same_hash_and_it_is_a_signed_64_bit_number(key: str, text: str) -> None:
    value = IndexHasher(KEY).hash_fact(key, text)
    assert value == IndexHasher(KEY).hash_fact(key, text)
    assert -(2**63) <= value < 2**63


def test_equal_texts_of_two_parameters_or_two_hospitals_do_not_meet() -> None:
    hasher = IndexHasher(KEY)
    assert hasher.hash_fact("Patient.name", "x") != hasher.hash_fact("Patient.family", "x")
    assert hasher.hash_fact("Patient.name", "x") != IndexHasher(os.urandom(32)).hash_fact("Patient.name", "x")


def test_no_collision_among_many_facts() -> None:
    hasher = IndexHasher(KEY)
    assert len({hasher.hash_fact("Observation.code", str(number)) for number in range(20_000)}) == 20_000


def test_parameter_ids_are_positive_48_bits_and_distinct() -> None:
    hasher = IndexHasher(KEY)
    ids = {hasher.parameter_id(f"Type.p{number}") for number in range(3000)}
    assert len(ids) == 3000
    assert all(0 <= number < 2**48 for number in ids)


def test_vectors_hold() -> None:
    """Stability: a change here makes every index row unfindable until a rebuild."""
    hasher = IndexHasher(KEY)
    assert hasher.hash_fact("Patient.family", "chalmers") == -4226135755566701807
    assert hasher.parameter_id("Patient.family") == 100553820446678


def test_a_flood_of_parameters_is_not_kept() -> None:
    hasher = IndexHasher(KEY)
    for number in range(9000):
        hasher.hash_fact(f"Type.p{number}", "x")
    assert len(hasher._subkeys) <= 8192
    assert hasher.hash_fact("Type.p8999", "x") == IndexHasher(KEY).hash_fact("Type.p8999", "x")


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_pseudonyms_of_different_parts_differ(first: list[str], second: list[str]) -> None:
    names = Pseudonymizer(KEY)
    assert (names.pseudonym("log", *first) == names.pseudonym("log", *second)) == (first == second)
    assert names.pseudonym("log", *first) != names.pseudonym("chain", *first)


def test_a_log_token_is_16_hex_digits() -> None:
    assert len(Pseudonymizer(KEY).token("log", "Patient/1")) == 16


@pytest.mark.parametrize("kind", [IndexHasher, Pseudonymizer])
def test_a_short_key_is_refused(kind: type[IndexHasher] | type[Pseudonymizer]) -> None:
    with pytest.raises(Misconfigured):
        kind(b"short")
