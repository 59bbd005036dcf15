"""The accounts an embedded chain is born with: made once, kept in a 0600 file, known to nobody else.

Owns making and reading that file; refuses one that others may read, and any public test key. The *operator* signs and
pays for this hospital; the *reserve* holds ether for further accounts (a second operator, a second hospital).
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from eth_keys.datatypes import PrivateKey

from gateway.errors import Misconfigured
from gateway.ledger.address import Address, address

NAMES = ("operator", "reserve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """``private_key`` is 32 bytes and stays out of every repr."""

    name: str
    address: Address
    private_key: bytes = field(repr=False)


def account(name: str, private_key: bytes) -> Account:
    """The account of a private key."""
    public = PrivateKey(private_key).public_key
    return Account(name=name, address=address(public.to_canonical_address()), private_key=private_key)


def load_accounts(path: Path) -> tuple[Account, ...]:
    """The accounts in the file, in its order. ``Misconfigured``: unreadable, damaged, or open to others."""
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise Misconfigured(f"{path} holds private keys and others may read it: chmod 600 {path}")
        entries = json.loads(path.read_bytes())["accounts"]
        loaded = tuple(account(str(e["name"]), bytes.fromhex(e["private_key"])) for e in entries)
    except OSError as error:
        raise Misconfigured(f"the chain's accounts cannot be read from {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"{path} is not a file of chain accounts") from error
    except Exception as error:  # eth_keys raises its own ValidationError for a key out of range
        if isinstance(error, Misconfigured):
            raise
        raise Misconfigured(f"{path} holds a key that is none") from error
    if not loaded:
        raise Misconfigured(f"{path} holds no account")
    return loaded


def ensure_accounts(path: Path) -> tuple[Account, ...]:
    """``load_accounts``, after making the file with fresh random keys where there is none.

    Whole or not at all: written aside, synced, then linked into place, so that of two processes one wins.
    """
    if path.exists():
        return load_accounts(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    body = {"accounts": [{"name": name, "private_key": secrets.token_bytes(32).hex()} for name in NAMES]}
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(body, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return load_accounts(path)
