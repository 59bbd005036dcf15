"""What foreign clients rest on and no test kit asks for: found by those of ``tests/real``, said here by the clause."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.smart_app import App
from tests.journeys.browser import Browser
from tests.journeys.hospital import Hospital

SCOPE = "launch/patient offline_access patient/Patient.rs"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(tmp_path_factory.mktemp("clients"))
    yield made
    made.close()


def test_a_bad_grant_is_400_to_a_client_that_proved_itself(hospital: Hospital, browser: Browser) -> None:
    """RFC 6749 section 5.2: 401 and a challenge are for ``invalid_client``; oauth4webapi reads no error beyond one."""
    app = App(hospital, auth="client_secret_basic", name="Diary")
    token = app.launched(browser, SCOPE, how_long="offline")
    assert app.refresh(token["refresh_token"]).status_code == 200
    for answer, error in ((app.refresh(token["refresh_token"]), "invalid_grant"),
                          (app.exchange("gwc_unknown"), "invalid_grant"),
                          (app.token(grant_type="password"), "unsupported_grant_type"),
                          (app.token(), "invalid_request")):
        assert (answer.status_code, answer.json()["error"]) == (400, error)
        assert "www-authenticate" not in answer.headers
    wrong = app.request("POST", app.found["token_endpoint"], data={"grant_type": "refresh_token", "refresh_token": "x"},
                        auth=(app.id, "gws_wrong"))
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")
    assert wrong.headers["www-authenticate"].startswith("Basic")


def test_the_capability_statement_names_the_doors_discovery_names(hospital: Hospital) -> None:
    """SMART App Launch 1.0, "Using cs": Python's fhirclient looks for ``authorize`` and ``token`` there, and nowhere
    else."""
    app = App(hospital)
    security = app.get(f"{hospital.base}/metadata").json()["rest"][0]["security"]
    (extension,) = (one for one in security["extension"] if one["url"].endswith("/StructureDefinition/oauth-uris"))
    assert {one["url"]: one["valueUri"] for one in extension["extension"]} == {
        name: app.found[f"{found}_endpoint"] for name, found in (
            ("authorize", "authorization"), ("token", "token"), ("register", "registration"),
            ("manage", "management"), ("introspect", "introspection"), ("revoke", "revocation"))}
