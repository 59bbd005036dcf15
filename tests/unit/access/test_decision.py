"""The six bases, one story each, and who may write what. Design: trust, data (Authority, Seeing nothing)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.access.decision import Deny, Permit, Request, decide, lowers
from gateway.access.facts import ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.scopes import parse

NOW = 1_000_000
PSY = 1 << 5
ADOL = 1 << 15

FEED = Grant(token_id="1", client_id="ehr", client_kind="feed", user=None, role="system",
             scopes=parse("system/*.cruds"), patient=None, purpose="TREAT", grantees=("Organization/h",),
             expires_ms=NOW + 1)
DOCTOR = replace(FEED, client_id="app", client_kind="app", user="Practitioner/1", role="clinician",
                 scopes=parse("user/*.cruds"), grantees=("Practitioner/1", "Organization/h", "Device/app"))
PATIENT = replace(DOCTOR, user="Patient/1", role="patient", scopes=parse("patient/*.cruds"), patient="Patient/1",
                  purpose="PATRQT", grantees=("Patient/1", "Device/app"))
PARENT = replace(PATIENT, user="RelatedPerson/9", role="delegate", purpose="FAMRQT",
                 grantees=("RelatedPerson/9", "Device/app"))
HOSPITAL_B = replace(FEED, client_id="b", client_kind="backend", grantees=("Organization/b",))
OFFICER = replace(DOCTOR, role="privacy-officer", purpose="HOPERAT")
OFFICE = replace(DOCTOR, role="records-office", purpose="HOPERAT")

OBSERVATION = ResourceFacts(type="Observation", id="o", home_patients=("Patient/1",), author_client="ehr",
                            author_user=None)
OWN_NOTE = replace(OBSERVATION, author_client="app", author_user="Patient/1")
LEAVE = Provision(id="c/0", patient="Patient/1", grantee="Practitioner/1", permit=True, state="final")


def ask(grant: Grant, letter: str, facts: ResourceFacts, *provisions: Provision, **more: Any) -> Permit | Deny:
    stored = facts if letter in "rsud" else None
    proposed = facts if letter in "cu" else None
    request = Request(**{"interaction": letter, "stored": stored, "proposed": proposed, "chain_fresh": True, **more})
    return decide(request, grant, provisions, NOW)


def denied(answer: Permit | Deny, kind: str = "permission") -> Deny:
    assert isinstance(answer, Deny), answer
    assert answer.kind == kind
    return answer


# Nothing without a basis.


def test_a_doctor_without_a_grant_is_refused_and_the_patient_is_to_be_told() -> None:
    answer = denied(ask(DOCTOR, "r", OBSERVATION))
    assert answer.notify
    assert answer.reason == "a patient has granted this holder nothing"


def test_outside_the_scopes_is_said_without_looking() -> None:
    answer = denied(ask(replace(DOCTOR, scopes=parse("user/Patient.rs")), "r", OBSERVATION), "scope")
    assert not answer.notify


def test_an_unknown_role_may_do_nothing() -> None:
    denied(ask(replace(DOCTOR, role="wizard"), "r", OBSERVATION, LEAVE), "scope")


@pytest.mark.parametrize("scope", ["patient/*.rs", "user/*.rs", "system/*.rs"])
def test_a_scope_whose_context_the_token_lacks_admits_nothing(scope: str) -> None:
    """user/ needs a user, system/ a client without one, patient/ a launch patient."""
    holder = {"patient/*.rs": DOCTOR, "user/*.rs": FEED, "system/*.rs": DOCTOR}[scope]
    denied(ask(replace(holder, scopes=parse(scope)), "r", OBSERVATION, LEAVE), "scope")


# self


def test_patients_read_their_own_record_whatever_its_labels() -> None:
    assert ask(PATIENT, "r", replace(OBSERVATION, confidentiality=5, labels=PSY | 1)) == Permit("self")
    assert ask(PATIENT, "r", replace(OBSERVATION, type="AuditEvent")) == Permit("self")
    denied(ask(PATIENT, "r", replace(OBSERVATION, home_patients=("Patient/2",))))


def test_a_record_of_two_patients_needs_the_other_one_too() -> None:
    shared = replace(OBSERVATION, type="Appointment", home_patients=("Patient/1", "Patient/2"))
    denied(ask(PATIENT, "r", shared))
    leave = replace(LEAVE, patient="Patient/2", grantee="Patient/1")
    assert ask(PATIENT, "r", shared, leave) == Permit("grant", ("c/0",))


def test_a_parent_reads_for_the_child_but_not_what_is_the_adolescents_own() -> None:
    assert ask(PARENT, "r", OBSERVATION) == Permit("self")
    denied(ask(PARENT, "r", replace(OBSERVATION, labels=ADOL)))
    denied(ask(PARENT, "r", replace(OBSERVATION, labels=1)))
    denied(ask(replace(PARENT, patient="Patient/2"), "r", OBSERVATION))


def test_a_patient_may_shut_out_an_app_or_a_delegate_but_not_themself() -> None:
    no = replace(LEAVE, permit=False, confidentiality=0, grantee="Device/app")
    denied(ask(PATIENT, "r", OBSERVATION, no))
    denied(ask(PARENT, "r", OBSERVATION, replace(no, grantee="RelatedPerson/9")))
    assert ask(PATIENT, "r", OBSERVATION, replace(no, grantee=None)) == Permit("self")
    assert ask(PATIENT, "r", OBSERVATION, replace(no, grantee="Patient/1")) == Permit("self")


def test_what_one_patient_lets_an_app_do_is_no_other_users_to_have() -> None:
    """Confused deputy: a Consent for an app reaches the app alone, not whoever else signs in to it."""
    yes = replace(LEAVE, grantee="Device/app")
    other = replace(PATIENT, user="Patient/2", patient="Patient/2", scopes=parse("user/*.cruds"),
                    grantees=("Patient/2", "Device/app"))
    denied(ask(other, "r", OBSERVATION, yes))
    denied(ask(DOCTOR, "r", OBSERVATION, yes))
    assert ask(HOSPITAL_B, "r", OBSERVATION, yes).__class__ is Deny
    alone = replace(HOSPITAL_B, grantees=("Device/app",))
    assert ask(alone, "r", OBSERVATION, yes) == Permit("grant", ("c/0",))
    assert ask(DOCTOR, "r", OBSERVATION, yes, LEAVE) == Permit("grant", ("c/0",))


def test_patients_write_their_own_notes_and_leave_the_hospitals_alone() -> None:
    assert ask(PATIENT, "c", OWN_NOTE) == Permit("self")
    assert ask(PATIENT, "u", OWN_NOTE) == Permit("self")
    assert ask(PATIENT, "d", OWN_NOTE) == Permit("self")
    denied(ask(PATIENT, "u", OBSERVATION))
    denied(ask(PATIENT, "d", OBSERVATION))
    denied(ask(PATIENT, "c", replace(OWN_NOTE, home_patients=("Patient/2",))))
    denied(ask(PATIENT, "c", replace(OWN_NOTE, type="Condition")), "scope")


def test_patients_revoke_a_consent_whoever_recorded_it() -> None:
    attested = replace(OBSERVATION, type="Consent", author_client="app", author_user="Practitioner/5")
    assert ask(PATIENT, "u", attested) == Permit("self")
    denied(ask(DOCTOR, "u", attested, LEAVE))
    denied(ask(FEED, "u", attested))


# custodian feed


def test_a_feed_writes_before_any_consent_and_reads_back_what_it_wrote() -> None:
    assert ask(FEED, "c", OBSERVATION) == Permit("feed")
    assert ask(FEED, "u", OBSERVATION) == Permit("feed")
    assert ask(FEED, "r", OBSERVATION) == Permit("feed")
    denied(ask(FEED, "r", replace(OBSERVATION, author_client="lab")))
    denied(ask(replace(FEED, client_kind="backend"), "c", OBSERVATION))


def test_a_feed_does_not_overwrite_what_a_person_wrote_elsewhere() -> None:
    assert ask(FEED, "u", replace(OBSERVATION, author_client="lab")) == Permit("feed")
    denied(ask(FEED, "u", OWN_NOTE))
    denied(ask(FEED, "d", OWN_NOTE))


def test_an_audit_event_is_written_once() -> None:
    event = replace(OBSERVATION, type="AuditEvent")
    assert ask(FEED, "c", event) == Permit("feed")
    denied(ask(FEED, "u", event))
    denied(ask(FEED, "d", event))


# grant


def test_a_final_grant_in_time_for_the_purpose_lets_a_doctor_read_and_record() -> None:
    leave = replace(LEAVE, purposes=frozenset({"TREAT"}), types=frozenset({"Observation"}))
    for letter in "rscu":
        assert ask(DOCTOR, letter, OBSERVATION, leave) == Permit("grant", ("c/0",))
    denied(ask(DOCTOR, "d", OBSERVATION, leave), "scope")


@pytest.mark.parametrize("change", [
    {"state": "pending"}, {"state": "revoked"}, {"valid_until_ms": NOW}, {"valid_from_ms": NOW + 1},
    {"purposes": frozenset({"HRESCH"})}, {"types": frozenset({"Condition"})}, {"grantee": "Practitioner/2"},
    {"patient": "Patient/2"}, {"categories": frozenset({"s|c"})}, {"confidentiality": 2}, {"data_period": (0, 5)},
], ids=str)
def test_any_rule_of_a_grant_that_fails_is_a_refusal(change: dict[str, Any]) -> None:
    denied(ask(DOCTOR, "r", OBSERVATION, replace(LEAVE, **change)))


def test_a_deny_wins_over_any_grant_and_says_so_to_the_audit() -> None:
    no = replace(LEAVE, id="d/0", permit=False, confidentiality=6, labels=PSY, grantee=None)
    psychiatry = replace(OBSERVATION, labels=PSY)
    leave = replace(LEAVE, labels=PSY)
    assert ask(DOCTOR, "r", psychiatry, leave) == Permit("grant", ("c/0",))
    assert denied(ask(DOCTOR, "r", psychiatry, leave, no)).reason == "a patient forbids it"
    assert ask(DOCTOR, "r", OBSERVATION, leave, no) == Permit("grant", ("c/0",))


def test_sensitive_records_need_a_grant_that_names_their_label() -> None:
    denied(ask(DOCTOR, "r", replace(OBSERVATION, labels=PSY), LEAVE))
    denied(ask(DOCTOR, "r", replace(OBSERVATION, confidentiality=4), LEAVE))
    denied(ask(DOCTOR, "r", replace(OBSERVATION, labels=1), replace(LEAVE, confidentiality=5)))
    with pytest.raises(ValueError, match="nobody knows"):
        replace(LEAVE, labels=1)


def test_a_read_only_grant_records_nothing() -> None:
    leave = replace(LEAVE, writes=False)
    assert isinstance(ask(DOCTOR, "r", OBSERVATION, leave), Permit)
    denied(ask(DOCTOR, "c", OBSERVATION, leave))


def test_another_hospital_reads_under_a_grant_and_never_writes() -> None:
    leave = replace(LEAVE, grantee="Organization/b")
    assert ask(HOSPITAL_B, "s", OBSERVATION, leave) == Permit("grant", ("c/0",))
    denied(ask(HOSPITAL_B, "c", OBSERVATION, leave))


@pytest.mark.parametrize("type_", ["AuditEvent", "Consent"])
def test_no_grant_opens_the_audit_or_the_consents(type_: str) -> None:
    denied(ask(DOCTOR, "r", replace(OBSERVATION, type=type_), LEAVE))


def test_a_stalled_chain_stops_grants_and_nothing_else() -> None:
    assert denied(ask(DOCTOR, "r", OBSERVATION, LEAVE, chain_fresh=False)).reason.startswith("the chain is stalled")
    assert ask(PATIENT, "r", OBSERVATION, chain_fresh=False) == Permit("self")
    assert ask(FEED, "c", OBSERVATION, chain_fresh=False) == Permit("feed")


def test_granular_scopes_narrow_by_what_the_resource_is() -> None:
    grant = replace(DOCTOR, scopes=parse("user/Observation.crus?category=vital-signs"))

    def vital(type_: str, name: str, value: str) -> bool:
        return (type_, name, value) == ("Observation", "category", "vital-signs")

    assert isinstance(ask(grant, "r", OBSERVATION, LEAVE, stored_matcher=vital), Permit)
    denied(ask(grant, "r", OBSERVATION, LEAVE, stored_matcher=lambda *_: False))
    denied(ask(grant, "r", OBSERVATION, LEAVE))
    # An update is matched before and after.
    denied(ask(grant, "u", OBSERVATION, LEAVE, stored_matcher=vital, proposed_matcher=lambda *_: False))
    denied(ask(grant, "u", OBSERVATION, LEAVE, stored_matcher=lambda *_: False, proposed_matcher=vital))
    assert isinstance(ask(grant, "u", OBSERVATION, LEAVE, stored_matcher=vital, proposed_matcher=vital), Permit)


def test_a_launch_patient_keeps_a_doctors_app_to_that_patient() -> None:
    grant = replace(DOCTOR, scopes=parse("patient/*.rs"), patient="Patient/1")
    other = replace(OBSERVATION, home_patients=("Patient/2",))
    assert isinstance(ask(grant, "r", OBSERVATION, LEAVE), Permit)
    denied(ask(grant, "r", other, replace(LEAVE, patient="Patient/2")))
    assert ask(grant, "r", replace(OBSERVATION, type="Practitioner", home_patients=())) == Permit("not-about-a-patient")


# break-glass

EMERGENCY = replace(DOCTOR, purpose="BTG", break_glass_reason="unconscious", patient="Patient/1")


def test_a_doctor_with_a_reason_breaks_the_glass_of_one_patient_and_everyone_is_told() -> None:
    assert ask(EMERGENCY, "r", replace(OBSERVATION, confidentiality=5, labels=PSY)) == Permit("break-glass", (), True)
    denied(ask(EMERGENCY, "r", replace(OBSERVATION, home_patients=("Patient/2",))))


@pytest.mark.parametrize("change", [
    {"break_glass_reason": None}, {"break_glass_reason": "  "}, {"purpose": "TREAT"}, {"patient": None},
    {"role": "administrator"}, {"client_kind": "feed"}], ids=str)
def test_a_broken_glass_needs_role_reason_purpose_person_and_patient(change: dict[str, Any]) -> None:
    denied(ask(replace(EMERGENCY, **change), "r", OBSERVATION))


def test_a_system_client_never_breaks_the_glass() -> None:
    system = replace(EMERGENCY, user=None, role="system", client_kind="feed", scopes=parse("system/*.rs"))
    denied(ask(system, "r", replace(OBSERVATION, author_client="other")))


def test_only_a_deny_that_names_emergencies_holds_in_one() -> None:
    no = replace(LEAVE, permit=False, confidentiality=0, grantee=None)
    assert isinstance(ask(EMERGENCY, "r", OBSERVATION, no), Permit)
    denied(ask(EMERGENCY, "r", OBSERVATION, replace(no, purposes=frozenset({"ETREAT", "BTG"}))))


def test_the_unknown_label_holds_even_then() -> None:
    denied(ask(EMERGENCY, "r", replace(OBSERVATION, labels=1)))
    denied(ask(EMERGENCY, "r", replace(OBSERVATION, type="AuditEvent")))


# duty


def test_the_officer_searches_audits_for_that_purpose_only() -> None:
    event = replace(OBSERVATION, type="AuditEvent", labels=PSY)
    assert ask(OFFICER, "s", event) == Permit("duty")
    denied(ask(replace(OFFICER, purpose="TREAT"), "s", event))
    denied(ask(OFFICER, "r", OBSERVATION, LEAVE))


def test_the_records_office_keeps_identities() -> None:
    person = replace(OBSERVATION, type="Patient", id="1")
    for letter in "crus":
        assert ask(OFFICE, letter, person) == Permit("duty")
    denied(ask(OFFICE, "r", OBSERVATION, LEAVE))
    denied(ask(OFFICE, "r", replace(person, labels=PSY)))


# not about a patient


def test_the_directory_is_read_by_role_as_long_as_it_names_no_patient() -> None:
    organisation = replace(OBSERVATION, type="Organization", home_patients=())
    for grant in (DOCTOR, PATIENT, HOSPITAL_B, OFFICER):
        assert ask(grant, "s", organisation) == Permit("not-about-a-patient")
    denied(ask(DOCTOR, "s", replace(organisation, confidentiality=4)))
    denied(ask(DOCTOR, "s", replace(OBSERVATION, home_patients=())))
    denied(ask(DOCTOR, "c", organisation))
    assert ask(replace(DOCTOR, role="administrator"), "c", organisation) == Permit("not-about-a-patient")


# Authority


def update(grant: Grant, before: ResourceFacts, after: ResourceFacts, **more: Any) -> Permit | Deny:
    return ask(grant, "u", before, LEAVE, replace(LEAVE, id="c/1", patient="Patient/2"), proposed=after, **more)


def test_moving_a_record_needs_more_than_the_right_to_both_sides() -> None:
    moved = replace(OBSERVATION, home_patients=("Patient/2",))
    for grant in (DOCTOR, FEED):
        assert "another patient" in denied(update(grant, OBSERVATION, moved), "authority").reason
    person = replace(OBSERVATION, type="RelatedPerson")
    assert update(OFFICE, person, replace(person, home_patients=("Patient/2",))) == Permit("duty")


def test_lowering_a_label_needs_the_patient_or_an_officer() -> None:
    labelled = replace(OBSERVATION, confidentiality=4)
    for grant in (FEED, EMERGENCY):
        assert "lowering" in denied(update(grant, labelled, OBSERVATION), "authority").reason
    assert update(PATIENT, labelled, OBSERVATION, only_labels=True) == Permit("self")
    assert update(OFFICER, replace(labelled, labels=1), OBSERVATION, only_labels=True) == Permit("duty")
    denied(update(OFFICER, labelled, OBSERVATION))
    denied(update(PARENT, labelled, OBSERVATION, only_labels=True), "authority")
    assert update(FEED, OBSERVATION, labelled) == Permit("feed")


def test_a_label_is_lowered_by_rank_or_by_dropping_one() -> None:
    assert lowers(replace(OBSERVATION, labels=PSY), OBSERVATION)
    assert lowers(replace(OBSERVATION, labels=PSY), replace(OBSERVATION, labels=ADOL, confidentiality=5))
    assert not lowers(OBSERVATION, replace(OBSERVATION, labels=PSY))


# Telling


def test_what_an_operators_token_reads_is_told() -> None:
    assert ask(replace(PATIENT, minted_by_operator=True), "r", OBSERVATION) == Permit("self", (), True)
    assert ask(replace(FEED, minted_by_operator=True), "r", OBSERVATION) == Permit("feed", (), True)
    assert ask(replace(FEED, minted_by_operator=True), "c", OBSERVATION) == Permit("feed")


def test_a_request_without_its_side_is_denied() -> None:
    denied(decide(Request(interaction="r", proposed=OBSERVATION, chain_fresh=True), FEED, (), NOW))
    denied(decide(Request(interaction="u", stored=OBSERVATION, chain_fresh=True), FEED, (), NOW))
