"""`gateway token`: who may hold what (``gateway/README.md``, Decisions)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import RSAKey

from gateway.errors import GatewayError, NotFound, OAuthError, Unprocessable
from gateway.smart.accounts import add_user, close_user, find_account
from gateway.smart.approvals import Decider, close
from gateway.smart.minting import mint_token
from tests.unit.smart.hospital import Hospital, Signer, register

HOSPITAL = "Organization/this-hospital"


def test_without_a_user_it_is_this_hospitals_feed(hospital: Hospital) -> None:
    secret, grant = mint_token(hospital.smart)
    assert secret.startswith("gw_")
    assert (grant.client_id, grant.client_kind, grant.user, grant.role) == ("feed", "feed", None, "system")
    assert (str(grant.scopes), grant.purpose, grant.grantees) == ("system/*.cruds", "TREAT", ("Device/feed",))
    assert grant.minted_by_operator
    assert grant.expires_ms == hospital.clock_ms[0] + 3_600_000


def test_a_practitioner_without_an_account_is_a_clinician_and_never_the_feed(hospital: Hospital) -> None:
    _, grant = mint_token(hospital.smart, user="Practitioner/1")
    assert (grant.client_id, grant.client_kind, grant.role) == ("cli", "app", "clinician")
    assert (grant.purpose, grant.patient) == ("TREAT", None)
    assert grant.grantees == ("Practitioner/1", HOSPITAL, "Device/cli")
    assert {scope.context for scope in grant.scopes.resources} == {"user"}
    assert grant.scopes.allows("Observation", "r")


def test_a_patient_is_their_own_launch_context(hospital: Hospital) -> None:
    _, grant = mint_token(hospital.smart, user="Patient/7")
    assert (grant.role, grant.patient, grant.purpose) == ("patient", "Patient/7", "PATRQT")
    assert grant.self_patient == "Patient/7"
    assert grant.grantees == ("Patient/7", "Device/cli")
    assert grant.scopes.allows("Consent", "c", "patient")
    assert not grant.scopes.allows("Encounter", "d")


def test_an_account_says_role_and_organisations(hospital: Hospital) -> None:
    add_user(hospital.smart, fhir_user="Practitioner/2", role="privacy-officer", name="Officer",
             organizations=["Organization/ward"])
    _, grant = mint_token(hospital.smart, user="Practitioner/2")
    assert (grant.role, grant.purpose) == ("privacy-officer", "HOPERAT")
    assert grant.grantees == ("Practitioner/2", "Organization/ward", "Device/cli")
    assert not grant.scopes.allows("Observation", "c")


def test_a_delegate_represents_one_patient_until_the_mandate_ends(hospital: Hospital) -> None:
    with pytest.raises(Unprocessable):
        mint_token(hospital.smart, user="RelatedPerson/3")
    until_ms = hospital.clock_ms[0] + 60_000
    add_user(hospital.smart, fhir_user="RelatedPerson/3", role="delegate", name="Mother", represents="Patient/7",
             mandate_until_ms=until_ms)
    _, grant = mint_token(hospital.smart, user="RelatedPerson/3")
    assert (grant.self_patient, grant.expires_ms, grant.purpose) == ("Patient/7", until_ms, "FAMRQT")
    with pytest.raises(Unprocessable):
        mint_token(hospital.smart, user="RelatedPerson/3", patient="Patient/8")
    hospital.clock_ms[0] = until_ms
    with pytest.raises(Unprocessable, match="mandate"):
        mint_token(hospital.smart, user="RelatedPerson/3")


def test_scopes_are_cut_down_to_role_and_client(hospital: Hospital, rsa_key: RSAKey, tmp_path: Path) -> None:
    app = register(hospital, Signer(rsa_key, "RS384"), tmp_path, scope="user/Observation.rs launch/patient", kind="app")
    _, grant = mint_token(hospital.smart, user="Practitioner/1", client=app, scope="user/*.cruds launch/patient openid")
    assert str(grant.scopes) == "launch/patient user/Observation.rs"
    assert grant.grantees == ("Practitioner/1", HOSPITAL, f"Device/{app}")


def test_break_glass_names_patient_and_reason_and_is_short(hospital: Hospital) -> None:
    _, grant = mint_token(hospital.smart, user="Practitioner/1", patient="7", purpose="BTG", reason="unconscious")
    assert (grant.patient, grant.break_glass_reason) == ("Patient/7", "unconscious")
    assert grant.expires_ms == hospital.clock_ms[0] + 900_000
    entry, patient = hospital.audited[-1]
    assert (entry.reason, entry.purpose, patient) == ("unconscious", "BTG", "7")


@pytest.mark.parametrize("asked", [
    {"user": "Practitioner/1", "patient": "7", "purpose": "BTG"},
    {"user": "Practitioner/1", "patient": "7", "purpose": "ETREAT", "reason": "  "},
    {"user": "Practitioner/1", "purpose": "BTG", "reason": "why"},
    {"user": "Practitioner/1", "patient": "7", "purpose": "BTG", "reason": "why", "ttl_s": 901},
    {"user": "Patient/7", "purpose": "BTG", "reason": "why"},
    {"purpose": "BTG", "reason": "why"},
    {"purpose": "NONSENSE"},
    {"user": "Practitioner/1", "scope": "system/*.rs"},
    {"user": "Practitioner/1", "scope": "patient/*.rs"},
    {"user": "Practitioner/1", "scope": "openid"},
    {"user": "Practitioner/1", "scope": "user/Nonsense.rs"},
    {"user": "Practitioner/1", "scope": ""},
    {"scope": "user/*.rs"}, {"scope": "patient/*.rs"}, {"patient": "7"},
    {"user": "Patient/7", "patient": "8"},
    {"user": "Practitioner/1", "patient": "a/b"}, {"user": "Practitioner/1", "patient": "Observation/7"},
    {"user": "Practitioner/1", "patient": ""},
    {"user": "Practitioner/a b"}, {"user": "Practitioner"}, {"user": "PractitionerRole/1"}, {"user": "Device/1"},
    {"user": "Practitioner/1", "client": "feed"}, {"client": "cli"}, {"client": "nobody"},
    {"ttl_s": 0}, {"ttl_s": 86_401}, {"ttl_s": -1},
])
def test_what_no_door_would_issue_is_not_minted(hospital: Hospital, asked: dict[str, Any]) -> None:
    with pytest.raises((Unprocessable, OAuthError, NotFound)):
        mint_token(hospital.smart, **asked)
    assert not list(hospital.smart.database.reader.execute("SELECT 1 FROM token"))
    assert not hospital.audited


def test_closed_clients_and_accounts_get_none(hospital: Hospital, rsa_key: RSAKey, tmp_path: Path) -> None:
    client = register(hospital, Signer(rsa_key, "RS384"), tmp_path, scope="system/*.rs")
    close(hospital.smart, client, Decider())
    add_user(hospital.smart, fhir_user="Practitioner/1", role="clinician", name="One")
    close_user(hospital.smart, "Practitioner/1")
    for asked in ({"client": client}, {"user": "Practitioner/1"}):
        with pytest.raises(Unprocessable, match="closed"):
            mint_token(hospital.smart, **asked)


def test_a_token_and_its_audit_row_are_one_commit(hospital: Hospital) -> None:
    def broken(*_: object) -> None:
        raise GatewayError("the audit cannot be written")
    object.__setattr__(hospital.smart, "audit", broken)
    with pytest.raises(GatewayError):
        mint_token(hospital.smart)
    assert not list(hospital.smart.database.reader.execute("SELECT 1 FROM token"))


# Accounts

@pytest.mark.parametrize("asked", [
    {"fhir_user": "Practitioner/1", "role": "patient"}, {"fhir_user": "Patient/1", "role": "clinician"},
    {"fhir_user": "Patient/1", "role": "system"}, {"fhir_user": "Patient/1", "role": "king"},
    {"fhir_user": "RelatedPerson/1", "role": "delegate"},
    {"fhir_user": "RelatedPerson/1", "role": "delegate", "represents": "Patient/1"},
    {"fhir_user": "RelatedPerson/1", "role": "delegate", "represents": "Group/1", "mandate_until_ms": 1},
    {"fhir_user": "Patient/1", "role": "patient", "represents": "Patient/2"},
    {"fhir_user": "Patient/1", "role": "patient", "name": " "},
    {"fhir_user": "Patient/1", "role": "patient", "name": "\n"},
    {"fhir_user": "Practitioner/1", "role": "clinician", "organizations": ["Patient/1"]},
    {"fhir_user": "Practitioner/1", "role": "clinician", "organizations": ["Organization/a b"]},
    {"fhir_user": "Patient/1", "role": "patient", "wallet": "0x12"},
    {"fhir_user": "Patient/1", "role": "patient", "wallet": "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"},
    {"fhir_user": "Patient/1", "role": "patient", "wallet": "5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"},
])
def test_an_account_that_does_not_fit_together_is_refused(hospital: Hospital, asked: dict[str, Any]) -> None:
    with pytest.raises(Unprocessable):
        add_user(hospital.smart, **{"name": "Somebody", **asked})
    assert not hospital.audited


def test_a_wallet_is_kept_with_its_checksum(hospital: Hospital) -> None:
    address = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    for given in (address, address.lower()):
        add_user(hospital.smart, fhir_user="Patient/1", role="patient", name="One", wallet=given)
        account = find_account(hospital.smart.database.reader, "Patient/1")
        assert account is not None
        assert account.wallet == address
    assert [entry.action for entry, _ in hospital.audited] == ["C", "U"]


def test_closing_nobody_is_not_found(hospital: Hospital) -> None:
    with pytest.raises(NotFound):
        close_user(hospital.smart, "Practitioner/404")
    with pytest.raises(NotFound):
        close(hospital.smart, "404", Decider())
