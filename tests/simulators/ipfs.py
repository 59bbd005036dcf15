"""A Kubo RPC server on loopback that can lose, corrupt, hang and lie.

Owns the shapes of ``/api/v0`` as Kubo 0.43 answers (POST only, JSON lines, errors as 500 with Message, Code and
Type); refuses to be a node: no swarm but the ``peers`` given, no store but memory.
https://docs.ipfs.tech/reference/kubo/rpc/
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateway.store.blobs import links
from gateway.store.cid import Codec, cid, digest_block, parse_cid, parse_cid_bytes

_HANG_LIMIT_S = 20.0


class KuboSays(Exception):
    """A command's failure: status 500 with this message."""


class FakeKubo:
    """One node: ``api`` is its URL. Use as a context manager.

    ``lose``/``corrupt`` work on stored blocks, ``hanging`` names commands that do not answer, ``answers`` gives a
    command a raw (status, content type, body), ``dribbling`` a body that never ends, ``dropping`` a closed socket.
    """

    def __init__(self, *, version: str = "0.43.0", peers: tuple[FakeKubo, ...] = ()) -> None:
        self.version = version
        self.peers = peers
        self.blocks: dict[bytes, bytes] = {}
        self.recursive: dict[bytes, Codec] = {}
        self.foreign_pins: set[str] = set()
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.proxied: list[str] = []
        self.hanging: set[str] = set()
        self.dribbling: set[str] = set()
        self.dropping: set[str] = set()
        self.answers: dict[str, tuple[int, str, bytes]] = {}
        self.redirects: dict[str, str] = {}
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.api = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> FakeKubo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering and let go whoever hangs."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def lose(self, digest: bytes) -> None:
        """The repository forgets a block; its pins stay."""
        del self.blocks[digest]

    def corrupt(self, digest: bytes) -> None:
        """One bit of a stored block flips."""
        block = bytearray(self.blocks[digest])
        block[len(block) // 2] ^= 1
        self.blocks[digest] = bytes(block)

    def run(self, command: str, options: dict[str, list[str]], files: list[bytes]) -> Iterator[bytes | dict[str, Any]]:
        """The answer of one command, JSON lines as dicts."""
        arguments = options.get("arg", [])
        offline = options.get("offline") == ["true"]
        match command:
            case "version":
                yield {"Version": self.version, "Commit": "", "Repo": "18", "System": "amd64/linux", "Golang": "go1"}
            case "repo/stat":
                yield {"RepoSize": sum(map(len, self.blocks.values())), "StorageMax": 10**10, "NumObjects": 0,
                       "RepoPath": "", "Version": ""}
            case "block/get":
                yield self._block(parse_cid(arguments[0])[1], offline=offline, options=options)
            case "block/stat":
                size = len(self._block(parse_cid(arguments[0])[1], offline=offline, options=options))
                yield {"Key": arguments[0], "Size": size}
            case "block/put":
                yield from self._put(options, files)
            case "pin/add":
                for name in arguments:
                    self._pin(name, offline=offline, options=options)
                yield {"Pins": arguments}
            case "pin/ls":
                names = [cid(digest, codec) for digest, codec in self.recursive.items()]
                pins = {name: {"Type": "recursive", "Name": ""} for name in [*names, *self.foreign_pins]}
                yield {"Keys": pins} if pins else {}
            case "pin/rm":
                for name in arguments:
                    if self.recursive.pop(parse_cid(name)[1], None) is None:
                        raise KuboSays("not pinned or pinned indirectly")
                yield {"Pins": arguments}
            case "dag/import":
                yield from self._import(options, files)
            case "repo/gc":
                kept = {reached for digest in self.recursive for reached in self._reach(digest)}
                for digest in self.blocks.keys() - kept:
                    del self.blocks[digest]
                    yield {"Key": {"/": cid(digest)}}
            case _:
                raise LookupError(command)

    def _block(self, digest: bytes, *, offline: bool, options: dict[str, list[str]]) -> bytes:
        if digest in self.blocks:
            return self.blocks[digest]
        if offline:
            raise KuboSays(f"block was not found locally (offline): ipld: could not find {cid(digest)}")
        for peer in self.peers:
            block = peer.blocks.get(digest)
            if block is not None and digest_block(block) == digest:  # bitswap drops what does not hash
                self.blocks[digest] = block
                return block
        limit = re.fullmatch(r"(\d+)ms", options.get("timeout", [""])[0])
        self.released.wait(min(int(limit[1]) / 1000, _HANG_LIMIT_S) if limit else _HANG_LIMIT_S)
        raise KuboSays("context deadline exceeded")

    def _put(self, options: dict[str, list[str]], files: list[bytes]) -> Iterator[dict[str, Any]]:
        big = options.get("allow-big-block") == ["true"]
        if options.get("mhtype") != ["sha2-256"]:
            raise KuboSays("this simulator's Import.HashFunction is not sha2-256")
        for block in files:
            if len(block) > 2 << 20 and not big:
                raise KuboSays("produced block is over 2MiB: big blocks can't be exchanged with other peers")
            digest = digest_block(block)
            self.blocks[digest] = block
            codec: Codec = "dag-cbor" if options.get("cid-codec") == ["dag-cbor"] else "raw"
            yield {"Key": cid(digest, codec), "Size": len(block)}

    def _import(self, options: dict[str, list[str]], files: list[bytes]) -> Iterator[dict[str, Any]]:
        count = size = 0
        for car in files:
            roots, sections = read_car(car)
            for digest, block in sections:
                if digest_block(block) != digest:
                    raise KuboSays("import failed: mismatch in content integrity, data and CID do not match")
                if len(block) > 2 << 20 and options.get("allow-big-block") != ["true"]:
                    raise KuboSays("import failed: produced block is over 2MiB")
                self.blocks[digest] = block
                count, size = count + 1, size + len(block)
            if options.get("pin-roots", ["true"]) == ["true"]:
                for root in roots:
                    message = ""
                    try:
                        self._pin(root, offline=True, options=options)
                    except KuboSays as error:
                        message = str(error)
                    yield {"Root": {"Cid": {"/": root}, "PinErrorMsg": message}}
        if options.get("stats") == ["true"]:
            yield {"Stats": {"BlockCount": count, "BlockBytesCount": size}}

    def _pin(self, name: str, *, offline: bool, options: dict[str, list[str]]) -> None:
        codec, digest = parse_cid(name)
        block = self._block(digest, offline=offline, options=options)
        try:
            for _, linked in links(block) if codec == "dag-cbor" else ():
                self._block(linked, offline=False, options=options)  # the pinner is never offline
        except KuboSays as error:
            raise KuboSays(f"pin: {error}") from error
        self.recursive[digest] = codec

    def _reach(self, digest: bytes) -> set[bytes]:
        below = links(self.blocks[digest]) if self.recursive[digest] == "dag-cbor" else []
        return {digest, *(linked for _, linked in below)}


def read_car(car: bytes) -> tuple[list[str], list[tuple[bytes, bytes]]]:
    """Roots' names and (digest, bytes) of a CARv1, hashes not checked. https://ipld.io/specs/transport/car/carv1/"""
    size, position = _varint(car, 0)
    header, position = car[position : position + size], position + size
    assert header.endswith(b"\x67version\x01")  # the canonical header: {roots, version}
    roots = [cid(digest, codec) for codec, digest in links(header)]
    sections = []
    while position < len(car):
        size, position = _varint(car, position)
        _, digest = parse_cid_bytes(car[position : position + 36])
        sections.append((digest, car[position + 36 : position + size]))
        position += size
    return roots, sections


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _handler(node: FakeKubo) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:  # Kubo: 405 for everything but POST
            self._send(405, "text/plain", b"405 - Method Not Allowed\n")

        def do_POST(self) -> None:
            body = self._body()
            if self.path.startswith("http"):
                node.proxied.append(self.path)
                return self._send(502, "text/plain", b"")
            url = urlsplit(self.path)
            command = url.path.removeprefix("/api/v0/")
            options = parse_qs(url.query)
            node.calls.append((command, {name: values[0] for name, values in options.items()}))
            if command in node.dropping:
                self.close_connection = True
                return None
            if command in node.hanging:
                node.released.wait(_HANG_LIMIT_S)
                self.close_connection = True
                return None
            if command in node.redirects:
                self.send_response(307)
                self.send_header("Location", node.redirects[command])
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if command in node.answers:
                return self._send(*node.answers[command])
            if command in node.dribbling:
                return self._dribble()
            try:
                parts = list(node.run(command, options, _files(self.headers["Content-Type"], body)))
            except KuboSays as error:
                answer = json.dumps({"Message": str(error), "Code": 0, "Type": "error"}).encode()
                return self._send(500, "application/json", answer)
            except LookupError:
                return self._send(404, "text/plain", b"404 page not found\n")
            if len(parts) == 1 and isinstance(parts[0], bytes):
                return self._send(200, "application/vnd.ipld.raw", parts[0])
            return self._send(200, "application/json", b"".join(json.dumps(part).encode() + b"\n" for part in parts))

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _send(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _dribble(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.close_connection = True
            try:
                while not node.released.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler


def _files(content_type: str | None, body: bytes) -> list[bytes]:
    """Contents of the parts of multipart/form-data."""
    boundary = re.search(r'boundary="?([^";]+)', content_type or "")
    if boundary is None:
        return []
    parts = body.split(b"--" + boundary[1].encode())[1:-1]
    return [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in parts]
