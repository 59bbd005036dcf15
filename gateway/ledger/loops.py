"""The ledger process's loops: close, push, anchor, relay, follow, sweep.

Owns when each step runs, its retry (in this one place: capped, jittered) and that only one process of a hospital does
it; refuses to keep anything between steps: every step goes on from stored state. The steps that speak to the chain take
turns, so that they share one queue of nonces and one view of the head.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apsw

from gateway.config import Settings
from gateway.crypto.keys import KeyRing
from gateway.errors import GatewayError, Misconfigured, Unavailable
from gateway.ledger.address import address
from gateway.ledger.anchor import Anchorer
from gateway.ledger.chain import Chain
from gateway.ledger.closing import Closer
from gateway.ledger.follower import Follower, nothing_else
from gateway.ledger.job import Policy
from gateway.ledger.relay import Relay
from gateway.ledger.sender import Sender
from gateway.store import attempts, journal
from gateway.store.blobs import BlobBackend
from gateway.store.sql import Database, now_ms

LOG = logging.getLogger(__name__)
_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 15.0
_JOIN_S: Final = 10.0
_BUSY_S: Final = 0.02
_IDLE_S: Final = 0.2
_FOLLOW_S: Final = 0.5
"""With the relay's, under a second: a revocation counts everywhere within one block and that."""
_SWEEP_S: Final = 60.0
_SWEEP_AT_ONCE: Final = 500

Sweep = Callable[[apsw.Connection, int], object]
"""Work of one transaction on a clock in milliseconds."""
Ended = Callable[[apsw.Connection], object]


@dataclass(eq=False, slots=True, kw_only=True)
class Loop:
    """``step`` every ``every_s``, at once again while it says that something moved; then it wakes ``wakes``."""

    name: str
    step: Callable[[], bool]
    every_s: float
    turn: threading.Lock | None = None
    wakes: tuple[str, ...] = ()
    awake: threading.Event = field(default_factory=threading.Event)

    def run(self, stop: threading.Event, others: dict[str, Loop]) -> None:
        """Until ``stop``. No error ends it."""
        failures = 0
        while not stop.is_set():
            self.awake.clear()
            try:
                with self.turn or nullcontext():
                    moved = self.step()
            except Exception as error:
                failures += 1
                self._tell(error, failures)
                stop.wait(retry_s(failures))
                continue
            if failures:
                LOG.info("loop goes on", extra={"loop": self.name})
            failures = 0
            for name in self.wakes if moved else ():
                others[name].awake.set()
            if moved:
                stop.wait(_BUSY_S)
            else:
                self.awake.wait(self.every_s)

    def _tell(self, error: Exception, failures: int) -> None:
        expected = isinstance(error, Unavailable)
        if failures == 1 or not expected:
            LOG.log(logging.WARNING if isinstance(error, GatewayError) else logging.ERROR, "loop failed, will retry",
                    exc_info=None if expected else error,
                    extra={"loop": self.name, "reason": type(error).__name__, "failures": failures})


def retry_s(failures: int) -> float:
    """How long to wait after so many failures in a row: doubling, capped, and half of it at random."""
    most = min(_RETRY_MAX_S, _RETRY_FIRST_S * 2.0 ** min(failures - 1, 16))
    return most * (0.5 + random.random() / 2)  # noqa: S311  # jitter, not a secret


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the file lock of the one ledger process; it goes with the process. Raises Misconfigured when it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _JOIN_S  # the one before may still be ending
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Misconfigured(f"{path} is held: another ledger process runs on this data folder") from error
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def loops_of(*, settings: Settings, database: Database, ring: KeyRing, blobs: BlobBackend, chain: Chain,
             custodian: str, sweeps: Sequence[Sweep] = (), ended: Ended = nothing_else) -> dict[str, Loop]:
    """The loops by name, not yet running."""
    embedded = not settings.chain_rpc
    turn = threading.Lock()
    closer = Closer(database=database, ring=ring, blobs=blobs, custodian=custodian,
                    interval_s=settings.batch_interval_s, batch_max=settings.batch_max)
    sender = Sender(database=database, chain=chain, policy=Policy(confirmations=settings.chain_confirmations))
    anchorer = Anchorer(database=database, chain=chain, custodian=address(custodian), sender=sender)
    relay = Relay(database=database, chain=chain, sender=sender, ended=ended)
    follower = Follower(database=database, chain=chain, confirmations=settings.chain_confirmations,
                        max_head_age_s=None if embedded else settings.chain_max_head_age_s, ended=ended)

    def sweep() -> bool:
        now = now_ms()
        for one in (attempts.sweep, *sweeps):
            database.transact(lambda connection, one=one: one(connection, now))  # type: ignore[misc]  # bound here
        before_ms = now - settings.page_link_ttl_s * 1000
        old = journal.superseded_before(database.reader, before_ms, limit=_SWEEP_AT_ONCE)
        if old:
            database.transact(lambda connection: journal.drop_rows(connection, old))
        return len(old) == _SWEEP_AT_ONCE

    return {loop.name: loop for loop in (
        Loop(name="follow", step=follower.poll, every_s=_FOLLOW_S, turn=turn, wakes=("anchor", "relay")),
        Loop(name="relay", step=relay.poll, every_s=_IDLE_S, turn=turn, wakes=("follow",)),
        Loop(name="close", step=closer.close_if_due, every_s=min(0.5, settings.batch_interval_s), wakes=("push",)),
        Loop(name="push", step=closer.push, every_s=1.0, wakes=("anchor",)),
        Loop(name="anchor", step=anchorer.poll, every_s=_IDLE_S, turn=turn, wakes=("follow",)),
        Loop(name="sweep", step=sweep, every_s=_SWEEP_S),
    )}


def run_loops(*, settings: Settings, database: Database, ring: KeyRing, blobs: BlobBackend, chain: Chain,
              custodian: str, stop: threading.Event, sweeps: Sequence[Sweep] = (), ended: Ended = nothing_else) -> None:
    """Run every loop until ``stop``; returns once they ended.

    ``sweeps`` are further deletions to run each minute, such as ``smart.tokens.sweep``; ``ended`` is what else ends
    with provisions that the chain ended, in the same commit. Raises Misconfigured when
    another process runs them on the same data.
    """
    with only_one(settings.data_dir / "ledger.lock"):
        loops = loops_of(settings=settings, database=database, ring=ring, blobs=blobs, chain=chain,
                         custodian=custodian, sweeps=sweeps, ended=ended)
        threads = [threading.Thread(target=loop.run, args=(stop, loops), name=loop.name, daemon=True)
                   for loop in loops.values()]
        for thread in threads:
            thread.start()
        stop.wait()
        for loop in loops.values():
            loop.awake.set()
        deadline = time.monotonic() + _JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
