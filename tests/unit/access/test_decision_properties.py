"""What must hold of every decision, over random worlds. Invariants 4, 5 and 6 of the design."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings

from gateway.access.bound import bound
from gateway.access.decision import Deny, Permit, Request, decide
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.scopes import ScopeSet
from tests.unit.access import oracle
from tests.unit.access.worlds import NOW, World, matcher_of, worlds

MANY = 30
"""Worlds looked at for each seed hypothesis draws."""
seeds = settings(max_examples=25, deadline=None)


def permits(request: Request, grant: Grant, given_: list[Provision], now_ms: int = NOW) -> bool:
    return isinstance(decide(request, grant, given_, now_ms), Permit)


def each(world: World, letters: str = "cruds") -> list[tuple[Request, Grant, list[Provision]]]:
    return [(world.request(letters), world.grant(), world.provisions()) for _ in range(MANY)]


def test_the_worlds_reach_every_basis_and_every_kind_of_denial() -> None:
    world, seen = World(7), Counter[str]()
    for _ in range(6_000):
        request = world.request()
        decision = decide(request, world.grant(), world.provisions(), NOW)
        what = decision.basis if isinstance(decision, Permit) else decision.kind
        seen[f"{'read' if request.interaction in 'rs' else 'write'} {what}"] += 1
    assert seen.pop("write authority") > 0
    assert {key for key, count in seen.items() if count >= 10} == {
        f"{way} {what}" for way in ("read", "write")
        for what in ("self", "feed", "grant", "break-glass", "duty", "not-about-a-patient", "scope", "permission")
    }


@seeds
@given(worlds)
def test_adding_a_deny_never_permits(world: World) -> None:
    for request, grant, given_ in each(world):
        deny = replace(world.provision(), permit=False, confidentiality=0)
        if not permits(request, grant, given_):
            assert not permits(request, grant, [*given_, deny])


@seeds
@given(worlds)
def test_a_deny_that_concerns_a_granted_read_stops_it(world: World) -> None:
    for request, grant, given_ in each(world, "rs"):
        decision = decide(request, grant, given_, NOW)
        if isinstance(decision, Permit) and decision.basis == "grant":
            used = next(p for p in given_ if p.id in decision.provision_ids)
            deny = replace(used, id="d/0", permit=False, confidentiality=0, labels=0, writes=True)
            after = decide(request, grant, [*given_, deny], NOW)
            assert isinstance(after, Deny) or after.basis == "break-glass"


@seeds
@given(worlds)
def test_taking_a_permit_away_never_permits(world: World) -> None:
    for request, grant, given_ in each(world):
        if not permits(request, grant, given_):
            for index, one in enumerate(given_):
                if one.permit:
                    assert not permits(request, grant, given_[:index] + given_[index + 1:])


@seeds
@given(worlds)
def test_revoking_every_permit_leaves_nothing_granted(world: World) -> None:
    for request, grant, given_ in each(world):
        revoked = [replace(p, state="revoked") if p.permit else p for p in given_]
        decision = decide(request, grant, revoked, NOW)
        assert isinstance(decision, Deny) or decision.basis != "grant"


@seeds
@given(worlds)
def test_a_permit_that_is_not_final_counts_for_nothing(world: World) -> None:
    for request, grant, given_ in each(world):
        pending = [replace(p, state="pending") if p.permit else p for p in given_]
        without = [p for p in given_ if not p.permit]
        assert permits(request, grant, pending) == permits(request, grant, without)


@seeds
@given(worlds)
def test_a_deny_counts_before_it_is_final(world: World) -> None:
    for request, grant, given_ in each(world):
        early = [replace(p, state="pending") if not p.permit and p.state == "final" else p for p in given_]
        assert decide(request, grant, early, NOW) == decide(request, grant, given_, NOW)


@seeds
@given(worlds)
def test_removing_a_scope_never_permits(world: World) -> None:
    for request, grant, given_ in each(world):
        if not permits(request, grant, given_):
            for index in range(len(grant.scopes.resources)):
                fewer = ScopeSet(grant.scopes.resources[:index] + grant.scopes.resources[index + 1:])
                assert not permits(request, replace(grant, scopes=fewer), given_)


@seeds
@given(worlds)
def test_a_token_without_scopes_is_outside_them(world: World) -> None:
    for request, grant, given_ in each(world):
        decision = decide(request, replace(grant, scopes=ScopeSet()), given_, NOW)
        assert isinstance(decision, Deny)
        assert decision.kind == "scope"


@seeds
@given(worlds)
def test_a_denial_by_scope_says_nothing_of_the_resource(world: World) -> None:
    """Invariant 4: the same answer for any resource of the type, whoever's it is."""
    for request, grant, given_ in each(world, "rs"):
        decision = decide(request, grant, given_, NOW)
        assert request.stored is not None
        other = replace(world.facts(), type=request.stored.type)
        if isinstance(decision, Deny) and decision.kind == "scope":
            assert decide(replace(request, stored=other), grant, [], NOW) == decision


