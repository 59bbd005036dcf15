"""The chain as the gateway sees it: one protocol.

Owns the ``Chain`` protocol; what crosses it are the values of ``calls.py``, ``events.py`` and ``transactions.py``.
Refuses JSON-RPC, ABI bytes and web3 objects, which stay in ``ethereum.py``. Two implementations pass
``tests/behaviours/test_chain.py``: ``gateway/ledger/ethereum.py`` (any JSON-RPC node, the embedded one included) and
``tests/simulators/chain.py``.

Shapes: hashes, roots and digests are 32 raw bytes; amounts are wei; times on chain are whole seconds. Methods are
synchronous, bounded in time, and may be called from several threads.

Spec: https://ethereum.github.io/execution-apis/ (JSON-RPC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from gateway.ledger.address import Address
from gateway.ledger.calls import Call
from gateway.ledger.events import Event
from gateway.ledger.transactions import Fees, Receipt, SignedTransaction, Transaction, Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block's place in the chain; ``time_s`` is the header's timestamp (epoch seconds UTC)."""

    number: int
    hash: bytes
    parent_hash: bytes
    time_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contracts:
    """The addresses of one deployment; ``from_block``: no event of theirs is older."""

    record_anchor: Address
    consent_registry: Address
    hospital_registry: Address
    from_block: int = 0


Tag = Literal["latest", "pending"]


class Chain(Protocol):
    """One chain, one deployment of the contracts, one operator who signs and pays.

    Every method may raise ``ChainUnavailable`` (no answer, not in time, not understood, another chain).
    ``at`` is a block number; None is the latest block.
    """

    @property
    def chain_id(self) -> int: ...

    @property
    def operator(self) -> Address: ...

    @property
    def contracts(self) -> Contracts: ...

    def head(self) -> Block:
        """The newest block."""

    def block(self, number: int) -> Block | None:
        """The canonical block of that height; None above the head."""

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        """The block of that hash if it is known *and canonical now*; a block reorged away answers None."""

    def logs(self, from_block: int, to_block: int) -> tuple[Event, ...]:
        """Events of the three contracts in both blocks and between, in chain order; none above the head.

        A reorg may happen between two calls: compare each event's ``block_hash`` with ``block(number)``.
        """

    def anchor_head(self, custodian: Address, *, at: int | None = None) -> bytes:
        """RecordAnchor's rolling head of a custodian; ``ZERO_HASH`` before the first anchor."""

    def is_granted(self, patient: Address, grantee: bytes, terms_hash: bytes, *, at: int | None = None) -> bool:
        """Whether the grant lives and is in time at that block."""

    def granted_count(self, patient: Address, *, at: int | None = None) -> int:
        """How many grants of the patient's present epoch are not revoked, expired ones included."""

    def epoch(self, patient: Address, *, at: int | None = None) -> int:
        """The patient's present epoch: what a ``RevokeAllCall`` names."""

    def is_nonce_used(self, patient: Address, nonce: int, *, at: int | None = None) -> bool:
        """Whether a consent nonce was used or cancelled."""

    def member_of(self, operator: Address | None = None, *, at: int | None = None) -> Address | None:
        """The member (custodian) an account acts for, default: the operator; None: for nobody."""

    def nonce(self, tag: Tag, *, of: Address | None = None) -> int:
        """The next nonce of ``of`` (default: the operator), counting waiting transactions if ``pending``."""

    def balance(self, of: Address | None = None) -> Wei:
        """What ``of`` (default: the operator) holds."""

    def fees(self) -> Fees:
        """What a transaction should offer now."""

    def estimate(self, call: Call) -> int:
        """Gas the call would use now; ``ChainReverted`` when a contract would refuse it."""

    def sign(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> SignedTransaction:
        """Signed by the operator, not sent. ``gas`` None: the adapter's fixed limit for that call, so that signing
        never needs the chain to accept the call at this moment."""

    def broadcast(self, signed: SignedTransaction) -> bytes:
        """Sent; answers its hash, also when the node knew it already.

        ``TransactionRefused`` with a reason: ``nonce-too-low``, ``underpriced`` (replacement), ``insufficient-funds``,
        ``other``. After ``ChainUnavailable`` it may have been sent or not: ask ``transaction`` or send it again.
        """

    def send(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> bytes:
        """``sign`` and ``broadcast``."""

    def transaction(self, tx_hash: bytes) -> Transaction | None:
        """None: the node does not know it (never came, dropped, or replaced)."""

    def receipt(self, tx_hash: bytes) -> Receipt | None:
        """None while it is not in a canonical block."""
