"""What ``keys rotate`` does at each level of the hierarchy, online, while other processes read and write.

Owns the five rotations; refuses to rotate what addresses on chain depend on. Each transaction is atomic and durable; a
crash between two leaves a store that opens, and the same command run again finishes.

    level      new                                              old
    category   a generation per (owner, group), for new data    still opens what it sealed
    patient    patient key; its category keys are rewrapped     forgotten; its id stays as a tombstone
    secret     a generation (manifest, audit, page link ...)    still opens what it sealed
    root       wrap key; patient keys and secrets are rewrapped  opens nothing in the store any more
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from gateway.crypto import key_store
from gateway.crypto.key_store import new_key_id, now_ms
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import LABELS, Label, Root, load_root, promote_root, stage_root, staged_path
from gateway.crypto.wrap import KeyName, secret_aad, unwrap, wrap
from gateway.errors import Misconfigured

LASTING: Final[tuple[Label, ...]] = tuple(
    label for label in LABELS if label not in ("wrap", "key-store-page", "fingerprint"))
"""Secrets that must answer the same after a rotation of the root: blocks, rows and addresses depend on them."""

_FIXED: Final = frozenset({"pseudonym"})
_OWNERS_AT_ONCE: Final = 500


def rotate_category(ring: KeyRing, *, owner: str | None, group: str | None) -> int:
    """Start a new generation of the category keys of ``owner`` and ``group`` (None: of all). Returns how many.

    What is sealed from now on uses it; a category key that a patient's own key leaked or gave up opens nothing new.
    """
    count = 0
    for owners in _batches(_owners(ring, owner)):
        with ring.store.write() as connection:
            for name in owners:
                rows = key_store.of_owner(connection, name)
                newest = {
                    row.name.group: row for row in sorted(rows, key=lambda row: row.name.generation)
                    if row.name.kind == "category" and row.destroyed_ms is None and group in (None, row.name.group)
                }
                for row in newest.values():
                    new = KeyName(id=new_key_id(), owner=name, kind="category", group=row.name.group,
                                  generation=row.name.generation + 1)
                    wrapped = wrap(ring.owner_key(connection, name), os.urandom(32), new.aad())
                    key_store.insert(connection, new, wrapped, created_ms=now_ms())
                    count += 1
            key_store.bump(connection)
    ring.refresh()
    return count


def rotate_patient(ring: KeyRing, *, owner: str | None) -> int:
    """Give ``owner`` (None: everyone) a new patient key and rewrap what was under the old one. Returns how many."""
    count = 0
    for owners in _batches(_owners(ring, owner)):
        with ring.store.write() as connection:
            for name in owners:
                old = key_store.current(connection, name, "patient", "")
                if old is None or old.destroyed_ms is not None:
                    continue
                old_key = ring.owner_key(connection, name)
                new = KeyName(id=new_key_id(), owner=name, kind="patient", group="",
                              generation=old.name.generation + 1)
                new_key = os.urandom(32)
                for row in key_store.of_owner(connection, name):
                    if row.name.kind != "patient" and row.wrapped is not None:
                        key = unwrap(old_key, row.wrapped, row.name.aad())
                        key_store.rewrap(connection, row.name.id, wrap(new_key, key, row.name.aad()))
                key_store.retire(connection, old.name.id, now_ms())
                wrapped = ring.wrapped_by_root(connection, new_key, new.aad())
                key_store.insert(connection, new, wrapped, created_ms=now_ms())
                count += 1
            key_store.bump(connection)
    ring.store.purge_log()
    ring.refresh()
    return count


def rotate_secret(ring: KeyRing, label: Label) -> None:
    """Start a new generation of a hospital secret; ``KeyRing.secrets`` still gives the older ones.

    Rotating ``index`` takes a rebuild of the index afterwards, ``page`` a rekey of the database by who owns it.
    Raises ValueError for secrets that addresses on chain depend on.
    """
    if label not in LASTING or label in _FIXED:
        raise ValueError(f"the secret {label} cannot be rotated: what is on chain depends on it")
    with ring.store.write() as connection:
        generation = _carry(ring, connection, label)
        aad = secret_aad(label, generation + 1)
        wrapped = ring.wrapped_by_root(connection, os.urandom(32), aad)
        key_store.put_secret(connection, label, generation + 1, wrapped, now_ms())
        key_store.bump(connection)
    ring.refresh()


def rotate_root(ring: KeyRing, new: Root) -> None:
    """Move the key store to ``new`` in one transaction: patient keys and secrets are rewrapped, nothing else moves.

    Other processes find the new root through their ``RootSource`` at their next call. The caller makes the new root
    durable before, and lets it take the old one's place after (``rotate_root_file`` does both).
    """
    ring.refresh()
    old = ring.root
    if old != new:
        ring.allow_roots([old, new])
        under = new.derive("wrap")
        with ring.store.write() as connection:
            for owner in key_store.owners(connection):
                row = key_store.current(connection, owner, "patient", "")
                if row is not None and row.destroyed_ms is None:
                    key = ring.owner_key(connection, owner)
                    key_store.rewrap(connection, row.name.id, wrap(under, key, row.name.aad()))
            for label in LASTING:
                _carry(ring, connection, label)
                for (generation, _), key in zip(
                    key_store.secrets_of(connection, label), ring.secrets_within(connection, label), strict=True
                ):
                    aad = secret_aad(label, generation)
                    key_store.put_secret(connection, label, generation, wrap(under, key, aad), now_ms())
            key_store.drop_secrets(connection, other_than=LASTING)  # of labels that are no more: under the old root
            key_store.set_root(connection, new.fingerprint)
        ring.store.purge_log()
    ring.use_root(new)


def rotate_root_file(ring: KeyRing, path: Path) -> Root:
    """Rotate the root kept in the file ``path``; ``ring``'s source must be ``root_file(path)``."""
    new = stage_root(path)
    rotate_root(ring, new)
    promote_root(path)
    return new


def settle_root_file(ring: KeyRing, path: Path) -> None:
    """At start: finish a rotation of the root file that was cut short after the key store moved.

    Safe while the rotation still runs elsewhere: what remains of it then is what is done here.
    """
    try:
        staged = load_root(staged_path(path)) if staged_path(path).exists() else None
    except Misconfigured:
        if staged_path(path).exists():
            raise
        return  # it was promoted between the two looks
    if staged is not None and ring.root == staged:
        ring.use_root(ring.root)
        promote_root(path)


def _carry(ring: KeyRing, connection: key_store.Connection, label: Label) -> int:
    """Keep a secret that was only derived so far as generation 0; returns the newest generation."""
    stored = key_store.secrets_of(connection, label)
    if stored:
        return stored[0][0]
    key = ring.secrets_within(connection, label)[0]
    wrapped = ring.wrapped_by_root(connection, key, secret_aad(label, 0))
    key_store.put_secret(connection, label, 0, wrapped, now_ms())
    return 0


def _owners(ring: KeyRing, owner: str | None) -> Sequence[str]:
    if owner is not None:
        return [owner]
    with ring.store.read() as connection:
        return key_store.owners(connection)


def _batches(owners: Sequence[str]) -> Iterator[list[str]]:
    left = iter(owners)
    while batch := list(islice(left, _OWNERS_AT_ONCE)):
        yield batch
