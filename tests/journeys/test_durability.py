"""Invariant 2: 201 means durable. Real processes, killed with SIGKILL."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import REPOSITORY, Gateway

SYNTHEA = REPOSITORY / "tests" / "fixtures" / "demo"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    running = Gateway(tmp_path)
    running.start()
    yield running
    running.stop()


def bundle() -> dict[str, Any]:
    [path] = SYNTHEA.glob("Desmond_Gutmann*")
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def test_a_synthea_patient_is_read_back_equal_after_kill_9(gateway: Gateway) -> None:
    feed = gateway.client("--ttl", "7200")
    answer = feed.post("/", json=bundle())
    assert answer.status_code == 200, answer.text
    places = [entry["response"]["location"] for entry in answer.json()["entry"]]
    assert len(places) == len(bundle()["entry"])
    before = {place: feed.get(place).content for place in places}
    for location, sent in zip(places, bundle()["entry"], strict=True):
        got = json.loads(before[location])
        assert got["resourceType"] == sent["resource"]["resourceType"]
    gateway.kill()
    gateway.start()
    assert {place: feed.get(place).content for place in places} == before


def test_every_acknowledged_write_survives_a_kill_in_the_middle_of_many(gateway: Gateway) -> None:
    feed = gateway.client("--ttl", "7200")
    patient = feed.post("/Patient", json={"resourceType": "Patient"}).json()["id"]
    acknowledged: list[str] = []
    headers = dict(feed.headers)

    def write() -> None:
        with httpx.Client(base_url=gateway.base, headers=headers, timeout=10) as client:
            try:
                while True:
                    answer = client.post("/Observation", json={
                        "resourceType": "Observation", "status": "final", "code": {"text": "pulse"},
                        "subject": {"reference": f"Patient/{patient}"}})
                    if answer.status_code != 201:
                        return
                    acknowledged.append(answer.headers["location"])
            except httpx.HTTPError:
                return

    writers = [threading.Thread(target=write) for _ in range(6)]
    for writer in writers:
        writer.start()
    while len(acknowledged) < 150:
        pass
    gateway.kill()
    for writer in writers:
        writer.join()
    gateway.start()
    assert len(acknowledged) >= 150
    for place in acknowledged:
        assert feed.get(place).status_code == 200, place


def test_a_killed_worker_comes_back_and_a_stop_ends_every_process(gateway: Gateway) -> None:
    import os
    import signal
    import time

    feed = gateway.client()
    assert feed.get("/Patient").status_code == 200
    pids = gateway.children()
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if feed.get("/Patient").status_code == 200 and len(gateway.children()) == len(pids):
                break
        except httpx.HTTPError:
            time.sleep(0.1)
    assert feed.get("/Patient").status_code == 200
    last = gateway.children()
    assert len(last) == len(pids)
    assert gateway.stop() == 0
    assert not [pid for pid in last if Path(f"/proc/{pid}").exists()]
