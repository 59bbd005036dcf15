"""The one decision: scopes AND client AND role AND the patients' provisions AND labels, per resource.

Owns Permit and Deny and the six bases; refuses by default, and wherever something needed is missing. A deny wins over
any permit. Reading is the interpretation of ``bound.py``, so search and read cannot differ. Invariants 4, 5, 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.access.bound import (
    Admitted,
    Basis,
    is_feed,
    on_duty,
    patient_door,
    reading_ways,
    scope_clauses,
    strongest,
)
from gateway.access.facts import Matcher, ResourceFacts
from gateway.access.grant import Grant
from gateway.access.marks import MARKS, NOTICE
from gateway.access.provision import Provision
from gateway.access.roles import NORMAL, UNKNOWN_LABEL, Policy, Role, policy

Interaction = Literal["c", "r", "u", "d", "s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One interaction with one resource.

    ``stored``: the version read, searched, replaced or deleted; None where there is none. ``proposed``: what a create
    or update would store. The matchers answer for granular scopes, each for its side; None matches nothing.
    ``only_labels``: the update changes nothing but ``meta.security``; ``only_move``: nothing but which patient it is
    about. ``chain_fresh``: the chain's head is recent.
    """

    interaction: Interaction
    stored: ResourceFacts | None = None
    proposed: ResourceFacts | None = None
    chain_fresh: bool
    stored_matcher: Matcher | None = None
    proposed_matcher: Matcher | None = None
    only_labels: bool = False
    only_move: bool = False


@dataclass(frozen=True, slots=True)
class Permit:
    """Let through on ``basis``; ``notify``: the patients and the privacy officer are told at once."""

    basis: Basis
    provision_ids: tuple[str, ...] = ()
    notify: bool = False


@dataclass(frozen=True, slots=True)
class Deny:
    """Refused.

    ``kind``: ``scope`` says nothing of existence (403); ``permission`` looks like absent; ``authority``: both sides may
    be seen, but lowering a label or moving a record needs the patient or an officer (403). ``notify``: worth telling
    the patients and the privacy officer, rate-limited per requester.
    """

    kind: Literal["scope", "permission", "authority"]
    reason: str
    notify: bool = False


Decision = Permit | Deny


def decide(request: Request, grant: Grant, provisions: Sequence[Provision], now_ms: int) -> Decision:
    """Decide one interaction; ``provisions`` are at least all of the home patients of both sides."""
    table = policy()
    role = table.roles.get(grant.role)
    letter = request.interaction
    sides = _sides(request)
    if role is None:
        return Deny("scope", f"no such role: {grant.role}")
    if now_ms >= grant.expires_ms:
        return Deny("scope", "the token has expired")
    if not sides:
        return Deny("permission", "nothing to decide on")
    type_ = sides[0][0].type
    if sides[-1][0].type != type_:
        return Deny("permission", "an update changes no type")
    clauses = scope_clauses(grant, role, type_, letter)
    if not clauses:
        return Deny("scope", f"{type_}.{letter} is outside the token's scopes")
    admitted = []
    for side, matcher in sides:
        if not any(clause.admits(side, matcher) for clause in clauses):
            return _denied(grant, sides, "no scope of the token matches this resource")
        way = _admit(request, side, grant, role, table, provisions, now_ms)
        if way is None:
            return _denied(grant, sides, _why(request, side, grant, role, table, provisions, now_ms))
        admitted.append(way)
    if refused := _authority(request, grant, role, table):
        return refused
    found = strongest(admitted)
    return Permit(found.basis, found.provision_ids,
                  tells(found.basis, grant, any(side.home_patients for side, _ in sides), letter))


def _sides(request: Request) -> list[tuple[ResourceFacts, Matcher | None]]:
    """What must be permitted: the stored version, the proposed one, or both; empty when a needed one is missing."""
    stored = [(request.stored, request.stored_matcher)] if request.stored is not None else []
    proposed = [(request.proposed, request.proposed_matcher)] if request.proposed is not None else []
    if request.interaction in "rsd":
        return stored
    return (stored + proposed if request.interaction == "u" else proposed) if proposed else []


def _admit(request: Request, side: ResourceFacts, grant: Grant, role: Role, table: Policy,
           provisions: Sequence[Provision], now_ms: int) -> Admitted | None:
    if request.interaction in ("r", "s"):
        ways = reading_ways(grant, role, table, side.type, request.interaction, now_ms,
                            chain_fresh=request.chain_fresh)
        return next((found for way in ways if (found := way.admit(side, provisions)) is not None), None)
    if side.type in table.append_only and request.interaction != "c":
        return None
    if (request.stored or side).labels & NOTICE:
        return _duty_writes(request, side, grant, role)  # the gateway's own word
    if side.type in table.author_owned:
        return _own_writes(request, side, grant)
    return (_feed_writes(request, grant, table) or _writes_of_nobody(side, role)
            or _patients_let_write(request, side, grant, role, table, provisions, now_ms)
            or _duty_writes(request, side, grant, role))


