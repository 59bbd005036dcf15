"""A gateway of its own for a journey, the demo or the bench: real processes, a free port, a folder that goes away.

Owns starting, killing and stopping it; refuses to touch a process it did not start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gateway:
    """One running gateway under ``folder``; browsers know it by ``name``."""

    def __init__(self, folder: Path, *, name: str = "127.0.0.1", **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.base = f"http://{name}:{self.port}/fhir"
        self.log = folder / "gateway.log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "PROMETHEUS_"))},
            "PYTHONPATH": str(REPOSITORY), "HOST": "127.0.0.1", "PORT": str(self.port),
            "GATEWAY_BASE_URL": self.base, "GATEWAY_DATA_DIR": str(folder / "data"), "GATEWAY_BATCH_INTERVAL_S": "1",
            **{f"GATEWAY_{name.upper()}": value for name, value in settings.items()}}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self, *, wait_s: float = 90, chain: str = "following") -> float:
        """Start and wait until it is ready, and says that the chain is ``following``, seen since the start, or
        ``stalled``; seconds it took."""
        started, since_ms = time.monotonic(), time.time() * 1000
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "gateway.cli", "serve"], env=self._environment,
                                            cwd=REPOSITORY, stdout=log, stderr=log)
        while time.monotonic() - started < wait_s:
            if self.process.poll() is not None:
                raise RuntimeError(f"the gateway ended at once:\n{self.log.read_text()[-4000:]}")
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.get(f"http://127.0.0.1:{self.port}/health/ready", timeout=1)
                said = answer.json() if answer.status_code == 200 else {}
                if said.get("chain") == chain and (chain == "stalled" or said["chain_seen"] >= since_ms):
                    return time.monotonic() - started
            time.sleep(0.05)
        raise RuntimeError(f"the gateway is not ready after {wait_s} s:\n{self.log.read_text()[-4000:]}")

    def children(self) -> list[int]:
        """Process ids of everything this gateway runs, itself first."""
        if self.process is None:
            return []
        found = [self.process.pid]
        for parent in found:
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                found += [int(pid) for pid in task.read_text().split()]
        return found

    def kill(self) -> None:
        """``kill -9`` of every process at once."""
        pids = self.children()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        for pid in pids:
            while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
                time.sleep(0.02)

    def stop(self) -> int | None:
        """SIGTERM; the exit code."""
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A ``gateway`` command with this gateway's settings."""
        return subprocess.run([sys.executable, "-m", "gateway.cli", *arguments], env=self._environment, cwd=REPOSITORY,
                              check=check, capture_output=True, text=True, timeout=300)

    def token(self, *arguments: str) -> str:
        return self.run("token", *arguments).stdout.strip()

    def client(self, *arguments: str) -> httpx.Client:
        """An HTTP client with a fresh token of ``gateway token ARGUMENTS``."""
        return httpx.Client(base_url=self.base, timeout=60, headers={
            "Authorization": f"Bearer {self.token(*arguments)}", "Content-Type": "application/fhir+json"})

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return found

    def resident_mb(self) -> dict[str, int]:
        """Memory of each process in MB, by what it runs; pages that several share are counted once in all (PSS)."""
        found: dict[str, int] = {}
        for pid in self.children():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                shared = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                found[f"{' '.join(words[2:5])} ({pid})"] = shared * 1024 // 1_000_000
        return found
