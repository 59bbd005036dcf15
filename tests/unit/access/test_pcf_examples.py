"""Consents as the examples of IHE Privacy Consent on FHIR shape them: enforced as they say, or refused with a place.

Each test is named as its example (https://profiles.ihe.net/ITI/PCF/artifacts.html). The examples' own permits name
nobody, which in PCF is everybody in the community: such a permit is refused here, and enforced once it names who.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.access.consent import provisions_of
from gateway.access.decision import Permit, Request, decide
from gateway.access.facts import facts_of
from gateway.access.grant import Grant
from gateway.access.period import date_range
from gateway.access.scopes import parse
from gateway.errors import Unprocessable

REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
LABEL = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
RANK = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
NOW = date_range("2023-02-01")[0]
TPO = {"purpose": [{"system": REASON, "code": code} for code in ("TREAT", "HPAYMT", "HOPERAT")]}


def recipients(*references: str) -> dict[str, Any]:
    role = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "IRCP"}]}
    return {"actor": [{"role": role, "reference": {"reference": reference}} for reference in references]}


def labelled(*codes: str) -> dict[str, Any]:
    return {"securityLabel": [{"system": RANK if len(code) == 1 else LABEL, "code": code} for code in codes]}


def named(meaning: str, *references: str) -> dict[str, Any]:
    return {"data": [{"meaning": meaning, "reference": {"reference": reference}} for reference in references]}


YEAR = {"dataPeriod": {"start": "2022-01-01", "end": "2022-12-31"}}
DENY, FOCUS = {"type": "deny"}, {"type": "permit", **recipients("Practitioner/ex-practitioner")}
BASE = {"type": "permit", **TPO}

PERMITS: dict[str, dict[str, Any]] = {
    "basic-treat": BASE,
    "expired-treat": {**BASE, "period": {"end": "2022-12-31"}},
    "basic-research": {"type": "permit", "purpose": [{"system": REASON, "code": "HRESCH"}]},
    "intermediate-timeframe": {**BASE, **YEAR},
    "intermediate-not-timeframe": {**BASE, "provision": [{**DENY, **YEAR}]},
    "intermediate-authoredby": {**BASE, **named("authoredby", "Practitioner/ex-practitioner")},
    "intermediate-not-authoredby": {**BASE, "provision": [
        {**DENY, **named("authoredby", "Practitioner/ex-practitioner")}]},
    "intermediate-encounter": {**BASE, **named("related", "Encounter/ex-encounter")},
    "intermediate-not-encounter": {**BASE, "provision": [{**DENY, **named("related", "Encounter/ex-encounter")}]},
    "intermediate-data": {**BASE, **named("instance", "Encounter/ex-encounter", "Observation/ex-weight")},
    "intermediate-not-data": {**BASE, "provision": [{**DENY, **named("instance", "Observation/ex-weight")}]},
    "advanced-normal": {**BASE, **labelled("N")},
    "advanced-normal-restricted": {**BASE, **labelled("N", "R")},
    "advanced-normal-not-restricted": {**BASE, **labelled("N"), "provision": [{**DENY, **labelled("R")}]},
    "advanced-normal-focused-restricted": {**BASE, **labelled("N"), "provision": [{**FOCUS, **labelled("R")}]},
    "advanced-normal-focused-psy": {**BASE, **labelled("N"), "provision": [{**FOCUS, **labelled("PSY")}]},
    "advanced-normal-focused-psy-or-sdv": {**BASE, **labelled("N"), "provision": [
        {**FOCUS, **labelled("PSY", "SDV")}]},
}

NORMAL = {"ex-weight", "ex-old", "ex-encounter"}
READ: dict[str, tuple[set[str], set[str]]] = {
    # What a colleague in the organisation reads, and what ex-practitioner in it does.
    "basic-treat": (NORMAL, NORMAL),
    "expired-treat": (set(), set()),
    "basic-research": (set(), set()),
    "intermediate-timeframe": ({"ex-weight", "ex-encounter"},) * 2,
    "intermediate-not-timeframe": ({"ex-old"},) * 2,
    "intermediate-authoredby": ({"ex-old"},) * 2,
    "intermediate-not-authoredby": ({"ex-weight", "ex-encounter"},) * 2,
    "intermediate-encounter": ({"ex-weight", "ex-encounter"},) * 2,
    "intermediate-not-encounter": ({"ex-old"},) * 2,
    "intermediate-data": ({"ex-weight", "ex-encounter"},) * 2,
    "intermediate-not-data": ({"ex-old", "ex-encounter"},) * 2,
    "advanced-normal": (NORMAL,) * 2,
    "advanced-normal-restricted": (NORMAL | {"ex-restricted"},) * 2,
    "advanced-normal-not-restricted": (NORMAL,) * 2,
    "advanced-normal-focused-restricted": (NORMAL, NORMAL | {"ex-restricted"}),
    "advanced-normal-focused-psy": (NORMAL, NORMAL | {"ex-psy"}),
    "advanced-normal-focused-psy-or-sdv": (NORMAL, NORMAL | {"ex-psy", "ex-sdv"}),
}


def consent(provision: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Consent", "id": "c", "status": "proposed", "patient": {"reference": "Patient/ex-patient"},
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                              "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}], "dateTime": "2022-06-13",
        "performer": [{"reference": "Patient/ex-patient"}],
        "organization": [{"reference": "Organization/ex-organization"}],
        "sourceReference": {"reference": "DocumentReference/ex-documentreference"},
        "policy": [{"uri": "http://example.org/policies/basePrivacyConsentPolicy.txt"}], "provision": provision}


def record(id_: str, when: str, author: str, encounter: str, *labels: str) -> Any:
    resource = {
        "resourceType": "Observation", "id": id_, "meta": {"security": labelled(*labels)["securityLabel"]},
        "effectiveDateTime": when, "performer": [{"reference": f"Practitioner/{author}"}],
        "encounter": {"reference": f"Encounter/{encounter}"}}
    return facts_of(resource, ["ex-patient"], author_client="ehr", author_user=None)


RECORDS = [
    record("ex-weight", "2022-05-16", "ex-author", "ex-encounter", "N"),
    record("ex-old", "2020-05-16", "ex-practitioner", "another", "N"),
    record("ex-restricted", "2022-05-16", "ex-author", "ex-encounter", "R"),
    record("ex-psy", "2022-05-16", "ex-author", "ex-encounter", "PSY"),
    record("ex-sdv", "2022-05-16", "ex-author", "ex-encounter", "SDV"),
    facts_of({"resourceType": "Encounter", "id": "ex-encounter", "period": {"start": "2022-05-16", "end": "2022-05"}},
             ["ex-patient"], author_client="ehr", author_user=None),
]
COLLEAGUE = Grant(token_id="t", client_id="app", client_kind="app", user="Practitioner/1", role="clinician",
                  scopes=parse("user/*.rs"), patient="Patient/ex-patient", purpose="TREAT", expires_ms=NOW + 1,
                  grantees=("Practitioner/1", "Organization/ex-organization"))
FOCUSED = replace(COLLEAGUE, user="Practitioner/ex-practitioner",
                  grantees=("Practitioner/ex-practitioner", "Organization/ex-organization"))


def readable(provision: dict[str, Any], grant: Grant) -> set[str]:
    given = provisions_of(consent(provision), custodian=None, state="final")
    return {facts.id for facts in RECORDS if isinstance(decide(
        Request(interaction="r", stored=facts, chain_fresh=True), grant, given, NOW), Permit)}


def refused(provision: dict[str, Any]) -> set[str | None]:
    with pytest.raises(Unprocessable) as caught:
        provisions_of(consent(provision), custodian=None)
    return {issue.expression for issue in caught.value.issues}


@pytest.mark.parametrize("example", PERMITS)
def test_a_permit_to_nobody_in_particular_is_refused(example: str) -> None:
    assert refused(PERMITS[example]) == {"Consent.provision.actor"}


@pytest.mark.parametrize("example", PERMITS)
def test_a_permit_to_the_organisation_is_enforced_as_the_example_says(example: str) -> None:
    provision = {**PERMITS[example], **recipients("Organization/ex-organization")}
    assert (readable(provision, COLLEAGUE), readable(provision, FOCUSED)) == READ[example]
    elsewhere = replace(COLLEAGUE, grantees=("Practitioner/1", "Organization/elsewhere"))
    assert not readable(provision, elsewhere)
    assert not readable(provision, replace(COLLEAGUE, purpose="HMARKT"))


def test_basic_research() -> None:
    provision = {**PERMITS["basic-research"], **recipients("Organization/ex-organization")}
    assert readable(provision, replace(COLLEAGUE, purpose="HRESCH")) == NORMAL
    assert readable(provision, replace(COLLEAGUE, purpose="CLINTRCH")) == NORMAL


def test_basic_reject_stops_who_was_permitted_elsewhere() -> None:
    permit = provisions_of(consent({**BASE, **recipients("Organization/ex-organization")}), custodian=None,
                           state="final")
    reject = provisions_of({**consent({"type": "deny", **TPO}), "id": "d"}, custodian=None, state="final")
    request = Request(interaction="r", stored=RECORDS[0], chain_fresh=True)
    assert isinstance(decide(request, COLLEAGUE, permit, NOW), Permit)
    assert not isinstance(decide(request, COLLEAGUE, [*permit, *reject], NOW), Permit)


def test_intermediate_purpose_of_a_system_unknown_here_is_refused() -> None:
    assert refused({"type": "permit", **recipients("Organization/ex-org-researcher"), "purpose": [
        {"system": "http://example.org/policies/purposeOfUse", "code": "FooBar"}]}) == {"Consent.provision.purpose[0]"}


@pytest.mark.parametrize("root", [{"type": "deny"}, {**BASE, **labelled("N"), **recipients("Practitioner/1")}],
                         ids=["dissent-intermediate-break-glass", "advanced-normal-break-glass-restricted"])
def test_a_group_of_users_is_refused(root: dict[str, Any]) -> None:
    """Who may break the glass is the hospital's to say, by role: a Group is a resource that clients write."""
    inner = {"type": "permit", "purpose": [{"system": REASON, "code": "BTG"}], **recipients("Group/ex-privilegedUsers")}
    assert refused({**root, "provision": [inner]}) == {"Consent.provision.provision[0].actor[0].reference"}


