"""The portal's doors for people: signing in, up and out.

Owns the pages and the JSON of their scripts; refuses a form or a request that is not from a page of this origin, and to
lead anywhere but to own paths afterwards. What an act is worth is ``smart/sign_in.py``'s to say.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote

import anyio
import orjson
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.errors import (
    Forbidden,
    Misconfigured,
    NotFound,
    Throttled,
    Unauthenticated,
    Unavailable,
    Unprocessable,
)
from gateway.ledger.deployment import read_deployment
from gateway.smart import ceremonies, lockout, logins, passkeys, passwords, proofing, sessions, sign_in
from gateway.smart.issuer import Smart
from gateway.smart.logins import SignUp
from gateway.smart.sign_in import REFUSED, Browser, SignedIn
from gateway.smart.upstream import Identity, Upstream, link, login_of
from gateway.web.limits import Limits
from gateway.web.portal import session as browser_session
from gateway.web.portal.pages import PortalRoute, render, see
from gateway.web.portal.session import (
    HOME,
    check_csrf,
    check_origin,
    check_visit,
    forget_session,
    keep_device,
    keep_session,
    keep_visit,
    own_path,
    read_body,
    read_form,
    signed_in,
    visit_csrf,
    visit_of,
)

T = TypeVar("T")
PASSWORDS_AT_ONCE: Final = 2
"""Argon2id takes 64 MiB and two cores each."""
_BROWSERS: Final = (("Edg", "Edge"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
_SYSTEMS: Final = (("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows"),
                   ("Mac OS", "macOS"), ("Linux", "Linux"))
_UPSTREAM_NAME: Final = "upstream-"
_KEPT: Final = ("name", "shown", "wanted", "birth_date", "identifier")
"""What a sign-up that is refused need not be typed again; never the password."""


class Threads:
    """Where blocking acts run: few passwords at a time, the rest as they come."""

    def __init__(self) -> None:
        self._passwords: list[anyio.CapacityLimiter] = []

    async def password(self, work: Callable[[], T]) -> T:
        """``work`` hashes a password."""
        if not self._passwords:  # made on first use, inside the loop it belongs to
            self._passwords.append(anyio.CapacityLimiter(PASSWORDS_AT_ONCE))
        return await run_sync(work, limiter=self._passwords[0])

    async def act(self, work: Callable[[], T]) -> T:
        """``work`` waits for the database."""
        return await run_sync(work)


def router(smart: Smart) -> APIRouter:
    """The routes, with full paths. Raises Misconfigured where the identity provider's settings cannot work."""
    routes = APIRouter(route_class=PortalRoute, include_in_schema=False)
    threads = Threads()
    upstream = Upstream.from_settings(smart.settings, sessions.web_origin(smart.settings))
    _home(routes, smart)
    _sign_in(routes, smart, threads, upstream)
    _scripts(routes, smart, threads)
    _sign_up(routes, smart, threads)
    if upstream is not None:
        _upstream(routes, smart, threads, upstream)
    return routes


def _home(routes: APIRouter, smart: Smart) -> None:
    @routes.get("/portal")
    async def home(request: Request) -> Response:
        session = signed_in(request)
        if session is None:
            raise Unauthenticated("sign in first")
        login = logins.find_login(smart.database.reader, session.login)
        if session.state != "verified":
            return render("waiting.html", session=session, login=login)
        return render("home.html", session=session, may_proof=proofing.may_see(session.role))


def _sign_in(routes: APIRouter, smart: Smart, threads: Threads, upstream: Upstream | None) -> None:
    def page(request: Request, visit: str, *, next_path: str | None, status: int = 200, text: str = "",
             made: bool = False) -> Response:
        answer = render("sign_in.html", status=status, session=signed_in(request), csrf=visit_csrf(request, visit),
                        next=next_path or "", text=text, made=made, upstream=upstream is not None,
                        passkeys=passkeys.relying_party(smart.settings) is not None,
                        hospital=smart.settings.hospital_name, quoted_next=quote(next_path or "", safe=""))
        keep_visit(request, answer, visit)
        return answer

    @routes.get("/portal/sign-in")
    async def show(request: Request) -> Response:
        _check_confined(smart)
        return page(request, visit_of(request), next_path=own_path(request.query_params.get("next")),
                    made="made" in request.query_params)

    @routes.post("/portal/sign-in")
    async def take(request: Request) -> Response:
        form = await read_form(request)
        visit = check_visit(request, form)
        next_path = own_path(form.get("next"))
        done = await threads.password(lambda: sign_in.by_password(
            smart, form.get("name", ""), form.get("password", ""), form.get("code", ""), browser(request, visit)))
        if done is None:
            return page(request, visit, next_path=next_path, status=403, text=REFUSED)
        return _signed_in(request, done, see(next_path or HOME))

    @routes.post("/portal/sign-out")
    async def leave(request: Request) -> Response:
        form = await read_form(request)
        session = signed_in(request)
        if session is not None:
            check_csrf(session, form)
            await threads.act(lambda: sign_in.sign_out(smart, session, ids=(session.id,)))
        answer = see(browser_session.SIGN_IN)
        forget_session(request, answer)
        return answer


