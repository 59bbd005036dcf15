"""The block store's behaviours on a real Kubo: one on PATH, or the one of ``GATEWAY_TEST_IPFS_API``.

No ordinary package client installs Kubo, so where there is neither the summary's last lines say NOT RUN. Nodes
started here live in a temporary folder: loopback only, a private swarm of their own, no bootstrap, no routing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import ipfshttpclient
import ipfshttpclient.exceptions
import pytest

from gateway.errors import BlobUnavailable
from gateway.store.blobs import BlobBackend
from gateway.store.ipfs import KuboBlobs
from tests.behaviours.test_blobs import BlobBehaviours, manifest_of, sealed
from tests.real.kubo_nodes import GIVEN, IPFS, NO_OWN_NODES, NOT_RUN, Node, swarm_key

if not (GIVEN or IPFS):
    pytest.skip(NOT_RUN, allow_module_level=True)
pytestmark = pytest.mark.real
own_nodes = pytest.mark.skipif(IPFS is None, reason=NO_OWN_NODES)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    folder, key = tmp_path_factory.mktemp("kubo"), swarm_key()
    first = Node(folder / "a", key)
    try:
        second = Node(folder / "b", key)
    except BaseException:
        first.kill()
        raise
    try:
        second.meet(first)
        yield first, second
    finally:
        first.kill()
        second.kill()


@pytest.fixture
def both(nodes: tuple[Node, Node]) -> Iterator[tuple[KuboBlobs, KuboBlobs]]:
    first, second = (KuboBlobs(node.api, allow_remote=False, timeout_s=20) for node in nodes)
    yield first, second
    first.close()
    second.close()


class TestRealKubo(BlobBehaviours):
    @pytest.fixture(params=[*(["own"] if IPFS else []), *(["given"] if GIVEN else [])])
    def backend(self, request: pytest.FixtureRequest) -> Iterator[BlobBackend]:
        """A node of ours, or the one given: that may have other users, so no collection there, only our pins go."""
        self.collects = request.param == "own"
        api = request.getfixturevalue("nodes")[0].api if self.collects else GIVEN
        kubo = KuboBlobs(api, allow_remote=True, timeout_s=30)
        before = set(kubo.pins())
        yield kubo
        for digest in set(kubo.pins()) - before:
            kubo.unpin(digest)
        if self.collects:
            kubo.collect_garbage()
        kubo.close()


@own_nodes
@pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")
def test_ipfshttpclients_own_check_refuses_this_kubo(nodes: tuple[Node, Node]) -> None:
    with pytest.raises(ipfshttpclient.exceptions.VersionMismatch):
        ipfshttpclient.connect(nodes[0].api)


@own_nodes
def test_another_hospital_pins_the_manifest_and_has_every_block(both: tuple[KuboBlobs, KuboBlobs]) -> None:
    sender, receiver = both
    blocks = sealed(200, size=2_000)
    digest, manifest = manifest_of(blocks)
    sender.push(manifest, digest, blocks)
    assert not receiver.has(blocks[0][0])
    receiver.pin(digest, timeout_s=20)
    assert all(receiver.has(name) for name, _ in blocks)
    assert list(receiver.get_many([name for name, _ in blocks], timeout_s=5)) == blocks


@own_nodes
def test_a_thousand_blocks_are_pushed_in_one_go(both: tuple[KuboBlobs, KuboBlobs],
                                                record_property: pytest.RecordProperty) -> None:
    """Measured: 0.2 s with the manifest alone pinned, 2 s with a pin a block. The bound here is generous."""
    blocks = sealed(1000, size=2_000)
    digest, manifest = manifest_of(blocks)
    started = time.perf_counter()
    both[0].push(manifest, digest, blocks)
    took = time.perf_counter() - started
    record_property("push_1000_s", took)
    print(f"\nKubo: pushed 1,000 blocks of 2,000 bytes in {took:.2f} s")
    started = time.perf_counter()
    assert list(both[0].get_many([name for name, _ in blocks], timeout_s=5)) == blocks
    print(f"Kubo: read them back at {1000 / (time.perf_counter() - started):.0f} blocks/s")
    assert took < 10


@own_nodes
def test_a_batch_above_the_part_size_is_pinned_whole(both: tuple[KuboBlobs, KuboBlobs],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.ipfs.PART_BYTES", 100_000)
    blocks = sealed(30, size=20_000)
    digest, manifest = manifest_of(blocks)
    both[0].push(manifest, digest, blocks)
    both[0].collect_garbage()
    assert list(both[0].get_many([name for name, _ in blocks], timeout_s=5)) == blocks


@own_nodes
def test_a_block_over_two_mebibytes_goes_through(both: tuple[KuboBlobs, KuboBlobs]) -> None:
    blocks = sealed(1, size=3 << 20)
    digest, manifest = manifest_of(blocks)
    both[0].push(manifest, digest, blocks)
    assert both[0].get(blocks[0][0], timeout_s=10) == blocks[0][1]


@own_nodes
def test_what_was_pushed_survives_kill_9(tmp_path: Path) -> None:
    """Invariant 2 as far as the node carries it: a push that returned is on its disk, pin and all."""
    node = Node(tmp_path / "killed", swarm_key())
    kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=20)
    try:
        batches = []
        for _ in range(5):
            blocks = sealed(50)
            digest, manifest = manifest_of(blocks)
            kubo.push(manifest, digest, blocks)
            batches.append((digest, blocks))
        node.kill()
        with pytest.raises(BlobUnavailable):
            kubo.get(batches[0][1][0][0], timeout_s=2)
        kubo.close()
        node.start()
        kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=20)
        kubo.collect_garbage()
        assert set(kubo.pins()) >= {digest for digest, _ in batches}
        for _, blocks in batches:
            assert list(kubo.get_many([name for name, _ in blocks], timeout_s=5)) == blocks
    finally:
        kubo.close()
        node.kill()
