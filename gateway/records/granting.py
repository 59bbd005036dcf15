"""``$typed-data`` and ``$sign``: a proposed Consent shown as typed data, and signed.

Owns what a signature puts into one commit: pending provisions and the grant for the relay; refuses other terms, other
signers, and to sign twice. ``FORMATS.md``, Consent and Messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import apsw

from gateway import audit
from gateway.access.decision import Permit
from gateway.access.period import date_range
from gateway.access.typed_data import Message, kind_of, terms_hash, typed_data
from gateway.audit import Disclosure
from gateway.errors import Conflict, Moved, Unprocessable
from gateway.fhir.resource import Resource, serialise
from gateway.ledger.address import address
from gateway.ledger.calls import GrantCall
from gateway.records.consent_standing import Current, current, is_signed
from gateway.records.gate import Caller
from gateway.records.node import Node, still
from gateway.records.preparing import Written
from gateway.records.signing import (
    Signable,
    Signer,
    deadlines_s,
    options,
    parameters_of,
    revoke_message,
    signable_of,
    signature_of,
    signer_at,
    signer_for,
    still_asked,
    still_signs,
)
from gateway.smart.accounts import wallet_address
from gateway.store import journal, outbox, provisions
from gateway.store.sql import now_ms


async def show(node: Node, caller: Caller, id_: str, given: Mapping[str, str], *, shown: str | None = None) -> bytes:
    """``$typed-data``: the EIP-712 JSON to sign; of a Consent that was signed, the revocation of its grant.

    ``given``: ``wallet``, ``kind`` and ``credential``; ``shown``: the version a page showed before it asked. For a
    passkey the JSON also has ``publicKey``, the options for ``navigator.credentials.get``, whose challenge is the
    EIP-712 digest.
    """
    async def attempt(caller: Caller) -> bytes:
        at = await current(node, caller, id_, "typed-data", "r")
        signer, message = _asked(node, caller, at, given, shown)
        made = shown_to(node, signer, message)
        rows = node.gate.entries(caller, "r", "typed-data", at.decision, patients=(f"Patient/{at.patient}",),
                                 what=(f"Consent/{id_}/_history/{at.row.vid}",))
        await node.disclosures.join(Disclosure(caller.seq, rows))
        return made
    return await node.decided(caller, attempt)


def shown_to(node: Node, signer: Signer, message: Message) -> bytes:
    """A message as its signer is shown it."""
    asked = typed_data(message, node.domain)
    return serialise({**asked, "publicKey": options(node, signer, message)} if signer.kind == "passkey" else asked)


def _asked(node: Node, caller: Caller, at: Current, given: Mapping[str, str], shown: str | None) -> tuple[
        Signer, Message]:
    connection, status = node.database.reader, at.consent.get("status")
    granted = outbox.grant_of_consent(connection, at.row.id)
    if granted is not None:
        signer = signer_at(node, at.patient, kind_of(granted.nonce), granted.patient)
        return signer, revoke_message(node, at.patient, at.row.id, granted, deadlines_s()[0])
    if status == "active":
        raise Conflict("this Consent rests on no grant; revoke it with $revoke")
    if status != "proposed":
        raise Conflict(f"a Consent that is {status} is not signed")
    _check_shown(at, shown)
    signer = signer_for(node, caller, at.patient, given)
    return signer, signable_of(node, connection, at, signer).message


def _check_shown(at: Current, shown: str | None) -> None:
    """What a person read is what they sign: a kept key and a passkey show nothing themselves. Raises Conflict."""
    if shown is not None and shown != str(at.row.vid):
        raise Conflict("it was changed since it was shown: read it again first")


async def sign(node: Node, caller: Caller, id_: str, parameters: Resource, *, shown: str | None = None) -> Written:
    """``$sign``: check the signature, store the provisions as pending and the grant for the relay, in one commit.

    ``shown``: as for ``show``. Raises Unprocessable (other terms, another signer), Conflict (signed already, or not
    what was shown), Forbidden (another's session, or a
    token that may not change the Consent: a signature decides who reads).
    """
    given = parameters_of(parameters)

    async def attempt(caller: Caller) -> Written:
        at = await current(node, caller, id_, "sign", "u")
        row, patient = at.row, at.patient
        if at.consent.get("status") != "proposed" or is_signed(node.database.reader, id_):
            raise Conflict(f"Consent/{id_} is {at.consent.get('status')}, or was signed already")
        _check_shown(at, shown)
        signer = signer_for(node, caller, patient, given or {"kind": "custodial"})
        signable = signable_of(node, node.database.reader, at, signer)
        if signable.message.deadline_s < now_ms() // 1000:
            raise Unprocessable("the time to sign has passed: update the Consent and ask again", code="expired",
                                expression="Consent")
        if signable.provisions[0].valid_until_ms <= now_ms():
            raise Unprocessable("the period of the terms is over", code="expired",
                                expression="Consent.provision.period")
        decision = at.decision
        if signer.kind == "attested":
            require_verified(at.consent, patient)
            # The patient was not there: they are told.
            decision = replace(decision, notify=True) if isinstance(decision, Permit) else decision
        signed = signature_of(node, caller, patient, signable, given)
        rows = node.gate.entries(caller, "u", "sign", decision, what=(f"Consent/{id_}/_history/{row.vid}",),
                                 patients=(f"Patient/{patient}",))

        def work(connection: apsw.Connection) -> None:
            still(connection, caller)
            now = journal.current(connection, "Consent", id_)
            if now is None or now.seq != row.seq or is_signed(connection, id_):
                raise Moved("the Consent changed")
            if not still_asked(connection, patient, signable):
                raise Moved("everything was revoked")
            if not still_signs(connection, patient, signer):
                raise Moved("who signs for the patient changed")
            _store(node, connection, id_, signable, signed, caller.grant.user)
            if given.get("wallet") and signer.kind == "wallet":
                connection.execute("UPDATE account SET wallet=? WHERE fhir_user=? AND wallet IS NULL",
                                   (wallet_address(signer.address), f"Patient/{patient}"))
            audit.append(connection, rows)

        await node.commits.commit(work)
        return Written("Consent", id_, row.vid, row.updated_ms, serialise(at.consent), False, False)
    return await node.decided(caller, attempt)


def require_verified(consent: Resource, patient: str) -> None:
    """A paper consent says with whom it was verified, and when. Raises Unprocessable.
    https://hl7.org/fhir/R4/consent-definitions.html#Consent.verification"""
    now = now_ms()
    for one in consent.get("verification") or ():
        with_ = str((one.get("verifiedWith") or {}).get("reference", ""))
        when = _moment_ms(one.get("verificationDate"))
        if one.get("verified") is True and when is not None and when <= now and (
                with_ == f"Patient/{patient}" or with_.startswith("RelatedPerson/")):
            return
    raise Unprocessable("a paper consent needs a verification: verified, verifiedWith the patient or a RelatedPerson, "
                        "and a verificationDate that is not to come", code="required",
                        expression="Consent.verification")


