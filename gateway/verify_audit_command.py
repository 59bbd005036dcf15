"""``gateway verify-audit``: the audit held against what the chain anchored of it.

Owns what is opened and printed; refuses to change anything, and to call sound what the chain was not asked about. May
run beside a gateway. Exit codes: 0 sound, 1 altered (and the first place), 2 not decidable. A checker who trusts not
even this machine on where the chain is names the node, the contract and the custodian.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import replace

from gateway import app
from gateway.config import Settings
from gateway.errors import ChainUnavailable
from gateway.ledger.address import Address, address
from gateway.ledger.audit_chain import Anchors, Verdict, examine
from gateway.ledger.closing import RUN_GROUP
from gateway.ledger.connect import rpc_url
from gateway.ledger.deploy import ensure_contracts
from gateway.ledger.deployment import read_deployment
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode, number
from gateway.ledger.ethereum_rpc import JsonRpc, RpcFault
from gateway.ledger.receipts import Proofs


def run(settings: Settings, *, as_json: bool, rpc: str | None = None, contract: str | None = None,
        custodian: str | None = None) -> int:
    """Examine the audit and print the verdict; the exit code. Raises Misconfigured before the first start."""
    found = verify(settings, rpc=rpc, contract=contract, custodian=custodian)
    fault = found.fault
    if as_json:
        print(json.dumps({
            "verdict": ("sound", "altered", "undecided")[found.code], "rows": found.rows, "anchored": found.anchored,
            "waiting": found.waiting, "batches": found.batches, "unknown": found.unknown,
            "fault": None if fault is None else {"row": fault.seq, "what": fault.what}}, indent=2))
        return found.code
    print(f"{found.rows} audit rows: {found.anchored} anchored in {found.batches} batches, {found.waiting} not yet")
    for unknown in found.unknown:
        print(f"UNKNOWN  {unknown}")
    if fault is not None:
        print(f"ALTERED  {'' if fault.seq is None else f'row {fault.seq}: '}{fault.what}")
    elif not found.unknown:
        print("SOUND: every anchored row stands as it was anchored, and the rest hangs together")
    return found.code


def verify(settings: Settings, *, rpc: str | None = None, contract: str | None = None,
           custodian: str | None = None) -> Verdict:
    """The verdict alone."""
    deployed = read_deployment(settings)
    who = address(custodian or deployed.custodian)
    ring = app.open_ring(settings)
    database = app.open_database(settings, ring)
    blobs = app.open_blobs(settings, database)
    try:
        proofs = Proofs(ring=ring, blobs=blobs, custodian=deployed.custodian, chain_id=deployed.chain_id,
                        contract=deployed.record_anchor, timeout_s=settings.ipfs_timeout_s)
        with _anchors(settings, rpc, None if contract is None else address(contract)) as (anchors, why):
            with database.snapshot() as connection:
                found = examine(connection, proofs, anchors, who, ring.every_ref(RUN_GROUP))
            if why:
                found.unknown = [why]
            return found
    finally:
        blobs.close()
        database.close()
        ring.close()


@contextlib.contextmanager
def _anchors(settings: Settings, rpc: str | None, contract: Address | None) -> Iterator[tuple[Anchors | None, str]]:
    """The chain to ask, or why it cannot be asked."""
    try:
        url = rpc or rpc_url(settings)
        asked = JsonRpc(url, timeout_s=10)
        try:
            chain_id = number(asked.call("eth_chainId"))
        finally:
            asked.close()
        # Nothing is signed: any key will do.
        node = EthereumNode(url, chain_id=settings.chain_id or chain_id, private_key=secrets.token_bytes(32))
        contracts = ensure_contracts(node, settings.contracts_path, may_deploy=False)
    except (ChainUnavailable, RpcFault) as error:
        yield None, f"the chain does not answer: {error}"
        return
    chain = EthereumChain(node, contracts if contract is None else replace(
        contracts, record_anchor=contract, from_block=0))
    try:
        yield chain, ""
    finally:
        chain.close()
