"""``gateway keys``: backup, restore and rotation of the key store, as an operator calls them.

Owns what is printed and which files are touched; refuses to print a key, to overwrite a file, to take a passphrase from
a file others may read, and to rotate a secret that something stored depends on. Each returns the exit code.

A backup holds wrapped keys: it opens with the passphrase, and its keys with the root key in force when it was made. So
two things are kept, in two places: the backup, and a copy of the root key.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final, get_args

from gateway.crypto import key_backup, key_rotation, key_store
from gateway.crypto.key_backup import PASSPHRASE_MIN, Passphrase
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import Label, Root, load_root, root_file, write_once
from gateway.errors import Misconfigured

ROOT_KEY: Final = "root.key"
KEY_STORE: Final = "keystore.db"
BACKUP_MAX: Final = 1 << 30
_PASSPHRASE_FILE_MAX: Final = 4_096
_RESTART: Final = "restart the gateway now: processes that run keep the old one until then"
SAFE_SECRETS: Final[dict[Label, str]] = {
    "token-hash": f"every token, sign-in and client secret so far is void from the next start on; {_RESTART}",
    "id-token": "id_tokens are signed with a new key from now on; the old one stays in the JWKS for a day",
    "attestation": "verifications are signed with a new key from now on; the old one stays among the published ones",
    "page-link": f"page links given out so far are void from the next start on; {_RESTART}",
    "job": "jobs asked for from now on are sealed under it; the older ones still open",
    "sign-in": "one-time code secrets and sign-ups are sealed under it from now on; the older ones still open",
    "manifest": "manifests made from now on are sealed under it; the older ones still open",
}
"""What may be rotated alone, and what follows from it."""
_UNSAFE_SECRETS: Final[dict[str, str]] = {
    "index": "every index row was made with it: searches would find nothing until the index is rebuilt",
    "page": "the database file is encrypted with it: it would have to be rekeyed in the same step",
    "audit": "what is spooled of the audit is sealed under it until it is in the database",
    "pseudonym": "addresses and hashes on the chain depend on it",
}


def backup(keys_dir: Path, file: Path, passphrase_file: Path) -> int:
    """Write the key store, sealed under the passphrase, to the new ``file`` (mode 0600).

    Raises Misconfigured for a weak passphrase, a file that exists, or keys that are not there.
    """
    passphrase = read_passphrase(passphrase_file)
    if file.exists() or file.is_symlink():
        raise Misconfigured(f"{file} exists already: a backup never overwrites; give another name")
    if not file.parent.is_dir():
        raise Misconfigured(f"there is no folder {file.parent}")
    ring = _open(keys_dir)
    try:
        sealed = key_backup.backup(ring, passphrase)
        fingerprint = ring.root.fingerprint.hex()
        with ring.store.read() as connection:
            rows = key_store.all_rows(connection)
    finally:
        ring.close()
    try:
        if not write_once(file, sealed):
            raise Misconfigured(f"{file} exists already: a backup never overwrites; give another name")
    except OSError as error:
        raise Misconfigured(f"{file} cannot be written: {error.strerror}") from error
    owners = len({row.name.owner for row in rows})
    print(f"""wrote           {file} ({len(sealed)} bytes, {len(rows)} keys of {owners} owners)
opens with      the passphrase, and the root key {fingerprint}
keep            this file and a copy of {keys_dir / ROOT_KEY} in two different places, neither beside the database:
                either alone opens nothing, and without the root key this backup is worth nothing
make another    after each `gateway keys rotate`, and as often as new patients' keys may not be lost""")
    return 0


def restore(keys_dir: Path, file: Path, passphrase_file: Path, *, root: Path | None = None,
            destroyed_key_ids: Collection[int] = ()) -> int:
    """Bring the keys of a backup into the key store, empty or not.

    ``root``: a copy of the root key the backup was made under; it becomes ``root.key`` where there is none.
    ``destroyed_key_ids``: what erasure certificates name. Raises Misconfigured, or IntegrityBroken when the backup does
    not open.
    """
    passphrase = read_passphrase(passphrase_file)
    sealed = _read(file, BACKUP_MAX)
    given = None if root is None else load_root(root)
    path = keys_dir / ROOT_KEY
    if not path.exists():
        _put_root(path, given, keys_dir)
    ring = KeyRing(keys_dir / KEY_STORE, root_file(path))
    try:
        key_rotation.settle_root_file(ring, path)
        roots = [ring.root] if given is None else [ring.root, given]
        done = key_backup.restore(ring, sealed, passphrase, backup_roots=roots, destroyed_key_ids=destroyed_key_ids)
        fingerprint = ring.root.fingerprint.hex()
    finally:
        ring.close()
    print(f"""restored        {done.added} keys from {file}, under the root key {fingerprint}
there already   {done.kept}
renumbered      {done.renumbered} (the store had others of their generation)
refused         {done.refused} (destroyed by an erasure: they stay destroyed)""")
    return 0