def _moment_ms(value: object) -> int | None:
    """When a dateTime begins."""
    try:
        return date_range(value)[0] if isinstance(value, str) else None
    except ValueError:
        return None


def _store(node: Node, connection: apsw.Connection, id_: str, signable: Signable, signed: bytes,
           user: str | None) -> None:
    state: Literal["pending", "final"] = "pending" if signable.on_chain else "final"
    grant = signable.grant if signable.on_chain else b""
    for provision in signable.provisions:
        provisions.put(connection, replace(provision, state=state, grant_id=grant), consent=id_,
                       address=signable.message.patient, grantee_hash=node.index.grantee,
                       category_hash=node.index.category)
    connection.execute("INSERT OR REPLACE INTO consent_signature (consent,signer,address,user,signed_ms) "
                       "VALUES (?,?,?,?,?)", (id_, signable.signer.kind, signable.signer.address, user, now_ms()))
    if signable.on_chain:
        message = signable.message
        outbox.enqueue(connection, kind="grant", consent=id_, created_ms=now_ms(), call=GrantCall(
            patient=address(message.patient), grantee=message.grantee, terms_hash=terms_hash(message.terms),
            valid_from_s=message.valid_from_s, valid_until_s=message.valid_until_s,
            epoch=message.epoch, nonce=message.nonce, deadline_s=message.deadline_s, signature=signed))
