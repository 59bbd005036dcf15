"""Anchoring: every closed Batch on the chain exactly once, in order.

Owns the step from a pushed Batch to a final one, by looking at the chain (``job.plan``) and sending (``sender``);
refuses to anchor on a head whose history may already hold the Batch. ``FORMATS.md``, Anchor.

Exactly once: a head is the hash of its whole history. Two transactions of one Batch both take effect only where the
second's ``expectedHead`` has the first in its history; so a Batch that was sent before is sent on another head only
when it is an older one of its own, or the events from there back to one of those show that it is not among them.
"""

from __future__ import annotations

import logging
from typing import Final

import apsw

from gateway.errors import ChainReverted
from gateway.ledger.address import Address
from gateway.ledger.calls import AnchorCall
from gateway.ledger.chain import Chain
from gateway.ledger.events import ZERO_HASH, Anchored
from gateway.ledger.job import (
    Action,
    Attempt,
    Facts,
    Failed,
    Finalised,
    Landing,
    Mined,
    Queue,
    Replace,
    Send,
    Unmined,
    Wait,
    plan,
)
from gateway.ledger.sender import Quiet, Sender
from gateway.store import attempts, batches, followed
from gateway.store.batches import BatchRow
from gateway.store.sql import Database

LOG = logging.getLogger(__name__)
_AT_ONCE: Final = 64
_WINDOW: Final = 5_000
_REFUSED_WAIT_MS: Final = 10_000


class Anchorer:
    """Anchors the Batches of one custodian."""

    def __init__(self, *, database: Database, chain: Chain, custodian: Address, sender: Sender) -> None:
        self._database = database
        self._chain = chain
        self._custodian = custodian
        self._sender = sender
        self._not_before_ms = 0
        self._quiet = Quiet(sender.clock)

    def poll(self) -> bool:
        """Look once at every Batch that is not final; whether any moved. Raises ChainUnavailable."""
        reader = self._database.reader
        if not batches.has_open(reader):
            return False
        found = batches.open_batches(reader, limit=_AT_ONCE)
        stand, tip = followed.cursor(reader).seen, self._chain.head()
        if self._quiet.still((tip, stand, found)):
            return False
        before = batches.batch(reader, found[0].pk - 1)  # final, or there is none
        queue, head = self._sender.look(), tip.number
        earlier = before.new_head if before is not None else None
        clear, moved = True, False
        for row in found:
            own = attempts.of_job(reader, "batch", row.pk)
            landed = self._landed(row, own)
            basis = None
            if landed is None and clear and row.pushed and self._sender.clock() >= self._not_before_ms:
                looked = self._basis(row, own, earlier)
                landed, basis = (looked, None) if isinstance(looked, Landing) else (None, looked)
            action = plan(recorded=row.recorded, attempts=own, policy=self._sender.policy, facts=Facts(
                now_ms=self._sender.clock(), head_number=head, followed=stand, next_nonce=queue.next_nonce,
                landed=landed, refused=None, basis=basis, hole=queue.hole_for("batch", row.pk), first=queue.first()))
            queue = self._carry_out(row, action, basis, queue)
            moved = moved or not isinstance(action, Wait)
            clear = clear and landed is not None
            earlier = landed.head if landed is not None else None
        self._quiet.note(None if moved else (tip, stand, found))
        return moved

    def _carry_out(self, row: BatchRow, action: Action, basis: bytes | None, queue: Queue) -> Queue:
        match action:
            case Send(nonce=nonce) if basis is not None:
                if not self._accepted(row, basis):
                    return queue
                return self._submit(row, basis, queue, nonce=nonce, replaces=None)
            case Replace(attempt=attempt) if basis is not None:
                return self._submit(row, basis, queue, nonce=None, replaces=attempt)
            case Mined(landing=landing):
                self._database.transact(lambda connection: batches.landed(connection, row.pk, "mined", landing))
            case Finalised(landing=landing):
                self._database.transact(lambda connection: batches.landed(connection, row.pk, "final", landing))
                LOG.info("batch final", extra={"batch": row.pk, "block": landing.block_number})
            case Unmined():
                LOG.warning("a reorg took a batch back", extra={"batch": row.pk})
                self._database.transact(lambda connection: batches.submitted(connection, row.pk))
            case Wait() | Failed() | Send() | Replace():
                pass
        return queue

    def _submit(self, row: BatchRow, basis: bytes, queue: Queue, *, nonce: int | None,
                replaces: Attempt | None) -> Queue:
        def record(connection: apsw.Connection) -> None:
            batches.submitted(connection, row.pk, basis)
        return self._sender.submit(queue, kind="batch", job=row.pk, call=_call(row, basis), basis=basis, record=record,
                                   nonce=nonce, replaces=replaces)

    def _accepted(self, row: BatchRow, basis: bytes) -> bool:
        """Ask the contract before paying for its refusal."""
        try:
            self._chain.estimate(_call(row, basis))
        except ChainReverted as error:
            if error.name != "HeadMismatch":  # that one is a race, and the next look sees the new head
                LOG.error("the contract refuses to anchor", extra={"reason": error.name, "batch": row.pk})
                self._not_before_ms = self._sender.clock() + _REFUSED_WAIT_MS
            return False
        return True

    def _landed(self, row: BatchRow, own: tuple[Attempt, ...]) -> Landing | None:
        for hash_ in {attempt.hash for attempt in own} | ({row.tx_hash} if row.tx_hash else set()):
            receipt = self._chain.receipt(hash_)
            for event in receipt.events if receipt is not None else ():
                if isinstance(event, Anchored) and self._is(event, row):
                    return self._landing(event)
        return None

    def _basis(self, row: BatchRow, own: tuple[Attempt, ...], earlier: bytes | None) -> bytes | Landing | None:
        """The head to anchor on; where it landed after all; or None while the chain contradicts itself."""
        head = self._chain.anchor_head(self._custodian)
        proven = {attempt.basis for attempt in own} | ({row.expected_head} if row.expected_head else set())
        if not proven or head in proven:  # never sent, so in no history; or in none of this one
            return head
        proven |= {ZERO_HASH, earlier or ZERO_HASH}
        events: dict[bytes, Anchored] = {}
        at, below = head, self._chain.head().number
        while at not in proven:
            event = events.get(at)
            if event is None:
                if below < self._chain.contracts.from_block:
                    return None
                events |= {event.head: event for event in self._chain.logs(max(0, below - _WINDOW + 1), below)
                           if isinstance(event, Anchored) and event.custodian == self._custodian}
                below -= _WINDOW
            elif self._is(event, row):
                return self._landing(event)
            else:
                at = event.previous_head
        return head

    def _is(self, event: Anchored, row: BatchRow) -> bool:
        return (event.root, event.manifest_digest, event.custodian) == (row.root, row.manifest_digest, self._custodian)

    def _landing(self, event: Anchored) -> Landing | None:
        place = event.place
        block = self._chain.block(place.block_number)
        if block is None or block.hash != place.block_hash:
            return None  # a reorg between two answers: the next look knows more
        return Landing(tx_hash=place.tx_hash, block_number=block.number, block_hash=block.hash,
                       block_time_s=block.time_s, prior_head=event.previous_head, head=event.head)


def _call(row: BatchRow, basis: bytes) -> AnchorCall:
    return AnchorCall(expected_head=basis, root=row.root, manifest_digest=row.manifest_digest,
                      size_class=row.size_class)
