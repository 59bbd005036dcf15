"""The page key of the key store's file, in a small file beside it: one slot per root that may open it.

Owns ``<key store>.page``; refuses a root without a slot. The page key is random and stays when the root changes, so a
rotation of the root needs no exclusive lock on the file (SQLite3MC cannot rekey in WAL mode); while it runs there are
two slots. What a root protects is the wraps inside; the page key hides who has keys at all.

    magic ``FHGP\\x01`` | slot ...       slot = root fingerprint 16 | wrap 60 (AAD = magic, fingerprint)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway.crypto.root import Root, write_once, write_over
from gateway.crypto.wrap import WRAPPED_SIZE, unwrap, wrap
from gateway.errors import Misconfigured

_MAGIC: Final = b"FHGP\x01"
_SLOT: Final = 16 + WRAPPED_SIZE


def slots_path(key_store: Path) -> Path:
    """Where the slots of ``key_store`` are."""
    return key_store.with_name(key_store.name + ".page")


def page_key(key_store: Path, roots: Sequence[Root]) -> bytes:
    """The page key, made on first use; safe when several processes come first.

    Raises Misconfigured when the file is there without its slots, or no root has a slot.
    """
    path = slots_path(key_store)
    if not path.exists():
        if key_store.exists() and key_store.stat().st_size:
            raise Misconfigured(f"{path.name} is missing beside the key store: restore both from the backup")
        write_once(path, _MAGIC + _slot(roots[0], os.urandom(32)))
    slots = _read(path)
    for root in roots:
        if root.fingerprint in slots:
            return unwrap(
                root.derive("key-store-page"), slots[root.fingerprint], _MAGIC + root.fingerprint)
    raise Misconfigured("the key store belongs to another root key: restore the root it was made with")


def allow_roots(key_store: Path, key: bytes, roots: Sequence[Root]) -> None:
    """Leave exactly ``roots`` with a slot, durably."""
    write_over(slots_path(key_store), _MAGIC + b"".join(_slot(root, key) for root in roots))


def fingerprints(key_store: Path) -> frozenset[bytes]:
    """The roots that have a slot."""
    return frozenset(_read(slots_path(key_store)))


def _slot(root: Root, key: bytes) -> bytes:
    return root.fingerprint + wrap(root.derive("key-store-page"), key, _MAGIC + root.fingerprint)


def _read(path: Path) -> dict[bytes, bytes]:
    data = path.read_bytes()
    body = data[len(_MAGIC):]
    if not data.startswith(_MAGIC) or not body or len(body) % _SLOT:
        raise Misconfigured(f"{path.name} is damaged: restore it from the backup")
    return {body[at:at + 16]: body[at + 16:at + _SLOT] for at in range(0, len(body), _SLOT)}
