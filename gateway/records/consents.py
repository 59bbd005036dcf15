"""A Consent written through REST: proposed, changed until it is signed, ended.

Owns the life of a Consent; refuses a status nobody signed for, terms that cannot be enforced, and what the gateway
alone says in one. Signing is ``granting.py``, ending ``ending.py`` and ``revoking.py``. ``FORMATS.md``, Consent.
Invariants 5, 6.
"""

from __future__ import annotations

import apsw

from gateway.access import consent_refused
from gateway.access.consent import Actor, same_terms, transition
from gateway.access.provision import Failure
from gateway.errors import Conflict, Unprocessable
from gateway.fhir.resource import Resource, parse
from gateway.records.consent_standing import denies, is_signed, rules_of
from gateway.records.ending import ending
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node, TypeRules
from gateway.store.journal import VersionRow

_OPEN = ("draft", "proposed")


def actor(caller: Caller) -> Actor:
    """In which capacity the caller moves a Consent."""
    match caller.grant.role:
        case "patient" | "delegate":
            return "patient"
        case "system":
            return "feed"
        case _:
            return "office"


def check_write(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Hook | None:
    """The rules of a Consent written through REST, and what must be committed with it.

    Raises Unprocessable naming the place: an impossible status, unenforceable terms, terms changed after signing, the
    gateway's own extension.
    """
    claimed = consent_refused.claimed(old, new)
    if claimed is not None:
        raise Unprocessable("why the chain refused a grant is written by this gateway alone", code="business-rule",
                            expression=claimed)
    before = old.get("status") if old else None
    status = str(new.get("status"))
    # What is signed is in force, or will be by itself: from here on it can only be ended, whatever its status shows.
    # A signature between this look and the commit moves decision_seq, and all is decided again.
    # One whose permits the chain refused denies on: its patient may put it right, but the feed may not lift it.
    signed = before in _OPEN and (is_signed(node.database.reader, str(new["id"])) or (
        actor(caller) == "feed" and denies(node.database.reader, str(new["id"]))))
    outcome = transition("active" if signed else before, status, actor(caller))
    if isinstance(outcome, Failure):
        raise Unprocessable(outcome.reason, code="business-rule", expression="Consent.status")
    if status in _OPEN:
        rules_of(node, new)
        return None
    if old is not None and not same_terms(old, new):
        raise Unprocessable("what was signed cannot be changed: write a new Consent", code="business-rule",
                            expression="Consent.provision")
    return ending(node, str(new["id"]))


def check_deletion(node: Node, connection: apsw.Connection, row: VersionRow) -> Hook | None:
    """An active Consent, one signed to be, or one that denies is ended, not deleted. Raises Conflict."""
    status = parse(node.versions.open(connection, row).stored).get("status")
    if status == "active" or (status in _OPEN and (is_signed(connection, row.id) or denies(connection, row.id))):
        raise Conflict("the Consent is signed: make it inactive (or POST $revoke) first")
    return None


RULES = TypeRules(check_write=check_write, check_deletion=check_deletion)
"""What writing a Consent through REST must obey, for ``Node.rules``."""
