"""Kubo as the block store: the adapter of ``BlobBackend`` to a node's RPC.

Owns addresses, timeouts and the translation of every error of its libraries; refuses a node older than 0.20,
an RPC address that is not loopback unless the operator allows it, redirects and proxies of the environment,
and any Cid or byte of the node's that differs from ours. https://docs.ipfs.tech/reference/kubo/rpc/

*ipfshttpclient* 0.7.0 is its last release. ``ipfshttpclient.connect()`` raises VersionMismatch for every
daemon from 0.8.0 on, that is for every Kubo of the last years, although the calls made here have not changed
since. So ``ipfshttpclient.client.Client`` is made directly, as its docstring offers, which skips the check;
in its place the version the daemon reports is compared with ``OLDEST`` on each new session.

*httpx* imports CARs. ``dag.imprt`` asserts that the answer has one line (with stats it has two, and the
second says whether every block arrived), and an assertion is no answer; nor can it bound the wait.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Final

import httpx
import ipfshttpclient  # type: ignore[import-untyped]  # ships no types
import ipfshttpclient.client  # type: ignore[import-untyped]
import ipfshttpclient.exceptions  # type: ignore[import-untyped]
import ipfshttpclient.http  # type: ignore[import-untyped]
import requests
import urllib3.exceptions

from gateway.errors import BlobUnavailable, BlockCorrupt, GatewayError, Misconfigured, WrongPlacement
from gateway.store.blobs import BlobStatus, checked, links
from gateway.store.cid import BINARY_SIZE, Codec, cid, cid_bytes, parse_cid
from gateway.store.ipfs_address import ApiAddress

OLDEST: Final = (0, 20)
PART_BYTES: Final = 32 << 20  # dag/import holds the node's pin lock throughout: a bigger Batch goes in parts
BIG_BLOCK_BYTES: Final = 2 << 20  # above it Kubo wants to be told that it is meant
LARGEST_BLOCK_BYTES: Final = 64 << 20
_ANSWER_BYTES: Final = 1 << 20
_GC_TIMEOUT_S: Final = 600.0
_IDLE_SESSIONS: Final = 16

_LIBRARY_ERRORS: Final = (
    ipfshttpclient.exceptions.Error, requests.exceptions.RequestException, urllib3.exceptions.HTTPError,
    httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError,
    # what ipfshttpclient and we run into on an answer of another shape
    OSError, AssertionError, ValueError, LookupError, TypeError, AttributeError,
)
# Kubo words: exchange/offline and go-ipld-format for absence, boxo's pinner and blockstore for the others
_ABSENT: Final = ("block was not found locally", "could not find")
_NOT_PINNED: Final = "not pinned or pinned indirectly"
_HASH_MISMATCH: Final = "different hash than requested"


class KuboBlobs:
    """``BlobBackend`` on a Kubo daemon; one RPC session a thread at a time, kept alive between calls.

    ``api``: multiaddr or URL of the RPC. ``allow_remote``: whether it may be other than loopback; whoever
    reaches the RPC owns the node, so it must never be public. ``timeout_s`` bounds each call that names no
    other limit; a node that dribbles is cut off at most one wait later.
    """

    def __init__(self, api: str, *, allow_remote: bool, timeout_s: float) -> None:
        self._address = ApiAddress.parse(api, allow_remote=allow_remote)
        self._timeout_s = timeout_s
        self._idle: deque[Any] = deque()  # ipfshttpclient.client.Client, untyped
        if not ipfshttpclient.http.ClientSync.__module__.endswith("http_requests"):
            raise Misconfigured("unset PY_IPFS_HTTP_CLIENT_PREFER_HTTPX: that transport of ipfshttpclient is broken")
        # It passes urllib3 an argument that urllib3 3 will refuse; the project keeps urllib3 below 3.
        warnings.filterwarnings("ignore", message="The 'strict' parameter", category=FutureWarning)
        self._http = httpx.Client(
            base_url=f"{self._address.url}/api/v0/", trust_env=False, follow_redirects=False,
            timeout=httpx.Timeout(timeout_s))

    def get(self, digest: bytes, *, timeout_s: float) -> bytes:
        """See BlobBackend; asks other nodes when this one has it not, until ``timeout_s``."""
        name = cid(digest)
        deadline = time.monotonic() + timeout_s
        block = bytearray()
        with (
            _translated(f"block/get of {name}"),
            self._session() as client,
            client.block.get(name, stream=True, **_limit(timeout_s)) as answer,
        ):
            for piece in answer:
                block += piece
                if len(block) > LARGEST_BLOCK_BYTES:
                    raise BlockCorrupt(f"the bytes served for {name} are more than any block has")
                _before(deadline, name)
        return checked(digest, bytes(block))

    def get_many(self, digests: Iterable[bytes], *, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """See BlobBackend. Pin the manifest first: blocks fetched one by one elsewhere come at 24 a second."""
        for digest in digests:
            yield digest, self.get(digest, timeout_s=timeout_s)

    def has(self, digest: bytes) -> bool:
        """See BlobBackend."""
        name = cid(digest)
        with _translated(f"block/stat of {name}"), self._session() as client:
            try:
                return bool(client.block.stat(name, offline=True, **_limit(self._timeout_s))["Key"] == name)
            except ipfshttpclient.exceptions.ErrorResponse as error:
                if any(words in str(error) for words in _ABSENT):
                    return False
                raise

    def push(self, manifest: bytes, manifest_digest: bytes, blocks: Iterable[tuple[bytes, bytes]]) -> None:
        """See BlobBackend. One CAR with the manifest as its only root; parts of ``PART_BYTES`` beyond that.

        The last part carries the manifest and pins it, in the node's offline mode: a link that is nowhere
        here fails the push. A collection between parts can take an earlier part, with the same outcome.
        """
        checked(manifest_digest, manifest)
        linked = {digest for _, digest in links(manifest)}
        part: list[tuple[Codec, bytes, bytes]] = []
        size, whole = 0, True
        for digest, block in blocks:
            if digest not in linked:
                raise WrongPlacement(f"{cid(digest)} is not linked by the manifest it was pushed with")
            if part and size + len(block) > PART_BYTES:
                self._import(manifest_digest, part, pin=False)
                part, size, whole = [], 0, False
            part.append(("raw", digest, checked(digest, block)))
            size += len(block)
        if whole and not part:
            self._put(manifest, manifest_digest)
        else:
            part.append(("dag-cbor", manifest_digest, manifest))
            self._import(manifest_digest, part, pin=True)

    def pin(self, manifest_digest: bytes, *, timeout_s: float) -> None:
        """See BlobBackend; a recursive pin fetches in parallel, 60 times faster than block by block."""
        self._pin(manifest_digest, offline=False, timeout_s=timeout_s)

    def pins(self) -> Iterator[bytes]:
        """See BlobBackend; recursive pins of dag-cbor blocks by sha2-256, whoever made them."""
        with _translated("pin/ls"), self._session() as client:
            answer = client.pin.ls(type="recursive", **_limit(self._timeout_s)).as_json()
        found = []
        for name in answer.get("Keys") or {}:
            try:
                codec, digest = parse_cid(name)
            except BlockCorrupt:  # a name no gateway gives: another user's pin
                continue
            if codec == "dag-cbor":
                found.append(digest)
        return iter(found)

    def unpin(self, manifest_digest: bytes) -> None:
        """See BlobBackend."""
        name = cid(manifest_digest, "dag-cbor")
        with _translated(f"pin/rm of {name}"), self._session() as client:
            try:
                client.pin.rm(name, offline=True, **_limit(self._timeout_s))
            except ipfshttpclient.exceptions.ErrorResponse as error:
                if _NOT_PINNED not in str(error):
                    raise

    def collect_garbage(self) -> int:
        """See BlobBackend; the node drops every block without a pin, also those of its other users.

        ``quiet`` is not used: ipfshttpclient then hangs up before the node is done.
        """
        deadline = time.monotonic() + _GC_TIMEOUT_S
        removed = 0
        with (
            _translated("repo/gc"), self._session() as client,
            client.repo.gc(stream=True, **_limit(_GC_TIMEOUT_S)) as answer,
        ):
            for line in answer:
                if line.as_json().get("Error"):
                    raise BlobUnavailable("repo/gc stopped at a block it cannot remove")
                removed += 1
                _before(deadline, "repo/gc")
        return removed

    def status(self) -> BlobStatus:
        """See BlobBackend. Raises Misconfigured when the daemon is older than ``OLDEST``."""
        with _translated("version"), self._session() as client:
            version = _version(client, self._timeout_s)
            limit = _limit(self._timeout_s)
            size = client.repo.stat(timeout=limit["timeout"], opts={**limit["opts"], "size-only": "true"})["RepoSize"]
            return BlobStatus(backend="kubo", version=version, stored_bytes=int(size))

    def close(self) -> None:
        """Close every idle session; one in use closes with its call."""
        while self._idle:
            self._idle.pop().close()
        self._http.close()

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """An RPC session no other thread uses; after any error its connection is not trusted again."""
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._open()
        try:
            yield client
        except BaseException:
            client.close()
            raise
        if len(self._idle) < _IDLE_SESSIONS:
            self._idle.append(client)
        else:
            client.close()

    def _open(self) -> Any:
        client = ipfshttpclient.client.Client(self._address.multiaddr, timeout=self._timeout_s)
        # The session's own attributes have no public door: no HTTP(S)_PROXY, no .netrc, no redirect.
        client._client._session_props.update(trust_env=False, max_redirects=0)
        client._client.open_session()
        try:
            _version(client, self._timeout_s)
        except BaseException:
            client.close()
            raise
        return client

    def _put(self, manifest: bytes, manifest_digest: bytes) -> None:
        """A manifest whose links the node has already. The hash is named: its default is the node's setting."""
        name = cid(manifest_digest, "dag-cbor")
        limit = _limit(self._timeout_s)
        opts = {**limit["opts"], "cid-codec": "dag-cbor", "mhtype": "sha2-256"}
        if len(manifest) > BIG_BLOCK_BYTES:
            opts["allow-big-block"] = "true"
        with _translated(f"block/put of {name}"), self._session() as client:
            made = client.block.put(BytesIO(manifest), timeout=limit["timeout"], opts=opts)["Key"]
        if made != name:
            raise BlockCorrupt(f"the node stored {name} under another Cid")
        self._pin(manifest_digest, offline=True, timeout_s=self._timeout_s)

    def _pin(self, manifest_digest: bytes, *, offline: bool, timeout_s: float) -> None:
        name = cid(manifest_digest, "dag-cbor")
        with _translated(f"pin/add of {name}"), self._session() as client:
            pinned = client.pin.add(name, recursive=True, offline=offline, **_limit(timeout_s)).as_json()
            if pinned["Pins"] != [name]:
                raise BlobUnavailable(f"the node pinned something else than {name}")

    def _import(self, root: bytes, part: Sequence[tuple[Codec, bytes, bytes]], *, pin: bool) -> None:
        name = cid(root, "dag-cbor")
        car = b"".join([_car_header(root), *(_car_section(codec, digest, block) for codec, digest, block in part)])
        options = {"pin-roots": "true" if pin else "false", "stats": "true", **_limit(self._timeout_s)["opts"]}
        if any(len(block) > BIG_BLOCK_BYTES for _, _, block in part):
            options["allow-big-block"] = "true"
        with _translated(f"dag/import of {name}"):
            lines = self._post("dag/import", options, car)
            stats = [line["Stats"]["BlockCount"] for line in lines if line.get("Stats")]
            roots = [(line["Root"]["Cid"]["/"], line["Root"]["PinErrorMsg"]) for line in lines if line.get("Root")]
            if stats != [len(part)]:
                raise BlobUnavailable(f"dag/import of {name}: the node did not take every block")
            if roots != ([(name, "")] if pin else []):
                raise BlobUnavailable(f"dag/import of {name}: a link is missing, nothing was pinned")

    def _post(self, command: str, options: Mapping[str, str], body: bytes) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self._timeout_s
        answer = bytearray()
        # httpx keeps sessions of its own, so the daemon behind the address is checked through one of the others
        with self._session():
            pass
        files = {"file": ("batch.car", body, "application/vnd.ipld.car")}
        with self._http.stream("POST", command, params=dict(options), files=files) as response:
            for piece in response.iter_bytes():
                answer += piece
                if len(answer) > _ANSWER_BYTES:
                    raise BlobUnavailable(f"{command}: the node's answer is too long")
                _before(deadline, command)
        if response.status_code != httpx.codes.OK:
            raise BlobUnavailable(f"{command}: the node answered {response.status_code}")
        return [json.loads(line) for line in answer.splitlines() if line.strip()]


