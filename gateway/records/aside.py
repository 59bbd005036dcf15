"""What is done aside: work on a large resource in a thread, so that no request waits for another's.

Owns telling what is large, and where its commit runs; a small resource stays on the event loop, where a write is
quickest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

import apsw

from gateway.records.node import Node
from gateway.store.journal import NewVersion

T = TypeVar("T")
VALUES: Final = 400
"""Work on more values than these takes longer than a moment: 20 ms, indexed."""
BYTES: Final = 65_536
_TEXT_PER_VALUE: Final = BYTES // VALUES
_SLICE_S: Final = 0.01


def large(value: Any) -> bool:
    """Whether a JSON value is worth a thread; looks no further than that takes."""
    left = VALUES
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict or type(item) is list:
            left -= len(item)
            if left < 0:
                return True
            waiting.extend(item.values() if type(item) is dict else item)
        elif type(item) is str:
            left -= len(item) // _TEXT_PER_VALUE
    return left < 0


def large_version(new: NewVersion | None) -> bool:
    """Whether storing a version is worth a thread."""
    if new is None:
        return False
    rows = (new.rows, *[inner for _, inner in new.rows.contained])
    return len(new.envelope) > BYTES or sum(
        len(one.hashes) + len(one.numbers) + len(one.dates) + len(one.references) for one in rows) > VALUES


async def done(apart: bool, work: Callable[[], T]) -> T:
    """What ``work`` gives, in a thread where it is ``apart``."""
    return await asyncio.to_thread(work) if apart else work()


async def committed(node: Node, apart: bool, work: Callable[[apsw.Connection], None]) -> None:
    """One durable commit: with those of others, or in a thread where it is ``apart``."""
    if apart:
        await asyncio.to_thread(node.database.transact, work)
    else:
        await node.commits.commit(work)


class Slices:
    """Gives others their turn in a long row of small works that may not wait for anything themselves."""

    def __init__(self) -> None:
        self._since = 0.0

    async def turn(self) -> None:
        """Call between two works."""
        now = asyncio.get_running_loop().time()
        if now - self._since > _SLICE_S:
            await asyncio.sleep(0)
            self._since = asyncio.get_running_loop().time()
