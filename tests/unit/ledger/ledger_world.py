"""A hospital's ledger side in one place for tests: database, chain simulator, a clock, and crashes wherever asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import apsw

from gateway import audit
from gateway.audit import Audit, AuditEntry
from gateway.crypto.envelope import VersionHeader, seal
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import Root
from gateway.errors import ChainUnavailable
from gateway.ledger.address import address
from gateway.ledger.anchor import Anchorer
from gateway.ledger.calls import Call, GrantCall, RevokeAllCall, RevokeCall, grant_id
from gateway.ledger.closing import Closer
from gateway.ledger.events import Anchored
from gateway.ledger.follower import Follower
from gateway.ledger.job import Policy
from gateway.ledger.relay import Relay
from gateway.ledger.sender import Sender
from gateway.store import batches, journal
from gateway.store.blobs import EmbeddedBlobs
from gateway.store.sql import Database
from tests.simulators.chain import OPERATOR, ChainSimulator

T = TypeVar("T")
PATIENT = address("0x" + "77" * 20)
FAR = 1_900_000_000


class Crash(BaseException):
    """The process dies here: nothing catches it."""


class CrashingDatabase(Database):
    """Dies before or after the commit the test chose."""

    crash_before: int | None = None
    crash_after: int | None = None
    commits = 0

    def transact(self, work: Callable[[apsw.Connection], T]) -> T:
        self.commits += 1
        if self.crash_before is not None and self.commits >= self.crash_before:
            self.crash_before = None
            raise Crash
        result = super().transact(work)
        if self.crash_after is not None and self.commits >= self.crash_after:
            self.crash_after = None
            raise Crash
        return result


class HeldBlobs:
    """Holds what is pushed; checks that nothing linked is missing."""

    def __init__(self) -> None:
        self.manifests: dict[bytes, bytes] = {}
        self.blocks: dict[bytes, bytes] = {}

    def push(self, manifest: bytes, manifest_digest: bytes, blocks: Iterable[tuple[bytes, bytes]]) -> None:
        self.blocks.update(blocks)
        self.manifests[manifest_digest] = manifest


class World:
    """``restart`` makes every component anew from stored state, as a new process does."""

    def __init__(self, folder: Path, ring: KeyRing, *, confirmations: int = 0, automine: bool = True,
                 embedded_blobs: bool = False) -> None:
        self.ring = ring
        self.database = CrashingDatabase(folder / "gateway.db", bytes(32))
        self.database.migrate()
        self.database.commits = 0
        self.chain = ChainSimulator(automine=automine)
        self.policy = Policy(confirmations=confirmations)
        self.now_ms = 1_800_000_000_000
        self.blobs: Any = EmbeddedBlobs(self.database) if embedded_blobs else HeldBlobs()
        self.salts: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.written = 0
        self.restart()

    def clock(self) -> int:
        return self.now_ms

    def restart(self) -> None:
        self.database.crash_before = self.database.crash_after = None
        self.closer = Closer(database=self.database, ring=self.ring, blobs=self.blobs, custodian=OPERATOR,
                             interval_s=5, batch_max=64, clock=self.clock)
        self.sender = Sender(database=self.database, chain=self.chain, policy=self.policy, clock=self.clock)
        self.anchorer = Anchorer(database=self.database, chain=self.chain, custodian=OPERATOR, sender=self.sender)
        self.relay = Relay(database=self.database, chain=self.chain, sender=self.sender)
        self.follower = Follower(database=self.database, chain=self.chain, max_head_age_s=None, clock=self.clock,
                                 confirmations=self.policy.confirmations)

    def advance(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)
        self.chain.advance(int(seconds))

    def write(self, versions: int, audited: int) -> None:
        """Versions of one patient and audit rows, committed together."""
        keys = self.ring.category_keys(("p1",), "other")
        rows = Audit(self.ring, OPERATOR)

        def work(connection: apsw.Connection) -> None:
            for _ in range(versions):
                self.written += 1
                id_ = f"v{self.written}"
                stored = b'{"resourceType":"Basic","id":"%s","meta":{"versionId":"1"}}' % id_.encode()
                header = VersionHeader(type="Basic", id=id_, version_id=1, time_ms=self.now_ms, client="c", user="",
                                       deleted=False)
                sealed = seal(keys.material, OPERATOR, header, stored)
                self.salts[id_], self.stored[id_] = sealed.content_salt, stored
                journal.append(connection, journal.NewVersion(
                    type="Basic", id=id_, vid=1, deleted=False, updated_ms=self.now_ms, patients=("p1",), client="c",
                    user=None, confidentiality=1, labels=0, low_ms=None, high_ms=None, categories=b"",
                    keys=keys.refs, digest=sealed.digest, commitment=sealed.content_commitment,
                    envelope=sealed.envelope, rows=journal.IndexRows()))
            entry = AuditEntry(time_ms=self.now_ms, action="R", interaction="read", outcome="0", what=("Basic/v1",),
                               client="c", user=None, role="system", purpose="TREAT")
            audit.append(connection, tuple(rows.seal(entry, "p1") for _ in range(audited)))

        Database.transact(self.database, work)

    def step(self) -> bool:
        """Everything once, in the loops' order."""
        moved = [self.follower.poll(), self.closer.push(), self.anchorer.poll(), self.relay.poll()]
        return any(moved)

    def settle(self, *, rounds: int = 120) -> None:
        """Blocks come and time passes until nothing is on its way any more."""
        quiet = 0
        for _ in range(rounds):
            self.advance(30)
            self.chain.mine()
            with suppress(ChainUnavailable):  # the loops would try again
                self.step()
            quiet = 0 if self.open() else quiet + 1
            if quiet > 1:
                return
        raise AssertionError(f"{self.open()} still open after {rounds} rounds")

    def open(self) -> int:
        """Batches and intents that are not over."""
        return int(str(self.database.reader.execute(
            "SELECT (SELECT count(*) FROM batch WHERE state<>'final')"
            " + (SELECT count(*) FROM intent WHERE state NOT IN ('final','failed'))").get))

    def close_all(self) -> None:
        """Close whatever waits."""
        while self.closer.close() is not None:
            pass

    def batches(self) -> list[batches.BatchRow]:
        found = []
        while (row := batches.batch(self.database.reader, len(found) + 1)) is not None:
            found.append(row)
        return found

    def anchored(self) -> list[Anchored]:
        """Our anchors on the canonical chain, in its order."""
        return [event for event in self.chain.logs(0, self.chain.head().number)
                if isinstance(event, Anchored) and event.custodian == OPERATOR]

    def states(self, table: str) -> list[str]:
        return [str(state) for (state,) in self.database.reader.execute(f"SELECT state FROM {table} ORDER BY pk")]


