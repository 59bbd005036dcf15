"""The forms of an answer: XML, layout, codings, origins, preferences. https://hl7.org/fhir/R4/http.html#mime-type"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import zstandard

from gateway.fhir.definitions import Definitions
from gateway.fhir.resource import canonical, parse
from gateway.fhir.xml_reader import read_xml
from gateway.fhir.xml_shapes import Shapes
from tests.journeys.hospital import Client, Hospital, observation

SHAPES = Shapes(Definitions.load())
XML = "application/fhir+xml"
ORIGIN = "https://app.example"


def xml(answer: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == f"{XML}; charset=utf-8"
    return read_xml(answer.content, SHAPES)


def patient_xml(inside: str = "", id_: str = "") -> bytes:
    return f'<Patient xmlns="http://hl7.org/fhir">{id_ and f"""<id value="{id_}"/>"""}{inside}</Patient>'.encode()


# XML


def test_what_is_sent_as_xml_is_read_as_json_and_back(hospital: Hospital) -> None:
    made = hospital.feed.post("Patient", patient_xml('<name><family value="Ümlaut &amp; Co"/></name>'),
                              Content_Type=XML, Accept=XML)
    id_ = xml(made, 201)["id"]
    assert hospital.feed.get(f"Patient/{id_}").json()["name"] == [{"family": "Ümlaut & Co"}]
    again = hospital.feed.put(f"Patient/{id_}", patient_xml('<active value="true"/>', id_), Content_Type="text/xml")
    assert again.json()["active"] is True


def test_a_decimal_keeps_its_text_through_xml(hospital: Hospital) -> None:
    id_ = hospital.new({"resourceType": "Patient"})
    stored = hospital.feed.post("Observation", observation(id_, "1.10"))
    place = f"Observation/{stored.json()['id']}"
    answer = hospital.feed.get(place, Accept=XML)
    assert b'<value value="1.10"/>' in answer.content
    assert canonical(xml(answer)) == canonical(parse(hospital.feed.get(place).content))
    sent = hospital.feed.put(place, answer.content.replace(b"1.10", b"2.50"), Content_Type=XML)
    assert b'"value":2.50' in sent.content


@pytest.mark.parametrize("url", ["Patient/{id}", "Patient/{id}/_history", "Patient/{id}/_history/1", "Patient?_id={id}",
                                 "metadata", "Patient?_count=5"])
def test_every_answer_is_to_be_had_in_xml(hospital: Hospital, url: str) -> None:
    url = url.format(id=hospital.new_patient(name=[{"family": "X", "given": ["a", "b"]}]))
    as_xml, as_json = xml(hospital.feed.get(url, Accept=XML)), parse(hospital.feed.get(url).content)
    if as_xml["resourceType"] == "Bundle":  # each page has an id and a seal of its own
        as_xml, as_json = ({"entry": one["entry"], "type": one["type"]} for one in (as_xml, as_json))
    assert canonical(as_xml) == canonical(as_json)


@pytest.mark.parametrize(("url", "status"), [("Patient/never", 404), ("Patient?nosuch=1", 400), ("Nosuch/1", 404)])
def test_refusals_take_the_form_asked_for(hospital: Hospital, url: str, status: int) -> None:
    assert xml(hospital.feed.get(url, Accept=XML), status)["resourceType"] == "OperationOutcome"


def test_a_refused_token_is_told_in_xml_too(hospital: Hospital) -> None:
    assert xml(Client(hospital, None).get("Patient/x", Accept=XML), 401)["resourceType"] == "OperationOutcome"


def test_a_transaction_in_xml_is_carried_out(hospital: Hospital) -> None:
    body = (b'<Bundle xmlns="http://hl7.org/fhir"><type value="transaction"/><entry><resource><Patient>'
            b'<active value="true"/></Patient></resource><request><method value="POST"/><url value="Patient"/>'
            b"</request></entry></Bundle>")
    answer = xml(hospital.feed.post("", body, Content_Type=XML, Accept=XML))
    assert answer["entry"][0]["response"]["status"] == "201 Created"


@pytest.mark.parametrize("body", [
    b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + patient_xml('<id value="&e;"/>'),
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]>' + patient_xml('<id value="&a;"/>'),
    patient_xml("<nosuch/>"), patient_xml('<active value="yes"/>'), b"<Patient/>", b"not xml", b"",
    b'{"resourceType":"Patient"}', patient_xml('<extension url="u">' * 300 + "</extension>" * 300),
])
def test_xml_that_is_no_resource_is_refused_and_nothing_stored(hospital: Hospital, body: bytes) -> None:
    before = hospital.stored()
    answer = hospital.feed.post("Patient", body, Content_Type=XML)
    assert answer.status_code == 400, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert hospital.stored() == before


def test_xml_obeys_the_rules_of_r4_with_the_same_places(hospital: Hospital) -> None:
    answer = hospital.feed.post("Patient", patient_xml('<gender value="Zzyzx"/>'), Content_Type=XML)
    assert answer.status_code == 422
    assert answer.json()["issue"][0]["expression"] == ["Patient.gender"]
    assert "Zzyzx" not in answer.text


def test_what_xml_cannot_carry_is_refused_with_the_place(hospital: Hospital) -> None:
    id_ = hospital.new_patient(name=[{"family": "a\ufffeb"}])
    outcome = xml(hospital.feed.get(f"Patient/{id_}", Accept=XML), 406)
    assert outcome["issue"][0]["expression"] == ["Patient.name.family"]


# Which form


@pytest.mark.parametrize(("accept", "kind"), [
    ("application/xml", "application/xml"), ("text/xml", "text/xml"), ("application/json", "application/json"),
    ("application/fhir+xml;q=0.5, application/fhir+json", "application/fhir+json"),
    ("application/fhir+json;q=0.5, application/fhir+xml", XML),
    ("*/*, application/fhir+xml;q=0.1", "application/fhir+json"),
    ("application/*", "application/fhir+json"), ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                                                 "application/xml"),
    ("application/fhir+json;q=0, */*", "application/json"), ("application/fhir+xml; fhirVersion=4.0", XML),
    ('application/fhir+xml; fhirVersion="4.0"', XML), ("APPLICATION/FHIR+XML", XML),
    ("application/fhir+xml; fhirVersion=3.0, application/fhir+json; fhirVersion=4.0", "application/fhir+json"),
    ("application/fhir+xml;charset=utf-8", XML),
])
def test_the_form_is_the_best_of_accept(hospital: Hospital, accept: str, kind: str) -> None:
    answer = hospital.feed.get(f"Patient/{hospital.new_patient()}", Accept=accept)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"


@pytest.mark.parametrize(("name", "kind"), [
    ("json", "application/fhir+json"), ("xml", XML), ("text/xml", XML), ("application/xml", XML),
    ("application/json", "application/fhir+json"), ("text/json", "application/fhir+json"), (XML, XML),
    (quote(XML), XML), ("application/fhir%2Bjson;fhirVersion=4.0", "application/fhir+json"),
    ("application/fhir+json;fhirVersion=4.0", "application/fhir+json"),
])
def test_format_goes_before_accept(hospital: Hospital, name: str, kind: str) -> None:
    answer = hospital.feed.get(f"Patient/{hospital.new_patient()}?_format={name}", Accept="image/png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")


@pytest.mark.parametrize("name", ["", "html", "ttl", "application/fhir+turtle", "json;fhirVersion=5.0",
                                  "application/x"])
def test_a_format_not_written_here_is_refused(hospital: Hospital, name: str) -> None:
    assert hospital.feed.get(f"Patient?_format={name}").status_code == 406


@pytest.mark.parametrize("accept", ["text/turtle", "application/fhir+json;fhirVersion=5.0", "application/fhir+json;q=0",
                                    "image/*", "application/fhir+xml;charset=latin-1", ";;,,", "application/json;q=x"])
def test_a_type_not_written_here_is_refused(hospital: Hospital, accept: str) -> None:
    answer = hospital.feed.get("Patient", Accept=accept)
    assert (answer.status_code, answer.json()["issue"][0]["expression"]) == (406, ["http.Accept"])


@pytest.mark.parametrize("kind", ["application/fhir+json; fhirVersion=5.0", "application/fhir+xml; charset=latin-1",
                                  "application/fhir+turtle", ""])
def test_a_body_of_another_version_or_type_is_refused(hospital: Hospital, kind: str) -> None:
    assert hospital.feed.post("Patient", b"{}", Content_Type=kind or "x").status_code == 415


def test_pretty_lays_out_and_changes_nothing(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    place = f"Observation/{hospital.feed.post('Observation', observation(id_, '1.10')).json()['id']}"
    plain, laid_out = hospital.feed.get(place), hospital.feed.get(f"{place}?_pretty=true")
    assert laid_out.content.startswith(b'{\n  "resourceType"')
    assert b'"value": 1.10' in laid_out.content
    assert canonical(parse(laid_out.content)) == canonical(parse(plain.content))
    assert hospital.feed.get(f"{place}?_pretty=true&_format=xml").content.count(b"\n  <") > 3
    assert hospital.feed.get(f"{place}?_pretty=false").content == plain.content


# HEAD and conditions


@pytest.mark.parametrize("url", ["Patient/{id}", "Patient/{id}/_history", "Patient/{id}/_history/1", "Patient?_id={id}",
                                 "metadata", "Patient/never"])
def test_head_is_get_without_a_body(hospital: Hospital, url: str) -> None:
    url = url.format(id=hospital.new_patient())
    head, get = (hospital.feed.request(method, url, Accept_Encoding="identity") for method in ("HEAD", "GET"))
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.get("etag") == get.headers.get("etag")
    assert abs(int(head.headers["content-length"]) - len(get.content)) < 200  # page links are sealed anew


def test_if_modified_since_and_if_none_match(hospital: Hospital) -> None:
    """http.html#cread"""
    place = f"Patient/{hospital.new_patient()}"
    modified = hospital.feed.get(place).headers["last-modified"]
    for url in (place, f"{place}/_history/1"):
        answer = hospital.feed.get(url, If_Modified_Since=modified)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["etag"] == 'W/"1"'
        assert hospital.feed.get(url, If_Modified_Since="Mon, 01 Jan 2001 00:00:00 GMT").status_code == 200
        assert hospital.feed.get(url, If_None_Match='W/"9"', If_Modified_Since=modified).status_code == 200
        assert hospital.feed.get(url, If_None_Match='"1"').status_code == 304
        assert hospital.feed.get(url, If_None_Match='W/"9", W/"1"').status_code == 304
        for nonsense in ("yesterday", "0", "Mon, 99 Jan 2001 00:00:00 GMT", "9" * 400):
            assert hospital.feed.get(url, If_Modified_Since=nonsense).status_code == 200


