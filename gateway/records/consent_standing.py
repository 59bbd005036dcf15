"""A Consent as it stands: its current version as the caller may see it, what it rules, whether somebody signed it.

Refuses to tell a Consent that is not permitted from one that is not there. ``FORMATS.md``, Consent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import apsw

from gateway import audit
from gateway.access.consent import provisions_of
from gateway.access.decision import Decision, Deny
from gateway.access.facts import ResourceFacts
from gateway.access.provision import Provision
from gateway.errors import Forbidden, Gone, NotFound
from gateway.fhir.resource import Resource, parse
from gateway.records.gate import Caller, refusal
from gateway.records.node import Node
from gateway.store import journal, outbox
from gateway.store.journal import VersionRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """A Consent's current version as the caller may see it; ``patient`` is a logical id."""

    row: VersionRow
    consent: Resource
    patient: str
    decision: Decision


async def current(node: Node, caller: Caller, id_: str, name: str, letter: Literal["r", "u"]) -> Current:
    """The current Consent, if the caller may read it, and with ``u`` also change it; else what absent looks like."""
    connection, what = node.database.reader, f"Consent/{id_}"
    row = journal.current(connection, "Consent", id_)
    if row is None:
        rows = node.gate.entries(caller, letter, name, None, what=(what,), patients=(), outcome="4")
        await node.commits.commit(lambda tx: audit.append(tx, rows))
        for needed in dict.fromkeys(("r", letter)):
            node.gate.require_scope(caller, "Consent", needed)
        raise NotFound(f"{what} is not known")
    facts, matcher = node.gate.facts(connection, row), node.gate.stored_matcher(connection, row.seq)
    decision = node.gate.decide(connection, caller, "r", stored=facts, stored_matcher=matcher)
    readable = not isinstance(decision, Deny)
    if readable and letter == "u":
        decision = node.gate.decide(connection, caller, "u", stored=facts, proposed=facts, stored_matcher=matcher,
                                    proposed_matcher=matcher)
    if isinstance(decision, Deny):
        rows = node.gate.entries(caller, letter, name, decision, what=(what,), patients=facts.home_patients)
        await node.commits.commit(lambda tx: audit.append(tx, rows))
        if readable and decision.kind == "permission":
            raise Forbidden(f"{what} may be read, not changed, with this token")
        raise refusal(decision, what)
    if row.deleted:
        raise Gone(f"{what} was deleted", version_id=row.vid)
    return Current(row=row, consent=parse(node.versions.open(connection, row).stored), decision=decision,
                    patient=facts.home_patients[0].removeprefix("Patient/"))


def is_signed(connection: apsw.Connection, consent: str) -> bool:
    """Whether somebody signed an open Consent: its grant is on its way or final, or it denies. A grant that the chain
    refused does not count: those terms may be put right and signed anew."""
    return outbox.grant_of_consent(connection, consent) is not None or connection.execute(
        "SELECT 1 FROM provision WHERE consent=? AND state='final' LIMIT 1", (consent,)).get is not None


def denies(connection: apsw.Connection, consent: str) -> bool:
    """Whether what was signed denies somebody now: also where the chain refused the permits inside."""
    return connection.execute("SELECT 1 FROM provision WHERE consent=? AND permit=0 AND exception=0 "
                              "AND state<>'revoked' LIMIT 1", (consent,)).get is not None


def rules_of(node: Node, consent: Resource, **state: Any) -> tuple[Provision, ...]:
    return provisions_of(consent, custodian=node.settings.hospital_reference, base=node.settings.base_url,
                         types=node.definitions.resource_types, **state)


async def may(node: Node, caller: Caller, patient: str, letter: Literal["r", "s", "u"], name: str) -> Decision:
    """Whether the caller may do this to the Consents of a patient (a logical id) as such.

    Raises NotFound (no such patient, for this caller), Forbidden.
    """
    connection, what = node.database.reader, f"Patient/{patient}"
    known = journal.current(connection, "Patient", patient)
    facts = ResourceFacts(type="Consent", id="", home_patients=(what,), author_client="", author_user=None)
    decision = node.gate.decide(connection, caller, letter, stored=facts, proposed=facts,
                                stored_matcher=_nothing, proposed_matcher=_nothing)
    if known is None and not isinstance(decision, Deny):
        decision = Deny("permission", "there is no such patient")
    if isinstance(decision, Deny):
        rows = node.gate.entries(caller, letter, name, decision, what=(what,),
                                 patients=() if known is None else (what,))
        await node.commits.commit(lambda tx: audit.append(tx, rows))
        raise refusal(decision, what)
    return decision


def _nothing(type_: str, name: str, value: str) -> bool:
    return False  # a Consent that nobody wrote matches no granular scope
