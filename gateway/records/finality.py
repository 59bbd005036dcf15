"""What became of a Consent's grant, shown by the Consent: active once final, inactive once revoked, why it was refused.

Owns the versions this gateway itself writes of a Consent, for the ledger process; refuses a status the life of a
Consent does not have.
"""

from __future__ import annotations

import apsw

from gateway.access.consent import transition
from gateway.access.provision import Failure
from gateway.errors import Conflict
from gateway.fhir.resource import Resource, parse
from gateway.records.node import Node
from gateway.records.versions import Draft
from gateway.store import journal, outbox, search_parameters
from gateway.store.sql import now_ms

REFUSED = "urn:fhir-gateway:consent-refused"
"""Extension of a proposed Consent: the contract's error with which the chain refused the grant signed for it."""


def show_finality(node: Node) -> int:
    """Write the ``active`` version of every Consent whose provisions became final, ``inactive`` of those whose grant
    was revoked on chain, and of one whose grant the chain refused a version that says why and, as every version, can be
    signed; how many. For the background loop; each Consent is one transaction."""
    changed = 0
    node.parameters.follow(node, journal.decision_seq(node.database.reader))
    due = node.database.reader.execute(
        "SELECT DISTINCT consent, state FROM provision WHERE state<>'pending' AND shown<>state").fetchall()
    for consent, state in due:
        changed += _show(node, str(consent), str(state))
    return changed


def _show(node: Node, id_: str, state: str) -> int:
    connection, status = node.database.reader, "active" if state == "final" else "inactive"
    generation = node.parameters.generation
    refusal = outbox.refusal_of_consent(connection, id_) if state == "revoked" else None
    row = journal.current(connection, "Consent", id_)
    new = None
    if row is not None and not row.deleted:
        consent = parse(node.versions.open(connection, row).stored)
        before = consent.get("status")
        if refusal is not None and before == "proposed":
            status = "proposed"
        if not isinstance(transition(before, status, "gateway"), Failure) and (
                before != status or refusal is not None):
            facts = node.gate.facts(connection, row)
            shown = _telling({**consent, "status": status}, refusal)
            made = Draft(resource=shown, access=facts, search=node.extractor.facts(shown))
            new, _ = node.versions.seal(made, id_=id_, vid=row.vid + 1, updated_ms=now_ms(), client=row.client,
                                        user=row.user)

    def work(tx: apsw.Connection) -> None:
        if new is not None and search_parameters.generation(tx) != generation:
            raise Conflict("a search parameter came or went: extracted anew at the next turn")
        # That state alone: one that came in between is still to be shown.
        tx.execute("UPDATE provision SET shown=state WHERE consent=? AND state=?", (id_, state))
        if new is not None:
            journal.append(tx, new)
    try:
        node.database.transact(work)
    except Conflict:
        return 0
    return int(new is not None)


def _telling(consent: Resource, refusal: str | None) -> Resource:
    """With the extension that says why the chain refused what was signed last, or without."""
    told = [one for one in consent.get("extension") or () if one.get("url") != REFUSED]
    if refusal is not None:
        told.append({"url": REFUSED, "valueCode": refusal})
    rest = {name: value for name, value in consent.items() if name != "extension"}
    return {**rest, "extension": told} if told else rest
