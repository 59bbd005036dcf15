"""A request carried out by a job (``deferral.py``), and where every job is polled, fetched and ended.

Owns the answer; refuses to deliver what was decided before a revocation: a reading is done again, and a write's answer
leaves without the resources. https://hl7.org/fhir/R4/async.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.audit import Disclosure
from gateway.crypto import job_part
from gateway.errors import Issue, Moved, NotFound
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.resource import format_instant, parse, serialise
from gateway.fhir.search_results import Results
from gateway.fhir.subset import Subset
from gateway.fhir.xml_shapes import Shapes
from gateway.records import bulk_import, export, jobs, search_parameters
from gateway.records.answer import Answer, response_entry
from gateway.records.export import Elements
from gateway.records.gate import Caller
from gateway.records.jobs import Outcome, Runner, Task, Work
from gateway.store import jobs as stored
from gateway.store import journal
from gateway.store.jobs import JobRow
from gateway.web.ask import Ask
from gateway.web.deferral import PLACE, RETRY_S
from gateway.web.door import Door, Route
from gateway.web.errors import refusal

NDJSON: Final = "application/fhir+ndjson"


def runner(door: Door, authority: jobs.Authority) -> Runner:
    """A runner of every kind of job."""
    return Runner(door.node, {"request": carrying_out(door), "export": export.carry_out,
                              "import": bulk_import.carry_out, "reindex": search_parameters.carry_out}, authority)


def carrying_out(door: Door) -> Work:
    """How a runner carries out a request: through the same table, as the caller reads now."""
    shapes = Shapes(door.node.definitions)

    async def carry_out(task: Task) -> Outcome:
        kept = task.request
        if task.row.attempts and not kept["reading"]:
            # Whether the commit came before the end is not known: doing it twice could be worse than not at all.
            return jobs.failure(Issue("error", "incomplete", "it was interrupted while it was carried out: look "
                                           "for what it wrote before asking again"))
        caller = task.authority(task.row.token, outlives=False)
        body = await asyncio.to_thread(_body, task)

        async def read_body() -> bytes:
            return body

        ask = Ask(settings=task.node.settings, shapes=shapes, caller=caller, method=kept["method"],
                  parts=tuple(kept["parts"]), query=kept["query"], headers=kept["headers"], read_body=read_body)
        try:
            answer = await door.answer(ask)
        except Exception as error:
            answer = refusal(error)
        task.authority(task.row.token, outlives=False)  # a token revoked meanwhile is answered nothing
        return Outcome("done", _kept(answer), caller.seq)
    return carry_out


def _body(task: Task) -> bytes:
    sealed = stored.part_body(task.node.database.reader, task.row.pk, 1)
    return b"" if sealed is None else job_part.unseal(task.node.ring, task.row.id, "input 1", sealed)


def _kept(answer: Answer) -> bytes:
    """Status and headers as a line, then the body."""
    head = orjson.dumps({"status": answer.status, "headers": dict(answer.headers), "updated_ms": answer.updated_ms})
    return head + b"\n" + answer.body


async def poll(door: Door, ask: Ask) -> Answer:
    """GET of a job: 202 while it goes on, then what it came to."""
    node, row = door.node, jobs.owned(door.node, ask.caller, ask.parts[1])
    if row.state in ("queued", "running"):
        return Answer(202, headers={"X-Progress": row.progress or row.state, "Retry-After": RETRY_S})
    if row.outcome is None:
        return Answer(500, operation_outcome((Issue("fatal", "exception", "the job ended without a word"),)))
    outcome = await asyncio.to_thread(job_part.unseal, node.ring, row.id, "outcome", row.outcome)
    headers = {"Expires": Answer(200, updated_ms=row.expires_ms).last_modified or ""}
    if row.state == "failed":
        return Answer(500, outcome, headers)
    request: dict[str, Any] = orjson.loads(job_part.unseal(node.ring, row.id, "request", row.request))  # Any: JSON
    if row.kind == "reindex":
        return Answer(200, outcome, headers)
    place = f"{door.base}/{PLACE}/{row.id}"
    if row.kind == "export":
        body = await export.manifest(node, ask.caller, row, export.Request.of(request), place)
        return Answer(200, body, headers, "application/json")
    if row.kind == "import":
        body = bulk_import.manifest(request, orjson.loads(outcome), stored.parts(node.database.reader, row.pk), place,
                                    format_instant(row.created_ms))
        return Answer(200, body, headers, "application/json")
    return await _delivered(door, ask.caller, row, request, outcome, headers)


async def _delivered(door: Door, caller: Caller, row: JobRow, request: Mapping[str, Any], outcome: bytes,
                     headers: Mapping[str, str]) -> Answer:
    """The answer of a request, to the very grant it was decided for. Raises NotFound for another of the same client."""
    node = door.node
    if request["holder"] != caller.holder:
        raise NotFound("there is no such job")
    head, _, body = outcome.partition(b"\n")
    told = orjson.loads(head)
    answer = Answer(told["status"], body, told["headers"], updated_ms=told["updated_ms"])
    entries = node.gate.entries(caller, "r", "request-fetched", None, what=(f"job/{row.id}",), patients=(), outcome="0")
    try:
        await node.disclosures.join(Disclosure(row.decision_seq or 0, entries))
    except Moved:
        if request["reading"]:
            await node.commits.commit(lambda tx: stored.restart(tx, row.pk))
            return Answer(202, headers={"X-Progress": "queued again", "Retry-After": RETRY_S})
        answer = replace(answer, body=_without_resources(answer))
        await node.disclosures.join(Disclosure(journal.decision_seq(node.database.reader), entries))
    bundle = b'{"resourceType":"Bundle","type":"batch-response","entry":[%s]}' % response_entry(answer)
    return Answer(200, bundle, headers)


def _without_resources(answer: Answer) -> bytes:
    """What was done, without what was shown: of a response Bundle, the entries' responses."""
    if answer.status >= 300 or not answer.body:
        return answer.body
    found = parse(answer.body)
    if found.get("resourceType") != "Bundle":
        return b""
    return orjson.dumps({"resourceType": "Bundle", "type": found["type"], "entry": [
        {"response": entry["response"]} for entry in found.get("entry", ()) if "response" in entry]})