def test_a_condition_tells_nothing_of_what_may_not_be_read(hospital: Hospital) -> None:
    """Invariant 4."""
    id_ = hospital.new_patient()
    stranger = hospital.clinician("dr-none")
    for conditions in ({"If_None_Match": "*"}, {"If_None_Match": 'W/"1"'},
                       {"If_Modified_Since": "Fri, 01 Jan 2100 00:00:00 GMT"}):
        one, other = stranger.get(f"Patient/{id_}", **conditions), stranger.get("Patient/never-was", **conditions)
        assert one.status_code == other.status_code == 404
        assert one.text.replace(id_, "never-was") == other.text
        assert one.headers.keys() == other.headers.keys()


def test_metadata_has_a_tag_of_its_content(hospital: Hospital) -> None:
    anyone = Client(hospital, None)
    answer = anyone.get("metadata")
    tag = answer.headers["etag"]
    assert tag == f'W/"{hashlib.sha256(answer.content).hexdigest()[:32]}"'
    assert anyone.get("metadata", If_None_Match=tag).status_code == 304
    assert anyone.get("metadata", If_None_Match='W/"x"').status_code == 200


def test_the_statement_says_which_formats_there_are(hospital: Hospital) -> None:
    statement = hospital.feed.get("metadata").json()
    assert {"application/fhir+json", XML} <= set(statement["format"])
    assert statement["rest"][0]["security"]["cors"] is True


