"""The relay: what patients signed, brought to the chain exactly once, at the hospital's cost.

Owns the step from a signed intent to a final one; refuses to spend gas on what the contract would refuse (it asks
first), and to give up on an act that is already in force: a refusal that says so is looked up in the events. The
contract's nonces make a second delivery a refusal. ``README.md``, Paths: Grant, revoke.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import apsw

from gateway.errors import ChainReverted, Moved
from gateway.ledger.calls import GrantCall, RevokeAllCall, RevokeCall, grant_id
from gateway.ledger.chain import Chain
from gateway.ledger.events import Event, Granted, Revoked, RevokedAll
from gateway.ledger.follower import nothing_else
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
from gateway.ledger.transactions import Revert
from gateway.store import attempts, followed, outbox
from gateway.store.outbox import Intent, SignedCall
from gateway.store.sql import Database

LOG = logging.getLogger(__name__)
_AT_ONCE: Final = 64
_WINDOW: Final = 5_000
_LOOK_BACK: Final = 50_000
"""Blocks searched for an act somebody else delivered."""
_DONE: Final = frozenset({"NonceUsed", "GrantExists", "AlreadyRevoked"})
"""Refusals that may mean: it is in force already."""
_OURS: Final = frozenset({"NotMember"})
"""Refusals that are the hospital's to mend, not the patient's act that is wrong."""
_OURS_WAIT_MS: Final = 30_000
_TURN_MS: Final = 1_000
"""After so long the follower gets its turn: where each transaction waits for a block of its own, sixty would stop its
heartbeat, and every grant with it."""
_DOUBT_MS: Final = 3_000


class Relay:
    """Relays the intents of one hospital."""

    def __init__(self, *, database: Database, chain: Chain, sender: Sender,
                 ended: Callable[[apsw.Connection], object] = nothing_else) -> None:
        """``ended``: what else ends with provisions, in the commit that ends them."""
        self._database = database
        self._chain = chain
        self._sender = sender
        self._ended = ended
        self._not_before_ms: dict[int, int] = {}
        self._doubted_ms: dict[int, int] = {}
        self._quiet = Quiet(sender.clock)

    def poll(self) -> bool:
        """Look once at every intent on its way; whether any moved. Raises ChainUnavailable."""
        reader = self._database.reader
        if not outbox.has_open(reader):
            return False
        found = outbox.open_intents(reader, limit=_AT_ONCE)
        stand, tip = followed.cursor(reader).seen, self._chain.head()
        if self._quiet.still((tip, stand, found)):
            return False
        queue, head = self._sender.look(), tip.number
        moved, until_ms = False, self._sender.clock() + _TURN_MS
        for intent in found:
            if moved and self._sender.clock() > until_ms:
                break
            own = attempts.of_job(reader, "intent", intent.pk)
            became = self._sender.mined(own, lambda receipt, call=intent.call: any(  # type: ignore[misc]  # bound here
                _is(event, call) for event in receipt.events))
            landed, refused = became.landed, became.refused
            if refused is not None and refused.revert.name in _OURS:
                refused = None
            if landed is None and (intent.recorded is not None or (
                    refused is not None and _may_be_done(refused.revert.name, intent.call))):
                landed = self._elsewhere(intent.call, head)
            now_ms = self._sender.clock()
            action = plan(recorded=intent.recorded, attempts=own, policy=self._sender.policy, facts=Facts(
                now_ms=now_ms, head_number=head, followed=stand, next_nonce=queue.next_nonce, landed=landed,
                refused=refused, basis=b"" if self._not_before_ms.get(intent.pk, 0) <= now_ms else None,
                hole=queue.hole_for("intent", intent.pk), first=queue.first()))
            if action == Send(None):
                action = Wait() if _behind(intent, found) else self._asked_first(intent, action, head)
            queue = self._carry_out(intent, action, queue, head=max(head, stand))
            moved = moved or not isinstance(action, Wait)
        self._quiet.note(None if moved else (tip, stand, found))
        return moved

    def _asked_first(self, intent: Intent, action: Action, head: int) -> Action:
        """What the contract would say, before gas is spent on it."""
        # ChainUnavailable where there is no such contract: a transaction to nobody would cost, and succeed.
        self._chain.is_nonce_used(intent.call.patient, intent.call.nonce)
        try:
            self._chain.estimate(intent.call)
        except ChainReverted as error:
            if error.name in _OURS:
                LOG.error("the contract refuses this hospital's relay", extra={"reason": error.name})
                self._not_before_ms[intent.pk] = self._sender.clock() + _OURS_WAIT_MS
                return Wait()
            done = _may_be_done(error.name, intent.call)
            landed = self._elsewhere(intent.call, head) if done else None
            if landed is not None:
                return Mined(landed)
            now_ms = self._sender.clock()
            since = self._doubted_ms.setdefault(intent.pk, now_ms)
            if done and now_ms - since < _DOUBT_MS:  # its event may be in a block of a moment ago
                return Wait()
            return Failed(Revert(name=error.name, arguments=error.arguments))
        return action

    def _submitted(self, intent: Intent, queue: Queue, *, nonce: int | None = None,
                   replaces: Attempt | None = None) -> Queue:
        try:
            return self._sender.submit(queue, kind="intent", job=intent.pk, call=intent.call, basis=b"", nonce=nonce,
                                       replaces=replaces, record=lambda tx: outbox.submitted(tx, intent.pk))
        except Moved:
            return queue  # withdrawn since it was read: nothing was sent

    def _carry_out(self, intent: Intent, action: Action, queue: Queue, *, head: int) -> Queue:
        pk = intent.pk
        match action:
            case Send(nonce=nonce):
                return self._submitted(intent, queue, nonce=nonce)
            case Replace(attempt=attempt):
                return self._submitted(intent, queue, replaces=attempt)
            case Mined(landing=at):
                self._database.transact(lambda connection: outbox.landed(
                    connection, pk, "mined", tx_hash=at.tx_hash, block_number=at.block_number,
                    block_hash=at.block_hash))
            case Finalised(landing=at):
                standing = self._standing(intent.call, at, head) if isinstance(intent.call, GrantCall) else None

                def finalise(connection: apsw.Connection) -> None:
                    outbox.landed(connection, pk, "final", tx_hash=at.tx_hash, block_number=at.block_number,
                                  block_hash=at.block_hash)
                    if isinstance(standing, Granted):
                        followed.granted_for_good(connection, standing)
                    elif isinstance(standing, bytes) and followed.revoked(connection, standing):
                        self._ended(connection)
                self._database.transact(finalise)
            case Unmined():
                LOG.warning("a reorg took a signed act back", extra={"kind": intent.kind})
                self._database.transact(lambda connection: outbox.submitted(connection, pk))
            case Failed(revert=revert):
                LOG.warning("a signed act was refused", extra={"kind": intent.kind, "reason": revert.name})

                def fail(connection: apsw.Connection) -> None:
                    refuse(connection, intent, revert.name)
                    if revert.name == "EpochMismatch":
                        followed.epoch_is(connection, intent.call.patient, int(str(revert.arguments[2])))
                    self._ended(connection)
                self._database.transact(fail)
                self._not_before_ms.pop(pk, None)
                self._doubted_ms.pop(pk, None)
            case Wait():
                pass
        return queue

    def _standing(self, call: GrantCall, at: Landing, head: int) -> Granted | bytes | None:
        """For a grant whose provisions the follower did not find when it passed its block, for they were signed here
        later: its event, or its id if it was revoked since. None: the follower found them."""
        name = _name(call)
        if not followed.is_pending(self._database.reader, name):
            return None
        granted: Granted | None = None
        for first in range(at.block_number, head + 1, _WINDOW):
            for event in self._chain.logs(first, min(head, first + _WINDOW - 1)):
                match event:
                    case Granted() if event.grant_id == name:
                        granted = event
                    case Revoked() if event.grant_id == name:
                        return name
                    case RevokedAll() if granted and event.patient == call.patient and event.epoch > granted.epoch:
                        return name
                    case _:
                        pass
        return granted

    def _elsewhere(self, call: SignedCall, head: int) -> Landing | None:
        """Where the act took effect by a transaction that is not ours."""
        below = head
        while below >= max(self._chain.contracts.from_block, head - _LOOK_BACK + 1):
            for event in reversed(self._chain.logs(max(0, below - _WINDOW + 1), below)):
                if _is(event, call):
                    block = self._chain.block(event.place.block_number)
                    if block is None or block.hash != event.place.block_hash:
                        return None
                    return Landing(tx_hash=event.place.tx_hash, block_number=block.number, block_hash=block.hash,
                                   block_time_s=block.time_s)
            below -= _WINDOW
        return None


def _may_be_done(error: str, call: SignedCall) -> bool:
    """A grant of another epoch is over, or early; that a revoke-all ends another epoch may be its own work."""
    return error in _DONE or (error == "EpochMismatch" and isinstance(call, RevokeAllCall))


def _behind(intent: Intent, found: Sequence[Intent]) -> bool:
    """What is of an epoch goes after the revoke-all that begins it. None waits for grants: those of the epoch it ends
    can land no more."""
    return not isinstance(intent.call, RevokeCall) and any(
        one.pk < intent.pk and isinstance(one.call, RevokeAllCall) and one.call.patient == intent.call.patient
        and one.recorded is None for one in found)


def refuse(connection: apsw.Connection, intent: Intent, error: str) -> None:
    """A refused grant's provisions wait no longer: the Consent tells why, and may be signed anew."""
    outbox.failed(connection, intent.pk, error)
    if isinstance(intent.call, GrantCall):
        followed.refused(connection, _name(intent.call))


def _name(call: GrantCall | RevokeCall) -> bytes:
    return grant_id(call.patient, call.grantee, call.terms_hash)


def _is(event: Event, call: SignedCall) -> bool:
    match event:
        case Granted():
            return isinstance(call, GrantCall) and event.grant_id == _name(call)
        case Revoked():
            return isinstance(call, RevokeCall) and event.grant_id == _name(call)
        case RevokedAll():
            return (isinstance(call, RevokeAllCall) and event.patient == call.patient
                    and event.epoch == call.epoch + 1)
        case _:
            return False
