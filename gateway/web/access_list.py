"""Who has access, over HTTP: ``$access-list`` of a patient, and of the one who asks."""

from __future__ import annotations

from gateway.records import access_list
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import refused

_PATIENT = frozenset({"Patient"})
_HOLDERS = frozenset({"Practitioner", "Organization", "Device", "RelatedPerson"})
_DEFINITION = "urn:fhir-gateway:operation:access-list"
_COUNT = 200


def _paging(door: Door, ask: Ask) -> tuple[int, str | None]:
    ask.only_known(frozenset({"_count", "_page"}), "$access-list")
    count = ask.number("_count", _COUNT)
    if count == 0:
        raise refused("_count", "is at least 1")
    return min(count, door.node.settings.max_page), ask.one("_page")


async def of_patient(door: Door, ask: Ask) -> Answer:
    """To whom the patient opened what."""
    count, page = _paging(door, ask)
    return Answer(200, await access_list.of_patient(door.node, ask.caller, ask.id, count=count, page=page))


async def of_holder(door: Door, ask: Ask) -> Answer:
    """Which patients opened something to the caller, their organisations, their app; at a name, by that one."""
    count, page = _paging(door, ask)
    named = len(ask.parts) > 1
    only = f"{ask.type}/{ask.id}" if named and f"{ask.type}/{ask.id}" != ask.caller.grant.user else None
    return Answer(200, await access_list.of_holder(door.node, ask.caller, "/".join(ask.parts), only=only, count=count,
                                                   page=page))


ROUTES = (
    Route(method="GET", shape="T/I/$access-list", name="access-list", handler=of_patient, kind="operation",
          types=_PATIENT, definition=_DEFINITION),
    Route(method="GET", shape="T/I/$access-list", name="access-list", handler=of_holder, kind="operation",
          types=_HOLDERS, definition=_DEFINITION),
    Route(method="GET", shape="$access-list", name="access-list", handler=of_holder, kind="operation",
          definition=_DEFINITION),
)