def ring_at(folder: Path) -> KeyRing:
    """A key ring of its own."""
    root = Root(hashlib.sha256(b"ledger tests").digest())
    return KeyRing(folder / "keys.db", lambda: (root,))


def grant(number: int = 1, *, deadline_s: int = FAR, epoch: int = 0) -> GrantCall:
    """A signed grant; every number is another one."""
    return GrantCall(patient=PATIENT, grantee=number.to_bytes(32, "big"), terms_hash=bytes([number]) * 32,
                     valid_from_s=0, valid_until_s=FAR, epoch=epoch, nonce=number, deadline_s=deadline_s,
                     signature=b"\1" * 65)


def revoke(of: GrantCall) -> RevokeCall:
    """Its signed revocation."""
    return RevokeCall(patient=of.patient, grantee=of.grantee, terms_hash=of.terms_hash, nonce=of.nonce + 1000,
                      deadline_s=FAR, signature=b"\1" * 65)


def revoke_all(epoch: int = 0) -> RevokeAllCall:
    """The end of an epoch."""
    return RevokeAllCall(patient=PATIENT, epoch=epoch, nonce=5000 + epoch, deadline_s=FAR, signature=b"\1" * 65)


def name(call: GrantCall | RevokeCall) -> bytes:
    """Its grant id."""
    return grant_id(call.patient, call.grantee, call.terms_hash)


def foreign(world: World, call: Call, *, nonce: int, priority: int = 100) -> bytes:
    """Another holder of the operator's key sends ``call`` at ``nonce``, paying more than we do."""
    fees = world.chain.fees()
    return world.chain.send(call, nonce=nonce, fees=fees.bumped(priority))


def folders(base: Path) -> Iterator[Path]:
    """Fresh folders below ``base``."""
    number = 0
    while True:
        number += 1
        folder = base / str(number)
        folder.mkdir()
        yield folder
