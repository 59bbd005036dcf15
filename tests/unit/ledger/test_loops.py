"""The loops: they start, go on after a fault, wake one another, end when told, and run once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from gateway.config import Settings, load_settings
from gateway.crypto.keys import KeyRing
from gateway.errors import ChainUnavailable, Misconfigured
from gateway.ledger import loops as module
from gateway.ledger.loops import Loop, only_one, run_loops
from gateway.store import outbox
from gateway.store.sql import Database, now_ms
from tests.simulators.chain import OPERATOR
from tests.unit.ledger.ledger_world import World, grant, ring_at
from tests.unit.ledger.test_anchor import check_exactly_once


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[KeyRing]:
    ring = ring_at(tmp_path)
    yield ring
    ring.close()


def settings(tmp_path: Path) -> Settings:
    return load_settings({"GATEWAY_DATA_DIR": str(tmp_path), "GATEWAY_BATCH_INTERVAL_S": "1"})


def eventually(holds: Callable[[], bool], *, within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_the_ledger_process_anchors_relays_sweeps_and_ends_when_told(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, embedded_blobs=True)
    stop, swept = threading.Event(), threading.Event()

    def sweep(_: apsw.Connection, at_ms: int) -> None:
        assert abs(at_ms - now_ms()) < 60_000
        swept.set()

    thread = threading.Thread(target=run_loops, kwargs={
        "settings": settings(tmp_path), "database": world.database, "ring": ring, "blobs": world.blobs,
        "chain": world.chain, "custodian": OPERATOR, "stop": stop, "sweeps": (sweep,)})
    world.chain.fail_next(ChainUnavailable("at start"), times=3)
    thread.start()
    try:
        world.write(3, 3)
        Database.transact(world.database, lambda connection: outbox.enqueue(
            connection, kind="grant", consent="c1", call=grant(), created_ms=now_ms()))
        eventually(lambda: world.states("batch") == ["final"] and world.states("intent") == ["final"])
        eventually(swept.is_set)
        with pytest.raises(Misconfigured, match="another ledger process"):
            impatient(settings(tmp_path))
    finally:
        stop.set()
        thread.join(15)
    assert not thread.is_alive()
    check_exactly_once(world)
    world.database.close()


def impatient(found: Settings) -> None:
    """Ask for the lock without waiting for its holder to end."""
    patience, module._JOIN_S = module._JOIN_S, 0.0  # type: ignore[misc]  # a test's patience
    try:
        with only_one(found.data_dir / "ledger.lock"):
            raise AssertionError("two ledger processes run")
    finally:
        module._JOIN_S = patience  # type: ignore[misc]  # put back


def test_no_error_ends_a_loop_and_what_moved_wakes_the_next() -> None:
    stop = threading.Event()
    steps: list[str] = []

    def failing() -> bool:
        steps.append("first")
        if len(steps) < 3:
            raise RuntimeError("a fault of ours")
        return True

    def woken() -> bool:
        steps.append("second")
        return False

    loops = {loop.name: loop for loop in (
        Loop(name="first", step=failing, every_s=60, wakes=("second",)), Loop(name="second", step=woken, every_s=60))}
    threads = [threading.Thread(target=loop.run, args=(stop, loops), daemon=True) for loop in loops.values()]
    for thread in threads:
        thread.start()
    eventually(lambda: steps.count("first") > 2 and steps.count("second") > 1)
    stop.set()
    for loop in loops.values():
        loop.awake.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
