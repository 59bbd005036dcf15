"""Provision rows: what patients permit and deny, as the decision reads them and the follower moves them.

Owns the columns of ``provision`` and the one rule that every change bumps ``decision_seq``; refuses to know
how a provision was composed or signed. Invariant 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import apsw

from gateway.access.provision import Provision, State
from gateway.store import journal


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionRow:
    """One row as stored: ``grantee`` and ``categories`` are keyed hashes."""

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
    valid_from_ms: int
    valid_until_ms: int
    state: State
    grant_id: bytes

    def for_holder(self, grantees: Mapping[int, str]) -> Provision:
        """The Provision as one holder sees it; a grantee who is not the holder stays a number."""
        reference = None if self.grantee is None else grantees.get(self.grantee, f"#{self.grantee}")
        return Provision(
            id=self.id, patient=self.patient, grantee=reference, permit=self.permit, types=self.types,
            categories=self.categories, confidentiality=self.confidentiality, labels=self.labels,
            purposes=self.purposes, data_period=self.data_period, valid_from_ms=self.valid_from_ms,
            valid_until_ms=self.valid_until_ms, writes=self.writes, state=self.state, grant_id=self.grant_id)


def _set(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(part for part in text.split("|") if part)


def _text(values: frozenset[str] | None) -> str | None:
    return None if values is None else "|" + "|".join(sorted(values)) + "|"


def of_patient(connection: apsw.Connection, patient: str) -> tuple[ProvisionRow, ...]:
    """Rows of one patient (a logical id) that are not revoked."""
    # Read whole before anything is asked for each: left early, by a search whose time is over, a statement with another
    # inside it keeps its read transaction open, and this connection would see no revocation any more.
    found = list(connection.execute(
        "SELECT p.pk,p.id,p.grantee,p.permit,p.types,p.categories,p.confidentiality,p.labels,p.purposes,p.writes,"
        "p.low_ms,p.high_ms,p.valid_from_ms,p.valid_until_ms,p.state,p.grant_id FROM provision p "
        "JOIN patient h ON h.pk=p.patient WHERE h.id=? AND p.state<>'revoked' ORDER BY p.pk", (patient,)))
    rows = []
    for (pk, id_, grantee, permit, types, categories, confidentiality, labels, purposes, writes, low_ms, high_ms,
         valid_from_ms, valid_until_ms, state, grant_id) in found:
        hashes = None
        if categories:
            hashes = frozenset(str(value) for (value,) in connection.execute(
                "SELECT hash FROM provision_category WHERE provision=?", (pk,)))
        rows.append(ProvisionRow(
            id=id_, patient=f"Patient/{patient}", grantee=grantee, permit=bool(permit), types=_set(types),
            categories=hashes, confidentiality=confidentiality, labels=labels, purposes=_set(purposes),
            writes=bool(writes), data_period=None if low_ms is None else (low_ms, high_ms),
            valid_from_ms=valid_from_ms, valid_until_ms=valid_until_ms, state=state, grant_id=grant_id or b""))
    return tuple(rows)


def put(connection: apsw.Connection, provision: Provision, *, consent: str, address: str | None,
        grantee_hash: Callable[[str], int], category_hash: Callable[[str], int]) -> None:
    """Store one provision of a Consent and void every decision made before."""
    pk = journal.ensure_patient(connection, provision.patient.removeprefix("Patient/"))
    low_ms, high_ms = provision.data_period or (None, None)
    connection.execute(
        "INSERT OR REPLACE INTO provision (id,consent,patient,grantee,permit,types,categories,confidentiality,labels,"
        "purposes,writes,low_ms,high_ms,valid_from_ms,valid_until_ms,state,grant_id,address) "
        "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (provision.id, consent, pk, None if provision.grantee is None else grantee_hash(provision.grantee),
         provision.permit, _text(provision.types), provision.categories is not None, provision.confidentiality,
         provision.labels, _text(provision.purposes), provision.writes, low_ms, high_ms, provision.valid_from_ms,
         provision.valid_until_ms, provision.state, provision.grant_id or None, address))
    row = connection.last_insert_rowid()
    if provision.categories is not None:
        connection.executemany("INSERT OR IGNORE INTO provision_category VALUES (?,?)",
                               [(row, category_hash(token)) for token in provision.categories])
    journal.bump_decision_seq(connection)


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


def revoke_all(connection: apsw.Connection, address: str) -> int:
    """Every live permit signed by this patient address is revoked; how many were."""
    connection.execute(
        "UPDATE provision SET state='revoked' WHERE address=? AND permit=1 AND state<>'revoked'", (address,))
    moved = connection.changes()
    if moved:
        journal.bump_decision_seq(connection)
    return moved
