"""Starting: what cannot work says so in one line and ends; whatever kills the supervisor ends its children too."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import REPOSITORY, Gateway


def begin(gateway: Gateway) -> subprocess.Popen[bytes]:
    """``gateway serve`` without waiting for it."""
    gateway.folder.mkdir(parents=True, exist_ok=True)
    with gateway.log.open("ab") as log:
        gateway.process = subprocess.Popen([sys.executable, "-m", "gateway.cli", "serve"], stdout=log, stderr=log,
                                           env=gateway._environment, cwd=REPOSITORY)
    return gateway.process


def with_children(gateway: Gateway, count: int) -> list[int]:
    """Its process ids once it has so many children."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = gateway.children()
        if len(found) > count:
            return found
        time.sleep(0.005)
    raise AssertionError(gateway.log.read_text())


def gone(pids: list[int], *, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_a_supervisor_killed_while_its_children_start_leaves_none_behind(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    process = begin(gateway)
    pids = with_children(gateway, 2)
    process.kill()
    process.wait()
    assert gone(pids, within_s=30), gateway.log.read_text()


def test_a_stop_while_it_starts_ends_every_process_with_0(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    process = begin(gateway)
    pids = with_children(gateway, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert gone(pids, within_s=1)
    assert "Traceback" not in gateway.log.read_text()


def refused(gateway: Gateway, *, within_s: float = 30) -> str:
    """What it printed before it ended by itself with 2."""
    try:
        assert begin(gateway).wait(within_s) == 2
    finally:
        gateway.kill()
    said = gateway.log.read_text()
    assert "Traceback" not in said
    return said


def test_the_port_of_the_embedded_chain_taken_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(Gateway(tmp_path, chain_port=str(port)))
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert said.splitlines()[-1].startswith("gateway: the process chain cannot start")


def test_what_the_ledger_refuses_is_said_at_once(tmp_path: Path) -> None:
    said = refused(Gateway(tmp_path, chain_rpc="ftp://127.0.0.1:1", chain_id="5"))
    assert "gateway ledger: the chain's RPC address must be an http or https URL" in said
    assert said.splitlines()[-1].startswith("gateway: the process ledger cannot start")


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_is_none_is_said_at_once(tmp_path: Path, port: str) -> None:
    gateway = Gateway(tmp_path)
    gateway._environment["PORT"] = port
    assert "GATEWAY_PORT" in refused(gateway)


def test_a_data_folder_that_is_a_file_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert "cannot be used" in refused(Gateway(tmp_path))


def test_a_second_gateway_on_the_same_folder_or_port_is_refused(tmp_path: Path) -> None:
    running = Gateway(tmp_path / "one")
    running.start()
    try:
        again = Gateway(tmp_path / "one")
        assert "runs on" in subprocess.run(
            [sys.executable, "-m", "gateway.cli", "serve"], env=again._environment, cwd=REPOSITORY,
            capture_output=True, text=True, timeout=30).stderr
        other = Gateway(tmp_path / "two")
        other._environment["PORT"] = str(running.port)
        assert f"port {running.port}" in refused(other)
        assert running.process is not None
        assert running.process.poll() is None
    finally:
        running.stop()
    os.utime(tmp_path / "one" / "data" / "serve.lock")  # a lock file without its process holds nothing
    running.start()
    running.stop()
