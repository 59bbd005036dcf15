"""Where gathering runs, and how long: what is short on the event loop, the rest in a thread.

Owns the bounds of both; refuses to hold the loop longer than them. A thread beside the loop trades the interpreter lock
with it at every block it opens: twice the work of the same done on the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import apsw

from gateway.errors import TooCostly

T = TypeVar("T")

INLINE_S: Final = 0.01
"""How long statements may hold the event loop."""
INLINE_MATCHES: Final = 100
"""Most resources decided and opened on the event loop."""
INLINE_BYTES: Final = 262_144
"""Most bytes parsed on the event loop."""
INLINE_UNSEALED: Final = 1_048_576
"""Most bytes unsealed on the event loop: some 5 ms."""
STATEMENTS_S: Final = 20.0
"""How long statements may take at all."""
_STEPS: Final = 5_000
"""SQLite's steps between two looks at the clock: well below a millisecond."""


class Elsewhere(Exception):  # control flow: this takes a thread
    pass


class Pace:
    """What one piece of work may still do where it runs."""

    def __init__(self, *, on_loop: bool) -> None:
        self.on_loop = on_loop
        self._matches, self._bytes, self._unsealed = INLINE_MATCHES, INLINE_BYTES, INLINE_UNSEALED

    @property
    def room(self) -> int | None:
        """How many bytes may still be unsealed; None: as many as there are."""
        return self._unsealed if self.on_loop else None

    def open(self, count: int) -> None:
        """About to decide and open so many. Raises Elsewhere."""
        self._matches -= count
        if self.on_loop and self._matches < 0:
            raise Elsewhere

    def unseal(self, size: int) -> None:
        """So many bytes were unsealed, within the room there was."""
        self._unsealed -= size

    def parse(self, size: int) -> None:
        """About to parse so many bytes. Raises Elsewhere."""
        self._bytes -= size
        if self.on_loop and self._bytes < 0:
            raise Elsewhere

    @contextmanager
    def statements(self, connection: apsw.Connection) -> Iterator[None]:
        """Stop the statements when their time is over. Raises Elsewhere on the event loop, else TooCostly."""
        end = time.perf_counter() + (INLINE_S if self.on_loop else STATEMENTS_S)
        try:
            with _stopped(connection, end):
                yield
        except apsw.InterruptError as error:
            if self.on_loop:
                raise Elsewhere from error
            raise _too_long() from error


@contextmanager
def until(connection: apsw.Connection, end: float) -> Iterator[None]:
    """Stop the statements within once ``time.perf_counter()`` is past ``end``. Raises TooCostly."""
    try:
        with _stopped(connection, end):
            yield
    except apsw.InterruptError as error:
        if time.perf_counter() <= end:
            raise  # stopped by who has less time
        raise _too_long() from error


@contextmanager
def _stopped(connection: apsw.Connection, end: float) -> Iterator[None]:
    mark = object()
    connection.set_progress_handler(lambda: time.perf_counter() > end, _STEPS, id=mark)
    try:
        yield
    finally:
        connection.set_progress_handler(None, id=mark)


def _too_long() -> TooCostly:
    return TooCostly(f"it takes longer than {STATEMENTS_S:.0f} s to find; narrow it", code="too-costly")


async def short_first(work: Callable[[Pace], T], *, short: bool) -> T:
    """``work`` on the event loop where it is ``short`` and turns out to be, else in a thread."""
    if short:
        try:
            return work(Pace(on_loop=True))
        except Elsewhere:
            pass
    return await asyncio.to_thread(work, Pace(on_loop=False))
