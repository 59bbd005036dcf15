"""Pages: templates rendered with the headers every page has, the static files, and the portal's error face.

Owns the Content-Security-Policy (nothing inline, nothing from elsewhere, no frame); refuses to show anything of an
unknown error but an id. https://www.w3.org/TR/CSP3/
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.errors import NotFound, Unauthenticated
from gateway.web.errors import rendered

FOLDER: Final = Path(__file__).parent
_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
                 ".svg": "image/svg+xml"}
_HEADERS: Final = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()"}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def content_policy(form_action: Sequence[str] = ()) -> str:
    """The policy of a page. ``form_action``: origins (or ``scheme:``) a form's answer may redirect to, besides here."""
    for source in form_action:
        if any(character in source for character in "; ,\r\n'\"") or not source.isascii() or not source:
            raise ValueError("not a source of a content policy")
    targets = " ".join(("'self'", *form_action))
    return ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            f"form-action {targets}; frame-ancestors 'none'; base-uri 'none'")


def render(name: str, *, status: int = 200, form_action: Sequence[str] = (), **context: Any) -> Response:
    """The template ``name`` as a page.

    Give ``session`` (or None) where there is one: the page's head shows it, and its forms need ``session.csrf``.
    """
    body = _environment().get_template(name).render({"session": None, **context})
    return Response(body, status, {**_HEADERS, "Content-Security-Policy": content_policy(form_action)},
                    "text/html; charset=utf-8")


def see(path: str) -> Response:
    """303 to an own path."""
    return RedirectResponse(path, 303, {"Cache-Control": "no-store", "Referrer-Policy": "same-origin"})


def error_page(request: Request, error: Exception) -> Response:
    """The portal's face of an error: a page, or JSON for the scripts of a page."""
    status, issues, headers = rendered(error)
    headers = {name: value for name, value in headers.items() if name != "WWW-Authenticate"}
    text = " ".join(issue.diagnostics for issue in issues)
    if wants_json(request):
        return JSONResponse({"error": text}, status, {**_HEADERS, **headers})
    page = render("error.html", status=status, title=_title(status), text=text)
    page.headers.update(headers)
    return page


def wants_json(request: Request) -> bool:
    """Whether a program asks, not a person."""
    return (request.headers.get("Content-Type", "").startswith("application/json")
            or request.headers.get("Accept", "").startswith("application/json"))


class PortalRoute(APIRoute):
    """A route whose errors are pages. ``APIRouter(route_class=PortalRoute)``.

    Unauthenticated leads to the sign-in page and back.
    """

    def get_route_handler(self) -> Handler:
        """The handler with its errors rendered."""
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            from gateway.web.portal.session import sign_in_redirect

            try:
                return await handler(request)
            except Unauthenticated as error:
                if request.method != "GET" or wants_json(request):
                    return error_page(request, error)
                query = f"?{request.url.query}" if request.url.query else ""
                return sign_in_redirect(request, request.url.path + query)
            except Exception as error:
                return error_page(request, error)
        return answered


def static_router() -> APIRouter:
    """``/portal/static/*``: the files of this folder, each under its own name, revalidated by its hash."""
    routes = APIRouter(route_class=PortalRoute)
    files: Mapping[str, tuple[bytes, str, str]] = {
        path.name: (body := path.read_bytes(), _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        for path in sorted((FOLDER / "static").iterdir()) if path.suffix in _TYPES}

    @routes.get("/portal/static/{name}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        if name not in files:
            raise NotFound("there is no such file")
        body, media_type, tag = files[name]
        headers = {"Cache-Control": "no-cache", "ETag": tag, "X-Content-Type-Options": "nosniff",
                   "Cross-Origin-Resource-Policy": "same-origin"}
        if request.headers.get("If-None-Match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, 200, headers, media_type)

    return routes


def missing_router() -> APIRouter:
    """What no other route of the portal answers is a page too; include it after all of them."""
    routes = APIRouter(route_class=PortalRoute)

    @routes.api_route("/portal/{_:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def missing() -> Response:
        raise NotFound("there is no such page")

    return routes


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(loader=jinja2.FileSystemLoader(FOLDER / "templates"), autoescape=True,
                              undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["moment"] = _moment
    return made


def _moment(time_ms: int) -> str:
    """Epoch milliseconds as a person reads them, UTC."""
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%-d %B %Y, %H:%M UTC")


def _title(status: int) -> str:
    return {403: "Not allowed", 404: "Not found", 429: "Too much at once", 503: "Not available just now"}.get(
        status, "That did not work" if status < 500 else "Something went wrong here")
