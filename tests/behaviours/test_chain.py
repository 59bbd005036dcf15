"""One suite for every ``Chain``: the simulator, the embedded node, and real nodes (``tests/real``) must all pass it."""

from __future__ import annotations

import pytest

from gateway.errors import ChainReverted, ChainUnavailable, TransactionRefused
from gateway.ledger.chain import ZERO_HASH, AnchorCall, Anchored, Chain
from tests.simulators.chain import ChainSimulator


@pytest.fixture
def chain() -> ChainSimulator:
    return ChainSimulator()


def anchor(expected_head: bytes, mark: int = 1) -> AnchorCall:
    return AnchorCall(expected_head=expected_head, root=bytes([mark]) * 32, manifest_digest=bytes([mark + 1]) * 32,
                      size_class=0)


def test_an_anchor_moves_the_rolling_head(chain: Chain) -> None:
    tx_hash = chain.send(anchor(ZERO_HASH), nonce=chain.nonce("pending"), fees=chain.fees())
    receipt = chain.receipt(tx_hash)
    assert receipt is not None
    assert receipt.succeeded
    (event,) = receipt.events
    assert isinstance(event, Anchored)
    assert chain.anchor_head(chain.operator) == event.head
    assert chain.logs(receipt.block_number, receipt.block_number) == (event,)


def test_a_second_anchor_on_the_same_head_reverts(chain: Chain) -> None:
    chain.send(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    tx_hash = chain.send(anchor(ZERO_HASH), nonce=1, fees=chain.fees())
    receipt = chain.receipt(tx_hash)
    assert receipt is not None
    assert receipt.revert is not None
    assert receipt.revert.name == "HeadMismatch"
    with pytest.raises(ChainReverted, match="HeadMismatch"):
        chain.estimate(anchor(ZERO_HASH))


def test_a_reorg_takes_state_events_and_receipts_back(chain: ChainSimulator) -> None:
    tx_hash = chain.send(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    before = chain.head()
    chain.reorg(1)
    assert chain.block_by_hash(before.hash) is None
    assert chain.anchor_head(chain.operator) == ZERO_HASH
    assert chain.receipt(tx_hash) is None
    assert chain.transaction(tx_hash) is not None
    chain.mine()
    assert chain.receipt(tx_hash) is not None


def test_nonce_gaps_wait_and_lower_nonces_are_refused(chain: ChainSimulator) -> None:
    late = chain.send(anchor(b"\x09" * 32), nonce=1, fees=chain.fees())
    assert chain.receipt(late) is None
    assert chain.nonce("pending") == 0
    chain.send(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    assert chain.receipt(late) is not None
    with pytest.raises(TransactionRefused) as caught:
        chain.send(anchor(ZERO_HASH, 7), nonce=0, fees=chain.fees())
    assert caught.value.reason == "nonce-too-low"


def test_a_lost_answer_is_not_a_lost_transaction(chain: ChainSimulator) -> None:
    signed = chain.sign(anchor(ZERO_HASH), nonce=0, fees=chain.fees())
    chain.lose_next_answer()
    with pytest.raises(ChainUnavailable):
        chain.broadcast(signed)
    assert chain.receipt(signed.hash) is not None
    assert chain.broadcast(signed) == signed.hash
