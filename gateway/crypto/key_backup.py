"""The key store in one encrypted file, and back.

Owns the backup's format and the merge; refuses a wrong passphrase or key, an altered file, and every key that an
erasure destroyed (here or in an anchored certificate), which come back as tombstones at most.

    magic ``FHGB\\x01`` | kind u8 (1 passphrase, 2 raw key) | salt 16 | nonce 12 | AES-256-GCM(JSON), AAD = all before

Passphrase: Argon2id with RFC 9106's second recommended option (3 passes, 64 MiB, 4 lanes),
https://www.rfc-editor.org/rfc/rfc9106#section-4; the costs are the format's, so a file cannot ask for weaker ones.
Raw key: 32 bytes through HKDF. Inside, keys stay wrapped under the root in force when it was made: a backup is worth
nothing without that root, which is kept elsewhere. After a rotation of the root, make a new one.

Stability: format 1 stays readable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from gateway.crypto import key_store
from gateway.crypto.hkdf import hkdf
from gateway.crypto.key_rotation import LASTING
from gateway.crypto.key_set import CUSTODIAN
from gateway.crypto.key_store import Connection, KeyRow
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import Root
from gateway.crypto.wrap import KeyName, secret_aad, unwrap, wrap
from gateway.errors import IntegrityBroken, Misconfigured

_MAGIC: Final = b"FHGB\x01"
_HEAD_SIZE: Final = len(_MAGIC) + 1 + 16 + 12
_PASSPHRASE: Final = 1
_RAW_KEY: Final = 2
PASSPHRASE_MIN: Final = 12


@dataclass(frozen=True, slots=True)
class Passphrase:
    """What a person remembers: at least 12 characters."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RawKey:
    """32 random bytes kept in a file or a safe."""

    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did, in keys: ``refused`` were destroyed, ``renumbered`` took a free generation beside others."""

    added: int
    kept: int
    refused: int
    renumbered: int


def backup(ring: KeyRing, key: Passphrase | RawKey) -> bytes:
    """All keys and secrets of one moment, sealed. Raises Misconfigured for a weak passphrase or a wrong key length."""
    ring.refresh()
    with ring.store.read() as connection:
        state = key_store.state(connection)
        document = {
            "root": state.root.hex(),
            "made_ms": key_store.now_ms(),
            "keys": [_row_out(row) for row in key_store.all_rows(connection)],
            "secrets": [
                [label, generation, wrapped.hex()]
                for label in LASTING for generation, wrapped in key_store.secrets_of(connection, label)],
        }
    kind = _PASSPHRASE if isinstance(key, Passphrase) else _RAW_KEY
    salt, nonce = os.urandom(16), os.urandom(12)
    head = _MAGIC + bytes([kind]) + salt + nonce
    return head + AESGCM(_sealing_key(key, salt)).encrypt(nonce, json.dumps(document).encode(), head)


def restore(
    ring: KeyRing, data: bytes, key: Passphrase | RawKey, *,
    backup_roots: Sequence[Root], destroyed_key_ids: Collection[int],
) -> Restored:
    """Bring a backup's keys into ``ring``'s store, empty or not, in one transaction.

    ``backup_roots`` holds the root the backup was made under; keys come out rewrapped under the ring's own. A key that
    is in the store already stays as it is. An id in ``destroyed_key_ids`` is refused with all of its owner's keys.
    Raises IntegrityBroken when the file does not open, Misconfigured when its root is not among ``backup_roots``.
    """
    document = _open(data, key)
    root = next((root for root in backup_roots if root.fingerprint.hex() == document["root"]), None)
    if root is None:
        raise Misconfigured(f"the backup was made under the root {document['root']}: give that root too")
    rows = [_row_in(row) for row in document["keys"]]
    with ring.store.write() as connection:
        used = bool(key_store.owners(connection))
        restored = _merge_keys(ring, connection, rows, root.derive("wrap"), destroyed_key_ids)
        _merge_secrets(ring, connection, document["secrets"], root, used=used)
        key_store.bump(connection)
    ring.store.purge_log()
    ring.refresh()
    return restored


def _merge_keys(
    ring: KeyRing, connection: Connection, rows: list[KeyRow], wrap_key: bytes, destroyed_ids: Collection[int],
) -> Restored:
    added = kept = refused = renumbered = 0
    now = key_store.now_ms()
    gone = {row.name.owner for row in rows if row.destroyed_ms is not None or row.name.id in destroyed_ids}
    gone -= {CUSTODIAN}
    live = {row.name.owner: row for row in rows if row.name.kind == "patient" and row.wrapped is not None}
    for row in rows:  # patient keys come first: what is under them needs them
        name = row.name
        here = key_store.current(connection, name.owner, "patient", "")
        if here is not None and here.destroyed_ms is not None:
            gone.add(name.owner)
        if name.owner in gone and here is not None and here.destroyed_ms is None:
            key_store.destroy(connection, name.owner, now)
        if key_store.by_id(connection, name.id) is not None:
            kept += 1
            continue
        placed = _free_name(connection, name)
        renumbered += placed != name
        if name.owner in gone:
            key_store.insert(connection, placed, None, created_ms=row.created_ms, retired_ms=row.retired_ms,
                             destroyed_ms=row.destroyed_ms or now)
            refused += 1
        elif row.wrapped is None or (name.kind == "patient" and here is not None and here.wrapped is not None):
            # replaced long ago, or the store has a patient key of its own under which the rest is wrapped anew
            placed = _below(connection, name) if name.kind == "patient" else placed
            key_store.insert(connection, placed, None, created_ms=row.created_ms, retired_ms=row.retired_ms or now)
            added += 1
        elif name.kind == "patient":
            opened = unwrap(wrap_key, row.wrapped, name.aad())
            key_store.insert(connection, placed, ring.wrapped_by_root(connection, opened, placed.aad()),
                             created_ms=row.created_ms)
            added += 1
        else:
            above = live[name.owner]
            assert above.wrapped is not None  # noqa: S101  live holds such rows alone
            opened = unwrap(unwrap(wrap_key, above.wrapped, above.name.aad()), row.wrapped, name.aad())
            wrapped = wrap(ring.owner_key(connection, name.owner), opened, placed.aad())
            key_store.insert(connection, placed, wrapped, created_ms=row.created_ms)
            added += 1
    return Restored(added=added, kept=kept, refused=refused, renumbered=renumbered)


def _free_name(connection: Connection, name: KeyName) -> KeyName:
    """``name``, or the same key in the next free generation where two stores went separate ways."""
    if not key_store.taken(connection, name):
        return name
    newest = key_store.current(connection, name.owner, name.kind, name.group)
    generation = newest.name.generation + 1 if newest else name.generation
    return KeyName(id=name.id, owner=name.owner, kind=name.kind, group=name.group, generation=generation)


def _below(connection: Connection, name: KeyName) -> KeyName:
    """A generation under all others for a replaced patient key, so that the live one stays the newest."""
    generation = key_store.oldest_generation(connection, name) - 1
    return KeyName(id=name.id, owner=name.owner, kind=name.kind, group=name.group, generation=generation)


def _merge_secrets(ring: KeyRing, connection: Connection, stored: list[list[Any]], root: Root, *, used: bool) -> None:
    """Bring the secrets in; those of a store in ``used`` are never replaced, also where only derived so far."""
    wrap_key = root.derive("wrap")
    for label in LASTING:
        theirs = {
            generation: unwrap(wrap_key, bytes.fromhex(wrapped), secret_aad(label, generation))
            for name, generation, wrapped in stored if name == label}
        if not theirs and root != ring.root:
            theirs = {0: root.derive(label)}
        ours = [generation for generation, _ in key_store.secrets_of(connection, label)]
        mine = dict(zip(ours or [0], ring.secrets_within(connection, label), strict=True)) if ours or used else {}
        for generation, secret in theirs.items():
            if mine.get(generation, secret) != secret:
                raise Misconfigured(f"the store has another {label} secret already: restore into an empty store")
            wrapped = ring.wrapped_by_root(connection, secret, secret_aad(label, generation))
            key_store.put_secret(connection, label, generation, wrapped, key_store.now_ms())


def _open(data: bytes, key: Passphrase | RawKey) -> dict[str, Any]:
    """The backup's document; its members are trusted once the tag holds, since only a holder of the key wrote them."""
    kind = _PASSPHRASE if isinstance(key, Passphrase) else _RAW_KEY
    head = data[:_HEAD_SIZE]
    if len(head) < _HEAD_SIZE or head[:5] != _MAGIC:
        raise IntegrityBroken("not a key backup of format 1")
    if head[5] != kind:
        other = "raw key" if head[5] == _RAW_KEY else "passphrase"
        raise IntegrityBroken(f"the key backup was sealed under a {other}")
    try:
        plain = AESGCM(_sealing_key(key, head[6:22])).decrypt(head[22:], data[_HEAD_SIZE:], head)
    except InvalidTag:
        raise IntegrityBroken("the key backup does not open: wrong passphrase or key, or an altered file") from None
    document: dict[str, Any] = json.loads(plain)
    return document


def _sealing_key(key: Passphrase | RawKey, salt: bytes) -> bytes:
    if isinstance(key, RawKey):
        if len(key.key) != 32:
            raise Misconfigured("a backup's raw key has 32 bytes")
        return hkdf(ikm=key.key, salt=salt, info=b"gateway key backup 1")
    if len(key.text) < PASSPHRASE_MIN:
        raise Misconfigured(f"a backup's passphrase has at least {PASSPHRASE_MIN} characters")
    return Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=65_536).derive(key.text.encode())


def _row_out(row: KeyRow) -> list[object]:
    name = row.name
    return [name.id, name.owner, name.kind, name.group, name.generation,
            row.wrapped.hex() if row.wrapped is not None else None,
            row.created_ms, row.retired_ms, row.destroyed_ms]


def _row_in(row: list[Any]) -> KeyRow:
    key_id, owner, kind, group, generation, wrapped, created_ms, retired_ms, destroyed_ms = row
    return KeyRow(
        name=KeyName(id=key_id, owner=owner, kind=kind, group=group, generation=generation),
        wrapped=bytes.fromhex(wrapped) if wrapped is not None else None,
        created_ms=created_ms, retired_ms=retired_ms, destroyed_ms=destroyed_ms)
