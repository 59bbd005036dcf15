"""What the handlers of the FHIR door share: the node, the table of routes, and carrying one Ask out.

Owns what every interaction's answer goes through, in a request or a bundle's entry alike: preferences, conditions of a
read. https://hl7.org/fhir/R4/http.html#ops
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.records.answer import Answer, version_answer
from gateway.records.node import Node
from gateway.records.preparing import Written
from gateway.web import asynchronous
from gateway.web.ask import Ask
from gateway.web.limits import Limits
from gateway.web.preferences import as_preferred, unless_known
from gateway.web.routes import Route, Routes

_READS = frozenset({"read", "vread"})


@dataclass(frozen=True, slots=True)
class Door:
    """One worker's FHIR door, behind its HTTP face."""

    node: Node
    routes: Routes
    capability: bytes
    limits: Limits

    @property
    def base(self) -> str:
        return self.node.settings.base_url

    async def answer(self, ask: Ask) -> Answer:
        """Find the row and carry it out. Raises what refuses it."""
        return await self.carry_out(self.routes.find(ask.method, ask.parts), ask)

    async def carry_out(self, route: Route, ask: Ask) -> Answer:
        """Carry out a row that was found, or have a job do it where that is preferred."""
        if "prefer" in ask.headers and asynchronous.wanted(route, ask):
            return await asynchronous.accept(self, route, ask)
        answer = await route.handler(self, ask)
        headers = ask.headers
        if route.kind == "write":
            return as_preferred(answer, ask.preference("return")) if "prefer" in headers else answer
        if route.name in _READS and ("if-none-match" in headers or "if-modified-since" in headers):
            return unless_known(answer, headers)
        return answer

    def written(self, written: Written) -> Answer:
        """The answer of a create or update."""
        return version_answer(201 if written.created else 200, written.stored, written.vid, written.updated_ms,
                              location=f"{self.base}/{written.type}/{written.id}/_history/{written.vid}")
