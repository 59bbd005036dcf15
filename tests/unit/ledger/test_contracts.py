"""The committed artifacts, deployed on a London chain in this process: the main paths and what they cost.

The contracts' own suites are contracts/test; here is what the gateway builds on. Numbers in brackets are the design's
invariants: 6 revocation, 10 commitments only, 11 the patient needs no ether.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

import pytest
from eth_abi import encode
from eth_tester.exceptions import TransactionFailed
from eth_utils.crypto import keccak

from contracts.gas import (
    CUSTODIAL,
    FAR,
    PASSKEY,
    WALLET,
    Bench,
    Passkey,
    Row,
    Wallet,
    artifact,
    committed_table,
    digest_of,
    functions,
    measure,
    table,
)
from tests.vectors import chain_vectors


@pytest.fixture(scope="module")
def deployed() -> Bench:
    return Bench()


@pytest.fixture
def bench(deployed: Bench) -> Iterator[Bench]:
    snapshot = deployed.web3.provider.make_request("evm_snapshot", [])["result"]
    yield deployed
    deployed.web3.provider.make_request("evm_revert", [snapshot])


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return measure()


def refusal(contract: str, error: str) -> str:
    """The selector of a contract's error."""
    return next(s for s, text in artifact(contract)["errors"].items() if text.startswith(error + "("))


def refused(bench: Bench, call: Any, contract: str, error: str, sender: str | None = None) -> None:
    with pytest.raises(TransactionFailed) as caught:
        call.call({"from": sender or bench.hospital})
    data: bytes = ast.literal_eval(str(caught.value).removeprefix("execution reverted: "))  # eth-tester prints its repr
    assert "0x" + data[:4].hex() == refusal(contract, error)


def test_anchor_rolls_the_custodians_head_and_carries_the_one_before(bench: Bench) -> None:
    f = bench.anchors.functions
    head = bytes(32)
    for size_class in range(5):
        root, manifest = digest_of(f"r{size_class}"), digest_of(f"m{size_class}")
        bench.send(bench.anchors, f.anchor(head, root, manifest, size_class))
        event = bench.anchors.events.Anchored().get_logs(from_block="latest")[0]["args"]
        assert (event["custodian"], event["root"], event["manifestDigest"], event["sizeClass"]) == (
            bench.hospital, root, manifest, size_class)
        assert event["previousHead"] == head
        head = keccak(encode(["bytes32", "bytes32", "bytes32", "uint8"], [head, root, manifest, size_class]))
        assert f.head(bench.hospital).call() == head


def test_a_batch_is_anchored_once_and_only_in_turn(bench: Bench) -> None:
    f = bench.anchors.functions
    call = f.anchor(bytes(32), digest_of("r"), digest_of("m"), 0)
    bench.send(bench.anchors, call)
    refused(bench, call, "RecordAnchor", "HeadMismatch")


def test_only_a_members_operator_anchors(bench: Bench) -> None:
    call = bench.anchors.functions.anchor(bytes(32), digest_of("r"), digest_of("m"), 0)
    refused(bench, call, "RecordAnchor", "NotMember", bench.operator)
    bench.send(bench.members, bench.members.functions.addOperator(bench.operator))
    bench.send(bench.anchors, call, sender=bench.operator)
    assert bench.anchors.functions.head(bench.hospital).call() != bytes(32)


@pytest.mark.parametrize(("signer", "kind"), [(Wallet("w"), WALLET), (Wallet("c"), CUSTODIAL), (Passkey("p"), PASSKEY)])
def test_a_signed_grant_is_relayed_and_revoked_without_the_patient_paying(
        bench: Bench, signer: Wallet | Passkey, kind: int) -> None:
    """[11]"""
    f = bench.consents.functions
    request, signature = bench.grant(signer, kind, 1)
    bench.send(bench.consents, f.grantBySig(request, signature))
    event = bench.consents.events.Granted().get_logs(from_block="latest")[0]["args"]
    assert (event["patient"], event["custodian"], event["kind"], event["epoch"]) == (
        signer.address, bench.hospital, kind, 0)
    assert f["isGranted(address,bytes32,bytes32)"](*request[:3]).call()
    assert f["isGranted(bytes32)"](event["grantId"]).call()
    assert f.grantedCount(signer.address).call() == 1
    bench.send(bench.consents, f.revokeBySig(*bench.revocation(signer, kind, 1)))
    event = bench.consents.events.Revoked().get_logs(from_block="latest")[0]["args"]
    assert (event["grantee"], event["termsHash"]) == request[1:3]
    assert not f["isGranted(bytes32)"](event["grantId"]).call()
    assert f.grantedCount(signer.address).call() == 0
    assert bench.web3.eth.get_balance(signer.address) == 0


