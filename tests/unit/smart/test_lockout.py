"""Delays after failures: growing, bounded, and no weapon."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.smart import lockout
from gateway.smart.lockout import DEVICE, LOGIN, SIGN_UP, SOURCE, by_login, by_source, reserve, source_of, succeeded
from tests.unit.smart.hospital import Hospital


@given(st.sampled_from([LOGIN, DEVICE, SOURCE, SIGN_UP]), st.integers(0, 10**6))
def test_a_delay_grows_and_has_an_end(limit: lockout.Limit, failures: int) -> None:
    assert 0 <= limit.delay_ms(failures) <= limit.delay_ms(failures + 1) <= limit.longest_s * 1_000 <= 900_000
    assert (limit.delay_ms(failures) == 0) is (failures <= limit.free)


def test_a_delay_runs_after_the_free_attempts_and_is_not_lengthened_by_trying(hospital: Hospital) -> None:
    smart, counted = hospital.smart, (by_login(hospital.smart, "ada"),)
    transact = smart.database.transact
    now_ms = smart.now_ms()
    for _ in range(LOGIN.free + 1):
        assert transact(lambda tx: reserve(tx, counted, now_ms))
    for _ in range(50):
        assert not transact(lambda tx: reserve(tx, counted, now_ms + 999))
    assert transact(lambda tx: reserve(tx, counted, now_ms + 1_000))
    assert not transact(lambda tx: reserve(tx, counted, now_ms + 1_000 + 1_999))
    assert transact(lambda tx: reserve(tx, counted, now_ms + 1_000 + 2_000))


def test_an_attempt_is_counted_before_it_is_looked_at(hospital: Hospital) -> None:
    """Many at once gain nothing: each took its place before any password was checked."""
    smart, counted = hospital.smart, (by_login(hospital.smart, "bea"),)
    now_ms = smart.now_ms()
    admitted = [smart.database.transact(lambda tx: reserve(tx, counted, now_ms)) for _ in range(40)]
    assert sum(admitted) == LOGIN.free + 1


def test_success_clears_a_login_and_takes_one_back_from_a_source(hospital: Hospital) -> None:
    smart = hospital.smart
    login, source = by_login(smart, "cleo"), by_source(smart, "198.51.100.1")
    now_ms = smart.now_ms()
    for _ in range(3):
        smart.database.transact(lambda tx: reserve(tx, (login, source), now_ms))
    smart.database.transact(lambda tx: succeeded(tx, (login, source)))

    def failures(key: bytes) -> list[int]:
        return [row[0] for row in smart.database.reader.execute(
            "SELECT failures FROM sign_in_failure WHERE key=?", (key,)).fetchall()]

    assert failures(login.key) == []
    assert failures(source.key) == [2]


def test_failures_are_forgotten_after_a_day(hospital: Hospital) -> None:
    smart, counted = hospital.smart, (by_login(hospital.smart, "dora"),)
    now_ms = smart.now_ms()
    for _ in range(LOGIN.free + 1):
        smart.database.transact(lambda tx: reserve(tx, counted, now_ms))
    later_ms = now_ms + lockout.FORGOTTEN_MS + 1
    assert smart.database.transact(lambda tx: reserve(tx, counted, later_ms))
    assert smart.database.transact(lambda tx: lockout.sweep(tx, later_ms + lockout.FORGOTTEN_MS + 1)) == 1


def test_a_queue_is_shared_by_what_one_customer_of_a_network_may_hold(hospital: Hospital) -> None:
    """An IPv6 customer is given a /48 at most (RFC 6177): 65,536 networks of one host, which would fill any queue."""
    smart = hospital.smart
    assert source_of(smart, "2001:db8:0:1::1") == source_of(smart, "2001:db8:0:ffff::/64")
    assert source_of(smart, "2001:db8:0:1::1") != source_of(smart, "2001:db8:1:1::1")
    assert source_of(smart, "198.51.100.1") != source_of(smart, "198.51.100.2")
    assert source_of(smart, "::ffff:198.51.100.1") == source_of(smart, "198.51.100.1")


def test_one_host_has_all_of_its_ipv6_network(hospital: Hospital) -> None:
    smart = hospital.smart
    assert by_source(smart, "2001:db8::1").key == by_source(smart, "2001:db8::ffff:1").key
    assert by_source(smart, "2001:db8::1").key != by_source(smart, "2001:db8:0:1::1").key
    assert by_source(smart, "2001:db8::/64").key == by_source(smart, "2001:db8::1").key  # as the doors name it
    assert by_source(smart, "2001:db8::/64").key != by_source(smart, "2001:db8:0:1::/64").key
    assert by_source(smart, "::ffff:198.51.100.1").key == by_source(smart, "198.51.100.1").key
    assert by_source(smart, None).key == by_source(smart, "unknown").key
