"""The states of a job and its lease: one runner at a time, nothing stored without it, nothing lost with a runner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.store import jobs
from gateway.store.jobs import LEASE_MS, JobRow, LeaseLost
from gateway.store.sql import MIGRATIONS


def memory() -> apsw.Connection:
    connection: apsw.Connection = apsw.Connection(":memory:")
    connection.execute((MIGRATIONS / "0002.sql").read_text())
    return connection


def queued(connection: apsw.Connection, id_: str = "a", expires_ms: int = 10**9) -> int:
    return jobs.create(connection, id_=id_, kind="export", client="c", user=None, token="t", now_ms=0,
                       expires_ms=expires_ms, request=b"")


def taken(row: JobRow | None) -> JobRow:
    assert row is not None
    return row


def test_a_job_is_one_runners_until_its_lease_runs_out() -> None:
    connection = memory()
    pk = queued(connection)
    assert taken(jobs.claim(connection, "one", 0)).pk == pk
    assert jobs.claim(connection, "two", LEASE_MS - 1) is None
    jobs.beat(connection, pk, "one", LEASE_MS - 1)
    assert jobs.claim(connection, "two", LEASE_MS) is None
    assert taken(jobs.claim(connection, "two", 2 * LEASE_MS)).attempts == 1


def test_the_one_who_lost_the_lease_stores_nothing_more() -> None:
    connection = memory()
    pk = queued(connection)
    jobs.claim(connection, "one", 0)
    jobs.claim(connection, "two", LEASE_MS)
    with pytest.raises(LeaseLost):
        jobs.beat(connection, pk, "one", LEASE_MS)
    with pytest.raises(LeaseLost):
        jobs.advance(connection, pk, "one", progress="", cursor="", now_ms=LEASE_MS)
    with pytest.raises(LeaseLost):
        jobs.finish(connection, pk, "one", "done", outcome=None, decision_seq=1)
    jobs.finish(connection, pk, "two", "done", outcome=None, decision_seq=1)
    assert jobs.claim(connection, "three", 10 * LEASE_MS) is None


def test_a_deleted_job_stops_its_runner_and_leaves_no_part() -> None:
    connection = memory()
    pk = queued(connection)
    jobs.claim(connection, "one", 0)
    jobs.add_part(connection, pk, "output", "Patient", 1, b"x")
    jobs.delete(connection, pk)
    with pytest.raises(LeaseLost):
        jobs.beat(connection, pk, "one", 1)
    assert jobs.parts(connection, pk) == []


def test_a_released_job_is_taken_at_once_and_the_attempt_does_not_count() -> None:
    connection = memory()
    pk = queued(connection)
    jobs.claim(connection, "one", 0)
    jobs.advance(connection, pk, "one", progress="half", cursor="7", now_ms=0)
    jobs.release(connection, pk, "one")
    again = taken(jobs.claim(connection, "two", 1))
    assert (again.attempts, again.cursor, again.progress) == (0, "7", "half")


def test_what_expired_is_swept_in_any_state_and_claimed_in_none() -> None:
    connection = memory()
    for number, id_ in enumerate("abc"):
        queued(connection, id_, expires_ms=100 + number)
    jobs.claim(connection, "one", 0)
    assert jobs.claim(connection, "one", 102) is None
    assert not jobs.waiting(connection, 102)
    assert jobs.sweep(connection, 101) == 2
    assert jobs.find(connection, "c") is not None


STEPS = st.lists(st.tuples(st.sampled_from(["claim", "beat", "finish", "release", "wait"]), st.integers(0, 2),
                           st.integers(0, LEASE_MS)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_no_order_of_events_lets_two_runners_store_or_a_job_end_twice(steps: list[tuple[str, int, int]]) -> None:
    """The invariant behind it: what a runner stores passes ``require``, and at any moment only one passes."""
    connection = memory()
    pk = queued(connection, expires_ms=10**12)
    now, ended = 0, 0
    for what, number, delay in steps:
        runner = f"r{number}"
        row = taken(jobs.find(connection, "a"))
        expected = jobs.claimable(row.state, row.lease_ms, row.expires_ms, now)
        may = jobs.holds(row.runner, row.state, runner)
        if what == "claim":
            assert jobs.waiting(connection, now) is expected
            assert (jobs.claim(connection, runner, now) is not None) is expected
        elif what == "beat":
            with_lease(partial(jobs.beat, connection, pk, runner, now), may)
        elif what == "finish":
            ended += with_lease(partial(jobs.finish, connection, pk, runner, "done", outcome=None, decision_seq=1), may)
        elif what == "release":
            jobs.release(connection, pk, runner)
        now += delay
        holders = [r for r in ("r0", "r1", "r2") if jobs.holds(
            (after := taken(jobs.find(connection, "a"))).runner, after.state, r)]
        assert len(holders) <= 1
    assert ended <= 1


def with_lease(work: Callable[[], None], may: bool) -> int:
    try:
        work()
    except LeaseLost:
        assert not may
        return 0
    assert may
    return 1


def test_the_schema_takes_the_jobs_of_a_store_made_before(tmp_path: Path) -> None:
    from gateway.store.sql import Database

    database = Database(tmp_path / "g.db", bytes(range(32)))
    database.migrate()
    assert database.reader.execute("SELECT count(*) FROM job").get == 0
    database.close()
