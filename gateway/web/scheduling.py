"""Appointments over HTTP: ``$find`` free time, ``$book``, ``$cancel`` and ``$reschedule``.

``$find`` and ``$book`` after https://profiles.ihe.net/ITI/Scheduling; completing and answering are ordinary updates.
"""

from __future__ import annotations

from gateway.fhir.appointments import actor, participants, slots
from gateway.fhir.resource import Resource, format_instant, reference_target
from gateway.records import scheduling as records
from gateway.records.answer import Answer
from gateway.store.sql import now_ms
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, Inputs, inputs, refused

_IHE = "https://profiles.ihe.net/ITI/Scheduling/OperationDefinition/appointment-"
_URN = "urn:fhir-gateway:operation:"
_APPOINTMENT = frozenset({"Appointment"})
_ACTORS = ("practitioner", "location", "organization", "actor")
_TYPED = ("service-type", "specialty", "appointment-type")
_FIND = {
    "start": Input("dateTime"), "end": Input("dateTime"), "patient": Input("Reference"), "_count": Input("integer"),
    **{name: Input("string", many=True) for name in _ACTORS}, **{name: Input("string") for name in _TYPED}}
_BOOK = {"slot": Input("Reference", many=True), "patient": Input("Reference"),
         "appointment-resource": Input("resource")}
_SLOTS_MAX = 20
_FOUND = 50
_DAYS_MS = 90 * 86_400_000
_TYPES = {"practitioner": "Practitioner", "location": "Location", "organization": "HealthcareService"}


async def find(door: Door, ask: Ask) -> Answer:
    """Free time, as proposed appointments."""
    given = await inputs(door, ask, _FIND, operation="find")
    start, end = given.moment("start"), given.moment("end")
    low = start[0] if start else now_ms()
    high = end[1] if end else low + _DAYS_MS
    if high <= low:
        raise refused("end", "is before start")
    actors = tuple(text if "/" in text else f"{_TYPES.get(name, '')}/{text}"
                   for name in _ACTORS for text in given.texts(name))
    if any(reference_target(text).kind != "relative" for text in actors):
        raise refused(next(name for name in _ACTORS if given.texts(name)), "names no one here")
    patients = _references(given, "patient", "Patient")
    return Answer(200, await records.find(door.node, ask.caller, records.Wanted(
        start=_instant(low), end=_instant(high), actors=actors, patient=patients[0] if patients else None,
        slot=tuple((name, text) for name in _TYPED if (text := given.text(name))),
        count=min(max(1, given.whole("_count", _FOUND)), door.node.settings.max_page), asked=tuple(given.pairs()))))


def _instant(ms: int) -> str:
    try:
        return format_instant(ms)
    except OverflowError as error:
        raise refused("start", "is no time a calendar has") from error


def _references(given: Inputs, name: str, type_: str) -> list[str]:
    """The ``Type/id`` of references to this server. Raises BadSearch."""
    found = []
    for one in given.objects(name):
        target = reference_target(str(one.get("reference", "")))
        if target.kind != "relative" or target.type != type_:
            raise refused(name, f"is no reference to a {type_} here")
        found.append(f"{type_}/{target.id}")
    return found


async def book(door: Door, ask: Ask) -> Answer:
    """Take free time for a patient."""
    given = await inputs(door, ask, _BOOK, operation="book", only="appointment-resource")
    sent: Resource | None = next(iter(given.objects("appointment-resource")), None)
    names, patients = _references(given, "slot", "Slot"), _references(given, "patient", "Patient")
    if sent is not None:
        if sent.get("resourceType") != "Appointment":
            raise refused("appointment-resource", "is an Appointment")
        names = names or list(slots(sent))
        patients = patients or [name for one in participants(sent) if (name := actor(one)) is not None
                                and name.startswith("Patient/")]
    patients = patients or ([ask.caller.grant.self_patient] if ask.caller.grant.self_patient else [])
    if not 1 <= len(names) <= _SLOTS_MAX:
        raise refused("slot", f"is given 1 to {_SLOTS_MAX} times", code="required")
    if len(patients) != 1:
        raise refused("patient", "is the one who comes", code="required")
    return door.written(await records.book(door.node, ask.caller, names, patients[0], sent))


async def cancel(door: Door, ask: Ask) -> Answer:
    """End it, for whichever side."""
    given = await inputs(door, ask, {"reason": Input("CodeableConcept")}, operation="cancel")
    return door.written(await records.cancel(door.node, ask.caller, ask.id, next(iter(given.objects("reason")), None)))


async def reschedule(door: Door, ask: Ask) -> Answer:
    """Move it to other Slots."""
    given = await inputs(door, ask, {"slot": Input("Reference", many=True, required=True)}, operation="reschedule")
    names = _references(given, "slot", "Slot")
    if len(names) > _SLOTS_MAX:
        raise refused("slot", f"is given 1 to {_SLOTS_MAX} times", code="too-costly")
    return door.written(await records.reschedule(door.node, ask.caller, ask.id, names))


ROUTES = (
    *(Route(method=method, shape="T/$find", name="find", handler=find, kind="operation", types=_APPOINTMENT,
            definition=f"{_IHE}find") for method in ("GET", "POST")),
    Route(method="POST", shape="T/$book", name="book", handler=book, kind="operation", types=_APPOINTMENT,
          definition=f"{_IHE}book"),
    Route(method="POST", shape="T/I/$cancel", name="cancel", handler=cancel, kind="operation", types=_APPOINTMENT,
          definition=f"{_URN}cancel"),
    Route(method="POST", shape="T/I/$reschedule", name="reschedule", handler=reschedule, kind="operation",
          types=_APPOINTMENT, definition=f"{_URN}reschedule"),
)