@seeds
@given(worlds)
def test_a_stalled_chain_stops_grants_alone(world: World) -> None:
    for request, grant, given_ in each(world):
        stalled = decide(replace(request, chain_fresh=False), grant, given_, NOW)
        fresh = decide(replace(request, chain_fresh=True), grant, given_, NOW)
        assert isinstance(stalled, Deny) or not stalled.provision_ids
        # Another basis may still rest on a grant of a second home patient, or on an exception that lifts a denial.
        lifted = any(one.exception and one.permit for one in given_)
        if isinstance(fresh, Permit) and not fresh.provision_ids and not lifted:
            assert isinstance(stalled, Permit)


@seeds
@given(worlds)
def test_an_expired_token_does_nothing(world: World) -> None:
    for request, grant, given_ in each(world):
        assert not permits(request, replace(grant, expires_ms=NOW), given_)


@seeds
@given(worlds)
def test_an_unknown_label_fails_closed_but_for_the_patient_and_the_author(world: World) -> None:
    for request, grant, given_ in each(world, "rs"):
        assert request.stored is not None
        labelled = replace(request, stored=replace(request.stored, labels=request.stored.labels | 1))
        decision = decide(labelled, grant, given_, NOW)
        own = request.stored.type == "Subscription"  # its author's alone
        assert isinstance(decision, Deny) or decision.basis in ("self", "feed") or own
        assert isinstance(decision, Deny) or grant.role != "delegate"


@seeds
@given(worlds)
def test_every_home_patient_must_permit(world: World) -> None:
    """A patient who permitted nothing is added: only a basis that asks no patient is left."""
    for request, grant, given_ in each(world, "rs"):
        assert request.stored is not None
        more = replace(request.stored, home_patients=(*request.stored.home_patients, "Patient/9"))
        decision = decide(replace(request, stored=more), grant, given_, NOW)
        assert isinstance(decision, Deny) or decision.basis in ("feed", "duty")


@seeds
@given(worlds)
def test_a_glass_is_broken_by_a_person_with_a_reason_and_told(world: World) -> None:
    for request, grant, given_ in each(world):
        decision = decide(request, grant, given_, NOW)
        if isinstance(decision, Permit) and decision.basis == "break-glass":
            assert grant.user is not None
            assert grant.client_kind == "app"
            assert grant.break_glass_reason == "unconscious"
            assert grant.purpose in ("BTG", "ETREAT")
            assert decision.notify


@seeds
@given(worlds)
def test_an_update_is_permitted_on_both_sides(world: World) -> None:
    for request, grant, given_ in each(world, "u"):
        if request.stored is not None and permits(request, grant, given_):
            assert permits(replace(request, proposed=request.stored, proposed_matcher=request.stored_matcher),
                           grant, given_)


@settings(max_examples=60, deadline=None)
@given(worlds)
def test_decide_the_bound_and_the_prose_agree_on_every_read(world: World) -> None:
    for request, grant, given_ in each(world, "rs"):
        version, letter, fresh = request.stored, request.interaction, request.chain_fresh
        assert version is not None
        matches = matcher_of(version)
        limit = bound(grant, version.type, letter, NOW, chain_fresh=fresh)  # type: ignore[arg-type]  # r or s
        decided = permits(request, grant, given_)
        assert decided == (limit.admit(version, given_, matches) is not None)
        assert decided == oracle.may_read(letter, version, grant, given_, NOW, fresh, matches)
