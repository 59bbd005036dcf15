"""``$import``: NDJSON brought in by a job, each line through the write path of any client, landing once.

Owns where lines come from (files sent along, or URLs below a listed source), and what is told of refused ones; refuses
every other address, redirects, and lines of another type than was said. Marks are a job's own: a runner that goes on
where another died brings nothing in twice, and a new job asked for with the same file does its work. What the lines
refer to that is not here at the end is told as warnings, to this hospital's feed alone: to others what is hidden must
be as what is absent.
https://github.com/smart-on-fhir/bulk-import/blob/master/import-manifest.md
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import apsw
import httpx
import orjson

from gateway.access.bound import is_feed
from gateway.config import origin_of
from gateway.crypto.job_part import seal, unseal
from gateway.errors import Forbidden, Invalid, Issue, Malformed, Unavailable
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.resource import parse
from gateway.outgoing import AsyncPinned, DestinationRefused, Rule
from gateway.records import references
from gateway.records.gate import Caller
from gateway.records.import_source import Fault, Piece
from gateway.records.importer import BUNDLE_BYTES_MAX, Importer
from gateway.records.jobs import Outcome, Task
from gateway.store import jobs

BODY: Final = ""
"""The URL of what was sent along."""
_TIMEOUT: Final = httpx.Timeout(10.0, read=60.0)
_DANGLING: Final = "dangling"
_CHECKPOINT_LINES: Final = 1_000
_TOLD_MAX: Final = 10_000
"""Most refused lines of one input that are told one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file: of ``type`` (empty: of any), at ``url``, or (``BODY``) among what was sent along, at ``place``."""

    type: str
    url: str = BODY
    place: int = 0

    def json(self) -> dict[str, Any]:  # Any: JSON
        """What a job keeps."""
        return {"type": self.type, "url": self.url, "place": self.place}


def require_system(caller: Caller) -> None:
    """Import is for systems. Raises Forbidden."""
    grant = caller.grant
    if grant.user is not None or not any(scope.context == "system" for scope in grant.scopes.resources):
        raise Forbidden("$import is for system/ scopes alone")


def allowed(url: str, sources: Sequence[str]) -> bool:
    """Whether ``url`` lies below a listed source: the same scheme, host and port, and a path within."""
    try:
        asked = urlsplit(url)
        port = asked.port
    except ValueError:
        return False
    path = unquote(asked.path)
    if asked.username is not None or asked.fragment or "\\" in url or {".", ".."} & set(path.split("/")):
        return False
    for source in sources:
        listed = urlsplit(source)
        below = listed.path if listed.path.endswith("/") else f"{listed.path}/"
        if (asked.scheme, asked.hostname, port) == (listed.scheme, listed.hostname, listed.port) and (
                asked.path == listed.path or asked.path.startswith(below)):
            return True
    return False


def require_allowed(url: str, sources: Sequence[str], expression: str) -> None:
    """Raises Invalid, without a word about what is there, unless the URL lies below a listed source."""
    if not allowed(url, sources):
        why = "is not below a source this server imports from" if sources else "names a source, and none is set up here"
        raise Invalid(Issue("error", "security", f"the URL {why}", expression))


@dataclass(slots=True)
class _Report:
    """What became of one input; also the importer's report."""

    type: str
    stored: Counter[str] = field(default_factory=Counter)
    already: int = 0
    refusals: list[bytes] = field(default_factory=list)
    refused_lines: int = 0

    def imported(self, type_: str, *, new: bool) -> None:
        """See ``importer.Report``."""
        self.stored[type_] += 1

    def there_already(self) -> None:
        """See ``importer.Report``: a line an earlier runner of this job brought in."""
        self.already += 1

    def refused(self, file: Path, line: int, issues: Sequence[Issue]) -> None:
        """See ``importer.Report``."""
        self.refused_lines += 1
        if self.refused_lines <= _TOLD_MAX:
            self.refusals.append(operation_outcome((
                *issues, Issue("information", "informational", f"line {line}"))) + b"\n")
        elif self.refused_lines == _TOLD_MAX + 1:
            self.refusals.append(operation_outcome((Issue(
                "error", "too-long", f"more than {_TOLD_MAX} lines were refused: the rest is not told"),)) + b"\n")


