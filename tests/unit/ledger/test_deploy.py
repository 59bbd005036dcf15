"""Contracts are deployed once, through a crash anywhere, and checked at every start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gateway.errors import ChainUnavailable, Misconfigured
from gateway.ledger.address import address
from gateway.ledger.chain import Contracts
from gateway.ledger.contract_codec import load_artifact
from gateway.ledger.deploy import consent_domain, create_address, ensure_contracts, is_code_of, verify_contracts
from gateway.ledger.devchain.accounts import ensure_accounts
from gateway.ledger.devchain.node import Node
from gateway.ledger.devchain.rpc import Rpc
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode
from gateway.ledger.events import MemberChanged

POOR = b"\x77" * 32


class Embedded:
    """An embedded chain spoken to without a socket; ``fail_at`` makes that request, counted from 1, get no answer."""

    def __init__(self, folder: Path) -> None:
        self.accounts = ensure_accounts(folder / "keys.json")
        self.node = Node(folder / "chain.sqlite", [bytes.fromhex(a.address[2:]) for a in self.accounts], lead_s=3600)
        self.rpc = Rpc(self.node)
        self.file = folder / "contracts.json"
        self.asked: list[str] = []
        self.fail_at: int | None = None
        self.answered_first = False

    def _handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append("batch" if isinstance(body, list) else body["method"])
        failing = len(self.asked) == self.fail_at
        if failing and not self.answered_first:
            raise httpx.ReadError("power cut before it was done", request=request)
        answer = self.rpc.answer(request.content)
        if failing:
            raise httpx.ReadError("power cut after it was done", request=request)
        return httpx.Response(200, content=answer)

    def connect(self, key: bytes | None = None) -> EthereumNode:
        return EthereumNode("http://embedded.example", chain_id=self.node.chain_id,
                            private_key=key or self.accounts[0].private_key,
                            transport=httpx.MockTransport(self._handle))


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    made = Embedded(tmp_path)
    yield made
    made.node.close()


def test_the_deployer_is_the_first_member_and_its_own_operator(embedded: Embedded) -> None:
    node = embedded.connect()
    contracts = ensure_contracts(node, embedded.file, endpoint_digest=b"\x0d" * 32)
    chain = EthereumChain(node, contracts)
    assert chain.member_of() == node.operator
    (event,) = chain.logs(contracts.from_block, chain.head().number)
    assert event == MemberChanged(place=event.place, change="admitted", member=node.operator, operator=None,
                                  endpoint_digest=b"\x0d" * 32)


def test_a_second_start_sends_nothing(embedded: Embedded) -> None:
    contracts = ensure_contracts(embedded.connect(), embedded.file)
    embedded.asked.clear()
    assert ensure_contracts(embedded.connect(), embedded.file) == contracts
    assert ensure_contracts(embedded.connect(), embedded.file, may_deploy=False) == contracts
    assert "eth_sendRawTransaction" not in embedded.asked
    assert "deploying" not in json.loads(embedded.file.read_bytes())


@pytest.mark.parametrize("answered_first", [False, True], ids=["before", "after"])
def test_a_crash_at_any_request_is_taken_up_where_it_stopped(tmp_path: Path, answered_first: bool) -> None:
    """Three creations, whatever happens: the account's nonce says so."""
    fail_at = 1
    while True:
        folder = tmp_path / str(fail_at)
        folder.mkdir()
        embedded = Embedded(folder)
        embedded.fail_at, embedded.answered_first = fail_at, answered_first
        try:
            ensure_contracts(embedded.connect(), embedded.file)
            crashed = False
        except ChainUnavailable:
            crashed = True
        embedded.fail_at = None
        node = embedded.connect()
        ensure_contracts(node, embedded.file)
        assert node.nonce("latest") == 3, fail_at
        embedded.node.close()
        if not crashed:
            break
        fail_at += 1
    assert fail_at > 10


def test_a_nonce_spent_on_something_else_makes_a_new_plan(embedded: Embedded) -> None:
    node = embedded.connect()
    embedded.fail_at = 7  # the plan is written by then, and no contract sent
    with pytest.raises(ChainUnavailable):
        ensure_contracts(node, embedded.file)
    embedded.fail_at = None
    planned = json.loads(embedded.file.read_bytes())
    assert planned["deploying"]["first_nonce"] == node.nonce("latest") == 0
    node.broadcast(node.sign(to=address(b"\x05" * 20), payload=b"", nonce=0, fees=node.fees(), gas=21_000))
    contracts = ensure_contracts(node, embedded.file)
    assert contracts.hospital_registry == create_address(node.operator, 1)
    assert node.nonce("latest") == 4


