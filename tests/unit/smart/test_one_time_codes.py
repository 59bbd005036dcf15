"""TOTP by RFC 6238, and recovery codes."""

from __future__ import annotations

import base64
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.smart.one_time_codes import (
    RECOVERY_CODES,
    code_at,
    new_recovery_codes,
    new_seed,
    otpauth_uri,
    recovery_hash,
    seed_text,
    taken_step,
)

SEED = b"12345678901234567890"


@pytest.mark.parametrize(("time_s", "code"), [
    (59, "94287082"), (1_111_111_109, "07081804"), (1_111_111_111, "14050471"), (1_234_567_890, "89005924"),
    (2_000_000_000, "69279037"), (20_000_000_000, "65353130")])
def test_codes_are_those_of_the_rfc(time_s: int, code: str) -> None:
    """RFC 6238 appendix B, SHA-1; ours are its last six digits."""
    assert code_at(SEED, time_s // 30) == code[-6:]
    assert taken_step(SEED, code[-6:], now_s=time_s, after_step=0) == time_s // 30


@given(st.integers(10, 10**8), st.integers(-5, 5))
def test_a_code_counts_near_its_time_and_after_the_last_one_taken(step: int, away: int) -> None:
    taken = taken_step(SEED, code_at(SEED, step), now_s=(step + away) * 30 + 15, after_step=0)
    if abs(away) <= 1:
        assert taken is not None
        assert taken_step(SEED, code_at(SEED, step), now_s=(step + away) * 30 + 15, after_step=step + 1) is None
    elif taken is not None:  # another step has the same six digits
        assert code_at(SEED, taken) == code_at(SEED, step)


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "\u0661\u0662\u0663\u0664\u0665\u0666", "-12345",
                                  "9" * 1_000])
def test_what_is_no_code_is_none(code: str) -> None:
    assert taken_step(SEED, code, now_s=59, after_step=0) is None


def test_spaces_in_a_code_are_how_apps_show_it() -> None:
    assert taken_step(SEED, "287 082", now_s=59, after_step=0) == 1


def test_an_app_gets_the_seed_by_its_uri() -> None:
    seed = new_seed()
    assert len(seed) == 20
    uri = urlsplit(otpauth_uri(seed, name="ada:x", issuer="St. Elsewhere"))
    asked = {name: values[0] for name, values in parse_qs(uri.query).items()}
    assert (uri.scheme, uri.netloc) == ("otpauth", "totp")
    assert "+" not in uri.query  # apps show it as it is
    assert (asked["digits"], asked["period"], asked["issuer"]) == ("6", "30", "St. Elsewhere")
    assert asked["secret"].rstrip("=") == seed_text(seed)
    assert base64.b32decode(seed_text(seed)) == seed


def test_recovery_codes_are_random_and_bound_to_their_login() -> None:
    codes = new_recovery_codes()
    assert len(set(codes)) == RECOVERY_CODES
    first = recovery_hash("a", codes[0])
    assert first is not None
    assert first == recovery_hash("a", codes[0].upper().replace("-", " "))
    assert first != recovery_hash("b", codes[0])
    for junk in ("", "123456", codes[0][:-1], codes[0] + "a", "\u0131" * 16):
        assert recovery_hash("a", junk) is None
