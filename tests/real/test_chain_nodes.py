"""The ``Chain`` suite on real nodes: anvil, geth's development chain, and a geth clique network without EIP-1559."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import ChainUnavailable
from gateway.ledger.address import address
from gateway.ledger.ethereum_node import EthereumNode
from tests.behaviours.chain_world import World
from tests.behaviours.test_chain import *  # noqa: F403  # the suite, run here on this file's ``world``
from tests.behaviours.test_chain import node_world
from tests.real import chain_nodes
from tests.real.chain_nodes import OPERATOR, STRANGER, Running

pytestmark = pytest.mark.real
NODES = {"anvil": chain_nodes.anvil, "geth-dev": chain_nodes.geth_dev, "geth-clique": chain_nodes.geth_clique}


@pytest.fixture(scope="module", params=list(NODES))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with NODES[request.param](tmp_path_factory.mktemp(request.param)) as node:
        yield node


@pytest.fixture(scope="module")
def world(running: Running, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The stranger gets ether from the operator where the genesis gave it none."""
    node = EthereumNode(running.rpc, chain_id=running.chain_id, private_key=OPERATOR)
    stranger = EthereumNode(running.rpc, chain_id=running.chain_id, private_key=STRANGER).operator
    if not node.balance(stranger):
        node.broadcast(node.sign(to=address(stranger), payload=b"", value=10**19, nonce=node.nonce("pending"),
                                 fees=node.fees(), gas=21_000))
        deadline = time.monotonic() + 20
        while not node.balance(stranger) and time.monotonic() < deadline:
            time.sleep(0.2)
    return node_world(running.rpc, running.chain_id, OPERATOR, STRANGER, tmp_path_factory.mktemp("contracts"))


def test_fees_are_of_the_kind_the_chain_has(world: World, running: Running) -> None:
    assert (world.chain.fees().priority is None) == (running.name == "geth clique")


def test_a_block_reorganised_away_on_anvil_is_gone_with_its_events(tmp_path: Path) -> None:
    with chain_nodes.anvil(tmp_path) as running:
        world = node_world(running.rpc, running.chain_id, OPERATOR, STRANGER, tmp_path)
        receipt = world.done(world.anchor())
        gone = world.chain.block(receipt.block_number)
        assert gone is not None
        running.ask("anvil_reorg", 1, [])
        assert world.chain.block_by_hash(gone.hash) is None
        assert world.chain.receipt(receipt.tx_hash) is None
        assert world.chain.logs(receipt.block_number, receipt.block_number) == ()
        world.done(world.anchor())


def test_a_node_that_stops_answering_is_unavailable_in_time(world: World, running: Running) -> None:
    """SIGSTOP: the connection is open and nothing comes."""
    node = EthereumNode(running.rpc, chain_id=running.chain_id, private_key=OPERATOR, timeout_s=1.0)
    os.kill(running.pid, signal.SIGSTOP)
    time.sleep(0.3)  # a thread may still be answering
    try:
        started = time.monotonic()
        with pytest.raises(ChainUnavailable, match="in time"):
            node.head()
        assert time.monotonic() - started < 5
    finally:
        os.kill(running.pid, signal.SIGCONT)
    assert node.head().number > 0


def test_contracts_are_found_again_by_their_file(world: World, running: Running, tmp_path: Path) -> None:
    first = node_world(running.rpc, running.chain_id, OPERATOR, STRANGER, tmp_path)
    again = node_world(running.rpc, running.chain_id, OPERATOR, STRANGER, tmp_path)
    assert first.chain.contracts == again.chain.contracts != world.chain.contracts
