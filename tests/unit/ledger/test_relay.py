"""The relay: a signed act reaches the chain exactly once; nothing is paid for what would be refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from gateway.crypto.keys import KeyRing
from gateway.errors import BlockCorrupt, ChainUnavailable, TransactionRefused
from gateway.ledger.calls import GrantCall
from gateway.ledger.events import Granted, Revoked, RevokedAll
from gateway.store import followed, outbox
from gateway.store.sql import Database
from tests.simulators.chain import OPERATOR
from tests.unit.ledger.ledger_world import PATIENT, Crash, World, grant, name, revoke, revoke_all
from tests.unit.ledger.test_anchor import Weather, blow, check_exactly_once
from tests.unit.ledger.test_follower import sign


def enqueue(world: World, kind: outbox.IntentKind, call: outbox.SignedCall, consent: str = "c1") -> str:
    return Database.transact(world.database, lambda connection: outbox.enqueue(
        connection, kind=kind, consent=consent, call=call, created_ms=world.now_ms))


def intent(world: World, id_: str) -> outbox.Intent:
    found = outbox.intent(world.database.reader, id_)
    assert found is not None
    return found


def sent(world: World) -> int:
    return int(str(world.database.reader.execute("SELECT count(*) FROM attempt").get))


@pytest.mark.parametrize("call", [grant(), revoke(grant()), revoke_all()])
def test_a_call_reads_back_as_it_was_stored(call: outbox.SignedCall) -> None:
    data = outbox.encode_call(call)
    assert outbox.decode_call(data) == call
    for broken in (data[:-1], data + b"\0", b"\xa0", b""):
        with pytest.raises(BlockCorrupt):
            outbox.decode_call(broken)


def test_a_grant_and_its_revocation_land_in_the_order_they_were_signed(world: World) -> None:
    first, second = enqueue(world, "grant", grant()), enqueue(world, "revoke", revoke(grant()))
    world.settle()
    assert (intent(world, first).state, intent(world, second).state) == ("final", "final")
    assert [type(event) for event in world.chain.logs(0, 99)] == [Granted, Revoked]


def test_the_same_signed_act_twice_is_one_intent(world: World) -> None:
    assert enqueue(world, "grant", grant()) == enqueue(world, "grant", grant())
    assert world.states("intent") == ["signed"]
    with pytest.raises(ValueError, match="no revoke"):
        enqueue(world, "revoke", grant())


def test_the_grant_of_a_consent_is_the_one_signed_for_it(world: World) -> None:
    reader = world.database.reader
    assert outbox.grant_of_consent(reader, "c1") is None
    enqueue(world, "grant", grant(2))
    assert outbox.grant_of_consent(reader, "c1") == grant(2)
    assert outbox.grant_of_consent(reader, "c2") is None


def test_a_bad_signature_fails_with_its_reason_and_costs_nothing(world: World) -> None:
    world.chain.accepts_signature = lambda call: False
    id_ = enqueue(world, "grant", grant())
    world.step()
    assert (intent(world, id_).state, intent(world, id_).error, sent(world)) == ("failed", "InvalidSignature", 0)
    assert outbox.grant_of_consent(world.database.reader, "c1") is None


def test_a_refused_grants_provisions_wait_no_longer(world: World) -> None:
    world.chain.accepts_signature = lambda call: False
    sign(world, 1, queued=True)
    world.step()
    assert str(world.database.reader.execute("SELECT state FROM provision").get) == "revoked"
    assert outbox.refusal_of_consent(world.database.reader, "c1") == "InvalidSignature"


def test_a_signature_whose_time_has_passed_fails(world: World) -> None:
    id_ = enqueue(world, "grant", grant(deadline_s=1_700_000_000))
    world.step()
    assert (intent(world, id_).state, intent(world, id_).error) == ("failed", "SignatureExpired")


def test_an_act_that_failed_can_be_tried_again(world: World) -> None:
    world.chain.accepts_signature = lambda call: False
    id_ = enqueue(world, "grant", grant())
    world.step()
    world.chain.accepts_signature = lambda call: True
    assert enqueue(world, "grant", grant()) == id_
    world.settle()
    assert intent(world, id_).state == "final"


def test_an_act_somebody_else_delivered_counts_as_landed(world: World) -> None:
    other = world.chain.as_operator(PATIENT)
    tx = other.send(grant(), nonce=0, fees=other.fees())
    id_ = enqueue(world, "grant", grant())
    world.settle()
    assert (intent(world, id_).state, intent(world, id_).tx_hash, sent(world)) == ("final", tx, 0)


def test_a_nonce_that_was_used_for_something_else_fails(world: World) -> None:
    other = world.chain.as_operator(PATIENT)
    other.send(grant(), nonce=0, fees=other.fees())
    clash = grant(2)
    id_ = enqueue(world, "grant", type(clash)(**{
        member: getattr(clash, member) for member in clash.__slots__ if member != "nonce"}, nonce=1))
    world.settle()
    assert (intent(world, id_).state, intent(world, id_).error) == ("failed", "NonceUsed")


def test_an_epoch_that_is_over_already_counts_as_revoked(world: World) -> None:
    other = world.chain.as_operator(PATIENT)
    other.send(revoke_all(), nonce=0, fees=other.fees())
    id_ = enqueue(world, "revoke-all", revoke_all())
    world.settle()
    assert intent(world, id_).state == "final"


def test_a_hospital_that_is_no_member_fails_no_patients_act(world: World) -> None:
    world.chain.change_member("removed", OPERATOR)
    custodial = type(grant())(**{
        member: getattr(grant(), member) for member in grant().__slots__ if member != "nonce"}, nonce=(1 << 248) + 9)
    id_ = enqueue(world, "grant", custodial)
    world.step()
    assert intent(world, id_).state == "signed"
    world.chain.change_member("admitted", OPERATOR)
    world.advance(60)
    world.settle()
    assert intent(world, id_).state == "final"


def test_an_empty_purse_raises_no_fees_and_all_goes_on_once_it_is_filled(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, automine=False)
    world.chain.set_balance(0)
    id_ = enqueue(world, "grant", grant())
    for look in range(40):
        world.advance(30)
        world.chain.mine()
        world.step()
        if look == 20:
            world.restart()
    assert sent(world) == 1
    world.chain.set_balance(10**21)
    world.settle()
    assert intent(world, id_).state == "final"
    world.database.close()


def test_a_transaction_that_succeeds_without_the_contracts_event_lands_nothing(
        world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a chain put in the place of ours nobody lives at the contract's address: whatever is sent succeeds."""
    id_ = enqueue(world, "grant", grant())
    receipt = world.chain.receipt
    monkeypatch.setattr(world.chain, "receipt", lambda hash_: (
        replace(found, events=()) if (found := receipt(hash_)) is not None else None))
    world.relay.poll()
    monkeypatch.setattr(world.chain, "is_nonce_used", nobody_there)
    with pytest.raises(ChainUnavailable):
        world.relay.poll()
    assert (intent(world, id_).state, sent(world)) == ("submitted", 1)


