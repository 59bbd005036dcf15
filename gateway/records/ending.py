"""The end of a Consent: its provisions deny from that commit on, and the chain is told.

Owns what must be committed with the version that ends one, and the kept key's revocations; refuses to give a
revocation up that the chain did not take for a reason that passes. Invariant 6.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import apsw

from gateway.access.typed_data import digest, nonce_of
from gateway.ledger.address import Address, address
from gateway.ledger.calls import RevokeAllCall, RevokeCall
from gateway.records.node import Hook, Node
from gateway.records.signing import DEADLINE_S, derived, kept_address, revoke_all_message, revoke_message, sign_kept
from gateway.smart.authorization import authorizations_on, revoke_authorization
from gateway.store import followed, journal, outbox, provisions
from gateway.store.sql import now_ms

RENEWED_MAX: Final = 8
"""How often the kept key signs the revocation of one grant."""


def ending(node: Node, consent: str) -> Hook:
    """Deny from this commit on, and tell the chain."""
    def hook(connection: apsw.Connection) -> None:
        here(connection, consent)
        call = kept_revocation(node, connection, consent)
        if call is not None:
            outbox.enqueue(connection, kind="revoke", consent=consent, call=call, created_ms=now_ms())
    return hook


def here(connection: apsw.Connection, consent: str) -> None:
    """End what a Consent permits or denies, and what apps do on the strength of it, inside the open transaction."""
    provisions.set_state_of_consent(connection, consent, "revoked", only=("pending", "final"))
    for one in authorizations_on(connection, consent):
        revoke_authorization(connection, one.id, now_ms())


def permits_of(connection: apsw.Connection, consent: str) -> None:
    """End the permits inside a Consent that denies, inside the open transaction; it denies on."""
    connection.execute("UPDATE provision SET state='revoked', shown='revoked' WHERE consent=? AND permit=1 "
                       "AND state<>'revoked'", (consent,))
    if connection.changes():
        journal.bump_decision_seq(connection)


def patient_of(connection: apsw.Connection, consent: str) -> str | None:
    """The logical id of the patient whose signed Consent this is."""
    found = connection.execute("SELECT h.id FROM provision p JOIN patient h ON h.pk=p.patient WHERE p.consent=? "
                               "LIMIT 1", (consent,)).get
    return None if found is None else str(found)


def kept_revocation(node: Node, connection: apsw.Connection, consent: str) -> RevokeCall | None:
    """The revocation of a Consent's grant signed by the kept key; None where another signer granted it, who alone can
    revoke it on chain, where nothing was granted, where the key was erased, and after ``RENEWED_MAX`` refusals."""
    granted, patient = outbox.grant_of_consent(connection, consent), patient_of(connection, consent)
    if granted is None or patient is None or node.ring.is_destroyed(patient) or (
            kept_address(node, patient) != granted.patient):
        return None
    refused = outbox.failures_of_consent(connection, consent, "revoke")
    if refused >= RENEWED_MAX:
        return None
    message = revoke_message(node, patient, consent, granted, now_ms() // 1000 + DEADLINE_S)
    if refused:  # the nonce of the one before may be used up
        fresh = derived(node, patient, "revoke nonce", consent, str(refused))[:31]
        message = replace(message, nonce=nonce_of("custodial", fresh))
    return RevokeCall(patient=granted.patient, grantee=granted.grantee, terms_hash=granted.terms_hash,
                      nonce=message.nonce, deadline_s=message.deadline_s,
                      signature=sign_kept(node, patient, digest(message, node.domain)))


def kept_revoke_all(node: Node, connection: apsw.Connection, patient: str) -> RevokeAllCall:
    """The end of every grant of the kept key, signed by it."""
    account = address(kept_address(node, patient))
    message = revoke_all_message(node, patient, "custodial", account, followed.epoch_to_sign(connection, account),
                                 now_ms() // 1000 + DEADLINE_S)
    return RevokeAllCall(patient=account, epoch=message.epoch, nonce=message.nonce, deadline_s=message.deadline_s,
                         signature=sign_kept(node, patient, digest(message, node.domain)))


def patient_at(connection: apsw.Connection, account: Address) -> str | None:
    """The logical id of the patient who signed as this address."""
    found = connection.execute("SELECT h.id FROM provision p JOIN patient h ON h.pk=p.patient WHERE p.address=? "
                               "LIMIT 1", (account,)).get
    return None if found is None else str(found)
