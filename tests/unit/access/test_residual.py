"""What is told of a token to other resource servers lets through nothing that is not let through here, of types a grant
opens and labels that are known: PCF has no words for others. IHE PCF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.access.bound import reading_ways
from gateway.access.facts import ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.residual import CONFIDENTIALITY, NOTHING, SENSITIVITY, Residual, residual
from gateway.access.roles import policy
from gateway.access.scopes import ResourceScope, ScopeSet
from tests.unit.access.worlds import NOW, World

BASE = "https://hospital.example/fhir"
PSY = {"system": SENSITIVITY, "code": "PSY"}
DOCTOR = Grant(token_id="t", client_id="app", client_kind="app", user="Practitioner/1", role="clinician",
               scopes=ScopeSet((ResourceScope("user", "*", "rs"),)), patient="Patient/1", purpose="TREAT",
               grantees=("Practitioner/1", "Organization/h"), expires_ms=5_000)


def permit(**terms: Any) -> Provision:
    return Provision(**{"id": "c1/0", "patient": "Patient/1", "grantee": "Organization/h", "permit": True,
                        "state": "final", **terms})


def deny(**terms: Any) -> Provision:
    return permit(**{"id": "c2/0", "permit": False, "grantee": None, "confidentiality": 0, **terms})


def told(*provisions: Provision, grant: Grant = DOCTOR, fresh: bool = True) -> Residual:
    found = residual(grant, provisions, NOW, chain_fresh=fresh, base=BASE)
    assert found is not None
    return found


def carries(facts: ResourceFacts) -> list[tuple[str, str]]:
    """The labels of a resource, the confidentiality it has without one too."""
    labels = policy().labels
    rank = next(code for code, rank in labels.ranks.items() if rank == facts.confidentiality)
    return [(CONFIDENTIALITY, rank), *((SENSITIVITY, code) for code in labels.codes(facts.labels))]


def applies(rule: Mapping[str, Any], facts: ResourceFacts) -> bool:
    """As a careful server reads it: a forbid wherever it may concern the resource, a permit where it surely covers."""
    forbids = rule["type"] == "forbid"
    if "securityLabel" in rule:
        named = {(one["system"], one["code"]) for one in rule["securityLabel"]}
        if not (any if forbids else all)(one in named for one in carries(facts)):
            return False
    if "dataPeriod" in rule:
        low, high = (datetime.fromisoformat(rule["dataPeriod"][end].replace("Z", "+00:00")).timestamp() * 1_000
                     for end in ("start", "end"))
        if facts.period is None:
            return forbids
        if not (facts.period[0] <= high and facts.period[1] > low if forbids
                else low <= facts.period[0] and facts.period[1] <= high + 1):
            return False
    return "data" not in rule or f"{BASE}/{facts.type}/{facts.id}" in [
        one["reference"]["reference"] for one in rule["data"]]


def returned(found: Residual, facts: ResourceFacts) -> bool:
    """A permit overrides a forbid; where no forbid applies, the data flows."""
    kinds = {rule["type"] for rule in found.rules if applies(rule, facts)}
    return "permit" in kinds or "forbid" not in kinds


@settings(max_examples=1_500, deadline=None)
@given(st.integers(0, 2**40))
def test_the_residual_lets_through_nothing_the_decision_does_not(seed: int) -> None:
    world = World(seed)
    grant, provisions, fresh = world.grant(), world.consents(), world.random() < 0.9
    patient = grant.launch_patient
    for number in range(world.choice((0, 1, 2, 3))):  # of this holder, so that they meet
        one = world.provision()
        provisions.append(replace(one, id=f"d/{number}", patient=patient or one.patient, state="final", grantee=(
            world.choice(grant.permitted_as) if grant.permitted_as else one.grantee),
            data_period=world.choice((None, (0, 14))), types=None, categories=None, purposes=None, valid_from_ms=0,
            valid_until_ms=2_000, data=world.data(one.permit) if world.random() < 0.5 else None))
    found = residual(grant, provisions, NOW, chain_fresh=fresh, base=BASE)
    if found is None or patient is None:
        return
    table, role = policy(), policy().roles[grant.role]
    for facts in world.records(8):
        facts = replace(facts, type="Observation", home_patients=(patient,), labels=facts.labels & table.labels.known)
        if returned(found, facts):
            ways = reading_ways(grant, role, table, "Observation", "r", NOW, chain_fresh=fresh)
            assert any(way.admit(facts, provisions) for way in ways), (found, facts)


def test_a_whole_permit_forbids_what_lies_beyond_its_labels() -> None:
    found = told(permit(labels=policy().labels.bits["PSY"]))
    (rule,) = found.rules
    assert rule["type"] == "forbid"
    assert {"system": CONFIDENTIALITY, "code": "R"} in rule["securityLabel"]
    assert {"system": CONFIDENTIALITY, "code": "N"} not in rule["securityLabel"]
    assert PSY not in rule["securityLabel"]
    assert found.consents == ("c1",)


def test_a_deny_beside_it_is_a_forbid_of_its_own() -> None:
    found = told(permit(), deny(confidentiality=6, labels=policy().labels.bits["PSY"],
                                data=frozenset({"Observation/1"})))
    assert found.rules[-1] == {"type": "forbid", "securityLabel": [PSY], "data": [
        {"meaning": "instance", "reference": {"reference": f"{BASE}/Observation/1"}}]}
    assert found.consents == ("c1", "c2")


def test_what_cannot_be_said_widens_a_forbid_and_is_no_permit() -> None:
    """Types and categories, authors and pieces of care: PCF's residual has no words for the first, we keep none of the
    others."""
    named = frozenset({"Observation/1", "author:Practitioner/2"})
    assert told(permit(), deny(data=named)).rules[-1] == NOTHING
    assert told(permit(types=frozenset({"Observation"}))).rules == (NOTHING,)
    only, rule = told(permit(data=named)).rules
    assert (only, rule["type"], len(rule["data"])) == (NOTHING, "permit", 1)
    assert told(permit(data=named), deny(labels=1 << 5)).rules == (NOTHING,)


def test_a_period_is_told_as_the_consent_has_it() -> None:
    _, rule = told(permit(data_period=(1_640_995_200_000, 1_672_531_200_000))).rules
    assert rule["dataPeriod"] == {"start": "2022-01-01T00:00:00.000Z", "end": "2022-12-31T23:59:59.999Z"}


@pytest.mark.parametrize("provisions", [(), (permit(state="pending"),), (permit(valid_until_ms=NOW),),
                                        (permit(grantee="Practitioner/2"),), (permit(purposes=frozenset({"HRESCH"})),)])
def test_who_was_granted_nothing_that_counts_is_forbidden_everything(provisions: tuple[Provision, ...]) -> None:
    assert told(*provisions).rules == (NOTHING,)
    assert told(permit(), fresh=False).rules == (NOTHING,), "a stalled chain"


def test_a_patient_is_forbidden_nothing_and_a_delegate_what_is_hidden_from_them() -> None:
    own = replace(DOCTOR, user="Patient/1", role="patient", patient=None, grantees=("Patient/1",), purpose="PATRQT")
    assert told(deny(), grant=own).rules == ()
    delegate = replace(own, user="RelatedPerson/1", role="delegate", patient="Patient/1", grantees=("RelatedPerson/1",))
    (rule,) = told(grant=delegate).rules
    assert {"system": SENSITIVITY, "code": "ADOL"} in rule["securityLabel"]


def test_who_needs_no_consent_or_names_no_patient_has_none() -> None:
    assert residual(replace(DOCTOR, role="privacy-officer"), (), NOW, chain_fresh=True, base=BASE) is None
    assert residual(replace(DOCTOR, patient=None), (), NOW, chain_fresh=True, base=BASE) is None
