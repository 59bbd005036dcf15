"""``gateway serve``: starts the processes, restarts one that dies, stops all of them cleanly.

Owns the listening socket and the children; refuses to start twice on one data folder. Light on purpose: it imports
nothing the children need.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.config import Settings
from gateway.errors import Misconfigured

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_REFUSED = 2
"""Exit code of a child that said why it cannot run."""
_REFUSALS_MAX = 3
"""So often in a row; less may be its forerunner on the same data, still ending."""


@dataclass(slots=True)
class Child:
    """One process to keep alive; ``arguments`` follow ``python -m``."""

    name: str
    arguments: list[str]
    descriptors: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    failures: int = 0
    refusals: int = 0
    output: int | None = field(default=None)

    def start(self) -> None:
        """Start it, in a group of its own so that Ctrl-C reaches the supervisor alone."""
        self.process = subprocess.Popen([sys.executable, "-m", *self.arguments], pass_fds=self.descriptors,
                                        stdout=self.output, start_new_session=True)
        self.started_s = time.monotonic()

    def restart_due(self) -> bool:
        """Whether it died and its back-off has passed."""
        if self.process is None or self.process.poll() is None:
            if self.process is not None and time.monotonic() - self.started_s > 30:
                self.failures = 0
            return False
        return time.monotonic() - self.started_s > min(10.0, 0.2 * (1 << min(self.failures, 8)))


class Supervisor:
    """The processes of one gateway on this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: list[Child] = []
        self._stopping = False

    def run(self) -> int:
        """Start everything, print where it is, watch until told to stop. Raises Misconfigured."""
        settings = self._settings
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = self._lock()
        except OSError as error:
            raise Misconfigured(f"the data folder {settings.data_dir} cannot be used ({error.strerror}): "
                                "`gateway check` says more") from error
        listener = self._listen()
        for signalled in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signalled, self._stop)
        metrics = settings.data_dir / "run" / "metrics"
        shutil.rmtree(metrics, ignore_errors=True)
        metrics.mkdir(parents=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        # A worker takes one connection at a time from the shared socket, or the first to wake would take them all.
        os.environ["UV_TCP_SINGLE_ACCEPT"] = "1"
        # One interpreter lock, few threads that allocate at a time: an arena for each of them only held memory back.
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")
        # A new chain's contracts, keys and schema come first; a second start has them and needs not wait.
        try:
            self._start_chain()
            ledger = Child("ledger", ["gateway.app", "ledger", str(os.getpid())])
            ledger.start()
            self._children.append(ledger)
            self._wait_for(settings.deployment_path.exists, "the contracts", ledger)
            for number in range(0 if self._stopping else settings.workers):
                worker = Child(f"worker-{number}", ["gateway.app", "worker", str(os.getpid()),
                                                    str(listener.fileno())], (listener.fileno(),))
                worker.start()
                self._children.append(worker)
            self._wait_for(self._answers, "the first worker", self._children[-1])
            if not self._stopping:
                self._announce()
            while not self._stopping:
                time.sleep(0.2)
                self._revive()
        finally:
            listener.close()
            self._end_children()
            os.close(lock)
        return 0

    def _lock(self) -> int:
        descriptor = os.open(self._settings.data_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(f"a gateway runs on {self._settings.data_dir} already: stop it first, or set "
                                "GATEWAY_DATA_DIR") from None
        return descriptor

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._settings.host, self._settings.port))
        except OSError as error:
            raise Misconfigured(f"port {self._settings.port} of {self._settings.host} cannot be used "
                                f"({error.strerror}): set PORT or HOST") from error
        listener.listen(1024)
        listener.set_inheritable(True)
        return listener

    def _start_chain(self) -> None:
        settings = self._settings
        if settings.chain_rpc:
            return
        rpc_file = settings.rpc_path
        port = settings.chain_port or _free_port(rpc_file)
        settings.chain_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        child = Child("chain", [
            "gateway.ledger.devchain", "--data-dir", str(settings.chain_path), "--keys-file",
            str(settings.keys_dir / "chain-accounts.json"), "--port", str(port), "--parent", str(os.getpid())],
            output=subprocess.DEVNULL)
        child.start()
        self._children.append(child)
        rpc_file.write_text(json.dumps({"rpc": f"http://127.0.0.1:{port}"}))

    def _answers(self) -> bool:
        host = "127.0.0.1" if self._settings.host in ("0.0.0.0", "::") else self._settings.host  # noqa: S104
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(  # own host
                f"http://{f'[{host}]' if ':' in host else host}:{self._settings.port}/health/ready", timeout=1):
            return True
        return False

    def _wait_for(self, done: Callable[[], bool], what: str, child: Child) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        while not done() and not self._stopping:
            self._revive()
            for one in self._children:
                if one.refusals >= _REFUSALS_MAX:
                    raise Misconfigured(f"the process {one.name} cannot start: its own line above says why")
            if time.monotonic() > end:
                raise Misconfigured(f"{what} did not come up within {_START_TIMEOUT_S:.0f} s; the log above says why "
                                    f"({child.name})")
            time.sleep(0.05)

    def _revive(self) -> None:
        for child in self._children:
            if child.restart_due() and not self._stopping:
                child.failures += 1
                code = child.process.returncode if child.process else None
                child.refusals = child.refusals + 1 if code == _REFUSED else 0
                print(json.dumps({"event": "process restarted", "name": child.name, "exit": code}), file=sys.stderr,
                      flush=True)
                child.start()

    def _announce(self) -> None:
        settings = self._settings
        shown = "gateway" if shutil.which("gateway") else f"{Path(sys.executable).parent}/gateway"
        with contextlib.suppress(ValueError):
            shown = str(Path(sys.executable).parent.relative_to(Path.cwd()) / "gateway")
        print(f"""
FHIR base       {settings.base_url}
a token         {shown} token            (this hospital's own feed; --user Practitioner/ID for a clinician)
data directory  {settings.data_dir}
health          http://{settings.host}:{settings.port}/health/ready   metrics /metrics
stop            Ctrl-C
""", flush=True)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _end_children(self) -> None:
        for child in reversed(self._children):
            if child.process is not None and child.process.poll() is None:
                child.process.terminate()
                # Workers first, then the ledger, then its chain: each finishes what it has begun.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(0.05 if child.name.startswith("worker") else _STOP_TIMEOUT_S)
        for child in self._children:
            if child.process is not None:
                try:
                    child.process.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()


def _free_port(rpc_file: Path) -> int:
    """The port of the last start while it is free, so that a wallet finds the chain again; else any."""
    candidates = [0]
    with contextlib.suppress(OSError, ValueError, KeyError):
        candidates.insert(0, int(json.loads(rpc_file.read_text())["rpc"].rsplit(":", 1)[1]))
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise Misconfigured("no loopback port is free for the embedded chain")
