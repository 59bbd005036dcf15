"""Notices: what was refused, or seen on an unusual basis, told to the patient and the head as Communications.

Owns when one is written (once per burst of one requester and patient, and once more when the burst is over) and what it
says: who, for whom, when, what type, for which purpose, how many; never an id or the content. Refuses to be reached
by a grant or a broken glass (``access/marks.py``). Works off the request path, from marks the audit rows carry in the
commit that wrote them: the mark goes in the commit that writes the Communication, so that each is told exactly once.
https://hl7.org/fhir/R4/communication.html
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import apsw
import orjson

from gateway import audit
from gateway.access.marks import AUTHOR, tag, tagged
from gateway.access.roles import policy
from gateway.audit import AuditEntry, StoredRow
from gateway.errors import Conflict, InputRefused, IntegrityBroken, KeyDestroyed, Unavailable
from gateway.fhir.resource import Resource, format_instant, parse
from gateway.records import drafting, endpoints
from gateway.records.endpoints import Resolve, Sender
from gateway.records.node import Node
from gateway.smart.wallets import CHANGED
from gateway.store import journal, search_parameters
from gateway.store.journal import NewVersion
from gateway.store.sql import now_ms

LOG = logging.getLogger("gateway.notices")
SYSTEM: Final = "urn:fhir-gateway:notice"
COUNT: Final = "urn:fhir-gateway:notice-count"
_AT_ONCE: Final = 200
_ROWS_MAX: Final = 1_000
_TYPES_SHOWN: Final = 8
_POLL_S: Final = 0.2
_AFTER_FAULT_S: Final = 2.0
_HOOK_S: Final = 10.0
_HOOK_PAUSE_MS: Final = 600_000
_HOOK_KEPT_MS: Final = 86_400_000
_CATEGORY: Final = "http://terminology.hl7.org/CodeSystem/communication-category"
_ACT_REASON: Final = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
_OVER: Final = ("SELECT pk, requester, patient, first, last, count, told, communications FROM notice_burst "
                "WHERE until_ms<=? ORDER BY until_ms LIMIT ?")
Kind = Literal["refused", "glass-broken", "operator", "attested", "ended", "wallet"]
_TEXTS: Final[dict[Kind, tuple[str, str]]] = {
    "refused": ("Access refused", "asked for your records and was refused"),
    "glass-broken": ("Emergency access", "opened your records in an emergency, without asking you first"),
    "operator": ("Access by an operator", "used your records with a token made by this hospital's operator"),
    "attested": ("Consent on paper", "attested your consent on paper, signed here with the key we keep"),
    "ended": ("Consents ended", "ended all that your consents permitted"),
    "wallet": ("Wallet changed", "registered another wallet as yours, at the word of this hospital's operator")}
_OFFICE: Final[dict[str, Kind]] = {"sign": "attested", "revoke-all": "ended"}
"""What the records office does in a patient's name."""


@dataclass(frozen=True, slots=True)
class _Burst:
    """Audit rows of one requester about one patient, told together."""

    kind: Kind
    requester: int
    patient: int
    entries: tuple[AuditEntry, ...]
    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Open:
    """A row of ``notice_burst``."""

    pk: int
    requester: int
    patient: int
    first: int
    last: int
    count: int
    told: int
    communications: str


def step(node: Node) -> int:
    """Tell what is due, and the whole of what is over; how many audit rows were dealt with. Blocking.

    Another process may do the same at the same time: one of them finds its work done, and nothing is told twice.
    """
    node.disclosures.settle()
    connection = node.database.reader
    due = [int(seq) for (seq,) in connection.execute("SELECT audit FROM notice_due ORDER BY audit LIMIT ?",
                                                     (_AT_ONCE,))]
    found = [] if due else connection.execute(_OVER, (now_ms(), _AT_ONCE)).fetchall()
    over = [_Open(*row) for row in found]  # type: ignore[arg-type]  # columns as declared
    if not due and not over:
        return 0
    node.parameters.follow(journal.decision_seq(connection))
    try:
        return _tell(node, connection, due) if due else _finish(node, connection, over)
    except Conflict:
        return 0  # another process was first, or a search parameter came: made anew at the next turn


