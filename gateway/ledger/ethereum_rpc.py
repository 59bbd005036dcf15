"""JSON-RPC 2.0 over HTTP, as a client: one connection pool, a time limit on everything.

Owns the transport and its errors; refuses redirects, proxies from the environment and answers that are no JSON-RPC.
Nothing is retried here: the loops that call know what may be repeated. The URL may hold a password, so no message
shows it. Hot look-ups go this way and not through web3's middleware, which costs five times as much.
Spec: https://www.jsonrpc.org/specification
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import httpx

from gateway.errors import ChainUnavailable, Misconfigured


class RpcFault(Exception):
    """The node answered with an error: its ``code``, ``message``, and revert ``data`` where it gave some."""

    def __init__(self, code: int, message: str, data: bytes | None) -> None:
        self.code, self.message, self.data = code, message, data
        super().__init__(f"{message} ({code})")


class JsonRpc:
    """Safe for many threads. ``ChainUnavailable``: no answer, not in time, or not understood."""

    def __init__(self, url: str, *, timeout_s: float, transport: httpx.BaseTransport | None = None) -> None:
        """``timeout_s`` bounds each wait of a call; ``transport`` replaces the network in tests."""
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise Misconfigured("the chain's RPC address is not a URL") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise Misconfigured("the chain's RPC address must be an http or https URL")
        self._url = parsed
        self._ids = itertools.count(1)
        self._client = httpx.Client(timeout=timeout_s, transport=transport, follow_redirects=False, trust_env=False,
                                    limits=httpx.Limits(max_connections=16, keepalive_expiry=30.0))

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, *params: Any) -> Any:  # Any: JSON
        """The result. ``RpcFault`` when the node answers with an error."""
        answer = self._post({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)})
        return _result(answer)

    def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """The results in the order asked, in one round trip; the first error is raised."""
        requests = [{"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}
                    for method, params in calls]
        answers = self._post(requests)
        if not isinstance(answers, list):
            return [_result(answers)]  # a node that refuses batches answers with one error
        by_id = {answer.get("id"): answer for answer in answers if isinstance(answer, dict)}
        try:
            return [_result(by_id[request["id"]]) for request in requests]
        except KeyError as error:
            raise ChainUnavailable("the chain node left a question unanswered") from error

    def _post(self, body: Any) -> Any:  # Any: JSON
        try:
            response = self._client.post(self._url, json=body)
            answer = response.json()
        except httpx.TimeoutException as error:
            raise ChainUnavailable("the chain node did not answer in time") from error
        except httpx.HTTPError as error:
            raise ChainUnavailable(f"the chain node cannot be reached: {type(error).__name__}") from error
        except (ValueError, RecursionError) as error:
            raise ChainUnavailable(f"the chain node answered HTTP {response.status_code} without JSON") from error
        except RuntimeError as error:  # httpx: the client was closed
            raise ChainUnavailable("the connection to the chain node is closed") from error
        if not isinstance(answer, dict | list):
            raise ChainUnavailable(f"the chain node answered HTTP {response.status_code} without JSON-RPC")
        return answer


def _result(answer: Any) -> Any:  # Any: JSON
    if not isinstance(answer, dict):
        raise ChainUnavailable("the chain node does not speak JSON-RPC")
    error = answer.get("error")
    if error is not None:
        if not isinstance(error, dict):
            raise RpcFault(-32000, str(error)[:300], None)
        code, data = error.get("code"), error.get("data")
        if isinstance(data, dict):  # some nodes wrap it once more
            data = data.get("data") or data.get("result")
        raise RpcFault(code if isinstance(code, int) else -32000, str(error.get("message", ""))[:300], _hex(data))
    if "result" not in answer:
        raise ChainUnavailable("the chain node does not speak JSON-RPC")
    return answer["result"]


def _hex(value: object) -> bytes | None:
    if isinstance(value, str):
        text = value.removeprefix("Reverted ").removeprefix("0x")
        try:
            return bytes.fromhex(text)
        except ValueError:
            return None
    return None
