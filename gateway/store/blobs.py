"""Blocks by digest: the ``BlobBackend`` protocol, what every backend checks, and the embedded block store.

Owns the recomputing of every hash and the reading of a manifest's links; refuses bytes that are not what
their digest says, and a pin over links that are not there. Only manifests are pinned, each recursively: one
pin a Batch. https://ipld.io/specs/codecs/dag-cbor/spec/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import apsw

from gateway.errors import BlobUnavailable, BlockCorrupt, WrongPlacement
from gateway.store.cbor import Link, Value, decode
from gateway.store.cid import Codec, cid, digest_block, parse_cid_bytes
from gateway.store.sql import Database

_CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobStatus:
    """What answers behind the protocol: ``backend`` by name, its version, and the bytes it occupies."""

    backend: str
    version: str
    stored_bytes: int


class BlobBackend(Protocol):
    """Where blocks live. Synchronous, called from threads; each call is bounded in time.

    Digests are the 32 bytes of sha2-256, of raw blocks and of dag-cbor manifests alike. Every method raises
    BlobUnavailable when the backend does not answer, or not in time.
    """

    def get(self, digest: bytes, *, timeout_s: float) -> bytes:
        """The block, its hash recomputed. Raises BlockCorrupt, BlobUnavailable (absent, too)."""

    def get_many(self, digests: Iterable[bytes], *, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """(digest, block) in the order asked; stops with ``get``'s error at the first it would refuse.

        ``timeout_s`` bounds each block, not the run.
        """

    def has(self, digest: bytes) -> bool:
        """Whether the block is held here; never asks another node, never checks its hash."""

    def push(self, manifest: bytes, manifest_digest: bytes, blocks: Iterable[tuple[bytes, bytes]]) -> None:
        """Hold the dag-cbor ``manifest`` and what it links, pinned under it alone; repeating it is harmless.

        ``blocks`` are (digest, bytes) of links; those already held may be left out. Returns once all of it is
        durable. Raises BlockCorrupt when bytes do not hash to their digest, WrongPlacement when a block is
        not linked by the manifest, BlobUnavailable when a link is neither given nor held: nothing is pinned.
        """

    def pin(self, manifest_digest: bytes, *, timeout_s: float) -> None:
        """Fetch from other nodes whatever the manifest links, where the backend can, and keep it."""

    def pins(self) -> Iterator[bytes]:
        """Digests of the pinned manifests, in no order; on a shared node also those of its other users."""

    def unpin(self, manifest_digest: bytes) -> None:
        """Let the manifest, and what no other pin holds, go with the next collection; harmless to repeat."""

    def collect_garbage(self) -> int:
        """Drop what no pin holds; how many blocks went. A Version's block in the journal is not garbage."""

    def status(self) -> BlobStatus:
        """Ask the backend how it is."""

    def close(self) -> None:
        """Give back connections."""


def checked(digest: bytes, block: bytes) -> bytes:
    """``block`` when it hashes to ``digest``. Raises BlockCorrupt (invariant 3)."""
    if digest_block(block) != digest:
        raise BlockCorrupt(f"the bytes held for {cid(digest)} do not hash to it")
    return block


def links(manifest: bytes) -> list[tuple[Codec, bytes]]:
    """Codec and digest of every Cid in a dag-cbor block, in order. Raises BlockCorrupt when it is not canonical."""
    found: list[tuple[Codec, bytes]] = []
    waiting: list[Value] = [decode(manifest)]
    while waiting:
        match waiting.pop():
            case Link(cid=binary):
                found.append(parse_cid_bytes(binary))
            case list() as items:
                waiting.extend(reversed(items))
            case dict() as members:
                waiting.extend(reversed(members.values()))
            case _:
                pass
    return found


