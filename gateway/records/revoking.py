"""``$revoke``: a Consent becomes inactive and denies at once; a wallet's own signature goes to the chain too.

Refuses a signature that is not the patient's over this revocation. Invariant 6.
"""

from __future__ import annotations

import apsw

from gateway.access import signature as signatures
from gateway.errors import Conflict, Moved, PreconditionFailed, Unprocessable
from gateway.fhir.resource import Resource
from gateway.ledger.chain import RevokeCall, address
from gateway.records import write
from gateway.records.consent_standing import Current, current
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node
from gateway.records.signing import deadlines_s, kept_address, parameters_of, revoke_message, signature_bytes
from gateway.records.write import Written
from gateway.store import outbox
from gateway.store.sql import now_ms


async def revoke(node: Node, caller: Caller, id_: str, parameters: Resource | None) -> Written:
    """``$revoke``: the Consent becomes inactive and denies at once; a wallet's own signature goes to the chain too."""
    given = parameters_of(parameters) if parameters is not None else {}

    async def attempt(caller: Caller) -> Written:
        at = await current(node, caller, id_, "revoke", "u")
        hook: Hook | None = None
        if given.get("signature"):
            signed = _signed_revocation(node, at, signature_bytes(given["signature"]))

            def enqueue(connection: apsw.Connection) -> None:
                outbox.enqueue(connection, kind="revoke", consent=id_, call=signed, created_ms=now_ms())
            hook = enqueue
        try:
            return await write.update(node, caller, "Consent", id_, {**at.consent, "status": "inactive"},
                                      if_match=f'W/"{at.row.vid}"', hook=hook)
        except PreconditionFailed as error:
            raise Moved("its active version was written in between") from error
    return await node.decided(caller, attempt)


def _signed_revocation(node: Node, at: Current, raw: bytes) -> RevokeCall:
    granted = outbox.grant_of_consent(node.database.reader, at.row.id)
    if granted is None:
        raise Conflict("this Consent rests on no grant")
    if kept_address(node, at.patient) == granted.patient:
        raise Unprocessable("the kept key signs this revocation by itself", code="business-rule",
                            expression="Parameters.parameter.where(name='signature')")
    for deadline_s in deadlines_s():
        message = revoke_message(node, at, granted, deadline_s)
        if address(signatures.recover(message, node.domain, raw)) == granted.patient:
            return RevokeCall(patient=granted.patient, grantee=granted.grantee, terms_hash=granted.terms_hash,
                              nonce=message.nonce, deadline_s=deadline_s, signature=signatures.normalised(raw))
    raise Unprocessable("the signature is not the patient's over this revocation", code="security",
                        expression="Parameters.parameter.where(name='signature')")
