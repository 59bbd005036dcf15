"""The audit held against its anchors: which row was the first to be removed, altered, inserted or put elsewhere.

Owns the walk over the audit's hash chain, over the runs of it that Batches anchored, and over the chain's own list of
those Batches; refuses to take the node's tables for proof: what a Batch holds is read from the manifest the chain
names. Who holds every key can write a chain of hashes that is whole, but not one that the anchored runs agree with.

    0 sound       every anchored row stands as it was anchored, the rest hangs together
    1 altered     with the first place that differs
    2 undecided   the chain does not answer, or a block that would show it cannot be had
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import apsw

from gateway.errors import BlobUnavailable, ChainUnavailable, IntegrityBroken
from gateway.ledger.address import Address
from gateway.ledger.audit_run import Row, first_unchained, parse, row_hash
from gateway.ledger.batch import Entry
from gateway.ledger.chain import Block, Contracts
from gateway.ledger.events import ZERO_HASH, Anchored, Event

_WINDOW: Final = 5_000


class Anchors(Protocol):
    """What is asked of the chain."""

    @property
    def contracts(self) -> Contracts: ...

    def head(self) -> Block: ...

    def logs(self, from_block: int, to_block: int) -> tuple[Event, ...]: ...

    def anchor_head(self, custodian: Address, *, at: int | None = None) -> bytes: ...


class Runs(Protocol):
    """What is asked of the block store, keys and hashes checked (``receipts.Proofs``)."""

    def entries(self, root: bytes, manifest_digest: bytes, size_class: int) -> tuple[Entry, ...]: ...

    def open_run(self, first: int, last: int, digest: bytes, keys: bytes) -> tuple[bytes, bytes]: ...


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place that differs: the audit row (``seq``, None where it cannot be said) and how."""

    seq: int | None
    what: str


@dataclass(slots=True)
class Verdict:
    """What was found; ``anchored`` rows stand in Batches that the chain holds, ``waiting`` in none yet."""

    rows: int = 0
    anchored: int = 0
    batches: int = 0
    fault: Fault | None = None
    unknown: list[str] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return max(0, self.rows - self.anchored)

    @property
    def code(self) -> int:
        """The exit code."""
        return 1 if self.fault is not None else 2 if self.unknown else 0

    def altered(self, seq: int | None, what: str) -> None:
        """Note a fault; the earliest row counts."""
        if self.fault is None or (seq is not None and (self.fault.seq is None or seq < self.fault.seq)):
            self.fault = Fault(seq, what)


@dataclass(frozen=True, slots=True)
class _Run:
    first: int
    last: int
    digest: bytes
    keys: bytes
    pushed: int


def examine(connection: apsw.Connection, runs: Runs, anchors: Anchors | None, custodian: Address,
            audit_keys: Collection[bytes]) -> Verdict:
    """Look at everything of one moment. ``audit_keys``: the key ids runs of this custodian, and nothing else that is
    anchored, were ever sealed under."""
    found = Verdict(rows=int(str(connection.execute("SELECT count(*) FROM audit").get)))
    _links(connection, found)
    listed = [_Run(*row) for row in connection.execute(
        "SELECT first, last, digest, keys, envelope IS NULL FROM audit_run ORDER BY first")]
    anchored = _anchored(connection, runs, anchors, custodian, {*audit_keys, *(run.keys for run in listed)}, found)
    expected, previous = 1, bytes(32)
    for run in listed:
        if run.first != expected:
            found.altered(expected, "the runs that hold the rows from here on were taken out")
            break
        if not run.pushed and run.digest not in anchored:
            # On its way to the block store, as all that come after it must be: Batches are anchored in their order.
            if any(later.first > run.first and later.digest in anchored for later in listed):
                found.altered(run.first, "a run the chain does not hold stands before one that it holds")
            break
        rows = _opened(runs, run, previous, found)
        if rows is not None:
            _compare(connection, run.first, rows, found)
            previous = rows[-1].hash
        if run.digest in anchored:
            found.anchored += run.last - run.first + 1
        expected = run.last + 1
    return found


def _links(connection: apsw.Connection, found: Verdict) -> None:
    """The chain of hashes by itself: what shows a careless hand."""
    previous, expected = bytes(32), 1
    for seq, time_ms, keys, sealed, value in connection.execute(
            "SELECT seq, time_ms, keys, sealed, hash FROM audit ORDER BY seq"):
        if seq != expected:
            found.altered(expected, "the row is missing")
            return
        previous = row_hash(previous, int(str(time_ms)), bytes(keys), bytes(sealed))
        if previous != value:
            found.altered(int(str(seq)), "the row is not what its hash, or that of the row before, says")
            return
        expected += 1