def nobody_there(*_: object) -> bool:
    raise ChainUnavailable("a contract answered something its ABI does not have")


def test_a_race_that_somebody_else_won_counts_as_landed(tmp_path: Path, ring: KeyRing) -> None:
    """Our transaction waits, theirs is mined first: ours is refused, the act is in force."""
    world = World(tmp_path, ring, automine=False)
    id_ = enqueue(world, "grant", grant())
    world.step()
    (ours,) = world.chain.pending
    world.chain.hold(ours)
    other = world.chain.as_operator(PATIENT)
    other.send(grant(), nonce=0, fees=other.fees())
    world.chain.mine()
    world.chain.release(ours)
    world.settle()
    assert intent(world, id_).state == "final"
    assert intent(world, id_).tx_hash != ours
    world.database.close()


def test_a_hole_below_is_filled_by_what_stands_above_it(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, automine=False)
    enqueue(world, "grant", grant(1))
    world.step()
    enqueue(world, "grant", grant(2))
    world.step()
    lowest = min(world.database.reader.execute("SELECT nonce, hash FROM attempt"))
    world.chain.drop(bytes(lowest[1]))
    Database.transact(world.database, lambda connection: connection.execute("DELETE FROM attempt WHERE nonce=0"))
    world.restart()
    world.settle()
    assert world.states("intent") == ["final", "final"]
    world.database.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(Weather, st.tuples(st.just("act"), st.integers(1, 6), st.booleans())), min_size=5,
                max_size=40), st.integers(0, 2), st.booleans())
