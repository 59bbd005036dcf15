"""Two hospitals on one real chain: what a wallet ends at the one is denied at the other within a block and a second.

Issue of revocation, "within one block plus a second everywhere"; invariant 6. The figures are printed (``-s``).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.propagation import at, deployment, propagation, second, table
from tests.real.chain_nodes import OPERATOR, STRANGER, anvil_node
from tests.real.site import operator_key
from tests.running import Gateway

pytestmark = pytest.mark.real
BLOCK_S = 1
REVOCATIONS = 50
"""A minute: a p99 of fewer would be the worst of a handful."""


def test_a_revocation_at_one_is_denied_at_the_other_within_a_block_and_a_second(tmp_path: Path) -> None:
    node = anvil_node(tmp_path, "--block-time", str(BLOCK_S))
    running = node.start()
    gateways: list[Gateway] = []
    try:
        first = Gateway(tmp_path / "one", chain_rpc=running.rpc, chain_id=str(running.chain_id), batch_interval_s="5",
                        chain_operator_key_file=str(operator_key(tmp_path)), account_requests_per_s="0", workers="1")
        gateways.append(first)
        first.start()
        on = deployment(first, running.rpc, OPERATOR)
        other = second(tmp_path / "two", first, on, STRANGER, batch_interval_s="5", account_requests_per_s="0",
                       workers="1")
        gateways.append(other)
        other.start()
        found = propagation(first, other, on, revocations=REVOCATIONS)
    finally:
        for gateway in gateways:
            gateway.stop()
        node.stop()
    print("\n" + table(found, f"on anvil with a block each {BLOCK_S} s"))
    assert at(found.denied, 0.99) <= (BLOCK_S + 1) * 1000
