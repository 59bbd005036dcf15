"""Long work beside its request: asked for by one caller, carried out by a runner, fetched by the same caller.

Owns whose job it is, what of it is sealed (``crypto/job_part.py``), and the runner that carries jobs out under leases;
refuses to show a job to anyone but its owner (absent and another's look the same) and to carry out what its token no
longer stands for.
https://hl7.org/fhir/R4/async.html
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeVar

import apsw
import orjson

from gateway import audit
from gateway.crypto.job_part import seal, unseal
from gateway.errors import GatewayError, InputRefused, Issue, NotFound, Throttled, Unavailable
from gateway.fhir.outcome import operation_outcome
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.store import jobs
from gateway.store.jobs import ATTEMPTS_MAX, HEARTBEAT_S, JobRow, Kind, LeaseLost
from gateway.store.sql import now_ms

LOG = logging.getLogger("gateway.jobs")
T = TypeVar("T")

OPEN_MAX: Final = 16
"""Most jobs of one owner that wait or run."""
AT_ONCE: Final = 2
_POLL_S: Final = 0.2
_AFTER_FAULT_S: Final = 2.0


class Authority(Protocol):
    """Whom a job acts for."""

    def __call__(self, token_id: str, *, outlives: bool) -> Caller:
        """The caller behind a token, read anew; ``outlives``: its expiry, unlike its revocation, does not end the work.

        Raises Unauthenticated.
        """
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: ``body`` is what its owner gets, ``decision_seq`` what that was decided at."""

    state: Literal["done", "failed"]
    body: bytes | None = None
    decision_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One job as who carries it out sees it."""

    node: Node
    row: JobRow
    runner: str
    authority: Authority

    @property
    def request(self) -> dict[str, Any]:  # Any: JSON, as its own kind wrote it
        """What was asked for."""
        found: dict[str, Any] = orjson.loads(unseal(self.node.ring, self.row.id, "request", self.row.request))
        return found

    @property
    def cursor(self) -> dict[str, Any]:  # Any: as above
        """Where the runner before this one came to; empty at the beginning."""
        return orjson.loads(self.row.cursor) if self.row.cursor else {}

    def require(self, connection: apsw.Connection) -> None:
        """Inside a transaction that stores work. Raises LeaseLost."""
        jobs.require(connection, self.row.pk, self.runner)

    async def advance(self, progress: str, cursor: Mapping[str, Any],
                      store: Callable[[apsw.Connection], object]) -> None:
        """Store a piece of work and how far it is, together. Raises LeaseLost, StoreBusy."""
        def work(connection: apsw.Connection) -> None:
            jobs.advance(connection, self.row.pk, self.runner, progress=progress, cursor=orjson.dumps(cursor).decode(),
                         now_ms=now_ms())
            store(connection)

        await asyncio.to_thread(self.node.database.transact, work)


Work = Callable[[Task], Awaitable[Outcome]]


async def ask(node: Node, caller: Caller, kind: Kind, request: Mapping[str, Any], *, what: str,
              inputs: Sequence[tuple[str, bytes]] = ()) -> str:
    """Queue a job for the caller; its id. ``inputs``: (type, bytes) to keep sealed for it. Raises Throttled."""
    id_ = secrets.token_hex(16)
    grant = caller.grant
    sealed = seal(node.ring, id_, "request", orjson.dumps(request))
    kept = [(type_, seal(node.ring, id_, f"input {place}", body)) for place, (type_, body) in enumerate(inputs, 1)]
    rows = node.gate.entries(caller, "s", f"{kind}-asked", None, what=(what,), patients=(), outcome="0")

    def work(connection: apsw.Connection) -> None:
        if jobs.open_jobs_of(connection, grant.client_id, grant.user) >= OPEN_MAX:
            raise Throttled(f"{OPEN_MAX} of your jobs wait or run already: fetch or delete one")
        now = now_ms()
        pk = jobs.create(connection, id_=id_, kind=kind, client=grant.client_id, user=grant.user, token=grant.token_id,
                         now_ms=now, expires_ms=now + node.settings.job_ttl_s * 1000, request=sealed)
        for type_, body in kept:
            jobs.add_part(connection, pk, "input", type_, 0, body)
        audit.append(connection, rows)

    await node.commits.commit(work)
    return id_


def owned(node: Node, caller: Caller, id_: str) -> JobRow:
    """A job of the caller's own client and user. Raises NotFound, the same for another's and for none."""
    row = jobs.find(node.database.reader, id_)
    if (row is None or (row.client, row.user) != (caller.grant.client_id, caller.grant.user)
            or row.expires_ms <= now_ms()):
        raise NotFound("there is no such job")
    return row


async def forget(node: Node, caller: Caller, id_: str) -> None:
    """Cancel a job, or remove what it made. Raises NotFound."""
    row = owned(node, caller, id_)
    rows = node.gate.entries(caller, "d", f"{row.kind}-deleted", None, what=(f"job/{row.id}",), patients=(),
                             outcome="0")

    def work(connection: apsw.Connection) -> None:
        jobs.delete(connection, row.pk)
        audit.append(connection, rows)

    await node.commits.commit(work)


class Runner:
    """Carries out jobs of every kind in one event loop, a few at once; as many runners as there are processes."""

    def __init__(self, node: Node, works: Mapping[Kind, Work], authority: Authority) -> None:
        self._node = node
        self._works = works
        self._authority = authority
        self._name = secrets.token_hex(8)

    async def run(self, stop: threading.Event) -> None:
        """Until ``stop``; what is under way then is given back."""
        running: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            try:
                row = await self._claimed() if len(running) < AT_ONCE else None
            except Exception as error:
                LOG.log(logging.WARNING if isinstance(error, Unavailable) else logging.ERROR, "jobs cannot be claimed",
                        exc_info=None if isinstance(error, Unavailable) else error)
                await asyncio.sleep(_AFTER_FAULT_S)
                continue
            if row is not None:
                running.add(asyncio.create_task(self._carry_out(row)))
            elif running:
                _, running = await asyncio.wait(running, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(_POLL_S)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def drain(self) -> int:
        """Carry out what waits, one after another; how many."""
        count = 0
        while (row := await self._claimed()) is not None:
            await self._carry_out(row)
            count += 1
        return count

    async def _claimed(self) -> JobRow | None:
        now = now_ms()
        if not jobs.waiting(self._node.database.reader, now):
            return None
        return await self._stored(lambda connection: jobs.claim(connection, self._name, now))

    async def _carry_out(self, row: JobRow) -> None:
        """One job to its end, its lease kept meanwhile. No error but a stop ends the runner."""
        if row.attempts >= ATTEMPTS_MAX:
            work: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            work.set_result(failure(Issue("error", "exception", "it was interrupted too often")))
        else:
            work = asyncio.ensure_future(self._works[row.kind](
                Task(node=self._node, row=row, runner=self._name, authority=self._authority)))
        try:
            while not (await asyncio.wait({work}, timeout=HEARTBEAT_S))[0]:
                await self._stored(lambda connection: jobs.beat(connection, row.pk, self._name, now_ms()))
            outcome = _ended(work)
            if outcome is not None:
                await self._stored(lambda connection: self._finish(connection, row, outcome))
        except LeaseLost:
            await _cancelled(work)
            LOG.info("job given up", extra={"kind": row.kind})
        except asyncio.CancelledError:
            await _cancelled(work)
            self._node.database.transact(lambda connection: jobs.release(connection, row.pk, self._name))
            raise
        except Unavailable:
            # The lease runs out, and somebody tries again.
            await _cancelled(work)
            LOG.warning("job put off", extra={"kind": row.kind})

    def _finish(self, connection: apsw.Connection, row: JobRow, outcome: Outcome) -> None:
        jobs.finish(connection, row.pk, self._name, outcome.state, decision_seq=outcome.decision_seq,
                    outcome=None if outcome.body is None else seal(self._node.ring, row.id, "outcome", outcome.body))
        if row.kind == "import":
            jobs.drop_parts(connection, row.pk, "input")
        LOG.info("job ended", extra={"kind": row.kind, "state": outcome.state})

    async def _stored(self, work: Callable[[apsw.Connection], T]) -> T:
        return await asyncio.to_thread(self._node.database.transact, work)


def _ended(work: asyncio.Future[Outcome]) -> Outcome | None:
    """What the work came to; an error is a failed job. Raises Unavailable and LeaseLost, for the next attempt."""
    try:
        return work.result()
    except Unavailable:
        raise
    except Exception as error:
        return failure(*_issues(error))


async def _cancelled(work: asyncio.Future[Outcome]) -> None:
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()


def failure(*issues: Issue) -> Outcome:
    """A job that could not be done, as its owner is told."""
    return Outcome("failed", operation_outcome(issues))


def _issues(error: Exception) -> tuple[Issue, ...]:
    if isinstance(error, InputRefused):
        return error.issues
    if isinstance(error, GatewayError):
        return (Issue("error", "processing", str(error), error.expression),)
    number = secrets.token_hex(8)
    LOG.error("job failed unexpectedly", extra={"error_id": number}, exc_info=error)
    return (Issue("fatal", "exception", f"unexpected error {number}; the log has it under this id"),)
