"""Terminology as one caller sees it: HL7's own, and the ValueSets, CodeSystems and ConceptMaps that were posted.

Owns finding posted ones by url through the caller's own view, deciding on each, and the audit of what an answer was
made from; refuses to let one that may not be read be told from one that is not there, and one that was posted to
replace HL7's own of the same url and version. https://hl7.org/fhir/R4/terminology-service.html
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import apsw

from gateway.audit import SealedRow
from gateway.errors import Forbidden, GatewayError
from gateway.fhir.resource import Resource, parse, serialise
from gateway.fhir.terminology import Terminology
from gateway.fhir.terminology_tables import CodeSystem
from gateway.records import read
from gateway.records.gate import Caller
from gateway.records.gathering import Permitted, at_most, audit_rows, disclosed, open_all, walk
from gateway.records.node import Node
from gateway.store import journal

_MAPS_MAX = 50
"""Most ConceptMaps looked into where none is named."""
_VALUE_MAX = 1_000
_MODIFIERS = (":in", ":not-in", ":above", ":below")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An operation as it is asked; ``about`` and ``query`` are for the audit; ``id`` names the instance asked."""

    name: str
    type: str
    query: str
    id: str | None = None


class Shelf:
    """A Source for one caller at one moment: what HL7 defined, then what was posted and may be found by them.

    Of several with one url the latest stored is taken; ``url|version`` names another. It may fetch and open blocks:
    it belongs into a thread.
    """

    def __init__(self, node: Node, caller: Caller, connection: apsw.Connection) -> None:
        self.found: dict[int, Permitted] = {}
        self.asked = False
        self._node = node
        self._caller = caller
        self._connection = connection
        self._known: dict[tuple[str, str, str | None], Any] = {}  # Any: a resource or a CodeSystem, by its type

    def value_set(self, url: str, version: str | None) -> Resource | None:
        found: Resource | None = self._node.library.value_set(url, version) or self._posted("ValueSet", url, version)
        return found

    def code_system(self, url: str, version: str | None) -> CodeSystem | None:
        found: CodeSystem | None = (self._node.library.code_system(url, version)
                                    or self._posted("CodeSystem", url, version))
        return found

    def concept_map(self, url: str, version: str | None) -> Resource | None:
        found: Resource | None = (self._node.library.concept_map(url, version)
                                  or self._posted("ConceptMap", url, version))
        return found

    def concept_maps(self, system: str, *, reverse: bool) -> list[Resource]:
        """Every posted map from a system, or to it. Raises TooCostly."""
        name = "target-system" if reverse else "source-system"
        found = at_most(self._walk("ConceptMap", [(name, system)]), _MAPS_MAX, "a translation by any map")
        return [self._read(one) for one in found]

    def _posted(self, type_: str, url: str, version: str | None) -> Any:
        key = (type_, url, version)
        if key not in self._known:
            pairs = [("url", url), *([("version", version)] if version else ())]
            first = next(iter(self._walk(type_, pairs, latest=True)), None)
            self._known[key] = None if first is None else self._read(first)
        return self._known[key]

    def _walk(self, type_: str, pairs: Sequence[tuple[str, str]], *, latest: bool = False) -> Sequence[Permitted]:
        self.asked = True
        if any(not value or len(value) > _VALUE_MAX for _, value in pairs):
            return ()
        asked = [(name, re.sub(r"([\\,$|])", r"\\\1", value)) for name, value in pairs]
        query = self._node.query(type_, [*asked, *([("_sort", "-_lastUpdated")] if latest else ())], strict=True)
        found: list[Permitted] = []
        try:
            for one in walk(self._node, self._caller, self._connection, query,
                            snapshot=journal.head_seq(self._connection)):
                found.append(one)
                if latest or len(found) > _MAPS_MAX:
                    break
        except Forbidden:  # outside the scopes: nothing was posted that this token could know of
            return ()
        return found

    def _read(self, one: Permitted) -> Any:
        self.found[one.row.seq] = one
        known = self._node.library.recent(one.row.seq)
        if known is None:
            stored = open_all(self._node, self._connection, [one])[0].stored
            known = parse(stored)
            if one.row.type == "CodeSystem":
                known = CodeSystem.of(known)
            self._node.library.keep(one.row.seq, len(stored), known)
        return known


