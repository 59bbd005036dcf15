"""Deliveries outlive the processes that make them: ``kill -9`` of every one, and the next start goes on in order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from gateway.fhir.subscriptions import TOPIC
from tests.journeys.receiver import Receiver
from tests.running import Gateway

WRITTEN = 60


@pytest.fixture
def gateway(tmp_path: Path, receiver: Receiver) -> Iterator[Gateway]:
    running = Gateway(tmp_path, subscription_hosts=receiver.url)
    running.start()
    yield running
    running.stop()


def until(receiver: Receiver, count: int, wait_s: float = 60) -> list[tuple[int, str]]:
    """(number, focus) of every event that came, once the last has number ``count``."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        found = [(int(one["event-number"]), one["focus"]) for came in list(receiver.came)
                 for one in came.status["events"]]
        if found and found[-1][0] >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{len(found)} events came in {wait_s} s")


def counted(feed: httpx.Client) -> int:
    (entry,) = feed.get("/Subscription/$status").json()["entry"]
    return next(int(one["valueString"]) for one in entry["resource"]["parameter"]
                if one["name"] == "events-since-subscription-start")


def test_every_event_arrives_at_least_once_and_in_order_over_kills(gateway: Gateway, receiver: Receiver) -> None:
    feed = gateway.client("--ttl", "7200")
    answer = feed.post("/Subscription", json={
        "resourceType": "Subscription", "status": "requested", "reason": "care", "criteria": f"{TOPIC}Basic-created",
        "channel": {"type": "rest-hook", "endpoint": receiver.url, "payload": "application/fhir+json",
                    "extension": [{"url": "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
                                          "backport-max-count", "valuePositiveInt": 3}],
                    "_payload": {"extension": [{
                        "url": "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
                               "backport-payload-content", "valueCode": "id-only"}]}}})
    assert answer.status_code == 201, answer.text
    made = []
    for number in range(WRITTEN):
        made.append(feed.post("/Basic", json={"resourceType": "Basic", "code": {"text": str(number)}}).json()["id"])
        if number in (WRITTEN // 3, 2 * WRITTEN // 3):
            gateway.kill()
            gateway.start()
    found = until(receiver, WRITTEN)
    expected = {number: f"{gateway.base}/Basic/{id_}" for number, id_ in enumerate(made, 1)}
    assert dict(found) == expected
    assert all(expected[number] == focus for number, focus in found)
    steps = [second - first for (first, _), (second, _) in pairwise(found)]
    assert all(step <= 1 for step in steps), "none is passed over; what was not acknowledged comes again"
    end = time.monotonic() + 10  # the last is acknowledged before it is counted
    while counted(feed) != WRITTEN and time.monotonic() < end:
        time.sleep(0.05)
    assert counted(feed) == WRITTEN
