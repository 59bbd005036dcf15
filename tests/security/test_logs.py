"""No token, key, code, secret or name is logged: by any process, at debug, in an error, a metric or a command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.cli import _parser
from gateway.config import SETTINGS, load_settings
from tests.running import REPOSITORY, Gateway

SUITE = ["tests/conformance/test_smart.py", "tests/journeys/test_people.py", "tests/journeys/test_launch_flow.py",
         "tests/journeys/test_registration.py", "tests/journeys/test_access.py", "tests/journeys/test_search.py",
         "tests/journeys/test_consents.py", "tests/journeys/test_conditional.py"]
NAME, NUMBER, STREET = "Quillfeather", "MRN-77310042-Z", "Tanglewood Crescent 9"


def watched(log: Path, *files: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.security.log_watch", "-p", "no:logging",
         "-p", "no:cacheprovider", "--log-watch", str(log), *files], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def test_the_journeys_log_nothing_that_was_said_in_confidence(tmp_path: Path) -> None:
    done = watched(tmp_path / "log", *SUITE)
    summary = re.search(r"log watch: (\d+) secrets.*, (\d+) lines, 0 logged", done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    assert summary is not None
    assert int(summary[1]) > 500
    assert int(summary[2]) > 500
    for kind in ("Authorization", "Cookie", "form password", "form code", "refresh_token", "client_secret", "launch",
                 "family", "identifier"):
        assert kind in summary[0], kind


@pytest.mark.parametrize("said", ["logging.getLogger('gateway').info(TOKEN)",
                                  "logging.getLogger('gateway').debug('x', extra={'what': TOKEN})",
                                  "logging.getLogger('authlib').debug('%r', {'access_token': TOKEN})"])
def test_the_watch_finds_what_is_logged(tmp_path: Path, said: str) -> None:
    (tmp_path / "test_leak.py").write_text(
        "import logging\nimport httpx\nTOKEN = 'gw_' + 'x' * 43\n\ndef test_leak():\n"
        "    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:\n"
        f"        client.get('http://a/', headers={{'Authorization': f'Bearer {{TOKEN}}'}})\n    {said}\n")
    done = watched(tmp_path / "log", str(tmp_path / "test_leak.py"))
    assert done.returncode == 3, done.stdout
    assert "x" * 43 not in done.stdout


def test_no_process_of_a_running_gateway_tells_of_a_request(impatient: Gateway) -> None:
    token, client = impatient.token(), impatient.client()
    with client:
        made = client.post("/Patient", json={
            "resourceType": "Patient", "name": [{"family": NAME, "given": ["Ottoline"]}], "birthDate": "1931-07-19",
            "identifier": [{"system": "urn:mrn", "value": NUMBER}], "address": [{"line": [STREET]}]})
        assert made.status_code == 201
        assert client.get("/Patient", params={"name": NAME, "identifier": f"urn:mrn|{NUMBER}"}).json()["entry"]
        client.get(f"/{NAME}", params={NUMBER: STREET})
        client.get(f"/Patient/{NAME}")
        client.post("/Patient", json={"resourceType": "Patient", "name": NAME, "birthDate": NUMBER})
        client.post("/Patient/_search", content=f"name={NAME}&foo={NUMBER}",
                    headers={"Content-Type": "application/x-www-form-urlencoded"})
        client.get("/Patient", params={"name:nonsense": NAME})
        client.post("", json={"resourceType": "Bundle", "type": "batch", "entry": [
            {"request": {"method": "GET", "url": f"Patient?name={NAME}"}}]})
    origin = impatient.base.removesuffix("/fhir")
    wrong = f"gw_{'W' * 43}"
    httpx.get(f"{impatient.base}/Patient?name={NAME}", headers={"Authorization": f"Bearer {wrong}"})
    for path in ("/oauth/token", "/oauth/introspect", "/oauth/revoke"):
        httpx.post(origin + path, data={"grant_type": "authorization_code", "code": wrong, "client_id": NAME,
                                        "client_secret": wrong, "token": token}, auth=(NAME, wrong))
    httpx.get(origin + f"/oauth/authorize?client_id={NAME}&state={wrong}&login_hint={NUMBER}")
    httpx.get(origin + f"/portal/{NAME}?token={wrong}")
    for text in (f"GET /fhir/Patient?name={NAME} HTTP/9.9\r\n\r\n", f"GET /fhir/Patient?name={NAME} HTTP/1.1\r\n\r\n",
                 f"{NAME} / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {wrong}\r\n\r\n",
                 f"GET /?{NUMBER} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", impatient.port), timeout=10) as connection:
            connection.sendall(text.encode())
            with contextlib.suppress(OSError):
                connection.recv(65_536)
    told = {"the log": impatient.log.read_text(errors="replace"), "metrics": httpx.get(f"{origin}/metrics").text,
            "health": httpx.get(f"{origin}/health/ready").text, "status": impatient.run("status").stdout}
    keys = [path.read_text(errors="replace") for path in (impatient.data / "keys").glob("*.key")]
    accounts = (impatient.data / "keys" / "chain-accounts.json").read_text()
    secret = [token, wrong, NAME, NUMBER, STREET, "Ottoline", "1931-07-19", made.json()["id"],
              *(key.strip() for key in keys if key.isprintable()), *re.findall(r"[0-9a-f]{64}", accounts)]
    assert len(secret) > 8
    for where, text in told.items():
        for one in secret:
            assert one not in text, f"{where} holds {one[:6]}..."
    assert '"event":"request"' in told["the log"].replace(" ", ""), "at this level requests are logged"


def test_an_unknown_error_is_logged_by_its_place_alone(caplog: pytest.LogCaptureFixture) -> None:
    from gateway.logs import JsonLines
    from gateway.web.errors import rendered

    try:
        raise RuntimeError(f"Bearer {NAME}")
    except RuntimeError as error:
        status, issues, _ = rendered(error)
    assert status == 500
    assert NAME not in str(issues)
    assert NAME not in "".join(JsonLines().format(record) for record in caplog.records)


# Secrets come from files, and from nowhere else

def test_no_command_takes_a_secret_as_an_argument() -> None:
    """What stands in argv is in /proc for every user of the machine, and in the shell's history."""
    secret = re.compile(r"(^|-)(secret|password|passphrase|key|token|pin|seed|mnemonic|credential)s?$")
    found: list[str] = []

    def walk(parser: object, words: tuple[str, ...]) -> None:
        for action in parser._actions:  # type: ignore[attr-defined]  # argparse has no way to ask
            for option in action.option_strings:
                if secret.search(option.lstrip("-")):
                    found.append(" ".join((*words, option)))
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for name, inner in action.choices.items():
                    walk(inner, (*words, name))

    walk(_parser(), ())
    assert found == []