def _tell(node: Node, connection: apsw.Connection, due: Sequence[int]) -> int:
    generation = node.parameters.generation
    bursts = list(_bursts(node, connection, due))
    fresh: list[tuple[_Burst, list[NewVersion]]] = []
    known: list[_Burst] = []
    for burst in bursts:
        standing = connection.execute("SELECT 1 FROM notice_burst WHERE requester=? AND patient=?",
                                      (burst.requester, burst.patient)).get
        if standing is not None:
            known.append(burst)
        else:
            fresh.append((burst, _communications(node, connection, burst)))
    until_ms = now_ms() + node.settings.notice_window_s * 1000

    def work(tx: apsw.Connection) -> None:
        _same_parameters(tx, generation)
        for seq in due:
            tx.execute("DELETE FROM notice_due WHERE audit=?", (seq,))
            if not tx.changes():
                raise Conflict("another process told these")
        for burst, versions in fresh:
            for version in versions:
                journal.append(tx, version)
            tx.execute(
                "INSERT OR IGNORE INTO notice_burst (requester,patient,first,last,until_ms,count,told,communications) "
                "VALUES (?,?,?,?,?,?,?,?)",
                (burst.requester, burst.patient, burst.seqs[0], burst.seqs[-1], until_ms, len(burst.seqs),
                 len(burst.seqs), " ".join(version.id for version in versions)))
            if not tx.changes():
                raise Conflict("another process began the burst")
            if node.settings.notice_webhook and versions:
                tx.execute("INSERT INTO notice_hook (communication,kind,created_ms) VALUES (?,?,?)",
                           (versions[-1].id, burst.kind, now_ms()))
        for burst in known:
            tx.execute("UPDATE notice_burst SET count=count+?, last=? WHERE requester=? AND patient=?",
                       (len(burst.seqs), burst.seqs[-1], burst.requester, burst.patient))
            if not tx.changes():
                raise Conflict("the burst is over")
    node.database.transact(work)
    return len(due)


def _finish(node: Node, connection: apsw.Connection, over: Sequence[_Open]) -> int:
    """Write what grew once more, whole, and forget the bursts."""
    generation = node.parameters.generation
    grown = [(burst, list(_grown(node, connection, burst)) if burst.count > burst.told else []) for burst in over]

    def work(tx: apsw.Connection) -> None:
        _same_parameters(tx, generation)
        for burst, versions in grown:
            tx.execute("DELETE FROM notice_burst WHERE pk=? AND count=?", (burst.pk, burst.count))
            if not tx.changes():
                raise Conflict("the burst grew meanwhile")
            for version in versions:
                journal.append(tx, version)
    node.database.transact(work)
    return sum(burst.count for burst in over)


def _same_parameters(tx: apsw.Connection, generation: int) -> None:
    if search_parameters.generation(tx) != generation:
        raise Conflict("a search parameter came or went")


def _bursts(node: Node, connection: apsw.Connection, due: Iterable[int]) -> Iterator[_Burst]:
    """The rows that are due by requester and patient; what cannot be opened any more has nobody to tell."""
    groups: dict[tuple[Kind, int, int], list[tuple[int, AuditEntry]]] = defaultdict(list)
    for seq in due:
        row = audit.row(connection, seq)
        entry = None if row is None else _opened(node, row)
        if row is None or entry is None or row.patient is None:
            continue
        if entry.user == f"Patient/{journal.patient_id(connection, row.patient)}":
            continue  # what they did themselves
        kind = _kind(entry)
        groups[kind, _requester(node, kind, entry), row.patient].append((seq, entry))
    for (kind, requester, patient), rows in groups.items():
        yield _Burst(kind, requester, patient, tuple(entry for _, entry in rows), tuple(seq for seq, _ in rows))


def _opened(node: Node, row: StoredRow) -> AuditEntry | None:
    try:
        return node.gate.audit.open(row)
    except KeyDestroyed:
        return None
    except IntegrityBroken:
        LOG.error("an audit row to be told of does not open", extra={"row": row.seq})
        return None


def _kind(entry: AuditEntry) -> Kind:
    if entry.outcome != "0":
        return "refused"
    if entry.interaction == CHANGED:
        return "wallet"
    if entry.interaction in _OFFICE and entry.role == "records-office":
        return _OFFICE[entry.interaction]
    return "glass-broken" if entry.basis == "break-glass" or not entry.basis else "operator"


def _requester(node: Node, kind: Kind, entry: AuditEntry) -> int:
    """Who asked, as a keyed hash. Each breaking of the glass, which is one token, is told at once."""
    token = entry.token or "" if kind == "glass-broken" else ""
    return node.index.grantee("\n".join(("notice", kind, entry.client, entry.user or "", token)))


