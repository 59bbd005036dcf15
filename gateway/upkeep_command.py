"""``gateway rebuild`` and ``gateway fsck``: the index made anew, and everything stored held against itself.

Owns the lock of a rebuild, the progress bars and what is printed; refuses to rebuild beside a running gateway, whose
searches would find a part and take it for the whole. Exit codes: 0 whole, 1 something is wrong (said line by line).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Final

from tqdm import tqdm  # type: ignore[import-untyped]  # ships no types

from gateway import app
from gateway.config import Settings
from gateway.errors import Misconfigured
from gateway.ledger.deployment import read_deployment
from gateway.records import reindexing, soundness
from gateway.records.node import Node

_SHOWN_MAX: Final = 50
_LOCKS: Final = ("serve.lock", "import.lock")


def rebuild(settings: Settings) -> int:
    """Make every index row anew; the exit code. Raises Misconfigured beside a running gateway or import."""
    with _alone(settings), _node(settings) as node, _bar("rebuild") as progress:
        found = reindexing.rebuild(node, progress=progress)
    erased = len(found.holes) - len(found.broken)
    print(f"{found.versions - len(found.holes)} versions indexed"
          + (f", {erased} erased ones left out" if erased else ""))
    for hole in found.broken[:_SHOWN_MAX]:
        print(f"WRONG  version {hole.row.seq}: {hole.reason}")
    return int(bool(found.broken))


def fsck(settings: Settings) -> int:
    """Examine everything; the exit code."""
    with _node(settings) as node, _bar("fsck") as progress:
        found = soundness.examine(node, progress=progress)
    print(f"{found.versions} versions, {found.erased} of them erased; {found.batches} batches; "
          f"{found.audit_rows} audit rows")
    for fault in found.faults[:_SHOWN_MAX]:
        print(f"WRONG  {fault.part:<8} {fault.where}: {fault.what}")
    left = len(found.faults) - _SHOWN_MAX + found.more
    if left > 0:
        print(f"and {left} more")
    if not found.faults:
        print("nothing is wrong")
    return int(bool(found.faults))


@contextlib.contextmanager
def _node(settings: Settings) -> Iterator[Node]:
    read_deployment(settings)
    ring = app.open_ring(settings)
    database = app.open_database(settings, ring)
    try:
        yield app.build_node(settings, ring, database, whole=False)
    finally:
        database.close()
        ring.close()


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold what a running gateway and an import hold."""
    with contextlib.ExitStack() as held:
        for name in _LOCKS:
            descriptor = os.open(settings.data_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Misconfigured(f"a gateway or an import runs on {settings.data_dir}: stop it first, or let it "
                                    "reindex beside its work with $reindex") from None
        yield


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], object]]:
    with tqdm(total=0, unit="version", disable=None, desc=name, leave=False) as bar:
        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
