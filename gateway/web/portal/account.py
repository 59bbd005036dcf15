"""The account page: what a person signs in with, and where they are signed in.

Owns its forms and the JSON of its scripts; refuses each without the session's own token. What a change takes is
``smart/factors.py``'s to say.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.errors import Unauthenticated, Unprocessable
from gateway.smart import factors, logins, passkeys, passwords, sessions, sign_in
from gateway.smart.accounts import find_account
from gateway.smart.issuer import Smart
from gateway.smart.sessions import Session
from gateway.web.portal.pages import PortalRoute, render, see
from gateway.web.portal.people import Threads, chain_id, read_json
from gateway.web.portal.qr_code import picture
from gateway.web.portal.session import SIGN_IN, check_csrf, forget_session, read_form, signed_in

ACCOUNT = "/portal/account"


def router(smart: Smart) -> APIRouter:
    """The routes, with full paths."""
    routes = APIRouter(route_class=PortalRoute, include_in_schema=False)
    threads = Threads()
    _page(routes, smart, threads)
    _codes(routes, smart, threads)
    _passkeys(routes, smart, threads)
    _wallet(routes, smart, threads)
    _sessions(routes, smart, threads)
    return routes


def _page(routes: APIRouter, smart: Smart, threads: Threads) -> None:
    @routes.get(ACCOUNT)
    async def show(request: Request) -> Response:
        return account_page(smart, person(request))

    @routes.post("/portal/account/password")
    async def password(request: Request) -> Response:
        session, form = await posted(request)
        factors.check_recent(smart, session)
        new = form.get("new", "")
        try:
            if new != form.get("again"):
                raise Unprocessable("the two passwords differ")
            done = await threads.password(lambda: sign_in.change_password(smart, session, form.get("old", ""), new))
        except Unprocessable as error:
            return account_page(smart, session, status=422, text=str(error))
        if not done:
            return account_page(smart, session, status=403, text="The present password is not this one.")
        return account_page(smart, session, done="The password is changed; your other sessions have ended.")


def _codes(routes: APIRouter, smart: Smart, threads: Threads) -> None:
    @routes.post("/portal/account/codes/begin")
    async def begin(request: Request) -> Response:
        session, _ = await posted(request)
        seed, uri = await threads.act(lambda: factors.begin_codes(smart, session))
        return render("codes.html", session=session, seed=seed, uri=uri, text="", picture=picture(uri))

    @routes.post("/portal/account/codes/confirm")
    async def confirm(request: Request) -> Response:
        session, form = await posted(request)
        try:
            made = await threads.act(lambda: factors.confirm_codes(smart, session, form.get("code", "")))
        except Unprocessable as error:
            return render("codes.html", status=422, session=session, seed="", uri="", text=str(error),
                          picture=None)
        return render("recovery.html", session=session, codes=made)

    @routes.post("/portal/account/codes/recovery")
    async def recovery(request: Request) -> Response:
        session, _ = await posted(request)
        return render("recovery.html", session=session,
                      codes=await threads.act(lambda: factors.renew_recovery(smart, session)))

    @routes.post("/portal/account/codes/remove")
    async def remove(request: Request) -> Response:
        session, _ = await posted(request)
        await threads.act(lambda: factors.remove_codes(smart, session))
        return see(ACCOUNT)


def _passkeys(routes: APIRouter, smart: Smart, threads: Threads) -> None:
    @routes.post("/portal/account/passkeys/options")
    async def options(request: Request) -> Response:
        session, _ = await asked(request)
        return JSONResponse(await threads.act(lambda: factors.begin_passkey(smart, session)))

    @routes.post("/portal/account/passkeys")
    async def add(request: Request) -> Response:
        session, body = await asked(request)
        name = body.get("name")
        await threads.act(lambda: factors.add_passkey(
            smart, session, name=name if isinstance(name, str) else "", credential=body.get("credential")))
        return JSONResponse({"next": ACCOUNT}, 201)

    @routes.post("/portal/account/passkeys/{id_}/remove")
    async def remove(request: Request, id_: str) -> Response:
        session, _ = await posted(request)
        await threads.act(lambda: factors.remove_passkey(smart, session, id_))
        return see(ACCOUNT)


def _wallet(routes: APIRouter, smart: Smart, threads: Threads) -> None:
    @routes.post("/portal/account/wallet/message")
    async def message(request: Request) -> Response:
        session, body = await asked(request)
        factors.check_wallet(smart, session)
        return JSONResponse({"message": await threads.act(lambda: sign_in.begin_wallet(
            smart, "wallet-add", str(body.get("address", "")), chain_id=chain_id(smart), bound=session.id))})

    @routes.post("/portal/account/wallet")
    async def add(request: Request) -> Response:
        session, body = await asked(request)
        address = await threads.act(lambda: factors.add_wallet(
            smart, session, str(body.get("message", "")), str(body.get("signature", "")), chain_id=chain_id(smart)))
        return JSONResponse({"address": address, "next": ACCOUNT}, 201)


def _sessions(routes: APIRouter, smart: Smart, threads: Threads) -> None:
    @routes.post("/portal/account/sessions/end-all")
    async def everywhere(request: Request) -> Response:
        session, _ = await posted(request)
        await threads.act(lambda: sign_in.sign_out(smart, session))
        answer = see(SIGN_IN)
        forget_session(request, answer)
        return answer

    @routes.post("/portal/account/sessions/{id_}/end")
    async def end(request: Request, id_: str) -> Response:
        session, _ = await posted(request)
        await threads.act(lambda: sign_in.sign_out(smart, session, ids=(id_,)))
        return see(ACCOUNT)


def account_page(smart: Smart, session: Session, *, status: int = 200, text: str = "", done: str = "") -> Response:
    """The page as it stands now."""
    connection, now_ms = smart.database.reader, smart.now_ms()
    login = logins.find_login(connection, session.login)
    if login is None:
        raise Unauthenticated("sign in first")
    account = find_account(connection, session.user) if session.user is not None else None
    return render(
        "account.html", status=status, session=session, login=login, account=account, text=text, done=done,
        recent=session.is_recent(now_ms) and session.state != "rejected",
        factors=logins.factors_of(connection, login), passkeys=passkeys.passkeys_of(connection, login.id),
        passkeys_possible=passkeys.relying_party(smart.settings) is not None,
        recovery_left=logins.recovery_codes_left(connection, login.id),
        sessions=sessions.sessions_of(connection, login.id, now_ms), least=passwords.MIN_LENGTH)


def person(request: Request) -> Session:
    """Who is signed in. Raises Unauthenticated, which leads to the sign-in page."""
    session = signed_in(request)
    if session is None:
        raise Unauthenticated("sign in first")
    return session


async def posted(request: Request) -> tuple[Session, dict[str, str]]:
    """The session and the form that is its own. Raises Unauthenticated, Forbidden."""
    form = await read_form(request)
    session = person(request)
    check_csrf(session, form)
    return session, form


async def asked(request: Request) -> tuple[Session, dict[str, object]]:
    """The session and the JSON a script of its page sent. Raises Unauthenticated, Forbidden."""
    body = await read_json(request)
    session = person(request)
    check_csrf(session, {"csrf": str(body.get("csrf", ""))})
    return session, body

