"""FHIR clients that are not ours: PyPI's fhirclient and fhirpy, npm's fhir-kit-client and fhirclient.

Each lives in an environment of its own, installed from the locks in ``tests/real/clients`` (conftest.py).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Gateway

pytestmark = pytest.mark.real
CLIENTS = Path(__file__).with_name("clients")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("gateway"))
    running.start()
    yield running
    running.stop()


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def python_clients(gateway: Gateway, foreign_python: str) -> dict[str, Any]:
    return told(subprocess.run([foreign_python, str(CLIENTS / "python_clients.py"), gateway.base, gateway.token()],
                               capture_output=True, text=True, timeout=120, check=False))


@pytest.fixture(scope="module")
def node_clients(gateway: Gateway, node: str) -> dict[str, Any]:
    return told(subprocess.run([node, "node_clients.mjs", gateway.base, gateway.token()], cwd=CLIENTS,
                               capture_output=True, text=True, timeout=120, check=False))


def test_fhirclient_of_pypi_writes_searches_and_pages(python_clients: dict[str, Any]) -> None:
    seen = python_clients["fhirclient"]
    assert seen["found"] == [seen["patient"]]
    assert (seen["names"], seen["version"], seen["observations"]) == (2, "2", 25)


def test_fhirpy_chains_includes_and_updates_on_a_condition(python_clients: dict[str, Any]) -> None:
    seen = python_clients["fhirpy"]
    assert (seen["same"], seen["created"]) == (seen["patient"], False)
    assert seen["chained"] == 5
    assert seen["included"] == ["Observation", "Patient"]
    assert seen["left"] == 4


def test_fhir_kit_client_transacts_patches_and_walks(node_clients: dict[str, Any]) -> None:
    seen = node_clients["fhirKit"]
    assert seen["fhirVersion"] == "4.0.1"
    assert (seen["version"], seen["birthDate"], seen["old"]) == ("3", "1980-02-29", None)
    assert seen["answers"] == ["201"] * 25
    assert (seen["seen"], seen["inCompartment"], seen["history"]) == (25, 25, 3)
    assert seen["everything"] >= 20


def test_fhirclient_of_npm_resolves_references_and_patches(node_clients: dict[str, Any]) -> None:
    seen = node_clients["fhirclient"]
    assert (seen["family"], seen["subject"], seen["active"]) == ("Smartson", "Smartson", True)
