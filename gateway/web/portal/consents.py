"""The page of a patient's permissions: what waits for their signature, what they permit or forbid, and its end.

Owns its forms and the JSON of its scripts; refuses whoever is neither the patient nor who represents them. What is
signed, and by whom, is ``records/granting.py``'s to judge. ``FORMATS.md``, Consent. Works without scripts,
but for wallets and passkeys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.errors import Conflict, Forbidden, InputRefused, Moved, NotFound, Unprocessable
from gateway.fhir.resource import Resource, format_instant, parse
from gateway.records import access_list, granting, read, revoking, revoking_all, write
from gateway.records.consent_signers import end_unsigned, is_late, signers_of
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.smart.sessions import Session
from gateway.store.sql import now_ms
from gateway.web.portal import lasting
from gateway.web.portal.account import asked, posted
from gateway.web.portal.acting import caller_of, person
from gateway.web.portal.pages import PortalRoute, render, see

CONSENTS: Final = "/portal/consents"
ALL: Final = "_all"
"""Stands where a Consent's id does: everything at once. No FHIR id has this character."""
_SHOWN_MAX: Final = 50
_ID: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_SENT: Final = ("kind", "credential", "signature", "authenticatorData", "clientDataJSON")
_CHANGE: Final = (Conflict, InputRefused, Moved, NotFound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One version of a Consent as its patient reads it. ``words`` empty: terms that nobody can sign; ``refusal``: the
    contract's error; ``late``: to be proposed anew before it can be signed; ``unended``: the address whose signature
    the chain waits for."""

    id: str
    version: str
    state: str
    words: str
    forbids: bool
    signer: str | None
    signed: str | None
    refusal: str | None
    late: bool
    unended: str | None


def router(node: Node) -> APIRouter:
    """The routes, with full paths."""
    routes = APIRouter(route_class=PortalRoute, include_in_schema=False)
    _pages(routes, node)
    _scripts(routes, node)
    return routes


def _pages(routes: APIRouter, node: Node) -> None:
    async def page(request: Request, session: Session, *, done: str = "", problem: str = "") -> Response:
        caller, patient = _acting(request)
        at = request.query_params.get("page")
        found = parse(await access_list.of_patient(node, caller, patient, count=_SHOWN_MAX, page=at))
        shown = [_shown(node, parts) for parts in _accesses(found)]
        return render(
            "consents.html", status=409 if problem else 200, session=session, done=done, problem=problem,
            signers=signers_of(node, caller, patient), waiting=[one for one in shown if one.state == "proposed"],
            standing=[one for one in shown if one.state in ("pending", "active")],
            ended=[one for one in shown if one.state == "ended"], older=_older(found),
            represents=None if session.role == "patient" else patient, all=ALL)

    async def done(request: Request, session: Session, work: Any, said: str) -> Response:  # Any: a coroutine
        try:
            await work
        except _CHANGE as error:
            return await page(request, session, problem=_said(error))
        return await page(request, session, done=said)

    @routes.get(CONSENTS)
    async def show(request: Request) -> Response:
        session = person(request)
        if session.role not in ("patient", "delegate"):
            return see("/portal")
        return await page(request, session)

    @routes.post("/portal/consents/{id_}/sign")
    async def sign(request: Request, id_: str) -> Response:
        session, form = await posted(request)
        caller, _ = _acting(request)
        return await done(request, session, granting.sign(
            node, caller, _id(id_), _parameters({"kind": "custodial"}), shown=form.get("version", "")),
            "Signed. It counts once the hospitals' chain holds it.")

    @routes.post("/portal/consents/{id_}/decline")
    async def decline(request: Request, id_: str) -> Response:
        session, _ = await posted(request)
        return await done(request, session, _rewritten(node, _acting(request)[0], _id(id_), status="rejected"),
                          "Declined: nobody gets anything by it.")

    @routes.post("/portal/consents/{id_}/renew")
    async def renew(request: Request, id_: str) -> Response:
        session, _ = await posted(request)
        return await done(request, session, _rewritten(
            node, _acting(request)[0], _id(id_), dateTime=format_instant(now_ms())), "It can be signed now.")

    @routes.post("/portal/consents/{id_}/revoke")
    async def revoke(request: Request, id_: str) -> Response:
        session, _ = await posted(request)
        caller, patient = _acting(request)
        work = revoking_all.revoke_all(node, caller, patient, None) if id_ == ALL else revoking.revoke(
            node, caller, _id(id_), None)
        return await done(request, session, work, "Ended: from now on it lets nobody in.")


def _scripts(routes: APIRouter, node: Node) -> None:
    @routes.post("/portal/consents/{id_}/typed-data")
    async def typed_data(request: Request, id_: str) -> Response:
        _, body = await asked(request)
        caller, patient = _acting(request)
        given = _given(body)
        made = await (revoking_all.show(node, caller, patient, given) if id_ == ALL else granting.show(
            node, caller, _id(id_), given, shown=str(body.get("version", ""))))
        return Response(made, media_type="application/json", headers={"Cache-Control": "no-store"})

    @routes.post("/portal/consents/{id_}/signed")
    async def signed(request: Request, id_: str) -> Response:
        _, body = await asked(request)
        given = _given(body)
        if "signature" not in given:  # the kept key is asked by the form, which says what it showed
            raise Unprocessable("send a signature", code="required", expression="signature")
        await granting.sign(node, _acting(request)[0], _id(id_), _parameters(given))
        return JSONResponse({"next": CONSENTS})

    @routes.post("/portal/consents/{id_}/ended")
    async def ended(request: Request, id_: str) -> Response:
        _, body = await asked(request)
        caller, patient = _acting(request)
        given = _parameters(_given(body))
        if id_ == ALL:
            await revoking_all.revoke_all(node, caller, patient, given)
        else:
            await revoking.revoke(node, caller, _id(id_), given)
        return JSONResponse({"next": CONSENTS})


def _acting(request: Request) -> tuple[Caller, str]:
    """Who asks, and the logical id of the patient it is about. Raises Unauthenticated, Forbidden."""
    session = person(request)
    caller = caller_of(request, None, scopes=lasting.CONSENT)
    whose = caller.grant.self_patient
    if session.role not in ("patient", "delegate") or whose is None:
        raise Forbidden("this is for patients and those who represent them")
    return caller, whose.removeprefix("Patient/")


def _id(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise NotFound("there is no such permission")
    return text


def _given(body: Mapping[str, object]) -> dict[str, str]:
    return {name: str(body[name]) for name in _SENT if isinstance(body.get(name), str)}


def _parameters(given: Mapping[str, str]) -> Resource:
    return {"resourceType": "Parameters",
            "parameter": [{"name": name, "valueString": value} for name, value in given.items()]}


async def _rewritten(node: Node, caller: Caller, id_: str, **elements: str) -> None:
    """The unsigned Consent with these elements. Raises what refuses it."""
    stored = parse((await read.read(node, caller, "Consent", id_)).stored)
    if stored.get("status") not in ("draft", "proposed"):
        raise Conflict("this was decided meanwhile")
    await write.update(node, caller.again(), "Consent", id_, {**stored, **elements},
                       if_match=f'W/"{stored["meta"]["versionId"]}"')


def _said(error: Exception) -> str:
    if isinstance(error, InputRefused):
        return " ".join(issue.diagnostics for issue in error.issues)
    return str(error)


# What the access list tells


def _accesses(found: Resource) -> list[dict[str, Any]]:
    """The parts of each access that rests on a Consent, by name; of several of one name the first."""
    listed = []
    for one in found.get("parameter", ()):
        parts: dict[str, Any] = {}
        for part in one.get("part", ()):
            parts.setdefault(part["name"], part)
        if one["name"] == "access" and parts.get("basis", {}).get("valueCode") == "grant":
            listed.append(parts)
    return listed


def _shown(node: Node, parts: Mapping[str, Any]) -> Shown:
    connection = node.database.reader
    _, id_, _, version = str(parts["consent"]["valueReference"]["reference"]).split("/")
    state = str(parts["state"]["valueCode"])
    grant = {part["name"]: part for part in parts.get("grant", {}).get("part", ())}
    signer = parts.get("signer", {}).get("valueCode")
    return Shown(
        id=id_, version=version, state="proposed" if state == "draft" else state, words=_text(parts, "statement"),
        forbids=parts.get("type", {}).get("valueCode") == "deny",
        signer=signer, signed=parts.get("signed", {}).get("valueInstant"),
        refusal=grant.get("error", {}).get("valueCode") if state == "proposed" else None,
        late=state == "proposed" and is_late(connection, id_),
        unended=end_unsigned(connection, id_) if state == "ended" and signer in ("wallet", "passkey") else None)


def _text(parts: Mapping[str, Any], name: str) -> str:
    return str(parts.get(name, {}).get("valueString", ""))


def _older(found: Resource) -> str | None:
    for one in found.get("parameter", ()):
        if one["name"] == "next":
            return parse_qs(urlsplit(str(one["valueUri"])).query)["_page"][0]
    return None
