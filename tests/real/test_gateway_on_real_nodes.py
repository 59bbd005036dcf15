"""The gateway's whole story on Ethereum nodes of others: anvil and geth, killed, restarted and reorganised.

Invariants 2, 5, 6, 10 and 11; ``gateway/README.md``, Paths: Anchor; Grant, revoke.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from eth_account import Account

from gateway.app import open_database, open_ring
from gateway.config import load_settings
from gateway.ledger.address import address
from gateway.ledger.events import Granted, Revoked, RevokedAll
from gateway.ledger.keccak import keccak
from tests.journeys.authenticator import Passkey, registered
from tests.real import chain_nodes
from tests.real.chain_nodes import Node
from tests.real.site import Site, operator_key, parameters, wallet_signature, within
from tests.running import REPOSITORY, Gateway

pytestmark = pytest.mark.real
FIXTURES = REPOSITORY / "tests" / "fixtures" / "demo"
NODES = {"anvil": chain_nodes.durable_anvil, "geth-dev": chain_nodes.geth_dev_node}
CONFIRMATIONS = 2


@pytest.fixture(scope="module", params=list(NODES))
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = NODES[request.param](tmp_path_factory.mktemp(request.param))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def site(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gateway")
    gateway = Gateway(folder, chain_rpc=node.rpc, chain_id=chain_id(node),
                      chain_confirmations=str(CONFIRMATIONS), chain_operator_key_file=str(operator_key(folder)))
    try:
        gateway.start()
        yield Site(gateway, node)
    finally:
        gateway.stop()


def ask(node: Node, method: str, *params: object) -> object:
    answer = httpx.post(node.rpc, timeout=20, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert "error" not in answer.json(), answer.text
    return answer.json()["result"]


def chain_id(node: Node) -> str:
    return str(int(str(ask(node, "eth_chainId")), 16))


def test_the_preflight_finds_nothing_wrong(node: Node, tmp_path: Path) -> None:
    key = operator_key(tmp_path)
    expected = chain_id(node)
    right = Gateway(tmp_path / "right", chain_rpc=node.rpc, chain_id=expected, chain_operator_key_file=str(key))
    done = right.run("check", check=False)
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    wrong = Gateway(tmp_path / "wrong", chain_rpc=node.rpc, chain_id="5", chain_operator_key_file=str(key))
    done = wrong.run("check", check=False)
    assert done.returncode == 1
    assert f"chain {expected}, not 5" in done.stdout


def test_the_preflight_names_an_operator_who_cannot_pay(node: Node, tmp_path: Path) -> None:
    key = operator_key(tmp_path)
    key.write_text(secrets.token_hex(32))
    poor = Gateway(tmp_path / "poor", chain_rpc=node.rpc, chain_id=chain_id(node),
                   chain_operator_key_file=str(key))
    done = poor.run("check", check=False)
    assert done.returncode == 1
    assert "has no balance" in done.stdout


def test_a_running_gateway_passes_its_own_preflight(site: Site) -> None:
    done = site.gateway.run("check", check=False)
    assert done.returncode == 0, done.stdout
    told = site.gateway.status()["chain"]
    assert told["rpc"] == site.node.rpc
    assert told["head"] > 0
    assert all(told["contracts"].values())


def test_imported_records_are_refused_granted_read_proven_and_revoked(site: Site, tmp_path: Path) -> None:
    """The demo's story, with the key the gateway keeps for the patient (invariant 11: no ether of theirs)."""
    done = site.gateway.run("import", str(FIXTURES), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    patient = site.feed.get("/Patient", params={"name": "Gutmann"}).json()["entry"][0]["resource"]["id"]
    own = site.own(patient)
    search = {"subject": f"Patient/{patient}", "_count": "1000"}
    assert not site.doctor_sees(patient)
    assert not site.doctor.get("/Observation", params=search).json().get("entry")
    audit = own.get("/AuditEvent", params={"patient": f"Patient/{patient}"}).json()["entry"]
    assert any(entry["resource"]["outcome"] == "4" for entry in audit)

    before = len([event for event in site.events() if isinstance(event, Granted | Revoked)])
    consent = site.propose(own, patient)
    assert own.post(f"/Consent/{consent}/$sign", json=parameters()).status_code == 200
    site.active(own, consent)
    assert site.doctor_sees(patient)
    found = site.doctor.get("/Observation", params=search).json()["entry"]
    assert found

    for version in (f"/Patient/{patient}/_history/1", f"/Observation/{found[0]['resource']['id']}/_history/1"):
        receipt = site.receipt(version)
        assert json.loads(receipt)["anchor"]["custodian"] == address(Account.from_key(chain_nodes.OPERATOR).address)
        assert site.verified(receipt, version, tmp_path) == 0
    assert site.verified(receipt, version, tmp_path, alter=True) == 1

    ended = own.post(f"/Consent/{consent}/$revoke", json=parameters())
    assert ended.status_code == 200, ended.text
    assert not site.doctor_sees(patient)
    within(30, "the revocation is on chain", lambda: len(
        [event for event in site.events() if isinstance(event, Granted | Revoked)]) == before + 2)
    granted, revoked = [event for event in site.events() if isinstance(event, Granted | Revoked)][before:]
    assert isinstance(granted, Granted)
    assert isinstance(revoked, Revoked)
    assert granted.grant_id == revoked.grant_id


def test_a_wallet_grants_and_revokes_what_it_was_shown(site: Site) -> None:
    """eth_account's own EIP-712 over the JSON of ``$typed-data``, as MetaMask would sign it."""
    patient, key = site.patient(), secrets.token_bytes(32)
    own, wallet = site.own(patient), Account.from_key(key).address
    consent = site.propose(own, patient)
    shown = own.get(f"/Consent/{consent}/$typed-data", params={"wallet": wallet})
    assert shown.status_code == 200, shown.text
    assert shown.json()["message"]["patient"].lower() == wallet.lower()

    forged = own.post(f"/Consent/{consent}/$sign", json=parameters(
        signature=wallet_signature(secrets.token_bytes(32), shown.content), wallet=wallet))
    assert forged.status_code == 422, forged.text
    signed = own.post(f"/Consent/{consent}/$sign", json=parameters(
        signature=wallet_signature(key, shown.content), wallet=wallet))
    assert signed.status_code == 200, signed.text
    site.active(own, consent)
    assert site.doctor_sees(patient)

    revocation = own.get(f"/Consent/{consent}/$typed-data")
    assert revocation.json()["primaryType"] == "Revoke"
    ended = own.post(f"/Consent/{consent}/$revoke", json=parameters(
        signature=wallet_signature(key, revocation.content)))
    assert ended.status_code == 200, ended.text
    assert not site.doctor_sees(patient)

    def of_wallet() -> list[type]:
        granted = {event.grant_id for event in site.events()
                   if isinstance(event, Granted) and event.patient == address(wallet)}
        return [type(event) for event in site.events()
                if isinstance(event, Granted | Revoked) and event.grant_id in granted]

    within(30, "grant and revocation are on chain", lambda: of_wallet() == [Granted, Revoked])


def test_a_passkey_grants_and_revokes_and_everything_ends_by_one_epoch(site: Site) -> None:
    """WebAuthn over P-256 as the contract verifies it, the authenticator being made of ``cryptography`` alone."""
    patient = site.patient()
    site.gateway.run("user", "add", "--user", f"Patient/{patient}", "--role", "patient", "--name", "Key Holder")
    passkey = Passkey(origin=f"http://127.0.0.1:{site.gateway.port}")
    settings = load_settings({"GATEWAY_DATA_DIR": str(site.gateway.data)})
    ring = open_ring(settings)
    database = open_database(settings, ring)
    registered(database, f"Patient/{patient}", passkey)
    database.close()
    ring.close()
    own = site.own(patient)
    account = address(keccak(b"".join(passkey.point))[12:])

    def answer(url: str) -> dict[str, str]:
        shown = own.get(url)
        assert shown.status_code == 200, shown.text
        return passkey.answer(shown.json()["publicKey"])

    consent = site.propose(own, patient)
    given = answer(f"/Consent/{consent}/$typed-data?kind=passkey")
    forged = {**given, **Passkey(origin=passkey.origin, id=passkey.id).answer(
        own.get(f"/Consent/{consent}/$typed-data?kind=passkey").json()["publicKey"])}
    assert own.post(f"/Consent/{consent}/$sign", json=parameters(**forged)).status_code == 422
    signed = own.post(f"/Consent/{consent}/$sign", json=parameters(**given))
    assert signed.status_code == 200, signed.text
    site.active(own, consent)
    assert site.doctor_sees(patient)
    [granted] = [event for event in site.events() if isinstance(event, Granted) and event.patient == account]
    assert granted.kind == 2

    ended = own.post(f"/Consent/{consent}/$revoke", json=parameters(**answer(f"/Consent/{consent}/$typed-data")))
    assert ended.status_code == 200, ended.text
    assert not site.doctor_sees(patient)
    within(30, "the revocation is on chain", lambda: any(
        isinstance(event, Revoked) and event.grant_id == granted.grant_id for event in site.events()))

    again = site.propose(own, patient)
    assert own.post(f"/Consent/{again}/$sign", json=parameters(
        **answer(f"/Consent/{again}/$typed-data?kind=passkey"))).status_code == 200
    site.active(own, again)
    all_ended = own.post(f"/Patient/{patient}/$revoke-all", json=parameters(
        **answer(f"/Patient/{patient}/$revoke-all?kind=passkey")))
    assert all_ended.status_code == 200, all_ended.text
    assert not site.doctor_sees(patient)
    within(30, "the epoch is over", lambda: any(
        isinstance(event, RevokedAll) and event.patient == account for event in site.events()))
    chain = site.chain()
    assert (chain.granted_count(account), chain.epoch(account)) == (0, 1)
    chain.close()


def test_a_grant_waits_for_its_confirmations(site: Site) -> None:
    """Invariant 6: what is not final permits nothing."""
    patient = site.patient()
    own = site.own(patient)
    consent = site.propose(own, patient)
    assert own.post(f"/Consent/{consent}/$sign", json=parameters()).status_code == 200
    assert not site.doctor_sees(patient)
    within(30, "the doctor reads", lambda: site.doctor_sees(patient))
    granted = [event for event in site.events() if isinstance(event, Granted)][-1]
    chain = site.chain()
    assert chain.head().number >= granted.place.block_number + CONFIRMATIONS
    chain.close()


def test_a_node_killed_midway_holds_nothing_up_and_loses_nothing(site: Site, tmp_path: Path) -> None:
    """Invariant 2 with SIGKILL of the node: writes go on, entries wait, then each Batch is anchored once."""
    patient = site.patient()
    with site.busy(patient) as written:
        time.sleep(2.5)
        site.node.kill()
        killed = len(written)
        within(20, "the gateway says that the chain is stalled", lambda: httpx.get(
            site.gateway.base.replace("/fhir", "/health/ready")).json()["chain"] == "stalled")
        assert len(written) > killed
        waiting = site.entries()["pending"]
        assert waiting >= len(written) - killed - 5
        assert site.gateway.status()["chain"]["head"] is None
        assert "the chain is unreachable" in site.gateway.run("check", check=False).stdout
        site.node.start()
        time.sleep(2)
    site.settled(90)
    site.anchored_once()
    for version in (written[0], written[killed], written[-1]):
        assert site.verified(site.receipt(version), version, tmp_path) == 0
    assert {site.feed.get(f"{version}/$receipt").status_code for version in written} == {200}


def test_a_gateway_killed_while_it_anchors_anchors_each_batch_once(site: Site, tmp_path: Path) -> None:
    patient = site.patient()
    versions = []
    for pause_s in (0.9, 1.3, 1.7):
        versions += [site.observe(patient) for _ in range(20)]
        time.sleep(pause_s)
        site.gateway.kill()
        site.gateway.start()
    site.settled(60)
    site.anchored_once()
    assert site.verified(site.receipt(versions[-1]), versions[-1], tmp_path) == 0


def test_a_gateway_starts_while_its_node_is_down(site: Site) -> None:
    """It has its contracts: records are read and written meanwhile, and anchored later."""
    patient = site.patient()
    site.settled()
    site.gateway.stop()
    site.node.kill()
    site.gateway.start(chain="stalled")
    version = site.observe(patient)
    assert site.feed.get(version).status_code == 200
    assert site.entries()["pending"] > 0
    site.node.start()
    site.receipt(version, 90)
    site.settled()
    site.anchored_once()


def test_a_final_batch_that_a_reorg_takes_back_is_proven_anew(site: Site, tmp_path: Path) -> None:
    """Deeper than the confirmations: the old receipt verifies no more, the version has another one."""
    on_anvil(site)
    version = site.observe(site.patient())
    old = site.receipt(version)
    assert site.verified(old, version, tmp_path) == 0
    ask(site.node, "anvil_reorg", 8, [])
    assert site.verified(old, version, tmp_path) != 0
    within(60, "there is another receipt", lambda: site.receipt(version) != old)
    site.settled(60)
    assert site.verified(site.receipt(version), version, tmp_path) == 0
    site.anchored_once()


def on_anvil(site: Site) -> None:
    if site.node.name != "anvil":
        pytest.skip("geth's development chain cannot be reorganised: run on anvil alone")


def test_reorgs_under_batches_in_flight_leave_each_anchored_once(site: Site, tmp_path: Path) -> None:
    """Shallower and deeper than the confirmations: what was final is taken back and proven anew."""
    on_anvil(site)
    patient = site.patient()
    first = site.observe(patient)
    site.receipt(first)
    with site.busy(patient) as written:
        for depth in (1, 2, 3, 5, 1, 4):
            time.sleep(1.7)
            ask(site.node, "anvil_reorg", depth, [])
    site.settled(90)
    assert site.anchored_once() > 6
    for version in (first, written[0], written[len(written) // 2], written[-1]):
        assert site.verified(site.receipt(version), version, tmp_path) == 0
    assert {site.feed.get(f"{version}/$receipt").status_code for version in written} == {200}
