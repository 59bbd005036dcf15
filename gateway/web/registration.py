"""``/oauth/register``: a client registers itself, and reads, changes or ends its registration.

Owns the JSON of RFC 7591 section 3.2.1 and the bearer token of RFC 7592; refuses to say anything of a client to whoever
does not hold its registration access token. https://www.rfc-editor.org/rfc/rfc7591, https://www.rfc-editor.org/rfc/rfc7592
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.smart.approvals import standing
from gateway.smart.issuer import Smart
from gateway.smart.registration import Told, authenticate_registration, change, end, register, registration_uri
from gateway.smart.tokens import bearer
from gateway.web.limits import Limits
from gateway.web.oauth_json import NO_STORE, Threads, answered, guarded, read_object, refuse_other_methods


def router(smart: Smart) -> APIRouter:
    """The routes, with full paths."""
    routes, threads = APIRouter(), Threads()

    @routes.post("/oauth/register")
    async def create(request: Request) -> Response:
        async def work() -> Response:
            asked = await read_object(request)
            limits: Limits = request.app.state.limits
            address = limits.address(request.scope)
            return answered(_told(smart, await threads.run(lambda: register(smart, asked, address=address))), 201)
        return await guarded(work)

    @routes.get("/oauth/register/{client_id}")
    async def read(client_id: str, request: Request) -> Response:
        async def work() -> Response:
            token = bearer(request.headers.get("Authorization"))
            found = await threads.run(lambda: authenticate_registration(smart.database.reader, smart, client_id, token))
            return answered(_told(smart, Told(registration=found, secret=None, token=token)))
        return await guarded(work)

    @routes.put("/oauth/register/{client_id}")
    async def update(client_id: str, request: Request) -> Response:
        async def work() -> Response:
            token = bearer(request.headers.get("Authorization"))
            asked = await read_object(request)
            return answered(_told(smart, await threads.run(lambda: change(smart, client_id, token, asked))))
        return await guarded(work)

    @routes.delete("/oauth/register/{client_id}")
    async def delete(client_id: str, request: Request) -> Response:
        async def work() -> Response:
            token = bearer(request.headers.get("Authorization"))
            await threads.run(lambda: end(smart, client_id, token))
            return Response(None, 204, NO_STORE)
        return await guarded(work)

    refuse_other_methods(routes)
    return routes


def _told(smart: Smart, told: Told) -> dict[str, Any]:
    """The client information response; ``status`` and ``status_reason`` are this server's own."""
    found = told.registration
    client = found.client
    body: dict[str, Any] = {**client.metadata, "client_id": client.id, "client_id_issued_at": found.created_ms // 1_000,
                            "registration_client_uri": registration_uri(smart, client.id),
                            "registration_access_token": str(told.token), "status": standing(client)}
    if found.reason is not None:
        body["status_reason"] = found.reason
    if client.auth == "client_secret_basic":
        body["client_secret_expires_at"] = 0
        if told.secret is not None:
            body["client_secret"] = str(told.secret)
    return body
