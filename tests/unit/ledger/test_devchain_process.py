"""The embedded chain as a process: its door on loopback, its end, and kill -9 (invariant 2)."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_utils import to_checksum_address

from gateway.ledger.devchain.accounts import load_accounts

EMITTER = "602060006000a000"  # LOG0 of a word, STOP
INITCODE = "0x6008600c60003960086000f3" + EMITTER


class Process:
    """One run of the embedded chain over a folder."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        self.keys = folder / "keys" / "chain.json"
        self.run = subprocess.Popen(
            [sys.executable, "-m", "gateway.ledger.devchain", "--data-dir", str(folder / "chain"), "--keys-file",
             str(self.keys), "--port", "0", "--lead-s", "3600", "--parent", str(os.getpid()), *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.run.stdout is not None
        line = self.run.stdout.readline()
        assert line, self.run.stderr.read() if self.run.stderr else ""
        self.said = json.loads(line)
        self.url: str = self.said["rpc"]
        self.client = httpx.Client(timeout=20)

    def ask(self, method: str, *params: Any) -> Any:
        answer = self.client.post(self.url, json={"jsonrpc": "2.0", "id": 1, "method": method,
                                                  "params": list(params)}).json()
        assert "error" not in answer, answer
        return answer["result"]

    def signed(self, nonce: int, **fields: Any) -> str:
        account = load_accounts(self.keys)[0]
        if "to" in fields:
            fields["to"] = to_checksum_address(fields["to"])
        base = {"type": 2, "chainId": self.said["chain_id"], "nonce": nonce, "gas": 200_000, "value": 0,
                "maxFeePerGas": 10**10, "maxPriorityFeePerGas": 10**6, **fields}
        return "0x" + bytes(Account.from_key(account.private_key).sign_transaction(base).raw_transaction).hex()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.client.close()
        self.run.send_signal(number)
        code = self.run.wait(15)
        for stream in (self.run.stdout, self.run.stderr):
            if stream is not None:
                stream.close()
        return code


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    run = Process(tmp_path_factory.mktemp("door"))
    yield run
    assert run.end() == 0


# -- kill -9 ----------------------------------------------------------------------------------------------------------


def test_kill_9_amid_transactions_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Four rounds: head, balances, nonces, receipts and logs go on where they were."""
    dice = random.Random(7)
    run = Process(tmp_path)
    chain_id = run.said["chain_id"]
    contract = run.ask("eth_getTransactionReceipt",
                       run.ask("eth_sendRawTransaction", run.signed(0, data=INITCODE)))["contractAddress"]
    to = load_accounts(run.keys)[1].address
    before = int(run.ask("eth_getBalance", to, "latest"), 16)
    sent, paid, logged = 1, 0, 0
    acknowledged: list[tuple[str, str]] = []
    for _ in range(4):
        killer = threading.Timer(0.5 + dice.random() * 0.7, run.run.send_signal, (signal.SIGKILL,))
        killer.start()
        try:
            while True:
                emits = sent % 2 == 0
                raw = run.signed(sent, to=contract) if emits else run.signed(sent, to=to, value=7)
                tx_hash = run.ask("eth_sendRawTransaction", raw)
                acknowledged.append((tx_hash, "log" if emits else "value"))
                sent += 1
        except (httpx.HTTPError, json.JSONDecodeError):
            pass
        killer.join()
        run.end()
        run = Process(tmp_path)
        assert run.said["chain_id"] == chain_id
        # the one under way at the kill is there whole or not at all
        sent = int(run.ask("eth_getTransactionCount", load_accounts(run.keys)[0].address, "latest"), 16)
        assert sent - 1 in (len(acknowledged), len(acknowledged) + 1)
        if sent - 1 > len(acknowledged):
            head = run.ask("eth_getBlockByNumber", "latest", True)
            last = head["transactions"][-1]
            acknowledged.append((last["hash"], "log" if last["to"] == contract else "value"))
    for tx_hash, _ in acknowledged:
        receipt = run.ask("eth_getTransactionReceipt", tx_hash)
        assert receipt["status"] == "0x1"
        assert run.ask("eth_getBlockByNumber", receipt["blockNumber"], False)["hash"] == receipt["blockHash"]
    paid = sum(1 for _, kind in acknowledged if kind == "value")
    logged = sum(1 for _, kind in acknowledged if kind == "log")
    assert len(acknowledged) > 4
    assert int(run.ask("eth_getBalance", to, "latest"), 16) == before + 7 * paid
    logs = run.ask("eth_getLogs", {"fromBlock": "0x0", "address": contract})
    assert [log["transactionHash"] for log in logs] == [tx_hash for tx_hash, kind in acknowledged if kind == "log"]
    assert len(logs) == logged
    head = run.ask("eth_getBlockByNumber", "latest", False)
    while int(head["number"], 16):
        parent = run.ask("eth_getBlockByHash", head["parentHash"], False)
        assert int(parent["number"], 16) == int(head["number"], 16) - 1
        assert int(parent["timestamp"], 16) < int(head["timestamp"], 16)
        head = parent
    assert run.end() == 0


def test_a_kill_at_first_start_leaves_something_that_starts(tmp_path: Path) -> None:
    for delay in (0.4, 0.9, 1.3):
        started = subprocess.Popen([sys.executable, "-m", "gateway.ledger.devchain", "--data-dir",
                                    str(tmp_path / "chain"), "--keys-file", str(tmp_path / "keys" / "chain.json"),
                                    "--port", "0"], stdout=subprocess.DEVNULL)
        time.sleep(delay)
        started.kill()
        started.wait(10)
    run = Process(tmp_path)
    assert int(run.ask("eth_getBalance", load_accounts(run.keys)[0].address, "latest"), 16) > 0
    assert run.end(signal.SIGINT) == 0


# -- starting and ending ----------------------------------------------------------------------------------------------


def refusal(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "gateway.ledger.devchain", *arguments], capture_output=True,
                          timeout=30, text=True, check=False)
    return done.returncode, done.stderr


def test_what_keeps_it_from_starting_is_one_line(process: Process, tmp_path: Path) -> None:
    folder, keys = str(process.folder / "chain"), str(process.keys)
    code, said = refusal("--data-dir", folder, "--keys-file", keys, "--port", "0")
    assert (code, said.count("\n"), "in use" in said) == (2, 1, True)
    port = process.url.rsplit(":", 1)[1]
    code, said = refusal("--data-dir", str(tmp_path / "a"), "--keys-file", str(tmp_path / "k"), "--port", port)
    assert (code, said.count("\n"), "cannot listen" in said) == (2, 1, True)
    code, said = refusal("--data-dir", str(tmp_path / "a"), "--keys-file", str(tmp_path / "k"), "--port", "0",
                         "--host", "0.0.0.0")  # noqa: S104  # that is what is refused
    assert (code, said.count("\n"), "loopback only" in said) == (2, 1, True)


def test_it_ends_with_its_parent_when_told_to(tmp_path: Path) -> None:
    script = ("import os,subprocess,sys;p=subprocess.Popen([sys.executable,'-m','gateway.ledger.devchain','--data-dir',"
              f"'{tmp_path}/c','--keys-file','{tmp_path}/k','--port','0','--parent',str(os.getpid())],stdout=subprocess.PIPE,stderr=subprocess.DEVNULL);"
              "p.stdout.readline();print(p.pid,flush=True);os.kill(os.getpid(),9)")
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    child = int(parent.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the chain outlived its parent")


def test_it_stays_small_and_starts_soon(process: Process) -> None:
    status = Path(f"/proc/{process.run.pid}/status")
    if not status.exists():
        pytest.skip("no /proc on this machine to read the memory from")
    resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 120_000


# -- the door ---------------------------------------------------------------------------------------------------------

ASK = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}'
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8545", "127.0.0.1.evil.example", "", "localhost:x"])
def test_a_foreign_host_is_refused(process: Process, host: str) -> None:
    """DNS rebinding: a page's own name made to point at this machine."""
    answer = httpx.post(process.url, content=ASK, headers={**JSON_TYPE, "Host": host})
    assert answer.status_code == 403


@pytest.mark.parametrize(("origin", "status"), [
    ("https://evil.example", 403), ("null", 403), ("http://localhost.evil.example", 403), ("file://", 403),
    ("http://localhost:8080", 200), ("http://127.0.0.1:8080", 200), ("chrome-extension://nkbihfbeogaeaoehlef", 200),
])
def test_only_pages_of_this_machine_and_wallets_are_let_in(process: Process, origin: str, status: int) -> None:
    answer = httpx.post(process.url, content=ASK, headers={**JSON_TYPE, "Origin": origin})
    assert answer.status_code == status
    assert answer.headers.get("Access-Control-Allow-Origin") == (origin if status == 200 else None)
    asked = httpx.options(process.url, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert asked.status_code == (204 if status == 200 else 403)


def test_other_methods_types_and_sizes_are_refused(process: Process) -> None:
    assert httpx.get(process.url).status_code == 405
    assert httpx.post(process.url, content=ASK, headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(process.url, content=iter([ASK]), headers=JSON_TYPE).status_code == 411
    big = httpx.post(process.url, content=b" " * (4 * 1024 * 1024 + 1), headers=JSON_TYPE)
    assert big.status_code == 413


def test_a_notification_gets_no_content(process: Process) -> None:
    answer = process.client.post(process.url, content=b'{"jsonrpc":"2.0","method":"eth_chainId"}', headers=JSON_TYPE)
    assert (answer.status_code, answer.content) == (204, b"")
    assert process.ask("eth_chainId") == hex(process.said["chain_id"])  # on the same connection


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n",
                                  b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"A" * 70_000,
                                  b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                  b"Content-Length: 1_0\r\n\r\n"])
def test_what_is_no_http_gets_no_page_and_no_traceback(process: Process, junk: bytes) -> None:
    port = int(process.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(junk + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while chunk := connection.recv(4096):
            said += chunk
    assert b"<" not in said
    assert b"Traceback" not in said
    assert process.ask("eth_blockNumber") is not None
