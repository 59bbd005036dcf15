"""What every block store must do, run on each: embedded, and Kubo as its simulator speaks it.

``tests/real/test_kubo.py`` runs the same class on a real daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import urandom
from pathlib import Path

import dag_cbor
import pytest
from multiformats import CID

from gateway.errors import BlobUnavailable, BlockCorrupt, WrongPlacement
from gateway.store.blobs import BlobBackend, EmbeddedBlobs, links
from gateway.store.cid import cid, digest_block
from gateway.store.ipfs import KuboBlobs
from gateway.store.sql import Database
from tests.simulators.ipfs import FakeKubo

Block = tuple[bytes, bytes]


def sealed(count: int, size: int = 200) -> list[Block]:
    """Blocks as good as envelopes: random bytes by digest."""
    return [(digest_block(block), block) for block in (urandom(size) for _ in range(count))]


def manifest_of(blocks: list[Block]) -> Block:
    """A dag-cbor manifest that links ``blocks``; (digest, bytes)."""
    manifest = dag_cbor.encode({"kind": "batch", "links": [CID.decode(cid(digest)) for digest, _ in blocks]})
    return digest_block(manifest), manifest


class BlobBehaviours:
    """Give ``backend`` as a fixture; ``collects`` says whether its garbage may be collected here."""

    collects = True

    @pytest.fixture
    def backend(self) -> BlobBackend:
        raise LookupError("each implementation gives its own")

    def test_a_pushed_batch_reads_back_byte_for_byte(self, backend: BlobBackend) -> None:
        blocks = sealed(20)
        digest, manifest = manifest_of(blocks)
        backend.push(manifest, digest, blocks)
        assert [backend.get(name, timeout_s=5) for name, _ in blocks] == [block for _, block in blocks]
        assert backend.get(digest, timeout_s=5) == manifest
        assert digest in set(backend.pins())
        assert all(backend.has(name) for name, _ in [*blocks, (digest, manifest)])

    def test_many_blocks_come_in_the_order_asked(self, backend: BlobBackend) -> None:
        blocks = sealed(30)
        digest, manifest = manifest_of(blocks)
        backend.push(manifest, digest, iter(blocks))
        asked = [name for name, _ in reversed(blocks)]
        assert list(backend.get_many(asked, timeout_s=5)) == list(reversed(blocks))

    def test_only_the_manifest_is_pinned(self, backend: BlobBackend) -> None:
        before = set(backend.pins())
        blocks = sealed(5)
        digest, manifest = manifest_of(blocks)
        backend.push(manifest, digest, blocks)
        assert set(backend.pins()) - before == {digest}

    def test_pushing_again_changes_nothing(self, backend: BlobBackend) -> None:
        blocks = sealed(5)
        digest, manifest = manifest_of(blocks)
        backend.push(manifest, digest, blocks)
        pins = sorted(backend.pins())
        backend.push(manifest, digest, blocks)
        backend.push(manifest, digest, ())
        assert sorted(backend.pins()) == pins
        assert backend.get(blocks[0][0], timeout_s=5) == blocks[0][1]

    def test_a_block_nobody_has_is_unavailable_in_time(self, backend: BlobBackend) -> None:
        [(absent, _)] = sealed(1)
        assert not backend.has(absent)
        with pytest.raises(BlobUnavailable):
            backend.get(absent, timeout_s=0.5)
        with pytest.raises(BlobUnavailable):
            list(backend.get_many([absent], timeout_s=0.5))

    def test_a_manifest_whose_links_are_not_there_is_not_pinned(self, backend: BlobBackend) -> None:
        blocks = sealed(3)
        digest, manifest = manifest_of(blocks)
        with pytest.raises(BlobUnavailable):
            backend.push(manifest, digest, blocks[:2])
        with pytest.raises(BlobUnavailable):
            backend.push(manifest, digest, ())
        assert digest not in set(backend.pins())
        with pytest.raises(BlobUnavailable):
            backend.pin(digest, timeout_s=0.5)
        backend.push(manifest, digest, blocks)
        assert digest in set(backend.pins())

    def test_bytes_that_are_not_their_digest_never_enter(self, backend: BlobBackend) -> None:
        """Invariant 3: the hash is recomputed, never believed."""
        blocks = sealed(3)
        digest, manifest = manifest_of(blocks)
        wrong = [*blocks[:2], (blocks[2][0], b"other bytes")]
        with pytest.raises(BlockCorrupt):
            backend.push(manifest, digest, wrong)
        with pytest.raises(BlockCorrupt):
            backend.push(manifest + b"\x00", digest, blocks)
        assert digest not in set(backend.pins())

    def test_a_block_the_manifest_does_not_link_is_refused(self, backend: BlobBackend) -> None:
        blocks = sealed(2)
        digest, manifest = manifest_of(blocks)
        with pytest.raises(WrongPlacement):
            backend.push(manifest, digest, [*blocks, *sealed(1)])

    def test_a_manifest_that_is_no_dag_cbor_is_refused(self, backend: BlobBackend) -> None:
        [(digest, block)] = [(digest_block(b"\xff not cbor"), b"\xff not cbor")]
        with pytest.raises(BlockCorrupt):
            backend.push(block, digest, ())

    def test_a_manifest_without_links_is_a_batch_too(self, backend: BlobBackend) -> None:
        manifest = dag_cbor.encode({"kind": "batch", "salt": urandom(8), "links": []})
        digest = digest_block(manifest)
        backend.push(manifest, digest, ())
        assert digest in set(backend.pins())
        assert backend.get(digest, timeout_s=5) == manifest

    def test_unpin_can_be_repeated(self, backend: BlobBackend) -> None:
        blocks = sealed(2)
        digest, manifest = manifest_of(blocks)
        backend.push(manifest, digest, blocks)
        backend.unpin(digest)
        backend.unpin(digest)
        assert digest not in set(backend.pins())
        backend.pin(digest, timeout_s=5)
        assert digest in set(backend.pins())

    def test_collection_drops_what_no_pin_holds_and_keeps_the_rest(self, backend: BlobBackend) -> None:
        """An erased Batch's successor manifest shares all but the erased links (``gateway/FORMATS.md``, Manifest)."""
        if not self.collects:
            pytest.skip("this node has other users: their unpinned blocks would go")
        blocks = sealed(6)
        digest, manifest = manifest_of(blocks)
        backend.push(manifest, digest, blocks)
        successor_digest, successor = manifest_of(blocks[:4])
        backend.push(successor, successor_digest, ())
        backend.unpin(digest)
        assert backend.collect_garbage() == 3
        assert [backend.has(name) for name, _ in blocks] == [True] * 4 + [False] * 2
        assert not backend.has(digest)
        assert backend.get(successor_digest, timeout_s=5) == successor
        assert backend.collect_garbage() == 0

    def test_the_manifests_links_say_what_is_in_a_batch(self, backend: BlobBackend) -> None:
        blocks = sealed(4)
        digest, manifest = manifest_of(blocks)
        backend.push(manifest, digest, blocks)
        assert links(backend.get(digest, timeout_s=5)) == [("raw", name) for name, _ in blocks]

    def test_status_names_what_answers(self, backend: BlobBackend) -> None:
        status = backend.status()
        assert status.backend in {"embedded", "kubo"}
        assert status.version
        assert status.stored_bytes >= 0