def _put_root(path: Path, given: Root | None, keys_dir: Path) -> None:
    if given is None:
        raise Misconfigured(f"there is no root key at {path}: put the copy kept with the backup there (mode 0600), "
                            "or name it with --root")
    if (keys_dir / KEY_STORE).exists():
        raise Misconfigured(f"{keys_dir / KEY_STORE} is there without its root key: put that root key at {path}, or "
                            "move the key store and its .page file away to restore from nothing")
    keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_once(path, bytes.fromhex(given.hex()))


def rotate(keys_dir: Path, level: str, patient: str | None, label: str | None = None) -> int:
    """New keys of one ``level``: root, patient, category (``patient`` narrows to one), or the secret ``label``.

    Runs beside a gateway. Raises Misconfigured for a combination that makes no sense or is not safe.
    """
    if (level == "secret") != (label is not None):
        raise Misconfigured(f"give --label with `rotate secret`, and with nothing else: {', '.join(SAFE_SECRETS)}")
    if patient is not None and level not in ("patient", "category"):
        raise Misconfigured(f"--patient does not go with `rotate {level}`")
    owner = None if patient is None else patient.removeprefix("Patient/")
    secret = None if label is None else _safe(label)
    ring = _open(keys_dir)
    started_s = time.monotonic()
    try:
        if owner is not None:
            _check_known(ring, owner)
        done = _rotate(ring, keys_dir / ROOT_KEY, level, owner, secret)
    finally:
        ring.close()
    print(f"rotated         {done}, in {time.monotonic() - started_s:.1f} s")
    print("next            make a new backup (`gateway keys backup`): an older one does not hold what is new")
    if level == "root":
        print(f"                and a new copy of {keys_dir / ROOT_KEY}; keep the old copy as long as its backups")
    return 0


def _rotate(ring: KeyRing, root: Path, level: str, owner: str | None, secret: Label | None) -> str:
    with ring.store.read() as connection:
        owners = 1 if owner is not None else len(key_store.owners(connection))
    print(f"rotating        {level} keys of {owners} owners ..." if secret is None else f"rotating        {secret} ...",
          flush=True)
    if secret is not None:
        key_rotation.rotate_secret(ring, secret)
        return f"the secret {secret}: {SAFE_SECRETS[secret]}"
    match level:
        case "root":
            old = ring.root.fingerprint.hex()
            new = key_rotation.rotate_root_file(ring, root)
            return f"the root key {old} to {new.fingerprint.hex()}"
        case "patient":
            return f"{key_rotation.rotate_patient(ring, owner=owner)} patient keys; what they sealed still opens"
        case "category":
            count = key_rotation.rotate_category(ring, owner=owner, group=None)
            return f"{count} category keys: what is written from now on uses them, what is stored still opens"
    raise Misconfigured(f"{level} is not a level of keys: root, patient, category, secret")


def show_root(keys_dir: Path) -> int:
    """Print which root key this is and where, never the key."""
    ring = _open(keys_dir)
    try:
        print(f"root key        {ring.root.fingerprint.hex()}\nfile            {keys_dir / ROOT_KEY}")
    finally:
        ring.close()
    return 0


def read_passphrase(path: Path) -> Passphrase:
    """The first line of a file only its owner may read. Raises Misconfigured."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Misconfigured(f"the passphrase file {path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Misconfigured(f"the passphrase file {path} is not a file")
        if status.st_mode & 0o077:
            raise Misconfigured(f"others may read the passphrase file {path}: chmod 600 {path}")
        data = file.read(_PASSPHRASE_FILE_MAX + 1)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise Misconfigured(f"the passphrase file {path} is not UTF-8 text") from None
    if len(data) > _PASSPHRASE_FILE_MAX or len(lines) != 1:
        raise Misconfigured(f"the passphrase file {path} must hold one line")
    if len(lines[0]) < PASSPHRASE_MIN:
        raise Misconfigured(f"the passphrase must have at least {PASSPHRASE_MIN} characters")
    return Passphrase(lines[0])


def _open(keys_dir: Path) -> KeyRing:
    """The ring over what is there; nothing is made."""
    path = keys_dir / ROOT_KEY
    for needed in (path, keys_dir / KEY_STORE):
        if not needed.exists():
            raise Misconfigured(f"there are no keys at {keys_dir} ({needed.name} is missing)")
    ring = KeyRing(keys_dir / KEY_STORE, root_file(path))
    key_rotation.settle_root_file(ring, path)
    return ring


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise Misconfigured(f"{path} is no key backup: over {most} bytes")
    return data


def _safe(label: str) -> Label:
    for known in get_args(Label):
        if known == label and known in SAFE_SECRETS:
            safe: Label = known
            return safe
    reason = _UNSAFE_SECRETS.get(label, "there is no such secret to rotate alone")
    raise Misconfigured(f"the secret {label} is not rotated here: {reason}; these are: {', '.join(SAFE_SECRETS)}")


def _check_known(ring: KeyRing, owner: str) -> None:
    with ring.store.read() as connection:
        row = key_store.current(connection, owner, "patient", "")
    if row is None:
        raise Misconfigured(f"there are no keys of the patient {owner}")
    if row.destroyed_ms is not None:
        raise Misconfigured(f"the keys of the patient {owner} were destroyed by an erasure")
