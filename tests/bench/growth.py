"""The facade's searches and operations in a small store and in one of 50,000 resources and more: what grows shows."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.running import REPOSITORY

if TYPE_CHECKING:
    from tests.bench.__main__ import Bench

LARGE = 50_000
CLIENTS, SECONDS = 8, 3.0
SYNTHEA = REPOSITORY / "tests" / "fixtures" / "demo"


def growth(bench: Bench, patients: list[str], bundle: Callable[[int], tuple[str, dict[str, Any]]]) -> None:
    """Measure, fill the store to ``LARGE`` resources, measure the same again; prints one row for each kind."""
    small, before = resources(bench), rates(bench, patients)
    number = 100_000
    fill = [bench.raw("POST", "", json.dumps(bundle(place)[1]).encode())
            for place in range(number, number + max(0, LARGE - small) // 21 + 1)]
    filled = bench.load(fill, CLIENTS, seconds=600, once=True)
    large, after = resources(bench), rates(bench, patients)
    print(f"\n8 clients, per second, p50 ms{'':<12}{small:>10,} resources{large:>14,} resources   ratio"
          f"   (filled at {filled['per_s'] * 21:.0f}/s)")
    for name, found in before.items():
        ratio = after[name]["per_s"] / found["per_s"] if found["per_s"] else 0
        wrong = found["wrong"] or after[name]["wrong"]
        print(f"{name:<32}{found['per_s']:>10.0f}{found['p50_ms']:>8.1f}{after[name]['per_s']:>15.0f}"
              f"{after[name]['p50_ms']:>8.1f}{ratio:>11.2f}{f'  WRONG {wrong}' if wrong else ''}", flush=True)
    synthea(bench)
    export(bench, large)


def resources(bench: Bench) -> int:
    """How many Observations and Patients are stored."""
    with bench.gateway.client("--ttl", "7200") as http:
        return sum(int(http.get(f"/{type_}", params={"_summary": "count"}).json()["total"])
                   for type_ in ("Patient", "Observation"))


def rates(bench: Bench, patients: list[str]) -> dict[str, dict[str, Any]]:
    """Each kind of question for a few seconds."""
    names = [f"family{number:05}" for number in range(len(patients) // 2)]
    kinds = {
        "read": [f"Patient/{one}" for one in patients],
        "name": [f"Patient?name={one}" for one in names],
        "chained": [f"Observation?subject:Patient.name={one}&_count=10" for one in names],
        "_has": [f"Patient?_has:Observation:subject:code=8867-4&name={one}" for one in names],
        "_include": [f"Observation?subject=Patient/{one}&code=8867-4&_include=Observation:subject" for one in patients],
        "_revinclude": [f"Patient?_id={one}&_revinclude=Observation:subject" for one in patients],
        "_sort by date and id": [f"Observation?subject=Patient/{one}&_sort=-date,_id&_count=10" for one in patients],
        "Patient/[id]/Observation": [f"Patient/{one}/Observation?code=8867-4" for one in patients],
        "$everything (21 resources)": [f"Patient/{one}/$everything" for one in patients],
    }
    return {name: bench.load([bench.raw("GET", path) for path in paths], CLIENTS, seconds=SECONDS)
            for name, paths in kinds.items()}


def synthea(bench: Bench) -> None:
    """Whole transaction Bundles of Synthea, one after the other."""
    found = []
    for path in sorted(SYNTHEA.glob("*.json.gz")):
        bundle = json.loads(gzip.decompress(path.read_bytes()))
        if bundle.get("type") == "transaction":
            found.append((len(bundle["entry"]), json.dumps(bundle).encode()))
    with bench.gateway.client("--ttl", "7200") as http:
        for size, body in found:
            started = time.perf_counter()
            http.post("/", content=body).raise_for_status()
            took = time.perf_counter() - started
            print(f"Synthea transaction of {size} entries: {took * 1000:.0f} ms, {size / took:.0f} resources/s")


def export(bench: Bench, expected: int) -> None:
    """A system ``$export`` from the asking to the last byte."""
    with bench.gateway.client("--ttl", "7200") as http:
        started = time.perf_counter()
        asked = http.get("/$export", params={"_type": "Patient,Observation"}, headers={"Prefer": "respond-async"})
        asked.raise_for_status()
        place = asked.headers["content-location"]
        while (answer := http.get(place)).status_code == 202:
            if time.perf_counter() - started > 300:
                raise RuntimeError("the export did not end within 300 s")
            time.sleep(0.2)
        made = time.perf_counter() - started
        lines = sum(http.get(one["url"]).text.count("\n") for one in answer.json()["output"])
        took = time.perf_counter() - started
    print(f"$export of {lines} resources (of {expected}): made in {made:.1f} s, delivered in {took:.1f} s, "
          f"{lines / took:.0f} resources/s")
