"""The apps page: what a person lets apps do, and its end; for administrators, the apps that wait to be let in.

Owns the list of one's own authorizations in plain words, and a patient's of what others let apps do with their record;
ending one or all, and the hospital's yes or no to an app. Refuses any other person's.
https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html#metadata (management_endpoint)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.access.roles import policy
from gateway.access.scopes import parse
from gateway.access.words import OF_A_PATIENT, sentences, words
from gateway.errors import Conflict, Forbidden, GatewayError, InputRefused, NotFound
from gateway.records.node import Node
from gateway.smart import approvals
from gateway.smart.accounts import find_account
from gateway.smart.approvals import Decider
from gateway.smart.authorization import (
    Authorization,
    audit,
    authorizations_about,
    authorizations_of,
    find_authorization,
    revoke_authorization,
)
from gateway.smart.clients import find_client
from gateway.smart.issuer import Smart
from gateway.smart.sessions import Session
from gateway.web.portal import lasting
from gateway.web.portal.acting import person, voice_of
from gateway.web.portal.pages import PortalRoute, render, see
from gateway.web.portal.session import HOME, check_csrf, read_form, signed_in

APPS: Final = "/portal/apps"
WAITING: Final = "/portal/apps/waiting"
_ADMINISTRATOR: Final = "administrator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One authorization as its person, or its patient, reads it. ``who``: whose it is, where it is another's."""

    id: str
    app: str
    who: str | None
    may: tuple[str, ...]
    knows_who: bool
    patient: str | None
    purpose: str
    reason: str | None
    lasting: bool
    created_ms: int
    used_ms: int
    expires_ms: int


def router(node: Node, smart: Smart) -> APIRouter:
    """The routes, with full paths."""
    routes = APIRouter(route_class=PortalRoute)
    _own(routes, node, smart)
    _queue(routes, smart)
    return routes


def _own(routes: APIRouter, node: Node, smart: Smart) -> None:
    def page(session: Session, *, done: str = "", problem: str = "") -> Response:
        return render("apps.html", status=409 if problem else 200, session=session, apps=_shown(smart, session),
                      others=_shown_of_others(smart, session), done=done, problem=problem,
                      administrator=session.role == _ADMINISTRATOR)

    async def ended(request: Request, session: Session, found: Sequence[Authorization], done: str) -> Response:
        await asyncio.to_thread(_end, smart, session, found)
        try:
            for consent in dict.fromkeys(one.consent for one in found if one.consent and one.user == session.user):
                await lasting.end_consent(node, request, consent)
        except GatewayError:
            return page(session, problem="The access has ended. A permission it rested on could not be withdrawn "
                                         "just now: look at your permissions.")
        return page(session, done=done)

    @routes.get(APPS, include_in_schema=False)
    async def show(request: Request) -> Response:
        session = signed_in(request)
        if session is not None and session.user is None:
            return see(HOME)  # which says what this person waits for
        return page(person(request))

    @routes.post("/portal/apps/revoke", include_in_schema=False)
    async def revoke(request: Request) -> Response:
        form = await read_form(request)  # whole, however slowly it comes: only then is asked whose it is
        session = person(request)
        check_csrf(session, form)
        found = [one for one in (*_standing(smart, session), *_of_others(smart, session)) if one.id == form.get("id")]
        if not found:
            return page(session, problem="This access had ended already.")
        return await ended(request, session, found, "The access has ended.")

    @routes.post("/portal/apps/revoke-all", include_in_schema=False)
    async def revoke_all(request: Request) -> Response:
        form = await read_form(request)  # whole, however slowly it comes: only then is asked whose it is
        session = person(request)
        check_csrf(session, form)
        return await ended(request, session, authorizations_of(smart.database.reader, str(session.user)),
                           "No app has access through you any more.")


