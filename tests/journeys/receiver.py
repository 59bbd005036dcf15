"""What the journeys send notifications to: a server on loopback that keeps what came and answers as it is told."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def bundle(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def status(self) -> dict[str, Any]:
        """The SubscriptionStatus of a notification: values by name, events as a list."""
        found: dict[str, Any] = {"events": []}
        for one in self.bundle["entry"][0]["resource"]["parameter"]:
            if one["name"] == "notification-event":
                found["events"].append({part["name"]: value(part) for part in one["part"]})
            else:
                found[one["name"]] = value(one)
        return found


def value(parameter: dict[str, Any]) -> Any:
    found = next(item for key, item in parameter.items() if key.startswith("value"))
    return found.get("reference", found) if isinstance(found, dict) else found


class Receiver:
    """``answers``: statuses to answer with, one after another; 200 when there are none left."""

    def __init__(self) -> None:
        self.came: list[Received] = []
        self.answers: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                body = self.rfile.read(length)
                if len(body) < length:
                    self.close_connection = True  # the sender was killed on the way: nothing came
                    return
                outer.came.append(Received(self.command, self.path, dict(self.headers), body))
                status = outer.answers.pop(0) if outer.answers else 200
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "http://169.254.169.254/latest")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_PUT = do_OPTIONS = do_GET = answer  # noqa: N815  # the names the library calls

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def taken(self) -> list[Received]:
        """What came since it was last asked."""
        found, self.came = self.came, []
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
