"""The receipt of an audit row: the run it stands in was anchored. ``gateway/FORMATS.md``, Receipt; invariant 8."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import GENESIS
from gateway.crypto.envelope import content_commitment
from gateway.errors import BlockCorrupt, Malformed
from gateway.ledger import merkle
from gateway.ledger.audit_run import Row, Run, first_unchained, pack, parse, row_hash
from gateway.ledger.batch import rolling_head
from gateway.ledger.receipt import RUN_MAX, SIZE_MAX, AnchoredRow, Receipt, document, from_json, to_json
from gateway.ledger.receipts import Proofs, build_audit_receipt
from gateway.ledger.verify import ChainBlock, ChainLog, ChainTransaction, verify
from gateway.store.cbor import Value, encode
from tests.simulators.chain import OPERATOR
from tests.unit.ledger.ledger_world import World, ring_at
from tests.unit.ledger.test_verify import Node, event


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Receipt]]:
    """Of rows 1 to 6 in one run and 7 to 10 in another."""
    folder = tmp_path_factory.mktemp("world")
    ring = ring_at(folder)
    world = World(folder, ring, embedded_blobs=True)
    for rows in (6, 4):
        world.write(1, rows)
        world.close_all()
        world.settle()
    proofs = Proofs(ring=ring, blobs=world.blobs, custodian=OPERATOR, chain_id=1337, contract=OPERATOR)
    made = {}
    with world.database.snapshot() as connection:
        for seq, value in connection.execute("SELECT seq, hash FROM audit ORDER BY seq").fetchall():
            receipt = build_audit_receipt(proofs, connection, f"log-{seq}", int(str(seq)), bytes(value))
            assert receipt is not None
            made[int(str(seq))] = receipt
    yield made
    world.database.close()
    ring.close()


def judged(receipt: Receipt | bytes, *, on: Receipt, resource: bytes | None = None) -> tuple[int, str, str]:
    """Code, and name and words of the step that says why."""
    block = ChainBlock(hash=on.block_hash, time_s=on.block_time_s, transactions=(on.transaction,))
    node = Node(on, head=on.block_number + 11)
    node.mined = ChainTransaction(succeeded=True, block_number=on.block_number, block_hash=on.block_hash, logs=(
        ChainLog(address="0x" + "00" * 20, topics=(), data=b""), event(on)))
    node.blocks = {on.block_number: block}
    verdict = verify(receipt, resource=resource, chain=node, confirmations=12)
    assert verdict.subject == "audit row"
    told = verdict.first_failed or next((step for step in verdict.steps if step.status == "unknown"), None)
    return verdict.code, told.name if told else "", told.detail if told else ""


def test_a_row_verifies_with_the_run_it_stands_in(receipts: dict[int, Receipt]) -> None:
    for receipt in receipts.values():
        assert from_json(to_json(receipt)) == receipt
        assert judged(to_json(receipt), on=receipt) == (0, "", "")


def test_without_the_run_the_row_is_the_gateways_word_alone(receipts: dict[int, Receipt]) -> None:
    row = receipts[3].row
    assert row is not None
    code, step, told = judged(to_json(replace(receipts[3], row=replace(row, run=None))), on=receipts[3])
    assert (code, step) == (2, "content")
    assert "gateway's word alone" in told


def test_a_file_beside_a_row_is_refused_with_what_to_do(receipts: dict[int, Receipt]) -> None:
    row = receipts[3].row
    assert row is not None
    for file in (b'{"resourceType":"AuditEvent"}', row.run, b""):
        code, step, told = judged(receipts[3], on=receipts[3], resource=file)
        assert (code, step) == (1, "content")
        assert "give no --resource" in told


def rerun(receipt: Receipt, change: Callable[[Run], Run]) -> Receipt:
    """With another run, resealed so that its commitment and everything after it but the chain agree."""
    assert receipt.row is not None
    assert receipt.row.run is not None
    return resealed(receipt, pack(change(parse(receipt.row.run))))


def resealed(receipt: Receipt, body: bytes) -> Receipt:
    assert receipt.row is not None
    commitment = content_commitment(receipt.content_salt, body)
    tree = merkle.build([leaf := merkle.leaf(receipt.block_digest, commitment)], bytes(32))
    return replace(
        receipt, content_commitment=commitment, path=tree.path(leaf), root=tree.root, size_class=0,
        head=rolling_head(receipt.prior_head, tree.root, receipt.manifest_digest, 0),
        row=replace(receipt.row, run=body))


def altered(run: Run) -> Run:
    rows = list(run.rows)
    rows[2] = replace(rows[2], time_ms=rows[2].time_ms + 1)
    return replace(run, rows=tuple(rows))


def rechained(run: Run) -> Run:
    previous, rows = run.previous, []
    for row in altered(run).rows:
        previous = row_hash(previous, row.time_ms, row.keys, row.sealed)
        rows.append(replace(row, hash=previous))
    return replace(run, rows=tuple(rows))


def test_a_tampered_row_fails_whatever_was_made_to_agree_with_it(receipts: dict[int, Receipt]) -> None:
    true = receipts[3]
    assert true.row is not None
    assert true.row.run is not None
    body = pack(altered(parse(true.row.run)))
    code, step, told = judged(replace(true, row=replace(true.row, run=body)), on=true)
    assert (code, step, told) == (1, "content", "the run is not the one that was anchored")
    forged = rerun(true, altered)
    code, step, told = judged(forged, on=forged)
    assert (code, step) == (1, "content")
    assert told.startswith("row 3 of the run is not what its hash")
    forged = rerun(true, rechained)
    assert judged(forged, on=true)[:2] == (1, "content"), "the hash the receipt names is the true row's"
    assert forged.row is not None
    assert forged.row.run is not None
    hash_ = parse(forged.row.run).rows[2].hash
    assert judged(replace(forged, row=replace(forged.row, hash=hash_)), on=true)[:2] == (1, "anchored")


def test_a_row_of_another_run_and_a_swapped_hash_fail_by_name(receipts: dict[int, Receipt]) -> None:
    true, other = receipts[3], receipts[8]
    assert true.row is not None
    assert other.row is not None
    stranger = replace(true, id="log-8", row=AnchoredRow(number=8, hash=other.row.hash, run=true.row.run))
    assert judged(stranger, on=true) == (1, "content", "the run holds rows 1 to 6, not row 8")
    swapped = replace(true, row=replace(true.row, run=other.row.run))
    assert judged(swapped, on=true) == (1, "content", "the run is not the one that was anchored")
    neighbour = receipts[4].row
    assert neighbour is not None
    mixed = replace(true, row=replace(true.row, hash=neighbour.hash))
    assert judged(mixed, on=true) == (1, "content", "row 3 of the run has another hash than the receipt names")


@pytest.mark.parametrize("body", [
    b"", b"\xa0", b'{"resourceType":"AuditEvent","id":"log-3","meta":{"versionId":"1"}}',
    encode({"version": 2, "first": 1, "previous": GENESIS, "rows": []}),
    encode({"version": 1, "first": 1, "previous": GENESIS, "rows": []})])
def test_an_anchored_entry_that_is_no_run_is_no_audit(receipts: dict[int, Receipt], body: bytes) -> None:
    """A version of a record cannot be passed off as a run."""
    forged = resealed(receipts[3], body)
    code, step, told = judged(forged, on=forged)
    assert (code, step) == (1, "content")
    assert told.startswith("what was anchored is no run of audit rows: ")


HASH = "ab" * 32


@pytest.mark.parametrize(("change", "named"), [
    (lambda value: value.pop("row"), "row is missing"),
    (lambda value: value.update(row=None), "row must be an object"),
    (lambda value: value["row"].update(more=1), "row.more"),
    (lambda value: value["row"].update(number="3"), "row.number"),
    (lambda value: value["row"].update(number=4), "row.number is not the one log-3 names"),
    (lambda value: value["row"].update(hash="0x" + HASH), "row.hash"),
    (lambda value: value["row"].update(hash=HASH.upper()), "row.hash"),
    (lambda value: value.update(run=""), "run must be base64"),
    (lambda value: value.update(run=7), "run must be base64"),
    (lambda value: value.update(run="ä"), "run must be base64"),
    (lambda value: value.update(run=value["run"] + "\n"), "run must be base64"),
    (lambda value: value.update(run=value["run"].rstrip("=") + "===="), "run must be base64"),
    (lambda value: value["resource"].update(versionId="2"), "resource.versionId must be 1"),
    (lambda value: value["resource"].update(id="other"), "row is not a member of a receipt of AuditEvent/other"),
    (lambda value: value["resource"].update(type="Patient"), "row is not a member of a receipt of Patient/log-3"),
    (lambda value: value.update(extra=1), "extra is not a member"),
    (lambda value: value.update(run="A" * (RUN_MAX + SIZE_MAX)), "over"),
])
def test_what_a_receipt_says_of_its_row_is_checked(receipts: dict[int, Receipt],
                                                   change: Callable[[dict[str, object]], object], named: str) -> None:
    value = document(receipts[3])
    change(value)
    with pytest.raises(Malformed, match="receipt: ") as caught:
        from_json(json.dumps(value).encode())
    assert named in str(caught.value)


def test_white_space_around_a_run_has_the_same_bound_as_any_receipts(receipts: dict[int, Receipt]) -> None:
    data = to_json(receipts[3])
    assert from_json(data + b" " * 1000) == receipts[3]
    with pytest.raises(Malformed, match="over"):
        from_json(data + b" " * SIZE_MAX)
    assert len(base64.b64decode(json.loads(data)["run"])) > 500


rows = st.builds(Row, time_ms=st.integers(-2**63 + 1, 2**63 - 1), keys=st.binary(max_size=16),
                 sealed=st.binary(max_size=40), hash=st.binary(min_size=32, max_size=32))
runs = st.builds(Run, first=st.integers(1, 2**40), previous=st.binary(min_size=32, max_size=32),
                 rows=st.lists(rows, min_size=1, max_size=4).map(tuple))


@given(runs)
def test_a_run_reads_back_as_it_was_packed(run: Run) -> None:
    assert parse(pack(run)) == run
    chained, previous = [], run.previous
    for row in run.rows:
        previous = row_hash(previous, row.time_ms, row.keys, row.sealed)
        chained.append(replace(row, hash=previous))
    assert first_unchained(replace(run, rows=tuple(chained))) is None
    broken = replace(run, rows=(*chained[:-1], replace(chained[-1], time_ms=chained[-1].time_ms // 2 - 1)))
    if broken.rows[-1] != chained[-1]:
        assert first_unchained(broken) == run.last


@given(st.binary(max_size=300))
def test_any_bytes_are_a_run_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(BlockCorrupt):
        assert pack(parse(body)) == body


def test_a_row_of_a_time_no_clock_shows_is_refused() -> None:
    row: list[Value] = [2**63, b"", b"", bytes(32)]
    with pytest.raises(BlockCorrupt, match="a row is malformed"):
        parse(encode({"version": 1, "first": 1, "previous": GENESIS, "rows": [row]}))
