"""The watch over connections: what counts as a client's time, and what does not."""

from __future__ import annotations

from typing import Any

from gateway.config import load_settings
from gateway.web.connection import bounded


class Loop:
    """A loop whose time is told to it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.due: list[Any] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, work: Any, *arguments: Any) -> None:
        self.due.append((self.now_s + delay_s, work, arguments))

    def pass_on(self, seconds: float) -> None:
        """Let time pass, with what falls due in it."""
        end = self.now_s + seconds
        while self.due and self.due[0][0] <= end:
            at, work, arguments = self.due.pop(0)
            self.now_s = max(self.now_s, at)
            work(*arguments)
        self.now_s = end

    def stall(self, seconds: float) -> None:
        """Let time pass with nothing done, as where the process got no turn."""
        self.now_s += seconds


class Silent:
    """A connection that sends nothing."""

    def __init__(self, watch: Any, loop: Loop) -> None:
        self.loop, self.since_s, self.ended = loop, watch.clock_s, False
        self.watch = watch

    def look(self, now_s: float) -> None:
        self.ended = self.ended or now_s - self.since_s > self.watch.slow_s


def test_a_stall_of_this_process_is_no_slowness_of_the_client() -> None:
    watch, loop = bounded(load_settings({"GATEWAY_SLOW_TIMEOUT_S": "10"})).watch, Loop()
    connection = Silent(watch, loop)
    watch.add(connection)  # type: ignore[arg-type]  # what it looks at
    loop.stall(60)
    loop.pass_on(1)
    assert not connection.ended
    loop.pass_on(20)
    assert connection.ended
