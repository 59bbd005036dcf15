"""AuditEvents clients write stand beside those this server makes from its own rows."""

from __future__ import annotations

from tests.journeys.hospital import Hospital


def test_a_search_shows_this_servers_events_and_then_the_clients(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    written = hospital.new({
        "resourceType": "AuditEvent", "type": {"code": "rest"}, "recorded": "2024-05-01T10:00:00Z",
        "agent": [{"requestor": True}], "source": {"observer": {"display": "EHR"}},
        "entity": [{"what": {"reference": f"Patient/{patient}"}}]})
    own = hospital.patient(patient)
    found = own.get(f"AuditEvent?patient={patient}").json()
    ids = [entry["resource"]["id"] for entry in found["entry"]]
    assert ids[-1] == written
    assert all(id_.startswith("log-") for id_ in ids[:-1])
    assert len(ids) > 1
    assert found["total"] == len(ids)
