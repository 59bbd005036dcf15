"""A small closed-loop HTTP/1.1 load generator: each client sends its next request when the last was answered.

Runs in a process of its own (``python -m tests.bench.load``), plan on stdin as JSON, result on stdout as JSON.
Bounded in time; loopback only.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import sys
import time
from typing import Any

import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive connection; ``ask`` answers (status, length of the body)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiting: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionResetError())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15:].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        status = int(head[9:12])
        del self._buffer[:end + 4 + length]
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(status)

    async def ask(self, request: bytes) -> int:
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """``requests``: base64 raw requests, taken round robin, or each once where ``once``; ``clients``; ``seconds``, at
    most 600; ``expect``: status."""
    if not ipaddress.ip_address(plan["host"]).is_loopback:
        raise SystemExit("load goes to loopback only")
    requests = [base64.b64decode(one) for one in plan["requests"]]
    end = time.perf_counter() + min(plan["seconds"], 600)
    latencies: list[float] = []
    wrong: dict[int, int] = {}
    turn = iter(range(len(requests) if plan.get("once") else 10**12))

    async def client() -> None:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, plan["host"], plan["port"])
        while time.perf_counter() < end and (number := next(turn, None)) is not None:
            request = requests[number % len(requests)]
            started = time.perf_counter()
            status = await connection.ask(request)
            latencies.append(time.perf_counter() - started)
            if status != plan["expect"]:
                wrong[status] = wrong.get(status, 0) + 1
        connection._transport.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(plan["clients"])))
    took = time.perf_counter() - started
    latencies.sort()
    return {"per_s": len(latencies) / took, "p50_ms": 1000 * latencies[len(latencies) // 2],
            "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)], "max_ms": 1000 * latencies[-1], "wrong": wrong,
            "count": len(latencies)}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.load(sys.stdin)))))
