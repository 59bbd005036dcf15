"""Chromium and SMART apps that are not ours: npm's fhirclient, as built for browsers, and Python's, with a secret.

The browser is the system's own: ``chromium`` on PATH, or what ``apt-get install chromium`` brings.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.consent import consent
from tests.real.chromium import chromium
from tests.real.foreign import seen_by
from tests.running import Gateway

pytestmark = pytest.mark.real
CLIENTS = Path(__file__).with_name("clients")
PASSWORD = "correct horse battery staple 7"
SCOPES = "openid fhirUser launch/patient offline_access patient/Patient.rs patient/Observation.rs patient/Condition.rs"
WAIT_MS = 20_000
PHONE, DESK = 360, 1280


@pytest.fixture(scope="module")
def app(node: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app's origin, served on loopback. ``node``: its library is installed."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(CLIENTS / "app", folder, dirs_exist_ok=True)
    shutil.copy(CLIENTS / "node_modules/fhirclient/build/fhir-client.js", folder)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def gateway(app: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    # A passkey belongs to a name, never to an address.
    running = Gateway(tmp_path_factory.mktemp("gateway"), name="localhost")
    running.start()
    with running.client() as feed:
        for path, resource in RECORDS.items():
            feed.put(f"/{path}", json=resource).raise_for_status()
    yield running
    running.stop()


def observation(id_: str, category: str) -> dict[str, Any]:
    return {"resourceType": "Observation", "id": id_, "status": "final", "subject": {"reference": "Patient/anna"},
            "code": {"text": id_}, "category": [{"coding": [{
                "system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": category}]}]}


RECORDS: dict[str, dict[str, Any]] = {
    "Patient/anna": {"resourceType": "Patient", "id": "anna", "name": [{"family": "Annasdottir", "given": ["Anna"]}]},
    "Practitioner/house": {"resourceType": "Practitioner", "id": "house", "name": [{"family": "House"}]},
    "Observation/lab": observation("lab", "laboratory"), "Observation/pulse": observation("pulse", "vital-signs"),
    "Encounter/visit": {"resourceType": "Encounter", "id": "visit", "status": "in-progress", "class": {
        "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "subject": {"reference": "Patient/anna"}},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A new browser of somebody."""
    made = browser.new_context(viewport={"width": PHONE, "height": 740})
    made.set_default_timeout(WAIT_MS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def anna(gateway: Gateway) -> str:
    """The patient's login."""
    add_login(gateway, "Patient/anna", "patient", "anna")
    return "anna"


@pytest.fixture(scope="module")
def house(gateway: Gateway, browser: Browser, anna: str) -> Iterator[BrowserContext]:
    """The browser of a clinician who signed in, and whom the patient permits to see everything."""
    told = add_login(gateway, "Practitioner/house", "clinician", "house")
    permit(gateway, "Practitioner/house")
    made = browser.new_context(viewport={"width": PHONE, "height": 740})
    made.set_default_timeout(WAIT_MS)
    page = made.new_page()
    page.goto(f"http://localhost:{gateway.port}/portal/account")
    sign_in(page, "house")
    page.get_by_role("alert").filter(has_text="Staff also need a code").wait_for()
    sign_in(page, "house", code_of(told))
    page.get_by_role("heading", name="My sign-in").wait_for()
    yield made
    made.close()


def add_login(gateway: Gateway, user: str, role: str, login: str) -> str:
    """What the operator is told."""
    secret = gateway.folder / "password"
    secret.write_text(PASSWORD)
    return gateway.run("user", "add", "--user", user, "--role", role, "--name", login.capitalize(), "--login", login,
                       "--password-file", str(secret)).stdout


def code_of(told: str) -> str:
    """What an authenticator app shows now that took the address the operator was told."""
    found = re.search(r"otpauth://\S+", told)
    assert found is not None, told
    seed = parse_qs(urlsplit(found[0]).query)["secret"][0]
    codes = TOTP(base64.b32decode(seed + "=" * (-len(seed) % 8)), 6, SHA1(), 30)  # noqa: S303  # RFC 6238
    return codes.generate(time.time()).decode()


@pytest.fixture(scope="module")
def client_id(gateway: Gateway, app: str) -> str:
    return gateway.run("client", "add", "--kind", "app", "--auth", "none", "--name", "Growth chart", "--scope",
                       f"launch {SCOPES}", "--redirect-uri", f"{app}/index.html", "--launch-uri",
                       f"{app}/launch.html").stdout.split()[0]


def sign_in(page: Page, name: str, code: str = "") -> None:
    page.get_by_label("Login name").fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Code, if you have set up codes").fill(code)
    page.get_by_role("button", name="Sign in", exact=True).click()


def stands_at(page: Page, heading: str, gateway: Gateway) -> None:
    """The page with this heading is there, and sticks out to the side on no screen; kept as pictures."""
    page.get_by_role("heading", name=heading, level=1).wait_for()
    page.wait_for_load_state()
    for width in (DESK, PHONE):
        page.set_viewport_size({"width": width, "height": 740})
        page.screenshot(path=str(gateway.folder / f"{heading.replace(' ', '-')}-{width}.png"), full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (heading, width)


def told(page: Page) -> dict[str, Any]:
    """What the app shows once it has what it came for."""
    page.wait_for_function("document.getElementById('out') && document.getElementById('out').textContent")
    found: dict[str, Any] = json.loads(page.locator("#out").inner_text())
    return found


def test_a_patient_launches_an_app_alone_narrows_it_and_ends_it(gateway: Gateway, app: str, client_id: str, anna: str,
                                                                context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{app}/launch.html?{urlencode({'iss': gateway.base, 'client': client_id, 'scope': SCOPES})}")
    stands_at(page, "Sign in to", gateway)
    sign_in(page, anna)
    stands_at(page, "Growth chart asks for access", gateway)
    page.get_by_label("Laboratory results", exact=False).first.check()
    page.get_by_role("button", name="Allow", exact=True).click()
    seen = told(page)
    assert (seen.get("patient"), seen["family"], seen["user"], seen["userType"]) == (
        "anna", "Annasdottir", "Patient/anna", "Patient"), seen
    assert (seen["categories"], seen["refreshable"]) == (["laboratory"], False)
    assert "patient/Observation.rs?category=" in seen["scope"]
    assert "patient/Observation.rs " not in f"{seen['scope']} "
    portal = context.new_page()
    portal.goto(f"http://localhost:{gateway.port}/portal")
    stands_at(portal, "Welcome", gateway)
    portal.get_by_role("link", name="My sign-in").click()
    stands_at(portal, "My sign-in", gateway)
    portal.goto(f"http://localhost:{gateway.port}/portal/apps")
    stands_at(portal, "Apps and what they may do", gateway)
    portal.get_by_role("button", name="Revoke the access of Growth chart").click()
    portal.get_by_text("No app has access through you.").wait_for()
    assert page.evaluate("client.request('Patient/anna').then(() => 200, (error) => error.statusCode)") == 401


def test_an_ehr_launches_an_app_for_its_patient(gateway: Gateway, app: str, client_id: str,
                                                house: BrowserContext) -> None:
    page = house.new_page()
    with gateway.client() as feed:
        opened = httpx.post(f"http://localhost:{gateway.port}/oauth/launch", headers={
            "Authorization": feed.headers["Authorization"]}, json={
                "client_id": client_id, "patient": "Patient/anna", "encounter": "Encounter/visit",
                "need_patient_banner": False})
    assert opened.status_code == 201, opened.text
    scope = f"launch {SCOPES}".replace("launch/patient ", "").replace(" offline_access", "")
    page.goto(f"{opened.json()['launch_url']}&{urlencode({'client': client_id, 'scope': scope})}")
    page.get_by_role("heading", name="Growth chart asks for access").wait_for()
    assert page.get_by_text("cannot be changed here").is_visible()
    page.get_by_role("button", name="Allow", exact=True).click()
    seen = told(page)
    assert (seen.get("patient"), seen["encounter"], seen["userType"]) == ("anna", "visit", "Practitioner"), seen
    assert (seen["banner"], seen["refreshable"]) == (False, False)
    assert seen["categories"] == ["laboratory", "vital-signs"]
    assert httpx.get(seen["style"]).status_code == 200


def test_a_clinician_launches_an_app_alone_and_picks_the_patient(gateway: Gateway, app: str, client_id: str,
                                                                 house: BrowserContext) -> None:
    page = house.new_page()
    page.goto(f"{app}/launch.html?{urlencode({'iss': gateway.base, 'client': client_id, 'scope': SCOPES})}")
    stands_at(page, "Growth chart: which patient?", gateway)
    page.get_by_label("Name", exact=True).first.fill("annasdottir")
    page.get_by_role("button", name="Find").click()
    page.get_by_role("button", name="Anna Annasdottir").wait_for()
    stands_at(page, "Growth chart: which patient?", gateway)
    page.get_by_role("button", name="Anna Annasdottir").click()
    stands_at(page, "Growth chart asks for access", gateway)
    page.get_by_label("Also while I am away").check()
    page.get_by_role("button", name="Allow", exact=True).click()
    seen = told(page)
    assert (seen.get("patient"), seen["userType"], seen["refreshable"]) == ("anna", "Practitioner", True), seen


def test_a_confidential_app_of_python_keeps_its_access(gateway: Gateway, app: str, anna: str, foreign_python: str,
                                                       context: BrowserContext) -> None:
    """fhirclient discovers by the CapabilityStatement, authenticates by client_secret_basic and renews its token."""
    redirect, scope = f"{app}/after.html", "openid fhirUser offline_access patient/Patient.rs patient/Observation.rs"
    id_, secret = gateway.run(
        "client", "add", "--kind", "app", "--auth", "client_secret_basic", "--name", "Diary", "--scope",
        f"launch/patient {scope}", "--redirect-uri", redirect).stdout.split()
    page = context.new_page()

    def answer(said: dict[str, Any]) -> dict[str, Any]:
        page.goto(said["visit"])
        sign_in(page, anna)
        page.get_by_label("Also while I am away").check()
        page.get_by_role("button", name="Allow", exact=True).click()
        page.wait_for_url(f"{redirect}?*")
        return {"url": page.url}

    seen = seen_by([foreign_python, str(CLIENTS / "python_smart_app.py"), gateway.base, id_, secret, redirect, scope],
                   answer)
    assert (seen["patient"], seen["family"], seen["again"]) == ("anna", "Annasdottir", "Annasdottir")
    assert (seen["observations"], seen["conditions"]) == (["lab", "pulse"], 403)
    assert (seen["renewed"], seen["rotated"]) == (True, True)
    assert set(seen["scope"].split()) == {"launch/patient", *scope.split()}


def permit(gateway: Gateway, grantee: str) -> None:
    """The patient lets ``grantee`` see everything; final on the chain when this returns."""
    with gateway.client("--user", "Patient/anna") as anna:
        made = anna.post("/Consent", json=consent("anna", grantee))
        made.raise_for_status()
        anna.post(f"/Consent/{made.json()['id']}/$sign", json={"resourceType": "Parameters"}).raise_for_status()
        for _ in range(200):
            if anna.get(f"/Consent/{made.json()['id']}").json()["status"] == "active":
                return
            threading.Event().wait(0.1)
    raise AssertionError("the grant did not become final within 20 s")
