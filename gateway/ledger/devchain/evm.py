"""The py-evm chain under the embedded node: genesis, mining, state at a block, calls that change nothing.

Owns everything that touches py-evm; refuses JSON and waiting transactions (``shapes.py``, ``pool.py``). Shanghai rules
without proof of anything; block times are the wall clock's, and always later than the parent's.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eth.abc import BlockAPI, BlockHeaderAPI, ComputationAPI, ReceiptAPI, SignedTransactionAPI, StateAPI
from eth.chains.base import MiningChain
from eth.consensus.applier import ConsensusApplier
from eth.consensus.noproof import NoProofConsensus
from eth.constants import BLANK_ROOT_HASH, POST_MERGE_DIFFICULTY, POST_MERGE_MIX_HASH, POST_MERGE_NONCE, ZERO_ADDRESS
from eth.exceptions import HeaderNotFound, TransactionNotFound
from eth.vm.chain_context import ChainContext
from eth.vm.forks.shanghai import ShanghaiVM
from eth.vm.spoof import SpoofTransaction
from eth_typing import Address, BlockNumber, Hash32
from eth_utils.exceptions import ValidationError

from gateway.errors import Misconfigured
from gateway.ledger.devchain.store import ChainStore, LogRow

FORMAT = 1
GAS_LIMIT = 30_000_000
GENESIS_BALANCE = 10**24
CHAIN_IDS = range(7_000_000_000, 8_000_000_000)
"""Where a new chain draws its id: far from every public network, and safe as a wallet's JavaScript number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What ``eth_call`` and ``eth_estimateGas`` are asked to run; ``to`` None creates a contract."""

    sender: bytes
    to: bytes | None
    data: bytes
    value: int
    gas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """``gas`` is what was used before refunds; ``output`` the return or revert data; ``failure`` None: it went well,
    ``revert``: the code refused, anything else: the machine did."""

    output: bytes
    gas: int
    failure: str | None


def _chain_class(chain_id: int) -> type[MiningChain]:
    rules = ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, ShanghaiVM),))
    return MiningChain.configure("EmbeddedChain", chain_id=chain_id, vm_configuration=rules)