def _scripts(routes: APIRouter, smart: Smart, threads: Threads) -> None:
    """What the scripts of the sign-in page ask: each bound to the visit whose page it is."""
    def answered(request: Request, done: SignedIn | None, next_path: str | None) -> Response:
        if done is None:
            raise Forbidden(REFUSED)
        return _signed_in(request, done, JSONResponse({"next": own_path(next_path) or HOME}))

    @routes.post("/portal/passkey/options")
    async def options(request: Request) -> Response:
        visit, _ = await _visited(request)
        return JSONResponse(await threads.act(lambda: passkeys.begin_sign_in(smart, bound=visit)))

    @routes.post("/portal/passkey/sign-in")
    async def passkey(request: Request) -> Response:
        visit, asked = await _visited(request)
        done = await threads.act(lambda: sign_in.by_passkey(smart, asked.get("credential"), browser(request, visit)))
        return answered(request, done, _text(asked, "next"))

    @routes.post("/portal/wallet/message")
    async def message(request: Request) -> Response:
        visit, asked = await _visited(request)
        return JSONResponse({"message": await threads.act(lambda: sign_in.begin_wallet(
            smart, "wallet-use", _text(asked, "address"), chain_id=chain_id(smart), bound=visit))})

    @routes.post("/portal/wallet/sign-in")
    async def wallet(request: Request) -> Response:
        visit, asked = await _visited(request)
        done = await threads.act(lambda: sign_in.by_wallet(
            smart, _text(asked, "message"), _text(asked, "signature"), chain_id=chain_id(smart),
            browser=browser(request, visit)))
        return answered(request, done, _text(asked, "next"))


def _sign_up(routes: APIRouter, smart: Smart, threads: Threads) -> None:
    def page(request: Request, visit: str, *, status: int = 200, text: str = "", given: dict[str, str] | None = None,
             handle: str = "") -> Response:
        answer = render("sign_up.html", status=status, csrf=visit_csrf(request, visit), text=text,
                        given={name: (given or {}).get(name, "") for name in _KEPT}, handle=handle,
                        hospital=smart.settings.hospital_name, least=passwords.MIN_LENGTH)
        keep_visit(request, answer, visit)
        return answer

    @routes.get("/portal/sign-up")
    async def show(request: Request) -> Response:
        _check_confined(smart)
        return page(request, visit_of(request), handle=request.query_params.get("upstream", "")[:100])

    @routes.post("/portal/sign-up")
    async def take(request: Request) -> Response:
        form = await read_form(request)
        visit, handle = check_visit(request, form), form.get("upstream", "")
        try:
            name = _UPSTREAM_NAME + secrets.token_hex(12) if handle else form.get("name", "")
            if not handle and logins.fold(name).startswith(_UPSTREAM_NAME):
                raise Unprocessable("choose another login name")
            asked = logins.checked(SignUp(
                name=name, shown=form.get("shown", ""), wanted=form.get("wanted", ""),
                birth_date=form.get("birth_date", ""), identifier=form.get("identifier", "")))
            if not handle:
                passwords.check_new_password(form.get("password", ""), login_name=asked.name)
                if form.get("password") != form.get("again"):
                    raise Unprocessable("the two passwords differ")
        except Unprocessable as error:
            return page(request, visit, status=422, text=str(error), given=form, handle=handle)
        made_by = browser(request, visit)
        if handle:
            done = await threads.act(lambda: _up_by_upstream(smart, asked, handle, made_by))
            if done is None:
                raise Forbidden(REFUSED)
            return _signed_in(request, done, see(HOME))
        await threads.password(lambda: _up_by_password(smart, asked, form.get("password", ""), made_by))
        # The same answer whether the name was free or not: it tells nobody who has a login here.
        return see(f"{browser_session.SIGN_IN}?made=1")


def _upstream(routes: APIRouter, smart: Smart, threads: Threads, upstream: Upstream) -> None:
    @routes.get("/portal/upstream")
    async def away(request: Request) -> Response:
        _check_confined(smart)
        visit, next_path = visit_of(request), own_path(request.query_params.get("next"))
        # Who comes here with a session is to confirm that it is them.
        anew = signed_in(request) is not None
        url = await threads.act(lambda: upstream.begin(smart, bound=visit, next_path=next_path, anew=anew))
        answer = Response(status_code=303, headers={"Location": url, "Cache-Control": "no-store",
                                                    "Referrer-Policy": "no-referrer"})
        keep_visit(request, answer, visit)
        return answer

    @routes.get("/portal/upstream/callback")
    async def back(request: Request) -> Response:
        visit, query = visit_of(request), dict(request.query_params)
        who = await threads.act(lambda: upstream.finish(smart, query, bound=visit))
        if login_of(smart.database.reader, who) is not None:
            done = await threads.act(lambda: sign_in.by_upstream(smart, who, browser(request, visit)))
            if done is None:
                raise Forbidden(REFUSED)
            return _signed_in(request, done, see(own_path(who.next_path) or HOME))
        # Nobody's yet: they say who they are, and the records office says whether it is so. No e-mail address counts.
        handle = await threads.act(lambda: _hold(smart, who, visit))
        return see(f"/portal/sign-up?upstream={handle}")


