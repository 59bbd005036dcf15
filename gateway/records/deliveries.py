"""Deliveries of Subscriptions, made by one process in the journal's own order.

Owns the loop, its bounds and its retries; refuses to send for whom no Grant stands any more: it is read anew for each
notification, and what it does not let the subscriber find at that moment leaves no trace, not even a number. Each event
is in the audit of its patients before a byte leaves. At least once and in order: the cursor moves when the endpoint has
acknowledged. What is told is gathered in ``subscription_events.py``, how it is sent stands in ``notifications.py``.
https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/notifications.html
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Final

from gateway.audit import Disclosure
from gateway.errors import InputRefused, Moved, Unauthenticated, Unavailable
from gateway.fhir.resource import parse
from gateway.fhir.subscriptions import Step, delivered, failed
from gateway.records import endpoints
from gateway.records.endpoints import EndpointRefused, Resolve, Sender
from gateway.records.gate import Caller
from gateway.records.jobs import Authority
from gateway.records.node import Node
from gateway.records.notifications import Notifications
from gateway.records.subscription_events import Subscribed, gather
from gateway.records.subscriptions import query_of, read_wanted, show
from gateway.store import journal, subscriptions
from gateway.store.sql import now_ms
from gateway.store.subscriptions import Standing

LOG = logging.getLogger("gateway.deliveries")

AT_ONCE: Final = 8
"""Most Subscriptions served at the same time."""
_POLL_S: Final = 0.25
_AFTER_FAULT_S: Final = 2.0
_NOTIFICATIONS_MAX: Final = 20
"""How many notifications one Subscription is sent before others have their turn."""
_KEPT_EVERY: Final = 2_000
"""How far a cursor may lie behind what was looked at in vain."""
_LOOK_MS: Final = 60_000
"""How long nobody looks whether a quiet Subscription still stands."""
_ATTEMPTS: Final = 8
_GONE: Final = "the client, user or token it was made with no longer stands"


class _Off(Exception):  # control flow: the reason goes into Subscription.error
    pass


class Deliveries:
    """Serves every Subscription of this hospital; one of it runs at a time."""

    def __init__(self, node: Node, authority: Authority, *, sender: Sender | None = None,
                 resolving: Resolve = endpoints.resolve, clock: Callable[[], int] = now_ms,
                 jitter: Callable[[], float] = random.random) -> None:
        self._node = node
        self._authority = authority
        self._notifications = Notifications(node, sender or Sender(), resolving, clock)
        self._clock = clock
        self._jitter = jitter
        self._looked_at: dict[str, tuple[Standing, int]] = {}
        self._contact_ms: dict[str, int] = {}
        self._beats: dict[str, int] = {}
        self._decision_seq = -1

    async def run(self, stop: threading.Event) -> None:
        """Until ``stop``; what is under way then is done again at the next start."""
        running: dict[str, asyncio.Task[int]] = {}
        while not stop.is_set():
            try:
                for at in self._due():
                    if at.id not in running and len(running) < AT_ONCE:
                        running[at.id] = asyncio.create_task(self._served(at))
            except Exception as error:
                LOG.error("subscriptions cannot be read", exc_info=error)
                await asyncio.sleep(_AFTER_FAULT_S)
            if running:
                await asyncio.wait(running.values(), timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
                running = {id_: task for id_, task in running.items() if not task.done()}
            else:
                await asyncio.sleep(_POLL_S)
        for task in running.values():
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)
        await self.close()

    async def step(self) -> int:
        """Serve everything that is due once; how many notifications were acknowledged."""
        return sum([await self._served(at) for at in self._due()])

    async def close(self) -> None:
        """Close the connections to endpoints."""
        await self._notifications.close()

    def _due(self) -> list[Standing]:
        connection, now = self._node.database.reader, self._clock()
        head, seq = journal.head_seq(connection), journal.decision_seq(connection)
        if seq != self._decision_seq:
            # Something was revoked: a token or a client, it may be.
            self._decision_seq = seq
            self._beats.clear()
        found = []
        for at in subscriptions.due(connection, now):
            beat = self._beats.get(at.id)
            if at.state != "active" or self._position(at) < head or (beat is not None and beat <= now):
                found.append(at)
            elif beat is None:
                found.append(at)  # not yet known to this process
        # Who waited longest comes first, so that a busy few leave the others their turn.
        return sorted(found, key=lambda at: self._contact_ms.get(at.id, 0))

    def _position(self, at: Standing) -> int:
        known = self._looked_at.get(at.id)
        return known[1] if known is not None and known[0] == at else at.cursor

    async def _served(self, at: Standing) -> int:
        """One Subscription's turn. No error but a stop leaves it."""
        count = 0
        try:
            for _ in range(_NOTIFICATIONS_MAX):
                sent, more = await self._attempt(at)
                count += sent
                fresh = subscriptions.find(self._node.database.reader, at.id) if more else None
                if fresh is None or fresh.state == "off" or fresh.next_ms > self._clock():
                    break
                at = fresh
        except _Off as ended:
            await self._stored(at, Step("off", at.failures, self._clock()), str(ended))
        except Unavailable as error:
            await self._failed(at, str(error))
        except Exception as error:
            LOG.error("a notification cannot be made", exc_info=error)
            await self._failed(at, "the notification cannot be made")
        return count

    async def _attempt(self, at: Standing) -> tuple[int, bool]:
        """Send the next notification: how many were acknowledged, and whether more may wait. Raises _Off, Unavailable.

        Made anew each time a revocation overtakes it.
        """
        asked = await self._asked(at)
        if asked is None:
            return 0, False
        if at.state == "requested":
            await self._notifications.shake_hands(asked, await self._address(asked))
            await self._stored(at, delivered(at.state, self._clock()), None)
            return 1, True
        for _ in range(_ATTEMPTS):
            caller = self._caller(at)
            batch = await asyncio.to_thread(gather, self._node, caller, asked, self._position(at))
            if not batch.events:
                await self._looked(at, batch.cursor)
                return await self._heartbeat(asked), False
            address = await self._address(asked)
            try:
                await self._node.disclosures.join(Disclosure(caller.seq, batch.audit))
            except Moved:
                continue
            await self._notifications.notify(asked, address, batch.events)
            done = delivered(at.state, self._clock())
            await self._stored(at, done, None, cursor=batch.cursor, events=batch.seqs)
            return 1, True
        return 0, False

    def _caller(self, at: Standing) -> Caller:
        """Whom the Subscription acts for. Raises _Off where nobody stands behind it any more."""
        until_ms = subscriptions.mandate_until_ms(self._node.database.reader, at.user)
        if until_ms is not None and until_ms <= self._clock():
            raise _Off("the mandate it was made under has ended")
        try:
            return self._authority(at.token, outlives=True)
        except Unauthenticated as error:
            raise _Off(_GONE) from error

    async def _asked(self, at: Standing) -> Subscribed | None:
        """The Subscription as stored; None where it is gone. Raises _Off, Unavailable (no block)."""
        self._caller(at)
        connection = self._node.database.reader
        row = journal.current(connection, "Subscription", at.id)
        if row is None or row.deleted:
            await asyncio.to_thread(self._node.database.transact, lambda tx: subscriptions.forget(tx, at.id))
            return None
        opened = await asyncio.to_thread(lambda: self._node.versions.open(self._node.database.reader, row))
        resource = parse(opened.stored)
        try:
            wanted = read_wanted(self._node, resource)
            query = query_of(self._node, wanted)
            url = endpoints.check(self._node.settings.subscription_hosts, wanted.endpoint)
        except InputRefused as error:
            raise _Off(str(error)) from error
        if wanted.end_ms is not None and wanted.end_ms <= self._clock():
            raise _Off("its end has come")
        return Subscribed(at, wanted, query, url)

    async def _address(self, asked: Subscribed) -> str:
        """The address to send to. Raises _Off for an internal one, Unavailable without any."""
        try:
            return await self._notifications.address(asked)
        except EndpointRefused as error:
            raise _Off(str(error)) from error

    async def _heartbeat(self, asked: Subscribed) -> int:
        """Send one where nothing was sent for its period; how many."""
        period_s, id_, now = asked.wanted.heartbeat_s, asked.at.id, self._clock()
        if period_s is None and asked.at.state == "active":
            self._beats[id_] = now + _LOOK_MS
            return 0
        last = self._contact_ms.setdefault(id_, now)
        if period_s is not None and asked.at.state == "active" and now < last + period_s * 1000:
            self._beats[id_] = min(last + period_s * 1000, now + _LOOK_MS)
            return 0
        # An endpoint that failed is asked again, where there is something to ask it with.
        if asked.wanted.topic is not None:
            await self._notifications.beat(asked, await self._address(asked))
        if asked.at.failures or asked.at.state != "active":
            await self._stored(asked.at, delivered(asked.at.state, self._clock()), None)
        self._contact_ms[id_] = self._clock()
        return 1 if asked.wanted.topic is not None else 0

    async def _looked(self, at: Standing, cursor: int) -> None:
        """Nothing to tell up to ``cursor``: remembered, and stored now and then."""
        if cursor - at.cursor >= _KEPT_EVERY:
            step = Step(at.state, at.failures, at.next_ms)
            if await asyncio.to_thread(self._node.database.transact, lambda tx: subscriptions.move(
                    tx, at, state=step.state, cursor=cursor, failures=step.failures, next_ms=step.next_ms)):
                self._looked_at.pop(at.id, None)
                return
        self._looked_at[at.id] = (at, cursor)

    async def _failed(self, at: Standing, why: str) -> None:
        step = failed(at.state, at.failures, self._clock(), self._jitter())
        LOG.info("notification failed", extra={"state": step.state, "failures": step.failures})
        error = why if step.state in ("error", "off") else None
        if step.state == "off":
            error = f"switched off after {step.failures} attempts in vain: {why}"
        await self._stored(at, step, error)

    async def _stored(self, at: Standing, step: Step, error: str | None, *, cursor: int | None = None,
                      events: Sequence[int] = ()) -> None:
        """Move the row, and show a new state in a new version. Another's move wins. No error leaves it."""
        place = at.cursor if cursor is None else cursor

        def work() -> bool:
            if step.state == at.state and (step.state != "error" or error is None):
                return self._node.database.transact(lambda tx: subscriptions.move(
                    tx, at, state=step.state, cursor=place, failures=step.failures, next_ms=step.next_ms,
                    events=events))
            return show(self._node, at, step.state, error, cursor=place, failures=step.failures,
                        next_ms=step.next_ms, events=events)
        try:
            moved = await asyncio.to_thread(work)
        except Exception as fault:
            LOG.error("a subscription cannot be moved on", exc_info=fault)
            await asyncio.sleep(_AFTER_FAULT_S)
            return
        if moved:
            if step.failures == 0:
                self._contact_ms[at.id] = self._clock()
            self._looked_at.pop(at.id, None)
            self._beats.pop(at.id, None)
