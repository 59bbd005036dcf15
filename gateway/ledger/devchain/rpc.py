"""JSON-RPC 2.0 over a ``Node``: the methods web3.py, a wallet and the gateway's own adapter use.

Owns the method table, parameters, batches and error codes (geth's: 3 with data for a revert, -32000 for what the node
refuses); refuses unknown methods, signing by the node (``eth_accounts`` is empty) and everything that would change the
chain but a raw transaction. An unexpected failure is logged and answered -32603 without a word about it.
Spec: https://www.jsonrpc.org/specification, https://ethereum.github.io/execution-apis/
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import jiter
from eth.abc import BlockHeaderAPI
from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError
from eth_hash.auto import keccak

from gateway.ledger.devchain import shapes
from gateway.ledger.devchain.evm import GAS_LIMIT, Message, Ran, fee_of
from gateway.ledger.devchain.node import Node
from gateway.ledger.devchain.pool import PoolRefused
from gateway.ledger.devchain.shapes import BadParams, Json, data, quantity, show

LOG = logging.getLogger(__name__)
CLIENT: Final = "gateway-devchain/1"
MAX_BATCH: Final = 1_000
MAX_LOGS: Final = 10_000
PRIORITY_FEE: Final = 1_000_000
ERROR_STRING: Final = bytes.fromhex("08c379a0")
MAX_TOPICS: Final = 4
Params = Sequence[Any]  # JSON values, checked method by method


class RpcError(Exception):
    """Answered as JSON-RPC's ``error``."""

    def __init__(self, code: int, message: str, error_data: str | None = None) -> None:
        self.code, self.message, self.error_data = code, message, error_data
        super().__init__(message)


