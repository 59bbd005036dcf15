"""The OAuth, OpenID Connect and SMART doors over HTTP.

Owns the form (size, type, no repeated parameter), the JSON answers of RFC 6749, the way into the authorize screen, and
which pages of other origins may call; refuses to show or log a token, a code, an assertion, or anything of an error it
does not know but an id.
"""

from __future__ import annotations

import html
import logging
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.errors import Forbidden, GatewayError, OAuthError, Unauthenticated, Unavailable
from gateway.smart.clients import is_app_origin
from gateway.smart.discovery import openid_configuration, smart_configuration, style
from gateway.smart.introspection import Consents
from gateway.smart.issuer import Smart
from gateway.smart.token_endpoint import TokenEndpoint
from gateway.smart.userinfo import userinfo
from gateway.web.oauth_json import refuse_other_methods

LOG = logging.getLogger("gateway.oauth")
MAX_FORM_BYTES: Final = 65_536
_MAX_PARAMETERS: Final = 32
_THREADS: Final = 8
_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_ANY_ORIGIN: Final = {"Access-Control-Allow-Origin": "*"}
_FORM: Final = "application/x-www-form-urlencoded"
_CALLED_BY_PAGES: Final[Mapping[str, str]] = {
    "/oauth/token": "POST", "/oauth/revoke": "POST", "/oauth/introspect": "POST", "/oauth/userinfo": "GET, POST"}
T = TypeVar("T")


def router(state: Smart, consents: Consents) -> APIRouter:
    """The routes, with full paths; mount it at the root of the application. ``consents``: see ``introspection.py``."""
    endpoints = TokenEndpoint(state, consents)
    limiter: list[anyio.CapacityLimiter] = []
    routes = APIRouter()

    async def beside(work: Callable[[], T]) -> T:
        if not limiter:  # made on first use, inside the loop it belongs to
            limiter.append(anyio.CapacityLimiter(_THREADS))
        return await run_sync(work, limiter=limiter[0])

    async def posted(request: Request, endpoint: Callable[[Mapping[str, str], str | None], Any]) -> Response:
        try:
            form = await read_form(request)
            authorization = request.headers.get("Authorization")
            reply = await beside(lambda: endpoint(form, authorization))
        except Exception as error:
            return _error_response(error)
        status, headers = reply.status, dict(reply.headers)
        if reply.body.get("error") == "invalid_client" and request.headers.get("Authorization"):
            # RFC 6749 section 5.2: a client that used the header is told 401 and which scheme failed.
            status, headers["WWW-Authenticate"] = 401, 'Basic realm="OAuth"'
        return JSONResponse(dict(reply.body), status, {**headers, **_NO_STORE})

    async def shared(request: Request, answered: Awaitable[Response]) -> Response:
        """The answer, to be read by pages of the origins apps registered."""
        response, origin = await answered, request.headers.get("Origin", "")
        response.headers["Vary"] = "Origin"
        allowed: bool = await beside(lambda: _may_call(state, origin))
        if allowed:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "WWW-Authenticate, Retry-After"
        return response

    @routes.post("/oauth/token")
    async def token(request: Request) -> Response:
        return await shared(request, posted(request, endpoints.token))

    @routes.post("/oauth/revoke")
    async def revoke(request: Request) -> Response:
        return await shared(request, posted(request, endpoints.revocation))

    @routes.post("/oauth/introspect")
    async def introspect(request: Request) -> Response:
        return await shared(request, posted(request, endpoints.introspection))

    @routes.get("/oauth/userinfo")
    @routes.post("/oauth/userinfo")
    async def who(request: Request) -> Response:
        async def told() -> Response:
            try:
                authorization = request.headers.get("Authorization")
                return JSONResponse(await beside(lambda: userinfo(state, authorization)), headers=_NO_STORE)
            except Exception as error:
                return _error_response(error)
        return await shared(request, told())

    for path, methods in _CALLED_BY_PAGES.items():
        routes.add_api_route(path, _preflight(state, beside, methods), methods=["OPTIONS"], include_in_schema=False)
    @routes.get("/oauth/authorize")
    async def authorize(request: Request) -> Response:
        return await asked(request, read_query)

    @routes.post("/oauth/authorize")
    async def authorize_by_form(request: Request) -> Response:
        # A form another site's page sent: no cookie comes along, and none is asked for before the redirect to GET.
        return await asked(request, read_form)

    async def asked(request: Request, read: Callable[[Request], Awaitable[dict[str, str]]]) -> Response:
        try:
            form = await read(request)
            return _see(await beside(lambda: endpoints.authorize(form)))
        except Exception as error:
            return _page_or_json(request, error)

    @routes.get("/fhir/.well-known/smart-configuration")
    async def configuration() -> Response:
        return JSONResponse(smart_configuration(state), headers=_ANY_ORIGIN)

    @routes.get("/.well-known/openid-configuration")
    async def openid() -> Response:
        return JSONResponse(openid_configuration(state), headers=_ANY_ORIGIN)

    @routes.get("/.well-known/oauth-authorization-server")
    async def authorization_server() -> Response:
        return JSONResponse(openid_configuration(state), headers=_ANY_ORIGIN)

    @routes.get("/oauth/jwks")
    async def keys() -> Response:
        try:
            return JSONResponse(await beside(endpoints.keys.public),
                                headers={**_ANY_ORIGIN, "Cache-Control": "public, max-age=300"})
        except Exception as error:
            return _error_response(error)

    @routes.get("/oauth/style.json")
    async def styles() -> Response:
        return JSONResponse(style(state), headers={**_ANY_ORIGIN, "Cache-Control": "public, max-age=300"})

    refuse_other_methods(routes)
    return routes


