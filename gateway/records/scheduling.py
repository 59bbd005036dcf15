"""Appointments with their Slots: held and freed in the commit of the appointment, once.

Owns the rules of an Appointment beyond R4's (``TypeRules``), finding what is free, and booking it; refuses a second
appointment in a Slot: the look for another holder is made inside the commit, where writers of all processes take turns.
https://hl7.org/fhir/R4/appointment.html#slots
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlencode

import apsw
import orjson

from gateway import audit
from gateway.access.bound import is_feed
from gateway.access.decision import Deny
from gateway.errors import Conflict, Moved, PreconditionFailed, StoreBusy, Unprocessable
from gateway.fhir.appointments import (
    FINAL,
    HOLDING,
    actor,
    beyond_patient,
    held,
    participants,
    settled,
    slot_status,
    slots,
    step,
)
from gateway.fhir.resource import Resource, format_instant, parse, parse_instant, serialise
from gateway.records import drafting, read, write
from gateway.records.gate import Caller
from gateway.records.gathering import Opened, Permitted, audit_rows, disclosed, open_all, walk
from gateway.records.node import Hook, Node, TypeRules
from gateway.records.preparing import Written
from gateway.store import journal
from gateway.store.index import SqlBound
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms

_SCHEDULES_MAX = 200
_FREED = frozenset({"busy", "busy-tentative"})
_ATTEMPTS = 8


def _patient(caller: Caller) -> str | None:
    """The patient who writes, themselves or by a delegate."""
    return caller.grant.self_patient


def settle(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Resource:
    """A person's appointment with the status its participants lead to; a feed's as it was sent."""
    return settled(old, new, patient=_patient(caller)) if caller.grant.user is not None else new


def check_write(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Hook | None:
    """The steps a person may take, and the Slots taken and freed with them. Raises Unprocessable naming the place."""
    if caller.grant.user is not None:
        before = str(old["status"]) if old is not None else None
        if not step(before, str(new["status"])):
            raise Unprocessable(f"an appointment does not go from {before or 'nothing'} to {new['status']}",
                                code="business-rule", expression="Appointment.status")
        patient = _patient(caller)
        place = beyond_patient(old, new, patient) if old is not None and patient is not None else None
        if place is not None:
            raise Unprocessable("a patient answers, cancels, moves or completes an appointment, no more",
                                code="business-rule", expression=place)
        if old is not None and before in FINAL and slots(old) != slots(new):
            raise Unprocessable("what is over is not moved", code="business-rule", expression="Appointment.slot")
    taken, freed = held(new), tuple(name for name in held(old) if name not in held(new))
    if not taken and not freed:
        return None
    return _holding(node, caller, str(new["id"]), held(old), taken, freed, slot_status(new))


def check_deletion(node: Node, connection: apsw.Connection, row: VersionRow) -> Hook | None:
    """A deleted appointment gives its Slots back."""
    old = parse(node.versions.open(connection, row).stored)
    return _holding(node, None, row.id, held(old), (), held(old), "free") if held(old) else None


RULES = TypeRules(check_write=check_write, check_deletion=check_deletion, settle=settle)


def _holding(node: Node, caller: Caller | None, appointment: str, before: Sequence[str], taken: Sequence[str],
             freed: Sequence[str], status: str) -> Hook:
    """The Slots' part of the commit. Raises Conflict for one that is taken, Unprocessable for one not known."""
    _warm(node, [*taken, *freed])

    def hook(tx: apsw.Connection) -> None:
        for name in taken:
            found = _slot(node, tx, name)
            if found is None or not _may_see(node, tx, caller, found[0]):
                if caller is not None and not is_feed(caller.grant):
                    raise Unprocessable(f"{name} is not known", code="not-found", expression="Appointment.slot")
                continue
            row, slot = found
            others = _holders(node, tx, name, appointment)
            closed = slot.get("status") != "free" and name not in before and not (caller and is_feed(caller.grant))
            if (others or closed) and slot.get("overbooked") is not True:
                conflict = Conflict("the slot is taken")
                conflict.expression = "Appointment.slot"
                raise conflict
            _follow(node, tx, caller, row, slot, status)
        for name in freed:
            found = _slot(node, tx, name)
            if found is not None and found[1].get("status") in _FREED and not _holders(node, tx, name, appointment):
                _follow(node, tx, caller, *found, "free")
    return hook


def _warm(node: Node, names: Sequence[str]) -> None:
    """Fetch the Slots' blocks now: nothing waits for the network inside a commit."""
    connection = node.database.reader
    for name in names:
        row = journal.current(connection, "Slot", name.removeprefix("Slot/"))
        if row is not None and not row.deleted:
            node.versions.open(connection, row)


