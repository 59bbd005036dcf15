"""Bearer tokens: what a presented secret is worth now (RFC 6750; invariants 5 and 6)."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.grant import Grant
from gateway.access.scopes import ResourceScope, ScopeSet, parse
from gateway.errors import Unauthenticated
from gateway.smart.accounts import add_user, close_user
from gateway.smart.minting import mint_token
from gateway.smart.tokens import PREFIX, Secret, TokenStore, bearer, new_secret, sweep
from gateway.store.sql import Database
from tests.unit.smart.hospital import Hospital


def _lookup(hospital: Hospital, secret: str, ahead_ms: int = 0) -> tuple[Grant, int]:
    return hospital.smart.tokens.lookup(hospital.smart.database.reader, secret, hospital.clock_ms[0] + ahead_ms)


def _reason(hospital: Hospital, secret: str, ahead_ms: int = 0) -> str:
    with pytest.raises(Unauthenticated) as refusal:
        _lookup(hospital, secret, ahead_ms)
    assert refusal.value.error == "invalid_token"
    assert str(refusal.value) == "the access token is unknown, expired or revoked"
    return refusal.value.reason


def test_a_token_gives_back_the_grant_it_was_issued_with(hospital: Hospital) -> None:
    secret, grant = mint_token(hospital.smart, user="Practitioner/1", patient="7", scope="patient/*.rs user/Patient.rs")
    assert secret.startswith(PREFIX)
    assert _lookup(hospital, secret)[0] == grant
    assert _lookup(hospital, secret)[0] is _lookup(hospital, secret)[0]  # built once


def test_the_database_holds_no_secret(hospital: Hospital) -> None:
    secret, _ = mint_token(hospital.smart)
    held = [value for row in hospital.smart.database.reader.execute("SELECT * FROM token") for value in row]
    assert secret not in held
    assert hashlib.sha256(secret.encode()).digest() not in held  # keyed: no dictionary of it can be made


@pytest.mark.parametrize("secret", ["", "gw_", "x" * 46, "gw_" + "A" * 43, "gw_" + "\u00e9" * 43, "gw_" + "A" * 10_000])
def test_an_unknown_token_is_refused(hospital: Hospital, secret: str) -> None:
    assert _reason(hospital, secret) in ("unknown", "malformed")


def test_another_hospitals_token_is_unknown(hospital: Hospital) -> None:
    mint_token(hospital.smart)
    assert _reason(hospital, new_secret()) == "unknown"


def test_a_token_ends_on_the_millisecond(hospital: Hospital) -> None:
    secret, _ = mint_token(hospital.smart, ttl_s=1)
    _lookup(hospital, secret, 999)
    assert _reason(hospital, secret, 1_000) == "expired"


def test_work_outlives_its_token_but_neither_a_mandate_nor_a_broken_glass(hospital: Hospital) -> None:
    """A minor's proxy ends at majority, as the account says; an export begun before goes on no longer either."""
    now_ms = hospital.clock_ms[0]
    add_user(hospital.smart, fhir_user="RelatedPerson/1", role="delegate", name="Parent", represents="Patient/1",
             mandate_until_ms=now_ms + 5_000)
    _, feed = mint_token(hospital.smart, ttl_s=1)
    _, parent = mint_token(hospital.smart, user="RelatedPerson/1", ttl_s=60)
    _, glass = mint_token(hospital.smart, user="Practitioner/1", patient="1", purpose="BTG", reason="coma", ttl_s=1)
    assert parent.expires_ms == now_ms + 5_000
    tokens, reader = hospital.smart.tokens, hospital.smart.database.reader
    assert tokens.lookup_id(reader, feed.token_id, now_ms + 9_000, work_ms=60)[0].expires_ms == now_ms + 9_060
    assert tokens.lookup_id(reader, parent.token_id, now_ms + 4_999, work_ms=60)[0].user == "RelatedPerson/1"
    assert tokens.lookup_id(reader, glass.token_id, now_ms + 999, work_ms=60)[0].expires_ms == now_ms + 1_000
    for token, at_ms, why in ((parent, 5_000, "mandate-ended"), (glass, 1_000, "expired")):
        with pytest.raises(Unauthenticated) as refusal:
            tokens.lookup_id(reader, token.token_id, now_ms + at_ms, work_ms=60)
        assert refusal.value.reason == why


def test_revocation_counts_at_once_on_another_worker(hospital: Hospital, tmp_path: Path) -> None:
    secret, grant = mint_token(hospital.smart)
    worker = Database(tmp_path / "store" / "gateway.db", bytes(range(32)))
    tokens = TokenStore(bytes(32))
    _, before = tokens.lookup(worker.reader, secret, hospital.clock_ms[0])  # the worker's cache is warm
    assert hospital.smart.database.transact(
        lambda connection: hospital.smart.tokens.revoke_id(connection, grant.token_id, hospital.clock_ms[0]))
    with pytest.raises(Unauthenticated) as refusal:
        tokens.lookup(worker.reader, secret, hospital.clock_ms[0])
    assert (refusal.value.reason, refusal.value.token) == ("revoked", grant.token_id)
    assert not hospital.smart.database.transact(
        lambda connection: hospital.smart.tokens.revoke(connection, secret, hospital.clock_ms[0]))
    assert worker.reader.execute("SELECT value FROM decision_seq").get == before + 1
    worker.close()


