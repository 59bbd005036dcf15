"""What the journeys of jobs share: a foreign system's client, a runner, and polling to the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from joserfc.jwk import ECKey

from gateway.app import authority
from gateway.smart.clients import add_client
from gateway.web.asynchronous import runner
from gateway.web.fhir import open_door
from tests.journeys.hospital import Client, Hospital

ASYNC = {"Prefer": "respond-async"}


def backend(hospital: Hospital, folder: Path, scope: str = "system/*.rs") -> str:
    """A registered foreign system; its client id."""
    keys = folder / "jwks.json"
    key = ECKey.generate_key("P-384", {"use": "sig", "alg": "ES384", "kid": "k"})
    keys.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    return add_client(hospital.smart, name="Registry", kind="backend", scope=scope, jwks=str(keys), purposes=["TREAT"])


def as_backend(hospital: Hospital, client_id: str, **minted: Any) -> Client:
    return hospital.client(client=client_id, **minted)


def work(hospital: Hospital) -> int:
    """Carry out what waits; how many jobs."""
    done = runner(open_door(hospital.node), authority(hospital.node, hospital.smart))
    return hospital.run(done.drain())


def kicked_off(answer: httpx.Response) -> str:
    """The place to poll."""
    assert answer.status_code == 202, answer.text
    return str(answer.headers["content-location"])


def manifest(client: Client, place: str) -> dict[str, Any]:
    answer = client.get(place)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def lines(client: Client, url: str) -> list[dict[str, Any]]:
    answer = client.get(url, Accept="application/fhir+ndjson")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/fhir+ndjson"
    return [json.loads(line) for line in answer.content.splitlines()]


def exported(client: Client, url: str, **headers: str) -> dict[str, list[dict[str, Any]]]:
    """Everything of one export, by type."""
    place = kicked_off(client.get(url, **ASYNC, **headers))
    work(client.hospital)
    found: dict[str, list[dict[str, Any]]] = {}
    for output in manifest(client, place)["output"]:
        held = lines(client, output["url"])
        assert len(held) == output["count"]
        found.setdefault(output["type"], []).extend(held)
    return found


def kept(hospital: Hospital) -> bytes:
    """Every byte the rows of jobs hold."""
    values: list[Any] = [value for row in hospital.database.reader.execute(
        "SELECT request, outcome, cursor, progress FROM job") for value in row]
    values += [body for (body,) in hospital.database.reader.execute("SELECT body FROM job_part")]
    return b"".join(one.encode() if isinstance(one, str) else bytes(one or b"") for one in values)
