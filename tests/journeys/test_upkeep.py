"""The index is disposable (invariant 7), and what is damaged is found: ``gateway rebuild`` and ``gateway fsck``."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from gateway import app, upkeep_command
from gateway.errors import Misconfigured
from gateway.ledger.closing import Closer
from gateway.ledger.deployment import read_deployment
from gateway.records import reindexing
from gateway.store import index_upkeep
from tests.journeys.hospital import LOINC, Hospital, observation

SEARCHES = (
    "Observation?code=8867-4", "Observation?value-quantity=gt1", "Observation?date=2024-03", "Observation?_sort=-date",
    "Observation?patient.name=anne", "Patient?birthdate=1974", "Patient?_has:Observation:patient:code=8867-4",
    "Patient?name=ann&_revinclude=Observation:patient", "Observation?code-value-quantity=8867-4$1.1",
    "Condition?code:text=asthma", "Patient?identifier=urn:x|1", "Condition?subject:identifier=urn:x|9",
    "Observation?component-code=8480-6", "Medication?code=pill&_contained=true",
    "Patient?death-date=2024", "Location?address-city=Uster")


def _filled(hospital: Hospital) -> None:
    anne = hospital.new_patient(name=[{"family": "Meier", "given": ["Anne"]}], birthDate="1974-12-25",
                                identifier=[{"system": "urn:x", "value": "1"}], deceasedDateTime="2024-05-05")
    ben = hospital.new_patient(name=[{"text": "Ben"}], birthDate="1980")
    for number in range(5):
        hospital.feed.post("Observation", observation(anne, f"1.{number}0", when=f"2024-03-0{number + 1}"))
    pressure = {"resourceType": "Observation", "status": "final", "subject": {"reference": f"Patient/{ben}"},
                "code": {"coding": [{"system": LOINC, "code": "85354-9"}]}, "component": [
                    {"code": {"coding": [{"system": LOINC, "code": "8480-6"}]}, "valueQuantity": {"value": 120}}]}
    changed = hospital.new(pressure)
    hospital.feed.put(f"Observation/{changed}", {**pressure, "id": changed, "status": "amended"})
    hospital.new({"resourceType": "Condition", "code": {"text": "Asthma bronchiale"},
                  "subject": {"reference": f"Patient/{ben}", "identifier": {"system": "urn:x", "value": "9"}}})
    gone = hospital.new({"resourceType": "Location", "address": {"city": "Uster"}})
    hospital.feed.delete(f"Location/{gone}")
    hospital.new({"resourceType": "Location", "address": {"city": "Uster"}})
    hospital.new({"resourceType": "MedicationRequest", "status": "active", "intent": "order",
                  "subject": {"reference": f"Patient/{ben}"}, "medicationReference": {"reference": "#m"},
                  "contained": [{"resourceType": "Medication", "id": "m", "code": {"coding": [{"code": "pill"}]}}]})
    # Of a record two patients share, both must permit: its second home is no index row.
    hospital.new({"resourceType": "Appointment", "status": "proposed", "participant": [
        {"status": "accepted", "actor": {"reference": f"Patient/{one}"}} for one in (anne, ben)]})


def _answers(hospital: Hospital) -> list[Any]:
    found = []
    for search in SEARCHES:
        answer = hospital.feed.get(search)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found.append([search, body.get("total"), [one["fullUrl"] for one in body.get("entry", ())]])
    return found


def _index(hospital: Hospital) -> dict[str, set[Any]]:
    return {table: set(hospital.database.reader.execute(f"SELECT * FROM {table}"))
            for table in index_upkeep.TABLES if table != "index_rows"}


def test_dropped_index_rows_come_back_and_every_search_answers_as_before(
        hospital_with: Callable[..., Hospital], capsys: pytest.CaptureFixture[str]) -> None:
    hospital = hospital_with()
    _filled(hospital)
    before, rows = _answers(hospital), _index(hospital)
    assert sum(total or 0 for _, total, _ in before) > 15
    hospital.database.transact(lambda tx: [tx.execute(f"DELETE FROM {table}") for table in index_upkeep.TABLES])
    assert not any(found for search, _, found in _answers(hospital) if "_sort" not in search)
    assert upkeep_command.rebuild(hospital.settings) == 0
    assert _index(hospital) == rows
    assert _answers(hospital) == before
    assert upkeep_command.fsck(hospital.settings) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_a_rebuild_cut_short_keeps_the_gateway_from_starting_and_goes_on(
        hospital_with: Callable[..., Hospital], monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = hospital_with()
    _filled(hospital)
    before = _answers(hospital)
    monkeypatch.setattr(reindexing, "SLICE", 3)

    def killed(done: int, _: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindexing.rebuild(hospital.node, progress=killed)
    with pytest.raises(Misconfigured, match="gateway rebuild"):
        app.build_node(hospital.settings, hospital.ring, hospital.database)
    seen: list[tuple[int, int]] = []
    found = reindexing.rebuild(hospital.node, progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 6
    assert seen[-1][0] == seen[-1][1] == 6 + found.versions
    assert _answers(hospital) == before
    app.build_node(hospital.settings, hospital.ring, hospital.database)


def test_a_rebuild_is_refused_beside_a_running_gateway(hospital: Hospital) -> None:
    held = os.open(hospital.settings.data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(Misconfigured, match="reindex"):
            upkeep_command.rebuild(hospital.settings)
    finally:
        os.close(held)


DAMAGE = {
    "block": "UPDATE block SET envelope=zeroblob(length(envelope)) WHERE seq=2",
    "journal": "UPDATE version SET superseded=NULL WHERE superseded IS NOT NULL",
    "index": "DELETE FROM index_hash WHERE version=3",
    "audit": "UPDATE audit SET time_ms=time_ms+1 WHERE seq=2",
    "batch": "UPDATE version SET batch=77 WHERE seq=1",
}


@pytest.mark.parametrize("part", DAMAGE)
def test_fsck_finds_each_kind_of_damage_and_tells_no_content(
        hospital_with: Callable[..., Hospital], capsys: pytest.CaptureFixture[str], part: str) -> None:
    hospital = hospital_with()
    _filled(hospital)
    hospital.node.disclosures.settle()
    assert upkeep_command.fsck(hospital.settings) == 0
    hospital.database.transact(lambda tx: tx.execute(DAMAGE[part]))
    capsys.readouterr()
    assert upkeep_command.fsck(hospital.settings) == 1
    told = capsys.readouterr().out
    assert f"WRONG  {part}" in told
    assert not any(text in told for text in ("Meier", "Anne", "Asthma", json.dumps(LOINC)))


def test_a_swapped_block_is_found_and_a_rebuild_says_so(
        hospital_with: Callable[..., Hospital], capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant 3: another version's block under this row is an error, never data."""
    hospital = hospital_with()
    _filled(hospital)
    [(digest, envelope)] = hospital.database.reader.execute("SELECT digest, envelope FROM block WHERE seq=3").fetchall()
    hospital.database.transact(lambda tx: (
        tx.execute("DELETE FROM block WHERE seq=3"),
        tx.execute("UPDATE block SET digest=?, envelope=? WHERE seq=4", (digest, envelope)),
        tx.execute("UPDATE version SET digest=? WHERE seq=4", (digest,))))
    assert upkeep_command.rebuild(hospital.settings) == 1
    assert upkeep_command.fsck(hospital.settings) == 1
    assert "version 4" in capsys.readouterr().out