class Rpc:
    """``answer`` is safe for many threads."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._methods: dict[str, tuple[Callable[[Params], object], int, int]] = {
            "eth_accounts": (lambda _: [], 0, 0),
            "eth_blockNumber": (lambda _: hex(node.head().block_number), 0, 0),
            "eth_call": (self._call, 1, 2),
            "eth_chainId": (lambda _: hex(node.chain_id), 0, 0),
            "eth_estimateGas": (self._estimate, 1, 2),
            "eth_feeHistory": (self._fee_history, 2, 3),
            "eth_gasPrice": (lambda _: hex(self._base_fee() + PRIORITY_FEE), 0, 0),
            "eth_getBalance": (self._balance, 1, 2),
            "eth_getBlockByHash": (self._block_by_hash, 1, 2),
            "eth_getBlockByNumber": (self._block_by_number, 1, 2),
            "eth_getBlockReceipts": (self._block_receipts, 1, 1),
            "eth_getBlockTransactionCountByHash": (self._count_by_hash, 1, 1),
            "eth_getBlockTransactionCountByNumber": (self._count_by_number, 1, 1),
            "eth_getCode": (self._code, 1, 2),
            "eth_getLogs": (self._logs, 1, 1),
            "eth_getStorageAt": (self._storage, 2, 3),
            "eth_getTransactionByHash": (self._transaction, 1, 1),
            "eth_getTransactionCount": (self._nonce, 1, 2),
            "eth_getTransactionReceipt": (self._receipt, 1, 1),
            "eth_maxPriorityFeePerGas": (lambda _: hex(PRIORITY_FEE), 0, 0),
            "eth_protocolVersion": (lambda _: "0x41", 0, 0),
            "eth_sendRawTransaction": (self._send_raw, 1, 1),
            "eth_syncing": (lambda _: False, 0, 0),
            "net_listening": (lambda _: True, 0, 0),
            "net_peerCount": (lambda _: "0x0", 0, 0),
            "net_version": (lambda _: str(node.chain_id), 0, 0),
            "web3_clientVersion": (lambda _: CLIENT, 0, 0),
            "web3_sha3": (lambda p: show(keccak(data(p[0], "data"))), 1, 1),
        }

    def answer(self, body: bytes) -> bytes | None:
        """The answer to a request or a batch; None where nothing was asked for (notifications)."""
        try:
            request = jiter.from_json(body)  # json's recursion would end the process: py-evm lifts Python's limit
        except ValueError:
            return _dump(_error(None, -32700, "parse error"))
        sent: list[tuple[Json, bytes]] = []
        if not isinstance(request, list):
            answers = [self._answer_one(request, sent)]
        elif not request:
            return _dump(_error(None, -32600, "empty batch"))
        elif len(request) > MAX_BATCH:
            return _dump(_error(None, -32600, f"a batch has at most {MAX_BATCH} requests"))
        else:
            answers = [self._answer_one(one, sent) for one in request]
        for shown, tx_hash in sent:  # the transactions of a batch share a block
            try:
                self._node.settle(tx_hash)
            except PoolRefused as refused:
                del shown["result"]
                shown["error"] = {"code": -32000, "message": str(refused)}
        wanted = [shown for shown in answers if shown is not None]
        if not wanted:
            return None
        return _dump(wanted if isinstance(request, list) else wanted[0])

    def _answer_one(self, request: object, sent: list[tuple[Json, bytes]]) -> Json | None:
        if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" \
                or not isinstance(request.get("method"), str):
            return _error(None, -32600, "invalid request")
        request_id = request.get("id")
        if not isinstance(request_id, str | int | float | None):
            return _error(None, -32600, "invalid request")
        method, params = request["method"], request.get("params", [])
        try:
            result = self._run(method, params)
            shown: Json = {"jsonrpc": "2.0", "id": request_id, "result": result}
            if method == "eth_sendRawTransaction":
                sent.append((shown, bytes.fromhex(str(result)[2:])))
        except RpcError as error:
            shown = _error(request_id, error.code, error.message, error.error_data)
        except BadParams as error:
            shown = _error(request_id, -32602, f"invalid params: {error}")
        except PoolRefused as error:
            shown = _error(request_id, -32000, str(error))
        except Exception:
            LOG.exception("a request failed in %s", method if method in self._methods else "?")
            shown = _error(request_id, -32603, "internal error")
        return shown if "id" in request else None

    def _run(self, method: str, params: object) -> object:
        known = self._methods.get(method)
        if known is None:
            raise RpcError(-32601, f"the method {method[:80]} does not exist/is not available")
        run, least, most = known
        if not isinstance(params, list):
            raise BadParams("params must be an array")
        while len(params) > least and params[-1] is None:
            params = params[:-1]
        if not least <= len(params) <= most:
            raise BadParams(f"{method} takes {least} to {most} parameters, not {len(params)}")
        return run(params)

    # -- which block --------------------------------------------------------------------------------------------------

    def _header(self, params: Params, at: int, default: str = "latest") -> BlockHeaderAPI:
        header = self._header_or_none(params[at] if len(params) > at else default)
        if header is None:
            raise RpcError(-32000, "header not found")
        return header

    def _header_or_none(self, tag: object) -> BlockHeaderAPI | None:
        node = self._node
        if isinstance(tag, dict):  # EIP-1898
            if "blockHash" in tag:
                return node.header_by_hash(data(tag["blockHash"], "blockHash", 32))
            tag = tag.get("blockNumber")
        match tag:
            case "latest" | "safe" | "finalized":
                return node.head()
            case "pending":
                return node.pending_header()
            case "earliest":
                return node.header(0)
        return node.header(quantity(tag, "block"))

    def _base_fee(self) -> int:
        return fee_of(self._node.pending_header())

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _block(self, header: BlockHeaderAPI | None, params: Params, *, pending: bool = False) -> Json | None:
        full = params[1] if len(params) > 1 else False
        if not isinstance(full, bool):
            raise BadParams("the second parameter is true (whole transactions) or false")
        return None if header is None else shapes.block(self._node.block(header), full=full, pending=pending)

    def _block_by_number(self, params: Params) -> Json | None:
        return self._block(self._header_or_none(params[0]), params, pending=params[0] == "pending")

    def _block_by_hash(self, params: Params) -> Json | None:
        return self._block(self._node.header_by_hash(data(params[0], "block hash", 32)), params)

    def _count_by_number(self, params: Params) -> str | None:
        return self._count(self._header_or_none(params[0]))

    def _count_by_hash(self, params: Params) -> str | None:
        return self._count(self._node.header_by_hash(data(params[0], "block hash", 32)))

    def _count(self, header: BlockHeaderAPI | None) -> str | None:
        return None if header is None else hex(len(self._node.block(header).transactions))

    def _block_receipts(self, params: Params) -> list[Json] | None:
        header = self._header_or_none(params[0])
        if header is None:
            return None
        block, receipts = self._node.block(header), self._node.receipts(header)
        return [shapes.receipt(block, receipts, signed, at) for at, signed in enumerate(block.transactions)]

    def _fee_history(self, params: Params) -> Json:
        count = min(params[0] if isinstance(params[0], int) else quantity(params[0], "block count"), 1_024)
        newest = self._header(params, 1)
        percentiles = params[2] if len(params) > 2 else []
        if not isinstance(percentiles, list) or len(percentiles) > 100:
            raise BadParams("reward percentiles are an array of at most 100")
        last = min(newest.block_number, self._node.head().block_number)
        first = max(0, last - max(count, 0) + 1)
        headers = [h for h in map(self._node.header, range(first, last + 1)) if h is not None]
        following = self._node.header(last + 1) or self._node.pending_header()
        return {"oldestBlock": hex(first),
                "baseFeePerGas": [hex(fee_of(header)) for header in [*headers, following]],
                "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
                "reward": [[hex(PRIORITY_FEE)] * len(percentiles) for _ in headers] if percentiles else None}

    # -- transactions -------------------------------------------------------------------------------------------------

    def _send_raw(self, params: Params) -> str:
        return show(self._node.admit(data(params[0], "raw transaction")))

    def _transaction(self, params: Params) -> Json | None:
        tx_hash = data(params[0], "transaction hash", 32)
        position = self._node.position(tx_hash)
        if position is not None:
            header = self._node.header(position[0])
            if header is not None:
                block = self._node.block(header)
                return shapes.transaction(block, block.transactions[position[1]], position[1])
        waiting = self._node.waiting(tx_hash)
        if waiting is None:
            return None
        return shapes.transaction(self._node.block(self._node.pending_header()), waiting, 0, waiting=True)

    def _receipt(self, params: Params) -> Json | None:
        position = self._node.position(data(params[0], "transaction hash", 32))
        header = None if position is None else self._node.header(position[0])
        if position is None or header is None:
            return None
        block = self._node.block(header)
        return shapes.receipt(block, self._node.receipts(header), block.transactions[position[1]], position[1])

    def _logs(self, params: Params) -> list[Json]:
        wanted = params[0]
        if not isinstance(wanted, dict):
            raise BadParams("the filter must be an object")
        if "blockHash" in wanted:
            header = self._node.header_by_hash(data(wanted["blockHash"], "blockHash", 32))
            if header is None:
                raise RpcError(-32000, "unknown block")
            first = last = int(header.block_number)
        else:
            head = self._node.head().block_number
            first = self._log_bound(wanted.get("fromBlock") or "latest", head)
            last = min(self._log_bound(wanted.get("toBlock") or "latest", head), head)
        rows = self._node.logs(first, last, _addresses(wanted.get("address")), MAX_LOGS)
        if len(rows) > MAX_LOGS:
            raise RpcError(-32005, f"query returned more than {MAX_LOGS} results")
        topics = _topics(wanted.get("topics") or [])
        found = [row for row in rows if len(row.topics) >= len(topics)
                 and all(some is None or row.topics[at] in some for at, some in enumerate(topics))]
        hashes = {number: self._node.header(number) for number in {row.block_number for row in found}}
        return [shapes.log(row, header.hash) for row in found
                if (header := hashes[row.block_number]) is not None]

    def _log_bound(self, tag: object, head: int) -> int:
        match tag:
            case "latest" | "safe" | "finalized" | "pending":
                return head
            case "earliest":
                return 0
        return quantity(tag, "block")

    # -- state --------------------------------------------------------------------------------------------------------

    def _balance(self, params: Params) -> str:
        return hex(self._node.balance(data(params[0], "address", 20), self._header(params, 1)))

    def _code(self, params: Params) -> str:
        return show(self._node.code(data(params[0], "address", 20), self._header(params, 1)))

    def _nonce(self, params: Params) -> str:
        pending = len(params) > 1 and params[1] == "pending"
        return hex(self._node.nonce(data(params[0], "address", 20), self._header(params, 1), pending=pending))

    def _storage(self, params: Params) -> str:
        slot = quantity(params[1], "slot")
        value = self._node.storage(data(params[0], "address", 20), slot, self._header(params, 2))
        return show(value.to_bytes(32, "big"))

    def _call(self, params: Params) -> str:
        ran = self._node.run(_message(params[0]), self._header(params, 1))
        _raise_failure(ran)
        return show(ran.output)

    def _estimate(self, params: Params) -> str:
        message = _message(params[0])
        header = self._header(params, 1, "pending")
        ran = self._node.run(message, header)
        _raise_failure(ran)
        low, high = 0, message.gas
        for guess in (ran.gas, ran.gas + ran.gas // 63 + 2_300):  # a call may pass on 63/64 of what is left
            if self._node.run(_with_gas(message, guess), header).failure is None:
                return hex(guess)
            low = guess
        while high - low > max(1, high // 100):
            guess = (low + high) // 2
            if self._node.run(_with_gas(message, guess), header).failure is None:
                high = guess
            else:
                low = guess
        return hex(high)


def _with_gas(message: Message, gas: int) -> Message:
    return Message(sender=message.sender, to=message.to, data=message.data, value=message.value, gas=gas)


def _message(value: object) -> Message:
    if not isinstance(value, dict):
        raise BadParams("the call must be an object")
    body = value.get("input", value.get("data")) or "0x"
    if value.get("input") and value.get("data") and value["input"] != value["data"]:
        raise BadParams("data and input differ")
    return Message(sender=data(value.get("from") or "0x" + "00" * 20, "from", 20),
                   to=data(value["to"], "to", 20) if value.get("to") else None, data=data(body, "input"),
                   value=quantity(value.get("value") or "0x0", "value"),
                   gas=min(quantity(value.get("gas") or hex(GAS_LIMIT), "gas"), GAS_LIMIT))


def _addresses(value: object) -> frozenset[bytes] | None:
    match value:
        case None:
            return None
        case list():
            return frozenset(data(one, "address", 20) for one in value) or None
    return frozenset({data(value, "address", 20)})


def _topics(value: object) -> list[frozenset[bytes] | None]:
    if not isinstance(value, list) or len(value) > MAX_TOPICS:
        raise BadParams(f"topics are an array of at most {MAX_TOPICS}")
    return [None if one in (None, []) else frozenset(data(some, "topic", 32)
                                                     for some in (one if isinstance(one, list) else [one]))
            for one in value]


def _raise_failure(ran: Ran) -> None:
    """geth's two faces: code 3 with the revert data, or -32000 with the machine's word."""
    if ran.failure is None:
        return
    if ran.failure != "revert":
        raise RpcError(-32000, ran.failure)
    message = "execution reverted"
    if ran.output[:4] == ERROR_STRING:
        try:
            message += ": " + abi_decode(["string"], ran.output[4:])[0]
        except DecodingError:
            message += " with data that is no string"
    raise RpcError(3, message, show(ran.output))


def _error(request_id: object, code: int, message: str, error_data: str | None = None) -> Json:
    error: Json = {"code": code, "message": message}
    if error_data is not None:
        error["data"] = error_data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
