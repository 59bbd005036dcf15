"""The portal in Chromium: passkeys by its virtual authenticator, a wallet by EIP-6963, narrow screens, no scripts.

https://www.w3.org/TR/webauthn-2/#sctn-automation, https://eips.ethereum.org/EIPS/eip-6963
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from playwright import sync_api

from tests.real.chromium import chromium
from tests.running import Gateway

pytestmark = pytest.mark.real
PASSWORD = "correct horse battery staple"
WALLET = """
const provider = { request: async ({ method, params }) =>
  method === "eth_requestAccounts" ? [await window.walletAddress()] : await window.walletSign(params[0]) };
const announce = () => window.dispatchEvent(new CustomEvent("eip6963:announceProvider", { detail: Object.freeze({
  info: { uuid: "350670db-19fa-4704-a166-e52e178b59d2", name: "Test", icon: "data:,", rdns: "test.example" },
  provider }) }));
window.addEventListener("eip6963:requestProvider", announce);
announce();
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    # A name: WebAuthn knows no addresses.
    running = Gateway(tmp_path_factory.mktemp("gateway"), name="localhost")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    path = chromium()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(gateway: Gateway, browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """A page 360 px wide; what the browser complains of (a policy broken, a script's error) fails the test."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, base_url=f"http://localhost:{gateway.port}")
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def patient(gateway: Gateway, folder: Path, name: str) -> str:
    """A patient with a login; their logical id."""
    file = folder / "password"
    file.write_text(PASSWORD)
    with gateway.client() as feed:
        id_ = str(feed.post("/Patient", json={"resourceType": "Patient"}).json()["id"])
    gateway.run("user", "add", "--user", f"Patient/{id_}", "--role", "patient", "--name", "Ada Example",
                "--login", name, "--password-file", str(file))
    return id_


def sign_in(page: sync_api.Page, name: str) -> None:
    page.goto("/portal/account")
    page.get_by_label("Login name").fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("heading", name="My sign-in").wait_for()


def fits(page: sync_api.Page) -> bool:
    """Nothing sticks out to the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_a_passkey_is_made_and_signs_in(gateway: Gateway, page: sync_api.Page, tmp_path: Path) -> None:
    id_ = patient(gateway, tmp_path, "ada")
    devices = page.context.new_cdp_session(page)
    devices.send("WebAuthn.enable")
    devices.send("WebAuthn.addVirtualAuthenticator", {"options": {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True}})
    sign_in(page, "ada")
    assert fits(page)
    page.get_by_label("A name to know it by").fill("Test phone")
    page.get_by_role("button", name="Add a passkey").click()
    page.get_by_text("Test phone", exact=True).wait_for()
    page.get_by_role("button", name="Sign out everywhere").click()
    page.get_by_role("heading", name="Sign in to").wait_for()
    assert fits(page)
    page.get_by_role("button", name="Use a passkey").click()
    page.get_by_role("heading", name="Welcome").wait_for()
    page.goto("/portal/account")
    assert page.get_by_text(f"Patient/{id_}").is_visible()
    page.get_by_text("with a passkey").wait_for()


def test_a_wallet_is_registered_and_signs_in(gateway: Gateway, page: sync_api.Page, tmp_path: Path) -> None:
    patient(gateway, tmp_path, "bea")
    wallet, shown = Account.create(), list[str]()

    def sign(hex_text: str) -> str:
        text = bytes.fromhex(hex_text.removeprefix("0x")).decode()
        shown.append(text)
        return "0x" + wallet.sign_message(encode_defunct(text=text)).signature.hex().removeprefix("0x")

    page.expose_function("walletAddress", lambda: wallet.address.lower())
    page.expose_function("walletSign", sign)
    page.add_init_script(WALLET)
    sign_in(page, "bea")
    page.get_by_role("button", name="Register my wallet").click()
    page.get_by_text(wallet.address).wait_for()
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.get_by_role("button", name="Use my wallet").click()
    page.get_by_role("heading", name="Welcome").wait_for()
    assert shown[-1].startswith(f"localhost:{gateway.port} wants you to sign in with your Ethereum account:")


def test_all_but_passkeys_and_wallets_works_without_scripts(gateway: Gateway, browser: sync_api.Browser) -> None:
    context = browser.new_context(java_script_enabled=False, base_url=f"http://localhost:{gateway.port}",
                                  viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto("/portal/sign-up")
    for label, value in (("Your name", "Cleo Example"), ("Birth date", "1970-02-03"), ("A number", "MRN 77"),
                         ("Login name", "cleo"), ("Password", PASSWORD), ("The password once more", PASSWORD)):
        page.get_by_label(label, exact=label == "Password").fill(value)
    page.get_by_label("a patient").check()
    page.get_by_role("button", name="Sign up").click()
    page.get_by_label("Login name").fill("cleo")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("heading", name="Waiting for the records office").wait_for()
    page.get_by_role("link", name="set up a passkey or codes").click()
    page.get_by_role("button", name="Set up codes").click()
    page.get_by_role("heading", name="Set up one-time codes").wait_for()
    box = page.get_by_role("img", name="QR code of the key below").bounding_box()
    assert box is not None
    assert box["width"] >= 150  # a phone held before it reads it
    assert abs(box["width"] - box["height"]) <= 2
    assert fits(page)
    assert page.get_by_role("button", name="Use a passkey").count() == 0
    context.close()
