"""The decision to read as a value: which versions of a type a Grant may see.

Owns a small closed algebra that ``decide`` interprets for one resource and the index compiles to SQL for all,
so that both are the same decision; refuses to widen: no clause or no way admits nothing.

    a version is visible  =  some ScopeClause admits it  AND  some Way admits it

SQL reading of each class stands in its docstring, over ``version v`` and ``provision p``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gateway.access.facts import Matcher, ResourceFacts
from gateway.access.grant import Grant
from gateway.access.marks import MARKS, NOTICE, VERIFYING, WITHHELD
from gateway.access.provision import Asked, Failure, Provision, Success, forbidden
from gateway.access.roles import NORMAL, UNKNOWN_LABEL, Policy, Role, policy
from gateway.access.scopes import Criterion

Basis = Literal["self", "feed", "grant", "break-glass", "duty", "not-about-a-patient"]


@dataclass(frozen=True, slots=True)
class ScopeClause:
    """One scope's part: in the launch patient's compartment (or about nobody), and matching every criterion.

    SQL: ``(patient IS NULL OR v has no home patient OR patient is a home patient of v) AND`` each criterion as the
    search parameter it is.
    """

    patient: str | None = None
    criteria: tuple[Criterion, ...] = ()

    def admits(self, facts: ResourceFacts, matcher: Matcher | None) -> bool:
        if self.patient is not None and facts.home_patients and self.patient not in facts.home_patients:
            return False
        if not self.criteria:
            return True
        return matcher is not None and all(matcher(facts.type, name, value) for name, value in self.criteria)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A way that let a resource through, and the permits it rests on."""

    basis: Basis
    provision_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthoredBy:
    """The custodian's feed reading back what it wrote. SQL: ``v.client = client``."""

    client: str

    def admit(self, facts: ResourceFacts, provisions: Sequence[Provision]) -> Admitted | None:
        return Admitted("feed") if facts.author_client == self.client else None


@dataclass(frozen=True, slots=True)
class OwnOf:
    """What this client wrote for this user. SQL: ``v.patient IS NULL AND v.client = client AND v.user IS user``."""

    client: str
    user: str | None

    def admit(self, facts: ResourceFacts, provisions: Sequence[Provision]) -> Admitted | None:
        if facts.home_patients or (facts.author_client, facts.author_user) != (self.client, self.user):
            return None
        return Admitted("not-about-a-patient")


@dataclass(frozen=True, slots=True)
class NoHomePatient:
    """Not about a patient. SQL: ``v.patient IS NULL AND v.confidentiality <= c AND v.labels & ~labels = 0``."""

    confidentiality: int
    labels: int

    def admit(self, facts: ResourceFacts, provisions: Sequence[Provision]) -> Admitted | None:
        if facts.home_patients or facts.confidentiality > self.confidentiality or facts.labels & ~self.labels:
            return None
        return Admitted("not-about-a-patient")


