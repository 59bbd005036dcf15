"""``$typed-data`` and ``$sign``: a proposed Consent shown as typed data, and signed.

Owns what a signature puts into one commit: pending provisions and the grant for the relay; refuses other terms, other
signers, and to sign twice. ``data.md``: Consent on the wire.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import apsw

from gateway import audit
from gateway.access.typed_data import GrantMessage, RevokeMessage, terms_hash, typed_data
from gateway.audit import Disclosure
from gateway.errors import Conflict, Moved, Unprocessable
from gateway.fhir.resource import Resource, serialise
from gateway.ledger.chain import GrantCall, address
from gateway.records.consent_standing import Current, current, is_signed
from gateway.records.gate import Caller
from gateway.records.node import Node, still
from gateway.records.signing import (
    Signable,
    deadlines_s,
    kind_for,
    parameters_of,
    revoke_message,
    signable_of,
    signature_of,
)
from gateway.records.write import Written
from gateway.store import journal, outbox, provisions
from gateway.store.sql import now_ms


async def show(node: Node, caller: Caller, id_: str, *, wallet: str | None) -> bytes:
    """``$typed-data``: the EIP-712 JSON to sign; of a Consent that was signed, the revocation of its grant."""
    async def attempt(caller: Caller) -> bytes:
        at = await current(node, caller, id_, "typed-data", "r")
        shown = serialise(typed_data(_asked(node, caller, at, wallet), node.domain))
        rows = node.gate.entries(caller, "r", "typed-data", at.decision, patients=(f"Patient/{at.patient}",),
                                 what=(f"Consent/{id_}/_history/{at.row.vid}",))
        await node.disclosures.join(Disclosure(caller.seq, rows))
        return shown
    return await node.decided(caller, attempt)


def _asked(node: Node, caller: Caller, at: Current, wallet: str | None) -> GrantMessage | RevokeMessage:
    connection, status = node.database.reader, at.consent.get("status")
    granted = outbox.grant_of_consent(connection, at.row.id)
    if granted is not None:
        return revoke_message(node, at, granted, deadlines_s()[0])
    if status == "active":
        raise Conflict("this Consent rests on no grant; revoke it with $revoke")
    if status != "proposed":
        raise Conflict(f"a Consent that is {status} is not signed")
    kind, signer = kind_for(node, caller, at.patient, wallet, None)
    return signable_of(node, connection, at, kind, signer).message


async def sign(node: Node, caller: Caller, id_: str, parameters: Resource) -> Written:
    """``$sign``: check the signature, store the provisions as pending and the grant for the relay, in one commit.

    Raises Unprocessable (other terms, another signer), Conflict (signed already), Forbidden (another's session, or a
    token that may not change the Consent: a signature decides who reads).
    """
    given = parameters_of(parameters)

    async def attempt(caller: Caller) -> Written:
        at = await current(node, caller, id_, "sign", "u")
        row, patient = at.row, at.patient
        if at.consent.get("status") != "proposed" or is_signed(node.database.reader, id_):
            raise Conflict(f"Consent/{id_} is {at.consent.get('status')}, or was signed already")
        kind, wallet = kind_for(node, caller, patient, given.get("wallet"), given.get("kind") or (
            None if given.get("signature") else "custodial"))
        signable = signable_of(node, node.database.reader, at, kind, wallet)
        if signable.message.deadline_s < now_ms() // 1000:
            raise Unprocessable("the time to sign has passed: update the Consent and ask again", code="expired",
                                expression="Consent")
        if signable.provisions[0].valid_until_ms <= now_ms():
            raise Unprocessable("the period of the terms is over", code="expired",
                                expression="Consent.provision.period")
        signed = signature_of(node, caller, patient, signable, given.get("signature"))
        rows = node.gate.entries(caller, "u", "sign", at.decision, what=(f"Consent/{id_}/_history/{row.vid}",),
                                 patients=(f"Patient/{patient}",))

        def work(connection: apsw.Connection) -> None:
            still(connection, caller)
            now = journal.current(connection, "Consent", id_)
            if now is None or now.seq != row.seq or is_signed(connection, id_):
                raise Moved("the Consent changed")
            _store(node, connection, id_, signable, signed)
            if given.get("wallet") and kind == "wallet":
                connection.execute("UPDATE account SET wallet=? WHERE fhir_user=? AND wallet IS NULL",
                                   (wallet, f"Patient/{patient}"))
            audit.append(connection, rows)

        await node.commits.commit(work)
        return Written("Consent", id_, row.vid, row.updated_ms, serialise(at.consent), False, False)
    return await node.decided(caller, attempt)


def _store(node: Node, connection: apsw.Connection, id_: str, signable: Signable, signed: bytes) -> None:
    state: Literal["pending", "final"] = "pending" if signable.on_chain else "final"
    grant = signable.grant if signable.on_chain else b""
    for provision in signable.provisions:
        provisions.put(connection, replace(provision, state=state, grant_id=grant), consent=id_,
                       address=signable.message.patient, grantee_hash=node.index.grantee,
                       category_hash=node.index.category)
    if signable.on_chain:
        message = signable.message
        outbox.enqueue(connection, kind="grant", consent=id_, created_ms=now_ms(), call=GrantCall(
            patient=address(message.patient), grantee=message.grantee, terms_hash=terms_hash(message.terms),
            valid_from_s=message.valid_from_s, valid_until_s=message.valid_until_s, nonce=message.nonce,
            deadline_s=message.deadline_s, signature=signed))