async def end(door: Door, ask: Ask) -> Answer:
    """DELETE of a job: it stops, and what it made goes."""
    await jobs.forget(door.node, ask.caller, ask.parts[1])
    return Answer(202)


async def fetch(door: Door, ask: Ask) -> Answer:
    """GET of a file of an export or import."""
    node, row = door.node, jobs.owned(door.node, ask.caller, ask.parts[1])
    number = ask.parts[3]
    place = int(number) if number.isdecimal() and len(number) < 9 else 0
    if row.state != "done" or row.kind in ("request", "reindex"):
        raise NotFound("there is no such file")
    if row.kind == "import":
        bulk_import.require_system(ask.caller)
        sealed = next((stored.part_body(node.database.reader, row.pk, part.place)
                       for part in stored.parts(node.database.reader, row.pk)
                       if part.place == place and part.kind == "error"), None)
        if sealed is None:
            raise NotFound("there is no such file")
        errors = await asyncio.to_thread(job_part.unseal, node.ring, row.id, f"error {place}", sealed)
        return Answer(200, errors, {}, NDJSON)
    export.exportable(node, ask.caller.grant, None)
    request = export.Request.of(orjson.loads(job_part.unseal(node.ring, row.id, "request", row.request)))
    lines = await export.deliver(node, ask.caller, row, place, _elements(door, request))
    return Answer(200, stream=lines, media_type=NDJSON)


def _elements(door: Door, request: export.Request) -> Elements | None:
    if not request.elements:
        return None
    named = tuple((head if dot else None, (tail or head).removesuffix("[x]"))
                  for head, dot, tail in (name.partition(".") for name in request.elements))
    subset = Subset(door.node.definitions, Results(elements=named), frozenset(request.types))
    return lambda stored: serialise(subset.of(parse(stored)))


ROUTES = (
    Route(method="GET", shape=f"{PLACE}/I", name="job", handler=poll, stated=False),
    Route(method="DELETE", shape=f"{PLACE}/I", name="job-end", handler=end, stated=False),
    Route(method="GET", shape=f"{PLACE}/I/_file/V", name="job-file", handler=fetch, stated=False),
)
