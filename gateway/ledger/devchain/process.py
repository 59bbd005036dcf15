"""The embedded chain's process: opens it, serves it, ends on SIGTERM, SIGINT or with its parent.

Owns the command line and the order of start and stop; refuses to listen beyond loopback. Prints one line of JSON,
``{"rpc": ..., "chain_id": ..., "head": ...}``, once it answers.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gateway.errors import Misconfigured
from gateway.ledger.devchain.accounts import ensure_accounts
from gateway.ledger.devchain.http import Door
from gateway.ledger.devchain.node import LEAD_S, Node
from gateway.ledger.devchain.rpc import Rpc

FILE_NAME: Final = "chain.sqlite"
STACK_BYTES: Final = 64 * 1024 * 1024
"""Of address space, per thread: contracts that call contracts recurse in py-evm, which lifts Python's own limit."""


def serve(*, data_dir: Path, keys_file: Path, host: str, port: int,
          ready: Callable[[str, int, int], None] | None = None, parent: int | None = None,
          lead_s: float = LEAD_S) -> None:
    """Serve until told to stop; ``ready(url, chain id, head)`` is called once requests are answered.

    ``Misconfigured``: not loopback, the data is in use or damaged, other keys, port taken. Only in a main thread are
    signals taken over. With ``parent`` it ends when that process is its parent no longer.
    """
    if host != "localhost" and not _is_loopback(host):
        raise Misconfigured(f"the embedded chain listens on loopback only, not on {host}")
    accounts = ensure_accounts(keys_file)
    node = Node(data_dir / FILE_NAME, [bytes.fromhex(a.address[2:]) for a in accounts], lead_s=lead_s)
    try:
        try:
            door = Door(host, port, Rpc(node))
        except OSError as error:
            raise Misconfigured(f"the embedded chain cannot listen on {host}:{port}: {error.strerror}") from error
        stop = threading.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
        listener = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        listener.start()
        shown = f"[{host}]" if ":" in host else host
        if ready is not None:
            ready(f"http://{shown}:{door.server_address[1]}", node.chain_id, node.head().block_number)
        while not stop.wait(1.0) and (parent is None or os.getppid() == parent):
            pass
        door.shutdown()
        door.server_close()
    finally:
        node.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after a clean end, 2 with a line on stderr when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m gateway.ledger.devchain", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--keys-file", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any free one")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this parent process does")
    parser.add_argument("--lead-s", type=float, default=LEAD_S,
                        help="how far a burst of blocks may run ahead of the clock (tests: much)")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    threading.stack_size(STACK_BYTES)

    def ready(url: str, chain_id: int, head: int) -> None:
        seconds = round(time.monotonic() - started, 2)
        print(json.dumps({"rpc": url, "chain_id": chain_id, "head": head, "seconds": seconds}), flush=True)

    try:
        serve(data_dir=given.data_dir, keys_file=given.keys_file, host=given.host, port=given.port, ready=ready,
              parent=given.parent, lead_s=given.lead_s)
    except Misconfigured as error:
        print(f"devchain: {error}", file=sys.stderr)
        return 2
    return 0
