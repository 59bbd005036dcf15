"""A Job: one thing that must be on the chain exactly once (a Batch's anchor, a signed act), and what to do next.

Owns the state machine between what is stored and what the chain says; refuses I/O and clocks. Everything is judged anew
at each look from the chain's own answers, so that a crash, reorg, drop or replacement between two looks needs no case
of its own. Pure. ``README.md``, Paths: Anchor.

A Job may have several Attempts, at several nonces: at most one can take effect, because the contract refuses the second
(RecordAnchor by ``expectedHead``, ConsentRegistry by nonce and grant id). An Attempt is therefore never forgotten while
its Job may still be reorganised: whichever of them is mined counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gateway.ledger.transactions import Fees, Revert, SignedTransaction

JobKind = Literal["batch", "intent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One signed transaction of a Job; ``basis`` is what its call was made for (a batch: the head it expects)."""

    kind: JobKind
    job: int
    hash: bytes
    nonce: int
    fees: Fees
    raw: bytes = field(repr=False)
    basis: bytes
    sent_ms: int
    sent_block: int

    @property
    def signed(self) -> SignedTransaction:
        """As the chain takes it."""
        return SignedTransaction(hash=self.hash, raw=self.raw, nonce=self.nonce, fees=self.fees)


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """Where a Job's effect stands on the canonical chain; the heads are a batch's, empty for an intent."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    block_time_s: int
    prior_head: bytes = b""
    head: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A mined transaction that a contract refused."""

    revert: Revert
    block_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``confirmations``: blocks on top before something is final. A transaction whose turn it is counts as stuck after
    ``stuck_blocks`` more blocks and ``stuck_ms``; it is replaced at most ``replacements_max`` times at one nonce."""

    confirmations: int
    stuck_ms: int = 60_000
    stuck_blocks: int = 3
    resend_ms: int = 3_000
    replacements_max: int = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the chain says now.

    ``basis``: what a call made now would be for, None where none may be sent (its turn has not come). ``followed`` is
    the block the follower stands at: finality is judged there, so that whatever it makes final it can also take back.
    ``hole``: a nonce below this Job's that nothing fills. ``first``: our waiting attempts at the lowest nonce, by fee.
    """

    now_ms: int
    head_number: int
    followed: int
    next_nonce: int
    landed: Landing | None
    refused: Refused | None
    basis: bytes | None
    hole: int | None
    first: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do at this look."""


@dataclass(frozen=True, slots=True)
class Send:
    """Sign and send at ``nonce``; None: the lowest that is free."""

    nonce: int | None


@dataclass(frozen=True, slots=True)
class Replace:
    """Sign the call anew at the nonce of ``attempt`` (its own, or what blocks it) with fees above its."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Mined:
    """Record where it landed."""

    landing: Landing


@dataclass(frozen=True, slots=True)
class Finalised:
    """Record where it landed, for good."""

    landing: Landing


@dataclass(frozen=True, slots=True)
class Unmined:
    """A reorg took it back: record that it waits again."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A contract refuses it, for good."""

    revert: Revert


Action = Wait | Send | Replace | Mined | Finalised | Unmined | Failed


def plan(*, recorded: tuple[int, bytes] | None, attempts: Sequence[Attempt], facts: Facts, policy: Policy) -> Action:
    """The one next step. ``recorded``: block number and hash where the store says it landed. First rule that fits:

    1. Landed and deep enough: final. Landed elsewhere than recorded: record it. Landed: wait.
    2. Recorded as landed, and is not: a reorg; it waits again.
    3. Refused by its contract, deep enough: failed (a batch is never: ``refused`` is not given).
    4. Not to be sent now: wait.
    5. No attempt can still be mined (none, or their nonces are used): send.
    6. A hole below its nonces holds up everything: send there as well.
    7. Made for a world that is gone, or stuck: replace at the lowest nonce.
    8. Behind a stuck one whose own Job does nothing about it (it landed by another attempt): take that one's place.
    """
    landed = facts.landed
    if landed is not None:
        if facts.followed - landed.block_number >= policy.confirmations:
            return Finalised(landed)
        return Wait() if recorded == (landed.block_number, landed.block_hash) else Mined(landed)
    if recorded is not None:
        return Unmined()
    if facts.refused is not None:
        if facts.followed - facts.refused.block_number >= policy.confirmations:
            return Failed(facts.refused.revert)
        return Wait()
    if facts.basis is None:
        return Wait()
    waiting = [attempt for attempt in attempts if attempt.nonce >= facts.next_nonce]
    if not waiting:
        return Send(None)
    if facts.hole is not None:
        return Send(facts.hole)
    lowest = min(attempt.nonce for attempt in waiting)
    there = [attempt for attempt in waiting if attempt.nonce == lowest]
    newest = max(there, key=lambda attempt: attempt.fees.max_fee)
    if newest.basis != facts.basis:
        return Replace(newest)
    if _stuck(newest, len(there), facts, policy):
        return Replace(newest)
    if facts.first and facts.first[-1].nonce < lowest and _stuck(
            facts.first[-1], len(facts.first), facts, policy, patience=2):
        return Replace(facts.first[-1])
    return Wait()


def _stuck(attempt: Attempt, tried: int, facts: Facts, policy: Policy, *, patience: int = 1) -> bool:
    """It is its turn, blocks pass, and it is not in them."""
    return (attempt.nonce == facts.next_nonce and tried <= policy.replacements_max
            and facts.head_number - attempt.sent_block >= policy.stuck_blocks * patience
            and facts.now_ms - attempt.sent_ms >= policy.stuck_ms * patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The operator's nonces: ``next_nonce`` is the first not mined, ``pending`` the first the node's pool lacks, and
    ``waiting`` our attempts that are not mined."""

    next_nonce: int
    pending: int
    waiting: tuple[Attempt, ...]

    def free(self) -> int:
        """The lowest nonce that neither we nor another holder of the key has given away."""
        taken = {attempt.nonce for attempt in self.waiting}
        nonce = self.next_nonce
        while nonce in taken or nonce < self.pending:
            nonce += 1
        return nonce

    def hole_for(self, kind: JobKind, job: int) -> int | None:
        """A free nonce below one of this Job's: nothing above it can be mined until somebody fills it."""
        free = self.free()
        above = any(attempt.nonce > free for attempt in self.waiting if (attempt.kind, attempt.job) == (kind, job))
        return free if above else None

    def by_nonce(self) -> list[list[Attempt]]:
        """The waiting attempts, lowest nonce first, those of one nonce by fee."""
        groups: dict[int, list[Attempt]] = {}
        for attempt in sorted(self.waiting, key=lambda attempt: (attempt.nonce, attempt.fees.max_fee)):
            groups.setdefault(attempt.nonce, []).append(attempt)
        return list(groups.values())

    def first(self) -> tuple[Attempt, ...]:
        """The waiting attempts at the lowest nonce, by fee."""
        groups = self.by_nonce()
        return tuple(groups[0]) if groups else ()

    def with_attempt(self, attempt: Attempt) -> Queue:
        """After ``attempt`` was stored."""
        return Queue(next_nonce=self.next_nonce, pending=self.pending, waiting=(*self.waiting, attempt))