def _slot(node: Node, tx: apsw.Connection, name: str) -> tuple[VersionRow, Resource] | None:
    row = journal.current(tx, "Slot", name.removeprefix("Slot/"))
    if row is None or row.deleted:
        return None
    opened = node.versions.open_local(tx, row)
    if opened is None:
        raise Moved("the slot was changed meanwhile")
    return row, parse(opened.stored)


def _may_see(node: Node, tx: apsw.Connection, caller: Caller | None, row: VersionRow) -> bool:
    return caller is None or not isinstance(node.gate.decide(
        tx, caller, "r", stored=node.gate.facts(tx, row), stored_matcher=node.gate.stored_matcher(tx, row.seq)), Deny)


def _holders(node: Node, tx: apsw.Connection, name: str, appointment: str) -> bool:
    """Whether another appointment holds the Slot; whoever's it is: that it is taken is what a Slot tells everyone."""
    query = node.query("Appointment", [("slot", name), ("status", ",".join(sorted(HOLDING)))], strict=True)
    found = node.index.search(tx, query, SqlBound("1"), snapshot=journal.head_seq(tx), limit=2)
    return any(match.row.id != appointment for match in found)


def _follow(node: Node, tx: apsw.Connection, caller: Caller | None, row: VersionRow, slot: Resource,
            status: str) -> None:
    """Store the Slot's next version, whose author stays who wrote it: it is no other's Slot for being booked."""
    if slot.get("status") == status:
        return
    made = drafting.drafted(node, {**slot, "status": status}, row.id, client=row.client, user=row.user)
    new, _ = node.versions.seal(made, id_=row.id, vid=row.vid + 1, updated_ms=now_ms(), client=row.client,
                                user=row.user)
    journal.append(tx, new)
    if caller is not None:
        audit.append(tx, node.gate.entries(caller, "u", "update", None, what=(f"Slot/{row.id}/_history/{new.vid}",),
                                           patients=(), outcome="0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What ``$find`` looks for: ``actors`` of the Schedules, and search parameters of Slot."""

    start: str
    end: str
    actors: tuple[str, ...]
    slot: tuple[tuple[str, str], ...]
    patient: str | None
    count: int
    asked: tuple[tuple[str, str], ...]


async def find(node: Node, caller: Caller, wanted: Wanted) -> bytes:
    """A searchset of proposed appointments, one for each free Slot, by time; their Slots are included.

    Raises Forbidden, BadSearch.
    """
    async def attempt(caller: Caller) -> bytes:
        offers, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        return _offered(node, wanted, offers)

    def work(caller: Caller) -> tuple[list[tuple[Opened, Resource]], Any]:
        with node.database.snapshot() as connection:
            schedules = _schedules(node, caller, connection, wanted)
            found = _free(node, caller, connection, wanted, schedules) if schedules else []
            slots_ = open_all(node, connection, found)
            rows = audit_rows(node, caller, connection, "find", found, query=urlencode(wanted.asked), about="Slot")
            offers = [(one, schedules[_of(one.resource)].resource) for one in slots_ if _of(one.resource) in schedules]
            return offers, rows

    return await node.decided(caller, attempt)


def _of(slot: Resource) -> str:
    return str(slot["schedule"].get("reference", ""))


def _schedules(node: Node, caller: Caller, connection: apsw.Connection, wanted: Wanted) -> dict[str, Opened]:
    """The Schedules that may be seen, of every actor asked for."""
    query = node.query("Schedule", [("actor", name) for name in wanted.actors], strict=True)
    found = list(islice(walk(node, caller, connection, query, snapshot=journal.head_seq(connection)), _SCHEDULES_MAX))
    return {one.found.reference: one for one in open_all(node, connection, found)
            if one.resource.get("active") is not False}


def _free(node: Node, caller: Caller, connection: apsw.Connection, wanted: Wanted,
          schedules: dict[str, Opened]) -> list[Permitted]:
    pairs = [("status", "free"), ("start", f"ge{wanted.start}"), ("start", f"lt{wanted.end}"), *wanted.slot,
             ("_sort", "start")]
    if wanted.actors:
        pairs.append(("schedule", ",".join(schedules)))
    query = node.query("Slot", pairs, strict=True)
    return list(islice(walk(node, caller, connection, query, snapshot=journal.head_seq(connection)), wanted.count))


def _offered(node: Node, wanted: Wanted, offers: Sequence[tuple[Opened, Resource]]) -> bytes:
    base = node.settings.base_url
    asked = urlencode(wanted.asked)
    head = orjson.dumps({"resourceType": "Bundle", "type": "searchset", "total": len(offers), "link": [
        {"relation": "self", "url": f"{base}/Appointment/$find?{asked}"}]})
    entries = [b'{"fullUrl":"urn:uuid:%s","resource":%s,"search":{"mode":"match"}}' % (
        str(uuid.uuid4()).encode(), serialise(appointment_of([slot.resource], schedule, wanted.patient,
                                                             status="proposed", answered="needs-action")))
               for slot, schedule in offers]
    entries += [b'{"fullUrl":"%s/%s","resource":%s,"search":{"mode":"include"}}' % (
        base.encode(), slot.found.reference.encode(), slot.stored) for slot, _ in offers]
    return b'%s,"entry":[%s]}' % (head[:-1], b",".join(entries)) if entries else head


def appointment_of(slots_: Sequence[Resource], schedule: Resource, patient: str | None, *, status: str,
                   answered: str) -> Resource:
    """An appointment in these Slots of one Schedule: its actors offer the time, and so accept it."""
    first = slots_[0]
    start, end = min(parse_instant(one["start"]) for one in slots_), max(parse_instant(one["end"]) for one in slots_)
    actors = [{"actor": one, "required": "required", "status": "accepted"} for one in schedule["actor"]]
    who = [] if patient is None else [{"actor": {"reference": patient}, "required": "required", "status": answered}]
    return {
        "resourceType": "Appointment", "status": status,
        **{name: first[name] for name in ("serviceCategory", "serviceType", "specialty", "appointmentType")
           if name in first},
        "start": format_instant(start), "end": format_instant(end),
        **({"minutesDuration": (end - start) // 60_000} if end - start >= 60_000 else {}),
        "slot": [{"reference": f"Slot/{one['id']}"} for one in slots_], "participant": [*actors, *who]}


async def book(node: Node, caller: Caller, slot_names: Sequence[str], patient: str, given: Resource | None) -> Written:
    """Take Slots for a patient: everybody's time is settled, so that it is booked. ``given`` adds what is asked for.

    Raises NotFound (no such Slot), Conflict (taken), and what a create raises.
    """
    slots_, schedule, caller = await _read_slots(node, caller, slot_names)
    made = appointment_of(slots_, schedule, patient, status="booked", answered="accepted")
    if given is not None:
        known = {actor(one) for one in participants(made)}
        others = [one for one in participants(given) if actor(one) not in known]
        kept = {name: value for name, value in given.items()
                if name not in ("id", "status", "start", "end", "minutesDuration", "slot", "participant")}
        made = {**made, **kept, "participant": [*made["participant"], *others]}
    return await write.create(node, caller, "Appointment", made)


async def _read_slots(node: Node, caller: Caller, names: Sequence[str]) -> tuple[list[Resource], Resource, Caller]:
    """The Slots and their one Schedule, each as far as it may be read. Raises NotFound, Gone, Unprocessable."""
    found = []
    for name in names:
        found.append(parse((await read.read(node, caller, "Slot", name.removeprefix("Slot/"))).stored))
        caller = caller.again()
    schedules = {_of(one) for one in found}
    schedule = next(iter(schedules), "")
    if len(schedules) != 1 or not schedule.startswith("Schedule/"):
        raise Unprocessable("the slots are not of one schedule of this server", code="business-rule",
                            expression="Appointment.slot")
    reading = await read.read(node, caller, "Schedule", schedule.removeprefix("Schedule/").partition("/")[0])
    return found, parse(reading.stored), caller.again()


async def cancel(node: Node, caller: Caller, id_: str, reason: dict[str, Any] | None) -> Written:
    """End an appointment, for whichever side; its Slots are free again. Raises as an update does."""
    def change(appointment: Resource) -> Resource:
        return {**appointment, "status": "cancelled", **({"cancelationReason": reason} if reason else {})}
    return await _changed(node, caller, id_, change)


async def reschedule(node: Node, caller: Caller, id_: str, slot_names: Sequence[str]) -> Written:
    """Move an appointment to other Slots: the old ones are freed in the commit that takes the new.

    Raises NotFound, Conflict (taken), and what an update raises.
    """
    slots_, schedule, caller = await _read_slots(node, caller, slot_names)
    made = appointment_of(slots_, schedule, None, status="booked", answered="accepted")
    offered = {actor(one) for one in participants(made)}

    def change(appointment: Resource) -> Resource:
        if offered - {actor(one) for one in participants(appointment)}:
            raise Unprocessable("the slot is not of who is to come: book it as an appointment of its own",
                                code="business-rule", expression="Appointment.slot")
        return {**appointment, **{name: made[name] for name in ("start", "end", "minutesDuration", "slot")
                                  if name in made}}
    return await _changed(node, caller, id_, change)


async def _changed(node: Node, caller: Caller, id_: str, change: Callable[[Resource], Resource]) -> Written:
    for _ in range(_ATTEMPTS):
        reading = await read.read(node, caller, "Appointment", id_)
        caller = caller.again()
        try:
            return await write.update(node, caller, "Appointment", id_, change(parse(reading.stored)),
                                      if_match=f'W/"{reading.row.vid}"')
        except PreconditionFailed:
            caller = caller.again()
    raise StoreBusy("the appointment keeps changing; try again")
