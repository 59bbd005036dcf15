"""The FHIR door: R4 REST over HTTP, as bytes in and bytes out.

Owns URLs, headers, media types and which interaction a request is; refuses what it does not know with an
OperationOutcome. One ASGI callable, because routing by path segments is all the hot path needs.
https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from urllib.parse import parse_qsl, unquote

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import (
    BadSearch,
    Forbidden,
    Malformed,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    TooLarge,
    UnsupportedMedia,
)
from gateway.fhir.bundle import BundleEntry
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.resource import Resource, format_instant, is_id, parse
from gateway.records import audit_events, consents, read, receipts, search, transaction, write
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.write import Written
from gateway.web.errors import FHIR_JSON, fhir_response, rendered
from gateway.web.metrics import REQUESTS, SECONDS

LOG = logging.getLogger("gateway.request")
_HISTORY_PAGE = 20
_JSON_TYPES = frozenset({"application/fhir+json", "application/json"})
_FORMATS = frozenset({"json", "application/json", "application/fhir+json", "text/json"})
_PREFERENCE = re.compile(r"\s*([\w-]+)\s*=\s*\"?([\w-]+)\"?\s*")

_OPERATIONS = {"Consent": ("$receipt", "$typed-data", "$sign", "$revoke")}
"""By type; ``$receipt`` is every type's."""

