"""The adapter translates every error of its libraries and every word of a node (style 10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web3 import Web3

from gateway.errors import ChainReverted, ChainUnavailable, Misconfigured, TransactionRefused
from gateway.ledger.address import address
from gateway.ledger.calls import AddOperatorCall, AnchorCall, SetEndpointCall
from gateway.ledger.chain import Chain, Contracts
from gateway.ledger.contract_codec import ContractCodec, load_artifact
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode
from gateway.ledger.events import ZERO_HASH, Place
from gateway.ledger.keccak import keccak
from gateway.ledger.transactions import Fees, Revert

KEY = b"\x46" * 32
CONTRACTS = Contracts(record_anchor=address(b"\xa1" * 20), consent_registry=address(b"\xc1" * 20),
                      hospital_registry=address(b"\xd1" * 20))
ANCHOR = AnchorCall(expected_head=ZERO_HASH, root=b"\x01" * 32, manifest_digest=b"\x02" * 32, size_class=0)
FEES = Fees(max_fee=10**9, priority=1)
BLOCK = {"number": "0x5", "hash": "0x" + "aa" * 32, "parentHash": "0x" + "bb" * 32, "timestamp": "0x10",
         "baseFeePerGas": "0x64"}
Reply = Callable[[str, list[Any]], Any]


class Fault(Exception):
    """A JSON-RPC error the stub answers with."""

    def __init__(self, message: str, code: int = -32000, data: Any = None) -> None:
        self.error = {"code": code, "message": message} | ({} if data is None else {"data": data})
        super().__init__(message)


def chain_with(reply: Reply, *, chain_id: int = 77, batches: bool = True) -> EthereumChain:
    """An adapter over a stub node; ``reply`` answers what the defaults below do not."""

    def one(request: Any) -> Any:
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            return answer | {"result": reply(request["method"], request["params"])}
        except Fault as fault:
            return answer | {"error": fault.error}

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if isinstance(body, list):
            if not batches:
                return httpx.Response(200, json={"jsonrpc": "2.0", "id": None,
                                                 "error": {"code": -32600, "message": "no batches"}})
            return httpx.Response(200, json=[one(part) for part in body])
        return httpx.Response(200, json=one(body))

    node = EthereumNode("http://node.example", chain_id=chain_id, private_key=KEY,
                        transport=httpx.MockTransport(handle))
    return EthereumChain(node, CONTRACTS)


def replies(**results: Any) -> Reply:
    """Fixed results by method; an exception is raised, a callable is called with the parameters."""

    def reply(method: str, params: list[Any]) -> Any:
        if method == "eth_chainId" and method not in results:
            return "0x4d"
        result = results[method]
        if isinstance(result, Exception):
            raise result
        return result(params) if callable(result) else result

    return reply


# -- every error of the libraries -------------------------------------------------------------------------------------

EVERY_CALL: dict[str, Callable[[Chain], object]] = {
    "head": lambda c: c.head(), "block": lambda c: c.block(1), "block_by_hash": lambda c: c.block_by_hash(ZERO_HASH),
    "logs": lambda c: c.logs(0, 1), "anchor_head": lambda c: c.anchor_head(c.operator),
    "is_granted": lambda c: c.is_granted(c.operator, ZERO_HASH, ZERO_HASH),
    "granted_count": lambda c: c.granted_count(c.operator), "epoch": lambda c: c.epoch(c.operator),
    "is_nonce_used": lambda c: c.is_nonce_used(c.operator, 1), "member_of": lambda c: c.member_of(),
    "nonce": lambda c: c.nonce("pending"), "balance": lambda c: c.balance(), "fees": lambda c: c.fees(),
    "estimate": lambda c: c.estimate(ANCHOR), "send": lambda c: c.send(ANCHOR, nonce=0, fees=FEES),
    "transaction": lambda c: c.transaction(ZERO_HASH), "receipt": lambda c: c.receipt(ZERO_HASH),
}
TRANSPORT_ERRORS: list[Callable[[httpx.Request], httpx.Response]] = []


def _raising(error: type[Exception], *arguments: object) -> Callable[[httpx.Request], httpx.Response]:
    def handle(request: httpx.Request) -> httpx.Response:
        raise error(*arguments)

    handle.__name__ = error.__name__
    return handle


def _answering(status: int, body: bytes) -> Callable[[httpx.Request], httpx.Response]:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=body)

    handle.__name__ = f"{status} {body[:24]!r}"
    return handle


def _concrete(root: type[Exception]) -> list[type[Exception]]:
    return [leaf for child in root.__subclasses__() for leaf in (_concrete(child) or [child])]


HTTPX_ERRORS = sorted(_concrete(httpx.HTTPError), key=lambda error: error.__name__)
HANDLERS = [*(_raising(error, "down") for error in HTTPX_ERRORS if error is not httpx.HTTPStatusError),
            _raising(RuntimeError, "Cannot send a request, as the client has been closed."),
            _answering(200, b""), _answering(502, b"<html>bad gateway</html>"), _answering(200, b"[" * 5_000),
            _answering(200, b"7"), _answering(200, b"{}"), _answering(200, b"[]"), _answering(200, b"\xff\xfe"),
            _answering(200, b'{"jsonrpc":"2.0","id":1,"error":"words"}'),
            _answering(200, b'{"jsonrpc":"2.0","id":1,"error":{"message":5}}'),
            *(_answering(200, b'{"jsonrpc":"2.0","id":1,"result":' + result + b"}") for result in (
                b"7", b'"0x"', b'"0xzz"', b"{}", b"[]", b"[7]", b'{"hash":"0x1"}', b"true", b'[{"address":"0x1"}]'))]


def test_every_httpx_error_is_tried() -> None:
    assert {"ConnectTimeout", "ReadTimeout", "ConnectError", "RemoteProtocolError", "PoolTimeout"} <= {
        error.__name__ for error in HTTPX_ERRORS}


@pytest.mark.parametrize("method", EVERY_CALL)
@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
def test_no_library_error_passes_the_adapter(handler: Callable[[httpx.Request], httpx.Response], method: str) -> None:
    chain = chain_with(replies())
    chain._node._rpc._client = httpx.Client(transport=httpx.MockTransport(handler))
    try:
        answer = EVERY_CALL[method](chain)
    except (ChainUnavailable, ChainReverted, TransactionRefused, Misconfigured):
        return
    # what is left are answers that fit: null for an unknown block, an empty list of logs, a whole number
    assert answer is None or answer == () or isinstance(answer, bool | int | bytes | str | Fees)


def test_no_message_shows_the_address_of_the_node() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to user:secret@node.example", request=request)

    with pytest.raises(ChainUnavailable) as caught:
        EthereumNode("http://user:secret@node.example", chain_id=1, private_key=KEY,
                     transport=httpx.MockTransport(refuse))
    assert "secret" not in str(caught.value)


def test_redirects_are_not_followed() -> None:
    def redirect(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "node.example"
        return httpx.Response(302, headers={"Location": "http://elsewhere.example/"})

    with pytest.raises(ChainUnavailable):
        EthereumNode("http://node.example", chain_id=1, private_key=KEY, transport=httpx.MockTransport(redirect))


@pytest.mark.parametrize("url", ["", "node", "ftp://node.example", "http://", "http://[::1", "ws://node.example"])
def test_an_address_that_is_no_http_url_is_a_setting_to_mend(url: str) -> None:
    with pytest.raises(Misconfigured):
        EthereumNode(url, chain_id=1, private_key=KEY)


@pytest.mark.parametrize("key", [b"", b"\x00" * 32, b"\xff" * 32, b"\x01" * 31])
def test_a_key_that_is_none_is_refused_unseen(key: bytes) -> None:
    with pytest.raises(Misconfigured) as caught:
        EthereumNode("http://node.example", chain_id=1, private_key=key)
    assert not key or key.hex() not in str(caught.value)


# -- which chain ------------------------------------------------------------------------------------------------------


def test_another_chain_is_refused_at_connect() -> None:
    with pytest.raises(Misconfigured, match="chain 77, and chain 78"):
        chain_with(replies(), chain_id=78)


@pytest.mark.parametrize("batches", [True, False])
def test_a_node_that_changes_its_chain_is_noticed_at_the_next_head(batches: bool) -> None:
    ids = iter(["0x4d", "0x4d", "0x1"])
    chain = chain_with(replies(eth_chainId=lambda _: next(ids), eth_getBlockByNumber=BLOCK), batches=batches)
    assert chain.head().number == 5
    with pytest.raises(Misconfigured, match="chain 1,"):
        chain.head()


def test_a_side_block_is_not_canonical() -> None:
    side = BLOCK | {"hash": "0x" + "cc" * 32}
    chain = chain_with(replies(eth_getBlockByHash=side, eth_getBlockByNumber=BLOCK))
    assert chain.block_by_hash(b"\xcc" * 32) is None


# -- words of refusal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "reason"), [
    ("nonce too low: next nonce 5, tx nonce 4", "nonce-too-low"), ("NONCE_TOO_LOW", "nonce-too-low"),
    ("replacement transaction underpriced", "underpriced"), ("transaction underpriced", "underpriced"),
    ("max fee per gas less than block base fee", "underpriced"), ("Gas price below configured minimum", "underpriced"),
    ("TRANSACTION_REPLACEMENT_UNDERPRICED", "underpriced"),
    ("insufficient funds for gas * price + value", "insufficient-funds"),
    ("Upfront cost exceeds account balance", "insufficient-funds"),
    ("Insufficient funds for gas * price + value", "insufficient-funds"),
    ("txpool is full", "other"), ("exceeds block gas limit", "other"),
])
def test_a_nodes_refusal_has_a_reason(words: str, reason: str) -> None:
    chain = chain_with(replies(eth_sendRawTransaction=Fault(words), eth_getTransactionByHash=None))
    with pytest.raises(TransactionRefused) as caught:
        chain.send(ANCHOR, nonce=4, fees=FEES)
    assert caught.value.reason == reason


@pytest.mark.parametrize("words", ["already known", "Known transaction", "ALREADY_EXISTS: already known",
                                   "transaction already imported"])
def test_what_the_node_has_already_counts_as_sent(words: str) -> None:
    chain = chain_with(replies(eth_sendRawTransaction=Fault(words)))
    signed = chain.sign(ANCHOR, nonce=4, fees=FEES)
    assert chain.broadcast(signed) == signed.hash


def test_a_nonce_spent_by_this_very_transaction_counts_as_sent() -> None:
    mined = {"hash": "0x" + "00" * 32, "nonce": "0x4", "from": "0x" + "11" * 20, "blockHash": "0x" + "aa" * 32,
             "blockNumber": "0x5"}
    chain = chain_with(replies(eth_sendRawTransaction=Fault("nonce too low"), eth_getTransactionByHash=mined))
    signed = chain.sign(ANCHOR, nonce=4, fees=FEES)
    assert chain.broadcast(signed) == signed.hash


def test_a_node_that_answers_for_another_transaction_is_not_believed() -> None:
    chain = chain_with(replies(eth_sendRawTransaction="0x" + "00" * 32))
    with pytest.raises(ChainUnavailable):
        chain.send(ANCHOR, nonce=4, fees=FEES)


# -- fees -------------------------------------------------------------------------------------------------------------


def test_fees_leave_room_for_the_base_fee_to_double() -> None:
    chain = chain_with(replies(eth_getBlockByNumber=BLOCK, eth_maxPriorityFeePerGas="0x7"))
    assert chain.fees() == Fees(max_fee=207, priority=7)


def test_a_node_without_the_priority_method_gets_one_gwei() -> None:
    chain = chain_with(replies(eth_getBlockByNumber=BLOCK,
                               eth_maxPriorityFeePerGas=Fault("method not found", -32601)))
    assert chain.fees() == Fees(max_fee=200 + 10**9, priority=10**9)


def test_a_chain_without_base_fee_has_a_gas_price() -> None:
    legacy = {name: value for name, value in BLOCK.items() if name != "baseFeePerGas"}
    chain = chain_with(replies(eth_getBlockByNumber=legacy, eth_gasPrice="0x9"))
    assert chain.fees() == Fees(max_fee=9, priority=None)
    signed = chain.sign(ANCHOR, nonce=4, fees=chain.fees())
    assert signed.raw[0] >= 0xC0  # an untyped transaction (EIP-2718)
    assert chain.sign(ANCHOR, nonce=4, fees=FEES).raw[0] == 2


@given(fee=st.integers(0, 10**15), priority=st.none() | st.integers(0, 10**12), percent=st.integers(10, 200))
def test_a_bump_is_what_a_node_demands_of_a_replacement(fee: int, priority: int | None, percent: int) -> None:
    bumped = Fees(max_fee=fee, priority=priority).bumped(percent)
    assert bumped.max_fee * 100 >= fee * (100 + percent)
    assert bumped.max_fee > fee
    if priority is not None:
        assert bumped.priority is not None
        assert bumped.priority * 100 >= priority * (100 + percent)


# -- reverts ----------------------------------------------------------------------------------------------------------

MISMATCH = "0x" + (keccak(b"HeadMismatch(bytes32,bytes32)")[:4] + b"\x01" * 32 + b"\x02" * 32).hex()


@pytest.mark.parametrize("fault", [
    Fault("execution reverted", 3, MISMATCH), Fault("execution reverted: custom error", -32000, MISMATCH),
    Fault("Execution reverted", -32000, MISMATCH), Fault("VM error", -32015, "Reverted " + MISMATCH),
    Fault("reverted", -32603, {"data": MISMATCH}),
])
def test_a_revert_is_understood_however_a_node_puts_it(fault: Fault) -> None:
    chain = chain_with(replies(eth_estimateGas=fault))
    with pytest.raises(ChainReverted) as caught:
        chain.estimate(ANCHOR)
    assert (caught.value.name, caught.value.arguments) == ("HeadMismatch", (b"\x01" * 32, b"\x02" * 32))


def test_a_machine_failure_is_no_revert() -> None:
    with pytest.raises(ChainUnavailable):
        chain_with(replies(eth_estimateGas=Fault("out of gas"))).estimate(ANCHOR)


@pytest.mark.parametrize(("data", "revert"), [
    ("", Revert(name="Reverted")),
    ("08c379a0" + f"{32:064x}{2:064x}6e6f" + "00" * 30, Revert(name="Error", arguments=("no",))),
    ("4e487b71" + f"{17:064x}", Revert(name="Panic", arguments=(17,))),
    ("deadbeef", Revert(name="Unknown", arguments=(bytes.fromhex("deadbeef"),))),
    (MISMATCH[2:20], Revert(name="Unknown", arguments=(bytes.fromhex(MISMATCH[2:20]),))),
    (keccak(b"NotMember(address)")[:4].hex() + "00" * 12 + "ab" * 20,
     Revert(name="NotMember", arguments=("0x" + "ab" * 20,))),
])
def test_revert_data_has_a_name(data: str, revert: Revert) -> None:
    assert ContractCodec(CONTRACTS).revert(bytes.fromhex(data)) == revert


@given(st.binary(max_size=200))
def test_any_revert_data_has_some_name(data: bytes) -> None:
    assert CODEC.revert(data).name


CODEC = ContractCodec(CONTRACTS)


@pytest.mark.parametrize("name", ["RecordAnchor", "ConsentRegistry", "HospitalRegistry"])
def test_every_error_of_the_contracts_is_known(name: str) -> None:
    for entry in load_artifact(name).abi:
        if entry["type"] == "error":
            types = [part["type"] for part in entry["inputs"]]
            selector = keccak(f"{entry['name']}({','.join(types)})".encode())[:4]
            assert CODEC.revert(selector + bytes(32) * len(types)).name == entry["name"]


# -- receipts: why it reverted ----------------------------------------------------------------------------------------


def test_the_reason_is_sought_before_the_block_and_then_after() -> None:
    """Two anchors in one block: the second only fails on the state the first left."""
    asked = []

    def call(params: list[Any]) -> str:
        asked.append(params[1])
        if params[1] == "0x4":
            return "0x"
        raise Fault("execution reverted", 3, MISMATCH)

    chain = chain_with(replies(
        eth_getTransactionReceipt={"blockNumber": "0x5", "blockHash": "0x" + "aa" * 32, "gasUsed": "0x10",
                                   "status": "0x0", "logs": [], "contractAddress": None},
        eth_getTransactionByHash={"from": "0x" + "11" * 20, "to": CONTRACTS.record_anchor, "input": "0x", "gas": "0x20",
                                  "value": "0x0"}, eth_call=call))
    receipt = chain.receipt(ZERO_HASH)
    assert receipt is not None
    assert receipt.revert == Revert(name="HeadMismatch", arguments=(b"\x01" * 32, b"\x02" * 32))
    assert asked == ["0x4", "0x5"]


def test_a_receipt_that_is_not_in_a_block_is_none() -> None:
    chain = chain_with(replies(eth_getTransactionReceipt={"blockHash": None}))
    assert chain.receipt(ZERO_HASH) is None


# -- logs -------------------------------------------------------------------------------------------------------------


def test_a_range_that_is_too_much_is_halved() -> None:
    asked: list[tuple[int, int]] = []

    def logs(params: list[Any]) -> list[Any]:
        first, last = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
        if last - first >= 100:
            raise Fault("query returned more than 10000 results", -32005)
        asked.append((first, last))
        return []

    chain = chain_with(replies(eth_getLogs=logs, eth_getBlockByNumber=BLOCK | {"number": "0x3e8"}))
    assert chain.logs(0, 2_000) == ()
    assert asked[0][0] == 0
    assert asked[-1][1] == 1_000
    assert all(after[0] == before[1] + 1 for before, after in pairwise(asked))


def test_a_range_that_always_fails_ends() -> None:
    chain = chain_with(replies(eth_getLogs=Fault("no"), eth_getBlockByNumber=BLOCK))
    with pytest.raises(ChainUnavailable):
        chain.logs(0, 5)


def test_foreign_removed_and_unfollowed_logs_are_passed_over() -> None:
    log = {"blockNumber": "0x5", "blockHash": "0x" + "aa" * 32, "transactionHash": "0x" + "cc" * 32,
           "logIndex": "0x0", "address": CONTRACTS.record_anchor, "topics": ["0x" + "09" * 32], "data": "0x"}
    anchored = log | {"topics": ["0x" + keccak(b"Anchored(address,bytes32,bytes32,uint8,bytes32)").hex(),
                                 "0x" + "00" * 12 + "11" * 20], "data": "0x" + "00" * 128}
    chain = chain_with(replies(eth_getBlockByNumber=BLOCK, eth_getLogs=[
        log, anchored | {"removed": True}, anchored | {"address": "0x" + "99" * 20}, log | {"topics": []}]))
    assert chain.logs(0, 5) == ()
    assert len(chain_with(replies(eth_getBlockByNumber=BLOCK, eth_getLogs=[anchored])).logs(0, 5)) == 1
    damaged = anchored | {"data": "0x00"}
    with pytest.raises(ChainUnavailable):
        chain_with(replies(eth_getBlockByNumber=BLOCK, eth_getLogs=[damaged])).logs(0, 5)


# -- encoding ---------------------------------------------------------------------------------------------------------


def test_calls_are_encoded_as_web3_would() -> None:
    contract = Web3().eth.contract(abi=load_artifact("RecordAnchor").abi)
    encoded = CODEC.encode(ANCHOR)
    assert encoded.to == CONTRACTS.record_anchor
    assert contract.decode_function_input(encoded.payload)[1] == {
        "expectedHead": ZERO_HASH, "root": b"\x01" * 32, "manifestDigest": b"\x02" * 32, "sizeClass": 0}


@pytest.mark.parametrize("call", [
    AnchorCall(expected_head=b"", root=b"\x01" * 33, manifest_digest=b"", size_class=0),
    AnchorCall(expected_head=ZERO_HASH, root=ZERO_HASH, manifest_digest=ZERO_HASH, size_class=256),
    AnchorCall(expected_head=ZERO_HASH, root=ZERO_HASH, manifest_digest=ZERO_HASH, size_class=-1),
    SetEndpointCall(endpoint_digest=b"\x01" * 40), AddOperatorCall(operator=address(b"\x01" * 20)),
])
def test_a_value_outside_its_abi_type_is_refused_before_signing(call: Any) -> None:
    chain = chain_with(replies())
    if isinstance(call, AddOperatorCall):
        assert chain.sign(call, nonce=0, fees=FEES).raw
        return
    with pytest.raises(TransactionRefused):
        chain.sign(call, nonce=0, fees=FEES)


def test_an_event_is_bound_to_its_own_contract() -> None:
    place = Place(block_number=1, block_hash=ZERO_HASH, tx_hash=ZERO_HASH, log_index=0)
    topics = [keccak(b"Anchored(address,bytes32,bytes32,uint8,bytes32)"), bytes(12) + b"\x11" * 20]
    assert CODEC.event(place, CONTRACTS.record_anchor, topics, bytes(128)) is not None
    assert CODEC.event(place, CONTRACTS.consent_registry, topics, bytes(128)) is None
