"""Signing what is permitted, in Chromium: by a wallet (EIP-6963, EIP-712) and by a passkey, on the page of permissions
and on the authorize screen.

https://eips.ethereum.org/EIPS/eip-712, https://eips.ethereum.org/EIPS/eip-1193
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from playwright import sync_api

from tests.consent import consent
from tests.real.chromium import chromium
from tests.real.test_portal_in_chromium import fits, patient, sign_in
from tests.running import Gateway

pytestmark = pytest.mark.real
WAIT_MS = 30_000
REDIRECT = "http://127.0.0.1:8765/after"
WALLET = """
const provider = { request: async ({ method, params }) => {
  const { result, code } = JSON.parse(await window.walletAsked(method, JSON.stringify(params || [])));
  if (code) throw Object.assign(new Error("not done"), { code });
  return result;
} };
window.addEventListener("eip6963:requestProvider", () => window.dispatchEvent(new CustomEvent(
  "eip6963:announceProvider", { detail: Object.freeze({ info: { uuid: "350670db-19fa-4704-a166-e52e178b59d2",
    name: "Test", icon: "data:,", rdns: "test.example" }, provider }) })));
"""


class Wallet:
    """What an extension does: opens its account, is on some chain, shows what it signs, and may be told not to."""

    def __init__(self) -> None:
        self.key = Account.create()
        self.chain = 1
        self.willing = True
        self.shown: list[dict[str, Any]] = []

    def asked(self, method: str, params: str) -> str:
        given = json.loads(params)
        match method:
            case "eth_requestAccounts":
                return json.dumps({"result": [self.key.address.lower()]})
            case "eth_chainId":
                return json.dumps({"result": hex(self.chain)})
            case "wallet_switchEthereumChain":
                self.chain = int(given[0]["chainId"], 16)
                return json.dumps({"result": None})
            case "eth_signTypedData_v4":
                typed = json.loads(given[1])
                if not self.willing or given[0] != self.key.address.lower():
                    return json.dumps({"code": 4001})
                assert int(typed["domain"]["chainId"]) == self.chain, "as MetaMask asks"
                self.shown.append(typed)
                return json.dumps({"result": "0x" + self.key.sign_message(
                    encode_typed_data(full_message=typed)).signature.hex().removeprefix("0x")})
        return json.dumps({"code": -32601})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("gateway"), name="localhost")  # passkeys belong to a name
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
def wallet() -> Wallet:
    return Wallet()


@pytest.fixture
def page(gateway: Gateway, browser: sync_api.Browser, wallet: Wallet) -> Iterator[sync_api.Page]:
    """A page 360 px wide with a wallet; what the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, base_url=f"http://localhost:{gateway.port}")
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.expose_function("walletAsked", wallet.asked)
    page.add_init_script(WALLET)
    yield page
    context.close()
    assert complaints == []


def holder(gateway: Gateway, folder: Path, name: str, wallet: Wallet) -> str:
    """A patient with a login and a registered wallet."""
    id_ = patient(gateway, folder, name)
    gateway.run("user", "add", "--user", f"Patient/{id_}", "--role", "patient", "--name", "Ada Example", "--wallet",
                wallet.key.address)
    return id_


def proposed(gateway: Gateway, id_: str, grantee: str) -> str:
    with gateway.client() as feed:
        return str(feed.post("/Consent", json=consent(id_, grantee)).json()["id"])


def test_a_wallet_signs_what_waits_and_later_its_end(gateway: Gateway, page: sync_api.Page, wallet: Wallet,
                                                     tmp_path: Path) -> None:
    id_ = holder(gateway, tmp_path, "wallet-holder", wallet)
    proposed(gateway, id_, "Practitioner/dr-screen")
    sign_in(page, "wallet-holder")
    page.goto("/portal")
    page.get_by_role("link", name="What I permit").click()
    page.get_by_role("heading", name="To permit").wait_for()
    assert fits(page)
    said = page.locator("section p").first.inner_text()
    wallet.willing = False
    page.get_by_role("button", name="Sign with my wallet").click()
    page.get_by_text("The wallet did not sign.").wait_for()
    wallet.willing = True
    page.get_by_role("button", name="Sign with my wallet").click()
    page.get_by_text("Signed by your wallet").wait_for()
    assert page.get_by_text("Nothing waits.").is_visible()
    [shown] = wallet.shown
    assert shown["message"]["terms"]["statement"] == said, "the wallet shows the words of the page"
    assert shown["message"]["epoch"] == 0
    while page.get_by_text("On its way to the hospitals' chain").count():
        page.wait_for_timeout(300)
        page.reload()
    assert fits(page)
    page.get_by_role("button", name="Revoke this").click()
    page.get_by_role("heading", name="Ended here, not yet on the chain").wait_for()
    assert fits(page)
    page.get_by_role("button", name="Sign the end with my wallet").click()
    page.get_by_role("heading", name="Ended here, not yet on the chain").wait_for(state="detached")
    assert [one["primaryType"] for one in wallet.shown] == ["Grant", "Revoke"]


