"""Who is behind a request of a browser, and whether a form may be believed.

Owns the cookies of the portal, the redirect to sign-in (to own paths alone) and the check of forms; refuses a form that
another site sent: it must carry the token of its session *and* come from this origin.
https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.errors import Forbidden, TooLarge, UnsupportedMedia
from gateway.smart import sessions
from gateway.smart.issuer import Smart
from gateway.smart.sessions import Session

SIGN_IN: Final = "/portal/sign-in"
HOME: Final = "/portal"
MAX_FORM_BYTES: Final = 65_536
_OWN: Final = re.compile(r"/(portal|oauth)(?:[/?][!#$%&'()*+,./0-9:;=?@A-Z_a-z~\-]*)?")
_VISIT_LENGTH: Final = 43


def smart_of(request: Request) -> Smart:
    """The authorization server's state, which the application holds."""
    smart: Smart = request.app.state.smart
    return smart


def signed_in(request: Request) -> Session | None:
    """The session of the browser, if it has one now. ``user`` is None where it stands for nobody yet."""
    smart = smart_of(request)
    return sessions.session_of(smart, request.cookies.get(sessions.cookie_name(smart.settings)))


def own_path(path: str | None) -> str | None:
    """``path`` if it is a page of this origin, else None: no scheme, no host, no backslash, no control character."""
    if path is None or len(path) > 2_000 or _OWN.fullmatch(path) is None:
        return None
    return path


def sign_in_redirect(request: Request, next_path: str) -> Response:
    """303 to the sign-in page, from which the person comes back to ``next_path``."""
    path = own_path(next_path)
    return RedirectResponse(SIGN_IN + (f"?next={quote(path, safe='/')}" if path else ""), 303,
                            {"Cache-Control": "no-store"})


def check_csrf(session: Session, form: Mapping[str, str]) -> None:
    """The form's ``csrf`` field is the session's. Raises Forbidden. ``check_origin`` is the other half."""
    if not sessions.same(form.get("csrf", ""), session.csrf):
        raise Forbidden("this form is not from your session: open the page again and send it once more")


def check_origin(request: Request) -> None:
    """A request that changes something comes from a page of this origin. Raises Forbidden."""
    settings = smart_of(request).settings
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        raise Forbidden("this request came from another site")
    origin = request.headers.get("Origin")
    if origin is None:
        referer = request.headers.get("Referer", "")
        match = re.match(r"https?://[^/?#]+", referer)
        origin = match[0] if match else None
    if origin is None and site is None:
        raise Forbidden("the browser does not say which page this came from")
    if origin is not None and origin.lower() != sessions.web_origin(settings):
        raise Forbidden(f"this request came from another address than {sessions.web_origin(settings)}")


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; one given several times is joined by spaces (checkboxes).

    Raises TooLarge, UnsupportedMedia, Forbidden when it comes from another origin.
    """
    check_origin(request)
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise UnsupportedMedia("a form is application/x-www-form-urlencoded")
    return fields_of(await read_body(request))


async def read_body(request: Request) -> bytes:
    """The body, of at most ``MAX_FORM_BYTES``. Raises TooLarge."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            raise TooLarge(f"a form has at most {MAX_FORM_BYTES} bytes")
    return bytes(body)


def fields_of(body: bytes) -> dict[str, str]:
    """Names and values of a URL-encoded form. Raises UnsupportedMedia."""
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=500)
    except ValueError:
        raise UnsupportedMedia("the body is not a form") from None
    fields: dict[str, str] = {}
    for name, value in pairs:
        fields[name] = f"{fields[name]} {value}" if name in fields else value
    return fields


def visit_of(request: Request) -> str:
    """The value that binds a browser's forms and ceremonies before it has a session; a new one if it has none."""
    value = request.cookies.get(_visit_name(request), "")
    return value if len(value) == _VISIT_LENGTH and re.fullmatch(r"[\w-]+", value, re.ASCII) else new_visit()


def new_visit() -> str:
    """A fresh one."""
    return secrets.token_urlsafe(32)


def visit_csrf(request: Request, visit: str) -> str:
    """What a form shown before sign-in carries."""
    return sessions.csrf_of(smart_of(request), f"visit {visit}")


def check_visit(request: Request, form: Mapping[str, str]) -> str:
    """The visit whose form this is. Raises Forbidden (login CSRF)."""
    visit = request.cookies.get(_visit_name(request), "")
    if not visit or not sessions.same(form.get("csrf", ""), visit_csrf(request, visit)):
        raise Forbidden("this form has expired: open the page again (cookies must be allowed)")
    return visit


def keep_visit(request: Request, response: Response, visit: str) -> None:
    """Have the browser keep its visit for an hour."""
    _set(request, response, _visit_name(request), visit, max_age_s=3_600)


def keep_session(request: Request, response: Response, value: str) -> None:
    """Have the browser keep its session until it ends itself; the visit before it is forgotten."""
    settings = smart_of(request).settings
    _set(request, response, sessions.cookie_name(settings), value, max_age_s=sessions.LIFE_MS // 1_000)
    _set(request, response, _visit_name(request), "", max_age_s=0)


def forget_session(request: Request, response: Response) -> None:
    """Have the browser drop its session."""
    _set(request, response, sessions.cookie_name(smart_of(request).settings), "", max_age_s=0)


def known_device(request: Request) -> str:
    """What a browser keeps that a password once opened from; empty when it keeps nothing."""
    return request.cookies.get(_device_name(request), "")[:200]


def keep_device(request: Request, response: Response, value: str) -> None:
    """Have the browser keep that for a year."""
    _set(request, response, _device_name(request), value, max_age_s=365 * 86_400)


def _visit_name(request: Request) -> str:
    return sessions.cookie_name(smart_of(request).settings) + "-visit"


def _device_name(request: Request) -> str:
    return sessions.cookie_name(smart_of(request).settings) + "-device"


def _set(request: Request, response: Response, name: str, value: str, *, max_age_s: int) -> None:
    # Lax: the way back from an identity provider or an app is a navigation from another site.
    response.set_cookie(name, value, max_age=max_age_s, path="/", secure=sessions.is_secure(smart_of(request).settings),
                        httponly=True, samesite="lax")
