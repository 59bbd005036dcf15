"""Durable jobs: rows of long work, carried out by one process at a time under a lease.

Owns the states of a job, who may carry it out, and its parts; refuses a runner whose lease another one took, and to
know what a job does. A process that dies leaves its lease to run out: the next one goes on from the stored cursor, and
a job that ends its runner too often fails.

    queued -> running -> done | failed        a row is deleted by its owner, or at its expiry, in any state
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import apsw

Kind = Literal["export", "import", "request", "reindex"]
State = Literal["queued", "running", "done", "failed"]
PartKind = Literal["output", "deleted", "error", "input"]

LEASE_MS: Final = 15_000
HEARTBEAT_S: Final = 4.0
ATTEMPTS_MAX: Final = 5

_COLUMNS = ("pk, id, kind, client, user, token, state, runner, lease_ms, attempts, created_ms, expires_ms, "
            "decision_seq, progress, cursor, request, outcome")


class LeaseLost(BaseException):  # control flow: nothing that carries out a job may take it for a fault of its own
    """The job is another's by now, or gone: whatever carries it out stops, and what it was about to store is not."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job; ``request`` and ``outcome`` are sealed."""

    pk: int
    id: str
    kind: Kind
    client: str
    user: str | None
    token: str
    state: State
    runner: str | None
    lease_ms: int
    attempts: int
    created_ms: int
    expires_ms: int
    decision_seq: int | None
    progress: str
    cursor: str
    request: bytes
    outcome: bytes | None


@dataclass(frozen=True, slots=True)
class Part:
    """A part without its body: ``count`` lines of ``type``."""

    place: int
    kind: PartKind
    type: str
    count: int


def claimable(state: State, lease_ms: int, expires_ms: int, now_ms: int) -> bool:
    """Whether a runner may take a job over: it is open, nobody's lease holds, and somebody may still fetch it."""
    return state in ("queued", "running") and lease_ms <= now_ms < expires_ms


def holds(row_runner: str | None, state: State, runner: str) -> bool:
    """Whether ``runner`` may go on: a lease that ran out unnoticed is still its own until another takes it."""
    return state == "running" and row_runner == runner


def create(connection: apsw.Connection, *, id_: str, kind: Kind, client: str, user: str | None, token: str,
           now_ms: int, expires_ms: int, request: bytes) -> int:
    """Queue a job inside the open transaction; its pk."""
    connection.execute(
        "INSERT INTO job (id,kind,client,user,token,state,created_ms,expires_ms,request) "
        "VALUES (?,?,?,?,?,'queued',?,?,?)", (id_, kind, client, user, token, now_ms, expires_ms, request))
    return connection.last_insert_rowid()


def find(connection: apsw.Connection, id_: str) -> JobRow | None:
    """A job by its id."""
    return _one(connection, "id=?", id_)


def _one(connection: apsw.Connection, where: str, *values: object) -> JobRow | None:
    for row in connection.execute(f"SELECT {_COLUMNS} FROM job WHERE {where}", values):  # noqa: S608
        return JobRow(*row)
    return None


def open_jobs_of(connection: apsw.Connection, client: str, user: str | None) -> int:
    """How many jobs of an owner wait or run."""
    return int(str(connection.execute(
        "SELECT count(*) FROM job WHERE client=? AND user IS ? AND state IN ('queued','running')",
        (client, user)).get))


def waits(connection: apsw.Connection, kind: Kind) -> bool:
    """Whether a job of the kind is there that nobody has begun."""
    return connection.execute("SELECT 1 FROM job WHERE kind=? AND state='queued' AND cursor=''",
                              (kind,)).get is not None


def progress(connection: apsw.Connection, kind: Kind) -> list[str]:
    """How far the open jobs of a kind are."""
    return [str(told) or "queued" for (told,) in connection.execute(
        "SELECT progress FROM job WHERE kind=? AND state IN ('queued','running') ORDER BY pk", (kind,))]


def waiting(connection: apsw.Connection, now_ms: int) -> bool:
    """Whether there is anything to claim: asked before the writer's turn is taken."""
    return connection.execute(
        "SELECT 1 FROM job WHERE state IN ('queued','running') AND lease_ms<=? AND expires_ms>? LIMIT 1",
        (now_ms, now_ms)).get is not None


