"""``openapi/smart.yaml`` and the doors of the authorization server agree: on paths, methods and every answer drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings

from tests.conformance.smart_app import App
from tests.house.drawing import hold
from tests.journeys.browser import Browser
from tests.journeys.hospital import Hospital
from tests.running import REPOSITORY

DOCUMENT = yaml.safe_load((REPOSITORY / "openapi" / "smart.yaml").read_text())
METHODS = ("get", "put", "post", "delete", "patch")
ELSEWHERE = r"^/oauth/(launch|register|clients)"  # test_openapi_clients.py
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(Path(tmp_path_factory.mktemp("openapi-smart")), address_failures="0", address_requests_per_s="0")
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(hospital: Hospital) -> App:
    return App(hospital)


@schema.exclude(path_regex=ELSEWHERE).parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_drawn_request_gets_a_documented_answer(case: schemathesis.Case, hospital: Hospital, app: App) -> None:
    for part in (case.query, case.body):  # most names drawn are nobody's: give each other one that is
        if isinstance(part, dict) and len(str(part.get("client_id", ""))) % 2:
            part |= {"client_id": app.id, **({"redirect_uri": app.redirect} if "redirect_uri" in part else {})}
    hold(case, hospital, {"Authorization": f"Bearer {hospital.feed.token}"} if case.path == "/oauth/userinfo" else {})


@pytest.mark.parametrize("path", sorted(path for path in DOCUMENT["paths"] if not re.match(ELSEWHERE, path)))
def test_the_methods_of_a_path_are_those_documented(hospital: Hospital, path: str) -> None:
    documented = {method for method in METHODS if method in DOCUMENT["paths"][path]}
    for method in METHODS:
        answer = hospital.run(hospital.http.request(method, f"http://127.0.0.1:8080{path}"))
        assert (answer.status_code != 405) is (method in documented), (method, answer.text)
        if answer.status_code == 405:
            assert answer.json()["error"] == "invalid_request"
            assert {word.strip().lower() for word in answer.headers["allow"].split(",")} - {"head", "options"} \
                == documented


def test_every_path_served_below_oauth_is_documented(hospital: Hospital) -> None:
    served = vars(hospital.app)["_others"].openapi()["paths"]
    found = {(path, method) for path, methods in served.items() for method in methods
             if re.match(r"/oauth/|/\.well-known/o|/fhir/\.well-known/", path) and not re.match(ELSEWHERE, path)}
    assert found == {(path, method) for path in DOCUMENT["paths"] for method in METHODS
                     if method in DOCUMENT["paths"][path] and not re.match(ELSEWHERE, path)}


def test_the_answers_of_a_whole_launch_are_as_described(hospital: Hospital, app: App) -> None:
    browser = Browser(hospital).sign_in(f"Patient/{hospital.new_patient()}")
    code = app.allowed(browser, "launch/patient openid fhirUser offline_access patient/*.rs", how_long="offline")
    token = app.exchange(code)
    operations = {(path, method): schema[path][method.upper()] for path in DOCUMENT["paths"]
                  for method in METHODS if method in DOCUMENT["paths"][path]}
    answers = {
        ("/oauth/token", "post"): token,
        ("/oauth/introspect", "post"): app.request(
            "POST", app.found["introspection_endpoint"], data={"token": token.json()["access_token"]},
            headers={"Authorization": f"Bearer {hospital.feed.token}"}),
        ("/oauth/userinfo", "get"): app.get(f"{app.found['issuer']}/oauth/userinfo", headers={
            "Authorization": f"Bearer {token.json()['access_token']}"}),
    }
    browser.close()
    for key, answer in answers.items():
        assert answer.status_code == 200, answer.text
        operations[key].validate_response(answer)