def _car_header(root: bytes) -> bytes:
    """CARv1's length-prefixed dag-cbor ``{roots: [root], version: 1}``. https://ipld.io/specs/transport/car/carv1/"""
    header = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00" + cid_bytes(root, "dag-cbor") + b"\x67version\x01"
    return bytes([len(header)]) + header


def _car_section(codec: Codec, digest: bytes, block: bytes) -> bytes:
    size, prefix = BINARY_SIZE + len(block), bytearray()
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes([*prefix, size]) + cid_bytes(digest, codec) + block


def _limit(timeout_s: float) -> dict[str, Any]:
    """ipfshttpclient's arguments for a time limit: Kubo gives up just before we do, and answers so."""
    return {"timeout": (timeout_s, timeout_s), "opts": {"timeout": f"{max(1, int(timeout_s * 900))}ms"}}


def _before(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise BlobUnavailable(f"{what}: the node did not finish in time")


def _version(client: Any, timeout_s: float) -> str:
    version = str(client.version(timeout=(timeout_s, timeout_s))["Version"])
    major, minor = (int(number) for number in version.split("-")[0].split(".")[:2])
    if (major, minor) < OLDEST:
        raise Misconfigured(f"Kubo {version} is too old: {OLDEST[0]}.{OLDEST[1]}.0 or later is needed")
    return version


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Every error of ipfshttpclient, requests, urllib3 and httpx as BlobUnavailable or BlockCorrupt."""
    try:
        yield
    except GatewayError:
        raise
    except _LIBRARY_ERRORS as error:
        if isinstance(error, ipfshttpclient.exceptions.ErrorResponse) and _HASH_MISMATCH in str(error):
            raise BlockCorrupt(f"{what}: the node finds its own block damaged") from error
        raise BlobUnavailable(f"{what}: {type(error).__name__}") from error
