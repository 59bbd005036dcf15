"""``$verify`` of a record that waits for the head, ``$access-history`` of a patient, and the keys verifications are
signed with."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from gateway.crypto import attestation
from gateway.records import audit_events, verifying
from gateway.records.answer import Answer
from gateway.records.node import Node
from gateway.records.verifying import Decision
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, inputs, refused

KEYS_PATH = "/.well-known/attestation-keys"
_VERIFY = {"outcome": Input("code", required=True), "reason": Input("string")}
_REASON_MAX = 1_000


async def verify(door: Door, ask: Ask) -> Answer:
    """The head's decision about a record: the Task that asked for it, ended."""
    given = await inputs(door, ask, _VERIFY, operation="verify")
    outcome, reason = given.text("outcome"), (given.text("reason") or "").strip()
    if outcome not in ("verified", "rejected"):
        raise refused("outcome", "is verified or rejected")
    if len(reason) > _REASON_MAX:
        raise refused("reason", f"has at most {_REASON_MAX} letters", code="too-long")
    return door.written(await verifying.verify(door.node, ask.caller, ask.type, ask.id, Decision(
        rejected=outcome == "rejected", reason=reason)))


async def access_history(door: Door, ask: Ask) -> Answer:
    """Who asked for what of the patient, newest first, each with a sentence in words."""
    return Answer(200, await audit_events.history_of(door.node, ask.caller, ask.id, ask.pairs, strict=ask.strict))


def router(node: Node) -> APIRouter:
    """What anybody may read: the public keys."""
    routes = APIRouter()

    @routes.get(KEYS_PATH)
    async def keys() -> Response:
        return JSONResponse(attestation.public_keys(node.ring), headers={"Cache-Control": "max-age=3600"})

    return routes


ROUTES = (
    Route(method="POST", shape="T/I/$verify", name="verify", handler=verify, kind="operation",
          definition="urn:fhir-gateway:operation:verify"),
    Route(method="GET", shape="T/I/$access-history", name="access-history", handler=access_history, kind="operation",
          types=frozenset({"Patient"}), definition="urn:fhir-gateway:operation:access-history"),
)
