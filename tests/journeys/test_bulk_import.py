"""``$import``: NDJSON through the same write path as any client's, from listed sources alone, each line once."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.records import references
from gateway.records.bulk_import import allowed
from gateway.records.node import Node
from gateway.store import jobs
from tests.journeys.bulk import ASYNC, as_backend, backend, kept, kicked_off, lines, manifest, work
from tests.journeys.hospital import Hospital, places

NDJSON = {**ASYNC, "Content_Type": "application/fhir+ndjson"}


def ndjson(*resources: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in resources)


def put(id_: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": id_, **elements}


@pytest.fixture
def source() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A server of files: its base, what it serves, and what it was asked for."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = files.get(self.path)
            self.send_response(302 if self.path == "/files/moved" else 200 if body is not None else 404)
            self.send_header("Location", "/files/a.ndjson")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files, asked
    server.shutdown()
    server.server_close()


def parameters(*urls: str, type_: str = "Patient") -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": [
        {"name": "inputFormat", "valueCode": "application/fhir+ndjson"}, {"name": "inputSource", "valueUri": "urn:x"},
        *({"name": "input", "part": [{"name": "type", "valueCode": type_}, {"name": "url", "valueUri": url}]}
          for url in urls)]}


def test_lines_sent_along_are_stored_and_the_refused_told(hospital: Hospital) -> None:
    body = ndjson(put("bulk-a"), {"resourceType": "Patient", "id": "bulk-b", "gender": "nonsense"}, put("bulk-c"))
    place = kicked_off(hospital.feed.post("$import", body + b"{broken\n\n", **NDJSON))
    assert hospital.feed.get("Patient/bulk-a").status_code == 404
    work(hospital)
    found = manifest(hospital.feed, place)
    assert found["output"] == [{"type": "Patient", "count": 2, "input": 1}]
    [error] = found["error"]
    assert error["count"] == 2
    outcomes = lines(hospital.feed, error["url"])
    assert [one["issue"][-1]["diagnostics"] for one in outcomes] in (["line 2", "line 4"], ["line 4", "line 2"])
    assert "nonsense" not in json.dumps(outcomes)
    for id_ in ("bulk-a", "bulk-c"):
        assert hospital.feed.get(f"Patient/{id_}").status_code == 200
    assert hospital.feed.get("Patient/bulk-b").status_code == 404


def test_a_form_holds_several_files(hospital: Hospital) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="'
    body = b"".join((head, b'Patient"; filename="a.ndjson"\r\n\r\n', ndjson(put("form-a")), b"\r\n",
                     head, b'Observation"\r\n\r\n', ndjson(put("form-b")), b"\r\n--x--\r\n"))
    place = kicked_off(hospital.feed.post("$import", body, **ASYNC, Content_Type="multipart/form-data; boundary=x"))
    work(hospital)
    found = manifest(hospital.feed, place)
    assert found["output"] == [{"type": "Patient", "count": 1, "input": 1}]
    [error] = found["error"]
    [outcome] = lines(hospital.feed, error["url"])
    assert "Observation" in outcome["issue"][0]["diagnostics"]
    broken = hospital.feed.post("$import", body[:-9], **ASYNC, Content_Type="multipart/form-data; boundary=x")
    assert broken.status_code == 400


def test_listed_sources_are_read_and_others_not_even_asked(
        hospital_with: Callable[..., Hospital], source: tuple[str, dict[str, bytes], list[str]]) -> None:
    base, files, asked = source
    hospital = hospital_with(import_sources=f"{base}/files/")
    files["/files/a.ndjson"] = ndjson(put("from-url")).rstrip()
    files["/other"] = ndjson(put("not-this"))
    for url in (f"{base}/other", f"{base}/files/../other", f"{base}/files/%2e%2e/other", "http://127.0.0.1:1/files/a",
                f"http://user@127.0.0.1/{base}/files/a", "file:///etc/passwd", f"{base}/filesystem", "http://[::1"):
        answer = hospital.feed.post("$import", parameters(url), **ASYNC)
        assert answer.status_code == 422, url
        assert places(answer) == ["Parameters.parameter[2].part[1]"]
    assert asked == []
    place = kicked_off(hospital.feed.post("$import", parameters(
        f"{base}/files/a.ndjson", f"{base}/files/moved", f"{base}/files/none"), **ASYNC))
    work(hospital)
    found = manifest(hospital.feed, place)
    assert found["output"] == [{"type": "Patient", "count": 1, "inputUrl": f"{base}/files/a.ndjson"}]
    assert [one["inputUrl"] for one in found["error"]] == [f"{base}/files/moved", f"{base}/files/none"]
    assert asked == ["/files/a.ndjson", "/files/moved", "/files/none"], "a redirect is not followed"


def test_no_source_is_listed_by_default(hospital: Hospital) -> None:
    answer = hospital.feed.post("$import", parameters("https://example.org/a.ndjson"), **ASYNC)
    assert answer.status_code == 422


@pytest.mark.parametrize(("url", "may"), [
    ("https://a.example/x/f", True), ("https://a.example/x", True), ("https://a.example/xy", False),
    ("https://a.example.evil/x/f", False), ("https://a.example:444/x/f", False), ("http://a.example/x/f", False),
    ("https://a.example/x/../y", False), ("https://a.example/x/%2E%2e/y", False), ("https://u@a.example/x/f", False),
    ("https://a.example\\@b/x/f", False), ("https://A.EXAMPLE/x/f", True), ("//a.example/x/f", False)])
def test_a_source_covers_what_lies_below_it(url: str, may: bool) -> None:
    assert allowed(url, ("https://a.example/x",)) is may


def test_people_and_narrow_scopes_import_nothing(hospital: Hospital, tmp_path: Path) -> None:
    body = ndjson(put("never"))
    for client in (hospital.patient(hospital.new_patient()), hospital.clinician()):
        assert client.post("$import", body, **NDJSON).status_code == 403
    reader = as_backend(hospital, backend(hospital, tmp_path, "system/*.rs"))
    place = kicked_off(reader.post("$import", body, **NDJSON))
    work(hospital)
    found = manifest(reader, place)
    assert found["output"] == []
    assert found["error"][0]["count"] == 1
    assert hospital.feed.get("Patient/never").status_code == 404


def test_a_token_revoked_before_it_ends_stops_the_import(hospital: Hospital, tmp_path: Path) -> None:
    client_id = backend(hospital, tmp_path, "system/*.cruds")
    first, second = as_backend(hospital, client_id), as_backend(hospital, client_id)
    place = kicked_off(first.post("$import", ndjson({"resourceType": "Organization", "id": "stopped"}), **NDJSON))
    hospital.database.transact(lambda tx: hospital.smart.tokens.revoke(tx, str(first.token), 1))
    before = hospital.stored()[0]
    work(hospital)
    assert second.get(place).status_code == 500
    assert hospital.stored()[0] == before


def test_an_import_that_was_interrupted_goes_on_and_doubles_nothing(
        hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.records.importer.GROUP_ENTRIES", 3)
    code = "interrupted-import"
    one = {"resourceType": "Basic", "code": {"coding": [{"system": "urn:t", "code": code}]}}
    body = ndjson(*(one for _ in range(8)))
    place = kicked_off(hospital.feed.post("$import", body, **NDJSON))
    row = jobs.find(hospital.database.reader, place.rsplit("/", 1)[1])
    assert row is not None
    landed = 0
    original = jobs.require

    def dying(connection: Any, pk: int, runner: str) -> None:
        nonlocal landed
        landed += 1
        if landed == 3:
            raise jobs.LeaseLost
        original(connection, pk, runner)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gateway.store.jobs.require", dying)
        work(hospital)
    partly = hospital.feed.total(f"Basic?code={code}&_summary=count")
    assert 0 < partly < 8
    hospital.database.transact(lambda tx: tx.execute("UPDATE job SET lease_ms=0 WHERE pk=?", (row.pk,)))
    work(hospital)
    assert hospital.feed.total(f"Basic?code={code}&_summary=count") == 8
    assert manifest(hospital.feed, place)["output"][0]["count"] + partly >= 8


def encounter(id_: str, patient: str, within: str | None = None) -> dict[str, Any]:
    return {"resourceType": "Encounter", "id": id_, "status": "finished", "class": {"code": "AMB"},
            "subject": {"reference": f"Patient/{patient}"}, **(
                {"partOf": {"reference": f"Encounter/{within}"}} if within else {})}


def form(*files: bytes) -> tuple[bytes, dict[str, str]]:
    head = b'--x\r\nContent-Disposition: form-data; name="Resource"; filename="f"\r\n\r\n'
    body = b"".join(head + one + b"\r\n" for one in files) + b"--x--\r\n"
    return body, {**ASYNC, "Content_Type": "multipart/form-data; boundary=x"}


def test_references_that_lead_nowhere_at_the_end_are_told(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a later line or file brings is no fault; what nobody brought is a warning, not a refusal.

    A hundred thousand names are looked for: not on the event loop.
    """
    looked: list[bool] = []
    missing = references.missing

    def watched(node: Node, names: Mapping[str, int]) -> dict[str, int]:
        looked.append(asyncio._get_running_loop() is None)
        return missing(node, names)

    monkeypatch.setattr(references, "missing", watched)
    first = ndjson(encounter("dangling-1", "dangling-later"), encounter("dangling-2", "dangling-later", "dangling-1"),
                   encounter("dangling-3", "dangling-later", "dangling-none"))
    second = ndjson(put("dangling-later"), encounter("dangling-4", "dangling-later", "dangling-none"))
    body, headers = form(first, second)
    place = kicked_off(hospital.feed.post("$import", body, **headers))
    work(hospital)
    found = manifest(hospital.feed, place)
    assert sum(one["count"] for one in found["output"]) == 5
    [warnings] = found["error"]
    assert "input" not in warnings
    [outcome] = lines(hospital.feed, warnings["url"])
    [issue] = outcome["issue"]
    assert (issue["severity"], issue["code"]) == ("warning", "not-found")
    assert issue["diagnostics"].startswith("Encounter/dangling-none is referred to 2 times")
    assert b"dangling-none" not in kept(hospital)
    assert looked == [True] * 3


