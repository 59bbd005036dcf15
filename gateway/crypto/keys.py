"""The key ring: category keys of patients, opened, created, destroyed, and the hospital's own secrets.

Owns every key in the clear and the bounded cache of them; refuses a destroyed key at once, in every process that
shares the file (each call compares SQLite's ``data_version``, and the store's counter when that moved).

    root --HKDF--> wrap key
    patient key    random, wrapped under the wrap key
    category key   random, one per (owner, label group, generation), wrapped under the patient key
    signing key    random secp256k1 scalar of a custodial patient, wrapped under the patient key

Owners are patients' logical ids; records about no patient belong to ``CUSTODIAN``. Rotation is ``key_rotation.py``,
backup ``key_backup.py``.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.crypto import key_store, page_slots
from gateway.crypto.key_set import CUSTODIAN, KeySet, in_order, joined, key_ids
from gateway.crypto.key_store import Connection, KeyRow, KeyStore, new_key_id, now_ms
from gateway.crypto.recent import Recent
from gateway.crypto.root import Label, Root, RootSource
from gateway.crypto.wrap import KeyName, Kind, secret_aad, unwrap, wrap
from gateway.errors import IntegrityBroken, KeyDestroyed, Misconfigured

_SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_ROOT_ATTEMPTS: Final = 3
_DERIVED_ONLY: Final = frozenset({"wrap", "key-store-page", "fingerprint"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroyed:
    """What an erasure certificate names: the owner and every key id that can never open again."""

    owner: str
    key_ids: tuple[int, ...]
    at_ms: int


class KeyRing:
    """Keys of one key store file. Safe between threads; several processes may share the file."""

    def __init__(self, path: Path, roots: RootSource, *, cache_size: int = 20_000) -> None:
        """Open or create the store at ``path``; ``roots`` is asked again when another process rotates the root.

        Raises Misconfigured when no root fits.
        """
        found = roots()
        self._roots = roots
        self._page_key = page_slots.page_key(path, found)
        self.store = KeyStore(path, self._page_key, found[0].fingerprint)
        self._lock = threading.RLock()
        self._sets: Recent[tuple[tuple[str, ...], str], KeySet] = Recent(cache_size)
        self._keys: Recent[int, bytes] = Recent(cache_size)
        self._owner_keys: Recent[str, tuple[int, bytes]] = Recent(cache_size)
        self._secrets: dict[Label, tuple[bytes, ...]] = {}
        self._seen = self.store.data_version()
        self._state = self.store.state()
        self.root = self._root_of(self._state.root)
        self._wrap_key = self.root.derive("wrap")

    def close(self) -> None:
        """Forget every key and close the file."""
        with self._lock:
            self._forget()
            self.store.close()

    def category_keys(self, owners: Sequence[str], group: str) -> KeySet:
        """The current category keys of all ``owners`` (none = the custodian) in label ``group``, created when missing.

        Raises KeyDestroyed when one of the owners was erased.
        """
        wanted = in_order(owners)
        with self._lock:
            self._refresh()
            known = self._sets.get((wanted, group))
            return known if known is not None else self._prepare([(wanted, group)])[0]

    def prepare(self, wants: Iterable[tuple[Sequence[str], str]]) -> list[KeySet]:
        """``category_keys`` of many, in order, with at most one transaction and fsync. Raises KeyDestroyed."""
        wanted = [(in_order(owners), group) for owners, group in wants]
        with self._lock:
            self._refresh()
            return self._prepare(wanted)

    def every_ref(self, group: str) -> frozenset[bytes]:
        """The ``refs`` of every generation of the custodian's own key in a label group, retired ones too."""
        with self.store.read() as connection:
            return frozenset(row.name.id.to_bytes(8, "big") for row in key_store.of_owner(connection, CUSTODIAN)
                             if row.name.kind == "category" and row.name.group == group)

    def open_keys(self, refs: bytes) -> bytes:
        """The key material behind ``KeySet.refs``. Raises KeyDestroyed, or IntegrityBroken for an unknown key."""
        with self._lock:
            self._refresh()
            return self._material(refs)

    def open_many(self, refs: Sequence[bytes]) -> list[bytes]:
        """``open_keys`` of many at one moment. Raises as it does."""
        with self._lock:
            self._refresh()
            found = {one: self._material(one) for one in set(refs)}
        return [found[one] for one in refs]

    def custodial_key(self, owner: str) -> bytes:
        """The secp256k1 private key (32 bytes) the gateway keeps for a patient, made on first use.

        Raises KeyDestroyed when the patient was erased.
        """
        _patient(owner)
        with self._lock:
            self._refresh()
            with self.store.read() as connection:
                self._settle(connection)
                row = key_store.current(connection, owner, "signing", "")
                if row is not None:
                    return self._unwrapped(connection, row)
            with self.store.write() as connection:
                self._settle(connection)
                _, key = self._current(connection, owner, "signing", "")
                return key

    def destroy(self, owner: str) -> Destroyed:
        """Erase every key of a patient, for all processes at once; the ids stay as tombstones. Idempotent.

        An owner without keys gets a tombstone, so that nothing can be sealed for them afterwards.
        """
        _patient(owner)
        with self._lock:
            with self.store.write() as connection:
                at_ms = now_ms()
                if key_store.current(connection, owner, "patient", "") is None:
                    name = KeyName(id=new_key_id(), owner=owner, kind="patient", group="", generation=1)
                    key_store.insert(connection, name, None, created_ms=at_ms)
                key_store.destroy(connection, owner, at_ms)
                key_store.bump(connection)
                rows = key_store.of_owner(connection, owner)
            self.store.purge_log()
            self._refresh()
        return Destroyed(
            owner=owner, key_ids=tuple(sorted(row.name.id for row in rows)), at_ms=rows[0].destroyed_ms or at_ms)

    def is_destroyed(self, owner: str) -> bool:
        """Whether ``owner`` was erased."""
        with self.store.read() as connection:
            row = key_store.current(connection, owner, "patient", "")
        return row is not None and row.destroyed_ms is not None

    def secret(self, label: Label) -> bytes:
        """The hospital's secret for ``label`` (32 bytes): derived from the root until a rotation stores one."""
        return self.secrets(label)[0]

    def secrets(self, label: Label) -> tuple[bytes, ...]:
        """All generations of a secret, newest first: what is sealed already opens with one of them."""
        if label in _DERIVED_ONLY:
            raise ValueError(f"{label} is the key ring's own")
        with self._lock:
            self._refresh()
            known = self._secrets.get(label)
            if known is None:
                with self.store.read() as connection:
                    known = self.secrets_within(connection, label)
                self._secrets[label] = known
            return known

    def secrets_within(self, connection: Connection, label: Label) -> tuple[bytes, ...]:
        """``secrets`` as a transaction of the store sees them."""
        self._settle(connection)
        stored = tuple(
            unwrap(self._wrap_key, wrapped, secret_aad(label, generation))
            for generation, wrapped in key_store.secrets_of(connection, label))
        return stored or (self.root.derive(label),)

    def use_root(self, root: Root) -> None:
        """Go on under ``root``: called by the rotation once its transaction is durable."""
        with self._lock:
            state = self.store.state()
            if state.root != root.fingerprint:
                raise IntegrityBroken("the key store did not move to the new root")
            self._forget()
            self.root, self._wrap_key, self._state = root, root.derive("wrap"), state
            page_slots.allow_roots(self.store.path, self._page_key, [root])

    def allow_roots(self, roots: Sequence[Root]) -> None:
        """Let each of ``roots`` open the key store's pages."""
        page_slots.allow_roots(self.store.path, self._page_key, roots)

    # what rotation and backup share -------------------------------------------------------------------------------

    def owner_key(self, connection: Connection, owner: str) -> bytes:
        """The live patient key within a write transaction, made when missing. Raises KeyDestroyed."""
        self._settle(connection)
        return self._current(connection, owner, "patient", "")[1]

    def wrapped_by_root(self, connection: Connection, key: bytes, aad: bytes) -> bytes:
        """``key`` wrapped under the wrap key of the root in force, within a write transaction."""
        self._settle(connection)
        return wrap(self._wrap_key, key, aad)

    def refresh(self) -> None:
        """Notice what other processes changed; every public method does it first."""
        with self._lock:
            self._refresh()

    # inside -------------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        version = self.store.data_version()
        if version == self._seen:
            return
        state = self.store.state()
        if state != self._state:
            self._moved(state)
        self._seen = version

    def _settle(self, connection: Connection) -> None:
        """Within a transaction nothing moves any more: compare once again before relying on what is cached."""
        state = key_store.state(connection)
        if state != self._state:
            self._moved(state)

    def _moved(self, state: key_store.StoreState) -> None:
        self._forget()
        if state.root != self.root.fingerprint:
            self.root = self._root_of(state.root)
            self._wrap_key = self.root.derive("wrap")
        self._state = state

    def _forget(self) -> None:
        self._sets.clear()
        self._keys.clear()
        self._owner_keys.clear()
        self._secrets.clear()

    def _root_of(self, fingerprint: bytes) -> Root:
        for attempt in range(_ROOT_ATTEMPTS):  # a promotion between two reads of the source shows neither root
            try:
                for root in self._roots():
                    if root.fingerprint == fingerprint:
                        return root
            except Misconfigured:
                if attempt == _ROOT_ATTEMPTS - 1:
                    raise
        raise Misconfigured("the key store was moved to another root key: restore the root it was moved to")

    def _prepare(self, wanted: list[tuple[tuple[str, ...], str]]) -> list[KeySet]:
        while True:
            sets = {want: known for want in wanted if (known := self._sets.get(want)) is not None}
            pairs = {(owner, group) for want in wanted if want not in sets for owner in want[0] for group in want[1:]}
            if not pairs:
                return [sets[want] for want in wanted]
            found, state = self._find(pairs)
            missing = sorted(pairs - found.keys())
            if missing:
                with self.store.write() as connection:
                    self._settle(connection)
                    for owner, group in missing:
                        found[owner, group] = self._current(connection, owner, "category", group)
            if state != self._state:  # a rotation or erasure came between reading and writing: nothing read may be kept
                continue
            for owners, group in wanted:
                if (owners, group) not in sets:
                    keys = [found[owner, group] for owner in owners]
                    known = KeySet.of(keys)
                    sets[owners, group] = known
                    self._sets.put((owners, group), known)
                    for key_id, key in keys:
                        self._keys.put(key_id, key)
            return [sets[want] for want in wanted]

    def _find(
        self, pairs: set[tuple[str, str]]
    ) -> tuple[dict[tuple[str, str], tuple[int, bytes]], key_store.StoreState]:
        found: dict[tuple[str, str], tuple[int, bytes]] = {}
        with self.store.read() as connection:
            self._settle(connection)
            for owner, group in pairs:
                row = key_store.current(connection, owner, "category", group)
                if row is not None:
                    found[owner, group] = row.name.id, self._unwrapped(connection, row)
        return found, self._state

    def _current(self, connection: Connection, owner: str, kind: Kind, group: str) -> tuple[int, bytes]:
        """The newest key within the write lock, created when there is none: no two processes create one."""
        row = key_store.current(connection, owner, kind, group)
        if row is not None:
            return row.name.id, self._unwrapped(connection, row)
        under = self._wrap_key if kind == "patient" else self._current(connection, owner, "patient", "")[1]
        name = KeyName(id=new_key_id(), owner=owner, kind=kind, group=group, generation=1)
        key = _secp256k1_key() if kind == "signing" else os.urandom(32)
        key_store.insert(connection, name, wrap(under, key, name.aad()), created_ms=now_ms())
        return name.id, key

    def _material(self, refs: bytes) -> bytes:
        keys = []
        for key_id in key_ids(refs):
            key = self._keys.get(key_id)
            keys.append(key if key is not None else self._load(key_id))
        return keys[0] if len(keys) == 1 else joined(keys)

    def _load(self, key_id: int) -> bytes:
        with self.store.read() as connection:
            self._settle(connection)
            row = key_store.by_id(connection, key_id)
            if row is None:
                raise IntegrityBroken("a key is not in the key store: restore the store from its backup")
            key = self._unwrapped(connection, row)
        self._keys.put(key_id, key)
        return key

    def _unwrapped(self, connection: Connection, row: KeyRow) -> bytes:
        if row.destroyed_ms is not None:
            raise KeyDestroyed("the key was destroyed by an erasure")
        if row.wrapped is None:
            raise IntegrityBroken("the key was replaced by a rotation")
        name = row.name
        if name.kind == "patient":
            return unwrap(self._wrap_key, row.wrapped, name.aad())
        owner = key_store.current(connection, name.owner, "patient", "")
        if owner is None:
            raise IntegrityBroken("a key has no patient key above it")
        cached = self._owner_keys.get(name.owner)
        if cached is None or cached[0] != owner.name.id:
            cached = owner.name.id, self._unwrapped(connection, owner)
            self._owner_keys.put(name.owner, cached)
        return unwrap(cached[1], row.wrapped, name.aad())


def _patient(owner: str) -> None:
    if not owner or owner == CUSTODIAN:
        raise ValueError("this is done for a patient, not for the custodian")


def _secp256k1_key() -> bytes:
    return (secrets.randbelow(_SECP256K1_ORDER - 1) + 1).to_bytes(32, "big")
