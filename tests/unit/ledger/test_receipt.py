"""Receipts as documents: one canonical form, strict on everything else (``gateway/FORMATS.md``, Receipt)."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Malformed
from gateway.ledger.merkle import DEPTHS
from gateway.ledger.receipt import SIZE_MAX, Receipt, document, from_json, to_json

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "receipt.json"
hashes = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20).map(lambda data: "0x" + data.hex())
numbers = st.integers(0, 2**63 - 1)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    size_class = draw(st.integers(0, 4))
    depth = DEPTHS[size_class]
    return Receipt(
        type=draw(st.sampled_from(["Patient", "Observation"])), size_class=size_class,
        id=draw(st.from_regex(r"[A-Za-z0-9\-.]{1,64}", fullmatch=True)),
        version_id=draw(st.integers(1, 10**18)), content_salt=draw(hashes), content_commitment=draw(hashes),
        block_digest=draw(hashes), path=tuple(draw(st.lists(hashes, min_size=depth, max_size=depth))),
        root=draw(hashes), manifest_digest=draw(hashes), prior_head=draw(hashes), head=draw(hashes),
        chain_id=draw(numbers), contract=draw(addresses), custodian=draw(addresses), transaction=draw(hashes),
        block_number=draw(numbers), block_hash=draw(hashes), block_time_s=draw(st.integers(0, 4_102_444_800)),
        confirmations=draw(numbers))


@given(receipts())
def test_reads_back_what_it_wrote(receipt: Receipt) -> None:
    data = to_json(receipt)
    assert from_json(data) == receipt
    assert to_json(from_json(data)) == data
    assert from_json(json.dumps(document(receipt)).encode()) == receipt


def example() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(VECTORS.read_text())["receipt"]
    return value


def test_committed_vector_holds() -> None:
    """Stability: receipts are kept by patients for years."""
    receipt = from_json(json.dumps(example()).encode())
    assert document(receipt) == example()
    assert list(document(receipt)) == list(example())
    assert [field.name for field in fields(receipt)][20:] == ["row"]
    assert receipt.row is None


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, inner in members for found in ((*at, name), *paths(inner, (*at, name)))]


@pytest.mark.parametrize("place", paths(example()), ids=lambda place: ".".join(map(str, place)))
def test_every_member_is_needed_and_checked(place: tuple[str | int, ...]) -> None:
    for change in (None, "", "0x", -1, 1.5, True, [], {}, "0X/" + "ab" * 32, "0x/" + "AB" * 31,
                   "0x" + "ab" * 33, 2**63):
        value = copy.deepcopy(example())
        inner: Any = value
        for name in place[:-1]:
            inner = inner[name]
        if inner[place[-1]] == change or (place[-1] == "id" and change == "0x"):  # a legal id
            continue
        inner[place[-1]] = change
        with pytest.raises(Malformed, match="receipt: ") as caught:
            from_json(json.dumps(value).encode())
        assert str(place[0]) in str(caught.value)
        del inner[place[-1]]
        with pytest.raises(Malformed):
            from_json(json.dumps(value).encode())


@pytest.mark.parametrize("place", [(), ("resource",), ("content",), ("batch",), ("anchor",)])
def test_unknown_members_are_refused_by_name(place: tuple[str, ...]) -> None:
    value = example()
    inner = value
    for name in place:
        inner = inner[name]
    inner["extra"] = 1
    with pytest.raises(Malformed, match="extra"):
        from_json(json.dumps(value).encode())


@pytest.mark.parametrize("data", [
    b"", b"null", b"[]", b"{", b"\xff", b"NaN", b"[" * 15_000, b'{"format":1,"format":1}', b" " * (SIZE_MAX + 1)],
    ids=["empty", "null", "list", "cut", "not UTF-8", "NaN", "nested", "double", "long"])
def test_hostile_documents_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed, match="receipt"):
        from_json(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_an_issue(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        from_json(data)
    assert caught.value.issues


@pytest.mark.parametrize("time", ["2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:00+00:00"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    value = example()
    value["anchor"]["blockTime"] = time
    with pytest.raises(Malformed, match="blockTime"):
        from_json(json.dumps(value).encode())
