"""An import beside a running gateway, killed with SIGKILL over and over: nothing lost, nothing doubled (line 9)."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from gateway.app import open_database, open_ring
from gateway.config import load_settings
from tests.running import REPOSITORY, Gateway

LINES = 1_500
BUNDLES = 20
BUNDLE_SIZE = 60


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    running = Gateway(tmp_path / "gateway")
    running.start()
    yield running
    running.stop()


def observation(number: int) -> dict[str, Any]:
    """Without an id: brought in twice, it would be there twice."""
    return {"resourceType": "Observation", "status": "final", "code": {"text": "pulse"},
            "identifier": [{"system": "urn:test", "value": str(number)}], "subject": {"reference": "Patient/imported"}}


def encounters(name: str) -> dict[str, Any]:
    link = "urn:uuid:6f1ac2d5-2f3b-4c52-9d6e-0c1b6f4b7a10"
    return {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"fullUrl": link, "resource": {"resourceType": "Patient", "identifier": [{"value": name}]},
         "request": {"method": "POST", "url": "Patient"}},
        *({"resource": {"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"},
                        "subject": {"reference": link}}, "request": {"method": "POST", "url": "Encounter"}}
          for _ in range(BUNDLE_SIZE))]}


def files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "0-patient.json").write_text(json.dumps({"resourceType": "Patient", "id": "imported"}))
    lines = "\n".join(json.dumps(observation(number)) for number in range(LINES))
    (folder / "1-lines.ndjson.gz").write_bytes(gzip.compress(lines.encode()))
    for number in range(BUNDLES):
        (folder / f"2-bundle-{number:02}.json").write_text(json.dumps(encounters(f"bundle {number}")))
    return folder


class Inside:
    """The data folder as a test looks at it."""

    def __init__(self, gateway: Gateway) -> None:
        settings = load_settings({"GATEWAY_DATA_DIR": str(gateway.data)})
        self._ring = open_ring(settings)
        self._database = open_database(settings, self._ring)

    def number(self, sql: str, *values: apsw.SQLiteValue) -> int:
        return int(str(self._database.reader.execute(sql, values).get))

    def marks(self) -> int:
        return self.number("SELECT count(*) FROM import_file")

    def stored(self, type_: str) -> int:
        return self.number("SELECT count(*) FROM version WHERE type=?", type_)

    def close(self) -> None:
        self._database.close()
        self._ring.close()


def killed_import(gateway: Gateway, folder: Path, inside: Inside, goal: int) -> int:
    """Import until ``goal`` marks are there, then kill -9; its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "gateway.cli", "import", str(folder)], cwd=REPOSITORY,
                               env=gateway._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while process.poll() is None and inside.marks() < goal and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()
    return process.wait(30)


def test_an_import_killed_half_way_neither_loses_nor_doubles_anything(gateway: Gateway, tmp_path: Path) -> None:
    folder, inside = files(tmp_path / "files"), Inside(gateway)
    try:
        goals = (1, 400, 900, 1 + LINES + 2)  # in the first group, among the lines, among the bundles
        assert [killed_import(gateway, folder, inside, goal) for goal in goals] == [-9, -9, -9, -9]
        assert 0 < inside.marks() < 1 + LINES + BUNDLES
        assert inside.stored("Observation") <= LINES
        assert inside.stored("Encounter") % BUNDLE_SIZE == 0  # never half a bundle
        done = gateway.run("import", str(folder), "--report", str(tmp_path / "report"))
        assert "there already" in done.stdout
        assert (inside.stored("Observation"), inside.stored("Encounter")) == (LINES, BUNDLES * BUNDLE_SIZE)
        assert inside.stored("Patient") == 1 + BUNDLES
        assert inside.marks() == 1 + LINES + BUNDLES
        summary = json.loads((tmp_path / "report").read_text().splitlines()[-1])
        assert (summary["complete"], summary["refused"]) == (True, 0)
        feed = gateway.client()
        for number in (0, 99, 100, 777, LINES - 1):
            found = feed.get(f"/Observation?identifier=urn:test|{number}").json()
            assert len(found["entry"]) == 1
    finally:
        inside.close()


def test_an_import_goes_on_without_a_gateway_and_is_there_when_it_starts(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text("\n".join(json.dumps(value) for value in (
        {"resourceType": "Patient", "id": "imported"}, observation(1), {**observation(2), "status": "nonsense"})))
    gateway.kill()
    done = gateway.run("import", str(tmp_path / "a.ndjson"), check=False)
    assert done.returncode == 1
    assert "a.ndjson:3" in done.stdout
    assert "Observation.status" in done.stdout
    gateway.start()
    assert gateway.client().get("/Observation?subject=Patient/imported&_summary=count").json()["total"] == 1


def test_what_imported_records_refer_to_in_vain_is_told_at_the_end(gateway: Gateway, tmp_path: Path) -> None:
    """Files come in any order: a reference that a later one answers is none of it."""
    encounter = {"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"},
                 "subject": {"reference": "Patient/imported"}, "participant": [{"individual": {
                     "reference": "Practitioner/nobody"}}]}
    (tmp_path / "a.ndjson").write_text(json.dumps(encounter))
    (tmp_path / "b.ndjson").write_text(json.dumps({"resourceType": "Patient", "id": "imported"}))
    done = gateway.run("import", str(tmp_path / "a.ndjson"), str(tmp_path / "b.ndjson"))
    assert "1 resources that are not here (Practitioner 1)" in done.stdout
