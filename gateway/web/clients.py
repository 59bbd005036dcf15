"""``/oauth/clients``: administrators list the clients of the hospital and decide about those that wait.

Owns who counts as an administrator (by role, from a proofed account; a bearer token, or the portal's session with its
CSRF token), and the JSON; refuses the token an administrator let an app have, whatever its scope: no screen asked them
for the hospital's clients. What the operator minted counts, but through an app that registered itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import Forbidden, OAuthError
from gateway.smart import approvals
from gateway.smart.approvals import STANDINGS, Decider
from gateway.smart.issuer import Smart
from gateway.smart.registration import find_registration
from gateway.web.oauth_json import Threads, answered, grant_of, guarded, read_object, refuse_other_methods
from gateway.web.portal.session import check_csrf, check_origin, signed_in

_ROLE: Final = "administrator"
_CSRF: Final = "X-CSRF-Token"
Act = Callable[[str, Decider, Mapping[str, Any]], dict[str, Any]]


def router(smart: Smart) -> APIRouter:
    """The routes, with full paths."""
    routes, threads = APIRouter(), Threads()
    acts = _acts(smart)

    @routes.get("/oauth/clients")
    async def listed(request: Request) -> Response:
        async def work() -> Response:
            await threads.run(lambda: _decider(smart, request))
            only = request.query_params.get("state")
            if only is not None and only not in STANDINGS:
                raise OAuthError("invalid_request", f"state: is one of {', '.join(STANDINGS)}")
            after = request.query_params.get("after", "")
            found = await threads.run(lambda: approvals.list_clients(smart, only, after=after))
            more = {"after": found[-1]["client_id"]} if len(found) == approvals.LIST_MAX else {}
            return answered({"clients": found, **more})
        return await guarded(work)

    @routes.get("/oauth/clients/{client_id}")
    async def shown(client_id: str, request: Request) -> Response:
        async def work() -> Response:
            await threads.run(lambda: _decider(smart, request))
            return answered(await threads.run(lambda: approvals.show(smart, client_id)))
        return await guarded(work)

    @routes.post("/oauth/clients/{client_id}/{act}")
    async def decided(client_id: str, act: str, request: Request) -> Response:
        async def work() -> Response:
            given = await read_object(request)  # whole, however slowly it comes: only then is asked whose it is
            by = await threads.run(lambda: _decider(smart, request))
            if act not in acts:
                raise OAuthError("invalid_request", f"a client is given {', '.join(acts)}")
            return answered(await threads.run(lambda: acts[act](client_id, by, given)))
        return await guarded(work)

    refuse_other_methods(routes)
    return routes


def _decider(smart: Smart, request: Request) -> Decider:
    """The administrator behind the request. Raises Unauthenticated or Forbidden."""
    if request.headers.get("Authorization") is None:
        session = signed_in(request)
        if session is not None:
            if request.method != "GET":
                check_origin(request)
                check_csrf(session, {"csrf": request.headers.get(_CSRF, "")})
            if session.user is None or session.role != _ROLE:
                raise Forbidden("this is for administrators")
            return Decider(user=session.user, role=_ROLE, client="portal")
    grant = grant_of(smart, request)
    if grant.role != _ROLE or grant.user is None:
        raise Forbidden("this is for administrators")
    if not grant.minted_by_operator:
        raise Forbidden("an app decides about no client, whoever uses it: use the portal, or `gateway client`")
    if find_registration(smart.database.reader, grant.client_id) is not None:
        raise Forbidden("an app that registered itself decides about no client, whoever uses it")
    return Decider(user=grant.user, role=grant.role, client=grant.client_id)


def _acts(smart: Smart) -> Mapping[str, Act]:
    def approve(client_id: str, by: Decider, given: Mapping[str, Any]) -> dict[str, Any]:
        revision, scope, purposes = _fields(given, revision=str, scope=str, purposes=list)
        if revision is None:
            raise OAuthError("invalid_request", "revision: is needed, of what was read")
        if purposes is not None and not all(isinstance(one, str) for one in purposes):
            raise OAuthError("invalid_request", "purposes: is a list of codes")
        approvals.approve(smart, client_id, by, revision=revision, scope=scope, purposes=purposes)
        return {"client_id": client_id, "state": "approved"}

    def reject(client_id: str, by: Decider, given: Mapping[str, Any]) -> dict[str, Any]:
        (reason,) = _fields(given, reason=str)
        return {"client_id": client_id, "state": approvals.reject(smart, client_id, by, reason=reason or "")}

    def close(client_id: str, by: Decider, given: Mapping[str, Any]) -> dict[str, Any]:
        _fields(given)
        return {"client_id": client_id, "state": approvals.close(smart, client_id, by)}

    def rotate(client_id: str, by: Decider, given: Mapping[str, Any]) -> dict[str, Any]:
        _fields(given)
        return {"client_id": client_id, "client_secret": str(approvals.rotate_secret(smart, client_id, by)),
                "client_secret_expires_at": 0}

    return {"approve": approve, "reject": reject, "close": close, "rotate-secret": rotate}


def _fields(given: Mapping[str, Any], **types: type) -> list[Any]:
    if unknown := given.keys() - types.keys():
        raise OAuthError("invalid_request", f"{len(unknown)} fields are not among: {', '.join(types) or 'none'}")
    for name, type_ in types.items():
        if given.get(name) is not None and not isinstance(given[name], type_):
            raise OAuthError("invalid_request", f"{name}: is {'text' if type_ is str else 'a list'}")
    return [given.get(name) for name in types]
