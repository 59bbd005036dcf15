"""``Patient/{id}/$revoke-all``: everything a patient granted ends in one commit, and on chain by one epoch.

Owns what belongs into that commit (each Consent's ``inactive`` version, its provisions, what apps do by it, grants not
sent yet) and the acts for the chain; refuses whoever may not end every one of those Consents. Denials stay: they
protect. Invariants 4 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import apsw

from gateway import audit
from gateway.access.decision import Permit
from gateway.audit import Disclosure
from gateway.errors import Conflict, Unprocessable
from gateway.fhir.resource import Resource, parse, serialise
from gateway.ledger.address import Address, address
from gateway.ledger.calls import RevokeAllCall
from gateway.records import aside, drafting, ending, preparing, refusals
from gateway.records.consent_standing import may
from gateway.records.gate import Caller
from gateway.records.granting import shown_to
from gateway.records.node import Node, still
from gateway.records.preparing import Prepared
from gateway.records.refusals import Refused
from gateway.records.signing import (
    deadlines_s,
    given_signature,
    kept_address,
    parameters_of,
    revoke_all_message,
    signer_for,
)
from gateway.store import followed, journal, outbox, revocations
from gateway.store.sql import now_ms

_APART = 10
"""How many Consents are worth a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """What one caller's revoke-all ends: Consents' next versions, the ids of all whose provisions go, and of those that
    deny on, whose permits go."""

    prepared: tuple[Prepared, ...]
    consents: tuple[str, ...]
    denying: tuple[str, ...]


async def show(node: Node, caller: Caller, patient: str, given: Mapping[str, str]) -> bytes:
    """``GET``: the EIP-712 JSON by which the patient's wallet or passkey ends all it granted.

    Raises Conflict: the kept key signs for itself.
    """
    async def attempt(caller: Caller) -> bytes:
        decision = await may(node, caller, patient, "r", "revoke-all")
        signer = signer_for(node, caller, patient, given)
        if signer.kind in ("custodial", "attested"):
            raise Conflict("the kept key signs this by itself: POST $revoke-all")
        account = address(signer.address)
        message = revoke_all_message(node, patient, signer.kind, account, followed.epoch_to_sign(
            node.database.reader, account), deadlines_s()[0])
        rows = node.gate.entries(caller, "r", "revoke-all-shown", decision, patients=(f"Patient/{patient}",),
                                 what=(f"Patient/{patient}",))
        await node.disclosures.join(Disclosure(caller.seq, rows))
        return shown_to(node, signer, message)
    return await node.decided(caller, attempt)


async def revoke_all(node: Node, caller: Caller, patient: str, parameters: Resource | None) -> bytes:
    """``POST``: Parameters telling how many Consents ended and, for each patient address, what the chain is told.

    Raises NotFound (no such patient for this caller), Forbidden, Unprocessable (a signature that is not the patient's).
    """
    given = parameters_of(parameters) if parameters is not None else {}

    async def attempt(caller: Caller) -> bytes:
        decision = await may(node, caller, patient, "u", "revoke-all")
        try:
            found = await aside.done(_many(node, patient), lambda: _prepared(node, caller, patient))
        except Refused as refused:
            raise await refusals.audited_refusal(node, caller, refused, "u", "revoke-all") from None
        signed = _signed(node, caller, patient, given) if given.get("signature") else None
        if caller.grant.self_patient != f"Patient/{patient}" and isinstance(decision, Permit):
            decision = replace(decision, notify=True)
        rows = node.gate.entries(caller, "u", "revoke-all", decision, patients=(f"Patient/{patient}",),
                                 what=(f"Patient/{patient}",))
        told: list[tuple[str, str]] = []

        def work(connection: apsw.Connection) -> None:
            told.clear()
            still(connection, caller)
            for prepared in found.prepared:
                preparing.commit_prepared(connection, prepared)
            for consent in (*found.consents, *found.denying):
                outbox.withdraw_grant(connection, consent)
            revocations.once_more(connection, patient)
            accounts = _accounts(connection, patient)
            for consent in found.consents:
                ending.here(connection, consent)
            for consent in found.denying:
                ending.permits_of(connection, consent)
            told.extend(_tell(node, connection, patient, accounts, signed))
            audit.append(connection, rows)

        await aside.committed(node, len(found.prepared) > _APART, work)
        return _answer(len(found.consents) + len(found.denying), told)
    return await node.decided(caller, attempt)


def _many(node: Node, patient: str) -> bool:
    return len(_consents(node.database.reader, patient)) > _APART


