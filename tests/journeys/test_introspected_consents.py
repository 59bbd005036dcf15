"""Introspection tells this hospital's own resource servers what consents leave of a token (IHE IUA and PCF)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conformance.smart_app import App
from tests.journeys.browser import Browser
from tests.journeys.hospital import Client, Hospital


@pytest.fixture
def browser(hospital: Hospital) -> Iterator[Browser]:
    made = Browser(hospital)
    yield made
    made.close()


def asked(hospital: Hospital, token: str, by: str | None = None) -> dict[str, Any]:
    answer: httpx.Response = hospital.run(hospital.http.request(
        "POST", hospital.base.removesuffix("/fhir") + "/oauth/introspect", data={"token": token},
        headers={"Authorization": f"Bearer {by or hospital.feed.token}"}))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_clinicians_token_says_what_the_patient_leaves_of_it(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    token = hospital.token(user="Practitioner/pcf-1", patient=patient)
    found = asked(hospital, token)
    assert found["purpose_of_use"] == ["TREAT"]
    extensions = found["extensions"]
    assert extensions["ihe_iua"] == {"purpose_of_use": [
        {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREAT"}]}
    assert extensions["ihe_pcf"] == {"patient_id": f"{hospital.base}/Patient/{patient}",
                                     "residual": [{"type": "forbid"}]}
    consent = hospital.grant(patient, "Practitioner/pcf-1")
    pcf = asked(hospital, token)["extensions"]["ihe_pcf"]
    assert pcf["doc_id"] == f"{hospital.base}/Consent/{consent}"
    assert [rule["type"] for rule in pcf["residual"]] == ["forbid"]
    assert pcf["residual"][0]["securityLabel"]
    single = hospital.grant(patient, "Practitioner/pcf-1", permit=False, data=frozenset({"Observation/secret"}))
    pcf = asked(hospital, token)["extensions"]["ihe_pcf"]
    assert pcf["doc_id"][1] == f"{hospital.base}/Consent/{single}"
    assert pcf["residual"][-1]["data"] == [
        {"meaning": "instance", "reference": {"reference": f"{hospital.base}/Observation/secret"}}]
    for one in (consent, single):
        hospital.revoke(one)
    assert asked(hospital, token)["extensions"]["ihe_pcf"]["residual"] == [{"type": "forbid"}]


def test_a_holder_is_not_told_what_a_patient_keeps_from_them(hospital: Hospital) -> None:
    """What is forbidden looks like what is not there, to whoever is forbidden it; also to the app itself."""
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/pcf-2", permit=False)
    token = hospital.token(user="Practitioner/pcf-2", patient=patient)
    assert "extensions" in asked(hospital, token)
    own = asked(hospital, token, by=token)
    assert own == {"active": False} or "extensions" not in own


def test_a_lasting_access_names_the_consent_it_rests_on(hospital: Hospital, browser: Browser) -> None:
    patient = hospital.new_patient()
    browser.sign_in(f"Patient/{patient}")
    token = App(hospital).launched(browser, "launch/patient offline_access patient/*.rs", how_long="offline")
    pcf = asked(hospital, token["access_token"])["extensions"]["ihe_pcf"]
    assert pcf["patient_id"] == f"{hospital.base}/Patient/{patient}"
    assert "residual" not in pcf, "what was left out is in the scope"
    (consent,) = Client(hospital, hospital.token(user=f"Patient/{patient}")).ids(f"Consent?patient={patient}")
    assert pcf["doc_id"] == f"{hospital.base}/Consent/{consent}"
    assert "extensions" not in asked(hospital, token["refresh_token"])
