"""The gateway with its blocks on a real Kubo: Batches pinned whole, found by their Cid, pushed later after a stop.

Invariants 1, 2 and 3; ``gateway/README.md``, Paths: Anchor. The chain is the embedded one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.store.cid import cid, digest_block, parse_cid
from gateway.store.ipfs_address import ApiAddress
from tests.real.kubo_nodes import GIVEN, IPFS, NO_OWN_NODES, NOT_RUN, Node, swarm_key
from tests.real.site import observation, within
from tests.running import Gateway

if not (GIVEN or IPFS):
    pytest.skip(NOT_RUN, allow_module_level=True)
pytestmark = pytest.mark.real
NAME = "Kuboldsdottir"


class Hospital:
    """A gateway whose blocks are on the Kubo at ``api``."""

    def __init__(self, folder: Path, api: str) -> None:
        self.gateway = Gateway(folder, ipfs_api=api, ipfs_allow_remote="true", ipfs_timeout_s="20")
        self.url = ApiAddress.parse(api, allow_remote=True).url
        self.gateway.start()
        self.feed = self.gateway.client("--ttl", "7200")

    def write(self) -> str:
        """A new patient's version URL."""
        answer = self.feed.post("/Patient", json={"resourceType": "Patient", "name": [{"family": NAME}]})
        assert answer.status_code == 201, answer.text
        return f"/Patient/{answer.json()['id']}/_history/1"

    def receipt(self, version: str) -> dict[str, Any]:
        within(60, "there is a receipt", lambda: self.feed.get(f"{version}/$receipt").status_code == 200)
        found: dict[str, Any] = self.feed.get(f"{version}/$receipt").json()
        return found

    def pending(self) -> int:
        return int(self.gateway.status()["entries"]["pending"])

    def ask(self, command: str, **options: str) -> httpx.Response:
        """Kubo's RPC, past the gateway's adapter."""
        return httpx.post(f"{self.url}/api/v0/{command}", params=options, timeout=20, trust_env=False)


@pytest.fixture(scope="module")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if IPFS is None:
        pytest.skip(NO_OWN_NODES)
    node = Node(tmp_path_factory.mktemp("kubo") / "node", swarm_key())
    yield node
    node.kill()


@pytest.fixture(scope="module", params=[*(["own"] if IPFS else []), *(["given"] if GIVEN else [])])
def hospital(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    api = request.getfixturevalue("kubo").api if request.param == "own" else GIVEN
    made = Hospital(tmp_path_factory.mktemp("gateway"), api)
    yield made
    made.gateway.stop()


def test_the_preflight_finds_kubo_in_order(hospital: Hospital) -> None:
    done = hospital.gateway.run("check", check=False)
    assert done.returncode == 0, done.stdout
    assert "Kubo" not in done.stdout


def test_a_receipts_block_and_manifest_are_on_kubo_and_pinned(hospital: Hospital) -> None:
    """``gateway/FORMATS.md``, Manifest: it alone is pinned, and what it links with it."""
    receipt = hospital.receipt(hospital.write())
    manifest = receipt["batch"]["manifest"]
    assert parse_cid(manifest)[0] == "dag-cbor"
    pinned = hospital.ask("pin/ls", arg=manifest, type="recursive")
    assert list(pinned.json()["Keys"]) == [manifest]
    block = hospital.ask("block/get", arg=receipt["block"], offline="true")
    assert block.status_code == 200
    assert cid(digest_block(block.content)) == receipt["block"]
    assert NAME.encode() not in block.content
    links = {json.loads(line)["Ref"] for line in
             hospital.ask("refs", arg=manifest, offline="true").text.splitlines()}
    assert receipt["block"] in links
    for link in links:
        assert hospital.ask("block/get", arg=link, offline="true").status_code == 200


def test_a_receipt_over_kubos_blocks_verifies(hospital: Hospital, tmp_path: Path) -> None:
    version = hospital.write()
    (tmp_path / "receipt.json").write_text(json.dumps(hospital.receipt(version)))
    (tmp_path / "version.json").write_bytes(hospital.feed.get(version).content)
    done = hospital.gateway.run("verify", str(tmp_path / "receipt.json"), "--resource", str(tmp_path / "version.json"),
                                "--rpc", hospital.gateway.status()["chain"]["rpc"], check=False)
    assert done.returncode == 0, done.stdout


def test_a_collection_on_the_node_takes_no_record(hospital: Hospital, request: pytest.FixtureRequest) -> None:
    if "given" in request.node.name:
        pytest.skip("the given Kubo may have other users: nothing is collected there")
    receipt = hospital.receipt(hospital.write())
    assert hospital.ask("repo/gc").status_code == 200
    assert hospital.ask("block/get", arg=receipt["block"], offline="true").status_code == 200


def test_writes_go_on_while_kubo_is_down_and_are_pushed_later(hospital: Hospital, kubo: Node,
                                                              request: pytest.FixtureRequest) -> None:
    """Invariant 2: a 201 rests on the journal; the block store may come later."""
    if "given" in request.node.name:
        pytest.skip("the given Kubo is not ours to stop")
    before = hospital.write()
    within(60, "all is anchored", lambda: hospital.pending() == 0)
    kubo.kill()
    written = [hospital.write() for _ in range(10)]
    patient = written[0].split("/")[2]
    assert hospital.feed.post("/Observation", json=observation(patient)).status_code == 201
    for version in [before, *written]:
        assert hospital.feed.get(version).status_code == 200
    assert hospital.feed.get("/Patient", params={"name": NAME}).json()["entry"]
    assert hospital.feed.get(f"{written[-1]}/$receipt").status_code == 202
    down = hospital.feed.get(f"{before}/$receipt")  # its manifest is on the node
    assert down.status_code == 503, down.text
    assert down.json()["resourceType"] == "OperationOutcome"
    check = hospital.gateway.run("check", check=False)
    assert check.returncode == 1
    assert "Kubo is unreachable" in check.stdout
    assert hospital.pending() >= 11
    kubo.start()
    for version in [before, *written]:
        receipt = hospital.receipt(version)
        assert hospital.ask("block/get", arg=receipt["block"], offline="true").status_code == 200
    within(60, "all is anchored", lambda: hospital.pending() == 0)


def test_a_gateway_starts_while_its_kubo_is_down(hospital: Hospital, kubo: Node,
                                                 request: pytest.FixtureRequest) -> None:
    if "given" in request.node.name:
        pytest.skip("the given Kubo is not ours to stop")
    hospital.gateway.stop()
    kubo.kill()
    hospital.gateway.start()
    version = hospital.write()
    assert hospital.feed.get(version).status_code == 200
    kubo.start()
    assert hospital.receipt(version)
