"""A hospital on a real chain: the gateway's own processes, an Ethereum node, the people, and what the chain says.

Owns asking both sides of one deployment, so that a test compares what the gateway tells with what the node holds;
refuses to look into the gateway's files.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account
from eth_account.messages import encode_typed_data

from gateway.ledger.address import address
from gateway.ledger.chain import Contracts
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode
from gateway.ledger.events import Anchored, Event
from tests.consent import TREATMENT, permitting
from tests.real.chain_nodes import OPERATOR, Node
from tests.running import Gateway

DOCTOR = "Practitioner/dr-real"


def operator_key(folder: Path) -> Path:
    """A file with the funded operator's key."""
    file = folder / "operator.key"
    file.touch(mode=0o600)
    file.write_text(OPERATOR.hex())
    return file


def within(seconds: float, question: str, ask: Callable[[], object]) -> None:
    """Wait until ``ask`` says yes."""
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {question}"
        time.sleep(0.1)


class Site:
    """One gateway, its node, and its own feed's client."""

    def __init__(self, gateway: Gateway, node: Node) -> None:
        self.gateway = gateway
        self.node = node
        self.feed = gateway.client("--ttl", "7200")
        gateway.run("user", "add", "--user", DOCTOR, "--role", "clinician", "--name", "Dr Real")
        self.doctor = gateway.client("--user", DOCTOR, "--ttl", "7200")

    # -- people and records -------------------------------------------------------------------------------------------

    def patient(self, **elements: Any) -> str:
        """A new patient's logical id."""
        answer = self.feed.post("/Patient", json={"resourceType": "Patient", **elements})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def own(self, patient: str) -> httpx.Client:
        """The patient's own session."""
        return self.gateway.client("--user", f"Patient/{patient}", "--ttl", "7200")

    def observe(self, patient: str) -> str:
        """A new Observation's version URL, relative to the base."""
        answer = self.feed.post("/Observation", json=observation(patient))
        assert answer.status_code == 201, answer.text
        return f"/Observation/{answer.json()['id']}/_history/1"

    @contextmanager
    def busy(self, patient: str) -> Iterator[list[str]]:
        """While inside, Observations are written without a pause; the list grows by the version URL of each."""
        written: list[str] = []
        failed: list[str] = []
        stop = threading.Event()

        def write() -> None:
            with httpx.Client(base_url=self.gateway.base, headers=self.feed.headers, timeout=60) as client:
                while not stop.wait(0.02):
                    answer = client.post("/Observation", json=observation(patient))
                    if answer.status_code != 201:
                        failed.append(answer.text)
                        return
                    written.append(f"/Observation/{answer.json()['id']}/_history/1")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield written
        finally:
            stop.set()
            writer.join()
        assert not failed, failed
        assert written

    # -- consent ------------------------------------------------------------------------------------------------------

    def propose(self, own: httpx.Client, patient: str) -> str:
        answer = own.post("/Consent", json=permitting(patient, DOCTOR, purpose=[TREATMENT]))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def active(self, own: httpx.Client, consent_id: str, seconds: float = 30) -> None:
        within(seconds, "the Consent is active",
               lambda: own.get(f"/Consent/{consent_id}").json()["status"] == "active")

    def doctor_sees(self, patient: str) -> bool:
        answer = self.doctor.get(f"/Patient/{patient}")
        assert answer.status_code in (200, 404), answer.text
        return answer.status_code == 200

    # -- anchoring ----------------------------------------------------------------------------------------------------

    def entries(self) -> dict[str, Any]:
        found: dict[str, Any] = self.gateway.status()["entries"]
        return found

    def settled(self, seconds: float = 60) -> None:
        """Wait until everything written is in a final block."""
        within(seconds, "nothing is pending", lambda: self.entries()["pending"] == 0)

    def receipt(self, version: str, seconds: float = 60) -> bytes:
        """The receipt's document once it is there: 202 before that."""
        deadline = time.monotonic() + seconds
        while (answer := self.feed.get(f"{version}/$receipt")).status_code == 202:
            assert time.monotonic() < deadline, f"no receipt of {version} within {seconds:.0f} s"
            time.sleep(0.2)
        assert answer.status_code == 200, answer.text
        return answer.content

    def verified(self, receipt: bytes, version: str, folder: Path, *, alter: bool = False) -> int:
        """Exit code of ``gateway verify`` with the resource and the node; ``alter``: one byte of the resource."""
        content = self.feed.get(version).content
        if alter:
            content = content.replace(b'"status":"final"', b'"status":"amended"')
        (folder / "receipt.json").write_bytes(receipt)
        (folder / "version.json").write_bytes(content)
        done = self.gateway.run("verify", str(folder / "receipt.json"), "--resource", str(folder / "version.json"),
                                "--rpc", self.node.rpc, check=False)
        return done.returncode

    # -- what the node holds ------------------------------------------------------------------------------------------

    def chain(self) -> EthereumChain:
        told = self.gateway.status()["chain"]
        contracts = told["contracts"]
        return EthereumChain(
            EthereumNode(self.node.rpc, chain_id=told["chain_id"], private_key=OPERATOR),
            Contracts(record_anchor=address(contracts["RecordAnchor"]),
                      consent_registry=address(contracts["ConsentRegistry"]),
                      hospital_registry=address(contracts["HospitalRegistry"])))

    def events(self) -> tuple[Event, ...]:
        chain = self.chain()
        try:
            return chain.logs(0, chain.head().number)
        finally:
            chain.close()

    def anchored_once(self, seconds: float = 60) -> int:
        """Assert that the chain holds every closed Batch once, in one history, and nothing else; how many.

        Each look at the gateway is audited and soon anchored itself: the count is taken where nothing moved.
        """
        deadline = time.monotonic() + seconds
        while True:
            before, anchored = self.entries(), self._anchored()
            if before["pending"] == 0 and before == self.entries():
                break
            assert time.monotonic() < deadline, f"not settled within {seconds:.0f} s: {before}"
            time.sleep(0.5)
        assert set(before["batches"]) == {"final"}, before
        assert len({event.manifest_digest for event in anchored}) == len(anchored) == before["batches"]["final"]
        assert [event.previous_head for event in anchored] == [bytes(32), *(event.head for event in anchored)][:-1]
        return len(anchored)

    def _anchored(self) -> list[Anchored]:
        return [event for event in self.events() if isinstance(event, Anchored)]


def wallet_signature(key: bytes, typed_data: bytes) -> str:
    """What a wallet answers to eth_signTypedData_v4 with this JSON."""
    signed = Account.sign_message(encode_typed_data(full_message=json.loads(typed_data)), key)
    return "0x" + bytes(signed.signature).hex()


def parameters(**values: str) -> dict[str, Any]:
    return {"resourceType": "Parameters",
            "parameter": [{"name": name, "valueString": value} for name, value in values.items()]}


def observation(patient: str) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "subject": {"reference": f"Patient/{patient}"},
            "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
            "effectiveDateTime": "2024-03-01",
            "valueQuantity": {"value": 72, "unit": "bpm", "system": "http://unitsofmeasure.org", "code": "/min"}}