def test_no_setting_and_no_value_of_one_is_a_secret(tmp_path: Path) -> None:
    for setting in SETTINGS:
        if re.search(r"secret|password|key", setting.name):
            assert setting.name.endswith(("_file", "_dir")), setting.name
    held = tmp_path / "secret"
    held.write_text("hush-hush-hush")
    shown = repr(load_settings({"GATEWAY_OIDC_CLIENT_SECRET_FILE": str(held),
                                "GATEWAY_CHAIN_OPERATOR_KEY_FILE": str(held)}))
    assert "hush" not in shown


def test_no_process_shows_a_secret_in_its_command_line_or_environment(impatient: Gateway) -> None:
    accounts = json.loads((impatient.data / "keys" / "chain-accounts.json").read_text())
    secrets = re.findall(r"[0-9a-f]{64}", json.dumps(accounts))
    secrets += [path.read_bytes().hex() for path in (impatient.data / "keys").glob("root.key")]
    secrets += [path.read_text(errors="replace").strip() for path in (impatient.data / "keys").glob("root.key")]
    assert len(secrets) > 2
    for pid in impatient.children():
        for file in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{file}").read_bytes().decode("latin-1")
            for secret in secrets:
                assert secret not in text


def test_what_holds_a_key_is_its_owners_alone(impatient: Gateway) -> None:
    for path in (impatient.data / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name
    assert (impatient.data / "store" / "gateway.db").stat().st_mode & 0o077 == 0


def test_secrets_hide_themselves_when_shown() -> None:
    from gateway.smart.tokens import new_secret

    secret = new_secret()
    assert str(secret) not in repr(secret)
    assert str(secret) not in f"{({'access_token': secret})!r}"
    out = io.StringIO()
    print([secret], {"a": secret}, file=out)
    assert str(secret) not in out.getvalue()
