"""``openapi/smart.yaml`` and the doors of launches, registration and approvals agree: on every answer drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings

from gateway.smart import registration
from gateway.smart.accounts import add_user
from tests.house.drawing import hold
from tests.journeys.hospital import Hospital
from tests.running import REPOSITORY

DOCUMENT = yaml.safe_load((REPOSITORY / "openapi" / "smart.yaml").read_text())
METHODS = ("get", "put", "post", "delete", "patch")
OURS = r"^/oauth/(launch|register|clients)"
APP = {"client_name": "App", "scope": "patient/*.rs", "redirect_uris": ["https://app.example/cb"]}
schema = schemathesis.openapi.from_dict(DOCUMENT).include(path_regex=OURS)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(Path(tmp_path_factory.mktemp("openapi-clients")))
    add_user(made.smart, fhir_user="Practitioner/admin", role="administrator", name="Ada")
    yield made
    made.close()


@schema.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_drawn_request_gets_a_documented_answer(
        case: schemathesis.Case, hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_HOURLY_MAX", "_HOURLY_SHARE"):
        monkeypatch.setattr(registration, limit, 10_000)
    told = registration.register(hospital.smart, APP, address=None)
    client_id = told.registration.client.id
    token = hospital.feed.token
    if "/clients" in case.path:
        token = hospital.token(user="Practitioner/admin")
    elif "/register/" in case.path:
        token = str(told.token)
    if case.path_parameters and "client_id" in case.path_parameters and len(case.path_parameters["client_id"]) % 5:
        case.path_parameters["client_id"] = client_id
    if isinstance(case.body, dict) and "client_id" in case.body and len(str(case.body["client_id"])) % 2:
        case.body["client_id"] = client_id
    hold(case, hospital, {"Authorization": f"Bearer {token}"})
    hospital.database.transact(lambda tx: registration.close_within(tx, client_id, 0))  # the queue is short


@pytest.mark.parametrize("path", sorted(path for path in DOCUMENT["paths"] if re.match(OURS, path)))
def test_the_methods_of_a_path_are_those_documented(hospital: Hospital, path: str) -> None:
    documented = {method for method in METHODS if method in DOCUMENT["paths"][path]}
    for method in METHODS:
        answer = hospital.run(hospital.http.request(
            method, f"http://127.0.0.1:8080{path.format(client_id='nobody')}?allow=nobodys%0Aword"))
        assert (answer.status_code != 405) is (method in documented), (method, answer.text)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["error"]
        if answer.status_code == 405:
            assert {word.strip().lower() for word in answer.headers["allow"].split(",")} == documented