# Prefer


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_return_says_how_much_of_a_write_comes_back(hospital: Hospital, method: str) -> None:
    for number, wanted in enumerate(("minimal", "representation", "OperationOutcome")):
        id_ = f"prefer-{method}-{number}"
        answer = hospital.feed.request(method, "Patient" if method == "POST" else f"Patient/{id_}",
                                       {"resourceType": "Patient", "id": id_}, Prefer=f"return={wanted}")
        assert answer.status_code == 201
        assert answer.headers["preference-applied"] == f"return={wanted}"
        assert answer.headers["location"]
        told = answer.json()["resourceType"] if answer.content else None
        assert told == {"minimal": None, "representation": "Patient"}.get(wanted, wanted)


def test_an_unknown_preference_is_ignored(hospital: Hospital) -> None:
    """RFC 7240 section 2."""
    answer = hospital.feed.post("Patient", {"resourceType": "Patient"}, Prefer="return=poetry, colour=blue")
    assert answer.json()["resourceType"] == "Patient"
    assert "preference-applied" not in answer.headers


def test_handling_is_echoed_where_it_was_obeyed(hospital: Hospital) -> None:
    answer = hospital.feed.get("Patient?nosuch=1&_count=1", Prefer="handling=lenient")
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "handling=lenient")
    assert "preference-applied" not in hospital.feed.get("metadata", Prefer="handling=lenient").headers


