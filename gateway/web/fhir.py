"""The FHIR door: R4 REST over HTTP, as bytes in and bytes out.

Owns the ASGI face, the body's size, who asks, the headers of every answer, and the request log; refuses with an
OperationOutcome. One ASGI callable and one table of routes, because routing by path segments is all the hot path needs.
What an answer is, is decided before the form it takes: formats, codings and cross-origin headers are added at the end.
https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import unquote, urlencode

import orjson
from starlette.types import Receive, Scope, Send

from gateway.audit import CLIENT_ADDRESS
from gateway.errors import MethodNotAllowed, NotAcceptable, NotFound, TookTooLong, TooLarge, Unauthenticated
from gateway.fhir.conformance import Offered, capability_statement
from gateway.fhir.xml_shapes import Shapes
from gateway.records.answer import Answer
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.references import checked_types
from gateway.store import journal
from gateway.web import (
    access_list,
    asynchronous,
    binary,
    bulk,
    bundles,
    clinical,
    consents,
    deferral,
    directory,
    histories,
    interactions,
    metrics,
    searching,
    subscriptions,
    terminology,
    upkeep,
    validation,
    verifying,
)
from gateway.web.ask import Ask
from gateway.web.compression import LEAST_BYTES, coding, deflated, inflated
from gateway.web.cors import Cors
from gateway.web.deadlines import Deadlines
from gateway.web.door import Door, Route, Routes
from gateway.web.errors import refusal
from gateway.web.formats import MEDIA_TYPES, PLAIN, THREAD_BYTES, Form, asks_for_fhir, rendered, wanted
from gateway.web.headers import NO_STORE, POLICY, Header, of_fhir
from gateway.web.limits import Limits
from gateway.web.preferences import unless_known

LOG = logging.getLogger("gateway.request")
Authenticate = Callable[[str | None], Caller]
"""The Caller behind an Authorization header. Raises Unauthenticated."""


ROUTES = (*interactions.ROUTES, *histories.ROUTES, *searching.ROUTES, *bundles.ROUTES, *consents.ROUTES,
          *access_list.ROUTES, *directory.ROUTES, *clinical.ROUTES, *bulk.ROUTES, *asynchronous.ROUTES,
          *validation.ROUTES, *terminology.ROUTES, *upkeep.ROUTES, *subscriptions.ROUTES, *verifying.ROUTES)


_READING = frozenset({"GET", "HEAD"})
_VARY_ORIGIN: Header = (b"vary", b"Origin")
_CODED = frozenset(f"{type_}; charset=utf-8" for type_ in MEDIA_TYPES)
"""What is worth a coding: a Binary's content may be anything, and ranges count its own bytes."""


def open_door(node: Node, capability: bytes = b"") -> Door:
    """The door without its HTTP face: what a job carries requests out through."""
    return Door(node, Routes(ROUTES, node.definitions.resource_types), capability, Limits(node.settings))


