"""Binary as a resource and as its content. https://hl7.org/fhir/R4/binary.html#rest"""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from tests.journeys.hospital import JSON, Hospital

CONTENT = bytes(range(256)) * 4
FHIR_XML = "application/fhir+xml"


def stored(hospital: Hospital, content: bytes = CONTENT, kind: str = "image/png", **headers: str) -> str:
    answer = hospital.feed.post("Binary", content, Content_Type=kind, Accept=JSON, **headers)
    assert answer.status_code == 201, answer.text
    return f"Binary/{answer.json()['id']}"


def test_bytes_in_are_bytes_out(hospital: Hospital) -> None:
    place = stored(hospital)
    for accept in ("", "*/*", "image/png", "image/png, */*;q=0.1", "application/json", "application/pdf"):
        answer = hospital.feed.get(place, Accept=accept)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, CONTENT, "image/png")
        assert answer.headers["etag"] == '"1"'
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "sandbox" in answer.headers["content-security-policy"]


def test_the_resource_is_read_where_fhir_is_asked_for(hospital: Hospital) -> None:
    place = stored(hospital)
    expected = {"resourceType": "Binary", "contentType": "image/png", "data": base64.b64encode(CONTENT).decode()}
    for url, accept in ((place, JSON), (f"{place}?_format=json", "image/png"), (f"{place}/_history/1", JSON)):
        answer = hospital.feed.get(url, Accept=accept)
        assert answer.headers["content-type"].startswith(JSON)
        assert expected.items() <= answer.json().items()
    assert hospital.feed.get(place, Accept=FHIR_XML).headers["content-type"].startswith(FHIR_XML)
    assert b"<Binary" in hospital.feed.get(f"{place}?_format=xml").content
    assert hospital.feed.get(f"{place}/_history/1", Accept="image/png").content == CONTENT


def test_a_resource_is_stored_as_a_resource_and_read_as_content(hospital: Hospital) -> None:
    made = hospital.feed.post("Binary", {"resourceType": "Binary", "contentType": "text/plain", "data": "aGVsbG8="},
                              Accept=JSON)
    assert hospital.feed.get(f"Binary/{made.json()['id']}").text == "hello"


def test_an_update_takes_bytes(hospital: Hospital) -> None:
    place = stored(hospital)
    answer = hospital.feed.put(place, b"%PDF-1", Content_Type="application/pdf", If_Match='W/"1"')
    assert answer.status_code == 200, answer.text
    assert (hospital.feed.get(place).content, hospital.feed.get(place).headers["etag"]) == (b"%PDF-1", '"2"')
    assert hospital.feed.get(f"{place}/_history/1").content == CONTENT
    assert hospital.feed.put(place, b"x", Content_Type="text/plain", If_Match='W/"1"').status_code == 412


@pytest.mark.parametrize("kind", ["application/json", "application/xml", "text/plain; charset=utf-8",
                                  "application/x-www-form-urlencoded", "application/octet-stream"])
def test_any_type_but_fhirs_own_is_content(hospital: Hospital, kind: str) -> None:
    answer = hospital.feed.get(stored(hospital, b'{"a":1}', kind))
    assert (answer.content, answer.headers["content-type"]) == (b'{"a":1}', kind)


@pytest.mark.parametrize("kind", ["nonsense", "a b/c", "/", "text/plain\t/x"])
def test_what_is_no_type_is_refused(hospital: Hospital, kind: str) -> None:
    before = hospital.stored()
    assert hospital.feed.post("Binary", b"x", Content_Type=kind).status_code in (415, 422)
    assert hospital.stored() == before


def test_empty_content_is_kept_as_no_data(hospital: Hospital) -> None:
    answer = hospital.feed.get(stored(hospital, b"", "text/plain"))
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(("asked", "status", "part", "told"), [
    ("bytes=0-0", 206, CONTENT[:1], "bytes 0-0/1024"), ("bytes=10-19", 206, CONTENT[10:20], "bytes 10-19/1024"),
    ("bytes=1000-", 206, CONTENT[1000:], "bytes 1000-1023/1024"),
    ("bytes=-24", 206, CONTENT[-24:], "bytes 1000-1023/1024"),
    ("bytes=-9999", 206, CONTENT, "bytes 0-1023/1024"),
    ("bytes=1000-9999", 206, CONTENT[1000:], "bytes 1000-1023/1024"),
    ("bytes=0-1,5-6", 200, CONTENT, None), ("lines=0-1", 200, CONTENT, None), ("bytes=9-3", 200, CONTENT, None),
    ("bytes=-", 200, CONTENT, None), ("bytes=x-y", 200, CONTENT, None),
])
def test_ranges_are_of_the_content(hospital: Hospital, asked: str, status: int, part: bytes, told: str | None) -> None:
    """RFC 9110 section 14."""
    answer = hospital.feed.get(stored(hospital), Range=asked)
    assert (answer.status_code, answer.content) == (status, part)
    assert answer.headers.get("content-range") == told
    assert answer.headers["accept-ranges"] == "bytes"
    assert int(answer.headers["content-length"]) == len(part)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=1024-2000", "bytes=-0", "bytes=999999999999999999-"])
