"""Real Ethereum nodes for tests: installed once by the ordinary package clients, run on loopback, ended by pid.

anvil comes from npm (the binary inside the platform package: the npm wrapper orphans it), geth 1.13.15 by ``go
install`` (the last with clique; later ones need modules that are not to be had). They are kept in
``GATEWAY_TEST_CACHE``, default ``~/.cache/fhir-gateway-tests``.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from eth_account import Account

from gateway.ledger.address import address

ANVIL = "1.7.1"
GETH = "v1.13.15"
OPERATOR = b"\x51" * 32
STRANGER = b"\x52" * 32
START_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A node that answers; ``chain_id`` is what it says."""

    name: str
    rpc: str
    chain_id: int
    pid: int

    def ask(self, method: str, *params: object) -> object:
        answer = httpx.post(self.rpc, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        return answer.json().get("result")


def cache() -> Path:
    folder = Path(os.environ.get("GATEWAY_TEST_CACHE") or Path.home() / ".cache" / "fhir-gateway-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _installed(binary: Path, tool: str, command: list[str], environment: dict[str, str], limit_s: int) -> Path:
    """The binary, installed first where it is missing; one process installs at a time."""
    with (cache() / "installing.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            if shutil.which(tool) is None:
                pytest.skip(f"not run: {tool} is not on this machine, {binary.name} cannot be installed")
            binary.parent.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True,
                                  timeout=limit_s, check=False)
            if done.returncode or not binary.exists():
                pytest.skip(f"not run: {binary.name} could not be installed: {done.stderr.strip()[-300:]}")
    return binary


def anvil_binary() -> Path:
    folder = cache() / f"anvil-{ANVIL}"
    machine = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), platform.machine())
    binary = (folder / "node_modules" / "@foundry-rs" / f"anvil-{platform.system().lower()}-{machine}" / "bin"
              / "anvil")
    return _installed(binary, "npm", ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix",
                                      str(folder), f"@foundry-rs/anvil@{ANVIL}"], {}, 180)


def geth_binary() -> Path:
    folder = cache() / f"geth-{GETH}"
    return _installed(folder / "geth", "go", ["go", "install", "-ldflags=-checklinkname=0",
                                              f"github.com/ethereum/go-ethereum/cmd/geth@{GETH}"],
                      {"GOBIN": str(folder)}, 1_200)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One node's process: killed and started again it is the same node, on the same port and folder."""

    def __init__(self, name: str, command: list[str], port: int, folder: Path,
                 ready: Callable[[Running], bool]) -> None:
        self.name = name
        self.rpc = f"http://127.0.0.1:{port}"
        self._command = command
        self._log = folder / "node.log"
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Running:
        """Start it and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        running = Running(name=self.name, rpc=self.rpc, chain_id=0, pid=self._process.pid)
        while True:
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-2_000:]
            assert time.monotonic() < deadline, f"{self.name} did not start in {START_S} s"
            try:
                found = running.ask("eth_chainId")
                if isinstance(found, str) and self._ready(running):
                    return replace(running, chain_id=int(found, 16))
            except (httpx.HTTPError, ValueError):
                pass
            time.sleep(0.1)

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def _started(node: Node) -> Iterator[Running]:
    try:
        yield node.start()
    finally:
        node.stop()


def _accounts() -> list[str]:
    return [address(Account.from_key(key).address) for key in (OPERATOR, STRANGER)]


def anvil_node(folder: Path, *options: str) -> Node:
    """With no more of ``options``: a block for each transaction, and nothing kept on disk."""
    port = free_port()
    command = [str(anvil_binary()), "--host", "127.0.0.1", "--port", str(port), "--chain-id", "31999", "--accounts",
               "1", *options]

    def funded(running: Running) -> bool:
        for account in _accounts():
            running.ask("anvil_setBalance", account, hex(10**21))
        return True

    return Node("anvil", command, port, folder, funded)


def durable_anvil(folder: Path) -> Node:
    """A block a second, the state on disk as often: what a kill loses is the last second, blocks and all."""
    return anvil_node(folder, "--block-time", "1", "--state", str(folder / "state.json"), "--state-interval", "1")


@contextmanager
def anvil(folder: Path) -> Iterator[Running]:
    with _started(anvil_node(folder)) as running:
        yield running


def geth_dev_node(folder: Path) -> Node:
    """``--dev`` with a block a second: period 0 stalls on bursts."""
    port = free_port()
    binary, password = str(geth_binary()), _password(folder)
    _import_key(binary, folder, password)
    command = [binary, "--dev", "--dev.period", "1", "--datadir", str(folder / "data"), "--password", str(password),
               *_flags(port)]
    return Node("geth --dev", command, port, folder, _mining)


@contextmanager
def geth_dev(folder: Path) -> Iterator[Running]:
    with _started(geth_dev_node(folder)) as running:
        yield running


@contextmanager
def geth_clique(folder: Path) -> Iterator[Running]:
    """A proof-of-authority network of one, before London: no base fee, legacy gas prices only."""
    port = free_port()
    binary, password = str(geth_binary()), _password(folder)
    _import_key(binary, folder, password)
    signer, stranger = _accounts()
    forks = ("homesteadBlock", "eip150Block", "eip155Block", "eip158Block", "byzantiumBlock", "constantinopleBlock",
             "petersburgBlock", "istanbulBlock", "berlinBlock")
    genesis = {"config": {"chainId": 31_888, "clique": {"period": 1, "epoch": 30_000}, **dict.fromkeys(forks, 0)},
               "difficulty": "1", "gasLimit": "30000000", "extradata": "0x" + "00" * 32 + signer[2:] + "00" * 65,
               "alloc": {account[2:]: {"balance": str(10**21)} for account in (signer, stranger)}}
    (folder / "genesis.json").write_text(json.dumps(genesis))
    subprocess.run([binary, "init", "--datadir", str(folder / "data"), str(folder / "genesis.json")],
                   capture_output=True, timeout=60, check=True)
    command = [binary, "--datadir", str(folder / "data"), "--networkid", "31888", "--syncmode", "full", "--mine",
               "--miner.etherbase", signer, "--unlock", signer, "--password", str(password),
               "--allow-insecure-unlock", *_flags(port)]
    with _started(Node("geth clique", command, port, folder, _mining)) as running:
        yield running


def _flags(port: int) -> list[str]:
    """Archive: without it a SIGKILL rolls the chain back, and old states cannot be asked."""
    return ["--gcmode", "archive", "--cache", "64", "--nodiscover", "--nat", "none", "--maxpeers", "0", "--port", "0",
            "--ipcdisable", "--http", "--http.addr", "127.0.0.1", "--http.port", str(port), "--http.api",
            "eth,net,web3,txpool"]


def _mining(running: Running) -> bool:
    head = running.ask("eth_blockNumber")
    return isinstance(head, str) and int(head, 16) > 0


def _password(folder: Path) -> Path:
    file = folder / "password"
    file.write_text("test")
    return file


def _import_key(binary: str, folder: Path, password: Path) -> None:
    key = folder / "key"
    key.write_text(OPERATOR.hex())
    subprocess.run([binary, "account", "import", "--datadir", str(folder / "data"), "--lightkdf", "--password",
                    str(password), str(key)], capture_output=True, timeout=60, check=True)
