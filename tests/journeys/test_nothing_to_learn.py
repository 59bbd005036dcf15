"""Two hospitals, one with a hidden record: whatever a clinician asks, both answer alike. Invariant 4."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.journeys.hospital import Client, Hospital, observation

RESTRICTED = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
ASKED = [
    "Patient/sec", "Patient/sec/_history", "Patient/sec/$everything", "Observation/o-sec",
    "Observation/o-sec/_history/1", "Observation/o-gone", "Observation/o-gone/_history", "Observation/o-lab",
    "Observation/o-sec/$meta", "Observation?_id=o-sec,o-vis", "Observation?_summary=count",
    "Observation?_total=accurate&_count=1", "Observation?_count=1&_sort=-date", "Observation?_sort=code",
    "Observation?_sort=date,_id", "Observation?patient=sec&_summary=count", "Observation?patient.family=Secret",
    "Observation?encounter:missing=false", "Observation?code:not=8867-4", "Observation?code:in=http://v/sec",
    "Observation?_security=R", "Observation?_filter=patient%20eq%20Patient/sec", "Observation?_list=l-sec",
    "Observation?_include=*", "Practitioner?_revinclude=*", "Practitioner?_revinclude=Observation:performer",
    "Practitioner?_has:Observation:performer:_id=o-sec", "Practitioner?_has:Patient:general-practitioner:_id=sec",
    "Practitioner?_has:Observation:performer:patient.family=Secret", "Patient?identifier:not=urn:s|2&_summary=count",
    "Patient?birthdate=1970-01-01", "Patient/sec/*", "Encounter/e-sec/Observation", "Practitioner/dr-1/*",
    "?_id=o-sec", "?_summary=count", "Observation/_history", "_history?_count=1", "Patient/_history",
    "Patient/vis/$everything", "Patient/vis/$summary", "Patient/$summary?identifier=urn:s|2",
    "DocumentReference/$docref?patient=sec", "Observation/$lastn?patient=Patient/sec", "$meta",
    "Observation/o-sec/$receipt", "ValueSet/vs-sec/$expand", "ValueSet/$expand?url=http://v/sec",
    "Questionnaire?url=http://q/sec", "AuditEvent?patient=Patient/sec", "Binary/b-sec"]


def record(id_: str, patient: str, **elements: Any) -> dict[str, Any]:
    return {**json.loads(observation(patient)), "id": id_, **elements}


def furnished(hospital: Hospital, *, hidden: bool) -> Hospital:
    by = {"performer": [{"reference": "Practitioner/dr-1"}]}
    subject = {"subject": {"reference": "Patient/sec"}}
    known: list[dict[str, Any]] = [
        {"resourceType": "Practitioner", "id": "dr-1", "name": [{"family": "Who"}]},
        {"resourceType": "Patient", "id": "vis", "name": [{"family": "Vis"}]}, record("o-vis", "vis")]
    secret: list[dict[str, Any]] = [
        {"resourceType": "Patient", "id": "sec", "name": [{"family": "Secret"}], "birthDate": "1970-01-01",
         "identifier": [{"system": "urn:s", "value": "2"}], "generalPractitioner": by["performer"]},
        {"resourceType": "Encounter", "id": "e-sec", "status": "finished", "class": {"code": "AMB"}, **subject},
        record("o-sec", "sec", encounter={"reference": "Encounter/e-sec"}, **by), record("o-gone", "sec"),
        record("o-lab", "vis", meta=RESTRICTED, **by),
        {"resourceType": "List", "id": "l-sec", "status": "current", "mode": "working", **subject,
         "entry": [{"item": {"reference": "Observation/o-vis"}}]},
        {"resourceType": "ValueSet", "id": "vs-sec", "url": "http://v/sec", "status": "active", "meta": RESTRICTED},
        {"resourceType": "Questionnaire", "id": "q-sec", "url": "http://q/sec", "status": "active", "meta": RESTRICTED},
        {"resourceType": "Binary", "id": "b-sec", "contentType": "text/plain", "data": "aGFsbG8=",
         "securityContext": {"reference": "Patient/sec"}}]
    for resource in [*known, *(secret if hidden else ())]:
        answer = hospital.feed.put(f"{resource['resourceType']}/{resource['id']}", resource)
        assert answer.status_code == 201, answer.text
    hospital.feed.delete("Observation/o-gone")
    hospital.grant("vis", "Practitioner/dr-1", types=frozenset({"Observation", "List"}))
    return hospital


def said(answer: httpx.Response) -> tuple[int, dict[str, str], str]:
    """An answer without what differs between any two: times, page tokens, random ids."""
    text = re.sub(r"20\d\d-\d\d-\d\dT[\d:.]+Z", "TIME", answer.text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", re.sub(r"_page=[\w-]+", "_page=", text))
    kept = ("etag", "location", "content-type", "allow", "content-disposition")
    return answer.status_code, {name: answer.headers[name] for name in kept if name in answer.headers}, text


@pytest.mark.parametrize(("who", "scope"), [("dr-1", None), ("dr-2", None), ("dr-1", "user/Observation.rs"),
                                            ("dr-1", "user/Observation.rs?status=final user/Practitioner.rs")])
def test_what_is_hidden_is_answered_as_what_is_not_there(hospital_with: Callable[..., Hospital], who: str,
                                                         scope: str | None) -> None:
    hiding, without = (furnished(hospital_with(), hidden=hidden) for hidden in (True, False))

    def asks(hospital: Hospital) -> Client:
        return hospital.clinician(who, **({"scope": scope} if scope else {}))

    one, other = asks(hiding), asks(without)
    for url in ASKED:
        for method in ("GET", "HEAD"):
            found, expected = said(one.request(method, url)), said(other.request(method, url))
            assert found == expected, (method, url)
            assert found[0] < 500, (method, url)