def _anchored(connection: apsw.Connection, runs: Runs, anchors: Anchors | None, custodian: Address,
              audit_keys: set[bytes], found: Verdict) -> set[bytes]:
    """The digests of the runs that the chain's Batches hold, each of which must be listed here."""
    if anchors is None:
        found.unknown.append("the chain was not asked")
        return set()
    try:
        events = list(_events(anchors, custodian))
    except ChainUnavailable as error:
        found.unknown.append(f"the chain does not answer: {error}")
        return set()
    known = {bytes(root): int(pk) for root, pk in connection.execute("SELECT root, pk FROM batch")}
    on_chain = {event.root for event in events}
    for root, pk in known.items():
        state = connection.execute("SELECT state FROM batch WHERE pk=?", (pk,)).get
        if state == "final" and root not in on_chain:
            found.altered(None, f"batch {pk}, which is final here, is not on the chain")
    digests: set[bytes] = set()
    here = {bytes(digest) for (digest,) in connection.execute("SELECT digest FROM audit_run")}
    end = int(str(connection.execute("SELECT coalesce(max(last),0) FROM audit_run").get))
    for event in events:
        found.batches += 1
        try:
            entries = runs.entries(event.root, event.manifest_digest, event.size_class)
        except BlobUnavailable:
            found.unknown.append(f"the manifest of the batch in block {event.place.block_number} cannot be had")
            continue
        except IntegrityBroken as error:
            found.unknown.append(f"the batch in block {event.place.block_number} cannot be read: {error}")
            continue
        for entry in entries:
            # No version is sealed under these keys: what the tables of this machine call it does not matter.
            if entry.key_refs in audit_keys:
                digests.add(entry.digest)
                if entry.digest not in here:
                    found.altered(end + 1, f"a run of rows that the chain anchored in block {event.place.block_number} "
                                           "was taken out")
    return digests


def _events(anchors: Anchors, custodian: Address) -> Iterator[Anchored]:
    """Every Batch of the custodian on the chain, oldest first; as one history that ends in the present head."""
    head, previous = anchors.head().number, ZERO_HASH
    present = anchors.anchor_head(custodian, at=head)
    at = anchors.contracts.from_block
    while at <= head:
        for event in anchors.logs(at, min(head, at + _WINDOW - 1)):
            if isinstance(event, Anchored) and event.custodian == custodian:
                if event.previous_head != previous:
                    raise ChainUnavailable("the node leaves out anchors of this custodian")
                previous = event.head
                yield event
        at += _WINDOW
    if previous != present:
        raise ChainUnavailable("the node's anchors do not lead to the present head")


def _opened(runs: Runs, run: _Run, previous: bytes, found: Verdict) -> tuple[Row, ...] | None:
    """The rows of a run as they were sealed, when they hang together with the run before; else the fault is noted."""
    try:
        body = parse(runs.open_run(run.first, run.last, run.digest, run.keys)[0])
    except BlobUnavailable:
        found.unknown.append(f"the block of the run of rows {run.first} to {run.last} cannot be had")
        return None
    except IntegrityBroken as error:
        found.altered(run.first, f"the run of rows {run.first} to {run.last} is not what was sealed: {error}")
        return None
    if (body.first, body.last) != (run.first, run.last) or (body.previous != previous and previous != bytes(32)):
        found.altered(run.first, "the runs do not follow one another")
        return None
    if first_unchained(body) is not None:
        found.altered(run.first, "the run was sealed over rows that did not hang together")
        return None
    return body.rows


def _compare(connection: apsw.Connection, first: int, rows: Sequence[Row], found: Verdict) -> None:
    """Say where the rows here part from those of a run, and how."""
    here = {int(str(seq)): Row(time_ms=int(str(time_ms)), keys=bytes(keys), sealed=bytes(sealed), hash=bytes(value))
            for seq, time_ms, keys, sealed, value in connection.execute(
                "SELECT seq, time_ms, keys, sealed, hash FROM audit WHERE seq BETWEEN ? AND ?",
                (first, first + len(rows) - 1))}
    place = next((place for place, row in enumerate(rows) if here.get(first + place) != row), None)
    if place is None:
        return
    seq, row, standing = first + place, rows[place], here.get(first + place)
    sealed = {one.sealed for one in rows}
    elsewhere = row.sealed in {one.sealed for at, one in here.items() if at > seq} or connection.execute(
        "SELECT 1 FROM audit WHERE seq>? AND sealed=? LIMIT 1", (first + len(rows) - 1, row.sealed)).get is not None
    if standing is None:
        after = connection.execute("SELECT 1 FROM audit WHERE seq>? LIMIT 1", (seq,)).get is not None
        found.altered(seq, "the row was removed" if after else "the row and all after it were cut off")
    elif standing.sealed == row.sealed:
        found.altered(seq, "the row was altered")
    elif elsewhere:
        found.altered(seq, "the rows were put in another order" if standing.sealed in sealed
                      else "a row was inserted here")
    else:
        found.altered(seq, "the row was removed, and those after it moved up" if standing.sealed in sealed
                      else "the row was altered")
