"""Documents over HTTP: ``$summary`` of a patient, ``$document`` of a Composition, ``$docref``.

https://hl7.org/fhir/R4/composition-operation-document.html
"""

from __future__ import annotations

from gateway.access.period import MAX_MS, MIN_MS
from gateway.fhir.resource import is_id, serialise
from gateway.records import docref as references
from gateway.records import summary as records
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, inputs, refused

_SUMMARY = {"profile": Input("canonical")}
_BY_IDENTIFIER = {**_SUMMARY, "identifier": Input("string", required=True)}
_DOCUMENT = {"persist": Input("boolean"), "graph": Input("uri")}
_DOCREF = {"patient": Input("id", required=True), "start": Input("dateTime"), "end": Input("dateTime"),
           "type": Input("string", many=True), "on-demand": Input("boolean"), "profile": Input("canonical")}
_IPS = frozenset({"http://hl7.org/fhir/uv/ips/StructureDefinition/Bundle-uv-ips",
                  "http://hl7.org/fhir/uv/ips/StructureDefinition/Composition-uv-ips"})


async def summary(door: Door, ask: Ask) -> Answer:
    """The patient's International Patient Summary."""
    named = len(ask.parts) == 3
    given = await inputs(door, ask, _SUMMARY if named else _BY_IDENTIFIER, operation="summary")
    profile = given.text("profile")
    if profile is not None and profile.partition("|")[0] not in _IPS:
        raise refused("profile", "is that of the International Patient Summary", code="not-supported")
    caller, id_ = ask.caller, ask.parts[1]
    if not named:
        id_ = await records.patient_by(door.node, caller, str(given.text("identifier")))
        caller = caller.again()
    return Answer(200, await records.summary(door.node, caller, id_))


async def document(door: Door, ask: Ask) -> Answer:
    """The Composition with what it names; stored where that is asked."""
    given = await inputs(door, ask, _DOCUMENT, operation="document")
    if given.text("graph") is not None:
        raise refused("graph", "is not followed here", code="not-supported")
    if given.flag("persist") and ask.method != "POST":
        raise refused("persist", "stores a Bundle: send it with POST", code="invalid")
    made = await records.document(door.node, ask.caller, ask.id)
    if given.flag("persist"):
        return door.written(await records.kept(door.node, ask.caller, made))
    return Answer(200, serialise(made))


async def docref(door: Door, ask: Ask) -> Answer:
    """Documents about a patient's care."""
    given = await inputs(door, ask, _DOCREF, operation="docref")
    if given.flag("on-demand"):
        raise refused("on-demand", "documents are not made here: see Patient/$summary", code="not-supported")
    if given.text("profile") is not None:
        raise refused("profile", "is not looked at here", code="not-supported")
    patient = str(given.text("patient")).removeprefix("Patient/")
    if not is_id(patient):
        raise refused("patient", "is no id")
    start, end = given.moment("start"), given.moment("end")
    period = None if start is None and end is None else (start[0] if start else MIN_MS, end[1] if end else MAX_MS)
    return Answer(200, await references.docref(door.node, ask.caller, patient, given.texts("type"), period,
                                               given.pairs()))


_PATIENT, _COMPOSITION = frozenset({"Patient"}), frozenset({"Composition"})
ROUTES = (
    *(Route(method=method, shape=shape, name="summary", handler=summary, kind="operation", types=_PATIENT,
            definition="http://hl7.org/fhir/uv/ips/OperationDefinition/summary")
      for shape in ("T/I/$summary", "T/$summary") for method in ("GET", "POST")),
    *(Route(method=method, shape="T/I/$document", name="document", handler=document, kind="operation",
            types=_COMPOSITION, definition="http://hl7.org/fhir/OperationDefinition/Composition-document")
      for method in ("GET", "POST")),
    *(Route(method=method, shape="T/$docref", name="docref", handler=docref, kind="operation",
            types=frozenset({"DocumentReference"}),
            definition="http://hl7.org/fhir/us/core/OperationDefinition/docref") for method in ("GET", "POST")),
)
