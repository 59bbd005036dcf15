"""The OAuth and SMART doors over HTTP.

Owns the form (size, type, no repeated parameter, nothing in the URL) and the JSON answers of RFC 6749; refuses to
show or log a token, an assertion, or anything of an error it does not know but an id.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.errors import GatewayError, OAuthError, Unavailable
from gateway.smart.discovery import smart_configuration
from gateway.smart.issuer import Smart
from gateway.smart.token_endpoint import Reply, TokenEndpoint

LOG = logging.getLogger("gateway.oauth")
MAX_FORM_BYTES: Final = 65_536
_MAX_PARAMETERS: Final = 32
_THREADS: Final = 8
_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_OTHER_METHODS: Final = ["GET", "HEAD", "PUT", "PATCH", "DELETE"]
Endpoint = Callable[[Mapping[str, str], str | None], Reply]


def router(state: Smart) -> APIRouter:
    """The routes, with full paths; mount it at the root of the application."""
    endpoints = TokenEndpoint(state)
    limiter: list[anyio.CapacityLimiter] = []
    routes = APIRouter()

    async def answer(request: Request, endpoint: Endpoint) -> Response:
        if not limiter:  # made on first use, inside the loop it belongs to
            limiter.append(anyio.CapacityLimiter(_THREADS))
        try:
            form = await read_form(request)
            authorization = request.headers.get("Authorization")
            reply = await run_sync(lambda: endpoint(form, authorization), limiter=limiter[0])
        except Exception as error:
            return _error_response(error)
        status, headers = reply.status, dict(reply.headers)
        if reply.body.get("error") and request.headers.get("Authorization"):
            # RFC 6749 section 5.2: a client that used the header is told 401 and which scheme failed.
            status, headers["WWW-Authenticate"] = 401, 'Basic realm="OAuth"'
        return JSONResponse(dict(reply.body), status, {**headers, **_NO_STORE})

    @routes.post("/oauth/token")
    async def token(request: Request) -> Response:
        return await answer(request, endpoints.token)

    @routes.post("/oauth/revoke")
    async def revoke(request: Request) -> Response:
        return await answer(request, endpoints.revocation)

    @routes.post("/oauth/introspect")
    async def introspect(request: Request) -> Response:
        return await answer(request, endpoints.introspection)

    @routes.api_route("/oauth/token", methods=_OTHER_METHODS, include_in_schema=False)
    @routes.api_route("/oauth/revoke", methods=_OTHER_METHODS, include_in_schema=False)
    @routes.api_route("/oauth/introspect", methods=_OTHER_METHODS, include_in_schema=False)
    async def only_post() -> Response:
        return JSONResponse({"error": "invalid_request", "error_description": "this endpoint takes POST alone"}, 405,
                            {**_NO_STORE, "Allow": "POST"})

    @routes.get("/fhir/.well-known/smart-configuration")
    async def configuration() -> Response:
        return JSONResponse(smart_configuration(state), headers={"Access-Control-Allow-Origin": "*"})

    return routes


async def read_form(request: Request) -> dict[str, str]:
    """The parameters of an ``application/x-www-form-urlencoded`` body (RFC 6749 section 3.2).

    An empty parameter counts as absent. Raises OAuthError ``invalid_request``.
    """
    if request.url.query:
        raise OAuthError("invalid_request", "parameters belong in the body, never in the URL")
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise OAuthError("invalid_request", "the body must be application/x-www-form-urlencoded")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            raise OAuthError("invalid_request", "the body is too long")
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, strict_parsing=bool(body), errors="strict",
                          max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise OAuthError("invalid_request", "the body is not a form") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise OAuthError("invalid_request", "a parameter stands in the body more than once")
    return {name: value for name, value in pairs if value}


def _error_response(error: Exception) -> Response:
    if isinstance(error, OAuthError):
        return JSONResponse({"error": error.error, "error_description": error.description}, 400, _NO_STORE)
    if isinstance(error, Unavailable):
        return JSONResponse({"error": "temporarily_unavailable"}, 503, {**_NO_STORE, "Retry-After": "2"})
    number = secrets.token_hex(8)
    # The places alone: an exception's text may hold what the client sent.
    places = "".join(traceback.format_tb(error.__traceback__))
    kind = type(error).__name__ if isinstance(error, GatewayError) else type(error).__qualname__
    LOG.error("unexpected error", extra={"error_id": number, "kind": kind, "places": places})
    return JSONResponse({"error": "server_error", "error_description": f"unexpected error {number}"}, 500, _NO_STORE)