def test_every_signed_act_lands_exactly_once_through_any_weather(
    tmp_path_factory: pytest.TempPathFactory, ring: KeyRing, run: list[tuple[object, ...]], confirmations: int,
    automine: bool,
) -> None:
    world = World(tmp_path_factory.mktemp("weather"), ring, confirmations=confirmations, automine=automine)
    note(repr(run))
    for weather in run:
        try:
            match weather:
                case ("act", int(number), bool(revoking)):
                    call = grant(number)
                    enqueue(world, "grant", call)
                    if revoking:
                        enqueue(world, "revoke", revoke(call))
                case _:
                    blow(world, weather)
        except Crash:
            world.restart()
        except (ChainUnavailable, TransactionRefused):
            pass
    world.chain.resume()
    world.restart()
    world.close_all()
    world.settle()
    check_exactly_once(world)
    events = world.chain.logs(0, world.chain.head().number)
    for row in outbox_rows(world):
        kind = Granted if row.kind == "grant" else Revoked
        assert not isinstance(row.call, type(revoke_all()))
        landed = [event for event in events if isinstance(event, kind) and event.grant_id == name(row.call)]
        assert len(landed) == 1 if row.state == "final" else (row.error, landed) == ("GrantExists", [])
        if row.state == "final":
            assert landed[0].place.tx_hash == row.tx_hash
    world.database.close()


def outbox_rows(world: World) -> list[outbox.Intent]:
    return [intent(world, str(id_)) for (id_,) in world.database.reader.execute("SELECT id FROM intent")]


def test_a_revoke_all_waits_for_no_grant(world: World) -> None:
    """Those of the epoch that it ends can land no more (``contracts/README.md``)."""
    world.chain.stall()
    first = enqueue(world, "grant", grant(1))
    world.step()
    assert sent(world) == 1
    last = enqueue(world, "revoke-all", revoke_all())
    world.step()
    assert (intent(world, last).state, sent(world)) == ("submitted", 2)
    world.chain.resume()
    world.chain.mine()
    world.settle()
    assert (intent(world, first).state, intent(world, last).state) == ("final", "final")
    assert [type(event) for event in world.chain.logs(0, 99)] == [Granted, RevokedAll]
    assert world.chain.granted_count(PATIENT) == 0


def test_a_grant_whose_epoch_is_over_is_refused_and_nothing_is_spent_on_it(world: World) -> None:
    other = world.chain.as_operator(PATIENT)
    other.send(revoke_all(), nonce=0, fees=other.fees())
    late = enqueue(world, "grant", grant(1))
    before = world.now_ms
    while intent(world, late).state == "signed":
        world.step()
    assert (intent(world, late).state, intent(world, late).error) == ("failed", "EpochMismatch")
    assert world.now_ms - before < 3_000, "another's delivery is not waited for"
    assert sent(world) == 0
    assert followed.epoch_of(world.database.reader, PATIENT) == 1


