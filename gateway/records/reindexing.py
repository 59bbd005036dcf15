"""Index rows made anew from the blocks: opened, extracted, replaced.

Owns the way from a stored version back to its index rows, and a rebuild of them all; refuses a block that is not what
its row says. Nothing is decided and nothing disclosed: what was read goes into keyed hashes of this node alone.
``FORMATS.md``, Files and Erasure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import apsw

from gateway.errors import BlobUnavailable, IntegrityBroken, KeyDestroyed
from gateway.fhir.resource import parse
from gateway.records.node import Node
from gateway.store import index_upkeep as upkeep
from gateway.store import search_parameters
from gateway.store.journal import IndexRows, VersionRow
from gateway.store.sql import now_ms

SLICE: Final = 200
"""Versions opened and replaced at once: a writer waits for as many at most."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A version whose rows could not be made; ``erased``: its key was destroyed; ``missing``: its block cannot be had
    now."""

    row: VersionRow
    reason: str
    erased: bool
    missing: bool


Made = tuple[VersionRow, IndexRows] | Hole


def rows_of(node: Node, row: VersionRow, stored: bytes) -> IndexRows:
    """The index rows of one version's exact bytes."""
    facts = node.extractor.facts(parse(stored))
    categories = struct.unpack(f"<{len(row.categories) // 8}q", row.categories)
    return node.index.rows(facts, categories=categories)


def extracted(node: Node, connection: apsw.Connection, rows: Sequence[VersionRow]) -> Iterator[Made]:
    """Each version with its rows, or why it has none. Opens blocks: not for the event loop's thread."""
    try:
        opened = [one.stored for one in node.versions.open_many(connection, rows)]
    except (IntegrityBroken, BlobUnavailable):
        yield from (_alone(node, connection, row) for row in rows)
        return
    for row, stored in zip(rows, opened, strict=True):
        yield row, rows_of(node, row, stored)


def _alone(node: Node, connection: apsw.Connection, row: VersionRow) -> Made:
    try:
        return row, rows_of(node, row, node.versions.open(connection, row).stored)
    except (IntegrityBroken, BlobUnavailable) as error:
        return Hole(row, str(error), isinstance(error, KeyDestroyed), isinstance(error, BlobUnavailable))


@dataclass(slots=True)
class Rebuilt:
    """What became of a rebuild."""

    versions: int = 0
    holes: list[Hole] = field(default_factory=list)

    @property
    def broken(self) -> list[Hole]:
        """Holes that no erasure explains."""
        return [hole for hole in self.holes if not hole.erased]


def since_ms(node: Node) -> int:
    """Superseded before this, no page link shows a version any more."""
    return now_ms() - node.settings.page_link_ttl_s * 1000


def rebuild(node: Node, *, progress: Callable[[int, int], object]) -> Rebuilt:
    """Clear the index and make it anew, or go on with what was begun. Nobody else may write meanwhile.

    ``progress`` is told how many versions are done and how many there are. Blocking.
    """
    database = node.database
    if upkeep.rebuilt_to(database.reader) is None:
        database.transact(upkeep.begin)
    since, found = since_ms(node), Rebuilt()
    done = upkeep.rebuilt_to(database.reader) or 0
    total = upkeep.count(database.reader, after=0, since_ms=since)
    before = total - upkeep.count(database.reader, after=done, since_ms=since)
    progress(before, total)
    while True:
        with database.snapshot() as connection:
            rows = upkeep.indexed(connection, after=done, since_ms=since, limit=SLICE)
            made = list(extracted(node, connection, rows))
        if not rows:
            break
        done = rows[-1].seq
        database.transact(lambda tx, made=made, done=done: _store(tx, made, done))  # type: ignore[misc]  # bound here
        found.versions += len(rows)
        found.holes += [one for one in made if isinstance(one, Hole)]
        progress(before + found.versions, total)
    database.transact(lambda tx: _end(node, tx))
    return found


def _end(node: Node, connection: apsw.Connection) -> None:
    upkeep.end(connection)
    if not node.parameters.whole:
        search_parameters.indexed(connection, [one.id for one in node.parameters.known],
                                  made=node.parameters.generation)
    search_parameters.settle_words(connection, node.extractor.kinds, whole=True)


def _store(connection: apsw.Connection, made: Sequence[Made], done: int) -> None:
    replaced(connection, made)
    upkeep.mark(connection, done)


def replaced(connection: apsw.Connection, made: Sequence[Made]) -> int:
    """Replace the rows of versions inside the open transaction; how many changed."""
    return sum(upkeep.replace(connection, one[0].seq, one[1]) for one in made if not isinstance(one, Hole))
