"""In real processes: a refusal is told within a second, once over kills; the webhook learns no name; the audit is held
against the chain."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.receiver import Receiver
from tests.running import Gateway


@pytest.fixture
def gateway(tmp_path: Path, receiver: Receiver) -> Iterator[Gateway]:
    running = Gateway(tmp_path, subscription_hosts=receiver.url, notice_webhook=f"{receiver.url}/head",
                      notice_window_s="3600")
    running.start()
    yield running
    running.stop()


def refused(own: httpx.Client, patient: str) -> list[dict[str, Any]]:
    found = own.get("/Communication", params={"recipient": f"Patient/{patient}", "_count": "500"}).json()
    return [entry["resource"] for entry in found.get("entry", ())
            if entry["resource"]["topic"]["coding"][0]["code"] == "refused"]


def until(own: httpx.Client, patient: str, count: int, within_s: float) -> float:
    """Seconds until there are so many notices."""
    started = time.monotonic()
    while len(refused(own, patient)) < count:
        assert time.monotonic() - started < within_s, f"not {count} notices within {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - started


def test_refusals_are_told_within_a_second_once_each_over_kills(gateway: Gateway, receiver: Receiver) -> None:
    feed = gateway.client("--ttl", "7200")
    patient = feed.post("/Patient", json={"resourceType": "Patient", "name": [{"family": "Nobodysname"}]}).json()["id"]
    own = gateway.client("--user", f"Patient/{patient}", "--ttl", "7200")
    doctors = [gateway.client("--user", f"Practitioner/dr-{number}", "--ttl", "7200") for number in range(4)]
    waits = []
    for told, doctor in enumerate(doctors[:3], 1):
        assert doctor.get(f"/Patient/{patient}").status_code == 404
        waits.append(until(own, patient, told, 5))
    print("refusal to Communication:", [f"{wait * 1000:.0f} ms" for wait in waits])
    assert min(waits) < 1.0
    assert doctors[3].get(f"/Patient/{patient}").status_code == 404
    gateway.kill()
    gateway.start()
    until(own, patient, 4, 20)
    for doctor in doctors:
        assert doctor.get(f"/Patient/{patient}").status_code == 404
    time.sleep(1.5)
    assert len(refused(own, patient)) == 4, "told once a burst, whatever was killed between"
    end = time.monotonic() + 20
    while len([one for one in receiver.came if one.path == "/head"]) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    hooked = [json.loads(one.body) for one in list(receiver.came) if one.path == "/head"]
    assert [one["notice"] for one in hooked].count("refused") >= 4
    assert all(set(one) == {"notice", "communication", "time"} for one in hooked)
    assert patient not in json.dumps(hooked)
    assert "Nobodysname" not in gateway.log.read_text()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = gateway.run("verify-audit", "--json", check=False)
        verdict = json.loads(found.stdout)
        assert found.returncode == 0, found.stdout + found.stderr
        if verdict["anchored"] > 20:
            break
        time.sleep(1)
    assert verdict["verdict"] == "sound"
    assert verdict["anchored"] > 20
    gateway.stop()
    stopped = gateway.run("verify-audit", "--json", check=False)
    assert stopped.returncode == 2, "without the chain it cannot be decided"