def test_a_range_past_the_end_is_416(hospital: Hospital, asked: str) -> None:
    answer = hospital.feed.get(stored(hospital), Range=asked)
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1024")
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_if_range_gives_the_part_only_of_the_same_version(hospital: Hospital) -> None:
    place = stored(hospital)
    whole = hospital.feed.get(place)
    for condition, status in (('"1"', 206), (whole.headers["last-modified"], 206), ('"2"', 200), ('W/"1"', 200),
                              ("Mon, 01 Jan 2001 00:00:00 GMT", 200)):
        assert hospital.feed.get(place, Range="bytes=0-1", If_Range=condition).status_code == status


def test_a_range_of_the_resource_is_not_cut(hospital: Hospital) -> None:
    answer = hospital.feed.get(stored(hospital), Range="bytes=0-1", Accept=JSON)
    assert answer.json()["resourceType"] == "Binary"


def test_head_and_conditions_hold_for_content(hospital: Hospital) -> None:
    place = stored(hospital)
    head = hospital.feed.request("HEAD", place)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "1024")
    known = hospital.feed.get(place, If_None_Match='"1"')
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", '"1"')


@pytest.mark.parametrize(("kind", "shown"), [("text/html", "attachment"), ("image/svg+xml", "attachment"),
                                             ("application/xhtml+xml", "attachment"), ("image/png", "inline"),
                                             ("text/plain; charset=utf-8", "inline"),
                                             ("text/javascript", "attachment")])
def test_only_what_runs_nothing_is_shown_inline(hospital: Hospital, kind: str, shown: str) -> None:
    answer = hospital.feed.get(stored(hospital, b"<script>1</script>", kind))
    assert answer.headers["content-disposition"].partition(";")[0] == shown
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"


def test_a_stored_type_cannot_write_headers(hospital: Hospital) -> None:
    made = hospital.feed.post("Binary", json.dumps({
        "resourceType": "Binary", "contentType": "text/html;\nX-Evil: 1", "data": "eA=="}).encode(), Accept=JSON)
    if made.status_code == 201:
        answer = hospital.feed.get(f"Binary/{made.json()['id']}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "x-evil" not in answer.headers


def test_the_security_context_makes_it_the_patients(hospital: Hospital) -> None:
    """Invariant 4: the content, its length, its ranges and its being there need the patient's permit."""
    patient = hospital.new_patient()
    place = stored(hospital, X_Security_Context=f"Patient/{patient}")
    assert hospital.feed.get(place, Accept=JSON).json()["securityContext"] == {"reference": f"Patient/{patient}"}
    doctor = hospital.clinician("dr-binary")

    def told(answer: httpx.Response, id_: str) -> tuple[Any, ...]:
        return answer.status_code, answer.text.replace(id_, "X"), sorted(answer.headers.keys())

    for headers in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=99999-"}, {"If_None_Match": "*"}, {"Accept": JSON}):
        for method in ("GET", "HEAD"):
            there = told(doctor.request(method, place, **headers), place.partition("/")[2])
            assert there == told(doctor.request(method, "Binary/never-was", **headers), "never-was")
            assert there[0] == 404
    hospital.grant(patient, "Practitioner/dr-binary")
    assert doctor.get(place).content == CONTENT
    assert hospital.patient(patient).get(place).content == CONTENT
    assert any("Binary" in str(row) for row in hospital.audited(patient))


def test_a_security_context_that_is_no_reference_is_refused(hospital: Hospital) -> None:
    before = hospital.stored()
    answer = hospital.feed.post("Binary", b"x", Content_Type="text/plain", X_Security_Context="no reference")
    assert answer.status_code in (400, 422)
    assert hospital.stored() == before


def test_content_over_the_limit_is_refused(hospital: Hospital) -> None:
    body = b"x" * (hospital.settings.max_body_bytes + 1)
    assert hospital.feed.post("Binary", body, Content_Type="text/plain").status_code == 413


def test_a_binary_within_a_batch_is_a_resource(hospital: Hospital) -> None:
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": [
        {"request": {"method": "GET", "url": stored(hospital)}}]}
    assert hospital.feed.post("", bundle).json()["entry"][0]["resource"]["contentType"] == "image/png"