def _feed_writes(request: Request, grant: Grant, table: Policy) -> Admitted | None:
    """The custodian's feed writes; not over what a person, or for a patient's own types anyone, wrote elsewhere."""
    if not is_feed(grant):
        return None
    stored = request.stored
    if stored is not None and stored.author_client != grant.client_id and stored.type not in table.patient_takes_part \
            and (stored.author_user is not None or stored.type in table.patient_owned):
        return None
    return Admitted("feed")


def _own_writes(request: Request, side: ResourceFacts, grant: Grant) -> Admitted | None:
    """Whoever wrote it changes it, and what is new is the writer's own."""
    stored = request.stored
    if side.home_patients or (stored is not None and (
            stored.author_client, stored.author_user) != (grant.client_id, grant.user)):
        return None
    return Admitted("not-about-a-patient")


def _writes_of_nobody(side: ResourceFacts, role: Role) -> Admitted | None:
    if side.home_patients or side.type not in role.writes or side.confidentiality > NORMAL or side.labels:
        return None
    return Admitted("not-about-a-patient")


def _patients_let_write(request: Request, side: ResourceFacts, grant: Grant, role: Role, table: Policy,
                        provisions: Sequence[Provision], now_ms: int) -> Admitted | None:
    door = patient_door(grant, role, table, side.type, now_ms, chain_fresh=request.chain_fresh, writing=True)
    if door is None:
        return None
    found = door.admit(side, provisions)
    if found is None or found.basis != "self":
        return found
    # Oneself may change what one wrote, one's own consents, and labels; never what others recorded.
    stored = request.stored
    if (stored is None or request.only_labels or side.type in table.patient_owned | table.patient_takes_part
            or stored.author_user in (grant.user, grant.self_patient)):
        return found
    return None


def _duty_writes(request: Request, side: ResourceFacts, grant: Grant, role: Role) -> Admitted | None:
    if grant.user is None or grant.client_kind != "app":
        return None
    for way in on_duty(grant, role, side.type, request.interaction):
        if (admitted := way.admit(side, ())) is not None:
            return admitted
    if (request.interaction == "u" and request.only_labels and request.stored is not None
            and "relabel" in role.authority and grant.purpose == "HOPERAT"):
        return Admitted("duty")
    if (request.interaction == "u" and request.only_move and request.stored is not None
            and "move" in role.authority and grant.purpose == "HOPERAT"):
        return Admitted("duty")
    return None


def _authority(request: Request, grant: Grant, role: Role, table: Policy) -> Deny | None:
    """Lowering a label, or moving a record to another patient, needs that patient or an officer."""
    stored, proposed = request.stored, request.proposed
    if request.interaction != "u" or stored is None or proposed is None:
        return None
    homes = {*stored.home_patients, *proposed.home_patients}
    if homes and homes == {grant.self_patient} and role.name == "patient":
        return None
    if "move" not in role.authority and set(stored.home_patients) != set(proposed.home_patients):
        return Deny("authority", "moving a record to another patient needs that patient or an officer")
    if "relabel" not in role.authority and lowers(stored, proposed):
        return Deny("authority", "lowering a security label needs the patient or an officer")
    return None


def lowers(stored: ResourceFacts, proposed: ResourceFacts) -> bool:
    """Whether an update takes protection away: a lower confidentiality, or a label dropped."""
    return proposed.confidentiality < stored.confidentiality or bool(stored.labels & ~proposed.labels & ~MARKS)


def _denied(grant: Grant, sides: Sequence[tuple[ResourceFacts, Matcher | None]], reason: str) -> Deny:
    others = {patient for side, _ in sides for patient in side.home_patients} - {grant.self_patient}
    return Deny("permission", reason, notify=bool(others))


def tells(basis: Basis, grant: Grant, about_a_patient: bool, letter: str) -> bool:
    """Whether a permit is told to the patients and the privacy officer."""
    by_operator = grant.minted_by_operator and (grant.user is not None or letter in "rs")
    return basis == "break-glass" or (about_a_patient and by_operator)


def _why(request: Request, side: ResourceFacts, grant: Grant, role: Role, table: Policy,
         provisions: Sequence[Provision], now_ms: int) -> str:
    """One sentence for the audit; it never reaches the requester."""
    if not side.home_patients:
        return "about no patient, and the role may not"
    writing = request.interaction in "cud"
    door = patient_door(grant, role, table, side.type, now_ms, chain_fresh=True, writing=writing)
    if door is None or not door.grants:
        return "no basis: not the patient, not the author, and no grant can admit this role here"
    if not request.chain_fresh:
        return "the chain is stalled: grants do not count"
    if side.labels & UNKNOWN_LABEL:
        return "carries an unknown security label"
    return door.reason(side, provisions)
