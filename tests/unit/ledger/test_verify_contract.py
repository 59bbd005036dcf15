"""A receipt checked against the compiled contracts themselves, in an EVM of the test's own (issue line 7)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from web3 import EthereumTesterProvider, Web3

from gateway.crypto.envelope import Sealed, VersionHeader, seal, seal_block
from gateway.ledger import batch
from gateway.ledger.receipt import Receipt, to_json
from gateway.ledger.verify import verify
from gateway.ledger.verify_rpc import RpcReceiptChain

ARTIFACTS = Path(__file__).resolve().parents[3] / "contracts" / "artifacts"
MATERIAL = bytes(range(32))
STORED = b'{"resourceType":"Patient","id":"p1","meta":{"versionId":"1"}}'
HEADER = VersionHeader(type="Patient", id="p1", version_id=1, time_ms=0, client="", user="", deleted=False)


@dataclass
class Deployed:
    web3: Any  # web3 builds contract classes at run time
    anchor: Any
    member: str


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    web3 = Web3(EthereumTesterProvider())
    member = web3.eth.accounts[0]

    def deploy(name: str, *arguments: object) -> Any:
        artifact = json.loads((ARTIFACTS / f"{name}.json").read_text())
        made = web3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"]).constructor(*arguments)
        mined = web3.eth.wait_for_transaction_receipt(made.transact({"from": member}))
        return web3.eth.contract(address=mined["contractAddress"], abi=artifact["abi"])

    registry = deploy("HospitalRegistry", bytes([1]) * 32)
    return Deployed(web3, deploy("RecordAnchor", registry.address), member)


def chain(deployed: Deployed) -> RpcReceiptChain:
    eth = deployed.web3.eth
    calls: dict[str, Callable[..., Any]] = {
        "eth_chainId": lambda: eth.chain_id, "eth_blockNumber": lambda: eth.block_number,
        "eth_getTransactionReceipt": eth.get_transaction_receipt,
        "eth_getBlockByNumber": lambda number, _: eth.get_block(int(number, 16)),
    }

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        result = _wire(calls[body["method"]](*body["params"]))
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": body["id"], "result": result})
    return RpcReceiptChain("http://node.test", timeout_s=5.0, transport=httpx.MockTransport(handle))


def _wire(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    if isinstance(value, list | tuple):
        return [_wire(item) for item in value]
    if hasattr(value, "items"):
        return {name: _wire(item) for name, item in value.items()}
    return value


def test_batches_anchored_one_after_another_give_receipts_that_verify(deployed: Deployed) -> None:
    head = bytes(32)
    for count in (3, 40):
        versions: list[Sealed] = [seal(MATERIAL, "a", HEADER, STORED) for _ in range(count)]
        made = batch.build(
            [batch.Entry(digest=version.digest, content_commitment=version.content_commitment, key_refs=bytes(8))
             for version in versions],
            custodian="a", padding_salt=bytes(32),
            seal=lambda name, body: seal_block("manifest", name, MATERIAL, "a", body))
        sent = deployed.anchor.functions.anchor(head, made.root, made.manifest_digest, made.size_class)
        mined = deployed.web3.eth.wait_for_transaction_receipt(sent.transact({"from": deployed.member}))
        prior, head = head, batch.rolling_head(head, made.root, made.manifest_digest, made.size_class)
        assert deployed.anchor.functions.head(deployed.member).call() == head
        version, path = versions[-1], made.paths()[versions[-1].digest]
        assert deployed.anchor.functions.includes(
            made.root, version.digest, version.content_commitment, list(path)).call()
        receipt = Receipt(
            type="Patient", id="p1", version_id=1, content_salt=version.content_salt,
            content_commitment=version.content_commitment, block_digest=version.digest, path=path, root=made.root,
            manifest_digest=made.manifest_digest, size_class=made.size_class, prior_head=prior, head=head,
            chain_id=deployed.web3.eth.chain_id, contract=deployed.anchor.address.lower(),
            custodian=deployed.member.lower(), transaction=bytes(mined["transactionHash"]),
            block_number=mined["blockNumber"], block_hash=bytes(mined["blockHash"]),
            block_time_s=deployed.web3.eth.get_block(mined["blockNumber"])["timestamp"], confirmations=1)
        with chain(deployed) as node:
            assert verify(to_json(receipt), resource=STORED, chain=node, confirmations=1).code == 0
            assert verify(receipt, resource=STORED, chain=node, confirmations=9).code == 2
            other = replace(receipt, contract=deployed.member.lower())
            verdict = verify(other, resource=STORED, chain=node, confirmations=1)
            assert verdict.first_failed is not None
            assert verdict.first_failed.name == "anchored"
