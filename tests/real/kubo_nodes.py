"""Kubo daemons of our own for tests: loopback only, a private swarm, no bootstrap, no routing, in a temporary folder.

No ordinary package client installs Kubo: one on PATH is used, or the one that ``GATEWAY_TEST_IPFS_API`` names.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import httpx

from gateway.store.ipfs_address import ApiAddress
from tests.running import free_port

GIVEN = os.environ.get("GATEWAY_TEST_IPFS_API", "")
IPFS = shutil.which("ipfs")
START_LIMIT_S = 60.0
NOT_RUN = "Kubo: NOT RUN, no `ipfs` on PATH and GATEWAY_TEST_IPFS_API not set"
NO_OWN_NODES = "Kubo: NOT RUN on nodes of our own, there is no `ipfs` on PATH"


class Node:
    """One daemon in ``home``, on the same RPC port each time; those given the same ``swarm_key`` may meet."""

    def __init__(self, home: Path, swarm_key: str) -> None:
        self.home = home
        home.mkdir()
        self._environment = {**os.environ, "IPFS_PATH": str(home), "LIBP2P_FORCE_PNET": "1", "IPFS_TELEMETRY": "off"}
        self._run("init", "--empty-repo")
        (home / "swarm.key").write_text(swarm_key)
        config = json.loads((home / "config").read_text())
        config["Addresses"] = {"API": f"/ip4/127.0.0.1/tcp/{free_port()}", "Gateway": None, "Announce": [],
                               "AppendAnnounce": [], "NoAnnounce": [], "Swarm": ["/ip4/127.0.0.1/tcp/0"]}
        config["Bootstrap"] = []
        config["AutoConf"] = {"Enabled": False}
        config["AutoTLS"] = {"Enabled": False}
        config["DNS"] = {"Resolvers": {}}
        config["Discovery"] = {"MDNS": {"Enabled": False}}
        config["Routing"] = {"Type": "none", "DelegatedRouters": []}
        config["Ipns"] = {**config.get("Ipns", {}), "DelegatedPublishers": []}
        config["Swarm"] = {"AddrFilters": [], "DisableNatPortMap": True, "RelayClient": {"Enabled": False},
                           "RelayService": {"Enabled": False}, "EnableHolePunching": False,
                           "Transports": {"Network": {"QUIC": False, "WebTransport": False, "Websocket": False,
                                                      "WebRTCDirect": False}}}
        (home / "config").write_text(json.dumps(config))
        self.start()

    def start(self) -> None:
        """Start the daemon and wait until its RPC answers."""
        (self.home / "api").unlink(missing_ok=True)
        self._log = (self.home / "daemon.log").open("ab")
        self.process = subprocess.Popen([str(IPFS), "daemon"], env=self._environment, stdin=subprocess.DEVNULL,
                                        stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if (self.home / "api").exists():
                self.api = (self.home / "api").read_text().strip()
                self.url = ApiAddress.parse(self.api, allow_remote=False).url
                try:
                    self.call("id")
                    return
                except httpx.HTTPError:
                    pass
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"Kubo did not start:\n{(self.home / 'daemon.log').read_text()[-2000:]}")

    def call(self, command: str, **options: str) -> dict[str, object]:
        """One RPC command's JSON."""
        answer = httpx.post(f"{self.url}/api/v0/{command}", params=options, timeout=10, trust_env=False)
        answer.raise_for_status()
        result: dict[str, object] = answer.json()
        return result

    def meet(self, other: Node) -> None:
        """Connect this node to the other."""
        identity = other.call("id")
        addresses = identity["Addresses"]
        assert isinstance(addresses, list)
        self.call("swarm/connect", arg=next(str(address) for address in addresses if "/tcp/" in str(address)))

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait()
        self._log.close()

    def _run(self, *arguments: str) -> None:
        subprocess.run([str(IPFS), *arguments], env=self._environment, check=True, capture_output=True, timeout=60)


def swarm_key() -> str:
    return f"/key/swarm/psk/1.0.0/\n/base16/\n{secrets.token_hex(32)}\n"
