"""Who waits to be verified, for the privacy officer and the records office: a page, and JSON for their own systems.

Owns the list and the two answers; refuses a session that may not give them. What may be decided is
``smart/proofing.py``'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.errors import Conflict, Forbidden, Unprocessable
from gateway.smart import proofing
from gateway.smart.issuer import Smart
from gateway.smart.proofing import Decider
from gateway.smart.sessions import Session
from gateway.web.portal.account import asked, person, posted
from gateway.web.portal.pages import PortalRoute, render, see, wants_json
from gateway.web.portal.people import Threads

PROOFING = "/portal/proofing"


def router(smart: Smart) -> APIRouter:
    """The routes, with full paths."""
    routes = APIRouter(route_class=PortalRoute, include_in_schema=False)
    threads = Threads()

    async def listed(request: Request, session: Session, *, status: int = 200, text: str = "") -> Response:
        found = await threads.act(lambda: proofing.waiting(smart, _decider(session)))
        if wants_json(request):
            return JSONResponse({"csrf": session.csrf, "waiting": [
                {**asdict(one), "ready": one.is_ready} for one in found]}, headers={"Cache-Control": "no-store"})
        return render("proofing.html", status=status, session=session, waiting=found, text=text)

    @routes.get(PROOFING)
    async def show(request: Request) -> Response:
        return await listed(request, person(request))

    @routes.post(PROOFING + "/{login_id}/verify")
    async def verify(request: Request, login_id: str) -> Response:
        session, given = await _given(request)
        organizations = given.get("organizations", "").split()
        return await answered(request, session, lambda: proofing.verify(
            smart, login_id, fhir_user=given.get("user", "").strip(), decider=_decider(session),
            organizations=organizations))

    @routes.post(PROOFING + "/{login_id}/reject")
    async def reject(request: Request, login_id: str) -> Response:
        session, given = await _given(request)
        return await answered(request, session, lambda: proofing.reject(
            smart, login_id, reason=given.get("reason", ""), decider=_decider(session)))

    async def answered(request: Request, session: Session, act: Callable[[], None]) -> Response:
        try:
            await threads.act(act)
        except (Unprocessable, Conflict) as error:
            if wants_json(request):
                raise
            return await listed(request, session, status=422, text=str(error))
        return JSONResponse({"done": True}) if wants_json(request) else see(PROOFING)

    return routes


async def _given(request: Request) -> tuple[Session, dict[str, str]]:
    if not wants_json(request):
        return await posted(request)
    session, body = await asked(request)
    given: dict[str, str] = {}
    for name, value in body.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            given[name] = " ".join(value)
        elif isinstance(value, str):
            given[name] = value
        else:
            raise Unprocessable(f"{name[:40]!r} is text, or a list of texts")
    return session, given


def _decider(session: Session) -> Decider:
    if session.user is None or session.role is None:
        raise Forbidden("this is for the privacy officer and the records office")
    return Decider(user=session.user, role=session.role)
