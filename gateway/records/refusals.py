"""A write that is refused: audited first, then answered as if what may not be seen were not there.

Owns what each refusal looks like from outside; refuses to answer before the audit is durable.
"""

from __future__ import annotations

from gateway import audit
from gateway.access.decision import Deny
from gateway.access.facts import ResourceFacts
from gateway.errors import Forbidden, Issue, NotFound, Unprocessable
from gateway.records.gate import Caller, refusal
from gateway.records.node import Node
from gateway.store import journal


class Refused(Exception):  # control flow: becomes the requester's answer once it is audited
    """A denial on its way to the audit and then to the requester."""

    def __init__(self, decision: Deny, facts: ResourceFacts, type_: str, *, placed: str | None = None,
                 absent: Exception | None = None, visible: bool = False, others: tuple[str, ...] = ()) -> None:
        self.patients = tuple(dict.fromkeys((*facts.home_patients, *others)))
        self.decision = decision
        self.facts = facts
        self.type = type_
        self.placed = placed
        self.absent = absent
        self.visible = visible

    def answer(self) -> Exception:
        """What absent would look like: an unknown reference for a create, 404 for a known place."""
        if self.decision.kind != "permission":
            return refusal(self.decision, self.type)
        if self.visible:
            return Forbidden(f"{self.placed} may be read, not changed, with this token")
        if self.placed is not None:
            return self.absent or NotFound(f"{self.placed} is not known")
        if not self.facts.home_patients:
            return Forbidden(f"this role may not write {self.type}")
        return Unprocessable([Issue("error", "not-found", f"{reference} is not known", self.type)
                              for reference in self.facts.home_patients])


class Answered(Refused):
    """A refusal of what was permitted, with an answer of its own: what it tells of a record is audited first."""

    def __init__(self, reason: str, facts: ResourceFacts, told: Exception, *, others: tuple[str, ...] = ()) -> None:
        super().__init__(Deny("permission", reason), facts, facts.type, others=others,
                         placed=f"{facts.type}/{facts.id}" if facts.id else None)
        self._told = told

    def answer(self) -> Exception:
        """See Refused."""
        return self._told


async def audited_refusal(node: Node, caller: Caller, refused: Refused, interaction: str, name: str) -> Exception:
    """Make the refusal durable in the audit; the answer to raise.

    A patient nobody here knows gets no keys for it: naming many would fill the key store, and the time would tell.
    """
    known = [reference for reference in refused.patients
             if journal.patient_pk(node.database.reader, reference.removeprefix("Patient/")) is not None]
    rows = node.gate.entries(caller, interaction, name, refused.decision, patients=known,
                             what=(refused.placed or refused.type,))
    await node.commits.commit(lambda tx: audit.append(tx, rows))
    return refused.answer()
