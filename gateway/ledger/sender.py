"""Sending transactions: one operator's nonces, shared by everything that sends.

Owns the allotting of nonces, the order store-then-broadcast, and the sending again of what a node lost; refuses to send
anything that is not stored first, so that a crash never leaves a transaction nobody knows of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import apsw

from gateway.errors import TransactionRefused
from gateway.ledger.calls import Call
from gateway.ledger.chain import Chain
from gateway.ledger.job import Attempt, JobKind, Landing, Policy, Queue, Refused
from gateway.ledger.transactions import Fees, Receipt
from gateway.store import attempts
from gateway.store.sql import Database, now_ms

LOG = logging.getLogger(__name__)
_GROUPS_AT_ONCE = 32
_QUIET_MS = 2_000
"""Within it, what no block changes is looked at once: below the time after which a lost transaction is sent again."""
Record = Callable[[apsw.Connection], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    """What became of a Job's attempts: the one that took effect, or the last that was refused."""

    landed: Landing | None
    refused: Refused | None


class Quiet:
    """Whether a look would find what the last one found, so that a node is not asked for every Job each time."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._found: object = None
        self._looked_ms = 0

    def still(self, found: object) -> bool:
        """Whether ``found`` (the head, and what the store says) is what was noted less than ``_QUIET_MS`` ago."""
        return found == self._found and 0 <= self._clock() - self._looked_ms < _QUIET_MS

    def note(self, found: object) -> None:
        """A look at ``found`` is over; None: something moved."""
        self._found, self._looked_ms = found, self._clock()


class Sender:
    """One operator key on one chain. Its users take turns: ``loops.py`` runs them under one lock."""

    def __init__(self, *, database: Database, chain: Chain, policy: Policy,
                 clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._chain = chain
        self.policy = policy
        self.clock = clock
        self._tried_ms: dict[bytes, int] = {}
        self._unpaid: set[bytes] = set()

    def look(self) -> Queue:
        """The operator's nonces now; what the node lost is sent again, lowest nonce first. Raises ChainUnavailable."""
        next_nonce = self._chain.nonce("latest")
        queue = Queue(next_nonce=next_nonce, pending=self._chain.nonce("pending"),
                      waiting=attempts.from_nonce(self._database.reader, next_nonce))
        waiting = {attempt.hash for attempt in queue.waiting}
        self._unpaid &= waiting
        self._tried_ms = {hash_: at for hash_, at in self._tried_ms.items() if hash_ in waiting}
        for group in queue.by_nonce()[:_GROUPS_AT_ONCE]:
            newest = group[-1]
            if self.clock() - self._tried_ms.get(newest.hash, 0) < self.policy.resend_ms:
                continue
            if all(self._chain.transaction(attempt.hash) is None for attempt in group):
                self._broadcast(newest)
            self._tried_ms[newest.hash] = self.clock()
        return queue

    def submit(self, queue: Queue, *, kind: JobKind, job: int, call: Call, basis: bytes, record: Record,
               nonce: int | None = None, replaces: Attempt | None = None) -> Queue:
        """Sign, store together with ``record``'s rows, then broadcast; the queue with it in.

        At ``nonce``, the lowest free one, or in the place of ``replaces`` with higher fees. A node's refusal is not
        raised: the next look sees what became of it. Raises ChainUnavailable.

        What waits for the purse to be filled is not replaced: more fees would only make it wait for more.
        """
        if replaces is not None and replaces.hash in self._unpaid and (
                (replaces.kind, replaces.job, replaces.basis) == (kind, job, basis)):
            return queue
        fees = self._chain.fees()
        if replaces is not None:
            nonce = replaces.nonce
            fees = _at_least(replaces.fees.bumped(), fees)
        elif nonce is None:
            nonce = queue.free()
        head = self._chain.head()
        signed = self._chain.sign(call, nonce=nonce, fees=fees)
        attempt = Attempt(kind=kind, job=job, hash=signed.hash, nonce=nonce, fees=signed.fees, raw=signed.raw,
                          basis=basis, sent_ms=self.clock(), sent_block=head.number)

        def store(connection: apsw.Connection) -> None:
            attempts.put(connection, attempt)
            record(connection)

        self._database.transact(store)
        self._tried_ms[attempt.hash] = self.clock()
        self._broadcast(attempt)
        return queue.with_attempt(attempt)

    def mined(self, of_job: Sequence[Attempt], took_effect: Callable[[Receipt], bool]) -> Mined:
        """What became of a Job's attempts. ``took_effect`` looks for the contract's event: a transaction to an address
        without code succeeds too. Raises ChainUnavailable."""
        refused: Refused | None = None
        for attempt in of_job:
            receipt = self._chain.receipt(attempt.hash)
            if receipt is None:
                continue
            if receipt.revert is not None:
                refused = Refused(revert=receipt.revert, block_number=receipt.block_number)
                continue
            if not took_effect(receipt):
                continue
            block = self._chain.block(receipt.block_number)
            if block is None or block.hash != receipt.block_hash:
                continue
            return Mined(refused=None, landed=Landing(
                tx_hash=attempt.hash, block_number=block.number, block_hash=block.hash, block_time_s=block.time_s))
        return Mined(landed=None, refused=refused)

    def _broadcast(self, attempt: Attempt) -> None:
        try:
            self._chain.broadcast(attempt.signed)
            self._unpaid.discard(attempt.hash)
        except TransactionRefused as error:
            if error.reason == "insufficient-funds":
                self._unpaid.add(attempt.hash)
            # Another transaction took the nonce, the fees are too low, or the purse is empty: the next look plans anew.
            LOG.log(logging.DEBUG if error.reason == "nonce-too-low" else logging.WARNING,
                    "a transaction was refused by the node", extra={"reason": error.reason, "nonce": attempt.nonce,
                                                                    "job": attempt.kind})


def _at_least(a: Fees, b: Fees) -> Fees:
    priority = a.priority if b.priority is None else max(b.priority, a.priority or 0)
    return Fees(max_fee=max(a.max_fee, b.max_fee), priority=priority)