@dataclass(frozen=True, slots=True)
class OnDuty:
    """A role's own work on this type. SQL: ``v.confidentiality <= c AND v.labels & ~labels = 0``; where it is for
    marked versions, only those: ``v.labels & ~(labels | MARKS) = 0 AND v.labels & marks <> 0``."""

    confidentiality: int
    labels: int
    marks: int = 0

    def admit(self, facts: ResourceFacts, provisions: Sequence[Provision]) -> Admitted | None:
        if facts.confidentiality > self.confidentiality or facts.labels & ~(self.labels | (MARKS if self.marks else 0)):
            return None
        if self.marks and not facts.labels & self.marks:
            return None
        return Admitted("duty")


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryPatient:
    """There is a home patient, and each one lets it through, by one of three doors; a version that is withheld
    (``marks.py``) is let through to its author alone.

    SQL: ``v.patient IS NOT NULL AND NOT EXISTS (a home patient h of v for whom no door opens)`` where

    - own: ``h = own_patient AND v.labels & hidden = 0 AND NOT EXISTS deny(h, own_grantees, NULLs not matched)``
    - granted: ``grants AND EXISTS permit(h) AND NOT EXISTS deny(h, grantees, NULL grantee matched)``
    - emergency: ``h = emergency_patient AND v.labels & (1 | NOTICE) = 0 AND NOT EXISTS deny(h, grantees, NULL grantee
      matched, p.purposes IS NOT NULL)``

    permit(h) = ``p.patient = h AND p.permit AND p.state = 'final' AND p.grantee IN permitted_as AND`` valid at
    ``now_ms AND (p.purposes IS NULL OR purpose in it) AND (p.types IS NULL OR type in it) AND (no categories OR any
    shared) AND (no data OR v named by it) AND v.confidentiality <= p.confidentiality AND v.labels & ~p.labels &
    ~VERIFYING = 0 AND (p.low_ms IS NULL OR v.low_ms >= p.low_ms AND v.high_ms <= p.high_ms)`` (an undated v fails).

    deny(h) = ``p.patient = h AND NOT p.permit AND p.state <> 'revoked' AND`` grantee, validity, purpose, type,
    category, data as above ``AND (v.confidentiality >= p.confidentiality OR v.labels & p.labels <> 0) AND (p.low_ms
    IS NULL OR v.low_ms IS NULL OR v.low_ms < p.high_ms AND v.high_ms > p.low_ms)``, and, with ``grants``, not lifted:
    ``p.exception OR NOT EXISTS permit(h) e WHERE e.exception AND e.consent = p.consent``.
    """

    own_patient: str | None
    own_grantees: frozenset[str]
    hidden: int
    grants: bool
    grantees: frozenset[str]
    permitted_as: frozenset[str]
    emergency_patient: str | None
    purpose: str
    now_ms: int
    writing: bool = False
    client: str = ""
    user: str | None = None

    def admit(self, facts: ResourceFacts, provisions: Sequence[Provision]) -> Admitted | None:
        if not facts.home_patients:
            return None
        if facts.labels & VERIFYING:
            if facts.labels & WITHHELD and not self._wrote(facts):
                return None
            facts = replace(facts, labels=facts.labels & ~VERIFYING)
        doors = []
        for patient in facts.home_patients:
            door = self._door(patient, facts, [p for p in provisions if p.patient == patient])
            if door is None:
                return None
            doors.append(door)
        return strongest(doors)

    def _wrote(self, facts: ResourceFacts) -> bool:
        """The same person by whichever app, or the same client without one."""
        if self.user is not None:
            return facts.author_user == self.user
        return facts.author_user is None and facts.author_client == self.client

    def _door(self, patient: str, facts: ResourceFacts, provisions: Sequence[Provision]) -> Admitted | None:
        if patient == self.own_patient and not facts.labels & self.hidden:
            named = [p for p in provisions if p.grantee is not None]
            if not named or not forbidden(named, self._asked(facts, self.own_grantees), lifting=self.grants):
                return Admitted("self")
        if not provisions and patient != self.emergency_patient:
            return None
        asked = self._asked(facts, self.grantees)
        if self.grants:
            admitting = self._asked(facts, self.permitted_as)
            permits = tuple(p.id for p in provisions if isinstance(p.covers(admitting), Success))
            if permits and not forbidden(provisions, asked, lifting=True):
                return Admitted("grant", permits)
        if patient == self.emergency_patient and not facts.labels & (UNKNOWN_LABEL | NOTICE) and not forbidden(
                [p for p in provisions if p.permit or p.purposes is not None], asked, lifting=self.grants):
            return Admitted("break-glass")
        return None

    def reason(self, facts: ResourceFacts, provisions: Sequence[Provision]) -> str:
        """Why no door opened, in one sentence for the audit."""
        if facts.labels & WITHHELD and not self._wrote(facts):
            return "not verified, or rejected"
        facts = replace(facts, labels=facts.labels & ~VERIFYING)
        asked = self._asked(facts, self.grantees)
        for patient in facts.home_patients:
            theirs = [p for p in provisions if p.patient == patient]
            if self._door(patient, facts, theirs) is not None:
                continue
            if forbidden(theirs, asked, lifting=self.grants):
                return "a patient forbids it"
            named = [p for p in theirs if p.permit and p.grantee in self.permitted_as and p.state != "revoked"]
            if not named:
                return "a patient has granted this holder nothing"
            outcomes = [p.covers(asked) for p in named]
            return "; ".join(dict.fromkeys(o.reason for o in outcomes if isinstance(o, Failure))) or "not granted"
        return "about no patient"

    def _asked(self, facts: ResourceFacts, grantees: frozenset[str]) -> Asked:
        return Asked(facts=facts, grantees=grantees, purpose=self.purpose, writing=self.writing, now_ms=self.now_ms)


Way = AuthoredBy | OwnOf | NoHomePatient | OnDuty | EveryPatient

_STRENGTH: Mapping[Basis, int] = {
    "self": 0, "feed": 1, "not-about-a-patient": 2, "duty": 3, "grant": 4, "break-glass": 5}