def test_fsck_opens_every_pushed_batch_and_proves_its_entries(
        hospital_with: Callable[..., Hospital], capsys: pytest.CaptureFixture[str]) -> None:
    hospital = hospital_with()
    _filled(hospital)
    hospital.node.disclosures.settle()
    closer = Closer(database=hospital.database, ring=hospital.ring, blobs=app.open_blobs(
        hospital.settings, hospital.database), custodian=read_deployment(hospital.settings).custodian, interval_s=5,
        batch_max=4096)
    assert closer.close() is not None
    assert upkeep_command.fsck(hospital.settings) == 0
    assert closer.push()
    assert upkeep_command.fsck(hospital.settings) == 0
    assert "1 batches" in capsys.readouterr().out
    hospital.database.transact(lambda tx: tx.execute("UPDATE version SET commitment=zeroblob(32) WHERE seq=2"))
    assert upkeep_command.fsck(hospital.settings) == 1
    told = capsys.readouterr().out
    assert "WRONG  block    version 2" in told
    assert "WRONG  batch    batch 1" in told
    hospital.database.transact(lambda tx: tx.execute("UPDATE batch SET root=zeroblob(32)"))
    assert upkeep_command.fsck(hospital.settings) == 1
    assert "WRONG  batch    batch 1: the sealed block belongs elsewhere" in capsys.readouterr().out


def test_what_was_erased_is_a_hole_and_no_fault(
        hospital_with: Callable[..., Hospital], capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant 9: nothing brings an erased record back into the index."""
    hospital = hospital_with()
    gone, kept = hospital.new_patient(name=[{"family": "Gone"}]), hospital.new_patient(name=[{"family": "Kept"}])
    hospital.feed.post("Observation", observation(gone))
    hospital.ring.destroy(gone)
    assert upkeep_command.rebuild(hospital.settings) == 0
    assert "1 versions indexed, 2 erased ones left out" in capsys.readouterr().out
    assert hospital.feed.get("Patient?family=gone").json()["total"] == 0
    assert hospital.feed.get("Patient?family=kept").json()["entry"][0]["resource"]["id"] == kept
    assert upkeep_command.fsck(hospital.settings) == 0
    assert "3 versions, 2 of them erased" in capsys.readouterr().out
