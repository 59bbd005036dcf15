"""An AuditEvent's receipt, saved as it is handed out, is checked by ``gateway verify`` and the chain. Invariant 8."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.smart.accounts import add_user
from tests.journeys.chained import ChainedHospital, EmbeddedChain


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedChain]:
    made = EmbeddedChain(tmp_path_factory.mktemp("chain"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def hospital(embedded: EmbeddedChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainedHospital]:
    made = ChainedHospital(tmp_path_factory.mktemp("hospital") / "data", embedded)
    made.settle()
    yield made
    made.close()


class Auditor:
    """Saves documents and has ``gateway verify`` check them."""

    def __init__(self, folder: Path, embedded: EmbeddedChain, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "receipt.json"
        self.embedded = embedded
        self.capsys = capsys

    def verify(self, document: bytes, *options: str) -> tuple[int, str]:
        """Exit code and last line."""
        self.file.write_bytes(document)
        trusted = (("--" + name, str(self.embedded.deployment[of])) for name, of in (
            ("contract", "record_anchor"), ("custodian", "custodian")))
        code = main(["verify", str(self.file), "--rpc", self.embedded.rpc, *sum(trusted, ()), *options])
        return code, self.capsys.readouterr().out.splitlines()[-1]


@pytest.fixture
def auditor(tmp_path: Path, embedded: EmbeddedChain, capsys: pytest.CaptureFixture[str]) -> Auditor:
    return Auditor(tmp_path, embedded, capsys)


def changed(document: bytes, **members: Any) -> bytes:
    return json.dumps({**json.loads(document), **members}).encode()


def test_an_auditor_verifies_a_row_as_it_was_handed_out_and_nothing_else_in_its_place(
        hospital: ChainedHospital, auditor: Auditor, tmp_path: Path) -> None:
    add_user(hospital.smart, fhir_user="Practitioner/officer", role="privacy-officer", name="Officer")
    officer = hospital.client(user="Practitioner/officer", purpose="HOPERAT")
    patient = hospital.new_patient()
    own = hospital.patient(patient)
    hospital.feed.get(f"Patient/{patient}")
    early = own.ids(f"AuditEvent?patient={patient}")
    assert own.get(f"AuditEvent/{early[0]}/$receipt").status_code == 202
    hospital.anchor()
    hospital.feed.get(f"Patient/{patient}")
    late = own.ids(f"AuditEvent?patient={patient}")[0]
    hospital.anchor()

    def receipt(id_: str) -> bytes:
        answer = officer.get(f"AuditEvent/{id_}/$receipt")
        assert answer.status_code == 200, answer.text
        return answer.content

    first, second, other = receipt(early[0]), receipt(early[1]), receipt(late)
    for document in (first, second, other):
        assert auditor.verify(document) == (0, "VERIFIED: this audit row was anchored, and its block is final")
    asked = own.get(f"AuditEvent/{early[0]}/$receipt").content
    code, told = auditor.verify(asked)
    assert (code, "run" in json.loads(asked)) == (2, False)
    assert told.startswith("CONSISTENT, NOT TRUSTED YET: no run in the receipt")

    run = bytearray(base64.b64decode(json.loads(first)["run"]))
    run[-40] ^= 1
    tampered = changed(first, run=base64.b64encode(run).decode())
    assert auditor.verify(tampered) == (1, "FALSE: step 2 (content): the run is not the one that was anchored")
    stranger = changed(first, resource=json.loads(other)["resource"], row=json.loads(other)["row"])
    code, told = auditor.verify(stranger)
    assert (code, told.startswith("FALSE: step 2 (content): the run holds rows 1 to ")) == (1, True)
    swapped = changed(first, row={**json.loads(first)["row"], "hash": json.loads(second)["row"]["hash"]})
    code, told = auditor.verify(swapped)
    assert (code, told.endswith("of the run has another hash than the receipt names")) == (1, True)
    assert auditor.verify(changed(first, batch=json.loads(other)["batch"]))[0] == 1

    event = tmp_path / "event.json"
    event.write_bytes(officer.get(f"AuditEvent/{early[0]}").content)
    code, told = auditor.verify(first, "--resource", str(event))
    assert (code, told.endswith("so give no --resource")) == (1, True)