def test_who_cannot_pay_is_told_which_account_needs_ether(embedded: Embedded) -> None:
    node = embedded.connect(POOR)
    with pytest.raises(Misconfigured, match=node.operator):
        ensure_contracts(node, embedded.file)


def test_nothing_is_deployed_where_contracts_are_given(embedded: Embedded) -> None:
    with pytest.raises(Misconfigured, match="missing"):
        ensure_contracts(embedded.connect(), embedded.file, may_deploy=False)


def test_a_file_of_another_chain_is_refused(embedded: Embedded) -> None:
    ensure_contracts(embedded.connect(), embedded.file)
    body = json.loads(embedded.file.read_bytes())
    embedded.file.write_text(json.dumps(body | {"chain_id": 5}))
    with pytest.raises(Misconfigured, match="chain 5"):
        ensure_contracts(embedded.connect(), embedded.file)


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"chain_id": 1}', '{"chain_id": 1, "contracts": {}}', "7",
                                  '{"chain_id": 1, "contracts": {"RecordAnchor": "0x1", "ConsentRegistry": "",'
                                  ' "HospitalRegistry": ""}}'])
def test_a_damaged_file_is_named(embedded: Embedded, body: str) -> None:
    embedded.file.write_text(body)
    with pytest.raises(Misconfigured, match=r"contract|address"):
        ensure_contracts(embedded.connect(), embedded.file)


Change = Callable[[Contracts], Contracts]


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: replace(c, record_anchor=address(b"\x09" * 20)), "there is no RecordAnchor"),
    (lambda c: replace(c, record_anchor=c.consent_registry), "not this version's RecordAnchor"),
    (lambda c: replace(c, hospital_registry=c.record_anchor), "not this version's HospitalRegistry"),
], ids=["nothing there", "other code", "other registry code"])
def test_contracts_that_are_not_what_they_should_be_are_refused(embedded: Embedded, change: Change, words: str) -> None:
    contracts = ensure_contracts(embedded.connect(), embedded.file)
    with pytest.raises(Misconfigured, match=words):
        verify_contracts(embedded.connect(), change(contracts))


def test_contracts_tied_to_another_registry_are_refused(embedded: Embedded) -> None:
    node = embedded.connect()
    first = ensure_contracts(node, embedded.file)
    embedded.file.unlink()
    second = ensure_contracts(node, embedded.file)
    with pytest.raises(Misconfigured, match="another HospitalRegistry"):
        verify_contracts(node, replace(first, hospital_registry=second.hospital_registry))


def test_it_waits_no_longer_than_told(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    node = embedded.connect()
    monkeypatch.setattr(node, "broadcast", lambda signed: signed.hash)
    with pytest.raises(ChainUnavailable, match="not mined"):
        ensure_contracts(node, embedded.file, wait_s=0.3)


# -- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RecordAnchor", "ConsentRegistry", "HospitalRegistry"])
def test_any_changed_byte_of_code_is_seen(embedded: Embedded, name: str) -> None:
    contracts = ensure_contracts(embedded.connect(), embedded.file)
    target = {"RecordAnchor": contracts.record_anchor, "ConsentRegistry": contracts.consent_registry,
              "HospitalRegistry": contracts.hospital_registry}[name]
    code, creation = embedded.connect().code(target), load_artifact(name).bytecode
    assert is_code_of(code, creation)
    tolerated = sum(1 for at in range(0, len(code), 29)
                    if is_code_of(code[:at] + bytes([code[at] ^ 1]) + code[at + 1:], creation))
    uses = creation[-len(code):].count(b"\x7f" + bytes(32))
    assert tolerated <= 32 * uses  # the immutables, which are asked for by name instead
    assert not is_code_of(code[:-1], creation)
    assert not is_code_of(code + b"\x00", creation)
    assert not is_code_of(b"", creation)


def test_the_domain_is_the_contracts_own(embedded: Embedded) -> None:
    node = embedded.connect()
    contracts = ensure_contracts(node, embedded.file)
    chain = EthereumChain(node, contracts)
    assert chain.consent_domain() == consent_domain(node.chain_id, contracts.consent_registry)
