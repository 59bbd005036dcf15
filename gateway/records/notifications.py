"""Notifications on their way: the requests an endpoint is sent, in R4's own form or as the backport's Bundles.

Owns the form of a handshake, a heartbeat and a notification; refuses an endpoint that leads inside, each time anew, by
``endpoints.py``. What is told was decided before: ``subscription_events.py``.
https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/notifications.html, https://hl7.org/fhir/R4/subscription.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from gateway.fhir.resource import parse
from gateway.fhir.subscriptions import JSON, XML, Event, Kind, Wanted, delivered, notification
from gateway.fhir.xml_shapes import Shapes
from gateway.fhir.xml_writer import write_xml
from gateway.records import endpoints
from gateway.records.endpoints import Resolve, Sender
from gateway.records.node import Node
from gateway.records.subscription_events import Subscribed


class Notifications:
    """Sends what it is given. Each method raises Unavailable where it was not acknowledged."""

    def __init__(self, node: Node, sender: Sender, resolving: Resolve, clock: Callable[[], int]) -> None:
        self._node = node
        self._sender = sender
        self._resolving = resolving
        self._clock = clock
        self._shapes = Shapes(node.definitions)

    async def close(self) -> None:
        """Close the connections."""
        await self._sender.close()

    async def address(self, asked: Subscribed) -> str:
        """The address to send to. Raises EndpointRefused for an internal one, Unavailable without any."""
        return await endpoints.pinned(self._node.settings.subscription_hosts, asked.url, self._resolving)

    async def shake_hands(self, asked: Subscribed, address: str) -> None:
        """Ask the endpoint whether it is there: a handshake for a topic, for R4's form what tells nothing."""
        if asked.wanted.topic is None:
            await self._sender.send("OPTIONS", asked.url, address, headers={}, body=b"",
                                    timeout_s=asked.wanted.timeout_s, any_answer=True)
        else:
            await self._bundle(asked, address, "handshake", ())

    async def beat(self, asked: Subscribed, address: str) -> None:
        """A heartbeat, which R4's own form does not have."""
        await self._bundle(asked, address, "heartbeat", ())

    async def notify(self, asked: Subscribed, address: str, events: Sequence[Event]) -> None:
        """Tell ``events``."""
        wanted = asked.wanted
        if wanted.topic is not None:
            await self._bundle(asked, address, "event-notification", events)
            return
        for event in events:  # one, in R4's own form
            if event.stored is None or wanted.payload is None:
                await self._sender.send("POST", asked.url, address, headers=dict(wanted.header), body=b"",
                                        timeout_s=wanted.timeout_s)
                continue
            path = f"{asked.url.path.rstrip('/')}/{event.type}/{event.id}"
            await self._sender.send("PUT", asked.url.copy_with(path=path), address,
                                    headers=self._headers(wanted), body=await self._body(wanted, event.stored),
                                    timeout_s=wanted.timeout_s)

    async def _bundle(self, asked: Subscribed, address: str, kind: Kind, events: Sequence[Event]) -> None:
        at, wanted = asked.at, asked.wanted
        state = delivered(at.state, 0).state if events else at.state
        body = notification(kind, base=self._node.settings.base_url, id_=at.id, topic=wanted.topic,
                            state=state, count=at.delivered + len(events), now_ms=self._clock(), events=events,
                            content=wanted.content)
        await self._sender.send("POST", asked.url, address, headers=self._headers(wanted),
                                body=await self._body(wanted, body), timeout_s=wanted.timeout_s)

    def _headers(self, wanted: Wanted) -> Mapping[str, str]:
        return {**dict(wanted.header), "Content-Type": wanted.payload or JSON}

    async def _body(self, wanted: Wanted, stored: bytes) -> bytes:
        if wanted.payload != XML:
            return stored
        return await asyncio.to_thread(lambda: write_xml(parse(stored), self._shapes))
