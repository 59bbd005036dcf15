"""Group commit when something fails: nobody hangs, nobody is told another's fate, the turn is always given back.

Invariant 2: 201 means durable; https://www.sqlite.org/lang_transaction.html (errors that roll back by themselves).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest

from gateway.errors import StoreBusy
from gateway.store.sql import Database, GroupCommit

T = TypeVar("T")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "gateway.db", bytes(32))
    made.transact(lambda tx: tx.execute("CREATE TABLE kept (name TEXT, bytes BLOB)"))
    yield made
    made.close()


def group(database: Database) -> GroupCommit:
    return GroupCommit(database)


def keep(tx: apsw.Connection, name: str, size: int = 10) -> str:
    tx.execute("INSERT INTO kept VALUES (?,?)", (name, bytes(size)))
    return name


def kept(database: Database) -> list[str]:
    return [str(name) for (name,) in database.reader.execute("SELECT name FROM kept ORDER BY name")]


def full(database: Database, *, pages: int) -> None:
    """Leave room for ``pages`` more pages, as a disk does that is nearly full."""
    def limit(tx: apsw.Connection) -> None:
        used = int(str(tx.execute("PRAGMA page_count").get))
        tx.execute(f"PRAGMA max_page_count={used + pages}")
    database.transact(limit)


def in_time(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 10)

    return asyncio.run(bounded())


def test_a_full_disk_fails_its_group_whole_and_gives_the_turn_back(database: Database) -> None:
    full(database, pages=3)

    async def together() -> list[Any]:
        commits = group(database)
        return await asyncio.gather(*(commits.commit(work) for work in (
            lambda tx: keep(tx, "before"), lambda tx: keep(tx, "large", 100_000), lambda tx: keep(tx, "after"))),
            return_exceptions=True)

    outcomes = in_time(together())
    assert [type(one) for one in outcomes] == [StoreBusy] * 3
    assert kept(database) == []
    full(database, pages=100)
    assert in_time(group(database).commit(lambda tx: keep(tx, "later"))) == "later"
    assert kept(database) == ["later"]


def test_one_failing_work_fails_alone(database: Database) -> None:
    def fails(tx: apsw.Connection) -> str:
        keep(tx, "half")
        raise ValueError("no")

    async def together() -> list[Any]:
        commits = group(database)
        return await asyncio.gather(commits.commit(lambda tx: keep(tx, "a")), commits.commit(fails),
                                    commits.commit(lambda tx: keep(tx, "b")), return_exceptions=True)

    first, failed, last = in_time(together())
    assert (first, type(failed), last) == ("a", ValueError, "b")
    assert kept(database) == ["a", "b"]


def test_a_full_disk_is_told_to_a_transaction_as_unavailable(database: Database) -> None:
    full(database, pages=3)
    with pytest.raises(StoreBusy):
        database.transact(lambda tx: keep(tx, "large", 100_000))
    full(database, pages=100)
    database.transact(lambda tx: keep(tx, "later"))
    assert kept(database) == ["later"]


def test_a_group_ends_though_every_thread_of_the_pool_waits_for_its_turn(database: Database) -> None:
    async def together() -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
        waiting: list[asyncio.Future[str]] = []

        def work(tx: apsw.Connection) -> str:
            waiting.append(loop.run_in_executor(None, lambda: database.transact(lambda tx: keep(tx, "bundle"))))
            return keep(tx, "single")

        single = await group(database).commit(work)
        return single, await waiting[0]

    assert in_time(together()) == ("single", "bundle")
    assert kept(database) == ["bundle", "single"]


def test_who_stops_waiting_leaves_work_and_group_as_they_were(database: Database) -> None:
    async def together() -> tuple[str, bool]:
        commits = group(database)
        left = asyncio.ensure_future(commits.commit(lambda tx: keep(tx, "left")))
        stays = asyncio.ensure_future(commits.commit(lambda tx: keep(tx, "stays")))
        await asyncio.sleep(0)
        left.cancel()
        return await stays, left.cancelled()

    assert in_time(together()) == ("stays", True)
    assert kept(database) == ["left", "stays"]
