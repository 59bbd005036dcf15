"""Rotation of each level, online, and what a crash between its steps leaves (``gateway/FORMATS.md``, Keys)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.crypto import key_store, page_slots
from gateway.crypto.key_rotation import (
    LASTING,
    rotate_category,
    rotate_patient,
    rotate_root,
    rotate_root_file,
    rotate_secret,
    settle_root_file,
)
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import create_root, fixed_roots, load_root, new_root, root_file, stage_root, staged_path
from gateway.errors import KeyDestroyed, Misconfigured


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_root(tmp_path / "root.key")
    return tmp_path


def opened(home: Path) -> KeyRing:
    return KeyRing(home / "keys.db", root_file(home / "root.key"))


@pytest.fixture
def ring(home: Path) -> Iterator[KeyRing]:
    ring = opened(home)
    yield ring
    ring.close()


def test_a_new_category_generation_seals_new_data_and_the_old_one_still_opens(home: Path, ring: KeyRing) -> None:
    other = opened(home)
    old = {(owner, group): other.category_keys([owner], group) for owner in "12" for group in ("a", "b")}
    assert rotate_category(ring, owner="1", group="a") == 1
    for holder in (ring, other):
        assert holder.category_keys(["1"], "a").material != old["1", "a"].material
        assert holder.category_keys(["1"], "b") == old["1", "b"]
        assert holder.open_keys(old["1", "a"].refs) == old["1", "a"].material
    assert ring.category_keys(["1"], "a") == other.category_keys(["1"], "a")
    assert rotate_category(ring, owner=None, group=None) == 4
    assert all(other.category_keys([owner], group).refs != keys.refs for (owner, group), keys in old.items())


def test_a_new_patient_key_changes_no_category_key_and_forgets_the_old_wrap(home: Path, ring: KeyRing) -> None:
    other = opened(home)
    old = other.category_keys(["1"], "a")
    signing = other.custodial_key("1")
    ring.destroy("gone")
    for expected in (1, 1):
        assert rotate_patient(ring, owner=None) == expected
        for holder in (ring, other, opened(home)):
            assert holder.open_keys(old.refs) == old.material
            assert holder.category_keys(["1"], "a") == old
            assert holder.custodial_key("1") == signing
    with ring.store.read() as connection:
        rows = list(connection.execute(
            "SELECT wrapped IS NULL FROM key WHERE owner = '1' AND kind = 'patient' ORDER BY generation"))
    assert rows == [(1,), (1,), (0,)]
    destroyed = ring.destroy("1")
    assert len(destroyed.key_ids) == 5  # three patient keys, one category key, one signing key
    with pytest.raises(KeyDestroyed):
        other.open_keys(old.refs)


def test_the_root_rotates_under_running_processes(home: Path, ring: KeyRing) -> None:
    other = opened(home)
    old = {owner: other.category_keys([owner], "a") for owner in "12"}
    secrets = {label: other.secret(label) for label in LASTING}
    was = ring.root
    new = rotate_root_file(ring, home / "root.key")
    assert load_root(home / "root.key") == new != was
    assert not staged_path(home / "root.key").exists()
    for holder in (ring, other, opened(home)):
        assert {owner: holder.open_keys(keys.refs) for owner, keys in old.items()} == {
            owner: keys.material for owner, keys in old.items()}
        assert {label: holder.secret(label) for label in LASTING} == secrets
        assert holder.root == new
    assert other.category_keys(["3"], "a") == ring.category_keys(["3"], "a")
    assert page_slots.fingerprints(home / "keys.db") == {new.fingerprint}
    with pytest.raises(Misconfigured):
        KeyRing(home / "keys.db", fixed_roots(was))
    rotate_root_file(ring, home / "root.key")
    assert {label: opened(home).secret(label) for label in LASTING} == secrets


def test_a_rotation_of_the_root_cut_short_is_finished_at_the_next_start(home: Path, ring: KeyRing) -> None:
    keys = ring.category_keys(["1"], "a")
    path = home / "root.key"
    staged = stage_root(path)  # crash here: the store has not moved
    restarted = opened(home)
    settle_root_file(restarted, path)
    assert restarted.root == load_root(path) != staged
    rotate_root(restarted, staged)  # crash here: the store has moved, the file has not
    restarted = opened(home)
    assert restarted.root == staged != load_root(path)
    assert restarted.open_keys(keys.refs) == keys.material
    settle_root_file(restarted, path)
    assert load_root(path) == staged
    assert opened(home).open_keys(keys.refs) == keys.material


def test_a_crash_inside_the_rotation_leaves_both_roots_a_slot_and_the_old_one_in_force(
    home: Path, ring: KeyRing
) -> None:
    keys = ring.category_keys(["1"], "a")
    staged = stage_root(home / "root.key")
    ring.allow_roots([ring.root, staged])  # crash here: slots written, nothing rewrapped
    restarted = opened(home)
    assert restarted.root == load_root(home / "root.key")
    assert restarted.open_keys(keys.refs) == keys.material
    assert rotate_root_file(restarted, home / "root.key") == staged
    assert opened(home).open_keys(keys.refs) == keys.material


def test_a_rotation_to_the_root_in_force_changes_nothing(ring: KeyRing) -> None:
    before = ring.store.state()
    rotate_root(ring, ring.root)
    assert ring.store.state() == before


def test_a_rotated_secret_keeps_its_older_generations(home: Path, ring: KeyRing) -> None:
    other = opened(home)
    first = other.secret("manifest")
    rotate_secret(ring, "manifest")
    rotate_secret(ring, "manifest")
    found = other.secrets("manifest")
    assert len(set(found)) == 3
    assert found[-1] == first
    assert ring.secrets("manifest") == found
    rotate_root_file(ring, home / "root.key")
    assert opened(home).secrets("manifest") == found


@pytest.mark.parametrize("label", ["pseudonym", "wrap", "key-store-page"])
def test_what_the_chain_depends_on_does_not_rotate(ring: KeyRing, label: str) -> None:
    with pytest.raises(ValueError, match="cannot be rotated"):
        rotate_secret(ring, label)  # type: ignore[arg-type]


def test_a_secret_of_a_label_that_is_no_more_goes_with_the_root_that_wraps_it(home: Path, ring: KeyRing) -> None:
    """A store rotated while there was a label "custodial-signing" holds one."""
    with ring.store.write() as connection:
        key_store.put_secret(connection, "custodial-signing", 0, bytes(60), 1)
    rotate_root_file(ring, home / "root.key")
    with opened(home).store.read() as connection:
        labels = {label for (label,) in connection.execute("SELECT label FROM secret")}
    assert labels == set(LASTING)


def test_without_the_new_root_a_process_says_what_is_missing(home: Path) -> None:
    source = fixed_roots(load_root(home / "root.key"))
    stranded, ring = KeyRing(home / "keys.db", source), opened(home)
    rotate_root(ring, new_root())
    with pytest.raises(Misconfigured, match="moved to another root"):
        stranded.category_keys(["1"], "a")


def test_readers_and_writers_never_see_a_rotation_fail(home: Path, ring: KeyRing) -> None:
    """Online: every level rotates while another process' ring, with a cache of one, reads and seals."""
    other = KeyRing(home / "keys.db", root_file(home / "root.key"), cache_size=1)
    known = {owner: other.category_keys([owner], "a") for owner in "1234"}
    secrets = other.secret("index")
    done, problems = threading.Event(), []

    def read() -> None:
        try:
            while not done.is_set():
                for owner, keys in known.items():
                    assert other.open_keys(keys.refs) == keys.material
                    fresh = other.category_keys([owner], "a")
                    assert other.open_keys(fresh.refs) == fresh.material
                assert other.secret("index") == secrets
        except Exception as error:  # the thread's failure is the test's
            problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(4):
        rotate_category(ring, owner=None, group=None)
        rotate_patient(ring, owner=None)
        rotate_root_file(ring, home / "root.key")
    done.set()
    reader.join(timeout=30)
    assert problems == []
