"""What the handlers of the FHIR door share: the node, the table of routes, and carrying one Ask out.

Owns the answer of a write as ``Prefer: return`` wants it. https://hl7.org/fhir/R4/http.html#ops
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.records.answer import Answer, version_answer
from gateway.records.node import Node
from gateway.records.write import Written
from gateway.web.ask import Ask
from gateway.web.routes import Route, Routes


@dataclass(frozen=True, slots=True)
class Door:
    """One worker's FHIR door, behind its HTTP face."""

    node: Node
    routes: Routes
    capability: bytes

    @property
    def base(self) -> str:
        return self.node.settings.base_url

    async def answer(self, ask: Ask) -> Answer:
        """Find the row and carry it out. Raises what refuses it."""
        return await self.carry_out(self.routes.find(ask.method, ask.parts), ask)

    async def carry_out(self, route: Route, ask: Ask) -> Answer:
        """Carry out a row that was found."""
        answer = await route.handler(self, ask)
        if route.kind == "write" and answer.status in (200, 201) and ask.preference("return") == "minimal":
            return replace(answer, body=b"")
        return answer

    def written(self, written: Written) -> Answer:
        """The answer of a create or update."""
        return version_answer(201 if written.created else 200, written.stored, written.vid, written.updated_ms,
                              location=f"{self.base}/{written.type}/{written.id}/_history/{written.vid}")
