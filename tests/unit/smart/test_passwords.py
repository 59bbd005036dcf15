"""Passwords: Argon2id of RFC 9106, and what a password must be (NIST SP 800-63B 5.1.1)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.exceptions import InvalidKey

from gateway.errors import IntegrityBroken, Unprocessable
from gateway.smart import passwords
from gateway.smart.passwords import check_new_password, hash_password, needs_rehash, verify_password

PASSWORD = "correct horse battery staple"


def test_the_parameters_are_the_rfcs_and_stand_in_the_hash() -> None:
    """RFC 9106 section 4, the second recommended option."""
    stored = hash_password(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert verify_password(stored, PASSWORD)
    assert not verify_password(stored, PASSWORD + " ")
    assert not needs_rehash(stored)
    assert stored != hash_password(PASSWORD)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(passwords, "MEMORY_KIB", 1_024)
    passwords._nobodys.cache_clear()
    yield
    passwords._nobodys.cache_clear()


@pytest.mark.usefixtures("light")
def test_raised_parameters_rehash_and_the_old_hash_still_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = hash_password(PASSWORD)
    monkeypatch.setattr(passwords, "ITERATIONS", 4)
    assert needs_rehash(stored)
    assert verify_password(stored, PASSWORD)


@pytest.mark.usefixtures("light")
def test_nobodys_password_is_checked_as_anybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same work for a login that is not there: Argon2id is entered, with the parameters of the day."""
    entered: list[str] = []

    class Counting:
        @staticmethod
        def verify_phc_encoded(given: bytes, stored: str) -> None:
            entered.append(stored)
            raise InvalidKey

    nobodys = passwords._nobodys()
    monkeypatch.setattr(passwords, "Argon2id", Counting)
    assert not verify_password(None, PASSWORD)
    assert not verify_password(nobodys, PASSWORD)
    assert entered == [nobodys, nobodys]
    assert nobodys.split("$")[2:4] == ["v=19", f"m={passwords.MEMORY_KIB},t={passwords.ITERATIONS},p={passwords.LANES}"]


@pytest.mark.usefixtures("light")
def test_a_password_is_the_same_however_its_letters_are_composed() -> None:
    assert verify_password(hash_password("caf\u00e9 au lait au lit"), "cafe\u0301 au lait au lit")


def test_a_hash_that_cannot_be_read_is_broken_not_wrong() -> None:
    with pytest.raises(IntegrityBroken):
        verify_password("$argon2id$v=19$nonsense", PASSWORD)


@pytest.mark.usefixtures("light")
def test_a_longer_password_than_can_be_is_wrong() -> None:
    stored = hash_password("x" * passwords.MAX_LENGTH)
    assert verify_password(stored, "x" * passwords.MAX_LENGTH)
    assert not verify_password(stored, "x" * (passwords.MAX_LENGTH + 1))


@pytest.mark.parametrize("password", ["", "elevenchars", "x" * 257, "aaaaaaaaaaaaaaaa", "abababababababab",
                                      "adalovelace1", "AdaLovelace!23"])
def test_a_weak_password_is_refused_without_repeating_it(password: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        check_new_password(password, login_name="adalovelace")
    assert not password or password not in str(refused.value)


def test_a_long_password_needs_no_special_letters() -> None:
    check_new_password("several plain words", login_name="ada")
    check_new_password("\u5bc6\u7801\u662f\u5f88\u957f\u7684\u4e00\u53e5\u8bdd\u5bf9\u5417\u55ef", login_name="ada")
