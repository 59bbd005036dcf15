"""The authorize screen: what a person sees and decides when an app asks.

Owns the pages of one pending authorization: whose record, which encounter, what of it, for how long, and the answer;
refuses a form of another session or another request, a choice that was not offered, and everything where somebody may
not use the app at all. Works without scripts. https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html,
https://openid.net/specs/openid-connect-core-1_0.html#AuthRequest
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.access.narrowing import Chosen, Line, Offer, is_nothing, narrowed, offer
from gateway.access.roles import policy
from gateway.access.scopes import ScopeSet
from gateway.access.words import words
from gateway.errors import Forbidden, InputRefused, NotFound, Unauthenticated, Unprocessable
from gateway.records import emergency as emergencies
from gateway.records.node import Node
from gateway.smart.authorization import (
    PendingAuthorization,
    Standing,
    answer_silently,
    approve,
    pending,
    refuse,
    standing_of,
)
from gateway.smart.issuer import Smart
from gateway.smart.redirects import origin_of
from gateway.smart.sessions import Session, same
from gateway.web.portal import lasting, picker
from gateway.web.portal.acting import Emergency, caller_of, purposes_of, voice_of
from gateway.web.portal.app_facts import about
from gateway.web.portal.pages import PortalRoute, render
from gateway.web.portal.picker import Choice
from gateway.web.portal.session import check_csrf, read_form, sign_in_redirect, signed_in

PATH: Final = "/oauth/authorize/{handle}"
LINES_WITH_DATES: Final = 40
"""Beyond so many lines one date is asked for all of them alone: a form has its limits."""
_REASON_MAX: Final = 500

Stop = Literal["role", "launch", "unproofed", "weak"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One pending authorization before the person who is to answer it.

    ``patient``: whose record, where it is settled; ``fixed``: it is, by who the person is or by the launch.
    """

    pending: PendingAuthorization
    session: Session
    standing: Standing
    offered: Offer
    asked: ScopeSet
    patient: str | None
    fixed: bool
    needs_patient: bool

    @property
    def path(self) -> str:
        return f"/oauth/authorize/{self.pending.handle}"

    @property
    def role(self) -> str:
        return self.standing.role.name

    @property
    def purposes(self) -> tuple[str, ...]:
        return purposes_of(self.role, self.pending.client)

    @property
    def wants_encounter(self) -> bool:
        """Whether an encounter is to be chosen: asked for, and not brought by a launch."""
        launch = self.pending.launch
        return "launch/encounter" in self.asked.others and (launch is None or launch.encounter is None)

    @property
    def may_break_glass(self) -> bool:
        return self.standing.role.break_glass and self.needs_patient and bool(self.asked.resources)


def router(node: Node, smart: Smart) -> APIRouter:
    """The page and what its forms send to, with full paths."""
    routes = APIRouter(route_class=PortalRoute)
    screen = _Screen(node, smart)

    @routes.get(PATH, include_in_schema=False)
    async def show(request: Request, handle: str) -> Response:
        return await screen.show(request, handle)

    @routes.post(PATH, include_in_schema=False)
    async def answer(request: Request, handle: str) -> Response:
        return await screen.answer(request, handle)

    return routes


