"""Which door a request goes to, and what the doors beside FHIR have in common.

Owns the way in of a worker: the FHIR door's hot path before any routing, the limits of strangers, the failures that all
workers count together, and the headers of every answer; refuses what comes too fast in the words of the door asked.
"""

from __future__ import annotations

import html
import logging
import math
from typing import Final

import orjson
from anyio.to_thread import run_sync
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.config import Settings
from gateway.errors import StoreBusy, Throttled
from gateway.smart.failures import Failures
from gateway.web.headers import Header, completed, of_others
from gateway.web.limits import Limits

LOG = logging.getLogger("gateway.doors")

_WELL_KNOWN: Final = "/fhir/.well-known/"
_PAGES: Final = ("/portal", "/oauth/authorize")
_GUESSED: Final = frozenset({"/oauth/token", "/oauth/revoke", "/oauth/introspect"})
"""Where a secret is shown to be known: what fails here is counted."""
_FAILED: Final = frozenset({400, 401})
_SCRIPTS: Final = (b"application/json",)


class Doors:
    """The ASGI application of one worker."""

    def __init__(self, *, fhir: ASGIApp, others: ASGIApp, limits: Limits, failures: Failures,
                 settings: Settings) -> None:
        """``limits``: those of strangers, one for all doors."""
        self._fhir = fhir
        self._others = others
        self._limits = limits
        self._failures = failures
        self._wanted = of_others(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path == "/fhir" or (path.startswith("/fhir/") and not path.startswith(_WELL_KNOWN)):
            await self._fhir({**scope, "root_path": "/fhir"}, receive, send)
        elif scope["type"] == "http":
            await self._beside(scope, receive, send)
        else:
            await self._others(scope, receive, send)

    async def _beside(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": completed(list(message.get("headers", ())), self._wanted)}
            await send(message)

        guessed = scope["path"] in _GUESSED and scope["method"] == "POST"
        address = self._limits.address(scope) if guessed else ""
        try:
            self._limits.stranger(scope)
            if guessed and (wait_s := self._failures.wait_s(address)):
                raise Throttled("too many failed requests from this address", retry_s=wait_s)
        except Throttled as error:
            await _refuse(scope, answered, error)
            return
        await self._others(scope, receive, answered)
        if guessed and status in _FAILED:
            try:
                await run_sync(self._failures.failed, address)
            except StoreBusy:
                LOG.warning("a failed request was not counted")


async def _refuse(scope: Scope, send: Send, error: Throttled) -> None:
    """429 as the door speaks: RFC 6749's JSON, a page, or plain JSON."""
    path: str = scope["path"]
    kind, text = b"application/json", str(error)
    if path.startswith(_PAGES) and not _is_script(scope):
        kind = b"text/html; charset=utf-8"
        body = (f'<!doctype html><html lang="en"><title>Too much at once</title><h1>Too much at once</h1>'
                f"<p>{html.escape(text)}. Wait a moment, then open the page again.</p></html>").encode()
    elif path.startswith("/oauth/"):
        body = orjson.dumps({"error": "temporarily_unavailable", "error_description": text})
    else:
        body = orjson.dumps({"error": text})
    headers: list[Header] = [(b"content-type", kind), (b"content-length", str(len(body)).encode()),
                             (b"retry-after", str(math.ceil(error.retry_s)).encode())]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _is_script(scope: Scope) -> bool:
    return any(name in (b"accept", b"content-type") and value.startswith(_SCRIPTS) for name, value in scope["headers"])
