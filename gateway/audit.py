"""The audit: one sealed row per decision and patient, each chained by hash to the one before.

Owns the record of who asked for what and how it was decided, its sealing, and the FHIR AuditEvent made from
it when asked for; refuses to be altered (rows are appended alone) or skipped (a disclosure's bytes leave
only after its row is durable). https://hl7.org/fhir/R4/auditevent.html
"""

from __future__ import annotations

import asyncio
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import apsw
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.crypto.hkdf import hkdf
from gateway.crypto.keys import KeyRing
from gateway.errors import BlockCorrupt, Moved
from gateway.ledger.audit_run import row_hash
from gateway.store import journal, spool
from gateway.store.spool import Spool
from gateway.store.sql import Database

GROUP: Final = "audit"
_INFO: Final = b"gateway audit row 1"
_CIPHERS_MAX: Final = 20_000
CLIENT_ADDRESS: Final[ContextVar[str | None]] = ContextVar("client address", default=None)
"""Where the request under way came from, set by the door."""
GENESIS: Final = bytes(32)
"""The hash before the first row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One decision and its outcome, for one patient (or none).

    ``action`` is C R U D or E; ``outcome`` 0 success, 4 refused, 8 failed (AuditEvent's codes); ``what`` are
    versioned references; ``basis`` names the Permit, ``reason`` the Deny or why the glass was broken;
    ``organizations``: for whom the user acted; ``address``: where the client asked from; ``notify``: the patient and
    the head are told.
    """

    time_ms: int
    action: str
    interaction: str
    outcome: str
    what: tuple[str, ...]
    client: str
    user: str | None
    role: str
    purpose: str
    basis: str | None = None
    reason: str | None = None
    provisions: tuple[str, ...] = ()
    query: str | None = None
    operator: bool = False
    token: str | None = None
    organizations: tuple[str, ...] = ()
    address: str | None = None
    notify: bool = False


_FIELDS: Final = tuple(field.name for field in fields(AuditEntry))


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A row ready to be appended in the commit of what it tells; ``notify``: it is to be told of (``notices.py``)."""

    patient: str | None
    time_ms: int
    keys: bytes
    sealed: bytes
    notify: bool = False


@dataclass(frozen=True, slots=True)
class StoredRow:
    seq: int
    time_ms: int
    patient: int | None
    keys: bytes
    sealed: bytes
    hash: bytes


class Audit:
    """Seals, appends and opens rows for one custodian."""

    def __init__(self, ring: KeyRing, custodian: str) -> None:
        self._ring = ring
        self._custodian = custodian.encode()
        self._ciphers: dict[bytes, AESGCM] = {}

    def _cipher(self, material: bytes) -> AESGCM:
        cipher = self._ciphers.get(material)
        if cipher is None:
            if len(self._ciphers) >= _CIPHERS_MAX:
                self._ciphers.clear()
            cipher = AESGCM(hkdf(ikm=material, salt=b"", info=_INFO))
            self._ciphers[material] = cipher
        return cipher

    def seal(self, entry: AuditEntry, patient: str | None) -> SealedRow:
        """Seal ``entry`` under the audit key of ``patient`` (a logical id), or the custodian's own."""
        keys = self._ring.category_keys((patient,) if patient else (), GROUP)
        nonce = os.urandom(12)
        body = orjson.dumps({name: value for name in _FIELDS if (value := getattr(entry, name))})
        sealed = nonce + self._cipher(keys.material).encrypt(nonce, body, self._aad(entry.time_ms, keys.refs))
        return SealedRow(patient, entry.time_ms, keys.refs, sealed, entry.notify and patient is not None)

    def open(self, row: StoredRow) -> AuditEntry:
        """The entry of a stored row. Raises BlockCorrupt, or KeyDestroyed after an erasure."""
        try:
            cipher = self._cipher(self._ring.open_keys(row.keys))
            body = cipher.decrypt(row.sealed[:12], row.sealed[12:], self._aad(row.time_ms, row.keys))
        except InvalidTag as error:
            raise BlockCorrupt("an audit row does not open") from error
        fields: dict[str, Any] = orjson.loads(body)
        for name in ("what", "provisions", "organizations"):
            fields[name] = tuple(fields.get(name, ()))
        fields.setdefault("outcome", "0")
        return AuditEntry(**{"user": None, "role": "", "purpose": "", **fields})

    def _aad(self, time_ms: int, keys: bytes) -> bytes:
        return self._custodian + struct.pack(">q", time_ms) + keys


def append(connection: apsw.Connection, rows: tuple[SealedRow, ...]) -> None:
    """Append rows to the chain inside the open transaction."""
    previous = GENESIS
    for (value,) in connection.execute("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1"):
        previous = bytes(value)
    pks: dict[str | None, int | None] = {None: None}
    for row in rows:
        previous = row_hash(previous, row.time_ms, row.keys, row.sealed)
        if row.patient not in pks:
            pks[row.patient] = journal.ensure_patient(connection, str(row.patient))
        connection.execute("INSERT INTO audit (time_ms,patient,keys,sealed,hash) VALUES (?,?,?,?,?)",
                           (row.time_ms, pks[row.patient], row.keys, row.sealed, previous))
        if row.notify:
            connection.execute("INSERT INTO notice_due VALUES (?)", (connection.last_insert_rowid(),))


