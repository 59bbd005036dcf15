"""``ReceiptChain`` over plain Ethereum JSON-RPC, for a verifier who runs nothing else of the gateway.

Owns four calls and the strict reading of their answers; refuses redirects, answers over 8 MB and every malformed one,
as ChainUnavailable. Independent of the gateway's own adapter and of web3, so that a fault there does not vouch for
itself. https://ethereum.github.io/execution-apis/
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

import httpx
import jiter

from gateway.errors import ChainUnavailable
from gateway.ledger.verify import ChainBlock, ChainLog, ChainTransaction

_ANSWER_MAX: Final = 8 * 1024 * 1024


class RpcReceiptChain:
    """A node at ``url``. Use as a context manager, or ``close`` it."""

    def __init__(self, url: str, *, timeout_s: float, transport: httpx.BaseTransport | None = None) -> None:
        """``timeout_s`` bounds each wait of each call; ``transport`` replaces the network in tests."""
        self._client = httpx.Client(timeout=timeout_s, transport=transport, follow_redirects=False, trust_env=False)
        self._url = url
        self._id = 0

    def __enter__(self) -> RpcReceiptChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self._client.close()

    def chain_id(self) -> int:
        """``eth_chainId``."""
        return _number(self._call("eth_chainId"))

    def head_number(self) -> int:
        """``eth_blockNumber``."""
        return _number(self._call("eth_blockNumber"))

    def transaction(self, transaction_hash: bytes) -> ChainTransaction | None:
        """``eth_getTransactionReceipt``."""
        found = self._call("eth_getTransactionReceipt", "0x" + transaction_hash.hex())
        if found is None:
            return None
        body = _members(found)
        if _bytes(body.get("transactionHash"), 32) != transaction_hash or not isinstance(body.get("logs"), list):
            raise ChainUnavailable("the node answers with another transaction")
        return ChainTransaction(
            succeeded=_number(body.get("status")) == 1,
            block_number=_number(body.get("blockNumber")),
            block_hash=_bytes(body.get("blockHash"), 32),
            logs=tuple(_log(log) for log in body["logs"]),
        )

    def block(self, number: int) -> ChainBlock | None:
        """``eth_getBlockByNumber`` without the transactions' bodies."""
        found = self._call("eth_getBlockByNumber", hex(number), False)
        if found is None:
            return None
        body = _members(found)
        transactions = body.get("transactions")
        if _number(body.get("number")) != number or not isinstance(transactions, list):
            raise ChainUnavailable("the node answers with another block")
        return ChainBlock(
            hash=_bytes(body.get("hash"), 32), time_s=_number(body.get("timestamp")),
            transactions=tuple(_bytes(entry, 32) for entry in transactions))

    def _call(self, method: str, *parameters: object) -> Any:  # Any: JSON
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": list(parameters)}
        try:
            with self._client.stream("POST", self._url, json=request) as response:
                parts = bytearray()
                for part in response.iter_bytes():
                    parts += part
                    if len(parts) > _ANSWER_MAX:
                        raise ChainUnavailable(f"{method}: the answer is over {_ANSWER_MAX} bytes")
                if response.status_code != 200:
                    raise ChainUnavailable(f"{method}: HTTP {response.status_code}")
            answer = jiter.from_json(bytes(parts))  # bounds nesting, which the standard parser leaves to the C stack
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChainUnavailable(f"{method}: {type(error).__name__}") from error
        except ValueError as error:
            raise ChainUnavailable(f"{method}: the answer is not JSON") from error
        if not isinstance(answer, dict) or answer.get("id") != self._id:
            raise ChainUnavailable(f"{method}: not an answer to the question")
        if "error" in answer or "result" not in answer:
            problem = answer.get("error")
            code = problem.get("code") if isinstance(problem, dict) else None
            raise ChainUnavailable(f"{method}: JSON-RPC error {code}")
        return answer["result"]


def _log(value: Any) -> ChainLog:  # Any: JSON
    body = _members(value)
    topics = body.get("topics")
    if not isinstance(topics, list):
        raise ChainUnavailable("the node's answer is malformed: topics")
    return ChainLog(
        address="0x" + _bytes(body.get("address"), 20).hex(),
        topics=tuple(_bytes(topic, 32) for topic in topics),
        data=_bytes(body.get("data"), None),
    )


def _members(value: Any) -> dict[str, Any]:  # Any: JSON
    if not isinstance(value, dict):
        raise ChainUnavailable("the node's answer is malformed: not an object")
    return value


def _number(value: Any) -> int:  # Any: JSON
    if isinstance(value, str) and value.startswith("0x") and len(value) <= 18:
        try:
            return int(value[2:], 16)
        except ValueError:
            pass
    raise ChainUnavailable("the node's answer is malformed: not a quantity")


def _bytes(value: Any, size: int | None) -> bytes:  # Any: JSON
    if isinstance(value, str) and value.startswith("0x"):
        try:
            data = bytes.fromhex(value[2:])
        except ValueError:
            data = None
        if data is not None and size in (None, len(data)):
            return data
    raise ChainUnavailable("the node's answer is malformed: not data")