class Evm:
    """Not for several threads at once: its node holds one lock."""

    def __init__(self, store: ChainStore, genesis_accounts: Sequence[bytes],
                 clock: Callable[[], float] = time.time) -> None:
        logging.getLogger("eth").setLevel(logging.CRITICAL + 1)
        self._store = store
        self._clock = clock
        meta = store.meta()
        if not meta:
            meta = self._create(genesis_accounts)
        if meta.get("format") != FORMAT:
            raise Misconfigured(f"the embedded chain is of format {meta.get('format')}, this reads {FORMAT}")
        if meta["accounts"] != [account.hex() for account in genesis_accounts]:
            raise Misconfigured("the embedded chain was started with other keys: put its keys file back, "
                                "or move its data away to start a new chain")
        self.chain_id = int(str(meta["chain_id"]))
        self._reopen()

    def _create(self, genesis_accounts: Sequence[bytes]) -> dict[str, object]:
        chain_id = CHAIN_IDS[secrets.randbelow(len(CHAIN_IDS))]
        meta: dict[str, object] = {"format": FORMAT, "chain_id": chain_id,
                                   "accounts": [account.hex() for account in genesis_accounts]}
        header: dict[str, Any] = {"coinbase": ZERO_ADDRESS, "difficulty": POST_MERGE_DIFFICULTY, "extra_data": b"",
                  "gas_limit": GAS_LIMIT, "mix_hash": POST_MERGE_MIX_HASH, "nonce": POST_MERGE_NONCE,
                  "receipt_root": BLANK_ROOT_HASH, "transaction_root": BLANK_ROOT_HASH,
                  "timestamp": int(self._clock())}
        state: Any = {account: {"balance": GENESIS_BALANCE, "nonce": 0, "code": b"", "storage": {}}
                 for account in genesis_accounts}
        with self._store.transaction():
            _chain_class(chain_id).from_genesis(self._store, header, state)
            self._store.set_meta(meta)
        return meta

    def _reopen(self) -> None:
        self._chain = _chain_class(self.chain_id)(self._store)
        self.head: BlockHeaderAPI = self._chain.get_canonical_head()

    # -- blocks ---------------------------------------------------------------------------------------------------

    def next_time_s(self) -> int:
        return max(int(self._clock()), self.head.timestamp + 1)

    def pending_header(self) -> BlockHeaderAPI:
        """The block that would be mined now, empty."""
        header: BlockHeaderAPI = ShanghaiVM.create_header_from_parent(
            self.head, gas_limit=GAS_LIMIT, timestamp=self.next_time_s(), mix_hash=os.urandom(32))
        return header

    def header(self, number: int) -> BlockHeaderAPI | None:
        if not 0 <= number <= self.head.block_number:
            return None
        return self._chain.get_canonical_block_header_by_number(BlockNumber(number))

    def header_by_hash(self, block_hash: bytes) -> BlockHeaderAPI | None:
        try:
            header = self._chain.get_block_header_by_hash(Hash32(block_hash))
        except (HeaderNotFound, ValidationError):
            return None
        return header if self.header(header.block_number) == header else None

    def block(self, header: BlockHeaderAPI) -> BlockAPI:
        return self._chain.get_block_by_header(header)

    def receipts(self, header: BlockHeaderAPI) -> tuple[ReceiptAPI, ...]:
        builder = self._chain.get_vm_class(header).get_receipt_builder()
        return tuple(self._chain.chaindb.get_receipts(header, builder))

    def position(self, tx_hash: bytes) -> tuple[int, int] | None:
        """Block number and index of a mined transaction."""
        try:
            number, index = self._chain.chaindb.get_transaction_index(Hash32(tx_hash))
        except (TransactionNotFound, ValidationError):
            return None
        return number, index

    def mine(self, transactions: Sequence[SignedTransactionAPI]) -> tuple[list[SignedTransactionAPI],
                                                                         list[tuple[SignedTransactionAPI, str]]]:
        """One block of those that fit and can pay: answers those in it and those that can never be, with the reason.

        The block is on disk when this returns. Transactions beyond the gas limit are in neither list.
        """
        try:
            with self._store.transaction():
                outcome = self._mine(transactions)
        except BaseException:
            self._reopen()
            raise
        self.head = self._chain.get_canonical_head()
        return outcome

    def _mine(self, transactions: Sequence[SignedTransactionAPI]) -> tuple[list[SignedTransactionAPI],
                                                                          list[tuple[SignedTransactionAPI, str]]]:
        header = self.pending_header()
        vm = self._chain.get_vm(header)
        taken: list[SignedTransactionAPI] = []
        refused: list[tuple[SignedTransactionAPI, str]] = []
        receipts: list[ReceiptAPI] = []
        logs: list[LogRow] = []
        for transaction in transactions:
            if header.gas_used + transaction.gas > header.gas_limit:
                continue
            try:
                receipt, _ = vm.apply_transaction(header, transaction)
            except ValidationError as error:
                refused.append((transaction, str(error)))
                continue
            header = vm.add_receipt_to_header(header, receipt)
            for log in receipt.logs:
                logs.append(LogRow(block_number=header.block_number, log_index=len(logs), tx_index=len(taken),
                                   tx_hash=transaction.hash, address=log.address, data=log.data,
                                   topics=tuple(topic.to_bytes(32, "big") for topic in log.topics)))
            taken.append(transaction)
            receipts.append(receipt)
        if taken:
            filled = vm.set_block_transactions_and_withdrawals(vm.get_block(), header, tuple(taken), tuple(receipts))
            self._chain.chaindb.persist_block(vm.mine_block(filled).block)
            self._store.add_logs(logs)
        return taken, refused

    # -- state ----------------------------------------------------------------------------------------------------

    def decode(self, raw: bytes) -> SignedTransactionAPI:
        """Raises whatever py-evm and rlp raise for bytes that are no transaction."""
        return self._chain.get_vm_class(self.head).get_transaction_builder().decode(raw)

    def base_fee(self) -> int:
        """Of the block that would be mined now."""
        return fee_of(self.pending_header())

    def nonce(self, account: bytes, at: BlockHeaderAPI) -> int:
        return self._state(at).get_nonce(Address(account))

    def balance(self, account: bytes, at: BlockHeaderAPI) -> int:
        return self._state(at).get_balance(Address(account))

    def code(self, account: bytes, at: BlockHeaderAPI) -> bytes:
        return self._state(at).get_code(Address(account))

    def storage(self, account: bytes, slot: int, at: BlockHeaderAPI) -> int:
        return self._state(at).get_storage(Address(account), slot)

    def _state(self, header: BlockHeaderAPI) -> StateAPI:
        return self._chain.get_vm(header).state

    def run(self, message: Message, header: BlockHeaderAPI) -> Ran:
        """The message on the state of ``header`` and in its context; nothing is kept, no fee is asked."""
        vm = self._chain.get_vm(header)
        state = vm.build_state(self._store, header.copy(base_fee_per_gas=0), ChainContext(self.chain_id),
                               vm.previous_hashes or ())
        builder: Any = vm.get_transaction_builder()  # the abstract class names no dynamic-fee transactions
        sender = Address(message.sender)
        unsigned = builder.new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id, nonce=state.get_nonce(sender), max_priority_fee_per_gas=0,
            max_fee_per_gas=0, gas=message.gas, to=message.to or b"", value=message.value, data=message.data,
            access_list=())
        if unsigned.intrinsic_gas > message.gas:
            return Ran(output=b"", gas=unsigned.intrinsic_gas, failure="intrinsic gas too low")
        if state.get_balance(sender) < message.value:
            return Ran(output=b"", gas=0, failure="insufficient funds for transfer")
        spoofed: Any = SpoofTransaction(unsigned, from_=message.sender)
        computation: ComputationAPI = state.apply_transaction(spoofed)
        gas = message.gas - computation.get_gas_remaining()
        if computation.is_success:
            return Ran(output=computation.output, gas=gas, failure=None)
        reverted = type(computation.error).__name__ == "Revert"
        return Ran(output=computation.output if reverted else b"", gas=gas,
                   failure="revert" if reverted else _spoken(computation.error))


def fee_of(header: BlockHeaderAPI) -> int:
    """The block's base fee, in wei per gas."""
    return header.base_fee_per_gas or 0


_SPOKEN = {"OutOfGas": "out of gas", "InvalidInstruction": "invalid opcode",
           "InvalidJumpDestination": "invalid jump destination", "WriteProtection": "write protection",
           "StackDepthLimit": "max call depth exceeded", "InsufficientFunds": "insufficient balance for transfer"}


def _spoken(error: Exception) -> str:
    """geth's words for the machine's own failures."""
    name = type(error).__name__
    return _SPOKEN.get(name, f"execution failed: {name}")