async def read_form(request: Request) -> dict[str, str]:
    """The parameters of an ``application/x-www-form-urlencoded`` body (RFC 6749 section 3.2).

    An empty parameter counts as absent. Raises OAuthError ``invalid_request``.
    """
    if request.url.query:
        raise OAuthError("invalid_request", "parameters belong in the body, never in the URL")
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != _FORM:
        raise OAuthError("invalid_request", f"the body must be {_FORM}")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            raise OAuthError("invalid_request", "the body is too long")
    return _parameters(bytes(body), "body")


async def read_query(request: Request) -> dict[str, str]:
    """The parameters of the URL (RFC 6749 section 3.1). Raises OAuthError ``invalid_request``."""
    query: bytes = request.scope["query_string"]
    if len(query) > MAX_FORM_BYTES:
        raise OAuthError("invalid_request", "the URL is too long")
    return _parameters(query, "URL")


def _parameters(text: bytes, place: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text.decode("utf-8"), keep_blank_values=True, strict_parsing=bool(text), errors="strict",
                          max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise OAuthError("invalid_request", f"the {place} is not a form") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise OAuthError("invalid_request", f"a parameter stands in the {place} more than once")
    return {name: value for name, value in pairs if value}


def _preflight(state: Smart, beside: Callable[[Callable[[], bool]], Awaitable[bool]],
               methods: str) -> Callable[[Request], Awaitable[Response]]:
    async def preflight(request: Request) -> Response:
        headers = {"Allow": f"{methods}, OPTIONS", "Vary": "Origin"}
        origin = request.headers.get("Origin", "")
        if await beside(lambda: _may_call(state, origin)):
            headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Methods": methods,
                        "Access-Control-Allow-Headers": "Authorization, Content-Type, Accept",
                        "Access-Control-Max-Age": "600"}
        return Response(status_code=204, headers=headers)
    return preflight


def _may_call(state: Smart, origin: str) -> bool:
    if not origin:
        return False
    return origin in state.settings.cors_origins or is_app_origin(state.database.reader, origin)


def _see(location: str) -> Response:
    # 303, so that nothing of a POST is sent on to the app (RFC 9700 section 4.12).
    return RedirectResponse(location, 303, {**_NO_STORE, "Referrer-Policy": "no-referrer"})


def _page_or_json(request: Request, error: Exception) -> Response:
    """An error with no redirect URI to trust is told to the person alone."""
    response = _error_response(error)
    if not request.headers.get("Accept", "").startswith("text/html"):
        return response
    text = html.escape(error.description if isinstance(error, OAuthError) else "try again in a moment")
    page = ('<!doctype html><html lang="en"><meta charset="utf-8"><title>This app cannot be connected</title>'
            f"<h1>This app cannot be connected</h1><p>What the app sent is not in order: {text}.</p>"
            "<p>Nothing was shared. Go back to the app, or tell whoever runs it.</p></html>")
    return Response(page, response.status_code, {
        **_NO_STORE, "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}, "text/html")


def _error_response(error: Exception) -> Response:
    if isinstance(error, OAuthError):
        return JSONResponse({"error": error.error, "error_description": error.description}, 400, _NO_STORE)
    if isinstance(error, Unauthenticated):
        detail = f', error="{error.error}"' if error.error else ""
        return JSONResponse({"error": error.error or "invalid_token", "error_description": str(error)}, 401,
                            {**_NO_STORE, "WWW-Authenticate": f'Bearer realm="OAuth"{detail}'})
    if isinstance(error, Forbidden):
        return JSONResponse({"error": "insufficient_scope", "error_description": str(error)}, 403, {
            **_NO_STORE, "WWW-Authenticate": 'Bearer realm="OAuth", error="insufficient_scope"'})
    if isinstance(error, Unavailable):
        return JSONResponse({"error": "temporarily_unavailable"}, 503, {**_NO_STORE, "Retry-After": "2"})
    number = secrets.token_hex(8)
    # The places alone: an exception's text may hold what the client sent.
    places = "".join(traceback.format_tb(error.__traceback__))
    kind = type(error).__name__ if isinstance(error, GatewayError) else type(error).__qualname__
    LOG.error("unexpected error", extra={"error_id": number, "kind": kind, "places": places})
    return JSONResponse({"error": "server_error", "error_description": f"unexpected error {number}"}, 500, _NO_STORE)
