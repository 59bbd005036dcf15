"""``gateway keys``: backed up, restored and rotated without a key being shown or a file overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.crypto.key_command import SAFE_SECRETS, backup, restore, rotate, show_root
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import create_root, load_root, root_file, stage_root
from gateway.errors import IntegrityBroken, Misconfigured


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    create_root(folder / "root.key")
    ring = opened(folder)
    ring.category_keys(["p1"], "general")
    ring.category_keys(["p2"], "general")
    ring.close()
    return folder


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    return secret_file(tmp_path / "passphrase", "correct horse battery\n")


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def opened(folder: Path) -> KeyRing:
    return KeyRing(folder / "keystore.db", root_file(folder / "root.key"))


def material(folder: Path, owner: str) -> bytes:
    ring = opened(folder)
    try:
        return ring.category_keys([owner], "general").material
    finally:
        ring.close()


def test_a_backup_restores_on_a_new_machine_with_the_root_key(
        tmp_path: Path, keys: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = material(keys, "p1")
    file = tmp_path / "keys.backup"
    assert backup(keys, file, passphrase) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    new = tmp_path / "new" / "keys"
    with pytest.raises(Misconfigured, match="--root"):
        restore(new, file, passphrase)
    assert restore(new, file, passphrase, root=keys / "root.key") == 0
    assert material(new, "p1") == before
    shown = capsys.readouterr().out
    assert "two different places" in shown
    assert load_root(keys / "root.key").fingerprint.hex() in shown
    assert load_root(keys / "root.key").hex() not in shown
    assert "correct horse" not in shown


def test_a_backup_from_before_a_rotation_of_the_root_needs_the_old_root(
        tmp_path: Path, keys: Path, passphrase: Path) -> None:
    before, old = material(keys, "p1"), tmp_path / "old-root"
    old.write_bytes((keys / "root.key").read_bytes())
    old.chmod(0o600)
    backup(keys, tmp_path / "b", passphrase)
    rotate(keys, "root", None)
    assert load_root(keys / "root.key") != load_root(old)
    assert material(keys, "p1") == before
    for file in keys.iterdir():
        if file.name.startswith("keystore.db"):
            file.unlink()
    with pytest.raises(Misconfigured, match="give that root too"):
        restore(keys, tmp_path / "b", passphrase)
    restore(keys, tmp_path / "b", passphrase, root=old)
    assert material(keys, "p1") == before


def test_a_backup_never_overwrites(tmp_path: Path, keys: Path, passphrase: Path) -> None:
    file = tmp_path / "b"
    file.write_text("precious")
    with pytest.raises(Misconfigured, match="never overwrites"):
        backup(keys, file, passphrase)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Misconfigured, match="never overwrites"):
        backup(keys, link, passphrase)
    with pytest.raises(Misconfigured, match="no folder"):
        backup(keys, tmp_path / "none" / "b", passphrase)
    assert file.read_text() == "precious"


def test_a_passphrase_file_others_may_read_or_a_short_one_is_refused(tmp_path: Path, keys: Path) -> None:
    for text, mode, why in (("correct horse battery", 0o644, "chmod 600"), ("short", 0o600, "at least 12"),
                            ("", 0o600, "one line"), ("a line too much\nand more", 0o600, "one line")):
        file = secret_file(tmp_path / "p", text)
        file.chmod(mode)
        with pytest.raises(Misconfigured, match=why):
            backup(keys, tmp_path / "b", file)
    with pytest.raises(Misconfigured, match="cannot be read"):
        backup(keys, tmp_path / "b", tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff" * 20)
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(Misconfigured, match="UTF-8"):
        backup(keys, tmp_path / "b", tmp_path / "binary")
    assert not (tmp_path / "b").exists()


def test_a_wrong_passphrase_restores_nothing(tmp_path: Path, keys: Path, passphrase: Path) -> None:
    backup(keys, tmp_path / "b", passphrase)
    with pytest.raises(IntegrityBroken):
        restore(keys, tmp_path / "b", secret_file(tmp_path / "other", "another passphrase"))
    with pytest.raises(Misconfigured, match="cannot be read"):
        restore(keys, tmp_path / "none", passphrase)


@pytest.mark.parametrize(("level", "patient", "label"), [
    ("root", None, None), ("patient", None, None), ("patient", "p1", None), ("category", "Patient/p1", None),
    ("category", None, None), *(("secret", None, label) for label in SAFE_SECRETS)])
def test_after_every_rotation_what_was_sealed_opens(
        keys: Path, level: str, patient: str | None, label: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    ring = opened(keys)
    refs = {owner: ring.category_keys([owner], "general") for owner in ("p1", "p2")}
    secrets = {name: ring.secrets(name) for name in ("index", "page", "manifest", "pseudonym")}
    ring.close()
    assert rotate(keys, level, patient, label) == 0
    assert "rotated" in capsys.readouterr().out
    ring = opened(keys)
    for known in refs.values():
        assert ring.open_keys(known.refs) == known.material
    for name, known_secrets in secrets.items():
        assert set(known_secrets) <= set(ring.secrets(name))
    assert ring.secret("index") == secrets["index"][0]
    ring.close()


@pytest.mark.parametrize(("label", "why"), [
    ("index", "rebuilt"), ("page", "rekeyed"), ("pseudonym", "chain"), ("audit", "spooled"), ("nonsense", "no such")])
def test_a_secret_something_stored_depends_on_is_not_rotated(keys: Path, label: str, why: str) -> None:
    with pytest.raises(Misconfigured, match=why):
        rotate(keys, "secret", None, label)


def test_rotations_that_make_no_sense_are_refused(tmp_path: Path, keys: Path) -> None:
    for level, patient, label in (("secret", None, None), ("root", None, "manifest"), ("root", "p1", None),
                                  ("patient", "nobody", None), ("nonsense", None, None)):
        with pytest.raises(Misconfigured):
            rotate(keys, level, patient, label)
    with pytest.raises(Misconfigured, match="no keys"):
        rotate(tmp_path / "none", "root", None)
    ring = opened(keys)
    ring.destroy("p2")
    ring.close()
    with pytest.raises(Misconfigured, match="erasure"):
        rotate(keys, "category", "p2")


def test_a_rotation_of_the_root_cut_short_is_finished_by_the_next_command(
        keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = material(keys, "p1")
    replace = os.replace

    def die(source: Path, target: Path) -> None:
        if Path(target).name == "root.key":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        rotate(keys, "root", None)
    monkeypatch.undo()
    staged = stage_root(keys / "root.key")
    assert show_root(keys) == 0
    assert staged.fingerprint.hex() in capsys.readouterr().out
    assert load_root(keys / "root.key") == staged
    assert material(keys, "p1") == before
