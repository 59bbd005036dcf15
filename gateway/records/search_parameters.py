"""SearchParameter resources at work: the rules of their type, and the passes over the index.

Owns who may bring one, and the job that makes the index hold what it finds; refuses whoever does not administer this
hospital. A process learns of one in ``parameters.py``. A parameter only finds: what is found is decided like any match.
https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import apsw
import orjson

from gateway.access.bound import is_feed
from gateway.crypto import job_part
from gateway.errors import BlobUnavailable, Forbidden
from gateway.fhir import search_custom
from gateway.fhir.resource import Resource, serialise
from gateway.records import jobs, reindexing
from gateway.records.gate import Caller
from gateway.records.jobs import Outcome, Task
from gateway.records.node import Hook, Node
from gateway.store import index_upkeep as upkeep
from gateway.store import jobs as stored_jobs
from gateway.store import journal
from gateway.store import search_parameters as stored
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms

SLICE: Final = 50
"""Versions in one transaction of a pass: other writers wait for no more."""
_KEPT_MS: Final = 30 * 86_400_000
"""How long a pass may wait and be looked at."""


def may_administer(caller: Caller) -> bool:
    """Whether the caller is this hospital's administrator or its own feed."""
    return caller.grant.role == "administrator" or is_feed(caller.grant)


def check_write(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Hook | None:
    """What an active SearchParameter must be, and its use from the commit on. Raises Forbidden, Unprocessable."""
    if not may_administer(caller):
        raise Forbidden("SearchParameter is written by this hospital's administrators and its feed")
    id_ = str(new["id"])
    if not search_custom.is_used(new):
        return _dropping(id_)
    custom = search_custom.read(node.definitions, new)
    if not custom.plans:
        return _dropping(id_)
    body = job_part.seal(node.ring, id_, "search parameter", serialise(new))
    codes = [node.index.category(f"search parameter {type_}.{custom.code}") for type_ in custom.plans]
    job = secrets.token_hex(16)
    request = job_part.seal(node.ring, job, "request", orjson.dumps({"types": None}))
    keys = {plan.key for plan in custom.plans.values()}
    as_before = any(one.id == id_ and one.ready and keys <= {plan.key for plan in one.custom.plans.values()}
                    for one in node.parameters.known)

    def use(connection: apsw.Connection) -> None:
        stored.put(connection, id_, body, codes, ready=as_before)
        if not as_before and not stored_jobs.waits(connection, "reindex"):
            _queue(connection, caller, job, request)

    return use


def check_deletion(node: Node, connection: apsw.Connection, row: VersionRow) -> Hook | None:
    """A deleted parameter finds nothing more."""
    return _dropping(row.id)


def _dropping(id_: str) -> Hook:
    return lambda connection: stored.drop(connection, id_)


def _queue(connection: apsw.Connection, caller: Caller, job: str, request: bytes) -> None:
    now, grant = now_ms(), caller.grant
    stored_jobs.create(connection, id_=job, kind="reindex", client=grant.client_id, user=grant.user,
                       token=grant.token_id, now_ms=now, expires_ms=now + _KEPT_MS, request=request)


def progress(connection: apsw.Connection) -> str:
    """How far the passes over the index are that wait or run."""
    told = stored_jobs.progress(connection, "reindex")
    return "; ".join(told) if told else "no pass is under way: ask for $reindex"


async def reindex(node: Node, caller: Caller, types: Sequence[str]) -> str:
    """Queue a pass over ``types``, over all without one; the job's id. Raises Forbidden, Throttled."""
    if not may_administer(caller):
        raise Forbidden("$reindex is for this hospital's administrators and its feed")
    node.gate.require_scope(caller, "SearchParameter", "u")
    return await jobs.ask(node, caller, "reindex", {"types": list(types)}, what="reindex")


async def carry_out(task: Task) -> Outcome:
    """One pass, in slices, beside every other work; where it was cut short it goes on."""
    node = task.node
    cursor = task.cursor or await asyncio.to_thread(_begun, task)
    while True:
        node.parameters.follow(journal.decision_seq(node.database.reader))
        rows, made = await asyncio.to_thread(_slice, node, cursor)
        if rows:
            cursor = {**cursor, "after": rows[-1].seq, "done": cursor["done"] + len(rows)}
            told = f"{cursor['done']} of {max(cursor['total'], cursor['done'])} resources"
            await task.advance(told, cursor, lambda tx, made=made: reindexing.replaced(tx, made))  # type: ignore[misc]
            continue
        head = journal.head_seq(node.database.reader)
        if head <= cursor["to"]:
            break
        cursor = {**cursor, "to": head}
    types = None if cursor["types"] is None else frozenset(cursor["types"])
    ready = [one.id for one in node.parameters.known if types is None or one.custom.plans.keys() <= types]

    def end(connection: apsw.Connection) -> None:
        stored.indexed(connection, ready, made=cursor["made"])
        if types is None:
            stored.settle_words(connection, node.extractor.kinds, whole=True)

    await task.advance(f"{cursor['done']} resources", cursor, end)
    node.parameters.follow(journal.decision_seq(node.database.reader))
    return Outcome("done", orjson.dumps({"resourceType": "Parameters", "parameter": [
        {"name": "reindexed", "valueInteger": cursor["done"]}]}))


def _begun(task: Task) -> dict[str, Any]:  # Any: JSON
    node, connection = task.node, task.node.database.reader
    node.parameters.follow(journal.decision_seq(connection))
    asked: list[str] | None = task.request["types"]
    if asked is None:  # of what waits to be found
        types: list[str] | None = sorted({type_ for one in node.parameters.known if not one.ready
                                          for type_ in one.custom.plans})
    else:
        types = asked or None
    head = journal.head_seq(connection)
    total = upkeep.count_current(connection, after=0, to=head, types=types)
    return {"after": 0, "to": head, "types": types, "done": 0, "total": total, "made": node.parameters.generation}


def _slice(node: Node, cursor: Mapping[str, Any]) -> tuple[list[VersionRow], list[reindexing.Made]]:
    with node.database.snapshot() as connection:
        rows = upkeep.current(connection, after=cursor["after"], to=cursor["to"], types=cursor["types"], limit=SLICE)
        made = list(reindexing.extracted(node, connection, rows)) if rows else []
    if any(isinstance(one, reindexing.Hole) and one.missing for one in made):
        raise BlobUnavailable("a block cannot be had now: the pass is put off")
    return rows, made
