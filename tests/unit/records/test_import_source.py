"""Files to import: found in order, read within bounds, faulty places named while the rest goes on (issue line 9)."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.records.import_source import WHOLE, Fault, Piece, find, pieces, size_bytes

MOST = 1_000


def read(path: Path, most: int = MOST) -> list[Piece | Fault]:
    told: list[int] = []
    found = list(pieces(path, most_bytes=most, advance=told.append))
    assert sum(told) <= path.stat().st_size
    return found


def bodies(found: list[Piece | Fault]) -> list[tuple[int, bytes]]:
    return [(piece.line, piece.body.strip()) for piece in found if isinstance(piece, Piece)]


def faults(found: list[Piece | Fault]) -> list[tuple[int, str]]:
    return [(fault.line, fault.issue.diagnostics) for fault in found if isinstance(fault, Fault)]


def test_folders_give_their_files_by_name_what_others_refer_to_first(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.json", "a.ndjson", "sub/practitionerInformation1.json", "hospitalInformation9.json.gz", "c.txt",
                 "Z.NDJSON.GZ"):
        (tmp_path / name).touch()
    files, refused = find([tmp_path, tmp_path / "b.json"])
    assert [path.name for path in files] == ["hospitalInformation9.json.gz", "practitionerInformation1.json",
                                             "Z.NDJSON.GZ", "a.ndjson", "b.json"]
    assert not refused
    assert size_bytes([*files, tmp_path / "gone.json"]) == 0


def test_what_is_not_there_or_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.xml").touch()
    (tmp_path / "empty").mkdir()
    files, refused = find([tmp_path / "none.json", tmp_path / "x.xml", tmp_path / "empty"])
    assert not files
    assert [fault.file.name for fault in refused] == ["none.json", "x.xml", "empty"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lines_are_counted_and_blank_ones_passed_over(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.ndjson{suffix}"
    content = b'{"a":1}\n\n  \r\n{"b":2}\r\n{"c":3}'
    stored = gzip.compress(content) if suffix else content
    path.write_bytes(stored)
    found = read(path)
    assert bodies(found) == [(1, b'{"a":1}'), (4, b'{"b":2}'), (5, b'{"c":3}')]
    assert {piece.digest for piece in found if isinstance(piece, Piece)} == {hashlib.sha256(stored).digest()}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_json_file_is_one_piece(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(gzip.compress(b"{\n}") if suffix else b"{\n}")
    assert bodies(read(path)) == [(WHOLE, b"{\n}")]


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line)))
def test_every_line_comes_back_with_its_number(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.ndjson"
    path.write_bytes(b"\n".join(lines))
    expected = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    assert bodies(read(path)) == expected


def test_a_line_over_the_limit_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"1" * MOST + b"\n" + b"2" * (5 << 20) + b"\n3")
    found = read(path)
    assert bodies(found) == [(1, b"1" * MOST), (3, b"3")]
    assert faults(found) == [(2, f"it is longer than {MOST} bytes")]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_file_over_the_limit_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(bytes(8 << 20), 1) if name.endswith("gz") else bytes(MOST + 1))
    assert faults(read(path)) == [(WHOLE, f"it is longer than {MOST} bytes")]


@pytest.mark.parametrize("filling", [b"\n", b"0"])
def test_a_decompression_bomb_of_lines_is_given_up(tmp_path: Path, filling: bytes) -> None:
    path = tmp_path / "bomb.ndjson.gz"
    path.write_bytes(gzip.compress(filling * (80 << 20), 6))
    found = read(path, most=32 << 20)
    assert "300 times its size" in faults(found)[-1][1]
    assert not bodies(found)


@pytest.mark.parametrize("cut", [3, 12, 40])
def test_a_gz_cut_short_or_none_is_a_fault_with_its_place(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(os.urandom(5_000).hex().encode())[:cut])
    [fault] = read(path)
    assert isinstance(fault, Fault)
    assert "cannot be read" in fault.issue.diagnostics
    path.write_bytes(b"no gzip at all")
    [fault] = read(path)
    assert isinstance(fault, Fault)


def test_lines_before_the_damage_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(b"1\n2\n") + b"\x1f\x8b damaged")
    found = read(path)
    assert bodies(found) == [(1, b"1"), (2, b"2")]
    assert faults(found)[0][0] == 3


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert "plain file" in faults(read(tmp_path / "pipe.json"))[0][1]
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    dangling = list(pieces(tmp_path / "link.json", most_bytes=9, advance=lambda _: None))
    assert "cannot be opened" in faults(dangling)[0][1]
