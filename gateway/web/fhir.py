"""The FHIR door: R4 REST over HTTP, as bytes in and bytes out.

Owns the ASGI face, the body's size, who asks, and the request log; refuses with an OperationOutcome. One ASGI callable
and one table of routes, because routing by path segments is all the hot path needs. https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import unquote

import orjson
from starlette.types import Receive, Scope, Send

from gateway.errors import MethodNotAllowed, TooLarge
from gateway.fhir.conformance import Offered, capability_statement
from gateway.records.answer import Answer
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.web import bundles, clinical, consents, interactions
from gateway.web.ask import Ask
from gateway.web.door import Door
from gateway.web.errors import refusal
from gateway.web.formats import acceptable
from gateway.web.metrics import REQUESTS, SECONDS
from gateway.web.routes import Routes

LOG = logging.getLogger("gateway.request")
Authenticate = Callable[[str | None], Caller]
"""The Caller behind an Authorization header. Raises Unauthenticated."""


ROUTES = (*interactions.ROUTES, *bundles.ROUTES, *consents.ROUTES, *clinical.ROUTES)


class FhirDoor:
    """Serves ``{base}/...``; mounted where the base URL's path says."""

    def __init__(self, node: Node, authenticate: Authenticate, *, token_url: str) -> None:
        self._authenticate = authenticate
        statement = capability_statement(
            node.definitions, node.extractor.plans, _offered(), base_url=node.settings.base_url, token_url=token_url,
            update_creates=node.settings.update_creates)
        self._door = Door(node, Routes(ROUTES, node.definitions.resource_types), orjson.dumps(statement))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        name = "unknown"
        try:
            name, answer = await self._answer(scope, receive)
        except _Disconnected:
            return
        except Exception as error:
            answer = refusal(error)
        await _respond(answer, send, head=scope["method"] == "HEAD")
        seconds = time.perf_counter() - started
        REQUESTS.labels(name, str(answer.status)).inc()
        SECONDS.labels(name).observe(seconds)
        if LOG.isEnabledFor(logging.INFO):
            LOG.info("request", extra={"interaction": name, "status": answer.status, "us": int(seconds * 1e6)})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[str, Answer]:
        method: str = scope["method"]
        parts, query, headers = _parts(scope), scope["query_string"].decode("latin-1"), _headers(scope)
        acceptable(query, headers)
        if parts == ("metadata",):
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed("metadata is read with GET")
            return "capabilities", Answer(200, self._door.capability)
        ask = Ask(settings=self._door.node.settings, caller=self._authenticate(headers.get("authorization")),
                  method=method, parts=parts, query=query, headers=headers,
                  read_body=lambda: self._body(headers, receive))
        route = self._door.routes.find(method, parts)
        return route.name, await self._door.carry_out(route, ask)

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self._door.node.settings.max_body_bytes
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            raise TooLarge(f"a body may hold {limit} bytes", code="too-long")
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"a body may hold {limit} bytes", code="too-long")
            chunks.append(chunk)
        return b"".join(chunks)


class _Disconnected(Exception):  # control flow: there is nobody left to answer
    pass


def _parts(scope: Scope) -> tuple[str, ...]:
    """The path's segments below the base; split before they are unquoted, so that ``%2F`` stays within one."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("latin-1").removeprefix(scope.get("root_path", "")).strip("/")
    if not path:
        return ()
    return tuple(unquote(part) if "%" in part else part for part in path.split("/"))


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _offered() -> list[Offered]:
    """The table's rows as the CapabilityStatement names them."""
    found = [Offered(name=row.name, types=row.types, system=not row.shape.startswith("T"), definition=row.definition)
             for row in ROUTES]
    return [*found, Offered(name="batch", system=True)]


async def _respond(answer: Answer, send: Send, *, head: bool) -> None:
    headers = [(b"content-length", str(len(answer.body)).encode())] if answer.status not in (204, 304) else []
    if answer.body:
        headers.append((b"content-type", answer.media_type.encode()))
    if answer.last_modified is not None:
        headers.append((b"last-modified", answer.last_modified.encode()))
    headers += [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})
