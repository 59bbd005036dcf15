"""Operations on patients over HTTP: ``$match`` and ``$merge``. https://hl7.org/fhir/R4/patient-operations.html"""

from __future__ import annotations

from gateway.fhir.resource import reference_target
from gateway.records import match as matches
from gateway.records import merge as merges
from gateway.records.answer import Answer
from gateway.records.gate import Caller
from gateway.records.summary import patient_by
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, Inputs, inputs, refused

_URL = "http://hl7.org/fhir/OperationDefinition/"
_PATIENT = frozenset({"Patient"})
_MATCH = {"resource": Input("resource", required=True), "onlyCertainMatches": Input("boolean"),
          "count": Input("integer")}
_MERGE = {
    "source-patient": Input("Reference"), "source-patient-identifier": Input("Identifier", many=True),
    "target-patient": Input("Reference"), "target-patient-identifier": Input("Identifier", many=True),
    "result-patient": Input("resource"), "preview": Input("boolean")}
_COUNT = 10


async def match(door: Door, ask: Ask) -> Answer:
    """Who may be the patient described."""
    given = await inputs(door, ask, _MATCH, operation="match", only="resource")
    [described] = given.objects("resource")
    if described.get("resourceType") != "Patient":
        raise refused("resource", "is a Patient")
    count = given.whole("count", _COUNT)
    if count == 0:
        raise refused("count", "is at least 1")
    return Answer(200, await matches.match(
        door.node, ask.caller, described, count=min(count, door.node.settings.max_page),
        only_certain=given.flag("onlyCertainMatches")))


async def merge(door: Door, ask: Ask) -> Answer:
    """Make two records of one person one."""
    given = await inputs(door, ask, _MERGE, operation="merge")
    result = next(iter(given.objects("result-patient")), None)
    if result is not None and result.get("resourceType") != "Patient":
        raise refused("result-patient", "is a Patient")
    source = await _one(door, ask.caller, given, "source-patient")
    target = await _one(door, ask.caller.again(), given, "target-patient")
    return Answer(200, await merges.merge(door.node, ask.caller.again(), merges.Merge(
        source=source, target=target, result=result, preview=given.flag("preview"),
        sent=given.sent or {"resourceType": "Parameters"})))


async def _one(door: Door, caller: Caller, given: Inputs, name: str) -> str:
    """The logical id of a patient named by reference, by identifiers, or both alike. Raises BadSearch, NotFound."""
    found: set[str] = set()
    for reference in given.objects(name):
        target = reference_target(str(reference.get("reference", "")))
        if target.kind != "relative" or target.type != "Patient" or target.id is None:
            raise refused(name, "is no reference to a Patient here")
        found.add(target.id)
    for identifier in given.objects(f"{name}-identifier"):
        if not isinstance(identifier.get("value"), str):
            raise refused(f"{name}-identifier", "has no value")
        found.add(await patient_by(door.node, caller, f"{identifier.get('system', '')}|{identifier['value']}"))
        caller = caller.again()
    if len(found) != 1:
        raise refused(name, "is one patient, by reference or identifier", code="invalid" if found else "required")
    return found.pop()


ROUTES = (
    Route(method="POST", shape="T/$match", name="match", handler=match, kind="operation", types=_PATIENT,
          definition=f"{_URL}Patient-match"),
    Route(method="POST", shape="T/$merge", name="merge", handler=merge, kind="operation", types=_PATIENT,
          definition=f"{_URL}Patient-merge"),
)
