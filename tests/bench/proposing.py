"""A record, and a Consent for it that waits for its patient's signature: what the benches of revocation begin with."""

from __future__ import annotations

import httpx

from tests.consent import permitting


def proposed(feed: httpx.Client, own: httpx.Client, patient: str, grantee: str) -> tuple[str, str]:
    """The paths of the record and of the Consent by which its patient would let ``grantee`` read it."""
    record = feed.post("/Observation", json={
        "resourceType": "Observation", "status": "final", "code": {"text": "pulse"},
        "subject": {"reference": f"Patient/{patient}"}, "effectiveDateTime": "2024-03-01"})
    record.raise_for_status()
    path = f"/Observation/{record.json()['id']}"
    made = own.post("/Consent", json=permitting(
        patient, grantee, data=[{"meaning": "instance", "reference": {"reference": path[1:]}}]))
    made.raise_for_status()
    return path, f"/Consent/{made.json()['id']}"
