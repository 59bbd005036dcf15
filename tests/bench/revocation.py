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

import httpx

from tests.bench.proposing import proposed
from tests.running import Gateway

REVOCATIONS = 200
READERS = 2


@dataclass
class Reader:
    """One clinician reading ``path`` without a pause; a client anew each 20 reads, so that both workers are met."""

    gateway: Gateway
    token: str
    stop: threading.Event
    path: str = "/metadata"
    seen: list[tuple[str, float, float, int]] = field(default_factory=list)
    """(path, sent, answered, status)."""

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        while not self.stop.is_set():
            with httpx.Client(base_url=self.gateway.base, headers=headers, timeout=30) as client:
                for _ in range(20):
                    path, sent = self.path, time.perf_counter()
                    status = client.get(path).status_code
                    self.seen.append((path, sent, time.perf_counter(), status))
                    if self.stop.is_set():
                        return


@contextmanager
def reading(gateway: Gateway, token: str) -> Iterator[list[Reader]]:
    """Readers while inside."""
    stop = threading.Event()
    readers = [Reader(gateway, token, stop) for _ in range(READERS)]
    threads = [threading.Thread(target=reader.run, daemon=True) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        yield readers
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Milliseconds of each revocation, sorted. ``leaked``: disclosures to requests sent after its answer."""

    answered: list[float]
    last_disclosure: list[float]
    leaked: int
    reads: int


def revoke_to_deny(gateway: Gateway, patient: str, *, revocations: int = REVOCATIONS) -> Found:
    """Grant records one by one, wait until all is final, then revoke each while it is read."""
    answered, last, leaked, reads = [], [], 0, 0
    grantee = "Practitioner/bench-revoked"
    token = gateway.token("--user", grantee, "--ttl", "3600")
    with gateway.client("--ttl", "3600") as feed, gateway.client(
            "--user", f"Patient/{patient}", "--ttl", "3600") as own, httpx.Client(
            base_url=gateway.base, timeout=30, headers={"Authorization": f"Bearer {token}"}) as doctor:
        granted = [_granted(feed, own, patient, grantee) for _ in range(revocations)]
        end = time.monotonic() + 120 + 2 * revocations  # the embedded chain makes one block a second
        while any(doctor.get(path).status_code != 200 for path, _ in granted[::-1][:5]) or (
                doctor.get(granted[0][0]).status_code != 200):
            if time.monotonic() > end:
                raise RuntimeError("the grants did not become final")
            time.sleep(1)
        with reading(gateway, token) as readers:
            for path, consent in granted:
                for reader in readers:
                    reader.seen.clear()
                    reader.path = path
                end = time.monotonic() + 30
                while not all(any(one[0] == path and one[3] == 200 for one in list(reader.seen)) for reader in readers):
                    if time.monotonic() > end:
                        raise RuntimeError("a granted record cannot be read")
                    time.sleep(0.002)
                started = time.perf_counter()
                own.post(f"{consent}/$revoke", json={"resourceType": "Parameters"}).raise_for_status()
                done = time.perf_counter()
                time.sleep(0.05)
                seen = [one for reader in readers for one in list(reader.seen) if one[0] == path and one[2] >= started]
                disclosed = [one for one in seen if one[3] == 200]
                reads += len(seen)
                leaked += sum(sent > done for _, sent, _, _ in disclosed)
                answered.append((done - started) * 1000)
                last.append(max(((answer - started) * 1000 for _, _, answer, _ in disclosed), default=0.0))
    return Found(answered=sorted(answered), last_disclosure=sorted(last), leaked=leaked, reads=reads)


def _granted(feed: httpx.Client, own: httpx.Client, patient: str, grantee: str) -> tuple[str, str]:
    """The paths of a record and of the signed Consent for it."""
    path, consent = proposed(feed, own, patient, grantee)
    own.post(f"{consent}/$sign", json={"resourceType": "Parameters"}).raise_for_status()
    return path, consent


def _at(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))]


def revocation_table(gateway: Gateway, patient: str) -> str:
    """The figures in lines."""
    found = revoke_to_deny(gateway, patient)
    lines = [f"revoke to deny, {REVOCATIONS} revocations, {READERS} readers that never pause, {os.cpu_count()} cores, "
             "ms:"]
    lines += [f"  {what:<17}p50 {_at(times, 0.5):6.1f}  p99 {_at(times, 0.99):6.1f}  worst {times[-1]:6.1f}"
              for what, times in (("answered", found.answered), ("last disclosure", found.last_disclosure))]
    lines.append(f"  disclosed to requests sent after the answer: {found.leaked} of {found.reads} reads")
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
