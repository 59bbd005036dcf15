"""One gateway in this process, spoken to over ASGI: everything a request passes, without sockets or a chain.

Owns the folder, the tokens and the provisions a test wants; refuses nothing. The FHIR door, sealing, SQL and audit
are the real ones; anchoring is not there (its loops run in a process of their own).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from gateway.access.provision import Provision
from gateway.app import build_app, build_node, build_smart, open_database, open_ring
from gateway.audit import first_broken_link, rows_of_all, rows_of_patient
from gateway.config import load_settings
from gateway.smart.minting import mint_token
from gateway.store import journal, provisions

T = TypeVar("T")
JSON = "application/fhir+json"
FOREVER_MS = 2**53
LOINC, UCUM = "http://loinc.org", "http://unitsofmeasure.org"


class Hospital:
    """A gateway under ``folder``; requests run to their end on a loop of its own."""

    def __init__(self, folder: Path, *, deployment: Mapping[str, object] | None = None, **settings: str) -> None:
        self.settings = load_settings({"GATEWAY_DATA_DIR": str(folder), "GATEWAY_LOG_LEVEL": "debug", **{
            f"GATEWAY_{name.upper()}": value for name, value in settings.items()}})
        self.settings.deployment_path.parent.mkdir(parents=True)
        deployed = deployment or {
            "chain_id": 77, "custodian": "0x" + "11" * 20, "record_anchor": "0x" + "22" * 20,
            "consent_registry": "0x" + "33" * 20, "hospital_registry": "0x" + "44" * 20}
        self.settings.deployment_path.write_text(json.dumps(deployed))
        self.loop = asyncio.new_event_loop()
        self.app = build_app(self.settings)
        self.ring = open_ring(self.settings)
        self.database = open_database(self.settings, self.ring)
        self.node = build_node(self.settings, self.ring, self.database)
        self.smart = build_smart(self.settings, self.ring, self.database, self.node.definitions,
                                 str(deployed["custodian"]))
        self.base = self.settings.base_url
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url=self.base, timeout=60)
        self.chain_fresh(True)
        self.feed = self.client()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def together(self, *requests: Coroutine[Any, Any, httpx.Response]) -> list[httpx.Response]:
        """Send many requests at the same time."""
        async def all_of_them() -> list[httpx.Response]:
            return list(await asyncio.gather(*requests))

        return self.run(all_of_them())

    def token(self, **minted: Any) -> str:
        secret, _ = mint_token(self.smart, **minted)
        return str(secret)

    def client(self, **minted: Any) -> Client:
        """A client with a fresh token; without ``user`` it is the hospital's own feed."""
        return Client(self, self.token(**minted))

    def clinician(self, id_: str = "dr-1", **minted: Any) -> Client:
        return self.client(user=f"Practitioner/{id_}", **minted)

    def patient(self, id_: str, **minted: Any) -> Client:
        return self.client(user=f"Patient/{id_}", **minted)

    def grant(self, patient: str, grantee: str, *, permit: bool = True, **terms: Any) -> str:
        """A final provision of ``patient`` (a logical id) for ``grantee``; the Consent's name to revoke it by."""
        name = f"consent-{self.database.reader.execute('SELECT count(*) FROM provision').get}"
        made = Provision(id=f"{name}/0", patient=f"Patient/{patient}", grantee=grantee, permit=permit, state="final",
                         **({} if permit else {"confidentiality": 0}), **terms)
        self.database.transact(lambda tx: provisions.put(
            tx, made, consent=name, address=None, grantee_hash=self.node.index.grantee,
            category_hash=self.node.index.category))
        return name

    def revoke(self, consent: str) -> None:
        self.database.transact(lambda tx: provisions.set_state_of_consent(
            tx, consent, "revoked", only=("pending", "final")))

    def chain_fresh(self, fresh: bool) -> None:
        self.database.transact(lambda tx: tx.execute("INSERT OR REPLACE INTO setting VALUES (?,?)", (
            "chain_fresh_until_ms", FOREVER_MS if fresh else 0)))

    def new_patient(self, **elements: Any) -> str:
        """A patient the feed wrote; their logical id."""
        answer = self.feed.post("Patient", {"resourceType": "Patient", **elements})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def new(self, resource: Mapping[str, Any]) -> str:
        """A resource the feed wrote; its logical id."""
        answer = self.feed.post(str(resource["resourceType"]), resource)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def stored(self) -> tuple[int, ...]:
        """How much is stored: versions, blocks, index rows, provisions, on-chain intents, patients, key store."""
        reader = self.database.reader
        return tuple(int(str(reader.execute(f"SELECT count(*) FROM {table}").get)) for table in (
            "version", "block", "index_hash", "index_date", "index_number", "provision", "intent", "batch"))

    def audited(self, patient: str | None = None, limit: int = 200) -> list[Any]:
        """The newest ``limit`` audit entries, newest first: of one patient, or of all."""
        self.node.disclosures.settle()
        reader, every = self.database.reader, 2**62
        if patient is None:
            rows = rows_of_all(reader, below=every, limit=every)
        else:
            rows = rows_of_patient(reader, journal.patient_pk(reader, patient) or -1, below=every, limit=every)
        # By time, not by place: what was disclosed earlier may be chained in later, hundreds of rows at once.
        rows.sort(key=lambda row: row.time_ms, reverse=True)
        return [self.node.gate.audit.open(row) for row in rows[:limit]]

    def audit_is_whole(self) -> bool:
        self.node.disclosures.settle()
        return first_broken_link(self.database.reader) is None

    def close(self) -> None:
        self.run(self.http.aclose())
        self.loop.close()
        self.node.disclosures.close()
        self.database.close()
        self.ring.close()


