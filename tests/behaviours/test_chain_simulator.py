"""The simulator's weather: what real nodes do now and then, and tests need on demand."""

from __future__ import annotations

import pytest

from gateway.errors import ChainUnavailable
from gateway.ledger.calls import AnchorCall
from gateway.ledger.events import ZERO_HASH
from tests.simulators.chain import ChainSimulator


@pytest.fixture
def chain() -> ChainSimulator:
    return ChainSimulator()


def anchor(expected_head: bytes, mark: int = 1) -> AnchorCall:
    return AnchorCall(expected_head=expected_head, root=bytes([mark]) * 32, manifest_digest=bytes([mark + 1]) * 32,
                      size_class=0)


def test_a_reorg_takes_state_events_and_receipts_back(chain: ChainSimulator) -> None:
    tx_hash = chain.send(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    before = chain.head()
    chain.reorg(1)
    assert chain.block_by_hash(before.hash) is None
    assert chain.anchor_head(chain.operator) == ZERO_HASH
    assert chain.logs(0, 99) == ()
    assert chain.receipt(tx_hash) is None
    assert chain.transaction(tx_hash) is not None
    chain.mine()
    assert chain.receipt(tx_hash) is not None


def test_a_reorg_may_drop_or_keep_the_transactions(chain: ChainSimulator) -> None:
    first = chain.send(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    old = chain.receipt(first)
    chain.reorg(1, txs="keep")
    new = chain.receipt(first)
    assert old is not None
    assert new is not None
    assert new.block_hash != old.block_hash
    chain.reorg(2, txs="drop")
    assert chain.transaction(first) is None
    assert chain.nonce("pending") == 0


def test_a_lost_answer_is_not_a_lost_transaction(chain: ChainSimulator) -> None:
    signed = chain.sign(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    chain.lose_next_answer()
    with pytest.raises(ChainUnavailable):
        chain.broadcast(signed)
    assert chain.receipt(signed.hash) is not None
    assert chain.broadcast(signed) == signed.hash


def test_a_stalled_chain_answers_and_mines_nothing(chain: ChainSimulator) -> None:
    chain.stall()
    tx_hash = chain.send(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    head = chain.head()
    assert chain.mine() == head
    assert chain.receipt(tx_hash) is None
    chain.resume()
    chain.mine()
    assert chain.receipt(tx_hash) is not None


def test_faults_come_when_they_are_ordered(chain: ChainSimulator) -> None:
    chain.fail_next(method="receipt")
    chain.head()
    with pytest.raises(ChainUnavailable):
        chain.receipt(b"\x01" * 32)
    assert chain.receipt(b"\x01" * 32) is None
    chain.go_down()
    with pytest.raises(ChainUnavailable):
        chain.head()
    chain.resume()
    chain.head()


def test_a_held_or_dropped_transaction_waits_or_is_gone(chain: ChainSimulator) -> None:
    chain.set_automine(False)
    held = chain.send(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    chain.hold(held)
    chain.mine()
    assert chain.receipt(held) is None
    chain.drop(held)
    assert chain.transaction(held) is None
    assert chain.pending == ()
