"""``gateway fsck``: everything the node keeps, held against everything else it keeps.

Owns which parts must agree and how a disagreement is told, by row numbers and places, never by content; refuses to mend
anything. Erased versions are holes that are expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import apsw

from gateway import audit
from gateway.crypto.envelope import content_commitment
from gateway.errors import BlobUnavailable, IntegrityBroken, KeyDestroyed
from gateway.records import reindexing
from gateway.records.node import Node
from gateway.store import batches
from gateway.store import index_upkeep as upkeep
from gateway.store.batches import BatchRow
from gateway.store.journal import PLACES, VERSION_COLUMNS, VersionRow

Part = Literal["file", "journal", "block", "index", "audit", "batch"]
_SHOWN_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; ``where`` names rows, never content."""

    part: Part
    where: str
    what: str


@dataclass(slots=True)
class Findings:
    """What was looked at, and what is wrong; ``more`` counts faults beyond those that are kept."""

    faults: list[Fault] = field(default_factory=list)
    more: int = 0
    versions: int = 0
    erased: int = 0
    batches: int = 0
    audit_rows: int = 0

    def wrong(self, part: Part, where: str, what: str) -> None:
        """Note a fault."""
        if len(self.faults) < _SHOWN_MAX:
            self.faults.append(Fault(part, where, what))
        else:
            self.more += 1


def examine(node: Node, *, progress: Callable[[int, int], object]) -> Findings:
    """Look at everything; a gateway may run meanwhile. ``progress``: versions opened, and how many there are."""
    found = Findings()
    reader = node.database.reader
    if upkeep.rebuilt_to(reader) is not None:
        found.wrong("index", "all", "a rebuild was begun and not finished: run `gateway rebuild`")
    for (line,) in reader.execute("PRAGMA quick_check(20)"):
        if line != "ok":
            found.wrong("file", node.database.path.name, "the database file is damaged: restore it from a backup")
    with node.database.snapshot() as connection:
        _journal(connection, found)
        _orphans(connection, found)
    _versions(node, found, progress)
    with node.database.snapshot() as connection:
        broken = audit.first_broken_link(connection)
        found.audit_rows = int(str(connection.execute("SELECT count(*) FROM audit").get))
        if broken is not None:
            found.wrong("audit", f"row {broken}", "the chain is broken here: a row was altered or taken out")
    _batches(node, found)
    return found


_JOURNAL: Final = (
    ("SELECT v.seq FROM version v LEFT JOIN version w ON w.type=v.type AND w.id=v.id AND w.vid=v.vid-1 "
     "WHERE v.vid>1 AND w.seq IS NULL", "the version before it is missing"),
    ("SELECT v.seq FROM version v LEFT JOIN version w ON w.type=v.type AND w.id=v.id AND w.vid=v.vid+1 "
     "WHERE v.superseded IS NOT w.seq", "it does not name the version after it"),
    ("SELECT v.seq FROM version v JOIN version w ON w.type=v.type AND w.id=v.id AND w.vid=v.vid+1 WHERE w.seq<v.seq",
     "it was committed after the version that follows it"),
    ("SELECT v.seq FROM version v WHERE v.patient IS NOT NULL "
     "AND NOT EXISTS (SELECT 1 FROM patient p WHERE p.pk=v.patient)", "the row of its patient is missing"),
    ("SELECT v.seq FROM version v WHERE v.others>0 AND v.others+1<>"
     "(SELECT count(*) FROM version_patient p WHERE p.version=v.seq)", "its further patients are missing"),
    ("SELECT v.seq FROM version v JOIN block b ON b.seq=v.seq WHERE b.digest<>v.digest",
     "its block stands under another hash"),
)


def _journal(connection: apsw.Connection, found: Findings) -> None:
    for sql, what in _JOURNAL:
        for (seq,) in connection.execute(f"{sql} LIMIT {_SHOWN_MAX}"):
            found.wrong("journal", f"version {seq}", what)


