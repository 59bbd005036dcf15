"""Transactions as values: what one offers, signed, waiting, mined, and why a contract refused it.

Owns how a replacement's fees rise; refuses to know the calls inside. Amounts are wei.
Spec: https://eips.ethereum.org/EIPS/eip-1559.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.ledger.address import Address
from gateway.ledger.events import Event

Wei = int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """What a transaction offers per gas. ``priority`` None: a legacy gas price, for chains without EIP-1559."""

    max_fee: Wei
    priority: Wei | None

    def bumped(self, percent: int = 25) -> Fees:
        """At least ``percent`` more of both, as a node demands of a replacement (geth: 10)."""
        priority = None if self.priority is None else _raised(self.priority, percent)
        return replace(self, max_fee=_raised(self.max_fee, percent), priority=priority)


def _raised(amount: Wei, percent: int) -> Wei:
    return amount + max(1, -(-amount * percent // 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """Signed and not yet sent: store it first, then broadcast, and a crash between loses nothing."""

    hash: bytes
    raw: bytes
    nonce: int
    fees: Fees


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A transaction the node knows; ``block_number`` None while it waits."""

    hash: bytes
    nonce: int
    sender: Address
    block_number: int | None
    block_hash: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revert:
    """Why a contract refused: the error's name and arguments as the ABI has them (``HeadMismatch``, ...)."""

    name: str
    arguments: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction. ``revert`` is None when it took effect; ``events`` are those of our contracts."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    gas_used: int
    revert: Revert | None
    events: tuple[Event, ...]

    @property
    def succeeded(self) -> bool:
        return self.revert is None
