"""``verify``: 0 verified, 1 false and which step, 2 consistent but the block is not trusted yet (issue line 7)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import httpx
import pytest
from eth_abi import encode as abi_encode

from gateway.crypto.envelope import VersionHeader, seal
from gateway.errors import ChainUnavailable
from gateway.ledger import merkle
from gateway.ledger.batch import Entry, rolling_head
from gateway.ledger.keccak import keccak
from gateway.ledger.receipt import Receipt, to_json
from gateway.ledger.verify import ANCHORED, STEPS, ChainBlock, ChainLog, ChainTransaction, Verdict, verify
from gateway.ledger.verify_rpc import RpcReceiptChain

STORED = b'{"resourceType":"Patient","id":"p1","meta":{"versionId":"3"},"multipleBirthInteger":1}'
CONTRACT, CUSTODIAN = "0x" + "ab" * 20, "0x" + "cd" * 20
NUMBER = 100


def make(stored: bytes = STORED) -> Receipt:
    header = VersionHeader(type="Patient", id="p1", version_id=3, time_ms=1, client="", user="", deleted=not stored)
    sealed = seal(bytes(range(32)), "hospital-a", header, stored)
    entry = Entry(digest=sealed.digest, content_commitment=sealed.content_commitment, key_refs=bytes(8))
    tree = merkle.build([entry.leaf, keccak(b"another entry")], bytes(32))
    manifest, prior = keccak(b"manifest"), keccak(b"prior")
    return Receipt(
        type="Patient", id="p1", version_id=3, content_salt=sealed.content_salt,
        content_commitment=sealed.content_commitment, block_digest=sealed.digest, path=tree.path(entry.leaf),
        root=tree.root, manifest_digest=manifest, size_class=0, prior_head=prior,
        head=rolling_head(prior, tree.root, manifest, 0), chain_id=1337, contract=CONTRACT, custodian=CUSTODIAN,
        transaction=keccak(b"tx"), block_number=NUMBER, block_hash=keccak(b"block 100"), block_time_s=1_763_000_000,
        confirmations=1)


RECEIPT = make()


def event(receipt: Receipt) -> ChainLog:
    """The log RecordAnchor emits, by the ABI."""
    return ChainLog(
        address=receipt.contract,
        topics=(keccak(b"Anchored(address,bytes32,bytes32,uint8,bytes32)"),
                abi_encode(["address"], [receipt.custodian])),
        data=abi_encode(["bytes32", "bytes32", "uint8", "bytes32"],
                        [receipt.root, receipt.manifest_digest, receipt.size_class, receipt.prior_head]))


@dataclass
class Node:
    """A chain that holds the receipt's anchor; a test changes one thing."""

    receipt: Receipt
    head: int = NUMBER + 11
    chain: int = 1337
    mined: ChainTransaction | None = None
    blocks: dict[int, ChainBlock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        other = ChainLog(address="0x" + "00" * 20, topics=(), data=b"")
        self.mined = ChainTransaction(
            succeeded=True, block_number=NUMBER, block_hash=self.receipt.block_hash,
            logs=(other, event(self.receipt)))
        self.blocks[NUMBER] = ChainBlock(
            hash=self.receipt.block_hash, time_s=self.receipt.block_time_s,
            transactions=(self.receipt.transaction,))

    def chain_id(self) -> int:
        return self.chain

    def head_number(self) -> int:
        return self.head

    def transaction(self, transaction_hash: bytes) -> ChainTransaction | None:
        return self.mined if transaction_hash == self.receipt.transaction else None

    def block(self, number: int) -> ChainBlock | None:
        return self.blocks.get(number)


def ask(receipt: Receipt | bytes = RECEIPT, node: Node | None = None, resource: bytes | None = STORED,
        confirmations: int = 12) -> Verdict:
    return verify(receipt, resource=resource, chain=node, confirmations=confirmations)


def failing(verdict: Verdict) -> str:
    assert verdict.code == 1
    assert verdict.first_failed is not None
    assert verdict.steps[-1] == verdict.first_failed
    assert verdict.first_failed.number == STEPS.index(verdict.first_failed.name) + 1
    return verdict.first_failed.name


def test_a_true_receipt_verifies_against_a_chain() -> None:
    verdict = ask(to_json(RECEIPT), Node(RECEIPT))
    assert verdict.code == 0
    assert [step.name for step in verdict.steps] == list(STEPS)
    assert {step.status for step in verdict.steps} == {"ok"}


def test_without_a_chain_it_is_consistent_but_not_trusted_yet() -> None:
    verdict = ask()
    assert verdict.code == 2
    assert [step.status for step in verdict.steps] == ["ok"] * 5 + ["unknown"] * 2
    assert "--rpc" in verdict.steps[5].detail


def test_without_the_resource_the_proof_still_verifies_and_says_what_was_not_compared() -> None:
    verdict = ask(node=Node(RECEIPT), resource=None)
    assert (verdict.code, verdict.steps[1].status) == (0, "unknown")
    assert "no resource" in verdict.steps[1].detail


def test_a_deleted_version_is_proven_by_no_bytes() -> None:
    deleted = make(b"")
    assert ask(deleted, Node(deleted), b"").code == 0
    assert failing(ask(deleted, Node(deleted), STORED)) == "content"


@pytest.mark.parametrize("resource", [
    STORED + b"\n", b" " + STORED, STORED.replace(b":1}", b":2}"), b"",
    json.dumps(json.loads(STORED), indent=2).encode()])
def test_other_bytes_than_the_vread_fail_at_the_content(resource: bytes) -> None:
    verdict = ask(resource=resource)
    assert failing(verdict) == "content"
    assert "exact bytes" in verdict.steps[-1].detail


@pytest.mark.parametrize("receipt", [
    replace(RECEIPT, version_id=2), replace(RECEIPT, id="p2"), replace(RECEIPT, type="Person")])
def test_a_receipt_that_names_another_version_than_its_content_fails(receipt: Receipt) -> None:
    assert failing(ask(receipt)) == "content"


@pytest.mark.parametrize("data", [b"", b"{}", to_json(RECEIPT)[:-9], to_json(RECEIPT).replace(b'"0xab', b'"0xAB')])
def test_a_malformed_document_fails_at_the_first_step(data: bytes) -> None:
    assert failing(ask(data)) == "document"


@pytest.mark.parametrize(("change", "step"), [
    ({"content_commitment": bytes(32)}, "content"), ({"content_salt": bytes(32)}, "content"),
    ({"block_digest": bytes(32)}, "path"), ({"root": bytes(32)}, "path"), ({"path": RECEIPT.path[::-1]}, "path"),
    ({"path": RECEIPT.path[1:]}, "path"), ({"size_class": 1}, "path"), ({"manifest_digest": bytes(32)}, "head"),
    ({"prior_head": bytes(32)}, "head"), ({"head": bytes(32)}, "head"), ({"chain_id": 1}, "anchored"),
    ({"contract": "0x" + "00" * 20}, "anchored"), ({"custodian": "0x" + "00" * 20}, "anchored"),
    ({"block_number": NUMBER + 1}, "final"), ({"block_hash": bytes(32)}, "final"), ({"block_time_s": 5}, "final"),
])
def test_a_lie_in_any_member_is_found_at_its_step(change: dict[str, object], step: str) -> None:
    assert failing(ask(replace(RECEIPT, **change), Node(RECEIPT))) == step  # type: ignore[arg-type]


def test_without_the_resource_a_forged_commitment_fails_at_the_path() -> None:
    assert failing(ask(replace(RECEIPT, content_commitment=bytes(32)), resource=None)) == "path"


def test_a_forged_head_is_found_on_the_chain() -> None:
    """Consistent in itself, never anchored."""
    forged = replace(RECEIPT, prior_head=bytes(32),
                     head=rolling_head(bytes(32), RECEIPT.root, RECEIPT.manifest_digest, 0))
    assert ask(forged).code == 2
    assert failing(ask(forged, Node(RECEIPT))) == "anchored"


def _reverted(node: Node) -> None:
    assert node.mined
    node.mined = replace(node.mined, succeeded=False)


def _other_topic(node: Node) -> None:
    assert node.mined
    log = node.mined.logs[1]
    node.mined = replace(node.mined, logs=(replace(log, topics=(keccak(b"Other()"), log.topics[1])),))


def _no_logs(node: Node) -> None:
    assert node.mined
    node.mined = replace(node.mined, logs=())


@pytest.mark.parametrize("change", [_reverted, _other_topic, _no_logs])
def test_a_transaction_that_did_not_anchor_it_fails(change: Callable[[Node], None]) -> None:
    node = Node(RECEIPT)
    change(node)
    assert failing(ask(node=node)) == "anchored"


def test_too_few_confirmations_are_not_trusted_yet() -> None:
    for head, code in ((NUMBER, 2), (NUMBER + 10, 2), (NUMBER + 11, 0)):
        verdict = ask(node=Node(RECEIPT, head=head))
        assert verdict.code == code
    assert "11 of 12" in ask(node=Node(RECEIPT, head=NUMBER + 10)).steps[6].detail


def test_a_node_that_is_behind_is_not_trusted_yet() -> None:
    node = Node(RECEIPT, head=NUMBER - 5)
    node.mined = None
    node.blocks.clear()
    verdict = ask(node=node)
    assert (verdict.code, len(verdict.steps)) == (2, 7)
    assert "at block 95" in verdict.steps[5].detail


def test_a_node_that_keeps_no_old_events_is_not_trusted_yet() -> None:
    node = Node(RECEIPT)
    node.mined = None
    assert ask(node=node).code == 2


def test_a_made_up_transaction_in_a_true_block_fails() -> None:
    assert failing(ask(replace(RECEIPT, transaction=bytes(32)), Node(RECEIPT))) == "anchored"


def test_a_block_that_was_reorganised_away_is_false_once_the_chain_has_settled() -> None:
    node = Node(RECEIPT)
    node.mined = None
    node.blocks[NUMBER] = ChainBlock(hash=keccak(b"other"), time_s=1, transactions=())
    assert failing(ask(node=node)) == "anchored"
    assert ask(node=replace_head(node, NUMBER + 3)).code == 2


def replace_head(node: Node, head: int) -> Node:
    node.head = head
    return node


def test_an_anchor_that_a_reorganisation_moved_asks_for_a_new_receipt() -> None:
    node = Node(RECEIPT)
    moved = keccak(b"block 101")
    assert node.mined
    node.mined = replace(node.mined, block_number=NUMBER + 1, block_hash=moved)
    node.blocks[NUMBER + 1] = ChainBlock(hash=moved, time_s=1_763_000_009, transactions=(RECEIPT.transaction,))
    verdict = ask(node=node)
    assert failing(verdict) == "final"
    assert "new receipt" in verdict.steps[-1].detail


def test_a_node_in_the_middle_of_a_reorganisation_is_not_trusted_yet() -> None:
    node = Node(RECEIPT)
    node.blocks[NUMBER] = replace(node.blocks[NUMBER], hash=keccak(b"other"))
    assert ask(node=node).code == 2


def test_addresses_the_checker_trusts_are_compared() -> None:
    trusted = {"contract": CONTRACT.upper().replace("0X", "0x"), "custodian": CUSTODIAN}
    assert verify(RECEIPT, resource=None, chain=Node(RECEIPT), confirmations=1, **trusted).code == 0
    for name in trusted:
        verdict = verify(
            RECEIPT, resource=None, chain=Node(RECEIPT), confirmations=1, **{name: "0x" + "11" * 20})
        assert failing(verdict) == "anchored"


def test_the_topic_is_the_contracts_event() -> None:
    assert keccak(b"Anchored(address,bytes32,bytes32,uint8,bytes32)") == ANCHORED


# over JSON-RPC ------------------------------------------------------------------------------------------------------


def hexed(data: bytes) -> str:
    return "0x" + data.hex()


def answers() -> dict[str, object]:
    log = event(RECEIPT)
    return {
        "eth_chainId": "0x539", "eth_blockNumber": hex(NUMBER + 11),
        "eth_getTransactionReceipt": {
            "transactionHash": hexed(RECEIPT.transaction), "status": "0x1", "blockNumber": hex(NUMBER),
            "blockHash": hexed(RECEIPT.block_hash),
            "logs": [{"address": "0x" + CONTRACT[2:].upper(), "topics": [hexed(topic) for topic in log.topics],
                      "data": hexed(log.data)}]},
        "eth_getBlockByNumber": {
            "number": hex(NUMBER), "hash": hexed(RECEIPT.block_hash), "timestamp": hex(RECEIPT.block_time_s),
            "transactions": [hexed(RECEIPT.transaction)]},
    }


def rpc(results: dict[str, object]) -> RpcReceiptChain:
    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        result = results[body["method"]]
        if isinstance(result, Exception):
            raise result
        if isinstance(result, httpx.Response):
            return result
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": body["id"], "result": result})
    return RpcReceiptChain("http://node.test", timeout_s=1.0, transport=httpx.MockTransport(handle))


def test_a_receipt_verifies_over_json_rpc() -> None:
    with rpc(answers()) as chain:
        assert verify(RECEIPT, resource=STORED, chain=chain, confirmations=12).code == 0


def test_what_a_node_does_not_know_is_not_trusted_yet() -> None:
    results = answers() | {"eth_getTransactionReceipt": None, "eth_getBlockByNumber": None, "eth_blockNumber": "0x5"}
    assert verify(RECEIPT, resource=None, chain=rpc(results), confirmations=1).code == 2


@pytest.mark.parametrize("method", list(answers()))
@pytest.mark.parametrize("answer", [
    httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.Response(500), httpx.Response(302),
    httpx.Response(200, content=b"<html>"), httpx.Response(200, json=[]), httpx.Response(200, json={"id": 99}),
    httpx.Response(200, content=b"[" * 100_000), "0xzz", "12", 12, {}, [], {"logs": [1]}, "0x" + "f" * 40,
    httpx.Response(200, content=b"x" * (8 * 1024 * 1024 + 1)),
], ids=str)
def test_a_node_that_fails_or_lies_in_form_is_never_a_verdict(method: str, answer: object) -> None:
    """Adapters translate every error of their library; the verdict stays open."""
    if isinstance(answer, httpx.Response):
        answer = httpx.Response(answer.status_code, content=answer.content)
    results = answers() | {method: answer}
    if method == "eth_chainId" and answer == "0x" + "f" * 40:
        return
    verdict = verify(RECEIPT, resource=None, chain=rpc(results), confirmations=12)
    assert verdict.code == 2
    assert len(verdict.steps) == 7


def test_a_json_rpc_error_is_chain_unavailable() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": json.loads(request.content)["id"],
                                         "error": {"code": -32000, "message": "secret"}})
    chain = RpcReceiptChain("http://node.test", timeout_s=1.0, transport=httpx.MockTransport(handle))
    with pytest.raises(ChainUnavailable, match="-32000") as caught:
        chain.chain_id()
    assert "secret" not in str(caught.value)


def test_another_transaction_or_block_than_asked_for_is_refused() -> None:
    results = answers()
    chain = rpc(results)
    with pytest.raises(ChainUnavailable, match="another"):
        chain.transaction(bytes(32))
    with pytest.raises(ChainUnavailable, match="another"):
        chain.block(7)
