"""The embedded chain's database: a block is on disk whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Misconfigured
from gateway.ledger.devchain.accounts import ensure_accounts, load_accounts
from gateway.ledger.devchain.evm import CHAIN_IDS
from gateway.ledger.devchain.node import Node
from gateway.ledger.devchain.store import ChainStore, LogRow


def test_what_a_transaction_wrote_is_there_after_reopening(tmp_path: Path) -> None:
    store = ChainStore(tmp_path / "chain.sqlite")
    with store.transaction(), store.atomic_batch() as batch:
        batch[b"a"] = b"1"
        batch[b"b"] = b"2"
        del batch[b"b"]
    store.close()
    again = ChainStore(tmp_path / "chain.sqlite")
    assert again[b"a"] == b"1"
    assert b"b" not in again
    again.close()


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    store = ChainStore(tmp_path / "chain.sqlite")
    log = LogRow(block_number=1, log_index=0, tx_index=0, tx_hash=b"h", address=b"a", topics=(), data=b"")

    def failing() -> None:
        with store.transaction():
            store[b"a"] = b"1"
            store.add_logs([log])
            assert store[b"a"] == b"1"
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        failing()
    assert b"a" not in store
    assert store.logs(0, 9, None, 10) == []
    with store.transaction():
        store[b"c"] = b"3"
    assert b"a" not in store
    store.close()


def test_nothing_is_written_outside_a_transaction(tmp_path: Path) -> None:
    store = ChainStore(tmp_path / "chain.sqlite")
    with pytest.raises(RuntimeError, match="transaction"):
        store[b"a"] = b"1"
    store.close()


def test_a_second_process_cannot_open_the_chain(tmp_path: Path) -> None:
    store = ChainStore(tmp_path / "chain.sqlite")
    with pytest.raises(Misconfigured, match="in use"):
        ChainStore(tmp_path / "chain.sqlite")
    store.close()


def test_a_file_that_is_no_chain_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chain.sqlite").write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    with pytest.raises(Misconfigured, match="not a chain"):
        ChainStore(tmp_path / "chain.sqlite")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.one_of(st.none(), st.binary(max_size=3))), max_size=30))
def test_the_store_is_a_dictionary(tmp_path_factory: pytest.TempPathFactory,
                                   writes: list[tuple[bytes, bytes | None]]) -> None:
    store = ChainStore(tmp_path_factory.mktemp("store") / "chain.sqlite")
    model: dict[bytes, bytes] = {}
    for key, value in writes:
        with store.transaction():
            if value is None:
                store.delete(key)
                model.pop(key, None)
            else:
                store[key] = value
                model[key] = value
    store._clean.clear()
    assert {key: store[key] for key, _ in writes if key in store} == model
    store.close()


# -- accounts ---------------------------------------------------------------------------------------------------------


def test_accounts_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "chain.json"
    first = ensure_accounts(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ensure_accounts(file) == first == load_accounts(file)
    assert [account.name for account in first] == ["operator", "reserve"]
    assert first[0].private_key.hex() not in repr(first)
    assert list(file.parent.iterdir()) == [file]


def test_no_account_is_a_public_test_key(tmp_path: Path) -> None:
    """eth-tester's default keys are 1, 2, 3...: everybody has them."""
    for account in ensure_accounts(tmp_path / "chain.json"):
        assert int.from_bytes(account.private_key, "big") > 2**200


@pytest.mark.parametrize("body", ["", "{}", '{"accounts": []}', '{"accounts": [{"name": "a", "private_key": "zz"}]}',
                                  '{"accounts": [{"name": "a", "private_key": "00"}]}', "[1]",
                                  '{"accounts": [{"name": "a", "private_key": "' + "00" * 32 + '"}]}'])
def test_a_damaged_keys_file_is_named(tmp_path: Path, body: str) -> None:
    file = tmp_path / "chain.json"
    file.write_text(body)
    file.chmod(0o600)
    with pytest.raises(Misconfigured, match=r"chain\.json"):
        load_accounts(file)


def test_a_keys_file_open_to_others_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "chain.json"
    ensure_accounts(file)
    file.chmod(0o640)
    with pytest.raises(Misconfigured, match="chmod 600"):
        load_accounts(file)


# -- genesis ----------------------------------------------------------------------------------------------------------


def test_a_chain_has_an_id_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    accounts = [b"\x01" * 20]
    node = Node(tmp_path / "a.sqlite", accounts)
    other = Node(tmp_path / "b.sqlite", accounts)
    chain_id, genesis = node.chain_id, node.head().hash
    assert chain_id in CHAIN_IDS
    assert other.chain_id != chain_id
    node.close()
    other.close()
    again = Node(tmp_path / "a.sqlite", accounts)
    assert (again.chain_id, again.head().hash) == (chain_id, genesis)
    again.close()


def test_a_chain_started_with_other_keys_is_not_gone_on_with(tmp_path: Path) -> None:
    Node(tmp_path / "a.sqlite", [b"\x01" * 20]).close()
    with pytest.raises(Misconfigured, match="other keys"):
        Node(tmp_path / "a.sqlite", [b"\x02" * 20])
