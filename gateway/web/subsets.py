"""``_summary`` and ``_elements`` where one resource is read. https://hl7.org/fhir/R4/search.html#summary"""

from __future__ import annotations

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
    pairs = [(name, value) for name, value in ask.pairs if name in ("_summary", "_elements")] if ask.query else []
    if not pairs:
        return Results()
    draft = ResultsDraft(door.node.extractor.plans, ask.type, 1)
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
    subset = Subset(door.node.definitions, results, (ask.type,))
    return replace(answer, body=serialise(subset.of(parse(answer.body))))
