"""Kubo as the block store: the adapter of ``BlobBackend`` to a node's RPC.

Owns addresses, timeouts and the translation of every error of its libraries; refuses a node older than 0.20,
an RPC address that is not loopback unless the operator allows it, redirects and proxies of the environment,
and any Cid or byte of the node's that differs from ours. https://docs.ipfs.tech/reference/kubo/rpc/

*ipfshttpclient* 0.7.0 is its last release. ``ipfshttpclient.connect()`` raises VersionMismatch for every
daemon from 0.8.0 on, that is for every Kubo of the last years, although the calls made here have not changed
since. So ``ipfshttpclient.client.Client`` is made directly, as its docstring offers, which skips the check;
in its place the version the daemon reports is compared with ``OLDEST`` on each new session.

*httpx* moves the blocks: block/get and dag/import. ipfshttpclient reads a body of known length in one go, so
neither its size nor the whole wait can be bounded (its timeout is that of one socket read), and it is half as
fast; ``dag.imprt`` asserts that the answer has one line, while with stats it has two, and the second says
whether every block arrived. What stays with ipfshttpclient are commands with small answers.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from gateway.store.car import BLOCK_MAX, Block, write_car
from gateway.store.cid import Codec, cid, parse_cid
from gateway.store.ipfs_address import ApiAddress

OLDEST: Final = (0, 20)
PART_BYTES: Final = 32 << 20  # dag/import holds the node's pin lock throughout: a bigger Batch goes in parts
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
        with _translated(f"block/get of {name}"):
            block = self._post("block/get", {"arg": name}, timeout_s=timeout_s, limit_bytes=LARGEST_BLOCK_BYTES)
        return checked(digest, block)

    def get_many(self, digests: Iterable[bytes], *, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """See BlobBackend. Pin the manifest first: blocks fetched one by one elsewhere come at 24 a second."""
        for digest in digests:
            yield digest, self.get(digest, timeout_s=timeout_s)

    def has(self, digest: bytes) -> bool:
        """See BlobBackend."""
        name = cid(digest)
        with _translated(f"block/stat of {name}"), self._session() as client:
            try:
                if client.block.stat(name, offline=True, **_limit(self._timeout_s))["Key"] != name:
                    raise BlobUnavailable(f"the node answers of another block than {name}")
                return True
            except ipfshttpclient.exceptions.ErrorResponse as error:
                if any(words in str(error) for words in _ABSENT):
                    return False
                raise

    def push(self, manifest: bytes, manifest_digest: bytes, blocks: Iterable[tuple[bytes, bytes]]) -> None:
        """See BlobBackend. One CAR with the manifest as its only root; parts of ``PART_BYTES`` beyond that.

        The last part carries the manifest and pins it. Links that were not given are looked for first: Kubo
        would not fail on one that is missing but wait for it, offline too, holding its pin lock. A collection
        between parts can still take an earlier one; then the push fails at ``timeout_s`` and may be repeated.
        """
        checked(manifest_digest, manifest)
        awaited = {digest for _, digest in links(manifest)}
        linked = frozenset(awaited)
        part: list[Block] = []
        size = 0
        for digest, block in blocks:
            if digest not in linked:
                raise WrongPlacement(f"{cid(digest)} is not linked by the manifest it was pushed with")
            awaited.discard(digest)
            if len(checked(digest, block)) > BLOCK_MAX:
                self._put("raw", digest, block)
                continue
            if part and size + len(block) > PART_BYTES:
                self._import(manifest_digest, part, pin=False)
                part, size = [], 0
            part.append(("raw", digest, block))
            size += len(block)
        missing = sum(not self.has(digest) for digest in awaited)
        if missing:
            raise BlobUnavailable(f"{missing} links of {cid(manifest_digest, 'dag-cbor')} are neither given nor held")
        if part:
            self._import(manifest_digest, [*part, ("dag-cbor", manifest_digest, manifest)], pin=True)
        else:
            self._put("dag-cbor", manifest_digest, manifest)
            self._pin(manifest_digest, offline=True, timeout_s=self._timeout_s)

    def pin(self, manifest_digest: bytes, *, timeout_s: float) -> None:
        """See BlobBackend; a recursive pin fetches in parallel, 60 times faster than block by block."""
        self._pin(manifest_digest, offline=False, timeout_s=timeout_s)

    def pins(self) -> Iterator[bytes]:
        """See BlobBackend; recursive pins of dag-cbor blocks by sha2-256, whoever made them."""
        with _translated("pin/ls"), self._session() as client:
            names = list(client.pin.ls(type="recursive", **_limit(self._timeout_s)).as_json().get("Keys") or ())
        found = []
        for name in names:
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
                if client.pin.rm(name, offline=True, **_limit(self._timeout_s)).as_json()["Pins"] != [name]:
                    raise BlobUnavailable(f"the node unpinned something else than {name}")
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
        self._forget()
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

    def _forget(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

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

    def _put(self, codec: Codec, digest: bytes, block: bytes) -> None:
        """One block by itself. The hash is named: its default is the node's setting."""
        name = cid(digest, codec)
        limit = _limit(self._timeout_s)
        opts = {**limit["opts"], "cid-codec": codec, "mhtype": "sha2-256"}
        if len(block) > BLOCK_MAX:  # Kubo wants to be told that it is meant; not every peer will exchange it
            opts["allow-big-block"] = "true"
        with _translated(f"block/put of {name}"), self._session() as client:
            made = client.block.put(BytesIO(block), timeout=limit["timeout"], opts=opts)["Key"]
        if made != name:
            raise BlockCorrupt(f"the node stored {name} under another Cid")

    def _pin(self, manifest_digest: bytes, *, offline: bool, timeout_s: float) -> None:
        name = cid(manifest_digest, "dag-cbor")
        with _translated(f"pin/add of {name}"), self._session() as client:
            pinned = client.pin.add(name, recursive=True, offline=offline, **_limit(timeout_s)).as_json()
            if pinned["Pins"] != [name]:
                raise BlobUnavailable(f"the node pinned something else than {name}")

    def _import(self, root: bytes, part: Sequence[Block], *, pin: bool) -> None:
        name = cid(root, "dag-cbor")
        car = b"".join(write_car([("dag-cbor", root)], part))
        options = {"pin-roots": "true" if pin else "false", "stats": "true"}
        with _translated(f"dag/import of {name}"):
            answer = self._post("dag/import", options, timeout_s=self._timeout_s, limit_bytes=_ANSWER_BYTES,
                                files={"file": ("batch.car", car, "application/vnd.ipld.car")})
            lines = [json.loads(line) for line in answer.splitlines() if line.strip()]
            stats = [line["Stats"]["BlockCount"] for line in lines if line.get("Stats")]
            roots = [(line["Root"]["Cid"]["/"], line["Root"]["PinErrorMsg"]) for line in lines if line.get("Root")]
            if stats != [len(part)]:
                raise BlobUnavailable(f"dag/import of {name}: the node did not take every block")
            if roots != ([(name, "")] if pin else []):
                raise BlobUnavailable(f"dag/import of {name}: a link is missing, nothing was pinned")

    def _post(self, command: str, options: Mapping[str, str], *, timeout_s: float, limit_bytes: int,
              files: Mapping[str, tuple[str, bytes, str]] | None = None) -> bytes:
        """One command through httpx: the whole of it within ``timeout_s`` and one socket wait more."""
        with self._session():  # httpx has connections of its own: that the daemon is not too old is known by these
            pass
        deadline = time.monotonic() + timeout_s
        answer = bytearray()
        params = {**options, **_limit(timeout_s)["opts"]}
        try:
            with self._http.stream("POST", command, params=params, files=files, timeout=timeout_s) as response:
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > limit_bytes:
                        raise BlockCorrupt(f"{command}: the node's answer is longer than any there is")
                    _before(deadline, command)
        except httpx.HTTPError:
            self._forget()
            raise
        if response.status_code == httpx.codes.OK:
            return bytes(answer)
        if _HASH_MISMATCH in answer.decode(errors="replace"):
            raise BlockCorrupt(f"{command}: the node finds its own block damaged")
        raise BlobUnavailable(f"{command}: the node answered {response.status_code}")


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
    """Every error of ipfshttpclient, requests, urllib3 and httpx as BlobUnavailable; ours pass."""
    try:
        yield
    except GatewayError:
        raise
    except _LIBRARY_ERRORS as error:
        raise BlobUnavailable(f"{what}: {type(error).__name__}") from error