def test_dissent_intermediate_break_glass_for_one_who_is_named() -> None:
    """All are denied; the glass stays for those who may break it; and one is let in, for emergencies, without."""
    inner = {**FOCUS, "purpose": [{"system": REASON, "code": "BTG"}]}
    dissent = {"type": "deny", "provision": [inner]}
    glass = {"purpose": "BTG", "break_glass_reason": "unconscious"}
    assert not readable(dissent, COLLEAGUE)
    assert not readable(dissent, FOCUSED)
    assert readable(dissent, replace(FOCUSED, purpose="BTG")) == NORMAL
    assert readable(dissent, replace(COLLEAGUE, **glass)) == {facts.id for facts in RECORDS}  # type: ignore[arg-type]
    assert not readable(dissent, replace(COLLEAGUE, purpose="BTG"))


def test_advanced_normal_break_glass_restricted_for_one_who_is_named() -> None:
    inner = {**FOCUS, **labelled("R"), "purpose": [{"system": REASON, "code": "BTG"}]}
    provision = {**BASE, **labelled("N"), **recipients("Organization/ex-organization"), "provision": [inner]}
    assert readable(provision, FOCUSED) == NORMAL
    assert readable(provision, replace(FOCUSED, purpose="BTG")) == NORMAL | {"ex-restricted"}
    assert not readable(provision, replace(COLLEAGUE, purpose="BTG"))