@dataclass(frozen=True, slots=True)
class Disclosure:
    """Rows that must be durable before what they tell of leaves; ``decision_seq`` is what the decision was made at."""

    decision_seq: int
    rows: tuple[SealedRow, ...]


_LANES: Final = 3
"""Files a process writes side by side: who comes while one is being synced need not wait for its end."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """A file and the thread that waits for it."""

    spool: Spool
    thread: ThreadPoolExecutor


class Disclosures:
    """One process's way to make disclosures durable, and anyone's to bring them into the chain.

    ``join`` writes the rows to a spool of the process: they wait for one fsync, not for a turn at the database.
    ``settle`` appends what any process spooled to the chain, exactly once, in the order of time.
    """

    def __init__(self, database: Database, folder: Path, key: bytes) -> None:
        self._database = database
        self._folder = folder
        self._key = key
        self._lanes = [_Lane(Spool(folder, key), ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool"))
                       for _ in range(_LANES)]
        self._idle = list(self._lanes)
        self._waiting: list[tuple[Disclosure, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, disclosure: Disclosure) -> None:
        """Return once the rows are durable and no revocation overtook the decision. Raises Moved, StoreBusy."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((disclosure, future))
        if self._idle:
            task = asyncio.get_running_loop().create_task(self._run(self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await future  # left by who was cancelled, it is passed over: the rows are written all the same

    async def _run(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                error: BaseException | None = None
                try:
                    records = [_packed(row) for disclosure, _ in taken for row in disclosure.rows]
                    await loop.run_in_executor(lane.thread, lane.spool.append, records)
                    seq = journal.decision_seq(self._database.reader)
                except Exception as failed:
                    seq, error = -1, failed
                for disclosure, future in taken:
                    if future.done():
                        continue
                    if error is not None:
                        future.set_exception(error)
                    elif disclosure.decision_seq != seq:
                        future.set_exception(Moved("a consent changed"))
                    else:
                        future.set_result(None)
        finally:
            self._idle.append(lane)

    def settle(self) -> int:
        """Bring what is spooled into the chain; how many rows. Blocking; any thread, any process."""
        found = 0
        while spool.waiting(self._folder, self._database.reader):
            now = self._database.transact(self._take)
            spool.drop_finished(self._folder, self._database.reader)
            if not now:
                break
            found += now
        return found

    def _take(self, connection: apsw.Connection) -> int:
        rows = [_unpacked(record) for record in spool.take(self._folder, self._key, connection)]
        rows.sort(key=lambda row: row.time_ms)
        append(connection, tuple(rows))
        return len(rows)

    def close(self) -> None:
        """End the spool's files."""
        for lane in self._lanes:
            lane.thread.shutdown()
            lane.spool.close()


_PACKED: Final = struct.Struct(">qHH")
_QUIET, _TOLD = b"p", b"n"


def _packed(row: SealedRow) -> bytes:
    patient = b"" if row.patient is None else (_TOLD if row.notify else _QUIET) + row.patient.encode()
    return _PACKED.pack(row.time_ms, len(patient), len(row.keys)) + patient + row.keys + row.sealed


def _unpacked(record: bytes) -> SealedRow:
    time_ms, patient_length, keys_length = _PACKED.unpack_from(record)
    keys_at = _PACKED.size + patient_length
    patient = record[_PACKED.size:keys_at]
    return SealedRow(patient[1:].decode() if patient else None, time_ms, record[keys_at:keys_at + keys_length],
                     record[keys_at + keys_length:], patient[:1] == _TOLD)


_COLUMNS = "seq, time_ms, patient, keys, sealed, hash"


def rows_of_patient(connection: apsw.Connection, patient: int, *, below: int, limit: int) -> list[StoredRow]:
    """Rows about one patient with ``seq < below``, newest first."""
    return [StoredRow(*row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM audit WHERE patient=? AND seq<? ORDER BY seq DESC LIMIT ?",  # noqa: S608
        (patient, below, limit))]


def rows_of_all(connection: apsw.Connection, *, below: int, limit: int) -> list[StoredRow]:
    """Rows about anyone with ``seq < below``, newest first."""
    return [StoredRow(*row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM audit WHERE seq<? ORDER BY seq DESC LIMIT ?", (below, limit))]  # noqa: S608


def row(connection: apsw.Connection, seq: int) -> StoredRow | None:
    """One row, or None."""
    for found in connection.execute(f"SELECT {_COLUMNS} FROM audit WHERE seq=?", (seq,)):  # noqa: S608
        return StoredRow(*found)
    return None


def first_broken_link(connection: apsw.Connection) -> int | None:
    """Walk the whole chain: the seq of the first row altered, or after which one is missing; None when whole."""
    previous, expected = GENESIS, 1
    for seq, time_ms, keys, sealed, value in connection.execute(
            "SELECT seq, time_ms, keys, sealed, hash FROM audit ORDER BY seq"):
        previous = row_hash(previous, time_ms, keys, sealed)
        if seq != expected or previous != value:
            return int(seq)
        expected += 1
    return None
