"""The embedded chain's JSON-RPC: shapes, error codes, and never a traceback.

https://www.jsonrpc.org/specification, https://ethereum.github.io/execution-apis/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web3 import Web3

from gateway.ledger.devchain.accounts import ensure_accounts
from gateway.ledger.devchain.node import HALF_N, Node
from gateway.ledger.devchain.rpc import MAX_BATCH, Rpc

RETURNS_42 = "602a60005260206000f3"


class Chain:
    """A node, its funded key, and a way to ask."""

    def __init__(self, folder: Path) -> None:
        self.accounts = ensure_accounts(folder / "keys.json")
        self.node = Node(folder / "chain.sqlite", [bytes.fromhex(a.address[2:]) for a in self.accounts], lead_s=3600)
        self.rpc = Rpc(self.node)
        self.sender = self.accounts[0].address

    def answer(self, method: str, *params: Any, **more: Any) -> Any:
        body = self.rpc.answer(json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": list(params),
                                           **more}).encode())
        assert body is not None
        return json.loads(body)

    def ask(self, method: str, *params: Any) -> Any:
        answer = self.answer(method, *params)
        assert answer["id"] == 7
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def error(self, method: str, *params: Any) -> tuple[int, str]:
        error = self.answer(method, *params)["error"]
        return error["code"], error["message"]

    def raw(self, *, key: int = 0, **fields: Any) -> str:
        account = self.accounts[key]
        base = {"type": 2, "chainId": self.node.chain_id, "gas": 100_000, "value": 0, "data": "0x",
                "maxFeePerGas": 10**10, "maxPriorityFeePerGas": 10**6, "to": "0x" + "55" * 20,
                "nonce": int(self.ask("eth_getTransactionCount", account.address, "pending"), 16)}
        base.update(fields)
        if base["to"] is None:
            del base["to"]
        for name in [name for name, value in base.items() if value is None]:
            del base[name]
        return "0x" + bytes(Account.from_key(account.private_key).sign_transaction(base).raw_transaction).hex()

    def send(self, **fields: Any) -> Any:
        return self.ask("eth_getTransactionReceipt", self.ask("eth_sendRawTransaction", self.raw(**fields)))

    def create(self, runtime: str) -> str:
        size = len(runtime) // 2
        initcode = f"60{size:02x}600c60003960{size:02x}6000f3" + runtime
        address = self.send(to=None, data="0x" + initcode)["contractAddress"]
        assert self.ask("eth_getCode", address, "latest") == "0x" + runtime
        return str(address)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    made = Chain(tmp_path_factory.mktemp("rpc"))
    yield made
    made.node.close()


# -- JSON-RPC 2.0 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "code"), [
    (b"", -32700), (b"{", -32700), (b"\xff\xfe", -32700), (b"[" * 100_000, -32700), (b"[]", -32600), (b"1", -32600),
    (b'"x"', -32600), (b"{}", -32600), (b'{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}', -32600),
    (b'{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":5}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"eth_nope"}', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":{"a":1}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[1]}', -32602),
])
def test_what_is_no_request_gets_its_code(chain: Chain, body: bytes, code: int) -> None:
    answer = chain.rpc.answer(body)
    assert answer is not None
    assert json.loads(answer)["error"]["code"] == code


def test_a_batch_is_answered_in_order_without_its_notifications(chain: Chain) -> None:
    answer = chain.rpc.answer(json.dumps([
        {"jsonrpc": "2.0", "id": "a", "method": "eth_chainId"}, {"jsonrpc": "2.0", "method": "eth_chainId"}, 3,
        {"jsonrpc": "2.0", "id": None, "method": "net_version"}]).encode())
    assert answer is not None
    shown = json.loads(answer)
    assert [one["id"] for one in shown] == ["a", None, None]
    assert shown[1]["error"]["code"] == -32600
    assert chain.rpc.answer(b'[{"jsonrpc":"2.0","method":"eth_chainId"}]') is None


def test_a_batch_has_a_limit(chain: Chain) -> None:
    answer = chain.rpc.answer(json.dumps([{"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}] * (MAX_BATCH + 1))
                              .encode())
    assert answer is not None
    assert json.loads(answer)["error"]["code"] == -32600


def test_an_unexpected_failure_says_nothing_of_itself(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.node, "balance", lambda *_: 1 / 0)
    assert chain.error("eth_getBalance", chain.sender) == (-32603, "internal error")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.sampled_from(
        ["0x", "0x0", "0x00", "latest", "pending", "0x" + "11" * 20, "0x" + "11" * 32, "0x" + "f" * 64, "0xzz"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["to", "from", "data", "input", "gas", "value", "address", "topics", "fromBlock", "toBlock", "blockHash",
         "blockNumber"]), inner, max_size=4), max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_parameters_make_it_stumble(chain: Chain, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(sorted(chain.rpc._methods)))
    params = data.draw(st.lists(JSON_VALUES, max_size=4))
    answer = chain.answer(method, *params)
    assert answer.get("error", {}).get("code") != -32603, (method, params)


# -- what a client needs ----------------------------------------------------------------------------------------------


def test_web3_reads_blocks_transactions_and_receipts(chain: Chain) -> None:
    """web3.py's own formatters refuse malformed fields."""
    from web3.providers.base import JSONBaseProvider

    class Provider(JSONBaseProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            answer = chain.rpc.answer(self.encode_rpc_request(method, params))
            assert answer is not None
            return self.decode_rpc_response(answer)

    web3 = Web3(Provider())
    receipt = web3.eth.wait_for_transaction_receipt(web3.eth.send_raw_transaction(chain.raw(value=5)))  # type: ignore[arg-type]  # hex text is taken
    assert receipt["status"] == 1
    assert receipt["gasUsed"] == 21_000
    block = web3.eth.get_block(receipt["blockNumber"], full_transactions=True)
    assert block["hash"] == receipt["blockHash"]
    assert block["transactions"][0]["hash"] == receipt["transactionHash"]  # type: ignore[index]  # full transactions
    assert web3.eth.chain_id == chain.node.chain_id
    assert web3.eth.fee_history(4, "latest", [50])["oldestBlock"] >= 0
    assert web3.eth.get_block("pending")["number"] == web3.eth.block_number + 1
    assert web3.eth.syncing is False
    assert list(web3.eth.accounts) == []
    assert web3.eth.get_block("earliest")["number"] == 0


def test_a_header_hash_can_be_recomputed_from_what_is_shown(chain: Chain) -> None:
    import rlp
    from eth_hash.auto import keccak

    shown = chain.ask("eth_getBlockByNumber", "latest", False)
    fields = ["parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom",
              "difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce",
              "baseFeePerGas", "withdrawalsRoot"]
    numbers = {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas"}
    header = [int(shown[f], 16) if f in numbers else bytes.fromhex(shown[f][2:]) for f in fields]
    assert "0x" + keccak(rlp.encode(header)).hex() == shown["hash"]


def test_block_tags_and_eip_1898(chain: Chain) -> None:
    chain.send(value=1)
    latest = chain.ask("eth_getBlockByNumber", "latest", False)
    for tag in ("safe", "finalized", latest["number"]):
        assert chain.ask("eth_getBlockByNumber", tag, False) == latest
    assert chain.ask("eth_getBlockByHash", latest["hash"], False) == latest
    by_hash = chain.ask("eth_getBalance", chain.sender, {"blockHash": latest["hash"]})
    assert by_hash == chain.ask("eth_getBalance", chain.sender, {"blockNumber": latest["number"]})
    assert chain.ask("eth_getBlockByNumber", "0xffffff", False) is None
    assert chain.error("eth_getBalance", chain.sender, "0xffffff") == (-32000, "header not found")


def test_block_times_are_the_clocks_and_strictly_increase(tmp_path: Path) -> None:
    now = [1_900_000_000.5]
    accounts = ensure_accounts(tmp_path / "keys.json")
    node = Node(tmp_path / "chain.sqlite", [bytes.fromhex(a.address[2:]) for a in accounts], clock=lambda: now[0])
    made = Chain.__new__(Chain)
    made.accounts, made.node, made.rpc, made.sender = accounts, node, Rpc(node), accounts[0].address
    times = [int(made.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)]
    for jump in (0, 0, 100, -50, 0):
        now[0] += jump
        made.send(value=1)
        times.append(int(made.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16))
    assert times == sorted(set(times))
    assert times[:3] == [1_900_000_000, 1_900_000_001, 1_900_000_002]
    assert times[3] == 1_900_000_100
    node.close()


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_returns_and_changes_nothing(chain: Chain) -> None:
    address = chain.create(RETURNS_42)
    head = chain.ask("eth_blockNumber")
    assert int(chain.ask("eth_call", {"to": address}, "latest"), 16) == 42
    assert int(chain.ask("eth_call", {"to": address, "from": chain.sender}, "pending"), 16) == 42
    assert chain.ask("eth_blockNumber") == head


def test_a_revert_is_told_as_geth_tells_it(chain: Chain) -> None:
    # Error("no") put together in memory, then REVERT
    words = "08c379a0" + f"{32:064x}" + f"{2:064x}" + "6e6f" + "00" * 30
    data = bytes.fromhex(words)
    stores = "".join(f"7f{data[at:at + 32].ljust(32, bytes(1)).hex()}60{at:02x}52" for at in range(0, len(data), 32))
    address = chain.create(stores + f"60{len(data):02x}6000fd")
    error = chain.answer("eth_call", {"to": address}, "latest")["error"]
    assert error == {"code": 3, "message": "execution reverted: no", "data": "0x" + words}
    assert chain.error("eth_estimateGas", {"to": address})[0] == 3
    silent = chain.create("60006000fd")
    assert chain.answer("eth_call", {"to": silent})["error"] == {
        "code": 3, "message": "execution reverted", "data": "0x"}


def test_the_machines_own_failures_have_its_words(chain: Chain) -> None:
    assert chain.error("eth_call", {"to": chain.create("fe")}) == (-32000, "invalid opcode")
    assert chain.error("eth_call", {"to": chain.create("5b600056")}) == (-32000, "out of gas")
    assert chain.error("eth_call", {"to": chain.sender, "value": hex(10**30)})[0] == -32000


def test_an_estimate_is_the_gas_used(chain: Chain) -> None:
    message = {"from": chain.sender, "to": "0x" + "56" * 20, "value": "0x1"}
    assert chain.ask("eth_estimateGas", message) == hex(21_000)
    creation = {"from": chain.sender, "data": "0x600a600c600039600a6000f3" + RETURNS_42}
    estimate = int(chain.ask("eth_estimateGas", creation), 16)
    receipt = chain.send(to=None, data=creation["data"], gas=estimate)
    assert receipt["status"] == "0x1"
    assert int(receipt["gasUsed"], 16) <= estimate <= int(receipt["gasUsed"], 16) * 1.02


# -- logs -------------------------------------------------------------------------------------------------------------


def test_logs_are_found_by_address_topic_and_block(chain: Chain) -> None:
    emitter = chain.create("60426041602060006000a2" "602060006000a0" "00")  # LOG2(0, 0x20, ...) and LOG0
    before = int(chain.ask("eth_blockNumber"), 16)
    batch = [{"jsonrpc": "2.0", "id": i, "method": "eth_sendRawTransaction", "params": [
        chain.raw(to=Web3.to_checksum_address(emitter), nonce=int(
            chain.ask("eth_getTransactionCount", chain.sender, "latest"), 16) + i)]} for i in range(3)]
    answer = chain.rpc.answer(json.dumps(batch).encode())
    assert answer is not None
    hashes = [one["result"] for one in json.loads(answer)]
    receipts = [chain.ask("eth_getTransactionReceipt", tx_hash) for tx_hash in hashes]
    assert len({receipt["blockHash"] for receipt in receipts}) == 1  # a batch shares a block
    logs = chain.ask("eth_getLogs", {"fromBlock": hex(before), "address": emitter})
    assert [log["logIndex"] for log in logs] == [hex(i) for i in range(6)]
    assert [log for receipt in receipts for log in receipt["logs"]] == logs
    topics = logs[0]["topics"]
    assert len(topics) == 2
    for wanted in ([None, topics[1]], topics, [[topics[0], "0x" + "08" * 32], None]):
        assert chain.ask("eth_getLogs", {"fromBlock": hex(before), "topics": wanted}) == logs[::2]
    assert chain.ask("eth_getLogs", {"fromBlock": hex(before), "topics": ["0x" + "09" * 32]}) == []
    assert chain.ask("eth_getLogs", {"blockHash": receipts[0]["blockHash"], "address": [emitter]}) == logs
    assert chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": hex(before)}) == []


# -- transactions -----------------------------------------------------------------------------------------------------


def test_a_sent_transaction_is_mined_when_it_is_answered(chain: Chain) -> None:
    receipt = chain.send(value=3)
    assert receipt["status"] == "0x1"
    shown = chain.ask("eth_getTransactionByHash", receipt["transactionHash"])
    assert shown["blockHash"] == receipt["blockHash"]
    assert shown["from"] == chain.sender


def test_legacy_and_access_list_transactions_are_taken(chain: Chain) -> None:
    legacy = chain.send(type=None, gasPrice=10**10, maxFeePerGas=None, maxPriorityFeePerGas=None)
    assert (legacy["status"], legacy["type"]) == ("0x1", "0x0")
    listed = chain.send(type=1, gasPrice=10**10, maxFeePerGas=None, maxPriorityFeePerGas=None, accessList=[
        {"address": "0x" + "11" * 20, "storageKeys": ["0x" + "00" * 32]}])
    assert (listed["status"], listed["type"]) == ("0x1", "0x1")
    shown = chain.ask("eth_getTransactionByHash", listed["transactionHash"])
    assert shown["accessList"] == [{"address": "0x" + "11" * 20, "storageKeys": ["0x" + "00" * 32]}]


@pytest.mark.parametrize(("fields", "words"), [
    ({"chainId": 1}, "invalid chain id"),
    ({"type": None, "chainId": None, "gasPrice": 10**10, "maxFeePerGas": None, "maxPriorityFeePerGas": None},
     "replay-protected"),
    ({"nonce": 0}, "nonce too low"), ({"nonce": 10**6}, "nonce too high"),
    ({"value": 10**30}, "insufficient funds"), ({"gas": 20_000}, "intrinsic gas too low"),
    ({"gas": 40_000_000}, "exceeds block gas limit"), ({"maxFeePerGas": 1, "maxPriorityFeePerGas": 1}, "base fee"),
    ({"maxPriorityFeePerGas": 10**11}, "higher than max fee"), ({"data": "0x" + "00" * 140_000}, "oversized"),
])
def test_what_can_not_be_mined_is_refused_with_geths_words(chain: Chain, fields: dict[str, Any], words: str) -> None:
    chain.send(value=1)
    code, message = chain.error("eth_sendRawTransaction", chain.raw(**fields))
    assert code == -32000
    assert words in message


def test_a_signature_with_high_s_is_refused(chain: Chain) -> None:
    """EIP-2: otherwise anyone could give a transaction a second hash."""
    import rlp

    raw = bytes.fromhex(chain.raw(value=1)[2:])
    fields = rlp.decode(raw[1:])
    order = 2 * HALF_N + 1
    fields[-1] = (order - int.from_bytes(fields[-1], "big")).to_bytes(32, "big")
    fields[-3] = b"" if fields[-3] else b"\x01"
    assert chain.error("eth_sendRawTransaction", "0x" + (raw[:1] + rlp.encode(fields)).hex())[0] == -32000


def test_the_same_transaction_twice_is_known(chain: Chain) -> None:
    raw = chain.raw(value=2)
    chain.ask("eth_sendRawTransaction", raw)
    assert chain.error("eth_sendRawTransaction", raw) == (-32000, "already known")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=200), prefix=st.sampled_from([b"", b"\x01", b"\x02", b"\x03", b"\xf8"]))
def test_junk_is_no_transaction(chain: Chain, junk: bytes, prefix: bytes) -> None:
    assert chain.error("eth_sendRawTransaction", "0x" + (prefix + junk).hex())[0] in (-32000, -32602)


def test_two_that_cannot_both_be_paid_leave_the_first(chain: Chain) -> None:
    poor = Account.create()
    chain.send(to=poor.address, value=3 * 21_000 * 10**9)
    batch = []
    for nonce in range(2):
        signed = poor.sign_transaction({
            "type": 2, "chainId": chain.node.chain_id, "nonce": nonce, "to": "0x" + "55" * 20, "value": 21_000 * 10**9,
            "gas": 21_000, "maxFeePerGas": 10**9, "maxPriorityFeePerGas": 10**9})
        batch.append({"jsonrpc": "2.0", "id": nonce, "method": "eth_sendRawTransaction",
                      "params": ["0x" + bytes(signed.raw_transaction).hex()]})
    answer = chain.rpc.answer(json.dumps(batch).encode())
    assert answer is not None
    first, second = json.loads(answer)
    assert "result" in first
    assert second["error"]["code"] == -32000
    assert chain.ask("eth_getTransactionCount", poor.address.lower(), "pending") == "0x1"
