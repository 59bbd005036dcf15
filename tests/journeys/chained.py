"""A hospital of this process on an embedded chain of its own: what it relays is mined, what is mined it follows.

Owns the chain's process and one step of the ledger's loops at a time; refuses to wait longer than a test may.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gateway.app import open_blobs
from gateway.ledger.address import address
from gateway.ledger.anchor import Anchorer
from gateway.ledger.closing import Closer
from gateway.ledger.deploy import ensure_contracts
from gateway.ledger.deployment import read_deployment
from gateway.ledger.devchain.accounts import load_accounts
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode
from gateway.ledger.follower import Follower
from gateway.ledger.job import Policy
from gateway.ledger.relay import Relay
from gateway.ledger.sender import Sender
from gateway.records import finality
from gateway.store import batches
from tests.journeys.hospital import Hospital


class EmbeddedChain:
    """The embedded node in a process of its own, with the contracts."""

    def __init__(self, folder: Path) -> None:
        keys = folder / "keys" / "chain.json"
        self.process = subprocess.Popen([
            sys.executable, "-m", "gateway.ledger.devchain", "--data-dir", str(folder / "chain"), "--keys-file",
            str(keys), "--port", "0", "--lead-s", "3600"], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        operator, _ = load_accounts(keys)
        self.rpc = str(said["rpc"])
        node = EthereumNode(self.rpc, chain_id=said["chain_id"], private_key=operator.private_key)
        self.chain = EthereumChain(node, ensure_contracts(node, folder / "contracts.json"))

    @property
    def deployment(self) -> dict[str, object]:
        contracts = self.chain.contracts
        return {"chain_id": self.chain.chain_id, "custodian": self.chain.member_of(),
                "record_anchor": contracts.record_anchor, "consent_registry": contracts.consent_registry,
                "hospital_registry": contracts.hospital_registry}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class ChainedHospital(Hospital):
    """``settle`` relays, follows and shows until nothing moves; ``until`` waits; ``anchor`` anchors what is here."""

    def __init__(self, folder: Path, embedded: EmbeddedChain, **settings: str) -> None:
        super().__init__(folder, deployment=embedded.deployment, **settings)
        self.chain = embedded.chain
        sender = Sender(database=self.database, chain=self.chain, policy=Policy(confirmations=0))
        custodian = read_deployment(self.settings).custodian
        self.closer = Closer(database=self.database, ring=self.ring, blobs=open_blobs(self.settings, self.database),
                             custodian=custodian, interval_s=0, batch_max=4096)
        self.anchorer = Anchorer(database=self.database, chain=self.chain, custodian=address(custodian), sender=sender)
        self.relay = Relay(database=self.database, chain=self.chain, sender=sender)
        self.follower = Follower(database=self.database, chain=self.chain, confirmations=0, max_head_age_s=None,
                                 ended=finality.ended)

    def step(self) -> bool:
        """One turn of the ledger's loops; whether anything moved."""
        moved = self.follower.poll()
        moved = self.relay.poll() or moved
        return bool(finality.turn(self.node)) or moved

    def anchor(self) -> None:
        """Close a Batch over what waits, and see it final."""
        self.node.disclosures.settle()
        pk = self.closer.close()
        assert pk is not None, "nothing waits"
        assert self.closer.push()

        def final() -> bool:
            self.anchorer.poll()
            found = batches.batch(self.database.reader, pk)
            return found is not None and found.state == "final"
        self.until(final)

    def settle(self, quiet: int = 3) -> None:
        still = 0
        deadline = time.monotonic() + 30
        while still < quiet:
            still = 0 if self.step() else still + 1
            time.sleep(0.02)
            assert time.monotonic() < deadline, "the ledger does not come to rest"

    def until(self, what: Callable[[], bool], within_s: float = 20) -> None:
        deadline = time.monotonic() + within_s
        while not what():
            self.step()
            time.sleep(0.02)
            assert time.monotonic() < deadline, f"not within {within_s} s"
