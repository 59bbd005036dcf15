"""The root key: derivation by RFC 5869, and a file nobody else can read (``gateway/FORMATS.md``, Keys)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from gateway.crypto.hkdf import expand, hkdf
from gateway.crypto.root import (
    LABELS,
    Root,
    create_root,
    fixed_roots,
    load_or_create_root,
    load_root,
    new_root,
    promote_root,
    root_file,
    root_from_hex,
    stage_root,
)
from gateway.errors import Misconfigured


def test_hkdf_is_rfc_5869() -> None:
    ikm, salt, info = os.urandom(64), os.urandom(32), b"label"
    reference = HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(ikm)
    assert hkdf(ikm=ikm, salt=salt, info=info) == reference
    key = os.urandom(32)
    assert expand(key, info) == HKDFExpand(algorithm=hashes.SHA256(), length=32, info=info).derive(key)


def test_every_label_gives_another_key() -> None:
    root = new_root()
    assert len({root.derive(label) for label in LABELS}) == len(LABELS)
    assert root.derive("index") == Root(bytes.fromhex(root.hex())).derive("index")


def test_labels_are_stable() -> None:
    """Vectors: a label names its key for ever; a change here loses every sealed block."""
    root = Root(bytes(range(32)))
    assert root.derive("wrap").hex() == "59888b0c13d9361ce1250b838e38c6951a9f1f0086d6445b1af2203c12cb9579"
    assert root.derive("index").hex() == "8578d4b8700f3302728fcb9c78d6c4215b1cc9cfb0ab820d9102fbd424173b2b"


def test_repr_hides_the_secret() -> None:
    root = new_root()
    assert root.hex() not in repr(root)


@pytest.mark.parametrize("secret", [b"", b"\x01" * 31, bytes(range(33)), bytes(32), b"ab" * 16])
def test_refuses_a_wrong_length_or_a_key_that_is_not_random(secret: bytes) -> None:
    with pytest.raises(Misconfigured):
        Root(secret)


def test_environment_value_is_never_echoed() -> None:
    with pytest.raises(Misconfigured) as caught:
        root_from_hex("s3cret-value")
    assert "s3cret" not in str(caught.value)
    root = new_root()
    assert root_from_hex(root.hex() + "\n") == root


def test_first_start_makes_a_private_file_and_later_starts_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "root.key"
    made = load_or_create_root(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_root(path) == made
    assert [entry.name for entry in path.parent.iterdir()] == ["root.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_refuses_a_file_others_can_reach(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "root.key"
    create_root(path)
    path.chmod(mode)
    with pytest.raises(Misconfigured, match="chmod 600"):
        load_root(path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, bytes(range(33))])
def test_refuses_a_file_of_another_length(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "root.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Misconfigured):
        load_root(path)


def test_refuses_a_symbolic_link_and_an_absent_file(tmp_path: Path) -> None:
    create_root(tmp_path / "real")
    (tmp_path / "root.key").symlink_to(tmp_path / "real")
    with pytest.raises(Misconfigured):
        load_or_create_root(tmp_path / "root.key")
    with pytest.raises(Misconfigured, match="restore"):
        load_root(tmp_path / "none")


def test_processes_that_start_together_agree_on_one_root(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    found: list[Root] = []
    threads = [threading.Thread(target=lambda: found.append(create_root(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_rotation_stages_then_promotes(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    old = create_root(path)
    new = stage_root(path)
    assert stage_root(path) == new
    assert root_file(path)() == (old, new)
    promote_root(path)
    assert root_file(path)() == (new,)
    assert fixed_roots(old, new)() == (old, new)


def test_a_source_without_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="restore"):
        root_file(tmp_path / "root.key")()