def test_an_outcome_of_a_batch_entry_stands_in_its_response(hospital: Hospital) -> None:
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": [
        {"resource": {"resourceType": "Patient"}, "request": {"method": "POST", "url": "Patient"}}]}
    entry = hospital.feed.post("", bundle, Prefer="return=OperationOutcome").json()["entry"][0]
    assert entry["response"]["outcome"]["resourceType"] == "OperationOutcome"
    assert "resource" not in entry


# Codings


def large(hospital: Hospital) -> str:
    return f"Patient/{hospital.new_patient(name=[{'family': 'long ' * 600}])}"


@pytest.mark.parametrize(("accept", "coding"), [
    ("gzip", "gzip"), ("zstd", "zstd"), ("gzip, zstd", "zstd"), ("gzip, zstd;q=0.5", "gzip"), ("*", "zstd"),
    ("br", None), ("gzip;q=0", None), ("identity", None), ("gzip;q=x", None), ("*;q=0, gzip", "gzip"),
])
def test_answers_are_coded_only_where_asked(hospital: Hospital, accept: str, coding: str | None) -> None:
    place = large(hospital)
    answer = hospital.feed.get(place, Accept_Encoding=accept)
    assert answer.headers.get("content-encoding") == coding
    assert "Accept-Encoding" in answer.headers["vary"]
    assert answer.json()["name"]
    if coding:
        assert int(answer.headers["content-length"]) < 1500
    assert hospital.feed.get(place, Accept_Encoding="identity").json() == answer.json()


def test_small_answers_are_sent_as_they_are(hospital: Hospital) -> None:
    answer = hospital.feed.get(f"Patient/{hospital.new_patient()}", Accept_Encoding="gzip")
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(("coding", "code"), [("gzip", gzip.compress), ("zstd", zstandard.compress),
                                              ("GZIP", gzip.compress), ("identity", bytes)])
def test_coded_bodies_are_read(hospital: Hospital, coding: str, code: Callable[[bytes], bytes]) -> None:
    body = code(json.dumps({"resourceType": "Patient", "name": [{"family": "z" * 9000}]}).encode())
    assert hospital.feed.post("Patient", body, Content_Encoding=coding).status_code == 201