class TestEmbedded(BlobBehaviours):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[BlobBackend]:
        database = Database(tmp_path / "gateway.db", bytes(32))
        database.migrate()
        yield EmbeddedBlobs(database)
        database.close()

    def test_a_flipped_bit_in_the_store_is_an_error_never_data(self, tmp_path: Path) -> None:
        def flip(database: Database, digest: bytes) -> None:
            database.transact(lambda connection: connection.execute(
                "UPDATE block SET envelope=? WHERE digest=?", (b"flipped", digest)))
        database = Database(tmp_path / "flip.db", bytes(32))
        database.migrate()
        _a_flipped_bit(EmbeddedBlobs(database), lambda digest: flip(database, digest))
        database.close()


class TestKubo(BlobBehaviours):
    @pytest.fixture
    def backend(self) -> Iterator[BlobBackend]:
        with FakeKubo() as node:
            kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=5)
            yield kubo
            kubo.close()

    def test_a_flipped_bit_in_the_store_is_an_error_never_data(self) -> None:
        with FakeKubo() as node:
            kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=5)
            _a_flipped_bit(kubo, node.corrupt)
            kubo.close()


def _a_flipped_bit(backend: BlobBackend, flip: Callable[[bytes], None]) -> None:
    """Invariant 3, on stores whose bytes the test can reach."""
    blocks = sealed(3)
    digest, manifest = manifest_of(blocks)
    backend.push(manifest, digest, blocks)
    flip(blocks[1][0])
    with pytest.raises(BlockCorrupt):
        backend.get(blocks[1][0], timeout_s=5)
    with pytest.raises(BlockCorrupt):
        list(backend.get_many([name for name, _ in blocks], timeout_s=5))
    assert backend.get(blocks[0][0], timeout_s=5) == blocks[0][1]
