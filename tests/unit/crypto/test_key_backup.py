"""Backup and restore of the key store; a restore never brings back what an erasure destroyed (invariant 9)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.crypto.key_backup import Passphrase, RawKey, backup, restore
from gateway.crypto.key_rotation import LASTING, rotate_category, rotate_patient, rotate_root, rotate_secret
from gateway.crypto.key_set import CUSTODIAN, key_ids
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import Root, fixed_roots, new_root
from gateway.errors import IntegrityBroken, KeyDestroyed, Misconfigured

RAW = RawKey(os.urandom(32))
ROOT = new_root()
NEXT = new_root()


def opened(folder: Path, name: str, *roots: Root) -> KeyRing:
    return KeyRing(folder / name, fixed_roots(*(roots or (ROOT,))))


def test_a_passphrase_backup_restores_into_an_empty_store(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    keys = [ring.category_keys(["1"], "x"), ring.category_keys(["1", "2"], "x"), ring.category_keys([], "x")]
    signing = ring.custodial_key("1")
    rotate_category(ring, owner="1", group="x")
    rotate_patient(ring, owner="1")
    rotate_secret(ring, "manifest")
    newest = ring.category_keys(["1"], "x")
    data = backup(ring, Passphrase("correct horse battery"))
    empty = opened(tmp_path, "b")
    restored = restore(
        empty, data, Passphrase("correct horse battery"), backup_roots=[ROOT], destroyed_key_ids=())
    assert (restored.kept, restored.refused) == (0, 0)
    for some in (*keys, newest):
        assert empty.open_keys(some.refs) == some.material
    assert empty.category_keys(["1"], "x") == newest
    assert empty.custodial_key("1") == signing
    assert empty.secrets("manifest") == ring.secrets("manifest")


def test_a_wrong_passphrase_or_key_is_refused(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    data = backup(ring, Passphrase("correct horse battery"))
    for wrong in (Passphrase("correct horse batterz"), RAW):
        with pytest.raises(IntegrityBroken):
            restore(ring, data, wrong, backup_roots=[ROOT], destroyed_key_ids=())
    with pytest.raises(IntegrityBroken):
        restore(ring, backup(ring, RAW), RawKey(bytes(32)), backup_roots=[ROOT], destroyed_key_ids=())


@pytest.mark.parametrize("key", [Passphrase("short"), RawKey(b"short")])
def test_a_weak_key_is_refused(tmp_path: Path, key: Passphrase | RawKey) -> None:
    with pytest.raises(Misconfigured):
        backup(opened(tmp_path, "a"), key)


def test_an_altered_or_cut_file_is_refused_and_nothing_is_restored(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    ring.category_keys(["1"], "x")
    data = backup(ring, RAW)
    empty = opened(tmp_path, "b")
    before = empty.store.state()

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(data) - 1), st.integers(1, 255), st.integers(0, len(data) - 1))
    def attempt(at: int, mask: int, keep: int) -> None:
        altered = bytearray(data)
        altered[at] ^= mask
        for bad in (bytes(altered), data[:keep], data + b"x"):
            with pytest.raises(IntegrityBroken):
                restore(empty, bad, RAW, backup_roots=[ROOT], destroyed_key_ids=())

    attempt()
    assert empty.store.state() == before


def test_nothing_readable_is_in_the_file(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    ring.category_keys(["an-unusual-owner"], "x")
    assert b"unusual" not in backup(ring, RAW)


def test_a_certificates_key_ids_are_refused_and_the_patient_stays_erased(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    mine, theirs = ring.category_keys(["1"], "x"), ring.category_keys(["2"], "x")
    data = backup(ring, RAW)
    later = ring.category_keys(["1"], "made after the backup")
    destroyed = ring.destroy("1").key_ids
    empty = opened(tmp_path, "b")
    restored = restore(empty, data, RAW, backup_roots=[ROOT], destroyed_key_ids=set(destroyed))
    assert restored.refused == 2
    for refs in (mine.refs, later.refs):
        with pytest.raises(IntegrityBroken):
            empty.open_keys(refs)
    with pytest.raises(KeyDestroyed):
        empty.open_keys(mine.refs)
    with pytest.raises(KeyDestroyed):
        empty.category_keys(["1"], "x")
    assert empty.open_keys(theirs.refs) == theirs.material
    with empty.store.read() as connection:
        assert connection.execute("SELECT count(*) FROM key WHERE owner='1' AND wrapped IS NOT NULL").get == 0


def test_a_merge_never_revives_what_the_store_knows_as_destroyed(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    mine = ring.category_keys(["1"], "x")
    data = backup(ring, RAW)
    ring.destroy("1")
    restore(ring, data, RAW, backup_roots=[ROOT], destroyed_key_ids=())
    with pytest.raises(KeyDestroyed):
        ring.open_keys(mine.refs)
    assert ring.is_destroyed("1")


def test_a_backup_made_after_an_erasure_erases_in_an_older_copy(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    mine = ring.category_keys(["1"], "x")
    old = backup(ring, RAW)
    ring.destroy("1")
    copy = opened(tmp_path, "b")
    restore(copy, old, RAW, backup_roots=[ROOT], destroyed_key_ids=())
    assert copy.open_keys(mine.refs) == mine.material
    restore(copy, backup(ring, RAW), RAW, backup_roots=[ROOT], destroyed_key_ids=())
    with pytest.raises(KeyDestroyed):
        copy.open_keys(mine.refs)


def test_two_stores_that_went_separate_ways_merge(tmp_path: Path) -> None:
    """A lost store, a gateway that went on with an empty one, then the backup is found."""
    before = opened(tmp_path, "a")
    old = {group: before.category_keys(["1"], group) for group in ("x", "only before")}
    rotate_patient(before, owner="1")
    data = backup(before, RAW)
    after = opened(tmp_path, "b")
    new = after.category_keys(["1"], "x")
    restored = restore(after, data, RAW, backup_roots=[ROOT], destroyed_key_ids=())
    assert restored.renumbered >= 1
    for keys in (*old.values(), new):
        assert after.open_keys(keys.refs) == keys.material
    assert after.category_keys(["1"], "only before") == old["only before"]
    assert len(key_ids(after.category_keys(["1"], "x").refs)) == 1
    again = restore(after, data, RAW, backup_roots=[ROOT], destroyed_key_ids=())
    assert again.added == 0
    rotate_patient(after, owner="1")
    for keys in (*old.values(), new):
        assert opened(tmp_path, "b").open_keys(keys.refs) == keys.material
    assert len(after.destroy("1").key_ids) >= 6


def test_a_backup_from_before_a_root_rotation_needs_its_root(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a", ROOT, NEXT)
    keys = ring.category_keys(["1"], "x")
    secrets = {label: ring.secret(label) for label in LASTING}
    data = backup(ring, RAW)
    rotate_root(ring, NEXT)
    restore(ring, data, RAW, backup_roots=[ROOT], destroyed_key_ids=())
    assert {label: ring.secret(label) for label in LASTING} == secrets
    fresh = opened(tmp_path, "b", NEXT)
    with pytest.raises(Misconfigured, match="root"):
        restore(fresh, data, RAW, backup_roots=[NEXT], destroyed_key_ids=())
    restore(fresh, data, RAW, backup_roots=[ROOT], destroyed_key_ids=())
    assert fresh.open_keys(keys.refs) == keys.material
    assert {label: fresh.secret(label) for label in LASTING} == secrets


def test_a_store_with_other_secrets_is_not_merged_over(tmp_path: Path) -> None:
    ring, other = opened(tmp_path, "a"), opened(tmp_path, "b")
    rotate_secret(ring, "manifest")
    rotate_secret(other, "manifest")
    other.category_keys(["1"], "x")
    before = other.store.state()
    with pytest.raises(Misconfigured, match="empty"):
        restore(other, backup(ring, RAW), RAW, backup_roots=[ROOT], destroyed_key_ids=())
    assert other.store.state() == before


def test_the_custodians_keys_come_back(tmp_path: Path) -> None:
    ring = opened(tmp_path, "a")
    keys = ring.category_keys([CUSTODIAN], "x")
    fresh = opened(tmp_path, "b")
    restore(fresh, backup(ring, RAW), RAW, backup_roots=[ROOT], destroyed_key_ids=())
    assert fresh.category_keys([], "x") == keys


def test_secrets_a_used_store_only_derives_are_not_replaced(tmp_path: Path) -> None:
    """Its database file, index and chain addresses depend on them, though no rotation has stored them yet."""
    ring, used, empty = opened(tmp_path, "a"), opened(tmp_path, "b", NEXT), opened(tmp_path, "c", NEXT)
    ring.category_keys(["1"], "x")
    used.category_keys([], "audit")
    data = backup(ring, RAW)
    page = used.secret("page")
    with pytest.raises(Misconfigured, match="restore into an empty store"):
        restore(used, data, RAW, backup_roots=[NEXT, ROOT], destroyed_key_ids=())
    assert used.secret("page") == page
    restore(empty, data, RAW, backup_roots=[NEXT, ROOT], destroyed_key_ids=())
    assert empty.secret("page") == ring.secret("page") != page
