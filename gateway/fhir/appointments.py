"""Appointments and Slots as states: which status follows from the participants', what holds a Slot, who changes what.

Owns these rules; refuses a step out of a final status. Pure. https://hl7.org/fhir/R4/appointment.html#statusnotes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from gateway.fhir.resource import Resource, copy, reference_target

OPEN = frozenset({"proposed", "pending", "booked"})
"""The statuses that follow from what the participants answered."""
HOLDING = frozenset({"pending", "booked", "arrived", "checked-in", "fulfilled"})
"""An appointment in one of these takes its Slots."""
FINAL = frozenset({"cancelled", "fulfilled", "noshow", "entered-in-error"})
_STEPS: Mapping[str, frozenset[str]] = MappingProxyType({
    "proposed": frozenset({*OPEN, "waitlist", "cancelled", "entered-in-error"}),
    "waitlist": frozenset({*OPEN, "waitlist", "cancelled", "entered-in-error"}),
    "pending": frozenset({*OPEN, "waitlist", "cancelled", "noshow", "entered-in-error"}),
    "booked": frozenset({*OPEN, "waitlist", "arrived", "checked-in", "fulfilled", "cancelled", "noshow",
                         "entered-in-error"}),
    "arrived": frozenset({"arrived", "checked-in", "fulfilled", "cancelled", "noshow", "entered-in-error"}),
    "checked-in": frozenset({"checked-in", "arrived", "fulfilled", "cancelled", "noshow", "entered-in-error"}),
    "cancelled": frozenset({"cancelled", "entered-in-error"}), "noshow": frozenset({"noshow", "entered-in-error"}),
    "fulfilled": frozenset({"fulfilled", "entered-in-error"}), "entered-in-error": frozenset({"entered-in-error"})})
_BY_PATIENT = frozenset({"proposed", "pending", "booked", "waitlist", "arrived", "checked-in", "fulfilled",
                         "cancelled"})
_PATIENTS_ELEMENTS = frozenset({"resourceType", "id", "meta", "status", "cancelationReason", "slot", "start", "end",
                                "minutesDuration", "comment", "participant", "requestedPeriod"})
_TIMES = ("start", "end", "slot")


def step(before: str | None, after: str) -> bool:
    """Whether a person may lead an appointment from one status to the other; None: a new one."""
    return after not in FINAL if before is None else after in _STEPS.get(before, frozenset())


def slots(appointment: Mapping[str, Any]) -> tuple[str, ...]:
    """References of the Slots an appointment names, each once."""
    found = (reference_target(one["reference"]) for one in appointment.get("slot") or ()
             if isinstance(one, dict) and isinstance(one.get("reference"), str))
    return tuple(dict.fromkeys(f"Slot/{target.id}" for target in found if target.type == "Slot"))


def held(appointment: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The Slots it takes in its present status."""
    return slots(appointment) if appointment is not None and appointment.get("status") in HOLDING else ()


def slot_status(appointment: Mapping[str, Any]) -> str:
    """What a Slot held by it shows."""
    return "busy-tentative" if appointment.get("status") == "pending" else "busy"


def participants(appointment: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Its participants, as they stand in it."""
    return (one for one in appointment.get("participant") or () if isinstance(one, dict))


def actor(participant: Mapping[str, Any]) -> str | None:
    """Who a participant is, as ``Type/id``."""
    reference = participant.get("actor")
    text = reference.get("reference") if isinstance(reference, dict) else None
    target = reference_target(text) if isinstance(text, str) else None
    return f"{target.type}/{target.id}" if target is not None and target.type else None


def following(appointment: Mapping[str, Any]) -> str:
    """The status that its participants' answers lead to, of one whose status is still open.

    All who must come accepted: booked. One of them declined: cancelled. Else pending, or proposed while nobody said
    anything. Without a time it stays proposed (app-3).
    """
    status = str(appointment.get("status"))
    required = [one.get("status") for one in participants(appointment)
                if one.get("required", "required") == "required"]
    if "declined" in required:
        return "cancelled"
    if "start" not in appointment or "end" not in appointment:
        return "proposed"
    if required and all(one == "accepted" for one in required):
        return "booked"
    answered = any(one in ("accepted", "tentative") for one in required)
    return "pending" if answered or status != "proposed" else "proposed"


def settled(old: Resource | None, new: Resource, *, patient: str | None) -> Resource:
    """What is stored of an appointment a person wrote: the overall status follows the participants'.

    ``patient``: the one who writes, or for whom; None: a clinician. Others are asked again when a patient sets a time
    that no Slot offers.
    """
    if old is not None and _answers(old) == _answers(new) and times(old) == times(new):
        return new  # nobody answered and nothing moved: what another system says of it stays
    found = new
    if patient is not None:
        moved = old is None or any(old.get(name) != new.get(name) for name in ("start", "end"))
        offered = bool(slots(new)) and (old is None or slots(new) != slots(old) or not moved)
        if moved and not offered:
            found = copy(new)
            for one in participants(found):
                if actor(one) != patient and one.get("status") == "accepted":
                    one["status"] = "needs-action"
    status = found.get("status")
    before = old.get("status") if old is not None else None
    if status in OPEN and (before is None or before in OPEN or before == "waitlist"):
        wanted = following(found)
        if wanted != status:
            found = {**found, "status": wanted}
    return found


def _answers(appointment: Mapping[str, Any]) -> list[Any]:
    return [appointment.get("status"), *(one.get("status") for one in participants(appointment))]


def beyond_patient(old: Resource, new: Resource, patient: str) -> str | None:
    """The first place of a change that is not the patient's to make; None: none."""
    for name in sorted((old.keys() | new.keys()) - _PATIENTS_ELEMENTS):
        if old.get(name) != new.get(name):
            return f"Appointment.{name.removeprefix('_')}"
    if new.get("status") not in _BY_PATIENT:
        return "Appointment.status"
    before, after = list(participants(old)), list(participants(new))
    if len(before) != len(after):
        return "Appointment.participant"
    for place, (one, other) in enumerate(zip(before, after, strict=True)):
        own = actor(one) == patient
        same = {name: value for name, value in one.items() if name != "status"} == {
            name: value for name, value in other.items() if name != "status"}
        answered = other.get("status") == one.get("status") or own or other.get("status") == "needs-action"
        if not same or not answered:
            return f"Appointment.participant[{place}]"
    return None


def times(appointment: Mapping[str, Any]) -> tuple[Any, ...]:
    """What says when it is."""
    return tuple(appointment.get(name) for name in _TIMES)
