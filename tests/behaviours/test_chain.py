"""One suite for every ``Chain``: here the simulator and the embedded node; tests/real runs it on anvil and geth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import ChainReverted, TransactionRefused
from gateway.ledger.address import address
from gateway.ledger.calls import (
    AddOperatorCall,
    GrantBatchCall,
    RevokeBatchCall,
    SetEndpointCall,
    consent_nonce,
    grant_id,
)
from gateway.ledger.deploy import ensure_contracts
from gateway.ledger.devchain.accounts import load_accounts
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode
from gateway.ledger.events import Anchored, Granted, MemberChanged, Revoked, RevokedAll, rolling_head
from tests.behaviours.chain_world import World, is_signed
from tests.simulators.chain import ChainSimulator

POOR = b"\x77" * 32


@pytest.fixture(scope="module", params=["simulator", "devchain"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if request.param == "simulator":
        chain = ChainSimulator()
        chain.accepts_signature = lambda call: is_signed(chain.chain_id, chain.contracts.consent_registry, call)
        pauper = chain.as_operator(address(b"\x33" * 20))
        pauper.set_balance(0)
        yield World(chain=chain, stranger=chain.as_operator(address(b"\x22" * 20)), pauper=pauper)
        return
    folder = tmp_path_factory.mktemp("devchain")
    keys = folder / "keys" / "chain.json"
    process = subprocess.Popen([sys.executable, "-m", "gateway.ledger.devchain", "--data-dir", str(folder / "chain"),
                                "--keys-file", str(keys), "--port", "0", "--lead-s", "3600"],
                               stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        operator, reserve = load_accounts(keys)
        yield node_world(said["rpc"], said["chain_id"], operator.private_key, reserve.private_key, folder)
    finally:
        process.terminate()
        process.wait(10)


def node_world(rpc: str, chain_id: int, operator: bytes, stranger: bytes, folder: Path) -> World:
    """A world on any node: the contracts are deployed by ``operator``; ``stranger`` must hold ether."""
    node = EthereumNode(rpc, chain_id=chain_id, private_key=operator)
    contracts = ensure_contracts(node, folder / "contracts.json")
    others = [EthereumChain(EthereumNode(rpc, chain_id=chain_id, private_key=key), contracts)
              for key in (stranger, POOR)]
    return World(chain=EthereumChain(node, contracts), stranger=others[0], pauper=others[1])


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_are_linked_by_hash_and_time_never_goes_back(world: World) -> None:
    world.done(world.anchor())
    head = world.chain.head()
    parent = world.chain.block(head.number - 1)
    assert parent is not None
    assert head.parent_hash == parent.hash
    assert head.time_s >= parent.time_s  # anvil mines several in one second
    assert world.chain.block(head.number) == head
    assert world.chain.block_by_hash(head.hash) == head


def test_what_is_not_there_is_none(world: World) -> None:
    assert world.chain.block(world.chain.head().number + 1_000) is None
    assert world.chain.block_by_hash(b"\x01" * 32) is None
    assert world.chain.transaction(b"\x01" * 32) is None
    assert world.chain.receipt(b"\x01" * 32) is None


# -- anchors (invariant 2: anchored exactly once) ---------------------------------------------------------------------


def test_an_anchor_moves_the_custodians_rolling_head(world: World) -> None:
    call = world.anchor()
    receipt = world.done(call)
    (event,) = receipt.events
    assert isinstance(event, Anchored)
    custodian = world.chain.member_of()
    assert event.custodian == custodian
    assert (event.previous_head, event.root, event.manifest_digest) == (
        call.expected_head, call.root, call.manifest_digest)
    assert event.head == rolling_head(call.expected_head, call.root, call.manifest_digest, 0)
    assert world.chain.anchor_head(event.custodian) == event.head
    assert world.chain.anchor_head(event.custodian, at=receipt.block_number - 1) == call.expected_head
    assert event.place.block_hash == receipt.block_hash
    assert event in world.chain.logs(receipt.block_number, receipt.block_number)


def test_the_same_anchor_twice_reverts_with_both_heads(world: World) -> None:
    call = world.anchor()
    world.done(call)
    actual = rolling_head(call.expected_head, call.root, call.manifest_digest, 0)
    assert world.refused(call) == ("HeadMismatch", (call.expected_head, actual))
    with pytest.raises(ChainReverted) as caught:
        world.chain.estimate(call)
    assert (caught.value.name, caught.value.arguments) == ("HeadMismatch", (call.expected_head, actual))


def test_who_acts_for_no_member_cannot_anchor(world: World) -> None:
    assert world.stranger.member_of() is None
    assert world.refused(world.anchor(), by=world.stranger) == ("NotMember", (world.stranger.operator,))


def test_an_unknown_size_class_is_refused(world: World) -> None:
    assert world.refused(replace(world.anchor(), size_class=5)) == ("SizeClassUnknown", (5,))


def test_an_estimate_is_enough_and_no_more_than_half_too_much(world: World) -> None:
    call = world.anchor()
    estimate = world.chain.estimate(call)
    assert world.done(call).gas_used <= estimate < 1.5 * world.done(world.anchor()).gas_used + 20_000


# -- consent (invariants 6 and 11) ------------------------------------------------------------------------------------


def test_a_signed_grant_is_in_force_whoever_relays_it(world: World) -> None:
    patient = world.patient()
    for relay, custodian in ((world.chain, world.chain.member_of()), (world.stranger, None)):
        call = patient.grant(world.now_s)
        receipt = world.done(call, by=relay)
        (event,) = receipt.events
        assert event == Granted(
            place=event.place, patient=patient.address, grantee=call.grantee, terms_hash=call.terms_hash,
            grant_id=grant_id(patient.address, call.grantee, call.terms_hash), custodian=custodian,
            valid_from_s=call.valid_from_s, valid_until_s=call.valid_until_s, kind=0, epoch=0)
        assert world.chain.is_granted(patient.address, call.grantee, call.terms_hash)
        assert not world.chain.is_granted(patient.address, call.grantee, call.terms_hash, at=receipt.block_number - 1)
        assert world.chain.is_nonce_used(patient.address, call.nonce)
    assert world.chain.granted_count(patient.address) == 2


def test_a_signature_over_other_terms_is_refused(world: World) -> None:
    patient = world.patient()
    call = replace(patient.grant(world.now_s), terms_hash=b"\x05" * 32)
    name, arguments = world.refused(call)
    assert (name, arguments[0]) == ("InvalidSignature", patient.address)
    assert not world.chain.is_nonce_used(patient.address, call.nonce)


def test_a_replayed_nonce_is_refused(world: World) -> None:
    patient = world.patient()
    first = patient.grant(world.now_s)
    world.done(first)
    again = patient.grant(world.now_s, nonce=first.nonce)
    assert world.refused(again) == ("NonceUsed", (patient.address, first.nonce))


def test_a_signature_past_its_deadline_is_refused(world: World) -> None:
    late = world.now_s - 1
    name, arguments = world.refused(world.patient().grant(world.now_s, deadline_s=late))
    assert (name, arguments[0]) == ("SignatureExpired", late)


def test_a_period_that_is_over_is_refused(world: World) -> None:
    now = world.now_s
    name, arguments = world.refused(world.patient().grant(now, valid_from_s=now - 10, valid_until_s=now - 5))
    assert (name, arguments[:2]) == ("InvalidPeriod", (now - 10, now - 5))


def test_a_grant_that_has_not_begun_is_not_in_force(world: World) -> None:
    patient = world.patient()
    call = patient.grant(world.now_s, valid_from_s=world.now_s + 10_000)
    world.done(call)
    assert not world.chain.is_granted(patient.address, call.grantee, call.terms_hash)


def test_a_grant_id_lives_once(world: World) -> None:
    patient = world.patient()
    call = patient.grant(world.now_s)
    world.done(call)
    name = grant_id(patient.address, call.grantee, call.terms_hash)
    assert world.refused(patient.grant(world.now_s, terms=call.terms_hash)) == ("GrantExists", (name, 1))
    receipt = world.done(patient.revoke(world.now_s, call))
    (event,) = receipt.events
    assert event == Revoked(place=event.place, patient=patient.address, grant_id=name, grantee=call.grantee,
                            terms_hash=call.terms_hash)
    assert not world.chain.is_granted(patient.address, call.grantee, call.terms_hash)
    assert world.chain.granted_count(patient.address) == 0
    assert world.refused(patient.grant(world.now_s, terms=call.terms_hash)) == ("GrantExists", (name, 2))
    assert world.refused(patient.revoke(world.now_s, call)) == ("AlreadyRevoked", (name,))


def test_a_revocation_that_overtakes_its_grant_holds(world: World) -> None:
    patient = world.patient()
    call = patient.grant(world.now_s)
    world.done(patient.revoke(world.now_s, call))
    assert world.refused(call)[0] == "GrantExists"


def test_revoking_everything_ends_the_epoch(world: World) -> None:
    patient = world.patient()
    calls = [patient.grant(world.now_s) for _ in range(2)]
    for call in calls:
        world.done(call)
    receipt = world.done(patient.revoke_all(world.now_s, 0))
    (event,) = receipt.events
    assert event == RevokedAll(place=event.place, patient=patient.address, epoch=1)
    assert world.chain.epoch(patient.address) == 1
    assert world.chain.granted_count(patient.address) == 0
    assert not any(world.chain.is_granted(patient.address, c.grantee, c.terms_hash) for c in calls)
    assert world.refused(patient.revoke_all(world.now_s, 0)) == ("EpochMismatch", (patient.address, 0, 1))


def test_a_grant_signed_before_everything_was_revoked_lands_no_more(world: World) -> None:
    patient = world.patient()
    held, ahead = patient.grant(world.now_s), patient.grant(world.now_s, epoch=1)
    assert world.refused(ahead) == ("EpochMismatch", (patient.address, 1, 0))
    world.done(patient.revoke_all(world.now_s, 0))
    assert world.refused(held) == ("EpochMismatch", (patient.address, 0, 1))
    assert not world.chain.is_granted(patient.address, held.grantee, held.terms_hash)
    (event,) = world.done(ahead).events
    assert isinstance(event, Granted)
    assert event.epoch == 1


def test_a_custodial_grant_needs_a_custodian(world: World) -> None:
    patient = world.patient()
    assert world.refused(patient.grant(world.now_s, kind=1), by=world.stranger)[0] == "NotMember"
    (event,) = world.done(patient.grant(world.now_s, kind=1)).events
    assert isinstance(event, Granted)
    assert (event.kind, event.custodian) == (1, world.chain.member_of())


def test_a_passkey_grants_and_another_one_does_not(world: World) -> None:
    patient = world.passkey_patient()
    call = patient.grant(world.now_s, kind=2)
    (event,) = world.done(call).events
    assert isinstance(event, Granted)
    assert event.kind == 2
    assert world.chain.is_granted(patient.address, call.grantee, call.terms_hash)
    other = world.passkey_patient().grant(world.now_s, nonce=consent_nonce(2, 9))
    stolen = replace(other, patient=patient.address)
    assert world.refused(stolen)[0] == "InvalidSignature"


def test_an_unknown_signer_kind_is_refused(world: World) -> None:
    patient = world.patient()
    assert world.refused(patient.grant(world.now_s, nonce=9 << 248)) == ("SignerKindUnknown", (9,))


def test_a_batch_is_all_or_none(world: World) -> None:
    patient, other = world.patient(), world.patient()
    good = tuple(one.grant(world.now_s) for one in (patient, other, patient))
    receipt = world.done(GrantBatchCall(grants=good))
    assert [event.patient for event in receipt.events if isinstance(event, Granted)] == [
        patient.address, other.address, patient.address]
    bad = (patient.grant(world.now_s), replace(other.grant(world.now_s), signature=b"\x01" * 65))
    assert world.refused(GrantBatchCall(grants=bad))[0] == "InvalidSignature"
    assert world.chain.granted_count(patient.address) == 2
    world.done(RevokeBatchCall(revocations=tuple(
        one.revoke(world.now_s, call) for one, call in zip((patient, other, patient), good, strict=True))))
    assert world.chain.granted_count(patient.address) == world.chain.granted_count(other.address) == 0


# -- members ----------------------------------------------------------------------------------------------------------


def test_an_operator_acts_for_its_member(world: World) -> None:
    member = world.chain.member_of()
    assert member is not None
    operator = address(world.patient().address)
    (event,) = world.done(AddOperatorCall(operator=operator)).events
    assert event == MemberChanged(place=event.place, change="operator-added", member=member, operator=operator,
                                  endpoint_digest=None)
    assert world.chain.member_of(operator) == member
    assert world.refused(AddOperatorCall(operator=operator)) == ("OperatorTaken", (operator, member))
    assert world.refused(AddOperatorCall(operator=operator), by=world.stranger) == (
        "NotMember", (world.stranger.operator,))


def test_an_endpoint_document_is_named_by_digest(world: World) -> None:
    (event,) = world.done(SetEndpointCall(endpoint_digest=b"\x0e" * 32)).events
    assert event == MemberChanged(place=event.place, change="endpoint", member=world.chain.operator, operator=None,
                                  endpoint_digest=b"\x0e" * 32)


# -- transactions (invariant 11: each lands exactly once) -------------------------------------------------------------


def test_sending_the_same_bytes_again_changes_nothing(world: World) -> None:
    signed = world.chain.sign(world.anchor(), nonce=world.chain.nonce("pending"), fees=world.chain.fees())
    assert world.chain.broadcast(signed) == signed.hash
    receipt = world.mined(signed.hash)
    assert world.chain.broadcast(signed) == signed.hash
    assert world.chain.receipt(signed.hash) == receipt
    known = world.chain.transaction(signed.hash)
    assert known is not None
    assert (known.nonce, known.sender, known.block_hash) == (signed.nonce, world.chain.operator, receipt.block_hash)


def test_a_spent_nonce_is_refused(world: World) -> None:
    world.done(world.anchor())
    spent = world.chain.nonce("latest") - 1
    with pytest.raises(TransactionRefused) as caught:
        world.chain.send(world.anchor(), nonce=spent, fees=world.chain.fees())
    assert caught.value.reason == "nonce-too-low"


def test_a_gap_holds_what_comes_after_it(world: World) -> None:
    """And a better offer for the same nonce replaces the waiting one."""
    chain, next_nonce, fees = world.stranger, world.stranger.nonce("pending"), world.stranger.fees()
    patient = world.patient()
    early, late, better = (patient.grant(world.now_s) for _ in range(3))
    waiting = chain.send(late, nonce=next_nonce + 1, fees=fees)
    assert chain.receipt(waiting) is None
    known = chain.transaction(waiting)
    assert known is not None
    assert known.block_number is None
    assert chain.nonce("pending") == next_nonce
    with pytest.raises(TransactionRefused) as caught:
        chain.send(better, nonce=next_nonce + 1, fees=fees)
    assert caught.value.reason == "underpriced"
    replacing = chain.send(better, nonce=next_nonce + 1, fees=fees.bumped())
    filling = chain.send(early, nonce=next_nonce, fees=fees)
    assert world.mined(filling).succeeded
    assert world.mined(replacing).succeeded
    assert chain.receipt(waiting) is None
    assert chain.transaction(waiting) is None


def test_who_cannot_pay_is_refused(world: World) -> None:
    assert world.pauper.balance() == 0
    assert world.chain.balance() > 0
    with pytest.raises(TransactionRefused) as caught:
        world.send(world.patient().grant(world.now_s), by=world.pauper, fees=world.chain.fees())
    assert caught.value.reason == "insufficient-funds"


def test_events_come_in_chain_order_and_end_at_the_head(world: World) -> None:
    first = world.done(world.anchor()).block_number
    patient = world.patient()
    hashes = [world.send(patient.grant(world.now_s)) for _ in range(3)]
    last = max(world.mined(tx_hash).block_number for tx_hash in hashes)
    events = world.chain.logs(first, last + 1_000)
    places = [(event.place.block_number, event.place.log_index) for event in events]
    assert places == sorted(set(places))
    assert [event.place.tx_hash for event in events if isinstance(event, Granted)] == hashes
    assert world.chain.logs(last + 1_000, last + 2_000) == ()
    assert world.chain.logs(last, first - 1) == ()