def _orphans(connection: apsw.Connection, found: Findings) -> None:
    for table in upkeep.TABLES:
        count = int(str(connection.execute(
            f"SELECT count(*) FROM {table} t WHERE NOT EXISTS "  # noqa: S608  # names of our own
            f"(SELECT 1 FROM version v WHERE v.seq=iif(t.version<0, -t.version/{PLACES}, t.version) "
            "AND v.deleted=0)").get))
        if count:
            found.wrong("index", table, f"{count} rows are of no version that is indexed: run `gateway rebuild`")


def _versions(node: Node, found: Findings, progress: Callable[[int, int], object]) -> None:
    total = int(str(node.database.reader.execute("SELECT count(*) FROM version").get))
    after = 0
    while True:
        with node.database.snapshot() as connection:
            rows = [VersionRow(*row) for row in connection.execute(
                f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.seq>? ORDER BY v.seq LIMIT ?",  # noqa: S608
                (after, reindexing.SLICE))]
            for row, stored in _opened(node, connection, rows, found):
                # Rows of a superseded version go once no page link can show it: they may be gone, not wrong.
                # While a parameter is being indexed, some versions hold its rows and others do not yet.
                if row.superseded is None and not row.deleted and node.parameters.whole:
                    _index(node, connection, row, stored, found)
        if not rows:
            return
        after = rows[-1].seq
        found.versions += len(rows)
        progress(found.versions, max(total, found.versions))


def _opened(node: Node, connection: apsw.Connection, rows: list[VersionRow],
            found: Findings) -> Iterator[tuple[VersionRow, bytes]]:
    """Each version that opens: hash, key and placement are checked by opening, the commitment here."""
    for row in rows:
        try:
            opened = node.versions.open(connection, row)
        except KeyDestroyed:
            found.erased += 1
            continue
        except BlobUnavailable:
            found.wrong("block", f"version {row.seq}", "its block is neither here nor with the block store")
            continue
        except IntegrityBroken as error:
            found.wrong("block", f"version {row.seq}", str(error))
            continue
        if content_commitment(opened.content_salt, opened.stored) != row.commitment:
            found.wrong("block", f"version {row.seq}", "its content is not what was committed to")
        if opened.header.deleted != bool(row.deleted) or opened.header.time_ms != row.updated_ms:
            found.wrong("journal", f"version {row.seq}", "its row tells another time or state than its block")
        yield row, opened.stored


def _index(node: Node, connection: apsw.Connection, row: VersionRow, stored: bytes, found: Findings) -> None:
    wanted, there = upkeep.settled(reindexing.rows_of(node, row, stored)), upkeep.stored(connection, row.seq)
    if wanted == there:
        return
    missing = sum(len(one - other) for one, other in zip(wanted, there, strict=True))
    over = sum(len(other - one) for one, other in zip(wanted, there, strict=True))
    found.wrong("index", f"version {row.seq}", f"{missing} index rows are missing and {over} too many: "
                                               "run `gateway rebuild`")


def _batches(node: Node, found: Findings) -> None:
    reader = node.database.reader
    for (pk,) in reader.execute("SELECT pk FROM batch ORDER BY pk").fetchall():
        row = batches.batch(reader, int(str(pk)))
        if row is not None:
            found.batches += 1
            _batch(node, reader, row, found)
    for seq, pk in reader.execute("SELECT seq, batch FROM version WHERE batch IS NOT NULL "
                                  "AND batch NOT IN (SELECT pk FROM batch) LIMIT 100"):
        found.wrong("batch", f"version {seq}", f"it is in batch {pk}, which is missing")


def _batch(node: Node, reader: apsw.Connection, row: BatchRow, found: Findings) -> None:
    entries = [(bytes(digest), bytes(commitment)) for digest, commitment in reader.execute(
        "SELECT digest, commitment FROM version WHERE batch=? UNION ALL "
        "SELECT digest, commitment FROM audit_run WHERE batch=?", (row.pk, row.pk))]
    if len(entries) != row.entries:
        found.wrong("batch", f"batch {row.pk}", f"{len(entries)} of its {row.entries} entries are here")
    if not row.pushed:
        return
    try:
        for digest, commitment in entries:
            node.proofs.path(row, digest, commitment)
    except BlobUnavailable:
        found.wrong("batch", f"batch {row.pk}", "its manifest cannot be had from the block store")
    except IntegrityBroken as error:
        found.wrong("batch", f"batch {row.pk}", str(error))