def _queue(routes: APIRouter, smart: Smart) -> None:
    def page(session: Session, *, problem: str = "") -> Response:
        return render("apps_waiting.html", status=422 if problem else 200, session=session, waiting=_waiting(smart),
                      problem=problem)

    @routes.get(WAITING, include_in_schema=False)
    async def show(request: Request) -> Response:
        return page(_administrator(request))

    @routes.post("/portal/apps/waiting/{client_id}", include_in_schema=False)
    async def decide(request: Request, client_id: str) -> Response:
        form = await read_form(request)
        session = _administrator(request)
        check_csrf(session, form)
        by = Decider(user=session.user, role=_ADMINISTRATOR, client="portal")
        # Decided is what was read: a registration changed meanwhile waits for another look.
        seen = next((one for one in _waiting(smart) if one["client_id"] == client_id), None)
        if seen is None or seen["revision"] != form.get("revision"):
            return page(session, problem="This registration changed or was decided meanwhile: look at it again.")
        try:
            if form.get("decision") == "approve":
                await asyncio.to_thread(lambda: approvals.approve(
                    smart, client_id, by, revision=form["revision"]))
            else:
                await asyncio.to_thread(lambda: approvals.reject(smart, client_id, by, reason=form.get("reason", "")))
        except (Conflict, NotFound) as error:
            return page(session, problem=str(error))
        except InputRefused as error:
            return page(session, problem=" ".join(issue.diagnostics for issue in error.issues))
        return see(WAITING)


def _administrator(request: Request) -> Session:
    session = person(request)
    if session.role != _ADMINISTRATOR:
        raise Forbidden("this is for administrators")
    return session


def _standing(smart: Smart, session: Session) -> list[Authorization]:
    now_ms = smart.now_ms()
    return [one for one in authorizations_of(smart.database.reader, str(session.user)) if one.expires_ms > now_ms]


def _of_others(smart: Smart, session: Session) -> list[Authorization]:
    """What others let apps do with the record of a patient: theirs to know as who reads it is, and theirs to end. Not a
    delegate's to know: which apps a patient's clinicians use tells what they are treated for."""
    if session.role != "patient":
        return []
    now_ms = smart.now_ms()
    return [one for one in authorizations_about(smart.database.reader, str(session.user)) if one.expires_ms > now_ms]


def _shown(smart: Smart, session: Session) -> list[Shown]:
    return [_one(smart, session, one, who=None) for one in _standing(smart, session)]


def _shown_of_others(smart: Smart, session: Session) -> list[Shown]:
    found = []
    for one in _of_others(smart, session):
        account = find_account(smart.database.reader, one.user)
        found.append(_one(smart, session, one, who=one.user if account is None else f"{account.name}, {account.role}"))
    return found


def _one(smart: Smart, session: Session, one: Authorization, *, who: str | None) -> Shown:
    purposes, client = policy().purposes, find_client(smart.database.reader, one.client)
    return Shown(
        id=one.id, app=one.client if client is None else client.name, who=who,
        may=sentences(one.scopes, voice_of(session), words()), knows_who="openid" in one.scopes.others,
        patient=None if one.patient == session.user else one.patient,
        purpose=purposes[one.purpose].text if one.purpose in purposes else one.purpose, reason=one.reason,
        lasting=one.access == "offline", created_ms=one.created_ms, used_ms=one.used_ms, expires_ms=one.expires_ms)


def _end(smart: Smart, session: Session, found: Sequence[Authorization]) -> None:
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        for one in found:
            now = find_authorization(connection, one.id)
            if now is not None and session.user in (now.user, now.patient) and revoke_authorization(
                    connection, one.id, now_ms):
                audit(smart, connection, "authorization-ended", "D", now, str(session.role), now_ms, by=session.user)
    smart.database.transact(work)


def _waiting(smart: Smart) -> list[dict[str, Any]]:
    found = []
    for line in approvals.list_clients(smart, "pending"):
        told = approvals.show(smart, line["client_id"])
        found.append({**told, "may": _may(told["scope"]), "asked": told.get("registration", {}).get("asked"),
                      "changes": told.get("registration", {}).get("changes", {})})
    return found


def _may(scope: str) -> tuple[str, ...]:
    return sentences(parse(scope), OF_A_PATIENT, words())
