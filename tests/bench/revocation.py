"""Revoke to deny: how long after a revocation was asked for anything may still be read, over both workers, by HTTP.

Each revocation is watched by readers that never pause, each on connections of its own, so that both worker processes
answer. Measured: from sending the revocation to the last byte of its answer; to the last disclosure that *began* before
that answer; and, the promise, how many were disclosed to a request sent after it. Nothing waits for the chain.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.running import Gateway

REVOCATIONS = 200
READERS = 2


@dataclass
class Reader:
    """One clinician reading one patient without a pause; a client anew each 20 reads, so that both workers are met."""

    gateway: Gateway
    token: str
    path: str
    stop: threading.Event
    seen: list[tuple[float, float, int]] = field(default_factory=list)
    """(sent, answered, status)."""

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        while not self.stop.is_set():
            with httpx.Client(base_url=self.gateway.base, headers=headers, timeout=30) as client:
                for _ in range(20):
                    sent = time.perf_counter()
                    status = client.get(self.path).status_code
                    self.seen.append((sent, time.perf_counter(), status))
                    if self.stop.is_set():
                        return


@contextmanager
def reading(gateway: Gateway, token: str, path: str) -> Iterator[list[Reader]]:
    """Readers while inside."""
    stop = threading.Event()
    readers = [Reader(gateway, token, path, stop) for _ in range(READERS)]
    threads = [threading.Thread(target=reader.run, daemon=True) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        yield readers
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def consent_for(patient: str, grantee: str) -> dict[str, Any]:
    """A proposed Consent that permits everything."""
    return {
        "resourceType": "Consent", "status": "proposed",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                              "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/{patient}"}, "policyRule": {"coding": [{
            "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
        "provision": {"type": "permit", "actor": [{
            "role": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType",
                                 "code": "PRCP"}]}, "reference": {"reference": grantee}}]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Milliseconds of each revocation, sorted. ``leaked``: disclosures to requests sent after its answer."""

    answered: list[float]
    last_disclosure: list[float]
    leaked: int
    reads: int


def revoke_to_deny(gateway: Gateway, patient: str, *, revocations: int = REVOCATIONS,
                   all_at_once: bool = False) -> Found:
    """Grant, wait until it is final and read, revoke while reading goes on; again and again."""
    answered, last, leaked, reads = [], [], 0, 0
    own = gateway.client("--user", f"Patient/{patient}", "--ttl", "3600")
    grantee = "Practitioner/bench-revoked"
    token = gateway.token("--user", grantee, "--ttl", "3600")
    doctor = httpx.Client(base_url=gateway.base, timeout=30, headers={"Authorization": f"Bearer {token}"})
    path = f"/Patient/{patient}"
    with own, doctor, reading(gateway, token, path) as readers:
        for _ in range(revocations):
            made = own.post("/Consent", json=consent_for(patient, grantee))
            made.raise_for_status()
            id_ = made.json()["id"]
            own.post(f"/Consent/{id_}/$sign", json={"resourceType": "Parameters"}).raise_for_status()
            end = time.monotonic() + 30
            while doctor.get(path).status_code != 200:
                if time.monotonic() > end:
                    raise RuntimeError("the grant did not become final within 30 s")
                time.sleep(0.01)
            place = f"/Patient/{patient}/$revoke-all" if all_at_once else f"/Consent/{id_}/$revoke"
            started = time.perf_counter()
            own.post(place, json={"resourceType": "Parameters"}).raise_for_status()
            done = time.perf_counter()
            time.sleep(0.05)
            seen = [one for reader in readers for one in list(reader.seen) if one[1] >= started]
            reads += len(seen)
            disclosed = [one for one in seen if one[2] == 200]
            leaked += sum(sent > done for sent, _, _ in disclosed)
            answered.append((done - started) * 1000)
            last.append(max(((answer - started) * 1000 for _, answer, _ in disclosed), default=0.0))
            for reader in readers:
                reader.seen.clear()
    return Found(answered=sorted(answered), last_disclosure=sorted(last), leaked=leaked, reads=reads)


def _at(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))]


def revocation_table(gateway: Gateway, patient: str) -> str:
    """The figures in lines."""
    lines = [f"revoke to deny, {REVOCATIONS} revocations each, {READERS} readers that never pause, "
             f"{os.cpu_count()} cores, ms:"]
    for name, all_at_once in (("$revoke", False), ("$revoke-all", True)):
        found = revoke_to_deny(gateway, patient, all_at_once=all_at_once)
        for what, times in (("answered", found.answered), ("last disclosure", found.last_disclosure)):
            lines.append(f"  {name:<12}{what:<17}p50 {_at(times, 0.5):6.1f}  p99 {_at(times, 0.99):6.1f}  "
                         f"worst {times[-1]:6.1f}")
        lines.append(f"  {name:<12}disclosed to requests sent after the answer: {found.leaked} of {found.reads} reads")
    return "\n".join(lines)


def main() -> None:
    """These figures alone."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        gateway = Gateway(Path(folder), log_level="warning", batch_interval_s="5")
        gateway.start()
        try:
            made = gateway.client().post("/Patient", json={"resourceType": "Patient"})
            made.raise_for_status()
            print(revocation_table(gateway, made.json()["id"]))
        finally:
            gateway.stop()


if __name__ == "__main__":
    main()
