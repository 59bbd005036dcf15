"""The key ring: one key per owner and group whoever asks first; a destroyed key opens nothing (invariant 9)."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.crypto.key_set import CUSTODIAN, key_ids
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import Root, fixed_roots, new_root
from gateway.errors import IntegrityBroken, KeyDestroyed, Misconfigured

ROOT = new_root()


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[KeyRing]:
    opened = KeyRing(tmp_path / "keys.db", fixed_roots(ROOT))
    yield opened
    opened.close()


def again(ring: KeyRing, *, cache_size: int = 20_000) -> KeyRing:
    """The same file as another process sees it."""
    return KeyRing(ring.store.path, fixed_roots(ROOT), cache_size=cache_size)


def test_asking_twice_gives_the_same_keys_and_refs_open_them(ring: KeyRing) -> None:
    first = ring.category_keys(["123"], "normal")
    assert ring.category_keys(["123"], "normal") == first
    assert ring.open_keys(first.refs) == first.material
    other = again(ring)
    assert other.open_keys(first.refs) == first.material
    assert other.category_keys(["123"], "normal") == first


def test_groups_owners_and_hospitals_have_unrelated_keys(ring: KeyRing) -> None:
    sets = [ring.category_keys(owners, group) for owners, group in
            [(["1"], "a"), (["1"], "b"), (["2"], "a"), ([], "a"), (["custodian"], "a")]]
    assert len({keys.material for keys in sets}) == 5


def test_a_joint_record_takes_the_keys_of_all_owners_sorted(ring: KeyRing) -> None:
    joint = ring.category_keys(["2", "1", "2"], "normal")
    parts = [ring.category_keys([owner], "normal").material for owner in ("1", "2")]
    assert joint.material == b"".join(sorted(parts))
    assert len(key_ids(joint.refs)) == 2
    assert again(ring).open_keys(joint.refs) == joint.material
    assert ring.category_keys(["1", "2"], "normal") == joint


def test_no_owner_means_the_custodian(ring: KeyRing) -> None:
    assert ring.category_keys([], "normal") == ring.category_keys([CUSTODIAN], "normal")


def test_a_bundle_prepares_in_one_transaction(ring: KeyRing) -> None:
    before = ring.store.data_version()
    wants = [([str(number)], "normal") for number in range(50)] + [(["1", "2"], "normal"), ([], "normal")]
    prepared = ring.prepare(wants)
    assert ring.store.data_version() == before + 1
    assert [ring.category_keys(owners, group) for owners, group in wants] == prepared
    assert ring.store.data_version() == before + 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(wants=st.lists(st.tuples(
    st.lists(st.sampled_from("abcdef"), max_size=3), st.sampled_from(["normal", "psy"])), max_size=12))
def test_a_small_cache_never_changes_an_answer(ring: KeyRing, wants: list[tuple[list[str], str]]) -> None:
    small = again(ring, cache_size=1)
    for keys, (owners, group) in zip(small.prepare(wants), wants, strict=True):
        assert keys == ring.category_keys(owners, group)
        assert small.open_keys(keys.refs) == keys.material
    small.close()


def test_threads_that_come_together_agree(ring: KeyRing) -> None:
    rings = [ring, again(ring), again(ring)]
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda ring=ring, owner=owner: found.append(  # type: ignore[misc]
            ring.category_keys([str(owner)], "normal").material))
        for owner in range(5) for ring in rings for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 45
    assert len(set(found)) == 5


def _ask(path: str, root_hex: str, answers: multiprocessing.Queue[list[bytes]]) -> None:
    ring = KeyRing(Path(path), fixed_roots(Root(bytes.fromhex(root_hex))))
    answers.put([ring.category_keys([str(owner)], "normal").material for owner in range(40)])


def test_processes_that_come_together_agree_even_on_the_file(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    arguments = (str(tmp_path / "keys.db"), ROOT.hex(), answers)
    processes = [spawn.Process(target=_ask, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 40


def test_destroying_a_patient_is_noticed_at_once_by_everyone(ring: KeyRing) -> None:
    """Invariant 9; caches of other processes too."""
    other = again(ring)
    mine, theirs = ring.category_keys(["1"], "normal"), ring.category_keys(["2"], "normal")
    joint = ring.category_keys(["1", "2"], "normal")
    assert other.open_keys(mine.refs) == mine.material
    ring.custodial_key("1")
    destroyed = ring.destroy("1")
    assert set(key_ids(mine.refs)) < set(destroyed.key_ids)
    assert len(destroyed.key_ids) == 3  # patient, category, signing
    for holder in (ring, other, again(ring)):
        for refs in (mine.refs, joint.refs):
            with pytest.raises(KeyDestroyed):
                holder.open_keys(refs)
        with pytest.raises(KeyDestroyed):
            holder.category_keys(["1"], "normal")
        with pytest.raises(KeyDestroyed):
            holder.category_keys(["1"], "a group never used")
        with pytest.raises(KeyDestroyed):
            holder.category_keys(["1", "2"], "normal")
        with pytest.raises(KeyDestroyed):
            holder.custodial_key("1")
        assert holder.is_destroyed("1")
        assert holder.open_keys(theirs.refs) == theirs.material
    assert ring.destroy("1").key_ids == destroyed.key_ids


def test_a_patient_without_keys_can_be_erased_and_gets_none_afterwards(ring: KeyRing) -> None:
    assert len(ring.destroy("9").key_ids) == 1
    with pytest.raises(KeyDestroyed):
        again(ring).category_keys(["9"], "normal")


@pytest.mark.parametrize("owner", ["", CUSTODIAN])
def test_the_custodian_is_no_patient(ring: KeyRing, owner: str) -> None:
    with pytest.raises(ValueError, match="custodian"):
        ring.destroy(owner)
    with pytest.raises(ValueError, match="custodian"):
        ring.custodial_key(owner)


def test_no_wrap_of_a_destroyed_key_is_left_in_the_table(ring: KeyRing) -> None:
    ring.category_keys(["1"], "normal")
    ring.destroy("1")
    with ring.store.read() as connection:
        assert list(connection.execute("SELECT count(*) FROM key WHERE owner = '1' AND wrapped IS NOT NULL")) == [(0,)]


def test_a_custodial_key_is_a_secp256k1_scalar_and_stays(ring: KeyRing) -> None:
    key = ring.custodial_key("1")
    assert len(key) == 32
    assert 0 < int.from_bytes(key, "big") < 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    assert again(ring).custodial_key("1") == key
    assert ring.custodial_key("2") != key


def test_the_file_is_encrypted_and_private(ring: KeyRing) -> None:
    """Invariant 1: the disk tells no owner."""
    ring.category_keys(["a-very-unusual-owner"], "a-very-unusual-group")
    files = list(ring.store.path.parent.iterdir())
    for file in files:
        content = file.read_bytes()
        assert b"very-unusual" not in content
        assert b"SQLite format" not in content
        assert file.name.endswith(("-wal", "-shm")) or file.stat().st_mode & 0o077 == 0
    plain = sqlite3.connect(ring.store.path)
    with pytest.raises(sqlite3.DatabaseError):
        plain.execute("SELECT * FROM key")


def test_another_root_is_refused(ring: KeyRing) -> None:
    with pytest.raises(Misconfigured, match="root"):
        KeyRing(ring.store.path, fixed_roots(new_root()))


def test_a_lost_or_damaged_page_slot_file_is_said_so(ring: KeyRing) -> None:
    slots = ring.store.path.with_name("keys.db.page")
    content = slots.read_bytes()
    slots.write_bytes(content[:-1])
    with pytest.raises(Misconfigured, match="damaged"):
        again(ring)
    slots.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityBroken):
        again(ring)
    slots.unlink()
    with pytest.raises(Misconfigured, match="missing"):
        again(ring)


def test_a_wrap_moved_to_another_row_does_not_open(ring: KeyRing) -> None:
    """A writer of the file cannot give one patient another's key: the wrap's AAD names its row."""
    first, second = ring.category_keys(["1"], "a"), ring.category_keys(["1"], "b")
    with ring.store.write() as connection:
        connection.execute(
            "UPDATE key SET wrapped = (SELECT wrapped FROM key WHERE id = ?) WHERE id = ?",
            (key_ids(second.refs)[0], key_ids(first.refs)[0]))
    with pytest.raises(IntegrityBroken):
        again(ring).open_keys(first.refs)


@pytest.mark.parametrize("refs", [b"", b"1234567", (77).to_bytes(8, "big")])
def test_malformed_or_unknown_refs_are_an_error(ring: KeyRing, refs: bytes) -> None:
    with pytest.raises(IntegrityBroken):
        ring.open_keys(refs)


def test_a_failed_transaction_leaves_nothing(ring: KeyRing) -> None:
    ring.destroy("gone")
    with pytest.raises(KeyDestroyed):
        ring.prepare([(["new"], "normal"), (["gone"], "normal")])
    with ring.store.read() as connection:
        assert connection.execute("SELECT count(*) FROM key WHERE owner = 'new'").get == 0


def test_secrets_come_from_the_root_until_one_is_rotated(ring: KeyRing) -> None:
    assert ring.secret("manifest") == ROOT.derive("manifest")
    assert ring.secrets("manifest") == (ROOT.derive("manifest"),)
    with pytest.raises(ValueError, match="own"):
        ring.secret("wrap")
