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
from gateway.ledger.chain import (
    SIGNER_KINDS,
    ZERO_HASH,
    AddOperatorCall,
    Address,
    AnchorCall,
    Anchored,
    Block,
    Call,
    Contracts,
    Event,
    Fees,
    GrantBatchCall,
    GrantCall,
    Granted,
    MemberChange,
    MemberChanged,
    Place,
    Receipt,
    Revert,
    RevokeAllCall,
    RevokeBatchCall,
    RevokeCall,
    Revoked,
    RevokedAll,
    SetEndpointCall,
    SignedTransaction,
    Tag,
    Transaction,
    address,
    grant_id,
    rolling_head,
)

OPERATOR = address("0x" + "11" * 20)
GAS: Mapping[type, int] = {AnchorCall: 36_000, GrantCall: 80_000, RevokeCall: 45_000, RevokeAllCall: 60_000,
                           GrantBatchCall: 400_000, RevokeBatchCall: 400_000, AddOperatorCall: 90_000,
                           SetEndpointCall: 30_000}
Emit = Callable[[Place], Event]


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grant:
    patient: Address
    valid_from_s: int
    valid_until_s: int
    epoch: int
    revoked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the contracts and accounts hold after a block; mappings are never changed in place."""

    heads: Mapping[Address, bytes] = field(default_factory=dict)
    grants: Mapping[bytes, _Grant] = field(default_factory=dict)
    epochs: Mapping[Address, int] = field(default_factory=dict)
    used: frozenset[tuple[Address, int]] = frozenset()
    operators: Mapping[Address, Address] = field(default_factory=dict)
    nonces: Mapping[Address, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tx:
    hash: bytes
    raw: bytes
    sender: Address
    nonce: int
    fees: Fees
    call: Call | _Membership


@dataclass(frozen=True, slots=True, kw_only=True)
class _Membership:
    """Done by ``change_member``, not by a signed call."""

    change: MemberChange
    member: Address
    operator: Address | None
    endpoint_digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mined:
    block: Block
    state: _State
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
            state = _State(operators={member: member for member in (members if members is not None else (operator,))})
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
            _, _, revert = self._run(call, self._operator, self._tip.state, self._world.now_s)
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

    def set_balance(self, wei: int, of: Address | None = None) -> None:
        self._world.balances[of or self._operator] = wei

    def change_member(self, change: MemberChange, member: Address, *, operator: Address | None = None,
                      endpoint_digest: bytes | None = None) -> Block:
        """What HospitalRegistry would emit after a vote; mines a block."""
        registrar = address("0x" + "ee" * 20)
        with self._world.lock:
            nonce = self._tip.state.nonces.get(registrar, 0)
            call = _Membership(change=change, member=member, operator=operator, endpoint_digest=endpoint_digest)
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
            ran, emits, revert = self._run(tx.call, tx.sender, state, time_s)
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

    def _run(self, call: Call | _Membership, sender: Address, state: _State, now_s: int) -> Outcome:
        """The contracts: the state after, what is emitted, or why not (and then the state is as before)."""
        match call:
            case AnchorCall():
                return _anchor(call, sender, state)
            case _Membership():
                return _membership(call, state)
            case AddOperatorCall() | SetEndpointCall():
                return _own_membership(call, sender, state)
            case GrantBatchCall() | RevokeBatchCall():
                after, emits = state, []
                parts = call.grants if isinstance(call, GrantBatchCall) else call.revocations
                for part in parts:
                    after, emitted, revert = self._consent(part, sender, after, now_s)
                    if revert is not None:
                        return state, [], revert
                    emits += emitted
                return after, emits, None
            case GrantCall() | RevokeCall() | RevokeAllCall():
                return self._consent(call, sender, state, now_s)

    def _consent(self, call: GrantCall | RevokeCall | RevokeAllCall, sender: Address, state: _State, now_s: int,
                 ) -> Outcome:
        patient, kind = call.patient, call.nonce >> 248
        if now_s > call.deadline_s:
            return _refused(state, "SignatureExpired", call.deadline_s, now_s)
        if kind >= len(SIGNER_KINDS):
            return _refused(state, "SignerKindUnknown", kind)
        if (patient, call.nonce) in state.used:
            return _refused(state, "NonceUsed", patient, call.nonce)
        spent = replace(state, used=state.used | {(patient, call.nonce)})
        epoch = state.epochs.get(patient, 0)
        custodian = state.operators.get(sender)
        if isinstance(call, RevokeAllCall) and call.epoch != epoch:
            return _refused(state, "EpochMismatch", patient, call.epoch, epoch)
        if isinstance(call, GrantCall) and SIGNER_KINDS[kind] in ("custodial", "attested") and custodian is None:
            return _refused(state, "NotMember", sender)
        if not self.accepts_signature(call):
            return _refused(state, "InvalidSignature", patient, kind, _hash("digest", call))
        if isinstance(call, RevokeAllCall):
            return (replace(spent, epochs={**state.epochs, patient: epoch + 1}),
                    [lambda place: RevokedAll(place=place, patient=patient, epoch=epoch + 1)], None)
        name = grant_id(patient, call.grantee, call.terms_hash)
        present = state.grants.get(name)
        if isinstance(call, RevokeCall):
            if present is not None and present.revoked:
                return _refused(state, "AlreadyRevoked", name)
            over = replace(present, revoked=True) if present else _Grant(
                patient=patient, valid_from_s=0, valid_until_s=0, epoch=0, revoked=True)
            return (replace(spent, grants={**state.grants, name: over}),
                    [lambda place: Revoked(place=place, patient=patient, grant_id=name,
                                           grantee=call.grantee, terms_hash=call.terms_hash)], None)
        if call.valid_until_s <= max(call.valid_from_s, now_s) or call.valid_from_s >= 1 << 32:
            return _refused(state, "InvalidPeriod", call.valid_from_s, call.valid_until_s, now_s)
        if present is not None:
            return _refused(state, "GrantExists", name, 2 if present.revoked else 1)
        grant = _Grant(patient=patient, valid_from_s=call.valid_from_s, valid_until_s=call.valid_until_s,
                       epoch=epoch, revoked=False)
        return (replace(spent, grants={**state.grants, name: grant}),
                [lambda place: Granted(place=place, patient=patient, grant_id=name, custodian=custodian,
                                       grantee=call.grantee, terms_hash=call.terms_hash,
                                       valid_from_s=call.valid_from_s, valid_until_s=call.valid_until_s, kind=kind,
                                       epoch=epoch)], None)


Outcome = tuple[_State, list[Emit], Revert | None]


def _refused(state: _State, name: str, *arguments: object) -> Outcome:
    return state, [], Revert(name=name, arguments=arguments)


def _anchor(call: AnchorCall, sender: Address, state: _State) -> Outcome:
    if call.size_class > 4:
        return _refused(state, "SizeClassUnknown", call.size_class)
    custodian = state.operators.get(sender)
    if custodian is None:
        return _refused(state, "NotMember", sender)
    head = state.heads.get(custodian, ZERO_HASH)
    if call.expected_head != head:
        return _refused(state, "HeadMismatch", call.expected_head, head)
    after = rolling_head(head, call.root, call.manifest_digest, call.size_class)
    return (replace(state, heads={**state.heads, custodian: after}),
            [lambda place: Anchored(place=place, custodian=custodian, previous_head=head, root=call.root,
                                    manifest_digest=call.manifest_digest, size_class=call.size_class, head=after)],
            None)


def _membership(call: _Membership, state: _State) -> Outcome:
    operators = dict(state.operators)
    match call.change:
        case "admitted":
            operators[call.member] = call.member
        case "removed":
            operators = {who: member for who, member in operators.items() if member != call.member}
        case "operator-added" if call.operator is not None:
            operators[call.operator] = call.member
        case "operator-removed" if call.operator is not None:
            operators.pop(call.operator, None)
    return (replace(state, operators=operators),
            [lambda place: MemberChanged(place=place, change=call.change, member=call.member,
                                         operator=call.operator, endpoint_digest=call.endpoint_digest)], None)


def _own_membership(call: AddOperatorCall | SetEndpointCall, sender: Address, state: _State) -> Outcome:
    if state.operators.get(sender) != sender:
        return _refused(state, "NotMember", sender)
    if isinstance(call, SetEndpointCall):
        return _membership(_Membership(change="endpoint", member=sender, operator=None,
                                       endpoint_digest=call.endpoint_digest), state)
    if call.operator in state.operators:
        return _refused(state, "OperatorTaken", call.operator, state.operators[call.operator])
    return _membership(_Membership(change="operator-added", member=sender, operator=call.operator,
                                   endpoint_digest=None), state)