@pytest.mark.parametrize(("coding", "code"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_a_bomb_is_refused_at_the_limit_of_what_it_inflates_to(hospital: Hospital, coding: str,
                                                               code: Callable[[bytes], bytes]) -> None:
    answer = hospital.feed.post("Patient", code(b" " * 40_000_000), Content_Encoding=coding)
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (413, "too-long")


@pytest.mark.parametrize(("coding", "body", "status"), [
    ("gzip", gzip.compress(b"{}" * 99, mtime=0)[:-9], 400), ("gzip", b"{}", 400),
    ("gzip", gzip.compress(b"{}", mtime=0) * 2, 400),
    ("zstd", zstandard.compress(b"{}" * 9999)[:-3], 400), ("zstd", b"{}", 400), ("zstd", b"", 400), ("gzip", b"", 400),
    ("zstd", zstandard.compress(b"{}") * 2, 400), ("br", b"{}", 415), ("gzip, gzip", b"{}", 415),
])
def test_broken_and_unknown_codings_are_refused(hospital: Hospital, coding: str, body: bytes, status: int) -> None:
    answer = hospital.feed.post("Patient", body, Content_Encoding=coding)
    assert answer.status_code == status, answer.text
    assert answer.json()["issue"][0]["expression"] == ["http.Content-Encoding"]


# Origins


def test_no_origin_is_let_in_by_default(hospital: Hospital) -> None:
    nobodys = "https://no-app-registered-it.example"
    answer = hospital.feed.get("metadata", Origin=nobodys)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = Client(hospital, None).request("OPTIONS", "Patient/1", Origin=nobodys,
                                               Access_Control_Request_Method="GET")
    assert preflight.status_code == 204
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_named_origins_are_let_in(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(cors_origins=f"{ORIGIN}, http://localhost:3000")
    answer = hospital.feed.get(f"Patient/{hospital.new_patient()}", Origin=ORIGIN)
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "ETag" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"]
    for other in ("https://evil.example", "https://app.example.evil", "null", "https://APP.example"):
        refused = hospital.feed.get("metadata", Origin=other)
        assert "access-control-allow-origin" not in refused.headers
        assert "Origin" in refused.headers["vary"]
    assert hospital.feed.get("Patient/never", Origin=ORIGIN).headers["access-control-allow-origin"] == ORIGIN
    assert hospital.feed.get("metadata").json()["rest"][0]["security"]["cors"] is True


@pytest.mark.parametrize(("path", "methods"), [
    ("Patient", {"GET", "HEAD", "POST"}), ("Patient/1", {"GET", "HEAD", "PUT", "DELETE"}),
    ("metadata", {"GET", "HEAD"}),
    ("", {"POST"}), ("Patient/_search", {"POST"}), ("Patient/1/_history/2", {"GET", "HEAD"}),
])
def test_preflight_needs_no_token_and_tells_the_routes(hospital_with: Callable[..., Hospital], path: str,
                                                       methods: set[str]) -> None:
    anyone = Client(hospital_with(cors_origins=ORIGIN), None)
    answer = anyone.request("OPTIONS", path, Origin=ORIGIN, Access_Control_Request_Method="GET",
                            Access_Control_Request_Headers="authorization")
    assert (answer.status_code, answer.content) == (204, b"")
    assert methods <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "Authorization" in answer.headers["access-control-allow-headers"]


def test_any_origin_is_let_in_without_credentials(hospital_with: Callable[..., Hospital]) -> None:
    answer = hospital_with(cors_origins="*").feed.get("metadata", Origin="https://anyone.example")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


# Every answer


@pytest.mark.parametrize(("method", "url"), [
    ("GET", "Patient/{id}"), ("GET", "Patient/never"), ("GET", "Patient"), ("DELETE", "Patient/never"),
    ("OPTIONS", "Patient"), ("GET", "Nosuch"), ("PATCH", "metadata"), ("HEAD", "Patient/{id}")])
def test_every_answer_is_kept_by_nobody_and_sniffed_by_nobody(hospital: Hospital, method: str, url: str) -> None:
    answer = hospital.feed.request(method, url.format(id=hospital.new_patient()))
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Accept" in answer.headers["vary"]


def test_a_form_says_the_form_of_the_answer(hospital: Hospital) -> None:
    id_ = hospital.new_patient(active=True)
    headers = {"Content_Type": "application/x-www-form-urlencoded"}
    answer = hospital.feed.request("POST", "Patient/_search", f"_id={id_}&_format=xml".encode(), **headers)
    assert answer.headers["Content-Type"].startswith("application/fhir+xml")
    assert b"<Bundle xmlns" in answer.content
    laid_out = hospital.feed.request("POST", "Patient/_search", f"_id={id_}&_pretty=true".encode(), **headers)
    assert b"\n  " in laid_out.content
    refused = hospital.feed.request("POST", "Patient/_search", b"_format=text/turtle", **headers)
    assert refused.status_code == 406
