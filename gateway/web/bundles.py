"""batch and transaction: a Bundle whose entries go through the same table of routes as requests do.

https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from gateway.errors import Malformed, NotAcceptable
from gateway.fhir.bundle import entry_request, without_resources
from gateway.records import aside, transaction
from gateway.records.answer import FHIR_JSON, Answer
from gateway.records.gate import Caller
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.errors import refusal
from gateway.web.preferences import as_preferred


async def process(door: Door, ask: Ask) -> Answer:
    """POST of a Bundle to the base."""
    bundle = await ask.resource()
    if bundle["resourceType"] != "Bundle":
        raise Malformed("POST to the base takes a Bundle", code="invalid", expression="resourceType")
    envelope = without_resources(bundle)
    entries = bundle.get("entry")
    if isinstance(entries, list):
        door.limits.entries(ask.caller.grant, len(entries))
    await aside.done(aside.large(envelope), lambda: door.node.validator.require(envelope, expected_type="Bundle"))

    async def entry(caller: Caller, place: int, raw: Any) -> Answer:  # Any: entry_request looks into it
        try:
            answer = await door.answer(_asked(door, replace(ask, caller=caller.again()), place, raw))
            if answer.body and answer.media_type != FHIR_JSON:
                raise NotAcceptable("this answer is no resource: ask for it on its own", code="not-supported",
                                    expression=f"Bundle.entry[{place}].request.url")
            return answer
        except Exception as error:
            return refusal(error)

    wanted = ask.preference("return") or "minimal"
    return Answer(200, await transaction.process(door.node, ask.caller, bundle, entry,
                                                 shown=lambda answer: as_preferred(answer, wanted)))


def _asked(door: Door, outer: Ask, place: int, raw: Any) -> Ask:
    """The entry as a request; a write shows its resource only where the whole request prefers so."""
    request = entry_request(place, raw, door.base)
    prefer = outer.headers.get("prefer", "")
    parts = tuple(unquote(part) for part in request.path.split("/")) if request.path else ()
    if not parts:
        raise Malformed("a bundle holds no bundle to carry out", code="not-supported",
                        expression=f"Bundle.entry[{place}].request.url")
    return replace(outer, method=request.method, parts=parts, query=request.query, given=request.resource,
                   headers={**request.headers, "prefer": prefer if "return=" in prefer else f"return=minimal,{prefer}"},
                   read_body=_nothing)


async def _nothing() -> bytes:
    return b""


ROUTES = (Route(method="POST", shape="", name="transaction", handler=process, kind="operation"),)
