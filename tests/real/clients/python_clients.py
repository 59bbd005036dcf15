"""SMART's fhirclient and fhirpy against a running gateway: ``python_clients.py BASE TOKEN`` prints what they saw.

Runs in an environment of its own, because their dependencies are not ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fhirclient import client as smart
from fhirclient.models.humanname import HumanName
from fhirclient.models.observation import Observation
from fhirclient.models.patient import Patient
from fhirpy import SyncFHIRClient


def with_fhirclient(base: str, token: str) -> dict[str, Any]:
    """Create, read, update, search over pages and delete through the models."""
    server = smart.FHIRClient(settings={"app_id": "gateway-test", "api_base": base}).server
    server.session.headers["Authorization"] = f"Bearer {token}"
    patient = Patient({"active": True, "name": [{"family": "Fhirclientson", "given": ["Ada"]}]})
    patient.id = patient.create(server)["id"]
    patient = Patient.read(patient.id, server)
    patient.name.append(HumanName({"text": "Ada F."}))
    patient.update(server)
    for number in range(25):
        Observation({"status": "final", "code": {"text": "pulse"}, "subject": {"reference": f"Patient/{patient.id}"},
                     "valueQuantity": {"value": 60 + number, "unit": "bpm"}}).create(server)
    found = Patient.where({"family": "Fhirclientson"}).perform_resources(server)
    pages = list(Observation.where({"patient": patient.id, "_count": "10"}).perform_resources_iter(server))
    again = Patient.read(patient.id, server)
    return {"patient": patient.id, "names": len(again.name), "found": [one.id for one in found],
            "observations": len(pages), "version": again.meta.versionId}


def with_fhirpy(base: str, token: str) -> dict[str, Any]:
    """Save, search with chains and includes, fetch all pages, conditional update, delete."""
    # Its count() adds a parameter of one vendor's own: dropped where the client asks for leniency.
    client = SyncFHIRClient(base, authorization=f"Bearer {token}", extra_headers={"Prefer": "handling=lenient"})
    patient = client.resource("Patient", name=[{"family": "Fhirpyson", "given": ["Bo"]}],
                              identifier=[{"system": "urn:test", "value": "fhirpy-1"}])
    patient.save()
    for number in range(5):
        client.resource("Observation", status="final", code={"text": f"test {number}"},
                        subject=patient.to_reference()).save()
    same, created = client.resources("Patient").search(identifier="urn:test|fhirpy-1").update(
        client.resource("Patient", name=patient["name"], identifier=[{"system": "urn:test", "value": "fhirpy-1"}]))
    chained = client.resources("Observation").search(subject__Patient__name="Fhirpyson").fetch_all()
    bundle = client.resources("Observation").search(subject=patient.to_reference().reference).include(
        "Observation", "subject").fetch_raw()
    same["active"] = True
    same.save()
    client.resources("Observation").search(subject=patient.to_reference().reference).first().delete()
    left = client.resources("Observation").search(subject=patient.to_reference().reference).count()
    return {"patient": patient.id, "same": same.id, "created": created, "chained": len(chained),
            "included": sorted({entry.resource.resourceType for entry in bundle.entry}), "left": left}


def main() -> None:
    base, token = sys.argv[1:]
    print(json.dumps({"fhirclient": with_fhirclient(base, token), "fhirpy": with_fhirpy(base, token)}))


if __name__ == "__main__":
    main()
