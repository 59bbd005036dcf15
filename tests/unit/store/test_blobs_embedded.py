"""The embedded block store beside the journal: rows of Versions are not its to number or to drop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import dag_cbor
import pytest
from multiformats import CID

from gateway.errors import BlobUnavailable, BlockCorrupt
from gateway.store.blobs import EmbeddedBlobs
from gateway.store.cid import cid, digest_block
from gateway.store.sql import Database
from tests.behaviours.test_blobs import Block, manifest_of, sealed


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "gateway.db", bytes(32))
    database.migrate()
    yield database
    database.close()


def journalled(database: Database, blocks: list[Block], *, first: int = 1) -> None:
    """Blocks as the journal commits them: under the Version's own seq."""
    def store(connection: apsw.Connection) -> None:
        for seq, (digest, block) in enumerate(blocks, first):
            connection.execute("INSERT INTO block VALUES (?,?,?)", (seq, digest, block))
    database.transact(store)


def unread() -> Iterator[Block]:
    raise AssertionError("blocks the journal holds are read a second time")
    yield


def test_a_batch_already_in_the_journal_is_pushed_without_reading_its_blocks(database: Database) -> None:
    blobs, blocks = EmbeddedBlobs(database), sealed(1200)
    journalled(database, blocks)
    digest, manifest = manifest_of(blocks)
    blobs.push(manifest, digest, unread())
    assert list(blobs.pins()) == [digest]


def test_a_manifest_never_takes_a_versions_number(database: Database) -> None:
    """``block.seq`` is the Version's ``seq``: a manifest under the next number would refuse the next write."""
    blobs, blocks = EmbeddedBlobs(database), sealed(3)
    journalled(database, blocks)
    for count in (1, 2, 3):
        digest, manifest = manifest_of(blocks[:count])
        blobs.push(manifest, digest, ())
    journalled(database, sealed(3), first=4)
    seqs = [seq for (seq,) in database.reader.execute("SELECT seq FROM block ORDER BY seq")]
    assert seqs == [-3, -2, -1, 1, 2, 3, 4, 5, 6]


def test_the_first_manifest_of_an_empty_store_leaves_number_zero_free(database: Database) -> None:
    digest, manifest = manifest_of([])
    EmbeddedBlobs(database).push(manifest, digest, ())
    assert database.reader.execute("SELECT seq FROM block").get == -1


def test_collection_never_touches_the_outbox(database: Database) -> None:
    """Invariant 2: a Version not yet in a Batch has no pin, and must stay."""
    blobs, waiting = EmbeddedBlobs(database), sealed(4)
    journalled(database, waiting)
    digest, manifest = manifest_of(waiting[:2])
    blobs.push(manifest, digest, ())
    blobs.unpin(digest)
    assert blobs.collect_garbage() == 1
    assert all(blobs.has(name) for name, _ in waiting)


def test_a_manifest_below_a_manifest_is_kept_with_what_it_links(database: Database) -> None:
    blobs, blocks = EmbeddedBlobs(database), sealed(3)
    inner_digest, inner = manifest_of(blocks)
    blobs.push(inner, inner_digest, blocks)
    outer = dag_cbor.encode([CID.decode(cid(inner_digest, "dag-cbor"))])
    blobs.push(outer, digest_block(outer), ())
    blobs.unpin(inner_digest)
    assert blobs.collect_garbage() == 0
    assert all(blobs.has(name) for name, _ in blocks)


def test_nothing_is_collected_while_a_pinned_manifest_is_lost(database: Database) -> None:
    blobs, blocks = EmbeddedBlobs(database), sealed(2)
    digest, manifest = manifest_of(blocks)
    blobs.push(manifest, digest, blocks)
    database.transact(lambda connection: connection.execute("DELETE FROM block WHERE digest=?", (digest,)))
    with pytest.raises(BlockCorrupt):
        blobs.collect_garbage()
    assert all(blobs.has(name) for name, _ in blocks)


def test_a_push_that_fails_leaves_no_row(database: Database) -> None:
    blobs, blocks = EmbeddedBlobs(database), sealed(3)
    digest, manifest = manifest_of(blocks)
    with pytest.raises(BlobUnavailable):
        blobs.push(manifest, digest, blocks[:2])
    assert database.reader.execute("SELECT count(*) FROM block").get == 0


@pytest.mark.parametrize(("raised", "expected"), [
    (apsw.CorruptError, BlockCorrupt), (apsw.NotADBError, BlockCorrupt),
    *((error, BlobUnavailable) for error in sorted(
        {error for _, error in vars(apsw).items() if isinstance(error, type) and issubclass(error, apsw.Error)}
        - {apsw.CorruptError, apsw.NotADBError}, key=lambda error: error.__name__)),
], ids=lambda value: value.__name__)
def test_every_error_of_sqlite_becomes_one_of_ours(raised: type[Exception], expected: type[Exception]) -> None:
    class Broken:
        @property
        def reader(self) -> apsw.Connection:
            raise raised("no such page")

    with pytest.raises(expected):
        EmbeddedBlobs(Broken()).get(bytes(32), timeout_s=1)  # type: ignore[arg-type]


def test_a_table_that_is_gone_is_unavailable(database: Database) -> None:
    blobs = EmbeddedBlobs(database)
    database.transact(lambda connection: connection.execute("DROP TABLE block"))
    digest, manifest = manifest_of([])
    for call in (lambda: blobs.get(bytes(32), timeout_s=1), lambda: blobs.has(bytes(32)),
                 lambda: blobs.push(manifest, digest, ()), lambda: list(blobs.get_many([bytes(32)], timeout_s=1))):
        with pytest.raises(BlobUnavailable):
            call()
