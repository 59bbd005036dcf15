"""Anchoring: each Entry in exactly one Batch, each Batch on the canonical chain exactly once, in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from gateway.crypto.keys import KeyRing
from gateway.errors import ChainUnavailable, TransactionRefused
from gateway.ledger.batch import parse_manifest
from gateway.ledger.calls import AnchorCall, SetEndpointCall
from gateway.ledger.receipts import Proofs, build_audit_receipt, build_receipt
from gateway.ledger.verify import verify
from gateway.store import followed, journal
from tests.simulators.chain import OPERATOR
from tests.unit.ledger.ledger_world import Crash, HeldBlobs, World, foreign


def check_exactly_once(world: World) -> None:
    """The invariants, on the chain as it finally is."""
    rows = world.batches()
    assert [row.state for row in rows] == ["final"] * len(rows)
    ours = [event for event in world.anchored() if event.root in {row.root for row in rows}]
    assert [event.root for event in ours] == [row.root for row in rows]
    for row, event in zip(rows, ours, strict=True):
        assert (row.expected_head, row.new_head, row.tx_hash) == (event.previous_head, event.head, event.place.tx_hash)
        assert (row.block_number, row.block_hash) == (event.place.block_number, event.place.block_hash)
    reader = world.database.reader
    assert reader.execute("SELECT count(*) FROM version WHERE batch IS NULL").get == 0
    seqs = [seq for (seq,) in reader.execute("SELECT seq FROM audit ORDER BY seq")]
    covered = [seq for first, last in reader.execute("SELECT first, last FROM audit_run ORDER BY first")
               for seq in range(int(str(first)), int(str(last)) + 1)]
    assert covered == seqs
    if isinstance(world.blobs, HeldBlobs):
        linked: list[bytes] = []
        for row in rows:
            manifest = parse_manifest(world.blobs.manifests[row.manifest_digest], row.manifest_digest)
            assert len(manifest.links) == row.entries
            assert {*manifest.links, manifest.sealed} <= set(world.blobs.blocks)
            linked += manifest.links
        assert len(linked) == len(set(linked)) == world.written + int(str(
            reader.execute("SELECT count(*) FROM audit_run").get))


def test_what_waits_is_closed_pushed_anchored_and_final(world: World) -> None:
    world.write(5, 7)
    assert world.closer.close_if_due()
    assert world.step()
    world.settle()
    check_exactly_once(world)
    assert len(world.batches()) == 1


def test_a_batch_is_closed_on_its_cadence_and_when_it_is_full(world: World) -> None:
    world.write(1, 0)
    assert world.closer.close_if_due()
    world.write(1, 0)
    assert not world.closer.close_if_due()
    world.advance(5)
    assert world.closer.close_if_due()
    world.write(64, 0)
    assert world.closer.close_if_due()
    assert [row.entries for row in world.batches()] == [1, 1, 64]


def test_nothing_waiting_closes_nothing(world: World) -> None:
    assert not world.closer.close_if_due()
    assert world.batches() == []


def test_entries_gather_in_the_outbox_while_the_chain_is_away(world: World) -> None:
    world.chain.go_down()
    for _ in range(9):
        world.write(1, 1)
        world.advance(5)
        world.closer.close_if_due()
    assert len(world.batches()) == 4
    world.chain.resume()
    world.settle()
    world.close_all()
    world.settle()
    assert len(world.batches()) == 5
    check_exactly_once(world)


def test_a_receipt_of_a_version_and_of_an_audit_row_verifies(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, embedded_blobs=True)
    proofs = Proofs(ring=ring, blobs=world.blobs, custodian=OPERATOR, chain_id=world.chain.chain_id,
                    contract=world.chain.contracts.record_anchor)
    world.write(30, 3)
    world.close_all()
    reader = world.database.reader
    row = journal.version(reader, "Basic", "v9", 1)
    assert row is not None
    assert build_receipt(proofs, reader, row, world.salts["v9"]) is None
    row_hash = bytes(reader.execute("SELECT hash FROM audit WHERE seq=2").get)  # type: ignore[arg-type]  # a BLOB
    assert build_audit_receipt(proofs, reader, "log-2", 2, row_hash) is None
    world.settle()
    made = build_receipt(proofs, reader, row, world.salts["v9"])
    assert made is not None
    verdict = verify(made, resource=world.stored["v9"], chain=None, confirmations=0)
    assert [step.status for step in verdict.steps[:5]] == ["ok"] * 5
    assert made.confirmations == followed.head_number(reader) - made.block_number + 1
    audited = build_audit_receipt(proofs, reader, "log-2", 2, row_hash)
    assert audited is not None
    assert verify(audited, resource=None, chain=None, confirmations=0).code == 2
    assert audited.path != made.path
    world.database.close()


@pytest.mark.parametrize("automine", [True, False])
def test_an_anchor_that_was_sent_but_not_answered_is_not_sent_twice(tmp_path: Path, ring: KeyRing,
                                                                    automine: bool) -> None:
    world = World(tmp_path, ring, automine=automine)
    world.write(1, 0)
    world.close_all()
    world.closer.push()
    world.chain.lose_next_answer()
    with pytest.raises(ChainUnavailable):
        world.anchorer.poll()
    world.restart()
    world.settle()
    check_exactly_once(world)
    assert len(world.anchored()) == 1
    world.database.close()


def test_a_reorg_brings_an_anchor_back_with_the_same_root(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, confirmations=3, automine=False)
    world.write(2, 2)
    world.close_all()
    world.step()
    world.chain.mine()
    world.step()
    before = world.anchored()[0].root
    assert world.states("batch") == ["mined"]
    world.chain.reorg(1, txs="drop")
    world.step()
    assert world.states("batch") == ["submitted"]
    world.settle()
    assert [event.root for event in world.anchored()] == [before]
    check_exactly_once(world)
    world.database.close()


def test_what_was_final_without_confirmations_is_judged_again_after_a_reorg(world: World) -> None:
    """``chain_confirmations`` 0 says that the chain is final at once; where it is not, nothing is lost all the same."""
    for _ in range(3):
        world.write(1, 1)
        world.close_all()
        world.settle()
    world.chain.reorg(6, txs="drop")
    world.settle()
    check_exactly_once(world)


def test_a_stuck_anchor_is_replaced_at_the_same_nonce_with_higher_fees(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, automine=False)
    world.write(1, 0)
    world.close_all()
    world.step()
    (stuck,) = world.chain.pending
    world.chain.hold(stuck)
    world.settle()
    assert world.anchored()[0].place.tx_hash != stuck
    nonces = {nonce for (nonce,) in world.database.reader.execute("SELECT nonce FROM attempt")}
    assert nonces == {0}
    check_exactly_once(world)
    world.database.close()


def test_a_stalled_chain_does_not_drive_up_the_fees(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, automine=False)
    world.write(1, 0)
    world.close_all()
    world.step()
    for _ in range(20):
        world.advance(120)
        world.step()
    assert world.database.reader.execute("SELECT count(*) FROM attempt").get == 1
    world.database.close()


def test_a_node_that_forgot_its_pool_gets_it_again(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, automine=False)
    world.write(1, 0)
    world.close_all()
    world.step()
    (lost,) = world.chain.pending
    world.chain.drop(lost)
    world.advance(5)
    world.step()
    assert world.chain.pending == (lost,)
    world.database.close()


def test_a_nonce_another_holder_of_the_key_took_is_planned_anew(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, automine=False)
    world.write(1, 0)
    world.close_all()
    world.step()
    foreign(world, SetEndpointCall(endpoint_digest=bytes(32)), nonce=0)
    world.settle()
    assert len(world.anchored()) == 1
    check_exactly_once(world)
    world.database.close()


def test_another_operators_anchor_moves_the_head_under_a_waiting_one(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, automine=False)
    world.write(1, 0)
    world.close_all()
    world.step()
    foreign(world, AnchorCall(expected_head=bytes(32), root=b"\7" * 32, manifest_digest=b"\7" * 32, size_class=0),
            nonce=0)
    world.settle()
    assert len(world.anchored()) == 2
    check_exactly_once(world)
    world.database.close()


def test_an_empty_purse_loses_nothing(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring)
    world.chain.set_balance(0)
    world.write(1, 0)
    world.close_all()
    for _ in range(3):
        world.advance(5)
        world.step()
    assert world.states("batch") == ["submitted"]
    world.chain.set_balance(10**21)
    world.settle()
    check_exactly_once(world)
    world.database.close()


def test_a_gateway_that_is_no_member_waits_and_pays_nothing(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring)
    world.chain.change_member("removed", OPERATOR)
    world.write(1, 0)
    world.close_all()
    for _ in range(5):
        world.step()
    assert world.database.reader.execute("SELECT count(*) FROM attempt").get == 0
    world.chain.change_member("admitted", OPERATOR)
    world.settle()
    check_exactly_once(world)
    world.database.close()


Weather = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("close")), st.tuples(st.just("step")), st.tuples(st.just("step")), st.tuples(st.just("step")),
    st.tuples(st.just("mine")), st.tuples(st.just("mine")),
    st.tuples(st.just("reorg"), st.integers(1, 3), st.sampled_from(["pool", "drop", "keep"])),
    st.tuples(st.just("drop")), st.tuples(st.just("hold")), st.tuples(st.just("restart")),
    st.tuples(st.just("advance"), st.sampled_from([1, 5, 70])),
    st.tuples(st.just("lose")), st.tuples(st.just("fault")), st.tuples(st.just("foreign")),
    st.tuples(st.just("other anchor")),
    st.tuples(st.just("crash"), st.booleans(), st.integers(1, 3)),
)


def blow(world: World, weather: tuple[object, ...]) -> None:
    """One event of a run."""
    chain = world.chain
    match weather:
        case ("write", int(versions), int(audited)):
            world.write(versions, audited)
        case ("close",):
            world.closer.close()
        case ("step",):
            world.step()
        case ("mine",):
            chain.mine()
        case ("reorg", int(depth), str(txs)) if depth <= chain.head().number:
            chain.reorg(depth, txs=txs)  # type: ignore[arg-type]  # sampled from its literals
        case ("drop",) if chain.pending:
            chain.drop(chain.pending[-1])
        case ("hold",):
            ours = {hash_ for (hash_,) in world.database.reader.execute("SELECT hash FROM attempt")}
            for waiting in [hash_ for hash_ in chain.pending if hash_ in ours][:1]:
                chain.hold(waiting)
        case ("restart",):
            world.restart()
        case ("advance", int(seconds)):
            world.advance(seconds)
        case ("lose",):
            chain.lose_next_answer()
        case ("fault",):
            chain.fail_next(method="receipt")
        case ("foreign",):
            foreign(world, SetEndpointCall(endpoint_digest=bytes(32)), nonce=chain.nonce("latest"), priority=300)
        case ("other anchor",):
            head = chain.anchor_head(OPERATOR)
            foreign(world, AnchorCall(expected_head=head, root=head[::-1], manifest_digest=head, size_class=1),
                    nonce=chain.nonce("latest"), priority=300)
        case ("crash", bool(before), int(after)):
            at = world.database.commits + after
            world.database.crash_before, world.database.crash_after = (at, None) if before else (None, at)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(Weather, min_size=5, max_size=40), st.integers(0, 2), st.booleans())
def test_every_entry_is_anchored_exactly_once_through_any_weather(
    tmp_path_factory: pytest.TempPathFactory, ring: KeyRing, run: list[tuple[object, ...]], confirmations: int,
    automine: bool,
) -> None:
    world = World(tmp_path_factory.mktemp("weather"), ring, confirmations=confirmations, automine=automine)
    world.write(1, 1)
    note(repr(run))
    for weather in run:
        try:
            blow(world, weather)
        except Crash:
            world.restart()
        except (ChainUnavailable, TransactionRefused):
            pass
    world.chain.resume()
    world.restart()
    world.close_all()
    world.settle()
    check_exactly_once(world)
    world.database.close()


def test_batches_that_wait_for_their_confirmations_ask_the_node_once_a_block(tmp_path: Path, ring: KeyRing) -> None:
    """A node that counts calls: at five looks a second each Batch cost ten of them."""
    world = World(tmp_path, ring, confirmations=30)
    for _ in range(10):
        world.write(1, 1)
        world.close_all()
        world.step()
        world.step()
    before = len(world.chain.asked)
    for _ in range(9):
        world.now_ms += 200
        world.anchorer.poll()
    assert len(world.chain.asked) - before < 60
    world.settle()
    assert {row.state for row in world.batches()} == {"final"}
    world.database.close()