class _Screen:
    """The pages over one node. Stateless: each form brings all that was chosen so far, and all of it is checked."""

    def __init__(self, node: Node, smart: Smart) -> None:
        self._node = node
        self._smart = smart

    async def show(self, request: Request, handle: str) -> Response:
        found = pending(self._smart, handle)
        session = signed_in(request)
        if "none" in found.prompt:
            return _away(await asyncio.to_thread(answer_silently, self._smart, found, session))
        if session is None or found.needs_sign_in(session, self._smart.now_ms()):
            return sign_in_redirect(request, f"/oauth/authorize/{handle}")
        asking = self._asking(found, session)
        if isinstance(asking, Response):
            return asking
        if asking.needs_patient and asking.patient is None:
            return self._pick(asking)
        return await self._offer(request, asking, {})

    async def answer(self, request: Request, handle: str) -> Response:
        form = await read_form(request)
        found = pending(self._smart, handle)
        session = signed_in(request)
        if session is None or found.needs_sign_in(session, self._smart.now_ms()):
            raise Unauthenticated("your session has ended: open the page again and sign in")
        check_csrf(session, form)
        if not same(form.get("request", ""), self._bound(found, session)):
            raise Forbidden("this form belongs to another request: start again from the app")
        if form.get("step") in ("deny", "for-now") and form.get("consent"):
            await lasting.drop_consent(self._node, request, form["consent"])
        if form.get("step") == "deny":
            return await self._refused(found, "access_denied")
        asking = self._asking(found, session)
        if isinstance(asking, Response):
            return asking
        match form.get("step"):
            case "find" if not asking.fixed:
                return await self._find(request, asking, form)
            case "pick" if not asking.fixed:
                return await self._picked(request, asking, form)
            case "emergency" if asking.may_break_glass:
                return await self._emergency(request, asking, form)
            case "break-glass" if asking.may_break_glass:
                return await self._break_glass(request, asking, form)
            case "allow":
                return await self._allow(request, asking, form)
            case "for-now":
                return await self._allow(request, asking, {
                    **{name: value for name, value in form.items() if name not in ("consent", "until")},
                    "step": "allow", "how-long": "once"})
        raise Unprocessable("the form does not say what was decided", code="value")

    def _asking(self, found: PendingAuthorization, session: Session) -> Asking | Response:
        """What is asked of this person, or the page that says why they cannot answer."""
        if session.user is None:
            return self._stop(found, session, "weak" if session.state == "weak" else "unproofed")
        standing = standing_of(self._smart.database.reader, session.user, self._smart.now_ms())
        role, launch = standing.role, found.launch
        own = {"patient": standing.account.fhir_user, "delegate": standing.account.represents}.get(role.name)
        launched = None if launch is None else launch.patient
        if (launch is not None and not launch.is_for(session.user)) or (own and launched not in (None, own)):
            return self._stop(found, session, "launch")
        asked = ScopeSet(found.asked.narrow(role.ceiling).resources, found.asked.others)
        if found.asked.resources and not asked.resources:
            return self._stop(found, session, "role")
        needs = own is None and ("launch/patient" in asked.others
                                 or any(scope.context == "patient" for scope in asked.resources))
        voice = voice_of(session)
        offered = offer(asked, types=self._node.definitions.resource_types, voice=voice, table=words())
        return Asking(pending=found, session=session, standing=standing, offered=offered, asked=asked,
                      patient=own or launched, fixed=own is not None or launched is not None, needs_patient=needs)

    # Pages

    def _page(self, template: str, found: PendingAuthorization, session: Session, *, status: int = 200,
              **context: Any) -> Response:
        client, target = found.client, _target(found.redirect_uri)
        return render(
            template, status=status, form_action=(target,), session=session, app=client.name, target=target,
            hospital=self._smart.settings.hospital_name, path=f"/oauth/authorize/{found.handle}",
            bound=self._bound(found, session), about=about(self._smart, client), **context)

    def _stop(self, found: PendingAuthorization, session: Session, why: Stop) -> Response:
        return self._page("authorize_stop.html", found, session, status=403, why=why, role=session.role)

    def _pick(self, asking: Asking, *, given: Mapping[str, str] | None = None, found: list[Choice] | None = None,
              problem: str | None = None) -> Response:
        return self._page("authorize_patient.html", asking.pending, asking.session, status=422 if problem else 200,
                          given=given or {}, matches=found, problem=problem, most=picker.SHOWN_MAX,
                          emergency=asking.may_break_glass)

    async def _offer(self, request: Request, asking: Asking, form: Mapping[str, str], *,
                     problem: str | None = None) -> Response:
        """The choices; ``form`` is what was chosen before, where the page is shown again."""
        caller, who, encounters = caller_of(request, asking.pending.client), None, []
        if asking.needs_patient and asking.patient is not None:
            try:
                who = await picker.patient(self._node, caller, asking.patient)
            except Unprocessable:
                if not asking.fixed:
                    raise
        if asking.wants_encounter and asking.patient is not None:
            encounters = await picker.encounters(self._node, caller, asking.patient)
        ticked = _ticked(form) if form.get("step") == "allow" else asking.offered.everything
        offered = asking.offered
        return self._page(
            "authorize.html", asking.pending, asking.session, status=422 if problem else 200, problem=problem,
            groups=_groups(offered), offered=offered, ticked=ticked, form=form, who=who, patient=asking.patient,
            encounters=encounters, dates=len(offered.lines) <= LINES_WITH_DATES, role=asking.role,
            needs_patient=asking.needs_patient, fixed=asking.fixed, emergency=asking.may_break_glass,
            represents=asking.role == "delegate", lasting=asking.role in lasting.ROLES,
            purposes=[(code, policy().purposes[code].text) for code in asking.purposes])

    def _sign(self, asking: Asking, form: Mapping[str, str], rests: lasting.Resting) -> Response:
        """The step between: the person's own signature, which the access rests on."""
        kept = {name: value for name, value in form.items() if name not in ("csrf", "request", "step", "consent")}
        problem = "It is not signed yet." if form.get("consent") else None
        return self._page("authorize_sign.html", asking.pending, asking.session, status=422 if problem else 200,
                          form=kept, consent=rests.id, version=rests.version, words=rests.words,
                          signers=rests.signers, problem=problem)

    # Steps

    async def _find(self, request: Request, asking: Asking, form: Mapping[str, str]) -> Response:
        given = {name: form.get(name, "") for name in picker.FIELDS}
        try:
            found = await picker.patients(self._node, caller_of(request, asking.pending.client), given)
        except InputRefused as error:
            return self._pick(asking, given=given, problem=_said(error))
        return self._pick(asking, given=given, found=found)

    async def _picked(self, request: Request, asking: Asking, form: Mapping[str, str]) -> Response:
        try:
            return await self._offer(request, await self._settled(request, asking, form), {})
        except Unprocessable as error:
            return self._pick(asking, problem=_said(error))

    async def _settled(self, request: Request, asking: Asking, form: Mapping[str, str]) -> Asking:
        """With the patient chosen, who must be one the person may see. Raises Unprocessable."""
        if asking.fixed or not asking.needs_patient:
            return asking
        if not form.get("patient"):
            raise Unprocessable("choose the patient", code="required")
        found = await picker.patient(self._node, caller_of(request, asking.pending.client), form["patient"])
        return _about(asking, found.reference)

    async def _allow(self, request: Request, asking: Asking, form: Mapping[str, str]) -> Response:
        try:
            asking = await self._settled(request, asking, form)
        except Unprocessable as error:
            return self._pick(asking, problem=_said(error))
        try:
            chosen = _chosen(asking.offered, form)
            scopes = narrowed(asking.offered, chosen)
            encounter = await self._encounter(request, asking, form)
            until = lasting.until_of(form, self._smart.now_ms()) if chosen.how_long == "offline" else None
            purpose = form.get("purpose", asking.purposes[0])
            if purpose not in asking.purposes:
                raise Unprocessable("the purpose was not offered", code="value")
        except Unprocessable as error:
            return await self._offer(request, asking, form, problem=_said(error))
        if is_nothing(scopes):
            return await self._refused(asking.pending, "access_denied")
        resting = None
        if chosen.how_long == "offline" and asking.role in lasting.ROLES and scopes.resources:
            try:
                rests = await lasting.rest_on_consent(self._node, request, asking.pending.client, scopes, until,
                                                      form.get("consent"))
            except Unprocessable as error:
                return await self._offer(request, asking, form, problem=_said(error))
            if not rests.signed:
                return self._sign(asking, form, rests)
            resting = rests.id
        return await self._approved(request, asking, scopes=scopes, encounter=encounter, purpose=purpose,
                                    how_long=chosen.how_long, resting=resting)

    async def _encounter(self, request: Request, asking: Asking, form: Mapping[str, str]) -> str | None:
        if not (asking.wants_encounter and asking.patient is not None and form.get("encounter")):
            return None
        return await picker.encounter(self._node, caller_of(request, asking.pending.client), asking.patient,
                                      form["encounter"])

    async def _approved(self, request: Request, asking: Asking, *, scopes: ScopeSet, encounter: str | None,
                        purpose: str, how_long: str, resting: str | None) -> Response:
        handle, session = asking.pending.handle, asking.session
        try:
            return _away(await asyncio.to_thread(
                approve, self._smart, handle, session=session, scopes=scopes, patient=asking.patient,
                encounter=encounter, purpose=purpose, reason=None,
                offline=None if how_long == "once" else how_long,  # type: ignore[arg-type]  # narrowing's own words
                consent=resting))
        except BaseException:
            if resting is not None:  # answered already, or gone meanwhile: nothing is to rest on it
                await lasting.drop_consent(self._node, request, resting)
            raise

    async def _emergency(self, request: Request, asking: Asking, form: Mapping[str, str]) -> Response:
        """Who is before the clinician: shown through the glass they are about to break."""
        client, whose = asking.pending.client, asking.patient or form.get("patient", "")
        try:
            reason = _reason(form)
            if whose:
                caller = caller_of(request, client, emergency=Emergency(patient=whose, reason=reason))
                who = await picker.patient(self._node, caller, whose)
            else:
                who = picker.shown((await emergencies.identified(
                    self._node,
                    lambda patient: caller_of(request, client, emergency=Emergency(patient=patient, reason=reason)),
                    identifier=form.get("identifier", "").strip(), name=form.get("name", "").strip(),
                    birth_date=form.get("birthdate", "").strip())).stored)
        except (InputRefused, NotFound) as error:
            problem = _said(error)
            return await self._offer(request, asking, form, problem=problem) if asking.fixed \
                else self._pick(asking, given=form, problem=problem)
        return self._page("authorize_emergency.html", asking.pending, asking.session, who=who, reason=reason,
                          lines=asking.offered.lines)

    async def _break_glass(self, request: Request, asking: Asking, form: Mapping[str, str]) -> Response:
        reason, client, whose = _reason(form), asking.pending.client, asking.patient or form.get("patient", "")
        caller = caller_of(request, client, emergency=Emergency(patient=whose, reason=reason))
        who = await picker.patient(self._node, caller, whose)
        scopes = narrowed(asking.offered, Chosen(ticked=asking.offered.everything, how_long="once"))
        return _away(await asyncio.to_thread(
            approve, self._smart, asking.pending.handle, session=asking.session, scopes=scopes,
            patient=who.reference, encounter=None, purpose="BTG", reason=reason, offline=None))

    async def _refused(self, found: PendingAuthorization, error: str) -> Response:
        return _away(await asyncio.to_thread(refuse, self._smart, found.handle, error))

    def _bound(self, found: PendingAuthorization, session: Session) -> str:
        """What ties a form to this request and this session."""
        return self._smart.tokens.hash(f"authorize {found.handle} {session.id}").hex()


