"""The end of a Consent: its provisions deny from that commit on, and the chain is told.

Owns what must be committed with the version that ends one; refuses nothing. Invariant 6.
"""

from __future__ import annotations

import apsw

from gateway.access.typed_data import RevokeMessage, digest, grant_id, nonce_of
from gateway.ledger.chain import RevokeCall, address
from gateway.records.node import Hook, Node
from gateway.records.signing import DEADLINE_S, derived, kept_address, sign_kept
from gateway.store import outbox, provisions
from gateway.store.sql import now_ms


def ending(node: Node, consent: str) -> Hook:
    """Deny from this commit on, and tell the chain."""
    def hook(connection: apsw.Connection) -> None:
        provisions.set_state_of_consent(connection, consent, "revoked", only=("pending", "final"))
        call = _kept_revocation(node, connection, consent)
        if call is not None:
            outbox.enqueue(connection, kind="revoke", consent=consent, call=call, created_ms=now_ms())
    return hook


def _kept_revocation(node: Node, connection: apsw.Connection, consent: str) -> RevokeCall | None:
    """The custodial patient's signed revocation of a grant; a wallet signs its own."""
    granted = outbox.grant_of_consent(connection, consent)
    if granted is None:
        return None
    patient = str(connection.execute("SELECT h.id FROM provision p JOIN patient h ON h.pk=p.patient "
                                     "WHERE p.consent=? LIMIT 1", (consent,)).get)
    if kept_address(node, patient) != address(granted.patient):
        return None
    message = RevokeMessage(
        patient=granted.patient, grant_id=grant_id(granted.patient, granted.grantee, granted.terms_hash),
        nonce=nonce_of("custodial", derived(node, patient, "revoke nonce", consent)[:31]),
        deadline_s=now_ms() // 1000 + DEADLINE_S)
    signed = sign_kept(node, patient, digest(message, node.domain))
    return RevokeCall(patient=granted.patient, grantee=granted.grantee, terms_hash=granted.terms_hash,
                      nonce=message.nonce, deadline_s=message.deadline_s, signature=signed)
