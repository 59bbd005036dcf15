"""Transactions that wait for their turn: by sender, in nonce order, replaceable by a better offer.

Owns the rules of a node's pool (geth's words in the refusals, since clients match on them); refuses to keep more than
``CAPACITY``. Held in memory only: what was acknowledged with its nonce in turn is mined already.
"""

from __future__ import annotations

from collections.abc import Callable

from eth.abc import SignedTransactionAPI

CAPACITY = 4_096
BUMP_PERCENT = 10


class PoolRefused(Exception):
    """The pool will not take it; the message is geth's."""


class Pool:
    def __init__(self) -> None:
        self._waiting: dict[bytes, dict[int, SignedTransactionAPI]] = {}
        self._by_hash: dict[bytes, SignedTransactionAPI] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, tx_hash: bytes) -> SignedTransactionAPI | None:
        return self._by_hash.get(tx_hash)

    def add(self, transaction: SignedTransactionAPI) -> None:
        if transaction.hash in self._by_hash:
            raise PoolRefused("already known")
        if len(self._by_hash) >= CAPACITY:
            raise PoolRefused("txpool is full")
        queue = self._waiting.setdefault(transaction.sender, {})
        other = queue.get(transaction.nonce)
        if other is not None:
            if (transaction.max_fee_per_gas * 100 < other.max_fee_per_gas * (100 + BUMP_PERCENT)
                    or transaction.max_priority_fee_per_gas * 100
                    < other.max_priority_fee_per_gas * (100 + BUMP_PERCENT)):
                raise PoolRefused("replacement transaction underpriced")
            del self._by_hash[other.hash]
        queue[transaction.nonce] = transaction
        self._by_hash[transaction.hash] = transaction

    def remove(self, transaction: SignedTransactionAPI) -> None:
        if self._by_hash.pop(transaction.hash, None) is None:
            return
        queue = self._waiting[transaction.sender]
        del queue[transaction.nonce]
        if not queue:
            del self._waiting[transaction.sender]

    def next_nonce(self, sender: bytes, from_nonce: int) -> int:
        """The first nonce from ``from_nonce`` on that nothing waits with."""
        queue = self._waiting.get(sender, {})
        while from_nonce in queue:
            from_nonce += 1
        return from_nonce

    def ready(self, nonce_of: Callable[[bytes], int]) -> list[SignedTransactionAPI]:
        """Those whose turn has come, a sender's in nonce order; what can never have its turn is let go."""
        ready: list[SignedTransactionAPI] = []
        for sender, queue in list(self._waiting.items()):
            nonce = nonce_of(sender)
            for stale in [tx for n, tx in queue.items() if n < nonce]:
                self.remove(stale)
            while nonce in queue:
                ready.append(queue[nonce])
                nonce += 1
        return ready
