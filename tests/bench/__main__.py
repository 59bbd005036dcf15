"""``make bench``: one table, a few minutes. Every figure is of this run, on this machine.

Rates through real HTTP on loopback, with everything on: validation, sealing, durable commit, audit, consent. The
generator shares the machine's cores, as it did where the peers were measured.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import httpx

from tests.bench.gas import gas_table
from tests.bench.grants import grants
from tests.bench.growth import growth
from tests.bench.propagation import propagation_table
from tests.bench.revocation import revocation_table
from tests.bench.steps import step_costs
from tests.running import REPOSITORY, Gateway

SECONDS = 5
CLIENTS = (1, 8, 32)
PATIENTS = 200
HAPI = {"creates": 530, "reads": 1429, "name searches": 514, "reference+code searches": 346,
        "date-sorted searches": 149, "bundle resources": 534}
"""HAPI's JPA server on such a machine: two cores shared with the generator, no validation, no security."""


def observation(patient: str, number: int) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final",
            "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category",
                                      "code": "vital-signs"}]}],
            "code": {"coding": [{"system": "http://loinc.org", "code": ("8867-4", "9279-1", "8310-5", "8302-2")[
                number % 4]}]},
            "subject": {"reference": f"Patient/{patient}"},
            "effectiveDateTime": f"20{10 + number % 15:02}-{1 + number % 12:02}-{1 + number % 28:02}T08:30:00Z",
            "valueQuantity": {"value": 60 + number % 40, "unit": "/min", "system": "http://unitsofmeasure.org",
                              "code": "/min"}}


def bundle(number: int) -> tuple[str, dict[str, Any]]:
    patient = str(uuid.uuid4())
    entries = [{"fullUrl": f"urn:uuid:{patient}", "resource": {
        "resourceType": "Patient", "id": patient, "name": [{"family": f"Family{number // 2:05}",
                                                            "given": [f"Given{number:05}"]}],
        "gender": "female", "birthDate": f"19{number % 90 + 10}-02-03"},
        "request": {"method": "PUT", "url": f"Patient/{patient}"}}]
    entries += [{"resource": observation(patient, number + place),
                 "request": {"method": "POST", "url": "Observation"}} for place in range(20)]
    return patient, {"resourceType": "Bundle", "type": "transaction", "entry": entries}


class Bench:
    """One gateway under load."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.token = gateway.token("--ttl", "7200")

    def raw(self, method: str, path: str, body: bytes = b"", token: str | None = None) -> bytes:
        head = (f"{method} /fhir/{path} HTTP/1.1\r\nHost: 127.0.0.1:{self.gateway.port}\r\n"
                f"Authorization: Bearer {token or self.token}\r\nAccept: application/fhir+json\r\n")
        if body:
            head += f"Content-Type: application/fhir+json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    def load(self, requests: list[bytes], clients: int, expect: int = 200, seconds: float = SECONDS, *,
             once: bool = False) -> dict[str, Any]:
        plan = {"host": "127.0.0.1", "port": self.gateway.port, "clients": clients, "seconds": seconds, "once": once,
                "expect": expect, "requests": [base64.b64encode(request).decode() for request in requests]}
        done = subprocess.run([sys.executable, "-m", "tests.bench.load"], input=json.dumps(plan), text=True, check=True,
                              capture_output=True, cwd=REPOSITORY, timeout=seconds + 60)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def row(name: str, clients: int, found: dict[str, Any], factor: int = 1) -> None:
    peer = HAPI.get(name)
    ratio = f"{found['per_s'] * factor / peer:5.1f}x HAPI" if peer and clients == 8 else ""
    wrong = f"  WRONG {found['wrong']}" if found["wrong"] else ""
    print(f"{name:<26}{clients:>8}{found['per_s'] * factor:>12.0f}{found['p50_ms']:>10.2f}{found['p99_ms']:>10.2f}"
          f"{found['max_ms']:>10.1f}  {ratio}{wrong}", flush=True)


def held(bench: Bench, patients: list[str]) -> dict[str, list[str]]:
    """The ids of some Observations of each patient."""
    found = {}
    with httpx.Client(base_url=bench.gateway.base, headers={"Authorization": f"Bearer {bench.token}"}) as http:
        for patient in patients:
            answer = http.get("/Observation", params={"subject": f"Patient/{patient}", "_count": "20"}).json()
            found[patient] = [entry["resource"]["id"] for entry in answer["entry"]]
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        gateway = Gateway(Path(folder) / "one", log_level="warning", batch_interval_s="5", account_requests_per_s="0")
        print(f"first start {gateway.start():.1f} s", end="; ", flush=True)
        gateway.stop()
        print(f"warm start {gateway.start():.1f} s", flush=True)
        try:
            measure(gateway)
        finally:
            gateway.stop()
        print("\n" + propagation_table(Path(folder) / "two"))


def measure(gateway: Gateway) -> None:
    bench = Bench(gateway)
    patients, bodies = [], []
    for number in range(PATIENTS):
        patient, made = bundle(number)
        patients.append(patient)
        bodies.append(json.dumps(made).encode())
    print(f"\n{'':<26}{'clients':>8}{'per s':>12}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
    with gateway.client("--ttl", "7200") as http:
        for body in bodies:
            http.post("/", content=body).raise_for_status()
        observations = [entry["resource"]["id"] for entry in http.get(
            "/Observation", params={"_count": "1000"}).json()["entry"]]
    fresh = [bench.raw("POST", "", json.dumps(bundle(number)[1]).encode())
             for number in range(PATIENTS, PATIENTS + 400)]
    creates = [bench.raw("POST", "Observation", json.dumps(observation(patients[number % PATIENTS], number)).encode())
               for number in range(400)]
    kinds = {
        "reads": ([bench.raw("GET", f"Observation/{id_}") for id_ in observations], 200, 1),
        "name searches": ([bench.raw("GET", f"Patient?name=family{number:05}")
                           for number in range(PATIENTS // 2)], 200, 1),
        "reference+code searches": ([bench.raw("GET", f"Observation?subject=Patient/{patient}&code=8867-4")
                                     for patient in patients], 200, 1),
        "date-sorted searches": ([bench.raw("GET", f"Observation?subject=Patient/{patient}&_sort=-date&_count=20")
                                  for patient in patients], 200, 1),
        "date-sorted, whole store": ([bench.raw("GET", "Observation?_sort=-date&_count=20")], 200, 1),
        "creates": (creates, 201, 1),
        "bundle resources": (fresh, 200, 21),
    }
    for name, (requests, expect, factor) in kinds.items():
        for clients in CLIENTS:
            row(name, clients, bench.load(requests, clients, expect), factor)
    memory = gateway.resident_mb()
    print(f"\nmemory {sum(memory.values())} MB: " + ", ".join(f"{name} {size}" for name, size in memory.items()))
    print("\ncost of each step of a write, microseconds (one small Observation, median)")
    for name, cost in step_costs().items():
        print(f"  {name:<12}{cost:>8.0f}")
    print("\ngas of one anchor transaction, and for each record in it")
    for size, gas in gas_table().items():
        print(f"  {size:>5} records{gas:>10}{gas / size:>12.1f}")
    few = patients[:50]
    grants(bench, few, held(bench, few))
    growth(bench, patients, bundle)
    print("\n" + revocation_table(gateway, patients[-1]))


if __name__ == "__main__":
    main()