async def carry_out(task: Task) -> Outcome:
    """Bring in every input in order; goes on with the input at which the runner before stopped."""
    request, at = task.request, task.cursor
    done: list[dict[str, Any]] = list(at.get("done", ()))
    inputs = [Input(**one) for one in request["inputs"]]
    for number in range(len(done), len(inputs)):
        report = _Report(inputs[number].type)
        dangling = await _bring_in(task, number, inputs[number], report, done)
        done.append({"input": number, "stored": dict(report.stored), "already": report.already,
                     "refused": report.refused_lines})
        body = b"".join(report.refusals)

        def store(connection: apsw.Connection, body: bytes = body, number: int = number,
                  lines: int = len(report.refusals), dangling: Mapping[str, int] = dangling) -> None:
            if dangling:  # a later input may bring it; goes with the inputs once the job is done
                jobs.add_part(connection, task.row.pk, "input", _DANGLING, len(dangling),
                              seal(task.node.ring, task.row.id, _DANGLING, orjson.dumps(dangling)))
            if body:
                place = max((part.place for part in jobs.parts(connection, task.row.pk)), default=0) + 1
                jobs.add_part(connection, task.row.pk, "error", str(number), lines,
                              seal(task.node.ring, task.row.id, f"error {place}", body))

        await task.advance(f"file {number + 1} of {len(inputs)}", {"done": done}, store)
    if inputs and is_feed(task.authority(task.row.token, outlives=True).grant):
        await _tell_dangling(task, done)
    return Outcome("done", orjson.dumps({"done": done}))


async def _tell_dangling(task: Task, done: Sequence[Mapping[str, Any]]) -> None:
    """One warning for each resource that is referred to and not here, now that every input is."""
    node, told = task.node, await asyncio.to_thread(_dangling, task)
    if not told:
        return

    def store(connection: apsw.Connection) -> None:
        place = max((part.place for part in jobs.parts(connection, task.row.pk)), default=0) + 1
        jobs.add_part(connection, task.row.pk, "error", _DANGLING, len(told),
                      seal(node.ring, task.row.id, f"error {place}", b"\n".join(told) + b"\n"))

    await task.advance("references", {"done": list(done)}, store)


def _dangling(task: Task) -> list[bytes]:
    """The warnings; none where a runner that died told them. It looks for very many names: not on the event loop."""
    node, reader, found = task.node, task.node.database.reader, Counter[str]()
    for part in jobs.parts(reader, task.row.pk):
        if part.type == _DANGLING and part.kind == "error":
            return []
        if part.type == _DANGLING and (body := jobs.part_body(reader, task.row.pk, part.place)) is not None:
            found.update(orjson.loads(unseal(node.ring, task.row.id, _DANGLING, body)))
    missing = references.missing(node, found)
    told = [operation_outcome((Issue("warning", "not-found", f"{name} is referred to {count} times and is not here"),))
            for name, count in sorted(missing.items())[:_TOLD_MAX]]
    if len(missing) > len(told):
        told.append(operation_outcome((Issue("warning", "too-long", f"{len(missing) - len(told)} more are not here"),)))
    return told