def test_the_end_of_an_epoch_waits_for_its_beginning(world: World) -> None:
    world.chain.stall()
    first, second = (enqueue(world, "revoke-all", revoke_all(epoch)) for epoch in (0, 1))
    for _ in range(3):
        world.step()
    assert (intent(world, first).state, intent(world, second).state) == ("submitted", "signed")
    world.chain.resume()
    world.chain.mine()
    world.settle()
    assert (intent(world, first).state, intent(world, second).state) == ("final", "final")
    assert world.chain.epoch(PATIENT) == 2


def test_many_acts_leave_the_follower_its_turn(world: World) -> None:
    """On a chain where each transaction waits for its block a burst would otherwise stop the heartbeat."""
    for number in range(1, 21):
        enqueue(world, "grant", grant(number), consent=f"c{number}")
    estimate = world.chain.estimate

    def slow(call: Any) -> int:
        world.now_ms += 400
        return estimate(call)

    world.chain.estimate = slow  # type: ignore[method-assign]  # of this test's own simulator
    before = world.now_ms
    assert world.relay.poll()
    assert world.now_ms - before < 2_000
    assert 0 < sent(world) < 20
    world.settle()
    assert world.states("intent") == ["final"] * 20


def test_a_grant_signed_after_a_revoke_all_does_not_overtake_it(world: World) -> None:
    """It is of the epoch that begins then."""
    world.chain.stall()
    enqueue(world, "grant", grant(1))
    world.step()
    enqueue(world, "revoke-all", revoke_all())
    anew = enqueue(world, "grant", grant(2, epoch=1), consent="c2")
    for _ in range(3):
        world.step()
    assert (intent(world, anew).state, sent(world)) == ("signed", 2)
    world.chain.resume()
    world.chain.mine()
    world.settle()
    assert intent(world, anew).state == "final"
    landed = [event for event in world.chain.logs(0, 99) if isinstance(event, Granted | RevokedAll)]
    assert [type(event) for event in landed] == [Granted, RevokedAll, Granted]


def test_a_grant_withdrawn_while_the_relay_looks_is_not_sent(world: World) -> None:
    id_ = enqueue(world, "grant", grant())
    estimate = world.chain.estimate

    def meanwhile(call: Any) -> int:
        Database.transact(world.database, lambda tx: outbox.withdraw_grant(tx, "c1"))
        return estimate(call)

    world.chain.estimate = meanwhile  # type: ignore[method-assign]  # of this test's own simulator
    world.step()
    assert (intent(world, id_).state, intent(world, id_).error, sent(world)) == ("failed", outbox.WITHDRAWN, 0)
    assert isinstance(intent(world, id_).call, GrantCall)
    assert intent(world, id_).call.signature == b""
    assert world.chain.logs(0, 99) == ()


def test_a_grant_that_was_sent_or_seen_is_not_withdrawn(world: World) -> None:
    world.chain.stall()
    enqueue(world, "grant", grant(1))
    world.step()
    assert not Database.transact(world.database, lambda tx: outbox.withdraw_grant(tx, "c1"))


@pytest.mark.parametrize("ended", [False, True])
def test_a_grant_on_chain_before_it_was_signed_here_counts_unless_it_ended(world: World, ended: bool) -> None:
    other = world.chain.as_operator(PATIENT)
    other.send(grant(), nonce=0, fees=other.fees())
    if ended:
        other.send(revoke(grant()), nonce=1, fees=other.fees())
    world.settle()
    sign(world, 1, queued=True)
    assert world.states("provision") == ["pending"]
    world.settle()
    assert world.states("provision") == ["revoked" if ended else "final"]
    assert world.states("intent") == ["final"]


def test_the_epoch_the_contract_names_is_remembered(world: World) -> None:
    enqueue(world, "revoke-all", revoke_all())
    world.settle()
    late = enqueue(world, "revoke-all", revoke_all(epoch=5))
    world.settle()
    assert (intent(world, late).state, intent(world, late).error) == ("failed", "EpochMismatch")
    assert followed.epoch_of(world.database.reader, PATIENT) == 1
