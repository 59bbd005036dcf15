"""A thief who holds every key rewrites the audit; what was anchored tells. Invariant 8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from gateway.audit import GENESIS
from gateway.crypto.key_rotation import rotate_category
from gateway.errors import ChainUnavailable
from gateway.ledger.audit_chain import Verdict, examine
from gateway.ledger.audit_run import row_hash
from gateway.ledger.closing import RUN_GROUP
from gateway.ledger.receipts import Proofs
from tests.simulators.chain import OPERATOR
from tests.unit.ledger.ledger_world import World, ring_at


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    ring = ring_at(tmp_path)
    made = World(tmp_path, ring, embedded_blobs=True)
    made.write(2, 6)
    made.close_all()
    made.settle()
    made.write(1, 4)
    made.close_all()
    made.settle()
    made.write(1, 3)
    yield made
    made.database.close()
    ring.close()


def judged(world: World, *, asked: bool = True) -> Verdict:
    proofs = Proofs(ring=world.ring, blobs=world.blobs, custodian=OPERATOR, chain_id=1, contract=OPERATOR)
    with world.database.snapshot() as connection:
        return examine(connection, proofs, world.chain if asked else None, OPERATOR,
                       world.ring.every_ref(RUN_GROUP))


def rewrite(world: World, change: Callable[[list[list[object]]], object]) -> None:
    """Change the rows at will, renumber them, and chain them anew: with the page key in hand nothing hinders it."""
    rows = [list(row) for row in world.database.reader.execute(
        "SELECT time_ms, patient, keys, sealed FROM audit ORDER BY seq")]
    change(rows)

    def work(tx: object) -> None:
        tx.execute("DELETE FROM audit")  # type: ignore[attr-defined]  # an apsw connection
        previous = GENESIS
        for seq, (time_ms, patient, keys, sealed) in enumerate(rows, 1):
            previous = row_hash(previous, int(str(time_ms)), bytes(keys), bytes(sealed))  # type: ignore[call-overload]
            tx.execute("INSERT INTO audit VALUES (?,?,?,?,?,?)",  # type: ignore[attr-defined]
                       (seq, time_ms, patient, keys, sealed, previous))
    world.database.transact(work)


def test_a_sound_audit_is_sound_and_says_what_is_not_anchored_yet(world: World) -> None:
    found = judged(world)
    assert (found.code, found.rows, found.anchored, found.waiting, found.batches) == (0, 13, 10, 3, 2)


@pytest.mark.parametrize(("change", "seq", "what"), [
    (lambda rows: rows[3].__setitem__(0, 5), 4, "altered"),
    (lambda rows: rows[3].__setitem__(3, rows[3][3][:-1] + b"x"), 4, "altered"),
    (lambda rows: rows.pop(3), 4, "removed"),
    (lambda rows: rows.insert(3, list(rows[12])), 4, "inserted"),
    (lambda rows: rows.__setitem__(slice(3, 5), rows[3:5][::-1]), 4, "order"),
    (lambda rows: rows.__delitem__(slice(8, None)), 9, "cut off"),
    (lambda rows: rows.__delitem__(slice(6, 10)), 7, "altered"),
    (list.clear, 1, "cut off"),
], ids=["time", "content", "removed", "inserted", "reordered", "tail", "a whole run", "everything"])
def test_what_was_anchored_cannot_be_rewritten(world: World, change: Callable[[list[list[object]]], object], seq: int,
                                               what: str) -> None:
    rewrite(world, change)
    found = judged(world)
    assert found.code == 1
    assert found.fault is not None
    assert found.fault.seq == seq
    assert what in found.fault.what


def test_a_run_taken_out_with_its_rows_is_missed_by_the_chain(world: World) -> None:
    """The tables of runs and Batches are the thief's too; the chain names the Batch, its manifest the run."""
    world.database.transact(lambda tx: tx.execute("DELETE FROM audit_run WHERE first=7"))
    rewrite(world, lambda rows: rows.__delitem__(slice(6, None)))
    found = judged(world)
    assert (found.code, found.fault and found.fault.seq) == (1, 7)
    world.database.transact(lambda tx: tx.execute("DELETE FROM batch WHERE pk=2"))
    assert judged(world).code == 1
    assert judged(world, asked=False).code == 2, "without the chain it cannot be said"


@pytest.mark.parametrize("rotated", [False, True])
def test_a_run_passed_off_as_a_record_is_missed_all_the_same(world: World, rotated: bool) -> None:
    """The thief lists the digest of what was taken out as a version, and has a new audit key."""
    def cut(tx: apsw.Connection) -> None:
        tx.execute("CREATE TEMP TABLE told AS SELECT * FROM version LIMIT 1")
        for number, (digest,) in enumerate(tx.execute("SELECT digest FROM audit_run").fetchall()):
            tx.execute("UPDATE told SET seq=?, id=?, digest=?", (1000 + number, f"told{number}", digest))
            tx.execute("INSERT INTO version SELECT * FROM told")
        tx.execute("DELETE FROM audit_run")
    world.database.transact(cut)
    rewrite(world, list.clear)
    if rotated:
        rotate_category(world.ring, owner=None, group=None)
    assert judged(world).code == 1


def test_an_anchored_run_is_not_hidden_behind_one_that_seems_on_its_way(world: World) -> None:
    def hide(tx: apsw.Connection) -> None:
        tx.execute("CREATE TEMP TABLE fake AS SELECT * FROM audit_run WHERE first=7")
        tx.execute("UPDATE fake SET pk=99, last=7, digest=x'66', envelope=x'00'")
        tx.execute("UPDATE audit_run SET first=8 WHERE first=7")
        tx.execute("INSERT INTO audit_run SELECT * FROM fake")
    world.database.transact(hide)
    rewrite(world, lambda rows: rows.__delitem__(slice(7, None)))
    assert judged(world).code == 1


def test_a_row_that_only_its_hash_betrays_is_found_without_the_chain(world: World) -> None:
    world.database.transact(lambda tx: tx.execute("UPDATE audit SET time_ms=time_ms+1 WHERE seq=12"))
    found = judged(world, asked=False)
    assert (found.code, found.fault and found.fault.seq) == (1, 12)


def test_a_run_renamed_or_resealed_is_not_taken_for_the_anchored_one(world: World) -> None:
    world.database.transact(lambda tx: tx.execute("UPDATE audit_run SET last=last-1, envelope=x'00' WHERE first=1"))
    assert judged(world).code == 1


def test_where_the_chain_does_not_answer_or_leaves_out_nothing_is_called_sound(
        world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world.chain.logs

    def silent(*_: int) -> tuple[()]:
        raise ChainUnavailable("down")

    monkeypatch.setattr(world.chain, "logs", silent)
    assert judged(world).code == 2
    monkeypatch.setattr(world.chain, "logs", lambda low, high: whole(low, high)[:1])
    assert judged(world).code == 2


def test_where_a_block_is_gone_it_cannot_be_decided(world: World) -> None:
    world.database.transact(lambda tx: tx.execute(
        "DELETE FROM block WHERE digest=(SELECT digest FROM audit_run WHERE first=1)"))
    assert judged(world).code == 2