def test_another_account_of_the_wallet_is_told_apart(gateway: Gateway, page: sync_api.Page, wallet: Wallet,
                                                     tmp_path: Path) -> None:
    registered = Wallet()
    id_ = holder(gateway, tmp_path, "other-account", registered)
    proposed(gateway, id_, "Practitioner/dr-other")
    sign_in(page, "other-account")
    page.goto("/portal/consents")
    page.get_by_role("button", name="Sign with my wallet").click()
    page.get_by_text(f"Open the account {registered.key.address} in your wallet").wait_for()
    assert wallet.shown == []


def test_a_passkey_signs_what_waits(gateway: Gateway, page: sync_api.Page, tmp_path: Path) -> None:
    id_ = patient(gateway, tmp_path, "passkey-holder")
    devices = page.context.new_cdp_session(page)
    devices.send("WebAuthn.enable")
    devices.send("WebAuthn.addVirtualAuthenticator", {"options": {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True}})
    sign_in(page, "passkey-holder")
    page.get_by_label("A name to know it by").fill("Test phone")
    page.get_by_role("button", name="Add a passkey").click()
    page.get_by_text("Test phone", exact=True).wait_for()
    proposed(gateway, id_, "Practitioner/dr-touch")
    page.goto("/portal/consents")
    assert page.get_by_role("button", name="Sign with the key the hospital keeps for me").is_visible()
    page.get_by_role("button", name="Sign with the passkey Test phone").click()
    page.get_by_text("Signed by a passkey").wait_for()
    while page.get_by_text("On its way to the hospitals' chain").count():
        page.wait_for_timeout(300)
        page.reload()


def test_an_apps_lasting_access_is_signed_on_the_way_to_the_app(gateway: Gateway, page: sync_api.Page, wallet: Wallet,
                                                                tmp_path: Path) -> None:
    id_ = holder(gateway, tmp_path, "app-user", wallet)
    client = gateway.run("client", "add", "--kind", "app", "--name", "Pulse diary", "--auth", "none", "--redirect-uri",
                         REDIRECT, "--scope", "launch/patient patient/Observation.rs offline_access").stdout.strip()
    landed: list[str] = []

    def app(route: sync_api.Route) -> None:
        landed.append(route.request.url)
        route.fulfill(status=200, content_type="text/html", body="<h1>Back in the app</h1>")

    page.route("http://127.0.0.1:8765/**", app)
    sign_in(page, "app-user")
    page.goto("/oauth/authorize?" + urlencode({
        "response_type": "code", "client_id": client, "redirect_uri": REDIRECT, "state": "abc",
        "scope": "launch/patient patient/Observation.rs offline_access", "aud": gateway.base,
        "code_challenge": "c" * 43, "code_challenge_method": "S256"}))
    page.get_by_label("Also while I am away, until I revoke it").check()
    page.get_by_role("button", name="Allow", exact=True).click()
    page.get_by_role("heading", name="Sign the lasting access of Pulse diary").wait_for()
    assert fits(page)
    page.get_by_role("button", name="Sign with my wallet").click()
    page.get_by_role("heading", name="Back in the app").wait_for()
    told = {name: values[0] for name, values in parse_qs(urlsplit(landed[-1]).query).items()}
    assert told["code"]
    assert told["state"] == "abc"
    assert "(Device/" in wallet.shown[0]["message"]["terms"]["grantee"]
    with gateway.client("--user", f"Patient/{id_}") as own:
        [entry] = own.get("/Consent").json()["entry"]
        assert entry["resource"]["status"] in ("proposed", "active")
    page.goto("/portal/consents")
    page.get_by_text("Signed by your wallet").wait_for()