async def _bring_in(task: Task, number: int, one: Input, report: _Report,
                    done: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """One input, and what it refers to that is not here; what breaks it off is told as its last line.

    Raises Unauthenticated once the token is revoked.
    """
    where = Path(f"input {number + 1}")
    digest = hashlib.sha256(f"$import {task.row.id} {number}".encode()).digest()

    def caller() -> Caller:
        return task.authority(task.row.token, outlives=True)

    work = Importer(task.node, caller, report, guard=task.require, recall=True)
    place = 0
    try:
        async for line in _lines(task, one):
            place += 1
            if line.strip():
                caller()
                await work.take(_piece(where, place, digest, line, one.type))
            if place % _CHECKPOINT_LINES == 0:
                await task.advance(f"file {number + 1}, line {place}", {"done": done}, _nothing_else)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        report.refused(where, place + 1, (Issue(
            "error", "transient", f"the file cannot be read from here on: {type(error).__name__}"),))
    except (_Broken, DestinationRefused, Unavailable) as error:
        report.refused(where, place + 1, (Issue("error", "processing", str(error)),))
    await work.flush()
    caller()
    return await asyncio.to_thread(work.dangling)


def _nothing_else(_: apsw.Connection) -> None:
    """How far it is, is all that is stored: the lines are already."""


def _piece(where: Path, place: int, digest: bytes, line: bytes, type_: str) -> Piece | Fault:
    if type_:
        try:
            found = parse(line).get("resourceType")
        except Malformed:
            found = type_  # the importer says what is wrong with it
        if found != type_:
            return Fault(file=where, line=place, issue=Issue("error", "invalid", f"the line holds no {type_}"))
    return Piece(file=where, line=place, digest=digest, body=line)


class _Broken(Exception):  # control flow: ends one input
    pass


async def _lines(task: Task, one: Input) -> AsyncIterator[bytes]:
    if one.url == BODY:
        sealed = jobs.part_body(task.node.database.reader, task.row.pk, one.place)
        if sealed is None:
            raise _Broken("the file is gone")
        for line in unseal(task.node.ring, task.row.id, f"input {one.place}", sealed).split(b"\n"):
            yield line
        return
    if not allowed(one.url, task.node.settings.import_sources):  # the list may have changed since it was asked for
        raise _Broken("the URL is not below a source this server imports from")
    # The operator named the sources, and may well mean a server within.
    rule = Rule(what="the source", listed=tuple(map(origin_of, task.node.settings.import_sources)), inside=True)
    async with httpx.AsyncClient(transport=AsyncPinned(rule), timeout=_TIMEOUT, follow_redirects=False,
                                 trust_env=False) as client, client.stream(
            "GET", one.url, headers={"Accept": "application/fhir+ndjson"}) as answer:
        if answer.status_code != 200:
            raise _Broken(f"the source answered {answer.status_code}")
        rest = bytearray()
        async for chunk in answer.aiter_bytes():
            first, *others = chunk.split(b"\n")
            rest += first
            for line in others:
                yield bytes(rest)
                rest = bytearray(line)
            if len(rest) > BUNDLE_BYTES_MAX:
                raise _Broken(f"a line is longer than {BUNDLE_BYTES_MAX} bytes")
        yield bytes(rest)


def manifest(request: Mapping[str, Any], outcome: Mapping[str, Any], parts: Sequence[jobs.Part], url: str,
             started: str) -> bytes:
    """What became of each input: counts by type, and a file of OperationOutcomes for what was refused."""
    inputs = request["inputs"]
    errors = {int(part.type): part for part in parts if part.kind == "error" and part.type != _DANGLING}

    def named(number: int) -> dict[str, Any]:
        return {"inputUrl": inputs[number]["url"]} if inputs[number]["url"] else {"input": number + 1}

    output, error = [], []
    for one in outcome["done"]:
        number = one["input"]
        stored = Counter(one["stored"])
        if one["already"]:  # stored by a runner that died: of the type that was said
            stored[inputs[number]["type"] or "Resource"] += one["already"]
        output += [{"type": type_, "count": count, **named(number)} for type_, count in sorted(stored.items())]
        if number in errors:
            error.append({"type": "OperationOutcome", "count": one["refused"], **named(number),
                          "url": f"{url}/_file/{errors[number].place}"})
    error += [{"type": "OperationOutcome", "count": part.count, "url": f"{url}/_file/{part.place}"}
              for part in parts if part.kind == "error" and part.type == _DANGLING]
    return orjson.dumps({"transactionTime": started, "request": request["url"], "requiresAccessToken": True,
                         "output": output, "error": error})
