"""The state machine of a Job, row by row, and the queue of nonces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.ledger.job import (
    Attempt,
    Facts,
    Failed,
    Finalised,
    Landing,
    Mined,
    Policy,
    Queue,
    Refused,
    Replace,
    Send,
    Unmined,
    Wait,
    plan,
)
from gateway.ledger.loops import retry_s
from gateway.ledger.transactions import Fees, Revert

POLICY = Policy(confirmations=2)
HERE = Landing(tx_hash=b"t" * 32, block_number=10, block_hash=b"x" * 32, block_time_s=1)
NOW = Facts(now_ms=0, head_number=10, followed=10, next_nonce=5, landed=None, refused=None, basis=b"h", hole=None)
BAD = Refused(revert=Revert(name="InvalidSignature"), block_number=10)


def attempt(nonce: int, *, job: int = 1, basis: bytes = b"h", max_fee: int = 100, sent_ms: int = 0,
            sent_block: int = 10) -> Attempt:
    return Attempt(kind="intent", job=job, hash=bytes([nonce, job, max_fee % 256]), nonce=nonce, raw=b"", basis=basis,
                   fees=Fees(max_fee=max_fee, priority=None), sent_ms=sent_ms, sent_block=sent_block)


LATE = replace(NOW, now_ms=60_000, head_number=13)
WAITING, OTHER = attempt(5), attempt(5, job=2)


@pytest.mark.parametrize(("why", "recorded", "attempts", "facts", "expected"), [
    ("nothing sent", None, (), NOW, Send(None)),
    ("its turn has not come", None, (), replace(NOW, basis=None), Wait()),
    ("it waits in the pool", None, (WAITING,), NOW, Wait()),
    ("its nonce went to another", None, (attempt(4),), NOW, Send(None)),
    ("one of two nonces is left", None, (attempt(4), WAITING), NOW, Wait()),
    ("a hole below it", None, (attempt(7),), replace(NOW, hole=5), Send(5)),
    ("made for another head", None, (attempt(5, basis=b"old"),), NOW, Replace(attempt(5, basis=b"old"))),
    ("stuck", None, (WAITING,), LATE, Replace(WAITING)),
    ("stuck, though replaced before", None, (WAITING, attempt(5, max_fee=125)), LATE,
     Replace(attempt(5, max_fee=125))),
    ("late, but no blocks came", None, (WAITING,), replace(LATE, head_number=12), Wait()),
    ("blocks came, but not for long", None, (WAITING,), replace(LATE, now_ms=59_999), Wait()),
    ("late, but not its turn", None, (attempt(6),), LATE, Wait()),
    ("replaced often enough", None, tuple(attempt(5, max_fee=100 + n) for n in range(13)), LATE, Wait()),
    ("behind another's, late", None, (attempt(6),), replace(LATE, first=(OTHER,)), Wait()),
    ("behind another's that nobody mends", None, (attempt(6),),
     replace(LATE, now_ms=120_000, head_number=16, first=(OTHER,)), Replace(OTHER)),
    ("landed", None, (WAITING,), replace(NOW, landed=HERE), Mined(HERE)),
    ("landed and recorded", (10, b"x" * 32), (WAITING,), replace(NOW, landed=HERE), Wait()),
    ("landed in another block than recorded", (10, b"y" * 32), (WAITING,), replace(NOW, landed=HERE), Mined(HERE)),
    ("landed deep enough", (10, b"x" * 32), (WAITING,), replace(NOW, landed=HERE, followed=12), Finalised(HERE)),
    ("deep, but not followed yet", (10, b"x" * 32), (), replace(NOW, landed=HERE, head_number=99), Wait()),
    ("landed though one was refused", None, (WAITING,), replace(NOW, landed=HERE, refused=BAD), Mined(HERE)),
    ("taken back", (10, b"x" * 32), (WAITING,), NOW, Unmined()),
    ("refused, may come back", None, (WAITING,), replace(NOW, refused=BAD), Wait()),
    ("refused for good", None, (WAITING,), replace(NOW, refused=BAD, followed=12), Failed(BAD.revert)),
], ids=lambda value: value if isinstance(value, str) else "")
def test_the_next_step(why: str, recorded: tuple[int, bytes] | None, attempts: tuple[Attempt, ...], facts: Facts,
                       expected: object) -> None:
    assert plan(recorded=recorded, attempts=attempts, facts=facts, policy=POLICY) == expected, why


@pytest.mark.parametrize(("next_nonce", "pending", "ours", "free"), [
    (3, 3, (), 3), (3, 3, (3, 4), 5), (3, 5, (3, 4), 5), (3, 3, (4, 5), 3), (3, 4, (4, 5), 6), (3, 5, (), 5)])
def test_the_lowest_nonce_that_nobody_has_is_given_next(next_nonce: int, pending: int, ours: tuple[int, ...],
                                                        free: int) -> None:
    """Ours may have fallen out of the pool; another holder's, below ``pending``, are left alone."""
    queue = Queue(next_nonce=next_nonce, pending=pending, waiting=tuple(attempt(nonce) for nonce in ours))
    assert queue.free() == free


def test_a_hole_is_told_to_jobs_above_it_alone() -> None:
    queue = Queue(next_nonce=3, pending=3, waiting=(attempt(4), attempt(6, job=2)))
    assert [queue.hole_for("intent", job) for job in (1, 2, 3)] == [3, 3, None]
    assert queue.with_attempt(attempt(3)).hole_for("intent", 2) == 5
    assert Queue(next_nonce=3, pending=3, waiting=(attempt(3),)).hole_for("intent", 1) is None


def test_retries_double_to_a_cap_and_never_beat_together() -> None:
    waits = [[retry_s(failures) for _ in range(50)] for failures in (1, 2, 3, 30, 10_000)]
    assert all(0.1 <= wait <= 0.2 for wait in waits[0])
    assert all(0.2 <= wait <= 0.4 for wait in waits[1])
    assert all(7.5 <= wait <= 15 for wait in waits[3] + waits[4])
    assert len(set(waits[2])) > 40
