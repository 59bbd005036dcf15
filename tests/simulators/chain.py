"""An in-memory ``Chain`` whose weather the test decides: reorgs, stalls, lost answers, dropped transactions.

Owns a small model of the three contracts (same errors, same events) over immutable per-block states, so that a reorg
really takes state back. Refuses signature mathematics: ``accepts_signature`` is a predicate the test may replace.
Transactions are mined on broadcast unless ``automine`` is off.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from gateway.errors import ChainReverted, ChainUnavailable, GatewayError, TransactionRefused
from gateway.ledger.address import Address, address
from gateway.ledger.calls import Call, grant_id
from gateway.ledger.chain import Block, Contracts, Tag
from gateway.ledger.events import ZERO_HASH, Event, MemberChange, Place
from gateway.ledger.transactions import Fees, Receipt, SignedTransaction, Transaction
from tests.simulators.contracts import GAS, Membership, State, run

OPERATOR = address("0x" + "11" * 20)


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tx:
    hash: bytes
    raw: bytes
    sender: Address
    nonce: int
    fees: Fees
    call: Call | Membership


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mined:
    block: Block
    state: State
    txs: tuple[_Tx, ...]
    receipts: Mapping[bytes, Receipt]


@dataclass(slots=True)
class _World:
    blocks: list[_Mined]
    pool: dict[bytes, _Tx] = field(default_factory=dict)
    signed: dict[bytes, _Tx] = field(default_factory=dict)
    held: set[bytes] = field(default_factory=set)
    failures: list[tuple[str | None, GatewayError]] = field(default_factory=list)
    balances: dict[Address, int] = field(default_factory=dict)
    now_s: int = 1_800_000_000
    automine: bool = True
    stalled: bool = False
    down: bool = False
    lose_answers: int = 0
    forks: int = 0
    calls: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)


class ChainSimulator:
    """A ``Chain`` for tests. Protocol methods first, controls after."""

    def __init__(self, *, operator: Address = OPERATOR, chain_id: int = 424242,
                 members: tuple[Address, ...] | None = None, automine: bool = True, now_s: int = 1_800_000_000,
                 accepts_signature: Callable[[Call], bool] | None = None, world: _World | None = None) -> None:
        self._operator = operator
        self._chain_id = chain_id
        self.accepts_signature = accepts_signature or (lambda call: bool(getattr(call, "signature", b"")))
        self._contracts = Contracts(record_anchor=address("0x" + "a1" * 20),
                                    consent_registry=address("0x" + "c1" * 20),
                                    hospital_registry=address("0x" + "d1" * 20))
        if world is None:
            state = State(operators={member: member for member in (members if members is not None else (operator,))})
            genesis = Block(number=0, hash=_hash("genesis", chain_id), parent_hash=ZERO_HASH, time_s=now_s)
            world = _World(blocks=[_Mined(block=genesis, state=state, txs=(), receipts={})], now_s=now_s,
                           automine=automine, balances={operator: 10**21})
        self._world = world

    def as_operator(self, operator: Address) -> ChainSimulator:
        """The same chain seen by another hospital."""
        self._world.balances.setdefault(operator, 10**21)
        return ChainSimulator(operator=operator, chain_id=self._chain_id, world=self._world,
                              accepts_signature=self.accepts_signature)

    # -- Chain --------------------------------------------------------------------------------------------------------

    @property
    def chain_id(self) -> int:
        return self._chain_id

    @property
    def operator(self) -> Address:
        return self._operator

    @property
    def contracts(self) -> Contracts:
        return self._contracts

    def head(self) -> Block:
        with self._asked("head"):
            return self._tip.block

    def block(self, number: int) -> Block | None:
        with self._asked("block"):
            return self._world.blocks[number].block if 0 <= number < len(self._world.blocks) else None

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        with self._asked("block_by_hash"):
            return next((m.block for m in self._world.blocks if m.block.hash == block_hash), None)

    def logs(self, from_block: int, to_block: int) -> tuple[Event, ...]:
        with self._asked("logs"):
            mined = self._world.blocks[max(0, from_block):to_block + 1]
            return tuple(e for m in mined for tx in m.txs for e in m.receipts[tx.hash].events)

    def anchor_head(self, custodian: Address, *, at: int | None = None) -> bytes:
        with self._asked("anchor_head"):
            return self._at(at).state.heads.get(custodian, ZERO_HASH)

    def is_granted(self, patient: Address, grantee: bytes, terms_hash: bytes, *, at: int | None = None) -> bool:
        with self._asked("is_granted"):
            mined = self._at(at)
            grant = mined.state.grants.get(grant_id(patient, grantee, terms_hash))
            return (grant is not None and not grant.revoked and grant.epoch == mined.state.epochs.get(patient, 0)
                    and grant.valid_from_s <= mined.block.time_s < grant.valid_until_s)

    def granted_count(self, patient: Address, *, at: int | None = None) -> int:
        with self._asked("granted_count"):
            state = self._at(at).state
            return sum(1 for grant in state.grants.values() if grant.patient == patient and not grant.revoked
                       and grant.epoch == state.epochs.get(patient, 0))

    def epoch(self, patient: Address, *, at: int | None = None) -> int:
        with self._asked("epoch"):
            return self._at(at).state.epochs.get(patient, 0)

    def is_nonce_used(self, patient: Address, nonce: int, *, at: int | None = None) -> bool:
        with self._asked("is_nonce_used"):
            return (patient, nonce) in self._at(at).state.used

    def member_of(self, operator: Address | None = None, *, at: int | None = None) -> Address | None:
        with self._asked("member_of"):
            return self._at(at).state.operators.get(operator or self._operator)

    def nonce(self, tag: Tag, *, of: Address | None = None) -> int:
        with self._asked("nonce"):
            who = of or self._operator
            mined = self._tip.state.nonces.get(who, 0)
            if tag == "latest":
                return mined
            waiting = {tx.nonce for tx in self._world.pool.values() if tx.sender == who}
            while mined in waiting:
                mined += 1
            return mined

    def balance(self, of: Address | None = None) -> int:
        with self._asked("balance"):
            return self._world.balances.get(of or self._operator, 0)

    def fees(self) -> Fees:
        with self._asked("fees"):
            return Fees(max_fee=2_000_000_000, priority=1_000_000_000)

    def estimate(self, call: Call) -> int:
        with self._asked("estimate"):
            _, _, revert = run(call, self._operator, self._tip.state, self._world.now_s, self.accepts_signature)
            if revert is not None:
                raise ChainReverted(revert.name, revert.arguments)
            return GAS[type(call)]

    def sign(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> SignedTransaction:
        digest = _hash("tx", self._chain_id, self._operator, nonce, fees, gas, call)
        raw = b"\x02" + digest
        tx = _Tx(hash=digest, raw=raw, sender=self._operator, nonce=nonce, fees=fees, call=call)
        with self._world.lock:
            self._world.signed[raw] = tx
        return SignedTransaction(hash=digest, raw=raw, nonce=nonce, fees=fees)

    def broadcast(self, signed: SignedTransaction) -> bytes:
        with self._asked("broadcast"):
            world = self._world
            tx = world.signed.get(signed.raw)
            if tx is None:
                raise TransactionRefused("other", "not a transaction")
            if self._find(tx.hash) is None and tx.hash not in world.pool:
                self._admit(tx)
                if world.automine and self._ready():
                    self.mine()
            if world.lose_answers:
                world.lose_answers -= 1
                raise ChainUnavailable("the answer was lost")
            return tx.hash

    def send(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> bytes:
        return self.broadcast(self.sign(call, nonce=nonce, fees=fees, gas=gas))

    def transaction(self, tx_hash: bytes) -> Transaction | None:
        with self._asked("transaction"):
            mined = self._find(tx_hash)
            if mined is not None:
                tx = next(t for t in mined.txs if t.hash == tx_hash)
                return Transaction(hash=tx_hash, nonce=tx.nonce, sender=tx.sender, block_number=mined.block.number,
                                   block_hash=mined.block.hash)
            waiting = self._world.pool.get(tx_hash)
            if waiting is None:
                return None
            return Transaction(hash=tx_hash, nonce=waiting.nonce, sender=waiting.sender, block_number=None,
                               block_hash=None)

    def receipt(self, tx_hash: bytes) -> Receipt | None:
        with self._asked("receipt"):
            mined = self._find(tx_hash)
            return None if mined is None else mined.receipts[tx_hash]

    # -- controls -----------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> tuple[bytes, ...]:
        """Hashes of the waiting transactions, oldest first."""
        return tuple(self._world.pool)

    @property
    def asked(self) -> tuple[str, ...]:
        """Every protocol method asked so far, in order (``sign`` asks no node)."""
        return tuple(self._world.calls)

    def set_automine(self, on: bool) -> None:
        self._world.automine = on

    def advance(self, seconds: int) -> None:
        """Move the clock of blocks to come."""
        self._world.now_s += seconds

    def mine(self, count: int = 1) -> Block:
        """Mine ``count`` blocks; the first takes every waiting transaction whose nonce is next. Nothing if stalled."""
        with self._world.lock:
            for _ in range(count):
                if self._world.stalled:
                    break
                self._append(self._ready())
            return self._tip.block

    def reorg(self, depth: int, *, txs: Literal["pool", "drop", "keep"] = "pool", extra: int = 1) -> Block:
        """Replace the top ``depth`` blocks by ``depth + extra`` others.

        ``txs``: their transactions wait again (``pool``), are gone (``drop``), or are mined again in the new blocks'
        first (``keep``).
        """
        with self._world.lock:
            if not 0 < depth < len(self._world.blocks):
                raise ValueError(f"cannot take back {depth} of {len(self._world.blocks) - 1} blocks")
            gone = self._world.blocks[-depth:]
            del self._world.blocks[-depth:]
            self._world.forks += 1
            taken_back = [tx for m in gone for tx in m.txs]
            for index in range(depth + extra):
                self._append(taken_back if txs == "keep" and index == 0 else [])
            if txs == "pool":
                self._world.pool = {tx.hash: tx for tx in taken_back} | self._world.pool
            return self._tip.block

    def stall(self) -> None:
        """No more blocks until ``resume``; the node still answers."""
        self._world.stalled = True

    def resume(self) -> None:
        self._world.stalled = False
        self._world.down = False

    def go_down(self) -> None:
        """Every call raises ``ChainUnavailable`` until ``resume``."""
        self._world.down = True

    def fail_next(self, error: GatewayError | None = None, *, method: str | None = None, times: int = 1) -> None:
        """The next ``times`` calls (of ``method``, or any) raise, and do nothing."""
        failure = error or ChainUnavailable("simulated fault")
        self._world.failures.extend([(method, failure)] * times)

    def lose_next_answer(self, times: int = 1) -> None:
        """The next broadcasts take effect, yet their caller gets ``ChainUnavailable``."""
        self._world.lose_answers += times

    def drop(self, tx_hash: bytes) -> None:
        """A waiting transaction falls out of the pool."""
        del self._world.pool[tx_hash]

    def hold(self, tx_hash: bytes) -> None:
        """A waiting transaction is not mined (fee too low) until ``release`` or a replacement."""
        self._world.held.add(tx_hash)

    def release(self, tx_hash: bytes) -> None:
        self._world.held.discard(tx_hash)

    def deployed_at(self, number: int) -> None:
        """The contracts are as old as that block."""
        self._contracts = replace(self._contracts, from_block=number)

    def set_balance(self, wei: int, of: Address | None = None) -> None:
        self._world.balances[of or self._operator] = wei

    def change_member(self, change: MemberChange, member: Address, *, operator: Address | None = None,
                      endpoint_digest: bytes | None = None) -> Block:
        """What HospitalRegistry would emit after a vote; mines a block."""
        registrar = address("0x" + "ee" * 20)
        with self._world.lock:
            nonce = self._tip.state.nonces.get(registrar, 0)
            call = Membership(change=change, member=member, operator=operator, endpoint_digest=endpoint_digest)
            digest = _hash("member", nonce, call)
            self._append([_Tx(hash=digest, raw=digest, sender=registrar, nonce=nonce, call=call,
                              fees=Fees(max_fee=1, priority=None))])
            return self._tip.block

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _tip(self) -> _Mined:
        return self._world.blocks[-1]

    def _asked(self, method: str) -> threading.RLock:
        world = self._world
        with world.lock:
            world.calls.append(method)
            if world.down:
                raise ChainUnavailable("the node is down")
            for index, (wanted, error) in enumerate(world.failures):
                if wanted in (None, method):
                    del world.failures[index]
                    raise error
        return world.lock

    def _at(self, number: int | None) -> _Mined:
        if number is None:
            return self._tip
        if not 0 <= number < len(self._world.blocks):
            raise ChainUnavailable(f"no state at block {number}")
        return self._world.blocks[number]

    def _find(self, tx_hash: bytes) -> _Mined | None:
        return next((m for m in reversed(self._world.blocks) if tx_hash in m.receipts), None)

    def _admit(self, tx: _Tx) -> None:
        if tx.nonce < self._tip.state.nonces.get(tx.sender, 0):
            raise TransactionRefused("nonce-too-low", f"nonce {tx.nonce} is used")
        if self._world.balances.get(tx.sender, 0) < tx.fees.max_fee * 100_000:
            raise TransactionRefused("insufficient-funds", "the operator cannot pay")
        for other in list(self._world.pool.values()):
            if (other.sender, other.nonce) == (tx.sender, tx.nonce):
                if tx.fees.max_fee * 10 < other.fees.max_fee * 11:
                    raise TransactionRefused("underpriced", "a replacement offers 10 % more")
                del self._world.pool[other.hash]
        self._world.pool[tx.hash] = tx

    def _ready(self) -> list[_Tx]:
        world = self._world
        nonces = dict(self._tip.state.nonces)
        ready: list[_Tx] = []
        for tx in sorted(world.pool.values(), key=lambda tx: tx.nonce):
            if tx.nonce < nonces.get(tx.sender, 0):
                del world.pool[tx.hash]
            elif tx.nonce == nonces.get(tx.sender, 0) and tx.hash not in world.held:
                ready.append(tx)
                nonces[tx.sender] = tx.nonce + 1
        return ready

    def _append(self, txs: list[_Tx]) -> None:
        world, parent = self._world, self._tip
        number = parent.block.number + 1
        time_s = max(world.now_s, parent.block.time_s + 1)
        block_hash = _hash("block", number, parent.block.hash, time_s, world.forks, [tx.hash for tx in txs])
        block = Block(number=number, hash=block_hash, parent_hash=parent.block.hash, time_s=time_s)
        state, receipts, log_index = parent.state, {}, 0
        for tx in txs:
            ran, emits, revert = run(tx.call, tx.sender, state, time_s, self.accepts_signature)
            events = []
            for emit in emits:
                events.append(emit(Place(block_number=number, block_hash=block_hash, tx_hash=tx.hash,
                                         log_index=log_index)))
                log_index += 1
            state = replace(ran, nonces={**ran.nonces, tx.sender: tx.nonce + 1})
            receipts[tx.hash] = Receipt(tx_hash=tx.hash, block_number=number, block_hash=block_hash,
                                        gas_used=GAS.get(type(tx.call), 50_000), revert=revert, events=tuple(events))
            world.pool.pop(tx.hash, None)
        world.blocks.append(_Mined(block=block, state=state, txs=tuple(txs), receipts=receipts))
