"""What can be asked of a gateway, its chain and its data folder from outside, by commands that start nothing.

Owns the questions of ``status`` and ``check``: is a gateway serving this folder, does it answer, what does the chain's
node say; refuses to change anything, to follow redirects and to wait long.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any, Final

import httpx

from gateway.config import Settings
from gateway.errors import ChainUnavailable

TIMEOUT_S: Final = 3.0
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # asked, not listened on


class Probe:
    """Asks over HTTP; ``transport`` replaces the network in tests."""

    def __init__(self, *, transport: httpx.BaseTransport | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._client = httpx.Client(timeout=timeout_s, transport=transport, trust_env=False, follow_redirects=False)

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def answers(self, settings: Settings) -> bool:
        """Whether ``/health/ready`` answers on the gateway's own address."""
        host = _ANY_ADDRESS.get(settings.host, settings.host)
        try:
            answer = self._client.get(f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/health/ready")
        except (httpx.HTTPError, httpx.InvalidURL):
            return False
        return answer.status_code == 200

    def call(self, rpc: str, method: str, *parameters: object) -> Any:  # Any: JSON
        """One JSON-RPC call's result. Raises ChainUnavailable, naming what went wrong."""
        try:
            answer = self._client.post(
                rpc, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)})
            body = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChainUnavailable(f"{rpc} does not answer ({type(error).__name__})") from error
        except (ValueError, RecursionError) as error:
            raise ChainUnavailable(f"{rpc} answers HTTP {answer.status_code}, and not with JSON") from error
        if not isinstance(body, dict) or "result" not in body:
            raise ChainUnavailable(f"{rpc} refuses {method}")
        return body["result"]

    def number(self, rpc: str, method: str, *parameters: object) -> int:
        """``call`` of a method that answers with a quantity. Raises ChainUnavailable."""
        return quantity(self.call(rpc, method, *parameters))

    def post(self, url: str) -> Any:  # Any: JSON
        """A POST without a body: its JSON answer. Raises ChainUnavailable."""
        try:
            answer = self._client.post(url)
            return answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
            raise ChainUnavailable(f"{url} does not answer ({type(error).__name__})") from error


def quantity(value: Any) -> int:  # Any: JSON
    """A JSON-RPC quantity. Raises ChainUnavailable."""
    try:
        return int(value, 16)
    except (TypeError, ValueError):
        raise ChainUnavailable("the node's answer is malformed: not a quantity") from None


def rpc_of(settings: Settings) -> str | None:
    """Where the chain answers: the setting, or where the embedded one was started last; None before that."""
    if settings.chain_rpc:
        return settings.chain_rpc
    try:
        return str(json.loads(settings.rpc_path.read_text())["rpc"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def serving(settings: Settings) -> bool:
    """Whether a gateway holds this data folder (its lock goes with the process, so a dead one holds nothing)."""
    try:
        descriptor = os.open(settings.data_dir / "serve.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