def _hold(smart: Smart, who: Identity, visit: str) -> str:
    handle = secrets.token_urlsafe(24)
    smart.database.transact(lambda connection: ceremonies.begin(
        connection, smart, "upstream-new", handle, bound=visit, now_ms=smart.now_ms(),
        body={"issuer": who.issuer, "subject": who.subject, "auth_time_ms": who.auth_time_ms}))
    return handle


def _up_by_password(smart: Smart, asked: SignUp, password: str, made_by: Browser) -> None:
    source = lockout.source_of(smart, made_by.address)
    logins.check_room(smart.database.reader, source)  # before a password is hashed for nobody
    _count_sign_up(smart, made_by)
    hashed = passwords.hash_password(password)
    smart.database.transact(lambda connection: logins.sign_up(
        connection, smart, asked, password_hash=hashed, source=source, now_ms=smart.now_ms()))


def _up_by_upstream(smart: Smart, asked: SignUp, handle: str, made_by: Browser) -> SignedIn | None:
    _count_sign_up(smart, made_by)
    now_ms = smart.now_ms()
    body = smart.database.transact(lambda connection: ceremonies.finish(
        connection, smart, "upstream-new", handle, bound=made_by.visit, now_ms=now_ms))

    who = Identity(issuer=body["issuer"], subject=body["subject"], auth_time_ms=body["auth_time_ms"], next_path=None)

    def work(connection: Any) -> None:
        # The provider vouches for them, and each of its people is one.
        login_id = logins.sign_up(connection, smart, asked, password_hash=None, source=None, now_ms=now_ms)
        if login_id is None:
            raise Unprocessable("try once more")
        link(connection, issuer=who.issuer, subject=who.subject, login=login_id, now_ms=now_ms)
    smart.database.transact(work)
    return sign_in.by_upstream(smart, who, made_by)


def _count_sign_up(smart: Smart, made_by: Browser) -> None:
    counted = (lockout.by_sign_up(smart, made_by.address),)
    if not smart.database.transact(lambda connection: lockout.reserve(connection, counted, smart.now_ms())):
        raise Throttled("too many sign-ups from here: wait a little")


def browser(request: Request, visit: str) -> Browser:
    """What a request says of the browser it comes from."""
    settings = browser_session.smart_of(request).settings
    limits: Limits = request.app.state.limits
    return Browser(visit=visit, cookie=request.cookies.get(sessions.cookie_name(settings)),
                   known_device=browser_session.known_device(request), address=limits.address(request.scope),
                   device=device_name(request.headers.get("User-Agent", "")))


def device_name(agent: str) -> str:
    """What a person recognises their browser by; nothing else of the User-Agent is kept."""
    program = next((name for mark, name in _BROWSERS if mark in agent), "A browser")
    system = next((name for mark, name in _SYSTEMS if mark in agent), "")
    return f"{program} on {system}" if system else program


def chain_id(smart: Smart) -> int:
    """The chain this hospital's registry is on. Raises Unavailable before the first start is through."""
    if smart.settings.chain_id:
        return smart.settings.chain_id
    try:
        return read_deployment(smart.settings).chain_id
    except Misconfigured as error:
        raise Unavailable("the chain is not known yet") from error


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object a script of a page sent. Raises Forbidden, Unprocessable."""
    check_origin(request)
    if not request.headers.get("Content-Type", "").startswith("application/json"):
        raise Unprocessable("this takes application/json")
    try:
        body = orjson.loads(await read_body(request))
    except orjson.JSONDecodeError:
        raise Unprocessable("the body is not JSON") from None
    if not isinstance(body, dict):
        raise Unprocessable("the body is not a JSON object")
    return body


async def _visited(request: Request) -> tuple[str, dict[str, Any]]:
    asked = await read_json(request)
    return check_visit(request, {"csrf": _text(asked, "csrf")}), asked


def _text(asked: dict[str, Any], name: str) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise Unprocessable(f"{name} is text")
    return value


def _signed_in(request: Request, done: SignedIn, answer: Response) -> Response:
    keep_session(request, answer, done.cookie)
    if done.known_device is not None:
        keep_device(request, answer, done.known_device)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _check_confined(smart: Smart) -> None:
    """A session's cookie over plain http would be anyone's on the way: loopback alone has no way."""
    origin = sessions.web_origin(smart.settings)
    if not sessions.is_secure(smart.settings) and \
            re.fullmatch(r"http://(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", origin) is None:
        raise NotFound("people sign in over https: GATEWAY_BASE_URL must name it")