def _consents(connection: apsw.Connection, patient: str) -> list[str]:
    """Consents of the patient with a permit that counts or will."""
    return [str(consent) for (consent,) in connection.execute(
        "SELECT DISTINCT p.consent FROM patient h JOIN provision p ON p.patient=h.pk WHERE h.id=? AND p.permit=1 "
        "AND p.state<>'revoked'", (patient,)).fetchall()]


def _denies(connection: apsw.Connection, consent: str) -> bool:
    return connection.execute("SELECT 1 FROM provision WHERE consent=? AND exception=0 AND permit=0 "
                              "AND state<>'revoked' LIMIT 1", (consent,)).get is not None


def _prepared(node: Node, caller: Caller, patient: str) -> _Ending:
    """Raises Refused (a Consent this caller may not end), Forbidden."""
    connection = node.database.reader
    found = _consents(connection, patient)
    denying = tuple(id_ for id_ in found if _denies(connection, id_))
    consents = tuple(id_ for id_ in found if id_ not in denying)
    prepared: list[Prepared] = []
    for id_ in consents:
        row = journal.current(connection, "Consent", id_)
        if row is None or row.deleted:
            continue
        consent = parse(node.versions.open(connection, row).stored)
        if consent.get("status") not in ("active", "proposed"):
            continue  # said so already; what it granted ends all the same
        made = drafting.draft(node, caller, {**consent, "status": "inactive"}, id_)
        one = preparing.prepare_update(node, caller, connection, made, id_, row, None)
        # Its own end is part of the whole: no revocation of each grant for the chain.
        prepared.append(replace(one, hook=None))
    return _Ending(prepared=tuple(prepared), consents=consents, denying=denying)


def _accounts(connection: apsw.Connection, patient: str) -> list[Address]:
    """The addresses whose grants of this patient the chain holds, or may come to hold."""
    return [address(str(account)) for (account,) in connection.execute(
        "SELECT DISTINCT p.address FROM patient h JOIN provision p ON p.patient=h.pk WHERE h.id=? AND p.permit=1 "
        "AND p.address IS NOT NULL AND EXISTS (SELECT 1 FROM intent i WHERE i.consent=p.consent AND i.kind='grant' "
        "AND i.state<>'failed') AND p.state<>'revoked'", (patient,)).fetchall()]


def _signed(node: Node, caller: Caller, patient: str, given: Mapping[str, str]) -> RevokeAllCall:
    """What a wallet or passkey signed. Raises Unprocessable."""
    signer = signer_for(node, caller, patient, given)
    if signer.kind in ("custodial", "attested"):
        raise Unprocessable("the kept key signs this by itself", code="business-rule",
                            expression="Parameters.parameter.where(name='signature')")
    account = address(signer.address)
    reader = node.database.reader
    # The one asked for now, or the same signature sent once more while its epoch's end is on its way.
    epochs = dict.fromkeys((followed.epoch_to_sign(reader, account), followed.epoch_of(reader, account)))
    refused: Unprocessable | None = None
    for epoch, deadline_s in product(epochs, deadlines_s()):
        message = revoke_all_message(node, patient, signer.kind, account, epoch, deadline_s)
        try:
            return RevokeAllCall(patient=account, epoch=epoch, nonce=message.nonce, deadline_s=deadline_s,
                                 signature=given_signature(node, signer, message, given))
        except Unprocessable as error:
            refused = refused or error
    assert refused is not None  # noqa: S101  # a deadline was tried
    raise refused


def _tell(node: Node, connection: apsw.Connection, patient: str, accounts: list[Address],
          signed: RevokeAllCall | None) -> list[tuple[str, str]]:
    """Enqueue what is signed; of each address, whether its end is on its way or still wants a signature."""
    found = []
    kept = kept_address(node, patient)
    for account in dict.fromkeys((*accounts, *((signed.patient,) if signed else ()))):
        call = signed if signed is not None and signed.patient == account else None
        if account == kept:
            call = ending.kept_revoke_all(node, connection, patient)
        if call is not None:
            outbox.enqueue(connection, kind="revoke-all", consent=None, call=call, created_ms=now_ms())
        found.append((account, "signature-needed" if call is None else "queued"))
    return found


def _answer(ended: int, told: list[tuple[str, str]]) -> bytes:
    parameters: list[dict[str, Any]] = [{"name": "ended", "valueInteger": ended}]
    parameters += [{"name": "chain", "part": [{"name": "address", "valueString": account},
                                              {"name": "state", "valueCode": state}]} for account, state in told]
    return serialise({"resourceType": "Parameters", "parameter": parameters})