Authenticate = Callable[[str | None], Caller]
"""The Caller behind an Authorization header. Raises Unauthenticated."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response before it is rendered; ``body`` is resource JSON."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] | None = None


class FhirDoor:
    """Serves ``{base}/...``; mounted where the base URL's path says."""

    def __init__(self, node: Node, authenticate: Authenticate, capability: bytes) -> None:
        self._node = node
        self._authenticate = authenticate
        self._capability = capability
        self._base = node.settings.base_url
        self._base_path = "/" + self._base.split("/", 3)[3] if self._base.count("/") > 2 else ""
        self._types = node.definitions.resource_types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request = Request(scope, receive)
        name, response = "unknown", Response(status_code=500)
        try:
            name, response = await self._respond(request)
        except ClientDisconnect:
            return
        except Exception as error:
            response = fhir_response(error)
            if response.status_code == 405:
                response.headers["Allow"] = _allowed(_parts(request))
        if request.method == "HEAD":
            length = str(len(response.body))
            response.body = b""
            response.headers["content-length"] = length
        await response(scope, receive, send)
        seconds = time.perf_counter() - started
        REQUESTS.labels(name, str(response.status_code)).inc()
        SECONDS.labels(name).observe(seconds)
        if LOG.isEnabledFor(logging.INFO):
            LOG.info("request", extra={"interaction": name, "status": response.status_code,
                                       "us": int(seconds * 1e6)})

    async def _respond(self, request: Request) -> tuple[str, Response]:
        parts = _parts(request)
        self._acceptable(request)
        if parts == ["metadata"]:
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed("metadata is read with GET")
            return "capabilities", Response(self._capability, 200, media_type=FHIR_JSON)
        caller = self._authenticate(request.headers.get("authorization"))
        name, handler = self._handler(request, parts)
        answer = await handler(request, caller, parts)
        headers = dict(answer.headers or {})
        body = answer.body
        if answer.status in (200, 201) and "return=minimal" in request.headers.get("prefer", ""):
            body = b"" if request.method in ("POST", "PUT") and name in ("create", "update") else body
        return name, Response(body, answer.status, headers, FHIR_JSON if body else None)

    def _handler(self, request: Request, parts: list[str]) -> tuple[
            str, Callable[[Request, Caller, list[str]], Awaitable[Answer]]]:
        method = "GET" if request.method == "HEAD" else request.method
        if not parts:
            if method == "POST":
                return "transaction", self._transaction
            raise MethodNotAllowed("system search is not offered; POST a batch or transaction here")
        type_ = parts[0]
        if type_ not in self._types:
            raise NotFound(f"{type_[:64]!r} is no R4 resource type")
        if parts[1:] == ["_search"]:
            if method != "POST":
                raise MethodNotAllowed("_search is asked with POST")
            return "search-type", self._search
        if len(parts) > 1 and not is_id(parts[1]):
            raise BadId(parts[1])
        match (len(parts), method, parts[2:]):
            case (1, "GET", _):
                return "search-type", self._search
            case (1, "POST", _):
                return "create", self._create
            case (2, "GET", _):
                return "read", self._read
            case (2, "PUT", _):
                return "update", self._update
            case (2, "DELETE", _):
                return "delete", self._delete
            case (3, "GET", ["_history"]):
                return "history-instance", self._history
            case (4, "GET", ["_history", _]):
                return "vread", self._read
            case (5, "GET", ["_history", _, "$receipt"]) | (3, "GET", ["$receipt"]):
                return "receipt", self._receipt
            case (3, "GET", ["$typed-data"]) if type_ == "Consent":
                return "typed-data", self._typed_data
            case (3, "POST", ["$sign"]) if type_ == "Consent":
                return "sign", self._sign
            case (3, "POST", ["$revoke"]) if type_ == "Consent":
                return "revoke", self._revoke
        if len(parts) > 2 and parts[-1].startswith("$") and parts[-1] not in _OPERATIONS.get(type_, ("$receipt",)):
            raise NotFound(f"the operation {parts[2][:32]!r} is not offered")
        raise MethodNotAllowed(f"{request.method[:16]} is not offered here; {_allowed(parts)} is")

    def _acceptable(self, request: Request) -> None:
        wanted = request.query_params.get("_format")
        if wanted is not None:
            if wanted.partition(";")[0].strip() not in _FORMATS:
                raise NotAcceptable(f"_format={wanted[:64]!r}: this server answers in application/fhir+json",
                                    code="not-supported", expression="http._format")
            return
        accept = request.headers.get("accept")
        if accept and not any(
                part.partition(";")[0].strip() in ("*/*", "application/*", "application/fhir+json",
                                                   "application/json", "text/json") for part in accept.split(",")):
            raise NotAcceptable("this server answers in application/fhir+json", code="not-supported",
                                expression="http.Accept")

    async def _resource(self, request: Request) -> Resource:
        kind, _, parameters = request.headers.get("content-type", "").partition(";")
        if kind.strip().lower() not in _JSON_TYPES:
            raise UnsupportedMedia(f"Content-Type {kind[:64]!r}: send application/fhir+json", code="not-supported",
                                   expression="http.Content-Type")
        if "charset=" in parameters.lower() and "utf-8" not in parameters.lower():
            raise UnsupportedMedia("resource JSON is UTF-8", code="not-supported", expression="http.Content-Type")
        return parse(await self._body(request))

    async def _body(self, request: Request) -> bytes:
        limit = self._node.settings.max_body_bytes
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            raise TooLarge(f"a body may hold {limit} bytes", code="too-long")
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"a body may hold {limit} bytes", code="too-long")
            chunks.append(chunk)
        return b"".join(chunks)

    def _strict(self, request: Request) -> bool:
        for part in request.headers.get("prefer", "").split(","):
            match = _PREFERENCE.fullmatch(part)
            if match and match[1] == "handling":
                return match[2] != "lenient"
        return self._node.settings.handling == "strict"

    async def _create(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        if request.headers.get("if-none-exist"):
            return await self._conditional_create(request, caller, parts[0])
        resource = await self._resource(request)
        return self._written(await write.create(self._node, caller, parts[0], resource))

    async def _conditional_create(self, request: Request, caller: Caller, type_: str) -> Answer:
        written = await transaction.create_unless(self._node, caller, type_, await self._resource(request),
                                                  request.headers["if-none-exist"].lstrip("?"))
        if not written.changed:
            try:
                found = await read.read(self._node, caller.again(), type_, written.id, written.vid)
                written = replace(written, stored=found.stored)
            except (Forbidden, NotFound):
                pass  # found by a search, which says nothing about reading: the place alone is the answer
        return self._written(written)

    async def _update(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        resource = await self._resource(request)
        if request.headers.get("if-none-match") not in (None, "*"):
            raise Malformed("If-None-Match on an update is *", code="value", expression="http.If-None-Match")
        return self._written(await write.update(
            self._node, caller, parts[0], parts[1], resource, if_match=request.headers.get("if-match"),
            if_none_match=request.headers.get("if-none-match")))

    async def _delete(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        written = await write.delete(self._node, caller, parts[0], parts[1], if_match=request.headers.get("if-match"))
        return Answer(204, headers={"ETag": f'W/"{written.vid}"'} if written else None)

    def _written(self, written: Written) -> Answer:
        location = f"{self._base}/{written.type}/{written.id}/_history/{written.vid}"
        return Answer(201 if written.created else 200, written.stored, {
            "ETag": f'W/"{written.vid}"', "Location": location, "Last-Modified": _http_date(written.updated_ms)})

    async def _read(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        vid = None
        if len(parts) == 4:
            vid = int(parts[3]) if parts[3].isdecimal() and len(parts[3]) < 16 else 0
        if parts[0] == "AuditEvent" and audit_events.is_ours(parts[1]):
            return Answer(200, await audit_events.read(self._node, caller, parts[1]), {"ETag": 'W/"1"'})
        reading = await read.read(self._node, caller, parts[0], parts[1], vid)
        headers = {"ETag": f'W/"{reading.row.vid}"', "Last-Modified": _http_date(reading.row.updated_ms)}
        known = request.headers.get("if-none-match")
        if known and (known.strip() == "*" or headers["ETag"] in [part.strip() for part in known.split(",")]):
            return Answer(304, headers=headers)
        return Answer(200, reading.stored, headers)

    async def _history(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        unknown = set(request.query_params) - {"_count", "_format", "_page", "_pretty"}
        if unknown and self._strict(request):
            raise BadSearch(f"history does not take {sorted(unknown)[0]!r}", code="not-supported",
                            expression=f"http.{sorted(unknown)[0]}")
        count = min(max(1, self._number(request, "_count", _HISTORY_PAGE)), self._node.settings.max_page)
        below = self._number(request, "_page", 2**62)
        readings = await read.history(self._node, caller, parts[0], parts[1], count=count + 1, below=below)
        more = len(readings) > count
        readings = readings[:count]
        url = f"{self._base}/{parts[0]}/{parts[1]}"
        links = [{"relation": "self", "url": f"{url}/_history"}]
        if more:
            links.append({"relation": "next", "url": f"{url}/_history?_count={count}&_page={readings[-1].row.vid}"})
        entries = [_history_entry(url, parts[0], reading) for reading in readings]
        return Answer(200, orjson.dumps({"resourceType": "Bundle", "type": "history", "link": links,
                                         **({"total": len(readings)} if not more and below == 2**62 else {}),
                                         **({"entry": entries} if entries else {})}))

    @staticmethod
    def _number(request: Request, name: str, default: int) -> int:
        text = request.query_params.get(name)
        if text is None:
            return default
        if not text.isdecimal() or len(text) > 15:
            raise BadSearch(f"{name}={text[:32]!r} is not a number", code="value", expression=f"http.{name}")
        return int(text)

    async def _search(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        pairs = parse_qsl(request.url.query, keep_blank_values=True)
        if request.method == "POST":
            kind = request.headers.get("content-type", "").partition(";")[0].strip()
            if kind != "application/x-www-form-urlencoded":
                raise UnsupportedMedia("_search takes application/x-www-form-urlencoded", code="not-supported",
                                       expression="http.Content-Type")
            try:
                pairs += parse_qsl((await self._body(request)).decode(), keep_blank_values=True, strict_parsing=False)
            except UnicodeDecodeError as error:
                raise Malformed("the form is not UTF-8", code="structure") from error
        pairs = [(name, value) for name, value in pairs if name not in ("_format", "_pretty")]
        return Answer(200, await self._search_one(caller, parts[0], pairs, strict=self._strict(request)))

    async def _search_one(self, caller: Caller, type_: str, pairs: list[tuple[str, str]], *, strict: bool) -> bytes:
        if type_ == "AuditEvent":
            return await audit_events.search(self._node, caller, pairs, strict=strict)
        return await search.search(self._node, caller, type_, pairs, strict=strict)

    async def _transaction(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        bundle = await self._resource(request)
        if bundle["resourceType"] != "Bundle":
            raise Malformed("POST to the base takes a Bundle", code="invalid", expression="resourceType")
        self._node.validator.require(_envelope(bundle), expected_type="Bundle")
        return Answer(200, await transaction.process(self._node, caller, bundle, self._doors(request)))

    def _doors(self, request: Request) -> transaction.Doors:
        async def fetch(caller: Caller, entry: BundleEntry) -> bytes:
            parts = entry.url.removeprefix(self._base + "/").lstrip("/").partition("?")[0].split("/")
            match parts:
                case [type_]:
                    return await self._search_one(caller, type_, parse_qsl(entry.query, keep_blank_values=True),
                                                  strict=self._strict(request))
                case [type_, id_]:
                    return (await read.read(self._node, caller, type_, id_)).stored
                case [type_, id_, "_history", vid] if vid.isdecimal():
                    return (await read.read(self._node, caller, type_, id_, int(vid))).stored
            raise NotFound(f"{entry.url!r} is not offered inside a bundle")

        async def single(caller: Caller, entry: BundleEntry) -> Written | None:
            # Another entry may have bumped the decision counter: read the caller anew.
            caller = caller.again()
            if entry.method == "DELETE" and entry.id is not None:
                return await write.delete(self._node, caller, entry.type, entry.id, if_match=entry.if_match)
            if entry.resource is None:
                raise Malformed("the entry has no resource", code="required", expression=entry.expression)
            if entry.method == "PUT" and entry.id is not None:
                return await write.update(self._node, caller, entry.type, entry.id, entry.resource,
                                          if_match=entry.if_match, if_none_match=entry.if_none_match)
            if entry.if_none_exist:
                return await transaction.create_unless(self._node, caller, entry.type, entry.resource,
                                                       entry.if_none_exist)
            return await write.create(self._node, caller, entry.type, entry.resource)

        def outcome(error: BaseException) -> tuple[int, bytes]:
            status, issues, _ = rendered(error)
            return status, operation_outcome(issues)

        return transaction.Doors(fetch=fetch, single=single, outcome=outcome)

    async def _receipt(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        vid = int(parts[3]) if len(parts) == 5 and parts[3].isdecimal() and len(parts[3]) < 16 else None
        if len(parts) == 5 and vid is None:
            raise NotFound(f"{parts[0]}/{parts[1]}/_history/{parts[3]} is not known")
        status, body = await receipts.receipt(self._node, caller, parts[0], parts[1], vid)
        return Answer(status, body, {"Retry-After": "2"} if status == 202 else None)

    async def _typed_data(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        return Answer(200, await consents.show(self._node, caller, parts[1],
                                                     wallet=request.query_params.get("wallet")))

    async def _sign(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        body = await self._resource(request)
        return self._written(await consents.sign(self._node, caller, parts[1], body))

    async def _revoke(self, request: Request, caller: Caller, parts: list[str]) -> Answer:
        body = await self._resource(request) if request.headers.get("content-type") else None
        return self._written(await consents.revoke(self._node, caller, parts[1], body))


def _parts(request: Request) -> list[str]:
    path = request.scope["path"].removeprefix(request.scope.get("root_path", "")).strip("/")
    return [unquote(part) for part in path.split("/")] if path else []


def _allowed(parts: list[str]) -> str:
    """The methods offered at a URL: the Allow header of a 405."""
    if not parts or parts[1:] == ["_search"] or parts[2:] in (["$sign"], ["$revoke"]):
        return "POST"
    if parts == ["metadata"] or len(parts) > 2:
        return "GET, HEAD"
    return "GET, HEAD, POST" if len(parts) == 1 else "GET, HEAD, PUT, DELETE"


class BadId(Malformed):
    """A URL whose id is not a FHIR id."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text[:80]!r} is not a FHIR id", code="value", expression="Resource.id")


def _envelope(bundle: Resource) -> Resource:
    """The Bundle without its resources, which are validated one by one where they are carried out."""
    entries = bundle.get("entry")
    if not isinstance(entries, list):
        return bundle
    return {**bundle, "entry": [{name: value for name, value in entry.items() if name != "resource"}
                                if isinstance(entry, dict) else entry for entry in entries]}


def _history_entry(url: str, type_: str, reading: read.Reading) -> dict[str, object]:
    row = reading.row
    method = "DELETE" if row.deleted else "POST" if row.vid == 1 else "PUT"
    entry: dict[str, object] = {"fullUrl": url}
    if reading.stored:
        entry["resource"] = orjson.Fragment(reading.stored)
    entry["request"] = {"method": method, "url": type_ if method == "POST" else f"{type_}/{row.id}"}
    entry["response"] = {"status": "204" if row.deleted else "201" if row.vid == 1 else "200",
                         "etag": f'W/"{row.vid}"', "lastModified": format_instant(row.updated_ms)}
    return entry


def _http_date(ms: int) -> str:
    return formatdate(ms / 1000, usegmt=True)

