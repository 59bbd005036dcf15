"""``_summary`` and ``_elements`` where resources are read and not searched. https://hl7.org/fhir/R4/search.html#summary"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gateway.errors import BadSearch
from gateway.fhir.resource import parse, serialise
from gateway.fhir.search_results import Results, ResultsDraft, Unsupported
from gateway.fhir.subset import Subset
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door


def asked(door: Door, ask: Ask) -> Results:
    """What a read asks to be left out. Raises BadSearch."""
    return _results(door, ask, ask.pairs if ask.query else [], ask.type)


def of_history(door: Door, ask: Ask, pairs: Iterable[tuple[str, str]]) -> Results:
    """What a history of an instance, of a type or of everything asks to be left out. Raises BadSearch."""
    return _results(door, ask, pairs, ask.parts[0] if ask.parts[0] != "_history" else "Resource")


def _results(door: Door, ask: Ask, given: Iterable[tuple[str, str]], type_: str) -> Results:
    pairs = [(name, value) for name, value in given if name in ("_summary", "_elements")]
    if not pairs:
        return Results()
    draft = ResultsDraft(door.node.extractor.plans, type_, 1)
    for name, value in pairs:
        try:
            draft.take(name, value)
        except Unsupported as unknown:
            if ask.strict:
                raise BadSearch(str(unknown), code="not-supported", expression=f"http.{name}") from unknown
    if draft.counts_only:
        raise BadSearch("_summary=count counts the matches of a search", code="not-supported",
                        expression="http._summary")
    return draft.results()


def cut(door: Door, ask: Ask, results: Results, answer: Answer) -> Answer:
    """The answer of a read with what was asked of it."""
    if not results.subset or answer.status != 200:
        return answer
    return replace(answer, body=of_version(door, results, ask.type, answer.body))


def of_version(door: Door, results: Results, type_: str, stored: bytes) -> bytes:
    """One version with what was asked of it; nothing of a deletion."""
    if not stored:
        return stored
    return serialise(Subset(door.node.definitions, results, (type_,)).of(parse(stored)))
