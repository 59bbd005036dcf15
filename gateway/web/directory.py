"""The directory over HTTP: ``Patient/$request-access``, and what its patient answers a Task with."""

from __future__ import annotations

from gateway.errors import Issue
from gateway.fhir.outcome import operation_outcome
from gateway.records import directory
from gateway.records.answer import Answer
from gateway.records.directory import Wanted
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, inputs, refused

_PATIENT = frozenset({"Patient"})
_TASK = frozenset({"Task"})
_DEFINITIONS = "urn:fhir-gateway:operation:"
_REQUEST = {"identifier": Input("Identifier", required=True), "grantee": Input("Reference"),
            "purpose": Input("code", many=True), "type": Input("code", many=True), "reason": Input("string")}
_LONGEST = 1_000
_TOLD = ("A request can be made: if exactly one patient here has this identifier, they and the head of records have "
         "it now. Whether there is one is not said.")


async def request_access(door: Door, ask: Ask) -> Answer:
    """Ask a patient, known by an exact identifier alone, for access. 202, whoever that is."""
    given = await inputs(door, ask, _REQUEST, operation="request-access")
    [identifier] = given.objects("identifier")
    system, value = identifier.get("system"), identifier.get("value")
    if not isinstance(system, str) or not isinstance(value, str) or not system or not value.strip() or (
            len(system) + len(value) > _LONGEST):
        raise refused("identifier", "has a system and a value")
    reason = given.text("reason")
    if reason is not None and (len(reason) > _LONGEST or not reason.replace("\n", " ").isprintable()):
        raise refused("reason", f"is at most {_LONGEST} printable letters")
    types = tuple(dict.fromkeys(given.texts("type")))
    if unknown := [one for one in types if one not in door.node.definitions.resource_types]:
        raise refused("type", f"names {unknown[0][:64]!r}, which is no R4 resource type")
    grant = ask.caller.grant
    named = next(iter(given.objects("grantee")), None)
    await directory.request_access(door.node, ask.caller, Wanted(
        identifier=(system, value), grantee=str(named.get("reference")) if named is not None else (
            grant.user or f"Device/{grant.client_id}"),
        purposes=directory.purposes_of(given.texts("purpose")), types=types, reason=reason))
    return Answer(202, operation_outcome((Issue("information", "informational", _TOLD),)))


async def propose_consent(door: Door, ask: Ask) -> Answer:
    """A request becomes a proposed Consent."""
    await inputs(door, ask, {}, operation="propose-consent")
    return door.written(await directory.propose_consent(door.node, ask.caller, ask.id))


async def decline(door: Door, ask: Ask) -> Answer:
    """A request is refused."""
    await inputs(door, ask, {}, operation="decline")
    return Answer(200, await directory.decline(door.node, ask.caller, ask.id))


ROUTES = (
    Route(method="POST", shape="T/$request-access", name="request-access", handler=request_access, kind="operation",
          types=_PATIENT, definition=f"{_DEFINITIONS}request-access"),
    Route(method="POST", shape="T/I/$propose-consent", name="propose-consent", handler=propose_consent,
          kind="operation", types=_TASK, definition=f"{_DEFINITIONS}propose-consent"),
    Route(method="POST", shape="T/I/$decline", name="decline", handler=decline, kind="operation", types=_TASK,
          definition=f"{_DEFINITIONS}decline"),
)