class EmbeddedBlobs:
    """The block store of a gateway without IPFS: rows of its own encrypted database.

    A Version's block was committed with the Version (``seq`` above zero) and is the journal's to remove, so a
    push of a Batch only stores the manifest and pins it. Blocks that belong to no Version take ``seq`` below
    zero, out of the way of the commit order, and are the ones ``collect_garbage`` may drop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, digest: bytes, *, timeout_s: float) -> bytes:
        """See BlobBackend; one row, so ``timeout_s`` is never reached."""
        with _reading():
            for (block,) in self._database.reader.execute("SELECT envelope FROM block WHERE digest=?", (digest,)):
                return checked(digest, block)
        raise BlobUnavailable(f"{cid(digest)} is not held here")

    def get_many(self, digests: Iterable[bytes], *, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """See BlobBackend."""
        waiting = iter(digests)
        while chunk := tuple(islice(waiting, _CHUNK)):
            with _reading():
                held: dict[bytes, bytes] = dict(self._database.reader.execute(
                    f"SELECT digest, envelope FROM block WHERE digest IN ({_marks(chunk)})", chunk))  # noqa: S608
            for digest in chunk:
                if digest not in held:
                    raise BlobUnavailable(f"{cid(digest)} is not held here")
                yield digest, checked(digest, held[digest])

    def has(self, digest: bytes) -> bool:
        """See BlobBackend."""
        with _reading():
            return not _absent(self._database.reader, {digest})

    def push(self, manifest: bytes, manifest_digest: bytes, blocks: Iterable[tuple[bytes, bytes]]) -> None:
        """See BlobBackend; ``blocks`` is read only where a link is not yet held, and outside the transaction."""
        checked(manifest_digest, manifest)
        linked = {digest for _, digest in links(manifest)}
        given = [(manifest_digest, manifest)]
        with _reading():
            missing = _absent(self._database.reader, linked)
        if missing:
            for digest, block in blocks:
                if digest not in linked:
                    raise WrongPlacement(f"{cid(digest)} is not linked by the manifest it was pushed with")
                if digest in missing:
                    given.append((digest, checked(digest, block)))

        def store(connection: apsw.Connection) -> None:
            for digest, block in given:
                connection.execute(
                    "INSERT OR IGNORE INTO block"
                    " SELECT min(0, coalesce((SELECT min(seq) FROM block), 0)) - 1, ?, ?", (digest, block))
            _pin(connection, manifest_digest)
        with _reading():
            self._database.transact(store)

    def pin(self, manifest_digest: bytes, *, timeout_s: float) -> None:
        """See BlobBackend; there is no other node to fetch from."""
        with _reading():
            self._database.transact(lambda connection: _pin(connection, manifest_digest))

    def pins(self) -> Iterator[bytes]:
        """See BlobBackend."""
        with _reading():
            return iter(_column(self._database.reader, "SELECT digest FROM pinned"))

    def unpin(self, manifest_digest: bytes) -> None:
        """See BlobBackend."""
        with _reading():
            self._database.transact(
                lambda connection: connection.execute("DELETE FROM pinned WHERE digest=?", (manifest_digest,)))

    def collect_garbage(self) -> int:
        """See BlobBackend. Manifests are read before the writer's turn; inside it only pins newer than that."""
        with _reading():
            with self._database.snapshot() as connection:
                loose = set(_column(connection, "SELECT digest FROM block WHERE seq < 0"))
                kept = set(_column(connection, "SELECT digest FROM pinned"))
                if lost := _absent(connection, kept):
                    raise BlockCorrupt(f"{len(lost)} pinned manifests are not held: what they keep is not known")
                for digest in kept if loose else ():
                    loose -= _reach(connection, digest)

            def drop(connection: apsw.Connection) -> int:
                garbage = set(loose)
                for digest in set(_column(connection, "SELECT digest FROM pinned")) - kept:
                    garbage -= _reach(connection, digest)
                connection.executemany(
                    "DELETE FROM block WHERE digest=? AND seq < 0", ((digest,) for digest in garbage))
                return len(garbage)
            return self._database.transact(drop) if loose else 0

    def status(self) -> BlobStatus:
        """See BlobBackend; the bytes are those of the whole database file."""
        with _reading():
            pages, size = (int(str(self._database.reader.execute(f"PRAGMA {name}").get))
                           for name in ("page_count", "page_size"))
        return BlobStatus(backend="embedded", version=apsw.sqlite_lib_version(), stored_bytes=pages * size)

    def close(self) -> None:
        """The database belongs to whoever opened it."""


@contextmanager
def _reading() -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise BlockCorrupt("the block table does not read back") from error
    except apsw.Error as error:
        raise BlobUnavailable(f"the block table cannot be used: {type(error).__name__}") from error


def _column(connection: apsw.Connection, statement: str, bindings: tuple[bytes, ...] = ()) -> list[bytes]:
    column: list[bytes] = [value for (value,) in connection.execute(statement, bindings)]
    return column


def _marks(chunk: tuple[bytes, ...]) -> str:
    return ",".join("?" * len(chunk))


def _absent(connection: apsw.Connection, digests: set[bytes]) -> set[bytes]:
    """Those of ``digests`` that no row holds."""
    absent, waiting = set(digests), iter(digests)
    while chunk := tuple(islice(waiting, _CHUNK)):
        absent.difference_update(
            _column(connection, f"SELECT digest FROM block WHERE digest IN ({_marks(chunk)})", chunk))  # noqa: S608
    return absent


def _reach(connection: apsw.Connection, manifest_digest: bytes) -> set[bytes]:
    """The manifest's own digest and every digest it links, manifests below it read as well."""
    reached, waiting = {manifest_digest}, [manifest_digest]
    while waiting:
        digest = waiting.pop()
        for block in _column(connection, "SELECT envelope FROM block WHERE digest=?", (digest,)):
            for codec, linked in links(checked(digest, block)):
                if codec == "dag-cbor" and linked not in reached:
                    waiting.append(linked)
                reached.add(linked)
    return reached


def _pin(connection: apsw.Connection, manifest_digest: bytes) -> None:
    absent = _absent(connection, _reach(connection, manifest_digest))
    if absent:
        raise BlobUnavailable(f"{len(absent)} blocks under {cid(manifest_digest, 'dag-cbor')} are not held here")
    connection.execute("INSERT OR IGNORE INTO pinned VALUES (?)", (manifest_digest,))
