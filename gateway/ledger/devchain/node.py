"""What an Ethereum node does, for one embedded chain: take transactions, mine them, answer about blocks and state.

Owns the one lock around the EVM, and the miner's thread: transactions that arrive within ``GROUP_S`` share a block, and
``settle`` waits until what was taken is on disk. Block times are the wall clock's and strictly increase; a burst may
run ``lead_s`` seconds ahead of the clock before the next block waits for it.
Refuses, in geth's words: other chains' ids, unprotected or unfunded transactions, high-s signatures, spent nonces.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from eth.abc import BlockAPI, BlockHeaderAPI, ReceiptAPI, SignedTransactionAPI

from gateway.ledger.devchain.evm import GAS_LIMIT, Evm, Message, Ran
from gateway.ledger.devchain.pool import Pool, PoolRefused
from gateway.ledger.devchain.store import ChainStore, LogRow

LOG = logging.getLogger(__name__)
GROUP_S: Final = 0.003
LEAD_S: Final = 10
SETTLE_S: Final = 10.0
MAX_TRANSACTION_BYTES: Final = 128 * 1024
MAX_NONCE_AHEAD: Final = 1_024
HALF_N: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class Node:
    """Safe for many threads."""

    def __init__(self, path: Path, genesis_accounts: Sequence[bytes], *, lead_s: float = LEAD_S,
                 clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lead_s = lead_s
        self._store = ChainStore(path)
        self._evm = Evm(self._store, genesis_accounts, clock)
        self._pool = Pool()
        self._changed = threading.Condition(threading.RLock())
        self._refused: dict[bytes, str] = {}
        self._receipts: dict[bytes, tuple[ReceiptAPI, ...]] = {}
        self._closing = False
        self._miner = threading.Thread(target=self._mine_until_closed, name="miner", daemon=True)
        self._miner.start()

    @property
    def chain_id(self) -> int:
        return self._evm.chain_id

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._miner.join(timeout=SETTLE_S)
        with self._changed:
            self._store.close()

    # -- transactions -------------------------------------------------------------------------------------------------

    def admit(self, raw: bytes) -> bytes:
        """Into the pool; its hash. ``PoolRefused`` with geth's words."""
        if len(raw) > MAX_TRANSACTION_BYTES:
            raise PoolRefused("oversized data")
        with self._changed:
            transaction = self._decoded(raw)
            if self._evm.position(transaction.hash) is not None or self._pool.get(transaction.hash) is not None:
                raise PoolRefused("already known")
            head = self._evm.head
            if transaction.gas > GAS_LIMIT:
                raise PoolRefused("exceeds block gas limit")
            base_fee = self._evm.base_fee()
            if transaction.max_fee_per_gas < base_fee:
                raise PoolRefused(f"max fee per gas less than block base fee: address {_hex(transaction.sender)}, "
                                  f"maxFeePerGas: {transaction.max_fee_per_gas}, baseFee: {base_fee}")
            if transaction.max_priority_fee_per_gas > transaction.max_fee_per_gas:
                raise PoolRefused("max priority fee per gas higher than max fee per gas")
            nonce = self._evm.nonce(transaction.sender, head)
            if transaction.nonce < nonce:
                raise PoolRefused(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
            if transaction.nonce > nonce + MAX_NONCE_AHEAD:
                raise PoolRefused(f"nonce too high: next nonce {nonce}, tx nonce {transaction.nonce}")
            cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
            balance = self._evm.balance(transaction.sender, head)
            if balance < cost:
                raise PoolRefused(f"insufficient funds for gas * price + value: address {_hex(transaction.sender)} "
                                  f"have {balance} want {cost}")
            self._pool.add(transaction)
            self._changed.notify_all()
            return bytes(transaction.hash)

    def settle(self, tx_hash: bytes) -> None:
        """Wait until it is mined and on disk; at once when its turn has not come. ``PoolRefused``: it never will be."""
        deadline = time.monotonic() + SETTLE_S
        with self._changed:
            while tx_hash not in self._refused and self._pool.get(tx_hash) is not None and not self._closing:
                ready = any(tx.hash == tx_hash for tx in self._pool.ready(self._nonce_of))
                left = deadline - time.monotonic()
                if not ready or left <= 0:
                    return
                self._changed.wait(left)
            reason = self._refused.pop(tx_hash, None)
        if reason is not None:
            raise PoolRefused(reason)

    def _decoded(self, raw: bytes) -> SignedTransactionAPI:
        try:
            transaction = self._evm.decode(raw)
            transaction.validate()
            if transaction.encode() != raw:
                raise ValueError("not canonical")
        except Exception as error:  # rlp, eth_utils and py-evm each have roots of their own
            raise PoolRefused(f"rlp: not a transaction this chain takes ({type(error).__name__})") from error
        if transaction.chain_id is None:
            raise PoolRefused("only replay-protected (EIP-155) transactions allowed over RPC")
        if transaction.chain_id != self.chain_id:
            raise PoolRefused(f"invalid chain id for signer: have {transaction.chain_id} want {self.chain_id}")
        if transaction.gas < transaction.intrinsic_gas:
            raise PoolRefused(f"intrinsic gas too low: gas {transaction.gas}, minimum needed "
                              f"{transaction.intrinsic_gas}")
        try:
            if transaction.s > HALF_N:
                raise ValueError("high s")
            transaction.sender  # noqa: B018  # recovered here, once, and cached on the object
        except Exception as error:
            raise PoolRefused("invalid sender") from error
        return transaction

    # -- mining -------------------------------------------------------------------------------------------------------

    def _nonce_of(self, sender: bytes) -> int:
        return self._evm.nonce(sender, self._evm.head)

    def _mine_until_closed(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not self._pool.ready(self._nonce_of):
                    self._changed.wait()
                if self._closing:
                    return
                lead = self._evm.head.timestamp + 1 - self._lead_s - self._clock()
            # Ahead of the clock, or the clock was set back: a block a second, which cannot fall behind any further.
            time.sleep(max(GROUP_S, min(lead, 1.0)))
            with self._changed:
                try:
                    self._mine_ready()
                except Exception:
                    LOG.exception("a block could not be written")
                    time.sleep(0.2)

    def _mine_ready(self) -> None:
        ready = self._pool.ready(self._nonce_of)
        if not ready:
            return
        taken, refused = self._evm.mine(ready)
        for transaction in taken:
            self._pool.remove(transaction)
        for transaction, reason in refused:
            self._pool.remove(transaction)
            if len(self._refused) > 1_000:
                self._refused.clear()
            self._refused[transaction.hash] = reason
        self._changed.notify_all()

    # -- blocks -------------------------------------------------------------------------------------------------------

    def head(self) -> BlockHeaderAPI:
        return self._evm.head

    def header(self, number: int) -> BlockHeaderAPI | None:
        with self._changed:
            return self._evm.header(number)

    def header_by_hash(self, block_hash: bytes) -> BlockHeaderAPI | None:
        with self._changed:
            return self._evm.header_by_hash(block_hash)

    def pending_header(self) -> BlockHeaderAPI:
        with self._changed:
            return self._evm.pending_header()

    def block(self, header: BlockHeaderAPI) -> BlockAPI:
        with self._changed:
            return self._evm.block(header)

    def waiting(self, tx_hash: bytes) -> SignedTransactionAPI | None:
        with self._changed:
            return self._pool.get(tx_hash)

    def position(self, tx_hash: bytes) -> tuple[int, int] | None:
        with self._changed:
            return self._evm.position(tx_hash)

    def receipts(self, header: BlockHeaderAPI) -> tuple[ReceiptAPI, ...]:
        with self._changed:
            known = self._receipts.get(header.hash)
            if known is None:
                if len(self._receipts) >= 8:
                    self._receipts.clear()
                known = self._receipts[header.hash] = self._evm.receipts(header)
            return known

    def logs(self, from_block: int, to_block: int, addresses: frozenset[bytes] | None, limit: int) -> list[LogRow]:
        with self._changed:
            return self._store.logs(from_block, to_block, addresses, limit)

    # -- state --------------------------------------------------------------------------------------------------------

    def nonce(self, account: bytes, header: BlockHeaderAPI, *, pending: bool) -> int:
        with self._changed:
            nonce = self._evm.nonce(account, header)
            return self._pool.next_nonce(account, nonce) if pending else nonce

    def balance(self, account: bytes, header: BlockHeaderAPI) -> int:
        with self._changed:
            return self._evm.balance(account, header)

    def code(self, account: bytes, header: BlockHeaderAPI) -> bytes:
        with self._changed:
            return self._evm.code(account, header)

    def storage(self, account: bytes, slot: int, header: BlockHeaderAPI) -> int:
        with self._changed:
            return self._evm.storage(account, slot, header)

    def run(self, message: Message, header: BlockHeaderAPI) -> Ran:
        with self._changed:
            return self._evm.run(message, header)


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
