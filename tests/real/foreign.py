"""A client that is not ours, run as its own process, which is helped on by people and by the hospital on its way.

It prints JSON, a line at a time. Each asks for something and is answered by a line; the last is ``{"seen": …}``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tests.running import Gateway

Answer = Callable[[dict[str, Any]], dict[str, Any]]
LIFE_S = 120


def seen_by(command: Sequence[str], answer: Answer) -> dict[str, Any]:
    """What the client saw, its questions answered."""
    with tempfile.TemporaryFile("w+") as complaints, subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, bufsize=1) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        watchdog = threading.Timer(LIFE_S, client.kill)
        watchdog.start()
        try:
            for line in client.stdout:
                said: dict[str, Any] = json.loads(line)
                if "seen" in said:
                    seen: dict[str, Any] = said["seen"]
                    return seen
                print(json.dumps(answer(said)), file=client.stdin)
        finally:
            watchdog.cancel()
            client.kill()
        complaints.seek(0)
        raise AssertionError(f"the client ended without a word, or within {LIFE_S} s not:\n{complaints.read()[-4000:]}")


def let_in(gateway: Gateway, client_id: str) -> None:
    """The hospital approves a registration as it stands."""
    revision = json.loads(gateway.run("client", "show", client_id).stdout)["revision"]
    gateway.run("client", "approve", client_id, "--revision", revision)
