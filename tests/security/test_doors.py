"""What every door does alike: strict headers, limits in its own words, nothing of the caller's choosing in a header."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.errors import Misconfigured
from gateway.fhir.packages import Packages
from gateway.store.sql import Database
from tests.journeys.hospital import Hospital, observation, reopened

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
DOORS = [
    ("GET", "/fhir/metadata"), ("GET", "/fhir/Patient"), ("GET", "/fhir/nonsense"), ("OPTIONS", "/fhir/Patient"),
    ("GET", "/fhir/.well-known/smart-configuration"), ("GET", "/fhir/.well-known/nothing"), ("POST", "/oauth/token"),
    ("POST", "/oauth/introspect"), ("POST", "/oauth/revoke"), ("GET", "/oauth/token"), ("GET", "/oauth/authorize"),
    ("GET", "/oauth/nothing"), ("GET", "/portal"), ("GET", "/portal/sign-in"), ("GET", "/portal/static/portal.css"),
    ("GET", "/portal/nothing"), ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/metrics"), ("GET", "/"),
    ("GET", "/nothing"), ("DELETE", "/health/live"), ("TRACE", "/"), ("TRACE", "/fhir/Patient")]


def ask(hospital: Hospital, method: str, path: str, **more: Any) -> httpx.Response:
    origin = hospital.base.removesuffix("/fhir")
    return hospital.run(hospital.http.request(method, origin + path, **more))


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_every_answer_of_every_door_has_the_strict_headers(hospital: Hospital, method: str, path: str) -> None:
    answer = ask(hospital, method, path)
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] in ("no-referrer", "same-origin")
    assert "default-src 'none'" in headers["content-security-policy"] or "frame-ancestors" in (
        headers["content-security-policy"])
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "server" not in headers
    assert "x-powered-by" not in headers
    assert "strict-transport-security" not in headers
    assert answer.status_code < 500
    for name in ("cache-control", "content-security-policy", "x-content-type-options", "referrer-policy"):
        assert len(headers.get_list(name)) == 1, name
    if path not in ("/fhir/metadata", "/portal/static/portal.css"):
        assert headers["cache-control"] == "no-store"
    else:
        assert headers["cache-control"] == "no-cache"  # public, and asked for anew


def test_data_is_never_kept_and_never_shared_between_callers_by_a_cache(hospital: Hospital) -> None:
    """Cache poisoning: what an answer depends on is in Vary, and what is personal is not stored."""
    patient = hospital.new_patient()
    for answer in (hospital.feed.get(f"Patient/{patient}"), hospital.feed.get("Patient"),
                   hospital.feed.get(f"Patient/{patient}/_history"), hospital.feed.get("Patient/absent"),
                   hospital.feed.post("Observation", observation(patient))):
        assert answer.headers["cache-control"] == "no-store"
        assert {"accept", "accept-encoding", "authorization"} <= {
            part.strip().lower() for line in answer.headers.get_list("vary") for part in line.split(",")}


def test_an_origin_that_is_let_in_is_in_vary(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(cors_origins="https://app.example")
    answer = hospital.feed.get("metadata", Origin="https://app.example")
    assert "origin" in ",".join(answer.headers.get_list("vary")).lower()
    other = hospital.feed.get("metadata", Origin="https://evil.example")
    assert "access-control-allow-origin" not in other.headers


def test_https_is_said_to_stay(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(base_url="https://gateway.example/fhir")
    for path in ("/fhir/metadata", "/health/live", "/portal/static/portal.css", "/oauth/token"):
        assert ask(hospital, "GET", path).headers["strict-transport-security"] == "max-age=31536000"


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "Forwarded", "X-Original-URL", "X-Rewrite-URL", "Host",
                                  "X-HTTP-Method-Override", "X-Host", "X-Forwarded-Prefix"])
def test_no_header_changes_where_links_lead_or_what_is_done(hospital: Hospital, name: str) -> None:
    patient = hospital.new_patient()
    value = "DELETE" if "Method" in name else "evil.example"
    for url in ("Patient?_count=1", "metadata", f"Patient/{patient}"):
        answer = hospital.feed.get(url, **{name: value})
        assert answer.status_code == 200
        assert "evil.example" not in answer.text + str(answer.headers)
    assert hospital.feed.get(f"Patient/{patient}").status_code == 200


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: x=y", "a\nb", "a%0d%0aSet-Cookie:%20x=y", "\u2028", "a\x00b"])
def test_nothing_sent_becomes_a_header_of_its_own(hospital: Hospital, text: str) -> None:
    """Response splitting: through ids, conditions, types of content, and the state of OAuth."""
    patient = hospital.new_patient()
    binary = hospital.feed.post("Binary", {"resourceType": "Binary", "contentType": text, "data": "aGk="})
    asked = {"state": text, "redirect_uri": text, "client_id": text, "scope": text}
    answers = [binary, ask(hospital, "GET", "/oauth/authorize", params=asked),
               ask(hospital, "GET", "/portal/sign-in", params={"next": text})]
    if binary.status_code == 201:
        answers.append(hospital.feed.get(f"Binary/{binary.json()['id']}", Accept="*/*"))
    answers.append(hospital.run(hospital.http.get(f"/Patient/{patient}", params={"_format": text}, headers={
        "Authorization": f"Bearer {hospital.feed.token}"})))
    for answer in answers:
        assert "set-cookie" not in answer.headers or "x=y" not in answer.headers["set-cookie"]
        for name, value in answer.headers.raw:
            assert not {b"\r"[0], b"\n"[0], 0} & {*name, *value}


# Limits, in the words of the door

def test_a_client_that_asks_too_fast_is_told_when_to_ask_again(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(client_requests_per_s="2")
    people = [hospital.clinician(f"of-one-app-{number}") for number in range(6)]
    answers = hospital.together(*(client.send("GET", "Patient") for _ in range(10) for client in people))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 20 <= len(refused) <= 40
    [issue] = refused[0].json()["issue"]
    assert (refused[0].json()["resourceType"], issue["code"]) == ("OperationOutcome", "throttled")
    assert 1 <= int(refused[0].headers["retry-after"]) <= 10
    assert refused[0].headers["cache-control"] == "no-store"
    assert hospital.feed.get("Patient").status_code == 200


def test_one_person_waits_and_another_does_not(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(account_requests_per_s="1")
    one, other = hospital.clinician("fast"), hospital.clinician("slow")
    twin = hospital.clinician("fast")  # another token of the same person is the same person
    answers = hospital.together(*(client.send("GET", "Patient") for _ in range(15) for client in (one, twin)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert other.get("Patient").status_code == 200
    assert hospital.feed.get("Patient").status_code == 200


def test_the_entries_of_a_bundle_count_as_requests(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(account_requests_per_s="2")
    doctor = hospital.clinician("bundler")
    entries = [{"request": {"method": "GET", "url": "Patient"}} for _ in range(40)]
    assert doctor.post("", {"resourceType": "Bundle", "type": "batch", "entry": entries}).status_code == 200
    assert doctor.get("Patient").status_code == 429


def test_strangers_are_limited_by_address_at_every_door(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(address_requests_per_s="1")
    found = hospital.together(*(hospital.http.get("/Patient") for _ in range(40)))
    assert {answer.status_code for answer in found} == {401, 429}
    for method, path, kind in (("GET", "/fhir/metadata", "application/fhir+json"),
                               ("GET", "/health/live", "application/json"),
                               ("POST", "/oauth/token", "application/json"), ("GET", "/portal/sign-in", "text/html")):
        answer = ask(hospital, method, path)
        assert answer.status_code == 429, path
        assert answer.headers["content-type"].startswith(kind)
        assert int(answer.headers["retry-after"]) >= 1
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    token = ask(hospital, "POST", "/oauth/token").json()
    assert set(token) == {"error", "error_description"}
    assert hospital.feed.get("Patient").status_code == 200, "who shows a good token is no stranger"


def test_an_address_is_the_one_a_trusted_proxy_saw(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(address_requests_per_s="1", trusted_proxies="127.0.0.0/8")

    def asked(forwarded: str) -> int:
        return ask(hospital, "GET", "/health/live", headers={"X-Forwarded-For": forwarded}).status_code

    origin = hospital.base.removesuffix("/fhir")
    many = hospital.together(*(hospital.http.get(f"{origin}/health/live", headers={"X-Forwarded-For": "203.0.113.1"})
                               for _ in range(40)))
    assert {answer.status_code for answer in many} == {200, 429}
    assert asked("203.0.113.2") == 200
    assert asked("198.51.100.77, 203.0.113.1") == 429, "what the client wrote before it does not help"


def test_failed_token_requests_are_counted_by_all_workers_together(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(address_failures="6")
    other = reopened(hospital)
    body = "grant_type=client_credentials&client_id=nobody"

    def tried(worker: Hospital) -> httpx.Response:
        return ask(worker, "POST", "/oauth/token", content=body, headers=FORM)

    for turn in range(6):
        assert tried((hospital, other)[turn % 2]).status_code in (400, 401)
    for worker in (hospital, other):
        refused = tried(worker)
        assert refused.status_code == 429
        assert refused.json()["error"] == "temporarily_unavailable"
        assert 200 < int(refused.headers["retry-after"]) <= 300
    rows = hospital.database.reader.execute("SELECT key FROM door_failure").fetchall()
    assert len(rows) == 1
    assert b"127.0.0.1" not in rows[0][0]


def test_a_read_that_takes_too_long_is_ended_and_told_so(hospital_with: Callable[..., Hospital],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = hospital_with(read_timeout_s="1")
    patient = hospital.new_patient()

    async def never(*_: Any, **__: Any) -> None:
        await asyncio.sleep(60)

    with monkeypatch.context() as stuck:
        stuck.setattr("gateway.audit.Disclosures.join", never)
        answer = hospital.feed.get(f"Patient/{patient}")
    assert answer.status_code == 503
    [issue] = answer.json()["issue"]
    assert issue["code"] == "timeout"
    assert "retry-after" in answer.headers
    assert hospital.feed.get(f"Patient/{patient}").status_code == 200


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke", "/oauth/register",
                                  "/oauth/authorize", "/portal/sign-in", "/portal/sign-up"])
def test_a_body_beyond_any_form_is_not_read_to_its_end(hospital: Hospital, path: str) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 4_000_000:
            sent += 65_536
            yield b"a" * 65_536

    async def receive_counted() -> tuple[int, int]:
        pieces, read = endless(), 0
        status = 0

        async def receive() -> dict[str, Any]:
            nonlocal read
            read += 65_536
            return {"type": "http.request", "body": await anext(pieces), "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        kind = b"application/json" if path.endswith("register") else b"application/x-www-form-urlencoded"
        await hospital.app({"type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
                            "query_string": b"", "headers": [(b"content-type", kind), (b"host", b"127.0.0.1:8080"),
                                                             (b"origin", b"http://127.0.0.1:8080")],
                            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080), "scheme": "http",
                            "http_version": "1.1", "root_path": "", "state": {}}, receive, send)
        return status, read

    status, read = hospital.run(receive_counted())
    assert 400 <= status < 500
    assert read <= 262_144


def test_bombs_are_refused_at_once(hospital: Hospital) -> None:
    """XML entities, deep and wide JSON and XML, and bodies that inflate without end."""
    laughs = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10 if n else b"&a;" * 10) for n in range(9)) + b"]>" \
        b'<Patient xmlns="http://hl7.org/fhir"><id value="&a8;"/></Patient>'
    outside = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]>' \
              b'<Patient xmlns="http://hl7.org/fhir"><id value="&x;"/></Patient>'
    deep_json = b'{"resourceType":"Patient","extension":' + b"[{" * 5_000
    nested = b'{"resourceType":"Patient","contact":' + b'[{"a":' * 3_000 + b"1" + b"}]" * 3_000 + b"}"
    deep_xml = b'<Patient xmlns="http://hl7.org/fhir">' + b"<extension>" * 5_000
    xml = {"Content_Type": "application/fhir+xml"}
    for body, headers in ((laughs, xml), (outside, xml), (deep_xml, xml), (deep_json, {}), (nested, {}),
                          (b'{"resourceType":"Patient","multipleBirthInteger":1' + b"0" * 100_000 + b"}", {})):
        answer = hospital.feed.post("Patient", body, **headers)
        assert 400 <= answer.status_code < 500, answer.text[:300]
        assert "root:" not in answer.text
        assert len(answer.content) < 20_000


@pytest.mark.parametrize("path", [
    "/fhir/Binary/../../etc/passwd", "/fhir/Binary/..%2f..%2fetc%2fpasswd", "/fhir/Binary/%2e%2e%2f%2e%2e",
    "/fhir//etc/passwd", "/fhir/Binary/....//....//etc/passwd", "/portal/static/../pages.py",
    "/portal/static/..%2fpages.py", "/portal/static/%2e%2e%2fsession.py", "/portal/static/..%5cpages.py",
    "/portal/static//etc/passwd", "/portal/static/portal.css%00.js", "/fhir/Patient/..%00", "/fhir/%c0%ae%c0%ae/x"])
def test_no_path_leaves_its_door(hospital: Hospital, path: str) -> None:
    origin = hospital.base.removesuffix("/fhir")
    request = httpx.Request("GET", origin + "/", headers={"Authorization": f"Bearer {hospital.feed.token}"})
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = hospital.run(hospital.http.send(request))
    assert 400 <= answer.status_code < 500, answer.text[:200]
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_the_files_of_packages_stay_in_their_package(tmp_path: Any) -> None:
    """A package that names files outside of itself is read without them."""
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"resourceType": "StructureDefinition", "url": "urn:secret", "id": "s"}))
    archive = tmp_path / "evil.tgz"
    with tarfile.open(archive, "w:gz") as made:
        for name in ("package/package.json", f"package/../../{secret.name}", str(secret)):
            body = b'{"name":"evil","version":"1.0.0","fhirVersions":["4.0.1"]}'
            info = tarfile.TarInfo(name)
            info.size = len(body)
            made.addfile(info, io.BytesIO(body))
        link = tarfile.TarInfo("package/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        made.addfile(link)
    before = sorted(path.name for path in tmp_path.iterdir())
    with contextlib.suppress(Misconfigured):  # refused whole is as good as read without them
        assert "urn:secret" not in Packages.load((archive,)).urls("StructureDefinition")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_held_writer_fails_requests_and_not_the_door(hospital_with: Callable[..., Hospital],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn at the database that nobody gives back is told as 503 in time."""
    monkeypatch.setattr("gateway.store.sql._LOCK_TIMEOUT_S", 0.3)
    hospital = hospital_with()
    patient = hospital.new_patient()
    holder: Database = hospital.database
    holder.begin()
    try:
        answer = hospital.feed.post("Observation", observation(patient))
        assert answer.status_code == 503
        assert answer.json()["resourceType"] == "OperationOutcome"
    finally:
        holder.end(commit=False)
    assert hospital.feed.post("Observation", observation(patient)).status_code == 201