def test_a_foreign_system_is_not_told_what_is_not_here(hospital: Hospital, tmp_path: Path) -> None:
    """Invariant 4: what is hidden from it would be missing from the list, and so betrayed."""
    other = as_backend(hospital, backend(hospital, tmp_path, "system/*.cruds"), scope="system/*.cruds")
    one = {"resourceType": "Basic", "code": {"text": "x"}, "subject": {"reference": "Device/dangling-nowhere"}}
    place = kicked_off(other.post("$import", ndjson(one), **NDJSON))
    work(hospital)
    assert not any("dangling-nowhere" in json.dumps(lines(other, one["url"]))
                   for one in manifest(other, place)["error"])


def test_what_waits_for_its_import_is_sealed(hospital: Hospital) -> None:
    kicked_off(hospital.feed.post("$import", ndjson(put("sealed-wait", name=[{"family": "Mirabellus"}])), **NDJSON))
    assert b"Mirabellus" not in kept(hospital)
    work(hospital)
    assert hospital.database.reader.execute("SELECT count(*) FROM job_part WHERE kind='input' AND job IN "
                                            "(SELECT pk FROM job WHERE kind='import')").get == 0


@pytest.mark.parametrize(("body", "headers", "status"), [
    (b"{}", {"Content_Type": "text/plain"}, 415), (b'{"resourceType":"Patient"}', {}, 422),
    (b'{"resourceType":"Parameters"}', {}, 422),
    (b'{"resourceType":"Parameters","parameter":[{"name":"nonsense","valueString":"x"}]}', {}, 422),
    (b'{"resourceType":"Parameters","parameter":[{"name":"input","part":[{"name":"type","valueCode":"Patient"}]}]}', {},
     422), (b"x", {"Content_Type": "multipart/form-data"}, 400)])
def test_what_an_import_cannot_take_is_refused(
        hospital: Hospital, body: bytes, headers: dict[str, str], status: int) -> None:
    answer = hospital.feed.post("$import", body, **ASYNC, **headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
