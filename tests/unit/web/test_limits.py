"""Buckets, and where a request comes from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Settings, load_settings
from gateway.errors import Throttled
from gateway.web.limits import NOWHERE, Buckets, Limits


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def settings(**changed: str) -> Settings:
    return load_settings({f"GATEWAY_{name.upper()}": value for name, value in changed.items()})


def came(client: str | None, *forwarded: str) -> dict[str, Any]:
    return {"client": (client, 1) if client else None,
            "headers": [(b"x-forwarded-for", line.encode()) for line in forwarded]}


def test_a_burst_goes_through_and_then_the_rate() -> None:
    clock = Clock()
    buckets = Buckets(5, burst_s=2, clock=clock)
    assert sum(not buckets.take("a") for _ in range(50)) == 10
    assert buckets.take("a") == pytest.approx(0.2)
    assert not buckets.take("b")
    clock.now += 1
    assert sum(not buckets.take("a") for _ in range(50)) == 5


@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.integers(1, 20), st.integers(1, 5))
def test_no_window_lets_more_through_than_the_burst_and_its_rate(pauses: list[float], rate: int, burst: int) -> None:
    clock = Clock()
    buckets, taken = Buckets(rate, burst_s=burst, clock=clock), []
    for pause in pauses:
        clock.now += pause
        wait_s = buckets.take("a")
        if not wait_s:
            taken.append(clock.now)
        else:
            clock.now += wait_s + 1e-6
            assert not buckets.take("a"), "after the wait it was told, it may"
            taken.append(clock.now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rate * (burst + taken[last] - taken[first]) + 1e-3


def test_0_is_no_limit() -> None:
    buckets = Buckets(0)
    buckets.charge("a", 10**9)
    assert not any(buckets.take("a") for _ in range(1_000))
    assert len(buckets) == 0


def test_what_is_owed_is_one_bucket_at_most() -> None:
    clock = Clock()
    buckets = Buckets(10, burst_s=2, clock=clock)
    buckets.charge("a", 10**6)
    assert 2 < buckets.take("a") <= 2.2


def test_names_are_forgotten_and_never_without_end() -> None:
    clock = Clock()
    buckets = Buckets(1, burst_s=1, clock=clock)
    for number in range(70_000):
        buckets.take(number)
    assert len(buckets) <= 65_536
    clock.now += 10
    for number in range(70_000):
        buckets.take(-number)
    assert len(buckets) <= 65_536


def test_one_person_is_limited_and_another_of_the_same_client_is_not() -> None:
    class Token:
        client_id, client_kind, user = "app", "app", "Patient/1"

    class Other(Token):
        user = "Patient/2"

    limits = Limits(settings(account_requests_per_s="1"), clock=Clock())
    for _ in range(10):
        limits.caller(Token())  # type: ignore[arg-type]  # what it looks at
    with pytest.raises(Throttled) as refused:
        limits.caller(Token())  # type: ignore[arg-type]
    assert refused.value.retry_s == pytest.approx(1)
    limits.caller(Other())  # type: ignore[arg-type]


@pytest.mark.parametrize(("client", "forwarded", "found"), [
    ("198.51.100.7", ["203.0.113.9"], "198.51.100.7"),           # no proxy of ours says so
    ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
    ("10.0.0.1", ["1.2.3.4, 203.0.113.9"], "203.0.113.9"),       # 1.2.3.4 was written by the client
    ("10.0.0.1", ["1.2.3.4", "203.0.113.9, 10.0.0.2"], "203.0.113.9"),
    ("10.0.0.1", ["203.0.113.9, nonsense"], "10.0.0.1"),
    ("10.0.0.1", [""], "10.0.0.1"), ("10.0.0.1", [], "10.0.0.1"), ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
    ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
    ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"), ("fe80::1%eth0", [], "fe80::/64"),
    (None, ["203.0.113.9"], NOWHERE), ("testclient", ["203.0.113.9"], NOWHERE)])
def test_an_address_is_believed_as_far_as_trusted_proxies_reach(client: str | None, forwarded: list[str],
                                                                found: str) -> None:
    assert Limits(settings(trusted_proxies="10.0.0.0/8")).address(came(client, *forwarded)) == found


def test_strangers_of_one_address_share_a_bucket() -> None:
    limits = Limits(settings(address_requests_per_s="1"), clock=Clock())
    for _ in range(10):
        limits.stranger(came("203.0.113.9"))
    with pytest.raises(Throttled):
        limits.stranger(came("203.0.113.9", "198.51.100.1"))
    limits.stranger(came("203.0.113.10"))
