"""Provision rows: what patients permit and deny, as the decision reads them and the follower moves them.

Owns the columns of ``provision`` and the one rule that every change bumps ``decision_seq``; refuses to know
how a provision was composed or signed. Invariant 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw

from gateway.access.provision import Provision, State
from gateway.store import journal

RECORDS: Final = 1
"""Bit of ``provision.data``: records it is for stand in ``provision_record``."""
NAMES: Final = 2
"""Bit of ``provision.data``: authors and pieces of care it is for stand in ``provision_name``."""
_COLUMNS: Final = ("p.pk,p.id,h.id,p.grantee,p.permit,p.types,p.categories,p.confidentiality,p.labels,p.purposes,"
                   "p.writes,p.low_ms,p.high_ms,p.valid_from_ms,p.valid_until_ms,p.state,p.grant_id,p.exception,p.data")
_HELD: Final = "patient h CROSS JOIN provision p INDEXED BY provision_holder ON p.patient=h.pk"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionRow:
    """One row as stored: ``grantee``, ``categories`` and the names in ``data`` are keyed hashes."""

    id: str
    patient: str
    grantee: int | None
    permit: bool
    types: frozenset[str] | None
    categories: frozenset[str] | None
    confidentiality: int
    labels: int
    purposes: frozenset[str] | None
    writes: bool
    data_period: tuple[int, int] | None
    data: frozenset[str] | None
    valid_from_ms: int
    valid_until_ms: int
    state: State
    grant_id: bytes
    exception: bool

    def for_holder(self, grantees: Mapping[int, str]) -> Provision:
        """The Provision as one holder sees it; a grantee who is not the holder stays a number."""
        reference = None if self.grantee is None else grantees.get(self.grantee, f"#{self.grantee}")
        return Provision(
            id=self.id, patient=self.patient, grantee=reference, permit=self.permit, types=self.types,
            categories=self.categories, confidentiality=self.confidentiality, labels=self.labels,
            purposes=self.purposes, data_period=self.data_period, data=self.data, valid_from_ms=self.valid_from_ms,
            valid_until_ms=self.valid_until_ms, writes=self.writes, state=self.state, grant_id=self.grant_id,
            exception=self.exception)


def _set(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(part for part in text.split("|") if part)


def _text(values: frozenset[str] | None) -> str | None:
    return None if values is None else "|" + "|".join(sorted(values)) + "|"


def of_patient(connection: apsw.Connection, patient: str) -> tuple[ProvisionRow, ...]:
    """Rows of one patient (a logical id) that are not revoked."""
    return _rows(connection, "FROM provision p JOIN patient h ON h.pk=p.patient "
                 "WHERE h.id=? AND p.state<>'revoked' ORDER BY p.pk", (patient,))


def for_holder(connection: apsw.Connection, patient: str, grantees: Sequence[int],
               now_ms: int) -> tuple[ProvisionRow, ...]:
    """Those of them that name a holder, or everyone, and may yet count from ``now_ms`` on; but not those that name
    nothing beside single records. Of permits that differ in time alone and have begun, the one that lasts longest
    stands for all: the others let nothing through that it does not."""
    return _rows(connection, f"FROM {_HELD} WHERE h.id=? AND {_holder(grantees)} AND p.permit IN (0,1) "
                 f"AND p.data IN (0,{NAMES},{RECORDS | NAMES}) AND p.valid_until_ms>? AND p.state<>'revoked' "
                 "GROUP BY p.grantee, p.state, p.types, p.confidentiality, p.labels, p.purposes, p.writes, p.low_ms, "
                 "p.high_ms, CASE WHEN p.permit=0 OR p.exception OR p.categories OR p.data OR p.valid_from_ms>? "
                 "THEN p.pk ELSE 0 END ORDER BY p.pk", (patient, *grantees, now_ms, now_ms), ",max(p.valid_until_ms)")


def names_records(connection: apsw.Connection, patient: str, grantees: Sequence[int], now_ms: int) -> bool:
    """Whether any provision that names a holder, or everyone, is left out of ``for_holder`` for ``of_record``."""
    return connection.execute(
        f"SELECT 1 FROM {_HELD} WHERE h.id=? AND {_holder(grantees)} AND p.permit IN (0,1) "  # noqa: S608
        f"AND p.data={RECORDS} AND p.valid_until_ms>? AND p.state<>'revoked' LIMIT 1",
        (patient, *grantees, now_ms)).get is not None


def naming_records(connection: apsw.Connection, patient: str, grantees: Sequence[int], now_ms: int,
                   limit: int) -> tuple[ProvisionRow, ...]:
    """Those left out of ``for_holder``, for whichever record, at most ``limit``."""
    return _rows(connection, f"FROM {_HELD} WHERE h.id=? AND {_holder(grantees)} AND p.permit IN (0,1) "
                 f"AND p.data={RECORDS} AND p.valid_until_ms>? AND p.state<>'revoked' ORDER BY p.pk LIMIT ?",
                 (patient, *grantees, now_ms, limit))


def of_record(connection: apsw.Connection, type_: str, id_: str, patient: str,
              grantees: Sequence[int]) -> tuple[ProvisionRow, ...]:
    """Those left out of ``for_holder`` that name this record."""
    return _rows(connection, "FROM provision_record r CROSS JOIN provision p ON p.pk=r.provision "
                 f"CROSS JOIN patient h ON h.pk=p.patient WHERE r.type=? AND r.id=? AND h.id=? AND {_holder(grantees)} "
                 f"AND p.data={RECORDS} AND p.state<>'revoked' ORDER BY p.pk", (type_, id_, patient, *grantees))


def _holder(grantees: Sequence[int]) -> str:
    return f"ifnull(p.grantee,0) IN (0{',?' * len(grantees)})"


def _rows(connection: apsw.Connection, which: str, values: Sequence[Any], more: str = "") -> tuple[ProvisionRow, ...]:
    # Each statement is read whole before the next: left early, by a search whose time is over, a statement with another
    # inside it keeps its read transaction open, and this connection would see no revocation any more.
    found = list(connection.execute(f"SELECT {_COLUMNS}{more} {which}", values))
    categories = _hashes(connection, "provision_category", [row[0] for row in found if row[6]])
    names = _hashes(connection, "provision_name", [row[0] for row in found if row[18] & NAMES])
    records: dict[int, set[str]] = {}
    for part in _parts([row[0] for row in found if row[18] & RECORDS]):
        for pk, type_, id_ in list(connection.execute(
                f"SELECT provision, type, id FROM provision_record WHERE provision IN ({','.join('?' * len(part))})",  # noqa: S608
                part)):
            records.setdefault(pk, set()).add(f"{type_}/{id_}")
    rows = []
    for (pk, id_, patient, grantee, permit, types, restricted, confidentiality, labels, purposes, writes, low_ms,
         high_ms, valid_from_ms, valid_until_ms, state, grant_id, exception, data, *_) in found:
        rows.append(ProvisionRow(
            id=id_, patient=f"Patient/{patient}", grantee=grantee, permit=bool(permit), types=_set(types),
            categories=frozenset(categories.get(pk, ())) if restricted else None, confidentiality=confidentiality,
            labels=labels, purposes=_set(purposes), writes=bool(writes),
            data_period=None if low_ms is None else (low_ms, high_ms),
            data=frozenset({*records.get(pk, ()), *names.get(pk, ())}) if data else None,
            valid_from_ms=valid_from_ms, valid_until_ms=valid_until_ms, state=state, grant_id=grant_id or b"",
            exception=bool(exception)))
    return tuple(rows)


def _hashes(connection: apsw.Connection, table: str, pks: Sequence[int]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for part in _parts(pks):
        for pk, value in list(connection.execute(
                f"SELECT provision, hash FROM {table} WHERE provision IN ({','.join('?' * len(part))})", part)):  # noqa: S608
            found.setdefault(pk, set()).add(str(value))
    return found


def _parts(pks: Sequence[int]) -> Iterable[Sequence[int]]:
    return (pks[start:start + 500] for start in range(0, len(pks), 500))


def put(connection: apsw.Connection, provision: Provision, *, consent: str, address: str | None,
        grantee_hash: Callable[[str], int], category_hash: Callable[[str], int]) -> None:
    """Store one provision of a Consent and void every decision made before."""
    pk = journal.ensure_patient(connection, provision.patient.removeprefix("Patient/"))
    low_ms, high_ms = provision.data_period or (None, None)
    # A row that is put anew may get its old number again, and must not get what restricted the old one.
    for table in ("provision_category", "provision_record", "provision_name"):
        connection.execute(f"DELETE FROM {table} WHERE provision=(SELECT pk FROM provision WHERE id=?)",  # noqa: S608
                           (provision.id,))
    records = [name.partition("/")[::2] for name in provision.data or () if ":" not in name]
    names = [category_hash(name) for name in provision.data or () if ":" in name]
    # Data that names nothing must not read as data that restricts nothing.
    data = 0 if provision.data is None else (RECORDS if records or not names else 0) | (NAMES if names else 0)
    connection.execute(
        "INSERT OR REPLACE INTO provision (id,consent,patient,grantee,permit,types,categories,confidentiality,labels,"
        "purposes,writes,low_ms,high_ms,valid_from_ms,valid_until_ms,state,grant_id,address,exception,data) "
        "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (provision.id, consent, pk, None if provision.grantee is None else grantee_hash(provision.grantee),
         provision.permit, _text(provision.types), provision.categories is not None, provision.confidentiality,
         provision.labels, _text(provision.purposes), provision.writes, low_ms, high_ms, provision.valid_from_ms,
         provision.valid_until_ms, provision.state, provision.grant_id or None, address, provision.exception, data))
    row = connection.last_insert_rowid()
    connection.executemany("INSERT OR IGNORE INTO provision_category VALUES (?,?)",
                           [(row, category_hash(token)) for token in provision.categories or ()])
    connection.executemany("INSERT OR IGNORE INTO provision_record VALUES (?,?,?)",
                           [(type_, id_, row) for type_, id_ in records])
    connection.executemany("INSERT OR IGNORE INTO provision_name VALUES (?,?)", [(row, name) for name in names])
    journal.bump_decision_seq(connection)


def stands(connection: apsw.Connection, consent: str) -> bool:
    """Whether anything that was signed in a Consent counts, or will."""
    return connection.execute("SELECT 1 FROM provision WHERE consent=? AND state<>'revoked' LIMIT 1",
                              (consent,)).get is not None


def set_state_of_consent(connection: apsw.Connection, consent: str, state: State, *, only: Iterable[State]) -> int:
    """Move every provision of a Consent that is in one of ``only``; how many moved."""
    moved = 0
    for before in only:
        connection.execute("UPDATE provision SET state=? WHERE consent=? AND state=?", (state, consent, before))
        moved += connection.changes()
    if moved:
        journal.bump_decision_seq(connection)
    return moved


def set_state_of_grant(connection: apsw.Connection, grant_id: bytes, state: State, *, only: Iterable[State]) -> int:
    """Move the provisions behind an on-chain grant id that are in one of ``only``; how many moved."""
    moved = 0
    for before in only:
        connection.execute("UPDATE provision SET state=? WHERE grant_id=? AND state=?", (state, grant_id, before))
        moved += connection.changes()
    if moved:
        journal.bump_decision_seq(connection)
    return moved
