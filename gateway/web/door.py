"""The FHIR door: which interaction a method and path ask for, and carrying one Ask out.

Owns the one table that every group of interactions adds its rows to, the shapes of URLs and the Allow header, what the
handlers share, and what every answer goes through, in a request or a bundle's entry alike: preferences, conditions of a
read. Refuses unknown types, ids that are none, and what no row offers. https://hl7.org/fhir/R4/http.html#summary

A shape names the parts of a path: ``T`` a resource type, ``I`` a logical id, ``V`` a version id, ``C`` the type of a
compartment search (or ``*``); words that begin with ``_`` or ``$``, and ``metadata``, stand for themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.errors import Malformed, MethodNotAllowed, NotFound
from gateway.fhir.resource import is_id
from gateway.records.answer import Answer, version_answer
from gateway.records.node import Node
from gateway.records.preparing import Written
from gateway.web import deferral
from gateway.web.ask import Ask
from gateway.web.limits import Limits
from gateway.web.preferences import as_preferred, unless_known

Handler = Callable[["Door", Ask], Awaitable[Answer]]
Kind = Literal["read", "write", "operation"]
_READS = frozenset({"read", "vread"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row: ``name`` is R4's code of the interaction, or the operation's name without ``$``.

    ``kind`` "write": the answer obeys ``Prefer: return``; ``types``: for these alone. ``definition`` is the canonical
    URL of an operation, by which the CapabilityStatement offers it; without one it is an interaction. ``stated``:
    whether the statement speaks of it.
    """

    method: str
    shape: str
    name: str
    handler: Handler
    kind: Kind = "read"
    types: frozenset[str] | None = None
    definition: str | None = None
    stated: bool = True


class Routes:
    """The table, indexed by method and shape."""

    def __init__(self, rows: Iterable[Route], types: Collection[str]) -> None:
        self.rows = tuple(rows)
        self._types = types
        self._found: dict[tuple[str, str], list[Route]] = defaultdict(list)
        self._methods: dict[str, list[Route]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: row.types is None):
            self._found[row.method, row.shape].append(row)
            self._methods[row.shape].append(row)

    def find(self, method: str, parts: Sequence[str]) -> Route:
        """The row for a request. Raises NotFound, Malformed (no id), MethodNotAllowed with what is allowed."""
        shape = self.shape(parts)
        type_ = parts[0] if parts else ""
        for row in self._found.get(("GET" if method == "HEAD" else method, shape), ()):
            if row.types is None or type_ in row.types:
                return row
        allowed = self._allowed(shape, type_)
        if allowed:
            raise MethodNotAllowed(f"{method[:16]} is not offered here; {', '.join(allowed)} is", allowed)
        last = parts[-1][:64] if parts else ""
        raise NotFound(f"{'the operation ' if last.startswith('$') else ''}{last!r} is not offered here")

    def shape(self, parts: Sequence[str]) -> str:
        """The shape of a path. Raises NotFound for an unknown type, Malformed for what is no id."""
        if not parts:
            return ""
        shape = []
        for place, part in enumerate(parts):
            if part[:1] in ("_", "$") or parts == ["metadata"]:
                shape.append(part)
            elif place == 0:
                if part not in self._types:
                    raise NotFound(f"{part[:64]!r} is no R4 resource type")
                shape.append("T")
            elif place == 1:
                if not is_id(part):
                    raise Malformed(f"{part[:80]!r} is not a FHIR id", code="value", expression="Resource.id")
                shape.append("I")
            elif place == 2 and (part == "*" or part in self._types):
                shape.append("C")
            else:
                shape.append("V" if place == 3 else "?")
        return "/".join(shape)

    def allowed(self, parts: Sequence[str]) -> tuple[str, ...]:
        """The methods a path offers. Raises as ``shape`` does."""
        return self._allowed(self.shape(parts), parts[0] if parts else "")

    def _allowed(self, shape: str, type_: str) -> tuple[str, ...]:
        methods = {row.method for row in self._methods.get(shape, ()) if row.types is None or type_ in row.types}
        order = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        return tuple(method for method in order if method in methods or (method == "HEAD" and "GET" in methods))


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
        if "prefer" in ask.headers and deferral.wanted(route.name, route.kind, ask):
            return await deferral.accept(self.node, route.name, ask)
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
