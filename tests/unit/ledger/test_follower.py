"""The follower: a grant counts once it is final, a revocation as soon as it is seen; a reorg delays, never undenies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import orjson
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from gateway.access.provision import Provision
from gateway.crypto.keys import KeyRing
from gateway.errors import ChainUnavailable
from gateway.ledger import follower as module
from gateway.ledger.calls import Call
from gateway.ledger.events import Granted, Revoked, RevokedAll
from gateway.ledger.follower import Follower
from gateway.store import followed, journal, outbox, provisions
from gateway.store.sql import Database
from tests.unit.ledger.ledger_world import FAR, PATIENT, World, grant, name, revoke, revoke_all


@pytest.fixture
def world(tmp_path: Path, ring: KeyRing) -> Iterator[World]:
    world = World(tmp_path, ring, confirmations=2)
    yield world
    world.database.close()


def sign(world: World, number: int, *, queued: bool = False, epoch: int = 0) -> None:
    """The patient signed consent ``number``: its provision waits for the chain."""
    call = grant(number, epoch=epoch)
    provision = Provision(
        id=f"c{number}.0", patient="Patient/p1", grantee="Practitioner/1", permit=True, types=None, categories=None,
        confidentiality=3, labels=0, purposes=None, data_period=None, valid_from_ms=0, valid_until_ms=FAR * 1000,
        writes=False, state="pending", grant_id=name(call))

    def work(connection: apsw.Connection) -> None:
        provisions.put(connection, provision, consent=f"c{number}", address=PATIENT, grantee_hash=lambda _: 1,
                       category_hash=lambda _: 1)
        if queued:
            outbox.enqueue(connection, kind="grant", consent=f"c{number}", call=call, created_ms=world.now_ms)

    Database.transact(world.database, work)


def send(world: World, call: Call) -> None:
    world.chain.send(call, nonce=world.chain.nonce("pending"), fees=world.chain.fees())


def state(world: World, number: int = 1) -> str:
    return str(world.database.reader.execute("SELECT state FROM provision WHERE consent=?", (f"c{number}",)).get)


def follow(world: World) -> None:
    for _ in range(20):
        if not world.follower.poll():
            return
    raise AssertionError("the follower does not come to rest")


def seq(world: World) -> int:
    return journal.decision_seq(world.database.reader)


def setting(world: World, name_: str) -> object:
    return world.database.reader.execute("SELECT value FROM setting WHERE name=?", (name_,)).get


def test_a_grant_counts_once_its_block_has_its_confirmations(world: World) -> None:
    sign(world, 1)
    send(world, grant(1))
    states = []
    for _ in range(4):
        follow(world)
        states.append(state(world))
        world.chain.mine()
    assert states == ["pending", "pending", "final", "final"]
    assert world.database.reader.execute("SELECT block, epoch FROM provision").fetchone() == (1, 0)


def test_a_grant_without_confirmations_to_wait_for_counts_at_once(tmp_path: Path, ring: KeyRing) -> None:
    world = World(tmp_path, ring, confirmations=0)
    sign(world, 1)
    send(world, grant(1))
    follow(world)
    assert state(world) == "final"
    world.database.close()


def test_a_revocation_counts_in_the_first_block_that_shows_it(world: World) -> None:
    sign(world, 1)
    send(world, grant(1))
    world.chain.mine(3)
    follow(world)
    before = seq(world)
    send(world, revoke(grant(1)))
    follow(world)
    assert state(world) == "revoked"
    assert seq(world) > before


def test_a_revocation_stays_when_its_block_is_reorganised_away(world: World) -> None:
    sign(world, 1)
    send(world, grant(1))
    world.chain.mine(3)
    follow(world)
    send(world, revoke(grant(1)))
    follow(world)
    world.chain.reorg(1, txs="drop")
    world.chain.mine(5)
    follow(world)
    assert world.chain.is_granted(grant(1).patient, grant(1).grantee, grant(1).terms_hash)
    assert state(world) == "revoked"


def test_a_grant_that_is_reorganised_away_waits_again(world: World) -> None:
    """Deeper than its confirmations: final is taken back, and comes again with the block that holds it."""
    sign(world, 1)
    send(world, grant(1))
    world.chain.mine(2)
    follow(world)
    assert state(world) == "final"
    before = seq(world)
    world.chain.reorg(3, txs="pool")
    follow(world)
    assert state(world) == "pending"
    assert seq(world) > before
    world.chain.mine(3)
    follow(world)
    assert state(world) == "final"


def test_a_reorg_shallower_than_the_confirmations_changes_nothing_final(world: World) -> None:
    sign(world, 1)
    send(world, grant(1))
    world.chain.mine()
    follow(world)  # a remembered block between the grant and the reorg
    world.chain.mine()
    follow(world)
    before = seq(world)
    world.chain.reorg(1, txs="drop", extra=2)
    follow(world)
    assert (state(world), seq(world)) == ("final", before)


def test_revoke_all_ends_what_was_granted_before_it(world: World) -> None:
    for number in (1, 2):
        sign(world, number)
        send(world, grant(number))
    world.chain.mine(3)
    follow(world)
    send(world, revoke_all())
    follow(world)
    assert (state(world, 1), state(world, 2)) == ("revoked", "revoked")


def test_revoke_all_ends_a_grant_that_is_not_final_yet_and_one_that_was_not_sent(world: World) -> None:
    sign(world, 1)
    sign(world, 2, queued=True)
    send(world, grant(1))
    send(world, revoke_all())
    follow(world)
    assert (state(world, 1), state(world, 2)) == ("revoked", "revoked")


def test_what_is_signed_after_revoke_all_is_granted_in_the_new_epoch(world: World) -> None:
    send(world, revoke_all())
    sign(world, 1, queued=True, epoch=1)
    follow(world)
    send(world, grant(1, epoch=1))
    world.chain.mine(3)
    follow(world)
    assert state(world) == "final"
    assert world.database.reader.execute("SELECT epoch FROM provision").get == 1


def test_it_catches_up_in_windows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 3)
    sign(world, 1)
    world.chain.mine(4)
    send(world, grant(1))
    world.chain.mine(9)
    follow(world)
    assert state(world) == "final"
    assert followed.cursor(world.database.reader).seen == 14


def test_a_head_that_moved_while_it_was_read_is_read_again(world: World) -> None:
    sign(world, 1)
    send(world, grant(1))
    follow(world)
    original = world.chain.logs

    def racing(first: int, last: int) -> tuple[object, ...]:
        world.chain.logs = original  # type: ignore[method-assign]  # the race happens once
        events = original(first, last)
        world.chain.reorg(1, txs="drop")
        return events

    world.chain.mine(3)
    world.chain.logs = racing  # type: ignore[method-assign, assignment]  # a race between two answers
    follow(world)
    assert followed.cursor(world.database.reader).seen_hash == world.chain.head().hash
    assert state(world) == "final"


def test_the_heartbeat_goes_on_while_the_chain_is_idle_and_stops_when_it_is_away(world: World) -> None:
    follow(world)
    first = setting(world, followed.FRESH)
    assert first == world.now_ms + 10_000
    commits = world.database.commits
    for _ in range(60):
        world.advance(0.5)
        follow(world)
    assert world.database.commits - commits <= 7  # 30 s: far below one write a second
    assert setting(world, followed.FRESH) >= world.now_ms + 5_000  # type: ignore[operator]  # a number
    world.chain.go_down()
    world.advance(30)
    with pytest.raises(ChainUnavailable):
        world.follower.poll()
    assert setting(world, followed.FRESH) < world.now_ms  # type: ignore[operator]  # a number
    head = orjson.loads(str(setting(world, followed.HEAD)))
    assert head["number"] == 0
    assert followed.head_number(world.database.reader) == 0


def test_an_external_chain_whose_head_is_old_is_not_fresh(world: World) -> None:
    follower = Follower(database=world.database, chain=world.chain, confirmations=0, max_head_age_s=900,
                        clock=world.clock)
    follower.poll()
    fresh = setting(world, followed.FRESH)
    world.now_ms += 901_000
    commits = world.database.commits
    for _ in range(5):
        world.now_ms += 6_000
        follower.poll()
    assert setting(world, followed.FRESH) == fresh
    assert world.database.commits - commits == 1
    world.chain.advance(1000)
    world.chain.mine()
    follower.poll()
    assert setting(world, followed.FRESH) > fresh  # type: ignore[operator]  # a number


def test_a_first_start_on_a_long_chain_begins_where_the_contracts_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WINDOW", 5)
    asked: list[int] = []
    logs = world.chain.logs
    monkeypatch.setattr(world.chain, "logs", lambda first, last: (asked.append(first), logs(first, last))[1])
    world.chain.mine(60)
    world.chain.deployed_at(55)
    sign(world, 1)
    send(world, grant(1))
    world.chain.mine(2)
    follow(world)
    assert min(asked) == 55
    assert state(world) == "final"
    assert followed.head_number(world.database.reader) == world.chain.head().number


def test_a_reorg_below_every_remembered_block_begins_where_the_contracts_do(world: World) -> None:
    world.chain.mine(3)
    world.chain.deployed_at(2)
    sign(world, 1)
    send(world, grant(1))
    world.chain.mine(2)
    follow(world)
    assert state(world) == "final"
    world.chain.reorg(world.chain.head().number, txs="drop")
    follow(world)
    assert state(world) == "pending"


def test_contracts_younger_than_the_head_are_waited_for_without_a_heartbeat(world: World) -> None:
    world.chain.deployed_at(9)
    assert not world.follower.poll()
    assert setting(world, followed.FRESH) is None


Steps = st.one_of(
    st.tuples(st.just("grant"), st.integers(1, 4)), st.tuples(st.just("revoke"), st.integers(1, 4)),
    st.tuples(st.just("revoke all")), st.tuples(st.just("mine")), st.tuples(st.just("poll")),
    st.tuples(st.just("reorg"), st.integers(1, 4), st.sampled_from(["pool", "drop", "keep"])))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(Steps, min_size=3, max_size=30), st.integers(0, 3))
def test_a_denial_once_seen_holds_and_every_other_final_grant_counts(
    tmp_path_factory: pytest.TempPathFactory, ring: KeyRing, run: list[tuple[object, ...]], confirmations: int
) -> None:
    world = World(tmp_path_factory.mktemp("weather"), ring, confirmations=confirmations)
    note(repr(run))
    for number in range(1, 5):
        sign(world, number)
    denied: set[int] = set()
    for step in run:
        match step:
            case ("grant", int(number)):
                send(world, grant(number, epoch=world.chain.epoch(PATIENT)))
            case ("revoke", int(number)):
                send(world, revoke(grant(number)))
            case ("revoke all",):
                send(world, replace(revoke_all(world.chain.epoch(PATIENT)), nonce=10**6 + world.chain.head().number))
            case ("mine",):
                world.chain.mine()
            case ("reorg", int(depth), str(txs)) if depth <= world.chain.head().number:
                world.chain.reorg(depth, txs=txs)  # type: ignore[arg-type]  # sampled from its literals
            case ("poll",):
                world.follower.poll()
        denied |= {number for number in range(1, 5) if state(world, number) == "revoked"}
        assert all(state(world, number) == "revoked" for number in denied)
    world.chain.mine(confirmations + 1)
    follow(world)
    events = world.chain.logs(0, world.chain.head().number)
    for number in range(1, 5):
        granted = [e for e in events if isinstance(e, Granted) and e.grant_id == name(grant(number))]
        revoked = [e for e in events if isinstance(e, Revoked) and e.grant_id == name(grant(number))]
        over = [e for e in events if isinstance(e, RevokedAll) and granted and e.epoch > granted[0].epoch]
        if revoked or over:
            assert state(world, number) == "revoked"
        elif number not in denied and not any(isinstance(e, RevokedAll) for e in events):
            assert state(world, number) == ("final" if granted else "pending")
        elif state(world, number) == "final":
            assert granted
    world.database.close()
