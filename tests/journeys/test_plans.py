"""What a request names it looks up: no statement walks all of a type for it (an indexed search does not grow)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apsw
import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from gateway.smart import sign_in
from tests.consent import consent
from tests.journeys.hospital import Hospital
from tests.journeys.test_consents import signed

STORED = "SELECT 1 FROM version WHERE type=? LIMIT 1"
"""Whether anything of a type was ever stored: the first row tells."""
WALKS = ("USING INDEX version_type", "USING COVERING INDEX version_type", "SCAN version", "SCAN v ", "SCAN index_")


class Statements:
    """Every question that a connection made since was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def hook(self, connection: apsw.Connection) -> None:
        if connection.filename.endswith("gateway.db"):  # not the embedded chain's, nor the keys'
            connection.exec_trace = self._note

    def _note(self, _: object, sql: str, values: Any) -> bool:
        if sql.startswith(("SELECT", "WITH")) and "sqlite_" not in sql and sql != STORED:
            self.asked[sql] = values
        return True

    def walks(self, connection: apsw.Connection, walks: Sequence[str] = WALKS) -> dict[str, list[str]]:
        """The questions SQLite answers by walking a type or a table, with its steps."""
        connection.exec_trace = None
        plans = {sql: [str(row[3]) for row in connection.execute("EXPLAIN QUERY PLAN " + sql, values)]
                 for sql, values in self.asked.items()}
        return {sql: steps for sql, steps in plans.items() if any(walk in step for step in steps for walk in walks)}


@pytest.fixture(scope="module")
def statements() -> Iterator[Statements]:
    made = Statements()
    apsw.connection_hooks.append(made.hook)
    yield made
    apsw.connection_hooks.remove(made.hook)


@pytest.fixture(scope="module")
def place(statements: Statements, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hospital, list[str]]]:
    """A gateway and ids that stand in it: two Patients, a List, an Observation, a Location within another, another."""
    hospital = Hospital(tmp_path_factory.mktemp("plans"))
    patients = [hospital.new_patient(name=[{"family": f"Walker{number}"}]) for number in range(20)]
    seen = [hospital.new({"resourceType": "Observation", "status": "final", "subject": {"reference": f"Patient/{one}"},
                          "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}}) for one in patients]
    listed = hospital.new({"resourceType": "List", "status": "current", "mode": "working",
                           "entry": [{"item": {"reference": f"Observation/{seen[0]}"}}]})
    where = [hospital.new({"resourceType": "Location", "name": "Top"})]
    for _ in range(3):
        where.append(hospital.new({"resourceType": "Location", "partOf": {"reference": f"Location/{where[-1]}"}}))
    for number, one in enumerate(patients):
        hospital.new({"resourceType": "MedicationRequest", "status": "active", "intent": "order",
                      "subject": {"reference": f"Patient/{one}"}, "medicationReference": {"reference": "#m"},
                      "contained": [{"resourceType": "Medication", "id": "m", "code": {"text": "pill"},
                                     "status": "active", "ingredient": [{
                                         "itemCodeableConcept": {"coding": [{"code": f"i{number}"}]}}]}]})
        hospital.new({"resourceType": "MolecularSequence", "coordinateSystem": 1, "referenceSeq": {
            "referenceSeqId": {"coding": [{"code": f"NC{number}"}]}, "windowStart": 1, "windowEnd": 9}})
        hospital.new({"resourceType": "QuestionnaireResponse", "status": "completed",
                      "questionnaire": f"http://w.example/q{number}|1.2"})
    yield hospital, [*patients[:2], listed, seen[0], where[-1], where[0]]
    hospital.close()


@pytest.mark.parametrize("asked", [
    "Patient/{0}", "Patient/{0}/_history", "Patient?_id={0}", "Patient?_id={0},{1}", "Patient?_id={0}&_sort=_id",
    "Patient?_id={0}&_revinclude=Observation:subject", "Patient/{0}/$everything", "?_type=Patient&_id={0}",
    "Observation?subject=Patient/{0}&_include=Observation:subject", "Observation?_list={2}",
    "Observation?subject=Patient/{0}&code=8867-4&_sort=-date", "Observation?subject:Patient._id={0}",
    "Patient?_has:Observation:subject:_id={3}", "Patient/{0}/Observation?code=8867-4", "Patient/{0}/Observation",
    pytest.param("Observation?subject=Patient/{0}&code=" + ",".join(map(str, range(300))), id="three hundred codes"),
    pytest.param("Observation?code=" + ",".join(map(str, range(300))), id="three hundred codes alone"),
    "Location?partof:below={5}", "Location?partof:above={4}", "Encounter?location:below=Location/{5}",
    "QuestionnaireResponse?questionnaire:below=http://w.example/q1|1",
    "MolecularSequence?referenceseqid-window-coordinate=NC3$ge1$le9",
    "Observation?_filter=subject:Patient[_id eq {0}].family sw walker",
    "Medication?ingredient-code=i7&_contained=true", "Medication?ingredient-code=i7&status=active&_contained=both",
    "Medication?ingredient-code=i7&status=active&_contained=true&_containedType=contained&_total=accurate&_count=1",
    "Medication?ingredient-code=i7&_contained=true&_sort=_id", "Medication?_id=m&ingredient-code=i7&_contained=true"])
def test_what_is_named_is_looked_up(asked: str, statements: Statements, place: tuple[Hospital, list[str]]) -> None:
    hospital, ids = place
    statements.asked.clear()
    answer = hospital.feed.get(asked.format(*ids))
    assert answer.status_code == 200, answer.text
    assert statements.asked
    assert not statements.walks(hospital.database.reader)


def test_signing_walks_neither_what_others_signed_nor_their_accounts(statements: Statements,
                                                                     place: tuple[Hospital, list[str]]) -> None:
    hospital, (patient, *_) = place
    own, smart, key = hospital.patient(patient), hospital.smart, Account.create()
    statements.asked.clear()
    id_ = own.post("Consent", consent(patient, "Practitioner/1")).json()["id"]
    assert own.get(f"Consent/{id_}/$typed-data").status_code == 200
    assert signed(own, id_).status_code == 200
    assert own.request("POST", f"Patient/{patient}/$revoke-all").status_code == 200
    text = sign_in.begin_wallet(smart, "wallet-use", key.address, chain_id=1, bound="visit")
    proof = key.sign_message(encode_defunct(text=text)).signature.to_0x_hex()
    assert sign_in.by_wallet(smart, text, proof, chain_id=1, browser=sign_in.Browser(
        visit="visit", cookie=None, known_device="", address=None, device="")) is None
    assert any("intent" in sql for sql in statements.asked)
    found = statements.walks(hospital.database.reader, ("USING INDEX intent_open", "SCAN account", "SCAN provision"))
    assert not {sql: steps for sql, steps in found.items() if "LIMIT 1" not in sql}
