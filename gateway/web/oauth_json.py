"""JSON in and out of the doors under /oauth that take it.

Owns reading a JSON object (size, type, no repeated key), the bearer token of a request, and the error face: RFC 6749's
``error`` and ``error_description``; refuses to show anything of an error it does not know but an id.
https://www.rfc-editor.org/rfc/rfc7591#section-3.2.2, https://www.rfc-editor.org/rfc/rfc6750#section-3
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import anyio
import jiter
from anyio.to_thread import run_sync
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.access.grant import Grant
from gateway.errors import (
    Conflict,
    Forbidden,
    InputRefused,
    NotFound,
    OAuthError,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from gateway.smart.issuer import Smart
from gateway.smart.tokens import bearer

T = TypeVar("T")
LOG = logging.getLogger("gateway.oauth")
MAX_BYTES: Final = 65_536
NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_THREADS: Final = 4
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_UNSPEAKABLE: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")


class Threads:
    """Work of one router beside the event loop, a few at a time."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, or what it raised."""
        if self._limiter is None:  # made on first use, inside the loop it belongs to
            self._limiter = anyio.CapacityLimiter(_THREADS)
        return await run_sync(work, limiter=self._limiter)


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of the body. Raises OAuthError ``invalid_request``."""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise OAuthError("invalid_request", "the body must be application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise OAuthError("invalid_request", f"the body is over {MAX_BYTES} bytes")
    try:
        found = jiter.from_json(bytes(body), catch_duplicate_keys=True, allow_inf_nan=False)
    except ValueError:
        raise OAuthError("invalid_request", "the body is not JSON, or names a field twice") from None
    if not isinstance(found, dict):
        raise OAuthError("invalid_request", "the body is not a JSON object")
    return found


def grant_of(smart: Smart, request: Request) -> Grant:
    """What the request's bearer token may do. Raises Unauthenticated."""
    grant, _ = smart.tokens.lookup(smart.database.reader, bearer(request.headers.get("Authorization")), smart.now_ms())
    return grant


def answered(body: Mapping[str, Any], status: int = 200) -> Response:
    """A JSON answer nobody keeps."""
    return JSONResponse(dict(body), status, NO_STORE)


async def guarded(work: Callable[[], Awaitable[Response]]) -> Response:
    """The answer of ``work``, its errors rendered."""
    try:
        return await work()
    except Exception as error:
        return error_response(error)


def refuse_other_methods(routes: APIRouter) -> None:
    """Answer what the paths of ``routes`` do not take as these doors answer; call it when all are there."""
    taken: dict[str, set[str]] = {}
    for route in routes.routes:
        if isinstance(route, APIRoute):
            taken.setdefault(route.path, set()).update(route.methods or ())
    for path, methods in taken.items():
        routes.add_api_route(path, _taking(", ".join(sorted(methods))), methods=sorted(_METHODS - methods),
                             include_in_schema=False)


def _taking(allow: str) -> Callable[[], Awaitable[Response]]:
    # No parameter of its own: what a handler has by name, a query could set.
    async def other() -> Response:
        return JSONResponse({"error": "invalid_request", "error_description": f"this endpoint takes {allow} alone"},
                            405, {**NO_STORE, "Allow": allow})
    return other


def error_response(error: Exception) -> Response:
    """An error as this door shows it."""
    status, code, description, headers = _face(error)
    # RFC 6749 section 5.2: printable ASCII without quotes and backslashes; a client's own words may hold others.
    description = _UNSPEAKABLE.sub("?", description)[:500]
    return JSONResponse({"error": code, "error_description": description}, status, {**headers, **NO_STORE})


def _face(error: Exception) -> tuple[int, str, str, dict[str, str]]:
    if isinstance(error, OAuthError):
        return 400, error.error, error.description, {}
    if isinstance(error, InputRefused):
        return 400, "invalid_request", "; ".join(issue.diagnostics for issue in error.issues), {}
    if isinstance(error, Unauthenticated):
        detail = f', error="{error.error}"' if error.error else ""
        return 401, error.error or "invalid_token", str(error), {"WWW-Authenticate": f'Bearer realm="OAuth"{detail}'}
    if isinstance(error, Forbidden):
        return 403, "access_denied", str(error), {}
    if isinstance(error, NotFound):
        return 404, "not_found", str(error), {}
    if isinstance(error, Conflict):
        return 409, "conflict", str(error), {}
    if isinstance(error, Throttled):
        return 429, "temporarily_unavailable", str(error), {"Retry-After": "60"}
    if isinstance(error, Unavailable):
        return 503, "temporarily_unavailable", "the store does not answer in time", {"Retry-After": "2"}
    number = secrets.token_hex(8)
    LOG.error("unexpected error", extra={"error_id": number}, exc_info=error)  # the log keeps class and places alone
    return 500, "server_error", f"unexpected error {number}", {}
