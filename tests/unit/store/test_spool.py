"""Spooled records: durable and taken exactly once, whatever dies in between. Invariant 8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import StoreBusy
from gateway.store import spool
from gateway.store.spool import Spool
from gateway.store.sql import Database

KEY = bytes(range(32))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "gateway.db", bytes(32))
    made.migrate()
    yield made
    made.close()


def taken(database: Database, folder: Path) -> list[bytes]:
    found = database.transact(lambda tx: spool.take(folder, KEY, tx))
    spool.drop_finished(folder, database.reader)
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


def test_records_are_taken_once_and_in_order(database: Database, tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"one", b"two"])
    assert taken(database, writer.folder) == [b"one", b"two"]
    assert not spool.waiting(writer.folder, database.reader)
    writer.append([b"three"])
    assert taken(database, writer.folder) == [b"three"]
    assert taken(database, writer.folder) == []


def test_a_rolled_back_taking_is_taken_again(database: Database, tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"one"])

    def dies(tx: object) -> None:
        spool.take(writer.folder, KEY, tx)  # type: ignore[arg-type]  # an apsw connection
        raise ValueError("killed before the commit")

    with pytest.raises(ValueError, match="killed"):
        database.transact(dies)
    assert taken(database, writer.folder) == [b"one"]


def test_a_file_goes_when_it_is_taken_and_its_writer_is_gone(database: Database, tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"one"])
    taken(database, writer.folder)
    assert len(files(writer.folder)) == 1
    writer.close()
    taken(database, writer.folder)
    assert files(writer.folder) == []


@given(cut=st.integers(min_value=1, max_value=40))
@settings(max_examples=25, deadline=None)
def test_a_tail_torn_by_a_crash_is_left_out_and_the_rest_kept(tmp_path_factory: pytest.TempPathFactory,
                                                              cut: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    database = Database(folder / "gateway.db", bytes(32))
    database.migrate()
    writer = Spool(folder / "s", KEY)
    writer.append([b"kept"])
    writer.append([b"0123456789"])
    writer.close()
    [path] = files(writer.folder)
    path.write_bytes(path.read_bytes()[:-cut] if cut < 42 else path.read_bytes())
    assert taken(database, writer.folder) == [b"kept"]
    assert files(writer.folder) == []
    again = Spool(writer.folder, KEY)
    again.append([b"next"])
    assert taken(database, writer.folder) == [b"next"]
    database.close()


@pytest.mark.parametrize("place", [5, 20, -1])
def test_an_altered_record_does_not_open(database: Database, tmp_path: Path, place: int) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"one"])
    writer.close()
    [path] = files(writer.folder)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    assert database.transact(lambda tx: spool.take(writer.folder, KEY, tx)) == []


def test_a_record_moved_to_another_file_does_not_open(database: Database, tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"one"])
    writer.close()
    [path] = files(writer.folder)
    path.rename(path.with_name("9" + path.name[1:]))
    assert database.transact(lambda tx: spool.take(writer.folder, KEY, tx)) == []


def test_a_disk_that_refuses_is_told_and_a_new_file_begins(database: Database, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"one"])

    def refuses(fd: int) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr("gateway.store.spool.os.fdatasync", refuses)
        with pytest.raises(StoreBusy):
            writer.append([b"two"])
    writer.append([b"three"])
    assert [record for record in taken(database, writer.folder) if record != b"two"] == [b"one", b"three"]


def test_nothing_readable_is_on_the_disk(tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"Patient/ada-lovelace"])
    assert b"lovelace" not in files(writer.folder)[0].read_bytes()


def test_a_record_longer_than_one_reading_is_taken_and_so_is_what_follows(database: Database, tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    long = bytes(3 * 1024 * 1024)
    writer.append([b"before", long, b"after"])
    found: list[bytes] = []
    while now := taken(database, writer.folder):
        found += now
    assert found == [b"before", long, b"after"]


def test_a_file_with_a_long_record_left_is_not_dropped(database: Database, tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"before"])
    assert taken(database, writer.folder) == [b"before"]
    writer.append([bytes(3 * 1024 * 1024)])
    writer.close()
    spool.drop_finished(writer.folder, database.reader)
    assert taken(database, writer.folder) == [bytes(3 * 1024 * 1024)]


def test_an_altered_record_holds_up_none_after_it_and_is_kept_to_be_looked_at(database: Database,
                                                                             tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer.append([b"one", b"two", b"three"])
    writer.close()
    [path] = files(writer.folder)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(bytes(data))
    assert taken(database, writer.folder) == [b"one", b"three"]
    assert not spool.waiting(writer.folder, database.reader)
    assert [one.read_bytes() for one in writer.folder.glob("*.broken")] == [bytes(data)]
    assert files(writer.folder) == []


def test_a_writer_that_dies_before_its_first_record_leaves_no_file_for_ever(database: Database, tmp_path: Path) -> None:
    writer = Spool(tmp_path / "s", KEY)
    writer._begin_file()
    taken(database, writer.folder)
    assert len(files(writer.folder)) == 1  # it may write yet
    writer.close()
    taken(database, writer.folder)
    assert files(writer.folder) == []
