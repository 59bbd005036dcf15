"""Operations on patients over HTTP: ``$match``. https://hl7.org/fhir/R4/patient-operations.html"""

from __future__ import annotations

from gateway.records import match as matches
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door
from gateway.web.operations import Input, inputs, refused
from gateway.web.routes import Route

_URL = "http://hl7.org/fhir/OperationDefinition/"
_PATIENT = frozenset({"Patient"})
_MATCH = {"resource": Input("resource", required=True), "onlyCertainMatches": Input("boolean"),
          "count": Input("integer")}
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


ROUTES = (
    Route(method="POST", shape="T/$match", name="match", handler=match, kind="operation", types=_PATIENT,
          definition=f"{_URL}Patient-match"),
)
