"""The writer's turn when another process keeps it: who waits is told so in time, and nobody keeps it unasked."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import StoreBusy
from gateway.store import sql
from gateway.store.sql import Database, GroupCommit


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(sql, "_LOCK_TIMEOUT_S", 0.3)
    made = Database(tmp_path / "gateway.db", bytes(32))
    made.transact(lambda tx: tx.execute("CREATE TABLE kept (name TEXT)"))
    yield made
    made.close()


@pytest.fixture
def kept_by_another(database: Database) -> Iterator[int]:
    descriptor = os.open(database.path.with_suffix(".lock"), os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


def count(database: Database) -> int:
    return int(str(database.reader.execute("SELECT count(*) FROM kept").get))


def keep(tx: object) -> None:
    tx.execute("INSERT INTO kept VALUES ('a')")  # type: ignore[attr-defined]  # an apsw connection


def test_a_command_is_told_in_time_and_goes_on_once_the_turn_is_free(database: Database, kept_by_another: int) -> None:
    with pytest.raises(StoreBusy):
        database.transact(keep)
    with pytest.raises(StoreBusy):
        database.transact(keep)
    fcntl.flock(kept_by_another, fcntl.LOCK_UN)
    database.transact(keep)
    assert count(database) == 1


def test_a_group_is_told_in_time_and_the_next_gets_the_turn_that_was_waited_for(database: Database,
                                                                               kept_by_another: int) -> None:
    commits = GroupCommit(database)

    async def story() -> None:
        for _ in range(2):
            with pytest.raises(StoreBusy):
                await commits.commit(keep)
        asyncio.get_running_loop().call_later(0.1, fcntl.flock, kept_by_another, fcntl.LOCK_UN)
        await commits.commit(keep)

    asyncio.run(asyncio.wait_for(story(), 10))
    assert count(database) == 1


def test_a_turn_that_comes_after_everybody_left_is_given_back(database: Database, kept_by_another: int) -> None:
    commits = GroupCommit(database)

    async def story() -> None:
        with pytest.raises(StoreBusy):
            await commits.commit(keep)
        fcntl.flock(kept_by_another, fcntl.LOCK_UN)
        await asyncio.sleep(0.1)
        fcntl.flock(kept_by_another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(kept_by_another, fcntl.LOCK_UN)
        await commits.commit(keep)

    asyncio.run(asyncio.wait_for(story(), 10))
    assert count(database) == 1