def test_a_revocation_that_overtakes_its_grant_keeps_it_out(bench: Bench) -> None:
    """[6]"""
    f, wallet = bench.consents.functions, Wallet("w")
    bench.send(bench.consents, f.revokeBySig(*bench.revocation(wallet, WALLET, 1)))
    refused(bench, f.grantBySig(*bench.grant(wallet, WALLET, 1)), "ConsentRegistry", "GrantExists")


def test_revoking_everything_is_one_transaction_and_an_epoch(bench: Bench) -> None:
    """[6]"""
    f, wallet = bench.consents.functions, Wallet("w")
    held = bench.grant(wallet, WALLET, 7)
    batch = [bench.grant(wallet, WALLET, number) for number in range(3)]
    bench.send(bench.consents, f.grantBatchBySig([r for r, _ in batch], [s for _, s in batch]))
    assert f.grantedCount(wallet.address).call() == 3
    request = (wallet.address, 0, 99, FAR)
    bench.send(bench.consents, f.revokeAllBySig(request, wallet.sign(f.revokeAllDigest(request).call())))
    assert bench.consents.events.RevokedAll().get_logs(from_block="latest")[0]["args"]["epoch"] == 1
    assert f.grantedCount(wallet.address).call() == 0
    assert not any(f["isGranted(address,bytes32,bytes32)"](*r[:3]).call() for r, _ in batch)
    refused(bench, f.grantBySig(*held), "ConsentRegistry", "EpochMismatch")


def test_a_signature_counts_once_for_its_message_alone(bench: Bench) -> None:
    f, wallet = bench.consents.functions, Wallet("w")
    request, signature = bench.grant(wallet, WALLET, 1)
    other = (*request[:2], digest_of("other terms"), *request[3:])
    refused(bench, f.grantBySig(other, signature), "ConsentRegistry", "InvalidSignature")
    as_custodial = (*request[:6], CUSTODIAL << 248 | 1, request[7])
    refused(bench, f.grantBySig(as_custodial, signature), "ConsentRegistry", "InvalidSignature")
    late = (*request[:7], 1)
    refused(bench, f.grantBySig(late, signature), "ConsentRegistry", "SignatureExpired")
    bench.send(bench.consents, f.grantBySig(request, signature))
    refused(bench, f.grantBySig(request, signature), "ConsentRegistry", "NonceUsed")


def test_a_custodial_grant_needs_a_member_to_answer_for_it(bench: Bench) -> None:
    call = bench.consents.functions.grantBySig(*bench.grant(Wallet("c"), CUSTODIAL, 1))
    refused(bench, call, "ConsentRegistry", "NotMember", bench.operator)


def test_a_second_hospital_joins_by_vote_and_anchors_its_own_head(bench: Bench) -> None:
    bench.send(bench.members, bench.members.functions.proposeAdmission(bench.other, digest_of("endpoint 2")))
    assert bench.members.functions.members().call() == [bench.hospital, bench.other]
    call = bench.anchors.functions.anchor(bytes(32), digest_of("r"), digest_of("m"), 0)
    bench.send(bench.anchors, call, sender=bench.other)
    assert bench.anchors.functions.head(bench.hospital).call() == bytes(32)


def test_no_function_or_event_takes_text() -> None:
    """[10] Only digests, addresses, numbers: nothing a caller could write a name into, but signatures and paths."""
    for contract in ("RecordAnchor", "ConsentRegistry", "HospitalRegistry"):
        for entry in artifact(contract)["abi"]:
            texts = [i["name"] for i in entry.get("inputs", []) if i["type"] in ("string", "bytes", "bytes[]")]
            assert set(texts) <= {"signature", "signatures"}, (contract, entry["name"], texts)


def test_an_anchor_costs_at_most_36000_gas(rows: list[Row]) -> None:
    anchors = [row for row in rows if row.signature.startswith("anchor(")]
    assert [row.gas <= 36_000 for row in anchors] == [False, True]  # the first one takes the custodian's slot


def test_the_gas_table_is_what_was_measured_and_misses_no_function(rows: list[Row]) -> None:
    for contract in ("RecordAnchor", "ConsentRegistry", "HospitalRegistry"):
        assert functions(contract) == {r.signature for r in rows if r.contract == contract and r.signature}
    assert table(rows) == committed_table(), "run python contracts/gas.py"


@pytest.mark.parametrize("name", chain_vectors.all_vectors())
def test_shared_vectors_are_what_their_writer_writes(name: str) -> None:
    held = (chain_vectors.HERE / name).read_text(encoding="utf-8")
    assert json.loads(held) == chain_vectors.all_vectors()[name], "run python tests/vectors/chain_vectors.py"
