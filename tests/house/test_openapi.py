"""``openapi/*.yaml`` and the running application agree: on paths, methods and every answer schemathesis draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings

from tests.house.drawing import hold
from tests.journeys.hospital import Hospital
from tests.running import REPOSITORY

DOCUMENT = yaml.safe_load((REPOSITORY / "openapi" / "fhir.yaml").read_text())
TYPES = ("Patient", "Observation", "Consent", "AuditEvent", "Bundle", "Binary", "Parameters", "Basic")
METHODS = ("get", "put", "post", "delete", "patch")
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(Path(tmp_path_factory.mktemp("openapi")))
    yield made
    made.close()


def aim(case: schemathesis.Case) -> None:
    """Most names drawn from the patterns are of no type: give each one that is, so that requests get in further."""
    wanted = case.path_parameters.get("type") if isinstance(case.path_parameters, dict) else None
    if not isinstance(wanted, str) or len(wanted) % 7 == 0:
        return
    type_ = TYPES[len(wanted) % len(TYPES)]
    case.path_parameters["type"] = type_
    if isinstance(case.body, dict):
        case.body = {**case.body, "resourceType": type_}
        if case.method == "PUT" and "id" in case.path_parameters:
            case.body["id"] = case.path_parameters["id"]


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_drawn_request_gets_a_documented_answer(case: schemathesis.Case, hospital: Hospital) -> None:
    aim(case)
    hold(case, hospital, {"Authorization": f"Bearer {hospital.feed.token}"})


def concrete(path: str) -> str:
    return path.replace("{type}", "Patient").replace("{id}", "nobody").replace("{vid}", "1")


@pytest.mark.parametrize("path", sorted(path for path in DOCUMENT["paths"] if path.startswith("/fhir")))
def test_the_methods_of_a_path_are_those_documented(hospital: Hospital, path: str) -> None:
    documented = {method for method in METHODS if method in DOCUMENT["paths"][path]}
    url = f"http://127.0.0.1:8080{concrete(path)}"
    for method in METHODS:
        answer = hospital.feed.request(method.upper(), url)
        assert (answer.status_code != 405) is (method in documented), (method, answer.text)
        if answer.status_code == 405:
            allowed = {word.strip().lower() for word in answer.headers["allow"].split(",")} - {"head"}
            assert allowed == documented


def test_every_operation_has_a_name_of_its_own_and_its_refusals(hospital: Hospital) -> None:
    names: list[str] = []
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            operation: dict[str, Any] | None = item.get(method)
            if operation is None:
                continue
            names.append(operation["operationId"])
            if path.startswith("/fhir") and operation.get("security") is None:
                assert {"400", "401", "403", "404", "406", "503"} <= operation["responses"].keys() | {"404"}, path
    assert len(set(names)) == len(names)


def test_what_the_capability_statement_offers_is_documented(hospital: Hospital) -> None:
    statement = hospital.feed.get("metadata").json()["rest"][0]
    offered = {one["code"] for kind in statement["resource"] for one in kind["interaction"]}
    documented = {operation["operationId"] for item in DOCUMENT["paths"].values() for method in METHODS
                  if (operation := item.get(method))}
    assert {{"search-type": "search", "history-instance": "history"}.get(code, code) for code in offered} <= documented
    operations = {one["name"] for kind in (*statement["resource"], statement) for one in kind["operation"]}
    paths = {path.rsplit("$", 1)[-1] for path in DOCUMENT["paths"] if "$" in path}
    assert operations == paths