class FhirDoor:
    """Serves ``{base}/...``; entered where the base URL's path says. ``limits``: of callers, and of strangers."""

    def __init__(self, node: Node, authenticate: Authenticate, *, oauth_urls: Mapping[str, str],
                 is_app_origin: Callable[[str], bool]) -> None:
        """``is_app_origin``: whether an app registered this web origin."""
        self._authenticate = authenticate
        self._oauth_urls = oauth_urls
        self._stated = node.parameters.generation
        self._capabilities = _capabilities(node, oauth_urls)
        self._door = open_door(node)
        self._shapes = Shapes(node.definitions)
        self._cors = Cors(node.settings.cors_origins, is_app_origin)
        self.limits = self._door.limits
        self._deadlines = Deadlines(node.settings.read_timeout_s)
        self._every = [*of_fhir(node.settings), _VARY_ORIGIN]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        CLIENT_ADDRESS.set(self.limits.source(scope))
        headers = _headers(scope)
        name, form = "unknown", PLAIN
        try:
            if scope["method"] == "OPTIONS":
                self.limits.stranger(scope)
                name, answer = "options", self._options(scope, headers)
            else:
                query = scope["query_string"].decode("latin-1")
                parts = _parts(scope)
                native = parts[:1] == ("Binary",) and len(parts) in (2, 4) and not asks_for_fhir(query, headers)
                lines = len(parts) == 4 and parts[0] == deferral.PLACE
                form = PLAIN if native or lines else wanted(query, headers)
                name, answer, controls = await self._answer(scope, receive, parts, query, headers)
                if controls:
                    form = wanted(urlencode(controls), headers)
                if native and name in ("read", "vread"):
                    answer = await binary.as_content(answer, headers)
                elif form is not PLAIN:
                    answer = await rendered(answer, form, self._shapes)
        except _Disconnected:
            return
        except asyncio.CancelledError:
            if not self._deadlines.was_ended():
                raise
            answer = await _refused(TookTooLong(f"this takes longer than {self._deadlines.limit_s} s: ask for less at "
                                                "once, or in the background"), form, self._shapes)
        except Exception as error:
            answer = await _refused(error, form, self._shapes)
        extra = self._every
        if "origin" in headers:
            extra = [*extra, *self._cors.headers(headers["origin"])]
        if "accept-encoding" in headers and len(answer.body) >= LEAST_BYTES and answer.media_type in _CODED:
            answer = await _coded(answer, headers["accept-encoding"])
        await _respond(answer, send, extra, head=scope["method"] == "HEAD")
        seconds = time.perf_counter() - started
        counted, timed = metrics.of(name, answer.status)
        counted.inc()
        timed.observe(seconds)
        if LOG.isEnabledFor(logging.INFO):
            LOG.info("request", extra={"interaction": name, "status": answer.status, "us": int(seconds * 1e6)})

    async def _answer(self, scope: Scope, receive: Receive, parts: tuple[str, ...], query: str,
                      headers: dict[str, str]) -> tuple[str, Answer, list[tuple[str, str]]]:
        """The interaction's name, its answer, and what a form said of the answer's form."""
        method: str = scope["method"]
        if parts == ("metadata",):
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed("metadata is read with GET")
            self.limits.stranger(scope)
            return "capabilities", unless_known(await self._statement(), headers), []
        try:
            caller = self._authenticate(headers.get("authorization"))
        except Unauthenticated:
            self.limits.stranger(scope)
            raise
        self.limits.caller(caller.grant)
        ask = Ask(settings=self._door.node.settings, shapes=self._shapes, caller=caller,
                  method=method, parts=parts, query=query, headers=headers,
                  read_body=lambda: self._body(headers, receive))
        route = self._door.routes.find(method, parts)
        if method in _READING or route.name.startswith("search"):
            task = self._deadlines.begin()
            try:
                answer = await self._door.carry_out(route, ask)
            finally:
                self._deadlines.end(task)
        else:
            answer = await self._door.carry_out(route, ask)
        return route.name, _handled(route, ask, answer) if "prefer" in headers else answer, ask.controls

    async def _statement(self) -> Answer:
        """The statement, made anew after search parameters came or went."""
        node = self._door.node
        node.parameters.follow(journal.decision_seq(node.database.reader))
        now = node.parameters.generation
        if now != self._stated:
            self._capabilities = await asyncio.to_thread(_capabilities, node, self._oauth_urls)
            self._stated = now
        return self._capabilities

    def _options(self, scope: Scope, headers: Mapping[str, str]) -> Answer:
        """What a path offers. It asks for no token, and so says nothing of what is stored."""
        parts = _parts(scope)
        methods = ("GET", "HEAD") if parts == ("metadata",) else self._door.routes.allowed(parts)
        if not methods:
            raise NotFound("nothing is offered here")
        return self._cors.preflight(headers.get("origin"), methods)

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
        body = b"".join(chunks)
        if "content-encoding" in headers:
            return await asyncio.to_thread(inflated, body, headers["content-encoding"], limit)
        return body


def _capabilities(node: Node, oauth_urls: Mapping[str, str]) -> Answer:
    body = orjson.dumps(capability_statement(
        node.definitions, node.extractor.plans, _offered(), base_url=node.settings.base_url, oauth_urls=oauth_urls,
        update_creates=node.settings.update_creates, conditional_delete=node.settings.conditional_delete,
        enforced=checked_types(node.settings, node.definitions), cors=True))
    # Weak, for it stands for all forms and codings of the statement.
    return Answer(200, body, {"ETag": f'W/"{hashlib.sha256(body).hexdigest()[:32]}"', "Cache-Control": "no-cache"})


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
             for row in ROUTES if row.stated]
    return [*found, Offered(name="batch", system=True)]


def _handled(route: Route, ask: Ask, answer: Answer) -> Answer:
    """Says that ``handling`` was obeyed, where it is asked for and means something."""
    wanted_handling = ask.preference("handling")
    if wanted_handling not in ("strict", "lenient") or not route.name.startswith(("search", "history")):
        return answer
    return replace(answer, headers={**answer.headers, "Preference-Applied": f"handling={wanted_handling}"})


async def _refused(error: Exception, form: Form, shapes: Shapes) -> Answer:
    """A refusal in the form asked for; in JSON where that form is what could not be had."""
    answer = refusal(error)
    try:
        return await rendered(answer, form, shapes)
    except NotAcceptable:
        return answer


async def _coded(answer: Answer, accept: str) -> Answer:
    name = coding(accept)
    if name is None:
        return answer
    large = len(answer.body) > THREAD_BYTES
    body = await asyncio.to_thread(deflated, answer.body, name) if large else deflated(answer.body, name)
    return replace(answer, body=body, headers={**answer.headers, "Content-Encoding": name})


async def _respond(answer: Answer, send: Send, extra: Sequence[Header], *, head: bool) -> None:
    bodiless = answer.status in (204, 304) or answer.stream is not None
    headers = [] if bodiless else [(b"content-length", str(len(answer.body)).encode())]
    if answer.body or answer.stream is not None:
        headers.append((b"content-type", answer.media_type.encode("latin-1", "replace")))
    if (modified := answer.last_modified) is not None:
        headers.append((b"last-modified", modified.encode()))
    headers += [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in answer.headers.items()]
    headers += extra
    if "Cache-Control" not in answer.headers:
        headers.append(NO_STORE)
    if "Content-Security-Policy" not in answer.headers:
        headers.append(POLICY)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if answer.stream is not None and not head:
        # What fails from here on breaks the connection off, so that a part is never taken for the whole.
        async for piece in answer.stream:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})