def _communications(node: Node, connection: apsw.Connection, burst: _Burst) -> list[NewVersion]:
    """The patient's and, last, the head's."""
    patient = journal.patient_id(connection, burst.patient)
    if node.ring.is_destroyed(patient):
        return []
    return [_sealed(node, _communication(node, connection, burst.kind, patient, burst.entries, burst.seqs, head=head),
                    str(uuid.uuid4()), 1) for head in (False, True)]


def _grown(node: Node, connection: apsw.Connection, burst: _Open) -> Iterator[NewVersion]:
    """The next version of each Communication of a burst, about all of its rows."""
    found: list[tuple[int, AuditEntry]] = []
    below = burst.last + 1
    while below > burst.first and len(found) < _ROWS_MAX:
        rows = [row for row in audit.rows_of_patient(connection, burst.patient, below=below, limit=_AT_ONCE)
                if row.seq >= burst.first]
        for row in rows:
            entry = _opened(node, row)
            if entry is not None and entry.notify and _requester(node, _kind(entry), entry) == burst.requester:
                found.append((row.seq, entry))
        below = rows[-1].seq if rows else burst.first
    if not found:
        return
    found.reverse()
    patient = journal.patient_id(connection, burst.patient)
    for place, id_ in enumerate(burst.communications.split()):
        current = journal.current(connection, "Communication", id_)
        if current is None or current.deleted:
            continue
        made = _communication(node, connection, _kind(found[0][1]), patient, [entry for _, entry in found],
                              [seq for seq, _ in found], head=place == 1, count=burst.count)
        made["sent"] = parse(node.versions.open(connection, current).stored)["sent"]
        yield _sealed(node, made, id_, current.vid + 1)


def _sealed(node: Node, resource: Resource, id_: str, vid: int) -> NewVersion:
    made = drafting.drafted(node, resource, id_, client=AUTHOR, user=None)
    new, _ = node.versions.seal(made, id_=id_, vid=vid, updated_ms=now_ms(), client=AUTHOR, user=None)
    return new


def _communication(node: Node, connection: apsw.Connection, kind: Kind, patient: str, entries: Sequence[AuditEntry],
                   seqs: Sequence[int], *, head: bool, count: int | None = None) -> Resource:
    title, _ = _TEXTS[kind]
    count = len(entries) if count is None else count
    purposes = list(dict.fromkeys(entry.purpose for entry in entries if entry.purpose))
    made: Resource = {
        "resourceType": "Communication", "status": "completed",
        "extension": [{"url": COUNT, "valuePositiveInt": count}],
        "category": [{"coding": [{"system": _CATEGORY, "code": "notification", "display": "Notification"}]}],
        "priority": "urgent" if kind == "glass-broken" else "routine",
        "subject": {"reference": f"Patient/{patient}"},
        "topic": {"coding": [{"system": SYSTEM, "code": kind, "display": title}], "text": title},
        "about": [{"reference": f"AuditEvent/log-{seqs[0]}"}],
        "sent": format_instant(now_ms()),
        "recipient": heads(node, connection) if head else [{"reference": f"Patient/{patient}"}],
        "sender": {"reference": node.settings.hospital_reference, "display": node.settings.hospital_name},
        "payload": [{"contentString": _said(node, connection, kind, entries, count, head=head)}]}
    if purposes:
        made["reasonCode"] = [{"coding": [{"system": _ACT_REASON, "code": code}]} for code in purposes]
    return tagged(made, [tag("notice")])


def heads(node: Node, connection: apsw.Connection) -> list[dict[str, Any]]:
    """The privacy officers with an open account; the hospital itself where there is none."""
    found = [{"reference": str(user), "display": str(name)} for user, name in connection.execute(
        "SELECT fhir_user, name FROM account WHERE role='privacy-officer' AND closed_ms IS NULL ORDER BY pk LIMIT 20")]
    return found or [{"reference": node.settings.hospital_reference, "display": node.settings.hospital_name}]


def _said(node: Node, connection: apsw.Connection, kind: Kind, entries: Sequence[AuditEntry], count: int, *,
          head: bool) -> str:
    first, last = entries[0], entries[-1]
    types = sorted({what.partition("/")[0] for entry in entries for what in entry.what} - {""})
    shown = ", ".join(types[:_TYPES_SHOWN]) + (f" and {len(types) - _TYPES_SHOWN} more" if len(
        types) > _TYPES_SHOWN else "")
    purposes = ", ".join(dict.fromkeys(
        f"{policy().purposes[entry.purpose].text} ({entry.purpose})" if entry.purpose in policy().purposes
        else entry.purpose for entry in entries if entry.purpose))
    act = _TEXTS[kind][1] if not head else _TEXTS[kind][1].replace("your", "a patient's").replace("you", "them")
    parts = [f"{who(connection, first, on_duty=head)} {act}.", f"When: {format_instant(first.time_ms)}" + (
        f" to {format_instant(last.time_ms)}" if count > 1 else "") + "."]
    if shown:
        parts.append(f"What: {shown}.")
    parts.append(f"Purpose: {purposes or 'none given'}.")
    if kind == "glass-broken" and first.reason:
        parts.append(f"Reason given: {first.reason}.")
    if head and kind == "refused":
        reasons = "; ".join(dict.fromkeys(entry.reason for entry in entries if entry.reason))
        parts.append(f"Why it was refused: {reasons}.")
    parts.append(f"Times: {count}.")
    return " ".join(parts)


