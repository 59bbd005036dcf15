"""The follower: what the chain's events mean for who may read, and whether the chain is alive.

Owns the walk from the last remembered block to the head, back to the fork where a reorg is, and the heartbeat; refuses
to make a grant count before its block has its confirmations, and to undo a denial, whatever becomes of its block.
``README.md``, Paths: Grant, revoke; invariant 6.

It begins at the block the contracts were deployed in: nothing older can hold an event of theirs.

Two marks move over the chain. *Seen*: a revocation counts there. *Final*, ``confirmations`` blocks behind: a grant
counts there. Nothing between them is kept: the final mark reads the same blocks a second time, as they are by then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import apsw

from gateway.ledger.chain import Block, Chain
from gateway.ledger.events import Event, Granted, Revoked, RevokedAll
from gateway.store import followed
from gateway.store.followed import Cursor
from gateway.store.sql import Database, now_ms

LOG = logging.getLogger(__name__)
_WINDOW: Final = 5_000
_FRESH_MS: Final = 10_000
"""How long a heartbeat is good for; it is renewed when half of it is over."""


def nothing_else(connection: apsw.Connection) -> None:
    """Where nothing hangs on provisions."""


class Follower:
    """Follows one chain into one database. ``max_head_age_s`` None: the embedded chain, whose head may be any age."""

    def __init__(self, *, database: Database, chain: Chain, confirmations: int, max_head_age_s: int | None,
                 ended: Callable[[apsw.Connection], object] = nothing_else,
                 clock: Callable[[], int] = now_ms) -> None:
        """``ended``: what else ends with the provisions a block ended, in the same commit."""
        self._database = database
        self._chain = chain
        self._confirmations = confirmations
        self._max_head_age_ms = None if max_head_age_s is None else max_head_age_s * 1000
        self._clock = clock
        self._ended = ended
        self._beat_ms = 0
        self._stalled = False

    def poll(self) -> bool:
        """One step towards the head; whether something moved, and asking again at once makes sense.

        Raises ChainUnavailable: then there is no heartbeat.
        """
        head = self._chain.head()
        stand = followed.cursor(self._database.reader, before=self._chain.contracts.from_block - 1)
        if stand.seen == head.number and stand.seen_hash == head.hash:
            self._beat(head)
            return False
        if stand.seen_hash and not self._canonical(stand.seen, stand.seen_hash):
            self._go_back()
            return True
        if not stand.seen_hash and stand.seen >= head.number:
            return False  # the node has not come to the contracts yet
        if stand.seen >= head.number:  # the head that was asked for is already an old one
            return True
        return self._go_on(stand, head)

    def _canonical(self, number: int, hash_: bytes) -> bool:
        block = self._chain.block(number)
        return block is not None and block.hash == hash_

    def _go_back(self) -> None:
        """To the newest remembered block that still stands. It may lie below the fork: reading again is harmless."""
        fork = -1
        for number, hash_ in followed.remembered(self._database.reader):
            if self._canonical(number, hash_):
                fork = number
                break
        LOG.warning("the chain was reorganised", extra={"fork": fork})
        self._database.transact(lambda connection: followed.go_back(connection, fork))

    def _go_on(self, stand: Cursor, head: Block) -> bool:
        to = head
        if head.number - stand.seen > _WINDOW:
            found = self._chain.block(stand.seen + _WINDOW)
            if found is None:
                return True
            to = found
        events = self._chain.logs(stand.seen + 1, to.number)
        final = max(stand.final, min(to.number, head.number - self._confirmations))
        grants = self._finals(stand, final, events)
        if not self._canonical(to.number, to.hash) or (
                stand.seen_hash and not self._canonical(stand.seen, stand.seen_hash)):
            return True  # what was read may be of two chains: again
        caught_up = to.number == head.number
        now = self._clock()

        def apply(connection: apsw.Connection) -> None:
            _apply(connection, events, grants)
            if any(isinstance(event, Revoked | RevokedAll) for event in events):
                self._ended(connection)
            followed.moved_on(connection, to, final)
            if caught_up:
                followed.beat(connection, head, now_ms=now, fresh_until_ms=self._fresh_until(head, now))

        self._database.transact(apply)
        if caught_up:
            self._beat_ms = now
        return True

    def _finals(self, stand: Cursor, final: int, seen_now: Sequence[Event]) -> tuple[Granted, ...]:
        """The grants in the blocks that become final."""
        events: Iterable[Event] = seen_now
        if stand.final < final and stand.final < stand.seen:
            events = self._chain.logs(stand.final + 1, final)
        return tuple(event for event in events
                     if isinstance(event, Granted) and stand.final < event.place.block_number <= final)

    def _beat(self, head: Block) -> None:
        now = self._clock()
        if now - self._beat_ms < _FRESH_MS // 2 and now >= self._beat_ms:
            return
        fresh_until = self._fresh_until(head, now)
        if fresh_until is None and self._stalled:
            return  # said already
        self._stalled = fresh_until is None
        self._database.transact(
            lambda connection: followed.beat(connection, head, now_ms=now, fresh_until_ms=fresh_until))
        self._beat_ms = now

    def _fresh_until(self, head: Block, now: int) -> int | None:
        if self._max_head_age_ms is not None and now - head.time_s * 1000 > self._max_head_age_ms:
            return None
        return now + _FRESH_MS


def _apply(connection: apsw.Connection, events: Sequence[Event], grants: Sequence[Granted]) -> None:
    """Revocations of any block first noted, then grants made final: a grant revoked since never counts."""
    for event in events:
        match event:
            case Granted():
                followed.granted(connection, event)
            case Revoked():
                followed.revoked(connection, event.grant_id)
            case RevokedAll():
                followed.revoked_all(connection, event.patient, event.epoch)
            case _:
                pass
    for grant in grants:
        followed.granted_for_good(connection, grant)