def _about(asking: Asking, patient: str) -> Asking:
    return Asking(pending=asking.pending, session=asking.session, standing=asking.standing, offered=asking.offered,
                  asked=asking.asked, patient=patient, fixed=False, needs_patient=True)


def _groups(offered: Offer) -> list[tuple[str, list[Line]]]:
    """The lines under their headings, in the order of the table."""
    found: dict[str, list[Line]] = {}
    for line in offered.lines:
        found.setdefault(words().groups[line.group] if line.group else "Other", []).append(line)
    return list(found.items())


def _ticked(form: Mapping[str, str]) -> frozenset[str]:
    return frozenset(form.get("scope", "").split())


def _chosen(offered: Offer, form: Mapping[str, str]) -> Chosen:
    since_of = {name.removeprefix("since "): value for name, value in form.items()
                if name.startswith("since ") and value}
    how_long = form.get("how-long", offered.how_long[0])
    if how_long not in offered.how_long:
        raise Unprocessable("the app may not have access for so long", code="value")
    return Chosen(ticked=_ticked(form), how_long=how_long,
                  since=form.get("since") or None, since_of=since_of)


def _reason(form: Mapping[str, str]) -> str:
    reason = form.get("reason", "").strip()
    if not reason or len(reason) > _REASON_MAX:
        raise Unprocessable(f"give the reason, in at most {_REASON_MAX} characters", code="required")
    return reason


def _said(error: Exception) -> str:
    if isinstance(error, InputRefused):
        return " ".join(issue.diagnostics for issue in error.issues)
    return str(error)


def _target(uri: str) -> str:
    """Where the answer goes: an origin, or an app's own scheme."""
    return origin_of(uri) or f"{urlsplit(uri).scheme}:"


def _away(url: str) -> Response:
    """To the app. 303: whatever it was, the app is asked with GET and without the form."""
    return RedirectResponse(url, 303, {"Cache-Control": "no-store", "Pragma": "no-cache",
                                       "Referrer-Policy": "no-referrer"})