class Remembered:
    """A Terminology's answers to what a search asked of it: they outlive the snapshot they were worked out in."""

    def __init__(self, terms: Terminology) -> None:
        self._terms = terms
        self._answers: dict[tuple[str, ...], Any] = {}  # Any: what the question gives, or the error it raised

    def close(self, terms: Terminology) -> None:
        """What was not asked yet is answered by ``terms`` from here on."""
        self._terms = terms

    def members(self, canonical: str) -> Mapping[str, frozenset[str]]:
        found: Mapping[str, frozenset[str]] = self._ask("members", canonical)
        return found

    def descendants(self, system: str, code: str) -> frozenset[str]:
        found: frozenset[str] = self._ask("descendants", system, code)
        return found

    def ancestors(self, system: str, code: str) -> frozenset[str]:
        found: frozenset[str] = self._ask("ancestors", system, code)
        return found

    def _ask(self, name: str, *arguments: str) -> Any:
        key = (name, *arguments)
        if key not in self._answers:
            try:
                self._answers[key] = getattr(self._terms, name)(*arguments)
            except GatewayError as error:
                self._answers[key] = error
        answer = self._answers[key]
        if isinstance(answer, GatewayError):
            raise answer
        return answer


async def asking(node: Node, caller: Caller, types: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Node:
    """The node for a search whose parameters ask for value sets or hierarchies: it knows their answers, as the caller
    may know them. For any other search the node as it is, at no cost.
    """
    asked = [(name, value) for name, value in pairs if name == "_filter" or name.endswith(_MODIFIERS)]
    if not asked:
        return node

    def gathered(caller: Caller) -> tuple[Remembered, tuple[SealedRow, ...]]:
        with node.database.snapshot() as connection:
            shelf = Shelf(node, caller, connection)
            codes = Remembered(Terminology(shelf, node.definitions))
            view = replace(node, codes=codes)
            for type_ in node.definitions.resource_types.intersection(types):
                for pair in asked:
                    try:
                        view.query(type_, [pair], strict=True)
                    except GatewayError:
                        continue  # the search itself will say so
            rows = audit_rows(node, caller, connection, "search-type", shelf.found.values(), query=urlencode(asked),
                              about="ValueSet") if shelf.found else ()
        codes.close(Terminology(node.library, node.definitions))
        return codes, rows

    async def attempt(caller: Caller) -> Node:
        codes, rows = await asyncio.to_thread(gathered, caller)
        if rows:
            await disclosed(node, caller, rows)
        return replace(node, codes=codes)
    return await node.decided(caller, attempt)


async def answer(node: Node, caller: Caller, question: Question,
                 work: Callable[[Terminology, Shelf, Resource | None], Resource], *, partial: bool = False) -> bytes:
    """Carry out ``work`` in a thread, with the instance that was named; audited before anything leaves.

    Raises what ``work`` does, and for an instance what a read does.
    """
    async def attempt(caller: Caller) -> bytes:
        instance = None
        if question.id is not None:
            reading = await read.read(node, caller, question.type, question.id)
            caller = caller.again()
            instance = reading.stored

        def carried_out() -> tuple[Resource | GatewayError, tuple[SealedRow, ...]]:
            with node.database.snapshot() as connection:
                shelf = Shelf(node, caller, connection)
                found: Resource | GatewayError
                try:
                    found = work(Terminology(shelf, partial=partial), shelf,
                                 None if instance is None else parse(instance))
                except GatewayError as error:
                    found = error
                rows = audit_rows(node, caller, connection, question.name, shelf.found.values(), query=question.query,
                                  about=f"{question.type}/{question.id}" if question.id else question.type)
            return found, rows if shelf.asked or instance is not None else ()

        found, rows = await asyncio.to_thread(carried_out)
        if rows:
            await disclosed(node, caller, rows)
        if isinstance(found, GatewayError):
            raise found
        return serialise(found)
    return await node.decided(caller, attempt)
