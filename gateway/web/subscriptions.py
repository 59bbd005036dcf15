"""``$status`` and ``$events`` of Subscriptions over HTTP.

Owns reading their parameters. https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/operations.html
"""

from __future__ import annotations

from typing import cast

from gateway.fhir.subscriptions import BACKPORT, Content
from gateway.records import subscription_events, subscriptions
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, inputs, refused

_TYPES = frozenset({"Subscription"})
_STATUS = f"{BACKPORT}OperationDefinition/backport-subscription-status"
_EVENTS = f"{BACKPORT}OperationDefinition/backport-subscription-events"
_FILTERS = {"id": Input("id", many=True), "status": Input("code", many=True)}
_WHICH = {"eventsSinceNumber": Input("string"), "eventsUntilNumber": Input("string"), "content": Input("code")}
_CONTENTS = ("empty", "id-only", "full-resource")


async def status(door: Door, ask: Ask) -> Answer:
    """How one's Subscriptions stand."""
    given = await inputs(door, ask, _FILTERS, operation="status")
    return Answer(200, await subscriptions.status(door.node, ask.caller, given.texts("id"), given.texts("status")))


async def status_of(door: Door, ask: Ask) -> Answer:
    """How this Subscription stands; of one that is not known nothing is told."""
    await inputs(door, ask, {}, operation="status")
    return Answer(200, await subscriptions.status(door.node, ask.caller, [ask.id], []))


async def events(door: Door, ask: Ask) -> Answer:
    """Events notified before, as far as they may still be seen."""
    given = await inputs(door, ask, _WHICH, operation="events")
    content = given.text("content")
    if content is not None and content not in _CONTENTS:
        raise refused("content", f"is one of {', '.join(_CONTENTS)}")
    high = given.whole("eventsUntilNumber", 0) or None
    low = given.whole("eventsSinceNumber", 1)
    return Answer(200, await subscription_events.events(door.node, ask.caller, ask.id, low, high,
                                                        cast("Content | None", content)))


ROUTES = tuple(
    Route(method=method, shape=shape, name=name, handler=handler, kind="operation", types=_TYPES, definition=definition)
    for shape, name, handler, definition in (
        ("T/$status", "status", status, _STATUS), ("T/I/$status", "status", status_of, _STATUS),
        ("T/I/$events", "events", events, _EVENTS))
    for method in ("GET", "POST"))