def claim(connection: apsw.Connection, runner: str, now_ms: int) -> JobRow | None:
    """Take the oldest claimable job for ``runner`` inside the open transaction; None without one.

    The row given back has the attempts made before this one.
    """
    found = _one(connection, "state IN ('queued','running') AND lease_ms<=? AND expires_ms>? ORDER BY pk LIMIT 1",
                 now_ms, now_ms)
    if found is not None:
        connection.execute("UPDATE job SET state='running', runner=?, lease_ms=?, attempts=attempts+1 WHERE pk=?",
                           (runner, now_ms + LEASE_MS, found.pk))
    return found


def require(connection: apsw.Connection, pk: int, runner: str) -> None:
    """Inside the transaction that stores work: the job is still the runner's. Raises LeaseLost."""
    for owner, state in connection.execute("SELECT runner, state FROM job WHERE pk=?", (pk,)):
        if holds(owner, state, runner):
            return
    raise LeaseLost


def beat(connection: apsw.Connection, pk: int, runner: str, now_ms: int) -> None:
    """Renew the lease. Raises LeaseLost."""
    require(connection, pk, runner)
    connection.execute("UPDATE job SET lease_ms=? WHERE pk=?", (now_ms + LEASE_MS, pk))


def advance(connection: apsw.Connection, pk: int, runner: str, *, progress: str, cursor: str, now_ms: int) -> None:
    """Store how far the work came, with what it stored. Raises LeaseLost."""
    beat(connection, pk, runner, now_ms)
    connection.execute("UPDATE job SET progress=?, cursor=? WHERE pk=?", (progress, cursor, pk))


def finish(connection: apsw.Connection, pk: int, runner: str, state: Literal["done", "failed"], *,
           outcome: bytes | None, decision_seq: int | None) -> None:
    """End a job. Raises LeaseLost."""
    require(connection, pk, runner)
    connection.execute("UPDATE job SET state=?, outcome=?, decision_seq=?, runner=NULL, lease_ms=0 WHERE pk=?",
                       (state, outcome, decision_seq, pk))


def release(connection: apsw.Connection, pk: int, runner: str) -> None:
    """A runner that is stopped gives its job back at once, and the attempt does not count."""
    connection.execute("UPDATE job SET lease_ms=0, state='queued', runner=NULL, attempts=max(0, attempts-1) "
                       "WHERE pk=? AND runner=? AND state='running'", (pk, runner))


def restart(connection: apsw.Connection, pk: int) -> None:
    """Have a finished job done again: its answer was decided before a revocation."""
    connection.execute("UPDATE job SET state='queued', outcome=NULL, decision_seq=NULL, attempts=0, cursor='' "
                       "WHERE pk=? AND state='done'", (pk,))


def delete(connection: apsw.Connection, pk: int) -> None:
    """Forget a job and its parts; its runner, if there is one, learns it by losing the lease."""
    connection.execute("DELETE FROM job_part WHERE job=?", (pk,))
    connection.execute("DELETE FROM job WHERE pk=?", (pk,))


def sweep(connection: apsw.Connection, now_ms: int) -> int:
    """Delete jobs past their expiry; how many."""
    old = [int(str(pk)) for (pk,) in connection.execute("SELECT pk FROM job WHERE expires_ms<=?", (now_ms,))]
    for pk in old:
        delete(connection, pk)
    return len(old)


def add_part(connection: apsw.Connection, pk: int, kind: PartKind, type_: str, count: int, body: bytes) -> None:
    """Append a part inside the open transaction."""
    connection.execute(
        "INSERT INTO job_part VALUES (?,(SELECT coalesce(max(place),0)+1 FROM job_part WHERE job=?),?,?,?,?)",
        (pk, pk, kind, type_, count, body))


def drop_parts(connection: apsw.Connection, pk: int, *kinds: PartKind) -> None:
    """Forget the parts of these kinds."""
    for kind in kinds:
        connection.execute("DELETE FROM job_part WHERE job=? AND kind=?", (pk, kind))


def parts(connection: apsw.Connection, pk: int) -> list[Part]:
    """The parts in order, without their bodies."""
    return [Part(*row) for row in connection.execute(
        "SELECT place, kind, type, count FROM job_part WHERE job=? ORDER BY place", (pk,))]


def part_body(connection: apsw.Connection, pk: int, place: int) -> bytes | None:
    """The body of one part."""
    for (body,) in connection.execute("SELECT body FROM job_part WHERE job=? AND place=?", (pk, place)):
        return bytes(body)
    return None
