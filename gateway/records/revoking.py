"""``$revoke``: a Consent becomes inactive and denies at once; the patient's own signature, where the kept key
is not what granted, goes to the chain too.

Refuses a signature that is not the patient's over this revocation. Invariant 6.
"""

from __future__ import annotations

from collections.abc import Mapping

import apsw

from gateway.access.typed_data import kind_of
from gateway.errors import Conflict, Moved, PreconditionFailed, Unprocessable
from gateway.fhir.resource import Resource
from gateway.ledger.calls import RevokeCall
from gateway.records import write
from gateway.records.consent_standing import Current, current
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node
from gateway.records.preparing import Written
from gateway.records.signing import deadlines_s, given_signature, parameters_of, revoke_message, signer_at
from gateway.store import outbox
from gateway.store.sql import now_ms


async def revoke(node: Node, caller: Caller, id_: str, parameters: Resource | None) -> Written:
    """``$revoke``: the Consent becomes inactive and denies at once; a wallet's own signature goes to the chain too."""
    given = parameters_of(parameters) if parameters is not None else {}

    async def attempt(caller: Caller) -> Written:
        at = await current(node, caller, id_, "revoke", "u")
        hook: Hook | None = None
        if given.get("signature"):
            signed = _signed_revocation(node, at, given)

            def enqueue(connection: apsw.Connection) -> None:
                outbox.enqueue(connection, kind="revoke", consent=id_, call=signed, created_ms=now_ms())
            hook = enqueue
        try:
            return await write.update(node, caller, "Consent", id_, {**at.consent, "status": "inactive"},
                                      if_match=f'W/"{at.row.vid}"', hook=hook)
        except PreconditionFailed as error:
            raise Moved("its active version was written in between") from error
    return await node.decided(caller, attempt)


def _signed_revocation(node: Node, at: Current, given: Mapping[str, str]) -> RevokeCall:
    granted = outbox.grant_of_consent(node.database.reader, at.row.id)
    if granted is None:
        raise Conflict("this Consent rests on no grant")
    signer = signer_at(node, at.patient, kind_of(granted.nonce), granted.patient)
    if signer.kind == "custodial":
        raise Unprocessable("the kept key signs this revocation by itself", code="business-rule",
                            expression="Parameters.parameter.where(name='signature')")
    refused: Unprocessable | None = None
    for deadline_s in deadlines_s():
        message = revoke_message(node, at.patient, at.row.id, granted, deadline_s)
        try:
            signed = given_signature(node, signer, message, given)
        except Unprocessable as error:
            refused = refused or error
            continue
        return RevokeCall(patient=granted.patient, grantee=granted.grantee, terms_hash=granted.terms_hash,
                          nonce=message.nonce, deadline_s=deadline_s, signature=signed)
    assert refused is not None  # noqa: S101  # a deadline was tried
    raise refused
