"""The loopback door: HTTP/1.1 POST of JSON-RPC, for the gateway's processes and for a wallet in a local page.

Owns sizes, time limits, the number of connections, CORS for pages from this machine; refuses a Host that is not this
machine (DNS rebinding), foreign Origins, other methods and media types.
Spec: RFC 9110, https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from gateway.ledger.devchain.rpc import Rpc

MAX_BODY: Final = 4 * 1024 * 1024
MAX_CONNECTIONS: Final = 64
IDLE_S: Final = 75.0
_LOCAL = r"(?:localhost|127\.0\.0\.1|\[::1\])"
_HOST = re.compile(_LOCAL + r"(?::\d{1,5})?")
_ORIGIN = re.compile(r"https?://" + _LOCAL + r"(?::\d{1,5})?|(?:chrome|moz)-extension://[A-Za-z0-9-]+")


class Door(ThreadingHTTPServer):
    """``server_address`` tells the port where 0 was asked for."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, rpc: Rpc) -> None:
        self.rpc = rpc
        self.places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def process_request(self, request: object, client_address: object) -> None:
        if not self.places.acquire(timeout=1.0):
            self.shutdown_request(request)  # type: ignore[arg-type]  # typeshed's union of socket kinds
            return
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]  # as above
        except BaseException:
            self.places.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]  # as above
        finally:
            self.places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "gateway-devchain"
    sys_version = ""
    timeout = IDLE_S
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Door

    def do_POST(self) -> None:  # the base class's name
        if not self._welcome():
            return None
        if self.headers.get_content_type() != "application/json":
            return self._answer(415, b'{"error":"send application/json"}')
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or "Transfer-Encoding" in self.headers:
            return self._answer(411, b'{"error":"send Content-Length"}')
        if int(length) > MAX_BODY:
            return self._answer(413, b'{"error":"the body is too large"}')
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return None
        answer = self.server.rpc.answer(body)
        return self._answer(204 if answer is None else 200, answer or b"", read=True)

    def do_OPTIONS(self) -> None:
        if self._welcome():
            self._answer(204, b"", read=True, preflight=True)

    def do_GET(self) -> None:
        if self._welcome():
            self._answer(405, b'{"error":"this is a JSON-RPC door: POST"}')

    do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET  # noqa: N815

    def _welcome(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        bound = str(self.server.server_address[0])
        known = len(hosts) == 1 and (_HOST.fullmatch(hosts[0]) or hosts[0].rsplit(":", 1)[0] == bound)
        if not known:
            self._answer(403, b'{"error":"this Host is not known here"}')
            return False
        origin = self.headers.get("Origin")
        if origin is not None and not _ORIGIN.fullmatch(origin):
            self._answer(403, b'{"error":"this Origin is not let in"}')
            return False
        return True

    def _answer(self, status: int, body: bytes, *, read: bool = False, preflight: bool = False) -> None:
        """``read``: the request's body was taken whole, so the connection can go on."""
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        origin = self.headers.get("Origin")
        self.send_header("Vary", "Origin")
        if origin is not None and _ORIGIN.fullmatch(origin):
            self.send_header("Access-Control-Allow-Origin", origin)
            if preflight:
                self.send_header("Access-Control-Allow-Methods", "POST")
                self.send_header("Access-Control-Allow-Headers", "Content-Type")
                self.send_header("Access-Control-Max-Age", "600")
                if self.headers.get("Access-Control-Request-Private-Network") == "true":
                    self.send_header("Access-Control-Allow-Private-Network", "true")
        if not read:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if status != 204 and self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses (bad request line, too long headers) without its HTML page."""
        self.close_connection = True
        body = b'{"error":"bad request"}'
        self.wfile.write(b"HTTP/1.1 %d refused\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                         b"Connection: close\r\n\r\n%s" % (code, len(body), body))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """One line per request tells nothing here."""
