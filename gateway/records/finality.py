"""What became of a Consent's grant, shown by the Consent: active once final, inactive once revoked or over, why it was
refused.

Owns the versions this gateway itself writes of a Consent, and the acts of the kept key that are signed anew, for the
ledger process; refuses a status the life of a Consent does not have.
"""

from __future__ import annotations

import apsw

from gateway.access.consent import transition
from gateway.access.consent_refused import telling
from gateway.access.provision import Failure
from gateway.errors import Conflict
from gateway.fhir.resource import parse
from gateway.ledger.calls import RevokeAllCall
from gateway.records.ending import kept_revocation, kept_revoke_all, patient_at, patient_of
from gateway.records.node import Node
from gateway.records.signing import kept_address
from gateway.records.versions import Draft
from gateway.smart.authorization import authorizations_on, revoke_authorization
from gateway.store import followed, journal, outbox, search_parameters
from gateway.store.sql import now_ms

_OVER = "over"
"""``provision.shown`` of a grant whose Consent says that its time has passed."""
_LATE = ("SignatureExpired", "NonceUsed")
"""Why the chain may refuse a revocation that is right: its time passed on the way, or its nonce was used up."""


def turn(node: Node) -> int:
    """One turn of the background loop; how much it moved."""
    return show_finality(node) + end_expired(node) + renew(node)


def ended(connection: apsw.Connection) -> None:
    """End what apps do on the strength of Consents whose every permit is revoked, inside the open transaction."""
    for (id_,) in connection.execute(
            "SELECT a.id FROM authorization a WHERE a.consent IS NOT NULL AND a.revoked_ms IS NULL AND EXISTS "
            "(SELECT 1 FROM provision p WHERE p.consent=a.consent) AND NOT EXISTS (SELECT 1 FROM provision p "
            "WHERE p.consent=a.consent AND p.permit=1 AND p.state<>'revoked')").fetchall():
        revoke_authorization(connection, str(id_), now_ms())


def sweep(connection: apsw.Connection, _: int) -> None:
    """``ended``, for what came to rest on a Consent while that was ending."""
    ended(connection)


def show_finality(node: Node) -> int:
    """Write the ``active`` version of every Consent whose provisions became final, ``inactive`` of those whose grant
    was revoked on chain, and of one whose grant the chain refused a version that says why and, as every version, can be
    signed; how many. Each Consent is one transaction."""
    changed = 0
    node.parameters.follow(journal.decision_seq(node.database.reader))
    due = node.database.reader.execute(
        "SELECT DISTINCT consent, state FROM provision WHERE state<>'pending' AND shown<>state "
        "AND shown<>?", (_OVER,)).fetchall()
    for consent, state in due:
        refusal = outbox.refusal_of_consent(node.database.reader, str(consent)) if state == "revoked" else None
        if state == "revoked" and refusal is None and _denies_on(node.database.reader, str(consent)):
            node.database.transact(lambda tx, id_=consent: tx.execute(  # type: ignore[misc]  # bound here
                "UPDATE provision SET shown=state WHERE consent=? AND state='revoked'", (id_,)))
            continue
        changed += _show(node, str(consent), str(state), "active" if state == "final" else "inactive", refusal)
    return changed


def _denies_on(connection: apsw.Connection, consent: str) -> bool:
    """Whether a Consent whose permits were revoked still denies: these were exceptions to it."""
    return connection.execute("SELECT 1 FROM provision WHERE consent=? AND exception=0 AND state<>'revoked' LIMIT 1",
                              (consent,)).get is not None


def end_expired(node: Node) -> int:
    """Write the ``inactive`` version of every Consent whose time is over, and end what apps do by it; how many.

    Its provisions let nobody in any more by themselves, and the chain goes on counting its grant.
    """
    now = now_ms()
    due = node.database.reader.execute(
        "SELECT DISTINCT consent FROM provision p WHERE shown='final' AND valid_until_ms<=? AND NOT EXISTS "
        "(SELECT 1 FROM provision q WHERE q.consent=p.consent AND q.valid_until_ms>?)", (now, now)).fetchall()
    return sum(_show(node, str(consent), "final", "inactive", None, over=True) for (consent,) in due)


def renew(node: Node) -> int:
    """Sign anew what the kept key revoked and the chain refused because it came late; how many acts."""
    reader = node.database.reader
    late = outbox.failed_of_kind(reader, "revoke", _LATE)
    all_late = outbox.failed_of_kind(reader, "revoke-all", (*_LATE, "EpochMismatch"))
    if not late and not all_late:
        return 0

    def work(connection: apsw.Connection) -> int:
        renewed = 0
        for intent in late:
            call = kept_revocation(node, connection, intent.consent) if intent.consent else None
            if call is not None:
                outbox.enqueue(connection, kind="revoke", consent=intent.consent, call=call, created_ms=now_ms())
                renewed += 1
            outbox.renewed(connection, intent.pk)
        for intent in all_late:
            patient = patient_at(connection, intent.call.patient)
            over = isinstance(intent.call, RevokeAllCall) and intent.call.epoch < followed.epoch_of(
                connection, intent.call.patient)
            if patient is not None and not over and not node.ring.is_destroyed(patient) and (
                    kept_address(node, patient) == intent.call.patient):
                outbox.enqueue(connection, kind="revoke-all", consent=None, created_ms=now_ms(),
                               call=kept_revoke_all(node, connection, patient))
                renewed += 1
            outbox.renewed(connection, intent.pk)
        return renewed

    return node.database.transact(work)


def _show(node: Node, id_: str, state: str, status: str, refusal: str | None, *, over: bool = False) -> int:
    connection = node.database.reader
    generation = node.parameters.generation
    row = journal.current(connection, "Consent", id_)
    new = None
    # Of who was erased there is nobody to show it to; the others' turn comes all the same.
    whose = patient_of(connection, id_)
    if row is not None and not row.deleted and not (whose is not None and node.ring.is_destroyed(whose)):
        consent = parse(node.versions.open(connection, row).stored)
        before = consent.get("status")
        if refusal is not None and before == "proposed":
            status = "proposed"
        if not isinstance(transition(before, status, "gateway"), Failure) and (
                before != status or refusal is not None):
            facts = node.gate.facts(connection, row)
            shown = telling({**consent, "status": status}, refusal)
            made = Draft(resource=shown, access=facts, search=node.extractor.facts(shown))
            new, _ = node.versions.seal(made, id_=id_, vid=row.vid + 1, updated_ms=now_ms(), client=row.client,
                                        user=row.user)

    def work(tx: apsw.Connection) -> None:
        if new is not None and search_parameters.generation(tx) != generation:
            raise Conflict("a search parameter came or went: extracted anew at the next turn")
        # That state alone: one that came in between is still to be shown.
        tx.execute("UPDATE provision SET shown=? WHERE consent=? AND state=?", (_OVER if over else state, id_, state))
        if over:
            for one in authorizations_on(tx, id_):
                revoke_authorization(tx, one.id, now_ms())
        if new is not None:
            journal.append(tx, new)
    try:
        node.database.transact(work)
    except Conflict:
        return 0
    return int(new is not None)
