"""``python -m tests.bench.absence``: whether time tells a hidden record from one that is not there.

Asks for both in turn, in an order drawn at random, and compares the two by Welch's t-test over what lies below the
ninth decile. Not for CI: a busy machine says anything. Exits 1 where the difference is beyond chance and above two per
cent.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.journeys.hospital import Hospital, observation

ROUNDS = 3_000
LEAST_DIFFERENCE = 0.02
CHANCE = 4.5


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        hospital = Hospital(Path(folder), account_requests_per_s="0")
        hidden = hospital.feed.post("Observation", observation(hospital.new_patient())).json()["id"]
        doctor, code = hospital.clinician("clock"), 0
        for shape in ("Observation/{}", "Observation/{}/_history/1", "Observation?_id={}"):
            taken: dict[str, list[float]] = {hidden: [], "0" * len(hidden): []}
            for _ in range(ROUNDS):
                for id_ in random.sample(sorted(taken), 2):
                    began = time.perf_counter()
                    doctor.get(shape.format(id_))
                    taken[id_].append(time.perf_counter() - began)
            low = {id_: sorted(times)[:len(times) * 9 // 10] for id_, times in taken.items()}
            there, absent = low[hidden], low["0" * len(hidden)]
            error = (statistics.variance(there) / len(there) + statistics.variance(absent) / len(absent)) ** 0.5
            apart = statistics.mean(there) - statistics.mean(absent)
            tells = abs(apart) / error > CHANCE and abs(apart) / statistics.mean(absent) > LEAST_DIFFERENCE
            code |= tells
            print(f"{shape:<30} hidden {statistics.mean(there) * 1e6:7.1f} us  absent "
                  f"{statistics.mean(absent) * 1e6:7.1f} us  t {apart / error:6.2f}  {'TELLS' if tells else 'alike'}",
                  flush=True)
        hospital.close()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
