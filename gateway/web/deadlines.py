"""How long a request's work may take.

Owns the clock of one worker's running reads; refuses to let one go on beyond its limit: it is cancelled where it waits.
What a thread of it or a statement has begun is finished, unseen. Writes are never cut short: whoever asked could not
know what became of them. One look a second at all of them costs a request two dictionary steps, where a timer for each
would cost more than the rest of a limit.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any


class Deadlines:
    """The running requests of one event loop, and since when."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since: dict[asyncio.Task[Any], float] = {}
        self._ended: set[asyncio.Task[Any]] = set()
        self._looking = False

    def begin(self) -> asyncio.Task[Any]:
        """Count the running task from now on; give what comes back to ``end``."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in a task
        self._since[task] = time.monotonic()
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(self._pause_s, self._look)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """It is done, in whatever way."""
        self._since.pop(task, None)

    def was_ended(self) -> bool:
        """Whether the running task was cancelled for its time, told once; then it may go on."""
        task = asyncio.current_task()
        if task is None or task not in self._ended:
            return False
        self._ended.discard(task)
        task.uncancel()
        return True

    @property
    def _pause_s(self) -> float:
        return min(1.0, self.limit_s / 4)

    def _look(self) -> None:
        now = time.monotonic()
        for task, since in list(self._since.items()):
            if now - since > self.limit_s:
                del self._since[task]
                if task.cancel():
                    self._ended.add(task)
        self._looking = bool(self._since)
        if self._looking:
            asyncio.get_running_loop().call_later(self._pause_s, self._look)
