"""R4 Consent to provisions: what is read, what is refused and where; the life of a Consent."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.access.consent import provisions_of, same_terms, transition
from gateway.access.facts import ResourceFacts
from gateway.access.period import MAX_MS, MIN_MS, date_range
from gateway.access.provision import DENY_NO_RANK, Asked, Failure, Provision, Success
from gateway.errors import Unprocessable
from tests.shared_data import SHARED, needs_shared

REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
LABEL = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
RANK = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
TYPES = "http://hl7.org/fhir/resource-types"


def actor(reference: str, role: str = "PRCP") -> dict[str, Any]:
    system = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
    return {"role": {"coding": [{"system": system, "code": role}]}, "reference": {"reference": reference}}


def action(code: str) -> dict[str, Any]:
    return {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentaction", "code": code}]}


def consent(**provision: Any) -> dict[str, Any]:
    return {"resourceType": "Consent", "id": "c", "status": "proposed", "patient": {"reference": "Patient/1"},
            "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                                  "code": "patient-privacy"}]},
            "policyRule": {"coding": [{"system": LABEL, "code": "OPTOUT"}]},
            "provision": {"type": "permit", "actor": [actor("Practitioner/1")], **provision}}


def read(resource: dict[str, Any]) -> tuple[Provision, ...]:
    return provisions_of(resource, custodian="Organization/h", base="https://h.example/fhir")


def refused(resource: Any) -> set[str | None]:
    with pytest.raises(Unprocessable) as caught:
        read(resource)
    return {issue.expression for issue in caught.value.issues}


def test_everything_that_is_enforced_is_read() -> None:
    root, exception = read(consent(
        purpose=[{"system": REASON, "code": "TREAT"}], period={"start": "2026", "end": "2026"},
        dataPeriod={"start": "2020-01-01"}, code=[{"coding": [{"system": "http://loinc.org", "code": "1-8"}]}],
        **{"class": [{"system": TYPES, "code": "Observation"}]}, action=[action("access")],
        securityLabel=[{"system": RANK, "code": "R"}, {"system": LABEL, "code": "PSY"}],
        provision=[{"type": "deny", "securityLabel": [{"system": LABEL, "code": "HIV"}]}]))
    assert root == Provision(
        id="c/0", patient="Patient/1", grantee="Practitioner/1", permit=True, types=frozenset({"Observation"}),
        categories=frozenset({"http://loinc.org|1-8"}), confidentiality=4, labels=1 << 5,
        purposes=frozenset({"TREAT", "COC"}), data_period=(date_range("2020")[0], MAX_MS),
        valid_from_ms=date_range("2026")[0], valid_until_ms=date_range("2027")[0], writes=False)
    assert exception == Provision(
        id="c/1", patient="Patient/1", grantee="Practitioner/1", permit=False, types=root.types,
        categories=root.categories, confidentiality=DENY_NO_RANK, labels=1 << 9, purposes=root.purposes,
        data_period=root.data_period, valid_from_ms=root.valid_from_ms, valid_until_ms=root.valid_until_ms,
        exception=True)


def test_a_permit_that_says_little_permits_what_is_normal_and_not_sensitive() -> None:
    assert read(consent()) == (Provision(id="c/0", patient="Patient/1", grantee="Practitioner/1", permit=True),)


def test_data_is_named_by_record_author_and_care() -> None:
    named = [data("instance", "Observation/1"), data("instance", "https://h.example/fhir/Observation/2"),
             data("authoredby", "Practitioner/5"), data("related", "Encounter/7"), data("dependents", "CarePlan/8")]
    (permit,) = read(consent(data=named))
    assert permit.data == {"Observation/1", "Observation/2", "author:Practitioner/5", "Encounter/7",
                           "about:Encounter/7", "CarePlan/8", "about:CarePlan/8"}
    # What cannot be told to be another's is denied as well, and not permitted.
    (deny,) = read(consent(type="deny", data=named))
    assert deny.data == permit.data | {"author:?", "about:?"}


def test_an_exception_leaves_to_its_root_what_it_does_not_say() -> None:
    root, more, less = read(consent(
        purpose=[{"system": REASON, "code": "HRESCH"}], period={"start": "2026", "end": "2028"},
        dataPeriod={"start": "2020"}, code=[{"coding": [{"system": "http://loinc.org", "code": "1-8"}]}],
        data=[data("instance", "Observation/1")], action=[action("access")],
        **{"class": [{"system": TYPES, "code": "Observation"}]},
        securityLabel=[{"system": RANK, "code": "R"}, {"system": LABEL, "code": "PSY"}],
        provision=[{"type": "permit", "actor": [actor("Practitioner/2")], "period": {"start": "2027"}},
                   {"type": "permit", "securityLabel": [{"system": LABEL, "code": "HIV"}]}]))
    assert more == replace(root, id="c/1", grantee="Practitioner/2", exception=True,
                           valid_from_ms=date_range("2027")[0])
    assert less == replace(root, id="c/2", exception=True, labels=1 << 9)


def test_a_permit_inside_a_deny_names_who_and_takes_no_label_from_it() -> None:
    root, inner = read(consent(type="deny", actor=None, securityLabel=[{"system": RANK, "code": "R"}], provision=[
        {"type": "permit", "actor": [actor("Practitioner/2")]}]))
    assert (root.permit, root.grantee, root.confidentiality) == (False, None, 4)
    assert inner == Provision(id="c/1", patient="Patient/1", grantee="Practitioner/2", permit=True, exception=True)


def test_several_recipients_are_several_provisions() -> None:
    found = read(consent(actor=[actor("Organization/b", "IRCP"), actor("Practitioner/1"),
                                actor("https://h.example/fhir/Device/app")]))
    assert [(p.id, p.grantee) for p in found] == [
        ("c/0", "Device/app"), ("c/1", "Organization/b"), ("c/2", "Practitioner/1")]


def test_this_hospital_as_custodian_says_nothing_new_another_one_cannot_be_enforced() -> None:
    assert len(read(consent(actor=[actor("Practitioner/1"), actor("Organization/h", "CST")]))) == 1
    assert "Consent.provision.actor[1].role" in refused(
        consent(actor=[actor("Practitioner/1"), actor("Organization/x", "CST")]))


def test_a_deny_may_name_everyone() -> None:
    resource = consent(type="deny")
    del resource["provision"]["actor"]
    assert read(resource) == (Provision(id="c/0", patient="Patient/1", grantee=None, permit=False, confidentiality=0),)


def test_a_deny_of_a_level_denies_it_and_above() -> None:
    (deny,) = read(consent(type="deny", securityLabel=[{"system": RANK, "code": "V"}, {"system": RANK, "code": "R"}]))
    assert (deny.confidentiality, deny.labels) == (4, 0)


def test_the_root_may_state_its_type_or_be_the_exception_to_an_opt_out() -> None:
    resource = consent()
    del resource["provision"]["type"]
    assert read(resource)[0].permit
    resource["policyRule"]["coding"][0]["code"] = "OPTIN"
    assert refused(resource) == {"Consent.provision.type"}


def data(meaning: str | None, reference: str) -> dict[str, Any]:
    return {"meaning": meaning, "reference": {"reference": reference}}


def nested(**inner: Any) -> dict[str, Any]:
    return consent(provision=[{"type": "deny", **inner}])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no provision": ({**consent(), "provision": {}}, "Consent.provision"),
    "no patient": ({**consent(), "patient": {"display": "A"}}, "Consent.patient"),
    "someone else's patient": ({**consent(), "patient": {"reference": "https://b.example/Patient/1"}},
                               "Consent.patient"),
    "research scope": ({**consent(), "scope": {"coding": [{"code": "research"}]}}, "Consent.scope"),
    "modifier extension": ({**consent(), "modifierExtension": [{"url": "x"}]}, "Consent.modifierExtension"),
    "modifier extension inside": (consent(modifierExtension=[{"url": "x"}]), "Consent.provision.modifierExtension"),
    "data that names nothing": (consent(data=[{"meaning": "instance"}]), "Consent.provision.data[0].reference"),
    "one version of a record": (consent(data=[data("instance", "Observation/1/_history/2")]),
                                "Consent.provision.data[0].reference"),
    "a record of another server": (consent(data=[data("instance", "https://b.example/Observation/1")]),
                                   "Consent.provision.data[0].reference"),
    "what a record refers to": (consent(data=[data("related", "Observation/1")]), "Consent.provision.data[0].meaning"),
    "what a group authored": (consent(data=[data("authoredby", "Group/1")]), "Consent.provision.data[0].meaning"),
    "data without a meaning": (consent(data=[data(None, "Observation/1")]), "Consent.provision.data[0].meaning"),
    "a permit for anyone inside a deny": (
        {**consent(), "provision": {"type": "deny", "provision": [{"type": "permit", "purpose": [
            {"system": REASON, "code": "TREAT"}]}]}}, "Consent.provision.provision[0].actor"),
    "an exception to nothing": (nested(), "Consent.provision.provision[0]"),
    "an exception after its root": (
        consent(period={"end": "2026"}, provision=[{"type": "permit", "period": {"start": "2027"}}]),
        "Consent.provision.provision[0].period"),
    "neither a type nor a base": ({key: value for key, value in consent(type=None).items() if key != "policyRule"},
                                  "Consent.provision.type"),
    "an unknown element": (consent(weather=1), "Consent.provision.weather"),
    "a permit for anyone": (consent(actor=None), "Consent.provision.actor"),
    "an author": (consent(actor=[actor("Practitioner/1", "AUT")]), "Consent.provision.actor[0].role"),
    "no role": (consent(actor=[{"reference": {"reference": "Practitioner/1"}}]), "Consent.provision.actor[0].role"),
    "a role held by resource": (consent(actor=[actor("PractitionerRole/1")]),
                                "Consent.provision.actor[0].reference"),
    "a team": (consent(actor=[actor("CareTeam/1")]), "Consent.provision.actor[0].reference"),
    "an actor of another server": (consent(actor=[actor("https://b.example/Practitioner/1")]),
                                   "Consent.provision.actor[0].reference"),
    "only the custodian": (consent(type="deny", actor=[actor("Organization/h", "CST")]), "Consent.provision.actor"),
    "unknown purpose": (consent(purpose=[{"system": REASON, "code": "FUN"}]), "Consent.provision.purpose[0]"),
    "purpose without system": (consent(purpose=[{"code": "TREAT"}]), "Consent.provision.purpose[0]"),
    "a class of documents": (consent(**{"class": [{"system": "urn:ietf:bcp:13", "code": "application/pdf"}]}),
                             "Consent.provision.class[0]"),
    "text for a code": (consent(code=[{"text": "the usual"}]), "Consent.provision.code[0]"),
    "a code that could write on the screen": (consent(code=[{"coding": [{"code": 'x"\u202ey'}]}]),
                                              "Consent.provision.code[0]"),
    "an unknown label": (consent(securityLabel=[{"system": LABEL, "code": "MAGIC"}]),
                         "Consent.provision.securityLabel[0]"),
    "a label that says nothing": (consent(securityLabel=[{"system": REASON, "code": "HTEST"}]),
                                  "Consent.provision.securityLabel[0]"),
    "an unknown action": (consent(action=[action("sell")]), "Consent.provision.action[0]"),
    "writing alone": (consent(action=[action("correct")]), "Consent.provision.action"),
    "a period backwards": (consent(period={"start": "2026", "end": "2025"}), "Consent.provision.period"),
    "an empty period": (consent(dataPeriod={"id": "x"}), "Consent.provision.dataPeriod"),
    "a start that is absent for a reason": (consent(period={"_start": {"id": "x"}, "end": "2026"}),
                                            "Consent.provision.period"),
    "a null start": (consent(dataPeriod={"start": None}), "Consent.provision.dataPeriod"),
    "a type that is absent for a reason": (consent(type="deny", _type={"id": "x"}), "Consent.provision._type"),
    "a coding without code": (consent(code=[{"coding": [{"code": "1"}, {"display": "two"}]}]),
                              "Consent.provision.code[0]"),
    "a bad date": (consent(dataPeriod={"start": "2024-02-30"}), "Consent.provision.dataPeriod"),
    "an exception without type": (consent(provision=[{"class": [{"system": TYPES, "code": "Observation"}]}]),
                                  "Consent.provision.provision[0].type"),
    "exceptions of exceptions": (nested(provision=[{"type": "permit"}]), "Consent.provision.provision[0].provision"),
    "a list that is none": (consent(**{"class": {"system": TYPES, "code": "Observation"}}), "Consent.provision.class"),
    "an empty list": (consent(type="deny", purpose=[]), "Consent.provision.purpose"),
    "a hole in a list": (consent(code=[None]), "Consent.provision.code[0]"),
}


@pytest.mark.parametrize(("resource", "place"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_enforced_is_refused_with_its_place(resource: dict[str, Any], place: str) -> None:
    assert place in refused(resource)


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(("code", "system", "coding", "start", "end", "reference", "role", "type", "x")), inner,
        max_size=3)), max_leaves=6)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(("actor", "purpose", "class", "code", "securityLabel", "dataPeriod", "period", "action", "type",
                        "provision")), anything)
def test_nonsense_in_any_element_is_refused_or_narrows_nothing_away(name: str, value: Any) -> None:
    try:
        found = read(consent(**{name: value}))
    except Unprocessable:
        return
    assert value is None or name in ("type", "provision") or found != read(consent())
    assert all(p.grantee is not None for p in found if p.permit)


@needs_shared
def test_published_consents_are_read_or_refused_with_a_place() -> None:
    assert SHARED is not None
    read_well, places = [], []
    for path in sorted(SHARED.glob("*/Consent/*.json")):
        try:
            provisions_of(json.loads(path.read_text("utf-8")), custodian="Organization/f001")
            read_well.append(path.stem)
        except Unprocessable as error:
            places += [issue.expression or "" for issue in error.issues]
    assert read_well == ["Consent-consent-example-grantor", "Consent-consent-example-notOrg"]
    assert places
    assert all(place.startswith("Consent.") for place in places)


# Each rule, by its permanent tag.

RULES = json.loads((Path(__file__).parents[2] / "vectors" / "consent_rules.json").read_text("utf-8"))


def _asked(row: dict[str, Any]) -> Asked:
    facts = {**RULES["asked"]["facts"], **row.get("facts", {})}
    whole = {**RULES["asked"], **row}
    return Asked(
        facts=ResourceFacts(
            type=facts["type"], id=facts["id"], home_patients=("Patient/1",), author_client="x", author_user=None,
            confidentiality=facts["confidentiality"], labels=facts["labels"],
            period=tuple(facts["period"]) if facts["period"] else None, categories=frozenset(facts["categories"])),
        grantees=frozenset(whole["grantees"]), purpose=whole["purpose"], writing=whole["writing"],
        now_ms=whole["now_ms"])


def _provision(row: dict[str, Any]) -> Provision:
    sets = {name: frozenset(row[name]) for name in ("types", "categories", "purposes", "data") if name in row}
    period = {"data_period": tuple(row["data_period"])} if "data_period" in row else {}
    return Provision(**{"id": "c/0", "patient": "Patient/1", "grantee": "Practitioner/1", "permit": True,
                        "state": "final", **row, **sets, **period})


@pytest.mark.parametrize("vector", RULES["vectors"], ids=lambda v: v["name"])
def test_a_rule_means_what_its_vector_says(vector: dict[str, Any]) -> None:
    outcome = _provision(vector["provision"]).covers(_asked(vector.get("asked", {})))
    if vector["permit"] is True:
        assert outcome == Success()
    else:
        assert isinstance(outcome, Failure)
        assert outcome.tag == vector["permit"]
    deny = {"confidentiality": 0, "labels": 0, **vector["provision"], "permit": False, "writes": True}
    assert _provision(deny).forbids(_asked(vector.get("asked", {}))) is vector["deny"]


def test_every_rule_has_a_vector_that_fails_by_its_tag() -> None:
    assert {v["permit"] for v in RULES["vectors"]} >= set(range(1, 10))


# The life of a Consent.

OPEN, ENDED = ("draft", "proposed"), ("rejected", "inactive", "entered-in-error")
ACTORS = ("patient", "office", "feed", "gateway")


def moves(by: str) -> set[tuple[str | None, str]]:
    states = (*OPEN, "active", *ENDED)
    return {(old, new) for old, new in product((None, *states), states)
            if transition(old, new, by) == Success()}  # type: ignore[arg-type]  # one of the actors


def test_only_the_chain_makes_a_consent_active() -> None:
    for by in ("patient", "office", "feed"):
        assert all(new != "active" for _, new in moves(by))
    assert {old for old, new in moves("gateway") if new == "active"} == {"proposed", "active"}


def test_an_ended_consent_never_comes_back() -> None:
    for by in ACTORS:
        assert all(old == new for old, new in moves(by) if old in ENDED)


def test_patients_and_the_office_can_always_end_one() -> None:
    for by in ("patient", "office"):
        assert {("draft", "inactive"), ("proposed", "rejected"), ("active", "inactive"),
                ("active", "entered-in-error")} <= moves(by)
    assert ("active", "inactive") not in moves("feed")


def test_a_new_consent_is_a_draft_or_a_proposal() -> None:
    for by in ACTORS:
        assert {new for old, new in moves(by) if old is None} == set(OPEN)
    assert isinstance(transition("draft", "granted", "patient"), Failure)


def test_terms_are_the_same_whatever_the_status_says() -> None:
    one = consent()
    other = deepcopy(one) | {"status": "active", "meta": {"versionId": "2"}, "verification": [{"verified": True}]}
    assert same_terms(one, other)
    other["provision"]["purpose"] = [{"system": REASON, "code": "TREAT"}]
    assert not same_terms(one, other)


def test_open_ends_reach_everywhere() -> None:
    (provision,) = read(consent())
    assert (provision.valid_from_ms, provision.valid_until_ms) == (MIN_MS, MAX_MS)
