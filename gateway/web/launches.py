"""``POST /oauth/launch``: an EHR opens the context of an app it is about to start.

Owns who may open one (a feed of this hospital by its bearer token, a person by their portal session, for themselves)
and the reading of the request; refuses a field it does not know, and an app's token: an app starts no other app in
its user's name. https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html#launch-app-ehr-launch
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import apsw
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import Forbidden, OAuthError
from gateway.smart.accounts import find_account
from gateway.smart.clients import find_client
from gateway.smart.issuer import Smart
from gateway.smart.launches import LIFE_MS, launch_url, open_launch
from gateway.web.oauth_json import Threads, answered, grant_of, guarded, read_object, refuse_other_methods
from gateway.web.portal.session import check_csrf, check_origin, signed_in

_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "client_id": (str,), "user": (str,), "patient": (str,), "encounter": (str,), "fhirContext": (list,),
    "intent": (str,), "need_patient_banner": (bool,)}
_KIND: Final = {str: "text", list: "a list", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opener:
    """Who opens. ``user`` is whom the launch is for already, ``patient`` whose it can only be."""

    name: str
    role: str
    user: str | None = None
    patient: str | None = None


def router(smart: Smart) -> APIRouter:
    """The route, with its full path."""
    routes, threads = APIRouter(), Threads()

    @routes.post("/oauth/launch")
    async def launch(request: Request) -> Response:
        async def work() -> Response:
            opener = await threads.run(lambda: _opener(smart, request))
            asked = _fields(await read_object(request))
            return answered(await threads.run(lambda: _opened(smart, opener, asked)), 201)
        return await guarded(work)

    refuse_other_methods(routes)
    return routes


def _opener(smart: Smart, request: Request) -> _Opener:
    if request.headers.get("Authorization") is None:
        session = signed_in(request)
        if session is not None:
            check_origin(request)
            check_csrf(session, {"csrf": request.headers.get("X-CSRF-Token", "")})
            if session.user is None or session.role is None:
                raise Forbidden("nobody has verified who you are yet")
            return _Opener(name=session.user, role=session.role, user=session.user,
                           patient=_own_patient(smart, session.user, session.role))
    grant = grant_of(smart, request)
    if grant.client_kind != "feed" or grant.user is not None:
        raise Forbidden("launches are opened by this hospital's own systems, or in a person's own portal session")
    return _Opener(name=grant.client_id, role=grant.role)


def _own_patient(smart: Smart, user: str, role: str) -> str | None:
    """Whose records alone a patient or delegate launches an app on."""
    if role == "patient":
        return user
    account = find_account(smart.database.reader, user) if role == "delegate" else None
    return account.represents if account is not None else None


def _fields(body: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in _FIELDS:
            raise OAuthError("invalid_request", f"the fields are {', '.join(_FIELDS)}, and no others")
        if not isinstance(value, _FIELDS[name]):
            raise OAuthError("invalid_request", f"{name}: is {_KIND[_FIELDS[name][0]]}")
    if "client_id" not in given:
        raise OAuthError("invalid_request", "client_id: is missing")
    return given


def _opened(smart: Smart, opener: _Opener, asked: Mapping[str, Any]) -> dict[str, Any]:
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> dict[str, Any]:
        client = find_client(connection, asked["client_id"])
        if client is None or not client.stands or client.kind != "app":
            raise OAuthError("invalid_request", "client_id: is no registered app")
        handle = open_launch(
            connection, smart, client_id=client.id, opener=opener.name, role=opener.role,
            user=_bound("user", opener.user, asked.get("user")),
            patient=_bound("patient", opener.patient, asked.get("patient")), encounter=asked.get("encounter"),
            fhir_context=asked.get("fhirContext", ()), need_patient_banner=asked.get("need_patient_banner", True),
            intent=asked.get("intent"), now_ms=now_ms)
        told: dict[str, Any] = {"launch": str(handle), "expires_in": LIFE_MS // 1_000}
        if client.launch_uri:
            told["launch_url"] = launch_url(client.launch_uri, smart.settings.base_url, handle)
        return told
    return smart.database.transact(work)


def _bound(field: str, only: str | None, asked: str | None) -> str | None:
    """What was asked for, where the opener may say it; their own where they may not."""
    if only is not None and asked not in (None, only, only.partition("/")[2]):
        raise OAuthError("invalid_request", f"{field}: a person opens launches for themselves alone")
    return only or asked