class Client:
    """One token's way in. ``body`` is bytes as they are, or JSON to be."""

    def __init__(self, hospital: Hospital, token: str | None) -> None:
        self.hospital = hospital
        self.token = token

    async def send(self, method: str, url: str, body: Any = None, **headers: str) -> httpx.Response:
        """Send one request; header names are written with ``_`` for ``-``."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            names.setdefault("Content-Type", JSON)
        if self.token is not None:
            names.setdefault("Authorization", f"Bearer {self.token}")
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return await self.hospital.http.request(method, url, content=content, headers={
            name: value for name, value in names.items() if value})

    def request(self, method: str, url: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.hospital.run(self.send(method, url, body, **headers))

    def get(self, url: str, **headers: str) -> httpx.Response:
        return self.request("GET", url, **headers)

    def post(self, url: str, body: Any, **headers: str) -> httpx.Response:
        return self.request("POST", url, body, **headers)

    def put(self, url: str, body: Any, **headers: str) -> httpx.Response:
        return self.request("PUT", url, body, **headers)

    def delete(self, url: str, **headers: str) -> httpx.Response:
        return self.request("DELETE", url, **headers)

    def ids(self, url: str) -> list[str]:
        """Logical ids of one page of a search, in order."""
        answer = self.get(url)
        assert answer.status_code == 200, answer.text
        return [entry["resource"]["id"] for entry in answer.json().get("entry", ())]

    def all_ids(self, url: str) -> list[str]:
        """Logical ids of every page of a search."""
        found: list[str] = []
        following: str | None = url
        while following is not None:
            answer = self.get(following)
            assert answer.status_code == 200, answer.text
            found += [entry["resource"]["id"] for entry in answer.json().get("entry", ())]
            following = next_link(answer)
        return found

    def total(self, url: str) -> int:
        answer = self.get(url)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["total"])


def next_link(answer: httpx.Response) -> str | None:
    """The next page of a bundle."""
    return next((link["url"] for link in answer.json()["link"] if link["relation"] == "next"), None)


def observation(patient: str | None, value: str = "1.10", *, code: str = "8867-4", when: str = "2024-03-01",
                **elements: Any) -> bytes:
    """An Observation's JSON whose decimal has the text ``value``."""
    resource = {"resourceType": "Observation", "status": "final", "code": {"coding": [{"system": LOINC, "code": code}]},
                **({"subject": {"reference": f"Patient/{patient}"}} if patient else {}), "effectiveDateTime": when,
                "valueQuantity": {"value": "@", "unit": "bpm", "system": UCUM, "code": "/min"}, **elements}
    return json.dumps(resource).replace('"@"', value).encode()


def places(answer: httpx.Response) -> list[str]:
    """The expressions of an OperationOutcome, which it must be."""
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome", answer.text
    assert outcome["issue"], answer.text
    assert answer.headers["content-type"].startswith(JSON)
    return [place for issue in outcome["issue"] for place in issue.get("expression", ())]


def reopened(hospital: Hospital) -> Hospital:
    """The same data behind an application that has just started: no cache is warm."""
    other = Hospital.__new__(Hospital)
    vars(other).update(vars(hospital))
    other.app = build_app(hospital.settings)
    other.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=other.app), base_url=other.base, timeout=60)
    return other
