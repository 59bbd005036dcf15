"""One HTTP/1.1 connection, bounded: what uvicorn's parser leaves without a limit gets one.

Owns the size of a request's head, the time a client may take over head and body, how long an answer may wait to be
taken, and how many connections a worker holds; refuses with a bare status, for what was asked of which door may not be
known yet. One look a second at all connections, so that a request costs no timer.
https://www.rfc-editor.org/rfc/rfc9112, https://www.rfc-editor.org/rfc/rfc9110#status.408
"""

from __future__ import annotations

import asyncio
import http
import logging
from typing import Any, Final

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.web.errors import refusal
from gateway.web.headers import Header, completed, of_others

LOG = logging.getLogger("gateway.connection")

MAX_URL_BYTES: Final = 32_768
MAX_HEAD_BYTES: Final = 65_536
MAX_HEADERS: Final = 100
_LOOK_S: Final = 1.0


class _Watch:
    """The connections of one worker, looked at together."""

    def __init__(self, settings: Settings) -> None:
        self.most = settings.max_connections
        self.slow_s = float(settings.slow_timeout_s)
        self.least_bytes = settings.slow_bytes_per_s * settings.slow_timeout_s
        self.headers: list[Header] = [*completed([], of_others(settings)), (b"content-length", b"0"),
                                      (b"connection", b"close")]
        self.clock_s = 0.0
        """Time in which clients could be heard: of a stall of this process two looks' worth counts."""
        self._every_s = min(_LOOK_S, self.slow_s / 4)
        self._looked_s = 0.0
        self._open: set[Bounded] = set()
        self._looking = False

    def add(self, connection: Bounded) -> None:
        self._open.add(connection)
        if not self._looking:
            self._looking, self._looked_s = True, connection.loop.time()
            connection.loop.call_later(self._every_s, self._look, connection.loop)

    def discard(self, connection: Bounded) -> None:
        self._open.discard(connection)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        self.clock_s += min(now_s - self._looked_s, 2 * self._every_s)
        self._looked_s = now_s
        for connection in list(self._open):
            connection.look(self.clock_s)
        self._looking = bool(self._open)
        if self._looking:
            loop.call_later(self._every_s, self._look, loop)


class Bounded(HttpToolsProtocol):
    """See the module. ``bounded`` makes the class a worker's connections are of."""

    watch: _Watch

    def __init__(self, *arguments: Any, **named: Any) -> None:  # Any: uvicorn's own constructor
        super().__init__(*arguments, **named)
        self._head = True  # whether a request's head is being read, or waited for
        self._head_bytes = 0
        self._head_since: float | None = self.watch.clock_s
        self._body_since: float | None = None
        self._body_bytes = 0
        self._left_since: float | None = None
        self._left_bytes = 0
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.watch.add(self)
        if len(self.connections) > self.watch.most:
            self.app = _full

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head and self._head_bytes:
            if self._head_since is None:
                self._head_since = self.watch.clock_s
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431)

    def on_headers_complete(self) -> None:
        self._head, self._head_bytes, self._head_since = False, 0, None
        if self._refused:
            return
        if len(self.url) > MAX_URL_BYTES:
            self._refuse(414)
            return
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431)
            return
        # RFC 9112 section 3.2: one Host, or proxies and we could mean different sites.
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            self._refuse(400)
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._head, self._body_since, self._body_bytes = True, None, 0
        if not self._refused:
            super().on_message_complete()

    def resume_writing(self) -> None:
        self._left_since = None  # what was written has gone far enough
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What the parser cannot read."""
        self._refuse(400)

    def look(self, now: float) -> None:
        """Once a second: end it where the other side takes too long."""
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            return
        watch = self.watch
        if self._head_since is not None and now - self._head_since > watch.slow_s:
            self._refuse(408)
        elif not self._head and not self._refused:
            self._look_at_body(now)
        self._look_at_answer(now)

    def _look_at_body(self, now: float) -> None:
        if self._body_since is None or self.flow.read_paused:  # begins now, or waits for us
            self._body_since, self._body_bytes = now, 0
        elif now - self._body_since > self.watch.slow_s:
            if self._body_bytes < self.watch.least_bytes:
                self._refuse(408)
            self._body_since, self._body_bytes = now, 0

    def _look_at_answer(self, now: float) -> None:
        left = self.transport.get_write_buffer_size()
        if not left:
            self._left_since = None
        elif self._left_since is None:
            self._left_since, self._left_bytes = now, left
        elif now - self._left_since > self.watch.slow_s:
            if self._left_bytes - left < self.watch.least_bytes:
                LOG.info("connection ended", extra={"why": "the answer is not taken"})
                self.transport.abort()
            self._left_since, self._left_bytes = now, left

    def _refuse(self, status: int) -> None:
        """Answer with a bare status where nothing was answered yet, and hang up."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        LOG.info("connection ended", extra={"status": status})
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            lines = [b"HTTP/1.1 %d %s" % (status, http.HTTPStatus(status).phrase.encode()),
                     *(name + b": " + value for name, value in self.watch.headers)]
            self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        self.transport.close()


def bounded(settings: Settings) -> type[Bounded]:
    """The class of one worker's connections, for ``uvicorn.Config(http=...)``."""
    return type("BoundedConnection", (Bounded,), {"watch": _Watch(settings)})


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Too many connections are open: try again in a moment."""
    answer = refusal(Unavailable("too many connections are open here: try again in a moment"))
    await send({"type": "http.response.start", "status": answer.status, "headers": [
        (b"content-type", answer.media_type.encode()), (b"content-length", str(len(answer.body)).encode()),
        (b"retry-after", b"2"), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": answer.body})
