"""Conditional writes from many clients at once, over the processes of one gateway: exactly one resource comes of them.

https://hl7.org/fhir/R4/http.html#ccreate
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import Gateway

CLIENTS = 8


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(Path(tmp_path_factory.mktemp("races")) / "gateway", workers="2")
    running.start()
    yield running
    running.stop()


def patient(value: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:race", "value": value}]}


def at_once(gateway: Gateway, ask: Callable[[httpx.Client], httpx.Response]) -> list[httpx.Response]:
    """The answers of many clients, each on a connection of its own, sent together."""
    token, answers, barrier = gateway.token(), [], threading.Barrier(CLIENTS)

    def run() -> None:
        with httpx.Client(base_url=gateway.base, timeout=60, headers={
                "Authorization": f"Bearer {token}", "Content-Type": "application/fhir+json"}) as client:
            barrier.wait(30)
            answers.append(ask(client))

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(answers) == CLIENTS
    return answers


def stored(gateway: Gateway, value: str) -> int:
    with gateway.client() as client:
        return int(client.get(f"/Patient?identifier=urn:race|{value}&_summary=count").json()["total"])


def test_one_of_many_conditional_creates_makes_the_resource(gateway: Gateway) -> None:
    answers = at_once(gateway, lambda client: client.post("/Patient", json=patient("create"), headers={
        "If-None-Exist": "identifier=urn:race|create"}))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: CLIENTS - 1}
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert stored(gateway, "create") == 1


def test_one_of_many_transactions_makes_the_resource_all_name(gateway: Gateway) -> None:
    link = "urn:uuid:6f1ac2d5-2f3b-4c52-9d6e-0c1b6f4b7a10"
    sent = {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"fullUrl": link, "resource": patient("bundle"), "request": {
            "method": "POST", "url": "Patient", "ifNoneExist": "identifier=urn:race|bundle"}},
        {"resource": {"resourceType": "Observation", "status": "final", "code": {"text": "race"},
                      "subject": {"reference": link}}, "request": {"method": "POST", "url": "Observation"}}]}
    answers = at_once(gateway, lambda client: client.post("/", json=sent))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert Counter(answer.json()["entry"][0]["response"]["status"][:3] for answer in answers) == {
        "201": 1, "200": CLIENTS - 1}
    assert stored(gateway, "bundle") == 1
    with gateway.client() as client:
        [found] = client.get("/Patient?identifier=urn:race|bundle").json()["entry"]
        place = f"Patient/{found['resource']['id']}"
        assert client.get(f"/Observation?subject={place}&_summary=count").json()["total"] == CLIENTS


def test_one_of_many_conditional_updates_creates(gateway: Gateway) -> None:
    answers = at_once(gateway, lambda client: client.put("/Patient?identifier=urn:race|update", json=patient("update")))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: CLIENTS - 1}
    assert stored(gateway, "update") == 1