def test_closing_an_account_refuses_its_tokens_and_reopening_brings_none_back(hospital: Hospital) -> None:
    def add() -> None:
        add_user(hospital.smart, fhir_user="Practitioner/1", role="clinician", name="Dr. One")
    add()
    secret, _ = mint_token(hospital.smart, user="Practitioner/1")
    close_user(hospital.smart, "Practitioner/1")
    assert _reason(hospital, secret) == "revoked"
    add()
    assert _reason(hospital, secret) == "revoked"


def test_a_row_changed_under_the_cache_is_seen(hospital: Hospital) -> None:
    secret, _ = mint_token(hospital.smart)
    assert _lookup(hospital, secret)[0].scopes.allows("Patient", "d")
    hospital.smart.database.transact(lambda connection: connection.execute("UPDATE token SET scope='system/*.r'"))
    assert not _lookup(hospital, secret)[0].scopes.allows("Patient", "d")


def test_a_token_whose_client_is_gone_is_refused(hospital: Hospital) -> None:
    secret, _ = mint_token(hospital.smart)
    hospital.smart.database.transact(lambda connection: connection.execute("DELETE FROM client"))
    assert _reason(hospital, secret) == "client-closed"


def test_the_cache_is_bounded(hospital: Hospital) -> None:
    tokens = TokenStore(bytes(32), cache_size=3)
    reader = hospital.smart.database.reader
    for _ in range(6):
        secret, grant = mint_token(hospital.smart)
        assert tokens.lookup(reader, secret, hospital.clock_ms[0])[0] == grant
    assert len(tokens._cache) == 3


def test_lookups_of_many_threads_agree(hospital: Hospital) -> None:
    held = [mint_token(hospital.smart) for _ in range(5)]
    tokens, wrong = TokenStore(bytes(32), cache_size=2), []

    def work() -> None:
        for _ in range(100):
            for secret, grant in held:
                if tokens.lookup(hospital.smart.database.reader, secret, hospital.clock_ms[0])[0] != grant:
                    wrong.append(secret)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_sweep_deletes_what_is_long_over_and_nothing_else(hospital: Hospital) -> None:
    old, _ = mint_token(hospital.smart, ttl_s=1)
    hospital.clock_ms[0] += 25 * 3_600_000
    young, _ = mint_token(hospital.smart)
    hospital.smart.database.transact(lambda connection: connection.execute(
        "INSERT INTO assertion VALUES ('a', 'old', ?), ('a', 'new', ?)",
        (hospital.clock_ms[0] - 1, hospital.clock_ms[0] + 1)))
    assert hospital.smart.database.transact(lambda connection: sweep(connection, hospital.clock_ms[0])) == 2
    assert _reason(hospital, old) == "unknown"
    _lookup(hospital, young)
    assert list(hospital.smart.database.reader.execute("SELECT jti FROM assertion")) == [("new",)]


def test_a_secret_hides_in_repr_and_log_formats() -> None:
    secret = new_secret()
    assert secret not in repr({"access_token": secret})
    assert secret not in f"{[secret]!r}"
    assert len(secret) == 46


@pytest.mark.parametrize(("header", "expected"), [
    ("Bearer abc", "abc"), ("bearer abc", "abc"), ("BEARER  abc ", "abc")])
def test_bearer_is_read_in_any_case(header: str, expected: str) -> None:
    assert bearer(header) == expected


@pytest.mark.parametrize("header", [None, "", "Basic YTpi", "abc"])
def test_no_bearer_token_carries_no_error_code(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refusal:  # RFC 6750 section 3.1
        bearer(header)
    assert refusal.value.error is None


_SCOPES = st.builds(
    ResourceScope, st.sampled_from(["patient", "user", "system"]), st.sampled_from(["*", "Patient", "Observation"]),
    st.sets(st.sampled_from("cruds"), min_size=1).map(lambda held: "".join(x for x in "cruds" if x in held)),
    st.lists(st.tuples(st.sampled_from(["category", "code", "_tag"]), st.text(
        st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)), max_size=2, unique=True)
    .map(lambda pairs: tuple(sorted(pairs))))


@given(resources=st.lists(_SCOPES, min_size=1, max_size=4),
       others=st.sets(st.sampled_from(["openid", "launch/patient"])))
def test_scopes_survive_the_column_they_are_stored_in(resources: list[Any], others: set[str]) -> None:
    scopes = ScopeSet(tuple(resources), frozenset(others))
    assert parse(str(scopes)) == scopes


def test_a_secret_is_a_string_to_json() -> None:
    assert json.dumps(Secret("x")) == '"x"'
