"""``make demo``: the whole story on real data, against a gateway it starts itself. Each line says what happened.

Uses the records in ``tests/fixtures/demo``, and further Synthea patients where ``../shared/data`` is there. Exits 1
at the first step that does not come out as it should.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx

from tests.consent import TREATMENT, permitting
from tests.running import REPOSITORY, Gateway
from tests.shared_data import SHARED

FIXTURES = REPOSITORY / "tests" / "fixtures" / "demo"
DOCTOR = "Practitioner/dr-demo"
MORE_PATIENTS = 6


def say(text: str) -> None:
    print(text, flush=True)


def fail(text: str) -> NoReturn:
    print(f"NOT AS IT SHOULD BE: {text}", flush=True)
    raise SystemExit(1)


def expect(condition: bool, text: str) -> None:
    if not condition:
        fail(text)


def sources() -> list[Path]:
    more = sorted((SHARED / "synthea-r4-smart").glob("[A-Z]*.json.gz"))[:MORE_PATIENTS] if SHARED else []
    names = {path.name for path in FIXTURES.iterdir()}
    return [FIXTURES, *(path for path in more if path.name not in names)]


def files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from (sorted(path.glob("*.json*")) if path.is_dir() else [path])


def secrets_in(paths: list[Path]) -> set[str]:
    """Every name, identifier, address line, phone number and birth date that is imported."""
    found: set[str] = set()

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, name)
            if isinstance(value.get("value"), str) and ("system" in value or key in ("identifier", "telecom")):
                found.add(value["value"])
        elif isinstance(value, list):
            for item in value:
                walk(item, key)
        elif isinstance(value, str) and key in ("family", "given", "line", "city", "birthDate", "postalCode", "div"):
            found.add(value)

    for path in files(paths):
        data = path.read_bytes()
        walk(json.loads(gzip.decompress(data) if path.suffix == ".gz" else data), "")
    return {text for text in found if len(text) >= 6}


def wait(question: str, ask: Any, seconds: float = 60) -> float:
    started = time.monotonic()
    while not ask():
        if time.monotonic() - started > seconds:
            fail(f"{question}: not within {seconds:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - started


def answers(client: httpx.Client, urls: list[str]) -> dict[str, Any]:
    """Every answer as a client compares them: status, version and resource; the time of a searchset is its own."""
    found: dict[str, Any] = {}
    for url in urls:
        answer = client.get(url)
        body = answer.json() if answer.content else None
        if isinstance(body, dict) and body.get("type") == "searchset":
            body = [entry["resource"] for entry in body.get("entry", ())]
        found[url] = answer.status_code, answer.headers.get("etag"), body
    return found


def story(gateway: Gateway, folder: Path) -> None:
    say(f"1  the gateway is up on {gateway.base} after {gateway.start():.1f} s, with its own chain and block store")
    paths = sources()
    started = time.monotonic()
    done = gateway.run("import", *[str(path) for path in paths], check=False)
    expect(done.returncode == 0, f"the import refused something:\n{done.stdout}\n{done.stderr[-2000:]}")
    feed = gateway.client("--ttl", "7200")
    counts = {type_: feed.get(f"/{type_}", params={"_summary": "count"}).json()["total"] for type_ in (
        "Patient", "Observation", "Condition", "Encounter", "MedicationStatement", "Appointment")}
    say(f"2  the EHR feed imported {sum(counts.values())} resources and more in {time.monotonic() - started:.1f} s: "
        + ", ".join(f"{count} {type_}" for type_, count in counts.items()))

    patient = feed.get("/Patient", params={"name": "Gutmann"}).json()["entry"][0]["resource"]["id"]
    gateway.run("user", "add", "--user", DOCTOR, "--role", "clinician", "--name", "Dr Demo")
    doctor = gateway.client("--user", DOCTOR, "--ttl", "7200")
    own = gateway.client("--user", f"Patient/{patient}", "--ttl", "7200")
    refused = doctor.get(f"/Patient/{patient}")
    expect(refused.status_code == 404, f"a doctor without a grant got {refused.status_code}")
    hidden = doctor.get("/Observation", params={"subject": f"Patient/{patient}"}).json()
    expect(not hidden.get("entry"), "a doctor without a grant found Observations")
    say(f"3  {DOCTOR} has no grant: reading the patient answers {refused.status_code}, searching finds "
        f"{len(hidden.get('entry', ()))} Observations")
    log = own.get("/AuditEvent", params={"patient": f"Patient/{patient}", "_count": "50"}).json().get("entry", [])
    seen = [entry["resource"] for entry in log if entry["resource"]["outcome"] == "4"]
    expect(bool(seen), "the refusal is not in the patient's audit")
    say(f"4  the patient's audit shows {len(seen)} refusals; the newest: {seen[0]['recorded']} "
        f"{seen[0]['agent'][-1]['who'].get('reference')}: {seen[0].get('outcomeDesc')}")

    consent = own.post("/Consent", json=permitting(patient, DOCTOR, purpose=[TREATMENT]))
    expect(consent.status_code == 201, f"the Consent was refused: {consent.text}")
    id_ = consent.json()["id"]
    terms = own.get(f"/Consent/{id_}/$typed-data").json()["message"]["terms"]["statement"]
    signed = own.post(f"/Consent/{id_}/$sign", json={"resourceType": "Parameters"})
    expect(signed.status_code in (200, 201), f"signing was refused: {signed.text}")
    took = wait("the grant is final", lambda: own.get(f"/Consent/{id_}").json()["status"] == "active")
    say(f"5  the patient reads \"{terms[:110]}…\" and signs; the grant is final on chain and the Consent active "
        f"{took:.1f} s later")
    read = doctor.get(f"/Patient/{patient}")
    expect(read.status_code == 200, f"the doctor is still refused: {read.status_code}")
    found = doctor.get("/Observation", params={"subject": f"Patient/{patient}", "_count": "1000"}).json()["entry"]
    say(f"6  the doctor reads the patient (version {read.headers['etag']}) and finds {len(found)} Observations")

    vread = doctor.get(f"/Patient/{patient}/_history/1")
    receipt_url = f"/Patient/{patient}/_history/1/$receipt"
    wait("the receipt is there", lambda: doctor.get(receipt_url).status_code == 200)
    (folder / "receipt.json").write_bytes(doctor.get(receipt_url).content)
    (folder / "patient.json").write_bytes(vread.content)
    wait("everything is anchored", lambda: gateway.status()["entries"]["pending"] < 200)
    status = gateway.status()
    verified = gateway.run("verify", str(folder / "receipt.json"), "--resource", str(folder / "patient.json"),
                           "--rpc", status["chain"]["rpc"], check=False)
    expect(verified.returncode == 0, f"the receipt does not verify:\n{verified.stdout}{verified.stderr}")
    (folder / "patient.json").write_bytes(vread.content.replace(b"Gutmann", b"Gutmamm"))
    false = gateway.run("verify", str(folder / "receipt.json"), "--resource", str(folder / "patient.json"),
                        "--rpc", status["chain"]["rpc"], check=False)
    expect(false.returncode == 1, "an altered resource verified")
    (folder / "patient.json").unlink()
    say(f"7  its receipt verifies against chain {status['chain']['chain_id']} at head {status['chain']['head']} "
        f"(exit {verified.returncode}); with one letter of the record changed it does not (exit {false.returncode})")

    secrets = secrets_in(paths)
    searched = 0
    data = [path.read_bytes() for path in gateway.data.rglob("*") if path.is_file()]
    log_bytes = gateway.log.read_bytes()
    for content in [*data, log_bytes]:
        searched += len(content)
        for text in secrets:
            expect(text.encode() not in content, f"{text!r} lies on the disk in the clear")
    say(f"8  {len(secrets)} names, identifiers, addresses and dates were looked for in {len(data)} files and the log "
        f"({searched / 1e6:.0f} MB): none was found")

    urls = [f"/Patient/{patient}", f"/Patient/{patient}/_history/1",
            f"/Observation?subject=Patient/{patient}&_count=1000",
            "/Patient?_count=1000", "/Observation?_sort=-date&_count=200", "/MedicationStatement?_count=1000",
            "/Appointment?_count=1000", "/Condition?_count=1000"]
    before = answers(feed, urls) | {f"doctor {url}": value for url, value in answers(doctor, urls[:3]).items()}
    gateway.kill()
    again = gateway.start()
    after = answers(feed, urls) | {f"doctor {url}": value for url, value in answers(doctor, urls[:3]).items()}
    expect(before == after, f"answers differ after kill -9: {[url for url in before if before[url] != after[url]]}")
    say(f"9  kill -9 of every process, ready again after {again:.1f} s: {len(before)} answers are the same")

    started = time.perf_counter()
    ended = own.post(f"/Consent/{id_}/$revoke", json={"resourceType": "Parameters"})
    expect(ended.status_code == 200, f"revoking was refused: {ended.text}")
    last = doctor.get(f"/Patient/{patient}")
    took_ms = (time.perf_counter() - started) * 1000
    expect(last.status_code == 404, f"the doctor still reads after the revocation: {last.status_code}")
    say(f"10 the patient revokes; {took_ms:.0f} ms later the doctor's read answers {last.status_code}")
    wait("the revocation is on chain", lambda: not any(
        gateway.status()["entries"].get("intents", {}).get(state) for state in ("signed", "submitted", "mined")))
    say("   and the revocation is on the chain")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gateway-demo-") as name:
        gateway = Gateway(Path(name))
        try:
            story(gateway, Path(name))
        finally:
            gateway.stop()
            if sys.exc_info()[0] is not None and gateway.log.exists():
                print(gateway.log.read_text()[-3000:], file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
