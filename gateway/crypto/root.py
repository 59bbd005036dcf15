"""The root key: 32 bytes from which everything else of this hospital is derived or under which it is wrapped.

Owns the root file (mode 0600, made once, replaced atomically), the root from an environment value, and the labels of
all keys derived from it; refuses a file others can read, a wrong length, a symbolic link, and a key of equal bytes.
Derivation: HKDF-SHA256, https://www.rfc-editor.org/rfc/rfc5869, salt ``fhir-gateway root 1``, info the label.

Stability: a label names its key for ever; a new use takes a new label, never an old one.

Code outside ``gateway/crypto`` asks ``KeyRing.secret(label)``, which answers the same across a rotation of the root.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

from gateway.crypto.hkdf import hkdf
from gateway.errors import Misconfigured

Label = Literal[
    "index", "pseudonym", "page", "key-store-page", "manifest", "wrap", "token-hash", "page-link", "audit",
    "fingerprint", "job", "sign-in", "id-token", "attestation",
]
LABELS: Final[tuple[Label, ...]] = get_args(Label)

SIZE: Final = 32
_SALT: Final = b"fhir-gateway root 1"


class Root:
    """One root key. ``repr`` shows its fingerprint alone."""

    __slots__ = ("_secret", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SIZE:
            raise Misconfigured(f"the root key must be {SIZE} bytes, not {len(secret)}")
        if len(set(secret)) < 8:
            raise Misconfigured("the root key is not random: too few different bytes")
        self._secret = bytes(secret)
        self.fingerprint: bytes = self.derive("fingerprint")[:16]

    def derive(self, label: Label) -> bytes:
        """The 32-byte key for ``label``."""
        return hkdf(ikm=self._secret, salt=_SALT, info=label.encode())

    def hex(self) -> str:
        """The secret itself, to be written to a file or shown once to who makes it."""
        return self._secret.hex()

    def __repr__(self) -> str:
        return f"Root(fingerprint={self.fingerprint.hex()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Root) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


RootSource = Callable[[], tuple[Root, ...]]
"""Gives the roots there are now, the settled one first; asked again when the key store moved to another."""


def root_from_hex(text: str) -> Root:
    """A root from 64 hex digits (an environment value). Raises Misconfigured, never echoing the value."""
    try:
        return Root(bytes.fromhex(text.strip()))
    except ValueError:
        raise Misconfigured("the root key must be 64 hex digits") from None


def new_root() -> Root:
    """A fresh random root."""
    return Root(secrets.token_bytes(SIZE))


def load_root(path: Path) -> Root:
    """Read the 32 bytes of ``path``.

    Raises Misconfigured when it is absent, a link, another's, readable by group or others, or of another length.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Misconfigured(f"no root key at {path}: restore it from its backup") from None
    except OSError as error:
        raise Misconfigured(f"the root key at {path} cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Misconfigured(f"the root key at {path} is not a file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise Misconfigured(f"the root key at {path} has mode {mode:04o}: run chmod 600 on it")
        if status.st_uid not in (os.geteuid(), 0):
            raise Misconfigured(f"the root key at {path} belongs to another user")
        return Root(os.read(descriptor, SIZE + 1))
    finally:
        os.close(descriptor)


def create_root(path: Path) -> Root:
    """Make a root and write it durably; where another process was first, its root is the answer."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_once(path, bytes.fromhex(new_root().hex()))
    return load_root(path)


def load_or_create_root(path: Path) -> Root:
    """The root of ``path``, made on first start."""
    return load_root(path) if path.exists() or path.is_symlink() else create_root(path)


def staged_path(path: Path) -> Path:
    """Where a rotation keeps the next root until the key store has moved to it."""
    return path.with_name(path.name + ".next")


def stage_root(path: Path) -> Root:
    """Make the next root beside the present one, durably; a rotation that was cut short goes on with its own."""
    return load_or_create_root(staged_path(path))


def promote_root(path: Path) -> None:
    """Let the staged root take the place of the present one, atomically and durably; once, however many try."""
    with suppress(FileNotFoundError):  # another process that saw the key store move was first
        os.replace(staged_path(path), path)
    sync_folder(path.parent)


def root_file(path: Path) -> RootSource:
    """A source that reads ``path`` and, while a rotation is under way, the staged root beside it."""
    def source() -> tuple[Root, ...]:
        roots: list[Root] = []
        for place in (path, staged_path(path)):
            if place.exists():
                roots.append(load_root(place))
        if not roots:
            raise Misconfigured(f"no root key at {path}: restore it from its backup")
        return tuple(roots)
    return source


def fixed_roots(*roots: Root) -> RootSource:
    """A source of roots already in hand (environment, tests)."""
    return lambda: roots


def write_once(path: Path, content: bytes) -> bool:
    """Put ``content`` at ``path`` with mode 0600, durably and whole; False when something was there already."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    _write_draft(draft, content)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)
    sync_folder(path.parent)
    return True


def write_over(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` with mode 0600, durably and whole."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    _write_draft(draft, content)
    os.replace(draft, path)
    sync_folder(path.parent)


def _write_draft(draft: Path, content: bytes) -> None:
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view):]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
