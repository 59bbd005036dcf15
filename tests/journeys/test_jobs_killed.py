"""A job outlives the process that carries it out: ``kill -9`` of every process, and the next start goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import Gateway

ASYNC = {"Prefer": "respond-async"}
LINES = 1_500


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    running = Gateway(tmp_path)
    running.start()
    yield running
    running.stop()


def ended(client: httpx.Client, place: str, wait_s: float = 120) -> httpx.Response:
    end = time.monotonic() + wait_s
    while (answer := client.get(place)).status_code == 202 and time.monotonic() < end:
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text
    return answer


def test_an_import_and_an_export_killed_in_the_middle_are_carried_to_their_end(gateway: Gateway) -> None:
    feed = gateway.client("--ttl", "7200")
    body = b"".join(json.dumps({"resourceType": "Basic", "code": {"text": f"line {number}"}}).encode() + b"\n"
                    for number in range(LINES))
    place = feed.post("/$import", content=body, headers={**ASYNC, "Content-Type": "application/fhir+ndjson"}).headers[
        "content-location"]
    while feed.get("/Basic?_summary=count").json()["total"] < 200:
        assert feed.get(place).status_code == 202
        time.sleep(0.05)
    gateway.kill()
    gateway.start()
    partly = feed.get("/Basic?_summary=count").json()["total"]
    assert 200 <= partly < LINES
    manifest = ended(feed, place).json()
    assert manifest["error"] == []
    assert feed.get("/Basic?_summary=count").json()["total"] == LINES, "each line landed once"

    place = feed.get("/$export?_type=Basic", headers=ASYNC).headers["content-location"]
    gateway.kill()
    gateway.start()
    manifest = ended(feed, place).json()
    assert sum(one["count"] for one in manifest["output"]) == LINES
    found = set()
    for output in manifest["output"]:
        with feed.stream("GET", output["url"], headers={"Accept": "application/fhir+ndjson"}) as answer:
            assert answer.status_code == 200
            found |= {json.loads(line)["id"] for line in answer.iter_lines()}
    assert len(found) == LINES