def who(connection: apsw.Connection, entry: AuditEntry, *, on_duty: bool) -> str:
    """The requester in words: user, app, organisations, by the hospital's own registers; which other patient it was is
    for those on duty."""
    client = _name(connection, "SELECT name FROM client WHERE id=?", entry.client)
    app = f"{client} ({entry.client})" if client else f"client {entry.client}"
    if entry.user is None:
        return app
    if entry.user.startswith("Patient/") and not on_duty:
        return f"Another patient, with {app},"
    name = _name(connection, "SELECT name FROM account WHERE fhir_user=?", entry.user)
    person = f"{name} ({entry.user})" if name else entry.user
    of = f" of {', '.join(entry.organizations)}" if entry.organizations else ""
    return f"{person}{of}, with {app},"


def _name(connection: apsw.Connection, sql: str, key: str) -> str | None:
    for (name,) in connection.execute(sql, (key,)):
        return str(name)
    return None


class Notices:
    """The loop that tells; one of it runs at a time, and a second beside it does no harm."""

    def __init__(self, node: Node, *further: Callable[[Node], int], sender: Sender | None = None,
                 resolving: Resolve = endpoints.resolve) -> None:
        """``further``: other work of the same kind, done at each turn; how much of it was done."""
        self._node = node
        self._further = further
        self._sender = sender or Sender()
        self._resolving = resolving

    async def run(self, stop: threading.Event) -> None:
        """Until ``stop``; no error but that ends it."""
        while not stop.is_set():
            try:
                moved = await asyncio.to_thread(self.work)
                if self._node.settings.notice_webhook:
                    moved += await self.call_hook()
            except Exception as error:
                LOG.error("notices cannot be written", exc_info=error)
                await asyncio.sleep(_AFTER_FAULT_S)
                continue
            if not moved:
                await asyncio.sleep(_POLL_S)
        await self._sender.close()

    def work(self) -> int:
        """One turn of everything; how much was done."""
        return step(self._node) + sum(further(self._node) for further in self._further)

    async def call_hook(self) -> int:
        """Tell the head's webhook of the oldest notice it does not know; whether it was told. It learns no name."""
        node, url = self._node, self._node.settings.notice_webhook
        found = node.database.reader.execute(
            "SELECT pk, communication, kind, created_ms, failures FROM notice_hook WHERE next_ms<=? ORDER BY pk "
            "LIMIT 1", (now_ms(),)).fetchone()
        if found is None:
            return 0
        pk, communication, kind, created_ms, failures = found
        body = orjson.dumps({"notice": kind, "communication": f"{node.settings.base_url}/Communication/{communication}",
                             "time": format_instant(int(str(created_ms)))})
        try:
            checked = endpoints.check(node.settings.subscription_hosts, url)
            address = await endpoints.pinned(node.settings.subscription_hosts, checked, self._resolving)
            await self._sender.send("POST", checked, address, headers={"Content-Type": "application/json"}, body=body,
                                    timeout_s=_HOOK_S)
        except (InputRefused, Unavailable) as error:
            old = now_ms() - int(str(created_ms)) > _HOOK_KEPT_MS
            LOG.warning("the head's webhook does not take a notice",
                        extra={"reason": type(error).__name__, "dropped": old})
            pause_ms = min(_HOOK_PAUSE_MS, 1_000 << min(int(str(failures)), 20))
            await asyncio.to_thread(node.database.transact, lambda tx: tx.execute(
                "DELETE FROM notice_hook WHERE pk=?", (pk,)) if old else tx.execute(
                "UPDATE notice_hook SET failures=failures+1, next_ms=? WHERE pk=?", (now_ms() + pause_ms, pk)))
            return 0
        await asyncio.to_thread(node.database.transact, lambda tx: tx.execute(
            "DELETE FROM notice_hook WHERE pk=?", (pk,)))
        return 1