def strongest(admitted: Iterable[Admitted]) -> Admitted:
    """Several admissions as one: the basis that must be told most loudly, and every permit used."""
    parts = list(admitted)
    if len(parts) == 1:
        return parts[0]
    basis = max((part.basis for part in parts), key=_STRENGTH.__getitem__)
    return Admitted(basis, tuple(dict.fromkeys(id_ for part in parts for id_ in part.provision_ids)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessBound:
    """What of ``type`` may be seen. No clause: outside the token's scopes. No way: nothing is permitted."""

    type: str
    clauses: tuple[ScopeClause, ...]
    ways: tuple[Way, ...]

    @property
    def outside_scopes(self) -> bool:
        return not self.clauses

    @property
    def nothing(self) -> bool:
        """Certainly empty: no statement need be run."""
        return not self.clauses or not self.ways

    def admit(self, facts: ResourceFacts, provisions: Sequence[Provision], matcher: Matcher | None) -> Admitted | None:
        """The interpreter: how one version becomes visible, or None."""
        if facts.type != self.type or not any(clause.admits(facts, matcher) for clause in self.clauses):
            return None
        for way in self.ways:
            admitted = way.admit(facts, provisions)
            if admitted is not None:
                return admitted
        return None


def scope_clauses(grant: Grant, role: Role, type_: str, letter: str) -> tuple[ScopeClause, ...]:
    """The grant's scopes that speak of ``type_`` and ``letter``, within the role's ceiling and the client's kind.

    ``patient/`` needs a launch patient, ``user/`` a user, ``system/`` a client without one.
    """
    clauses = []
    for scope in grant.scopes.of(type_):
        if letter not in scope.letters or not role.ceiling.allows(type_, letter, scope.context):
            continue
        if scope.context == "patient":
            if grant.launch_patient is not None:
                clauses.append(ScopeClause(grant.launch_patient, scope.criteria))
        elif (grant.user is None) == (scope.context == "system"):
            clauses.append(ScopeClause(None, scope.criteria))
    whole = next((clause for clause in clauses if clause.patient is None and not clause.criteria), None)
    if whole is not None:
        return (whole,)
    return tuple(dict.fromkeys(clauses))


def is_feed(grant: Grant) -> bool:
    """Whether the holder is this hospital's own system client, without a person."""
    return grant.client_kind == "feed" and grant.user is None and grant.role == "system"


def patient_door(grant: Grant, role: Role, table: Policy, type_: str, now_ms: int, *, chain_fresh: bool,
                 writing: bool) -> EveryPatient | None:
    """The doors patients can open for this holder, or None where all stay shut."""
    granted = (role.grant and chain_fresh and type_ not in table.patient_only
               and (not writing or (role.write_grant and grant.client_kind == "app")))
    emergency = (role.break_glass and grant.client_kind == "app" and grant.user is not None
                 and bool(grant.break_glass_reason and grant.break_glass_reason.strip())
                 and grant.purpose in table.break_glass_purposes and type_ not in table.patient_only)
    own = grant.self_patient
    if not granted and own is None and not (emergency and grant.patient is not None):
        return None
    grantees = frozenset(grant.grantees)
    return EveryPatient(
        own_patient=own, own_grantees=grantees - {own},
        hidden=table.hidden_from_delegates if role.name == "delegate" else 0,
        grants=granted, grantees=grantees, permitted_as=frozenset(grant.permitted_as),
        emergency_patient=grant.patient if emergency else None,
        purpose=grant.purpose, now_ms=now_ms, writing=writing, client=grant.client_id, user=grant.user)


def on_duty(grant: Grant, role: Role, type_: str, letter: str) -> tuple[OnDuty, ...]:
    """The role's duties that want this type and letter, under the token's purpose, for a person."""
    if grant.user is None:
        return ()
    return tuple(OnDuty(duty.confidentiality, duty.labels, duty.marks) for duty in role.duties
                 if (type_ in duty.types or "*" in duty.types) and letter in duty.letters
                 and duty.purpose == grant.purpose)


def reading_ways(grant: Grant, role: Role, table: Policy, type_: str, letter: str, now_ms: int, *,
                 chain_fresh: bool) -> Iterator[Way]:
    """Every way this holder may come to see a resource of the type, the least remarkable first, each made when the ones
    before it did not do."""
    if type_ in table.author_owned:
        yield OwnOf(grant.client_id, grant.user)
        return
    if is_feed(grant):
        yield AuthoredBy(grant.client_id)
    if type_ in role.reads:
        yield NoHomePatient(NORMAL, 0)
    # One's own duty comes before a grant, so that a grant is not shown as used where none was needed.
    yield from on_duty(grant, role, type_, letter)
    door = patient_door(grant, role, table, type_, now_ms, chain_fresh=chain_fresh, writing=False)
    if door is not None:
        yield door


def bound(grant: Grant, type_: str, letter: Literal["r", "s"], now_ms: int, *, chain_fresh: bool) -> AccessBound:
    """What ``grant`` may see of ``type_`` at ``now_ms``; ``chain_fresh`` False shuts the door of grants."""
    table = policy()
    role = table.roles.get(grant.role)
    if role is None or now_ms >= grant.expires_ms:
        return AccessBound(type=type_, clauses=(), ways=())
    return AccessBound(type=type_, clauses=scope_clauses(grant, role, type_, letter),
                       ways=tuple(reading_ways(grant, role, table, type_, letter, now_ms, chain_fresh=chain_fresh)))
